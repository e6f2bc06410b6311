//! What a watcher is told of a key only ever rises: on one stream, and on from an id; and a snapshot shows nothing older than
//! what the same process has told before. A process never goes on where another was. Once all is quiet, what a watcher was
//! told adds up to the rows.

use std::collections::BTreeMap;

use outrigger::api::watch::Told;
use outrigger::store::feed::EventId;
use outrigger::types::{Ballot, Key, NodeId, ShardId, Value};

use crate::linearizable::Finals;
use crate::sometimes::sometimes;
use crate::story;

/// What the watchers of a world have been told.
#[derive(Default)]
pub(crate) struct Watched(BTreeMap<(NodeId, ShardId), Watcher>);

/// One client, which outlives the processes of its node.
#[derive(Default)]
struct Watcher {
    rows: BTreeMap<Key, (Value, Ballot)>,
    /// A snapshot on its way.
    incoming: Option<BTreeMap<Key, (Value, Ballot)>>,
    /// The version of every key that this process of the node has told of.
    seen: BTreeMap<Key, Ballot>,
    boot: u64,
    /// Where to go on, and which process said so.
    id: Option<(EventId, u64)>,
}

impl Watched {
    fn of(&mut self, node: &NodeId, shard: &ShardId) -> &mut Watcher {
        self.0.entry((node.clone(), shard.clone())).or_default()
    }

    /// Where its watcher would go on.
    pub(crate) fn id(&mut self, node: &NodeId, shard: &ShardId) -> Option<EventId> {
        self.of(node, shard).id.map(|(id, _)| id)
    }

    /// A stream begins.
    pub(crate) fn begins(&mut self, node: &NodeId, boot: u64, shard: &ShardId, is_resumed: bool) {
        let watcher = self.of(node, shard);
        let said_by = watcher.id.map(|(_, boot)| boot);
        sometimes!(is_resumed, "a watch went on from an id");
        sometimes!(said_by.is_some_and(|then| then != boot), "a watch outlived its node's process");
        if is_resumed && said_by != Some(boot) {
            story::fail(format!("{node}, boot {boot}: a watch of {shard} goes on from an id of boot {said_by:?}"));
        }
        if watcher.boot != boot {
            (watcher.boot, watcher.seen) = (boot, BTreeMap::new());
        }
        watcher.incoming = None;
    }

    /// Something was told.
    pub(crate) fn told(&mut self, node: &NodeId, shard: &ShardId, told: Told) {
        let watcher = self.of(node, shard);
        if let Err(why) = watcher.told(told) {
            story::fail(format!("{node}, boot {}: a watcher of {shard} {why}", watcher.boot));
        }
    }

    /// Whether the watchers of these nodes were told all that there is.
    pub(crate) fn are_in_step(&mut self, finals: &Finals) -> Result<(), String> {
        for ((node, shard), watcher) in &self.0 {
            let Some(rows) = finals.get(node.as_str()) else { continue };
            let row = |(key, (value, upd)): (&Key, &(Value, Ballot))| {
                (format!("{shard}/{key}"), (value.as_bytes().to_vec(), upd.0))
            };
            let told: BTreeMap<_, _> = watcher.rows.iter().map(row).collect();
            let prefix = format!("{shard}/");
            let there = rows.iter().filter(|(key, _)| key.starts_with(&prefix));
            if !there.eq(told.iter()) {
                let versions: Vec<_> = told.iter().map(|(key, (_, upd))| (key, upd)).collect();
                return Err(format!(
                    "a watcher of {shard} on {node} was told of {versions:?}, which is not what is there"
                ));
            }
        }
        Ok(())
    }
}

impl Watcher {
    fn told(&mut self, told: Told) -> Result<(), String> {
        let is_snapshot = self.incoming.is_some();
        match told {
            Told::Snapshot => self.incoming = Some(BTreeMap::new()),
            Told::SnapshotEnd(id) => {
                self.rows = self.incoming.take().ok_or("is told of a snapshot's end without its beginning")?;
                self.id = Some((id, self.boot));
            }
            Told::Put { key, value, upd, id } => {
                self.check(&key, upd, is_snapshot)?;
                if is_snapshot != id.is_none() {
                    return Err(format!("is given the id {id:?}, in a snapshot: {is_snapshot}"));
                }
                self.incoming.as_mut().unwrap_or(&mut self.rows).insert(key, (value, upd));
                self.id = id.map(|id| (id, self.boot)).or(self.id);
            }
            Told::Del { key, upd, id } => {
                self.check(&key, upd, false)?;
                self.rows.remove(&key);
                self.id = Some((id, self.boot));
            }
            Told::Idle(id) => self.id = Some((id, self.boot)),
        }
        Ok(())
    }

    /// A snapshot may show again what is known; a change is new.
    fn check(&mut self, key: &Key, upd: Ballot, is_snapshot: bool) -> Result<(), String> {
        let before = self.seen.insert(key.clone(), upd);
        match before {
            Some(before) if upd < before || (upd == before && !is_snapshot) => {
                Err(format!("is told of {key} @{upd} after @{before}, in a snapshot: {is_snapshot}"))
            }
            _ => Ok(()),
        }
    }
}
