//! What a backup says of itself: `manifest.json`, written last, so that a directory without one is no whole backup.
//!
//! ```text
//!   DIR/manifest.json            sizes, hashes, where from and when
//!   DIR/<org>/<namespace>.db     one SQLite database per shard
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use outrigger::types::{Ballot, Namespace, Org, ShardId};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::digest;
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use super::Failure;

/// The file's name.
pub(super) const MANIFEST: &str = "manifest.json";
/// The layout that this version writes; it refuses a higher one.
const FORMAT: u32 = 1;
/// No manifest is larger, in bytes: some hundred for each of a hundred thousand shards.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 * 1024;
/// What a path in a URI of SQLite's may hold as it is.
const IN_URI: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A whole backup.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    /// The version of the node that was asked.
    pub(super) version: String,
    pub(super) cluster: String,
    pub(super) node: String,
    /// RFC 3339. Every write acknowledged before is in it.
    pub(super) began: String,
    pub(super) ended: String,
    /// `quorum`: with all that any node had acknowledged; `local`: that node's copy as it was.
    pub(super) consistency: String,
    pub(super) shards: Vec<Entry>,
}

/// One shard of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) org: Org,
    pub(super) namespace: Namespace,
    /// Below the manifest's directory.
    pub(super) file: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) keys: u64,
    pub(super) last_upd: Ballot,
}

impl Entry {
    pub(super) fn shard(&self) -> ShardId {
        ShardId { org: self.org.clone(), namespace: self.namespace.clone() }
    }

    pub(super) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(file_of(&self.shard()))
    }
}

/// Where in a backup the file of a shard lies.
pub(super) fn file_of(shard: &ShardId) -> String {
    format!("{}/{}.db", shard.org, shard.namespace)
}

impl Manifest {
    pub(super) fn new(version: String, cluster: String, node: String, consistency: &str) -> Self {
        let (began, ended) = (String::new(), String::new());
        Self {
            format: FORMAT,
            version,
            cluster,
            node,
            began,
            ended,
            consistency: consistency.to_owned(),
            shards: Vec::new(),
        }
    }

    /// Makes a whole backup of the files in `directory`, durably.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Failure> {
        let (path, unfinished) = (directory.join(MANIFEST), directory.join(format!("{MANIFEST}.partial")));
        let failed = |error| cannot("write", &path, &error);
        let mut text = serde_json::to_vec_pretty(self).map_err(Failure::other)?;
        text.push(b'\n');
        let mut file = File::create(&unfinished).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&unfinished, &path).and_then(|()| sync(directory)).map_err(failed)
    }

    /// Reads the manifest of the backup in `directory`.
    pub(super) fn read(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(MANIFEST);
        let shown = directory.display();
        let text = match fs::metadata(directory) {
            Err(error) => return Err(cannot("look at", directory, &error)),
            Ok(found) if !found.is_dir() => {
                return Err(Failure::Other(format!("{shown} is not a directory, so no backup")));
            }
            Ok(_) => match fs::metadata(&path) {
                Ok(found) if found.len() > MANIFEST_BYTES_MAX => {
                    return Err(Failure::Other(format!("{} has more than {MANIFEST_BYTES_MAX} bytes", path.display())));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let why = "it is no backup, or one that was not finished";
                    return Err(Failure::Other(format!("{shown} has no {MANIFEST}: {why}")));
                }
                _ => fs::read(&path).map_err(|error| cannot("read", &path, &error))?,
            },
        };
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let unreadable = |why: serde_json::Error| Failure::Other(format!("{} cannot be read: {why}", path.display()));
        let Head { format } = serde_json::from_slice(&text).map_err(unreadable)?;
        if format != FORMAT {
            let why = format!(
                "is of format {format}, and this version reads {FORMAT}: restore with the version that wrote it"
            );
            return Err(Failure::Other(format!("{} {why}", path.display())));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(unreadable)?;
        match manifest.shards.iter().find(|entry| entry.file != file_of(&entry.shard())) {
            Some(odd) => Err(Failure::Other(format!(
                "{}: the file of {} should be {}, not {:?}",
                path.display(),
                odd.shard(),
                file_of(&odd.shard()),
                odd.file
            ))),
            None => Ok(manifest),
        }
    }
}

/// Compares a file with what the manifest says of it; `read` is told how many bytes were.
pub(super) fn verify(directory: &Path, entry: &Entry, read: impl Fn(u64)) -> Result<(), Failure> {
    let path = entry.path(directory);
    let damaged = |what: String| {
        Failure::Other(format!("{} {what}: the backup is damaged, nothing was restored", path.display()))
    };
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("is missing".to_owned())),
        opened => opened.map_err(|error| cannot("open", &path, &error))?,
    };
    let (mut hash, mut piece, mut bytes) = (Hash::new(), vec![0; PIECE_BYTES], 0);
    loop {
        let count = file.read(&mut piece).map_err(|error| cannot("read", &path, &error))?;
        let Some(some) = piece.get(..count).filter(|some| !some.is_empty()) else { break };
        hash.update(some);
        bytes += count as u64;
        read(count as u64);
    }
    if bytes != entry.bytes {
        return Err(damaged(format!("has {bytes} bytes, and the manifest says {}", entry.bytes)));
    }
    let found = hash.finish();
    if found != entry.sha256 {
        return Err(damaged(format!("has another hash than the manifest says ({found}, not {})", entry.sha256)));
    }
    match open(&path).and_then(|file| count(&file)) {
        Ok((keys, _)) if keys == entry.keys => Ok(()),
        Ok((keys, _)) => Err(damaged(format!("has {keys} keys, and the manifest says {}", entry.keys))),
        Err(error) => Err(damaged(format!("cannot be read as a shard ({error})"))),
    }
}

/// SHA-256, as hexadecimal digits.
pub(super) struct Hash(digest::Context);

impl Hash {
    pub(super) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Opens a file of a backup to read it, leaving nothing beside it.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let path = path.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(path.to_owned()))?;
    // An absolute path that begins with two slashes would name a host.
    let uri = format!("file:{}?immutable=1", utf8_percent_encode(path, IN_URI));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

/// Live keys, and the latest version in it, deletions included.
pub(super) fn count(file: &Connection) -> rusqlite::Result<(u64, Ballot)> {
    let one = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0));
    let keys = one("SELECT count(*) FROM kv")?;
    let last =
        one("SELECT max(coalesce((SELECT max(upd) FROM kv), 0), coalesce((SELECT max(upd) FROM tombstone), 0))")?;
    Ok((u64::try_from(keys).unwrap_or(0), Ballot(last)))
}

/// Makes the entries of a directory durable.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// What could not be done to a file.
pub(super) fn cannot(doing: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Other(format!("cannot {doing} {}: {error}", path.display()))
}
