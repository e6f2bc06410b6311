//! `outrigger migrate`: which voters replicate one shard.

use clap::Args;
use outrigger::client::Client;
use outrigger::cluster::change::VoterChange;
use outrigger::types::{NodeId, ShardId};

use super::change::{Wait, carry_out, under_way};
use super::{Failure, output};

/// Move a shard to other voters, or back, while it is in use
#[derive(Debug, Args)]
#[command(after_help = "\
Where each shard is on some of the voters only (`outrigger cluster
replication-factor --help`), its name says on which. The nodes named here come
before those: one name moves one of its replicas there, and as many names as it
has replicas say all of them. Naming others later takes the place of this.

The shard is read and written all the while: old and new replicas decide
together until the new ones have all that the old ones chose, then the new ones
alone. Any node can be asked, and any voter ends what another began. One change
at a time: `--within` waits for its turn. `outrigger shards` shows who
replicates what, `outrigger status` which shards were moved.

EXAMPLES
  outrigger migrate --org acme --namespace payments --to d
  outrigger migrate --org acme --namespace payments --to b,c,d --within 10m
  outrigger migrate --org acme --namespace payments --back   where its name says")]
pub(super) struct Migrate {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Who is to replicate it: voters, at most as many as it has replicas
    #[arg(long, value_name = "NODE", value_delimiter = ',', value_parser = NodeId::parse)]
    to: Vec<NodeId>,
    /// Those that follow from its name replicate it again
    #[arg(long)]
    back: bool,
}

impl Migrate {
    pub(super) async fn run(self, client: &Client, shard: ShardId, json: bool) -> Result<(), Failure> {
        // Without a name it goes back.
        let to = self.target.to;
        let is_now = match &*to {
            [] => "back where its name puts it".to_owned(),
            names => format!("pinned to {}", names.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")),
        };
        let change = VoterChange::Move { shard: shard.clone(), to };
        let done = carry_out(client, &change, &self.wait).await?;
        if json {
            let line = serde_json::to_string(&done).map_err(Failure::other)?;
            return Ok(output::print(&format!("{line}\n"))?);
        }
        let is_now = if self.wait.no_wait { format!("to be {is_now}") } else { is_now };
        Ok(output::print(&format!("epoch {}: {shard} {is_now}{}\n", done.epoch, under_way(&done)))?)
    }
}
