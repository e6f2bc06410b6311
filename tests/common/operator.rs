//! What an operator types and reads, for tests on real processes.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use outrigger::cluster::status::ClusterStatus;
use outrigger::types::NodeId;

use crate::common::{Node, PATIENCE, until};

/// What a proposal may take: as long may a client wait while a change goes on.
pub(crate) const PROPOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A command as an operator types it, with this node's socket.
pub(crate) fn command(node: &Node, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(args).env("OUTRIGGER_SOCKET", node.socket()).stdin(Stdio::null());
    command
}

pub(crate) fn outrigger(node: &Node, args: &[&str]) -> Output {
    tokio::task::block_in_place(|| command(node, args).output().unwrap())
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
pub(crate) fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}{}", output.status, out(output), err(output));
    out(output)
}

pub(crate) async fn status(node: &Node) -> ClusterStatus {
    let mut found = None;
    until("the node answers", async || {
        found = node.client().cluster().await.ok();
        found.is_some()
    })
    .await;
    found.unwrap()
}

pub(crate) fn names(nodes: &[NodeId]) -> Vec<&str> {
    nodes.iter().map(NodeId::as_str).collect()
}

/// Waits until this node says so of its cluster.
pub(crate) async fn sees(node: &Node, what: &str, is: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let status = status(node).await;
        if is(&status) {
            return status;
        }
        assert!(std::time::Instant::now() < until, "{} never sees {what}: {status:#?}\n{}", node.name, node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until these are members of the cluster, by what this node knows.
pub(crate) async fn members(node: &Node, expected: &[&str]) {
    let is_member = |now: &ClusterStatus, name: &str| now.nodes.iter().any(|known| known.node.as_str() == name);
    sees(node, &format!("members {expected:?}"), |now| expected.iter().all(|name| is_member(now, name))).await;
}

#[track_caller]
pub(crate) fn fails_with(output: &Output, code: i32, part: &str) {
    let said = err(output);
    assert!(output.status.code() == Some(code) && said.contains(part), "{}: {said:?} lacks {part:?}", output.status);
}

/// Sends these bytes, reads until the end.
pub(crate) fn raw(node: &Node, request: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
