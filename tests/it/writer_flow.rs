//! What the writer may send to the engine, and when (scenarios M1, M7, M13, M14, M15, M30).

use std::sync::Arc;

use morph_deriver::adapters::engine::{EngineClient, JwtSecret};
use morph_deriver::adapters::rpc::Check;
use morph_deriver::commands::wiring;
use morph_deriver::decide::liveness::Verdict;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::PortErrorKind;
use morph_deriver::types::{Case, Identity};

use crate::node_flow::{assert_chain, assert_promises, heights, network, stall_of};
use crate::support::clients::pool_config;
use crate::support::rig::{Rig, cases, devnet_ports, reason, settings};

/// Five batches on L1, and two nodes with the same chain: the one that is read stands at 8, the one that is written at
/// `engine_at`.
async fn two_nodes(engine_at: u64) -> (Devnet, Arc<Devnet>, Rig) {
    let (read, written) = (network(5).await, network(5).await);
    read.with(|w| w.sync_to(8));
    written.with(|w| w.sync_to(engine_at));
    assert_eq!(read.heads().sequencer, written.heads().sequencer, "one chain");
    let mut ports = devnet_ports(&read).await;
    ports.engine = devnet_ports(&written).await.engine;
    let mut settings = settings();
    settings.rollup = read.rollup();
    settings.assume = Some(Verdict::Stopped);
    for devnet in [&read, &written] {
        devnet.refuse_unpaused_writes(false);
        devnet.clear_counts();
    }
    (read, Arc::new(written), Rig::start(ports, settings).await)
}

fn assert_untouched(written: &Devnet, head: u64) {
    assert!(written.writes().is_empty(), "{:?}", written.writes());
    let heads: Vec<_> = written.moments().iter().map(|m| m.head.number).collect();
    assert!(heads.is_sorted(), "the second node's head fell: {heads:?}");
    assert_eq!(heights(written).0, head);
}

#[tokio::test]
async fn m7_e21_an_engine_that_is_another_node_is_named_and_neither_paused_for_nor_written() {
    let (read, written, mut rig) = two_nodes(40).await;
    for _ in 0..6 {
        let report = rig.settle().await;
        assert_untouched(&written, 40);
        assert_eq!(reason(&report), Some(Reason::EngineIsAnotherNode));
    }
    assert_eq!((read.pauses(), read.resumes()), (0, 0));
    let detail = rig.worker.status().borrow().stall.clone().unwrap().detail;
    let heads = [read.heads().local, written.heads().local];
    assert!(heads.iter().all(|head| detail.contains(&head.to_string())), "{detail}");
    assert_eq!(rig.safe(), Some(8), "what is there is verified all the same");
    // The right engine, and it goes on.
    rig.ports.engine = devnet_ports(&read).await.engine;
    rig.restart().await;
    let filled: Vec<_> = (2..=5).map(|index| (index, Case::FillGap)).collect();
    assert_eq!(cases(&rig.settle().await), filled);
    assert_chain(&read, &rig, 40);
    assert_promises(&read);
}

#[tokio::test]
async fn m7_an_engine_that_turns_out_to_be_another_node_inside_the_pause_is_told_nothing() {
    let (read, written, mut rig) = two_nodes(8).await;
    let other = written.clone();
    read.on_call(Server::Reactors, "pause", 1, move |_| other.with(World::sync));
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::EngineIsAnotherNode));
    assert_untouched(&written, 40);
    assert_eq!((read.pauses(), read.resumes()), (1, 1));
    for _ in 0..3 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::EngineIsAnotherNode));
    }
    assert_eq!((read.pauses(), read.resumes()), (1, 1), "they are two nodes now for all to see");
    assert!(written.writes().is_empty());
}

#[tokio::test]
async fn m7_an_engine_that_does_not_say_which_node_it_is_is_not_written() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(Verdict::Stopped)).await;
    let deaf = Fault::Error(RpcError::no_method("eth_getBlockByNumber"));
    devnet.fault(Server::Engine, Rule::on("eth_getBlockByNumber", deaf));
    for _ in 0..3 {
        assert!(rig.poll().await.is_err());
        assert_eq!(stall_of(&rig), Some(Reason::EngineUnavailable));
    }
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
    devnet.heal(Server::Engine);
    assert_eq!(cases(&rig.settle().await), [(2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn m7_a11_an_engine_of_another_chain_is_refused_at_start() {
    let devnet = network(1).await;
    let other = WorldOptions { seed: 2, ..WorldOptions::default() };
    let other = Devnet::start(DevnetOptions { world: other, ..DevnetOptions::default() }).await.unwrap();
    let client = |devnet: &Devnet| {
        let secret = JwtSecret::new(devnet.jwt_secret());
        EngineClient::new(&devnet.engine_url(), secret, pool_config(Check::None)).unwrap()
    };
    let identity = Identity {
        l1_chain_id: 900,
        l2_chain_id: 53077,
        rollup: devnet.rollup(),
        queue: devnet.queue(),
        l2_genesis: devnet.l2_genesis(),
    };
    wiring::check_engine(&client(&devnet), &identity).await.unwrap();
    let error = wiring::check_engine(&client(&other), &identity).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::WrongNetwork);
    assert!(error.detail.contains("genesis"), "{error}");
    let wrong = Identity { l2_chain_id: 1, ..identity };
    let error = wiring::check_engine(&client(&devnet), &wrong).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::WrongNetwork);
    assert!(error.detail.contains("chain id"), "{error}");
}
