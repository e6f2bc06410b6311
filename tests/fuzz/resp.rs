//! Redis clients that say anything: every answer is a whole RESP value, however the bytes arrive.

use crate::engine::{Target, hash};
use crate::socket::{Node, pieces};

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"*1\r\n",
    b"*3\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"$3\r\nGET\r\n",
    b"$3\r\nSET\r\n",
    b"$4\r\nMGET\r\n",
    b"$4\r\nSCAN\r\n",
    b"$4\r\nKEYS\r\n",
    b"$5\r\nMATCH\r\n",
    b"$5\r\nCOUNT\r\n",
    b"$5\r\nHELLO\r\n",
    b"$4\r\nAUTH\r\n",
    b"$6\r\nINCRBY\r\n",
    b"$6\r\nAPPEND\r\n",
    b"$2\r\nNX\r\n",
    b"$2\r\nXX\r\n",
    b"$4\r\nIFEQ\r\n",
    b"$1\r\nk\r\n",
    b"$1\r\n3\r\n",
    b"$2\r\n[*\r\n",
    b"$3\r\n[^]\r\n",
    b"$1\r\n\\\r\n",
    b"$9\r\nwf/ns/1/2\r\n",
    b"*1000000\r\n",
    b"$65537\r\n",
    b"$536870913\r\n",
    b"*2\r\n$4\r\nKEYS\r\n$1\r\n*\r\n",
    b"*1\r\n$5\r\nRESET\r\n",
    b"$9\r\nSUBSCRIBE\r\n",
    b"$10\r\nPSUBSCRIBE\r\n",
    b"*1\r\n$11\r\nUNSUBSCRIBE\r\n",
    b"$16\r\n__keyspace@0__:k\r\n",
    b"$18\r\n__keyevent@0__:set\r\n",
    b"$6\r\n__key*\r\n",
    b"*1\r\n$8\r\nREADONLY\r\n",
    b"*1\r\n$9\r\nREADWRITE\r\n",
    b"*1\r\n$4\r\nINFO\r\n",
    b"*1\r\n$7\r\nCOMMAND\r\n",
];

/// Reads one whole value; the rest of the bytes, or why there is none.
fn value(bytes: &[u8], depth: usize) -> Result<&[u8], String> {
    let end = bytes.windows(2).position(|two| two == b"\r\n").ok_or("a line without an end")?;
    let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
    let (kind, text) = line.split_first().ok_or("an empty line")?;
    let text = std::str::from_utf8(text).map_err(|why| format!("a line that is no text: {why}"))?;
    let count = || text.parse::<i64>().map_err(|why| format!("{line:?}: {why}"));
    match kind {
        b'+' | b'-' | b',' | b'(' => Ok(rest),
        b'_' if text.is_empty() => Ok(rest),
        b'#' if text == "t" || text == "f" => Ok(rest),
        b':' => count().map(|_| rest),
        b'$' | b'=' | b'!' => match count()? {
            -1 => Ok(rest),
            length => {
                let length = usize::try_from(length).map_err(|why| format!("{line:?}: {why}"))?;
                let after = rest.get(length..).ok_or("a text cut short")?;
                after.strip_prefix(b"\r\n").ok_or_else(|| "a text without an end".to_owned())
            }
        },
        b'*' | b'~' | b'>' | b'%' if depth < 8 => {
            let items = count()?.max(0) * if *kind == b'%' { 2 } else { 1 };
            (0..items).try_fold(rest, |rest, _| value(rest, depth + 1))
        }
        _ => Err(format!("{:?} begins no value", line.escape_ascii().to_string())),
    }
}

/// Checks that an answer is a row of whole values; what kinds they are, and the first word of errors.
fn shape(answer: &[u8]) -> Vec<Vec<u8>> {
    let (mut shape, mut rest) = (Vec::new(), answer);
    while !rest.is_empty() {
        let next = value(rest, 0).unwrap_or_else(|why| panic!("{why}, in {:?}", answer.escape_ascii().to_string()));
        let kept = if rest[0] == b'-' { 24 } else { 1 };
        shape.push(rest.iter().take(kept).take_while(|byte| **byte != b'\'').copied().collect());
        rest = next;
    }
    shape.dedup();
    shape
}

#[test]
fn anything_said_in_resp_is_answered_in_resp() {
    let node = Node::start();
    let mut cases = 0_u32;
    Target { name: "resp", seeds: Vec::new(), words: WORDS }.run(|input, rng| {
        // Another first byte is another dialect's.
        let mut input = input.to_vec();
        if input.first() != Some(&b'*') {
            input.insert(0, b'*');
        }
        let answer = node.send(&pieces(&input, rng));
        cases += 1;
        if cases.is_multiple_of(64) {
            node.check_alive();
        }
        hash(&shape(&answer))
    });
    node.check_alive();
}

/// The same bytes, whole and one by one, each time to a shard of its own.
#[test]
fn how_the_bytes_arrive_makes_no_difference() {
    let node = Node::start();
    let mut cases = 0_u32;
    Target { name: "resp", seeds: Vec::new(), words: WORDS }.run(|input, _| {
        let told = ["INFO", "CLIENT", "HELLO", "AUTH"];
        let upper = String::from_utf8_lossy(input).to_ascii_uppercase();
        // What counts connections or names a shard itself differs from one to the next.
        if told.iter().any(|word| upper.contains(word)) || input.len() > 2_048 || input.first() != Some(&b'*') {
            return 0;
        }
        cases += 1;
        let mut answers = [true, false].map(|whole| {
            let shard = format!("o{cases}{}/n", if whole { "w" } else { "b" });
            let auth = format!("*3\r\n$4\r\nAUTH\r\n${}\r\n{shard}\r\n$1\r\nx\r\n", shard.len());
            let bytes = input.chunks(if whole { input.len() } else { 1 });
            node.send(&std::iter::once(auth.as_bytes()).chain(bytes).collect::<Vec<_>>())
        });
        let [whole, bytes] = &mut answers;
        assert_eq!(whole.escape_ascii().to_string(), bytes.escape_ascii().to_string());
        hash(&shape(whole))
    });
}
