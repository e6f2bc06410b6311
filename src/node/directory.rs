//! What a node keeps in its data directory beside journal and shards: whose it is, and the secret of its endpoint.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Error;
use crate::disk::{self, Disk};
use crate::replication::journal;
use crate::types::NodeId;

/// Whether the directory is known to be this node's. Another's is refused: what peers remember would tell, too, but
/// only by taking that node's votes away for good.
pub(super) fn is_marked(disk: &dyn Disk, data_dir: &Path, node: &NodeId) -> Result<bool, Error> {
    let owner = disk.open(&name_file(data_dir)).and_then(|file| disk::read(&*file)).unwrap_or_default();
    match String::from_utf8_lossy(&owner).trim() {
        "" => Ok(false),
        owner if owner == node.as_str() => Ok(true),
        owner => Err(Error::ForeignData { path: data_dir.to_owned(), owner: owner.to_owned(), node: node.clone() }),
    }
}

/// Marks the directory as this node's, once it starts in earnest: a mistake in the configuration claims nothing.
pub(super) fn mark(disk: &dyn Disk, data_dir: &Path, node: &NodeId) {
    let path = name_file(data_dir);
    // A precaution is no reason not to start: a full disk, for one, must not keep a node from serving reads.
    if let Err(error) = disk.create(&path).and_then(|file| file.write_at(format!("{node}\n").as_bytes(), 0)) {
        tracing::warn!(path = %path.display(), %error, "cannot mark the data directory as this node's");
    }
}

fn name_file(data_dir: &Path) -> PathBuf {
    data_dir.join(journal::DIRECTORY).join("name")
}

/// The secret behind QUIC's stateless resets: random, and the same after a restart, so that peers learn at once that
/// their old connection is gone.
pub(super) fn reset_key(data_dir: &Path) -> Result<[u8; 32], Error> {
    let path = data_dir.join(journal::DIRECTORY).join("reset-key");
    if let Some(key) = std::fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let written = options.open(&path).and_then(|mut file| file.write_all(&key));
    written.map_err(|source| Error::ResetKey { path, source })?;
    Ok(key)
}
