//! The words every room shares: names, keys, values, versions.
//!
//! Each is parsed once, at the edge, and cannot hold anything invalid afterwards. Cloning one is cheap: all are
//! numbers or reference-counted.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The organisation that stands for "none": the directory name of the empty org.
pub const SENTINEL_ORG: &str = "_";
/// The longest org, namespace or node name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The longest key any configuration may allow, in bytes.
pub const KEY_BYTES_LIMIT: usize = 64 * 1024;
/// The largest value any configuration may allow, in bytes.
pub const VALUE_BYTES_LIMIT: usize = 64 * 1024 * 1024;

/// Why a name, key or value was refused. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInput {
    /// An org, namespace or node name that could not be a file name.
    #[error(
        "{what} {name:?} is not a name: want 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ @ - and a letter or digit first"
    )]
    Name {
        /// Which kind of name was parsed.
        what: &'static str,
        /// What was given, shortened to what a log line can bear.
        name: String,
    },
    /// The org of what the cluster keeps of itself.
    #[error("org {SYSTEM_ORG:?} is the cluster's own; choose another name")]
    Reserved,
    /// A key of no bytes.
    #[error("the key is empty")]
    EmptyKey,
    /// Keys are text: the shard's column is `TEXT`.
    #[error("the key is not valid UTF-8")]
    KeyNotUtf8,
    /// The key holds a NUL, at which SQLite's own text functions would cut it.
    #[error("the key holds a NUL byte")]
    KeyHasNul,
    /// The key is longer than `key_size_max`.
    #[error("the key has {bytes} bytes, more than key_size_max = {max}")]
    KeyTooLarge {
        /// Size given, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The value is larger than `value_size_max`.
    #[error("the value has {bytes} bytes, more than value_size_max = {max}")]
    ValueTooLarge {
        /// Size given, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max: usize,
    },
}

impl InvalidInput {
    /// True where the input was well-formed and only too large.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::KeyTooLarge { .. } | Self::ValueTooLarge { .. })
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= NAME_BYTES_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'-'))
}

fn parse_name(what: &'static str, name: &str) -> Result<Arc<str>, InvalidInput> {
    if is_name(name) {
        return Ok(Arc::from(name));
    }
    Err(InvalidInput::Name { what, name: name.chars().take(NAME_BYTES_MAX + 1).collect() })
}

macro_rules! text_type {
    ($name:ident, $read:ident) => {
        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0.as_ref().to_owned()
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidInput;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::$read(&text)
            }
        }
    };
}

/// An organisation: the first level of tenancy, a directory on disk. The empty name is the sentinel `_`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Org(Arc<str>);
text_type!(Org, of_any);

impl Org {
    /// Parses a name that a client gave; `""` and `"_"` both mean the sentinel org.
    pub fn parse(name: &str) -> Result<Self, InvalidInput> {
        if name == SYSTEM_ORG {
            return Err(InvalidInput::Reserved);
        }
        Self::of_any(name)
    }

    /// Parses a name that a node gave, or a directory: it may be that of what the cluster keeps of itself.
    pub fn of_any(name: &str) -> Result<Self, InvalidInput> {
        if name.is_empty() || name == SENTINEL_ORG {
            return Ok(Self::sentinel());
        }
        parse_name("org", name).map(Self)
    }

    /// The org of those who name none.
    #[must_use]
    pub fn sentinel() -> Self {
        Self(Arc::from(SENTINEL_ORG))
    }
}

/// A namespace: the second level of tenancy, one SQLite file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(Arc<str>);
text_type!(Namespace, parse);

impl Namespace {
    /// Parses a name.
    pub fn parse(name: &str) -> Result<Self, InvalidInput> {
        parse_name("namespace", name).map(Self)
    }

    /// The namespace of those who name none: `default`.
    #[must_use]
    pub fn default_name() -> Self {
        Self(Arc::from("default"))
    }
}

/// A node's name, unique in its cluster; in Kubernetes the pod's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);
text_type!(NodeId, parse);

impl NodeId {
    /// Parses a name.
    pub fn parse(name: &str) -> Result<Self, InvalidInput> {
        parse_name("node", name).map(Self)
    }
}

/// One (org, namespace): the unit of storage.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId {
    /// The org.
    #[serde(rename = "o")]
    pub org: Org,
    /// The namespace within it.
    #[serde(rename = "n")]
    pub namespace: Namespace,
}

impl ShardId {
    /// Parses both names; an empty org is the sentinel.
    pub fn parse(org: &str, namespace: &str) -> Result<Self, InvalidInput> {
        Ok(Self { org: Org::parse(org)?, namespace: Namespace::parse(namespace)? })
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.namespace)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key inside a shard: non-empty UTF-8 without NUL. Ordered by bytes, as SQLite's `BINARY` collation orders `TEXT`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(Arc<str>);
text_type!(Key, parse);

impl Key {
    /// Checks everything but the configured size.
    pub fn parse(key: &str) -> Result<Self, InvalidInput> {
        Self::parse_bytes(key.as_bytes(), KEY_BYTES_LIMIT)
    }

    /// Where the system shard has the cluster's configuration.
    #[must_use]
    pub fn configuration() -> Self {
        Self(Arc::from("configuration"))
    }

    /// Checks raw bytes from a client against `max`, the configured `key_size_max` in bytes.
    pub fn parse_bytes(key: &[u8], max: usize) -> Result<Self, InvalidInput> {
        if key.is_empty() {
            return Err(InvalidInput::EmptyKey);
        }
        if key.len() > max {
            return Err(InvalidInput::KeyTooLarge { bytes: key.len(), max });
        }
        let text = std::str::from_utf8(key).map_err(|_| InvalidInput::KeyNotUtf8)?;
        if text.contains('\0') {
            return Err(InvalidInput::KeyHasNul);
        }
        Ok(Self(Arc::from(text)))
    }
}

/// A value: bytes, never looked into except by the read-modify-write commands.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Value(Bytes);

impl Value {
    /// Checks raw bytes from a client against `max`, the configured `value_size_max` in bytes.
    pub fn parse(value: Bytes, max: usize) -> Result<Self, InvalidInput> {
        if value.len() > max {
            return Err(InvalidInput::ValueTooLarge { bytes: value.len(), max });
        }
        Ok(Self(value))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, shared.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::from(bytes))
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= 64 {
            return write!(f, "b\"{}\"", self.0.escape_ascii());
        }
        write!(f, "<{} bytes>", self.0.len())
    }
}

/// The org of what the cluster keeps of itself. No client reads or writes it.
pub const SYSTEM_ORG: &str = "outrigger.system";
/// Its only namespace.
const SYSTEM_NAMESPACE: &str = "cluster";

impl ShardId {
    /// The shard of what the cluster keeps of itself: its configuration.
    #[must_use]
    pub fn system() -> Self {
        Self { org: Org(SYSTEM_ORG.into()), namespace: Namespace(SYSTEM_NAMESPACE.into()) }
    }

    /// True for a shard that no client may touch.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.org.as_str() == SYSTEM_ORG
    }
}

/// How many low bits of a ballot name its proposer's slot.
pub const SLOT_BITS: u32 = 12;
const SLOT_MASK: i64 = (1 << SLOT_BITS) - 1;

/// A proposer's number in its cluster, 0..4094: the low bits of every ballot it issues. 4095 is nobody's; see
/// [`Ballot::overwritten`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(u16);

impl Slot {
    /// A slot, if it fits.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (i64::from(number) < SLOT_MASK).then_some(Self(number))
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// The number, as what names a replica among others.
    #[must_use]
    pub fn replica(self) -> usize {
        usize::from(self.0)
    }
}

/// Orders the rounds of one key: Unix nanoseconds of the hybrid clock, the low 12 bits (4.096 µs) replaced by the
/// proposer's [`Slot`], so that no two proposers ever issue the same. A value's version (`upd`) is the ballot of the
/// round that first wrote it, so the two share this type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ballot(pub i64);

impl Ballot {
    /// Below every ballot that a proposer issues: the base of a key that was never written.
    pub const ZERO: Self = Self(0);

    /// The ballot at `nanos` (Unix time), for `slot`.
    #[must_use]
    pub fn at(nanos: i64, slot: Slot) -> Self {
        Self((nanos & !SLOT_MASK) | i64::from(slot.0))
    }

    /// The clock part, in Unix nanoseconds, rounded down to the 4.096 µs that ballots resolve.
    #[must_use]
    pub fn nanos(self) -> i64 {
        self.0 & !SLOT_MASK
    }

    /// The version of what was overwritten within the round of this ballot, so that no row ever has it: just before
    /// its tick, and nobody's.
    #[must_use]
    pub fn overwritten(self) -> Self {
        Self(self.nanos() - 1)
    }

    /// Who issued it.
    #[must_use]
    pub fn slot(self) -> Slot {
        Slot(u16::try_from(self.0 & SLOT_MASK).unwrap_or_default())
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names one data directory for its whole life: random, made with it. A node whose disk was lost or rolled back is,
/// to the protocol, another node; this is how its peers notice. Written as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorageId(pub u64);

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<StorageId> for String {
    fn from(id: StorageId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for StorageId {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        for good in ["a", "A9", "team@example.com", "x-1_y.z", &"n".repeat(128)] {
            assert!(Namespace::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "-a", "_", "a b", "é", "a\0", &"n".repeat(129)] {
            assert!(Namespace::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Org::parse("").unwrap(), Org::parse("_").unwrap());
    }

    #[test]
    fn ballots_are_unique_by_slot_and_ordered_by_time() {
        let [a, b] = [1, 2].map(|n| Slot::new(n).unwrap());
        let now = 1_700_000_000_123_456_789;
        assert_ne!(Ballot::at(now, a), Ballot::at(now, b));
        assert!(Ballot::at(now, b) < Ballot::at(now + 4096, a));
        assert_eq!(Ballot::at(now, b).slot(), b);
        assert!(now - Ballot::at(now, b).nanos() < 4096);
        assert!(Slot::new(4095).is_none());
        let overwritten = Ballot::at(now, a).overwritten();
        assert!(
            overwritten < Ballot::at(now, a) && Slot::new(u16::try_from(overwritten.0 & SLOT_MASK).unwrap()).is_none()
        );
    }

    #[test]
    fn keys_are_text_of_bounded_size() {
        assert!(Key::parse_bytes(b"\xc3\xbf", 16).is_ok());
        assert_eq!(Key::parse_bytes(b"\xff", 16), Err(InvalidInput::KeyNotUtf8));
        assert_eq!(Key::parse_bytes(b"", 16), Err(InvalidInput::EmptyKey));
        assert_eq!(Key::parse_bytes(b"a\0b", 16), Err(InvalidInput::KeyHasNul));
        assert!(Key::parse_bytes(&[b'k'; 17], 16).unwrap_err().is_too_large());
    }
}
