//! Raw values by key, each with where it stands, the later layer over the earlier.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use toml::{Table, Value};

use super::{ConfigError, FILE_BYTES_MAX};

/// What a key of the configuration takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// One text.
    Text,
    /// A list of texts.
    List,
    /// A list of tables.
    Tables,
}

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    /// Its full name, as in `node.name`.
    pub path: &'static str,
    /// What it takes.
    pub kind: KeyKind,
    /// The flag of `serve` that sets it.
    pub flag: Option<&'static str>,
}

const fn text(path: &'static str, flag: Option<&'static str>) -> KeySpec {
    KeySpec { path, kind: KeyKind::Text, flag }
}

const fn list(path: &'static str, flag: Option<&'static str>) -> KeySpec {
    KeySpec { path, kind: KeyKind::List, flag }
}

const fn tables(path: &'static str) -> KeySpec {
    KeySpec { path, kind: KeyKind::Tables, flag: None }
}

/// Every key there is.
pub const KEYS: &[KeySpec] = &[
    text("node.name", Some("--name")),
    text("node.data_dir", Some("--data-dir")),
    text("socket.path", Some("--socket")),
    text("socket.mode", None),
    tables("access.rules"),
    tables("limits.orgs"),
    text("peer.listen", Some("--listen")),
    text("peer.advertise", Some("--advertise")),
    list("peer.seeds", Some("--seed")),
    text("cluster.id", Some("--cluster-id")),
    list("cluster.voters", Some("--voter")),
    text("cluster.replication_factor", Some("--replication-factor")),
    text("cluster.key_file", Some("--key-file")),
    text("cluster.tls.ca", None),
    text("cluster.tls.cert", None),
    text("cluster.tls.key", None),
    text("cluster.max_skew", None),
    text("cluster.ceiling_lead", None),
    text("admin.listen", Some("--admin")),
    text("store.idle_evict_after", None),
    text("store.unused_drop_after", None),
    text("store.tombstone_grace", None),
    text("store.durability", None),
    text("store.value_size_max", None),
    text("store.key_size_max", None),
    text("store.outbox_entries_max", None),
    text("store.outbox_size_max", None),
    text("timeouts.propose", None),
];

const ENVIRONMENT_PREFIX: &str = "OUTRIGGER__";
/// How much of a refused value an error shows, in characters.
const GOT_CHARS_MAX: usize = 120;

fn spec(path: &str) -> Option<&'static KeySpec> {
    KEYS.iter().find(|key| key.path == path)
}

/// The variables that matter here, taken from the process or made up by a test.
#[derive(Debug, Clone, Default)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// This process's own. What is not UTF-8 is kept with replacement characters, to be refused by its key.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        Self(std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect())
    }

    /// Address of this pod, where Kubernetes was asked to tell it.
    pub(super) fn pod_ip(&self) -> Option<&str> {
        self.0.iter().find(|(name, value)| name == "POD_IP" && !value.is_empty()).map(|(_, value)| value.as_str())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// What flags set: keys of [`KEYS`] and their values.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<(&'static str, Raw)>);

impl Overrides {
    /// Sets `path` where a value was given.
    #[must_use]
    pub fn text(mut self, path: &'static str, value: Option<String>) -> Self {
        self.0.extend(value.map(|value| (path, Raw::Text(value))));
        self
    }

    /// Sets `path` where any value was given.
    #[must_use]
    pub fn list(mut self, path: &'static str, values: Vec<String>) -> Self {
        if !values.is_empty() {
            self.0.push((path, Raw::List(values)));
        }
        self
    }
}

/// A value as it stood.
#[derive(Debug, Clone)]
pub(super) enum Raw {
    Text(String),
    List(Vec<String>),
    Tables(Vec<Table>),
    /// Whatever else TOML can say, as it is written.
    Other(String),
}

impl Raw {
    fn from_toml(value: &Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => {
                let texts: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                let tables = || items.iter().map(|item| item.as_table().cloned()).collect::<Option<Vec<_>>>();
                let other = || Self::Other(value.to_string());
                texts.map_or_else(|| tables().map_or_else(other, Self::Tables), Self::List)
            }
            other => Self::Other(other.to_string()),
        }
    }

    /// For an error: one line, bounded.
    pub(super) fn shown(&self) -> String {
        let full = match self {
            Self::Text(text) => format!("{text:?}"),
            Self::List(items) => format!("{items:?}"),
            Self::Tables(tables) => format!("a list of {} tables", tables.len()),
            Self::Other(toml) => toml.escape_debug().to_string(),
        };
        shortened(full)
    }
}

/// As much of it as an error's line can bear.
pub(super) fn shortened(full: String) -> String {
    if full.chars().count() <= GOT_CHARS_MAX {
        return full;
    }
    full.chars().take(GOT_CHARS_MAX).chain("...".chars()).collect()
}

/// A value and where it stands, for errors.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) raw: Raw,
    pub(super) origin: String,
}

/// The topmost value of each key that anything set.
#[derive(Debug, Default)]
pub(super) struct Layers(BTreeMap<&'static str, Placed>);

impl Layers {
    pub(super) fn get(&self, path: &str) -> Option<&Placed> {
        self.0.get(path)
    }

    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let name = path.display().to_string().escape_debug().to_string();
        let text = read_bounded(path).map_err(|reason| ConfigError::Unreadable { path: name.clone(), reason })?;
        self.add_toml(&name, &text)
    }

    pub(super) fn add_toml(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::NotToml {
            path: name.to_owned(),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            reason: error.message().escape_debug().to_string(),
        })?;
        self.add_table(&format!("configuration file {name}"), "", &table)
    }

    fn add_table(&mut self, origin: &str, prefix: &str, table: &Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if let Some(key) = spec(&path) {
                self.0.insert(key.path, Placed { raw: Raw::from_toml(value), origin: origin.to_owned() });
                continue;
            }
            let is_section = KEYS.iter().any(|key| key.path.starts_with(&format!("{path}.")));
            match value {
                Value::Table(inner) if is_section => self.add_table(origin, &path, inner)?,
                _ if is_section => {
                    return Err(ConfigError::Invalid {
                        key: path,
                        origin: origin.to_owned(),
                        got: Raw::from_toml(value).shown(),
                        want: "a table".to_owned(),
                    });
                }
                _ => return Err(unknown(&path, origin)),
            }
        }
        Ok(())
    }

    pub(super) fn add_environment(&mut self, environment: &Environment) -> Result<(), ConfigError> {
        for (variable, value) in &environment.0 {
            let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let shown: String = variable.chars().take(GOT_CHARS_MAX).collect();
            let origin = format!("environment variable {}", shown.escape_debug());
            let path = name.to_ascii_lowercase().replace("__", ".");
            // Only upper case is documented; a lower-case twin would make two variables fight over one key.
            let key = spec(&path).filter(|_| *name == name.to_ascii_uppercase());
            let key = key.ok_or_else(|| unknown(&path, &origin))?;
            let raw = match key.kind {
                KeyKind::Text => Raw::Text(value.clone()),
                KeyKind::List => Raw::List(split_list(value)),
                KeyKind::Tables => inline(value),
            };
            self.0.insert(key.path, Placed { raw, origin });
        }
        Ok(())
    }

    pub(super) fn add_overrides(&mut self, overrides: Overrides) {
        for (path, raw) in overrides.0 {
            let flag = spec(path).and_then(|key| key.flag).unwrap_or(path);
            self.0.insert(path, Placed { raw, origin: format!("flag {flag}") });
        }
    }
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// A list of tables in the words of TOML: `[{ uid = 1000, allow = "write" }]`.
fn inline(value: &str) -> Raw {
    let table: Option<Table> = format!("inline = {value}").parse().ok();
    let alone = table.filter(|table| table.len() == 1);
    alone.and_then(|table| table.get("inline").map(Raw::from_toml)).unwrap_or_else(|| Raw::Text(value.to_owned()))
}

fn split_list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn unknown(path: &str, origin: &str) -> ConfigError {
    let mut hint = String::new();
    if let Some(near) = KEYS.iter().map(|key| key.path).min_by_key(|known| distance(path, known))
        && distance(path, near) <= 3
    {
        let _ = write!(hint, "; did you mean {near}?");
    } else {
        let (section, _) = path.split_once('.').unwrap_or((path, ""));
        let known: Vec<_> = KEYS
            .iter()
            .filter(|key| key.path.split_once('.').is_some_and(|(of, _)| of == section))
            .map(|key| key.path)
            .collect();
        if known.is_empty() {
            hint.push_str("; the sections are node, socket, access, limits, peer, cluster, admin, store, timeouts");
        } else {
            let _ = write!(hint, "; that section has {}", known.join(", "));
        }
    }
    let key = path.chars().take(GOT_CHARS_MAX).collect::<String>().escape_debug().to_string();
    ConfigError::UnknownKey { key, origin: origin.to_owned(), hint }
}

/// Levenshtein's distance over the first bytes of both, enough to spot a typing error.
fn distance(a: &str, b: &str) -> usize {
    const BYTES_MAX: usize = 64;
    let b: Vec<u8> = b.bytes().take(BYTES_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(BYTES_MAX).enumerate() {
        let mut previous = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            let substituted = previous + usize::from(x != *y);
            left = substituted.min(left + 1).min(above + 1);
            previous = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
