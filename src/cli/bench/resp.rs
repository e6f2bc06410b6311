//! As much of RESP2 as a bench speaks: AUTH, READONLY or READWRITE, GET and SET, one at a time.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BytesMut};
use outrigger::token::Token;
use outrigger::types::{ShardId, VALUE_BYTES_LIMIT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::connection::{Failed, Kind};

/// The longest line of an answer, in bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A connection that opens with its first request.
pub(super) struct Resp {
    socket: PathBuf,
    /// The shard as AUTH names it.
    shard: String,
    token: Option<Token>,
    reads: &'static str,
    stream: Option<UnixStream>,
    out: Vec<u8>,
    unread: BytesMut,
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Simple,
    Error(String),
    Bulk,
    Nil,
}

impl Resp {
    pub(super) fn new(socket: &Path, shard: &ShardId, token: Option<Token>, quorum_reads: bool) -> Self {
        Self {
            socket: socket.to_owned(),
            shard: format!("{}/{}", shard.org, shard.namespace),
            token,
            reads: if quorum_reads { "READWRITE" } else { "READONLY" },
            stream: None,
            out: Vec::new(),
            unread: BytesMut::new(),
        }
    }

    /// False where the key has no value.
    pub(super) async fn get(&mut self, key: &str) -> Result<bool, Failed> {
        match self.exchange(&[b"GET", key.as_bytes()]).await? {
            Reply::Bulk => Ok(true),
            Reply::Nil => Ok(false),
            other => Err(self.unexpected(other)),
        }
    }

    pub(super) async fn set(&mut self, key: &str, value: &[u8]) -> Result<(), Failed> {
        match self.exchange(&[b"SET", key.as_bytes(), value]).await? {
            Reply::Simple => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    pub(super) fn close(&mut self) {
        self.stream = None;
        self.unread.clear();
    }

    fn unexpected(&mut self, reply: Reply) -> Failed {
        match reply {
            Reply::Error(line) => {
                let word = line.split(' ').next().unwrap_or_default();
                Failed { kind: Kind::of_resp(word), reason: line }
            }
            other => {
                self.close();
                Failed { kind: Kind::Other, reason: format!("an answer of another sort than was asked for: {other:?}") }
            }
        }
    }

    /// Connects where there is no connection.
    async fn exchange(&mut self, request: &[&[u8]]) -> Result<Reply, Failed> {
        if self.stream.is_none() {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.broken(&error))?;
            self.stream = Some(stream);
            let (shard, reads) = (self.shard.clone(), self.reads.as_bytes());
            // Without a token something has to be sent all the same.
            let token = self.token.clone();
            let password = token.as_ref().map_or("-", Token::reveal);
            for request in [&[b"AUTH", shard.as_bytes(), password.as_bytes()] as &[&[u8]], &[reads]] {
                match self.round_trip(request).await? {
                    Reply::Simple => {}
                    other => {
                        let failed = self.unexpected(other);
                        self.close();
                        return Err(failed);
                    }
                }
            }
        }
        self.round_trip(request).await
    }

    async fn round_trip(&mut self, request: &[&[u8]]) -> Result<Reply, Failed> {
        let exchanged = self.try_round_trip(request).await;
        exchanged.map_err(|error| {
            self.close();
            self.broken(&error)
        })
    }

    async fn try_round_trip(&mut self, request: &[&[u8]]) -> io::Result<Reply> {
        let Self { stream: Some(stream), out, unread, .. } = self else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        out.clear();
        write(out, request);
        // What did not get out is not the story: a node that refuses says why before it closes.
        let sent = stream.write_all(out).await;
        loop {
            if let Some((reply, used)) = read(unread)? {
                unread.advance(used);
                return Ok(reply);
            }
            if stream.read_buf(unread).await? == 0 {
                sent?;
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the node closed the connection"));
            }
        }
    }

    fn broken(&self, error: &io::Error) -> Failed {
        Failed { kind: Kind::Connection, reason: format!("over the socket {}: {error}", self.socket.display()) }
    }
}

fn write(out: &mut Vec<u8>, request: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
    for part in request {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// The answer at the start of `unread` and how many bytes it has; none where more have to come.
fn read(unread: &[u8]) -> io::Result<Option<(Reply, usize)>> {
    let Some(end) = unread.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\r') else {
        return if unread.len() < LINE_BYTES_MAX { Ok(None) } else { Err(unreadable("a line without end")) };
    };
    let used = end + 2;
    if unread.len() < used {
        return Ok(None);
    }
    let line = unread.get(..end).unwrap_or_default();
    let Some((kind, rest)) = line.split_first() else { return Err(unreadable("an empty line")) };
    let text = || String::from_utf8_lossy(rest);
    match kind {
        b'+' => Ok(Some((Reply::Simple, used))),
        b'-' => Ok(Some((Reply::Error(text().into_owned()), used))),
        b'$' if rest == b"-1" => Ok(Some((Reply::Nil, used))),
        b'$' => {
            let length = text().parse::<usize>().ok().filter(|length| *length <= VALUE_BYTES_LIMIT);
            let length = length.ok_or_else(|| unreadable("a value of no length, or of more than any node has"))?;
            let whole = used + length + 2;
            Ok((unread.len() >= whole).then_some((Reply::Bulk, whole)))
        }
        _ => Err(unreadable("neither a status, an error nor a value")),
    }
}

fn unreadable(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer cannot be read: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_when_they_are_whole() {
        for (text, expected) in [
            ("+OK\r\n", Reply::Simple),
            ("-BUSY later\r\n", Reply::Error("BUSY later".to_owned())),
            ("$-1\r\n", Reply::Nil),
            ("$0\r\n\r\n", Reply::Bulk),
            ("$4\r\na\r\nb\r\n", Reply::Bulk),
        ] {
            for cut in 0..text.len() {
                assert_eq!(read(&text.as_bytes()[..cut]).unwrap(), None, "{text:?} cut at {cut}");
            }
            assert_eq!(read(format!("{text}+OK\r\n").as_bytes()).unwrap(), Some((expected, text.len())));
        }
        for bad in ["\r\n", ":1\r\n", "$x\r\n", "$99999999999\r\n", &"+".repeat(LINE_BYTES_MAX)] {
            assert!(read(bad.as_bytes()).is_err());
        }
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        write(&mut out, &[b"SET", b"k", b"a\r\n"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\na\r\n\r\n");
    }
}
