//! A cluster of real `serve` processes for black-box tests, on loopback or wherever they are put.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "each test file uses a part of it"
)]

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outrigger::client::{Client, Consistency};
pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// Writes a file that only its owner may read, as a key has to be.
pub(crate) fn secret(path: &Path, text: &str) {
    let mut options = fs::File::options();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// How long anything may take before a test calls it lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One node's files and, while it runs, its process.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) peer: SocketAddr,
    pub(crate) admin_port: u16,
    /// The program and arguments that start the node's own command, which follows them; none: it is started itself.
    /// They have to end in `exec`, so that signals get to the node.
    pub(crate) launcher: Vec<String>,
    child: Option<Child>,
}

/// All nodes, in a directory that goes away with them.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) dir: tempfile::TempDir,
}

fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn free_tcp_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// Writes the files of `count` nodes on loopback; none runs yet.
    pub(crate) fn prepare(count: usize) -> Self {
        Self::prepare_voters(count, count)
    }

    /// Writes the files of `count` nodes on loopback, of which the first `voters` vote; none runs yet.
    pub(crate) fn prepare_voters(count: usize, voters: usize) -> Self {
        let place = |_| (SocketAddr::from(([127, 0, 0, 1], free_udp_port())), free_tcp_port());
        Self::prepare_some(&(0..count).map(place).collect::<Vec<_>>(), voters)
    }

    /// Writes the files of one node for each address for its peers and port for its admins.
    pub(crate) fn prepare_at(places: &[(SocketAddr, u16)]) -> Self {
        Self::prepare_some(places, places.len())
    }

    fn prepare_some(places: &[(SocketAddr, u16)], voters: usize) -> Self {
        // Socket paths are short: the system's limit is 107 bytes.
        let dir = tempfile::Builder::new().prefix("og").tempdir_in("/tmp").unwrap();
        secret(&dir.path().join("cluster.key"), "0123456789abcdef0123456789abcdef\n");
        let node = |(n, place): (usize, &(SocketAddr, u16))| Node {
            name: format!("n{n}"),
            dir: dir.path().join(format!("n{n}")),
            peer: place.0,
            admin_port: place.1,
            launcher: Vec::new(),
            child: None,
        };
        let nodes: Vec<Node> = places.iter().enumerate().map(node).collect();
        let quoted = |texts: Vec<String>| texts.iter().map(|t| format!("{t:?}")).collect::<Vec<_>>().join(", ");
        let names = quoted(nodes.iter().take(voters).map(|node| node.name.clone()).collect());
        let seeds = quoted(nodes.iter().take(voters).map(|node| node.peer.to_string()).collect());
        for node in &nodes {
            fs::create_dir_all(&node.dir).unwrap();
            let Node { name, dir: home, peer, admin_port, .. } = node;
            let config = format!(
                r#"[node]
name = "{name}"
data_dir = "{home}/data"
[socket]
path = "{home}/s"
[peer]
listen = "{peer}"
seeds = [{seeds}]
[cluster]
id = "test"
voters = [{names}]
key_file = "{key}"
[admin]
listen = "127.0.0.1:{admin_port}"
"#,
                home = home.display(),
                key = dir.path().join("cluster.key").display(),
            );
            fs::write(home.join("outrigger.toml"), config).unwrap();
        }
        Self { nodes, dir }
    }

    /// Starts `count` nodes and waits until every one is ready.
    pub(crate) async fn start(count: usize) -> Self {
        let mut cluster = Self::prepare(count);
        for node in &mut cluster.nodes {
            node.start();
        }
        for node in &mut cluster.nodes {
            node.ready().await;
        }
        cluster
    }
}

impl Node {
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("outrigger.toml")
    }

    /// Starts the process; its log goes to `log` in its directory.
    pub(crate) fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let program = env!("CARGO_BIN_EXE_outrigger");
        let mut command = match &*self.launcher {
            [] => Command::new(program),
            [launcher, arguments @ ..] => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(program);
                command
            }
        };
        command.arg("serve").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// SIGKILL: no goodbye, no flush.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; returns how it exited.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the process to end.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.take().unwrap().wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            assert!(Instant::now() < until, "{} never got ready:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.admin("/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// The whole answer of the admin port.
    pub(crate) async fn admin(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.admin_port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    pub(crate) fn client(&self) -> Client {
        Client::builder(self.socket()).build()
    }

    pub(crate) fn quorum_reader(&self) -> Client {
        Client::builder(self.socket()).consistency(Consistency::Quorum).build()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Looks again and again until it is so.
pub(crate) async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "never came true: {what}");
}

/// The rows of a shard file, read as any SQLite program would.
pub(crate) fn rows_of(file: &Path) -> Vec<(String, Vec<u8>, i64)> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(file, flags).unwrap();
    let mut statement = connection.prepare("SELECT key, value, upd FROM kv ORDER BY key").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}
