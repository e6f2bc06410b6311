//! With nothing going wrong and nobody asking, all sound nodes hold the same rows of what they hold before long, and nothing is left waiting:
//! no vote of unknown fate, no frame without its file, no local write. And each node says so of the others.

use std::collections::BTreeMap;

use outrigger::cluster::status::{NodeStatus, Role};

use crate::clients::addresses;
use crate::linearizable::Finals;
use crate::program::Handle;
use crate::sometimes::sometimes;

/// What each node holds; or what it is still waiting for.
pub(crate) fn look(nodes: &BTreeMap<String, Handle>) -> Result<Finals, String> {
    let (mut finals, mut elsewhere) = (Finals::new(), Vec::new());
    for (name, handle) in nodes {
        let status = handle.view.cluster();
        if let Some(why) = status.unready {
            return Err(format!("{name} is not ready: {why}"));
        }
        if status.pending_frames > 0 || handle.manager.apply_backlog() > 0 {
            let (pending, waiting) = (status.pending_frames, handle.manager.apply_backlog());
            return Err(format!("{name} has {pending} votes of unknown fate and {waiting} frames for its files"));
        }
        if status.outbox.entries > 0 {
            return Err(format!("{name} has {} local writes that nobody else has", status.outbox.entries));
        }
        sometimes!(status.outbox.superseded > 0, "a local write was overtaken");
        // Two that have no vote need not be connected.
        let is_observer = status.nodes.iter().any(|node| node.me && node.role == Role::Observer);
        let is_apart = |other: &NodeStatus| other.me || (is_observer && other.role == Role::Observer);
        let others = status.nodes.iter().filter(|other| !is_apart(other) && nodes.contains_key(other.node.as_str()));
        if let Some(other) = others.into_iter().find(|other| !other.in_step) {
            return Err(format!("{name} does not say that {} holds the same rows", other.node));
        }
        let mut rows = BTreeMap::new();
        for (key, at) in addresses() {
            if !handle.holds(&at.shard) {
                elsewhere.push((name.clone(), key));
                continue;
            }
            let shard = match handle.manager.exists(&at.shard) {
                true => handle.manager.open(&at.shard).map_err(|error| format!("{name}: {key}: {error}"))?,
                false => continue,
            };
            let row = shard.read(&at.key).map_err(|error| format!("{name}: {key}: {error}"))?;
            rows.extend(row.map(|row| (key, (row.value.as_bytes().to_vec(), row.upd.0))));
        }
        finals.insert(name.clone(), rows);
    }
    // Of what a node does not hold, what the others have is taken for its own.
    let known: BTreeMap<_, _> = finals.values().flatten().map(|(key, row)| (key.clone(), row.clone())).collect();
    for (name, key) in elsewhere {
        let Some(row) = known.get(&key) else { continue };
        sometimes!("a node held no copy of a shard that others had");
        finals.entry(name).or_default().insert(key, row.clone());
    }
    let mut all = finals.values();
    let first = all.next();
    match all.all(|rows| Some(rows) == first) {
        true => Ok(finals),
        false => Err(format!("they hold different rows: {}", differences(&finals))),
    }
}

fn differences(finals: &Finals) -> String {
    let held = |rows: &BTreeMap<String, (Vec<u8>, i64)>, key: &str| rows.get(key).map(|(_, upd)| *upd);
    let mut differing = Vec::new();
    for (key, _) in addresses() {
        let versions: Vec<_> = finals.iter().map(|(node, rows)| (node, held(rows, &key))).collect();
        if versions.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            differing.push(format!("{key}: {versions:?}"));
        }
    }
    differing.join("; ")
}
