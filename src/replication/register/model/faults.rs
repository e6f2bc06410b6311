//! What the design warns of, each as a switch: the rule taken out from around the register's code, which itself stays as
//! it is. A check that cannot catch these proves nothing.

use std::time::Duration;

use super::node::{Node, address};
use crate::clock::Now;
use crate::replication::register::acceptor::{Acceptor, Pending};
use crate::replication::register::proposer::Proposer;
use crate::replication::register::{
    Address, Body, BrokenRule, Durable, Entry, Lineage, LocalWrite, Lsn, Message, Record, Restored, Sealed, Vote,
};
use crate::types::Ballot;

/// How much later a renumbered token is, in nanoseconds.
const LATER: i64 = 4_000_000;

/// A rule taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// Rule 1: a Prepare is answered with what the disk holds while an accept is on its way there.
    OldValueWhileUnflushed,
    /// Rule 2: the ceiling is made durable after the promise has left.
    CeilingAfterTheReply,
    /// Rule 2: a restart forgets promises and refuses nothing.
    NoFloorAfterRestart,
    /// Rule 2: old promises are forgotten without raising the floor.
    ForgettingSilently,
    /// Rule 4: a retry evaluates again, whatever the base tells.
    AlwaysApplyingAgain,
    /// Rule 4: a retry looks for its ballot at the base, not in what the base builds on.
    BaseAlone,
    /// Rule 4: a retry looks for the last ballot that it sent out alone.
    LatestAttemptAlone,
    /// Rule 4: a try that a majority bypassed is taken for dead.
    BypassedTryForgotten,
    /// Rule 4: an answer is given on a base that may not be chosen.
    UnprovenBase,
    /// Rule 5: a token is good for ever.
    TokenTwice,
    /// Rule 5: a token is used for a fresher ballot than was granted.
    TokenRenumbered,
    /// Rule 6: a Read is answered with what is not yet on disk.
    UnflushedRead,
    /// Rule 6: a Read's highest vote is answered without completing it.
    HighestWithoutCompleting,
    /// Rule 8: a record not known to be chosen is copied, and counts as a vote.
    CopiedAsAVote,
    /// Rule 9: a local write is taken for a vote of its node, whatever that has promised or voted for.
    MergedPastPromises,
    /// Rule 9: a local write is proposed as if it were made now.
    DrainedWithoutCondition,
    /// Rule 9: a write after a local one uses a token from before it.
    TokenBelowLocalWrite,
    /// Section 5: the new voters take the old ones' place at once.
    DirectSwap,
    /// Section 5: the new epoch follows the joint one without a scan.
    NoScan,
    /// Section 5: a replica answers the scan before it has installed the joint epoch.
    ScanBeforeInstalling,
    /// Section 5: a replica answers the scan while its votes of the old epoch are open.
    ScanBeforeSettling,
    /// Section 5: reads ask the old majority alone while the change is under way.
    ReadsOnTheOldMajority,
    /// Rule 10: a deletion is forgotten as soon as it is known to be chosen.
    DropOnceChosen,
    /// Rule 10: deletions are forgotten and the floor stays where it is.
    DropWithoutFloor,
    /// Rule 10: absence counts for nothing, whatever the floor.
    AbsentLowest,
    /// Rule 10: the floor is raised on a replica that has not all that was chosen up to there.
    FloorWhileIncomplete,
    /// Rule 10: nobody refuses what comes late.
    NothingRefused,
    /// Rule 10: a replica is looked at while its votes up to the floor are open.
    LookBeforeSettling,
    /// Rule 10: a deletion is forgotten that a round above the floor has chosen again.
    DropByVersion,
}

impl Fault {
    pub(super) const ALL: [Self; 29] = [
        Self::OldValueWhileUnflushed,
        Self::CeilingAfterTheReply,
        Self::NoFloorAfterRestart,
        Self::ForgettingSilently,
        Self::AlwaysApplyingAgain,
        Self::BaseAlone,
        Self::LatestAttemptAlone,
        Self::BypassedTryForgotten,
        Self::UnprovenBase,
        Self::TokenTwice,
        Self::TokenRenumbered,
        Self::UnflushedRead,
        Self::HighestWithoutCompleting,
        Self::CopiedAsAVote,
        Self::MergedPastPromises,
        Self::DrainedWithoutCondition,
        Self::TokenBelowLocalWrite,
        Self::DirectSwap,
        Self::NoScan,
        Self::ScanBeforeInstalling,
        Self::ScanBeforeSettling,
        Self::ReadsOnTheOldMajority,
        Self::DropOnceChosen,
        Self::DropWithoutFloor,
        Self::AbsentLowest,
        Self::FloorWhileIncomplete,
        Self::NothingRefused,
        Self::LookBeforeSettling,
        Self::DropByVersion,
    ];

    /// True where an acceptor may accept what it would have refused before.
    pub(super) fn forgets(self) -> bool {
        matches!(
            self,
            Self::NoFloorAfterRestart
                | Self::CeilingAfterTheReply
                | Self::ForgettingSilently
                | Self::DropOnceChosen
                | Self::DropWithoutFloor
                | Self::AbsentLowest
                | Self::DropByVersion
        )
    }

    /// True where clients are answered on what may not be chosen.
    pub(super) fn answers_early(self) -> bool {
        matches!(self, Self::UnprovenBase | Self::HighestWithoutCompleting)
    }

    /// The rule that it breaks, and its name.
    pub(super) fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::OldValueWhileUnflushed => ("1", "answering the old value while an accept is unflushed"),
            Self::CeilingAfterTheReply => ("2", "the ceiling made durable after the reply"),
            Self::NoFloorAfterRestart => ("2", "no floor after a restart"),
            Self::ForgettingSilently => ("2", "forgetting old promises silently"),
            Self::AlwaysApplyingAgain => ("4", "always applying again"),
            Self::BaseAlone => ("4", "looking at the base alone"),
            Self::LatestAttemptAlone => ("4", "looking for the latest attempt alone"),
            Self::BypassedTryForgotten => ("4", "a bypassed try forgotten"),
            Self::UnprovenBase => ("4", "answering on an unproven base"),
            Self::TokenTwice => ("5", "a token used twice"),
            Self::TokenRenumbered => ("5", "a token renumbered to a fresher ballot"),
            Self::UnflushedRead => ("6", "exposing an unflushed accept in a read"),
            Self::HighestWithoutCompleting => ("6", "answering the highest vote without completing it"),
            Self::CopiedAsAVote => ("8", "copying an unchosen record as a vote"),
            Self::MergedPastPromises => ("9", "merging local writes past promises"),
            Self::DrainedWithoutCondition => ("9", "draining local writes without their condition"),
            Self::TokenBelowLocalWrite => ("9", "a token from before a local write used after it"),
            Self::DirectSwap => ("§5", "voters swapped without a joint epoch"),
            Self::NoScan => ("§5", "a joint epoch without a scan"),
            Self::ScanBeforeInstalling => ("§5", "a scan answered before the joint epoch is installed"),
            Self::ScanBeforeSettling => ("§5", "a scan answered while old votes are open"),
            Self::ReadsOnTheOldMajority => ("§5", "reads on the old majority alone"),
            Self::DropOnceChosen => ("10", "dropping a tombstone once chosen"),
            Self::DropWithoutFloor => ("10", "dropping tombstones without a floor"),
            Self::AbsentLowest => ("10", "absent ranking lowest"),
            Self::FloorWhileIncomplete => ("10", "raising a floor on a replica that is not complete"),
            Self::NothingRefused => ("10", "collecting without refusals"),
            Self::LookBeforeSettling => ("10", "comparing while old votes are open"),
            Self::DropByVersion => ("10", "dropping a tombstone that was chosen again above the floor"),
        }
    }
}

/// Opens what should wait for the disk.
fn force<T>(sealed: Sealed<T>) -> T {
    sealed.open(Durable::synced(Lsn(u64::MAX))).unwrap_or_else(|_| unreachable!("nothing is sealed for longer"))
}

pub(super) fn prepare(
    fault: Option<Fault>,
    node: &mut Node,
    address: &Address,
    ballot: Ballot,
    holds: Option<Ballot>,
) -> Result<Sealed<Body>, BrokenRule> {
    let (now, row, known) = (node.now(), node.row(), node.known_by(fault));
    let sealed = node.acceptor.on_prepare(now, address, ballot, holds, &known)?;
    let durable = node.sealed.durable.lsn();
    let unflushed = node.acceptor.keys.get(address).and_then(|key| key.pending.as_ref());
    let unflushed = unflushed.filter(|pending| pending.lsn > durable).map(|pending| pending.record.ballot);
    Ok(match (fault, unflushed) {
        (Some(Fault::OldValueWhileUnflushed), Some(hidden)) => {
            let body = match force(sealed) {
                Body::Promised { ballot, vote } if vote.ballot() == hidden => {
                    let pending = node.disk.pending.get(address);
                    let pending = pending.filter(|old| row.as_ref().is_none_or(|row| row.ballot < old.ballot));
                    let old = pending.map(|old| Vote::of_record(old, false, holds));
                    let row = row.map(|row| Vote::of_row(&row, Lineage::default(), holds));
                    Body::Promised { ballot, vote: old.or(row).unwrap_or(Vote::Absent(Ballot::ZERO)) }
                }
                body => body,
            };
            // The promise itself is as durable as it should be.
            node.acceptor.seal(ballot, now, body)
        }
        (Some(Fault::CeilingAfterTheReply), None) => Sealed::new(Lsn(0), force(sealed)),
        _ => sealed,
    })
}

pub(super) fn read(
    fault: Option<Fault>,
    node: &mut Node,
    address: &Address,
    round: Ballot,
    holds: Option<Ballot>,
) -> Sealed<Body> {
    let sealed = node.acceptor.on_read(address, round, holds, &node.known_by(fault));
    match fault {
        Some(Fault::UnflushedRead) => Sealed::new(Lsn(0), force(sealed)),
        _ => sealed,
    }
}

/// Lets a proposer hear an answer.
pub(super) fn answer(fault: Option<Fault>, proposer: &mut Proposer, now: Now, from: usize, message: Message) {
    let Message { address, mut body } = message;
    match (fault, &mut body) {
        (Some(Fault::UnprovenBase), Body::Promised { vote: Vote::Record { chosen, .. }, .. })
        | (Some(Fault::HighestWithoutCompleting), Body::Held { vote: Vote::Record { chosen, .. }, .. }) => {
            *chosen = true;
        }
        (Some(Fault::BaseAlone), Body::Promised { vote: Vote::Record { lineage, .. }, .. }) => {
            *lineage = Lineage(vec![Ballot::ZERO]);
        }
        _ => {}
    }
    let token = proposer.tokens.get(&address).cloned().filter(|_| fault == Some(Fault::TokenTwice));
    proposer.on_message(now, from, Message { address: address.clone(), body });
    if let Some(token) = token {
        proposer.tokens.insert(address, token);
    }
    forget_attempts(fault, proposer);
}

/// After anything that may have begun a round anew: what the proposer remembers of its earlier tries.
pub(super) fn forget_attempts(fault: Option<Fault>, proposer: &mut Proposer) {
    let Some(round) = proposer.keys.values_mut().next().and_then(|queue| queue.round.as_mut()) else { return };
    let Some(attempt) = &mut round.attempt else { return };
    match fault {
        Some(Fault::AlwaysApplyingAgain) => {
            round.updates.extend(attempt.updates());
            round.attempt = None;
        }
        Some(Fault::BypassedTryForgotten) => drop(attempt.tries.drain(..attempt.tries.len() - 1)),
        Some(Fault::LatestAttemptAlone) => {
            drop(attempt.tries.drain(..attempt.tries.len() - 1));
            for one in &mut attempt.tries {
                drop(one.ballots.drain(..one.ballots.len() - 1));
                one.upd = one.ballots[0];
            }
        }
        _ => {}
    }
}

pub(super) fn start(fault: Option<Fault>, proposer: &mut Proposer, now: Now, address: &Address, held: Option<Record>) {
    if fault == Some(Fault::TokenRenumbered)
        && let Some(token) = proposer.tokens.get_mut(address)
    {
        token.next = proposer.clock.issue(now.wall + LATER);
    }
    let token = proposer.tokens.get(address).cloned().filter(|_| fault == Some(Fault::TokenTwice));
    proposer.start(now, address, held);
    if let Some(token) = token {
        proposer.tokens.insert(address.clone(), token);
    }
}

pub(super) fn restored(fault: Option<Fault>, restored: Restored) -> Restored {
    let ceiling = if fault == Some(Fault::NoFloorAfterRestart) { Ballot::ZERO } else { restored.ceiling };
    Restored { ceiling, ..restored }
}

/// What a node does whose memory of promises is full.
pub(super) fn forget(fault: Option<Fault>, acceptor: &mut Acceptor) {
    let floor = acceptor.floor;
    while !acceptor.promises.is_empty() {
        acceptor.forget_oldest_promise();
    }
    if fault == Some(Fault::ForgettingSilently) {
        acceptor.floor = floor;
    }
}

fn copied(from: &Node) -> Option<(&Address, &Record)> {
    let unchosen = |pending: &&Pending| !pending.chosen && pending.lsn <= from.sealed.durable.lsn();
    let (address, key) = from.acceptor.keys.iter().next()?;
    Some((address, &key.pending.as_ref().filter(unchosen)?.record))
}

/// True where a repair by copying would find something.
pub(super) fn can_copy(from: &Node, to: &Node) -> bool {
    let Some((address, record)) = copied(from) else { return false };
    let pending = to.acceptor.keys.get(address).and_then(|key| key.pending.as_ref());
    pending.is_none_or(|pending| pending.record.ballot < record.ballot)
        && to.row().is_none_or(|row| row.ballot < record.ballot)
}

/// What a repair does that takes a local write for a vote.
pub(super) fn merge(node: &mut Node, write: &LocalWrite) {
    let LocalWrite { upd, op } = write.clone();
    let record = Record { ballot: upd, upd, op, lineage: Lineage::default() };
    let lsn = node.acceptor.append(Entry::Accepted(address(), record.clone()));
    let pending = Pending { record, lsn, chosen: false, since: Duration::ZERO };
    node.acceptor.set_pending(&address(), pending);
}

pub(super) fn copy_vote(from: &Node, to: &mut Node) {
    let Some((address, record)) = copied(from) else { return };
    let lsn = to.acceptor.append(Entry::Accepted(address.clone(), record.clone()));
    let pending = Pending { record: record.clone(), lsn, chosen: false, since: Duration::ZERO };
    to.acceptor.set_pending(address, pending);
}
