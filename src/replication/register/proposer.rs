//! The asking half of a node: at most one round per key, updates that wait folded into one (rules 4-6).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::message::{Address, Body, Message, Refusal};
use super::record::Record;
use super::round::{Attempt, Ballotting, Base, Carried, Fate, OpId, Pending, Phase, Round, Tally, Try, fold};
use crate::clock::{HybridClock, Now};
use crate::cluster::placement::{Electorate, Electors};
use crate::store::replicator::{Decision, Rejection};
use crate::store::update::{Outcome, Update};
use crate::types::{Ballot, ShardId, Slot};

/// How many tries of one round lose before its key counts as contended.
const CONTENDED_AFTER_TRIES: u32 = 2;

/// How a proposer behaves.
#[derive(Debug, Clone)]
pub struct ProposerConfig {
    /// This node's own slot, which names it among the replicas.
    pub me: usize,
    /// Which replicas decide.
    pub electorate: Electorate,
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// A step unanswered for this long is begun anew with a fresh ballot; doubles with every try.
    pub step_timeout: Duration,
    /// How long a token lives.
    pub token_life: Duration,
    /// The longest first back-off after losing a round; doubles with every try up to 100 times this.
    pub back_off: Duration,
    /// Updates folded into one round.
    pub fold_max: usize,
    /// Updates waiting for one key.
    pub queue_max: usize,
    /// Seeds the back-off's randomness.
    pub seed: u64,
}

impl ProposerConfig {
    /// Defaults for the replica `me`.
    #[must_use]
    pub fn new(me: usize, electorate: impl Into<Electorate>, seed: u64) -> Self {
        Self {
            me,
            electorate: electorate.into(),
            value_bytes_max: 1 << 20,
            step_timeout: Duration::from_millis(400),
            token_life: Duration::from_millis(250),
            back_off: Duration::from_millis(3),
            fold_max: 256,
            queue_max: 4096,
            seed,
        }
    }
}

/// What a proposer wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look up what this node holds for the key and call [`Proposer::start`].
    Start(Address),
    /// Send to every replica of the key's shard, this node's own included; not before the ballot is under this node's durable ceiling,
    /// except for a Read.
    Ask {
        /// The ballot that the message carries.
        ballot: Ballot,
        /// It.
        message: Message,
    },
    /// A record is chosen: commit it here, tell the others if `announce`, and when it is visible, decide.
    Chosen {
        /// Which key.
        address: Address,
        /// The record.
        record: Record,
        /// False where another replica knows already.
        announce: bool,
        /// Who waits for it.
        decisions: Vec<(OpId, Decision)>,
    },
    /// Tell a client.
    Decide(OpId, Decision),
    /// This key's rounds keep losing to others: what comes for it next had better go to its home.
    Contended(Address),
}

/// Counts since the start, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProposerCounts {
    /// Rounds that began with a prepare.
    pub prepared: u64,
    /// Rounds that used a token.
    pub token: u64,
    /// Rounds that lost to another.
    pub refused: u64,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Token {
    pub(super) next: Ballot,
    pub(super) base: Base,
    until: Duration,
}

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct KeyQueue {
    pub(super) round: Option<Round>,
    pub(super) waiting: VecDeque<Pending>,
}

/// The proposer of one node, for all its keys.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Proposer {
    pub(super) config: ProposerConfig,
    pub(super) clock: HybridClock,
    pub(super) keys: HashMap<Address, KeyQueue>,
    pub(super) tokens: HashMap<Address, Token>,
    token_order: VecDeque<(Duration, Address)>,
    reachable: BTreeSet<usize>,
    random: u64,
    counts: ProposerCounts,
    actions: Vec<Action>,
}

impl Proposer {
    /// A proposer that issues ballots from `clock`.
    #[must_use]
    pub fn new(config: ProposerConfig, clock: HybridClock) -> Self {
        let random = config.seed;
        Self {
            config,
            clock,
            keys: HashMap::new(),
            tokens: HashMap::new(),
            token_order: VecDeque::new(),
            reachable: BTreeSet::new(),
            random,
            counts: ProposerCounts::default(),
            actions: Vec::new(),
        }
    }

    /// What is to be done, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> ProposerCounts {
        self.counts
    }

    /// Learns of a ballot that another proposer issued, so that the next one issued here is above it (rule 11).
    pub fn observe(&mut self, now: Now, ballot: Ballot) {
        // One too far ahead to believe is not followed.
        let _ = self.clock.merge(ballot, now.wall);
    }

    /// True while any key has a round or a queue, so that time matters.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Which replicas can be asked now, this node included. With fewer than a majority nothing is begun, and what
    /// has stored nothing yet ends at once.
    pub fn set_reachable(&mut self, replicas: BTreeSet<usize>) {
        self.reachable = replicas;
        for (address, queue) in &mut self.keys {
            let Err(why) = find_quorum(&self.config.electorate, &address.shard, &self.reachable) else { continue };
            let unwritten = queue.round.iter_mut().flat_map(|round| round.updates.drain(..));
            let ended = queue.waiting.drain(..).chain(unwritten);
            let ended = ended.map(|pending| Action::Decide(pending.id, Decision::Reject(why.clone())));
            self.actions.extend(ended);
        }
        self.drop_idle();
    }

    /// Proposes under another slot from now on. Whatever is in flight goes on under the ballots that it has.
    pub fn set_slot(&mut self, slot: Slot) {
        self.config.me = slot.replica();
        self.clock.set_slot(slot);
    }

    /// Others decide from now on: a new epoch. What was granted before is worth nothing any more, and rounds in flight begin
    /// anew, as votes of two epochs don't add up. Whom to ask comes with [`Proposer::set_reachable`].
    pub fn set_electorate(&mut self, now: Now, electorate: impl Into<Electorate>) {
        self.config.electorate = electorate.into();
        // Prepared by the former ones: two changes later nothing would be known of what was chosen since.
        self.actions.retain(|action| !matches!(action, Action::Ask { .. }));
        self.tokens.clear();
        self.token_order.clear();
        for (address, queue) in &mut self.keys {
            let Some(round) = &mut queue.round else { continue };
            round.electors = self.config.electorate.on(&address.shard);
            round.recall();
            round.step_deadline = now.monotonic;
        }
    }

    /// Takes in a client's update; its decision comes as an action, at the latest a tick after `deadline`.
    pub fn propose(&mut self, address: Address, id: OpId, update: Update, deadline: Duration) {
        if let Err(why) = self.find_quorum(&address.shard) {
            return self.actions.push(Action::Decide(id, Decision::Reject(why)));
        }
        let queue = self.keys.entry(address.clone()).or_default();
        if queue.waiting.len() >= self.config.queue_max {
            let why = Rejection::Busy(format!("{} updates wait for this key already", queue.waiting.len()));
            return self.actions.push(Action::Decide(id, Decision::Reject(why)));
        }
        queue.waiting.push_back(Pending { id, update, deadline, settles: false });
        if queue.round.is_none() && queue.waiting.len() == 1 {
            self.actions.push(Action::Start(address));
        }
    }

    /// Finds out what became of a record that this node accepted and never heard of again (rule 7). Nobody is told;
    /// where it was chosen, or has to be, it comes out as [`Action::Chosen`].
    pub fn settle(&mut self, address: Address, id: OpId, deadline: Duration) {
        if self.find_quorum(&address.shard).is_err() || self.keys.contains_key(&address) {
            return;
        }
        let queue = self.keys.entry(address.clone()).or_default();
        queue.waiting.push_back(Pending { id, update: Update::read(), deadline, settles: true });
        self.actions.push(Action::Start(address));
    }

    /// Begins a round for what waits for the key. `held` is what this node itself holds of it.
    pub fn start(&mut self, now: Now, address: &Address, held: Option<Record>) {
        let Some(queue) = self.keys.get_mut(address).filter(|queue| queue.round.is_none()) else { return };
        let take = queue.waiting.len().min(self.config.fold_max);
        let updates: Vec<Pending> = queue.waiting.drain(..take).collect();
        if updates.is_empty() {
            self.keys.remove(address);
            return;
        }
        let only_reads = updates.iter().all(|pending| pending.update.is_read());
        let mut round = Round {
            electors: self.config.electorate.on(&address.shard),
            ballot: Ballot::ZERO,
            phase: Phase::BackingOff,
            updates,
            attempt: None,
            held,
            tries: 0,
            step_deadline: Duration::ZERO,
        };
        if only_reads {
            self.read(now, address, &mut round);
            return self.put_back(address, round);
        }
        // Out of the cache on use, whatever comes of it: a token is good once. A round is above every version it may write.
        let kept = round.updates.iter().filter_map(|pending| pending.update.kept_version()).max();
        let is_good = |token: &Token| now.monotonic < token.until && kept.is_none_or(|kept| kept < token.next);
        let token = self.tokens.remove(address).filter(is_good);
        if !token.is_some_and(|token| self.use_token(now, address, &mut round, token)) {
            self.prepare(now, address, &mut round);
        }
        self.put_back(address, round);
    }

    /// Learns that [`Action::Start`] could not be done: what waits for the key has stored nothing, and ends.
    pub fn not_begun(&mut self, address: &Address, why: &Rejection) {
        let Some(queue) = self.keys.get_mut(address).filter(|queue| queue.round.is_none()) else { return };
        let ended = queue.waiting.drain(..).map(|pending| Action::Decide(pending.id, Decision::Reject(why.clone())));
        self.actions.extend(ended);
        self.keys.remove(address);
    }

    /// Takes in an answer of the replica numbered `voter`.
    pub fn on_message(&mut self, now: Now, voter: usize, message: Message) {
        let Message { address, body } = message;
        let Some(mut round) = self.keys.get_mut(&address).and_then(|queue| queue.round.take()) else { return };
        let required = round.updates.iter().any(|pending| pending.settles).then_some(self.config.me);
        let going_on = match body {
            Body::Promised { ballot, vote } if ballot == round.ballot => match &mut round.phase {
                Phase::Preparing(tally) => {
                    tally.add(voter, vote);
                    let base = tally.base(&round.electors.quorums, required, round.held.as_ref());
                    base.is_none_or(|base| self.build_on(now, &address, &mut round, &base))
                }
                _ => true,
            },
            Body::Held { round: asked, vote } if asked == round.ballot => match &mut round.phase {
                Phase::Reading(tally) => {
                    tally.add(voter, vote);
                    let base = tally.base(&round.electors.quorums, required, round.held.as_ref());
                    base.is_none_or(|base| self.answer_reads(now, &address, &mut round, &base))
                }
                _ => true,
            },
            Body::Accepted { ballot, granted } if ballot == round.ballot => {
                self.on_accepted(now, &address, &mut round, voter, granted)
            }
            Body::Refused { ballot, above, why } if ballot == round.ballot => {
                // A clock too far ahead to follow only means that this ballot's successor is refused again.
                let _ = self.clock.merge(above, now.wall);
                self.on_refused(now, &address, &mut round, voter, why)
            }
            _ => true,
        };
        if going_on {
            self.put_back(&address, round);
        } else {
            self.finish(&address);
        }
    }

    /// Lets time pass: ends what is late, begins anew what got no answer.
    pub fn on_tick(&mut self, now: Now) {
        self.expire_tokens(now);
        let due: Vec<Address> = self.keys.keys().cloned().collect();
        for address in due {
            self.expire(now, &address);
            let Some(queue) = self.keys.get_mut(&address) else { continue };
            let Some(mut round) = queue.round.take_if(|round| round.step_deadline <= now.monotonic) else { continue };
            round.recall();
            round.tries += 1;
            self.prepare(now, &address, &mut round);
            self.put_back(&address, round);
        }
    }

    fn read(&mut self, now: Now, address: &Address, round: &mut Round) {
        round.ballot = self.clock.issue(now.wall);
        round.phase = Phase::Reading(Tally::default());
        self.ask(now, address, round, |round, holds| Body::Read { round, holds });
    }

    fn prepare(&mut self, now: Now, address: &Address, round: &mut Round) {
        self.counts.prepared += 1;
        round.ballot = self.clock.issue(now.wall);
        round.phase = Phase::Preparing(Tally::default());
        self.ask(now, address, round, |ballot, holds| Body::Prepare { ballot, holds });
    }

    fn ask(
        &mut self,
        now: Now,
        address: &Address,
        round: &mut Round,
        body: impl FnOnce(Ballot, Option<Ballot>) -> Body,
    ) {
        round.step_deadline = now.monotonic + self.config.step_timeout * (1 << round.tries.min(4));
        let holds = round.held.as_ref().map(|held| held.upd);
        let message = Message { address: address.clone(), body: body(round.ballot, holds) };
        self.actions.push(Action::Ask { ballot: round.ballot, message });
    }

    /// Rule 5: skips the prepare that the token stands for. False where nothing would be written: a token proves what
    /// was chosen when it was granted, not that nothing was since.
    fn use_token(&mut self, now: Now, address: &Address, round: &mut Round, token: Token) -> bool {
        let Token { next, base, .. } = token;
        let folded = fold(round.updates.clone(), &base, next, self.config.value_bytes_max);
        let Some((upd, op)) = folded.written else { return false };
        self.counts.token += 1;
        round.updates.clear();
        round.ballot = next;
        let record = Record { ballot: next, upd, op, lineage: base.descendants() };
        self.accept_write(now, address, round, record, Attempt::default(), folded.outcomes);
        true
    }

    /// Goes on from what a majority promised on. False where the round is over.
    fn build_on(&mut self, now: Now, address: &Address, round: &mut Round, base: &Base) -> bool {
        let mut attempt = round.attempt.take().unwrap_or_default();
        match attempt.fate(base) {
            Fate::TookEffect(index) if base.proven => {
                self.chosen(address, base, attempt.outcomes(index));
                return false;
            }
            Fate::TookEffect(index) => return self.resume(now, address, round, base, attempt, index),
            Fate::Unknown => {
                let ids = attempt.updates().into_iter().map(|pending| pending.id);
                self.actions.extend(ids.map(|id| Action::Decide(id, Decision::Timeout)));
                return false;
            }
            Fate::Bypassed => {}
        }
        let updates = if attempt.tries.is_empty() { std::mem::take(&mut round.updates) } else { attempt.updates() };
        let folded = fold(updates, base, round.ballot, self.config.value_bytes_max);
        let (ballot, outcomes) = (round.ballot, folded.outcomes);
        if let Some((upd, op)) = folded.written {
            let record = Record { ballot, upd, op, lineage: base.descendants() };
            self.accept_write(now, address, round, record, attempt, outcomes);
            return true;
        }
        // Nothing is to be written now. That answer stands only once something at or above this base is chosen, and
        // with it every earlier try is out of the world.
        let is_settled = base.proven && attempt.tries.is_empty();
        match base.again(ballot) {
            _ if is_settled => {
                self.chosen(address, base, outcomes);
                false
            }
            None => {
                let ids = outcomes.into_iter().map(|(pending, _)| pending.id);
                self.actions.extend(ids.map(|id| Action::Decide(id, Decision::Timeout)));
                false
            }
            Some(record) if attempt.tries.is_empty() => {
                self.accept(now, address, round, record, Carried::Answers(outcomes));
                true
            }
            Some(record) => {
                let index = attempt.tries.len();
                attempt.tries.push(Try { upd: ballot, ballots: vec![ballot], outcomes });
                self.accept(now, address, round, record, Carried::Write(attempt, index));
                true
            }
        }
    }

    /// Completes a base that contains this round's own earlier try.
    fn resume(
        &mut self,
        now: Now,
        address: &Address,
        round: &mut Round,
        base: &Base,
        mut attempt: Attempt,
        index: usize,
    ) -> bool {
        let Some(record) = base.again(round.ballot) else { return false };
        if let Some(one) = attempt.tries.get_mut(index) {
            one.ballots.push(round.ballot);
        }
        self.accept(now, address, round, record, Carried::Write(attempt, index));
        true
    }

    fn accept_write(
        &mut self,
        now: Now,
        address: &Address,
        round: &mut Round,
        record: Record,
        mut attempt: Attempt,
        outcomes: Vec<(Pending, Outcome)>,
    ) {
        let index = attempt.tries.len();
        attempt.tries.push(Try { upd: record.upd, ballots: vec![record.ballot], outcomes });
        self.accept(now, address, round, record, Carried::Write(attempt, index));
    }

    fn accept(&mut self, now: Now, address: &Address, round: &mut Round, record: Record, carried: Carried) {
        let next = self.clock.issue(now.wall);
        let body = Body::Accept { record: record.clone(), next: Some(next) };
        round.phase = Phase::Accepting(Ballotting {
            record,
            votes: std::collections::BTreeMap::new(),
            refused: std::collections::BTreeMap::new(),
            next,
            carried,
        });
        self.ask(now, address, round, |_, _| body);
    }

    /// Rule 6. False where the round is over.
    fn answer_reads(&mut self, now: Now, address: &Address, round: &mut Round, base: &Base) -> bool {
        if !base.proven {
            self.prepare(now, address, round);
            return true;
        }
        let updates = std::mem::take(&mut round.updates);
        let folded = fold(updates, base, Ballot::ZERO, self.config.value_bytes_max);
        self.chosen(address, base, folded.outcomes);
        false
    }

    fn on_accepted(&mut self, now: Now, address: &Address, round: &mut Round, voter: usize, granted: bool) -> bool {
        let Phase::Accepting(ballotting) = &mut round.phase else { return true };
        ballotting.votes.insert(voter, granted);
        if !round.electors.quorums.is_met(|voter| ballotting.votes.contains_key(&voter)) {
            return true;
        }
        let Phase::Accepting(done) = std::mem::replace(&mut round.phase, Phase::BackingOff) else { return true };
        let is_granted = round.electors.quorums.is_met(|voter| done.votes.get(&voter) == Some(&true));
        let outcomes = match done.carried {
            Carried::Write(attempt, took_effect) => attempt.outcomes(took_effect),
            Carried::Answers(outcomes) => outcomes,
        };
        if is_granted {
            self.keep_token(now, address, done.next, &done.record);
        }
        self.actions.push(Action::Chosen {
            address: address.clone(),
            record: done.record,
            announce: true,
            decisions: decisions(outcomes),
        });
        false
    }

    fn on_refused(&mut self, now: Now, address: &Address, round: &mut Round, voter: usize, why: Refusal) -> bool {
        let refused = match &mut round.phase {
            Phase::Preparing(tally) => &mut tally.refused,
            Phase::Accepting(ballotting) => &mut ballotting.refused,
            Phase::BackingOff | Phase::Reading(_) => return true,
        };
        refused.insert(voter, why);
        // As long as those in reach that have not refused can still make a majority, the round goes on.
        let may_agree = |voter| self.reachable.contains(&voter) && !refused.contains_key(&voter);
        if round.electors.quorums.is_met(may_agree) {
            return true;
        }
        self.counts.refused += 1;
        if round.tries + 1 >= CONTENDED_AFTER_TRIES {
            self.actions.push(Action::Contended(address.clone()));
        }
        let ahead = refused.values().all(|why| *why == Refusal::ClockAhead);
        round.recall();
        if ahead {
            let why = Rejection::Refused("this node's clock is further ahead of its peers' than max_skew".to_owned());
            let ids: Vec<OpId> = round.updates.drain(..).map(|pending| pending.id).collect();
            self.actions.extend(ids.into_iter().map(|id| Action::Decide(id, Decision::Reject(why.clone()))));
            if round.is_idle() {
                return false;
            }
        }
        let longest = self.config.back_off * (1 << round.tries.min(6));
        round.tries += 1;
        round.step_deadline = now.monotonic + longest.mul_f64(self.next_random());
        true
    }

    fn chosen(&mut self, address: &Address, base: &Base, outcomes: Vec<(Pending, Outcome)>) {
        let decisions = decisions(outcomes);
        match base.again(base.ballot) {
            Some(record) => {
                let record = Record { lineage: base.lineage.clone(), ..record };
                let action = Action::Chosen { address: address.clone(), record, announce: !base.flagged, decisions };
                self.actions.push(action);
            }
            None => self.actions.extend(decisions.into_iter().map(|(id, decision)| Action::Decide(id, decision))),
        }
    }

    fn keep_token(&mut self, now: Now, address: &Address, next: Ballot, record: &Record) {
        let until = now.monotonic + self.config.token_life;
        let base = Base {
            ballot: record.ballot,
            lineage: record.lineage.clone(),
            record: Some((record.upd, record.op.clone())),
            proven: true,
            flagged: true,
        };
        self.tokens.insert(address.clone(), Token { next, base, until });
        self.token_order.push_back((until, address.clone()));
    }

    fn expire_tokens(&mut self, now: Now) {
        while let Some((_, address)) = self.token_order.pop_front_if(|(until, _)| *until <= now.monotonic) {
            if self.tokens.get(&address).is_some_and(|token| token.until <= now.monotonic) {
                self.tokens.remove(&address);
            }
        }
    }

    fn expire(&mut self, now: Now, address: &Address) {
        let why = Decision::Reject(self.no_majority_answered(&address.shard));
        let Some(queue) = self.keys.get_mut(address) else { return };
        let late = queue.waiting.iter().filter(|pending| pending.deadline <= now.monotonic).map(|pending| pending.id);
        let mut nothing: Vec<OpId> = late.collect();
        queue.waiting.retain(|pending| pending.deadline > now.monotonic);
        if let Some(round) = &mut queue.round {
            let (unknown, unwritten) = round.expire(now.monotonic);
            self.actions.extend(unknown.into_iter().map(|id| Action::Decide(id, Decision::Timeout)));
            nothing.extend(unwritten);
        }
        self.actions.extend(nothing.into_iter().map(|id| Action::Decide(id, why.clone())));
        let is_over = queue.round.as_ref().map_or(queue.waiting.is_empty(), Round::is_idle);
        if is_over {
            queue.round = None;
            self.finish(address);
        }
    }

    fn put_back(&mut self, address: &Address, round: Round) {
        self.keys.entry(address.clone()).or_default().round = Some(round);
    }

    /// The key has no round any more: begins the next, or forgets the key.
    fn finish(&mut self, address: &Address) {
        match self.keys.get(address) {
            Some(queue) if queue.waiting.is_empty() => {
                self.keys.remove(address);
            }
            Some(_) => self.actions.push(Action::Start(address.clone())),
            None => {}
        }
    }

    fn drop_idle(&mut self) {
        self.keys.retain(|_, queue| {
            if queue.round.as_ref().is_some_and(Round::is_idle) {
                queue.round = None;
            }
            queue.round.is_some() || !queue.waiting.is_empty()
        });
    }

    /// Whether enough replicas of this shard can be asked now; what is missing, if not.
    pub fn find_quorum(&self, shard: &ShardId) -> Result<(), Rejection> {
        find_quorum(&self.config.electorate, shard, &self.reachable)
    }

    /// Who decides on this shard.
    pub fn electors(&self, shard: &ShardId) -> Arc<Electors> {
        self.config.electorate.on(shard)
    }

    fn no_majority_answered(&self, shard: &ShardId) -> Rejection {
        let needed = self.config.electorate.tell(shard, |replica| self.reachable.contains(&replica));
        Rejection::NoQuorum(format!("too few replicas answered in time (in reach: {needed}); nothing was stored"))
    }

    /// SplitMix64 (Steele, Lea, Flood, 2014), as a fraction of one.
    fn next_random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let top = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(u32::MAX);
        f64::from(top) / f64::from(u32::MAX)
    }
}

fn find_quorum(electorate: &Electorate, shard: &ShardId, reachable: &BTreeSet<usize>) -> Result<(), Rejection> {
    let is_there = |replica| reachable.contains(&replica);
    if electorate.on(shard).quorums.is_met(is_there) {
        return Ok(());
    }
    Err(Rejection::NoQuorum(format!("in reach: {}", electorate.tell(shard, is_there))))
}

fn decisions(outcomes: Vec<(Pending, Outcome)>) -> Vec<(OpId, Decision)> {
    outcomes.into_iter().map(|(pending, outcome)| (pending.id, Decision::Accept(outcome))).collect()
}
