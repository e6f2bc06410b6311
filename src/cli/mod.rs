//! The command line: parse, call, print. One file per family of commands.
//!
//! ```text
//!   serve     flags of a node          data      put get del cas list     watch
//!   dev       a local cluster          inspect   status shards check-config      health
//!   cluster   who votes, on how many replicas each shard is      migrate   on which one is      change    carries these out
//!   backup    restore    manifest: what a backup says of itself
//!   bench     load on the socket, and what came of it
//!   output    tables, colours, closed pipes      progress    logging
//! ```

mod backup;
mod bench;
mod change;
mod cluster;
mod data;
mod dev;
mod health;
mod inspect;
mod logging;
mod manifest;
mod migrate;
mod output;
mod progress;
mod restore;
mod serve;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use outrigger::client::{self, Client};
use outrigger::config::ConfigError;
use outrigger::token::{self, Token};
use outrigger::types::ShardId;

pub(crate) use serve::parent_gone;

const DEFAULT_SOCKET: &str = "./outrigger.sock";
const DEFAULT_NAMESPACE: &str = "default";
/// Options of the client that mean nothing to the commands in [`NOT_CLIENTS`], by their ids.
/// Beside each, the name that nobody types.
const CLIENT_OPTIONS: [(&str, &str); 6] = [
    ("org", "no-such-option-org"),
    ("ns", "no-such-option-ns"),
    ("token_file", "no-such-option-token-file"),
    ("consistency", "no-such-option-consistency"),
    ("timeout", "no-such-option-timeout"),
    ("json", "no-such-option-json"),
];
const NOT_CLIENTS: [&str; 3] = ["serve", "dev", "check-config"];
/// Options that change nothing about a command, by its name: taken, so that a script may pass the same ones to every
/// command, but no part of its help.
const WITHOUT_EFFECT: [(&str, &[&str]); 8] = [
    ("watch", &["consistency", "timeout"]),
    ("status", &["org", "ns", "consistency", "timeout"]),
    ("health", &["org", "ns", "consistency", "timeout", "json"]),
    ("shards", &["ns", "consistency", "timeout"]),
    ("cluster", &["org", "ns", "consistency", "timeout"]),
    ("migrate", &["consistency", "timeout"]),
    ("backup", &["timeout"]),
    ("restore", &["consistency"]),
];

/// Keeps an application's state as local SQLite shards, replicated to a quorum of its peers.
#[derive(Debug, Parser)]
#[command(
    name = "outrigger",
    version,
    max_term_width = 110,
    after_help = "\
EXAMPLES
  outrigger dev                              three nodes on this machine
  outrigger serve                            one node, alone: ./outrigger-data
  outrigger put greeting hello               write (prints the version) ...
  outrigger get greeting                     ... then read it
  outrigger --org acme --ns pay list wf/     one tenant's shard
  outrigger watch                            its rows, then its changes
  outrigger status                           the cluster as a table

EXIT STATUS
  0 success              64 bad configuration
  2 bad usage            69 socket or quorum out of reach
  1 anything else"
)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The node's Unix socket [for clients also: OUTRIGGER_SOCKET; default: ./outrigger.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<String>,
    #[command(flatten)]
    log: logging::Options,
    #[command(flatten)]
    client: ClientOptions,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Client options")]
struct ClientOptions {
    /// The org of the shard [default: `_`, the org of those who have none; for shards, backup and restore: all]
    #[arg(long, global = true)]
    org: Option<String>,
    /// The namespace of the shard [default: `default`; for backup and restore: all]
    #[arg(long, global = true, visible_alias = "namespace")]
    ns: Option<String>,
    /// The file with the token to show to the node, where its rules ask for one; the first of several counts
    /// [also: OUTRIGGER_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Who has to agree [default: local for reads, quorum for writes]
    #[arg(long, global = true, value_enum)]
    consistency: Option<Consistency>,
    /// How long the node may look for a quorum, as in 500ms or 2s [default: the node's timeouts.propose]
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Print JSON, an object per line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Consistency {
    Local,
    Quorum,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Dev(dev::Dev),
    Put(data::Put),
    Get(data::Get),
    Del(data::Del),
    Cas(data::Cas),
    List(data::List),
    Watch(watch::Watch),
    Status(inspect::Status),
    Health(health::Health),
    Shards(inspect::Shards),
    Cluster(cluster::Cluster),
    Migrate(migrate::Migrate),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Bench(bench::Bench),
    CheckConfig(inspect::CheckConfig),
}

/// `serve`, with the global options that concern it.
pub(crate) struct ServeCommand<'a> {
    global: &'a Global,
    flags: &'a serve::Serve,
    pub(crate) exit_with_parent: bool,
}

impl ServeCommand<'_> {
    /// Starts logging and reads the configuration.
    pub(crate) fn configuration(&self) -> Result<outrigger::config::Config, Failure> {
        self.global.log.install("info")?;
        Ok(self.flags.configuration(self.global.socket.clone())?)
    }
}

impl CommandLine {
    /// The flags of `serve`, where that is the command.
    pub(crate) fn serve(&self) -> Option<ServeCommand<'_>> {
        let Command::Serve(flags) = &self.command else { return None };
        Some(ServeCommand { global: &self.global, flags, exit_with_parent: flags.exit_with_parent })
    }
}

/// Parses this process's arguments; shows help or what is wrong with them, and ends the process, where there is cause.
pub(crate) fn parse() -> CommandLine {
    let matches: ArgMatches = command().get_matches();
    CommandLine::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Global options may stand before or after the command. Where they mean nothing they are refused, and left out of the
/// help: an option of the same id under a name nobody types takes their place.
fn command() -> clap::Command {
    let command = WITHOUT_EFFECT.into_iter().fold(CommandLine::command(), |command, (name, without_effect)| {
        let is_hidden = |arg: &&Arg| without_effect.contains(&arg.get_id().as_str());
        let hidden: Vec<Arg> = command.get_arguments().filter(is_hidden).map(|arg| arg.clone().hide(true)).collect();
        command.mut_subcommand(name, |sub| sub.args(hidden))
    });
    NOT_CLIENTS.into_iter().fold(command, |command, name| {
        let socket = (name != "serve").then_some(("socket", "no-such-option-socket"));
        command.mut_subcommand(name, |sub| {
            CLIENT_OPTIONS
                .into_iter()
                .chain(socket)
                .fold(sub, |sub, (id, name)| sub.arg(Arg::new(id).long(name).hide(true)))
        })
    })
}

/// Runs every command but `serve`.
pub(crate) fn run(command_line: CommandLine) -> Result<(), Failure> {
    let CommandLine { global, command } = command_line;
    global.log.install("warn")?;
    if let Command::CheckConfig(check) = &command {
        return check.run();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::other)?;
    let outcome = runtime.block_on(Box::pin(async {
        match command {
            Command::Dev(dev) => dev.run(&global.log).await,
            Command::Put(put) => put.run(&global.shard_client()?, global.client.json).await,
            Command::Get(get) => get.run(&global.shard_client()?, global.client.json).await,
            Command::Del(del) => del.run(&global.shard_client()?, global.client.json).await,
            Command::Cas(cas) => cas.run(&global.shard_client()?, global.client.json).await,
            Command::List(list) => list.run(&global.shard_client()?, global.client.json).await,
            Command::Watch(watch) => watch.run(&global.shard_client()?, global.client.json).await,
            Command::Status(status) => status.run(&global.client()?.build(), global.client.json).await,
            Command::Health(health) => health.run(global.client()?).await,
            Command::Shards(shards) => {
                shards.run(&global.client()?.build(), global.client.org.as_deref(), global.client.json).await
            }
            Command::Cluster(cluster) => cluster.run(&global.client()?.build(), global.client.json).await,
            Command::Migrate(migrate) => {
                migrate.run(&global.client()?.build(), global.shard()?, global.client.json).await
            }
            Command::Backup(backup) => backup.run(&global).await,
            Command::Restore(restore) => restore.run(&global).await,
            Command::Bench(bench) => bench.run(&global).await,
            Command::Serve(_) | Command::CheckConfig(_) => Ok(()),
        }
    }));
    runtime.shutdown_background();
    outcome
}

impl Global {
    fn socket(&self) -> String {
        let environment = || std::env::var("OUTRIGGER_SOCKET").ok().filter(|path| !path.is_empty());
        self.socket.clone().or_else(environment).unwrap_or_else(|| DEFAULT_SOCKET.to_owned())
    }

    fn is_local(&self) -> bool {
        matches!(self.client.consistency, Some(Consistency::Local))
    }

    /// The token to show; none where none is named.
    fn token(&self) -> Result<Option<Token>, Failure> {
        let environment =
            || std::env::var_os("OUTRIGGER_TOKEN_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let Some(file) = self.client.token_file.clone().or_else(environment) else { return Ok(None) };
        let tokens = token::read_file(&file).map_err(|error| Failure::Usage(format!("--token-file: {error}")))?;
        Ok(tokens.into_iter().next())
    }

    fn client(&self) -> Result<client::Builder, Failure> {
        let mut builder = Client::builder(self.socket());
        if let Some(token) = self.token()? {
            builder = builder.token(token);
        }
        if let Some(consistency) = self.client.consistency {
            builder = builder.consistency(match consistency {
                Consistency::Local => client::Consistency::Local,
                Consistency::Quorum => client::Consistency::Quorum,
            });
        }
        if let Some(timeout) = self.client.timeout {
            builder = builder.timeout(timeout);
        }
        Ok(builder)
    }

    /// The shard that the options name.
    fn shard(&self) -> Result<ShardId, Failure> {
        let namespace = self.client.ns.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let shard = ShardId::parse(self.client.org.as_deref().unwrap_or_default(), namespace);
        shard.map_err(|error| Failure::Usage(error.to_string()))
    }

    fn shard_client(&self) -> Result<Client, Failure> {
        let namespace = self.client.ns.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        Ok(self.client()?.shard(self.client.org.as_deref().unwrap_or_default(), namespace)?.build())
    }
}

/// Why a command did not succeed: what to say, and which exit status to say it with.
#[derive(Debug)]
pub(crate) enum Failure {
    /// 2
    Usage(String),
    /// 64
    Configuration(String),
    /// 69
    Unavailable(String),
    /// 1
    Other(String),
    /// The reader of our output has seen enough, as `head` does: nobody is left to complain to.
    PipeClosed,
}

impl Failure {
    /// With another message.
    fn map(self, message: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Usage(text) => Self::Usage(message(text)),
            Self::Configuration(text) => Self::Configuration(message(text)),
            Self::Unavailable(text) => Self::Unavailable(message(text)),
            Self::Other(text) => Self::Other(message(text)),
            Self::PipeClosed => Self::PipeClosed,
        }
    }

    pub(crate) fn other(error: impl std::fmt::Display) -> Self {
        Self::Other(error.to_string())
    }

    /// What [`Failure::report`] says.
    fn message(&self) -> &str {
        match self {
            Self::Usage(text) | Self::Configuration(text) | Self::Unavailable(text) | Self::Other(text) => text,
            Self::PipeClosed => "",
        }
    }

    /// The same, with a word more.
    fn with(self, more: &str) -> Self {
        match self {
            Self::Usage(why) => Self::Usage(why + more),
            Self::Configuration(why) => Self::Configuration(why + more),
            Self::Unavailable(why) => Self::Unavailable(why + more),
            Self::Other(why) => Self::Other(why + more),
            Self::PipeClosed => Self::PipeClosed,
        }
    }

    /// A node that did not start, with every cause on one line.
    pub(crate) fn start(failed: &outrigger::node::Error) -> Self {
        let mut message = failed.to_string();
        let mut cause = std::error::Error::source(failed);
        while let Some(error) = cause {
            let text = error.to_string();
            // Errors that already quote their cause would say everything twice.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        match failed {
            // Files that the configuration names: where they cannot be used, it is at fault.
            outrigger::node::Error::Transport(outrigger::transport::quic::Error::Identity(_)) => {
                Self::identity(&message)
            }
            outrigger::node::Error::Access(_) | outrigger::node::Error::ForeignData { .. } => {
                Self::Configuration(message)
            }
            _ => Self::Other(message),
        }
    }

    /// Files of keys or certificates that cannot be used.
    pub(crate) fn identity(message: &str) -> Self {
        Self::Configuration(format!("cluster.key_file or cluster.tls: {message}"))
    }

    /// Says it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        let (code, message) = match self {
            Self::PipeClosed => return ExitCode::SUCCESS,
            Self::Usage(message) => (2, message),
            Self::Configuration(message) => (64, message),
            Self::Unavailable(message) => (69, message),
            Self::Other(message) => (1, message),
        };
        output::complain(&message);
        ExitCode::from(code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error.to_string())
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        match &error {
            client::Error::NotReachable { reason, .. } => Self::Unavailable(format!("{error}; {}", what_to_do(reason))),
            client::Error::Problem(problem) if problem.status == 401 => Self::Other(format!(
                "{error}; name the file with a token that the node's rules take (--token-file, OUTRIGGER_TOKEN_FILE)"
            )),
            _ if error.is_unavailable() => Self::Unavailable(error.to_string()),
            _ if error.is_bad_request() => Self::Usage(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Where nobody answers at the socket.
fn what_to_do(reason: &std::io::Error) -> &'static str {
    match reason.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "run as the socket's owner or in its group, or give it another mode (socket.mode, read at the node's start)"
        }
        // Rust's own check of the path, which never reaches the system.
        std::io::ErrorKind::InvalidInput => "a socket's path has at most 107 bytes: name it by a shorter, relative one",
        _ => "is `outrigger serve` running, and is this its socket (--socket, OUTRIGGER_SOCKET)?",
    }
}

/// Of standard output.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::PipeClosed;
        }
        Self::Other(format!("cannot write to standard output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_example() {
        for sub in CommandLine::command().get_subcommands() {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("EXAMPLES\n"), "{} has no examples", sub.get_name());
            assert!(help.contains(sub.get_name()), "{}: other commands' examples", sub.get_name());
        }
    }

    #[test]
    fn examples_are_not_broken_into_lines_that_nobody_could_type() {
        const TERMINAL_COLUMNS: usize = 80;
        let root = CommandLine::command();
        for command in std::iter::once(&root).chain(root.get_subcommands()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let long: Vec<_> = help.lines().filter(|line| line.chars().count() > TERMINAL_COLUMNS).collect();
            assert!(long.is_empty(), "{}: {long:#?}", command.get_name());
        }
    }

    #[test]
    fn options_without_effect_are_taken_but_not_shown() {
        let args = ["outrigger", "--org", "acme", "status", "--ns", "pay", "--json"];
        let matches = command().try_get_matches_from(args).unwrap();
        assert!(CommandLine::from_arg_matches(&matches).unwrap().global.client.json);
        let mut command = command();
        command.build();
        let mut help = |name| command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        let (status, shards) = (help("status"), help("shards"));
        assert!(
            !status.contains("--org") && !status.contains("--consistency") && status.contains("--json"),
            "{status}"
        );
        assert!(!shards.contains("--ns") && shards.contains("--org <ORG>"), "{shards}");
        assert!(help("get").contains("--consistency"));
    }

    #[test]
    fn client_options_stand_anywhere_but_only_where_they_mean_something() {
        for good in [["--org", "acme", "get", "k"], ["get", "k", "--org", "acme"]] {
            let matches = command().try_get_matches_from(["outrigger"].into_iter().chain(good)).unwrap();
            let parsed = CommandLine::from_arg_matches(&matches).unwrap();
            assert_eq!(parsed.global.client.org.as_deref(), Some("acme"));
        }
        assert!(command().try_get_matches_from(["outrigger", "serve", "--org", "acme"]).is_err());
        assert!(command().try_get_matches_from(["outrigger", "serve", "--socket", "s"]).is_ok());
        let mut command = command();
        command.build();
        let serve = command.find_subcommand_mut("serve").unwrap().render_long_help().to_string();
        assert!(!serve.contains("--ns") && !serve.contains("no-such-option"), "{serve}");
    }
}
