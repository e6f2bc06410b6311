//! `[access]` and `[limits]`: lists of tables, each read strictly and written again.
//!
//! What is left out of a rule never widens it: it has to say for whom it is, and on which orgs it allows something.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Table;

use super::ConfigError;
use super::layers::{Layers, Raw, shortened};
use super::render;
use crate::api::access::{Grant, Pattern, RULE_ITEMS_MAX, RULES_MAX, Rule};
use crate::api::limits::{LIMITS_MAX, OrgLimit};

/// One value, or several.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "uid and gid take a number from 0 up or a list of them, orgs and namespaces a text or a list"
)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A whole number. Also one that is written as `1000.0`, as Helm writes all numbers.
#[derive(Deserialize)]
#[serde(try_from = "toml::Value")]
struct Whole(u32);

impl TryFrom<toml::Value> for Whole {
    type Error = String;

    #[expect(clippy::cast_possible_truncation, reason = "what is cut off shows when it is compared")]
    fn try_from(value: toml::Value) -> Result<Self, String> {
        let number = match value {
            toml::Value::Integer(number) => Some(number),
            toml::Value::Float(number) => {
                Some(number as i64).filter(|whole| (*whole as f64).total_cmp(&number).is_eq())
            }
            _ => None,
        };
        let whole = number.and_then(|number| u32::try_from(number).ok());
        whole.map(Self).ok_or_else(|| format!("want a number from 0 to {}", u32::MAX))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    uid: Option<OneOrMany<Whole>>,
    gid: Option<OneOrMany<Whole>>,
    token_file: Option<String>,
    #[serde(default)]
    anyone: bool,
    orgs: Option<OneOrMany<String>>,
    namespaces: Option<OneOrMany<String>>,
    allow: Option<String>,
    #[serde(default)]
    admin: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitTable {
    org: String,
    bytes_max: Option<String>,
    requests_per_second_max: Option<Whole>,
}

pub(super) fn rules(layers: &Layers) -> Result<Vec<Rule>, ConfigError> {
    each(layers, "access.rules", RULES_MAX, rule)
}

pub(super) fn limits(layers: &Layers) -> Result<Vec<OrgLimit>, ConfigError> {
    each(layers, "limits.orgs", LIMITS_MAX, limit)
}

fn each<R: DeserializeOwned, T>(
    layers: &Layers,
    key: &'static str,
    max: usize,
    read: impl Fn(R) -> Result<T, String>,
) -> Result<Vec<T>, ConfigError> {
    let Some(placed) = layers.get(key) else { return Ok(Vec::new()) };
    let tables: &[Table] = match &placed.raw {
        Raw::Tables(tables) if tables.len() <= max => tables,
        Raw::List(texts) if texts.is_empty() => &[],
        raw => {
            return Err(ConfigError::Invalid {
                key: key.to_owned(),
                origin: placed.origin.clone(),
                got: raw.shown(),
                want: format!("a list of at most {max} tables, as in config/outrigger.toml"),
            });
        }
    };
    let read = |(place, table): (usize, &Table)| {
        let strict = table.clone().try_into().map_err(|why: toml::de::Error| why.message().to_owned());
        strict.and_then(&read).map_err(|why| ConfigError::InvalidTable {
            key,
            origin: placed.origin.clone(),
            place: place + 1,
            why: shortened(why.escape_debug().to_string()),
        })
    };
    tables.iter().enumerate().map(read).collect()
}

fn rule(table: RuleTable) -> Result<Rule, String> {
    let allow = match table.allow.as_deref() {
        None => None,
        Some("read") => Some(Grant::Read),
        Some("write") => Some(Grant::Write),
        Some(other) => return Err(format!("allow = {other:?}: want \"read\" or \"write\", which includes it")),
    };
    if allow.is_none() && !table.admin {
        return Err("it allows nothing: want allow = \"read\" or \"write\", or admin = true".to_owned());
    }
    if allow.is_some() && table.orgs.is_none() {
        return Err("orgs are missing: want the orgs where it allows that; [\"*\"] for all".to_owned());
    }
    let orgs = patterns("orgs", table.orgs, Pattern::of_orgs)?;
    let namespaces = match table.namespaces {
        None if orgs.is_empty() => Vec::new(),
        None => vec![Pattern::Any],
        Some(_) if orgs.is_empty() => return Err("namespaces without orgs: want the orgs that they are of".to_owned()),
        some => patterns("namespaces", some, Pattern::of_namespaces)?,
    };
    let token_file = match table.token_file {
        Some(path) if path.is_empty() || path.contains('\0') => return Err("token_file: want a path".to_owned()),
        path => path.map(PathBuf::from),
    };
    let (uids, gids) = (ids("uid", table.uid)?, ids("gid", table.gid)?);
    let rule = Rule { uids, gids, token_file, orgs, namespaces, allow, admin: table.admin };
    match (rule.is_for_anyone(), table.anyone) {
        (true, false) => Err("it says not for whom: want uid, gid, token_file, or anyone = true".to_owned()),
        (false, true) => Err("anyone = true beside uid, gid or token_file: want one or the other".to_owned()),
        _ => Ok(rule),
    }
}

fn ids(name: &str, ids: Option<OneOrMany<Whole>>) -> Result<Vec<u32>, String> {
    let Some(ids) = ids.map(OneOrMany::into_vec) else { return Ok(Vec::new()) };
    // An empty list would mean no condition, where its author meant nobody.
    if ids.is_empty() || ids.len() > RULE_ITEMS_MAX {
        return Err(format!("{name}: want 1 to {RULE_ITEMS_MAX} numbers"));
    }
    Ok(ids.into_iter().map(|Whole(id)| id).collect())
}

fn patterns(
    name: &str,
    texts: Option<OneOrMany<String>>,
    parse: fn(&str) -> Option<Pattern>,
) -> Result<Vec<Pattern>, String> {
    let Some(texts) = texts.map(OneOrMany::into_vec) else { return Ok(Vec::new()) };
    if texts.is_empty() || texts.len() > RULE_ITEMS_MAX {
        return Err(format!("{name}: want 1 to {RULE_ITEMS_MAX} names"));
    }
    let wrong =
        |text: &str| format!("{name}: {text:?} is neither a name nor \"*\" nor a name's beginning as in \"team-*\"");
    texts.iter().map(|text| parse(text).ok_or_else(|| wrong(text))).collect()
}

fn limit(table: LimitTable) -> Result<OrgLimit, String> {
    let org = Pattern::of_orgs(&table.org).ok_or_else(|| format!("org = {:?}: want a name, or \"*\"", table.org))?;
    let size = |text: String| {
        let bytes = text.parse::<ByteSize>().map(|size| size.as_u64());
        bytes.map_err(|_| format!("bytes_max = {text:?}: want a size, as in \"10GiB\""))
    };
    let bytes_max = table.bytes_max.map(size).transpose()?;
    let requests_per_second_max = table.requests_per_second_max.map(|Whole(number)| number);
    if requests_per_second_max == Some(0) {
        return Err("requests_per_second_max = 0: want 1 or more".to_owned());
    }
    if bytes_max.is_none() && requests_per_second_max.is_none() {
        return Err("it limits nothing: want bytes_max or requests_per_second_max".to_owned());
    }
    Ok(OrgLimit { org, bytes_max, requests_per_second_max })
}

/// A rule as the inside of its table.
pub(super) fn show_rule(rule: &Rule) -> String {
    let mut parts = Vec::new();
    if rule.is_for_anyone() {
        parts.push("anyone = true".to_owned());
    }
    for (name, ids) in [("uid", &rule.uids), ("gid", &rule.gids)] {
        if !ids.is_empty() {
            parts.push(format!("{name} = {ids:?}"));
        }
    }
    parts.extend(rule.token_file.iter().map(|file| format!("token_file = {}", render::path(file))));
    for (name, patterns) in [("orgs", &rule.orgs), ("namespaces", &rule.namespaces)] {
        if !patterns.is_empty() {
            parts.push(format!("{name} = {}", render::list(patterns)));
        }
    }
    parts.extend(rule.allow.map(|allow| match allow {
        Grant::Read => "allow = \"read\"".to_owned(),
        Grant::Write => "allow = \"write\"".to_owned(),
    }));
    if rule.admin {
        parts.push("admin = true".to_owned());
    }
    parts.join(", ")
}

/// A limit as the inside of its table.
pub(super) fn show_limit(limit: &OrgLimit) -> String {
    let mut parts = vec![format!("org = {}", render::text(&limit.org))];
    parts.extend(limit.bytes_max.map(|bytes| format!("bytes_max = \"{bytes}B\"")));
    parts.extend(limit.requests_per_second_max.map(|max| format!("requests_per_second_max = {max}")));
    parts.join(", ")
}
