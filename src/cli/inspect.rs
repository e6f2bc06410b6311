//! `status`, `shards`, `check-config`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use outrigger::client::Client;
use outrigger::cluster::membership::majority;
use outrigger::cluster::status::{ClusterStatus, NodeStatus, Role, ShardStatus};
use outrigger::config::{Config, Environment, Overrides};
use outrigger::types::{NodeId, Org};

use super::change::spread;
use super::output::{self, Tone, milliseconds, paint};
use super::{Failure, output::colours};

/// How many pinned shards `status` names.
const PINS_SHOWN_MAX: usize = 20;

/// Show the cluster as this node sees it
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger status
  watch outrigger status
  outrigger status --json | jq '.nodes[] | select(.live | not) | .node'

COLUMNS
  RTT      smoothed round trip to that node
  EPOCH    the voter configuration it has installed
  PENDING  accepted frames it does not yet know to be chosen
  LAG      committed frames that wait for their shard file there
  SKEW     how far its clock is ahead of ours
  IN STEP  all rows there and here were compared since the two last connected")]
pub(super) struct Status {}

/// Show what this node stores: each shard's keys, size, latest version, who replicates it, and who is in step
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger shards                of every org
  outrigger shards --org acme     of one; `_` is the org of those who have none
  outrigger shards --json | jq 'select(.bytes > 1000000)'")]
pub(super) struct Shards {}

/// Print the effective configuration, secrets hidden, or the first error (exit 64)
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger check-config /etc/outrigger.toml
  OUTRIGGER__NODE__NAME=b outrigger check-config /etc/outrigger.toml
                                        the environment counts, as in `serve`

Of the file with the key, where there is one, only the mode is looked at: one
that everybody may read, or that its group may change, is refused.")]
pub(super) struct CheckConfig {
    /// The configuration file, TOML
    file: PathBuf,
}

impl Status {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let status = client.cluster().await?;
        if json {
            let line = serde_json::to_string(&status).map_err(Failure::other)?;
            return Ok(output::print(&format!("{line}\n"))?);
        }
        Ok(output::print(&render_status(&status, colours()))?)
    }
}

fn render_status(status: &ClusterStatus, colours: bool) -> String {
    let voting = |node: &&NodeStatus| node.live && node.role == Role::Voter && status.voters.contains(&node.node);
    let live = status.nodes.iter().filter(voting).count();
    let needed = majority(status.voters.len());
    let (quorum, tone) = match live {
        // Two majorities are needed then; whether they are there is said below.
        _ if status.joint => ("changing voters", Tone::Odd),
        _ if live < needed => ("no quorum", Tone::Bad),
        _ if live < status.voters.len() => ("quorum, degraded", Tone::Odd),
        _ => ("quorum", Tone::Good),
    };
    let mut out = String::new();
    let cluster = paint(&status.cluster, Tone::Strong, colours);
    let quorum = paint(quorum, tone, colours);
    let _ = writeln!(
        out,
        "cluster {cluster}   {quorum}: {live} of {} voters live, {needed} needed   epoch {}   seen by {} ({})",
        status.voters.len(),
        status.epoch,
        status.node,
        status.version
    );
    out += &render_replicas(status);
    if let Some(reason) = &status.unready {
        let _ = writeln!(out, "{}", paint(&format!("not ready: {reason}"), Tone::Bad, colours));
    }
    for refusal in &status.refusals {
        let _ = writeln!(out, "{}", paint(&format!("no connection to {refusal}"), Tone::Bad, colours));
    }
    let rows: Vec<_> = status.nodes.iter().map(node_row).collect();
    let heads = [
        "NODE",
        "LIVE",
        "ROLE",
        "STORAGE ID",
        "ADDRESS",
        ">RTT",
        ">EPOCH",
        ">SHARDS",
        ">PENDING",
        ">LAG",
        ">SKEW",
        "IN STEP",
    ];
    let _ = write!(out, "\n{}", output::table(&heads, &rows, colours));
    let counts = status.decisions;
    let _ = writeln!(
        out,
        "\nthis node: shards open {}, frames pending {}; proposals: {} accepted, {} rejected, {} timed out",
        status.open_shards, status.pending_frames, counts.accept, counts.reject, counts.timeout
    );
    let outbox = status.outbox;
    if let Some(oldest_ms) = outbox.oldest_ms {
        let oldest = humantime::format_duration(std::time::Duration::from_secs(oldest_ms / 1_000));
        let (entries, bytes) = (outbox.entries, output::bytes(outbox.bytes));
        let _ = writeln!(out, "outbox: {entries} local writes ({bytes}) wait for a quorum, the oldest for {oldest}");
    }
    out
}

/// On how many voters each shard is, and which shards are on named ones; nothing where all are on all.
fn render_replicas(status: &ClusterStatus) -> String {
    let mut out = String::new();
    if status.replication_factor.is_some() {
        let _ = writeln!(out, "{}", spread(status));
    }
    for pin in status.pins.iter().take(PINS_SHOWN_MAX) {
        let nodes: Vec<&str> = pin.nodes.iter().map(NodeId::as_str).collect();
        let _ = writeln!(out, "{} is pinned to {}", pin.shard(), nodes.join(", "));
    }
    let more = status.pins.len().saturating_sub(PINS_SHOWN_MAX);
    if more > 0 {
        let _ = writeln!(out, "and {more} more shards are pinned (`outrigger status --json` has all)");
    }
    out
}

fn node_row(node: &NodeStatus) -> (Vec<String>, Tone) {
    let tone = match (node.live, node.role) {
        (false, _) => Tone::Bad,
        (true, Role::Barred) => Tone::Odd,
        (true, Role::Voter | Role::Observer) => Tone::Plain,
    };
    let name = if node.me { format!("{} (this)", node.node) } else { node.node.to_string() };
    let role = match node.role {
        Role::Voter => "voter",
        Role::Observer => "observer",
        Role::Barred => "barred",
    };
    let cells = vec![
        name,
        yes(node.live),
        role.to_owned(),
        shown(node.storage_id),
        shown(node.address.as_ref()),
        node.round_trip_us.map_or_else(dash, |us| milliseconds(us as f64)),
        shown(node.epoch),
        shown(node.open_shards),
        shown(node.pending_frames),
        shown(node.lag_frames),
        node.clock_skew_us.map_or_else(dash, |us| milliseconds(us as f64)),
        if node.me { dash() } else { yes(node.in_step) },
    ];
    (cells, tone)
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn dash() -> String {
    "-".to_owned()
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(dash, |value| value.to_string())
}

impl Shards {
    pub(super) async fn run(self, client: &Client, org: Option<&str>, json: bool) -> Result<(), Failure> {
        let org = org.map(Org::parse).transpose().map_err(|error| Failure::Usage(error.to_string()))?;
        let shards = client.shards(org.as_ref()).await?;
        if !json {
            return Ok(output::print(&render_shards(&shards))?);
        }
        let mut lines = String::new();
        for shard in &shards {
            lines += &serde_json::to_string(shard).map_err(Failure::other)?;
            lines.push('\n');
        }
        Ok(output::print(&lines)?)
    }
}

fn render_shards(shards: &[ShardStatus]) -> String {
    let row = |shard: &ShardStatus| {
        let cells = vec![
            shard.org.clone(),
            shard.namespace.clone(),
            shard.keys.to_string(),
            output::bytes(shard.bytes),
            shard.tombstones.to_string(),
            shard.last_upd.to_string(),
            names(&shard.replicas),
            names(&shard.in_step),
        ];
        (cells, Tone::Plain)
    };
    let rows: Vec<_> = shards.iter().map(row).collect();
    let heads = ["ORG", "NAMESPACE", ">KEYS", ">SIZE", ">TOMBSTONES", ">LAST UPD", "REPLICAS", "IN STEP WITH"];
    output::table(&heads, &rows, colours())
}

fn names(nodes: &[NodeId]) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    if names.is_empty() { dash() } else { names.join(" ") }
}

impl CheckConfig {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let config = Config::load(Some(&self.file), &Environment::of_process(), Overrides::default())?;
        // Alone, a node does not look at them either.
        if let Some(identity) = config.cluster.identity.as_ref().filter(|_| !config.is_alone()) {
            identity.check_permissions().map_err(|error| Failure::identity(&error.to_string()))?;
        }
        Ok(output::print(&config.to_toml())?)
    }
}
