//! Whole gossips over a network in memory, in real time but fast.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use chitchat::Serializable;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::transport::memory::Network;
use crate::transport::quic::{self, QuicTransport};
use crate::transport::{CallError, Greeter, Inbox, Link, Refusal, SendError, tls};
use crate::types::{Ballot, Slot, StorageId};

const PATIENCE: Duration = Duration::from_secs(20);
const INBOX_MESSAGES: usize = 256;

/// A network that shows what is dialled, and takes whatever bytes a test has: two nodes are connected once one has dialled the address of the other.
#[derive(Default)]
struct Net {
    nodes: Mutex<HashMap<SocketAddr, Member>>,
}

struct Member {
    node: NodeId,
    dialled: BTreeSet<SocketAddr>,
    inbox: mpsc::Sender<(SocketAddr, Bytes)>,
    /// How many messages each address sent it.
    from: HashMap<SocketAddr, usize>,
}

struct Port {
    net: Arc<Net>,
    addr: SocketAddr,
}

impl Net {
    fn join(self: &Arc<Self>, node: &NodeId, addr: SocketAddr) -> (Arc<Port>, mpsc::Receiver<(SocketAddr, Bytes)>) {
        let (inbox, receiver) = mpsc::channel(INBOX_MESSAGES);
        let member = Member { node: node.clone(), dialled: BTreeSet::new(), inbox, from: HashMap::new() };
        self.nodes.lock().insert(addr, member);
        (Arc::new(Port { net: self.clone(), addr }), receiver)
    }

    fn leave(&self, addr: SocketAddr) {
        self.nodes.lock().remove(&addr);
    }

    fn dialled(&self, addr: SocketAddr) -> Vec<SocketAddr> {
        self.nodes.lock()[&addr].dialled.iter().copied().collect()
    }

    fn inject(&self, from: SocketAddr, to: SocketAddr, bytes: impl Into<Bytes>) -> bool {
        let inbox = self.nodes.lock()[&to].inbox.clone();
        inbox.try_send((from, bytes.into())).is_ok()
    }

    fn received(&self, from: SocketAddr, to: SocketAddr) -> usize {
        self.nodes.lock()[&to].from.get(&from).copied().unwrap_or(0)
    }
}

#[async_trait]
impl Transport for Port {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn dial(&self, addr: SocketAddr) {
        if let Some(me) = self.net.nodes.lock().get_mut(&self.addr) {
            assert!(me.dialled.insert(addr), "{addr} is dialled already");
        }
    }

    fn forget(&self, addr: SocketAddr) {
        if let Some(me) = self.net.nodes.lock().get_mut(&self.addr) {
            assert!(me.dialled.remove(&addr), "{addr} was not dialled");
        }
    }

    fn send(&self, _to: &NodeId, _message: Bytes) -> Result<(), SendError> {
        Err(SendError::NotConnected)
    }

    fn gossip(&self, to: SocketAddr, message: Bytes) -> Result<(), SendError> {
        if !self.links().iter().any(|link| link.addr == to) {
            return Err(SendError::NotConnected);
        }
        let mut nodes = self.net.nodes.lock();
        let member = nodes.get_mut(&to).ok_or(SendError::NotConnected)?;
        *member.from.entry(self.addr).or_default() += 1;
        member.inbox.try_send((self.addr, message)).map_err(|_| SendError::QueueFull)
    }

    async fn call(&self, to: &NodeId, _request: Bytes) -> Result<mpsc::Receiver<Result<Bytes, CallError>>, CallError> {
        Err(CallError::NotConnected(to.clone()))
    }

    fn links(&self) -> Vec<Link> {
        let nodes = self.net.nodes.lock();
        let Some(me) = nodes.get(&self.addr) else { return Vec::new() };
        let others = nodes.iter().filter(|(addr, _)| **addr != self.addr);
        others
            .filter(|(addr, other)| me.dialled.contains(addr) || other.dialled.contains(&self.addr))
            .map(|(addr, other)| Link { node: other.node.clone(), addr: *addr, round_trip: Duration::ZERO })
            .collect()
    }

    fn refusals(&self) -> Vec<Refusal> {
        Vec::new()
    }

    async fn close(&self) {}
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn card(address: SocketAddr, boot: u64) -> Card {
    Card {
        address,
        storage_id: StorageId(u64::from(address.port())),
        slot: Slot::new(1),
        epoch: 1,
        ceiling: Ballot(5),
        protocol: 1,
        boot,
        open_shards: 0,
        pending_frames: 0,
        run: 1,
        position: 0,
        lag_frames: 0,
        ready: false,
        root: None,
    }
}

fn config(name: &str, address: SocketAddr, boot: u64, seeds: &[&str]) -> Config {
    Config {
        node: node(name),
        advertise: address,
        since_ms: boot,
        cluster_id: "blue".into(),
        seeds: seeds.iter().map(|seed| (*seed).to_owned()).collect(),
        lookup_interval: Duration::from_millis(20),
        voters: ["a", "b", "c"].map(node).to_vec(),
        interval: Duration::from_millis(20),
    }
}

async fn start(net: &Arc<Net>, config: Config) -> Arc<Gossip> {
    let (port, inbox) = net.join(&config.node, config.advertise);
    let card = card(config.advertise, config.since_ms);
    Gossip::start(config, port, inbox, card).await.unwrap()
}

/// Waits until `gossip` shows what `wanted` asks for.
async fn until(gossip: &Gossip, wanted: impl Fn(&[Peer]) -> bool) -> Arc<Vec<Peer>> {
    let mut peers = gossip.watch();
    let waited = tokio::time::timeout(PATIENCE, peers.wait_for(|peers| wanted(peers))).await;
    match waited {
        Ok(peers) => peers.unwrap().clone(),
        Err(_) => panic!("still {:#?}", gossip.peers()),
    }
}

fn live(peers: &[Peer]) -> Vec<&str> {
    peers.iter().filter(|peer| peer.live).map(|peer| peer.node.as_str()).collect()
}

#[tokio::test]
async fn three_nodes_find_each_other_from_one_seed() {
    let net = Arc::new(Net::default());
    // The seed of all, its own included: that is what one configuration for every node looks like.
    let seed = at(1).to_string();
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, port)| config(name, at(port), 1, &[&seed]));
    let (a, b, c) = (start(&net, a).await, start(&net, b).await, start(&net, c).await);
    until(&a, |peers| live(peers) == ["b", "c"]).await;
    until(&b, |peers| live(peers) == ["a", "c"]).await;
    let of_c = until(&c, |peers| live(peers) == ["a", "b"]).await;
    assert_eq!(of_c[1], Peer { node: node("b"), card: card(at(2), 1), live: true, address: at(2) });
    // b and c know of each other by gossip alone, and yet dial each other; nobody dials itself.
    assert_eq!(net.dialled(at(1)), [at(2), at(3)]);
    assert_eq!(net.dialled(at(2)), [at(1), at(3)]);
    assert_eq!(net.dialled(at(3)), [at(1), at(2)]);

    let said = Card { ready: true, open_shards: 7, ceiling: Ballot(6), ..card(at(2), 1) };
    b.say(said.clone());
    until(&a, |peers| peers.iter().any(|peer| peer.card == said)).await;
    until(&c, |peers| peers.iter().any(|peer| peer.card == said)).await;
}

#[tokio::test]
async fn a_node_that_leaves_is_known_to_be_gone_and_its_next_incarnation_is_believed() {
    let net = Arc::new(Net::default());
    let seed = at(1).to_string();
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let b = start(&net, config("b", at(2), 1, &[&seed])).await;
    until(&a, |peers| live(peers) == ["b"]).await;
    b.leave().await;
    let left = until(&a, |peers| live(peers).is_empty()).await;
    assert_eq!((left.len(), left[0].card.boot), (1, 1), "its last card is still shown");
    b.close().await;
    net.leave(at(2));

    let _b = start(&net, config("b", at(2), 2, &[&seed])).await;
    let back = until(&a, |peers| live(peers) == ["b"] && peers[0].card.boot == 2).await;
    assert_eq!(back.len(), 1, "one incarnation alone");
}

/// A node that came back with an empty disk counted its boots from 1 again, and was taken for who it had been: its peers
/// went by its old card, and did not notice when its new disk went back to an earlier state.
#[tokio::test]
async fn a_node_on_another_disk_is_another_incarnation() {
    let net = Arc::new(Net::default());
    let seed = at(1).to_string();
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let b = start(&net, config("b", at(2), 1, &[&seed])).await;
    b.say(Card { position: 900, ..card(at(2), 1) });
    until(&a, |peers| live(peers) == ["b"] && peers[0].card.position == 900).await;
    b.close().await;
    net.leave(at(2));
    // Started later, and its first boot all the same.
    let b = start(&net, Config { since_ms: 2, ..config("b", at(2), 1, &[&seed]) }).await;
    b.say(Card { storage_id: StorageId(77), position: 3, ..card(at(2), 1) });
    let back = until(&a, |peers| peers.iter().any(|peer| peer.live && peer.card.storage_id == StorageId(77))).await;
    assert_eq!((back.len(), back[0].card.position), (1, 3));
}

#[tokio::test]
async fn a_silent_node_is_dead_and_a_moved_one_is_dialled_where_it_went() {
    let net = Arc::new(Net::default());
    let seed = at(1).to_string();
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let c = start(&net, config("c", at(3), 1, &[&seed])).await;
    let b = start(&net, config("b", at(2), 1, &[&seed])).await;
    until(&a, |peers| live(peers) == ["b", "c"]).await;
    until(&c, |peers| live(peers) == ["a", "b"]).await;
    // Killed: it says no goodbye.
    b.close().await;
    net.leave(at(2));
    until(&a, |peers| live(peers) == ["c"]).await;
    assert!(net.dialled(at(1)).contains(&at(2)), "a voter may come back where it was");

    let _b = start(&net, config("b", at(22), 2, &[&seed])).await;
    for (gossip, me, other) in [(&a, at(1), at(3)), (&c, at(3), at(1))] {
        until(gossip, |peers| peers.iter().any(|peer| peer.live && peer.address == at(22))).await;
        assert_eq!(net.dialled(me), [other, at(22)], "the new address, and no longer the old one");
    }
}

#[tokio::test]
async fn strangers_are_shown_but_not_dialled() {
    let net = Arc::new(Net::default());
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let _x = start(&net, config("x", at(9), 1, &[&at(1).to_string()])).await;
    until(&a, |peers| live(peers) == ["x"]).await;
    assert_eq!(net.dialled(at(1)), []);
    a.set_voters(["a", "x"].map(node));
    until_true(|| net.dialled(at(1)) == [at(9)]).await;
}

#[tokio::test]
async fn gossip_to_an_advertised_address_takes_the_connection_that_its_node_has() {
    let net = Arc::new(Net::default());
    let (a, inbox) = net.join(&node("a"), at(1));
    let (b, _inbox) = net.join(&node("b"), at(2));
    let line = Line::new("blue".into(), a, inbox);
    line.set_names([(at(22), node("b"))].into());
    assert_eq!(line.route(at(22)), at(22), "not connected yet");
    b.dial(at(1));
    assert_eq!(line.route(at(22)), at(2));
    assert_eq!(line.route(at(33)), at(33), "nobody is known to advertise it");
}

#[tokio::test]
async fn another_cluster_is_ignored() {
    let net = Arc::new(Net::default());
    let seed = at(1).to_string();
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let c = start(&net, Config { cluster_id: "green".into(), ..config("c", at(3), 1, &[&seed]) }).await;
    until_true(|| net.received(at(3), at(1)) >= 5 && net.received(at(1), at(3)) >= 5).await;
    let _b = start(&net, config("b", at(2), 1, &[&seed])).await;
    until(&a, |peers| live(peers) == ["b"]).await;
    assert_eq!((a.peers().len(), c.peers().len()), (1, 0));
}

/// Waits for what no channel tells, at the pace of the gossip.
async fn until_true(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

/// Names and what they stand for now.
#[derive(Default)]
struct Names {
    known: Mutex<HashMap<String, Vec<SocketAddr>>>,
    lookups: AtomicUsize,
}

#[async_trait]
impl Resolve for Names {
    async fn resolve(&self, seed: &str) -> io::Result<Vec<SocketAddr>> {
        let found = self.known.lock().get(seed).cloned();
        self.lookups.fetch_add(1, Ordering::SeqCst);
        found.ok_or_else(|| io::Error::other("no such name"))
    }
}

#[tokio::test]
async fn names_are_looked_up_again_as_they_change() {
    let net = Arc::new(Net::default());
    let names = Arc::new(Names::default());
    let config = config("a", at(1), 1, &["pods:7117"]);
    let (port, inbox) = net.join(&config.node, config.advertise);
    let _a = Gossip::start_with_resolver(config, port, inbox, card(at(1), 1), names.clone()).await.unwrap();
    let point_to = |addresses: &[u16]| {
        let addresses = addresses.iter().copied().map(at).collect();
        names.known.lock().insert("pods:7117".to_owned(), addresses);
    };
    let dialled = || net.dialled(at(1));
    // Two lookups begun after a change: the first of them is then through.
    let looked_up = || async {
        let before = names.lookups.load(Ordering::SeqCst);
        until_true(|| names.lookups.load(Ordering::SeqCst) >= before + 2).await;
    };

    looked_up().await;
    assert_eq!(dialled(), [], "the name is not known yet");
    point_to(&[2, 3, 1, 0]);
    until_true(|| dialled() == [at(2), at(3)]).await;
    point_to(&[3, 4]);
    until_true(|| dialled() == [at(3), at(4)]).await;
    names.known.lock().clear();
    looked_up().await;
    assert_eq!(dialled(), [at(3), at(4)], "a name server that is away moves nobody");
    point_to(&[]);
    looked_up().await;
    assert_eq!(dialled(), [at(3), at(4)]);
}

#[tokio::test]
async fn one_address_in_two_forms_is_dialled_once() {
    let net = Arc::new(Net::default());
    let (port, _inbox) = net.join(&node("a"), at(1));
    let mapped = |port: u16| format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
    let names = Names::default();
    names.known.lock().insert("both:1".to_owned(), vec![at(2), mapped(2), mapped(1)]);
    let dialer = Dialer::new(port, at(1));
    dialer.set_voters([mapped(2), mapped(3)].into_iter());
    dialer.look_up(&["both:1".to_owned()], &names).await;
    assert_eq!(net.dialled(at(1)), [at(2), at(3)]);
}

#[tokio::test]
async fn a_seed_dials_no_more_addresses_than_its_bound() {
    let net = Arc::new(Net::default());
    let (port, _inbox) = net.join(&node("a"), at(1));
    let names = Names::default();
    names.known.lock().insert("many:1".to_owned(), (100..1000).map(at).collect());
    let dialer = Dialer::new(port, at(1));
    dialer.look_up(&["many:1".to_owned()], &names).await;
    assert_eq!(net.dialled(at(1)).len(), ADDRESSES_PER_SEED_MAX);
}

#[tokio::test]
async fn unreadable_gossip_does_no_harm() {
    let net = Arc::new(Net::default());
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let b = start(&net, config("b", at(2), 1, &[&at(1).to_string()])).await;
    until(&a, |peers| live(peers) == ["b"]).await;
    until(&b, |peers| live(peers) == ["a"]).await;

    // Of a node that nobody knows: a damaged message may well be readable, and then it is believed.
    let valid = ack("z", &[("key", 1)], 1).to_vec();
    let mut random = SmallRng::seed_from_u64(7);
    let send = |bytes: Vec<u8>| assert!(net.inject(at(2), at(1), bytes), "the inbox has room");
    send(vec![0; GOSSIP_BYTES_MAX + 1]);
    for round in 0..200 {
        let mut bytes = valid.clone();
        match round % 3 {
            0 => bytes = (0..random.random_range(0..300)).map(|_| random.random()).collect(),
            1 => bytes.truncate(random.random_range(0..valid.len())),
            _ => {
                let at = random.random_range(0..valid.len());
                bytes[at] = random.random();
            }
        }
        send(bytes);
        tokio::task::yield_now().await;
    }
    let said = Card { open_shards: 77, ..card(at(2), 1) };
    b.say(said.clone());
    until(&a, |peers| live(peers) == ["b"] && peers[0].card == said).await;
}

#[tokio::test]
async fn a_message_that_breaks_an_assertion_of_chitchat_ends_one_session_alone() {
    let net = Arc::new(Net::default());
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let b = start(&net, config("b", at(2), 1, &[&at(1).to_string()])).await;
    until(&a, |peers| live(peers) == ["b"]).await;
    until(&b, |peers| live(peers) == ["a"]).await;

    // A highest version below that of a key: chitchat panics on it.
    assert!(net.inject(at(2), at(1), ack("b", &[("open_shards", 1_000_009)], 1_000_007)));
    let said = Card { open_shards: 78, ..card(at(1), 1) };
    a.say(said.clone());
    until(&b, |peers| live(peers) == ["a"] && peers[0].card == said).await;
    b.say(Card { lag_frames: 3, ..card(at(2), 1) });
    until(&a, |peers| live(peers) == ["b"] && peers[0].card.lag_frames == 3).await;
}

#[tokio::test]
async fn malformed_cards_are_ignored_until_they_are_well_formed() {
    let net = Arc::new(Net::default());
    let a = start(&net, config("a", at(1), 1, &[])).await;
    let b = start(&net, config("b", at(2), 1, &[&at(1).to_string()])).await;
    until(&a, |peers| live(peers) == ["b"]).await;
    let before = a.peers();
    // b is cut off, or it would hear of its bad card and correct it.
    net.leave(at(2));
    assert!(net.inject(at(2), at(1), ack("b", &[("slot", 1_009)], 1_009)));
    until_true(|| a.malformed() > 0).await;
    let shown = until(&a, |peers| live(peers).is_empty()).await;
    assert_eq!(shown[0].card, before[0].card, "the last good card");
    assert_eq!(a.malformed(), 1, "counted once");
    drop(b);
    let _b = start(&net, config("b", at(2), 2, &[&at(1).to_string()])).await;
    until(&a, |peers| live(peers) == ["b"] && peers[0].card.boot == 2).await;
}

/// An ACK that sets keys of the card of `name` to `bad` at these versions.
fn ack(name: &str, keys: &[(&str, u64)], max_version: u64) -> Bytes {
    const UNCOMPRESSED: u8 = 2;
    let mut ops = vec![0];
    ChitchatId::new(name, 1 << RESTART_BITS, at(2)).serialize(&mut ops);
    0_u64.serialize(&mut ops);
    0_u64.serialize(&mut ops);
    for (key, version) in keys {
        ops.push(1);
        key.to_string().serialize(&mut ops);
        "bad".to_string().serialize(&mut ops);
        version.serialize(&mut ops);
        ops.push(0);
    }
    ops.push(2);
    max_version.serialize(&mut ops);
    let mut bytes = 45_139_u16.to_le_bytes().to_vec();
    bytes.extend([0, 2, UNCOMPRESSED]);
    u16::try_from(ops.len()).unwrap().serialize(&mut bytes);
    bytes.extend(ops);
    bytes.push(0);
    Bytes::from(bytes)
}

/// Lets everyone in.
struct Host;

impl Greeter for Host {
    fn hello(&self, _peer: &NodeId) -> Bytes {
        Bytes::new()
    }

    fn check(&self, _peer: &NodeId, _hello: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// A node with a real transport.
async fn start_over_quic(name: &str, boot: u64, key: &Path, seeds: &[&str]) -> (Arc<Gossip>, Arc<QuicTransport>) {
    let identity = tls::Identity::KeyFile(key.to_owned());
    let quic = quic::Config::new(node(name), at(0), identity, [7; 32]);
    let (transport, inbox) = QuicTransport::start(quic, Arc::new(Host)).unwrap();
    let config = config(name, transport.local_addr(), boot, seeds);
    let card = card(config.advertise, boot);
    (Gossip::start(config, transport.clone(), only_gossip(inbox), card).await.unwrap(), transport)
}

/// Reads and drops whatever else arrives.
fn only_gossip(inbox: Inbox) -> mpsc::Receiver<(SocketAddr, Bytes)> {
    let Inbox { mut events, mut calls, gossip } = inbox;
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    tokio::spawn(async move { while calls.recv().await.is_some() {} });
    gossip
}

#[tokio::test]
async fn nodes_find_each_other_over_quic_and_one_that_moved_is_found_again() {
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "a secret of more than thirty-two bytes, for everyone").unwrap();
    let (a, a_door) = start_over_quic("a", 1, key.path(), &[]).await;
    // The one seed by name, as a pod would have it.
    let seed = format!("localhost:{}", a_door.local_addr().port());
    let (b, b_door) = start_over_quic("b", 1, key.path(), &[&seed]).await;
    let (c, c_door) = start_over_quic("c", 1, key.path(), &[&seed]).await;
    until(&a, |peers| live(peers) == ["b", "c"]).await;
    until(&b, |peers| live(peers) == ["a", "c"]).await;
    until(&c, |peers| live(peers) == ["a", "b"]).await;
    until_true(|| [&a_door, &b_door, &c_door].iter().all(|door| door.links().len() == 2)).await;

    b.leave().await;
    b.close().await;
    b_door.close().await;
    until(&a, |peers| live(peers) == ["c"]).await;
    until(&c, |peers| live(peers) == ["a"]).await;
    let (b, b_door) = start_over_quic("b", 2, key.path(), &[&seed]).await;
    let moved = b_door.local_addr();
    for gossip in [&a, &c] {
        until(gossip, |peers| peers.iter().any(|peer| peer.live && peer.address == moved && peer.card.boot == 2)).await;
    }
    until(&b, |peers| live(peers) == ["a", "c"]).await;
    until_true(|| [&a_door, &b_door, &c_door].iter().all(|door| door.links().len() == 2)).await;
}

#[tokio::test]
async fn nodes_that_were_cut_off_are_away_and_come_back_by_themselves() {
    let network = Network::new();
    let names = ["a", "b", "c"].map(node);
    let doors = names.clone().map(|name| network.join(name, Arc::new(Host)));
    let seed = doors[0].0.local_addr().to_string();
    let (mut gossips, mut transports) = (Vec::new(), Vec::new());
    for (name, (transport, inbox)) in names.iter().zip(doors) {
        let config = config(name.as_str(), transport.local_addr(), 1, &[&seed]);
        let card = card(config.advertise, 1);
        let gossip = Gossip::start(config, transport.clone(), only_gossip(inbox), card).await.unwrap();
        gossips.push(gossip);
        transports.push(transport);
    }
    let [a, b, c] = &gossips[..] else { panic!("three") };
    until(a, |peers| live(peers) == ["b", "c"]).await;
    until(b, |peers| live(peers) == ["a", "c"]).await;
    until(c, |peers| live(peers) == ["a", "b"]).await;

    network.cut(&names[0], &names[2]);
    network.cut(&names[1], &names[2]);
    until(a, |peers| live(peers) == ["b"]).await;
    until(c, |peers| live(peers).is_empty()).await;
    let said = Card { open_shards: 9, ..card(transports[2].local_addr(), 1) };
    c.say(said.clone());
    network.heal(&names[0], &names[2]);
    network.heal(&names[1], &names[2]);
    for gossip in [a, b] {
        until(gossip, |peers| peers.iter().any(|peer| peer.live && peer.card == said)).await;
    }
    until(c, |peers| live(peers) == ["a", "b"]).await;
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let net = Arc::new(Net::default());
    let refused = async |change: fn(&mut Config)| {
        let mut config = config("a", at(1), 1, &[]);
        change(&mut config);
        let (port, inbox) = net.join(&config.node, at(1));
        Gossip::start(config, port, inbox, card(at(1), 1)).await.err().unwrap()
    };
    assert!(matches!(refused(|c| c.seeds = vec!["pods".into()]).await, Error::BadSeed(_)));
    assert!(matches!(refused(|c| c.seeds = vec![":1".into()]).await, Error::BadSeed(_)));
    assert!(matches!(refused(|c| c.seeds = vec!["a:1".into(); SEEDS_MAX + 1]).await, Error::TooManySeeds(_)));
    assert!(matches!(refused(|c| c.since_ms = u64::MAX).await, Error::TooLate(_)));
}
