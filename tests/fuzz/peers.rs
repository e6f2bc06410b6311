//! A peer that says anything. Two nodes of three are sound, the third is this test: it sends mutated batches, answers
//! what it is asked with mutated answers, and asks mutated questions. The two go on, and keep what they acknowledged.
//!
//! Nobody is promised protection from a peer that lies on purpose. So the test never speaks of the keys that it looks at,
//! and never sends two records under one ballot, at which a node stops voting by design.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger::clock::OsClock;
use outrigger::cluster::hello::{Hello, Local, PROTOCOL_VERSIONS};
use outrigger::cluster::membership::Membership;
use outrigger::replication::QuorumReplicator;
use outrigger::replication::journal::{Durability, Journal, JournalConfig};
use outrigger::replication::outbox::OutboxBounds;
use outrigger::replication::quorum::{Foundations, Greeter, Installed, QuorumConfig, QuorumStatus};
use outrigger::replication::register::{Address, Body, Lineage, Message, Record, Refusal, Vote};
use outrigger::replication::wire::{self, Answer, Batch, Collection, Request};
use outrigger::store::digest::{Digest, Sum};
use outrigger::store::replicator::{Decision, Op, Proposal, Replicator};
use outrigger::store::update::Update;
use outrigger::store::{Manager, StoreConfig};
use outrigger::transport::memory::{MemoryTransport, Network};
use outrigger::transport::{self, Event, Inbox, Transport};
use outrigger::types::{Ballot, Key, NodeId, ShardId, Slot, StorageId, Value};
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::engine::{Target, fast_dir, hash};
use crate::socket::panics;

const PATIENCE: Duration = Duration::from_secs(20);
/// Cases between two looks at how the sound nodes are.
const CHECK_EVERY: u32 = 256;
const WORDS: &[&[u8]] = &[
    b"\xd3\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x00",
    b"\xff",
    b"\xc0",
    b"\xc3",
    b"\xa0",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91",
    b"\x81",
    b"\xa7Prepare",
    b"\xa8Promised",
    b"\xa6Accept",
    b"\xa8Accepted",
    b"\xa7Refused",
    b"\xa4Read",
    b"\xa4Held",
    b"\xa6Commit",
    b"\xa4Pull",
    b"\xa6Chosen",
    b"\xa6Shards",
    b"\xa6Digest",
    b"\xa5Pairs",
    b"\xa4Rows",
    b"\xa4Done",
];

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn membership() -> Membership {
    Membership::epoch_one(["a", "b", "c"].map(node).to_vec()).unwrap()
}

fn hello() -> Hello {
    Hello {
        versions: PROTOCOL_VERSIONS,
        cluster: "fuzz".to_owned(),
        node: node("c"),
        boot: 1,
        slot: Slot::new(2),
        epoch: 1,
        voters: membership().voter_names(),
        replication_factor: None,
        wall: OsClock::shared().now().wall,
        storage_id: StorageId(7),
        run: 7,
        ceiling: Ballot::ZERO,
        position: 0,
        remembered: None,
    }
}

/// One of each thing that a peer may say.
fn seeds() -> Vec<Vec<u8>> {
    let address = || Address { shard: ShardId::parse("hostile", "x").unwrap(), key: Key::parse("k").unwrap() };
    let (ballot, next) = (Ballot(1_000_000), Some(Ballot(2_000_000)));
    let record = |ballot| Record { ballot, upd: ballot, op: Op::Put("v".into()), lineage: Lineage::default() };
    let vote = || Vote::Record { ballot, upd: ballot, op: Some(Op::Del), lineage: Lineage::default(), chosen: true };
    let bodies = [
        Body::Prepare { ballot, holds: Some(ballot) },
        Body::Promised { ballot, vote: vote() },
        Body::Promised { ballot, vote: Vote::Absent(Ballot::ZERO) },
        Body::Accept { record: record(ballot), next },
        Body::Accepted { ballot, granted: true },
        Body::Refused { ballot, above: ballot, why: Refusal::Outbid },
        Body::Read { round: ballot, holds: None },
        Body::Held { round: ballot, vote: vote() },
        Body::Commit { ballot },
        Body::Pull { ballot },
        Body::Chosen { record: record(ballot) },
    ];
    let message = |body| Message { address: address(), body };
    let batch = |messages: Vec<Message>| wire::encode(&Batch { epoch: 1, wall: 1_000, messages }).unwrap().to_vec();
    let mut seeds: Vec<_> = bodies.iter().map(|body| batch(vec![message(body.clone())])).collect();
    seeds.push(batch(bodies.into_iter().map(message).collect()));
    let Address { shard, key } = address();
    let collection = Collection { shard: shard.clone(), floor: Ballot(0xfff), epoch: 1 };
    let requests = [
        Request::Refuse(collection.clone()),
        Request::Old(collection.clone(), Ballot::ZERO),
        Request::Forget(collection, StorageId(7)),
        Request::Shards,
        Request::Digest(shard.clone()),
        Request::Pairs(shard.clone(), [0, 1, 1023].into_iter().collect()),
        Request::Rows(shard.clone(), vec![key.clone(), key.clone()]),
    ];
    seeds.extend(requests.iter().map(|request| wire::encode(request).unwrap().to_vec()));
    let mut digest = Digest::new(Ballot::ZERO);
    digest.add(7, Sum { live: u64::MAX, dead: 1 });
    let answers = [
        Answer::Shards(vec![(shard, digest.summary())]),
        Answer::Digest(digest),
        Answer::Pairs(vec![(key.clone(), ballot)]),
        Answer::Rows(vec![(key, record(ballot))]),
        Answer::Done,
        Answer::Failed("why".to_owned()),
    ];
    seeds.extend(answers.iter().map(|answer| wire::encode(answer).unwrap().to_vec()));
    seeds.push(hello().encode().to_vec());
    seeds
}

struct Sound {
    dir: tempfile::TempDir,
    manager: Arc<Manager>,
    replicator: Arc<QuorumReplicator>,
    transport: Arc<MemoryTransport>,
}

impl Sound {
    async fn start(network: &Arc<Network>, name: &str) -> Self {
        let (clock, dir) = (OsClock::shared(), fast_dir());
        let data_dir = dir.path().to_owned();
        let config =
            JournalConfig { segment_bytes: 64 * 1024, durability: Durability::Os, ..JournalConfig::at(data_dir) };
        let (journal, recovered) = Journal::open(config, rand::random()).unwrap();
        let manager = Manager::with_config(StoreConfig::at(dir.path()), clock.clone()).unwrap();
        let installed = Installed::read(&manager, &recovered, membership()).await.unwrap();
        let local = Local {
            versions: PROTOCOL_VERSIONS,
            cluster: "fuzz".to_owned(),
            node: node(name),
            membership: membership(),
        };
        let ceiling = recovered.restored.ceiling;
        let greeter = Greeter::new(local, journal.header(), ceiling, rand::random(), clock.clone());
        let greeter = Arc::new(greeter);
        let (transport, Inbox { events, calls, .. }) = network.join(node(name), greeter.clone());
        let config = QuorumConfig {
            node: node(name),
            max_skew: Duration::from_secs(10),
            ceiling_lead: Duration::from_millis(100),
            propose_timeout: Duration::from_secs(5),
            value_bytes_max: 1 << 20,
            outbox: OutboxBounds::default(),
            tombstone_grace: Duration::from_secs(3600),
            unused_drop_after: Duration::from_secs(3600),
            seed: 1,
            is_alone: false,
        };
        let (manager_too, transport_too) = (manager.clone(), transport.clone());
        let foundations =
            Foundations { clock, greeter, manager, transport, events, calls, journal, recovered, installed };
        let replicator = QuorumReplicator::start(config, foundations).await.unwrap();
        Self { dir, manager: manager_too, replicator, transport: transport_too }
    }

    /// Writes all the time to keys that nobody looks at, so that there are rounds to be disturbed.
    fn keep_busy(&self) {
        let replicator = self.replicator.clone();
        tokio::spawn(async move {
            for n in 0_u64.. {
                let (shard, key) = (ShardId::parse("busy", "x").unwrap(), Key::parse(&format!("k{}", n % 8)).unwrap());
                let (update, timeout) = (Update::put("v".into()), Some(Duration::from_millis(50)));
                let decision = replicator.propose(Proposal { shard, key, update, timeout }).await;
                if !matches!(decision, Decision::Timeout) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
    }

    async fn update(&self, shard: &ShardId, key: &Key, update: Update) -> Decision {
        let (shard, key, timeout) = (shard.clone(), key.clone(), Some(Duration::from_secs(5)));
        let proposed = self.replicator.propose(Proposal { shard, key, update, timeout });
        tokio::time::timeout(PATIENCE, proposed).await.expect("a proposal that never ended")
    }
}

/// Says what the third node says first; believes everything.
struct Hostile;

impl transport::Greeter for Hostile {
    fn hello(&self, _: &NodeId) -> Bytes {
        hello().encode()
    }
    fn check(&self, _: &NodeId, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// What the third node has heard and is about to say.
#[derive(Default)]
struct Heard {
    /// The latest ballots that it was asked about.
    asked: Vec<(Address, Ballot)>,
    /// What to answer to the next calls.
    answers: Vec<Bytes>,
}

struct World {
    runtime: Runtime,
    network: Arc<Network>,
    sound: Vec<Sound>,
    cut: bool,
    transport: Arc<MemoryTransport>,
    heard: Arc<Mutex<Heard>>,
    /// Records said to have been accepted, by ballot.
    said: HashMap<(Address, Ballot), Record>,
    acknowledged: Vec<(Key, Value)>,
    last: Option<Address>,
}

impl World {
    fn start() -> Self {
        panics();
        let runtime = Runtime::new().unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (network, sound, transport) = runtime.block_on(async {
            let network = Network::new();
            let sound = vec![Sound::start(&network, "a").await, Sound::start(&network, "b").await];
            let (transport, inbox) = network.join(node("c"), Arc::new(Hostile));
            listen(inbox, heard.clone());
            for one in &sound {
                transport.dial(one.transport.local_addr());
                sound[0].transport.dial(one.transport.local_addr());
            }
            for one in &sound {
                let mut status = one.replicator.watch();
                let ready = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.ready().is_ok())).await;
                assert!(matches!(ready, Ok(Ok(_))), "{:?}", one.replicator.status());
            }
            sound.iter().for_each(Sound::keep_busy);
            (network, sound, transport)
        });
        Self {
            runtime,
            network,
            sound,
            cut: false,
            transport,
            heard,
            said: HashMap::new(),
            acknowledged: Vec::new(),
            last: None,
        }
    }

    /// Says an input in every way in which it can be understood; a hash of what it was.
    fn say(&mut self, input: &[u8], rng: &mut StdRng) -> u64 {
        let mut kinds = Vec::new();
        if let Some(batch) = roundtrip::<Batch>(input) {
            kinds.extend(batch.messages.iter().map(|message| format!("{:?}", std::mem::discriminant(&message.body))));
            self.send(batch, rng);
        } else if rng.random_ratio(1, 16) {
            self.tell(Bytes::copy_from_slice(input), rng);
        }
        if roundtrip::<Answer>(input).is_some() {
            kinds.push("answer".to_owned());
            let mut heard = self.heard.lock();
            heard.answers.push(Bytes::copy_from_slice(input));
            heard.answers.truncate(16);
        }
        if let Some(request) = roundtrip::<Request>(input) {
            kinds.push(format!("{:?}", std::mem::discriminant(&request)));
            self.ask(Bytes::copy_from_slice(input), rng);
        }
        if let Ok(hello) = Hello::decode(input) {
            kinds.push(format!("hello {}", hello.voters.len()));
            assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }
        // Where the reading of it ended, apart from what stood there.
        let ended = wire::decode::<Batch>(input).err().map(|why| why.to_string());
        kinds.extend(ended.map(|why| why.chars().filter(|c| c.is_ascii_alphabetic() || *c == '`').collect()));
        hash(&kinds)
    }

    fn send(&mut self, mut batch: Batch, rng: &mut StdRng) {
        let asked = self.heard.lock().asked.clone();
        for message in &mut batch.messages {
            // Half of the answers are to something that was really asked.
            let at = asked.len().saturating_sub(1 + rng.random_range(0..4));
            if let Some((address, asked)) = asked.get(at).filter(|_| rng.random())
                && let Body::Promised { ballot, .. }
                | Body::Accepted { ballot, .. }
                | Body::Refused { ballot, .. }
                | Body::Held { round: ballot, .. } = &mut message.body
            {
                *ballot = *asked;
                message.address = address.clone();
            }
        }
        let said = &mut self.said;
        batch.messages.retain(|message| {
            let Body::Accept { record, .. } = &message.body else { return true };
            let known = said.entry((message.address.clone(), record.ballot)).or_insert_with(|| record.clone());
            known == record
        });
        batch.messages.retain(|message| message.address.shard != shard());
        self.last = batch.messages.last().map(|message| message.address.clone()).or(self.last.take());
        if let Ok(bytes) = wire::encode(&batch) {
            self.tell(bytes, rng);
        }
    }

    fn tell(&self, bytes: Bytes, rng: &mut StdRng) {
        // A queue that is full is emptied by the time it is needed again.
        let _ = self.transport.send(&node(["a", "b"][rng.random_range(0..2)]), bytes);
    }

    fn ask(&self, request: Bytes, rng: &mut StdRng) {
        let to = node(["a", "b"][rng.random_range(0..2)]);
        self.runtime.block_on(async {
            let answered = tokio::time::timeout(PATIENCE, async {
                let Ok(mut answers) = self.transport.call(&to, request).await else { return };
                while let Some(Ok(answer)) = answers.recv().await {
                    wire::decode::<Answer>(&answer).expect("an answer that is none");
                }
            });
            answered.await.expect("a call that never ended");
        });
    }

    fn check(&mut self, rng: &mut StdRng) {
        assert_eq!(panics(), 0, "something panicked in a node");
        self.cut(false);
        let [a, b] = self.sound.as_slice() else { unreachable!() };
        for one in [a, b] {
            assert_eq!(one.replicator.status().barred, None);
            assert!(one.manager.failure().is_none() && one.dir.path().exists());
            let mut status = one.replicator.watch();
            let is_whole = |status: &QuorumStatus| status.peers.iter().filter(|peer| peer.live).count() == 2;
            let whole =
                self.runtime.block_on(async { tokio::time::timeout(PATIENCE, status.wait_for(is_whole)).await });
            assert!(matches!(whole, Ok(Ok(_))), "{:?}", one.replicator.status());
        }
        let key = Key::parse(&format!("{:032x}", rng.random::<u128>())).unwrap();
        let value = Value::from(rng.random::<[u8; 16]>().to_vec());
        let written = self.runtime.block_on(a.update(&shard(), &key, Update::put(value.clone())));
        assert!(matches!(written, Decision::Accept(_)), "{written:?}");
        self.acknowledged.push((key, value));
        let (key, value) = &self.acknowledged[rng.random_range(0..self.acknowledged.len())];
        let read = self.runtime.block_on(b.update(&shard(), key, Update::read()));
        let Decision::Accept(outcome) = read else { panic!("{read:?}") };
        assert_eq!(outcome.before.map(|row| row.value).as_ref(), Some(value), "an acknowledged write is gone");
        if let Some(Address { shard, key }) = self.last.take() {
            // Whatever comes of a key that a liar spoke of: it ends.
            self.runtime.block_on(a.update(&shard, &key, Update::put("x".into())));
        }
        // Half of the time each of them has this one alone to agree with.
        self.cut(rng.random());
    }

    fn cut(&mut self, cut: bool) {
        if cut == self.cut {
            return;
        }
        self.cut = cut;
        let (a, b) = (node("a"), node("b"));
        if cut {
            self.network.cut(&a, &b);
        } else {
            self.network.heal(&a, &b);
        }
    }
}

fn shard() -> ShardId {
    ShardId::parse("sound", "x").unwrap()
}

/// Takes in what the sound nodes say, for as long as they do.
fn listen(inbox: Inbox, heard: Arc<Mutex<Heard>>) {
    let Inbox { mut events, mut calls, .. } = inbox;
    let answering = heard.clone();
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            for answer in std::mem::take(&mut answering.lock().answers) {
                let _ = call.answers.try_send(answer);
            }
        }
    });
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let Event::Message { message, .. } = event else { continue };
            let batch = wire::decode::<Batch>(&message).expect("a batch that is none");
            for Message { address, body } in batch.messages {
                if let Body::Prepare { ballot, .. }
                | Body::Accept { record: Record { ballot, .. }, .. }
                | Body::Read { round: ballot, .. } = body
                {
                    let asked = &mut heard.lock().asked;
                    asked.push((address, ballot));
                    if asked.len() > 8 {
                        asked.remove(0);
                    }
                }
            }
        }
    });
}

/// What is read is written as something that reads the same.
fn roundtrip<T: Serialize + DeserializeOwned + Debug>(input: &[u8]) -> Option<T> {
    let read: T = wire::decode(input).ok()?;
    let again: T = wire::decode(&wire::encode(&read).unwrap()).unwrap();
    assert_eq!(format!("{read:?}"), format!("{again:?}"));
    Some(read)
}

#[test]
fn a_peer_that_says_anything_is_borne() {
    let (mut world, mut cases) = (World::start(), 0_u32);
    Target { name: "peers", seeds: seeds(), words: WORDS }.run(|input, rng| {
        cases += 1;
        if cases.is_multiple_of(CHECK_EVERY) {
            world.check(rng);
        }
        world.say(input, rng)
    });
}
