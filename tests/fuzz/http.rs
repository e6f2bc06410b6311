//! HTTP clients that say anything: every answer is a whole response, and none of them blames this node.

use crate::engine::{Target, hash};
use crate::socket::{Node, is_watch, pieces};

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"GET ",
    b"PUT ",
    b"POST ",
    b"DELETE ",
    b"HEAD ",
    b"OPTIONS * ",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/2.0\r\n",
    b"Host: o\r\n",
    b"Connection: close\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"Expect: 100-continue\r\n",
    b"Accept: application/msgpack\r\n",
    b"Content-Type: application/msgpack\r\n",
    b"Content-Type: application/json\r\n",
    b"If-Match: \"1\"\r\n",
    b"If-None-Match: *\r\n",
    b"If-Match: *\r\n",
    b"/v1/kv/",
    b"/v1/batch/",
    b"/v1/watch/",
    b"/v1/watch/acme/orders?since=00000000000000aa.7&prefix=a",
    b"Last-Event-ID: 00000000000000aa.7\r\n",
    b"/v1/orgs",
    b"/v1/shards?org=",
    b"/v1/cluster",
    b"/v1/cluster/health",
    b"/checkpoint",
    b"%00",
    b"%2F",
    b"%2f..",
    b"..",
    b"//",
    b"%ff",
    b"%",
    b"?prefix=",
    b"&limit=",
    b"&after=",
    b"&consistency=local",
    b"&consistency=quorum",
    b"&timeout=2s",
    b"&timeout=1ns",
    b"&timeout=",
    b"{\"ops\":[",
    b"{\"op\":\"put\",\"key\":\"k\",\"value\":\"dg==\"}",
    b"null",
    b"[[[[",
    b"\\u0000",
    b"]}",
    b"\x81\xa3ops\x91",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
];

/// Reads one whole response; its status, and the bytes after it.
fn response(bytes: &[u8]) -> Result<(u16, &[u8]), String> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no end of the head")?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|why| why.to_string())?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)).ok_or("no status")?;
    let status: u16 = status.parse().map_err(|why| format!("{status}: {why}"))?;
    let headers: Vec<(String, &str)> = lines
        .map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value)))
        .collect::<Option<_>>()
        .ok_or("a header without a colon")?;
    let header = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value);
    if matches!(status, 100..200 | 204 | 304) {
        return Ok((status, body));
    }
    if header("transfer-encoding") == Some("chunked") {
        return chunks(body).map(|rest| (status, rest));
    }
    let Some(length) = header("content-length") else { return Ok((status, &[])) };
    let length: usize = length.parse().map_err(|why| format!("{length}: {why}"))?;
    Ok((status, body.get(length..).ok_or_else(|| format!("{} of {length} bytes of a body", body.len()))?))
}

fn chunks(mut bytes: &[u8]) -> Result<&[u8], String> {
    loop {
        let line = bytes.windows(2).position(|two| two == b"\r\n").ok_or("a chunk without a head")?;
        let size = std::str::from_utf8(&bytes[..line]).map_err(|why| why.to_string())?;
        let size = usize::from_str_radix(size, 16).map_err(|why| format!("{size}: {why}"))?;
        let after = bytes[line + 2..].get(size..).ok_or("a chunk cut short")?;
        bytes = after.strip_prefix(b"\r\n").ok_or("a chunk without an end")?;
        if size == 0 {
            return Ok(bytes);
        }
    }
}

/// Checks that an answer is a row of whole responses; their statuses.
fn statuses(input: &[u8], answer: &[u8]) -> Vec<u16> {
    // A response to HEAD tells the length of a body that it hasn't: where there was one, only the first is looked at.
    let may_be_bodiless = input.windows(4).any(|four| four == b"HEAD");
    let (mut statuses, mut rest) = (Vec::new(), answer);
    while !rest.is_empty() {
        match response(rest) {
            Ok((status, after)) => {
                assert!(![500, 502].contains(&status), "blames itself: {}", answer.escape_ascii());
                statuses.push(status);
                rest = after;
            }
            Err(_) if may_be_bodiless || is_watch(answer) => break,
            Err(why) => panic!("{why}, in {:?}", answer.escape_ascii().to_string()),
        }
    }
    statuses
}

#[test]
fn anything_said_in_http_is_answered_in_http() {
    let node = Node::start();
    let mut cases = 0_u32;
    Target { name: "http", seeds: Vec::new(), words: WORDS }.run(|input, rng| {
        // That first byte is the other dialect's.
        let input = if input.first() == Some(&b'*') { &input[1..] } else { input };
        let answer = node.send(&pieces(input, rng));
        cases += 1;
        if cases.is_multiple_of(64) {
            node.check_alive();
        }
        let statuses = if answer.starts_with(b"HTTP/") || input.first() != Some(&b'*') {
            statuses(input, &answer)
        } else {
            Vec::new()
        };
        let told: Vec<u8> = answer.windows(30).find(|at| at.starts_with(b"urn:")).map_or(Vec::new(), <[u8]>::to_vec);
        hash(&(statuses, told))
    });
    node.check_alive();
}
