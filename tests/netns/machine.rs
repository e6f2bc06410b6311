//! Faults of the machine, while its network is fine: a full disk, a clock that is set.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger::client::{Error, Written};

use crate::common::Node;
use crate::network::say;
use crate::trial::{Trial, within};

/// The disk's size in megabytes, and how much of it something else uses up: what is left is a few journal segments.
const DISK_MB: usize = 400;
const BALLAST_MB: usize = 300;
/// The most values of [`VALUE_BYTES`] until it has to be full.
const VALUES_MAX: usize = 400;
const VALUE_BYTES: usize = 1 << 20;
/// How long it may take until a clock that was set is noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);
/// What the node says then.
const NOTICED: &str = "this machine's clock was set";
/// Where the library that lies about the time may be, below the system's libraries.
const FAKETIME: [&str; 3] = ["x86_64-linux-gnu/faketime", "aarch64-linux-gnu/faketime", "faketime"];
const FAKETIME_NAME: &str = "libfaketimeMT.so.1";

/// A path of the node's own tree of file systems.
fn seen_by(node: &Node, path: &Path) -> PathBuf {
    let tree = PathBuf::from("/proc").join(node.pid().to_string()).join("root");
    tree.join(path.strip_prefix("/").unwrap())
}

/// One node's disk fills up under load. The others go on, and so does it once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_full() {
    let mount = format!(r#"mount -t tmpfs -o size={DISK_MB}m tmpfs "$0" && exec "$@""#);
    let prepare = |number: usize, node: &mut Node| {
        if number == 0 {
            // In a tree of its own, so that it is gone with the process.
            let data = node.data();
            fs::create_dir_all(&data).unwrap();
            node.launcher.extend(["sh".to_owned(), "-c".to_owned(), mount.clone(), data.display().to_string()]);
        }
    };
    let Some(trial) = Trial::start_with(3, prepare).await else { return };
    let node = &trial.cluster.nodes[0];
    let ballast = seen_by(node, &node.data().join("ballast"));
    fs::write(&ballast, vec![0; BALLAST_MB << 20]).unwrap();
    let client = node.client();
    let mut refused = None;
    for number in 0..VALUES_MAX {
        let value = vec![b'x'; VALUE_BYTES];
        if let Err(Error::Problem(problem)) = client.put(&format!("large{number}"), value).await
            && problem.status == 507
        {
            refused = Some(problem);
            break;
        }
    }
    let refused = refused.expect("the disk never got full");
    assert_eq!(refused.written, Some(Written::No), "{refused}");
    trial.work_goes_on(&[1, 2]).await;
    fs::remove_file(&ballast).unwrap();
    trial.end().await;
}

/// A process's wall clock, as something else sets it.
struct Lie(PathBuf);

impl Lie {
    fn of(node: &Node) -> Self {
        Self(node.dir.join("clock"))
    }

    /// What the node is to be started with.
    fn launcher(&self, library: &Path) -> Vec<String> {
        let told = |variable: &str, value: &dyn std::fmt::Display| format!("{variable}={value}");
        vec![
            "env".to_owned(),
            told("LD_PRELOAD", &library.display()),
            told("FAKETIME_TIMESTAMP_FILE", &self.0.display()),
            told("FAKETIME_NO_CACHE", &1),
            told("FAKETIME_DONT_FAKE_MONOTONIC", &1),
        ]
    }

    /// From now on the clock is ahead by so much. At once: the file is never seen half written.
    fn tell(&self, seconds: i64) {
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).unwrap();
        fs::rename(&next, &self.0).unwrap();
    }
}

/// One node's clock goes five minutes ahead, back, and an hour behind, with a restart there. Writes go on everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_is_set() {
    let libraries = FAKETIME.map(|dir| Path::new("/usr/lib").join(dir).join(FAKETIME_NAME));
    let Some(library) = libraries.into_iter().find(|library| library.exists()) else {
        say("a clock that is set was not tried: libfaketime is missing: apt-get install -y libfaketime");
        return;
    };
    let prepare = |number: usize, node: &mut Node| {
        if number == 0 {
            let lie = Lie::of(node);
            lie.tell(0);
            node.launcher.extend(lie.launcher(&library));
        }
    };
    let Some(mut trial) = Trial::start_with(3, prepare).await else { return };
    let lie = Lie::of(&trial.cluster.nodes[0]);
    for (times, seconds) in (1..).zip([300, 0, -3600]) {
        lie.tell(seconds);
        let node = &trial.cluster.nodes[0];
        let noticed = within(NOTICED_WITHIN, async || node.log().matches(NOTICED).count() >= times).await;
        assert!(noticed, "a clock set to {seconds:+} s goes unnoticed:\n{}", node.log());
        trial.everybody_works().await;
        trial.everybody_is_ready().await;
    }
    trial.kill(0);
    trial.cluster.nodes[0].start();
    trial.end().await;
}
