//! `dev`: a cluster of real nodes on this machine.
//!
//! ```text
//!   layout    the directory: secret, ports, one configuration file per node     child   processes: start, attend, stop
//! ```
//!
//! Each node is an ordinary `serve` that happens to have a parent: what works here is what works elsewhere. Nothing is
//! started again on its own, as killing nodes is what such a cluster is for.

mod child;
mod layout;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use outrigger::client::{Client, Health};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{self, Tone, shell_word};
use super::{Failure, logging};
use child::{Children, Ended};
use layout::{Layout, NODES_MAX, Place};

/// How long the nodes may take until they all agree.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often they are asked.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How much of the reason is shown on a terminal's line, in characters.
const WAITING_CHARS_MAX: usize = 50;
/// How long one of them may take to answer that.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Run a cluster on this machine, to develop against and to break
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger dev                      three nodes in ./outrigger-dev; data stays
  outrigger dev --nodes 5 --fresh    five, forgetting what was there
  outrigger dev --dir /tmp/demo

It prints where the nodes are, and commands that write to one, read from
another and kill the third. A node that ends is not started again; the command
that does is printed. Ctrl-C stops all.")]
pub(super) struct Dev {
    /// How many nodes, 1 to 16 [default: as many as the directory has, else 3]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=NODES_MAX))]
    nodes: Option<u8>,
    /// Where to keep data, logs and sockets
    #[arg(long, default_value = "./outrigger-dev")]
    dir: PathBuf,
    /// Begin with an empty cluster: deletes what an earlier `dev` put into the directory
    #[arg(long)]
    fresh: bool,
}

impl Dev {
    pub(super) async fn run(self, log: &logging::Options) -> Result<(), Failure> {
        let mut stop = StopSignals::new()?;
        let layout = layout::open(&self.dir, self.nodes, self.fresh, &program()?)?;
        let mut children = Children::default();
        let outcome = tokio::select! {
            ready = start(&layout, &mut children, log) => ready,
            () = stop.next() => Err(Failure::Other("stopped before the nodes were ready".to_owned())),
        };
        let outcome = match outcome {
            Ok(()) => attend(&layout, &mut children, &mut stop).await,
            failed => failed,
        };
        tokio::select! {
            () = children.stop() => {}
            () = stop.next() => children.kill().await,
        }
        for place in &layout.nodes {
            if let Some(who) = who_listens(place).await {
                output::complain(&format!("{} was started by hand and still runs{}", place.name, who.how_to_stop()));
            }
        }
        outcome
    }
}

/// Starts every node and returns once all of them serve and see each other.
async fn start(layout: &Layout, children: &mut Children, log: &logging::Options) -> Result<(), Failure> {
    for place in &layout.nodes {
        if let Some(who) = who_listens(place).await {
            return Err(Failure::Other(format!(
                "a node already answers at {}: this cluster is running{}",
                place.socket.display(),
                who.how_to_stop()
            )));
        }
    }
    for (index, place) in layout.nodes.iter().enumerate() {
        children.start(index, place, &layout.program, log)?;
    }
    let mut progress = Progress::new(layout.nodes.len());
    let agreed = tokio::select! {
        () = agree(layout, &mut progress) => Ok(()),
        ended = children.next_ended() => Err(layout.failed_start(&ended)),
        () = tokio::time::sleep(READY_WITHIN) => Err(None),
    };
    progress.done();
    agreed.map_err(|failure| {
        failure.unwrap_or_else(|| {
            let shown = humantime::format_duration(READY_WITHIN);
            let logs = layout.nodes.iter().map(|place| place.log.display().to_string()).collect::<Vec<_>>().join(", ");
            Failure::Other(format!("not ready within {shown}: {}; see {logs}", progress.waiting_for))
        })
    })
}

/// Asks all nodes again and again until each serves and sees all others.
async fn agree(layout: &Layout, progress: &mut Progress) {
    let clients: Vec<_> =
        layout.nodes.iter().map(|place| Client::builder(&place.socket).answer_within(ANSWER_WITHIN).build()).collect();
    loop {
        let mut waiting = Vec::new();
        for (place, client) in layout.nodes.iter().zip(&clients) {
            if let Some(reason) = waits_for(client).await {
                waiting.push(format!("{} ({reason})", place.name));
            }
        }
        if waiting.is_empty() {
            return;
        }
        progress.show(layout.nodes.len() - waiting.len(), waiting.join(", "));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Why a node is not part of the whole yet.
async fn waits_for(client: &Client) -> Option<String> {
    match client.health().await {
        Err(error) if error.is_unavailable() => return Some("starting".to_owned()),
        Err(error) => return Some(error.to_string()),
        Ok(Health::Unready(reason)) => return Some(reason),
        Ok(Health::Ready) => {}
    }
    let status = match client.cluster().await {
        Ok(status) => status,
        Err(error) => return Some(error.to_string()),
    };
    let unseen = status.nodes.iter().find(|node| !node.live);
    unseen.map(|node| format!("does not see {} yet", node.node))
}

/// Shows what there is, then says so whenever a node ends, until told to stop.
async fn attend(layout: &Layout, children: &mut Children, stop: &mut StopSignals) -> Result<(), Failure> {
    output::print(&introduction(layout, children, output::colours()))?;
    loop {
        tokio::select! {
            () = stop.next() => return Ok(()),
            ended = children.next_ended() => {
                if let Some(place) = layout.nodes.get(ended.index) {
                    let note = format!("{} {}; start it again: {}\n", place.name, ended.how(), layout.start_command(place));
                    output::print(&note)?;
                }
            }
        }
    }
}

fn introduction(layout: &Layout, children: &Children, colours: bool) -> String {
    let rows: Vec<_> = layout
        .nodes
        .iter()
        .enumerate()
        .map(|(index, place)| {
            let pid = children.pid(index).map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let cells =
                vec![place.name.clone(), pid, place.socket.display().to_string(), format!("http://{}/", place.admin)];
            (cells, Tone::Plain)
        })
        .collect();
    let mut text = output::table(&["NODE", ">PID", "SOCKET", "ADMIN"], &rows, colours);
    let mut suggest = |comment: String, command: String| {
        text += &format!("\n{}\n{command}\n", output::paint(&format!("# {comment}"), Tone::Good, colours));
    };
    let client = |place: &Place, rest: &str| {
        let socket = shell_word(&place.socket.display().to_string());
        format!("{} --socket {socket} {rest}", shell_word(&layout.program))
    };
    if let Some(first) = layout.nodes.first() {
        suggest(format!("write on {}", first.name), client(first, "put greeting hello"));
        let reader = layout.nodes.get(1).unwrap_or(first);
        suggest(format!("read on {}", reader.name), client(reader, "get greeting --consistency quorum"));
    }
    if let Some((last, pid)) = layout.nodes.last().zip(children.pid(layout.nodes.len().saturating_sub(1))) {
        let goes_on = if layout.nodes.len() > 2 { "; the others go on" } else { "" };
        suggest(format!("kill {}{goes_on}", last.name), format!("kill -9 {pid}"));
        suggest(format!("start {} again", last.name), layout.start_command(last));
    }
    text + "\nCtrl-C stops all nodes.\n"
}

/// A process that answers at a node's socket.
struct Listener {
    pid: Option<i32>,
}

impl Listener {
    fn how_to_stop(&self) -> String {
        self.pid.map_or_else(String::new, |pid| format!("; to stop it: kill {pid}"))
    }
}

async fn who_listens(place: &Place) -> Option<Listener> {
    let stream = UnixStream::connect(&place.socket).await.ok()?;
    Some(Listener { pid: stream.peer_cred().ok().and_then(|peer| peer.pid()) })
}

/// The program that runs, by a path that works from anywhere.
fn program() -> Result<String, Failure> {
    let path = std::env::current_exe().map_err(|error| Failure::Other(format!("cannot find this program: {error}")))?;
    path.into_os_string().into_string().map_err(|path| Failure::Other(format!("the path {path:?} is not UTF-8")))
}

/// Ctrl-C, SIGTERM, or the terminal's end.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::other);
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// One line on standard error: rewritten on a terminal, elsewhere only when it changes.
struct Progress {
    total: usize,
    waiting_for: String,
    terminal: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, waiting_for: "none has answered".to_owned(), terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, ready: usize, waiting_for: String) {
        if self.waiting_for == waiting_for {
            return;
        }
        self.waiting_for = waiting_for;
        let mut err = std::io::stderr();
        let _ = if self.terminal {
            // Only one row of a terminal can be taken back, so the line has to fit into it.
            let first = self.waiting_for.split_once("),").map_or(self.waiting_for.as_str(), |(first, _)| first);
            let shown: String = first.chars().take(WAITING_CHARS_MAX).collect();
            let shown = shown.replacen(" (", ": ", 1);
            write!(err, "\r\u{1b}[K{ready} of {} nodes ready; {}", self.total, shown.trim_end_matches(')'))
        } else {
            writeln!(err, "{ready} of {} nodes ready, waiting for {}", self.total, self.waiting_for)
        };
        let _ = err.flush();
    }

    fn done(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

impl Layout {
    /// What to say when a node ended before all were ready; always something.
    fn failed_start(&self, ended: &Ended) -> Option<Failure> {
        let place = self.nodes.get(ended.index)?;
        let mut message =
            format!("node {} {} while starting; its log, {}, ends:", place.name, ended.how(), place.log.display());
        for line in child::last_lines(&place.log) {
            message += &format!("\n  {line}");
        }
        Some(Failure::Other(message))
    }

    fn start_command(&self, place: &Place) -> String {
        format!("{} serve --config {}", shell_word(&self.program), shell_word(&place.config.display().to_string()))
    }
}
