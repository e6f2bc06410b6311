//! What a RESP command asks for: its arguments, parsed and checked.

use std::ops::Range;

use bytes::Bytes;

use super::parse::parse_i64;
use super::pubsub::{By, Pubsub};
use super::reply::Version;
use crate::api::command::Consistency;
use crate::api::error::ApiError;
use crate::store::update::{Change, Condition, Update};
use crate::token::TokenDigest;
use crate::types::{Key, ShardId, Value};

/// The arguments of one command, where they lie in the connection's input.
#[derive(Clone, Copy)]
pub(super) struct Args<'a> {
    buf: &'a [u8],
    ranges: &'a [Range<usize>],
}

impl<'a> Args<'a> {
    pub(super) fn new(buf: &'a [u8], ranges: &'a [Range<usize>]) -> Self {
        Self { buf, ranges }
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The argument at `place`, 0 being the command's name; empty where there is none.
    pub(super) fn at(&self, place: usize) -> &'a [u8] {
        self.ranges.get(place).and_then(|range| self.buf.get(range.clone())).unwrap_or_default()
    }

    /// The arguments from `place` on.
    pub(super) fn from(&self, place: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let buf = self.buf;
        let rest = self.ranges.get(place..).unwrap_or_default();
        rest.iter().map(move |range| buf.get(range.clone()).unwrap_or_default())
    }

    fn is(&self, place: usize, word: &str) -> bool {
        self.at(place).eq_ignore_ascii_case(word.as_bytes())
    }
}

/// The bounds of what is parsed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) key_bytes_max: usize,
    pub(super) value_bytes_max: usize,
}

impl Limits {
    fn key(&self, bytes: &[u8]) -> Result<Key, Refusal> {
        Ok(Key::parse_bytes(bytes, self.key_bytes_max).map_err(ApiError::from)?)
    }

    /// Copies the value: kept as a slice it would hold on to all of the connection's input around it.
    fn value(&self, bytes: &[u8]) -> Result<Value, Refusal> {
        if bytes.len() > self.value_bytes_max {
            let too_large = crate::types::InvalidInput::ValueTooLarge { bytes: bytes.len(), max: self.value_bytes_max };
            return Err(ApiError::from(too_large).into());
        }
        Ok(Value::from(Bytes::copy_from_slice(bytes)))
    }
}

/// A command that is not carried out: the error line to answer, and the label to count it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) line: String,
    pub(super) label: &'static str,
}

impl Refusal {
    pub(super) fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), label: "invalid-request" }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { line: error.resp_line(), label: error.row().label }
    }
}

/// What to answer of a row that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadAs {
    Value,
    Length,
    Type,
    Existence,
}

/// What to answer of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// `+OK`, or nil where the condition did not hold.
    OkOrNil,
    /// The value before, or nil.
    Before,
    /// 1 where something was written, else 0.
    OneIfWritten,
    /// The value after, which is an integer.
    IntegerAfter,
    /// The length of the value after.
    LengthAfter,
}

/// What `AUTH` says, or `HELLO … AUTH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    /// The shard that the user names; none for Redis' user `default`, who stays where he is.
    pub(super) shard: Option<ShardId>,
    /// The password.
    pub(super) token: TokenDigest,
}

/// Commands about the connection or the server, answered at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meta {
    Ping(Option<Bytes>),
    Echo(Bytes),
    Hello {
        version: Option<Version>,
        login: Option<Login>,
        name: Option<Bytes>,
    },
    Auth(Login),
    Select,
    ClientSetName(Bytes),
    ClientGetName,
    ClientId,
    ClientInfo,
    ClientList,
    /// `CLIENT WRITES LOCAL|QUORUM`: who has to have the writes of this connection when they are answered. Redis has nothing
    /// like it.
    ClientWrites(Consistency),
    /// `CLIENT SETINFO`, `NO-EVICT` and the like: taken and forgotten.
    ClientOther,
    CommandList,
    CommandCount,
    CommandDocs,
    CommandInfo(Vec<Bytes>),
    Info,
    ConfigGet(Vec<Bytes>),
    Reset,
    Quit,
    ReadOnly,
    ReadWrite,
}

impl Meta {
    /// What it says of who is asking.
    pub(super) fn login(&self) -> Option<&Login> {
        match self {
            Self::Hello { login, .. } => login.as_ref(),
            Self::Auth(login) => Some(login),
            _ => None,
        }
    }
}

/// `SCAN`'s arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    pub(super) cursor: u64,
    pub(super) pattern: Option<Bytes>,
    pub(super) count: usize,
    /// False where `TYPE` asks for something that no key here is.
    pub(super) strings: bool,
}

/// A whole command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Meta(Meta),
    Read(Key, ReadAs),
    Write(Key, Update, Answer),
    MGet(Vec<Key>),
    MSet(Vec<(Key, Value)>),
    DelMany(Vec<Key>),
    ExistsMany(Vec<Key>),
    DbSize,
    Keys(Bytes),
    Scan(Scan),
    Pubsub(Pubsub),
}

/// One command that is understood, as `COMMAND` tells clients of it.
pub(super) struct Spec {
    /// In lower case.
    pub(super) name: &'static str,
    /// How many arguments, the name included; at least so many where negative.
    pub(super) arity: i64,
    /// `write`, `readonly`, `pubsub`, or `fast` for those that touch no key.
    pub(super) flag: &'static str,
    /// Places of the first and the last key (-1: the last argument), and the step between keys.
    pub(super) keys: (i64, i64, i64),
    parse: fn(Args<'_>, Limits) -> Result<Request, Refusal>,
}

const fn spec(
    name: &'static str,
    arity: i64,
    flag: &'static str,
    keys: (i64, i64, i64),
    parse: fn(Args<'_>, Limits) -> Result<Request, Refusal>,
) -> Spec {
    Spec { name, arity, flag, keys, parse }
}

const NO_KEY: (i64, i64, i64) = (0, 0, 0);
const ONE_KEY: (i64, i64, i64) = (1, 1, 1);
const ALL_KEYS: (i64, i64, i64) = (1, -1, 1);

/// Every command. Those of one key come first, as they are looked up most.
pub(super) static COMMANDS: &[Spec] = &[
    spec("get", 2, "readonly", ONE_KEY, |a, l| read(a, l, ReadAs::Value)),
    spec("set", -3, "write", ONE_KEY, set),
    spec("incr", 2, "write", ONE_KEY, |a, l| add(a, l, 1)),
    spec("decr", 2, "write", ONE_KEY, |a, l| add(a, l, -1)),
    spec("incrby", 3, "write", ONE_KEY, |a, l| add(a, l, integer(a.at(2))?)),
    spec("decrby", 3, "write", ONE_KEY, decrby),
    spec("del", -2, "write", ALL_KEYS, del),
    spec("unlink", -2, "write", ALL_KEYS, del),
    spec("exists", -2, "readonly", ALL_KEYS, exists),
    spec("strlen", 2, "readonly", ONE_KEY, |a, l| read(a, l, ReadAs::Length)),
    spec("type", 2, "readonly", ONE_KEY, |a, l| read(a, l, ReadAs::Type)),
    spec("append", 3, "write", ONE_KEY, |a, l| {
        Ok(Request::Write(l.key(a.at(1))?, Update::always(Change::Append(l.value(a.at(2))?)), Answer::LengthAfter))
    }),
    spec("setnx", 3, "write", ONE_KEY, |a, l| {
        let change = Change::Put(l.value(a.at(2))?);
        Ok(Request::Write(l.key(a.at(1))?, Update { condition: Condition::Absent, change }, Answer::OneIfWritten))
    }),
    spec("getset", 3, "write", ONE_KEY, |a, l| {
        Ok(Request::Write(l.key(a.at(1))?, Update::put(l.value(a.at(2))?), Answer::Before))
    }),
    spec("getdel", 2, "write", ONE_KEY, |a, l| Ok(Request::Write(l.key(a.at(1))?, Update::del(), Answer::Before))),
    spec("mget", -2, "readonly", ALL_KEYS, |a, l| Ok(Request::MGet(keys(a, l)?))),
    spec("mset", -3, "write", (1, -1, 2), mset),
    spec("ping", -1, "fast", NO_KEY, ping),
    spec("echo", 2, "fast", NO_KEY, |a, _| meta(Meta::Echo(copy(a.at(1))))),
    spec("hello", -1, "fast", NO_KEY, hello),
    spec("auth", -2, "fast", NO_KEY, auth),
    spec("select", 2, "fast", NO_KEY, |a, _| match integer(a.at(1))? {
        0 => meta(Meta::Select),
        _ => Err(Refusal::new("ERR DB index is out of range")),
    }),
    spec("client", -2, "fast", NO_KEY, client),
    spec("command", -1, "fast", NO_KEY, command),
    spec("info", -1, "fast", NO_KEY, |_, _| meta(Meta::Info)),
    spec("config", -2, "fast", NO_KEY, config),
    spec("reset", 1, "fast", NO_KEY, |_, _| meta(Meta::Reset)),
    spec("quit", -1, "fast", NO_KEY, |_, _| meta(Meta::Quit)),
    spec("readonly", 1, "fast", NO_KEY, |_, _| meta(Meta::ReadOnly)),
    spec("readwrite", 1, "fast", NO_KEY, |_, _| meta(Meta::ReadWrite)),
    spec("subscribe", -2, "pubsub", NO_KEY, |a, _| Ok(Request::Pubsub(Pubsub::Subscribe(By::Channel, names(a))))),
    spec("psubscribe", -2, "pubsub", NO_KEY, |a, _| Ok(Request::Pubsub(Pubsub::Subscribe(By::Pattern, names(a))))),
    spec("unsubscribe", -1, "pubsub", NO_KEY, |a, _| Ok(Request::Pubsub(Pubsub::Unsubscribe(By::Channel, names(a))))),
    spec("punsubscribe", -1, "pubsub", NO_KEY, |a, _| Ok(Request::Pubsub(Pubsub::Unsubscribe(By::Pattern, names(a))))),
    spec("dbsize", 1, "readonly", NO_KEY, |_, _| Ok(Request::DbSize)),
    spec("keys", 2, "readonly", NO_KEY, |a, _| Ok(Request::Keys(copy(a.at(1))))),
    spec("scan", -2, "readonly", NO_KEY, scan),
];

/// Parses a whole command.
pub(super) fn parse(args: Args<'_>, limits: Limits) -> Result<Request, Refusal> {
    let name = args.at(0);
    let Some(spec) = COMMANDS.iter().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name)) else {
        return Err(unknown(args));
    };
    let count = i64::try_from(args.len()).unwrap_or(i64::MAX);
    if (spec.arity >= 0 && count != spec.arity) || count < -spec.arity {
        return Err(wrong_arity(spec.name));
    }
    (spec.parse)(args, limits)
}

fn unknown(args: Args<'_>) -> Refusal {
    let shown = |bytes: &[u8]| bytes.get(..bytes.len().min(128)).unwrap_or_default().escape_ascii().to_string();
    let beginning: String = args.from(1).take(8).map(|arg| format!("'{}' ", shown(arg))).collect();
    Refusal::new(format!("ERR unknown command '{}', with args beginning with: {beginning}", shown(args.at(0))))
}

fn wrong_arity(name: &str) -> Refusal {
    Refusal::new(format!("ERR wrong number of arguments for '{name}' command"))
}

fn syntax() -> Refusal {
    Refusal::new("ERR syntax error")
}

fn integer(bytes: &[u8]) -> Result<i64, Refusal> {
    parse_i64(bytes).ok_or_else(|| Refusal::new("ERR value is not an integer or out of range"))
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[expect(clippy::unnecessary_wraps, reason = "the shape that every parser has")]
fn meta(meta: Meta) -> Result<Request, Refusal> {
    Ok(Request::Meta(meta))
}

fn names(args: Args<'_>) -> Vec<Bytes> {
    args.from(1).map(copy).collect()
}

/// Refuses what RESP2 has no words for between messages of subscriptions.
pub(super) fn check_while_subscribed(args: Args<'_>) -> Result<(), Refusal> {
    const ALLOWED: [&str; 7] = ["subscribe", "psubscribe", "unsubscribe", "punsubscribe", "ping", "quit", "reset"];
    if ALLOWED.iter().any(|name| args.is(0, name)) {
        return Ok(());
    }
    let name = args.at(0).get(..args.at(0).len().min(128)).unwrap_or_default().to_ascii_lowercase();
    Err(Refusal::new(format!(
        "ERR Can't execute '{}': only (P)SUBSCRIBE / (P)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
        name.escape_ascii()
    )))
}

fn keys(args: Args<'_>, limits: Limits) -> Result<Vec<Key>, Refusal> {
    args.from(1).map(|key| limits.key(key)).collect()
}

fn read(args: Args<'_>, limits: Limits, as_what: ReadAs) -> Result<Request, Refusal> {
    Ok(Request::Read(limits.key(args.at(1))?, as_what))
}

fn add(args: Args<'_>, limits: Limits, by: i64) -> Result<Request, Refusal> {
    Ok(Request::Write(limits.key(args.at(1))?, Update::always(Change::Add(by)), Answer::IntegerAfter))
}

fn decrby(args: Args<'_>, limits: Limits) -> Result<Request, Refusal> {
    let by = integer(args.at(2))?.checked_neg().ok_or_else(|| Refusal::new("ERR decrement would overflow"))?;
    add(args, limits, by)
}

fn del(args: Args<'_>, limits: Limits) -> Result<Request, Refusal> {
    if args.len() == 2 {
        return Ok(Request::Write(limits.key(args.at(1))?, Update::del(), Answer::OneIfWritten));
    }
    Ok(Request::DelMany(keys(args, limits)?))
}

fn exists(args: Args<'_>, limits: Limits) -> Result<Request, Refusal> {
    if args.len() == 2 {
        return read(args, limits, ReadAs::Existence);
    }
    Ok(Request::ExistsMany(keys(args, limits)?))
}

fn mset(args: Args<'_>, limits: Limits) -> Result<Request, Refusal> {
    if args.len().is_multiple_of(2) {
        return Err(wrong_arity("mset"));
    }
    let pair = |place| Ok((limits.key(args.at(place))?, limits.value(args.at(place + 1))?));
    Ok(Request::MSet((1..args.len()).step_by(2).map(pair).collect::<Result<_, Refusal>>()?))
}

fn set(args: Args<'_>, limits: Limits) -> Result<Request, Refusal> {
    let key = limits.key(args.at(1))?;
    let change = Change::Put(limits.value(args.at(2))?);
    let (mut condition, mut answer) = (Condition::Always, Answer::OkOrNil);
    let mut place = 3;
    while place < args.len() {
        let before = if args.is(place, "NX") {
            std::mem::replace(&mut condition, Condition::Absent)
        } else if args.is(place, "XX") {
            std::mem::replace(&mut condition, Condition::Present)
        } else if args.is(place, "IFEQ") && place + 1 < args.len() {
            place += 1;
            std::mem::replace(&mut condition, Condition::ValueIs(limits.value(args.at(place))?))
        } else if args.is(place, "GET") {
            answer = Answer::Before;
            Condition::Always
        } else if args.is(place, "KEEPTTL") {
            // No key has a time to live, so it is kept.
            Condition::Always
        } else if ["EX", "PX", "EXAT", "PXAT"].iter().any(|word| args.is(place, word)) {
            return Err(Refusal { line: "ERR expiry is not supported".to_owned(), label: "not-supported" });
        } else {
            return Err(syntax());
        };
        if before != Condition::Always {
            return Err(syntax());
        }
        place += 1;
    }
    Ok(Request::Write(key, Update { condition, change }, answer))
}

fn ping(args: Args<'_>, _: Limits) -> Result<Request, Refusal> {
    match args.len() {
        1 => meta(Meta::Ping(None)),
        2 => meta(Meta::Ping(Some(copy(args.at(1))))),
        _ => Err(wrong_arity("ping")),
    }
}

/// The shard that a user name picks: `<org>/<namespace>`; none for Redis' user `default`, who stays where he is.
fn user(name: &[u8]) -> Result<Option<ShardId>, Refusal> {
    if name == b"default" {
        return Ok(None);
    }
    let text = std::str::from_utf8(name).unwrap_or_default();
    let Some((org, namespace)) = text.split_once('/') else {
        let got = name.get(..name.len().min(128)).unwrap_or_default().escape_ascii();
        return Err(Refusal::new(format!("ERR the user picks the shard: want '<org>/<namespace>', got '{got}'")));
    };
    Ok(Some(ShardId::parse(org, namespace).map_err(ApiError::from)?))
}

fn login(name: &[u8], password: &[u8]) -> Result<Login, Refusal> {
    Ok(Login { shard: user(name)?, token: TokenDigest::of(password) })
}

fn auth(args: Args<'_>, _: Limits) -> Result<Request, Refusal> {
    match args.len() {
        2 => meta(Meta::Auth(Login { shard: None, token: TokenDigest::of(args.at(1)) })),
        3 => meta(Meta::Auth(login(args.at(1), args.at(2))?)),
        _ => Err(syntax()),
    }
}

fn hello(args: Args<'_>, _: Limits) -> Result<Request, Refusal> {
    let version = match args.len() {
        1 => None,
        _ => match args.at(1) {
            b"2" => Some(Version::Resp2),
            b"3" => Some(Version::Resp3),
            _ => return Err(Refusal::new("NOPROTO unsupported protocol version")),
        },
    };
    let (mut login, mut name, mut place) = (None, None, 2);
    while place < args.len() {
        if args.is(place, "AUTH") && place + 2 < args.len() {
            login = Some(self::login(args.at(place + 1), args.at(place + 2))?);
            place += 3;
        } else if args.is(place, "SETNAME") && place + 1 < args.len() {
            name = Some(client_name(args.at(place + 1))?);
            place += 2;
        } else {
            let option = args.at(place).get(..args.at(place).len().min(128)).unwrap_or_default().escape_ascii();
            return Err(Refusal::new(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    meta(Meta::Hello { version, login, name })
}

/// The longest name a connection may give itself, in bytes.
const CLIENT_NAME_BYTES_MAX: usize = 256;

fn client_name(name: &[u8]) -> Result<Bytes, Refusal> {
    if name.len() > CLIENT_NAME_BYTES_MAX || !name.iter().all(u8::is_ascii_graphic) {
        return Err(Refusal::new("ERR Client names cannot contain spaces, newlines or special characters."));
    }
    Ok(copy(name))
}

fn client(args: Args<'_>, _: Limits) -> Result<Request, Refusal> {
    let what = args.at(1).to_ascii_lowercase();
    match (&*what, args.len()) {
        (b"setname", 3) => meta(Meta::ClientSetName(client_name(args.at(2))?)),
        (b"getname", 2) => meta(Meta::ClientGetName),
        (b"id", 2) => meta(Meta::ClientId),
        (b"info", 2) => meta(Meta::ClientInfo),
        (b"list", _) => meta(Meta::ClientList),
        (b"setinfo", 4) | (b"no-evict" | b"no-touch", 3) => meta(Meta::ClientOther),
        (b"writes", 3) => {
            let text = args.at(2).to_ascii_lowercase();
            let consistency = std::str::from_utf8(&text).ok().and_then(Consistency::parse);
            let unknown = || Refusal::new("ERR CLIENT WRITES: want LOCAL or QUORUM".to_owned());
            meta(Meta::ClientWrites(consistency.ok_or_else(unknown)?))
        }
        (b"reply", 3) if args.is(2, "ON") => meta(Meta::ClientOther),
        (b"writes" | b"setname" | b"getname" | b"id" | b"info" | b"setinfo" | b"no-evict" | b"no-touch", _) => {
            Err(wrong_arity(&format!("client|{}", what.escape_ascii())))
        }
        _ => Err(unknown_subcommand(args, "CLIENT")),
    }
}

fn unknown_subcommand(args: Args<'_>, command: &str) -> Refusal {
    let what = args.at(1).get(..args.at(1).len().min(128)).unwrap_or_default().escape_ascii();
    Refusal::new(format!("ERR unknown subcommand '{what}'. Try {command} HELP."))
}

fn command(args: Args<'_>, _: Limits) -> Result<Request, Refusal> {
    match &*args.at(1).to_ascii_lowercase() {
        b"" => meta(Meta::CommandList),
        b"count" => meta(Meta::CommandCount),
        b"docs" => meta(Meta::CommandDocs),
        b"info" => meta(Meta::CommandInfo(args.from(2).map(copy).collect())),
        _ => Err(unknown_subcommand(args, "COMMAND")),
    }
}

fn config(args: Args<'_>, _: Limits) -> Result<Request, Refusal> {
    if !args.is(1, "GET") {
        return Err(unknown_subcommand(args, "CONFIG"));
    }
    if args.len() < 3 {
        return Err(wrong_arity("config|get"));
    }
    meta(Meta::ConfigGet(args.from(2).map(|pattern| Bytes::from(pattern.to_ascii_lowercase())).collect()))
}

fn scan(args: Args<'_>, _: Limits) -> Result<Request, Refusal> {
    let cursor = std::str::from_utf8(args.at(1)).ok().and_then(|text| text.parse().ok());
    let cursor = cursor.ok_or_else(|| Refusal::new("ERR invalid cursor"))?;
    let mut scan = Scan { cursor, pattern: None, count: 10, strings: true };
    let mut place = 2;
    while place < args.len() {
        if place + 1 >= args.len() {
            return Err(syntax());
        }
        let argument = args.at(place + 1);
        if args.is(place, "MATCH") {
            scan.pattern = Some(copy(argument));
        } else if args.is(place, "COUNT") {
            scan.count = usize::try_from(integer(argument)?).ok().filter(|count| *count > 0).ok_or_else(syntax)?;
        } else if args.is(place, "TYPE") {
            scan.strings = argument.eq_ignore_ascii_case(b"string");
        } else {
            return Err(syntax());
        }
        place += 2;
    }
    Ok(Request::Scan(scan))
}
