//! Directories and names, and the state of a disk as a whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Component, Path};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::io::Errno;

use super::content::{Fate, FileBody, Log, Loss};
use super::faults::Faults;
use super::locks::SqliteLocks;

/// A file or directory, whatever it is called.
pub(super) type Ino = u64;
/// A process that has the disk mounted.
pub(super) type Life = u64;

const ROOT: Ino = 0;
/// What nobody names any more is looked for after this many removals.
const REMOVED_MAX: u32 = 64;

#[derive(Debug)]
pub(super) struct Inode {
    /// Names that processes see.
    links: u32,
    /// Handles of living processes.
    pub(super) opens: u32,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    File(FileBody),
    Directory(DirectoryBody),
}

/// A directory.
#[derive(Debug, Default)]
pub(super) struct DirectoryBody {
    pub(super) seen: BTreeMap<String, Ino>,
    pub(super) durable: BTreeMap<String, Ino>,
    log: Log<NameChange>,
}

#[derive(Debug)]
enum NameChange {
    Link(String, Ino),
    Unlink(String),
    /// Both or neither.
    Rename(String, String),
}

impl DirectoryBody {
    pub(super) fn holding(names: BTreeMap<String, Ino>) -> Self {
        Self { seen: names.clone(), durable: names, ..Self::default() }
    }

    fn apply(&mut self, change: NameChange) {
        match change {
            NameChange::Link(name, ino) => drop(self.durable.insert(name, ino)),
            NameChange::Unlink(name) => drop(self.durable.remove(&name)),
            NameChange::Rename(from, to) => {
                // Where the first name never got there, neither does the second.
                if let Some(ino) = self.durable.remove(&from) {
                    self.durable.insert(to, ino);
                }
            }
        }
    }

    pub(super) fn settle(&mut self, completed: u64) {
        for change in self.log.settle(completed) {
            self.apply(change);
        }
    }

    /// The power goes.
    pub(super) fn lose(&mut self, loss: &mut Loss<'_>) {
        for change in loss.take(&mut self.log, |_| 1) {
            if loss.fate() != Fate::Lost {
                self.apply(change);
            }
        }
        self.seen = self.durable.clone();
    }

    /// Whatever it may lead to, now or after a loss of power.
    fn leads_to(&self) -> impl Iterator<Item = Ino> {
        let linked = self.log.changes().filter_map(|change| match change {
            NameChange::Link(_, ino) => Some(ino),
            NameChange::Unlink(_) | NameChange::Rename(..) => None,
        });
        self.seen.values().chain(self.durable.values()).chain(linked).copied()
    }
}

/// A sync that was begun and may still be undone.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) number: u64,
    done_at: Duration,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) rng: StdRng,
    pub(super) inodes: BTreeMap<Ino, Inode>,
    pub(super) next_ino: Ino,
    removed: u32,
    pub(super) alive: BTreeSet<Life>,
    /// Numbers lives, handles and locks.
    next_number: u64,
    /// Syncs begun, and of these the done.
    pub(super) issued: u64,
    pub(super) completed: u64,
    pub(super) in_flight: VecDeque<InFlight>,
    /// When the disk will have done all that was asked of it.
    pub(super) busy_until: Duration,
    /// Pages taken.
    pub(super) used: u64,
    pub(super) faults: Faults,
    /// Whose a locked file is.
    pub(super) locks: BTreeMap<Ino, u64>,
    pub(super) sqlite: SqliteLocks,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = Self {
            rng: StdRng::seed_from_u64(seed),
            inodes: BTreeMap::new(),
            next_ino: ROOT,
            removed: 0,
            alive: BTreeSet::new(),
            next_number: 0,
            issued: 0,
            completed: 0,
            in_flight: VecDeque::new(),
            busy_until: Duration::ZERO,
            used: 0,
            faults: Faults::default(),
            locks: BTreeMap::new(),
            sqlite: SqliteLocks::default(),
        };
        state.empty();
        state
    }

    /// Leaves nothing but the root.
    pub(super) fn empty(&mut self) {
        self.inodes.clear();
        self.next_ino = ROOT;
        self.used = 0;
        self.in_flight.clear();
        self.completed = self.issued;
        let root = self.add(Body::Directory(DirectoryBody::default()));
        self.inodes.entry(root).and_modify(|inode| inode.links = 1);
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Takes note of the syncs that are done.
    pub(super) fn advance(&mut self, now: Duration) {
        while let Some(sync) = self.in_flight.pop_front_if(|sync| sync.done_at <= now) {
            self.completed = sync.number;
        }
    }

    /// Makes what completed syncs cover durable, everywhere.
    pub(super) fn settle(&mut self) {
        for inode in self.inodes.values_mut() {
            match &mut inode.body {
                Body::File(file) => file.settle(self.completed),
                Body::Directory(directory) => directory.settle(self.completed),
            }
        }
    }

    /// Begins a sync: its number.
    pub(super) fn begin_sync(&mut self, now: Duration) -> u64 {
        let (least, most) = self.faults.sync_takes;
        let takes = if least < most { self.rng.random_range(least..=most) } else { least };
        self.issued += 1;
        self.busy_until = self.busy_until.max(now) + takes;
        self.in_flight.push_back(InFlight { number: self.issued, done_at: self.busy_until });
        outrigger::blocking::owe(self.busy_until.saturating_sub(now));
        self.advance(now);
        self.issued
    }

    pub(super) fn inode(&mut self, ino: Ino) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| Errno::IO.into())
    }

    pub(super) fn file(&mut self, ino: Ino) -> io::Result<&mut FileBody> {
        match &mut self.inode(ino)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::ISDIR.into()),
        }
    }

    pub(super) fn directory(&mut self, ino: Ino) -> io::Result<&mut DirectoryBody> {
        match &mut self.inode(ino)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    /// Adds a file or directory without a name.
    pub(super) fn add(&mut self, body: Body) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.inodes.insert(ino, Inode { links: 0, opens: 0, body });
        ino
    }

    /// What is at a path.
    pub(super) fn find(&mut self, path: &Path) -> io::Result<Ino> {
        let mut found = ROOT;
        for name in names(path)? {
            found = *self.directory(found)?.seen.get(&name).ok_or(Errno::NOENT)?;
        }
        Ok(found)
    }

    /// The directory that a path's last name is in, and that name.
    fn find_parent(&mut self, path: &Path) -> io::Result<(Ino, String)> {
        let mut names = names(path)?;
        let last = names.pop().ok_or(Errno::INVAL)?;
        let parent = self.find(&names.iter().collect::<std::path::PathBuf>())?;
        self.directory(parent)?;
        Ok((parent, last))
    }

    /// Gives a name to a file or directory; the name's former holder loses it.
    fn link(&mut self, parent: Ino, name: String, ino: Ino) -> io::Result<()> {
        let round = self.issued;
        let directory = self.directory(parent)?;
        directory.log.push(round, NameChange::Link(name.clone(), ino));
        let former = directory.seen.insert(name, ino);
        self.inode(ino)?.links += 1;
        former.into_iter().for_each(|former| self.unlinked(former));
        Ok(())
    }

    fn unlinked(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode(ino) {
            inode.links -= 1;
        }
        self.release(ino);
        self.removed += 1;
        if self.removed > REMOVED_MAX {
            self.settle();
            self.collect();
        }
    }

    /// Gives back the pages of a file that nobody can reach, though a loss of power may bring it back.
    fn release(&mut self, ino: Ino) {
        let Some(Inode { links: 0, opens: 0, body: Body::File(file) }) = self.inodes.get(&ino) else { return };
        self.used -= file.allocated;
    }

    pub(super) fn opened(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode(ino) {
            inode.opens += 1;
        }
    }

    pub(super) fn closed(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode(ino) {
            inode.opens -= 1;
        }
        self.release(ino);
    }

    /// Finds a file, or makes one.
    pub(super) fn find_or_make(&mut self, path: &Path) -> io::Result<Ino> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (parent, name) = self.find_parent(path)?;
                let ino = self.add(Body::File(FileBody::default()));
                self.link(parent, name, ino)?;
                Ok(ino)
            }
            found => found,
        }
    }

    pub(super) fn make_directories(&mut self, path: &Path) -> io::Result<()> {
        let mut found = ROOT;
        for name in names(path)? {
            found = match self.directory(found)?.seen.get(&name) {
                Some(next) => *next,
                None => {
                    let ino = self.add(Body::Directory(DirectoryBody::default()));
                    self.link(found, name, ino)?;
                    ino
                }
            };
        }
        self.directory(found).map(|_| ())
    }

    pub(super) fn sync_directory(&mut self, now: Duration, ino: Ino) -> io::Result<()> {
        self.directory(ino)?;
        let (number, completed, lies) = (self.begin_sync(now), self.completed, self.faults.lies);
        let directory = self.directory(ino)?;
        if !lies {
            directory.log.sync(number);
        }
        directory.settle(completed);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let ino = self.find(path)?;
        self.file(ino)?;
        let (parent, name) = self.find_parent(path)?;
        let round = self.issued;
        let directory = self.directory(parent)?;
        directory.seen.remove(&name);
        directory.log.push(round, NameChange::Unlink(name));
        self.unlinked(ino);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let ino = self.find(from)?;
        let (from_parent, from_name) = self.find_parent(from)?;
        let (to_parent, to_name) = self.find_parent(to)?;
        if (from_parent, &from_name) == (to_parent, &to_name) {
            return Ok(());
        }
        if let Ok(former) = self.find(to) {
            self.file(former)?;
        }
        let round = self.issued;
        if from_parent != to_parent {
            // Two directories are not synced as one.
            self.link(to_parent, to_name, ino)?;
            let directory = self.directory(from_parent)?;
            directory.seen.remove(&from_name);
            directory.log.push(round, NameChange::Unlink(from_name));
            self.inode(ino)?.links -= 1;
            return Ok(());
        }
        let directory = self.directory(from_parent)?;
        directory.seen.remove(&from_name);
        let former = directory.seen.insert(to_name.clone(), ino);
        directory.log.push(round, NameChange::Rename(from_name, to_name));
        former.into_iter().for_each(|former| self.unlinked(former));
        Ok(())
    }

    /// Drops what nothing leads to, and counts names and pages anew.
    pub(super) fn collect(&mut self) {
        self.removed = 0;
        let mut reached = BTreeSet::from([ROOT]);
        let mut links: BTreeMap<Ino, u32> = BTreeMap::from([(ROOT, 1)]);
        let mut next = vec![ROOT];
        while let Some(ino) = next.pop() {
            if let Some(Inode { body: Body::Directory(directory), .. }) = self.inodes.get(&ino) {
                directory.seen.values().for_each(|named| *links.entry(*named).or_default() += 1);
                next.extend(directory.leads_to().filter(|named| reached.insert(*named)));
            }
        }
        self.inodes.retain(|ino, inode| inode.opens > 0 || reached.contains(ino));
        self.used = 0;
        for (ino, inode) in &mut self.inodes {
            inode.links = links.get(ino).copied().unwrap_or(0);
            match &inode.body {
                Body::File(file) if inode.links + inode.opens > 0 => self.used += file.allocated,
                _ => {}
            }
        }
    }
}

/// The names on the way from the root to `path`; a path that does not begin there is taken as if it did.
pub(super) fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str().ok_or(Errno::INVAL)?.to_owned()),
            Component::ParentDir => drop(names.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(names)
}

/// All files below the root by their paths, as one of the two views has them.
pub(super) fn files(inodes: &BTreeMap<Ino, Inode>, view: impl Fn(&DirectoryBody) -> &BTreeMap<String, Ino>) -> Files {
    let mut files = Files::default();
    let mut next = vec![(String::new(), ROOT)];
    while let Some((path, ino)) = next.pop() {
        match inodes.get(&ino).map(|inode| &inode.body) {
            Some(Body::Directory(directory)) => {
                next.extend(view(directory).iter().map(|(name, ino)| (format!("{path}/{name}"), *ino)));
                files.directories.insert(path);
            }
            Some(Body::File(_)) => drop(files.files.insert(path, ino)),
            None => {}
        }
    }
    files
}

/// A listing of all that is on a disk.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) files: BTreeMap<String, Ino>,
    pub(super) directories: BTreeSet<String>,
}
