//! Holds what access is decided by - rules, tokens as their files have them now, what each org has used up - and says what it
//! refused, now and then.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::access::{self, Denial, Rule, Tokens, Want, Who};
use super::error::ApiError;
use super::limits::{Buckets, OrgLimit, Usage, limit_of};
use crate::blocking;
use crate::token::{self, TokenDigest};
use crate::types::Org;

/// How often the files of tokens are looked at for other tokens.
pub const TOKENS_REREAD_EVERY: Duration = Duration::from_secs(2);
/// One refusal in this time is logged; how many there were meanwhile is told with the next.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Decides for one socket who may do what. Shared by all of its connections.
pub struct Gate {
    rules: Vec<Rule>,
    limits: Vec<OrgLimit>,
    tokens: RwLock<Arc<Tokens>>,
    buckets: Mutex<Buckets>,
    usage: Mutex<Usage>,
    log: Mutex<Log>,
}

/// What keeps refusals from filling the log.
#[derive(Default)]
struct Log {
    last: Option<Duration>,
    untold: u64,
}

impl Gate {
    /// Everybody may do everything, without limits.
    #[must_use]
    pub fn open() -> Arc<Self> {
        Arc::new(Self::of(Vec::new(), Vec::new(), Tokens::default()))
    }

    /// As `rules` and `limits` say. Reads the files of tokens: each has to be there now, with tokens in it.
    pub fn new(rules: Vec<Rule>, limits: Vec<OrgLimit>) -> Result<Arc<Self>, token::Error> {
        let read = |file: PathBuf| digests(&file).map(|digests| (file, digests));
        let tokens = files_of(&rules).into_iter().map(read).collect::<Result<Tokens, _>>()?;
        Ok(Arc::new(Self::of(rules, limits, tokens)))
    }

    fn of(rules: Vec<Rule>, limits: Vec<OrgLimit>, tokens: Tokens) -> Self {
        Self {
            rules,
            limits,
            tokens: RwLock::new(Arc::new(tokens)),
            buckets: Mutex::default(),
            usage: Mutex::default(),
            log: Mutex::default(),
        }
    }

    /// How many rules there are; with none, everything is allowed.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// True where nothing is ever refused.
    pub(super) fn is_open(&self) -> bool {
        self.rules.is_empty() && self.limits.is_empty()
    }

    /// True where some rule takes tokens.
    pub(super) fn takes_tokens(&self) -> bool {
        self.rules.iter().any(|rule| rule.token_file.is_some())
    }

    /// True where no rule is known to concern `who`, as long as it shows no (other) token.
    pub(super) fn is_stranger(&self, who: &Who) -> bool {
        !self.shows(who, Want::Anything)
    }

    pub(super) fn knows(&self, token: &TokenDigest) -> bool {
        self.tokens.read().know(token)
    }

    /// Whether a list shows to `who` what it takes `want` to see.
    pub(super) fn shows(&self, who: &Who, want: Want<'_>) -> bool {
        self.rules.is_empty() || access::check(&self.rules, &self.tokens.read(), who, want).is_ok()
    }

    /// Refuses what no rule allows.
    pub(super) fn check(&self, who: &Who, want: Want<'_>, now: Duration) -> Result<(), ApiError> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let denial = match access::check(&self.rules, &self.tokens.read(), who, want) {
            Ok(()) => return Ok(()),
            Err(denial) => denial,
        };
        self.log(now, |untold| {
            let (uid, gid) = who.peer.map(|peer| (peer.uid, peer.gid)).unzip();
            tracing::warn!(?uid, ?gid, ?denial, refused_to = %want, untold, "refused by the rules of [access]");
        });
        Err(match denial {
            Denial::TokenNeeded => ApiError::TokenNeeded(format!("to {want} takes a token")),
            Denial::TokenUnknown => {
                ApiError::TokenUnknown(format!("to {want} takes a token, and this one is unknown here"))
            }
            Denial::Forbidden => ApiError::Forbidden(format!("no rule of this node lets you {want}")),
        })
    }

    /// Takes note of one operation on `org`, and refuses it where there were too many of late.
    pub(super) fn spend(&self, org: &Org, now: Duration) -> Result<(), ApiError> {
        let Some(max) = limit_of(&self.limits, org).and_then(|limit| limit.requests_per_second_max) else {
            return Ok(());
        };
        if self.buckets.lock().take(org, max, now) {
            return Ok(());
        }
        self.log(
            now,
            |untold| tracing::warn!(%org, max, untold, "an org asks for more per second than [limits] allow"),
        );
        Err(ApiError::RateLimited(format!("org {org} may ask for {max} operations per second on this node; try again")))
    }

    /// How many bytes `org` may store.
    pub(super) fn bytes_max(&self, org: &Org) -> Option<u64> {
        limit_of(&self.limits, org).and_then(|limit| limit.bytes_max)
    }

    /// What `org` has stored; none where the caller should look.
    pub(super) fn stored(&self, org: &Org, now: Duration) -> Option<u64> {
        self.usage.lock().of(org, now)
    }

    /// The caller looked, and began to at `now`.
    pub(super) fn found(&self, org: &Org, bytes: u64, now: Duration) {
        self.usage.lock().found(org, bytes, now);
    }

    /// Lets a write of `more` bytes in, or refuses it.
    pub(super) fn let_in(&self, org: &Org, more: u64, stored: u64, max: u64, now: Duration) -> Result<(), ApiError> {
        if stored.saturating_add(more) <= max {
            self.usage.lock().add(org, more);
            return Ok(());
        }
        self.log(now, |untold| tracing::warn!(%org, stored, max, untold, "an org has stored all that [limits] allow"));
        Err(ApiError::QuotaExceeded(format!(
            "org {org} has about {stored} bytes on this node and may have {max}; delete something, which is always allowed"
        )))
    }

    fn log(&self, now: Duration, say: impl FnOnce(u64)) {
        let mut log = self.log.lock();
        if log.last.is_some_and(|last| now.saturating_sub(last) < LOG_EVERY) {
            log.untold += 1;
            return;
        }
        log.last = Some(now);
        say(std::mem::take(&mut log.untold));
    }

    /// Reads the files of tokens again every [`TOKENS_REREAD_EVERY`], until `stop`. The tokens of a file that cannot be read
    /// any more are good no more.
    pub(super) async fn follow_files(self: Arc<Self>, stop: CancellationToken) {
        let files = files_of(&self.rules);
        if files.is_empty() {
            return;
        }
        let mut failed: Vec<PathBuf> = Vec::new();
        while stop.run_until_cancelled(tokio::time::sleep(TOKENS_REREAD_EVERY)).await.is_some() {
            let again = files.clone();
            let read = move || again.into_iter().map(|file| (digests(&file), file)).collect::<Vec<_>>();
            let Ok(read) = blocking::spawn(read).await else { continue };
            let failed_before = std::mem::take(&mut failed);
            let mut tokens = Vec::new();
            for (digests, file) in read {
                match digests {
                    Ok(digests) => tokens.push((file, digests)),
                    Err(error) => {
                        if !failed_before.contains(&file) {
                            tracing::error!(%error, "no token of this file is good any more, until it can be read again");
                        }
                        failed.push(file);
                    }
                }
            }
            let tokens = tokens.into_iter().collect::<Tokens>();
            if tokens != **self.tokens.read() {
                tracing::info!("the tokens of [access] have changed");
                *self.tokens.write() = Arc::new(tokens);
            }
        }
    }
}

fn files_of(rules: &[Rule]) -> Vec<PathBuf> {
    let mut files: Vec<_> = rules.iter().filter_map(|rule| rule.token_file.clone()).collect();
    files.sort();
    files.dedup();
    files
}

fn digests(file: &std::path::Path) -> Result<Vec<TokenDigest>, token::Error> {
    let tokens = token::read_file(file)?;
    Ok(tokens.iter().map(|token| TokenDigest::of(token.reveal().as_bytes())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::access::Pattern;

    #[test]
    fn refusals_do_not_fill_the_log() {
        let limit = OrgLimit { org: Pattern::Any, bytes_max: Some(0), requests_per_second_max: None };
        let gate = Gate::new(Vec::new(), vec![limit]).unwrap();
        let mut told = Vec::new();
        for second in 0..25 {
            gate.log(Duration::from_secs(second), |untold| told.push((second, untold)));
        }
        assert_eq!(told, [(0, 0), (10, 9), (20, 9)]);
    }
}
