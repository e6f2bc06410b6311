//! One connection: cuts its input into commands, runs what may run at the same time, and answers in order.
//!
//! [`Connection::dispatch`] makes all the decisions and never waits; [`serve`] waits and decides nothing.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Sleep;

use super::Shared;
use super::exec::{Answered, Context, write_value};
use super::parse::{Parser, Step};
use super::pubsub::{Pubsub, Subscriptions};
use super::reply::{Reply, Version};
use super::request::{Args, Limits, Meta, ReadAs, Refusal, Request, check_while_subscribed, parse};
use super::session::Session;
use crate::api::command::{Address, Consistency};
use crate::api::error::{ApiError, Written};
use crate::api::guest::Guest;
use crate::api::listener::STRANGER_TIMEOUT;
use crate::api::metrics::{Class, DialectMetrics};
use crate::api::room::Share;
use crate::api::service::Service;
use crate::store::Reads;
use crate::store::error::Error as StoreError;
use crate::store::update::Update;
use crate::types::{Key, ShardId};

/// The most commands of one connection that wait for something at once.
const IN_FLIGHT_MAX: usize = 256;
/// No further command is begun while those that wait took this many bytes of input together.
const IN_FLIGHT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// No further command is begun while this many bytes of replies wait for the client.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;
/// An idle connection's buffers shrink back to this.
const IDLE_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// The most bytes of one command's arguments together, where values are small enough for it.
const COMMAND_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a client may take to send the rest of a command.
const HALF_SENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A reply in its place.
enum Slot {
    Waiting,
    /// One reply, or several in a row.
    Ready(BytesMut),
}

/// The end of something that waited.
struct Finished {
    /// The slot's number, counted from the connection's beginning.
    slot: u64,
    key: Option<Address>,
    input_bytes: usize,
    class: Class,
    started: Duration,
    answered: Answered,
}

/// Why the connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::api) enum Ended {
    /// Both sides are done, or the client is gone.
    Done,
    /// What came was no RESP; there may be more of it to read.
    Garbage,
}

struct Connection {
    guest: Guest,
    shared: Arc<Shared>,
    session: Session,
    limits: Limits,
    parser: Parser,
    input: BytesMut,
    output: BytesMut,
    /// Replies behind the first one that is not there yet.
    slots: VecDeque<Slot>,
    /// The number of the first of `slots`.
    first_slot: u64,
    /// Bytes in ready slots.
    held_bytes: usize,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    in_flight_bytes: usize,
    /// The room that `input` and what is in flight take up.
    share: Share,
    /// Why the command being read is thrown away, where it is not for its size.
    turned_away: Option<ApiError>,
    busy_keys: HashSet<Address>,
    subscriptions: Subscriptions,
    /// A command that runs alone is running.
    alone: bool,
    /// A command that must wait for others, and the bytes it took.
    held_back: Option<(Request, usize)>,
    /// The input holds no further whole command.
    starved: bool,
    /// The client will send no more, or nothing more is read of it.
    input_ended: bool,
    garbage: bool,
}

/// Whether a command could be begun.
enum Begun {
    Yes,
    /// It goes first once others have ended.
    NotYet(Request),
}

/// How a run of reads ended.
enum Run {
    /// All that could be answered are; what comes next is held back.
    Over,
    /// This read, whose command took so many bytes, has to wait for something.
    MustWait(Key, ReadAs, usize),
    /// The store failed on one.
    Failed(StoreError),
}

/// Serves one connection until either side ends it. `input` is what was read of it already.
pub(in crate::api) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    input: BytesMut,
    guest: Guest,
    shared: Arc<Shared>,
) -> Ended {
    let mut connection = Connection::new(guest, shared, input);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut half_sent: Pin<Box<Option<Sleep>>> = Box::pin(None);
    let mut stranger: Pin<Box<Option<Sleep>>> = Box::pin(None);
    loop {
        let commands_before = connection.session.commands;
        connection.dispatch();
        connection.deliver();
        let begun = connection.session.commands - commands_before;
        if begun > 0 {
            connection.metrics().requests.increment(begun);
        }
        if connection.is_finished() {
            break;
        }
        if connection.guest.is_stranger() {
            // Whatever it sends meanwhile.
            if stranger.is_none() {
                stranger.set(Some(tokio::time::sleep(STRANGER_TIMEOUT)));
            }
        } else {
            stranger.set(None);
        }
        if !connection.is_midway() {
            half_sent.set(None);
        } else if half_sent.is_none() || connection.session.commands != commands_before {
            half_sent.set(Some(tokio::time::sleep(HALF_SENT_TIMEOUT)));
        }
        let may_read = connection.starved && !connection.input_ended;
        if may_read && connection.input.capacity() - connection.input.len() < READ_BYTES / 4 {
            let more = READ_BYTES.max(connection.input.len().min(COMMAND_BYTES_MAX / 64));
            connection.input.reserve(more);
        }
        tokio::select! {
            biased;
            Some(finished) = connection.running.next(), if !connection.running.is_empty() => {
                connection.finish(finished);
                connection.finish_all_ready();
            }
            written = writer.write_buf(&mut connection.output), if !connection.output.is_empty() => {
                if !matches!(written, Ok(1..)) {
                    return Ended::Done;
                }
                connection.shrink();
            }
            read = reader.read_buf(&mut connection.input), if may_read => match read {
                Ok(0) => connection.input_ended = true,
                Ok(_) => connection.starved = false,
                Err(_) => return Ended::Done,
            },
            () = rung(&connection.subscriptions) => connection.subscriptions.is_rung = true,
            () = elapsed(stranger.as_mut()) => {
                connection.refuse(&Refusal::new("NOAUTH no token was shown in time"));
                connection.session.ended = true;
                stranger.set(None);
            }
            () = elapsed(half_sent.as_mut()) => {
                // Said to whoever still listens; what is left of the command is not waited for.
                connection.refuse(&Refusal::new("ERR the rest of the command did not arrive in time"));
                connection.input_ended = true;
                half_sent.set(None);
            }
        }
    }
    let _ = writer.flush().await;
    if connection.garbage { Ended::Garbage } else { Ended::Done }
}

/// Waits until there is something to deliver that was not known of; for ever where there is no subscription.
async fn rung(subscriptions: &Subscriptions) {
    if subscriptions.is_empty() || subscriptions.is_rung {
        return std::future::pending().await;
    }
    subscriptions.bell.notified().await;
}

/// Waits for the timer, for ever where there is none.
async fn elapsed(timer: Pin<&mut Option<Sleep>>) {
    match timer.as_pin_mut() {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

impl Connection {
    fn new(guest: Guest, shared: Arc<Shared>, input: BytesMut) -> Self {
        let config = guest.config();
        let (key_bytes_max, value_bytes_max) = (config.key_bytes_max, config.value_bytes_max);
        let bulk_bytes_max = value_bytes_max.max(key_bytes_max);
        let parser = Parser::new(bulk_bytes_max, COMMAND_BYTES_MAX.max(2 * bulk_bytes_max));
        let id = shared.ids.fetch_add(1, Ordering::Relaxed) + 1;
        let share = guest.share();
        Self {
            guest,
            shared,
            session: Session::new(id),
            limits: Limits { key_bytes_max, value_bytes_max },
            parser,
            input,
            output: BytesMut::new(),
            slots: VecDeque::new(),
            first_slot: 0,
            held_bytes: 0,
            running: FuturesUnordered::new(),
            in_flight_bytes: 0,
            share,
            turned_away: None,
            busy_keys: HashSet::new(),
            subscriptions: Subscriptions::default(),
            alone: false,
            held_back: None,
            starved: false,
            input_ended: false,
            garbage: false,
        }
    }

    fn metrics(&self) -> &DialectMetrics {
        &self.guest.metrics().resp
    }

    /// True where no more will be answered and all answers are on their way.
    fn is_finished(&self) -> bool {
        let no_more = self.session.ended || self.garbage || (self.input_ended && self.starved);
        no_more && self.held_back.is_none() && self.running.is_empty() && self.output.is_empty()
    }

    /// True where the client has sent part of a command and is waited for.
    fn is_midway(&self) -> bool {
        self.starved && !self.input_ended && (self.parser.is_midway() || !self.input.is_empty())
    }

    fn is_full(&self) -> bool {
        self.running.len() >= IN_FLIGHT_MAX
            || self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
            || self.output.len() + self.held_bytes >= OUTPUT_BYTES_MAX
    }

    /// Begins every command that is there and may begin, and takes up room for what is left.
    fn dispatch(&mut self) {
        self.begin_all();
        let resized = self.share.resize(self.input.len() + self.in_flight_bytes);
        if let Err(busy) = resized
            && self.is_midway()
            && self.turned_away.is_none()
        {
            // No room for the rest of this command: from here on it is thrown away.
            self.parser.skip();
            self.turned_away = Some(busy);
            self.begin_all();
        }
    }

    fn begin_all(&mut self) {
        while !self.is_full() {
            let (request, bytes) = match self.held_back.take() {
                Some(held_back) => held_back,
                None => match self.next_request() {
                    Some(next) => next,
                    None => return,
                },
            };
            if let Begun::NotYet(request) = self.begin(request, bytes) {
                self.held_back = Some((request, bytes));
                return;
            }
        }
    }

    /// The next command of the input and the bytes it took. What cannot be carried out is answered on the way.
    fn next_request(&mut self) -> Option<(Request, usize)> {
        while !self.session.ended && !self.garbage && !self.is_full() {
            let (bytes, parsed) = match self.parser.next(&self.input) {
                Ok(Step::Incomplete) => {
                    self.starved = true;
                    return None;
                }
                Ok(Step::Skip(bytes)) => {
                    self.input.advance(bytes);
                    continue;
                }
                Ok(Step::Command(bytes)) if self.parser.args().is_empty() => {
                    self.consume(bytes);
                    continue;
                }
                Ok(Step::Command(bytes)) => {
                    let args = Args::new(&self.input, self.parser.args());
                    let allowed = if self.is_subscribed() { check_while_subscribed(args) } else { Ok(()) };
                    (bytes, allowed.and_then(|()| parse(args, self.limits)))
                }
                Ok(Step::TooLarge(bytes)) => {
                    let max = self.limits.value_bytes_max;
                    let why =
                        || format!("an argument exceeds value_size_max = {max} bytes, or all of them their bound");
                    let why = self.turned_away.take().unwrap_or_else(|| ApiError::TooLarge(why()));
                    (bytes, Err(why.into()))
                }
                Err(garbage) => {
                    self.refuse(&Refusal::new(format!("ERR {garbage}")));
                    self.garbage = true;
                    self.input.clear();
                    return None;
                }
            };
            self.consume(bytes);
            self.session.commands += 1;
            match parsed {
                Ok(request) => return Some((request, bytes)),
                Err(refusal) => self.refuse(&refusal),
            }
        }
        None
    }

    fn consume(&mut self, bytes: usize) {
        self.input.advance(bytes);
        self.parser.reset();
    }

    fn begin(&mut self, request: Request, bytes: usize) -> Begun {
        if self.alone {
            return Begun::NotYet(request);
        }
        match request {
            Request::Meta(Meta::Ping(text)) if self.is_subscribed() => {
                self.answer(|reply| {
                    reply.push(2);
                    reply.bulk(b"pong");
                    reply.bulk(&text.unwrap_or_default());
                });
                Begun::Yes
            }
            Request::Meta(meta) => {
                if let Some(login) = meta.login() {
                    match self.guest.log_in(login.shard.as_ref(), login.token) {
                        Ok(guest) => self.guest = guest,
                        Err(error) => return self.fail(&error),
                    }
                }
                self.session.apply(&meta);
                if matches!(meta, Meta::Reset) {
                    self.subscriptions.clear();
                    self.guest = self.guest.showing(None);
                }
                let (guest, session) = (self.guest.clone(), self.session.clone());
                let connections = self.shared.connections.load(Ordering::Relaxed);
                self.answer(|reply| session.answer(&meta, &guest, connections, reply));
                Begun::Yes
            }
            Request::Read(key, read_as) => self.begin_read(key, read_as, bytes),
            Request::Write(key, update, answer) => {
                let at = match self.place(&key) {
                    Ok(Some(at)) => at,
                    Ok(None) => return Begun::NotYet(Request::Write(key, update, answer)),
                    Err(error) => return self.fail(&error),
                };
                // A linearizable read is a read to those who look at times.
                let class = if Update::is_read(&update) { Class::Read } else { Class::Write };
                let job = self.context().write(at.clone(), update, answer);
                self.start(Some(at), class, bytes, job);
                Begun::Yes
            }
            several if !self.running.is_empty() => Begun::NotYet(several),
            Request::Pubsub(pubsub) => {
                self.pubsub(pubsub);
                Begun::Yes
            }
            several => {
                self.begin_alone(several, bytes);
                Begun::Yes
            }
        }
    }

    fn begin_read(&mut self, key: Key, read_as: ReadAs, bytes: usize) -> Begun {
        let at = match self.place(&key) {
            Ok(Some(at)) => at,
            Ok(None) => return Begun::NotYet(Request::Read(key, read_as)),
            Err(error) => return self.fail(&error),
        };
        let open = match self.session.consistency {
            Consistency::Local => self.guest.open_shard(&at.shard),
            Consistency::Quorum => Ok(None),
        };
        let open = match open {
            Ok(open) => open,
            Err(error) => return self.fail(&error),
        };
        if let Some(shard) = open {
            match shard.reading(|reads| self.read_run(reads, &at.shard, (key, read_as, bytes))) {
                Ok(Run::Over) => return Begun::Yes,
                Ok(Run::Failed(error)) => return self.fail(&ApiError::from_store(error, Written::No)),
                // Unsettled, or closed this very moment: waiting settles it, or opens it again. The run may have gone
                // on to another key.
                Ok(Run::MustWait(key, read_as, bytes)) => {
                    let at = Address { key, ..at };
                    let job = self.context().read(at.clone(), read_as);
                    self.start(Some(at), Class::Read, bytes, job);
                    return Begun::Yes;
                }
                Err(StoreError::Closed) => {}
                Err(error) => return self.fail(&ApiError::from_store(error, Written::No)),
            }
        }
        let job = self.context().read(at.clone(), read_as);
        self.start(Some(at), Class::Read, bytes, job);
        Begun::Yes
    }

    /// Answers a read, and those of the same shard that the input holds right behind it.
    fn read_run(&mut self, reads: &mut Reads<'_>, shard: &ShardId, first: (Key, ReadAs, usize)) -> Run {
        let started = self.guest.monotonic();
        let (mut key, mut read_as, mut bytes) = first;
        let run = loop {
            // One that has to wait is noted again where it does.
            if let Err(refused) = self.guest.spend(&shard.org) {
                self.fail(&refused);
            } else {
                let got = reads.get(&key, |row| {
                    self.answer(|reply| write_value(reply, row.map(|(value, _)| value), read_as));
                });
                match got {
                    Ok(()) => {}
                    Err(StoreError::Unsettled | StoreError::Closed) => break Run::MustWait(key, read_as, bytes),
                    Err(error) => break Run::Failed(error),
                }
            }
            if self.is_full() {
                break Run::Over;
            }
            (key, read_as, bytes) = match self.next_request() {
                Some((Request::Read(key, read_as), bytes)) if self.is_free(shard, &key) => (key, read_as, bytes),
                next => {
                    self.held_back = next;
                    break Run::Over;
                }
            };
        };
        let took = self.guest.monotonic().saturating_sub(started);
        self.metrics().seconds(Class::Read).record(took);
        run
    }

    /// True where `key` lives in `shard`, and no command on it is under way.
    fn is_free(&self, shard: &ShardId, key: &Key) -> bool {
        Service::route(&self.session.shard, key.as_str()).is_ok_and(|at| *at == *shard)
            && (self.busy_keys.is_empty()
                || !self.busy_keys.contains(&Address { shard: shard.clone(), key: key.clone() }))
    }

    /// Where a key lives; none while a command on it is under way.
    fn place(&self, key: &Key) -> Result<Option<Address>, ApiError> {
        let shard = Service::route(&self.session.shard, key.as_str())?.into_owned();
        let at = Address { shard, key: key.clone() };
        Ok((self.busy_keys.is_empty() || !self.busy_keys.contains(&at)).then_some(at))
    }

    fn begin_alone(&mut self, request: Request, bytes: usize) {
        let context = self.context();
        self.alone = true;
        match request {
            Request::MGet(keys) => self.start(None, Class::Read, bytes, context.mget(keys)),
            Request::ExistsMany(keys) => self.start(None, Class::Read, bytes, context.exists(keys)),
            Request::MSet(pairs) => self.start(None, Class::Write, bytes, context.mset(pairs)),
            Request::DelMany(keys) => self.start(None, Class::Write, bytes, context.del(keys)),
            Request::DbSize => self.start(None, Class::Other, bytes, context.dbsize()),
            Request::Keys(pattern) => self.start(None, Class::Other, bytes, context.keys(pattern)),
            Request::Scan(scan) => self.start(None, Class::Other, bytes, context.scan(scan)),
            // Begun where it is read; they never come here.
            Request::Meta(_) | Request::Read(..) | Request::Write(..) | Request::Pubsub(_) => self.alone = false,
        }
    }

    /// True where RESP2 has no way to tell a reply from a message.
    fn is_subscribed(&self) -> bool {
        self.session.version == Version::Resp2 && !self.subscriptions.is_empty()
    }

    fn pubsub(&mut self, pubsub: Pubsub) {
        let (guest, shard) = (self.guest.clone(), self.session.shard.clone());
        let mut subscriptions = std::mem::take(&mut self.subscriptions);
        let mut refused = Ok(());
        self.answer(|reply| match pubsub {
            Pubsub::Subscribe(by, names) => refused = subscriptions.subscribe(by, names, &shard, &guest, reply),
            Pubsub::Unsubscribe(by, names) => subscriptions.unsubscribe(by, names, &guest, reply),
        });
        self.subscriptions = subscriptions;
        if let Err(refusal) = refused {
            self.refuse(&refusal);
        }
    }

    /// Puts the messages that there are behind the replies that there are, as far as there is room.
    fn deliver(&mut self) {
        while self.subscriptions.is_rung && !self.is_full() && !self.session.ended {
            let mut subscriptions = std::mem::take(&mut self.subscriptions);
            let mut cut = Ok(());
            let guest = self.guest.clone();
            self.answer(|reply| cut = subscriptions.deliver(&guest, reply));
            self.subscriptions = subscriptions;
            if let Err(cut) = cut {
                // What Redis does to a subscriber that it has no room for, with a word more.
                self.fail(&cut);
                self.subscriptions.clear();
                self.session.ended = true;
            }
        }
    }

    fn context(&self) -> Context {
        Context {
            guest: self.guest.clone(),
            shared: Arc::clone(&self.shared),
            shard: self.session.shard.clone(),
            consistency: self.session.consistency,
            writes: self.session.writes,
            version: self.session.version,
        }
    }

    /// Begins what waits, and keeps its reply's place.
    fn start(
        &mut self,
        key: Option<Address>,
        class: Class,
        input_bytes: usize,
        job: impl Future<Output = Answered> + Send + 'static,
    ) {
        let slot = self.first_slot + self.slots.len() as u64;
        self.slots.push_back(Slot::Waiting);
        self.in_flight_bytes += input_bytes;
        if let Some(key) = &key {
            self.busy_keys.insert(key.clone());
        }
        let started = self.guest.monotonic();
        let finished = job.map(move |answered| Finished { slot, key, input_bytes, class, started, answered });
        self.running.push(finished.boxed());
    }

    /// Puts a finished reply in its place, and sends on what is now in order.
    fn finish(&mut self, finished: Finished) {
        let took = self.guest.monotonic().saturating_sub(finished.started);
        self.metrics().seconds(finished.class).record(took);
        if let Some(label) = finished.answered.error {
            self.metrics().count_error(label);
        }
        match finished.key {
            Some(key) => {
                self.busy_keys.remove(&key);
            }
            None => self.alone = false,
        }
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(finished.input_bytes);
        self.held_bytes += finished.answered.out.len();
        let place = usize::try_from(finished.slot - self.first_slot).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = Slot::Ready(finished.answered.out);
        }
        while let Some(Slot::Ready(_)) = self.slots.front() {
            let Some(Slot::Ready(reply)) = self.slots.pop_front() else { break };
            self.first_slot += 1;
            self.held_bytes = self.held_bytes.saturating_sub(reply.len());
            // Takes the buffer over where the output is empty, and copies otherwise.
            self.output.unsplit(reply);
        }
    }

    /// Takes everything else that has finished meanwhile, so that the replies leave in one piece.
    fn finish_all_ready(&mut self) {
        while let Some(Some(finished)) = self.running.next().now_or_never() {
            self.finish(finished);
        }
    }

    /// Answers a command that waits for nothing.
    fn answer(&mut self, write: impl FnOnce(&mut Reply<'_>)) {
        let version = self.session.version;
        if self.slots.is_empty() {
            return write(&mut Reply::new(&mut self.output, version));
        }
        if !matches!(self.slots.back(), Some(Slot::Ready(_))) {
            self.slots.push_back(Slot::Ready(BytesMut::new()));
        }
        if let Some(Slot::Ready(last)) = self.slots.back_mut() {
            let before = last.len();
            write(&mut Reply::new(last, version));
            self.held_bytes += last.len() - before;
        }
    }

    fn fail(&mut self, error: &ApiError) -> Begun {
        self.metrics().count_error(error.row().label);
        self.answer(|reply| reply.failure(error));
        Begun::Yes
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.metrics().count_error(refusal.label);
        self.answer(|reply| reply.error(&refusal.line));
    }

    /// Gives back the room that one large command or reply took.
    fn shrink(&mut self) {
        if self.output.is_empty() && self.output.capacity() > IDLE_BUFFER_BYTES_MAX {
            self.output = BytesMut::new();
        }
        if self.input.is_empty() && self.input.capacity() > IDLE_BUFFER_BYTES_MAX {
            self.input = BytesMut::new();
        }
    }
}
