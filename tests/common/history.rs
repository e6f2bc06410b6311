//! What clients asked and what they were told: written down while a test runs, judged afterwards by `linearizable`.
//!
//! Times are nanoseconds of one clock that all clients share; virtual ones will do. Only their order matters: an
//! operation that returned before another was called comes first, and equal times count as concurrent.

/// Names one operation of a [`History`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OpId(pub(super) usize);

/// What must hold for a write to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum When {
    /// Nothing.
    Always,
    /// The key has no value.
    Absent,
    /// The key has a value of exactly this version.
    UpdIs(i64),
}

/// What a client asks of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// A quorum read. Local reads promise less: they belong to `monotone`.
    Get,
    /// Replaces the value.
    Put(When, Vec<u8>),
    /// Removes the value; with no value there, nothing happens.
    Delete(When),
    /// Adds to a decimal `i64`; no value counts as 0.
    Add(i64),
}

/// What a client was told. A version is `None` where the dialect does not say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A read: the value and its version, or that there is none.
    Read(Option<(Vec<u8>, Option<i64>)>),
    /// A put took effect, as this version.
    Written(Option<i64>),
    /// A delete is done; whether it found a value, where that is said.
    Deleted(Option<bool>),
    /// An addition took effect: the sum, and its version.
    Added(i64, Option<i64>),
    /// The condition did not hold and nothing was written. The node answers so only of a row that is proven chosen, so
    /// this is a linearizable read of the version there; `None` where the key had no value.
    ConditionFailed(Option<i64>),
    /// A write on [`When::Absent`] found a value, and nothing is said of it (`SET NX`).
    Present,
    /// Nothing was written, nothing will be, and nothing is known of the key. Errors about the value (an addition to what
    /// is no integer) may be recorded as this too.
    Refused,
    /// It may take effect at any time after the call, or never. An operation without a return is the same.
    Unknown,
}

/// One operation with what came of it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Who asked.
    pub(crate) client: u32,
    /// Of which key.
    pub(crate) key: String,
    /// What.
    pub(crate) op: Op,
    /// When it left the client.
    pub(crate) called_ns: u64,
    /// What the client was told, and when.
    pub(crate) returned: Option<(Outcome, u64)>,
}

/// All operations of one run, in the order of their calls' recording. Append-only.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(super) entries: Vec<Entry>,
}

impl History {
    /// A client asks.
    pub(crate) fn call(&mut self, client: u32, key: &str, op: Op, at_ns: u64) -> OpId {
        self.entries.push(Entry { client, key: key.to_owned(), op, called_ns: at_ns, returned: None });
        OpId(self.entries.len() - 1)
    }

    /// A client is told. Panics where it was told before, or before it asked: the recording test is broken then.
    pub(crate) fn returns(&mut self, id: OpId, outcome: Outcome, at_ns: u64) {
        let entry = &mut self.entries[id.0];
        assert!(entry.returned.is_none(), "{entry:?} returns twice");
        assert!(entry.called_ns <= at_ns, "{entry:?} returns before its call");
        assert!(outcome.fits(&entry.op), "{outcome:?} is no outcome of {entry:?}");
        entry.returned = Some((outcome, at_ns));
    }

    /// All operations so far.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Outcome {
    fn fits(&self, op: &Op) -> bool {
        match self {
            Self::Read(_) => *op == Op::Get,
            Self::Written(_) => matches!(op, Op::Put(..)),
            Self::Deleted(_) => matches!(op, Op::Delete(_)),
            Self::Added(..) => matches!(op, Op::Add(_)),
            Self::ConditionFailed(_) => matches!(op, Op::Put(when, _) | Op::Delete(when) if *when != When::Always),
            Self::Present => matches!(op, Op::Put(When::Absent, _)),
            Self::Refused | Self::Unknown => true,
        }
    }
}

impl Entry {
    /// What the client was told; [`Outcome::Unknown`] where it was told nothing.
    pub(crate) fn outcome(&self) -> &Outcome {
        self.returned.as_ref().map_or(&Outcome::Unknown, |(outcome, _)| outcome)
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = self.returned.as_ref().map_or("...".to_owned(), |(_, at)| at.to_string());
        write!(f, "{:>12} .. {end:<12} client {:<3} {} -> {}", self.called_ns, self.client, self.op, self.outcome())
    }
}

fn text(bytes: &[u8]) -> String {
    if bytes.len() <= 48 { format!("\"{}\"", bytes.escape_ascii()) } else { format!("<{} bytes>", bytes.len()) }
}

fn version(upd: Option<i64>) -> String {
    upd.map_or_else(String::new, |upd| format!(" @{upd}"))
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let when = |when: &When| match when {
            When::Always => String::new(),
            When::Absent => " if absent".to_owned(),
            When::UpdIs(upd) => format!(" if @{upd}"),
        };
        match self {
            Self::Get => f.write_str("get"),
            Self::Put(condition, value) => write!(f, "put {}{}", text(value), when(condition)),
            Self::Delete(condition) => write!(f, "delete{}", when(condition)),
            Self::Add(by) => write!(f, "add {by}"),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(None) => f.write_str("absent"),
            Self::Read(Some((value, upd))) => write!(f, "{}{}", text(value), version(*upd)),
            Self::Written(upd) => write!(f, "written{}", version(*upd)),
            Self::Deleted(None) => f.write_str("deleted"),
            Self::Deleted(Some(true)) => f.write_str("deleted what was there"),
            Self::Deleted(Some(false)) => f.write_str("nothing to delete"),
            Self::Added(sum, upd) => write!(f, "sum {sum}{}", version(*upd)),
            Self::ConditionFailed(None) => f.write_str("condition failed: absent"),
            Self::ConditionFailed(Some(upd)) => write!(f, "condition failed: @{upd}"),
            Self::Present => f.write_str("condition failed: present"),
            Self::Refused => f.write_str("refused"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}
