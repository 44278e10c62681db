//! Servers that refuse, lie, belong elsewhere or come back (groups J and M), seen from whole flows and the real program.

use std::process::Command;

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::l1::Forward;
use morph_deriver::devnet::world::WorldOptions;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::pull::PullEnd;

use crate::support::program::{self, Site};
use crate::support::rig::{Rig, reason};
use crate::support::server::FakeServer;

/// A devnet with a batch of 8 blocks, and one on it that is committed through another contract.
async fn with_a_forwarded_commit() -> Devnet {
    let world = WorldOptions { finalized_depth: 1000, ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.build(8).unwrap();
        let forward = Some(Forward { outer_input: None });
        w.commit(BatchSpec { forward, ..BatchSpec::default() }).unwrap();
        w.mine(1);
        w.sync();
    });
    devnet
}

#[tokio::test]
async fn m21_a_commit_that_cannot_be_traced_is_a_verdict_that_names_its_transaction() {
    let plan = RpcError { code: -32600, message: "debug_traceTransaction is not in your plan".to_owned() };
    for fault in [Fault::Huge(17 << 20), Fault::Error(plan), Fault::Status(403, "upgrade your plan".to_owned())] {
        let devnet = with_a_forwarded_commit().await;
        let tx = devnet.with(|w| w.batches[1].tx);
        devnet.fault(Server::L1(0), Rule::on("debug_traceTransaction", fault.clone()));
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(Reason::UnknownCommit), "{fault:?}");
        let PullEnd::Stalled(stall) = &report.end else { panic!("it does not stand still") };
        assert!(stall.detail.contains(&format!("{tx:?}")), "{}", stall.detail);
        assert_eq!(rig.safe(), Some(8));
        devnet.heal(Server::L1(0));
        assert_eq!(rig.settle().await.end, PullEnd::CaughtUp, "{fault:?}");
        assert_eq!(rig.safe(), Some(16));
    }
}

/// Asks every endpoint with a proxy in the environment, as containers often have one.
fn check_through(site: &Site, proxy: &str) -> String {
    let mut command: Command = site.command(&["config", "--check"]);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, proxy);
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn m26_the_engines_token_never_goes_through_a_proxy() {
    let proxy = FakeServer::http(|_| (200, b"{}".to_vec()));
    let devnet = program::devnet(|_| {});
    let mut site = Site::new(&devnet);
    site.set("l1.rpc", vec![String::from("http://l1.invalid:8545/canary")]);
    site.set("l2.engine", "http://engine.invalid:8551");
    let told = check_through(&site, &proxy.url);
    let through = proxy.calls();
    assert!(!through.is_empty(), "the proxy is in force, for L1: {told}");
    for call in through {
        assert_eq!(call.authorization, None, "{} {told}", call.method);
        assert!(!call.method.contains("engine"), "{}", call.method);
    }
    assert!(told.contains("engine.invalid:8551"), "the engine was asked, directly: {told}");
    assert!(!told.contains("canary"));
}
