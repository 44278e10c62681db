//! Pauses and writes that were refused or cut off: how often they are tried again, and what they leave in the journal
//! and in the rows (scenarios M1, M9, M13, M14, M30; promises P4, P5, P6).

use std::time::Duration;

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::ForkShape;
use morph_deriver::types::Case;

use crate::node_flow::{assert_chain, assert_promises, network, stall_of, synced};
use crate::support::rig::{Rig, cases};
use crate::writer_flow::{cannot_rewrite, steady};

fn refused() -> Fault {
    Fault::Error(RpcError::server("the reactors are in no mood"))
}

fn down() -> Rule {
    Rule::always(Fault::Status(503, String::new()))
}

/// The polls of `polls` in which the reactors were asked to pause.
async fn tries_of(devnet: &Devnet, rig: &mut Rig, polls: u64) -> Vec<u64> {
    let mut tries = Vec::new();
    for poll in 1..=polls {
        let before = devnet.calls(Server::Reactors, "pause");
        assert!(rig.poll().await.is_err(), "poll {poll}");
        if devnet.calls(Server::Reactors, "pause") > before {
            tries.push(poll);
        }
    }
    tries
}

#[tokio::test]
async fn m14_p5_a_pause_that_is_refused_at_every_poll_is_tried_ever_more_rarely() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    devnet.fault(Server::Reactors, Rule::on("pause", refused()));
    let mut rig = steady(&devnet, true).await;
    assert_eq!(tries_of(&devnet, &mut rig, 20).await, [1, 2, 4, 8, 16]);
    assert_eq!(stall_of(&rig), Some(Reason::ReactorsDegraded), "and never a block that was refused");
    rig.now += Duration::from_secs(600);
    assert_eq!(tries_of(&devnet, &mut rig, 1).await, [1]);
    rig.now += Duration::from_secs(600);
    assert_eq!(tries_of(&devnet, &mut rig, 1).await, [1]);
    rig.now += Duration::from_secs(600);
    assert_eq!(tries_of(&devnet, &mut rig, 1).await, [1]);
    assert_eq!(stall_of(&rig), Some(Reason::ReactorsDegraded));
    // A node that comes back says nothing of the reactors.
    devnet.fault(Server::L2, down());
    assert!(rig.poll().await.is_err());
    devnet.heal(Server::L2);
    assert_eq!(tries_of(&devnet, &mut rig, 3).await, [0; 0]);
    devnet.heal(Server::Reactors);
    rig.now += Duration::from_secs(600);
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn m14_p4_what_failed_before_any_pause_is_no_try() {
    // An earlier pause that is not resumed yet.
    let devnet = synced(2).await;
    devnet.with(|w| w.fork_at(10, ForkShape::ExtraTransaction).unwrap());
    devnet.fault(Server::Reactors, Rule::on("resume", refused()));
    let mut rig = steady(&devnet, true).await;
    assert!(rig.poll().await.is_err());
    assert_eq!(rig.safe(), Some(16));
    devnet.with(|w| w.truncate_to(9));
    assert_eq!(tries_of(&devnet, &mut rig, 8).await, [0; 0]);
    devnet.heal(Server::Reactors);
    rig.worker.quiesce().idle(Duration::from_secs(20)).await;
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)], "at once");
    assert_chain(&devnet, &rig, 16);
    // An engine that does not answer.
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = steady(&devnet, true).await;
    devnet.fault(Server::Engine, down());
    assert_eq!(tries_of(&devnet, &mut rig, 8).await, [0; 0]);
    devnet.heal(Server::Engine);
    for _ in 0..2 {
        rig.poll().await.unwrap();
    }
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m13_m14_a_node_that_comes_and_goes_does_not_wipe_the_wait_of_a_refusal() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.write_error = Some(RpcError::server("no space left on device"));
    });
    let mut rig = steady(&devnet, true).await;
    let mut pauses = Vec::new();
    for poll in 1..=20 {
        let before = devnet.pauses();
        if poll % 2 == 1 {
            devnet.fault(Server::L2, down());
        }
        assert!(rig.poll().await.is_err(), "poll {poll}");
        devnet.heal(Server::L2);
        if devnet.pauses() > before {
            pauses.push(poll);
        }
    }
    // The fourth is what the node's return ended early, once.
    assert_eq!(pauses, [2, 4, 6, 8, 16]);
    devnet.with(|w| w.node.moods.write_error = None);
    rig.now += Duration::from_secs(600);
    rig.poll().await.unwrap();
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m13_e13_a_node_that_was_down_is_asked_again_within_two_polls_of_its_return() {
    let (devnet, mut rig) = cannot_rewrite().await;
    devnet.fault(Server::L2, down());
    assert!(rig.poll().await.is_err());
    devnet.heal(Server::L2);
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::SelfHeal)]);
    assert_chain(&devnet, &rig, 16);
    assert_eq!(devnet.pauses(), 2);
}
