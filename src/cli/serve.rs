//! `serve`: flags that name keys of the configuration.

use std::path::PathBuf;

use clap::Args;
use outrigger::config::{Config, ConfigError, Environment, Overrides};
use tokio::sync::oneshot;

/// Run one node, until SIGTERM or SIGINT
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger serve                                alone, in ./outrigger-data
  outrigger serve --config /etc/outrigger.toml   as the file says

  # the environment covers the file, flags cover both
  OUTRIGGER__NODE__NAME=b outrigger serve --config /etc/outrigger.toml

  # one of three, by flags alone
  outrigger serve --name a --voter a,b,c --key-file cluster.key \\
      --listen 10.0.0.7:7117 --seed 10.0.0.8:7117,10.0.0.9:7117

config/outrigger.toml in the sources shows every key;
`outrigger check-config FILE` prints what a file amounts to.")]
pub(crate) struct Serve {
    /// The configuration file, TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name, unique in the cluster [default: node]
    #[arg(long)]
    name: Option<String>,
    /// Where to keep data [default: ./outrigger-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where peers reach this node, UDP [default: 0.0.0.0:7117]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// What peers dial, where it is not what this node listens on
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// A peer to find the others through; may be given several times
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    seed: Vec<String>,
    /// A name of the first voter set, this node's among them; may be given several times [default: this node alone]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    voter: Vec<String>,
    /// How many voters replicate each shard at first; 0 for all of them [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    replication_factor: Option<String>,
    /// The file with the secret that all nodes share
    #[arg(long, value_name = "FILE")]
    key_file: Option<String>,
    /// Nodes of different clusters refuse each other [default: default]
    #[arg(long, value_name = "ID")]
    cluster_id: Option<String>,
    /// Where metrics, probes and the status page are, TCP [default: 127.0.0.1:9464]
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
    /// Stop when standard input ends, as it does when the process that holds its other end dies
    #[arg(long, hide = true)]
    pub(super) exit_with_parent: bool,
}

impl Serve {
    pub(super) fn configuration(&self, socket: Option<String>) -> Result<Config, ConfigError> {
        let flags = Overrides::default()
            .text("node.name", self.name.clone())
            .text("node.data_dir", self.data_dir.clone())
            .text("socket.path", socket)
            .text("peer.listen", self.listen.clone())
            .text("peer.advertise", self.advertise.clone())
            .list("peer.seeds", self.seed.clone())
            .text("cluster.id", self.cluster_id.clone())
            .list("cluster.voters", self.voter.clone())
            .text("cluster.replication_factor", self.replication_factor.clone())
            .text("cluster.key_file", self.key_file.clone())
            .text("admin.listen", self.admin.clone());
        Config::load(self.config.as_deref(), &Environment::of_process(), flags)
    }
}

/// Returns when standard input ends; never where nobody asked to `watch` it.
pub(crate) async fn parent_gone(watch: bool) {
    if !watch {
        return std::future::pending().await;
    }
    let (gone, heard) = oneshot::channel();
    // A thread of its own: one of the runtime's would keep the process waiting for a read that nobody answers.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = gone.send(());
    });
    let _ = heard.await;
}
