//! The first thing two nodes say to each other, and whether they may go on. Pure: no tokio, no I/O, no clocks.
//!
//! Whatever would make two nodes count different majorities, or issue equal ballots, is found here, before a single
//! vote: another cluster, another list of voters, one name at two places. A refusal shows both sides' values, as it
//! stands in both sides' logs and only one of them is wrong.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::membership::{Membership, NO_EPOCH, VOTERS_MAX};
use super::memory::{Figures, Remembered};
use crate::messagepack;
use crate::types::{Ballot, NodeId, Slot, StorageId};

/// The largest hello, in bytes: [`VOTERS_MAX`] of the longest names fit, with room for fields of later versions.
pub const HELLO_BYTES_MAX: usize = 64 * 1024;
/// The longest cluster id, in bytes.
pub const CLUSTER_ID_BYTES_MAX: usize = 256;
/// What this program speaks.
pub const PROTOCOL_VERSIONS: Versions = Versions { min: 1, max: 1 };

/// The protocol versions that a program speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl Versions {
    /// The newest version that both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// What a node says of itself. Travels as a MessagePack map with named fields: a reader skips those it does not know,
/// so a later version may add some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol versions it speaks.
    pub versions: Versions,
    /// Its cluster's id.
    pub cluster: String,
    /// Its name.
    pub node: NodeId,
    /// How often its data directory was opened.
    pub boot: u64,
    /// Its proposer number; none as long as it is no member.
    #[serde(default)]
    pub slot: Option<Slot>,
    /// The epoch that it has installed; 0 where it has not heard of any.
    pub epoch: u64,
    /// The voters of that epoch, or those so far where it is joint.
    pub voters: Vec<NodeId>,
    /// How many of them replicate each shard; none for all.
    #[serde(default)]
    pub replication_factor: Option<usize>,
    /// Its wall clock when it said this, in Unix nanoseconds.
    pub wall: i64,
    /// Its data directory.
    pub storage_id: StorageId,
    /// A random number of its process; see [`Figures::run`].
    pub run: u64,
    /// Its clock ceiling, as durable on its disk.
    pub ceiling: Ballot,
    /// Its journal position, as durable on its disk.
    pub position: u64,
    /// What it remembers of the node it speaks to.
    #[serde(default)]
    pub remembered: Option<Remembered>,
}

/// A hello that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BadHello {
    /// Larger than [`HELLO_BYTES_MAX`].
    #[error("a hello of {0} bytes, more than {HELLO_BYTES_MAX}")]
    TooLarge(usize),
    /// Not a hello, or a field out of bounds.
    #[error("an unreadable hello: {0}; is something else than outrigger speaking?")]
    Unreadable(String),
}

impl Hello {
    /// The hello's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Encoding plain fields into memory has no way to fail; if it found one, the peer would refuse the empty hello.
        Bytes::from(rmp_serde::to_vec_named(self).unwrap_or_default())
    }

    /// Reads a hello and checks every bound.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHello> {
        if bytes.len() > HELLO_BYTES_MAX {
            return Err(BadHello::TooLarge(bytes.len()));
        }
        let hello: Self = messagepack::decode(bytes).map_err(|e| BadHello::Unreadable(e.to_string()))?;
        if hello.cluster.len() > CLUSTER_ID_BYTES_MAX {
            return Err(BadHello::Unreadable(format!("a cluster id of {} bytes", hello.cluster.len())));
        }
        if hello.voters.len() > VOTERS_MAX {
            return Err(BadHello::Unreadable(format!("{} voters", hello.voters.len())));
        }
        if let Some(slot) = hello.slot.filter(|slot| Slot::new(slot.number()).is_none()) {
            return Err(BadHello::Unreadable(format!("slot {}", slot.number())));
        }
        Ok(hello)
    }

    /// What it says of its disk.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures { storage_id: self.storage_id, run: self.run, ceiling: self.ceiling, position: self.position }
    }
}

/// What this node judges another's hello by.
#[derive(Debug, Clone)]
pub struct Local {
    /// The protocol versions it speaks.
    pub versions: Versions,
    /// Its cluster's id.
    pub cluster: String,
    /// Its name.
    pub node: NodeId,
    /// Its configuration.
    pub membership: Membership,
}

/// Why two nodes do not talk: one line that says what differs and what to do. "Theirs" is the peer's, "ours" the
/// refusing node's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No protocol version that both speak.
    #[error(
        "{node} speaks protocol versions {theirs}, {us} speaks {ours}: upgrade the older of the two, one release at a \
         time"
    )]
    NoCommonVersion {
        /// The peer.
        node: NodeId,
        /// This node.
        us: NodeId,
        /// The peer's versions.
        theirs: Versions,
        /// This node's.
        ours: Versions,
    },
    /// Two clusters.
    #[error(
        "{node} belongs to cluster {theirs:?}, {us} to {ours:?}: correct [cluster] id, or the seeds that point at \
         another cluster"
    )]
    OtherCluster {
        /// The peer.
        node: NodeId,
        /// This node.
        us: NodeId,
        /// The peer's cluster.
        theirs: String,
        /// This node's.
        ours: String,
    },
    /// A node that is not who its certificate says.
    #[error(
        "a node calls itself {claimed} but its certificate is for {certified}: [node] name and the certificate's name \
         must be the same"
    )]
    OtherName {
        /// What it calls itself.
        claimed: NodeId,
        /// What its certificate says.
        certified: NodeId,
    },
    /// One name at two places.
    #[error("another node has our own name, {0}: give each node its own [node] name, and run it once")]
    OurName(NodeId),
    /// One name at two places, neither of them here.
    #[error(
        "a node called {node} is connected to {us} already, on another disk: give each node its own [node] name, and run it \
         once; where that one was killed just now, its end is noticed within seconds"
    )]
    Twin {
        /// The peer.
        node: NodeId,
        /// This node.
        us: NodeId,
    },
    /// Majorities of different lists need not intersect.
    #[error(
        "the voters of epoch {epoch} differ: {node} has [{}], {us} has [{}]: [cluster] voters must be the same on every \
         node that it names, and stay as they were at first (see `outrigger cluster --help`)",
        List(.theirs), List(.ours)
    )]
    VotersDiffer {
        /// The peer.
        node: NodeId,
        /// This node.
        us: NodeId,
        /// The epoch of both.
        epoch: u64,
        /// The peer's list.
        theirs: Vec<NodeId>,
        /// This node's.
        ours: Vec<NodeId>,
    },
    /// Neither need majorities of different replicas.
    #[error(
        "the replication factors of epoch {epoch} differ: {node} has {}, {us} has {}: [cluster] replication_factor must be \
         the same on every node that [cluster] voters names, and stay as it was at first (see `outrigger cluster \
         replication-factor --help`)",
        Factor(*.theirs), Factor(*.ours)
    )]
    FactorsDiffer {
        /// The peer.
        node: NodeId,
        /// This node.
        us: NodeId,
        /// The epoch of both.
        epoch: u64,
        /// The peer's.
        theirs: Option<usize>,
        /// This node's.
        ours: Option<usize>,
    },
    /// Equal slots at two nodes could issue equal ballots.
    #[error(
        "{node} proposes as slot {theirs}, but in epoch {epoch} it has slot {ours}: run the same release everywhere, and \
         never two clusters with one id and key"
    )]
    OtherSlot {
        /// The peer.
        node: NodeId,
        /// The slot it uses.
        theirs: u16,
        /// The slot it has by our configuration.
        ours: u16,
        /// The epoch of both.
        epoch: u64,
    },
}

struct List<'a>(&'a [NodeId]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, node) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{node}")?;
        }
        Ok(())
    }
}

/// As the configuration file has it.
struct Factor(Option<usize>);

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(factor) => write!(f, "{factor}"),
            None => f.write_str("0 (all voters)"),
        }
    }
}

/// Judges what a peer said, whose certificate is for `certificate_name`. Whether its disk has forgotten is another
/// question, which [`super::memory::PeerMemory::observe`] answers: such a node may talk, only not vote.
pub fn judge(ours: &Local, theirs: &Hello, certificate_name: &NodeId) -> Result<(), Refusal> {
    let (node, us) = (theirs.node.clone(), ours.node.clone());
    if ours.versions.common(theirs.versions).is_none() {
        return Err(Refusal::NoCommonVersion { node, us, theirs: theirs.versions, ours: ours.versions });
    }
    if ours.cluster != theirs.cluster {
        return Err(Refusal::OtherCluster { node, us, theirs: theirs.cluster.clone(), ours: ours.cluster.clone() });
    }
    if theirs.node != *certificate_name {
        return Err(Refusal::OtherName { claimed: node, certified: certificate_name.clone() });
    }
    if theirs.node == ours.node {
        return Err(Refusal::OurName(node));
    }
    judge_membership(ours, theirs)
}

/// In one epoch all count the same votes. Who is in another hears of the newer one, and counts none until then; so does who
/// is no member, and who has not heard of any configuration.
fn judge_membership(ours: &Local, theirs: &Hello) -> Result<(), Refusal> {
    let epoch = ours.membership.epoch();
    if theirs.epoch != epoch || epoch == NO_EPOCH {
        return Ok(());
    }
    let (node, us) = (theirs.node.clone(), ours.node.clone());
    let voters = ours.membership.old_voter_names();
    let mut named = theirs.voters.clone();
    named.sort_unstable();
    if named != voters {
        return Err(Refusal::VotersDiffer { node, us, epoch, theirs: named, ours: voters });
    }
    let factor = ours.membership.placement().replication_factor;
    if theirs.replication_factor != factor {
        return Err(Refusal::FactorsDiffer { node, us, epoch, theirs: theirs.replication_factor, ours: factor });
    }
    // Where nobody has written down which disk is meant, it may have got its slot for another since.
    let is_known = ours.membership.newest_disk(&theirs.node).is_some()
        || theirs.slot.is_some_and(|slot| ours.membership.is_voter(slot.replica()));
    match (theirs.slot, ours.membership.slot_of(&theirs.node, theirs.storage_id)) {
        (Some(theirs), Some(ours)) if theirs != ours && is_known => {
            Err(Refusal::OtherSlot { node, theirs: theirs.number(), ours: ours.number(), epoch })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| NodeId::parse(name).unwrap()).collect()
    }

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn local() -> Local {
        Local {
            versions: PROTOCOL_VERSIONS,
            cluster: "blue".into(),
            node: node("a"),
            membership: Membership::epoch_one(nodes(&["a", "b", "c"])).unwrap(),
        }
    }

    fn hello() -> Hello {
        Hello {
            versions: PROTOCOL_VERSIONS,
            cluster: "blue".into(),
            node: node("b"),
            boot: 3,
            slot: Slot::new(1),
            epoch: 1,
            voters: nodes(&["c", "b", "a"]),
            replication_factor: None,
            wall: 1_700_000_000_000_000_000,
            storage_id: StorageId(0xfeed),
            run: 77,
            ceiling: Ballot(1_700_000_000_500_000_000),
            position: 4_711,
            remembered: Some(Remembered { storage_id: StorageId(1), ceiling: Ballot(2), position: 3 }),
        }
    }

    fn refused(change: impl FnOnce(&mut Hello)) -> String {
        let mut theirs = hello();
        change(&mut theirs);
        let refusal = judge(&local(), &theirs, &node("b")).unwrap_err().to_string();
        assert!(!refusal.contains('\n') && refusal.contains(": "), "one line with advice: {refusal}");
        refusal
    }

    #[test]
    fn a_fitting_hello_is_accepted_whatever_the_order_of_its_list() {
        assert_eq!(judge(&local(), &hello(), &node("b")), Ok(()));
    }

    #[test]
    fn every_difference_is_refused_with_both_values() {
        let cases: [(String, &[&str]); 7] = [
            (refused(|h| h.versions = Versions { min: 2, max: 3 }), &["2 to 3", "1 to 1"]),
            (refused(|h| h.cluster = "green".into()), &["\"green\"", "\"blue\""]),
            (refused(|h| h.voters = nodes(&["a", "b", "x"])), &["[a, b, x]", "[a, b, c]"]),
            (refused(|h| h.voters = nodes(&["b"])), &["[b]", "[a, b, c]"]),
            (refused(|h| h.replication_factor = Some(2)), &["b has 2,", "a has 0 (all voters):", "replication_factor"]),
            (refused(|h| h.slot = Slot::new(2)), &["slot 2", "slot 1"]),
            (refused(|h| h.node = node("c")), &["c", "certificate is for b"]),
        ];
        for (refusal, words) in cases {
            for word in words {
                assert!(refusal.contains(word), "{refusal:?} lacks {word:?}");
            }
        }
    }

    #[test]
    fn what_an_earlier_version_says_without_a_word_on_replicas_means_all_voters() {
        let membership = local().membership.with_replication_factor(Some(2)).unwrap();
        let ours = Local { membership, ..local() };
        let refusal = judge(&ours, &hello(), &node("b")).unwrap_err().to_string();
        assert!(refusal.contains("b has 0 (all voters), a has 2:"), "{refusal}");
        let same = Hello { replication_factor: Some(2), ..hello() };
        assert_eq!(judge(&ours, &same, &node("b")), Ok(()));
        let elsewhere = Hello { epoch: 2, ..hello() };
        assert_eq!(judge(&ours, &elsewhere, &node("b")), Ok(()), "it hears of the newer one");
    }

    #[test]
    fn our_own_name_is_refused_and_who_is_no_member_or_in_another_epoch_is_not() {
        let mut twin = hello();
        twin.node = node("a");
        assert_eq!(judge(&local(), &twin, &node("a")), Err(Refusal::OurName(node("a"))));
        let observer = Hello { node: node("x"), slot: None, ..hello() };
        assert_eq!(judge(&local(), &observer, &node("x")), Ok(()));
        let unknowing = Hello { epoch: NO_EPOCH, voters: Vec::new(), ..observer };
        assert_eq!(judge(&local(), &unknowing, &node("x")), Ok(()));
        let ahead = Hello { epoch: 3, voters: nodes(&["b", "x"]), slot: Slot::new(9), ..hello() };
        assert_eq!(judge(&local(), &ahead, &node("b")), Ok(()));
    }

    #[test]
    fn versions_overlap_or_not() {
        let v = |min, max| Versions { min, max };
        assert_eq!(v(1, 3).common(v(2, 5)), Some(3));
        assert_eq!(v(2, 2).common(v(1, 2)), Some(2));
        assert_eq!(v(1, 1).common(v(2, 2)), None);
    }

    #[test]
    fn a_later_version_may_add_fields_and_leave_out_optional_ones() {
        let mut map: serde_json::Value = serde_json::to_value(hello()).unwrap();
        map["colour"] = serde_json::json!({"of": ["the", "sea"]});
        for optional in ["remembered", "replication_factor"] {
            map.as_object_mut().unwrap().remove(optional).unwrap();
        }
        let read = Hello::decode(&rmp_serde::to_vec_named(&map).unwrap()).unwrap();
        assert_eq!(read, Hello { remembered: None, ..hello() });
    }

    #[test]
    fn bounds_are_checked() {
        let change = |change: fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            Hello::decode(&hello.encode())
        };
        assert!(change(|_| ()).is_ok());
        assert!(change(|h| h.cluster = "x".repeat(CLUSTER_ID_BYTES_MAX + 1)).is_err());
        assert!(change(|h| h.voters = vec![h.node.clone(); VOTERS_MAX + 1]).is_err());
        assert!(change(|h| h.slot = serde_json::from_str("4096").unwrap()).is_err());
        assert!(matches!(Hello::decode(&[0; HELLO_BYTES_MAX + 1]), Err(BadHello::TooLarge(_))));
        // The largest hello that may be said can be read.
        let longest = |n: usize| node(&format!("{n:0>128}"));
        let voters: Vec<_> = (0..VOTERS_MAX).map(longest).collect();
        let largest = Hello { voters, cluster: "x".repeat(CLUSTER_ID_BYTES_MAX), ..hello() };
        assert_eq!(Hello::decode(&largest.encode()).unwrap(), largest);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Hello::decode(&bytes);
        }

        /// A damaged byte may well turn one hello into another valid one (a name, a number): it must not panic.
        #[test]
        fn damaged_hellos_do_no_harm(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = hello().encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = Hello::decode(&bytes);
        }

        #[test]
        fn cut_hellos_are_refused(cut in any::<prop::sample::Index>()) {
            let mut bytes = hello().encode().to_vec();
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(Hello::decode(&bytes).is_err());
        }
    }
}
