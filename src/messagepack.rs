//! MessagePack from outside: read with a bound on its nesting. The reader recurses, and by itself goes 1024 deep, which is
//! more than a thread's stack bears.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};

/// How deep what is read may be nested. What this program writes takes less than half of it.
const DEPTH_MAX: usize = 32;

/// Reads one value; bytes after it are left alone.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut reader)
}

/// Reads a list of `MAX` entries at most, for `#[serde(deserialize_with)]`: where entries take more room in memory than on
/// the wire, the size of a message alone does not bound what it becomes.
pub(crate) fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    reader: D,
) -> Result<Vec<T>, D::Error> {
    struct AtMost<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for AtMost<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut read = Vec::new();
            while let Some(entry) = list.next_element()? {
                if read.len() == MAX {
                    return Err(A::Error::custom(format_args!("a list of more than {MAX}")));
                }
                read.push(entry);
            }
            Ok(read)
        }
    }

    reader.deserialize_seq(AtMost::<T, MAX>(PhantomData))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[test]
    fn a_list_longer_than_it_may_be_is_refused() {
        #[derive(Debug, Deserialize)]
        struct Three(#[serde(deserialize_with = "at_most::<_, _, 3>")] Vec<u8>);
        assert_eq!(decode::<Three>(b"\x93\x01\x02\x03").unwrap().0, [1, 2, 3]);
        assert!(decode::<Three>(b"\x94\x01\x02\x03\x04").unwrap_err().to_string().contains("more than 3"));
    }

    /// A few thousand bytes of brackets in a field that nobody reads ended the process.
    #[test]
    fn deep_nesting_is_refused() {
        #[derive(Debug, Deserialize)]
        struct Empty {}
        let nested = |depth: usize| [b"\x81\xa1x".as_slice(), &vec![0x91; depth], b"\xc0"].concat();
        assert!(decode::<Empty>(&nested(DEPTH_MAX / 2)).is_ok());
        assert!(decode::<Empty>(&nested(10_000)).is_err());
    }
}
