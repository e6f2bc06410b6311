//! The directory of a `dev` cluster.
//!
//! ```text
//!   <dir>/dev.toml       which nodes, on which ports: chosen once. Written last, so that it marks a whole directory
//!   <dir>/dev.lock       held while `dev` runs
//!   <dir>/cluster.key    the secret they share, 0600
//!   <dir>/a/             node.toml (written anew each time), outrigger.sock, data/, log
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use outrigger::config::{Config, Environment, Overrides};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::cli::Failure;

/// The most nodes, named `a` to `p`.
pub(super) const NODES_MAX: i64 = 16;
const NODES_DEFAULT: u8 = 3;
const SECRET_BYTES: usize = 32;

/// A `dev` cluster's directory, locked.
#[derive(Debug)]
pub(super) struct Layout {
    /// This program, by an absolute path.
    pub(super) program: String,
    /// In name order.
    pub(super) nodes: Vec<Place>,
    _lock: File,
}

/// Where one node is; all paths absolute.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) admin: SocketAddr,
    pub(super) config: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
}

/// `dev.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Roster {
    node: Vec<Ports>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    name: String,
    peer: SocketAddr,
    admin: SocketAddr,
}

/// Makes or finds the cluster in `dir`; with `fresh`, an empty one.
pub(super) fn open(dir: &Path, nodes: Option<u8>, fresh: bool, program: &str) -> Result<Layout, Failure> {
    let made = !dir.exists();
    fs::create_dir_all(dir).map_err(|error| failed("create", dir, &error))?;
    let dir = fs::canonicalize(dir).map_err(|error| failed("find", dir, &error))?;
    let roster_file = dir.join("dev.toml");
    if !roster_file.exists() && !made && !is_ours(&dir)? {
        return Err(Failure::Other(format!(
            "{} holds something else than a `dev` cluster; choose another --dir",
            dir.display()
        )));
    }
    let lock = lock(&dir)?;
    let mut roster = read_roster(&roster_file)?;
    if fresh {
        // Nodes that outlived an earlier `dev` would go on writing to files that are gone.
        let running = roster.iter().flat_map(|roster| &roster.node).map(|ports| dir.join(&ports.name));
        if let Some(node) = running.map(|node| node.join("outrigger.sock")).find(|socket| answers(socket)) {
            return Err(Failure::Other(format!("a node still answers at {}; stop it before --fresh", node.display())));
        }
        for ports in roster.iter().flat_map(|roster| &roster.node) {
            remove(&dir.join(&ports.name))?;
        }
        remove(&dir.join("cluster.key"))?;
        remove(&roster_file)?;
        roster = None;
    }
    let roster = match roster {
        Some(roster) => roster,
        None => found(&dir, nodes.unwrap_or(NODES_DEFAULT))?,
    };
    let count = roster.node.len();
    if let Some(wanted) = nodes.filter(|wanted| usize::from(*wanted) != count) {
        return Err(Failure::Other(format!(
            "{} holds a cluster of {count}, not {wanted}; add --fresh to begin anew, or leave --nodes out",
            dir.display()
        )));
    }
    let nodes = roster.node.iter().map(|ports| place(&dir, &roster, ports)).collect::<Result<_, _>>()?;
    Ok(Layout { program: program.to_owned(), nodes, _lock: lock })
}

/// True for an empty directory, or one that an interrupted `dev` left behind.
fn is_ours(dir: &Path) -> Result<bool, Failure> {
    let mut entries = fs::read_dir(dir).map_err(|error| failed("read", dir, &error))?;
    Ok(entries.all(|entry| {
        entry.is_ok_and(|entry| {
            ["dev.lock", "dev.toml.new", "cluster.key"].iter().any(|name| entry.file_name() == *name)
        })
    }))
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("dev.lock");
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(|error| failed("open", &path, &error))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        let _ = file.take(32).read_to_string(&mut holder);
        return Err(Failure::Other(format!(
            "another `outrigger dev` (pid {}) runs the cluster in {}; stop it, or choose another --dir",
            holder.trim(),
            dir.display()
        )));
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| failed("write", &path, &error))?;
    Ok(file)
}

fn read_roster(path: &Path) -> Result<Option<Roster>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path, &error)),
    };
    let unreadable = |why: &str| {
        Failure::Other(format!("{} is damaged ({why}); delete the directory to begin anew", path.display()))
    };
    let roster: Roster = toml::from_str(&text).map_err(|error| unreadable(error.message()))?;
    // Names become paths, some of which --fresh deletes.
    let sound = roster.node.iter().map(|ports| ports.name.clone()).eq(names(roster.node.len()));
    if !sound || roster.node.is_empty() {
        return Err(unreadable("its nodes are not a, b, c ..."));
    }
    Ok(Some(roster))
}

/// A secret and free ports for `count` nodes.
fn found(dir: &Path, count: u8) -> Result<Roster, Failure> {
    let key = dir.join("cluster.key");
    remove(&key)?;
    let mut secret = [0_u8; SECRET_BYTES];
    SystemRandom::new().fill(&mut secret).map_err(|_| Failure::Other("the system gave no random bytes".to_owned()))?;
    let text: String = secret.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| failed("write", &key, &error))?;

    let roster = Roster { node: free_ports(usize::from(count)).map_err(Failure::other)? };
    let body = toml::to_string(&roster).map_err(Failure::other)?;
    let head = "# The nodes of an `outrigger dev` cluster and the ports that they keep.\n\n";
    let (new, path) = (dir.join("dev.toml.new"), dir.join("dev.toml"));
    let written = fs::write(&new, format!("{head}{body}")).and_then(|()| fs::rename(&new, &path));
    written.map_err(|error| failed("write", &path, &error))?;
    Ok(roster)
}

fn names(count: usize) -> impl Iterator<Item = String> {
    ('a'..='z').take(count).map(String::from)
}

/// Ports that are free now; all are held until all are found, so that none is found twice.
fn free_ports(count: usize) -> io::Result<Vec<Ports>> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut held = Vec::new();
    let mut nodes = Vec::new();
    for name in names(count) {
        let (peer, admin) = (UdpSocket::bind(any)?, TcpListener::bind(any)?);
        nodes.push(Ports { name, peer: peer.local_addr()?, admin: admin.local_addr()? });
        held.push((peer, admin));
    }
    Ok(nodes)
}

/// Writes a node's configuration, by the same checks that the node will make.
fn place(dir: &Path, roster: &Roster, ports: &Ports) -> Result<Place, Failure> {
    let home = dir.join(&ports.name);
    fs::create_dir_all(&home).map_err(|error| failed("create", &home, &error))?;
    let place = Place {
        name: ports.name.clone(),
        admin: ports.admin,
        config: home.join("node.toml"),
        socket: home.join("outrigger.sock"),
        log: home.join("log"),
    };
    let seeds = roster.node.iter().filter(|other| other.name != ports.name).map(|other| other.peer.to_string());
    let settings = Overrides::default()
        .text("node.name", Some(ports.name.clone()))
        .text("node.data_dir", Some(utf8(&home.join("data"))?))
        .text("socket.path", Some(utf8(&place.socket)?))
        .text("peer.listen", Some(ports.peer.to_string()))
        .list("peer.seeds", seeds.collect())
        .text("cluster.id", Some("dev".to_owned()))
        .list("cluster.voters", roster.node.iter().map(|node| node.name.clone()).collect())
        .text("cluster.key_file", Some(utf8(&dir.join("cluster.key"))?))
        .text("admin.listen", Some(ports.admin.to_string()));
    let config = Config::load(None, &Environment::default(), settings).map_err(|error| {
        Failure::Configuration(format!("node {} in {}: {error}; choose another --dir", ports.name, dir.display()))
    })?;
    let head = "# Written by `outrigger dev` each time it starts; changes made here are lost.\n\n";
    fs::write(&place.config, format!("{head}{}", config.to_toml()))
        .map_err(|error| failed("write", &place.config, &error))?;
    Ok(place)
}

fn utf8(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| Failure::Other(format!("the path {path:?} is not UTF-8")))
}

fn answers(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// Deletes a file or a whole directory; that there is none is fine.
fn remove(path: &Path) -> Result<(), Failure> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("delete", path, &error)),
        _ => Ok(()),
    }
}

fn failed(tried: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::Other(format!("cannot {tried} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn refusal(opened: Result<Layout, Failure>) -> String {
        format!("{:?}", opened.unwrap_err())
    }

    #[test]
    fn a_directory_keeps_its_nodes_ports_and_secret() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("dev");
        let first = open(&dir, None, false, "/bin/outrigger").unwrap();
        assert_eq!(first.nodes.iter().map(|place| place.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let key = dir.join("cluster.key");
        let secret = fs::read_to_string(&key).unwrap();
        assert_eq!(secret.trim().len(), 2 * SECRET_BYTES);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        for place in &first.nodes {
            let config = Config::load(Some(&place.config), &Environment::default(), Overrides::default()).unwrap();
            assert_eq!((config.cluster.voters.len(), config.peer.seeds.len()), (3, 2));
            assert_eq!((config.socket.path, config.admin.listen), (place.socket.clone(), place.admin));
            assert!(config.node.data_dir.is_absolute());
        }
        let ports: Vec<_> = first.nodes.iter().map(|place| place.admin).collect();

        assert!(refusal(open(&dir, None, false, "x")).contains("another `outrigger dev` (pid"));
        drop(first);
        assert!(refusal(open(&dir, Some(5), false, "x")).contains("a cluster of 3, not 5"));
        let again = open(&dir, None, false, "x").unwrap();
        assert_eq!(again.nodes.iter().map(|place| place.admin).collect::<Vec<_>>(), ports);
        assert_eq!(fs::read_to_string(&key).unwrap(), secret);
        drop(again);

        fs::write(dir.join("a/left"), "over").unwrap();
        fs::write(dir.join("mine"), "kept").unwrap();
        let fresh = open(&dir, Some(2), true, "x").unwrap();
        assert_eq!(fresh.nodes.len(), 2);
        assert_ne!(fs::read_to_string(&key).unwrap(), secret);
        assert!(!dir.join("a/left").exists() && dir.join("mine").exists() && !dir.join("c").exists());
    }

    #[test]
    fn other_directories_are_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("thesis.txt"), "precious").unwrap();
        assert!(refusal(open(temp.path(), None, true, "x")).contains("something else"));
        assert!(temp.path().join("thesis.txt").exists());
    }

    #[test]
    fn a_roster_cannot_name_other_directories() {
        let temp = tempfile::tempdir().unwrap();
        let node = "[[node]]\nname = \"../x\"\npeer = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\n";
        fs::write(temp.path().join("dev.toml"), node).unwrap();
        assert!(refusal(open(temp.path(), None, true, "x")).contains("damaged"));
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_with_the_limit() {
        let temp = tempfile::tempdir().unwrap();
        let message = refusal(open(&temp.path().join("d".repeat(100)), None, false, "x"));
        assert!(message.contains("107") && message.contains("--dir"), "{message}");
    }
}
