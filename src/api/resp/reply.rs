//! Writes replies, in the words of RESP2 or RESP3, straight into a connection's output.

use std::fmt::Display;
use std::io::Write as _;

use bytes::{BufMut, BytesMut};

use crate::api::error::ApiError;

/// Which version of the protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Version {
    /// What a connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// Appends replies to a buffer.
pub(super) struct Reply<'a> {
    out: &'a mut BytesMut,
    version: Version,
}

impl<'a> Reply<'a> {
    pub(super) fn new(out: &'a mut BytesMut, version: Version) -> Self {
        Self { out, version }
    }

    fn line(&mut self, kind: u8, rest: impl Display) {
        self.out.put_u8(kind);
        // Writing into a growing buffer cannot fail.
        let _ = write!((&mut *self.out).writer(), "{rest}\r\n");
    }

    fn length(&mut self, kind: u8, length: usize) {
        self.integer_line(kind, i64::try_from(length).unwrap_or(i64::MAX));
    }

    /// One line with a number: the most frequent thing written, so without the formatting machinery.
    fn integer_line(&mut self, kind: u8, number: i64) {
        let mut digits = [0_u8; 20];
        let mut rest = number.unsigned_abs();
        let mut used = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
            used += 1;
            if rest == 0 {
                break;
            }
        }
        self.out.reserve(used + 4);
        self.out.put_u8(kind);
        if number < 0 {
            self.out.put_u8(b'-');
        }
        self.out.put_slice(digits.get(digits.len() - used..).unwrap_or_default());
        self.out.put_slice(b"\r\n");
    }

    /// `+OK`
    pub(super) fn ok(&mut self) {
        self.out.put_slice(b"+OK\r\n");
    }

    /// `+text`: one line that the server chose.
    pub(super) fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// `-line`: an error that begins with its word; line ends in it become blanks.
    pub(super) fn error(&mut self, line: &str) {
        if line.contains(['\r', '\n']) {
            return self.line(b'-', line.replace(['\r', '\n'], " "));
        }
        self.line(b'-', line);
    }

    /// What the table says of `error`.
    pub(super) fn failure(&mut self, error: &ApiError) {
        self.line(b'-', error.resp_line());
    }

    pub(super) fn integer(&mut self, number: i64) {
        self.integer_line(b':', number);
    }

    /// A count.
    pub(super) fn count(&mut self, number: usize) {
        self.length(b':', number);
    }

    pub(super) fn bulk(&mut self, bytes: &[u8]) {
        self.out.reserve(bytes.len() + 32);
        self.length(b'$', bytes.len());
        self.out.put_slice(bytes);
        self.out.put_slice(b"\r\n");
    }

    /// No value.
    pub(super) fn nil(&mut self) {
        self.out.put_slice(match self.version {
            Version::Resp2 => b"$-1\r\n",
            Version::Resp3 => b"_\r\n",
        });
    }

    /// A value, or none.
    pub(super) fn bulk_or_nil(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.nil(),
        }
    }

    /// Text for people: told apart from other bulk strings in RESP3.
    pub(super) fn verbatim(&mut self, text: &str) {
        match self.version {
            Version::Resp2 => self.bulk(text.as_bytes()),
            Version::Resp3 => {
                self.length(b'=', text.len() + 4);
                self.out.put_slice(b"txt:");
                self.out.put_slice(text.as_bytes());
                self.out.put_slice(b"\r\n");
            }
        }
    }

    /// The head of an array; its `length` elements follow.
    pub(super) fn array(&mut self, length: usize) {
        self.length(b'*', length);
    }

    /// The head of something that nobody asked for, or not just now; its `length` elements follow. An array in RESP2.
    pub(super) fn push(&mut self, length: usize) {
        match self.version {
            Version::Resp2 => self.length(b'*', length),
            Version::Resp3 => self.length(b'>', length),
        }
    }

    /// The head of a map of `pairs` keys and values, which is an array of both in RESP2.
    pub(super) fn map(&mut self, pairs: usize) {
        match self.version {
            Version::Resp2 => self.length(b'*', pairs * 2),
            Version::Resp3 => self.length(b'%', pairs),
        }
    }
}

#[cfg(test)]
mod tests {
    use redis_protocol::resp2::decode::decode as decode2;
    use redis_protocol::resp2::types::OwnedFrame as Frame2;
    use redis_protocol::resp3::decode::complete::decode as decode3;
    use redis_protocol::resp3::types::OwnedFrame as Frame3;

    use super::*;

    fn written(version: Version, write: impl FnOnce(&mut Reply<'_>)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut Reply::new(&mut out, version));
        out
    }

    #[test]
    fn numbers_are_written_as_the_standard_library_would() {
        for number in [0, 1, -1, 9, 10, 99, 100, -100, i64::MAX, i64::MIN] {
            let out = written(Version::Resp2, |reply| reply.integer(number));
            assert_eq!(out, format!(":{number}\r\n").as_bytes());
            assert_eq!(decode2(&out).unwrap().unwrap().0, Frame2::Integer(number));
        }
    }

    #[test]
    fn each_version_has_its_own_words_for_nil_maps_and_text() {
        type Case = (fn(&mut Reply<'_>), &'static [u8], &'static [u8]);
        let cases: [Case; 5] = [
            (|r| r.nil(), b"$-1\r\n", b"_\r\n"),
            (|r| r.map(2), b"*4\r\n", b"%2\r\n"),
            (|r| r.verbatim("ab"), b"$2\r\nab\r\n", b"=6\r\ntxt:ab\r\n"),
            (|r| r.bulk_or_nil(Some(b"x")), b"$1\r\nx\r\n", b"$1\r\nx\r\n"),
            (|r| r.error("ERR a\r\n+OK"), b"-ERR a  +OK\r\n", b"-ERR a  +OK\r\n"),
        ];
        for (write, resp2, resp3) in cases {
            assert_eq!(written(Version::Resp2, write), resp2);
            assert_eq!(written(Version::Resp3, write), resp3);
        }
    }

    #[test]
    fn another_decoder_reads_what_is_written() {
        let write = |reply: &mut Reply<'_>| {
            reply.map(2);
            reply.bulk(b"a\r\nb");
            reply.nil();
            reply.bulk(b"n");
            reply.integer(-7);
        };
        let (frame, used) = decode2(&written(Version::Resp2, write)).unwrap().unwrap();
        let bulk = |bytes: &[u8]| Frame2::BulkString(bytes.to_vec());
        assert_eq!(frame, Frame2::Array(vec![bulk(b"a\r\nb"), Frame2::Null, bulk(b"n"), Frame2::Integer(-7)]));
        assert_eq!(used, written(Version::Resp2, write).len());
        let (frame, _) = decode3(&written(Version::Resp3, write)).unwrap().unwrap();
        assert!(matches!(frame, Frame3::Map { ref data, .. } if data.len() == 2), "{frame:?}");
    }
}
