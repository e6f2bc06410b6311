//! `outrigger cluster`: who votes.

use std::io::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use outrigger::client::Client;
use outrigger::cluster::status::ClusterStatus;
use outrigger::types::NodeId;

use super::{Failure, output};

/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// How often it may not answer before this is given up: it may be restarting.
const UNANSWERED_MAX: u32 = 25;

/// Change who votes: add, remove or replace a voter, one at a time, while the cluster serves
#[derive(Debug, Args)]
#[command(after_help = "\
A change runs in steps: a new voter copies what a majority has; old and new voters decide together; the new voters make
sure that they have what the old ones chose; the new voters decide alone. Any node can be asked, whatever it is, and any
voter ends what another began. What the `voters` of the configuration file say is the first set only: leave it as it is.

EXAMPLES
  outrigger cluster add d                 d runs already, with a seed and the cluster's key
  outrigger cluster remove a              before its machine goes
  outrigger cluster replace c --with d    in one step
  outrigger cluster replace c             c came back with an empty disk (happens on its own after a moment)
  outrigger cluster recover --force       a majority is lost for good, and this node is what is left")]
pub(super) struct Cluster {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Have a running node vote that has none so far
    Add {
        /// Its name
        #[arg(value_parser = NodeId::parse)]
        node: NodeId,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a voter's vote away, or an observer off the list
    Remove {
        /// Its name
        #[arg(value_parser = NodeId::parse)]
        node: NodeId,
        #[command(flatten)]
        wait: Wait,
    },
    /// Put a voter's new disk, or another node, in its place
    Replace {
        /// The voter
        #[arg(value_parser = NodeId::parse)]
        node: NodeId,
        /// Who votes in its place [default: the same node, on the disk it came back with]
        #[arg(long, value_name = "NODE", value_parser = NodeId::parse)]
        with: Option<NodeId>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let this node decide alone, where a majority is lost for good
    ///
    /// Use it on one node only, the one that has the newest data, while the lost ones are down. Acknowledged writes that only
    /// they had are lost. Nodes that come back later join as observers: `cluster add` gives them their vote.
    Recover {
        /// Yes, acknowledged writes may be lost
        #[arg(long, required = true)]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct Wait {
    /// Return once it is begun
    #[arg(long)]
    no_wait: bool,
}

/// What a node says of its cluster once a change has ended.
type IsDone = Box<dyn Fn(&ClusterStatus) -> bool>;

impl Cluster {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let (begun, wait, is_done): (_, _, IsDone) = match self.what {
            What::Add { node, wait } => {
                let begun = client.add_voter(&node).await?;
                (begun, wait, Box::new(move |now| now.voters.contains(&node)))
            }
            What::Remove { node, wait } => {
                let begun = client.remove_voter(&node).await?;
                (begun, wait, Box::new(move |now| !now.voters.contains(&node)))
            }
            What::Replace { node, with, wait } => {
                let begun = client.replace_voter(&node, with.as_ref()).await?;
                let before = begun.epoch;
                (begun, wait, Box::new(move |now| now.epoch > before))
            }
            What::Recover { .. } => (client.recover().await?, Wait { no_wait: true }, Box::new(|_| true)),
        };
        let done = if wait.no_wait { begun } else { wait_done(client, begun, &*is_done).await? };
        if json {
            let line = serde_json::to_string(&done).map_err(Failure::other)?;
            return Ok(output::print(&format!("{line}\n"))?);
        }
        let voters = done.voters.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
        let joint = if done.joint { " (a change is under way)" } else { "" };
        Ok(output::print(&format!("epoch {}: voters {voters}{joint}\n", done.epoch))?)
    }
}

/// Shows each step on standard error as it is taken.
async fn wait_done(
    client: &Client,
    begun: ClusterStatus,
    is_done: &dyn Fn(&ClusterStatus) -> bool,
) -> Result<ClusterStatus, Failure> {
    let (mut now, mut shown, mut unanswered) = (begun, None, 0);
    loop {
        if let Some(change) = now.change.clone().filter(|change| shown.as_ref() != Some(change)) {
            // Where nobody reads it there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{}: {}", change.change, change.step);
            if change.failed {
                return Err(Failure::Other(format!("cannot {}: {}", change.change, change.step)));
            }
            shown = Some(change);
        }
        if !now.joint && is_done(&now) {
            return Ok(now);
        }
        tokio::time::sleep(POLL).await;
        match client.cluster().await {
            Ok(next) => (now, unanswered) = (next, 0),
            Err(error) if unanswered >= UNANSWERED_MAX => {
                let failed = Failure::from(error);
                return Err(failed.with(
                    "; what was begun is ended by the other nodes, or was not begun: see `outrigger status` there",
                ));
            }
            Err(_) => unanswered += 1,
        }
    }
}
