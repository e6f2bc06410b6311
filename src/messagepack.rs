//! MessagePack from outside: read with a bound on its nesting. The reader recurses, and by itself goes 1024 deep, which is
//! more than a thread's stack bears.

use serde::Deserialize;

/// How deep what is read may be nested. What this program writes takes less than half of it.
const DEPTH_MAX: usize = 32;

/// Reads one value; bytes after it are left alone.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut reader)
}

#[cfg(test)]
mod tests {
    use super::*;

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
