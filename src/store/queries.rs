//! What is read from a shard: a point, or a range merged with the overlay.
//!
//! A range is one moment's state. The overlay's excerpt is copied first, then the file's snapshot is opened; a batch
//! that was both begun and committed in between would show in the snapshot without its contemporaries in the excerpt,
//! so the snapshot tells the number of its last batch, and one too new is opened again.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rusqlite::functions::FunctionFlags;
use rusqlite::types::{Value as SqlValue, ValueRef};
use rusqlite::{Connection, OptionalExtension, Statement, params_from_iter};

use super::compare::Table;
use super::digest::{Buckets, Digest, Sum, bucket_of};
use super::error::Error;
use super::overlay::{Excerpt, Eyes, Overlay, Pending};
use super::reads::Shown;
use super::replicator::{Op, Rejection};
use super::rows::{Item, StoredRow, supersedes};
use super::update::Row;
use super::{keys, schema};
use crate::types::{Ballot, Key, Value};

/// How often a snapshot is opened again before the shard counts as too busy.
const SNAPSHOT_TRIES_MAX: usize = 64;

const POINT: &str = "\
    SELECT 1, value, upd, (SELECT ballot FROM outrigger_ballot AS b WHERE b.key = ?1) FROM kv WHERE key = ?1 \
    UNION ALL \
    SELECT 0, NULL, upd, (SELECT ballot FROM outrigger_ballot AS b WHERE b.key = ?1) FROM tombstone WHERE key = ?1 \
    LIMIT 1";
pub(super) const LIVE: &str = "SELECT value, upd FROM kv WHERE key = ?1";
const ROWS: &str = "SELECT key, upd, value FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key";
const KEYS: &str = "SELECT key, upd, NULL FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key";
/// The function looks at keys alone, which are in the index: rows of other buckets are not touched.
const PAIRS: &str = "\
    SELECT key, upd, NULL FROM kv WHERE key >= ?1 AND key < ?2 AND outrigger_in(key, ?3) \
    UNION ALL \
    SELECT key, upd, NULL FROM tombstone WHERE key >= ?1 AND key < ?2 AND outrigger_in(key, ?3) ORDER BY key";

/// What of each row a scan returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want<'a> {
    /// Live rows with values.
    Rows,
    /// Live rows without values.
    Keys,
    /// Those of these buckets, deletions too, without values.
    Pairs(&'a Buckets),
}

impl Want<'_> {
    /// Who wants that.
    pub(super) fn eyes(self) -> Eyes {
        match self {
            Self::Rows | Self::Keys => Eyes::Client,
            Self::Pairs(_) => Eyes::Protocol,
        }
    }

    fn holds(&self, key: &Key) -> bool {
        match self {
            Self::Rows | Self::Keys => true,
            Self::Pairs(buckets) => buckets.hold(key),
        }
    }
}

/// Adds what the statements of this file call.
pub(super) fn add_functions(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_DIRECTONLY;
    conn.create_scalar_function("outrigger_in", 2, flags, |context| {
        let (key, buckets) = (context.get_raw(0), context.get_raw(1));
        let (Ok(key), Ok(buckets)) = (key.as_str(), buckets.as_blob()) else { return Ok(false) };
        let bucket = usize::from(bucket_of(key));
        Ok(buckets.get(bucket / 8).is_some_and(|bits| bits & (1 << (bucket % 8)) != 0))
    })
}

/// The digest of all rows of the file.
pub(super) fn digest(conn: &Connection, gc_floor: Ballot) -> rusqlite::Result<Digest> {
    let mut digest = Digest::new(gc_floor);
    for (sql, is_live) in [("SELECT key, upd FROM kv", true), ("SELECT key, upd FROM tombstone", false)] {
        let mut statement = conn.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            // What is no key can be read by nobody, so it is not compared either.
            let Ok(key) = row.get_ref(0)?.as_str() else { continue };
            digest.add(bucket_of(key), Sum::above(gc_floor, key, version(row.get_ref(1)?), is_live));
        }
    }
    Ok(digest)
}

/// That of the live rows of versions up to `upto`.
pub(super) fn digest_of_live(conn: &Connection, gc_floor: Ballot, upto: Ballot) -> rusqlite::Result<Digest> {
    let mut digest = Digest::new(gc_floor);
    let mut statement = conn.prepare_cached("SELECT key, upd FROM kv WHERE upd <= ?1")?;
    let mut rows = statement.query([upto.0])?;
    while let Some(row) = rows.next()? {
        let Ok(key) = row.get_ref(0)?.as_str() else { continue };
        digest.add(bucket_of(key), Sum::of(key, version(row.get_ref(1)?), true));
    }
    Ok(digest)
}

/// Whether both tables of rows have numbers for them.
pub(super) fn has_rowids(conn: &Connection) -> rusqlite::Result<bool> {
    let count = "SELECT count(*) FROM pragma_table_list \
        WHERE schema = 'main' AND name COLLATE NOCASE IN ('kv', 'tombstone') AND type = 'table' AND wr = 0";
    conn.query_row(count, [], |row| Ok(row.get::<_, i64>(0)? == 2))
}

type Pairs = Vec<(Key, Ballot)>;

/// The pairs of these buckets among `limit` rows as they lie in the file, from the row `from` on; and where to go on.
pub(super) fn lying(
    conn: &Connection,
    table: Table,
    from: i64,
    buckets: &Buckets,
    limit: usize,
) -> rusqlite::Result<(Pairs, Option<i64>)> {
    let mut statement = conn.prepare_cached(match table {
        Table::Live => "SELECT rowid, key, upd FROM kv WHERE rowid >= ?1 ORDER BY rowid LIMIT ?2",
        Table::Dead => "SELECT rowid, key, upd FROM tombstone WHERE rowid >= ?1 ORDER BY rowid LIMIT ?2",
    })?;
    let mut rows = statement.query((from, i64::try_from(limit).unwrap_or(i64::MAX)))?;
    let (mut pairs, mut seen, mut last) = (Vec::new(), 0, i64::MIN);
    while let Some(row) = rows.next()? {
        (seen, last) = (seen + 1, row.get(0)?);
        // What is no key can be read by nobody, so it is not compared either.
        let Ok(key) = row.get_ref(1)?.as_str() else { continue };
        if buckets.contains(bucket_of(key))
            && let Ok(key) = Key::parse_bytes(key.as_bytes(), crate::types::KEY_BYTES_LIMIT)
        {
            pairs.push((key, version(row.get_ref(2)?)));
        }
    }
    Ok((pairs, last.checked_add(1).filter(|_| seen == limit)))
}

/// Up to `limit` keys after `after` that have a ballot above their version, with it.
pub(super) fn raised(conn: &Connection, after: Option<&Key>, limit: usize) -> rusqlite::Result<Pairs> {
    let mut statement =
        conn.prepare_cached("SELECT key, ballot FROM outrigger_ballot WHERE key > ?1 ORDER BY key LIMIT ?2")?;
    let after = after.map_or("", Key::as_str);
    let mut rows = statement.query((after, i64::try_from(limit).unwrap_or(i64::MAX)))?;
    let mut raised = Vec::new();
    while let Some(row) = rows.next()? {
        if let Ok(key) = row.get_ref(0)?.as_str()
            && let Ok(key) = Key::parse_bytes(key.as_bytes(), crate::types::KEY_BYTES_LIMIT)
        {
            raised.push((key, version(row.get_ref(1)?)));
        }
    }
    Ok(raised)
}

/// What the deletion of `key` that is remembered adds to the digest.
pub(super) fn tombstone(conn: &Connection, key: &Key, gc_floor: Ballot) -> rusqlite::Result<Sum> {
    let mut get = conn.prepare_cached("SELECT upd FROM tombstone WHERE key = ?1")?;
    let upd = get.query_row([key.as_str()], |row| Ok(version(row.get_ref(0)?))).optional()?;
    Ok(upd.map_or_else(Sum::default, |upd| Sum::above(gc_floor, key.as_str(), upd, false)))
}

/// The bytes of the pages that hold something.
pub(super) fn used_bytes(conn: &Connection) -> rusqlite::Result<u64> {
    let one = |pragma: &str| conn.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let (pages, free) = (one("PRAGMA page_count")?, one("PRAGMA freelist_count")?);
    let bytes = (pages - free).saturating_mul(one("PRAGMA page_size")?);
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// The stored row of `key`, deletions included.
pub(super) fn point(conn: &Connection, key: &Key) -> rusqlite::Result<Option<StoredRow>> {
    let mut get = conn.prepare_cached(POINT)?;
    get.query_row([key.as_str()], |row| {
        let live: bool = row.get(0)?;
        let op = if live { Op::Put(value(row.get_ref(1)?)) } else { Op::Del };
        let upd = version(row.get_ref(2)?);
        let beside: Option<i64> = row.get(3)?;
        Ok(StoredRow { op, upd, ballot: upd.max(Ballot(beside.unwrap_or(0))) })
    })
    .optional()
}

/// The live row of `key`.
pub(super) fn live(conn: &Connection, key: &Key) -> rusqlite::Result<Option<Row>> {
    let row = |(bytes, upd): (&[u8], Ballot)| Row { value: Value::from(bytes.to_vec()), upd };
    let mut get = conn.prepare_cached(LIVE)?;
    show_live(&mut get, key, |shown| shown.map(row))
}

/// Shows the live row of `key` where it lies, to spare it a copy. `statement` is [`LIVE`].
pub(super) fn show_live<T>(
    statement: &mut Statement<'_>,
    key: &Key,
    show: impl FnOnce(Shown<'_>) -> T,
) -> rusqlite::Result<T> {
    let mut rows = statement.query([key.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(show(None)) };
    let upd = version(row.get_ref(1)?);
    Ok(match row.get_ref(0)? {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => show(Some((bytes, upd))),
        other => show(Some((value(other).as_bytes(), upd))),
    })
}

/// Another program may have stored text or numbers where we store bytes; they read as the text that SQLite shows.
fn value(stored: ValueRef<'_>) -> Value {
    match stored {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => Value::from(bytes.to_vec()),
        ValueRef::Integer(number) => Value::from(number.to_string().into_bytes()),
        ValueRef::Real(number) => Value::from(number.to_string().into_bytes()),
        ValueRef::Null => Value::default(),
    }
}

/// Another program may have stored a version that is no number; any write replaces it.
pub(super) fn version(stored: ValueRef<'_>) -> Ballot {
    stored.as_i64().map_or(Ballot::ZERO, Ballot)
}

/// A range of keys: from `start` on, before `end`.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) start: String,
    pub(super) end: Option<String>,
}

impl Range {
    /// What the overlay shows of these keys, at most `frames_max`; does `also` at the moment that it is of.
    pub(super) fn of(&self, eyes: Eyes, overlay: &Overlay, frames_max: usize, also: impl FnOnce()) -> Excerpt {
        overlay.excerpt(eyes, &self.start, self.end.as_deref(), frames_max, also)
    }

    /// The keys under `prefix` and after `after`.
    pub(super) fn new(prefix: &str, after: Option<&Key>) -> Self {
        let start = match after {
            // No key holds a NUL: this is the least text above `after`.
            Some(after) if after.as_str() >= prefix => format!("{after}\0"),
            _ => prefix.to_owned(),
        };
        Self { start, end: keys::prefix_end(prefix) }
    }

    /// In SQLite every text is below every blob: the empty one bounds what has no upper bound.
    fn parameters(&self, want: Want<'_>) -> Vec<SqlValue> {
        let end = self.end.clone().map_or(SqlValue::Blob(Vec::new()), SqlValue::Text);
        let mut parameters = vec![SqlValue::Text(self.start.clone()), end];
        if let Want::Pairs(buckets) = want {
            parameters.push(SqlValue::Blob(buckets.to_bits()));
        }
        parameters
    }
}

/// Where a scan ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// At the end of the range, or where the receiver broke it off.
    Whole,
    /// After this key: the excerpt of the overlay went no further.
    Excerpt(Key),
}

/// A snapshot of a shard, open for as long as it lives.
pub(super) struct Snapshot<'a> {
    conn: rusqlite::Transaction<'a>,
    excerpt: Excerpt,
    gc_floor: Ballot,
    path: &'a Path,
}

impl<'a> Snapshot<'a> {
    /// Opens one that shows what `excerpt` copies from the overlay, and the file as it was at that very moment.
    pub(super) fn open(
        conn: &'a Connection,
        path: &'a Path,
        mut excerpt: impl FnMut() -> Excerpt,
    ) -> Result<Self, Error> {
        for _ in 0..SNAPSHOT_TRIES_MAX {
            let excerpt = excerpt();
            let begin = || {
                let tx = conn.unchecked_transaction()?;
                let batch = schema::meta(&tx, "batch")?;
                let gc_floor = Ballot(schema::meta(&tx, "gc_floor")?);
                Ok((tx, u64::try_from(batch).unwrap_or(0), gc_floor))
            };
            let (tx, batch, gc_floor) = begin().map_err(Error::sqlite("reading", path))?;
            if batch <= excerpt.batch {
                return Ok(Self { conn: tx, excerpt, gc_floor, path });
            }
        }
        Err(Rejection::Busy(format!("{}: no steady snapshot in {SNAPSHOT_TRIES_MAX} tries", path.display())).into())
    }

    /// Hands the rows of `range`, which the excerpt must be of, to `emit` in key order until it breaks off.
    pub(super) fn scan(
        &self,
        range: &Range,
        want: Want<'_>,
        mut emit: impl FnMut(Item) -> ControlFlow<()>,
    ) -> Result<End, Error> {
        let sql = match want {
            Want::Rows => ROWS,
            Want::Keys => KEYS,
            Want::Pairs(_) => PAIRS,
        };
        let failed = || Error::sqlite("listing", self.path);
        let mut statement = self.conn.prepare_cached(sql).map_err(failed())?;
        let mut rows = statement.query(params_from_iter(range.parameters(want))).map_err(failed())?;
        let mut next = || match rows.next().map_err(failed())? {
            Some(row) => self.item(row, want).map(Some),
            None => Ok(None),
        };
        let mut frames = self.excerpt.frames.iter().peekable();
        let mut file = next()?;
        loop {
            let order = match (&file, frames.peek()) {
                (_, None) if !self.excerpt.complete => {
                    // What the file holds further on may be hidden by frames that the excerpt left out.
                    let last = self.excerpt.frames.last().map(|(key, _)| key.clone());
                    return Ok(last.map_or(End::Whole, End::Excerpt));
                }
                (None, None) => return Ok(End::Whole),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(item), Some((key, _))) => item.key.cmp(key),
            };
            let item = if order == Ordering::Less {
                let item = file.take();
                file = next()?;
                item
            } else {
                let stored = if order == Ordering::Equal { file.take() } else { None };
                let Some((key, pending)) = frames.next() else { continue };
                if !want.holds(key) {
                    continue;
                }
                if stored.is_some() {
                    file = next()?;
                }
                // Without its tombstone a row of the file is gone from a scan for pairs: one key, one item.
                while matches!(want, Want::Pairs(_)) && file.as_ref().is_some_and(|item| item.key == *key) {
                    file = next()?;
                }
                if self.is_above_file(key, pending)? { of_pending(key, pending, want) } else { stored }
            };
            if let Some(item) = item
                && emit(item).is_break()
            {
                return Ok(End::Whole);
            }
        }
    }

    fn is_above_file(&self, key: &Key, pending: &Arc<Pending>) -> Result<bool, Error> {
        if pending.is_above_file() {
            return Ok(true);
        }
        let stored = point(&self.conn, key).map_err(Error::sqlite("reading", self.path))?;
        let above = supersedes(pending.ballot, pending.upd, stored.as_ref(), self.gc_floor);
        if above {
            pending.set_above_file();
        }
        Ok(above)
    }

    fn item(&self, row: &rusqlite::Row<'_>, want: Want<'_>) -> Result<Item, Error> {
        let failed = || Error::sqlite("listing", self.path);
        let key = row.get_ref(0).map_err(failed())?;
        let key = key.as_bytes().ok().map(|bytes| Key::parse_bytes(bytes, crate::types::KEY_BYTES_LIMIT));
        let key = key
            .unwrap_or(Err(crate::types::InvalidInput::KeyNotUtf8))
            .map_err(|why| Error::UnreadableRow { path: self.path.to_owned(), why: why.to_string() })?;
        let upd = version(row.get_ref(1).map_err(failed())?);
        let value = (want == Want::Rows).then(|| row.get_ref(2).map(value)).transpose().map_err(failed())?;
        Ok(Item { key, value, upd })
    }

    /// Live keys and the highest version of any row.
    pub(super) fn count(&self) -> Result<(u64, Ballot), Error> {
        let failed = || Error::sqlite("counting the rows of", self.path);
        let one = |sql: &str| self.conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed());
        let mut keys = one("SELECT count(*) FROM kv")?;
        let mut last =
            one("SELECT max(coalesce((SELECT max(upd) FROM kv), 0), coalesce((SELECT max(upd) FROM tombstone), 0))")?;
        for (key, pending) in &self.excerpt.frames {
            let stored = point(&self.conn, key).map_err(failed())?;
            let is_newest = || supersedes(pending.ballot, pending.upd, stored.as_ref(), self.gc_floor);
            if pending.is_above_file() || is_newest() {
                let was_live = stored.is_some_and(|row| row.op != Op::Del);
                keys += i64::from(pending.op != Op::Del) - i64::from(was_live);
                last = last.max(pending.upd.0);
            }
        }
        Ok((u64::try_from(keys).unwrap_or(0), Ballot(last)))
    }
}

fn of_pending(key: &Key, pending: &Pending, want: Want<'_>) -> Option<Item> {
    let value = pending.op.value().cloned();
    match want {
        Want::Pairs(_) => Some(Item { key: key.clone(), value: None, upd: pending.upd }),
        Want::Rows => value.map(|value| Item { key: key.clone(), value: Some(value), upd: pending.upd }),
        Want::Keys => value.map(|_| Item { key: key.clone(), value: None, upd: pending.upd }),
    }
}
