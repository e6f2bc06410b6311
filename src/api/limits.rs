//! What one org may use of a node: bytes on its disk and requests per second, by `[limits]`. Pure: time comes in as an
//! argument.

use std::collections::HashMap;
use std::time::Duration;

use super::access::Pattern;
use crate::store::update::Change;
use crate::types::{Key, Org};

/// The most limits.
pub const LIMITS_MAX: usize = 1024;
/// How many orgs are kept account of at once.
const ORGS_MAX: usize = 4096;
/// How old the figure of what an org has stored may be. What was let in since is added to it.
const STORED_AGE_MAX: Duration = Duration::from_secs(1);
/// What an integer takes at most, in bytes.
const INTEGER_BYTES_MAX: usize = 20;

/// The limits of each org that `org` means. Of several that mean it the first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgLimit {
    /// Which orgs.
    pub org: Pattern,
    /// What its shards may take up on this node's disk together, in bytes, about.
    pub bytes_max: Option<u64>,
    /// How many operations it may ask for per second, after a second's worth at once.
    pub requests_per_second_max: Option<u32>,
}

/// The limit that counts for `org`.
#[must_use]
pub fn limit_of<'a>(limits: &'a [OrgLimit], org: &Org) -> Option<&'a OrgLimit> {
    limits.iter().find(|limit| limit.org.matches(org.as_str()))
}

/// What a change adds to what is stored, in bytes; none where it adds nothing, so that it is always let in.
#[must_use]
pub fn growth(key: &Key, change: &Change) -> Option<u64> {
    let value = match change {
        Change::Put(value) | Change::Append(value) => value.as_bytes().len(),
        Change::Add(_) => INTEGER_BYTES_MAX,
        Change::Read | Change::Del => return None,
    };
    u64::try_from(key.as_str().len() + value).ok()
}

/// Token buckets (as in RFC 2697's meters, of one rate): each org's holds a second's worth and fills at its rate.
#[derive(Debug, Default)]
pub struct Buckets(HashMap<Org, Bucket>);

#[derive(Debug)]
struct Bucket {
    /// Requests that may be let in, at `at`.
    level: f64,
    at: Duration,
    per_second: u32,
}

impl Bucket {
    fn level_at(&self, now: Duration) -> f64 {
        let rate = f64::from(self.per_second);
        let filled = self.level + now.saturating_sub(self.at).as_secs_f64() * rate;
        filled.min(rate)
    }
}

impl Buckets {
    /// Takes one request's worth out of the org's bucket; false where there is none.
    pub fn take(&mut self, org: &Org, per_second: u32, now: Duration) -> bool {
        if !self.0.contains_key(org) && self.0.len() >= ORGS_MAX {
            // A full bucket says what no bucket says.
            self.0.retain(|_, bucket| bucket.level_at(now) < f64::from(bucket.per_second));
            if self.0.len() >= ORGS_MAX {
                return false;
            }
        }
        let full = || Bucket { level: f64::from(per_second), at: now, per_second };
        let bucket = self.0.entry(org.clone()).or_insert_with(full);
        let level = bucket.level_at(now);
        let is_let_in = level >= 1.0;
        *bucket = Bucket { level: if is_let_in { level - 1.0 } else { level }, at: now.max(bucket.at), per_second };
        is_let_in
    }
}

/// What orgs have stored, as of a moment ago, and what was let in since.
#[derive(Debug, Default)]
pub struct Usage(HashMap<Org, Stored>);

#[derive(Debug)]
struct Stored {
    bytes: u64,
    let_in: u64,
    at: Duration,
}

impl Usage {
    /// What `org` has stored; none where somebody should look: the caller, while others go by the old figure.
    pub fn of(&mut self, org: &Org, now: Duration) -> Option<u64> {
        let stored = self.0.get_mut(org)?;
        if now.saturating_sub(stored.at) > STORED_AGE_MAX {
            stored.at = now;
            return None;
        }
        Some(stored.bytes.saturating_add(stored.let_in))
    }

    /// Somebody looked, and began to at `now`.
    pub fn found(&mut self, org: &Org, bytes: u64, now: Duration) {
        if self.0.len() >= ORGS_MAX && !self.0.contains_key(org) {
            self.0.clear();
        }
        self.0.insert(org.clone(), Stored { bytes, let_in: 0, at: now });
    }

    /// A write of so many bytes was let in.
    pub fn add(&mut self, org: &Org, bytes: u64) {
        if let Some(stored) = self.0.get_mut(org) {
            stored.let_in = stored.let_in.saturating_add(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(name: &str) -> Org {
        Org::parse(name).unwrap()
    }

    fn let_in(buckets: &mut Buckets, org: &Org, now: Duration) -> usize {
        (0..100).filter(|_| buckets.take(org, 10, now)).count()
    }

    #[test]
    fn a_bucket_holds_a_seconds_worth_and_fills_at_its_rate() {
        let (mut buckets, a, b) = (Buckets::default(), org("a"), org("b"));
        let at = Duration::from_millis;
        assert_eq!(let_in(&mut buckets, &a, at(0)), 10);
        assert_eq!(let_in(&mut buckets, &b, at(0)), 10, "each org has its own");
        assert_eq!(let_in(&mut buckets, &a, at(50)), 0);
        assert_eq!(let_in(&mut buckets, &a, at(350)), 3);
        assert_eq!(let_in(&mut buckets, &a, at(60_000)), 10, "never more than a second's worth");
        assert_eq!(let_in(&mut buckets, &a, at(59_000)), 0, "a clock that went back gives nothing");
    }

    #[test]
    fn no_more_buckets_than_orgs_that_are_busy() {
        let mut buckets = Buckets::default();
        for n in 0..ORGS_MAX {
            assert!(buckets.take(&org(&format!("o{n}")), 1, Duration::ZERO));
        }
        assert!(!buckets.take(&org("one-more"), 1, Duration::ZERO));
        assert!(buckets.take(&org("one-more"), 1, Duration::from_secs(2)));
        assert_eq!(buckets.0.len(), 1);
    }

    #[test]
    fn what_was_let_in_counts_until_somebody_looks_again() {
        let (mut usage, a) = (Usage::default(), org("a"));
        let at = Duration::from_millis;
        assert_eq!(usage.of(&a, at(0)), None);
        usage.found(&a, 100, at(0));
        usage.add(&a, 7);
        assert_eq!(usage.of(&a, at(900)), Some(107));
        assert_eq!(usage.of(&a, at(1100)), None);
        assert_eq!(usage.of(&a, at(1200)), Some(107), "one looks, others go by what is known");
        usage.found(&a, 50, at(1100));
        assert_eq!(usage.of(&a, at(1300)), Some(50));
    }
}
