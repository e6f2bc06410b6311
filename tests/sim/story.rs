//! What happened in a world, line by line, in virtual time; and one number for all of it, by which two runs are compared.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// How many lines a failing seed shows.
pub(crate) const LINES_KEPT_MAX: usize = 200;
/// FNV-1a, 64 bits.
const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;
const HASH_PRIME: u64 = 0x0000_0100_0000_01b3;
/// Whose lines are the world's own.
const WORLD: &str = "world";

static STORY: Mutex<Story> = Mutex::new(Story {
    now: Duration::ZERO,
    host: String::new(),
    hash: HASH_START,
    lines: VecDeque::new(),
    told: 0,
    aloud: false,
    failure: None,
});

struct Story {
    now: Duration,
    host: String,
    hash: u64,
    lines: VecDeque<String>,
    told: u64,
    aloud: bool,
    failure: Option<String>,
}

/// What is left of a story at its end.
pub(crate) struct Ending {
    pub(crate) hash: u64,
    pub(crate) told: u64,
    pub(crate) last: Vec<String>,
    pub(crate) failure: Option<String>,
}

/// Begins: what is logged becomes part of the story, and a panic, on whichever task, fails the seed. With `aloud` every
/// line is printed.
pub(crate) fn begin(aloud: bool) {
    STORY.lock().aloud = aloud;
    let wanted = Targets::new().with_default(Level::WARN).with_target("outrigger", Level::DEBUG);
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Logged.with_filter(wanted)));
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let said = panic.payload_as_str().unwrap_or("a panic");
        fail(format!("panicked at {place}: {said}"));
    }));
}

/// The world's time is now this.
pub(crate) fn set_time(now: Duration) {
    STORY.lock().now = now;
}

/// The world's time.
pub(crate) fn now() -> Duration {
    STORY.lock().now
}

/// What follows happens on `host`, until what is given back is dropped.
pub(crate) fn on(host: &str) -> OnHost {
    let mut story = STORY.lock();
    let before = std::mem::replace(&mut story.host, host.to_owned());
    OnHost { before }
}

pub(crate) struct OnHost {
    before: String,
}

impl Drop for OnHost {
    fn drop(&mut self) {
        STORY.lock().host = std::mem::take(&mut self.before);
    }
}

/// Adds a line.
pub(crate) fn add(what: &str) {
    let mut story = STORY.lock();
    let host = if story.host.is_empty() { WORLD } else { &story.host };
    let line = format!("[{:>11.3}] {host}: {what}", story.now.as_secs_f64());
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(HASH_PRIME);
    story.hash = line.bytes().chain([b'\n']).fold(story.hash, mix);
    story.told += 1;
    if story.aloud {
        println!("{line}");
    }
    if story.lines.len() == LINES_KEPT_MAX {
        story.lines.pop_front();
    }
    story.lines.push_back(line);
}

/// `tell!("{} went", name)`
macro_rules! tell {
    ($($what:tt)*) => { $crate::story::add(&format!($($what)*)) };
}
pub(crate) use tell;

/// Something is wrong: the seed fails. The first one counts.
pub(crate) fn fail(what: String) {
    add(&what);
    STORY.lock().failure.get_or_insert(what);
}

/// Whether something has gone wrong.
pub(crate) fn failed() -> bool {
    STORY.lock().failure.is_some()
}

/// What it all came to.
pub(crate) fn end() -> Ending {
    let mut story = STORY.lock();
    let last = std::mem::take(&mut story.lines).into();
    Ending { hash: story.hash, told: story.told, last, failure: story.failure.take() }
}

/// Makes a line of everything that is logged.
struct Logged;

impl<S: Subscriber> Layer<S> for Logged {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut words = Words(format!("{} {}:", event.metadata().level(), event.metadata().target()));
        event.record(&mut words);
        add(&words.0);
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
