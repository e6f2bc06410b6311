//! The nodes' processes.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::layout::Place;
use crate::cli::{Failure, logging};

/// How long a node may take to stop before it is killed: a little longer than it gives itself.
const STOP_WITHIN: Duration = Duration::from_secs(25);
/// How much of a log is looked at, in bytes, and shown, in lines.
const TAIL_BYTES_MAX: u64 = 16 * 1024;
const TAIL_LINES_MAX: usize = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Stop,
    Kill,
}

/// How a node ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its place in the layout.
    pub(super) index: usize,
    pid: Option<u32>,
    status: std::io::Result<ExitStatus>,
}

impl Ended {
    pub(super) fn how(&self) -> String {
        use std::os::unix::process::ExitStatusExt as _;
        let pid = self.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        match &self.status {
            Err(error) => format!("{pid} is lost: {error}").trim_start().to_owned(),
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("{pid} ended with status {code}").trim_start().to_owned(),
                (None, Some(signal)) => format!("{pid} was killed by signal {signal}").trim_start().to_owned(),
                (None, None) => format!("{pid} ended").trim_start().to_owned(),
            },
        }
    }
}

/// The nodes that run. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Children {
    order: watch::Sender<Order>,
    tasks: JoinSet<Ended>,
    pids: Vec<(usize, Option<u32>)>,
}

impl Default for Children {
    fn default() -> Self {
        Self { order: watch::Sender::new(Order::Run), tasks: JoinSet::new(), pids: Vec::new() }
    }
}

impl Children {
    /// Starts the node at `place`, its output appended to its log.
    pub(super) fn start(
        &mut self,
        index: usize,
        place: &Place,
        program: &str,
        log: &logging::Options,
    ) -> Result<(), Failure> {
        let cannot = |what: &str, error| Failure::Other(format!("cannot {what} of node {}: {error}", place.name));
        let out = OpenOptions::new().create(true).append(true).open(&place.log);
        let out = out.map_err(|error| cannot("open the log", error))?;
        let err = out.try_clone().map_err(|error| cannot("open the log", error))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&place.config).arg("--exit-with-parent").args(log.as_flags());
        // The file alone says what this node is; a variable that is meant for one node would make them all the same.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTRIGGER__")) {
            command.env_remove(name);
        }
        // A process group of its own: Ctrl-C in the terminal is for `dev`, which then stops its nodes in order.
        command.process_group(0).kill_on_drop(true);
        let child = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn();
        let child = child.map_err(|error| cannot("start the process", error))?;
        self.pids.push((index, child.id()));
        self.tasks.spawn(attend(index, child, self.order.subscribe()));
        Ok(())
    }

    pub(super) fn pid(&self, index: usize) -> Option<u32> {
        self.pids.iter().find(|(of, _)| *of == index).and_then(|(_, pid)| *pid)
    }

    /// Returns when a node ends; never where none runs.
    pub(super) async fn next_ended(&mut self) -> Ended {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(ended)) => return ended,
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Lets all stop in their own time, bounded, and returns when none runs.
    pub(super) async fn stop(&mut self) {
        self.order.send_replace(Order::Stop);
        if tokio::time::timeout(STOP_WITHIN, self.all_ended()).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends all at once.
    pub(super) async fn kill(&mut self) {
        self.order.send_replace(Order::Kill);
        self.all_ended().await;
    }

    async fn all_ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Waits for one process and passes orders on. Only here is its id used, and only before it was waited for: it cannot
/// have become another's.
async fn attend(index: usize, mut child: Child, mut orders: watch::Receiver<Order>) -> Ended {
    let pid = child.id();
    // The node watches the other end: should this process die, whatever the cause, the node hears of it.
    let _lifeline = child.stdin.take();
    loop {
        let order = *orders.borrow_and_update();
        let signal = match order {
            Order::Run => None,
            Order::Stop => Some(Signal::TERM),
            Order::Kill => Some(Signal::KILL),
        };
        let running = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some((pid, signal)) = running.zip(signal) {
            let _ = kill_process(pid, signal);
        }
        tokio::select! {
            status = child.wait() => return Ended { index, pid, status },
            Ok(()) = orders.changed() => {}
        }
    }
}

/// The end of a log.
pub(super) fn last_lines(log: &Path) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.iter().skip(lines.len().saturating_sub(TAIL_LINES_MAX)).cloned().collect()
        }
        Err(error) => vec![format!("(cannot be read: {error})")],
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_long_log_shows_its_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for line in 0..10_000 {
            writeln!(file, "line {line}").unwrap();
        }
        let lines = last_lines(file.path());
        assert_eq!(lines.len(), TAIL_LINES_MAX);
        assert_eq!(lines.last().unwrap(), "line 9999");
        assert!(last_lines(Path::new("/no/such/log"))[0].contains("cannot be read"));
    }
}
