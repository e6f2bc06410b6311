//! What a node keeps in its data directory beside journal and shards: whose it is, and the secret of its endpoint.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Error;
use crate::disk::{self, Disk};
use crate::replication::journal;
use crate::types::NodeId;

/// Whether the directory is known to be this node's. Another's is refused: what peers remember would tell, too, but
/// only by taking that node's votes away for good.
pub(super) fn is_marked(disk: &dyn Disk, data_dir: &Path, node: &NodeId) -> Result<bool, Error> {
    let owner = disk.open(&name_file(data_dir)).and_then(|file| disk::read(&*file)).unwrap_or_default();
    // What is no name is what a loss of power left of one.
    match NodeId::parse(String::from_utf8_lossy(&owner).trim()) {
        Err(_) => Ok(false),
        Ok(owner) if owner == *node => Ok(true),
        Ok(owner) => {
            Err(Error::ForeignData { path: data_dir.to_owned(), owner: owner.to_string(), node: node.clone() })
        }
    }
}

/// Marks the directory as this node's, once it starts in earnest: a mistake in the configuration claims nothing.
pub(super) fn mark(disk: &dyn Disk, data_dir: &Path, node: &NodeId) {
    let path = name_file(data_dir);
    // A precaution is no reason not to start: a full disk, for one, must not keep a node from serving reads.
    let write = || {
        let file = disk.create(&path)?;
        file.write_at(format!("{node}\n").as_bytes(), 0)?;
        file.sync()
    };
    if let Err(error) = write() {
        tracing::warn!(path = %path.display(), %error, "cannot mark the data directory as this node's");
    }
}

/// Whether users that are neither its owner nor of its group get at what is in the data directory.
pub(super) fn is_open_to_others(data_dir: &Path) -> bool {
    std::fs::metadata(data_dir).is_ok_and(|directory| directory.mode() & 0o001 != 0)
}

fn name_file(data_dir: &Path) -> PathBuf {
    data_dir.join(journal::DIRECTORY).join("name")
}

/// The secret behind QUIC's stateless resets: random, and the same after a restart, so that peers learn at once that
/// their old connection is gone.
pub(super) fn reset_key(data_dir: &Path) -> Result<[u8; 32], Error> {
    let path = data_dir.join(journal::DIRECTORY).join("reset-key");
    let mut key = [0; 32];
    let mut read = disk::open_itself(std::fs::File::options().read(true), &path);
    if read.as_mut().is_ok_and(|file| file.read_exact(&mut key).is_ok()) {
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let written = disk::open_itself(&mut options, &path).and_then(|mut file| file.write_all(&key));
    written.map_err(|source| Error::ResetKey { path, source })?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OsDisk;

    /// The name was never synced: a loss of power left zeros in its place, which were taken for another node's name, and
    /// the node refused to start on its own data.
    #[test]
    fn what_is_left_of_a_name_is_nobodys() {
        let (dir, a) = (tempfile::tempdir().unwrap(), NodeId::parse("a").unwrap());
        std::fs::create_dir(dir.path().join(journal::DIRECTORY)).unwrap();
        assert!(!is_marked(&OsDisk, dir.path(), &a).unwrap());
        for torn in [&b"\0\0"[..], b"", b"\xff\xfe"] {
            std::fs::write(name_file(dir.path()), torn).unwrap();
            assert!(!is_marked(&OsDisk, dir.path(), &a).unwrap());
        }
        mark(&OsDisk, dir.path(), &a);
        assert!(is_marked(&OsDisk, dir.path(), &a).unwrap());
        let other = is_marked(&OsDisk, dir.path(), &NodeId::parse("b").unwrap());
        assert!(matches!(other, Err(Error::ForeignData { owner, .. }) if owner == "a"));
    }
}
