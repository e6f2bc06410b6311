//! `restore`: the rows of a backup, written through the socket as any client would.
//!
//! ```text
//!   manifest, every hash ──► say what will happen ──► a reader ──► chunks ──► jobs: get, compare, put what differs
//! ```
//!
//! A chunk is done once every row of it is: each round of it reads what is there through a quorum and writes only what
//! is still to be written, so that a round may fail in any way and simply be made again.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use outrigger::client::{
    self, BATCH_BYTES_SOFT_MAX, BatchDone, BatchOp, Cas, Client, Consistency, Expect, Problem, Written,
};
use outrigger::clock::OsClock;
use outrigger::types::ShardId;
use rusqlite::types::ValueRef;
use serde_json::json;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::backup::Selection;
use super::manifest::{self, Entry, Manifest};
use super::{Failure, Global, output, progress};

/// Rows in one chunk.
const CHUNK_ROWS_MAX: usize = 128;
/// Bytes of values after which a chunk is full.
const CHUNK_BYTES_SOFT_MAX: usize = 1024 * 1024;
/// The pause before a round is made again, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Write the rows of a backup into this cluster
///
/// Every file is compared with its hash before anything is written. Each row is then written like any other, through
/// the quorum and as a new version, so others may go on meanwhile. Keys that exist get the backup's value, or with
/// --if-absent stay as they are; keys that the backup does not have stay. A row whose value is there already is left
/// alone, so a restore that was interrupted can simply be run again.
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger restore /backups/monday                 says what will happen, asks
  outrigger restore /backups/monday --yes           does not ask: for scripts
  outrigger restore /backups/monday --if-absent     only keys without a value
  outrigger --org acme --ns pay restore /backups/monday      one shard of it")]
pub(super) struct Restore {
    /// The backup: a directory with a manifest.json
    dir: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Write only keys that have no value
    #[arg(long)]
    if_absent: bool,
    /// How many batches of rows to write at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    jobs: u8,
    /// How long to go on trying while nothing can be written, as in 30s or 5m
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    retry_for: Duration,
}

/// How many rows ended how.
#[derive(Debug, Default)]
struct Counts {
    /// Written by this restore.
    written: AtomicU64,
    /// The same value was there already.
    unchanged: AtomicU64,
    /// Another value was there, and was to be left alone.
    kept: AtomicU64,
}

impl Counts {
    fn figures(&self) -> [u64; 3] {
        [&self.written, &self.unchanged, &self.kept].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Some rows of one shard.
struct Chunk {
    shard: ShardId,
    rows: Vec<Row>,
}

struct Row {
    key: String,
    value: Bytes,
    /// A write of it may have happened.
    tried: bool,
}

impl Restore {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let clock = OsClock::shared();
        let began = clock.now().monotonic;
        let selection = Selection::of(global)?;
        let manifest = Manifest::read(&self.dir)?;
        self.verify(&manifest).await?;
        let chosen: Vec<Entry> =
            manifest.shards.iter().filter(|entry| selection.has(&entry.shard())).cloned().collect();
        if chosen.is_empty()
            && let Some(failure) = selection.not_found("in this backup")
        {
            return Err(failure);
        }
        let cluster = global.client()?.build().cluster().await?;
        self.announce(&manifest, &chosen, &cluster.cluster, cluster.node.as_str());
        self.confirm()?;

        let (counts, rows) = (Arc::new(Counts::default()), chosen.iter().map(|entry| entry.keys).sum::<u64>());
        let line = || format!("restore: {} of {rows} rows", counts.figures().iter().sum::<u64>());
        let shards = chosen.len();
        let ended = progress::show(line, self.write_all(global, chosen, &counts)).await;
        let took = clock.now().monotonic.saturating_sub(began);
        let summary = summary(shards, rows, &counts, took, ended.is_ok(), global.client.json);
        match ended {
            Ok(()) => Ok(output::print(&summary)?),
            Err(failure) => {
                // The figures matter most where not all is done.
                if global.client.json {
                    output::print(&summary)?;
                }
                let [written, unchanged, kept] = counts.figures();
                let so_far = format!(
                    "of {rows} rows {written} were written, {unchanged} were there, {kept} kept; run it again to go on"
                );
                Err(failure.map(|message| format!("{message}; {so_far}")))
            }
        }
    }

    /// Compares every file of the backup with the manifest.
    async fn verify(&self, manifest: &Manifest) -> Result<(), Failure> {
        let (dir, entries) = (self.dir.clone(), manifest.shards.clone());
        let (bytes, read) = (entries.iter().map(|entry| entry.bytes).sum::<u64>(), Arc::new(AtomicU64::new(0)));
        let counted = read.clone();
        let all = tokio::task::spawn_blocking(move || {
            let count = |bytes| {
                counted.fetch_add(bytes, Ordering::Relaxed);
            };
            entries.iter().try_for_each(|entry| manifest::verify(&dir, entry, count))
        });
        let line = || {
            let read = output::bytes(read.load(Ordering::Relaxed));
            format!("restore: comparing hashes, {read} of {}", output::bytes(bytes))
        };
        progress::show(line, all).await.map_err(Failure::other)?
    }

    fn announce(&self, manifest: &Manifest, chosen: &[Entry], cluster: &str, node: &str) {
        let rows: u64 = chosen.iter().map(|entry| entry.keys).sum();
        let existing = if self.if_absent {
            "Keys that have a value keep it."
        } else {
            "Keys that exist get the backup's value, as a new version."
        };
        let text = format!(
            "backup of cluster {:?}, taken at {} on node {} ({}); all hashes match.\n\
             Into cluster {cluster:?} through node {node}: {} shards, {rows} rows. {existing}\n\
             Keys that are not in the backup stay as they are. Rows whose value is the same already are not written.\n",
            manifest.cluster,
            manifest.began,
            manifest.node,
            manifest.version,
            chosen.len(),
        );
        // Where nobody reads it there is nobody to tell.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn confirm(&self) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage("nothing was restored: give --yes where nobody can be asked".to_owned()));
        }
        let _ = write!(io::stderr(), "Go on? [y/N] ");
        let mut answer = String::new();
        io::stdin()
            .read_line(&mut answer)
            .map_err(|error| Failure::Other(format!("cannot read the answer: {error}")))?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failure::Other("nothing was restored".to_owned())),
        }
    }

    async fn write_all(&self, global: &Global, chosen: Vec<Entry>, counts: &Arc<Counts>) -> Result<(), Failure> {
        let jobs = usize::from(self.jobs);
        let (sender, chunks) = mpsc::channel(jobs);
        let dir = self.dir.clone();
        let reading =
            tokio::task::spawn_blocking(move || chosen.iter().try_for_each(|entry| read(&dir, entry, &sender)));
        let chunks = Arc::new(Mutex::new(chunks));
        let mut working: JoinSet<Result<(), Failure>> = JoinSet::new();
        for _ in 0..jobs {
            let builder = global.client()?.consistency(Consistency::Quorum);
            let job = Job { builder, if_absent: self.if_absent, retry_for: self.retry_for, counts: counts.clone() };
            let chunks = chunks.clone();
            working.spawn(async move {
                loop {
                    let next = chunks.lock().await.recv().await;
                    let Some(chunk) = next else { return Ok(()) };
                    job.restore(chunk).await?;
                }
            });
        }
        drop(chunks);
        while let Some(ended) = working.join_next().await {
            // The others end with the set, and the reader with their end of the channel.
            ended.map_err(Failure::other)??;
        }
        reading.await.map_err(Failure::other)?
    }
}

fn summary(shards: usize, rows: u64, counts: &Counts, took: Duration, complete: bool, json: bool) -> String {
    let ([written, unchanged, kept], seconds) = (counts.figures(), took.as_secs_f64());
    if json {
        let summary = json!({ "complete": complete, "shards": shards, "rows": rows, "written": written,
            "unchanged": unchanged, "kept": kept, "seconds": seconds });
        return format!("{summary}\n");
    }
    format!(
        "{shards} shards, {rows} rows in {seconds:.1} s: {written} written, {unchanged} were there already, {kept} kept\n"
    )
}

/// Sends the rows of one shard in chunks; ends early where nobody takes them.
fn read(dir: &Path, entry: &Entry, chunks: &mpsc::Sender<Chunk>) -> Result<(), Failure> {
    let path = entry.path(dir);
    let failed = |why: &dyn std::fmt::Display| Failure::Other(format!("cannot read {}: {why}", path.display()));
    let file = manifest::open(&path).map_err(|error| failed(&error))?;
    let mut statement = file.prepare("SELECT key, value FROM kv ORDER BY key").map_err(|error| failed(&error))?;
    let mut stored = statement.query([]).map_err(|error| failed(&error))?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = stored.next().map_err(|error| failed(&error))? {
        let key = row.get(0).map_err(|error| failed(&error))?;
        // As nodes read what another program has stored where they store bytes.
        let value = match row.get_ref(1).map_err(|error| failed(&error))? {
            ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes.to_vec(),
            ValueRef::Integer(number) => number.to_string().into_bytes(),
            ValueRef::Real(number) => number.to_string().into_bytes(),
            ValueRef::Null => Vec::new(),
        };
        bytes += value.len();
        rows.push(Row { key, value: Bytes::from(value), tried: false });
        if rows.len() == CHUNK_ROWS_MAX || bytes >= CHUNK_BYTES_SOFT_MAX {
            bytes = 0;
            if chunks.blocking_send(Chunk { shard: entry.shard(), rows: std::mem::take(&mut rows) }).is_err() {
                return Ok(());
            }
        }
    }
    if !rows.is_empty() {
        // Nobody takes it where a job has failed, which tells why.
        let _ = chunks.blocking_send(Chunk { shard: entry.shard(), rows });
    }
    Ok(())
}

/// What each of the jobs knows.
struct Job {
    builder: client::Builder,
    if_absent: bool,
    retry_for: Duration,
    counts: Arc<Counts>,
}

/// Why a round left rows undone.
struct Undone(client::Error);

impl Job {
    /// Makes rounds until every row is done.
    async fn restore(&self, chunk: Chunk) -> Result<(), Failure> {
        let Chunk { shard, mut rows } = chunk;
        let client = self.builder.clone().shard(shard.org.as_str(), shard.namespace.as_str())?.build();
        let clock = OsClock::shared();
        let (mut pause, mut since) = (PAUSE_MIN, clock.now().monotonic);
        while !rows.is_empty() {
            let before = rows.len();
            let Err(Undone(error)) = self.round(&client, &mut rows).await else { continue };
            let of_shard = |message| format!("shard {shard}: {message}");
            if !error.is_unavailable() {
                return Err(Failure::from(error).map(of_shard));
            }
            if rows.len() < before {
                (pause, since) = (PAUSE_MIN, clock.now().monotonic);
            }
            if clock.now().monotonic.saturating_sub(since) >= self.retry_for {
                let tried = humantime::format_duration(self.retry_for);
                return Err(Failure::from(error).map(of_shard).map(|message| format!("tried for {tried}: {message}")));
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(())
    }

    /// Reads what is there and writes what is to be; takes the rows that are done away. An error is the first of those
    /// that left some.
    async fn round(&self, client: &Client, rows: &mut Vec<Row>) -> Result<(), Undone> {
        let gets: Vec<_> = rows.iter().map(|row| BatchOp::Get(row.key.clone())).collect();
        let found = client.batch(&gets).await.map_err(Undone)?;
        let (mut left, mut writes, mut first) = (Vec::new(), Vec::new(), Ok(()));
        for (row, found) in std::mem::take(rows).into_iter().zip(found) {
            match value_of(client, &row.key, found).await {
                Ok(Some(value)) if value == row.value => {
                    let count = if row.tried { &self.counts.written } else { &self.counts.unchanged };
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(_)) if self.if_absent => {
                    self.counts.kept.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => writes.push(row),
                Err(error) => {
                    first = first.and(Err(Undone(error)));
                    left.push(row);
                }
            }
        }
        let expect = self.if_absent.then_some(Expect::Absent);
        let results = put_all(client, &writes, expect).await;
        for (mut row, result) in writes.into_iter().zip(results) {
            match result {
                Ok(Put::Written) => {
                    self.counts.written.fetch_add(1, Ordering::Relaxed);
                }
                // Somebody else was first: the next round tells with what.
                Ok(Put::Mismatch) => left.push(row),
                Err(error) => {
                    row.tried |= may_have_happened(&error);
                    first = first.and(Err(Undone(error)));
                    left.push(row);
                }
            }
        }
        *rows = left;
        first
    }
}

/// What a batch found at a key. A value that the answer had no room for is read alone.
async fn value_of(
    client: &Client,
    key: &str,
    found: Result<BatchDone, Problem>,
) -> Result<Option<Bytes>, client::Error> {
    match found {
        Ok(done) => Ok(done.value),
        Err(problem) if problem.status == 413 => Ok(client.get(key).await?.map(|row| row.value)),
        Err(problem) => Err(client::Error::Problem(problem)),
    }
}

enum Put {
    Written,
    Mismatch,
}

/// Writes rows, as one batch where they fit; one result for each.
async fn put_all(client: &Client, rows: &[Row], expect: Option<Expect>) -> Vec<Result<Put, client::Error>> {
    let bytes: usize = rows.iter().map(|row| row.key.len() + row.value.len()).sum();
    if bytes > BATCH_BYTES_SOFT_MAX {
        // A chunk ends with the row that fills it, so these are few.
        let mut results = Vec::new();
        for row in rows {
            results.push(put_one(client, row, expect).await);
        }
        return results;
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let put = |row: &Row| BatchOp::Put { key: row.key.clone(), value: row.value.clone(), expect };
    let ops: Vec<_> = rows.iter().map(put).collect();
    match client.batch(&ops).await {
        Ok(results) => results.into_iter().map(put_of).collect(),
        Err(error) => {
            // None of them has a result. The error is told once; what holds for it holds for all.
            let unknown = may_have_happened(&error);
            let mut results: Vec<_> = rows.iter().skip(1).map(|_| Err(no_result(unknown))).collect();
            results.insert(0, Err(error));
            results
        }
    }
}

fn no_result(unknown: bool) -> client::Error {
    client::Error::Problem(Problem {
        kind: "about:blank".to_owned(),
        title: "its batch had no result".to_owned(),
        status: 503,
        detail: String::new(),
        written: Some(if unknown { Written::Unknown } else { Written::No }),
    })
}

fn put_of(result: Result<BatchDone, Problem>) -> Result<Put, client::Error> {
    match result {
        Ok(_) => Ok(Put::Written),
        Err(problem) if problem.status == 412 => Ok(Put::Mismatch),
        Err(problem) => Err(client::Error::Problem(problem)),
    }
}

async fn put_one(client: &Client, row: &Row, expect: Option<Expect>) -> Result<Put, client::Error> {
    let Some(expect) = expect else { return client.put(&row.key, row.value.clone()).await.map(|_| Put::Written) };
    Ok(match client.cas(&row.key, expect, row.value.clone()).await? {
        Cas::Written(_) => Put::Written,
        Cas::Mismatch(_) => Put::Mismatch,
    })
}

fn may_have_happened(error: &client::Error) -> bool {
    match error {
        client::Error::Problem(problem) => problem.written != Some(Written::No),
        client::Error::Broken { .. } | client::Error::Unreadable(_) => true,
        client::Error::NotReachable { .. }
        | client::Error::WatchEnded { .. }
        | client::Error::Invalid(_)
        | client::Error::MalformedRequest { .. } => false,
    }
}
