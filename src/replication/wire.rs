//! What travels between replicators: batches of register messages, and the requests by which a node finds and fetches
//! the rows that it has missed.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::register::{Message, Record};
use crate::messagepack::{self, at_most};
use crate::store::digest::{Buckets, Digest, Summary};
use crate::types::{Ballot, Key, ShardId, StorageId, Value};

/// The most messages of one batch.
pub const BATCH_MESSAGES_MAX: usize = 131_072;

/// Messages of one tick for one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Batch {
    /// The sender's epoch: an acceptor takes no other.
    #[serde(rename = "e")]
    pub epoch: u64,
    /// The sender's wall clock in Unix nanoseconds, to show how far the clocks are apart.
    #[serde(rename = "w")]
    pub wall: i64,
    /// The messages, [`BATCH_MESSAGES_MAX`] at most.
    #[serde(rename = "m", deserialize_with = "at_most::<_, _, BATCH_MESSAGES_MAX>")]
    pub messages: Vec<Message>,
}

/// A request on a stream of its own: each asks for what the answer to the one before showed to differ.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Which shards are there, and what do they hold? Answered by [`Answer::Shards`].
    Shards,
    /// In which parts of this shard are which rows? Answered by one [`Answer::Digest`], once the peer does not fetch any
    /// itself, or after a while.
    Digest(ShardId),
    /// Which keys of these buckets, in which versions? Answered by [`Answer::Pairs`], in any order; a key may
    /// come again in another version.
    Pairs(ShardId, Buckets),
    /// The rows of these keys, please. Answered by [`Answer::Rows`].
    Rows(ShardId, Vec<Key>),
    /// Say [`Answer::Done`] once everything of this shard that you accepted before this request is committed at yours.
    Settle(ShardId),
    /// What may you have promised, who have this slot? Answered by [`Answer::Ceiling`] once this joint epoch is installed and
    /// all that you had voted for before is committed at yours.
    Inherited {
        /// The epoch.
        epoch: u64,
        /// Whose votes are meant: its node may have come with another disk since.
        slot: usize,
    },
    /// Which keys of this shard were voted for again since their version was first written, and at which ballots? Answered
    /// by [`Answer::Pairs`].
    Raised(ShardId),
    /// With whom have you compared rows in the joint epoch? Answered by [`Answer::Scanned`].
    Scanned,
    /// Say [`Answer::Done`] once you have all rows that a majority has of the shards that you are to replicate by this configuration,
    /// as its register would hold it, and do not yet.
    Level(Value),
    /// Give me, on this disk, a slot. [`Answer::Done`] says that it is chosen.
    Register(StorageId),
    /// Tell me of what is chosen in these shards from now on. [`Answer::Done`] once all that was chosen before is visible where
    /// you are.
    Follow {
        /// These.
        #[serde(deserialize_with = "at_most::<_, _, SHARDS_PER_ANSWER_MAX>")]
        shards: Vec<ShardId>,
        /// And of no others.
        anew: bool,
    },
    /// What are all the shards in one number that both of us hold? Answered by one [`Answer::Root`].
    Root,
    /// Refuse every ballot up to the floor from now on, and say [`Answer::Refused`] once that is on your disk and nothing up
    /// to there is open.
    Refuse(Collection),
    /// What do you hold of versions up to the floor, leaving out deletions up to this ballot? Answered by one
    /// [`Answer::Digest`], by whoever refuses what this would miss.
    Old(Collection, Ballot),
    /// You hold everything that was chosen up to the floor, if this is your disk: absence means that from now on, and older
    /// deletions are forgotten. [`Answer::Done`] once that is on the disk.
    Forget(Collection, StorageId),
}

/// Deletions of one shard that are to be forgotten on all replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// Which shard.
    #[serde(rename = "s")]
    pub shard: ShardId,
    /// Those up to this ballot, which is no round's.
    #[serde(rename = "f")]
    pub floor: Ballot,
    /// The asker's epoch: who all replicas are depends on it.
    #[serde(rename = "e")]
    pub epoch: u64,
}

/// What a replica says that refuses everything up to a floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The floor that its shard has already.
    #[serde(rename = "f")]
    pub floor: Ballot,
    /// Its disk, which will remember.
    #[serde(rename = "d")]
    pub storage_id: StorageId,
}

/// One part of an answer; the stream ends when all is said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// Some shards.
    Shards(#[serde(deserialize_with = "at_most::<_, _, SHARDS_PER_ANSWER_MAX>")] Vec<(ShardId, Summary)>),
    /// A shard's digest; that of no rows where there is no such shard.
    Digest(Digest),
    /// Some keys with their versions, deleted ones included.
    Pairs(#[serde(deserialize_with = "at_most::<_, _, PAIRS_PER_ANSWER_MAX>")] Vec<(Key, Ballot)>),
    /// Some rows, all of them chosen.
    Rows(#[serde(deserialize_with = "at_most::<_, _, ROWS_PER_ANSWER_MAX>")] Vec<(Key, Record)>),
    /// The joint epoch, and the slots of the old voters.
    Scanned(u64, BTreeSet<usize>),
    /// It refuses what it was asked to.
    Refused(Refused),
    /// Shards in one number.
    Root(u64),
    /// No ballot above this was promised by the node that answers.
    Ceiling(Ballot),
    /// The last part: nothing is missing.
    Done,
    /// It could not be said.
    Failed(String),
}

/// Shards in one [`Answer::Shards`].
pub const SHARDS_PER_ANSWER_MAX: usize = 1024;
/// Keys in one [`Answer::Pairs`]: the longest fit into one message of the transport.
pub const PAIRS_PER_ANSWER_MAX: usize = 1024;
/// Rows in one [`Answer::Rows`]: they are taken in together, and hold up the register for as long.
pub const ROWS_PER_ANSWER_MAX: usize = 256;
/// Bytes of values after which an [`Answer::Rows`] is sent off.
pub const ROWS_BYTES_PER_ANSWER: usize = 1 << 20;

/// Bytes that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(String);

/// Encodes anything of this file.
pub fn encode(message: &impl Serialize) -> Result<Bytes, Malformed> {
    rmp_serde::to_vec_named(message).map(Bytes::from).map_err(|error| Malformed(error.to_string()))
}

/// Decodes anything of this file. Names and keys are checked as they are read.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    messagepack::decode(bytes).map_err(|error| Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::hello::Hello;
    use crate::replication::register::{Address, Body, LINEAGE_MAX, Lineage};

    /// The address space that this process has ever taken, in KiB: also what was only reserved. Nothing else in these tests
    /// reserves what a bomb would.
    fn peak_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Everything that a peer may say, with each of its lists, maps, texts and blobs in turn claiming four billion entries.
    #[test]
    fn claimed_lengths_take_no_memory() {
        const CLAIMS: [&[u8]; 4] =
            [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"];
        const GIB_IN_KIB: u64 = 1 << 20;
        let key = || Key::parse("k").unwrap();
        let shard = || ShardId::parse("acme", "a").unwrap();
        let mut digest = Digest::new(Ballot::ZERO);
        digest.add(7, crate::store::digest::Sum { live: 1, dead: 1 });
        let record = || Record {
            ballot: Ballot(1),
            upd: Ballot(1),
            op: crate::store::replicator::Op::Put("v".into()),
            lineage: Lineage::default(),
        };
        let address = Address { shard: shard(), key: key() };
        let body = Body::Chosen { record: record() };
        let messages = vec![Message { address, body }];
        let seeds = [
            encode(&Batch { epoch: 1, wall: 1, messages }).unwrap(),
            encode(&Answer::Shards(vec![(shard(), digest.summary())])).unwrap(),
            encode(&Answer::Digest(digest)).unwrap(),
            encode(&Answer::Pairs(vec![(key(), Ballot(1))])).unwrap(),
            encode(&Answer::Rows(vec![(key(), record())])).unwrap(),
            encode(&Answer::Failed("why".to_owned())).unwrap(),
            encode(&Request::Rows(shard(), vec![key()])).unwrap(),
            encode(&Request::Pairs(shard(), Buckets::all())).unwrap(),
            encode(&serde_json::json!({ "voters": ["a"], "cluster": "c", "node": "a" })).unwrap(),
        ];
        let before = peak_kib();
        let mut tried = 0;
        for seed in &seeds {
            for at in 0..seed.len().min(200) {
                for claim in CLAIMS {
                    let bomb = [&seed[..at], claim, &seed[at + 1..]].concat();
                    let _ = decode::<Batch>(&bomb);
                    let _ = decode::<Answer>(&bomb);
                    let _ = decode::<Request>(&bomb);
                    let _ = Hello::decode(&bomb);
                    tried += 1;
                }
            }
        }
        assert!(tried > 1000, "{tried}");
        assert!(peak_kib() - before < GIB_IN_KIB, "{} KiB were taken", peak_kib() - before);
    }

    /// A list of what takes five bytes on the wire became one of what takes a hundred in memory, to the size of a message.
    #[test]
    fn an_answer_holds_no_more_than_its_sender_may_put_in() {
        let pairs = |n: usize| encode(&Answer::Pairs(vec![(Key::parse("k").unwrap(), Ballot(1)); n])).unwrap();
        assert!(
            matches!(decode(&pairs(PAIRS_PER_ANSWER_MAX)), Ok(Answer::Pairs(read)) if read.len() == PAIRS_PER_ANSWER_MAX)
        );
        assert!(decode::<Answer>(&pairs(PAIRS_PER_ANSWER_MAX + 1)).is_err());
    }

    #[test]
    fn a_batch_and_a_lineage_hold_no_more_than_they_may() {
        let address = Address { shard: ShardId::parse("", "s").unwrap(), key: Key::parse("k").unwrap() };
        let body = Body::Commit { ballot: Ballot(1) };
        let message = Message { address, body };
        let batch = |n: usize| encode(&Batch { epoch: 1, wall: 1, messages: vec![message.clone(); n] }).unwrap();
        assert_eq!(decode::<Batch>(&batch(BATCH_MESSAGES_MAX)).unwrap().messages.len(), BATCH_MESSAGES_MAX);
        assert!(decode::<Batch>(&batch(BATCH_MESSAGES_MAX + 1)).is_err());
        let lineage = |n: usize| rmp_serde::to_vec(&vec![Ballot(1); n]).unwrap();
        assert!(messagepack::decode::<Lineage>(&lineage(LINEAGE_MAX)).is_ok());
        assert!(messagepack::decode::<Lineage>(&lineage(LINEAGE_MAX + 1)).is_err());
    }
}
