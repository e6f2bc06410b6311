//! "Persist before reply", as types: what may only be said once the journal is on disk comes [`Sealed`], and the key to
//! it, [`Durable`], is made where an fsync has returned and nowhere else.

use std::collections::BTreeMap;

/// A place in a node's journal, counted in entries since the process started; 0 is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// Proof that every entry up to a place is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(Lsn);

impl Durable {
    /// For the journal alone, after its fsync of everything up to `lsn` returned without error.
    pub(in crate::replication) fn synced(lsn: Lsn) -> Self {
        Self(lsn)
    }

    /// Up to where.
    #[must_use]
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

/// Something that must not leave before the journal is durable up to a place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Sealed<T> {
    after: Lsn,
    inner: T,
}

impl<T> Sealed<T> {
    pub(super) fn new(after: Lsn, inner: T) -> Self {
        Self { after, inner }
    }

    /// Opens it, or hands it back where the journal is not that far.
    pub fn open(self, durable: Durable) -> Result<T, Self> {
        if self.after <= durable.0 { Ok(self.inner) } else { Err(self) }
    }

    /// Puts something else under the same seal.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Sealed<U> {
        Sealed { after: self.after, inner: f(self.inner) }
    }
}

/// Sealed things that wait for the journal, in the order in which they may be opened.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct SealedQueue<T> {
    pub(super) durable: Durable,
    pub(super) waiting: BTreeMap<Lsn, Vec<T>>,
}

impl<T> Default for SealedQueue<T> {
    fn default() -> Self {
        Self { durable: Durable(Lsn(0)), waiting: BTreeMap::new() }
    }
}

impl<T> SealedQueue<T> {
    /// Takes one in; hands back what is inside at once where the journal already is that far.
    pub fn push(&mut self, sealed: Sealed<T>) -> Option<T> {
        match sealed.open(self.durable) {
            Ok(inner) => Some(inner),
            Err(sealed) => {
                self.waiting.entry(sealed.after).or_default().push(sealed.inner);
                None
            }
        }
    }

    /// Opens everything up to `durable`.
    pub fn release(&mut self, durable: Durable) -> impl Iterator<Item = T> + use<T> {
        self.durable = self.durable.max(durable);
        let later = self.waiting.split_off(&Lsn(self.durable.0.0 + 1));
        std::mem::replace(&mut self.waiting, later).into_values().flatten()
    }

    /// True where nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_before_its_fsync() {
        let mut queue = SealedQueue::default();
        assert_eq!(queue.push(Sealed::new(Lsn(0), "free")), Some("free"));
        assert_eq!(queue.push(Sealed::new(Lsn(2), "second")), None);
        assert_eq!(queue.push(Sealed::new(Lsn(1), "first")), None);
        assert_eq!(queue.release(Durable::synced(Lsn(1))).collect::<Vec<_>>(), ["first"]);
        assert!(Sealed::new(Lsn(2), ()).open(Durable::synced(Lsn(1))).is_err());
        assert_eq!(queue.release(Durable::synced(Lsn(5))).collect::<Vec<_>>(), ["second"]);
        assert_eq!(queue.push(Sealed::new(Lsn(5), "late")), Some("late"));
        assert!(queue.is_empty());
    }
}
