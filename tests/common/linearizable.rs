//! Is there an order of the operations that explains every answer? Wing & Gong's search with Lowe's memoisation (Testing
//! for linearizability, 2017), key by key, on a register of a value and its version.
//!
//! **Versions.** The version of each write that takes effect is above those before. Where clients are told versions,
//! writes can be placed in their order alone, which leaves little to search. Only the order of versions counts: between
//! any two there is room for writes of unknown version. One exception: of several writes that a node folded into one
//! round, all but the last are told one *shared* version ([`is_shared`]), which stands for some version of that tick.
//!
//! **Unknown writes** are optional. Of the orders that explain a history, look at one with the fewest of them, each as late
//! as possible. There, what directly follows an unknown write is never a blind write or deletion (without the unknown one
//! the state after it is the same), and is impossible without it or reads a version not told yet. So an unknown put of a
//! value that nobody can have seen is left out, unless something proves that a value is there without naming it; and of
//! unknown writes that ask for the same the one called first stands for all. A put that alone writes a value, read at some
//! version, did take effect, with that version: it is then searched like a known one.
//!
//! **Reads** that fit the present state, and change nothing in it, are placed at once: they fit no better later.
//!
//! **Limits.** A shared version may be read after its round has ended, as long as the order holds. Histories in which few
//! versions are told may end as [`Violation`] "undecided", never as accepted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::history::{Entry, History, Op, Outcome, When};

/// How many states of one key are looked at before it is given up as undecided.
pub(crate) const STATES_MAX: usize = 400_000;
/// How many of the operations around a failure are told.
const STORY_OPS_MAX: usize = 24;
/// Versions are clock ticks with a proposer's slot in these low bits (`Ballot`); the highest slot is nobody's.
const SLOT_MASK: i64 = (1 << outrigger::types::SLOT_BITS) - 1;
/// A value that was put and that nobody can have seen.
const UNSEEN: u32 = 0;

/// What was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Keys.
    pub(crate) keys: usize,
    /// Operations, those refused apart.
    pub(crate) ops: usize,
    /// Of them those whose end is unknown.
    pub(crate) unknown: usize,
    /// States that were looked at.
    pub(crate) states: usize,
}

/// Why a history is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The key.
    pub(crate) key: String,
    /// True where the search gave up: nothing is proven, and it counts as a failure.
    pub(crate) undecided: bool,
    /// The operations around it in the order of their calls, one line each.
    pub(crate) story: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.undecided { "undecided" } else { "not linearizable" };
        write!(f, "key {:?}: {what}\n{}", self.key, self.story)
    }
}

/// The rows of each node once all is quiet, by node and key; a key that is left out has no value.
pub(crate) type Finals = BTreeMap<String, BTreeMap<String, (Vec<u8>, i64)>>;

/// True for the version of what was overwritten within its round: no row ever has it.
pub(crate) fn is_shared(upd: i64) -> bool {
    upd & SLOT_MASK == SLOT_MASK
}

/// Looks for an order of all operations.
pub(crate) fn check(history: &History) -> Result<Stats, Violation> {
    check_within(history, STATES_MAX)
}

/// As [`check`], giving up after `states_max` states of one key.
pub(crate) fn check_within(history: &History, states_max: usize) -> Result<Stats, Violation> {
    let mut keys: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in history.entries().iter().filter(|entry| *entry.outcome() != Outcome::Refused) {
        keys.entry(&entry.key).or_default().push(entry);
    }
    let mut stats = Stats { keys: keys.len(), ..Stats::default() };
    for (key, entries) in keys {
        stats.ops += entries.len();
        stats.unknown += entries.iter().filter(|entry| *entry.outcome() == Outcome::Unknown).count();
        let search = Search::new(&entries);
        let verdict = search.run(states_max);
        stats.states += verdict.states;
        if !verdict.found {
            let story = search.story(&entries, &verdict);
            return Err(Violation { key: key.to_owned(), undecided: verdict.states >= states_max, story });
        }
    }
    Ok(stats)
}

/// Checks what is left once all is quiet: the same on every node, and possible as the last state of the history.
pub(crate) fn check_final(history: &History, finals: &Finals) -> Result<Stats, Violation> {
    let mut history = history.clone();
    let mut keys: Vec<&str> = history.entries.iter().map(|entry| entry.key.as_str()).collect();
    keys.extend(finals.values().flat_map(|rows| rows.keys().map(String::as_str)));
    keys.sort_unstable();
    keys.dedup();
    let mut reads: Vec<(String, Outcome)> = Vec::new();
    for key in keys {
        let mut rows = finals.iter().map(|(node, rows)| (node, rows.get(key)));
        let Some((first, row)) = rows.next() else { break };
        let fail = |story| Violation { key: key.to_owned(), undecided: false, story };
        if let Some((node, other)) = rows.find(|(_, other)| *other != row) {
            return Err(fail(format!("nodes differ at the end: {first} has {row:?}, {node} has {other:?}")));
        }
        if let Some((_, upd)) = row.filter(|(_, upd)| is_shared(*upd)) {
            return Err(fail(format!("the row at the end has the version @{upd} of what its round overwrote")));
        }
        reads.push((key.to_owned(), Outcome::Read(row.map(|(value, upd)| (value.clone(), Some(*upd))))));
    }
    for (key, read) in reads {
        let id = history.call(u32::MAX, &key, Op::Get, u64::MAX);
        history.returns(id, read, u64::MAX);
    }
    check(&history)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Upd {
    Known(i64),
    /// Some version above [`State::high`].
    Hidden,
}

/// The register: its row, and what every later version is above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    row: Option<(u32, Upd)>,
    high: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Effect {
    Put(u32),
    Delete,
    Add(i64),
}

/// What an operation needs to be so, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Act {
    Absent,
    /// A value is there: the value and version where they are told, and a version that it must not have.
    There(Option<u32>, Option<i64>, Option<i64>),
    Write(When, Effect, Option<i64>),
    /// A deletion that found a value, or a sum.
    Found,
    Sum(i64, i64, Option<i64>),
    Never,
}

/// An operation that has its place in every order.
#[derive(Debug, Clone)]
struct Must {
    act: Act,
    entry: usize,
    call: u64,
    end: u64,
}

/// Unknown writes that ask for the same: their calls, earliest first.
#[derive(Debug, Clone)]
struct Class {
    when: When,
    effect: Effect,
    calls: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Config {
    first: usize,
    window: Vec<usize>,
    used: Vec<u16>,
    state: State,
    after_unknown: bool,
}

struct Verdict {
    found: bool,
    states: usize,
    /// The state that got furthest.
    best: Option<Config>,
}

#[derive(Default)]
struct Values {
    ids: HashMap<Vec<u8>, u32>,
    ints: Vec<Option<i64>>,
}

impl Values {
    fn id(&mut self, bytes: &[u8]) -> u32 {
        if let Some(id) = self.ids.get(bytes) {
            return *id;
        }
        self.ints.push(integer(bytes));
        let id = u32::try_from(self.ints.len()).unwrap();
        self.ids.insert(bytes.to_vec(), id);
        id
    }

    fn int(&self, id: u32) -> Option<i64> {
        if id == UNSEEN { None } else { self.ints[id as usize - 1] }
    }

    fn of_int(&mut self, number: i64) -> u32 {
        self.id(number.to_string().as_bytes())
    }
}

fn integer(bytes: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == bytes).then_some(number)
}

/// Takes a version told of the row there or to be written, if it can come next.
fn above(high: i64, upd: i64) -> bool {
    if is_shared(upd) { upd.saturating_add(SLOT_MASK) > high } else { upd > high }
}

fn bind(state: State, told: Option<i64>) -> Option<State> {
    let (value, upd) = state.row?;
    match (upd, told) {
        (_, None) => Some(state),
        (Upd::Known(upd), Some(told)) => (upd == told).then_some(state),
        (Upd::Hidden, Some(told)) => {
            above(state.high, told).then(|| State { row: Some((value, Upd::Known(told))), high: state.high.max(told) })
        }
    }
}

fn write(state: State, value: u32, told: Option<i64>) -> Option<State> {
    let Some(told) = told else { return Some(State { row: Some((value, Upd::Hidden)), ..state }) };
    above(state.high, told).then(|| State { row: Some((value, Upd::Known(told))), high: state.high.max(told) })
}

fn holds(state: State, when: When) -> Option<State> {
    match when {
        When::Always => Some(state),
        When::Absent => state.row.is_none().then_some(state),
        // No row ever has a shared version.
        When::UpdIs(upd) => {
            if is_shared(upd) {
                None
            } else {
                bind(state, Some(upd))
            }
        }
    }
}

/// The state after `act` on `state`; none where it cannot be so.
fn step(values: &mut Values, state: State, act: Act) -> Option<State> {
    match act {
        Act::Absent => state.row.is_none().then_some(state),
        Act::There(value, upd, not) => {
            let (is, _) = state.row?;
            let fits = value.is_none_or(|value| value == is) && (upd.is_none() || upd != not);
            fits.then(|| bind(state, upd)).flatten()
        }
        Act::Write(when, effect, told) => {
            let state = holds(state, when)?;
            match effect {
                Effect::Put(value) => write(state, value, told),
                Effect::Delete => Some(State { row: None, ..state }),
                Effect::Add(by) => {
                    let base = state.row.map_or(Some(0), |(value, _)| values.int(value))?;
                    let sum = base.checked_add(by)?;
                    let value = values.of_int(sum);
                    write(state, value, told)
                }
            }
        }
        Act::Found => state.row.map(|_| State { row: None, ..state }),
        Act::Sum(by, sum, told) => {
            let base = state.row.map_or(Some(0), |(value, _)| values.int(value))?;
            (base.checked_add(by) == Some(sum)).then_some(())?;
            let value = values.of_int(sum);
            write(state, value, told)
        }
        Act::Never => None,
    }
}

impl Act {
    /// The version that it writes, where that is told.
    fn writes(&self) -> Option<i64> {
        match self {
            Self::Write(_, _, told) | Self::Sum(_, _, told) => *told,
            _ => None,
        }
    }

    fn is_blind(&self) -> bool {
        matches!(self, Self::Write(When::Always, Effect::Put(_) | Effect::Delete, _))
    }

    fn is_read(&self) -> bool {
        matches!(self, Self::Absent | Self::There(..))
    }

    /// A version that is there when it happens, at the latest.
    fn finds(&self) -> Option<i64> {
        match self {
            Self::There(_, upd, _) => *upd,
            Self::Write(When::UpdIs(upd), ..) => Some(*upd),
            _ => None,
        }
    }
}

/// The order in which told versions are written, as far as it is known: shared ones come somewhere in their tick.
fn rank(upd: i64) -> (i64, i64) {
    if is_shared(upd) { (upd.saturating_add(1), 0) } else { (upd & !SLOT_MASK, upd) }
}

struct Search {
    values: std::cell::RefCell<Values>,
    musts: Vec<Must>,
    /// The musts that write a told version, in the order of [`rank`].
    told: Vec<usize>,
    classes: Vec<Class>,
}

/// What the operations of one key show of the values in it.
struct Seen {
    adds: bool,
    /// Something proves that there is a value, or a version, without naming the value.
    nameless: bool,
    values: HashSet<u32>,
    /// The version at which a value was read.
    at: HashMap<u32, i64>,
    writers: HashMap<u32, usize>,
}

impl Seen {
    fn new(entries: &[&Entry], values: &mut Values) -> Self {
        let adds = entries.iter().any(|entry| matches!(entry.op, Op::Add(_)));
        let (mut at, mut writers, mut seen) = (HashMap::new(), HashMap::new(), HashSet::new());
        let mut nameless = false;
        for entry in entries {
            if let Op::Put(_, value) = &entry.op
                && !matches!(entry.outcome(), Outcome::ConditionFailed(_) | Outcome::Present)
            {
                *writers.entry(values.id(value)).or_insert(0) += 1;
            }
            match entry.outcome() {
                Outcome::Read(Some((value, upd))) => {
                    seen.insert(values.id(value));
                    if let Some(upd) = upd {
                        at.insert(values.id(value), *upd);
                    }
                }
                Outcome::Present | Outcome::Deleted(Some(true)) | Outcome::ConditionFailed(Some(_)) => nameless = true,
                _ => nameless |= matches!(entry.op, Op::Put(When::UpdIs(_), _) | Op::Delete(When::UpdIs(_))),
            }
        }
        Self { adds, nameless, values: seen, at, writers }
    }

    /// The only version that the put of `value` can have, where reads tell.
    fn only_version(&self, values: &Values, value: u32) -> Option<i64> {
        let only = self.writers.get(&value) == Some(&1) && !(self.adds && values.int(value).is_some());
        self.at.get(&value).copied().filter(|_| only)
    }

    /// `value`, or [`UNSEEN`] where no answer can tell it from others.
    fn named(&self, values: &Values, value: u32) -> u32 {
        let matters = self.values.contains(&value) || self.adds && values.int(value).is_some();
        if matters { value } else { UNSEEN }
    }
}

impl Search {
    fn new(entries: &[&Entry]) -> Self {
        let mut values = Values::default();
        let seen = Seen::new(entries, &mut values);
        let (mut musts, mut optional) = (Vec::new(), BTreeMap::<(When, Effect), Vec<u64>>::new());
        for (at, entry) in entries.iter().enumerate() {
            let end = entry.returned.as_ref().map_or(u64::MAX, |(_, end)| *end);
            let mut must = |act, end| musts.push(Must { act, entry: at, call: entry.called_ns, end });
            if *entry.outcome() != Outcome::Unknown {
                must(act_of(entry, &seen, &mut values), end);
                continue;
            }
            let (when, effect) = match &entry.op {
                Op::Get => continue,
                Op::Put(when, value) => {
                    let id = values.id(value);
                    if let Some(upd) = seen.only_version(&values, id) {
                        must(Act::Write(*when, Effect::Put(id), Some(upd)), u64::MAX);
                        continue;
                    }
                    (*when, Effect::Put(seen.named(&values, id)))
                }
                Op::Delete(when) => (*when, Effect::Delete),
                Op::Add(by) => (When::Always, Effect::Add(*by)),
            };
            if effect != Effect::Put(UNSEEN) || seen.nameless {
                optional.entry((when, effect)).or_default().push(entry.called_ns);
            }
        }
        let class = |((when, effect), mut calls): (_, Vec<u64>)| {
            calls.sort_unstable();
            Class { when, effect, calls }
        };
        let classes = optional.into_iter().map(class).collect();
        tighten(&mut musts);
        musts.sort_by_key(|must| (must.call, must.end, must.entry));
        let mut told: Vec<usize> = (0..musts.len()).filter(|at| musts[*at].act.writes().is_some()).collect();
        told.sort_by_key(|at| musts[*at].act.writes().map(rank));
        Self { values: values.into(), musts, told, classes }
    }

    fn run(&self, states_max: usize) -> Verdict {
        let start = Config {
            first: 0,
            window: Vec::new(),
            used: vec![0; self.classes.len()],
            state: State { row: None, high: i64::MIN },
            after_unknown: false,
        };
        let mut verdict = Verdict { found: false, states: 0, best: None };
        let (mut seen, mut stack) = (HashSet::new(), vec![start]);
        while let Some(mut config) = stack.pop() {
            self.place_reads(&mut config);
            if config.first == self.musts.len() {
                verdict.found = true;
                return verdict;
            }
            if seen.contains(&config) {
                continue;
            }
            verdict.states += 1;
            if verdict.states >= states_max {
                return verdict;
            }
            let done = |config: &Config| config.first + config.window.len();
            if verdict.best.as_ref().is_none_or(|best| done(&config) > done(best)) {
                verdict.best = Some(config.clone());
            }
            self.successors(&config, &mut stack);
            seen.insert(config);
        }
        verdict
    }

    /// The operations that may come next by time, and the time until which calls count.
    fn enabled(&self, config: &Config) -> (Vec<usize>, u64) {
        let (mut enabled, mut until) = (Vec::new(), u64::MAX);
        for at in config.first..self.musts.len() {
            let must = &self.musts[at];
            if must.call > until {
                break;
            }
            if config.window.binary_search(&at).is_err() {
                enabled.push(at);
                until = until.min(must.end);
            }
        }
        // An operation whose tightened call is after its own end is impossible, and blocks: the search then fails.
        enabled.retain(|at| self.musts[*at].call <= until);
        (enabled, until)
    }

    fn place(&self, config: &mut Config, at: usize) {
        if let Err(place) = config.window.binary_search(&at) {
            config.window.insert(place, at);
        }
        let run = config.window.iter().enumerate().take_while(|(n, at)| **at == config.first + n).count();
        config.window.drain(..run);
        config.first += run;
    }

    fn place_reads(&self, config: &mut Config) {
        loop {
            let (enabled, _) = self.enabled(config);
            let values = &mut self.values.borrow_mut();
            let mut fits = |at: &usize| {
                let act = self.musts[*at].act;
                act.is_read() && step(values, config.state, act) == Some(config.state)
            };
            let Some(at) = enabled.into_iter().find(|at| fits(at)) else { return };
            config.after_unknown = false;
            self.place(config, at);
        }
    }

    /// The told writes that may come next by their versions: the lowest, and those that share its tick unordered.
    fn next_told(&self, config: &Config) -> Vec<usize> {
        let is_open = |at: &&usize| **at >= config.first && config.window.binary_search(at).is_err();
        let mut open = self.told.iter().filter(is_open).copied();
        let upd = |at: usize| self.musts[at].act.writes().unwrap_or_default();
        let Some(first) = open.next() else { return Vec::new() };
        let mut next = vec![first];
        if is_shared(upd(first)) {
            for at in open.take_while(|at| rank(upd(*at)).0 == rank(upd(first)).0) {
                next.push(at);
                if !is_shared(upd(at)) {
                    break;
                }
            }
        }
        next
    }

    fn successors(&self, config: &Config, stack: &mut Vec<Config>) {
        let (enabled, until) = self.enabled(config);
        let next_told = self.next_told(config);
        let low = match next_told[..] {
            [only] => self.musts[only].act.writes().filter(|upd| !is_shared(*upd)),
            _ => None,
        };
        let values = &mut self.values.borrow_mut();
        // What could come before the next told write. What finds its version, or a later one, cannot.
        let comes_later =
            |act: &Act| act.finds().zip(low).is_some_and(|(finds, low)| !is_shared(finds) && finds >= low);
        let is_candidate = |at: &usize| {
            let act = &self.musts[*at].act;
            if act.writes().is_some() { next_told.contains(at) } else { !comes_later(act) }
        };
        let mut candidates: Vec<usize> = enabled.into_iter().filter(is_candidate).collect();
        self.keep_most_urgent(&mut candidates);
        let mut later = Vec::new();
        // Absence comes of a deletion alone; what it overwrites was not needed, unless the deletion asks for its version.
        let mut needed = false;
        let asks = |class: &Class| class.effect == Effect::Delete && class.when != When::Always;
        let mut more_than_absence = self.classes.iter().any(asks);
        for at in &candidates {
            let act = self.musts[*at].act;
            let after = step(values, config.state, act);
            let lacks = !act.is_blind() && (after.is_none() || act.finds().is_some() || act.is_read());
            let wants_absence = matches!(act, Act::Absent | Act::Write(When::Absent, ..));
            needed |= lacks;
            more_than_absence |= lacks && !wants_absence;
            if config.after_unknown && act.is_blind() {
                continue;
            }
            if let Some(state) = after {
                let mut next = Config { state, after_unknown: false, ..config.clone() };
                self.place(&mut next, *at);
                later.push(next);
            }
        }
        // Unknown writes before others: the stack hands the others out first.
        for (n, class) in self.classes.iter().enumerate() {
            let used = usize::from(config.used[n]);
            let act = Act::Write(class.when, class.effect, None);
            let serves = needed && (more_than_absence || class.effect == Effect::Delete);
            let may = serves && class.calls.get(used).is_some_and(|call| *call <= until);
            if !may || config.after_unknown && act.is_blind() {
                continue;
            }
            let Some(state) = step(values, config.state, act).filter(|state| *state != config.state) else { continue };
            let mut next = Config { state, after_unknown: true, ..config.clone() };
            next.used[n] += 1;
            stack.push(next);
        }
        stack.extend(later.into_iter().rev());
    }

    /// Of open operations that do the same, whose versions nobody told, the one that ends first stands for all.
    fn keep_most_urgent(&self, candidates: &mut Vec<usize>) {
        let key = |at: usize| (self.musts[at].act, self.musts[at].end, at);
        let all = candidates.clone();
        candidates.retain(|at| !all.iter().any(|other| key(*other).0 == key(*at).0 && key(*other) < key(*at)));
    }

    /// The operations around the point at which the search got furthest.
    fn story(&self, entries: &[&Entry], verdict: &Verdict) -> String {
        let Some(best) = &verdict.best else { return "no operation could come first".to_owned() };
        let (stuck, until) = self.enabled(best);
        let stuck: HashSet<usize> = stuck.iter().map(|at| self.musts[*at].entry).collect();
        let from = stuck.iter().map(|at| entries[*at].called_ns).min().unwrap_or_default();
        let mut before: Vec<usize> =
            (0..entries.len()).filter(|at| !stuck.contains(at) && entries[*at].called_ns <= until).collect();
        // The ends closest to the failure tell most; unknown ones may matter wherever they began.
        let end = |at: usize| entries[at].returned.as_ref().map_or(from, |(_, end)| *end);
        before.sort_by_key(|at| (std::cmp::Reverse(end(*at)), *at));
        before.truncate(STORY_OPS_MAX.saturating_sub(stuck.len()));
        let mut told: Vec<usize> = before.into_iter().chain(stuck.iter().copied()).collect();
        told.sort_by_key(|at| (entries[*at].called_ns, *at));
        let mark = |at: usize| if stuck.contains(&at) { '!' } else { ' ' };
        let lines = told.into_iter().map(|at| format!("{} {}\n", mark(at), entries[at]));
        let row = match best.state.row {
            None => "absent".to_owned(),
            Some((value, upd)) => {
                let values = self.values.borrow();
                let bytes = values.ids.iter().find(|(_, id)| **id == value).map(|(bytes, _)| bytes.escape_ascii());
                let bytes = bytes.map_or("a value nobody read".to_owned(), |bytes| format!("\"{bytes}\""));
                format!("{bytes} @{upd:?}")
            }
        };
        format!("{}after what fits, the key is {row}; none of those marked ! can come next", lines.collect::<String>())
    }
}

/// A write comes after the call of every write of a lower version and before the end of every one of a higher.
fn tighten(musts: &mut [Must]) {
    let told = |must: &Must| must.act.writes().filter(|upd| !is_shared(*upd));
    let mut order: Vec<usize> = (0..musts.len()).filter(|at| told(&musts[*at]).is_some()).collect();
    order.sort_by_key(|at| told(&musts[*at]));
    let mut call = 0;
    for at in &order {
        call = call.max(musts[*at].call);
        musts[*at].call = call;
    }
    let mut end = u64::MAX;
    for at in order.iter().rev() {
        end = end.min(musts[*at].end);
        musts[*at].end = end;
    }
}

fn act_of(entry: &Entry, seen: &Seen, values: &mut Values) -> Act {
    match (&entry.op, entry.outcome()) {
        (_, Outcome::Read(None) | Outcome::Deleted(Some(false))) => Act::Absent,
        (_, Outcome::Read(Some((value, upd)))) => Act::There(Some(values.id(value)), *upd, None),
        (Op::Put(when, value), Outcome::Written(upd)) => {
            let id = values.id(value);
            let upd = upd.or_else(|| seen.only_version(values, id));
            Act::Write(*when, Effect::Put(seen.named(values, id)), upd)
        }
        (Op::Delete(When::Always), Outcome::Deleted(Some(true))) => Act::Found,
        (Op::Delete(when), Outcome::Deleted(_)) => Act::Write(*when, Effect::Delete, None),
        (Op::Add(by), Outcome::Added(sum, upd)) => Act::Sum(*by, *sum, *upd),
        (Op::Put(When::Absent, _) | Op::Delete(When::Absent), Outcome::ConditionFailed(None)) => Act::Never,
        (_, Outcome::ConditionFailed(None)) => Act::Absent,
        (Op::Put(When::UpdIs(x), _) | Op::Delete(When::UpdIs(x)), Outcome::ConditionFailed(upd)) => {
            // A shared version is told of rows that are gone, so a condition on it fails on the like of itself.
            Act::There(None, *upd, Some(*x).filter(|x| !is_shared(*x)))
        }
        (_, Outcome::ConditionFailed(upd)) => Act::There(None, *upd, None),
        (_, Outcome::Present) => Act::There(None, None, None),
        // The recorder lets no other pair in.
        _ => Act::Never,
    }
}
