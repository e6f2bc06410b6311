//! `outrigger dev` as a newcomer meets it: every command that it prints is run as printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Far more than any step takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running `dev`, its lines as they come.
struct Dev {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Dev {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.args(["dev", "--dir", dir.to_str().unwrap()]).args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out: ChildStdout = child.stdout.take().unwrap();
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let _ = send.send(line.unwrap());
            }
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("dev printed nothing more")
    }

    fn lines_until(&self, wanted: &str) -> Vec<String> {
        let mut lines = vec![self.line()];
        while !lines.last().unwrap().contains(wanted) {
            lines.push(self.line());
        }
        lines
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.id()), signal).unwrap();
    }

    fn ends(&mut self) -> std::process::ExitStatus {
        // The reader of its lines ends with it.
        while self.lines.recv_timeout(PATIENCE).is_ok() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(raw: u32) -> Pid {
    Pid::from_raw(i32::try_from(raw).unwrap()).unwrap()
}

fn shell(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).output().unwrap()
}

/// The command under the comment that starts so.
fn under<'a>(lines: &'a [String], comment: &str) -> &'a str {
    let at =
        lines.iter().position(|line| line.starts_with(comment)).unwrap_or_else(|| panic!("{comment} in {lines:?}"));
    &lines[at + 1]
}

fn pids(lines: &[String]) -> Vec<Pid> {
    let rows = lines.iter().skip(1).take_while(|line| !line.is_empty());
    rows.map(|line| pid(line.split_whitespace().nth(1).unwrap().parse().unwrap())).collect()
}

fn gone(pid: Pid) -> bool {
    // A process whose parent died is reaped by another; until then it is a zombie, which is gone enough.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    test_kill_process(pid).is_err() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 20 {
        if holds() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    panic!("never came: {what}");
}

#[test]
fn what_dev_prints_works_as_printed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("it's a dir");
    let mut dev = Dev::start(&dir, &[]);
    let lines = dev.lines_until("Ctrl-C");
    let nodes = pids(&lines);
    assert_eq!(nodes.len(), 3, "{lines:?}");

    let second = Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("dev").arg("--dir").arg(&dir).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `outrigger dev`"), "{second:?}");

    assert!(shell(under(&lines, "# write on a")).status.success());
    let read = shell(under(&lines, "# read on b"));
    assert_eq!(read.stdout, b"hello", "{read:?}");
    assert!(shell(under(&lines, "# kill c")).status.success());
    let note = dev.line();
    assert!(note.contains("was killed by signal 9"), "{note}");
    assert!(shell(&under(&lines, "# write on a").replace("hello", "again")).status.success());
    assert_eq!(shell(under(&lines, "# read on b")).stdout, b"again");

    let again = note.split("start it again: ").nth(1).unwrap();
    assert_eq!(again, under(&lines, "# start c again"));
    let mut by_hand = Command::new("sh").args(["-c", &format!("exec {again}")]).spawn().unwrap();
    let read_on_c = under(&lines, "# read on b").replace("/b/outrigger.sock", "/c/outrigger.sock");
    wait_until("c catches up", || shell(&read_on_c).stdout == b"again");

    dev.signal(Signal::TERM);
    assert!(dev.ends().success());
    assert!(nodes.iter().all(|pid| gone(*pid)));
    assert!(by_hand.try_wait().unwrap().is_none(), "what was started by hand is not for dev to stop");
    kill_process(pid(by_hand.id()), Signal::TERM).unwrap();
    assert!(by_hand.wait().unwrap().success());

    let mut dev = Dev::start(&dir, &[]);
    let lines = dev.lines_until("Ctrl-C");
    assert_eq!(shell(under(&lines, "# read on b")).stdout, b"again", "data stays for the next time");
    dev.signal(Signal::INT);
    assert!(dev.ends().success());
}

#[test]
fn nodes_do_not_outlive_a_dev_that_is_killed() {
    let temp = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(&temp.path().join("d"), &["--nodes", "2"]);
    let nodes = pids(&dev.lines_until("Ctrl-C"));
    assert!(nodes.len() == 2 && !nodes.iter().any(|pid| gone(*pid)));
    dev.signal(Signal::KILL);
    assert!(!dev.ends().success());
    wait_until("the nodes end", || nodes.iter().all(|pid| gone(*pid)));
}
