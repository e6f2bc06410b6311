//! What runs on the hosts until whole nodes do: everybody talks to everybody, and draws on every source of chance that the
//! nodes' code draws on: hash maps' order, `select!`, `rand::random`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger::clock::Clock;
use outrigger::transport::memory::Network;
use outrigger::transport::{Event, Greeter, Transport};
use outrigger::types::NodeId;
use parking_lot::Mutex;
use tokio::time::{interval, sleep};

use crate::sometimes::sometimes;
use crate::story::tell;

const SPEAK_EVERY: Duration = Duration::from_millis(100);

/// Who heard from whom, and how much; the world looks at it.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<(NodeId, NodeId), u64>>>, Arc<Mutex<u64>>);

impl Heard {
    fn note(&self, by: &NodeId, from: &NodeId) {
        *self.0.lock().entry((by.clone(), from.clone())).or_default() += 1;
        *self.1.lock() += 1;
    }

    pub(crate) fn forget(&self) {
        self.0.lock().clear();
    }

    pub(crate) fn operations(&self) -> u64 {
        *self.1.lock()
    }

    pub(crate) fn all(&self, names: &[NodeId]) -> bool {
        let heard = self.0.lock();
        let pairs = names.iter().flat_map(|a| names.iter().map(move |b| (a.clone(), b.clone())));
        pairs.filter(|(a, b)| a != b).all(|pair| heard.contains_key(&pair))
    }
}

struct Polite;

impl Greeter for Polite {
    fn hello(&self, peer: &NodeId) -> Bytes {
        format!("hello {peer}").into()
    }

    fn check(&self, _peer: &NodeId, _hello: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

pub(crate) async fn run(network: Arc<Network>, name: NodeId, names: Vec<NodeId>, clock: Arc<dyn Clock>, heard: Heard) {
    let (transport, mut inbox) = network.join(name.clone(), Arc::new(Polite));
    // The network gives addresses in the order of joining, and names keep theirs.
    for n in 1..=names.len() {
        transport.dial(([10, 0, 0, n as u8], 7117).into());
    }
    let mut latest: HashMap<NodeId, u64> = HashMap::new();
    let mut speak = interval(SPEAK_EVERY);
    let mut said = 0_u64;
    loop {
        tokio::select! {
            event = inbox.events.recv() => match event {
                Some(Event::Up { node, .. }) => {
                    latest.insert(node.clone(), 0);
                    tell!("{node} is up at {:?}", clock.now());
                }
                Some(Event::Down { node, reason }) => {
                    latest.remove(&node);
                    tell!("{node} is down: {reason}");
                }
                Some(Event::Message { node, message }) => {
                    let number = String::from_utf8_lossy(&message).parse().unwrap_or(u64::MAX);
                    let last = latest.entry(node.clone()).or_default();
                    sometimes!(number < *last, "a message overtook another");
                    *last = number.max(*last);
                    heard.note(&name, &node);
                    tell!("{node} says {number}");
                }
                None => return,
            },
            _ = speak.tick() => {
                // Whoever comes first in the map's order is greeted first.
                for node in latest.keys() {
                    said += 1;
                    let _ = transport.send(node, said.to_string().into());
                }
                let order: Vec<_> = latest.keys().map(NodeId::as_str).collect();
                tell!("speaks to {order:?}");
            }
            () = sleep(Duration::from_millis(u64::from(rand::random::<u8>()))) => tell!("thinks of {}", rand::random::<u16>()),
        }
    }
}
