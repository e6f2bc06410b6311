//! What a node remembers of its peers' disks, to notice one that forgot. Pure: no tokio, no I/O, no clocks.
//!
//! A disk that forgot is another disk (DESIGN §4, rule 12): a voter that lost promises and votes again can undo what a
//! majority chose. Neither a new directory nor a restored snapshot knows that it has forgotten, so the peers tell it:
//!
//! ```text
//!   hello(figures) ──► PeerMemory::observe ──► Standing      how we take its votes
//!   hello(remembered) ──► self_standing ─────► Standing      whether we may vote at all
//! ```
//!
//! **Figures must be durable before they are said.** A ceiling or position that is only in the speaker's memory may be
//! gone after its crash without anything forgotten, and would condemn a sound disk. The same goes for the other side:
//! compare with figures read *after* the peer's words arrived, as one's own only rise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{Ballot, NodeId, StorageId};

/// What a node says of its own disk; everything in it is already on that disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Its data directory.
    pub storage_id: StorageId,
    /// A random number drawn once per process. Within one run, lower figures are only late; across runs they are a
    /// disk that went back. The boot counter cannot tell the two apart, as it goes back with the disk.
    pub run: u64,
    /// Its durable clock ceiling.
    pub ceiling: Ballot,
    /// Its durable journal position.
    pub position: u64,
}

/// What a node tells another that it remembers of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The data directory it had.
    pub storage_id: StorageId,
    /// The highest ceiling seen of it.
    pub ceiling: Ballot,
    /// The highest journal position seen of it.
    pub position: u64,
}

/// Whether a node's votes count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// They do.
    Good,
    /// Its disk has forgotten promises: they must not.
    Forgot {
        /// How it was noticed, for logs and `status`.
        reason: String,
    },
}

/// What an observation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Observed {
    /// Whether the node's votes count.
    pub standing: Standing,
    /// True when something was learnt that must outlive this process: write [`PeerMemory`] to disk before counting a
    /// single vote of that node, or a crash here would let a node that forgot pass for a new one.
    pub changed_durably: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    storage_id: StorageId,
    ceiling: Ballot,
    position: u64,
    /// Which run the figures came from; unknown after our own restart.
    #[serde(skip)]
    run: Option<u64>,
    /// Once set, it stays until the node is replaced.
    #[serde(default)]
    forgot: Option<String>,
}

impl Memory {
    fn first(seen: &Figures) -> Self {
        let Figures { storage_id, run, ceiling, position } = *seen;
        Self { storage_id, ceiling, position, run: Some(run), forgot: None }
    }

    fn raise(&mut self, seen: &Figures) {
        self.run = Some(seen.run);
        self.ceiling = self.ceiling.max(seen.ceiling);
        self.position = self.position.max(seen.position);
    }

    fn remembered(&self) -> Remembered {
        Remembered { storage_id: self.storage_id, ceiling: self.ceiling, position: self.position }
    }
}

/// Everything remembered, per node. Written to the node header; bounded by its keys, as only voters get past the
/// hello.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerMemory {
    peers: BTreeMap<NodeId, Memory>,
}

impl PeerMemory {
    /// Takes what `node` said of itself *in its hello* and judges it by what was seen before.
    ///
    /// Only a hello may accuse: it comes from the process at the other end of a standing connection. Words that travel
    /// through others may be old and go to [`PeerMemory::raise`].
    pub fn observe(&mut self, node: &NodeId, seen: &Figures) -> Observed {
        let Some(memory) = self.peers.get_mut(node) else {
            self.peers.insert(node.clone(), Memory::first(seen));
            return Observed { standing: Standing::Good, changed_durably: true };
        };
        if let Some(reason) = memory.forgot.clone() {
            return Observed { standing: Standing::Forgot { reason }, changed_durably: false };
        }
        let late = memory.run == Some(seen.run) && memory.storage_id == seen.storage_id;
        let lost = (!late).then(|| lost(&memory.remembered(), seen)).flatten();
        let Some(lost) = lost else {
            memory.raise(seen);
            return Observed { standing: Standing::Good, changed_durably: false };
        };
        let reason = format!("{node} came back with {lost}: it has forgotten what it promised");
        memory.forgot = Some(reason.clone());
        Observed { standing: Standing::Forgot { reason }, changed_durably: true }
    }

    /// Learns that `node` is meant on this disk now, whatever it had before: the cluster's configuration says so. True where
    /// that is news, which must outlive this process.
    pub fn expect(&mut self, node: &NodeId, disk: StorageId) -> bool {
        if self.peers.get(node).is_some_and(|memory| memory.storage_id == disk) {
            return false;
        }
        let nothing = Figures { storage_id: disk, run: 0, ceiling: Ballot::ZERO, position: 0 };
        self.peers.insert(node.clone(), Memory { run: None, ..Memory::first(&nothing) });
        true
    }

    /// Takes figures that `node` spread by gossip: they may be older than its hello, so they can only raise what is
    /// remembered, and never accuse. Harmless for an unknown node or directory.
    pub fn raise(&mut self, node: &NodeId, seen: &Figures) {
        let Some(memory) = self.peers.get_mut(node) else { return };
        let same_run = memory.run == Some(seen.run);
        let above = seen.ceiling >= memory.ceiling && seen.position >= memory.position;
        if memory.forgot.is_none() && memory.storage_id == seen.storage_id && (same_run || above) {
            memory.raise(seen);
        }
    }

    /// Learns that `node` has voted from this disk at this ballot, which its ceiling is not below then: a disk that goes back to
    /// a moment ago is noticed too, before its node had told how far it was.
    pub fn voted(&mut self, node: &NodeId, disk: StorageId, at: Ballot) {
        if let Some(memory) = self.peers.get_mut(node)
            && memory.forgot.is_none()
            && memory.storage_id == disk
        {
            memory.ceiling = memory.ceiling.max(at);
        }
    }

    /// How `node` stands; a node never seen stands well.
    #[must_use]
    pub fn standing(&self, node: &NodeId) -> Standing {
        match self.peers.get(node).and_then(|memory| memory.forgot.clone()) {
            Some(reason) => Standing::Forgot { reason },
            None => Standing::Good,
        }
    }

    /// What to tell `node` in our hello, so that it learns whether it has forgotten. For a node that has, this is
    /// still what it was before.
    #[must_use]
    pub fn remembered(&self, node: &NodeId) -> Option<Remembered> {
        self.peers.get(node).map(Memory::remembered)
    }
}

/// Judges this node's own disk by what a peer remembers of it. `mine` is read from this node's disk state after the
/// peer's hello arrived.
#[must_use]
pub fn self_standing(mine: &Figures, remembered: &Remembered) -> Standing {
    match lost(remembered, mine) {
        Some(lost) => Standing::Forgot { reason: format!("this node has {lost}: it has forgotten what it promised") },
        None => Standing::Good,
    }
}

/// What `now` lacks of what was once there, in words.
fn lost(once: &Remembered, now: &Figures) -> Option<String> {
    if once.storage_id != now.storage_id {
        return Some(format!("storage id {} where it had {}", now.storage_id, once.storage_id));
    }
    if now.ceiling < once.ceiling {
        return Some(format!("clock ceiling {} where it had {}", now.ceiling, once.ceiling));
    }
    if now.position < once.position {
        return Some(format!("journal position {} where it had {}", now.position, once.position));
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A copy of a second ago was put back, and voted: nobody had heard since then how far the disk was.
    #[test]
    fn a_disk_that_went_back_behind_its_votes_is_noticed() {
        let (mut memory, node) = (PeerMemory::default(), NodeId::parse("v").unwrap());
        let figures = |run, ceiling| Figures { storage_id: StorageId(1), run, ceiling: Ballot(ceiling), position: 4 };
        assert_eq!(memory.observe(&node, &figures(1, 100)).standing, Standing::Good);
        memory.voted(&node, StorageId(2), Ballot(900));
        assert_eq!(memory.observe(&node, &figures(2, 100)).standing, Standing::Good, "another disk's vote");
        memory.voted(&node, StorageId(1), Ballot(150));
        assert_eq!(memory.observe(&node, &figures(3, 150)).standing, Standing::Good);
        assert!(matches!(memory.observe(&node, &figures(4, 149)).standing, Standing::Forgot { .. }));
    }

    fn b() -> NodeId {
        NodeId::parse("b").unwrap()
    }

    fn figures(storage_id: u64, run: u64, ceiling: i64, position: u64) -> Figures {
        Figures { storage_id: StorageId(storage_id), run, ceiling: Ballot(ceiling), position }
    }

    fn is_good(standing: &Standing) -> bool {
        *standing == Standing::Good
    }

    /// As if this node had crashed and read its memory back.
    fn reread(memory: &PeerMemory) -> PeerMemory {
        rmp_serde::from_slice(&rmp_serde::to_vec_named(memory).unwrap()).unwrap()
    }

    #[test]
    fn a_new_node_is_good_and_must_be_written_down_first() {
        let mut memory = PeerMemory::default();
        assert_eq!(memory.remembered(&b()), None);
        let seen = memory.observe(&b(), &figures(1, 1, 10, 10));
        assert!(is_good(&seen.standing) && seen.changed_durably);
        let again = memory.observe(&b(), &figures(1, 2, 12, 10));
        assert!(is_good(&again.standing) && !again.changed_durably);
        let remembered = Remembered { storage_id: StorageId(1), ceiling: Ballot(12), position: 10 };
        assert_eq!(memory.remembered(&b()), Some(remembered));
    }

    #[test]
    fn a_disk_that_forgot_is_noticed_however_it_forgot() {
        let cases = [
            (figures(2, 9, 99, 99), "storage id"),
            (figures(1, 9, 9, 10), "clock ceiling 9"),
            (figures(1, 9, 10, 9), "journal position 9"),
        ];
        for (back, word) in cases {
            let mut memory = PeerMemory::default();
            let _ = memory.observe(&b(), &figures(1, 1, 10, 10));
            for mut memory in [reread(&memory), memory] {
                let seen = memory.observe(&b(), &back);
                let Standing::Forgot { reason } = seen.standing else { panic!("{back:?} passed") };
                assert!(reason.contains(word) && seen.changed_durably, "{reason}");
            }
        }
    }

    #[test]
    fn a_node_that_is_meant_on_another_disk_starts_anew() {
        let mut memory = PeerMemory::default();
        let _ = memory.observe(&b(), &figures(1, 1, 10, 10));
        let lost = memory.observe(&b(), &figures(2, 2, 1, 1));
        assert!(!is_good(&lost.standing) && memory.expect(&b(), StorageId(2)) && !memory.expect(&b(), StorageId(2)));
        assert!(is_good(&memory.observe(&b(), &figures(2, 2, 1, 1)).standing));
        assert!(!is_good(&memory.observe(&b(), &figures(1, 1, 10, 10)).standing), "the old disk is another one now");
    }

    #[test]
    fn once_forgot_stays_so_across_our_restart_and_with_better_figures() {
        let mut memory = PeerMemory::default();
        let _ = memory.observe(&b(), &figures(1, 1, 10, 10));
        let _ = memory.observe(&b(), &figures(1, 2, 5, 5));
        for mut memory in [reread(&memory), memory] {
            memory.raise(&b(), &figures(1, 2, 50, 50));
            let seen = memory.observe(&b(), &figures(1, 2, 99, 99));
            assert!(!is_good(&seen.standing) && !seen.changed_durably);
            assert!(!is_good(&memory.standing(&b())));
            assert_eq!(memory.remembered(&b()).unwrap().ceiling, Ballot(10), "it must learn what it had");
        }
    }

    #[test]
    fn words_that_come_late_accuse_nobody() {
        let mut memory = PeerMemory::default();
        let _ = memory.observe(&b(), &figures(1, 2, 10, 10));
        // Gossip of the run before, or of the directory before, overtaken by the hello.
        memory.raise(&b(), &figures(1, 1, 7, 7));
        memory.raise(&b(), &figures(3, 1, 70, 70));
        assert_eq!(memory.remembered(&b()).unwrap().ceiling, Ballot(10));
        // A hello made before the gossip that overtook it.
        memory.raise(&b(), &figures(1, 2, 20, 20));
        assert!(is_good(&memory.observe(&b(), &figures(1, 2, 15, 15)).standing));
        // The same, where the gossip belongs to a run that we have had no hello of.
        memory.raise(&b(), &figures(1, 3, 30, 30));
        assert!(is_good(&memory.observe(&b(), &figures(1, 3, 25, 25)).standing));
        assert_eq!(memory.remembered(&b()).unwrap().position, 30);
        // But gossip cannot smuggle in the run of a disk that went back.
        memory.raise(&b(), &figures(1, 4, 5, 5));
        assert!(!is_good(&memory.observe(&b(), &figures(1, 4, 5, 5)).standing));
    }

    #[test]
    fn a_node_learns_of_its_own_loss() {
        let remembered = Remembered { storage_id: StorageId(1), ceiling: Ballot(10), position: 10 };
        assert!(is_good(&self_standing(&figures(1, 1, 10, 10), &remembered)));
        assert!(is_good(&self_standing(&figures(1, 1, 11, 12), &remembered)));
        for lost in [figures(2, 1, 11, 11), figures(1, 1, 9, 11), figures(1, 1, 11, 9)] {
            assert!(!is_good(&self_standing(&lost, &remembered)), "{lost:?}");
        }
    }

    proptest! {
        /// A sound node restarts and speaks as it likes, hellos and gossip in any order within a run, and gossip of
        /// earlier runs at any time: never accused. Then its disk goes back behind what was heard: always accused.
        #[test]
        fn sound_disks_are_never_accused_and_rolled_back_ones_always(
            runs in prop::collection::vec(
                prop::collection::vec((0_i64..20, 0_u64..20, any::<bool>()), 1..6), 1..6
            ),
            replay in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            back in 1_u64..5,
        ) {
            let mut memory = PeerMemory::default();
            let (mut ceiling, mut position) = (100, 100);
            let mut said = vec![];
            for (run, words) in runs.iter().enumerate() {
                let (low_ceiling, low_position) = (ceiling, position);
                for &(more, further, by_hello) in words {
                    // Any durable value of this run, in any order.
                    let seen = figures(1, run as u64, low_ceiling + more, low_position + further);
                    (ceiling, position) = (ceiling.max(seen.ceiling.0), position.max(seen.position));
                    said.push(seen);
                    if by_hello || said.len() == 1 {
                        prop_assert!(is_good(&memory.observe(&b(), &seen).standing));
                    } else {
                        memory.raise(&b(), &seen);
                    }
                }
                for late in &replay {
                    memory.raise(&b(), late.get(&said));
                }
                if run % 2 == 1 {
                    memory = reread(&memory);
                }
            }
            let heard = memory.remembered(&b()).unwrap();
            let gone_back = figures(1, u64::MAX, ceiling, heard.position - back);
            prop_assert!(!is_good(&memory.observe(&b(), &gone_back).standing));
        }
    }
}
