//! One file: what processes see of it, what is on the platter for good, and the changes in between.

#![allow(clippy::indexing_slicing, reason = "parts() keeps ranges within what it is given, and within() within a page")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Content is kept by pages, and what was never written takes none.
pub(super) const PAGE_BYTES: usize = 4096;
/// A disk writes this much at once, or not at all, or tears it.
pub(super) const BLOCK_BYTES: usize = 512;

type Page = Arc<[u8; PAGE_BYTES]>;

/// Sparse bytes. A copy shares its pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) pages: BTreeMap<u64, Page>,
}

/// The parts of `length` bytes from `at` on that lie in one page or block each: where, and which of the bytes.
fn parts(at: u64, length: usize, unit: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = at + done as u64;
        let room = unit - (here % unit as u64) as usize;
        let range = done..length.min(done + room);
        done = range.end;
        (!range.is_empty()).then_some((here, range))
    })
}

fn page_of(at: u64) -> u64 {
    at / PAGE_BYTES as u64
}

fn within(at: u64) -> usize {
    (at % PAGE_BYTES as u64) as usize
}

impl Content {
    /// Copies what is there from `at` on, zeros behind the end.
    pub(super) fn read(&self, buffer: &mut [u8], at: u64) {
        for (here, range) in parts(at, buffer.len(), PAGE_BYTES) {
            let start = within(here);
            match self.pages.get(&page_of(here)) {
                Some(page) => {
                    let length = range.len();
                    buffer[range].copy_from_slice(&page[start..start + length]);
                }
                None => buffer[range].fill(0),
            }
        }
    }

    pub(super) fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read(&mut bytes, range.start);
        bytes
    }

    fn write(&mut self, bytes: &[u8], at: u64) {
        for (here, range) in parts(at, bytes.len(), PAGE_BYTES) {
            let page = self.pages.entry(page_of(here)).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            let start = within(here);
            Arc::make_mut(page)[start..start + range.len()].copy_from_slice(&bytes[range]);
        }
        self.size = self.size.max(at + bytes.len() as u64);
    }

    fn resize(&mut self, size: u64) {
        if size < self.size {
            self.pages.split_off(&size.div_ceil(PAGE_BYTES as u64));
            if let Some(page) = self.pages.get_mut(&page_of(size)) {
                Arc::make_mut(page)[within(size)..].fill(0);
            }
        }
        self.size = size;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { at, bytes } => self.write(bytes, *at),
            Change::Size(size) => self.resize(*size),
        }
    }

    pub(super) fn flip(&mut self, at: u64, bit: u32) {
        if let Some(page) = self.pages.get_mut(&page_of(at)) {
            Arc::make_mut(page)[within(at)] ^= 1 << bit;
        }
    }
}

/// What happens to a file's bytes.
#[derive(Debug)]
pub(super) enum Change {
    Write { at: u64, bytes: Box<[u8]> },
    Size(u64),
}

impl Change {
    fn blocks(&self) -> usize {
        match self {
            Self::Write { at, bytes } => parts(*at, bytes.len(), BLOCK_BYTES).count(),
            Self::Size(_) => 1,
        }
    }
}

/// Changes that are not yet on the platter for good, in the order of the program, with the syncs that are to make them so.
#[derive(Debug)]
pub(super) struct Log<C>(VecDeque<Entry<C>>);

#[derive(Debug)]
enum Entry<C> {
    /// With the number of syncs that the whole disk had begun before.
    Change(u64, C),
    /// The sync of this number covers all before.
    Sync(u64),
}

impl<C> Default for Log<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<C> Log<C> {
    pub(super) fn push(&mut self, round: u64, change: C) {
        self.0.push_back(Entry::Change(round, change));
    }

    pub(super) fn sync(&mut self, number: u64) {
        if !self.0.is_empty() {
            self.0.push_back(Entry::Sync(number));
        }
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = &C> {
        self.0.iter().filter_map(|entry| match entry {
            Entry::Change(_, change) => Some(change),
            Entry::Sync(_) => None,
        })
    }

    /// Takes what the syncs up to this number made durable.
    pub(super) fn settle(&mut self, completed: u64) -> Vec<C> {
        let is_done = |entry: &Entry<C>| matches!(entry, Entry::Sync(number) if *number <= completed);
        // Numbers rise, and most logs are empty or have nothing in flight.
        let Some(last) = self.0.iter().rposition(is_done) else { return Vec::new() };
        self.0.drain(..=last).filter_map(Entry::change).map(|(_, change)| change).collect()
    }

    /// Takes all, but for what came after the sync that was interrupted: the program had not come to it.
    fn take_before(&mut self, interrupted: u64) -> Vec<C> {
        let changes = self.0.drain(..).filter_map(Entry::change);
        changes.filter(|(round, _)| *round < interrupted).map(|(_, change)| change).collect()
    }
}

impl<C> Entry<C> {
    fn change(self) -> Option<(u64, C)> {
        match self {
            Self::Change(round, change) => Some((round, change)),
            Self::Sync(_) => None,
        }
    }
}

/// What becomes of one thing that a disk does as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Whole,
    Torn,
}

/// How a loss of power treats what was not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mood {
    /// Everything got there.
    All,
    /// Nothing did.
    Nothing,
    /// Of every file the first changes, the last of these torn.
    InOrder,
    /// Each by itself, this many in a hundred.
    Share(u32),
}

/// One of this many blocks that got there is torn.
const TORN_ONE_IN: u32 = 16;

/// A loss of power, as it meets one log.
pub(super) struct Loss<'a> {
    pub(super) rng: &'a mut StdRng,
    pub(super) mood: Mood,
    /// The sync during which it comes; changes behind it were not yet made.
    pub(super) interrupted: u64,
    left: usize,
}

impl<'a> Loss<'a> {
    pub(super) fn new(rng: &'a mut StdRng, mood: Mood, interrupted: u64) -> Self {
        Self { rng, mood, interrupted, left: 0 }
    }

    /// Takes a log apart: what of it may have got there.
    pub(super) fn take<C>(&mut self, log: &mut Log<C>, blocks: impl Fn(&C) -> usize) -> Vec<C> {
        let changes = log.take_before(self.interrupted);
        if matches!(self.mood, Mood::InOrder) && !changes.is_empty() {
            self.left = self.rng.random_range(0..=changes.iter().map(blocks).sum());
        }
        changes
    }

    pub(super) fn fate(&mut self) -> Fate {
        match self.mood {
            Mood::All => Fate::Whole,
            Mood::Nothing => Fate::Lost,
            Mood::InOrder => {
                self.left = self.left.saturating_sub(1);
                match self.left {
                    0 => Fate::Lost,
                    1 => Fate::Torn,
                    _ => Fate::Whole,
                }
            }
            Mood::Share(percent) if self.rng.random_ratio(percent, 100) => {
                if self.rng.random_ratio(1, TORN_ONE_IN) {
                    Fate::Torn
                } else {
                    Fate::Whole
                }
            }
            Mood::Share(_) => Fate::Lost,
        }
    }
}

/// A file.
#[derive(Debug, Default)]
pub(super) struct FileBody {
    /// What a process reads.
    pub(super) seen: Content,
    /// What a loss of power leaves at least.
    pub(super) durable: Content,
    log: Log<Change>,
    /// Pages that memory takes for written since a sync failed, and that are not on the platter.
    limbo: BTreeSet<u64>,
    /// Pages below this one are reserved, written or not.
    reserved: u64,
    /// Pages that it takes of the disk.
    pub(super) allocated: u64,
    /// What cannot be read.
    pub(super) bad: Vec<Range<u64>>,
}

impl FileBody {
    pub(super) fn holding(content: Content) -> Self {
        let mut file = Self { seen: content.clone(), durable: content, ..Self::default() };
        file.count();
        file
    }

    fn count(&mut self) {
        self.allocated = self.reserved + self.seen.pages.range(self.reserved..).count() as u64;
    }

    /// The pages that a write would add to those allocated.
    pub(super) fn wants(&self, at: u64, length: usize) -> u64 {
        let is_new = |page: &u64| *page >= self.reserved && !self.seen.pages.contains_key(page);
        parts(at, length, PAGE_BYTES).map(|(here, _)| page_of(here)).filter(is_new).count() as u64
    }

    pub(super) fn write(&mut self, round: u64, bytes: &[u8], at: u64) {
        self.allocated += self.wants(at, bytes.len());
        let end = at + bytes.len() as u64;
        if end > self.seen.size {
            // The size may get there, and the bytes not.
            self.log.push(round, Change::Size(end));
        }
        self.seen.write(bytes, at);
        self.bad.retain(|bad| bad.start < at || end < bad.end);
        if self.limbo.is_empty() {
            self.log.push(round, Change::Write { at, bytes: bytes.into() });
            return;
        }
        for (here, range) in parts(at, bytes.len(), PAGE_BYTES) {
            let page = page_of(here);
            let change = if self.limbo.remove(&page) {
                // Memory writes whole pages: what the failed sync left out goes with it.
                let start = page * PAGE_BYTES as u64;
                let end = self.seen.size.min(start + PAGE_BYTES as u64);
                Change::Write { at: start, bytes: self.seen.bytes(start..end).into() }
            } else {
                Change::Write { at: here, bytes: bytes[range].into() }
            };
            self.log.push(round, change);
        }
    }

    pub(super) fn resize(&mut self, round: u64, size: u64) {
        if size != self.seen.size {
            let shrinks = size < self.seen.size;
            self.seen.resize(size);
            self.log.push(round, Change::Size(size));
            if shrinks {
                self.reserved = self.reserved.min(size.div_ceil(PAGE_BYTES as u64));
                self.count();
            }
        }
    }

    /// The pages that reserving this many bytes would add to those allocated.
    pub(super) fn wants_reserved(&self, bytes: u64) -> u64 {
        let to = bytes.div_ceil(PAGE_BYTES as u64).max(self.reserved);
        to - self.reserved - self.seen.pages.range(self.reserved..to).count() as u64
    }

    pub(super) fn reserve(&mut self, round: u64, bytes: u64) {
        self.allocated += self.wants_reserved(bytes);
        self.reserved = self.reserved.max(bytes.div_ceil(PAGE_BYTES as u64));
        self.resize(round, self.seen.size.max(bytes));
    }

    pub(super) fn settle(&mut self, completed: u64) {
        for change in self.log.settle(completed) {
            self.durable.apply(&change);
        }
    }

    pub(super) fn sync(&mut self, number: u64) {
        self.log.sync(number);
    }

    /// A sync that fails: some of the un-synced blocks never get there, and no later sync will see to it.
    pub(super) fn fail_sync(&mut self, rng: &mut StdRng) {
        let covered = self.log.0.iter().rposition(|entry| matches!(entry, Entry::Sync(_))).map_or(0, |at| at + 1);
        let unsynced = self.log.0.split_off(covered);
        let mut blocks = Vec::new();
        for (round, change) in unsynced.into_iter().filter_map(Entry::change) {
            match change {
                Change::Write { at, bytes } => {
                    let part =
                        |(here, range): (u64, Range<usize>)| Change::Write { at: here, bytes: bytes[range].into() };
                    blocks.extend(parts(at, bytes.len(), BLOCK_BYTES).map(|found| (round, part(found))));
                }
                size @ Change::Size(_) => blocks.push((round, size)),
            }
        }
        let is_write = |(_, change): &(u64, Change)| matches!(change, Change::Write { .. });
        let writes = blocks.iter().filter(|block| is_write(block)).count();
        // One at least, or it would not have failed.
        let mut until_lost = if writes == 0 { 0 } else { rng.random_range(0..writes) };
        for (round, change) in blocks {
            if let Change::Write { at, .. } = &change {
                let is_the_one = until_lost == 0;
                until_lost = until_lost.wrapping_sub(1);
                if is_the_one || rng.random() {
                    self.limbo.insert(page_of(*at));
                    continue;
                }
            }
            self.log.push(round, change);
        }
    }

    /// Memory gives up what it takes for written.
    pub(super) fn forget(&mut self) {
        if self.limbo.is_empty() {
            return;
        }
        let mut platter = self.durable.clone();
        self.log.changes().for_each(|change| platter.apply(change));
        for page in std::mem::take(&mut self.limbo) {
            match platter.pages.remove(&page) {
                Some(content) => self.seen.pages.insert(page, content),
                None => self.seen.pages.remove(&page),
            };
        }
        self.count();
    }

    /// The power goes.
    pub(super) fn lose(&mut self, loss: &mut Loss<'_>) {
        for change in loss.take(&mut self.log, Change::blocks) {
            let Change::Write { at, bytes } = &change else {
                if loss.fate() != Fate::Lost {
                    self.durable.apply(&change);
                }
                continue;
            };
            for (here, range) in parts(*at, bytes.len(), BLOCK_BYTES) {
                match loss.fate() {
                    Fate::Lost => {}
                    Fate::Whole => self.durable.write(&bytes[range], here),
                    Fate::Torn => {
                        let cut = loss.rng.random_range(range.clone());
                        if loss.rng.random() {
                            self.durable.write(&bytes[range.start..cut], here);
                        } else {
                            let later = (cut - range.start) as u64;
                            self.durable.write(&bytes[cut..range.end], here + later);
                        }
                    }
                }
            }
        }
        self.limbo.clear();
        self.seen = self.durable.clone();
        self.reserved = self.reserved.min(self.seen.size.div_ceil(PAGE_BYTES as u64));
        self.count();
    }

    /// Whether any of it on the platter was ever written.
    pub(super) fn is_written(&self) -> bool {
        !self.durable.pages.is_empty()
    }

    /// A place that was written once, and a bit of it: for rot.
    pub(super) fn somewhere(&self, rng: &mut StdRng) -> Option<(u64, u32)> {
        let written = self.durable.pages.len();
        let page = *self.durable.pages.keys().nth(rng.random_range(0..written.max(1)))?;
        let start = page * PAGE_BYTES as u64;
        let length = self.durable.size.checked_sub(start)?.min(PAGE_BYTES as u64);
        (length > 0).then(|| (start + rng.random_range(0..length), rng.next_u32() % u8::BITS))
    }
}
