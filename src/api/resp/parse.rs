//! Cuts a connection's bytes into commands: `*<n>\r\n` and then n times `$<len>\r\n<bytes>\r\n`.
//!
//! Clients send nothing but flat arrays of bulk strings, so this reads exactly that. A general RESP decoder starts
//! over whenever more bytes arrive, recurses on nested arrays and has no bounds; this one remembers where it was, so
//! a command that arrives in a thousand pieces is still read once, and it allocates nothing per command.
//!
//! What is too large for its bound is not buffered: the rest of that command is thrown away as it arrives, the
//! client is told, and the connection stays usable.

use std::ops::Range;

/// The most arguments in one command, its name included.
pub(super) const ARGS_MAX: usize = 65_536;
/// The longest line that announces a count or a length, in bytes, its end included.
const LINE_BYTES_MAX: usize = 32;
/// A bulk string longer than this is not skipped: the connection is closed. Redis' own limit.
const BULK_BYTES_LIMIT: usize = 512 * 1024 * 1024;

/// Bytes that are no RESP command. The connection cannot go on, as nobody knows where the next command would begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {0}")]
pub(super) struct ProtocolError(String);

/// What the bytes given so far came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A whole command: its arguments are in [`Parser::args`], and it took this many bytes.
    Command(usize),
    /// A whole command that was over a bound, skipped, of which this many bytes are still in the buffer.
    TooLarge(usize),
    /// This many bytes belong to a command that is being skipped: drop them and ask again.
    Skip(usize),
    /// More bytes are needed.
    Incomplete,
}

/// Where the reading of one command stands.
#[derive(Debug)]
pub(super) struct Parser {
    bulk_bytes_max: usize,
    command_bytes_max: usize,
    /// The next byte of the buffer to look at.
    at: usize,
    /// Arguments still to come; none before the array's head was read.
    missing: Option<usize>,
    /// The length of the argument whose head was read.
    bulk: Option<usize>,
    args: Vec<Range<usize>>,
    args_bytes: usize,
    skipping: bool,
}

impl Parser {
    /// Reads commands whose arguments have up to `bulk_bytes_max` bytes each and `command_bytes_max` together.
    pub(super) fn new(bulk_bytes_max: usize, command_bytes_max: usize) -> Self {
        Self {
            bulk_bytes_max,
            command_bytes_max,
            at: 0,
            missing: None,
            bulk: None,
            args: Vec::new(),
            args_bytes: 0,
            skipping: false,
        }
    }

    /// Where in the buffer the arguments of the command just read are.
    pub(super) fn args(&self) -> &[Range<usize>] {
        &self.args
    }

    /// True where a command has begun and not ended, though none of it may be left in the buffer.
    pub(super) fn is_midway(&self) -> bool {
        self.missing.is_some()
    }

    /// From now on the command being read is thrown away as it arrives, and ends as [`Step::TooLarge`].
    pub(super) fn skip(&mut self) {
        self.skipping = true;
    }

    /// Forgets the command that was read, once its bytes are gone from the buffer.
    pub(super) fn reset(&mut self) {
        self.at = 0;
        self.missing = None;
        self.bulk = None;
        self.args.clear();
        self.args_bytes = 0;
        self.skipping = false;
    }

    /// Reads on. `buf` begins where the command began, except for what [`Step::Skip`] had dropped.
    pub(super) fn next(&mut self, buf: &[u8]) -> Result<Step, ProtocolError> {
        let mut missing = match self.missing {
            Some(missing) => missing,
            None => match self.head(buf)? {
                Some(count) => count,
                None => return Ok(Step::Incomplete),
            },
        };
        while missing > 0 {
            self.missing = Some(missing);
            if !self.argument(buf)? {
                return Ok(self.pause());
            }
            missing -= 1;
        }
        self.missing = Some(0);
        Ok(if self.skipping { Step::TooLarge(self.at) } else { Step::Command(self.at) })
    }

    /// While skipping, hands back what was looked at instead of keeping it.
    fn pause(&mut self) -> Step {
        if self.skipping && self.at > 0 {
            return Step::Skip(std::mem::take(&mut self.at));
        }
        Step::Incomplete
    }

    /// The array's head: how many arguments.
    fn head(&mut self, buf: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let Some(&first) = buf.first() else { return Ok(None) };
        if first != b'*' {
            return Err(ProtocolError(format!("expected '*', got '{}'", [first].escape_ascii())));
        }
        let Some((number, end)) = line(buf, 1, "too big mbulk count string")? else { return Ok(None) };
        let bad = || ProtocolError("invalid multibulk length".to_owned());
        let count = number.ok_or_else(bad)?;
        if count > i64::try_from(ARGS_MAX).unwrap_or(i64::MAX) {
            return Err(bad());
        }
        self.at = end;
        // An array of none, or a null array, is a command of nothing: Redis ignores it too.
        Ok(Some(usize::try_from(count).unwrap_or(0)))
    }

    /// One argument; false where it is not all there.
    fn argument(&mut self, buf: &[u8]) -> Result<bool, ProtocolError> {
        let bytes = match self.bulk {
            Some(bytes) => bytes,
            None => {
                let Some(&first) = buf.get(self.at) else { return Ok(false) };
                if first != b'$' {
                    return Err(ProtocolError(format!("expected '$', got '{}'", [first].escape_ascii())));
                }
                let Some((number, end)) = line(buf, self.at + 1, "too big bulk count string")? else {
                    return Ok(false);
                };
                let bytes = number
                    .and_then(|number| usize::try_from(number).ok())
                    .filter(|bytes| *bytes <= BULK_BYTES_LIMIT)
                    .ok_or_else(|| ProtocolError("invalid bulk length".to_owned()))?;
                self.at = end;
                self.args_bytes = self.args_bytes.saturating_add(bytes);
                self.skipping |= bytes > self.bulk_bytes_max || self.args_bytes > self.command_bytes_max;
                self.bulk = Some(bytes);
                bytes
            }
        };
        let there = buf.len().saturating_sub(self.at);
        if there < bytes + 2 {
            if self.skipping {
                let skip = there.min(bytes);
                self.at += skip;
                self.bulk = Some(bytes - skip);
            }
            return Ok(false);
        }
        let end = self.at + bytes;
        if buf.get(end..end + 2) != Some(b"\r\n") {
            return Err(ProtocolError("a bulk string does not end where its length says".to_owned()));
        }
        if !self.skipping {
            self.args.push(self.at..end);
        }
        self.at = end + 2;
        self.bulk = None;
        Ok(true)
    }
}

/// The number on the line that begins at `from`, and where the next line begins. The outer `None`: the line has not
/// ended yet. The inner one: it is no number.
fn line(buf: &[u8], from: usize, too_long: &str) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
    let rest = buf.get(from..).unwrap_or_default();
    let Some(length) = rest.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') else {
        if rest.len() >= LINE_BYTES_MAX {
            return Err(ProtocolError(too_long.to_owned()));
        }
        return Ok(None);
    };
    let number = rest.get(..length).and_then(|text| text.strip_suffix(b"\r")).and_then(parse_i64);
    Ok(Some((number, from + length + 1)))
}

/// A decimal `i64` as Redis reads one: no sign but `-`, no leading zeros, no blanks.
pub(super) fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let leading_zero = digits.len() > 1 && digits.first() == Some(&b'0');
    if digits.is_empty() || digits.len() > 19 || leading_zero || (negative && digits == b"0") {
        return None;
    }
    let mut number = 0_i64;
    for digit in digits {
        let digit = i64::from(digit.checked_sub(b'0').filter(|digit| *digit <= 9)?);
        number = number.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative { Some(number) } else { number.checked_neg() }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, BytesMut};
    use proptest::prelude::*;
    use redis_protocol::resp2::encode::extend_encode;
    use redis_protocol::resp2::types::BytesFrame;

    use super::*;

    const BULK: usize = 100;
    const COMMAND: usize = 1_000;

    /// Feeds the bytes in pieces; each command as its arguments, `None` for one that was skipped, and the most bytes
    /// ever buffered.
    #[expect(clippy::type_complexity, reason = "a test's own tuple")]
    fn feed(pieces: &[&[u8]]) -> Result<(Vec<Option<Vec<Vec<u8>>>>, usize), ProtocolError> {
        let (mut parser, mut buf) = (Parser::new(BULK, COMMAND), BytesMut::new());
        let (mut commands, mut most) = (Vec::new(), 0);
        for piece in pieces {
            buf.extend_from_slice(piece);
            most = most.max(buf.len());
            loop {
                let taken = match parser.next(&buf)? {
                    Step::Incomplete => break,
                    Step::Skip(taken) => {
                        buf.advance(taken);
                        continue;
                    }
                    Step::Command(taken) => {
                        commands.push(Some(parser.args().iter().map(|at| buf[at.clone()].to_vec()).collect()));
                        taken
                    }
                    Step::TooLarge(taken) => {
                        commands.push(None);
                        taken
                    }
                };
                buf.advance(taken);
                parser.reset();
            }
        }
        Ok((commands, most))
    }

    fn args(args: &[&str]) -> Option<Vec<Vec<u8>>> {
        Some(args.iter().map(|arg| arg.as_bytes().to_vec()).collect())
    }

    #[test]
    fn commands_are_cut_apart() {
        let bytes = b"*1\r\n$4\r\nPING\r\n*0\r\n*-1\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n";
        let (commands, _) = feed(&[bytes]).unwrap();
        assert_eq!(commands, [args(&["PING"]), args(&[]), args(&[]), args(&["GET", ""])]);
    }

    #[test]
    fn what_is_no_command_is_told_apart_from_what_is_not_all_there() {
        for (bytes, why) in [
            (&b"GET a\r\n"[..], "expected '*', got 'G'"),
            (b"*x\r\n", "invalid multibulk length"),
            (b"*65537\r\n", "invalid multibulk length"),
            (b"*1\n", "invalid multibulk length"),
            (b"*99999999999999999999999\r\n", "invalid multibulk length"),
            (b"*000000000000000000000000000000000000001", "too big mbulk count string"),
            (b"*1\r\n*1\r\n", "expected '$', got '*'"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (b"*1\r\n$00000000000000000000000000000000000", "too big bulk count string"),
            (b"*1\r\n$1\r\nab\r\n", "a bulk string does not end where its length says"),
        ] {
            assert_eq!(feed(&[bytes]).unwrap_err(), ProtocolError(why.to_owned()), "{}", bytes.escape_ascii());
        }
        for bytes in [&b""[..], b"*", b"*1\r", b"*1\r\n$4\r\nPIN", b"*1\r\n$4\r\nPING\r"] {
            assert_eq!(feed(&[bytes]).unwrap().0, [], "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_too_large_is_skipped_without_being_kept() {
        let big = [b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5000\r\n".to_vec(), vec![b'\r'; 5_000], b"\r\n".to_vec()].concat();
        let many = [b"*11\r\n".to_vec(), [b"$99\r\n".to_vec(), vec![b'x'; 99], b"\r\n".to_vec()].concat().repeat(11)];
        let all = [&big[..], b"*1\r\n$4\r\nPING\r\n", &many.concat(), b"*1\r\n$4\r\nPONG\r\n"].concat();
        for size in [1, 2, 3, 7, 64] {
            let pieces: Vec<_> = all.chunks(size).collect();
            let (commands, most) = feed(&pieces).unwrap();
            assert_eq!(commands, [None, args(&["PING"]), None, args(&["PONG"])], "pieces of {size}");
            assert!(most <= COMMAND + 20 * 10 + size, "{most} bytes were kept");
        }
    }

    #[test]
    fn integers_are_read_as_redis_reads_them() {
        for good in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            assert_eq!(parse_i64(good.to_string().as_bytes()), Some(good));
        }
        for bad in ["", "-", "+1", "01", "-0", " 1", "1 ", "1.0", "9223372036854775808", "-9223372036854775809", "x"] {
            assert_eq!(parse_i64(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_another_encoder_writes_is_read_back_however_it_is_cut(
            sent in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6), 1..8),
            cuts in prop::collection::vec(1_usize..50, 1..20),
        ) {
            let mut bytes = BytesMut::new();
            for command in &sent {
                let bulks = command.iter().map(|arg| BytesFrame::BulkString(arg.clone().into())).collect();
                extend_encode(&mut bytes, &BytesFrame::Array(bulks), false).unwrap();
            }
            let (mut rest, mut pieces, mut cut) = (&bytes[..], Vec::new(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, left) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                pieces.push(piece);
                rest = left;
            }
            let expected: Vec<_> = sent.into_iter().map(Some).collect();
            prop_assert_eq!(feed(&pieces).unwrap().0, expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..200
        )) {
            let _ = feed(&[b"*", &bytes]);
            let _ = feed(&[b"*2\r\n$", &bytes]);
        }
    }
}
