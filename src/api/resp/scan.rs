//! What a `SCAN` cursor stands for.
//!
//! Clients treat a cursor as an integer, and a pool may send the next `SCAN` over another connection; a key does not
//! fit into an integer. So the node remembers, for a bounded number of scans, which key each cursor goes on after.
//! A cursor is the hash of that place: asking again gives the same cursor and takes no further room.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::api::command::Address;

/// The most places remembered; beyond it the oldest is forgotten, and its cursor becomes invalid.
const CURSORS_MAX: usize = 4_096;
/// Cursors fit into the integers that JavaScript holds exactly.
const CURSOR_MASK: u64 = (1 << 48) - 1;

/// The places of all scans under way on this node.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    places: HashMap<u64, Address>,
    oldest: VecDeque<u64>,
}

impl Cursors {
    /// A cursor that stands for `place`; never 0, which stands for the beginning and the end.
    pub(super) fn remember(&mut self, place: Address) -> u64 {
        let mut hasher = DefaultHasher::new();
        place.hash(&mut hasher);
        let mut cursor = hasher.finish() & CURSOR_MASK;
        loop {
            match self.places.get(&cursor) {
                Some(there) if *there == place => return cursor,
                None if cursor != 0 => break,
                _ => cursor = (cursor + 1) & CURSOR_MASK,
            }
        }
        if self.oldest.len() >= CURSORS_MAX
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.places.remove(&oldest);
        }
        self.oldest.push_back(cursor);
        self.places.insert(cursor, place);
        cursor
    }

    /// What `cursor` stands for, if that is still known.
    pub(super) fn place(&self, cursor: u64) -> Option<&Address> {
        self.places.get(&cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Key, ShardId};

    fn place(n: usize) -> Address {
        Address { shard: ShardId::parse("_", "default").unwrap(), key: Key::parse(&format!("k{n}")).unwrap() }
    }

    #[test]
    fn a_place_keeps_its_cursor_and_old_ones_are_forgotten() {
        let mut cursors = Cursors::default();
        let first = cursors.remember(place(0));
        assert_eq!(cursors.remember(place(0)), first);
        assert_eq!(cursors.place(first), Some(&place(0)));
        for n in 1..=CURSORS_MAX {
            let cursor = cursors.remember(place(n));
            assert!(cursor != 0 && cursor <= CURSOR_MASK);
            assert_eq!(cursors.place(cursor), Some(&place(n)));
        }
        assert_eq!(cursors.place(first), None);
        assert_eq!((cursors.places.len(), cursors.oldest.len()), (CURSORS_MAX, CURSORS_MAX));
    }
}
