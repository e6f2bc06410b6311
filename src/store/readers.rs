//! A shard's reading connections: opened as needed, bounded, kept for the next reader.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::error::Error;
use super::schema;
use crate::disk::Disk;

/// The most connections that read one shard at a time; further readers wait for one.
pub(super) const READERS_MAX: usize = 4;
/// How many of them lists may hold: the rest stays free for what a list's callback reads.
pub(super) const LIST_READERS_MAX: usize = 2;

#[derive(Debug)]
pub(super) struct Readers {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    pool: Mutex<Pool>,
    returned: Condvar,
    pub(super) lists: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Connection>,
    /// Idle and lent ones.
    open: usize,
    closed: bool,
}

/// A connection on loan.
pub(super) struct Reader<'a> {
    readers: &'a Readers,
    conn: Option<Connection>,
}

impl Readers {
    pub(super) fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        let lists = Arc::new(Semaphore::new(LIST_READERS_MAX));
        Self { disk, path, pool: Mutex::default(), returned: Condvar::new(), lists }
    }

    /// Lends a connection; blocks only while [`READERS_MAX`] are lent.
    pub(super) fn lend(&self) -> Result<Reader<'_>, Error> {
        let mut pool = self.pool.lock();
        loop {
            if pool.closed {
                return Err(Error::Closed);
            }
            if let Some(conn) = pool.idle.pop() {
                return Ok(Reader { readers: self, conn: Some(conn) });
            }
            if pool.open < READERS_MAX {
                pool.open += 1;
                break;
            }
            self.returned.wait(&mut pool);
        }
        drop(pool);
        let mut reader = Reader { readers: self, conn: None };
        reader.conn = Some(schema::open_reader(&*self.disk, &self.path)?);
        Ok(reader)
    }

    /// Closes idle connections now and lent ones on their return.
    pub(super) fn close(&self) {
        let mut pool = self.pool.lock();
        pool.closed = true;
        let idle = std::mem::take(&mut pool.idle);
        drop(pool);
        drop(idle);
        self.returned.notify_all();
    }
}

impl Reader<'_> {
    pub(super) fn run<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        self.conn.as_ref().map_or(Err(Error::Closed), read)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.pool.lock();
        match self.conn.take() {
            Some(conn) if !pool.closed && conn.is_autocommit() => pool.idle.push(conn),
            _ => pool.open -= 1,
        }
        drop(pool);
        self.readers.returned.notify_one();
    }
}
