//! `outrigger cluster`: who votes, and how many of them on each shard.

use clap::{Args, Subcommand};
use outrigger::client::Client;
use outrigger::cluster::change::VoterChange;
use outrigger::cluster::status::ClusterStatus;
use outrigger::types::NodeId;

use super::change::{Wait, carry_out, spread, under_way};
use super::{Failure, output};

/// Change who votes: add, remove or replace a voter, and how many replicate each shard, while the cluster serves
#[derive(Debug, Args)]
#[command(after_help = "\
A change runs in steps: a new voter copies what a majority has; old and new
voters decide together; the new voters make sure that they have what the old
ones chose; the new voters decide alone. Any node can be asked, whatever it is,
and any voter ends what another began. What `voters` and `replication_factor`
of the configuration file say counts at first only: leave them as they are.

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
  outrigger cluster replication-factor 3
                                         each shard on three voters, which its
                                         name picks; `all` for every voter
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
    /// Have so many voters replicate each shard
    ///
    /// Which those are follows from the shard's name, unless `outrigger migrate` named them. A shard can be written and read through
    /// a quorum while a majority of its replicas is there: 3 survive the loss of one, 5 of two; an even number survives no more than
    /// the odd one below it, 1 survives nothing, and with 2 no voter may be away while voters change. The other voters read and
    /// write the shard through those.
    #[command(after_help = "\
EXAMPLES
  outrigger cluster replication-factor 3     of five voters, say
  outrigger cluster replication-factor all   every voter replicates every shard")]
    ReplicationFactor {
        /// A number of voters, or `all`
        #[arg(value_name = "N|all", value_parser = VoterChange::factor)]
        factor: VoterChange,
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

impl Cluster {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let is_factor = matches!(self.what, What::ReplicationFactor { .. });
        let done = match self.what {
            What::Add { node, wait } => carry_out(client, &VoterChange::Add(node), &wait).await?,
            What::Remove { node, and_higher: false, wait } => {
                carry_out(client, &VoterChange::Remove(node), &wait).await?
            }
            What::Remove { node, and_higher: true, wait } => remove_from(client, &node, &wait).await?,
            What::Replace { node, with, wait } => {
                carry_out(client, &VoterChange::Replace { node, with }, &wait).await?
            }
            What::ReplicationFactor { factor, wait } => carry_out(client, &factor, &wait).await?,
            What::Recover { .. } => client.recover().await?,
        };
        if json {
            let line = serde_json::to_string(&done).map_err(Failure::other)?;
            return Ok(output::print(&format!("{line}\n"))?);
        }
        let voters = done.voters.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
        let is_told = is_factor || done.replication_factor.is_some();
        let spread = if is_told { format!("; {}", spread(&done)) } else { String::new() };
        Ok(output::print(&format!("epoch {}: voters {voters}{spread}{}\n", done.epoch, under_way(&done)))?)
    }
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
