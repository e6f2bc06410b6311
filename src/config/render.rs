//! A [`Config`] as the file that makes it.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use super::{Config, Durability, Identity};

pub(super) fn to_toml(config: &Config) -> String {
    let mut out = String::new();
    let mut section = |name: &str, lines: &[(&str, String)]| {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("[{name}]\n"));
        for (key, value) in lines {
            out.push_str(&format!("{key} = {value}\n"));
        }
    };
    section("node", &[("name", text(&config.node.name)), ("data_dir", path(&config.node.data_dir))]);
    section("socket", &[("path", path(&config.socket.path)), ("mode", text(format!("{:04o}", config.socket.mode)))]);
    if !config.access.is_empty() {
        section("access", &[("rules", tables(config.access.iter().map(super::access::show_rule)))]);
    }
    if !config.limits.is_empty() {
        section("limits", &[("orgs", tables(config.limits.iter().map(super::access::show_limit)))]);
    }
    let mut peer = vec![("listen", text(config.peer.listen)), ("seeds", list(&config.peer.seeds))];
    // Alone, the default for it may be an address that nobody could dial, which no file may say.
    if !config.is_alone() || config.peer.advertise != config.peer.listen.to_string() {
        peer.insert(1, ("advertise", text(&config.peer.advertise)));
    }
    section("peer", &peer);
    let mut cluster = vec![
        ("id", text(&config.cluster.id)),
        ("voters", list(&config.cluster.voters)),
        ("replication_factor", config.cluster.replication_factor.unwrap_or_default().to_string()),
    ];
    match &config.cluster.identity {
        None => {}
        Some(Identity::KeyFile(file)) => cluster.push(("key_file", path(file))),
        Some(Identity::Pem { ca, cert, key }) => {
            cluster.push(("tls", format!("{{ ca = {}, cert = {}, key = {} }}", path(ca), path(cert), path(key))));
        }
    }
    cluster.push(("max_skew", duration(config.cluster.max_skew)));
    cluster.push(("ceiling_lead", duration(config.cluster.ceiling_lead)));
    section("cluster", &cluster);
    section("admin", &[("listen", text(config.admin.listen))]);
    let durability = match config.store.durability {
        Durability::Fsync => "fsync",
        Durability::Os => "os",
    };
    section(
        "store",
        &[
            ("idle_evict_after", duration(config.store.idle_evict_after)),
            ("unused_drop_after", duration(config.store.unused_drop_after)),
            ("tombstone_grace", duration(config.store.tombstone_grace)),
            ("durability", text(durability)),
            ("value_size_max", text(size(config.store.value_size_max))),
            ("key_size_max", text(size(config.store.key_size_max))),
            ("outbox_entries_max", config.store.outbox_entries_max.to_string()),
            ("outbox_size_max", text(size(config.store.outbox_size_max))),
        ],
    );
    section("timeouts", &[("propose", duration(config.timeouts.propose))]);
    out
}

fn tables(lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("    {{ {line} }},\n")).collect();
    format!("[\n{lines}]")
}

pub(super) fn text(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

pub(super) fn path(value: &Path) -> String {
    text(value.display())
}

pub(super) fn list<T: Display>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", "))
}

fn duration(value: Duration) -> String {
    text(humantime::format_duration(value))
}

/// Exact: the largest binary unit that divides it.
pub(super) fn size(bytes: usize) -> String {
    const KIB: usize = 1024;
    const MIB: usize = KIB * KIB;
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(MIB) => format!("{}MiB", bytes / MIB),
        _ if bytes > 0 && bytes.is_multiple_of(KIB) => format!("{}KiB", bytes / KIB),
        _ => format!("{bytes}B"),
    }
}
