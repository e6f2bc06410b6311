//! What else disks do: fail, fill up, lag, lie, rot, and come back from an older copy.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rand::RngExt;
use rustix::io::Errno;

use super::content::{Content, FileBody, PAGE_BYTES};
use super::tree::{Body, DirectoryBody, Files, Ino, State, files};
use super::{Doing, SimDisk};

/// The bytes of a disk that was not told otherwise.
const QUOTA_BYTES: u64 = 1 << 40;
/// What a sync takes, likewise.
const SYNC_TAKES: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(2));

/// The faults that are on.
#[derive(Debug)]
pub(super) struct Faults {
    syncs: u32,
    writes: u32,
    pub(super) lies: bool,
    pub(super) deaf: bool,
    quota_pages: u64,
    pub(super) sync_takes: (Duration, Duration),
    pub(super) op_takes: Duration,
    /// Changes until the cut.
    pub(super) fuse: Option<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            syncs: 0,
            writes: 0,
            lies: false,
            deaf: false,
            quota_pages: QUOTA_BYTES / PAGE_BYTES as u64,
            sync_takes: SYNC_TAKES,
            op_takes: Duration::ZERO,
            fuse: None,
        }
    }
}

/// Files of one kind, by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A segment of the journal.
    Segment,
    /// The journal's header.
    Header,
    /// A shard's database.
    Database,
    /// A shard's write-ahead log.
    Wal,
}

impl Class {
    fn holds(self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        match self {
            Self::Segment => name.starts_with("journal-") && name.ends_with(".log"),
            Self::Header => name == "node",
            Self::Database => name.ends_with(".db"),
            Self::Wal => name.ends_with(WAL),
        }
    }
}

const WAL: &str = "-wal";

/// What a disk held for good at some time.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    inodes: BTreeMap<Ino, Held>,
    next_ino: Ino,
}

#[derive(Debug, Clone)]
enum Held {
    File(Content),
    Directory(BTreeMap<String, Ino>),
}

impl SimDisk {
    /// The next `count` syncs fail with EIO. Memory then takes what they covered for written; some of it is not on the
    /// platter, and no later sync will put it there.
    pub(crate) fn fail_syncs(&self, count: u32) {
        self.shared.state.lock().faults.syncs = count;
    }

    /// The next `count` writes fail with EIO, each perhaps done in part.
    pub(crate) fn fail_writes(&self, count: u32) {
        self.shared.state.lock().faults.writes = count;
    }

    /// Syncs say that they are done, and do nothing.
    pub(crate) fn lie(&self, lies: bool) {
        self.shared.state.lock().faults.lies = lies;
    }

    /// Memory does not give up what it takes for written.
    pub(crate) fn deafen(&self, deaf: bool) {
        self.shared.state.lock().faults.deaf = deaf;
    }

    /// How many bytes there is room for in all; counted by pages.
    pub(crate) fn set_quota(&self, bytes: u64) {
        self.shared.state.lock().faults.quota_pages = bytes / PAGE_BYTES as u64;
    }

    /// Leaves room for this many bytes more.
    pub(crate) fn set_free(&self, bytes: u64) {
        let mut state = self.shared.state.lock();
        state.faults.quota_pages = state.used + bytes / PAGE_BYTES as u64;
    }

    /// Bytes taken: written or reserved.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.shared.state.lock().used * PAGE_BYTES as u64
    }

    /// What a sync takes, from the least to the most.
    pub(crate) fn set_sync_takes(&self, least: Duration, most: Duration) {
        self.shared.state.lock().faults.sync_takes = (least, most);
    }

    /// What every operation takes on top.
    pub(crate) fn slow(&self, op_takes: Duration) {
        self.shared.state.lock().faults.op_takes = op_takes;
    }

    /// After this many changes more, whatever those who have it mounted try fails with EIO and changes nothing: the moment
    /// of a crash inside what the program does at once. To be followed by [`SimDisk::crash`].
    pub(crate) fn cut_after(&self, changes: u64) {
        self.shared.state.lock().faults.fuse = Some(changes);
    }

    /// Whether the moment came.
    pub(crate) fn is_cut(&self) -> bool {
        self.shared.state.lock().faults.fuse == Some(0)
    }

    /// Whatever reads these bytes of a file fails with EIO, until all of them are written anew.
    pub(crate) fn fail_reads(&self, path: &Path, range: Range<u64>) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let ino = state.find(path)?;
        state.file(ino)?.bad.push(range);
        Ok(())
    }

    /// Everything can be read again.
    pub(crate) fn heal_reads(&self) {
        self.shared.state.lock().files().for_each(|file| file.bad.clear());
    }

    /// Flips a bit of what was once written to a file of this class, and says which; none where there is no such file.
    pub(crate) fn rot(&self, class: Class) -> Option<String> {
        let now = self.now();
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        state.advance(now);
        state.settle();
        let candidates: Vec<(String, Ino)> = files(&state.inodes, |directory| &directory.seen)
            .files
            .into_iter()
            .filter(|(path, ino)| class.holds(path) && file_of(state, *ino).is_some_and(FileBody::is_written))
            .collect();
        let (path, ino) = candidates.get(state.rng.random_range(0..candidates.len().max(1)))?;
        let Some(Body::File(file)) = state.inodes.get_mut(ino).map(|inode| &mut inode.body) else { return None };
        let (at, bit) = file.somewhere(&mut state.rng)?;
        file.durable.flip(at, bit);
        file.seen.flip(at, bit);
        Some(format!("bit {bit} of byte {at} of {path} flipped"))
    }

    /// What is on the platter for good.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let now = self.now();
        let mut state = self.shared.state.lock();
        state.advance(now);
        state.settle();
        let held = |body: &Body| match body {
            Body::File(file) => Held::File(file.durable.clone()),
            Body::Directory(directory) => Held::Directory(directory.durable.clone()),
        };
        let inodes = state.inodes.iter().map(|(ino, inode)| (*ino, held(&inode.body))).collect();
        Snapshot { inodes, next_ino: state.next_ino }
    }

    /// Puts back what the platter once held, in place of what it holds. Who has it mounted is dead.
    pub(crate) fn restore(&self, snapshot: &Snapshot) {
        let mut state = self.shared.state.lock();
        state.end_lives();
        state.empty();
        state.inodes.clear();
        state.next_ino = 0;
        for (ino, held) in &snapshot.inodes {
            state.next_ino = *ino;
            state.add(match held {
                Held::File(content) => Body::File(FileBody::holding(content.clone())),
                Held::Directory(names) => Body::Directory(DirectoryBody::holding(names.clone())),
            });
        }
        state.next_ino = snapshot.next_ino;
        state.collect();
    }

    /// An empty disk in place of this one. Who has it mounted is dead.
    pub(crate) fn wipe(&self) {
        let mut state = self.shared.state.lock();
        state.end_lives();
        state.empty();
    }

    /// A short form of all that the disk holds, seen and durable: the same after the same run. SQLite draws the salts of
    /// its logs from one generator for the whole process, so these, and the checksums over them, are left out.
    pub(crate) fn digest(&self) -> u64 {
        let now = self.now();
        let mut state = self.shared.state.lock();
        state.advance(now);
        state.settle();
        let mut hasher = DefaultHasher::new();
        let seen = files(&state.inodes, |directory| &directory.seen);
        hash_files(&state, &seen, |file| &file.seen, &mut hasher);
        let durable = files(&state.inodes, |directory| &directory.durable);
        hash_files(&state, &durable, |file| &file.durable, &mut hasher);
        (state.used, state.issued, state.busy_until).hash(&mut hasher);
        hasher.finish()
    }
}

fn file_of(state: &State, ino: Ino) -> Option<&FileBody> {
    match &state.inodes.get(&ino)?.body {
        Body::File(file) => Some(file),
        Body::Directory(_) => None,
    }
}

fn hash_files(state: &State, listing: &Files, view: impl Fn(&FileBody) -> &Content, hasher: &mut impl Hasher) {
    listing.directories.hash(hasher);
    for (path, ino) in &listing.files {
        let Some(content) = file_of(state, *ino).map(&view) else { continue };
        (path, content.size).hash(hasher);
        if path.ends_with(WAL) {
            without_salts(content).hash(hasher);
            continue;
        }
        // A page of zeros is no other than one that was never written.
        for (number, page) in content.pages.iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0)) {
            (number, page.as_slice()).hash(hasher);
        }
    }
}

/// A write-ahead log, with zeros for salts and checksums. See <https://www.sqlite.org/fileformat2.html#walformat>.
fn without_salts(content: &Content) -> Vec<u8> {
    const HEADER_BYTES: usize = 32;
    const FRAME_HEADER_BYTES: usize = 24;
    let mut bytes = content.bytes(0..content.size);
    let Some(page_bytes) = bytes.get(8..12).and_then(|field| field.try_into().ok()).map(u32::from_be_bytes) else {
        return bytes;
    };
    let mut blank = |range: Range<usize>| {
        let end = range.end.min(bytes.len());
        if let Some(field) = bytes.get_mut(range.start..end) {
            field.fill(0);
        }
    };
    blank(16..HEADER_BYTES);
    let frame_bytes = FRAME_HEADER_BYTES + page_bytes as usize;
    for frame in (HEADER_BYTES..content.size as usize).step_by(frame_bytes) {
        blank(frame + 8..frame + FRAME_HEADER_BYTES);
    }
    bytes
}

impl State {
    fn files(&mut self) -> impl Iterator<Item = &mut FileBody> {
        self.inodes.values_mut().filter_map(|inode| match &mut inode.body {
            Body::File(file) => Some(file),
            Body::Directory(_) => None,
        })
    }

    pub(super) fn free_pages(&self) -> u64 {
        self.faults.quota_pages.saturating_sub(self.used)
    }

    /// One change nearer to the cut, or at it.
    pub(super) fn burn_fuse(&mut self, doing: Doing) {
        match &mut self.faults.fuse {
            Some(0) => self.alive.clear(),
            Some(left) if doing == Doing::Change => *left -= 1,
            _ => {}
        }
    }

    /// Changes a file, and keeps count of the pages.
    pub(super) fn change(&mut self, ino: Ino, change: impl FnOnce(&mut FileBody)) -> io::Result<()> {
        let file = self.file(ino)?;
        let before = file.allocated;
        change(file);
        let after = file.allocated;
        self.used = self.used + after - before;
        Ok(())
    }

    /// Whether the next sync fails, of a file or of a directory.
    pub(super) fn fail_sync_of(&mut self, ino: Option<Ino>) -> io::Result<()> {
        if self.faults.syncs == 0 {
            return Ok(());
        }
        self.faults.syncs -= 1;
        if let Some(Body::File(file)) = ino.and_then(|ino| self.inodes.get_mut(&ino)).map(|inode| &mut inode.body) {
            file.fail_sync(&mut self.rng);
        }
        Err(Errno::IO.into())
    }

    /// How much of a write is done, and how it ends.
    pub(super) fn fail_write_of(&mut self, ino: Ino, length: usize, at: u64) -> io::Result<(usize, io::Result<()>)> {
        if self.faults.writes > 0 {
            self.faults.writes -= 1;
            return Ok((self.rng.random_range(0..length), Err(Errno::IO.into())));
        }
        let free = self.free_pages();
        let file = self.file(ino)?;
        if file.wants(at, length) <= free {
            return Ok((length, Ok(())));
        }
        // As far as the pages go.
        let page = PAGE_BYTES as u64;
        let mut fits = 0;
        while fits < length {
            let next = ((at + fits as u64) / page + 1) * page;
            let until = length.min((next - at) as usize);
            if file.wants(at, until) > free {
                break;
            }
            fits = until;
        }
        Ok((fits, Err(Errno::NOSPC.into())))
    }
}
