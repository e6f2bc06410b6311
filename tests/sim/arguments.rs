//! The command line: ours, and as much of the usual test harness's as `cargo test` and its kin rely on.

use std::ops::Range;

use crate::children::{CHILD, Until};

/// How many seeds a run without arguments lives through.
const SEEDS: u64 = 50;
/// And how many see all that is rare.
const SEEDS_FOR_THE_RARE: u64 = 150;
/// How many of them twice.
const SEEDS_TWICE: u64 = 6;
/// The harness's flags that mean nothing here, and those of them that take a value.
const FLAGS: &[&str] = &["--nocapture", "--no-capture", "--show-output", "--include-ignored", "-q", "--quiet"];
const VALUED: &[&str] = &["--test-threads", "--format", "--color", "--logfile", "-Z"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    Seeds,
    Determinism,
    Bugs,
}

impl Check {
    const ALL: [Self; 3] = [Self::Determinism, Self::Bugs, Self::Seeds];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Seeds => "seeds",
            Self::Determinism => "determinism",
            Self::Bugs => "bugs",
        }
    }
}

pub(crate) struct Arguments {
    pub(crate) checks: Vec<Check>,
    pub(crate) from: u64,
    count: Option<u64>,
    pub(crate) until: Until,
}

impl Arguments {
    pub(crate) fn seeds(&self, check: Check) -> Range<u64> {
        let usual = if check == Check::Seeds { SEEDS } else { SEEDS_TWICE };
        self.from..self.from.saturating_add(self.count.unwrap_or(usual))
    }

    /// Whether it is a run that has to see all that is to be seen.
    pub(crate) fn is_whole(&self) -> bool {
        self.until == Until::End && self.count.is_some_and(|count| count >= SEEDS_FOR_THE_RARE)
    }
}

pub(crate) enum Task {
    /// One world, for a parent.
    Child(u64),
    /// One world, with its story.
    Replay(u64),
    Checks(Arguments),
    Nothing,
}

/// What this process is for; `Err` says what is wrong with its arguments.
pub(crate) fn read() -> Result<Task, String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seed = std::env::var("SEED").ok();
    parse(&arguments, seed.as_deref())
}

fn parse(arguments: &[String], seed: Option<&str>) -> Result<Task, String> {
    let (mut filters, mut skips) = (Vec::new(), Vec::new());
    let (mut exact, mut list, mut ignored) = (false, false, false);
    let (mut from, mut count, mut until) = (0, None, Until::End);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (flag, joined) = match argument.split_once('=') {
            Some((flag, value)) if flag.starts_with('-') => (flag, Some(value)),
            _ => (argument.as_str(), None),
        };
        let mut value = || joined.or_else(|| rest.next().map(String::as_str)).ok_or(format!("{flag} wants a value"));
        match flag {
            CHILD => return Ok(Task::Child(number(flag, value()?)?)),
            "--seeds" => count = Some(number(flag, value()?)?),
            "--from" => from = number(flag, value()?)?,
            "--until-failure" => until = Until::Failure,
            "--skip" => skips.push(value()?.to_owned()),
            "--exact" => exact = true,
            "--list" => list = true,
            "--ignored" => ignored = true,
            _ if FLAGS.contains(&flag) => {}
            _ if VALUED.contains(&flag) => drop(value()?),
            _ if flag.starts_with('-') => {
                return Err(format!("{flag} is not known: --seeds N, --from S, --until-failure, or SEED=n"));
            }
            _ => filters.push(argument.clone()),
        }
    }
    let fits = |name: &str, filter: &String| if exact { name == filter } else { name.contains(filter.as_str()) };
    let wanted = |check: &Check| {
        let name = check.name();
        (filters.is_empty() || filters.iter().any(|filter| fits(name, filter)))
            && !skips.iter().any(|skip| fits(name, skip))
    };
    // None of them is an ignored one.
    let checks: Vec<Check> = if ignored { Vec::new() } else { Check::ALL.into_iter().filter(wanted).collect() };
    if list {
        checks.iter().for_each(|check| println!("{}: test", check.name()));
        return Ok(Task::Nothing);
    }
    match seed {
        _ if checks.is_empty() => Ok(Task::Nothing),
        Some(seed) => Ok(Task::Replay(number("SEED", seed)?)),
        None => Ok(Task::Checks(Arguments { checks, from, count, until })),
    }
}

fn number(what: &str, value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("{what} wants a number, not {value:?}"))
}
