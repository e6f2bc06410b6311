//! What a client asks of one key, as a pure function from the row before to the row after.
//!
//! Every write, conditional write, read-modify-write and linearizable read is one [`Update`]: the register evaluates
//! it on the row that its round proved, and the dialects read their answer off the [`Outcome`].

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::replicator::Op;
use crate::types::{Ballot, Value};

/// A live row as a client sees it: there is none for a deleted key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// The value.
    #[serde(rename = "v")]
    pub value: Value,
    /// Its version.
    #[serde(rename = "u")]
    pub upd: Ballot,
}

/// What must hold of the row before for a change to be made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    Always,
    /// The key has no value.
    Absent,
    /// The key has a value.
    Present,
    /// The key has a value of this version.
    UpdIs(Ballot),
    /// The key has exactly this value.
    ValueIs(Value),
    /// The key's last change, a deletion included, is of a version below this one; what is written then has this version
    /// instead of its round's number. So a write that was accepted earlier on one node alone takes its place by clock,
    /// at most once, however often it is tried. The round's ballot must be above it: never said to another node.
    #[serde(skip)]
    Below(Ballot),
}

impl Condition {
    fn holds(&self, row: Option<&Row>, version: Ballot) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => row.is_none(),
            Self::Present => row.is_some(),
            Self::UpdIs(upd) => row.is_some_and(|row| row.upd == *upd),
            Self::ValueIs(value) => row.is_some_and(|row| row.value == *value),
            Self::Below(upd) => version < *upd,
        }
    }
}

/// What becomes of the row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Change {
    /// Nothing: a linearizable read.
    Read,
    /// The value is replaced.
    Put(Value),
    /// The key is deleted; nothing is written if it has no value.
    Del,
    /// Bytes are added at the end; an absent value counts as empty.
    Append(Value),
    /// A decimal `i64` is added to the value read as one; an absent value counts as 0.
    Add(i64),
}

/// One request for one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Update {
    /// When to make the change.
    #[serde(rename = "w")]
    pub condition: Condition,
    /// The change.
    #[serde(rename = "c")]
    pub change: Change,
}

/// What an [`Update`] came to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// A new version was written (a deletion is one).
    Written,
    /// There was nothing to write: a read, or a deletion of an absent key.
    Unchanged,
    /// The condition did not hold. Nothing was written.
    ConditionFailed,
    /// The change makes no sense for the value there. Nothing was written.
    Invalid(InvalidChange),
}

/// Why a change makes no sense for the value there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum InvalidChange {
    /// `Add` on something else than a decimal `i64`.
    #[error("value is not an integer or out of range")]
    NotAnInteger,
    /// `Add` past the range of `i64`.
    #[error("increment or decrement would overflow")]
    Overflow,
    /// `Append` past `value_size_max`.
    #[error("the value would exceed value_size_max = {max} bytes")]
    TooLarge {
        /// The limit, in bytes.
        max: usize,
    },
}

/// The answer to an [`Update`], linearizable: the row that it saw and the row that it left.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outcome {
    /// What it came to.
    #[serde(rename = "r")]
    pub verdict: Verdict,
    /// The row it saw.
    #[serde(rename = "b")]
    pub before: Option<Row>,
    /// The row it left; equal to `before` unless the verdict is [`Verdict::Written`].
    #[serde(rename = "a")]
    pub after: Option<Row>,
}

impl Update {
    /// A change without a condition.
    #[must_use]
    pub fn always(change: Change) -> Self {
        Self { condition: Condition::Always, change }
    }

    /// Replaces the value, whatever it was.
    #[must_use]
    pub fn put(value: Value) -> Self {
        Self::always(Change::Put(value))
    }

    /// Deletes the key, whatever it was.
    #[must_use]
    pub fn del() -> Self {
        Self::always(Change::Del)
    }

    /// What it leaves the key with, whatever is there; none where that has to be known.
    #[must_use]
    pub fn blind(&self) -> Option<Op> {
        match (&self.condition, &self.change) {
            (Condition::Always, Change::Put(value)) => Some(Op::Put(value.clone())),
            (Condition::Always, Change::Del) => Some(Op::Del),
            _ => None,
        }
    }

    /// Reads the row linearizably.
    #[must_use]
    pub fn read() -> Self {
        Self::always(Change::Read)
    }

    /// True where the change itself can never write.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.change == Change::Read
    }

    /// The version that it keeps whichever round writes it; none where the round gives it one.
    #[must_use]
    pub fn kept_version(&self) -> Option<Ballot> {
        match self.condition {
            Condition::Below(upd) => Some(upd),
            _ => None,
        }
    }

    /// The version of what it writes in the round of `ballot`.
    #[must_use]
    pub fn version(&self, ballot: Ballot) -> Ballot {
        self.kept_version().unwrap_or(ballot)
    }

    /// Evaluates the update on `before`, where the key's last change, a deletion included, is of `version`. What it writes
    /// in the round of `ballot` is of the version that [`Update::version`] tells; no value grows beyond `value_bytes_max`.
    #[must_use]
    pub fn evaluate(&self, before: Option<Row>, version: Ballot, ballot: Ballot, value_bytes_max: usize) -> Outcome {
        let unwritten = |verdict, before: Option<Row>| Outcome { verdict, after: before.clone(), before };
        if !self.condition.holds(before.as_ref(), version) {
            return unwritten(Verdict::ConditionFailed, before);
        }
        let upd = self.version(ballot);
        let current = before.as_ref().map_or(&[][..], |row| row.value.as_bytes());
        let value = match &self.change {
            Change::Read => return unwritten(Verdict::Unchanged, before),
            // One with a version of its own is remembered all the same: an older write may yet come.
            Change::Del if before.is_none() && self.kept_version().is_none() => {
                return unwritten(Verdict::Unchanged, before);
            }
            Change::Del => return Outcome { verdict: Verdict::Written, before, after: None },
            Change::Put(value) => Ok(value.clone()),
            Change::Append(tail) => append(current, tail.as_bytes(), value_bytes_max),
            Change::Add(by) => add(before.is_some().then_some(current), *by),
        };
        match value {
            Ok(value) => Outcome { verdict: Verdict::Written, before, after: Some(Row { value, upd }) },
            Err(why) => unwritten(Verdict::Invalid(why), before),
        }
    }
}

fn append(current: &[u8], tail: &[u8], max: usize) -> Result<Value, InvalidChange> {
    if current.len() + tail.len() > max {
        return Err(InvalidChange::TooLarge { max });
    }
    let mut bytes = BytesMut::with_capacity(current.len() + tail.len());
    bytes.extend_from_slice(current);
    bytes.extend_from_slice(tail);
    Ok(Value::from(bytes.freeze()))
}

fn add(current: Option<&[u8]>, by: i64) -> Result<Value, InvalidChange> {
    let number = current.map_or(Ok(0), integer)?;
    let sum = number.checked_add(by).ok_or(InvalidChange::Overflow)?;
    Ok(Value::from(Bytes::from(sum.to_string())))
}

/// Reads a decimal `i64` as Redis does: no sign but `-`, no leading zeros, no blanks.
fn integer(bytes: &[u8]) -> Result<i64, InvalidChange> {
    let text = std::str::from_utf8(bytes).map_err(|_| InvalidChange::NotAnInteger)?;
    let number: i64 = text.parse().map_err(|_| InvalidChange::NotAnInteger)?;
    if number.to_string() == text { Ok(number) } else { Err(InvalidChange::NotAnInteger) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 8;

    fn row(value: &'static str, upd: i64) -> Row {
        Row { value: Value::from(value), upd: Ballot(upd) }
    }

    fn run(update: &Update, before: Option<Row>) -> Outcome {
        let version = before.as_ref().map_or(Ballot::ZERO, |row| row.upd);
        update.evaluate(before, version, Ballot(9), MAX)
    }

    #[test]
    fn conditions_see_absence_presence_version_and_value() {
        let put = |condition| Update { condition, change: Change::Put(Value::from("new")) };
        let cases = [
            (Condition::Always, None, true),
            (Condition::Absent, None, true),
            (Condition::Absent, Some(row("x", 1)), false),
            (Condition::Present, None, false),
            (Condition::Present, Some(row("x", 1)), true),
            (Condition::UpdIs(Ballot(1)), Some(row("x", 1)), true),
            (Condition::UpdIs(Ballot(2)), Some(row("x", 1)), false),
            (Condition::UpdIs(Ballot(0)), None, false),
            (Condition::ValueIs(Value::from("x")), Some(row("x", 1)), true),
            (Condition::ValueIs(Value::from("y")), Some(row("x", 1)), false),
        ];
        for (condition, before, written) in cases {
            let outcome = run(&put(condition.clone()), before.clone());
            assert_eq!(outcome.verdict == Verdict::Written, written, "{condition:?} on {before:?}");
            assert_eq!(outcome.before, before);
            assert_eq!(outcome.after, if written { Some(row("new", 9)) } else { before });
        }
    }

    #[test]
    fn deleting_what_is_not_there_writes_nothing() {
        assert_eq!(run(&Update::del(), None).verdict, Verdict::Unchanged);
        let outcome = run(&Update::del(), Some(row("x", 1)));
        assert_eq!((outcome.verdict, outcome.after), (Verdict::Written, None));
    }

    /// A late write whose key was deleted after it brought the key back.
    #[test]
    fn what_keeps_its_version_yields_to_everything_newer_deletions_included() {
        let late = |change| Update { condition: Condition::Below(Ballot(5)), change };
        let put = late(Change::Put(Value::from("late")));
        for (before, version, written) in [
            (None, 0, true),
            (None, 5, false),
            (None, 7, false),
            (Some(row("x", 4)), 4, true),
            (Some(row("late", 5)), 5, false),
            (Some(row("x", 6)), 6, false),
        ] {
            let outcome = put.evaluate(before.clone(), Ballot(version), Ballot(9), MAX);
            assert_eq!(outcome.verdict == Verdict::Written, written, "{before:?} at {version}");
            assert_eq!(outcome.after, if written { Some(row("late", 5)) } else { before });
        }
        assert!(rmp_serde::to_vec_named(&put).is_err(), "it is for this node alone to say");
        let del = late(Change::Del).evaluate(None, Ballot(4), Ballot(9), MAX);
        assert_eq!(del.verdict, Verdict::Written, "a deletion of nothing is remembered");
    }

    #[test]
    fn numbers_are_read_as_redis_reads_them() {
        let add = |by, before: Option<&'static str>| {
            let outcome = run(&Update::always(Change::Add(by)), before.map(|v| row(v, 1)));
            match outcome.verdict {
                Verdict::Written => Ok(outcome.after.unwrap().value),
                Verdict::Invalid(why) => Err(why),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(add(-5, None), Ok(Value::from("-5")));
        assert_eq!(add(2, Some("40")), Ok(Value::from("42")));
        for bad in ["", " 1", "01", "+1", "1.0", "x", "-0", "9223372036854775808"] {
            assert_eq!(add(1, Some(bad)), Err(InvalidChange::NotAnInteger), "{bad:?}");
        }
        assert_eq!(add(1, Some("9223372036854775807")), Err(InvalidChange::Overflow));
    }

    #[test]
    fn a_value_cannot_grow_past_its_limit() {
        let append = Update::always(Change::Append(Value::from("12345")));
        assert_eq!(run(&append, Some(row("abc", 1))).after.unwrap().value, Value::from("abc12345"));
        assert_eq!(run(&append, Some(row("abcd", 1))).verdict, Verdict::Invalid(InvalidChange::TooLarge { max: MAX }));
    }
}
