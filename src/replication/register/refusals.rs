//! Ballots that are refused for good, by shard: the acceptor's part in forgetting deletions (rule 10).
//!
//! ```text
//!   refuse ≤ G, durable ─► what is pending ≤ G is settled ─► every replica has all that was chosen ≤ G ─► floor := G, drop
//! ```
//!
//! Once every replica refuses all ballots up to G, nothing more is chosen up to there, so that it can be found out whether a
//! replica has all of it. A replica that has may say "absent as of G" where it has no record, and then need not remember
//! deletions up to G: whatever comes late ranks below that.
//!
//! A refusal outlives restarts as an entry of the journal, until the shard's file has G as its floor, which refuses as much.
//! It binds like a promise to nobody, and costs nothing but rounds that began before G.

use super::acceptor::{Acceptor, Entry};
use super::message::Address;
use crate::store::Stored;
use crate::types::{Ballot, ShardId};

/// Shards with a refusal that no floor has taken over yet.
const REFUSALS_MAX: usize = 4096;

impl Acceptor {
    /// Refuses every ballot of `shard` up to `upto` from now on; to be relied on once all that was appended is durable.
    /// False where too many shards do already.
    pub fn refuse_upto(&mut self, shard: &ShardId, upto: Ballot) -> bool {
        if self.refused.get(shard).is_some_and(|refused| *refused >= upto) {
            return true;
        }
        if self.refused.len() >= REFUSALS_MAX && !self.refused.contains_key(shard) {
            return false;
        }
        self.refused.insert(shard.clone(), upto);
        self.append(Entry::Refused(shard.clone(), upto));
        true
    }

    /// The shards that refuse something.
    #[must_use]
    pub fn refusing(&self) -> Vec<ShardId> {
        self.refused.keys().cloned().collect()
    }

    /// Whether everything up to `upto` is refused, and nothing of that is pending: what has been chosen up to there with
    /// this acceptor's vote is in its shard.
    #[must_use]
    pub fn is_settled(&self, shard: &ShardId, upto: Ballot) -> bool {
        let is_refused = self.refused.get(shard).is_some_and(|refused| *refused >= upto);
        is_refused && self.pending_of(shard).all(|(_, ballot)| ballot > upto)
    }

    /// Learns that the shard's file has this floor, which refuses as much.
    pub fn on_floor(&mut self, shard: &ShardId, floor: Ballot) {
        if self.refused.get(shard).is_some_and(|refused| *refused <= floor) {
            self.refused.remove(shard);
        }
    }

    /// The highest ballot that is refused for this key whoever asks, and whatever was promised.
    pub(super) fn refused_upto(&self, address: &Address, stored: &Stored) -> Ballot {
        let refused = if self.refused.is_empty() { None } else { self.refused.get(&address.shard) };
        refused.copied().unwrap_or_default().max(self.floor).max(stored.floor)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Now;
    use crate::replication::register::{
        AcceptorConfig, Body, Commit, Durable, Learned, Lineage, Lsn, Record, Refusal, Restored, Vote,
    };
    use crate::store::StoredRow;
    use crate::store::replicator::Op;
    use crate::types::Key;

    const NOW: Now = Now { wall: 1_000_000, monotonic: Duration::ZERO };
    const FLOOR: Ballot = Ballot(0x4fff);

    fn address(shard: &str) -> Address {
        Address { shard: ShardId::parse("", shard).unwrap(), key: Key::parse("k").unwrap() }
    }

    fn record(ballot: i64, op: Op) -> Record {
        let lineage = Lineage::on(Ballot::ZERO, &Lineage::default());
        Record { ballot: Ballot(ballot), upd: Ballot(ballot), op, lineage }
    }

    fn acceptor(restored: Restored) -> Acceptor {
        Acceptor::new(AcceptorConfig::default(), restored)
    }

    fn open(sealed: crate::replication::register::Sealed<Body>) -> Body {
        sealed.open(Durable::synced(Lsn(u64::MAX))).unwrap()
    }

    fn prepared(acceptor: &mut Acceptor, shard: &str, ballot: i64, stored: &Stored) -> Body {
        open(acceptor.on_prepare(NOW, &address(shard), Ballot(ballot), None, stored).unwrap())
    }

    fn is_refused(body: &Body) -> bool {
        matches!(body, Body::Refused { why: Refusal::Outbid, .. })
    }

    #[test]
    fn a_refusal_binds_whatever_was_promised_and_outlives_the_process() {
        let mut before = acceptor(Restored::default());
        let nothing = Stored::default();
        let promised = before.on_prepare(NOW, &address("a"), Ballot(0x2000), None, &nothing).unwrap();
        assert!(matches!(open(promised), Body::Promised { .. }));
        assert!(before.refuse_upto(&address("a").shard, FLOOR));
        assert!(is_refused(&prepared(&mut before, "a", 0x2000, &nothing)), "not even to whom it was promised");
        let late = before.on_accept(NOW, &address("a"), record(0x2000, Op::Del), None, &nothing).unwrap();
        assert!(is_refused(&open(late)));
        let (entries, _) = before.take_entries();
        assert_eq!(entries.iter().filter(|entry| matches!(entry, Entry::Refused(..))).count(), 1);
        let refused = std::collections::HashMap::from([(address("a").shard, FLOOR)]);
        let mut after = acceptor(Restored { refused, ..Restored::default() });
        assert!(after.kept_entries().contains(&Entry::Refused(address("a").shard, FLOOR)), "over segments, too");
        for acceptor in [&mut before, &mut after] {
            assert!(is_refused(&prepared(acceptor, "a", 0x3000, &nothing)));
            assert!(!is_refused(&prepared(acceptor, "b", 0x3000, &nothing)), "that is another shard");
            assert!(!is_refused(&prepared(acceptor, "a", 0x5000, &nothing)));
        }
    }

    #[test]
    fn it_is_settled_once_nothing_up_to_there_is_open() {
        let mut acceptor = acceptor(Restored::default());
        let (at, nothing) = (address("a"), Stored::default());
        assert!(!acceptor.is_settled(&at.shard, FLOOR), "it refuses nothing");
        let vote = acceptor.on_accept(NOW, &at, record(0x2000, Op::Del), None, &nothing).unwrap();
        assert!(matches!(open(vote), Body::Accepted { .. }));
        acceptor.refuse_upto(&at.shard, FLOOR);
        assert!(!acceptor.is_settled(&at.shard, FLOOR));
        let learned = acceptor.on_commit(&at, Ballot(0x2000), &nothing);
        assert!(matches!(learned, Learned::Commit(_)) && !acceptor.is_settled(&at.shard, FLOOR), "not visible yet");
        acceptor.on_applied(&Commit { address: at.clone(), record: record(0x2000, Op::Del) });
        assert!(acceptor.is_settled(&at.shard, FLOOR) && !acceptor.is_settled(&at.shard, Ballot(0x5fff)));
        acceptor.on_floor(&at.shard, FLOOR);
        assert_eq!((acceptor.refusing(), acceptor.is_settled(&at.shard, FLOOR)), (Vec::new(), false));
    }

    /// Rule 8: what is chosen is taken in whatever was promised, but not where its deletion has been forgotten.
    #[test]
    fn absence_as_of_a_floor_is_a_record_of_that_ballot() {
        let mut acceptor = acceptor(Restored::default());
        let (at, absent) = (address("a"), Stored { row: None, floor: FLOOR });
        assert!(acceptor.install(NOW, &at, record(0x2000, Op::Del), &absent).is_none());
        assert_eq!(acceptor.on_commit(&at, Ballot(0x2000), &absent), Learned::Known, "nobody is asked for it");
        assert!(is_refused(&prepared(&mut acceptor, "a", 0x3000, &absent)));
        let vote = Vote::Absent(FLOOR);
        assert_eq!(
            prepared(&mut acceptor, "a", 0x5000, &absent),
            Body::Promised { ballot: Ballot(0x5000), vote: vote.clone() }
        );
        let read = acceptor.on_read(&at, Ballot(0x6000), None, &absent);
        assert_eq!(open(read), Body::Held { round: Ballot(0x6000), vote });
        assert!(acceptor.install(NOW, &at, record(0x5000, Op::Del), &absent).is_some());
        // Rounds up to the floor are over for keys that have a record, too.
        let row = StoredRow { op: Op::Del, upd: Ballot(0x1000), ballot: Ballot(0x1000) };
        let old = Stored { row: Some(row), floor: FLOOR };
        assert!(is_refused(&prepared(&mut self::acceptor(Restored::default()), "a", 0x3000, &old)));
    }

    #[test]
    fn refusals_are_bounded() {
        let mut acceptor = acceptor(Restored::default());
        let shard = |n: usize| ShardId::parse("", &format!("s{n}")).unwrap();
        assert!((0..REFUSALS_MAX).all(|n| acceptor.refuse_upto(&shard(n), FLOOR)));
        assert!(!acceptor.refuse_upto(&shard(REFUSALS_MAX), FLOOR));
        assert!(acceptor.refuse_upto(&shard(7), Ballot(0x5fff)), "one that is there may rise");
        acceptor.on_floor(&shard(0), FLOOR);
        assert!(acceptor.refuse_upto(&shard(REFUSALS_MAX), FLOOR));
    }
}
