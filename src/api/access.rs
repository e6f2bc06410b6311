//! Who may do what on the socket: the rules of `[access]`, and the one decision that they make. Pure.
//!
//! ```text
//!   uid, gid as the kernel tells them ─┐
//!   the token that was shown ──────────┴─► Who ─┐
//!   rules, in any order ────────────────────────┼─► check ─► allowed, or why not
//!   what is asked ──────────────────────► Want ─┘
//! ```
//!
//! Where there is no rule, everything is allowed. Where there is any, what no rule allows is denied. Rules only ever add:
//! none takes away what another gives, so their order means nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::token::TokenDigest;
use crate::types::{Namespace, Org, ShardId};

/// The most rules.
pub const RULES_MAX: usize = 1024;
/// The most uids, gids, orgs or namespaces of one rule.
pub const RULE_ITEMS_MAX: usize = 256;

/// Names: one, those that begin alike, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// `*`
    Any,
    /// `team-*`
    Prefix(String),
    /// A name as it is.
    Exact(String),
}

impl Pattern {
    /// Reads a pattern of orgs; the sentinel org is `_`, or empty.
    #[must_use]
    pub fn of_orgs(text: &str) -> Option<Self> {
        Self::parse(text, |name| Org::parse(name).ok().map(Into::into))
    }

    /// Reads a pattern of namespaces.
    #[must_use]
    pub fn of_namespaces(text: &str) -> Option<Self> {
        Self::parse(text, |name| Namespace::parse(name).ok().map(Into::into))
    }

    fn parse(text: &str, name: impl Fn(&str) -> Option<String>) -> Option<Self> {
        match text.strip_suffix('*') {
            Some("") => Some(Self::Any),
            // What a name may begin with is a name.
            Some(prefix) => Namespace::parse(prefix).ok().map(|prefix| Self::Prefix(prefix.into())),
            None => name(text).map(Self::Exact),
        }
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Exact(exact) => name == exact,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

/// What a rule allows on the shards that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// To read, list and watch.
    Read,
    /// To write, and to read.
    Write,
}

/// One rule: whom it is for, and what they may do where. All its conditions have to hold; of several uids, one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Any of these uids; whatever uid where empty.
    pub uids: Vec<u32>,
    /// Any of these primary gids; whatever gid where empty.
    pub gids: Vec<u32>,
    /// Whoever shows a token of this file.
    pub token_file: Option<PathBuf>,
    /// The orgs of its shards.
    pub orgs: Vec<Pattern>,
    /// Their namespaces.
    pub namespaces: Vec<Pattern>,
    /// What may be done there.
    pub allow: Option<Grant>,
    /// May change the cluster; and copy and checkpoint its shards, all where it names no orgs.
    pub admin: bool,
}

impl Rule {
    /// True where it has no condition: it is for whoever can open the socket.
    #[must_use]
    pub fn is_for_anyone(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty() && self.token_file.is_none()
    }

    fn is_for(&self, who: &Who, tokens: &Tokens) -> bool {
        let is_peer = |ids: &[u32], id: fn(&Peer) -> u32| {
            ids.is_empty() || who.peer.as_ref().is_some_and(|peer| ids.contains(&id(peer)))
        };
        let shows = |file: &Path| who.token.as_ref().is_some_and(|token| token.is_among(tokens.of(file)));
        is_peer(&self.uids, |peer| peer.uid)
            && is_peer(&self.gids, |peer| peer.gid)
            && self.token_file.as_deref().is_none_or(shows)
    }

    fn names(&self, shard: &ShardId) -> bool {
        self.orgs.iter().any(|org| org.matches(shard.org.as_str()))
            && self.namespaces.iter().any(|namespace| namespace.matches(shard.namespace.as_str()))
    }

    fn allows(&self, want: Want<'_>) -> bool {
        match want {
            Want::Anything => true,
            Want::Read(shard) => self.allow >= Some(Grant::Read) && self.names(shard),
            Want::Write(shard) => self.allow >= Some(Grant::Write) && self.names(shard),
            Want::Govern | Want::KeepSome => self.admin,
            Want::Keep(shard) => self.admin && (self.orgs.is_empty() || self.names(shard)),
        }
    }
}

/// The process at the other end of a connection, as the kernel knows it from when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective primary group.
    pub gid: u32,
}

/// Who asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Who {
    /// None where the system did not say.
    pub peer: Option<Peer>,
    /// What it showed as a token; it need not be one.
    pub token: Option<TokenDigest>,
}

/// The tokens that there are now, by their files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens(BTreeMap<PathBuf, Vec<TokenDigest>>);

impl Tokens {
    /// Those of a file; none where it cannot be read.
    fn of(&self, file: &Path) -> &[TokenDigest] {
        self.0.get(file).map_or(&[], Vec::as_slice)
    }

    /// Whether any file has it.
    #[must_use]
    pub fn know(&self, token: &TokenDigest) -> bool {
        self.0.values().fold(false, |found, known| found | token.is_among(known))
    }
}

impl FromIterator<(PathBuf, Vec<TokenDigest>)> for Tokens {
    fn from_iter<I: IntoIterator<Item = (PathBuf, Vec<TokenDigest>)>>(files: I) -> Self {
        Self(files.into_iter().collect())
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Want<'a> {
    /// A list of which only what may be read is shown.
    Anything,
    /// To read, list or watch a shard.
    Read(&'a ShardId),
    /// To write to a shard.
    Write(&'a ShardId),
    /// To change the cluster.
    Govern,
    /// A list of which only what may be copied is shown.
    KeepSome,
    /// To copy or checkpoint a shard.
    Keep(&'a ShardId),
}

impl fmt::Display for Want<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anything => f.write_str("list what is stored"),
            Self::Read(shard) => write!(f, "read {shard}"),
            Self::Write(shard) => write!(f, "write to {shard}"),
            Self::Govern => f.write_str("administrate this cluster"),
            Self::KeepSome => f.write_str("list what is to be backed up"),
            Self::Keep(shard) => write!(f, "copy or checkpoint {shard}"),
        }
    }
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// Nothing is known of who asks, and a token might change that.
    TokenNeeded,
    /// It would take a token, and what was shown is none.
    TokenUnknown,
    /// Who asks is known, and may not.
    Forbidden,
}

/// Decides.
pub fn check(rules: &[Rule], tokens: &Tokens, who: &Who, want: Want<'_>) -> Result<(), Denial> {
    let holds = |rule: &&Rule| rule.is_for(who, tokens);
    if rules.is_empty() || rules.iter().filter(|rule| rule.allows(want)).any(|rule| holds(&rule)) {
        return Ok(());
    }
    if who.token.is_some_and(|token| !tokens.know(&token)) {
        return Err(Denial::TokenUnknown);
    }
    let is_known = rules.iter().any(|rule| holds(&rule));
    let takes_tokens = rules.iter().any(|rule| rule.token_file.is_some());
    Err(if who.token.is_none() && !is_known && takes_tokens { Denial::TokenNeeded } else { Denial::Forbidden })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = b"the old token of acme";
    const NEW: &[u8] = b"the new token of acme";
    const BETA: &[u8] = b"the token of team-beta";

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::of_orgs(text).unwrap()).collect()
    }

    fn rule(orgs: &[&str], namespaces: &[&str], allow: Grant) -> Rule {
        Rule { orgs: patterns(orgs), namespaces: patterns(namespaces), allow: Some(allow), ..Rule::default() }
    }

    /// uid 1000 writes to app; tokens write to acme, or read team-*'s `pub`; gid 7 with a token of acme administrates.
    fn rules() -> Vec<Rule> {
        vec![
            Rule { uids: vec![1000, 1001], ..rule(&["app"], &["*"], Grant::Write) },
            Rule { token_file: Some("acme".into()), ..rule(&["acme"], &["*"], Grant::Write) },
            Rule { token_file: Some("beta".into()), ..rule(&["team-*"], &["pub"], Grant::Read) },
            Rule { gids: vec![7], token_file: Some("acme".into()), admin: true, ..Rule::default() },
            Rule {
                uids: vec![9],
                orgs: patterns(&["acme"]),
                namespaces: patterns(&["a"]),
                admin: true,
                ..Rule::default()
            },
        ]
    }

    fn tokens() -> Tokens {
        let of = |tokens: &[&[u8]]| tokens.iter().map(|token| TokenDigest::of(token)).collect();
        [("acme".into(), of(&[OLD, NEW])), ("beta".into(), of(&[BETA]))].into_iter().collect()
    }

    fn who(uid: u32, gid: u32, token: Option<&[u8]>) -> Who {
        Who { peer: Some(Peer { uid, gid }), token: token.map(TokenDigest::of) }
    }

    fn shard(name: &str) -> ShardId {
        let (org, namespace) = name.split_once('/').unwrap();
        ShardId::parse(org, namespace).unwrap()
    }

    #[test]
    fn with_no_rules_everything_is_allowed() {
        for want in [Want::Write(&shard("a/b")), Want::Govern, Want::Keep(&shard("a/b"))] {
            assert_eq!(check(&[], &Tokens::default(), &Who::default(), want), Ok(()));
        }
    }

    #[test]
    fn with_rules_what_none_allows_is_denied() {
        use Denial::{Forbidden, TokenNeeded, TokenUnknown};
        let (app, acme, open, closed) = (shard("app/x"), shard("acme/x"), shard("team-a/pub"), shard("team-a/priv"));
        let (kept, system) = (shard("acme/a"), shard("_/default"));
        let app_user = || who(1000, 1000, None);
        let nobody = || who(5, 5, None);
        for (who, want, expected) in [
            (app_user(), Want::Write(&app), Ok(())),
            (who(1001, 0, None), Want::Read(&app), Ok(())),
            (app_user(), Want::Read(&acme), Err(Forbidden)),
            (app_user(), Want::Read(&system), Err(Forbidden)),
            (app_user(), Want::Govern, Err(Forbidden)),
            (app_user(), Want::Keep(&app), Err(Forbidden)),
            (app_user(), Want::KeepSome, Err(Forbidden)),
            (app_user(), Want::Anything, Ok(())),
            // A token that is none is as good as none, where none is needed.
            (who(1000, 1000, Some(b"?")), Want::Write(&app), Ok(())),
            (who(1000, 1000, Some(b"?")), Want::Write(&acme), Err(TokenUnknown)),
            (who(1000, 1000, Some(NEW)), Want::Write(&acme), Ok(())),
            (nobody(), Want::Read(&app), Err(TokenNeeded)),
            (nobody(), Want::Anything, Err(TokenNeeded)),
            (nobody(), Want::Govern, Err(TokenNeeded)),
            (Who::default(), Want::Read(&app), Err(TokenNeeded)),
            (who(5, 5, Some(b"")), Want::Anything, Err(TokenUnknown)),
            (who(5, 5, Some(OLD)), Want::Write(&acme), Ok(())),
            (who(5, 5, Some(NEW)), Want::Write(&acme), Ok(())),
            (who(5, 5, Some(NEW)), Want::Read(&app), Err(Forbidden)),
            (who(5, 5, Some(NEW)), Want::Govern, Err(Forbidden)),
            (who(5, 7, Some(NEW)), Want::Govern, Ok(())),
            (who(5, 7, Some(BETA)), Want::Govern, Err(Forbidden)),
            (who(5, 7, None), Want::Govern, Err(TokenNeeded)),
            (who(5, 5, Some(BETA)), Want::Read(&open), Ok(())),
            (who(5, 5, Some(BETA)), Want::Write(&open), Err(Forbidden)),
            (who(5, 5, Some(BETA)), Want::Read(&closed), Err(Forbidden)),
            (who(5, 5, Some(BETA)), Want::Read(&acme), Err(Forbidden)),
            // Who administrates need not be able to read; its copies are of the orgs that it names, or of all.
            (who(5, 7, Some(NEW)), Want::Keep(&closed), Ok(())),
            (who(9, 9, None), Want::Keep(&kept), Ok(())),
            (who(9, 9, None), Want::Keep(&acme), Err(Forbidden)),
            (who(9, 9, None), Want::Read(&kept), Err(Forbidden)),
        ] {
            assert_eq!(check(&rules(), &tokens(), &who, want), expected, "{who:?} {want}");
        }
    }

    #[test]
    fn a_file_that_is_gone_lets_nobody_in() {
        let acme = shard("acme/x");
        let shown = who(5, 5, Some(NEW));
        assert_eq!(check(&rules(), &Tokens::default(), &shown, Want::Read(&acme)), Err(Denial::TokenUnknown));
    }

    #[test]
    fn where_no_rule_takes_a_token_none_is_asked_for() {
        let rules = [Rule { uids: vec![1], ..rule(&["*"], &["*"], Grant::Write) }];
        let denied = check(&rules, &Tokens::default(), &who(2, 2, None), Want::Read(&shard("a/b")));
        assert_eq!(denied, Err(Denial::Forbidden));
    }

    #[test]
    fn patterns_are_names_beginnings_or_all() {
        for (text, matching, others) in [
            ("*", &["a", "_"] as &[&str], &[] as &[&str]),
            ("team-*", &["team-", "team-a"], &["team", "ateam-a"]),
            ("acme", &["acme"], &["acme2", "acm"]),
            ("_", &["_"], &["a"]),
            ("", &["_"], &["a"]),
        ] {
            let pattern = Pattern::of_orgs(text).unwrap();
            assert!(matching.iter().all(|name| pattern.matches(name)), "{text}");
            assert!(!others.iter().any(|name| pattern.matches(name)), "{text}");
            assert_eq!(Pattern::of_orgs(&pattern.to_string()), Some(pattern));
        }
        for text in ["a/b", "*a", "a**", "-a*", "..", "outrigger.system"] {
            assert_eq!(Pattern::of_orgs(text), None, "{text}");
        }
        assert_eq!(Pattern::of_namespaces(""), None);
    }
}
