//! Carrying a change of the cluster out: asked for, tried again as long as is wanted, waited for until it is in force.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use outrigger::client::{self, Client};
use outrigger::clock::OsClock;
use outrigger::cluster::change::VoterChange;
use outrigger::cluster::status::{ClusterStatus, Role};
use outrigger::types::NodeId;

use super::Failure;

/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// How often it may not answer before this is given up: it may be restarting.
const UNANSWERED_MAX: u32 = 25;
/// How long after a failure the next try is.
const RETRY: Duration = Duration::from_secs(1);
/// How long a majority may take to confirm that a node votes; then this node's word is taken for it. A node that was just
/// started takes a moment to find the others.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// How long somebody waits for a change.
#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Return once it is begun
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Try again for as long, as in 10m, whatever stands in the way: another change, a node that has not joined, no majority
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s", hide_default_value = true)]
    within: Duration,
}

/// Tries until it is done or the time for it is over.
pub(super) async fn carry_out(client: &Client, change: &VoterChange, wait: &Wait) -> Result<ClusterStatus, Failure> {
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
        VoterChange::Factor(factor) => client.set_replication_factor(*factor).await,
        VoterChange::Move { shard, to } => client.move_shard(shard, to).await,
    }?;
    if wait.no_wait { Ok(begun) } else { wait_done(client, begun, |now| is_in_force(change, now, before)).await }
}

/// True where all is as `change` wants it, whoever began that. A new disk of the same node is seen by nothing but the epoch, which
/// was `before`.
fn is_in_force(change: &VoterChange, now: &ClusterStatus, before: u64) -> bool {
    match change {
        VoterChange::Add(node) => votes(now, node),
        VoterChange::Remove(node) => !now.voters.contains(node),
        VoterChange::Replace { .. } => now.epoch > before,
        VoterChange::Factor(factor) => now.replication_factor == factor.map(|factor| factor as u64),
        VoterChange::Move { shard, to } => {
            let pin = now.pins.iter().find(|pin| pin.shard() == *shard);
            let pinned: BTreeSet<&NodeId> = pin.iter().flat_map(|pin| &pin.nodes).collect();
            pinned == to.iter().collect()
        }
    }
}

/// True where this node is a voter, and not by a disk that it has no longer.
fn votes(now: &ClusterStatus, node: &NodeId) -> bool {
    let elsewhere = now.nodes.iter().any(|known| known.node == *node && known.live && known.role != Role::Voter);
    now.voters.contains(node) && !elsewhere
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

/// On how many voters each shard is.
pub(super) fn spread(now: &ClusterStatus) -> String {
    match now.replication_factor {
        None => "each shard on all voters".to_owned(),
        Some(factor) if factor < now.voters.len() as u64 => format!("each shard on {factor} of the voters"),
        Some(factor) => format!("each shard on all voters, on {factor} once there are more"),
    }
}

/// What to add where it goes on.
pub(super) fn under_way(now: &ClusterStatus) -> &'static str {
    if now.joint { " (a change is under way)" } else { "" }
}

#[cfg(test)]
mod tests {
    use outrigger::types::ShardId;

    use super::*;

    #[test]
    fn a_change_is_in_force_where_the_status_shows_it_and_not_before() {
        let mut now: ClusterStatus = serde_json::from_value(serde_json::json!({
            "cluster": "x", "node": "a", "version": "1", "epoch": 3, "voters": ["a", "b", "c"], "nodes": [],
            "open_shards": 0, "decisions": { "accept": 0, "reject": 0, "timeout": 0 }, "pending_frames": 0,
            "unready": null,
            "pins": [{ "org": "acme", "namespace": "pay", "nodes": ["b", "c"] }, { "org": "_", "namespace": "pay", "nodes": ["a"] }],
        }))
        .unwrap();
        let to = |org: &str, names: &[&str]| {
            let to = names.iter().map(|name| NodeId::parse(name).unwrap()).collect();
            VoterChange::Move { shard: ShardId::parse(org, "pay").unwrap(), to }
        };
        // Another change may have raised the epoch meanwhile.
        let mut is = |change: &VoterChange, factor: Option<u64>| {
            now.replication_factor = factor;
            is_in_force(change, &now, 1)
        };
        assert!(is(&to("acme", &["c", "b"]), None) && is(&to("", &["a"]), None) && is(&to("beta", &[]), None));
        assert!(
            !is(&to("acme", &["b"]), None) && !is(&to("acme", &["b", "c", "a"]), None) && !is(&to("acme", &[]), None)
        );
        assert!(!is(&to("beta", &["b"]), None));
        let (three, all) = (VoterChange::Factor(Some(3)), VoterChange::Factor(None));
        assert!(is(&three, Some(3)) && !is(&three, Some(5)) && !is(&three, None));
        assert!(is(&all, None) && !is(&all, Some(3)));
    }
}
