//! What the contract in `transport/mod.rs` promises, asked of each implementation.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::super::{
    CALLS_PER_PEER_MAX, Call, CallError, Event, INBOX_EVENTS_MAX, LANE_MESSAGES_MAX, MESSAGE_BYTES_MAX,
    REQUEST_BYTES_MAX, SendError,
};
use super::{Harness, OverMemory, OverQuic, Peer, Words, node, polite, soon, until};

macro_rules! conformance {
    ($($test:ident)*) => {
        mod over_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(super::OverMemory::default()).await; })*
        }
        mod over_quic {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(super::OverQuic::default()).await; })*
        }
    };
}

conformance! {
    both_ends_learn_of_each_other_and_of_the_end
    messages_keep_their_order
    large_messages_pass_and_too_large_ones_do_not
    a_call_streams_its_answers
    a_slow_caller_slows_the_handler_and_delays_nobody_else
    either_end_of_a_call_may_let_go
    a_call_breaks_with_its_connection
    calls_beyond_the_bound_wait
    a_refused_hello_brings_nobody_up
    simultaneous_dials_end_with_one_connection
    a_restarted_peer_is_dialled_again
    a_forgotten_peer_is_not_dialled_again
    a_full_queue_says_so_and_keeps_what_it_took
    gossip_goes_by_address_both_ways
    closing_sends_what_was_queued
    twins_refuse_each_other
    dialling_oneself_or_twice_does_no_harm
}

async fn both_ends_learn_of_each_other_and_of_the_end(harness: impl Harness) {
    let (mut a, mut b) = (harness.start("a", polite()).await, harness.start("b", polite()).await);
    assert_eq!(a.transport.send(&b.node, Bytes::from_static(b"x")), Err(SendError::NotConnected));
    b.transport.dial(a.addr);
    assert_eq!(a.up("b").await, "hello to a");
    assert_eq!(b.up("a").await, "hello to b");
    let links = a.transport.links();
    assert_eq!(links.len(), 1);
    assert_eq!((&links[0].node, links[0].addr), (&b.node, b.addr));
    assert!(links[0].round_trip > Duration::ZERO);

    soon("the close", b.transport.close()).await;
    assert_eq!(a.down("b").await, "leaving");
    b.down("a").await;
    assert!(a.transport.links().is_empty());
    assert_eq!(a.transport.send(&b.node, Bytes::from_static(b"x")), Err(SendError::NotConnected));
    assert_eq!(b.transport.send(&a.node, Bytes::from_static(b"x")), Err(SendError::NotConnected));
}

async fn messages_keep_their_order(harness: impl Harness) {
    let (mut a, mut b) = harness.connected("a", "b").await;
    let message = |n: usize| Bytes::from(format!("{n:>width$}", width = 1 + n * 37 % 3000));
    for n in 0..1000 {
        a.send(&b, message(n));
        b.send(&a, message(n));
    }
    for n in 0..1000 {
        assert_eq!(b.message("a").await, message(n));
        assert_eq!(a.message("b").await, message(n));
    }
}

async fn large_messages_pass_and_too_large_ones_do_not(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    let large = Bytes::from((0..9_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    a.send(&b, "before");
    a.send(&b, large.clone());
    a.send(&b, "after");
    assert_eq!(b.message("a").await, "before");
    assert!(b.message("a").await == large);
    assert_eq!(b.message("a").await, "after");
    let too_large = Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]);
    assert_eq!(a.transport.send(&b.node, too_large), Err(SendError::TooLarge));
    let too_large = Bytes::from(vec![0; REQUEST_BYTES_MAX + 1]);
    assert!(matches!(a.transport.call(&b.node, too_large).await, Err(CallError::TooLarge { .. })));
}

async fn next_call(peer: &mut Peer) -> Call {
    soon("a call", peer.inbox.calls.recv()).await.unwrap()
}

async fn a_call_streams_its_answers(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    assert!(matches!(a.transport.call(&node("c"), Bytes::new()).await, Err(CallError::NotConnected(_))));
    let mut answers = a.transport.call(&b.node, Bytes::from_static(b"count")).await.unwrap();
    let call = next_call(&mut b).await;
    assert_eq!((call.node, call.request), (a.node.clone(), Bytes::from_static(b"count")));
    tokio::spawn(async move {
        for n in 0..200_usize {
            call.answers.send(Bytes::from(vec![n as u8; n * 997])).await.unwrap();
        }
    });
    for n in 0..200_usize {
        let answer = soon("an answer", answers.recv()).await.unwrap().unwrap();
        assert!(answer == vec![n as u8; n * 997], "answer {n}");
    }
    assert!(soon("the end", answers.recv()).await.is_none());
}

async fn a_slow_caller_slows_the_handler_and_delays_nobody_else(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    let mut answers = a.transport.call(&b.node, Bytes::from_static(b"bulk")).await.unwrap();
    let call = next_call(&mut b).await;
    let mut taken = 0_usize;
    // Nobody reads: an answer that finds no room for so long has been stopped.
    while timeout(Duration::from_millis(500), call.answers.send(Bytes::from(vec![7; 256 * 1024]))).await.is_ok() {
        taken += 1;
        assert!(taken < 200, "nothing slows the handler");
    }
    a.send(&b, "a vote");
    assert_eq!(b.message("a").await, "a vote");
    drop(call);
    for _ in 0..taken {
        soon("an answer", answers.recv()).await.unwrap().unwrap();
    }
    assert!(soon("the end", answers.recv()).await.is_none());
}

async fn either_end_of_a_call_may_let_go(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    let mut answers = a.transport.call(&b.node, Bytes::from_static(b"one")).await.unwrap();
    let call = next_call(&mut b).await;
    call.answers.send(Bytes::from_static(b"only")).await.unwrap();
    assert_eq!(soon("an answer", answers.recv()).await.unwrap().unwrap(), "only");
    drop(answers);
    soon("the cancellation", call.answers.closed()).await;

    let mut answers = a.transport.call(&b.node, Bytes::from_static(b"two")).await.unwrap();
    drop(next_call(&mut b).await);
    assert!(soon("the end", answers.recv()).await.is_none());
}

async fn a_call_breaks_with_its_connection(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    let mut answers = a.transport.call(&b.node, Bytes::from_static(b"long")).await.unwrap();
    let call = next_call(&mut b).await;
    b.transport.close().await;
    let end = soon("the break", answers.recv()).await.unwrap();
    assert!(matches!(end, Err(CallError::Broken(peer, _)) if peer == b.node));
    assert!(soon("the end", answers.recv()).await.is_none());
    soon("the cancellation", call.answers.closed()).await;
}

async fn calls_beyond_the_bound_wait(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    let mut open = Vec::new();
    for n in 0..CALLS_PER_PEER_MAX {
        let answers = a.transport.call(&b.node, Bytes::from(vec![n as u8])).await.unwrap();
        open.push((answers, next_call(&mut b).await));
    }
    let to = b.node.clone();
    let one_more = a.transport.call(&to, Bytes::from_static(b"more"));
    tokio::pin!(one_more);
    assert!(timeout(Duration::from_millis(200), &mut one_more).await.is_err());
    open.pop();
    let _answers = soon("room", one_more).await.unwrap();
    assert_eq!(next_call(&mut b).await.request, "more");
}

async fn a_refused_hello_brings_nobody_up(harness: impl Harness) {
    let rude = Arc::new(Words { says: "go away", refuses: "nothing" });
    let (mut a, mut b) = (harness.start("a", polite()).await, harness.start("b", rude).await);
    b.transport.dial(a.addr);
    let refusal = a.refusal("go away to a? no").await;
    assert_eq!(refusal.node.as_ref(), Some(&b.node));
    let refusal = b.refusal("go away to a? no").await;
    assert_eq!(refusal.node.as_ref(), Some(&a.node));
    a.transport.dial(b.addr);
    // A third one that fits is the first that anybody hears of.
    let mut c = harness.start("c", polite()).await;
    c.transport.dial(a.addr);
    c.up("a").await;
    a.up("c").await;
    assert!(b.inbox.events.try_recv().is_err());
    assert_eq!(a.transport.refusals().len(), 1, "one reason, however often it was tried");
}

async fn simultaneous_dials_end_with_one_connection(harness: impl Harness) {
    for round in 0..10 {
        let (a_name, b_name) = (format!("a{round}"), format!("b{round}"));
        let (mut a, mut b) = (harness.start(&a_name, polite()).await, harness.start(&b_name, polite()).await);
        a.transport.dial(b.addr);
        b.transport.dial(a.addr);
        a.up(&b_name).await;
        b.up(&a_name).await;
        for n in 0..20 {
            a.send(&b, format!("{n}"));
            assert_eq!(b.message(&a_name).await, format!("{n}"));
            b.send(&a, format!("{n}"));
            assert_eq!(a.message(&b_name).await, format!("{n}"));
        }
        assert_eq!((a.transport.links().len(), b.transport.links().len()), (1, 1));
    }
}

async fn a_restarted_peer_is_dialled_again(harness: impl Harness) {
    let (mut a, b) = harness.connected("a", "b").await;
    let former = b.addr;
    b.transport.close().await;
    drop(b);
    a.down("b").await;
    let mut b = harness.start("b", polite()).await;
    assert_eq!(b.addr, former);
    b.up("a").await;
    a.up("b").await;
    a.send(&b, "again");
    assert_eq!(b.message("a").await, "again");
}

async fn a_forgotten_peer_is_not_dialled_again(harness: impl Harness) {
    let (mut a, mut b) = harness.connected("a", "b").await;
    a.transport.forget(b.addr);
    a.send(&b, "it stands");
    assert_eq!(b.message("a").await, "it stands");
    b.transport.close().await;
    drop(b);
    a.down("b").await;
    let mut b = harness.start("b", polite()).await;
    assert!(timeout(Duration::from_millis(700), b.inbox.events.recv()).await.is_err());
}

async fn a_full_queue_says_so_and_keeps_what_it_took(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    let message = |n: usize| Bytes::from(format!("{n:>2048}"));
    let mut taken = 0;
    let refused = until("a full queue", || match a.transport.send(&b.node, message(taken)) {
        Ok(()) => {
            taken += 1;
            // Windows and buffers hold a few MiB more than the queue.
            assert!(taken < LANE_MESSAGES_MAX + INBOX_EVENTS_MAX + 16_384, "nothing stops the sender");
            (0..100).find_map(|_| match a.transport.send(&b.node, message(taken)) {
                Ok(()) => {
                    taken += 1;
                    None
                }
                Err(error) => Some(error),
            })
        }
        Err(error) => Some(error),
    })
    .await;
    assert_eq!(refused, SendError::QueueFull);
    for n in 0..taken {
        assert_eq!(b.message("a").await, message(n));
    }
}

async fn gossip_goes_by_address_both_ways(harness: impl Harness) {
    let (mut a, mut b) = harness.connected("a", "b").await;
    let nowhere = harness.start("c", polite()).await.addr;
    assert_eq!(a.transport.gossip(nowhere, Bytes::from_static(b"x")), Err(SendError::NotConnected));
    let large = Bytes::from(vec![b'g'; 65_507]);
    a.transport.gossip(b.addr, large.clone()).unwrap();
    let (from, message) = soon("gossip", b.inbox.gossip.recv()).await.unwrap();
    assert!(from == a.addr && message == large);
    b.transport.gossip(from, Bytes::from_static(b"answer")).unwrap();
    let (from, message) = soon("gossip", a.inbox.gossip.recv()).await.unwrap();
    assert_eq!((from, message), (b.addr, Bytes::from_static(b"answer")));
}

async fn closing_sends_what_was_queued(harness: impl Harness) {
    let (a, mut b) = harness.connected("a", "b").await;
    for n in 0..500 {
        a.send(&b, format!("{n:>512}"));
    }
    soon("the close", a.transport.close()).await;
    for n in 0..500 {
        assert_eq!(b.message("a").await, format!("{n:>512}"));
    }
    assert_eq!(b.down("a").await, "leaving");
}

async fn twins_refuse_each_other(harness: impl Harness) {
    let mut a = harness.start("a", polite()).await;
    let mut twin = harness.twin("a").await;
    assert_ne!(a.addr, twin.addr);
    a.transport.dial(twin.addr);
    a.refusal("two nodes are called a").await;
    twin.refusal("two nodes are called a").await;
    assert!(a.inbox.events.try_recv().is_err() && twin.inbox.events.try_recv().is_err());
}

async fn dialling_oneself_or_twice_does_no_harm(harness: impl Harness) {
    let (mut a, mut b) = (harness.start("a", polite()).await, harness.start("b", polite()).await);
    a.transport.dial(a.addr);
    for _ in 0..3 {
        a.transport.dial(b.addr);
    }
    a.up("b").await;
    b.up("a").await;
    a.send(&b, "x");
    assert_eq!(b.message("a").await, "x");
    assert_eq!(a.transport.links().len(), 1);
    assert!(a.transport.refusals().is_empty());
    let event: Result<Event, _> = a.inbox.events.try_recv();
    assert!(event.is_err(), "{event:?}");
}
