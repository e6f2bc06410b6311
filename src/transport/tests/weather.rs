//! What a world can do to a network in memory: delay, lose, double and reorder, cut one way, kill. Each node has a runtime
//! of its own with a clock of its own, as in the simulation; these stand still but while they are ticked.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::super::memory::{Ending, Fate, Network, Weather};
use super::super::{Call, CallError, Event, Inbox, Lane, Transport};
use super::{node, polite};
use crate::types::NodeId;

const IDLE: Duration = Duration::from_secs(3);
const MS: Duration = Duration::from_millis(1);

/// Does with messages what it was told, with packets what it was told last, and breaks idle links.
#[derive(Default)]
struct Told {
    fates: Mutex<VecDeque<Fate>>,
    /// Directions that nothing passes.
    cut: Mutex<Vec<(&'static str, &'static str)>>,
    delay: Mutex<Duration>,
}

impl Told {
    fn passes(&self, from: &NodeId, to: &NodeId) -> bool {
        !self.cut.lock().contains(&(from.as_str(), to.as_str()))
    }
}

impl Weather for Told {
    fn message(&self, from: &NodeId, to: &NodeId, _lane: Lane, _bytes: usize) -> Fate {
        if !self.passes(from, to) {
            return Fate::Lost;
        }
        self.fates.lock().pop_front().unwrap_or(Fate::Arrives(*self.delay.lock()))
    }

    fn packet(&self, from: &NodeId, to: &NodeId) -> Option<Duration> {
        self.passes(from, to).then(|| *self.delay.lock())
    }

    fn idle_limit(&self) -> Option<Duration> {
        Some(IDLE)
    }
}

/// One node, on a machine of its own.
struct Machine {
    runtime: Runtime,
    node: NodeId,
    transport: Arc<dyn Transport>,
    inbox: Inbox,
}

impl Machine {
    fn new(network: &Arc<Network>, name: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (transport, inbox) = runtime.block_on(async { network.join(node(name), polite()) });
        Self { runtime, node: node(name), transport, inbox }
    }

    /// What has come, in words.
    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.inbox.events.try_recv().ok())
            .map(|event| match event {
                Event::Up { node, .. } => format!("{node} up"),
                Event::Down { node, reason } => format!("{node} down: {reason}"),
                Event::Message { message, .. } => String::from_utf8_lossy(&message).into_owned(),
            })
            .collect()
    }

    fn start<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }

    fn done<T>(&self, task: JoinHandle<T>) -> T {
        assert!(task.is_finished(), "not yet");
        self.runtime.block_on(task).unwrap()
    }
}

/// Lets time pass on these machines, in turns of a millisecond.
fn pass(machines: &mut [&mut Machine], time: Duration) {
    for _ in 0..time.as_millis() {
        for machine in &mut *machines {
            machine.runtime.block_on(async { sleep(MS).await });
        }
    }
}

fn connected() -> (Arc<Told>, Arc<Network>, Machine, Machine) {
    let told = Arc::new(Told::default());
    let network = Network::under(Arc::clone(&told) as Arc<dyn Weather>);
    let (mut a, mut b) = (Machine::new(&network, "a"), Machine::new(&network, "b"));
    dial(&a, &b);
    pass(&mut [&mut a, &mut b], 5 * MS);
    assert_eq!((a.events(), b.events()), (vec!["b up".to_owned()], vec!["a up".to_owned()]));
    (told, network, a, b)
}

fn dial(from: &Machine, to: &Machine) {
    let (transport, addr) = (Arc::clone(&from.transport), to.transport.local_addr());
    from.runtime.block_on(async move { transport.dial(addr) });
}

#[test]
fn messages_are_delayed_reordered_doubled_and_lost() {
    let (told, _network, mut a, mut b) = connected();
    let ms = |n| Duration::from_millis(n);
    let fates = [
        Fate::Arrives(ms(20)),
        Fate::Arrives(ms(10)),
        Fate::Lost,
        Fate::Twice(ms(5), ms(30)),
        Fate::Arrives(ms(10)),
        Fate::Arrives(Duration::ZERO),
    ];
    told.fates.lock().extend(fates);
    for n in 0..6 {
        a.transport.send(&b.node, Bytes::from(n.to_string())).unwrap();
    }
    let mut heard = Vec::new();
    for _ in 0..7 {
        pass(&mut [&mut a, &mut b], ms(5));
        heard.push(b.events().join(" "));
    }
    // What is due at the end of a turn is taken in the next one.
    assert_eq!(heard, ["5", "3", "1 4", "", "0", "", "3"]);
}

#[test]
fn equal_delays_keep_the_order_and_the_last_words_arrive() {
    let (told, _network, mut a, mut b) = connected();
    *told.delay.lock() = Duration::from_millis(40);
    for n in 0..100 {
        a.transport.send(&b.node, Bytes::from(n.to_string())).unwrap();
    }
    let transport = Arc::clone(&a.transport);
    let closing = a.start(async move { transport.close().await });
    pass(&mut [&mut a, &mut b], 30 * MS);
    assert_eq!(b.events(), Vec::<String>::new());
    pass(&mut [&mut a, &mut b], 20 * MS);
    a.done(closing);
    let mut heard = b.events();
    assert_eq!(heard.pop().unwrap(), "a down: leaving");
    assert_eq!(heard, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_link_cut_one_way_loses_in_silence_then_breaks_and_is_not_made_again() {
    let (told, _network, mut a, mut b) = connected();
    told.cut.lock().push(("a", "b"));
    a.transport.send(&b.node, Bytes::from_static(b"lost")).unwrap();
    b.transport.send(&a.node, Bytes::from_static(b"heard")).unwrap();
    pass(&mut [&mut a, &mut b], IDLE - 800 * MS);
    assert_eq!((a.events(), b.events()), (vec!["heard".to_owned()], vec![]));
    pass(&mut [&mut a, &mut b], 900 * MS);
    assert_eq!(
        (a.events(), b.events()),
        (vec!["b down: it is silent".to_owned()], vec!["a down: it is silent".into()])
    );
    // Both ways are needed for another, whoever dials.
    dial(&b, &a);
    pass(&mut [&mut a, &mut b], 4 * IDLE);
    assert_eq!((a.events(), b.events()), (vec![], vec![]));
    told.cut.lock().clear();
    pass(&mut [&mut a, &mut b], IDLE);
    assert_eq!((a.events(), b.events()), (vec!["b up".to_owned()], vec!["a up".to_owned()]));
}

#[test]
fn a_machine_that_stands_still_is_given_up_and_answers_no_dial() {
    let (_told, _network, mut a, mut b) = connected();
    pass(&mut [&mut a], 2 * IDLE);
    assert_eq!(a.events(), ["b down: it is silent"]);
    assert_eq!(b.events(), Vec::<String>::new());
    pass(&mut [&mut a, &mut b], IDLE);
    assert_eq!(a.events(), ["b up"]);
    assert_eq!(b.events(), ["a down: it is silent", "a up"]);
}

#[test]
fn a_killed_node_is_missed_at_once_or_after_a_while_and_its_successor_is_welcome() {
    for ending in [Ending::Reset, Ending::Silent] {
        let (told, network, mut a, mut b) = connected();
        *told.delay.lock() = 10 * MS;
        let addr = b.transport.local_addr();
        b.transport.send(&a.node, Bytes::from_static(b"on its way")).unwrap();
        pass(&mut [&mut a, &mut b], 2 * MS);
        b.transport.send(&a.node, Bytes::from_static(b"never sent")).unwrap();
        network.kill(&b.node, ending);
        drop(b);
        pass(&mut [&mut a], 20 * MS);
        let at_once = vec!["b down: its process is gone".to_owned()];
        assert_eq!(a.events(), if ending == Ending::Reset { at_once } else { vec!["on its way".to_owned()] });
        if ending == Ending::Silent {
            assert!(a.transport.send(&node("b"), Bytes::from_static(b"in vain")).is_ok());
            pass(&mut [&mut a], IDLE);
            assert_eq!(a.events(), ["b down: it is silent"]);
        }
        let mut b = Machine::new(&network, "b");
        assert_eq!(b.transport.local_addr(), addr);
        pass(&mut [&mut a, &mut b], 500 * MS);
        assert_eq!((a.events(), b.events()), (vec!["b up".to_owned()], vec!["a up".to_owned()]));
        network.kill(&b.node, Ending::Silent);
        drop(b);
        // The next one comes before anybody has missed this one.
        let mut b = Machine::new(&network, "b");
        dial(&b, &a);
        pass(&mut [&mut a, &mut b], 500 * MS);
        let replaced = "b down: a newer connection took its place".to_owned();
        assert_eq!((a.events(), b.events()), (vec![replaced, "b up".to_owned()], vec!["a up".to_owned()]));
    }
}

type Answers = mpsc::Receiver<Result<Bytes, CallError>>;

/// Calls `b` from `a`, and gives back both ends.
fn call(a: &mut Machine, b: &mut Machine) -> (Answers, Call) {
    let (transport, to) = (Arc::clone(&a.transport), b.node.clone());
    let answers = a.start(async move { transport.call(&to, Bytes::from_static(b"tell")).await });
    pass(&mut [a, b], 20 * MS);
    (a.done(answers).unwrap(), b.inbox.calls.try_recv().unwrap())
}

#[test]
fn a_call_takes_its_time_and_outlasts_a_short_cut() {
    let (told, _network, mut a, mut b) = connected();
    *told.delay.lock() = 15 * MS;
    let (mut answers, call) = call(&mut a, &mut b);
    for n in ["1", "2", "3"] {
        call.answers.try_send(Bytes::from(n)).unwrap();
    }
    drop(call);
    pass(&mut [&mut a, &mut b], 10 * MS);
    assert!(answers.try_recv().is_err());
    told.cut.lock().push(("b", "a"));
    pass(&mut [&mut a, &mut b], 10 * MS);
    told.cut.lock().clear();
    pass(&mut [&mut a, &mut b], 300 * MS);
    for n in ["1", "2", "3"] {
        assert_eq!(answers.try_recv().unwrap().unwrap(), n);
    }
    assert!(matches!(answers.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
}

/// The handler dies half-way: what it has sent must not pass for all that there was.
#[test]
fn a_call_to_a_killed_node_breaks_and_never_ends_as_if_it_were_complete() {
    for ending in [Ending::Reset, Ending::Silent] {
        let (_told, network, mut a, mut b) = connected();
        let (mut answers, call) = call(&mut a, &mut b);
        call.answers.try_send(Bytes::from_static(b"half")).unwrap();
        pass(&mut [&mut a, &mut b], 10 * MS);
        network.kill(&b.node, ending);
        drop((b, call));
        assert_eq!(answers.try_recv().unwrap().unwrap(), "half");
        pass(&mut [&mut a], 10 * MS);
        if ending == Ending::Silent {
            assert!(matches!(answers.try_recv(), Err(mpsc::error::TryRecvError::Empty)));
        }
        pass(&mut [&mut a], IDLE);
        assert!(matches!(answers.try_recv().unwrap(), Err(CallError::Broken(..))));
    }
}
