//! `backup`: a copy of every shard, fetched over the socket and written by this process, as its user.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use clap::Args;
use futures_util::StreamExt as _;
use outrigger::client::{self, Client, Copyable};
use outrigger::clock::OsClock;
use outrigger::types::{Namespace, Org, ShardId};
use serde_json::json;

use super::manifest::{self, Entry, Hash, MANIFEST, Manifest, cannot};
use super::{Failure, Global, output, progress};

/// Copy every shard into a new directory while writes go on
///
/// The copy has every write that any node acknowledged before it began. It is a directory of SQLite files,
/// DIR/<org>/<namespace>.db, and of DIR/manifest.json with their sizes and SHA-256 hashes, which is written last: a
/// directory without one is not a whole backup. The node needs room on its disk for a second copy of the largest shards
/// for a while.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger backup /backups/monday           every shard
  outrigger --org acme backup acme           one org's
  outrigger --org acme --ns pay backup pay   one shard
  outrigger backup rescue --consistency local
                                this node's copy, where no quorum is left")]
pub(super) struct Backup {
    /// Where to: a directory that is not there yet, or empty
    dir: PathBuf,
    /// How many shards to copy at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
}

/// Which shards are meant.
pub(super) struct Selection {
    org: Option<Org>,
    namespace: Option<Namespace>,
}

impl Selection {
    /// All; those of an org; or one, whose org is `_` where none is named.
    pub(super) fn of(global: &Global) -> Result<Self, Failure> {
        let usage = |error: outrigger::types::InvalidInput| Failure::Usage(error.to_string());
        let namespace = global.client.ns.as_deref().map(Namespace::parse).transpose().map_err(usage)?;
        let org = global.client.org.as_deref().map(Org::parse).transpose().map_err(usage)?;
        let org = org.or_else(|| namespace.as_ref().map(|_| Org::sentinel()));
        Ok(Self { org, namespace })
    }

    pub(super) fn has(&self, shard: &ShardId) -> bool {
        self.org.as_ref().is_none_or(|org| shard.org == *org)
            && self.namespace.as_ref().is_none_or(|namespace| shard.namespace == *namespace)
    }

    /// What is wrong where nothing was found.
    pub(super) fn not_found(&self, place: &str) -> Option<Failure> {
        let org = self.org.as_ref()?;
        let namespace = self.namespace.as_ref().map_or_else(String::new, |namespace| format!("/{namespace}"));
        Some(Failure::Other(format!("there is no shard {org}{namespace} {place}")))
    }
}

/// How far it is.
#[derive(Default)]
struct Done {
    shards: AtomicU64,
    bytes: AtomicU64,
}

impl Backup {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let clock = OsClock::shared();
        let began = clock.now();
        let selection = Selection::of(global)?;
        let client = global.client()?.build();
        let Copyable { cluster, node, version, mut shards } = client.copyable(selection.org.as_ref()).await?;
        shards.retain(|shard| selection.has(shard));
        if shards.is_empty()
            && let Some(failure) = selection.not_found("to back up")
        {
            return Err(failure);
        }
        if let Some(shard) = shards.iter().find(|shard| shard.org.as_str().starts_with(MANIFEST)) {
            let why = format!("the org {} has the name of a backup's own file: choose others with --org", shard.org);
            return Err(Failure::Other(why));
        }
        let directory = &self.dir;
        make_empty(directory)?;
        let consistency = if global.is_local() { "local" } else { "quorum" };
        let mut manifest = Manifest::new(version, cluster, node, consistency);
        manifest.began = rfc3339(began.wall);

        let (count, done) = (shards.len(), Arc::new(Done::default()));
        let copy = |shard: ShardId| fetch(&client, directory, shard, &done);
        let mut entries = futures_util::stream::iter(shards).map(copy).buffer_unordered(usize::from(self.jobs));
        let all = async {
            let mut all = Vec::new();
            while let Some(entry) = entries.next().await {
                all.push(entry?);
            }
            Ok::<_, Failure>(all)
        };
        let line = || {
            let (shards, bytes) = (done.shards.load(Ordering::Relaxed), done.bytes.load(Ordering::Relaxed));
            format!("backup: {shards} of {count} shards, {}", output::bytes(bytes))
        };
        manifest.shards = progress::show(line, all).await.map_err(|failure| unfinished(directory, failure))?;
        manifest.shards.sort_by_key(Entry::shard);
        manifest.ended = rfc3339(clock.now().wall);
        manifest.write(directory).map_err(|failure| unfinished(directory, failure))?;
        let took = clock.now().monotonic.saturating_sub(began.monotonic);
        Ok(output::print(&summary(&manifest, directory, took, global.client.json))?)
    }
}

fn unfinished(directory: &Path, failure: Failure) -> Failure {
    let about = format!("{} holds an unfinished backup without {MANIFEST}: remove it", directory.display());
    failure.map(|message| format!("{message}; {about}"))
}

fn summary(manifest: &Manifest, directory: &Path, took: Duration, json: bool) -> String {
    let bytes: u64 = manifest.shards.iter().map(|entry| entry.bytes).sum();
    let keys: u64 = manifest.shards.iter().map(|entry| entry.keys).sum();
    let (shards, seconds) = (manifest.shards.len(), took.as_secs_f64());
    if json {
        let summary = json!({ "dir": directory, "shards": shards, "keys": keys, "bytes": bytes, "seconds": seconds });
        return format!("{summary}\n");
    }
    let bytes = output::bytes(bytes);
    format!("{}: {shards} shards, {keys} keys, {bytes} in {seconds:.1} s\n", directory.display())
}

fn rfc3339(nanos: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
}

/// Makes the directory; one that is there must hold nothing.
fn make_empty(directory: &Path) -> Result<(), Failure> {
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::Other(format!("{} is not empty: name a new directory", directory.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let made = fs::create_dir_all(directory).and_then(|()| manifest::sync(parent));
            made.map_err(|error| cannot("make", directory, &error))
        }
        Err(error) => Err(cannot("use", directory, &error)),
    }
}

/// Fetches, writes and checks one shard.
async fn fetch(client: &Client, directory: &Path, shard: ShardId, done: &Done) -> Result<Entry, Failure> {
    let mut copy = match client.copy(&shard).await {
        Ok(Some(copy)) => copy,
        Ok(None) => return Err(Failure::Other(format!("shard {shard} is gone"))),
        Err(error) => return Err(of_shard(&shard, error)),
    };
    let file = manifest::file_of(&shard);
    let path = directory.join(&file);
    let unfinished = directory.join(format!("{file}.partial"));
    let failed = |error| cannot("write", &unfinished, &error);
    let parent = directory.join(shard.org.as_str());
    fs::create_dir_all(&parent)
        .and_then(|()| manifest::sync(directory))
        .map_err(|error| cannot("make", &parent, &error))?;
    let mut out = File::options().write(true).create_new(true).open(&unfinished).map_err(failed)?;
    let (mut hash, mut bytes) = (Hash::new(), 0);
    while let Some(piece) = copy.next().await.map_err(|error| of_shard(&shard, error))? {
        out.write_all(&piece).map_err(failed)?;
        hash.update(&piece);
        bytes += piece.len() as u64;
        done.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    let checked = tokio::task::spawn_blocking(move || {
        out.sync_all().map_err(|error| cannot("write", &unfinished, &error))?;
        let figures = check(&unfinished)?;
        fs::rename(&unfinished, &path)
            .and_then(|()| manifest::sync(&parent))
            .map_err(|error| cannot("write", &path, &error))?;
        Ok::<_, Failure>(figures)
    });
    let (keys, last_upd) = checked.await.map_err(Failure::other)??;
    done.shards.fetch_add(1, Ordering::Relaxed);
    let ShardId { org, namespace } = shard;
    Ok(Entry { org, namespace, file, bytes, sha256: hash.finish(), keys, last_upd })
}

fn of_shard(shard: &ShardId, error: client::Error) -> Failure {
    Failure::from(error).map(|message| format!("shard {shard}: {message}"))
}

/// A copy that cannot be read is none.
fn check(path: &Path) -> Result<(u64, outrigger::types::Ballot), Failure> {
    let failed =
        |why: &dyn std::fmt::Display| Failure::Other(format!("the copy {} is not sound: {why}", path.display()));
    let file = manifest::open(path).map_err(|error| failed(&error))?;
    let found: String =
        file.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(|error| failed(&error))?;
    if found != "ok" {
        return Err(failed(&found));
    }
    manifest::count(&file).map_err(|error| failed(&error))
}
