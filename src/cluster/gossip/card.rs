//! What a node says of itself, as the keys and values that gossip carries.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::cluster::memory::Figures;
use crate::store::digest::Root;
use crate::types::{Ballot, Slot, StorageId};

/// What a node says of itself. Small on purpose: a large state delays the return of a node that was away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Where others reach it.
    pub address: SocketAddr,
    /// Its data directory.
    pub storage_id: StorageId,
    /// Its proposer number; none as long as it is no member.
    pub slot: Option<Slot>,
    /// The epoch that it has installed.
    pub epoch: u64,
    /// A random number of its process; see [`Figures::run`].
    pub run: u64,
    /// Its clock ceiling, as durable on its disk.
    pub ceiling: Ballot,
    /// Its journal position, as durable on its disk.
    pub position: u64,
    /// The newest protocol version that it speaks.
    pub protocol: u16,
    /// How often its data directory was opened.
    pub boot: u64,
    /// Shards that it holds open.
    pub open_shards: u64,
    /// Accepted frames that it does not yet know to be chosen.
    pub pending_frames: u64,
    /// Committed frames that wait for their shard file.
    pub lag_frames: u64,
    /// Whether it serves.
    pub ready: bool,
    /// All its rows in one number; none where it is not known, or told in another version's way.
    pub root: Option<Root>,
}

/// Says that the node is on its way out, by its own will.
const LEFT: &str = "left";
/// All rows in one number, in hexadecimal digits after what names the way in which it comes about; a card may lack it.
const ROOT: &str = "root";
const ROOT_FORMAT: &str = "1-";
/// Every key a complete card has.
const KEYS: [&str; 13] = [
    "address",
    "storage_id",
    "slot",
    "epoch",
    "run",
    "ceiling",
    "position",
    "protocol",
    "boot",
    "open_shards",
    "pending_frames",
    "lag_frames",
    "ready",
];

/// What a card's keys and values amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read {
    /// A card, and whether its node has said that it leaves.
    Card(Box<Card>, bool),
    /// Some keys have not arrived yet.
    Incomplete,
    /// This key has a value that no card has.
    Malformed(&'static str),
}

impl Card {
    /// What it says of its node's disk.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures { storage_id: self.storage_id, run: self.run, ceiling: self.ceiling, position: self.position }
    }

    /// The card as keys and values, all keys always, so that setting them all over again is harmless.
    pub(super) fn pairs(&self, left: bool) -> Vec<(&'static str, String)> {
        let values = [
            self.address.to_string(),
            self.storage_id.to_string(),
            self.slot.map_or_else(String::new, |slot| slot.number().to_string()),
            self.epoch.to_string(),
            self.run.to_string(),
            self.ceiling.to_string(),
            self.position.to_string(),
            self.protocol.to_string(),
            self.boot.to_string(),
            self.open_shards.to_string(),
            self.pending_frames.to_string(),
            self.lag_frames.to_string(),
            self.ready.to_string(),
        ];
        let mut pairs: Vec<_> = KEYS.into_iter().zip(values).collect();
        let root = self.root.map_or_else(String::new, |root| format!("{ROOT_FORMAT}{:016x}", root.0));
        pairs.push((ROOT, root));
        if left {
            pairs.push((LEFT, true.to_string()));
        }
        pairs
    }

    /// Reads a card; keys of later versions are skipped.
    pub(super) fn read<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Read {
        let pairs: BTreeMap<&str, &str> = pairs.collect();
        if KEYS.iter().any(|key| !pairs.contains_key(key)) {
            return Read::Incomplete;
        }
        match Self::parse(&pairs) {
            Ok(card) => Read::Card(Box::new(card), pairs.contains_key(LEFT)),
            Err(key) => Read::Malformed(key),
        }
    }

    fn parse(pairs: &BTreeMap<&str, &str>) -> Result<Self, &'static str> {
        fn field<T: std::str::FromStr>(pairs: &BTreeMap<&str, &str>, key: &'static str) -> Result<T, &'static str> {
            pairs.get(key).and_then(|value| value.parse().ok()).ok_or(key)
        }
        let storage_id: String = field(pairs, "storage_id")?;
        Ok(Self {
            address: field(pairs, "address")?,
            storage_id: StorageId::try_from(storage_id).map_err(|_| "storage_id")?,
            slot: match pairs.get("slot") {
                Some(&"") => None,
                _ => Some(Slot::new(field(pairs, "slot")?).ok_or("slot")?),
            },
            epoch: field(pairs, "epoch")?,
            run: field(pairs, "run")?,
            ceiling: Ballot(field(pairs, "ceiling")?),
            position: field(pairs, "position")?,
            protocol: field(pairs, "protocol")?,
            boot: field(pairs, "boot")?,
            open_shards: field(pairs, "open_shards")?,
            pending_frames: field(pairs, "pending_frames")?,
            lag_frames: field(pairs, "lag_frames")?,
            ready: field(pairs, "ready")?,
            root: pairs.get(ROOT).and_then(|root| root.strip_prefix(ROOT_FORMAT)).and_then(parse_root),
        })
    }
}

fn parse_root(digits: &str) -> Option<Root> {
    u64::from_str_radix(digits, 16).ok().map(Root)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn card() -> Card {
        Card {
            address: "[fd00::7]:7117".parse().unwrap(),
            storage_id: StorageId(0xfeed),
            slot: Slot::new(4094),
            epoch: 3,
            run: u64::MAX,
            ceiling: Ballot(i64::MAX),
            position: 8,
            protocol: 1,
            boot: u64::MAX,
            open_shards: 4,
            pending_frames: 5,
            lag_frames: 6,
            ready: true,
            root: Some(Root(0xbeef)),
        }
    }

    fn read(pairs: &[(&str, String)]) -> Read {
        Card::read(pairs.iter().map(|(key, value)| (*key, value.as_str())))
    }

    #[test]
    fn a_card_survives_the_way_through_text() {
        assert_eq!(read(&card().pairs(false)), Read::Card(Box::new(card()), false));
        assert_eq!(read(&card().pairs(true)), Read::Card(Box::new(card()), true));
    }

    #[test]
    fn keys_of_later_versions_are_skipped_and_missing_ones_waited_for() {
        let mut pairs = card().pairs(false);
        pairs.push(("colour", "sea".into()));
        assert_eq!(read(&pairs), Read::Card(Box::new(card()), false));
        for (missing, key) in KEYS.iter().enumerate() {
            let mut pairs = card().pairs(false);
            pairs.remove(missing);
            assert_eq!(read(&pairs), Read::Incomplete, "without {key}");
        }
    }

    #[test]
    fn a_root_that_is_missing_or_told_otherwise_is_not_known() {
        let rootless = Card { root: None, ..card() };
        assert_eq!(read(&rootless.pairs(false)), Read::Card(Box::new(rootless.clone()), false));
        for other in [None, Some(""), Some("2-00ff"), Some("1-xyz"), Some("00ff")] {
            let mut pairs = card().pairs(false);
            pairs.retain(|(key, _)| *key != ROOT);
            pairs.extend(other.map(|value| (ROOT, value.to_owned())));
            assert_eq!(read(&pairs), Read::Card(Box::new(rootless.clone()), false), "{other:?}");
        }
    }

    #[test]
    fn a_value_out_of_bounds_is_named() {
        for (at, bad) in ["nowhere", "xyz", "4096", "-1", "x", "high", "", "65536", "", "1.5", "-2", "many", "perhaps"]
            .iter()
            .enumerate()
        {
            let mut pairs = card().pairs(false);
            pairs[at].1 = (*bad).to_owned();
            assert_eq!(read(&pairs), Read::Malformed(KEYS[at]));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(at in 0..KEYS.len(), text in ".{0,40}") {
            let mut pairs = card().pairs(false);
            pairs[at].1 = text;
            let _ = read(&pairs);
        }
    }
}
