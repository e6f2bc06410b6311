//! `outrigger cluster`: who votes.

use std::io::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use outrigger::client::{self, Client};
use outrigger::clock::OsClock;
use outrigger::cluster::change::VoterChange;
use outrigger::cluster::status::{ClusterStatus, Role};
use outrigger::types::NodeId;

use super::{Failure, output};

/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// How often it may not answer before this is given up: it may be restarting.
const UNANSWERED_MAX: u32 = 25;
/// How long after a failure the next try is.
const RETRY: Duration = Duration::from_secs(1);
/// How long a majority may take to confirm that a node votes; then this node's word is taken for it. A node that was just
/// started takes a moment to find the others.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// Change who votes: add, remove or replace a voter, one at a time, while the cluster serves
#[derive(Debug, Args)]
#[command(after_help = "\
A change runs in steps: a new voter copies what a majority has; old and new
voters decide together; the new voters make sure that they have what the old
ones chose; the new voters decide alone. Any node can be asked, whatever it is,
and any voter ends what another began. What the `voters` of the configuration
file say is the first set only: leave it as it is.

EXAMPLES
  outrigger cluster add d                a node that runs already, with a seed
                                         and the cluster's key
  outrigger cluster add d --within 10m   one that is being started, or waits
                                         for others to be added
  outrigger cluster remove a             before its machine goes
  outrigger cluster remove app-3 --and-higher
                                         app-3, app-4 ..., the highest first
  outrigger cluster replace c --with d   in one step
  outrigger cluster replace c            c came back with an empty disk
                                         (done without asking, in a moment)
  outrigger cluster recover --force      a majority is lost for good, and this
                                         node is what is left")]
pub(super) struct Cluster {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Have a running node vote that has no vote so far
    ///
    /// Of a node that votes already nothing is asked. Where no majority answers for 5 s, what the asked node knows counts.
    Add {
        /// Its name
        #[arg(value_parser = NodeId::parse)]
        node: NodeId,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a voter's vote away, or an observer off the list
    ///
    /// It is refused where those who would decide then are not in reach: nobody could write until they are back.
    Remove {
        /// Its name
        #[arg(value_parser = NodeId::parse)]
        node: NodeId,
        /// All voters of this name, but for the number at its end, with this or a higher one; the highest first. There may be none
        #[arg(long, conflicts_with = "no_wait")]
        and_higher: bool,
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
    /// Try again for as long, as in 10m, whatever stands in the way: another change, a node that has not joined, no majority
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s", hide_default_value = true)]
    within: Duration,
}

impl Cluster {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let done = match self.what {
            What::Add { node, wait } => carry_out(client, &VoterChange::Add(node), &wait).await?,
            What::Remove { node, and_higher: false, wait } => {
                carry_out(client, &VoterChange::Remove(node), &wait).await?
            }
            What::Remove { node, and_higher: true, wait } => remove_from(client, &node, &wait).await?,
            What::Replace { node, with, wait } => {
                carry_out(client, &VoterChange::Replace { node, with }, &wait).await?
            }
            What::Recover { .. } => client.recover().await?,
        };
        if json {
            let line = serde_json::to_string(&done).map_err(Failure::other)?;
            return Ok(output::print(&format!("{line}\n"))?);
        }
        let voters = done.voters.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
        let joint = if done.joint { " (a change is under way)" } else { "" };
        Ok(output::print(&format!("epoch {}: voters {voters}{joint}\n", done.epoch))?)
    }
}

/// Tries until it is done or the time for it is over.
async fn carry_out(client: &Client, change: &VoterChange, wait: &Wait) -> Result<ClusterStatus, Failure> {
    let clock = OsClock::shared();
    let (began, mut shown) = (clock.now().monotonic, None);
    loop {
        let why = match attempt(client, change, wait).await {
            Ok(now) => return Ok(now),
            Err(why) => why,
        };
        let known = match (&why, change) {
            (Failure::Unavailable(_), VoterChange::Add(node)) => {
                client.cluster().await.ok().filter(|now| votes(now, node))
            }
            _ => None,
        };
        let (is_known, tried_for) = (known.is_some(), clock.now().monotonic.saturating_sub(began));
        if let Some(now) = known.filter(|_| tried_for >= CONFIRM_WITHIN) {
            tell("no majority answers; as far as this node knows, it is so already");
            return Ok(now);
        }
        if tried_for >= wait.within && !is_known {
            return Err(why);
        }
        let text = why.message().to_owned();
        if shown.as_ref() != Some(&text) {
            tell(&format!("{text}; trying again"));
            shown = Some(text);
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn attempt(client: &Client, change: &VoterChange, wait: &Wait) -> Result<ClusterStatus, Failure> {
    let before = client.cluster().await?.epoch;
    let begun = match change {
        VoterChange::Add(node) => client.add_voter(node).await,
        VoterChange::Remove(node) => client.remove_voter(node).await,
        VoterChange::Replace { node, with } => client.replace_voter(node, with.as_ref()).await,
        VoterChange::Factor(_) | VoterChange::Move { .. } => client.cluster().await,
    }?;
    let is_done = |now: &ClusterStatus| match change {
        VoterChange::Add(node) => votes(now, node),
        VoterChange::Remove(node) => !now.voters.contains(node),
        VoterChange::Replace { .. } | VoterChange::Factor(_) | VoterChange::Move { .. } => now.epoch > before,
    };
    if wait.no_wait { Ok(begun) } else { wait_done(client, begun, is_done).await }
}

/// True where this node is a voter, and not by a disk that it has no longer.
fn votes(now: &ClusterStatus, node: &NodeId) -> bool {
    let elsewhere = now.nodes.iter().any(|known| known.node == *node && known.live && known.role != Role::Voter);
    now.voters.contains(node) && !elsewhere
}

/// Takes their votes away from all voters that are named like `node` but for the number, where that is not lower.
async fn remove_from(client: &Client, node: &NodeId, wait: &Wait) -> Result<ClusterStatus, Failure> {
    let Some((name, from)) = numbered(node) else {
        return Err(Failure::Usage(format!(
            "--and-higher: got {node}, want a name that ends in a number, as in app-3"
        )));
    };
    loop {
        let now = client.cluster().await?;
        let number = |voter: &NodeId| numbered(voter).filter(|(of, _)| *of == name).map(|(_, number)| number);
        let beyond = now.voters.iter().filter(|voter| number(voter).is_some_and(|number| number >= from));
        match beyond.max_by_key(|voter| number(voter)) {
            None => return Ok(now),
            Some(highest) => carry_out(client, &VoterChange::Remove(highest.clone()), wait).await?,
        };
    }
}

/// `app-` and 3 of `app-3`.
fn numbered(node: &NodeId) -> Option<(&str, u64)> {
    let name = node.as_str().trim_end_matches(|c: char| c.is_ascii_digit());
    Some((name, node.as_str().strip_prefix(name)?.parse().ok()?))
}

/// On standard error. Where nobody reads it there is nobody to tell.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Shows each step as it is taken.
async fn wait_done(
    client: &Client,
    begun: ClusterStatus,
    is_done: impl Fn(&ClusterStatus) -> bool,
) -> Result<ClusterStatus, Failure> {
    let (mut now, mut shown, mut unanswered) = (begun, None, 0);
    loop {
        if let Some(change) = now.change.clone().filter(|change| shown.as_ref() != Some(change)) {
            if change.failed {
                return Err(Failure::Other(format!("cannot {}: {}", change.change, change.step)));
            }
            tell(&format!("{}: {}", change.change, change.step));
            shown = Some(change);
        }
        if !now.joint && is_done(&now) {
            return Ok(now);
        }
        tokio::time::sleep(POLL).await;
        match client.cluster().await {
            Ok(next) => (now, unanswered) = (next, 0),
            Err(error) if unanswered >= UNANSWERED_MAX => return Err(not_answered(error)),
            Err(_) => unanswered += 1,
        }
    }
}

fn not_answered(error: client::Error) -> Failure {
    let more = "; what was begun is ended by the other nodes, or was not begun: see `outrigger status` there";
    Failure::from(error).with(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_what_a_name_ends_in() {
        let of = |name: &str| numbered(&NodeId::parse(name).unwrap()).map(|(name, number)| (name.to_owned(), number));
        assert_eq!(of("app-3"), Some(("app-".to_owned(), 3)));
        assert_eq!(of("v2-app-10"), Some(("v2-app-".to_owned(), 10)));
        assert_eq!(of("app"), None);
        assert_eq!(of("app-99999999999999999999"), None);
    }
}
