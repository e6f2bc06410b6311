//! Faults of the network.

use std::time::Duration;

use crate::common::Signal;
use crate::load::now;
use crate::trial::Trial;

/// How long a flapping link is cut, and then whole, and how often that happens.
const FLAP: Duration = Duration::from_millis(350);
const FLAPS: usize = 8;
/// The share of packets that is lost, on every link.
const LOSS_PERCENT: u32 = 20;
/// How long a load runs under loss, or on slow links.
const ENDURE: Duration = Duration::from_secs(5);
/// What a slow link carries, in kilobits per second: a third of what the load would use.
const SLOW_KILOBITS: u32 = 256;

/// One of three sees nobody: packets vanish on the way to it and from it, or it has no link.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_cut_off() {
    let Some(trial) = Trial::start(3).await else { return };
    trial.network.part(&[0], &[1, 2]);
    let cut = now();
    trial.work_goes_on(&[1, 2]).await;
    trial.work_is_refused(&[0]).await;
    trial.work_goes_on(&[1, 2]).await;
    trial.nothing_was_done(&[0], cut);
    trial.network.heal();
    trial.everybody_is_ready().await;
    trial.everybody_works().await;

    trial.network.unplug(1);
    let unplugged = now();
    trial.work_goes_on(&[0, 2]).await;
    trial.work_is_refused(&[1]).await;
    trial.work_goes_on(&[0, 2]).await;
    trial.nothing_was_done(&[1], unplugged);
    trial.network.plug(1);
    trial.end().await;
}

/// The check itself: had the node that is cut off answered from its own copy, it would be noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_read_would_be_noticed() {
    let Some(trial) = Trial::start(3).await else { return };
    trial.network.part(&[0], &[1, 2]);
    trial.work_goes_on(&[1, 2]).await;
    let violation = trial.check_with_local_reads(0, &[1]).await.unwrap_err();
    assert!(!violation.undecided, "{violation}");
}

/// Between two of three nothing gets through one way, then the other, then either. Each still has a majority: with the
/// third.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_see_a_third_but_not_each_other() {
    let Some(trial) = Trial::start(3).await else { return };
    for ways in [&[(0, 1)][..], &[(1, 0)], &[(0, 1), (1, 0)]] {
        for (from, to) in ways {
            trial.network.cut(*from, *to);
        }
        trial.everybody_works().await;
        for (from, to) in ways {
            trial.is_missed_by(*from, *to).await;
        }
        trial.everybody_works().await;
        trial.network.heal();
        trial.everybody_works().await;
    }
    trial.end().await;
}

/// A node that hears everybody and is heard by nobody, and one that is heard and hears nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_mute_node_and_a_deaf_one() {
    let Some(trial) = Trial::start(3).await else { return };
    for (node, others, is_mute) in [(0, [1, 2], true), (1, [0, 2], false)] {
        for other in others {
            let (from, to) = if is_mute { (node, other) } else { (other, node) };
            trial.network.cut(from, to);
        }
        let cut = now();
        trial.work_goes_on(&others).await;
        trial.work_is_refused(&[node]).await;
        trial.work_goes_on(&others).await;
        trial.nothing_was_done(&[node], cut);
        trial.network.heal();
        trial.everybody_is_ready().await;
        trial.everybody_works().await;
    }
    trial.end().await;
}

/// A link that comes and goes, faster than anybody takes it for broken. The other two go on all the while.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_flaps() {
    let Some(trial) = Trial::start(3).await else { return };
    let flapping = async {
        for _ in 0..FLAPS {
            trial.network.part(&[2], &[0, 1]);
            tokio::time::sleep(FLAP).await;
            trial.network.heal();
            tokio::time::sleep(FLAP).await;
        }
    };
    trial.endure(&[0, 1], flapping).await;
    trial.end().await;
}

/// Every fifth packet is lost everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn packets_are_lost() {
    let Some(trial) = Trial::start(3).await else { return };
    trial.network.lose(LOSS_PERCENT);
    trial.endure(&[0, 1, 2], tokio::time::sleep(ENDURE)).await;
    trial.network.heal();
    trial.end().await;
}

/// A node dies while packets are lost, and comes back while they still are.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_while_packets_are_lost() {
    let Some(mut trial) = Trial::start(3).await else { return };
    trial.network.lose(LOSS_PERCENT);
    trial.everybody_works().await;
    trial.kill(2);
    trial.work_goes_on(&[0, 1]).await;
    trial.cluster.nodes[2].start();
    trial.everybody_is_ready().await;
    trial.everybody_works().await;
    trial.network.heal();
    trial.end().await;
}

/// Links that carry less than they are asked to: what is sent waits, and what waits too long is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn links_are_slow() {
    let Some(trial) = Trial::start(3).await else { return };
    if !trial.network.limit(SLOW_KILOBITS) {
        return;
    }
    trial.endure(&[0, 1, 2], tokio::time::sleep(ENDURE)).await;
    trial.network.unlimit();
    trial.end().await;
}

/// Five nodes, of which two can do without. With a third gone nobody can.
#[tokio::test(flavor = "multi_thread")]
async fn two_of_five_cut_off() {
    let Some(trial) = Trial::start(5).await else { return };
    trial.network.part(&[0, 1], &[2, 3, 4]);
    let cut = now();
    trial.work_goes_on(&[2, 3, 4]).await;
    trial.work_is_refused(&[0, 1]).await;
    trial.work_goes_on(&[2, 3, 4]).await;
    trial.nothing_was_done(&[0, 1], cut);

    trial.network.part(&[2], &[3, 4]);
    let cut = now();
    trial.work_is_refused(&[0, 1, 2, 3, 4]).await;
    trial.nothing_was_done(&[0, 1, 2, 3, 4], cut);
    trial.network.heal();
    trial.end().await;
}

/// One is cut off and another stopped, so that the third is alone; then the cut is healed, and only then the stopped
/// one goes on, with everything that it had in hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_stopped_during_a_cut() {
    let Some(trial) = Trial::start(3).await else { return };
    trial.network.part(&[0], &[1, 2]);
    trial.work_goes_on(&[1, 2]).await;
    trial.stop(1).await;
    let stopped = now();
    trial.work_is_refused(&[0, 2]).await;
    trial.nothing_was_done(&[0, 2], stopped);
    trial.network.heal();
    trial.work_goes_on(&[0, 2]).await;
    trial.cluster.nodes[1].signal(Signal::CONT);
    trial.end().await;
}
