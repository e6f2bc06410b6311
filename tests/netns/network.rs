//! A network of namespaces: one for each host, joined by a bridge in one more, so that nothing outside is touched.
//!
//! ```text
//!   og<pid>-<n>-h0        og<pid>-<n>-h1        og<pid>-<n>-h2
//!   eth0 10.77.0.1        eth0 10.77.0.2        eth0 10.77.0.3     nft: what comes in is dropped, or not
//!        └───────── veth ──────┴──── veth ──────────┘
//!                    og<pid>-<n>-bridge
//! ```
//!
//! Faults are on the side that receives: the sender of a packet that is lost on the way does not hear of it.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Where iproute2 keeps its namespaces.
const NAMESPACES: &str = "/run/netns";
/// What the names of ours begin with; the maker's process id follows.
const PREFIX: &str = "og";
/// The port for peers, the same on every host.
const PEER_PORT: u16 = 7117;
/// The port for admins, on each host's own loopback.
const ADMIN_PORT: u16 = 9464;
/// How much a limited link sends at once, in bytes: two full packets.
const BURST_BYTES: u32 = 3_100;
/// How long a packet may wait for a limited link before it is dropped, in milliseconds.
const QUEUE_MS: u32 = 100;

/// A host's filter: the peers whose packets are dropped, and the share of all packets that is.
const FILTER: &str = "
table inet faults {
    counter dropped { }
    set cut { type ipv4_addr; }
    chain loss { }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @cut counter name dropped drop
        iifname eth0 jump loss
    }
}
";

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// Hosts numbered from 0, all connected until told otherwise; they go away with it.
pub(crate) struct Network {
    name: String,
    hosts: usize,
}

impl Network {
    /// None, and one line that says why, where this machine or this user cannot have one.
    pub(crate) fn new(hosts: usize) -> Option<Self> {
        if !are_possible() {
            return None;
        }
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = Self { name: format!("{PREFIX}{}-{number}", std::process::id()), hosts };
        network.build().unwrap();
        Some(network)
    }

    fn build(&self) -> Result<(), String> {
        let bridge = self.bridge();
        run("ip", &["netns", "add", &bridge])?;
        run("ip", &["-n", &bridge, "link", "add", "bridge", "type", "bridge"])?;
        run("ip", &["-n", &bridge, "link", "set", "bridge", "up"])?;
        for host in 0..self.hosts {
            let (namespace, port) = (self.namespace(host), format!("port{host}"));
            run("ip", &["netns", "add", &namespace])?;
            let peer = ["type", "veth", "peer", "name", "eth0", "netns", &namespace];
            run("ip", &[&["-n", &bridge, "link", "add", &port][..], &peer].concat())?;
            run("ip", &["-n", &bridge, "link", "set", &port, "master", "bridge", "up"])?;
            let address = format!("{}/24", address(host));
            run("ip", &["-n", &namespace, "address", "add", &address, "dev", "eth0"])?;
            run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
            run("ip", &["-n", &namespace, "link", "set", "eth0", "up"])?;
            filter(&namespace, FILTER)?;
        }
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("{}-bridge", self.name)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-h{host}", self.name)
    }

    /// What each host's node listens on: for peers, for admins.
    pub(crate) fn places(&self) -> Vec<(SocketAddr, u16)> {
        (0..self.hosts).map(|host| (SocketAddr::from((address(host), PEER_PORT)), ADMIN_PORT)).collect()
    }

    /// What starts a program on that host.
    pub(crate) fn launcher(&self, host: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace(host)].map(str::to_owned).to_vec()
    }

    /// From now on nothing that `from` sends gets to `to`.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        filter(&self.namespace(to), &format!("add element inet faults cut {{ {} }}", address(from))).unwrap();
    }

    /// Nothing gets through between these and those, either way.
    pub(crate) fn part(&self, these: &[usize], those: &[usize]) {
        for (this, that) in these.iter().flat_map(|this| those.iter().map(move |that| (*this, *that))) {
            self.cut(this, that);
            self.cut(that, this);
        }
    }

    /// Every host loses this share of what comes in, by chance.
    pub(crate) fn lose(&self, percent: u32) {
        for host in 0..self.hosts {
            let rule = format!("add rule inet faults loss numgen random mod 100 < {percent} counter name dropped drop");
            filter(&self.namespace(host), &rule).unwrap();
        }
    }

    /// Nothing is cut, nothing is lost. Panics where nothing was since the last time: such a fault proves nothing.
    pub(crate) fn heal(&self) {
        assert!(self.mend() > 0, "no packet was dropped");
    }

    /// Likewise; how many packets were dropped since the last time.
    pub(crate) fn mend(&self) -> u64 {
        let mut dropped = 0;
        for host in 0..self.hosts {
            let namespace = self.namespace(host);
            filter(&namespace, "flush set inet faults cut; flush chain inet faults loss").unwrap();
            let exec = ["netns", "exec", &namespace, "nft", "reset", "counter", "inet", "faults", "dropped"];
            dropped += number_after("packets", &run("ip", &exec).unwrap());
        }
        dropped
    }

    /// Takes the host's cable out: it sees that, and its sends fail.
    pub(crate) fn unplug(&self, host: usize) {
        run("ip", &["-n", &self.namespace(host), "link", "set", "eth0", "down"]).unwrap();
    }

    pub(crate) fn plug(&self, host: usize) {
        run("ip", &["-n", &self.namespace(host), "link", "set", "eth0", "up"]).unwrap();
    }

    /// Every host sends at most this many kilobits in a second. False, and one line that says why, where the kernel
    /// cannot do that.
    pub(crate) fn limit(&self, kilobits: u32) -> bool {
        let (rate, burst, queue) = (format!("{kilobits}kbit"), BURST_BYTES.to_string(), format!("{QUEUE_MS}ms"));
        for host in 0..self.hosts {
            let namespace = self.namespace(host);
            let on = ["-n", &namespace, "qdisc", "add", "dev", "eth0", "root"];
            let how = ["tbf", "rate", &rate, "burst", &burst, "latency", &queue];
            if let Err(why) = run("tc", &[&on[..], &how].concat()) {
                say(&format!("a slow link was not tried, the kernel has no tbf queue: {why}"));
                return false;
            }
        }
        true
    }

    /// As much as it likes. Panics where the limit was never met.
    pub(crate) fn unlimit(&self) {
        let mut met = 0;
        for host in 0..self.hosts {
            let namespace = self.namespace(host);
            met += number_after(
                "overlimits",
                &run("tc", &["-n", &namespace, "-s", "qdisc", "show", "dev", "eth0"]).unwrap(),
            );
            run("tc", &["-n", &namespace, "qdisc", "del", "dev", "eth0", "root"]).unwrap();
        }
        assert!(met > 0, "the limit was never met");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let hosts = (0..self.hosts).map(|host| self.namespace(host));
        // What was not built yet is not there.
        for namespace in hosts.chain([self.bridge()]).filter(|name| Path::new(NAMESPACES).join(name).exists()) {
            remove(&namespace);
        }
    }
}

/// Removes a namespace and whatever still runs in it. Never fails: it may be called while a test fails.
fn remove(namespace: &str) {
    for pid in run("ip", &["netns", "pids", namespace]).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    if let Err(why) = run("ip", &["netns", "delete", namespace]) {
        say(&format!("a namespace is left behind: {why}"));
    }
}

fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(host + 1).unwrap())
}

/// Whether namespaces can be had. Found out once, by making one; where not, one line says why.
fn are_possible() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        let missing = missing();
        if let Some(missing) = &missing {
            say(&format!("network namespaces were not tried: {missing}"));
        }
        missing.is_none()
    })
}

/// What is missing for namespaces, and how to get it. What dead processes left is removed on the way.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some(
            "they need root; run the tests as root, or in a container with CAP_NET_ADMIN and CAP_SYS_ADMIN".to_owned(),
        );
    }
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if run(tool, &["-V"]).is_err() {
            return Some(format!("`{tool}` is missing: apt-get install -y {package}"));
        }
    }
    sweep();
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    let made = run("ip", &["netns", "add", &probe]).and_then(|_| {
        run("ip", &["-n", &probe, "link", "add", "port", "type", "veth", "peer", "name", "eth0"])?;
        run("ip", &["-n", &probe, "link", "add", "bridge", "type", "bridge"])?;
        filter(&probe, FILTER)?;
        filter(&probe, "add rule inet faults loss numgen random mod 100 < 1 drop")
    });
    if Path::new(NAMESPACES).join(&probe).exists() {
        remove(&probe);
    }
    made.err().map(|why| format!("this system does not allow or have them: {why}"))
}

/// Removes what was left by processes that are gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')?.0.parse().ok());
        if maker.and_then(Pid::from_raw).is_some_and(|maker| test_kill_process(maker).is_err()) {
            remove(&name);
        }
    }
}

/// The number that follows a word in a tool's output.
fn number_after(word: &str, output: &str) -> u64 {
    let mut words = output.split_whitespace().skip_while(|found| *found != word);
    let number = words.nth(1).unwrap_or_else(|| panic!("no {word} in {output}"));
    number.parse().unwrap_or_else(|_| panic!("{word} {number} in {output}"))
}

/// Runs a tool; its output, or what it complained of.
fn run(tool: &str, arguments: &[&str]) -> Result<String, String> {
    let told = |why: &dyn std::fmt::Display| format!("`{tool} {}`: {why}", arguments.join(" "));
    let output = Command::new(tool).args(arguments).output().map_err(|why| told(&why))?;
    if !output.status.success() {
        return Err(told(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Hands commands to a namespace's packet filter: all of them take effect at once, or none does.
fn filter(namespace: &str, commands: &str) -> Result<(), String> {
    let mut nft = Command::new("ip");
    nft.args(["netns", "exec", namespace, "nft", "-f", "-"]);
    nft.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let told = |why: &dyn std::fmt::Display| format!("`nft -f` in {namespace}: {why}");
    let mut child = nft.spawn().map_err(|why| told(&why))?;
    child.stdin.take().unwrap().write_all(commands.as_bytes()).map_err(|why| told(&why))?;
    let output = child.wait_with_output().map_err(|why| told(&why))?;
    if !output.status.success() {
        return Err(told(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(())
}

/// One line on the terminal even where a test passes, for what was not tried.
pub(crate) fn say(line: &str) {
    // Nobody may be listening.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
