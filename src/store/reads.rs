//! Many point reads in a row at the cost of little more than one: one connection, one statement, one read transaction.
//!
//! A transaction shows the file as it was at its first read, and the overlay loses what the file has got since. So
//! whoever reads on in an old transaction must know that the overlay has lost nothing meanwhile: it numbers the batches
//! that have left it, and a transaction of another number is begun anew. A read is thus never older than its call.

use rusqlite::{CachedStatement, Connection};

use super::error::Error;
use super::overlay::Eyes;
use super::queries;
use super::shard::Inner;
use crate::types::{Ballot, Key};

/// Where a row is shown: its value and its version.
pub type Shown<'a> = Option<(&'a [u8], Ballot)>;

/// A way to read many keys of one shard; see [`super::Shard::reading`].
pub struct Reads<'a> {
    shard: &'a Inner,
    conn: &'a Connection,
    live: CachedStatement<'a>,
    began: Began,
}

/// What of the file later reads may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Began {
    /// Nothing was read yet: a transaction is not worth while for one read.
    Nothing,
    /// One read without a transaction.
    OneRead,
    /// A transaction, begun when so many batches had left the overlay.
    Transaction(u64),
}

impl<'a> Reads<'a> {
    pub(super) fn new(shard: &'a Inner, conn: &'a Connection) -> Result<Self, Error> {
        let live = conn.prepare_cached(queries::LIVE).map_err(Error::sqlite("reading", &shard.path))?;
        Ok(Self { shard, conn, live, began: Began::Nothing })
    }

    /// Shows `key`'s live row, if it has one, as [`super::Shard::read`] would return it at this moment.
    pub fn get<T>(&mut self, key: &Key, show: impl FnOnce(Shown<'_>) -> T) -> Result<T, Error> {
        if !self.shard.state.is_settled(key) {
            return Err(Error::Unsettled);
        }
        let (pending, departed) = self.shard.state.overlay.look(Eyes::Client, key);
        let begun = self.begin(departed).map_err(Error::sqlite("reading", &self.shard.path));
        self.shard.noticed(begun)?;
        if let Some(pending) = pending {
            let stored = || queries::point(self.conn, key).map_err(Error::sqlite("reading", &self.shard.path));
            let row = self.shard.noticed(self.shard.newest_of(&pending, stored))?;
            let row = row.and_then(super::StoredRow::into_row);
            return Ok(show(row.as_ref().map(|row| (row.value.as_bytes(), row.upd))));
        }
        let shown = queries::show_live(&mut self.live, key, show);
        self.shard.noticed(shown.map_err(Error::sqlite("reading", &self.shard.path)))
    }

    /// Makes sure that what is read next is not older than `departed`.
    fn begin(&mut self, departed: u64) -> rusqlite::Result<()> {
        match self.began {
            Began::Nothing => self.began = Began::OneRead,
            Began::Transaction(at) if at == departed => {}
            Began::OneRead | Began::Transaction(_) => {
                self.end()?;
                self.conn.prepare_cached("BEGIN")?.execute([])?;
                self.began = Began::Transaction(departed);
            }
        }
        Ok(())
    }

    fn end(&mut self) -> rusqlite::Result<()> {
        if let Began::Transaction(_) = std::mem::replace(&mut self.began, Began::OneRead) {
            self.conn.prepare_cached("COMMIT")?.execute([])?;
        }
        Ok(())
    }
}

impl Drop for Reads<'_> {
    fn drop(&mut self) {
        // A connection whose transaction does not end is not lent again.
        let _ = self.end();
    }
}
