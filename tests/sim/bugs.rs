//! Faults put into a world on purpose: if its checks find none of them, they prove nothing.

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Reads that ask this node alone are passed off as quorum reads.
    LocalReads,
    /// A write whose fate is unknown is written again, and the answer taken for the first one's.
    BlindRetries,
    /// Every disk says that a sync is done, and does nothing.
    LyingDisks,
    /// All disks go back to what they were, at once.
    DisksRolledBack,
    /// All disks are emptied, at once.
    DisksEmptied,
    /// Now and then a watcher misses a change.
    DeafWatchers,
}

/// All of them, by the names under which a seed is lived through with them.
pub(crate) const ALL: [(&str, Bug); 6] = [
    ("local-reads", Bug::LocalReads),
    ("blind-retries", Bug::BlindRetries),
    ("lying-disks", Bug::LyingDisks),
    ("disks-rolled-back", Bug::DisksRolledBack),
    ("disks-emptied", Bug::DisksEmptied),
    ("deaf-watchers", Bug::DeafWatchers),
];

/// The variable that names the bug of a world.
pub(crate) const WANTED: &str = "BUG";

/// The bug that this process was asked for.
pub(crate) fn wanted() -> Option<Bug> {
    let name = std::env::var(WANTED).unwrap_or_default();
    let bug = ALL.iter().find(|(known, _)| *known == name).map(|(_, bug)| *bug);
    assert!(bug.is_some() || name.is_empty(), "{name:?} is none of {ALL:?}");
    bug
}
