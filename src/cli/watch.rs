//! `watch`.

use std::io::{self, Write as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use futures_util::FutureExt as _;
use outrigger::client::{self, Change, Client};
use serde_json::json;

use super::data::{one_line, preview};
use super::{Failure, output};

/// The pause before another try to connect, at first and at most.
const RECONNECT_AFTER_MIN: Duration = Duration::from_millis(100);
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(5);

/// Print the rows that there are, then every change of them as it is committed
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger watch                            all keys of the shard
  outrigger --org acme --ns payments watch wf/
  outrigger watch --json | jq -r .key        an object per line
  outrigger watch --since 00f3a1b2c4d5e6f7.461168601842738790
  outrigger watch --reconnect                until interrupted

OUTPUT
  snapshot              what follows replaces all that was printed before
  put UPD KEY VALUE     a key has this value
  snapshot-end ID       the rows that there were are complete
  del UPD KEY           a key was deleted

It begins with a snapshot, or with --since after the event of that id, where
this node still knows what happened since. Only the node that an id is of
knows that, until it restarts. Of several changes of a key in a short time
the last one comes for certain, and none comes twice or out of order.

When the node stops, is gone, or cuts this watcher off because it reads too
slowly, it ends with status 69 or 1, and says with which --since to go on.
With --reconnect it tries again by itself, and goes on where it was.")]
pub(super) struct Watch {
    /// Only keys that start with this
    #[arg(default_value = "")]
    prefix: String,
    /// Go on after this event
    #[arg(long, value_name = "ID")]
    since: Option<String>,
    /// Connect again when the connection ends, as often as it takes
    #[arg(long)]
    reconnect: bool,
}

impl Watch {
    pub(super) async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut watch = client.watch(&self.prefix, self.since.as_deref()).await?;
        loop {
            let next = match watch.next().now_or_never() {
                Some(next) => next,
                None => {
                    // Nothing more is here now: what is has to be seen.
                    out.flush()?;
                    watch.next().await
                }
            };
            let error = match next {
                Ok(change) => {
                    write(&mut out, &change, watch.id(), json)?;
                    continue;
                }
                Err(error) => error,
            };
            out.flush()?;
            if !self.reconnect {
                let hint = watch.id().map_or_else(String::new, |id| format!("; go on with --since {id}"));
                return Err(Failure::from(error).with(&hint));
            }
            output::complain(&format!("{error}; connecting again"));
            resume(&mut watch).await?;
        }
    }
}

/// Connects again, with pauses that grow.
async fn resume(watch: &mut client::Watch) -> Result<(), Failure> {
    let mut pause = RECONNECT_AFTER_MIN;
    loop {
        tokio::time::sleep(pause).await;
        match watch.resume().await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_bad_request() => return Err(error.into()),
            Err(_) => pause = (pause * 2).min(RECONNECT_AFTER_MAX),
        }
    }
}

fn write(out: &mut impl io::Write, change: &Change, id: Option<&str>, json: bool) -> io::Result<()> {
    if json {
        let object = match change {
            Change::Snapshot => json!({ "event": "snapshot" }),
            Change::SnapshotEnd => json!({ "event": "snapshot-end", "id": id }),
            Change::Put { key, value, upd } => {
                json!({ "event": "put", "key": key, "value": STANDARD.encode(value), "upd": upd, "id": id })
            }
            Change::Del { key, upd } => json!({ "event": "del", "key": key, "upd": upd, "id": id }),
        };
        return writeln!(out, "{object}");
    }
    match change {
        Change::Snapshot => writeln!(out, "snapshot"),
        Change::SnapshotEnd => writeln!(out, "snapshot-end  {}", id.unwrap_or_default()),
        Change::Put { key, value, upd } => writeln!(out, "put  {upd}  {}  {}", one_line(key), preview(value)),
        Change::Del { key, upd } => writeln!(out, "del  {upd}  {}", one_line(key)),
    }
}
