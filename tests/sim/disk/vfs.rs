//! SQLite's way to the disk: a VFS as <https://www.sqlite.org/vfs.html> has it, that does what SQLite's own for Unix does.
//!
//! SQLite keeps a pointer to a VFS in every connection and nobody can tell when the last is gone, so a VFS is never taken
//! back: there is a pool of them, and a mount occupies one until it and all files opened through it are gone.

#![allow(unsafe_code, reason = "a VFS is a table of C functions; this file is all there is of it")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fmt::{self, Debug, Formatter};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Weak};

use outrigger::disk::{File, Kind};
use parking_lot::Mutex;
use rand::Rng;
use rusqlite::ffi;

use super::locks::{Busy, Level};
use super::tree::names;
use super::{Doing, Mounted, SimFile};

/// The longest path, with its end.
const PATH_BYTES_MAX: c_int = 1024;
/// What SQLite's own VFS says of a disk.
const SECTOR_BYTES: c_int = 4096;
/// 1970-01-01 as a Julian day, in milliseconds.
const EPOCH_JULIAN_MS: i64 = 210_866_760_000_000;

/// Has SQLite draw from here on from `seed`, all its connections to whatever disk: it has one generator per process, from
/// which it takes, of what we use, the salts of write-ahead logs. Not zero.
pub(crate) fn seed_sqlite(seed: i32) {
    // SAFETY: this operation takes an int and a connection, which may be null.
    unsafe { ffi::sqlite3_test_control(ffi::SQLITE_TESTCTRL_PRNG_SEED, seed as c_int, null_mut::<ffi::sqlite3>()) };
}

/// A VFS that SQLite knows, and whose disk it leads to.
pub(super) struct Slot {
    name: CString,
    mounted: Mutex<Weak<Mounted>>,
}

/// The VFSs that lead nowhere.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
/// How many there are.
static COUNT: Mutex<usize> = Mutex::new(0);

impl Slot {
    /// Has a VFS lead to what `make` makes of it.
    pub(super) fn occupy(make: impl FnOnce(&'static Self) -> Mounted) -> Arc<Mounted> {
        let free = FREE.lock().pop();
        let slot = free.unwrap_or_else(Self::register);
        let mounted = Arc::new(make(slot));
        *slot.mounted.lock() = Arc::downgrade(&mounted);
        mounted
    }

    fn register() -> &'static Self {
        let mut count = COUNT.lock();
        *count += 1;
        let name = CString::new(format!("sim-{count}")).unwrap_or_default();
        let slot: &'static Self = Box::leak(Box::new(Self { name, mounted: Mutex::new(Weak::new()) }));
        let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<OpenFile>() as c_int,
            mxPathname: PATH_BYTES_MAX,
            pNext: null_mut(),
            zName: slot.name.as_ptr(),
            pAppData: std::ptr::from_ref(slot).cast_mut().cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: Some(current_time_ms),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        }));
        // SAFETY: the table and the name live for ever, and from here on the table is SQLite's alone.
        let outcome = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
        assert_eq!(outcome, ffi::SQLITE_OK, "SQLite takes a VFS");
        slot
    }

    pub(super) fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        FREE.lock().push(self.slot);
    }
}

/// Memory that the connections to a database share, in regions that never move.
#[derive(Default)]
pub(super) struct Memory(Mutex<Vec<Region>>);

struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: nothing here looks into a region; SQLite does, and keeps its own threads apart.
unsafe impl Send for Region {}

impl Debug for Memory {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and whoever looked into it had a share of the memory.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Memory {
    /// The region of this number, made if need be; none where it is not there and not to be made.
    fn region(&self, number: usize, bytes: usize, make: bool) -> Option<NonNull<u8>> {
        let mut regions = self.0.lock();
        while make && regions.len() <= number {
            let layout = Layout::from_size_align(bytes, align_of::<u64>()).ok().filter(|layout| layout.size() > 0)?;
            // SAFETY: the layout is not of size zero.
            let start = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
            regions.push(Region { start, layout });
        }
        regions.get(number).filter(|region| region.layout.size() == bytes).map(|region| region.start)
    }
}

/// What SQLite takes for a file: its own part first.
#[repr(C)]
struct OpenFile {
    base: ffi::sqlite3_file,
    ours: *mut Open,
}

struct Open {
    file: SimFile,
    path: Option<PathBuf>,
    /// The directory is to be synced with it the first time.
    is_new: AtomicBool,
    memory: Mutex<Option<Arc<Memory>>>,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// SAFETY: `vfs` is one that [`Slot::register`] made.
unsafe fn mounted(vfs: *mut ffi::sqlite3_vfs) -> Option<Arc<Mounted>> {
    // SAFETY: its data is a slot, which lives for ever.
    let slot = unsafe { (*vfs).pAppData.cast::<Slot>().as_ref() }?;
    slot.mounted.lock().upgrade()
}

/// SAFETY: `file` is one that [`open`] filled in, and not closed for as long as the result is used.
unsafe fn ours<'a>(file: *mut ffi::sqlite3_file) -> &'a Open {
    // SAFETY: open() put a box there, and only close() takes it away.
    unsafe { &*(*file.cast::<OpenFile>()).ours }
}

/// SAFETY: `name` is a text with an end, or null.
unsafe fn path<'a>(name: *const c_char) -> Option<&'a Path> {
    // SAFETY: as promised by the caller.
    (!name.is_null()).then(|| Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())))
}

/// SAFETY: `out` is null or may be written to.
unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: as promised by the caller.
        unsafe { out.write(value) };
    }
}

fn code(outcome: io::Result<()>, failed: c_int) -> c_int {
    match outcome {
        Ok(()) => ffi::SQLITE_OK,
        Err(error) if error.kind() == io::ErrorKind::StorageFull => ffi::SQLITE_FULL,
        Err(_) => failed,
    }
}

fn locked(outcome: &io::Result<Result<(), Busy>>, failed: c_int) -> c_int {
    match outcome {
        Ok(Ok(())) => ffi::SQLITE_OK,
        Ok(Err(Busy)) => ffi::SQLITE_BUSY,
        Err(_) => failed,
    }
}

fn open_file(mounted: &Arc<Mounted>, path: Option<&Path>, flags: c_int) -> io::Result<Open> {
    let is = |flag: c_int| flags & flag != 0;
    let is_new = is(ffi::SQLITE_OPEN_CREATE)
        && is(ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL);
    let file = match path {
        None => mounted.open_unnamed()?,
        Some(path) if is(ffi::SQLITE_OPEN_EXCLUSIVE) && mounted.kind(path)?.is_some() => {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Some(path) => match mounted.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && is(ffi::SQLITE_OPEN_CREATE) => {
                mounted.open_or_make(path)?
            }
            found => found?,
        },
    };
    if let Some(path) = path.filter(|_| is(ffi::SQLITE_OPEN_DELETEONCLOSE)) {
        mounted.remove(path)?;
    }
    let is_new = AtomicBool::new(is_new);
    Ok(Open { file, path: path.map(Path::to_owned), is_new, memory: Mutex::new(None) })
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let file = file.cast::<OpenFile>();
    // SAFETY: SQLite gives room for szOsFile bytes, and calls no method, nor close, where there are none.
    unsafe { (*file).base.pMethods = null() };
    // SAFETY: the VFS is ours and the name has an end.
    let opened = unsafe { mounted(vfs).ok_or(()).and_then(|disk| open_file(&disk, path(name), flags).map_err(drop)) };
    let Ok(opened) = opened else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: as above.
    unsafe {
        (*file).ours = Box::into_raw(Box::new(opened));
        (*file).base.pMethods = &raw const METHODS;
        put(flags_out, flags);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let file = file.cast::<OpenFile>();
    // SAFETY: open() made the box; with its methods gone nothing reaches it any more.
    let open = unsafe {
        (*file).base.pMethods = null();
        Box::from_raw((*file).ours)
    };
    open.unlock(Level::None);
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: the VFS is ours and the name has an end.
    let (Some(disk), Some(path)) = (unsafe { mounted(vfs) }, unsafe { path(name) }) else {
        return ffi::SQLITE_IOERR_DELETE;
    };
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return ffi::SQLITE_IOERR_DELETE_NOENT,
        Err(_) => return ffi::SQLITE_IOERR_DELETE,
        Ok(()) => {}
    }
    match path.parent() {
        Some(parent) if sync != 0 => code(disk.sync_directory(parent), ffi::SQLITE_IOERR_DIR_FSYNC),
        _ => ffi::SQLITE_OK,
    }
}

unsafe extern "C" fn access(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    // SAFETY: the VFS is ours and the name has an end.
    let (Some(disk), Some(path)) = (unsafe { mounted(vfs) }, unsafe { path(name) }) else {
        return ffi::SQLITE_IOERR_ACCESS;
    };
    let Ok(kind) = disk.kind(path) else { return ffi::SQLITE_IOERR_ACCESS };
    let is = match kind {
        // An empty file is as good as none.
        Some(Kind::File(0)) => flags != ffi::SQLITE_ACCESS_EXISTS,
        found => found.is_some(),
    };
    // SAFETY: SQLite gives room for the answer.
    unsafe { put(out, c_int::from(is)) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the name has an end.
    let Some(Ok(names)) = (unsafe { path(name) }).map(names) else { return ffi::SQLITE_CANTOPEN };
    let full = format!("/{}\0", names.join("/"));
    if full.len() > usize::try_from(length).unwrap_or(0) {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: SQLite gives room for `length` bytes.
    unsafe { out.copy_from_nonoverlapping(full.as_ptr().cast(), full.len()) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, length: c_int, out: *mut c_char) -> c_int {
    let mut bytes = vec![0_u8; usize::try_from(length).unwrap_or(0)];
    // SAFETY: the VFS is ours.
    if let Some(disk) = unsafe { mounted(vfs) } {
        disk.shared.state.lock().rng.fill_bytes(&mut bytes);
    }
    // SAFETY: SQLite gives room for `length` bytes.
    unsafe { out.copy_from_nonoverlapping(bytes.as_ptr().cast(), bytes.len()) };
    length
}

/// All happens on one thread: nobody would let go of a lock while this one sleeps.
unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

unsafe extern "C" fn current_time_ms(vfs: *mut ffi::sqlite3_vfs, out: *mut i64) -> c_int {
    // SAFETY: the VFS is ours.
    let Some(disk) = (unsafe { mounted(vfs) }) else { return ffi::SQLITE_ERROR };
    let now_ms = i64::try_from(disk.now().as_millis()).unwrap_or(0);
    // SAFETY: SQLite gives room for the answer.
    unsafe { put(out, EPOCH_JULIAN_MS + now_ms) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    const DAY_MS: f64 = 86_400_000.0;
    let mut now_ms = 0;
    // SAFETY: as for SQLite.
    let outcome = unsafe { current_time_ms(vfs, &raw mut now_ms) };
    // SAFETY: SQLite gives room for the answer.
    unsafe { put(out, now_ms as f64 / DAY_MS) };
    outcome
}

unsafe extern "C" fn last_error(_: *mut ffi::sqlite3_vfs, _: c_int, _: *mut c_char) -> c_int {
    0
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, out: *mut c_void, length: c_int, at: i64) -> c_int {
    let (Ok(length), Ok(at)) = (usize::try_from(length), u64::try_from(at)) else { return ffi::SQLITE_IOERR_READ };
    // Not a slice of SQLite's room, which may not be filled yet.
    let mut bytes = vec![0; length];
    // SAFETY: the file is open.
    let Ok(there) = (unsafe { ours(file) }).file.read_some(&mut bytes, at) else { return ffi::SQLITE_IOERR_READ };
    // SAFETY: SQLite gives room for `length` bytes.
    unsafe { out.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), length) };
    if there < length { ffi::SQLITE_IOERR_SHORT_READ } else { ffi::SQLITE_OK }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, bytes: *const c_void, length: c_int, at: i64) -> c_int {
    let (Ok(length), Ok(at)) = (usize::try_from(length), u64::try_from(at)) else { return ffi::SQLITE_IOERR_WRITE };
    if length == 0 {
        return ffi::SQLITE_OK;
    }
    // SAFETY: SQLite gives `length` bytes, and the file is open.
    let (bytes, open) = unsafe { (std::slice::from_raw_parts(bytes.cast::<u8>(), length), ours(file)) };
    code(open.file.write_at(bytes, at), ffi::SQLITE_IOERR_WRITE)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    let Ok(size) = u64::try_from(size) else { return ffi::SQLITE_IOERR_TRUNCATE };
    // SAFETY: the file is open.
    code(unsafe { ours(file) }.file.resize(size), ffi::SQLITE_IOERR_TRUNCATE)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: the file is open.
    let open = unsafe { ours(file) };
    if open.file.sync().is_err() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    if let Some(path) = open.path.as_deref().filter(|_| open.is_new.swap(false, Ordering::Relaxed)) {
        open.file.mounted.sync_directory_of(path);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, out: *mut i64) -> c_int {
    // SAFETY: the file is open.
    let Ok(bytes) = (unsafe { ours(file) }).file.bytes() else { return ffi::SQLITE_IOERR_FSTAT };
    // SAFETY: SQLite gives room for the answer.
    unsafe { put(out, i64::try_from(bytes).unwrap_or(i64::MAX)) };
    ffi::SQLITE_OK
}

fn level(level: c_int) -> Level {
    match level {
        ffi::SQLITE_LOCK_NONE => Level::None,
        ffi::SQLITE_LOCK_SHARED => Level::Shared,
        ffi::SQLITE_LOCK_RESERVED => Level::Reserved,
        ffi::SQLITE_LOCK_PENDING => Level::Pending,
        _ => Level::Exclusive,
    }
}

impl Open {
    /// The dead have no locks to give back.
    fn unlock(&self, to: Level) {
        let SimFile { mounted, ino, number } = &self.file;
        let mut state = mounted.shared.state.lock();
        if state.alive.contains(&mounted.life) {
            state.sqlite.unlock(*ino, *number, to);
        }
    }

    fn lock_slots(&self, slots: std::ops::Range<usize>, flags: c_int) -> io::Result<Result<(), Busy>> {
        let SimFile { mounted, ino, number } = &self.file;
        if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
            let mut state = mounted.shared.state.lock();
            if state.alive.contains(&mounted.life) {
                state.sqlite.unlock_slots(*ino, *number, slots);
            }
            return Ok(Ok(()));
        }
        let is_alone = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
        mounted.with(Doing::Look, |state| Ok(state.sqlite.lock_slots(*ino, *number, slots, is_alone)))
    }

    /// The file that SQLite's own VFS keeps the shared memory in: here a mere name, for those who list a directory.
    fn memory_path(&self) -> Option<PathBuf> {
        let mut path = self.path.clone()?.into_os_string();
        path.push("-shm");
        Some(path.into())
    }

    fn map(&self, number: usize, bytes: usize, extend: bool) -> io::Result<Option<NonNull<u8>>> {
        let SimFile { mounted, ino, number: handle } = &self.file;
        let mut memory = self.memory.lock();
        if memory.is_none() {
            if let Some(path) = self.memory_path() {
                mounted.open_or_make(&path)?;
            }
            *memory = Some(mounted.with(Doing::Look, |state| Ok(state.sqlite.memory(*ino, *handle)))?);
        }
        mounted.with(Doing::Look, |_| Ok(memory.as_ref().and_then(|memory| memory.region(number, bytes, extend))))
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, want: c_int) -> c_int {
    // SAFETY: the file is open.
    let SimFile { mounted, ino, number } = unsafe { &ours(file).file };
    let outcome = mounted.with(Doing::Look, |state| Ok(state.sqlite.lock(*ino, *number, level(want))));
    locked(&outcome, ffi::SQLITE_IOERR_LOCK)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, to: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe { ours(file) }.unlock(level(to));
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: the file is open.
    let SimFile { mounted, ino, .. } = unsafe { &ours(file).file };
    let reserved = mounted.with(Doing::Look, |state| Ok(state.sqlite.is_reserved(*ino)));
    let Ok(is_reserved) = reserved else { return ffi::SQLITE_IOERR_CHECKRESERVEDLOCK };
    // SAFETY: SQLite gives room for the answer.
    unsafe { put(out, c_int::from(is_reserved)) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, what: c_int, argument: *mut c_void) -> c_int {
    if what != ffi::SQLITE_FCNTL_HAS_MOVED {
        return ffi::SQLITE_NOTFOUND;
    }
    // SAFETY: the file is open.
    let Open { file: SimFile { mounted, ino, .. }, path, .. } = unsafe { ours(file) };
    let is_there = |path: &PathBuf| mounted.with(Doing::Look, |state| Ok(state.find(path)? == *ino)).unwrap_or(false);
    let has_moved = !path.as_ref().is_none_or(is_there);
    // SAFETY: this question is answered by an int.
    unsafe { put(argument.cast(), c_int::from(has_moved)) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    SECTOR_BYTES
}

/// What SQLite's own VFS says too: a write that is cut off leaves the bytes around it as they were.
unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    number: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    let (Ok(number), Ok(bytes)) = (usize::try_from(number), usize::try_from(bytes)) else {
        return ffi::SQLITE_IOERR_SHMMAP;
    };
    // SAFETY: the file is open.
    let mapped = unsafe { ours(file) }.map(number, bytes, extend != 0);
    let start = mapped.as_ref().ok().copied().flatten().map_or(null_mut(), |start| start.as_ptr().cast());
    // SAFETY: SQLite gives room for the answer.
    unsafe { put(out, start) };
    code(mapped.map(drop), ffi::SQLITE_IOERR_SHMMAP)
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, first: c_int, count: c_int, flags: c_int) -> c_int {
    let (Ok(first), Ok(count)) = (usize::try_from(first), usize::try_from(count)) else {
        return ffi::SQLITE_IOERR_SHMLOCK;
    };
    // SAFETY: the file is open.
    locked(&unsafe { ours(file) }.lock_slots(first..first + count, flags), ffi::SQLITE_IOERR_SHMLOCK)
}

unsafe extern "C" fn shm_barrier(_: *mut ffi::sqlite3_file) {
    fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: the file is open.
    let open = unsafe { ours(file) };
    let SimFile { mounted, ino, number } = &open.file;
    let left = mounted.with(Doing::Look, |state| Ok(state.sqlite.leave(*ino, *number)));
    if let (Ok(true), true, Some(path)) = (left, delete != 0, open.memory_path()) {
        // As SQLite's own VFS, which does not look whether it went.
        drop(mounted.remove(&path));
    }
    // SQLite has let go of its pointers, or does before it looks again.
    *open.memory.lock() = None;
    ffi::SQLITE_OK
}
