//! What a connection has chosen for itself, and the commands that only concern it or the server.

use bytes::Bytes;

use super::glob;
use super::reply::{Reply, Version};
use super::request::{COMMANDS, Login, Meta, Spec};
use crate::api::command::Consistency;
use crate::api::guest::Guest;
use crate::types::{Namespace, Org, ShardId};

/// The Redis version whose commands these are; clients look at it to decide what they may send.
const REDIS_VERSION: &str = "7.2.0";

/// The state that a connection's own commands change.
#[derive(Debug, Clone)]
pub(super) struct Session {
    id: u64,
    pub(super) shard: ShardId,
    pub(super) consistency: Consistency,
    /// Of its writes.
    pub(super) writes: Consistency,
    pub(super) version: Version,
    name: Bytes,
    /// Commands read so far.
    pub(super) commands: u64,
    /// True after `QUIT`: what was sent behind it is ignored.
    pub(super) ended: bool,
}

/// Who a connection is before it says so.
fn default_shard() -> ShardId {
    ShardId { org: Org::sentinel(), namespace: Namespace::default_name() }
}

impl Session {
    pub(super) fn new(id: u64) -> Self {
        Self {
            id,
            shard: default_shard(),
            consistency: Consistency::Local,
            writes: Consistency::Quorum,
            version: Version::Resp2,
            name: Bytes::new(),
            commands: 0,
            ended: false,
        }
    }

    /// Makes the change that `meta` asks for; comes before [`Session::answer`], which is in the new version's words.
    pub(super) fn apply(&mut self, meta: &Meta) {
        match meta {
            Meta::Hello { version, login, name } => {
                self.version = version.unwrap_or(self.version);
                if let Some(Login { shard: Some(shard), .. }) = login {
                    self.shard = shard.clone();
                }
                if let Some(name) = name {
                    self.name = name.clone();
                }
            }
            Meta::Auth(Login { shard: Some(shard), .. }) => self.shard = shard.clone(),
            Meta::ClientSetName(name) => self.name = name.clone(),
            Meta::ClientWrites(consistency) => self.writes = *consistency,
            Meta::ReadOnly => self.consistency = Consistency::Local,
            Meta::ReadWrite => self.consistency = Consistency::Quorum,
            Meta::Reset => *self = Self { commands: self.commands, ..Self::new(self.id) },
            Meta::Quit => self.ended = true,
            _ => {}
        }
    }

    /// Answers `meta`.
    pub(super) fn answer(&self, meta: &Meta, guest: &Guest, connections: usize, reply: &mut Reply<'_>) {
        match meta {
            Meta::Ping(None) => reply.simple("PONG"),
            Meta::Ping(Some(text)) | Meta::Echo(text) => reply.bulk(text),
            Meta::Hello { .. } => self.hello(reply),
            Meta::Auth(_)
            | Meta::Select
            | Meta::ClientSetName(_)
            | Meta::ClientWrites(_)
            | Meta::ClientOther
            | Meta::Quit
            | Meta::ReadOnly
            | Meta::ReadWrite => reply.ok(),
            Meta::ClientGetName if self.name.is_empty() => reply.nil(),
            Meta::ClientGetName => reply.bulk(&self.name),
            Meta::ClientId => reply.integer(i64::try_from(self.id).unwrap_or(i64::MAX)),
            Meta::ClientInfo | Meta::ClientList => reply.verbatim(&self.info_line()),
            Meta::CommandList => {
                reply.array(COMMANDS.len());
                COMMANDS.iter().for_each(|spec| describe(spec, reply));
            }
            Meta::CommandCount => reply.count(COMMANDS.len()),
            Meta::CommandDocs => reply.map(0),
            Meta::CommandInfo(names) => command_info(names, reply),
            Meta::Info => reply.verbatim(&server_info(guest, connections)),
            Meta::ConfigGet(patterns) => config_get(patterns, guest, reply),
            Meta::Reset => reply.simple("RESET"),
        }
    }

    fn hello(&self, reply: &mut Reply<'_>) {
        reply.map(7);
        reply.bulk(b"server");
        reply.bulk(b"redis");
        reply.bulk(b"version");
        reply.bulk(REDIS_VERSION.as_bytes());
        reply.bulk(b"proto");
        reply.integer(self.proto());
        reply.bulk(b"id");
        reply.integer(i64::try_from(self.id).unwrap_or(i64::MAX));
        reply.bulk(b"mode");
        reply.bulk(b"standalone");
        reply.bulk(b"role");
        reply.bulk(b"master");
        reply.bulk(b"modules");
        reply.array(0);
    }

    fn proto(&self) -> i64 {
        match self.version {
            Version::Resp2 => 2,
            Version::Resp3 => 3,
        }
    }

    fn info_line(&self) -> String {
        let name = String::from_utf8_lossy(&self.name);
        let (id, shard, proto) = (self.id, &self.shard, self.proto());
        format!("id={id} name={name} db=0 user={shard} resp={proto}\n")
    }
}

fn describe(spec: &Spec, reply: &mut Reply<'_>) {
    let (first, last, step) = spec.keys;
    reply.array(6);
    reply.bulk(spec.name.as_bytes());
    reply.integer(spec.arity);
    reply.array(1);
    reply.simple(spec.flag);
    reply.integer(first);
    reply.integer(last);
    reply.integer(step);
}

fn command_info(names: &[Bytes], reply: &mut Reply<'_>) {
    reply.array(names.len());
    for name in names {
        match COMMANDS.iter().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name)) {
            Some(spec) => describe(spec, reply),
            None => reply.nil(),
        }
    }
}

fn config_get(patterns: &[Bytes], guest: &Guest, reply: &mut Reply<'_>) {
    let bulk_bytes_max = guest.config().value_bytes_max.to_string();
    let settings = [
        ("save", ""),
        ("appendonly", "yes"),
        ("databases", "1"),
        ("maxmemory", "0"),
        ("timeout", "0"),
        ("notify-keyspace-events", "g$KE"),
        ("proto-max-bulk-len", bulk_bytes_max.as_str()),
    ];
    let asked = |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()));
    let found: Vec<_> = settings.iter().filter(|(name, _)| asked(name)).collect();
    reply.map(found.len());
    for (name, value) in found {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
}

fn server_info(guest: &Guest, connections: usize) -> String {
    let cluster = guest.cluster();
    let live = cluster.nodes.iter().filter(|node| node.live).count();
    let lines = [
        "# Server".to_owned(),
        format!("redis_version:{REDIS_VERSION}"),
        "redis_mode:standalone".to_owned(),
        format!("outrigger_version:{}", cluster.version),
        format!("process_id:{}", std::process::id()),
        String::new(),
        "# Clients".to_owned(),
        format!("connected_clients:{connections}"),
        String::new(),
        "# Replication".to_owned(),
        "role:master".to_owned(),
        "connected_slaves:0".to_owned(),
        String::new(),
        "# Cluster".to_owned(),
        "cluster_enabled:0".to_owned(),
        format!("outrigger_cluster:{}", cluster.cluster),
        format!("outrigger_node:{}", cluster.node),
        format!("outrigger_epoch:{}", cluster.epoch),
        format!("outrigger_voters:{}", cluster.voters.len()),
        format!("outrigger_nodes_live:{live}"),
        format!("outrigger_open_shards:{}", cluster.open_shards),
        format!("outrigger_pending_frames:{}", cluster.pending_frames),
        String::new(),
    ];
    lines.join("\r\n")
}
