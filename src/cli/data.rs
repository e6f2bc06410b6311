//! `put`, `get`, `del`, `cas`, `list`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use outrigger::client::{self, Client, Expect, Item};
use outrigger::types::{Ballot, VALUE_BYTES_LIMIT};
use serde_json::json;

use super::{Failure, output};

/// How much of a value a listing for people shows, in characters.
const PREVIEW_CHARS_MAX: usize = 60;

/// Write a value; prints its version
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger put greeting hello         org `_`, namespace `default`
  outrigger --org acme --ns payments put wf/payments/a/1 started
  outrigger put logo - < logo.png      from standard input, bytes as they are
  date | outrigger put now             the same: no VALUE is standard input
  outrigger put mood fine --consistency local   on this node alone, handed on
                                       once there is a quorum; may lose then")]
pub(super) struct Put {
    /// The key inside the shard
    key: String,
    /// The value; `-` or nothing reads standard input
    #[arg(allow_negative_numbers = true)]
    value: Option<String>,
}

/// Print a value, byte for byte; exits 1 where there is none
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger get greeting
  outrigger get logo > logo.png
  outrigger get greeting --consistency quorum   never stale; a plain get reads
                                                this node's copy
  outrigger get greeting --json                 with its version, in base64

A version is a 64-bit integer. jq before 1.7 and JavaScript round such numbers:
read it with something else before giving it to `cas`.")]
pub(super) struct Get {
    /// The key inside the shard
    key: String,
}

/// Delete a key, whether it has a value or not
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger del greeting
  outrigger --org acme --ns payments del wf/payments/a/1
  outrigger del greeting --consistency local    without a quorum, see `put`")]
pub(super) struct Del {
    /// The key inside the shard
    key: String,
}

/// Write a value if the key is as expected; prints the new version, or exits 1 with the one that is there
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  # only the first one gets it, and keeps the version that it wrote
  upd=$(outrigger cas lock --expect absent worker-7)
  # only if nobody wrote it meanwhile
  outrigger cas lock --expect $upd worker-8")]
pub(super) struct Cas {
    /// The key inside the shard
    key: String,
    /// The version that must be there, or `absent`
    #[arg(long, value_name = "UPD|absent", value_parser = parse_expect)]
    expect: Expect,
    /// The value; `-` reads standard input
    #[arg(allow_negative_numbers = true)]
    value: String,
}

/// List a shard's keys in order, from this node's copy
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger list                                each key with version, size and
                                                the start of the value
  outrigger --org acme --ns payments list wf/   those that start with wf/
  outrigger list --keys-only | wc -l            one key per line, nothing else
  outrigger list --json | jq -r '.value | @base64d'")]
pub(super) struct List {
    /// Only keys that start with this
    #[arg(default_value = "")]
    prefix: String,
    /// Only keys, one per line
    #[arg(long)]
    keys_only: bool,
}

impl Put {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let upd = client.put(&self.key, value(self.value)?).await?;
        let line = if json { json!({ "key": self.key, "upd": upd }).to_string() } else { upd.to_string() };
        Ok(output::print(&format!("{line}\n"))?)
    }
}

impl Get {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let Some(found) = client.get(&self.key).await? else {
            return Err(Failure::Other(format!("no value at key {:?}", self.key)));
        };
        let mut out = io::stdout().lock();
        if json {
            let item = Item { key: self.key, value: Some(found.value), upd: found.upd };
            writeln!(out, "{}", json_item(&item))?;
        } else {
            out.write_all(&found.value)?;
            // A prompt at the end of the value's last line helps nobody; a file wants the bytes alone.
            if out.is_terminal() && !found.value.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
        }
        Ok(out.flush()?)
    }
}

impl Del {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        client.del(&self.key).await?;
        if json {
            output::print(&format!("{}\n", json!({ "key": self.key })))?;
        }
        Ok(())
    }
}

impl Cas {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let outcome = client.cas(&self.key, self.expect, value(Some(self.value))?).await?;
        if json {
            let (written, upd) = match outcome {
                client::Cas::Written(upd) => (true, Some(upd)),
                client::Cas::Mismatch(current) => (false, current),
            };
            output::print(&format!("{}\n", json!({ "key": self.key, "written": written, "upd": upd })))?;
        }
        match outcome {
            client::Cas::Written(_) if json => Ok(()),
            client::Cas::Written(upd) => Ok(output::print(&format!("{upd}\n"))?),
            client::Cas::Mismatch(current) => {
                let wanted = match self.expect {
                    Expect::Absent => "absent".to_owned(),
                    Expect::Upd(upd) => upd.to_string(),
                };
                let there = current.map_or_else(|| "absent".to_owned(), |upd| format!("at {upd}"));
                Err(Failure::Other(format!("nothing written: key {:?} is {there}, expected {wanted}", self.key)))
            }
        }
    }
}

impl List {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let mut listing = client.list(&self.prefix, self.keys_only).await?;
        // Written through a buffer as items come, so that a long list takes no more memory than a short one.
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut first = true;
        loop {
            let item = match listing.next().await {
                Ok(item) => item,
                Err(error) => {
                    out.flush()?;
                    return Err(error.into());
                }
            };
            let Some(item) = item else { break };
            if json {
                writeln!(out, "{}", json_item(&item))?;
            } else if self.keys_only {
                writeln!(out, "{}", item.key)?;
            } else {
                if std::mem::take(&mut first) {
                    writeln!(out, "{:<19}  {:>10}  KEY  VALUE", "UPD", "SIZE")?;
                }
                let value = item.value.unwrap_or_default();
                let size = output::bytes(value.len() as u64);
                writeln!(out, "{:<19}  {size:>10}  {}  {}", item.upd.0, one_line(&item.key), preview(&value))?;
            }
        }
        Ok(out.flush()?)
    }
}

fn parse_expect(text: &str) -> Result<Expect, String> {
    if text == "absent" {
        return Ok(Expect::Absent);
    }
    let upd = text.parse().map(|upd| Expect::Upd(Ballot(upd)));
    upd.map_err(|_| "want a version (the number that put, cas and get --json print) or `absent`".to_owned())
}

fn json_item(item: &Item) -> serde_json::Value {
    let mut object = json!({ "key": item.key, "upd": item.upd });
    if let (Some(value), Some(fields)) = (&item.value, object.as_object_mut()) {
        fields.insert("value".to_owned(), STANDARD.encode(value).into());
    }
    object
}

/// The value as given, or what standard input holds, up to the largest that any node takes.
fn value(given: Option<String>) -> Result<Vec<u8>, Failure> {
    match given {
        Some(text) if text != "-" => return Ok(text.into_bytes()),
        _ => {}
    }
    let mut bytes = Vec::new();
    let stdin = io::stdin().lock().take(VALUE_BYTES_LIMIT as u64 + 1).read_to_end(&mut bytes);
    stdin.map_err(|error| Failure::Other(format!("cannot read the value from standard input: {error}")))?;
    if bytes.len() > VALUE_BYTES_LIMIT {
        let limit = output::bytes(VALUE_BYTES_LIMIT as u64);
        return Err(Failure::Usage(format!("the value on standard input has more than {limit}, which no node takes")));
    }
    Ok(bytes)
}

pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() { c.escape_default().to_string() } else { c.to_string() }.chars().collect::<Vec<_>>()
        })
        .collect()
}

/// The start of a value, safe to show on a terminal.
pub(super) fn preview(value: &[u8]) -> String {
    // Cut before decoding, so that a large value costs no more than a small one; four bytes make the longest character.
    let start = value.get(..PREVIEW_CHARS_MAX * 4).unwrap_or(value);
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            start.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default()
        }
        Err(_) => return "(binary)".to_owned(),
    };
    let shown: String = text.chars().take(PREVIEW_CHARS_MAX).collect();
    let more = if shown.len() < value.len() { "..." } else { "" };
    one_line(&shown) + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_short_and_harmless() {
        assert_eq!(preview(b"hello"), "hello");
        assert_eq!(preview(b"a\x1b[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(preview(b"\xff\xfe"), "(binary)");
        assert_eq!(preview("é".repeat(1000).as_bytes()), format!("{}...", "é".repeat(60)));
        assert_eq!(preview("a€".repeat(100).as_bytes()), format!("{}...", "a€".repeat(30)));
    }

    #[test]
    fn expectations() {
        assert_eq!(parse_expect("absent"), Ok(Expect::Absent));
        assert_eq!(parse_expect("17"), Ok(Expect::Upd(Ballot(17))));
        assert!(parse_expect("now").is_err());
    }
}
