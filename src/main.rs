//! The `outrigger` program. This file is the boot story of `serve`: configuration, node, signal, drain.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;
use std::time::Duration;

use outrigger::config::Config;
use outrigger::node::Node;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use cli::Failure;

/// Before a node starts over: a disk that fails again and again must not keep the others busy.
const START_OVER_PAUSE: Duration = Duration::from_secs(2);
/// How long a node may take to finish what is in flight before the process ends all the same.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let command_line = cli::parse();
    let outcome = match command_line.serve() {
        Some(serve) => serve.configuration().and_then(|config| run(serve_until_told, config, serve.exit_with_parent)),
        None => cli::run(command_line),
    };
    outcome.map_or_else(Failure::report, |()| ExitCode::SUCCESS)
}

fn run<F: Future<Output = Result<(), Failure>>>(
    story: impl FnOnce(Config, bool) -> F,
    config: Config,
    exit_with_parent: bool,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::other)?;
    let outcome = runtime.block_on(story(config, exit_with_parent));
    // A blocking task that hangs on a broken disk must not keep a drained process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Allows as many open files as this process may allow itself. Few by default, for the sake of programs that use `select`;
/// fewer than connections and shards together may need.
fn raise_file_limit() {
    let held = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: held.maximum, maximum: held.maximum }) {
        warn!(%error, "cannot raise the limit of open files; many connections at once may be refused");
    }
}

async fn serve_until_told(config: Config, exit_with_parent: bool) -> Result<(), Failure> {
    raise_file_limit();
    while serve(config.clone(), exit_with_parent).await? == Ended::StartsOver {
        tokio::time::sleep(START_OVER_PAUSE).await;
    }
    Ok(())
}

/// Why a node stopped.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// It was told to.
    Told,
    /// Its disk must not vote any more, and the others can put another one in its place: the same, under another id.
    StartsOver,
}

async fn serve(config: Config, exit_with_parent: bool) -> Result<Ended, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::other)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::other)?;
    let parent = cli::parent_gone(exit_with_parent);

    let (name, socket) = (config.node.name.clone(), config.socket.path.clone());
    let node = tokio::select! {
        node = Box::pin(Node::start(config)) => node.map_err(|why| Failure::start(&why))?,
        _ = terminate.recv() => return Ok(Ended::Told),
        _ = interrupt.recv() => return Ok(Ended::Told),
    };
    let peer = node.member().peer_addr().map_or_else(|| "none".to_owned(), |addr| addr.to_string());
    info!(node = %name, socket = %socket.display(), peer, admin = %node.admin_addr(), "started");

    let mut ready = false;
    tokio::pin!(parent);
    let mut ended = Ended::Told;
    let failed = loop {
        tokio::select! {
            () = node.member().wait_ready(), if !ready => {
                ready = true;
                info!(node = %name, "ready");
            }
            () = node.member().must_start_over() => {
                warn!(node = %name, "this disk must not vote any more: it starts over as another one");
                ended = Ended::StartsOver;
                break None;
            }
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            () = &mut parent => break None,
            reason = node.member().failed() => break Some(reason),
        }
    };
    if let Some(reason) = &failed {
        error!(node = %name, %reason, "failed");
    }
    info!(node = %name, "draining; a second signal ends the process at once");
    tokio::select! {
        drained = tokio::time::timeout(DRAIN_WITHIN, node.drain()) => match drained {
            Ok(()) => info!(node = %name, "stopped"),
            Err(_) => warn!(node = %name, "not drained within {DRAIN_WITHIN:?}; nothing acknowledged is lost"),
        },
        _ = terminate.recv() => {
            warn!(node = %name, "signal while draining, ending now");
            ended = Ended::Told;
        }
        _ = interrupt.recv() => {
            warn!(node = %name, "signal while draining, ending now");
            ended = Ended::Told;
        }
    }
    failed.map_or(Ok(ended), |reason| Err(Failure::Other(format!("node {name} failed: {reason}"))))
}
