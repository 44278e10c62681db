//! `recover` as an operator runs it, on a devnet whose sequencer has stopped.

use std::sync::OnceLock;
use std::time::Duration;

use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::world::{ForkShape, World};
use morph_deriver::types::L2Ref;
use serde_json::Value;

use super::CLIENT;
use crate::support::program::{Signal, Site, serve};
use crate::support::rig::world_options;

/// Batches, of four blocks each.
const BATCHES: u64 = 50;
/// The last committed block.
const LAST: u64 = BATCHES * 4;

/// Fifty batches on L1, six blocks more that were never committed, and the local node still at genesis.
fn stopped_network() -> World {
    static WORLD: OnceLock<World> = OnceLock::new();
    let made = WORLD.get_or_init(|| {
        let mut w = World::new(&world_options(CLIENT)).unwrap();
        for _ in 0..BATCHES {
            w.produce(4).unwrap();
        }
        w.mine(1);
        w.build(6).unwrap();
        w
    });
    made.clone()
}

/// The local node has blocks up to `head`, from `fork` on other ones.
fn node_at(head: u64, fork: Option<u64>) -> Devnet {
    let mut world = stopped_network();
    world.sync_to(head);
    if let Some(fork) = fork {
        world.fork_at(fork, ForkShape::ExtraTransaction).unwrap();
    }
    serve(world)
}

fn chain(devnet: &Devnet, to: u64) -> Vec<Option<L2Ref>> {
    devnet.with(|w| (0..=to).map(|n| w.node.at(n).map(|b| b.l2_ref())).collect())
}

fn expected(devnet: &Devnet, to: u64) -> Vec<Option<L2Ref>> {
    devnet.with(|w| (0..=to).map(|n| w.expected(n)).collect())
}

/// Runs `recover` with `args` and `--json`; gives the exit code and the printed object.
fn recover(site: &Site, args: &[&str]) -> (Option<i32>, Value) {
    let mut run = site.start(site.command(&[&["recover", "--json"], args].concat()));
    let code = run.end().code();
    let object = serde_json::from_str(&run.out()).unwrap_or_else(|e| panic!("{e}: {}{}", run.out(), run.log()));
    (code, object)
}

/// The chain is L1's up to block `to` and no further, and everything else is in order.
fn assert_recovered(devnet: &Devnet, site: &Site, to: u64) {
    assert_eq!(devnet.heads().local.number.get(), to);
    assert_eq!(chain(devnet, to), expected(devnet, to));
    assert_eq!(devnet.heads().safe, devnet.with(|w| w.expected(to)));
    assert!(!devnet.is_paused());
    assert!(devnet.unpaused_writes().is_empty());
    let stored = site.stored();
    assert_eq!((stored.lease, stored.intents.len()), (None, 0));
    assert_eq!(stored.safe.map(|s| s.number.get()), Some(to));
    assert_eq!(site.batches().len() as u64, to / 4 + 1);
}

#[test]
fn e3_recover_replaces_a_fork_in_batch_33_and_writes_what_is_missing() {
    // Ends on batch 35, and is another chain from the second block of batch 33 on.
    let devnet = node_at(140, Some(130));
    let site = Site::new(&devnet);
    let (code, report) = recover(&site, &["--yes"]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["outcome"], "recovered");
    let plan = &report["plan"];
    assert_eq!((plan["first_batch"].as_u64(), plan["last_batch"].as_u64()), (Some(33), Some(50)));
    assert_eq!(plan["keep_to"]["number"], 129);
    assert_eq!(plan["local_head"]["number"], 140);
    assert_eq!((plan["batches"].as_u64(), plan["blocks"].as_u64()), (Some(18), Some(71)));
    assert_eq!((plan["replaced"].as_u64(), plan["lost"].as_u64()), (Some(11), Some(0)));
    assert_eq!((report["batches"].as_u64(), report["rewritten"].as_u64()), (Some(18), Some(71)));
    assert_eq!(report["head"]["number"], LAST);
    assert_recovered(&devnet, &site, LAST);
    assert_eq!(devnet.written(), (130..=LAST).collect::<Vec<_>>(), "each block once");
    let journal = site.journal();
    assert_eq!(journal.len(), 71);
    assert_eq!(journal.iter().filter(|e| e.old_hash.is_some()).count(), 3, "of batch 33, the three that differed");
}

#[test]
fn recover_writes_twenty_missing_batches() {
    let devnet = node_at(120, None);
    let site = Site::new(&devnet);
    let (code, report) = recover(&site, &["--yes"]);
    assert_eq!(code, Some(0), "{report}");
    let plan = &report["plan"];
    assert_eq!((plan["first_batch"].as_u64(), plan["keep_to"]["number"].as_u64()), (Some(31), Some(120)));
    assert_eq!((plan["replaced"].as_u64(), plan["lost"].as_u64()), (Some(0), Some(0)));
    assert_recovered(&devnet, &site, LAST);
    assert_eq!(devnet.written(), (121..=LAST).collect::<Vec<_>>());
    // Repeated, it finds nothing to do.
    let writes = devnet.writes().len();
    let (code, report) = recover(&site, &["--yes"]);
    assert_eq!((code, report["outcome"].as_str()), (Some(0), Some("nothing-to-do")));
    assert_eq!(devnet.writes().len(), writes);
}

#[test]
fn e3_blocks_that_were_never_committed_are_reported_as_lost_before_they_go() {
    // The sequencer's whole chain, the six uncommitted blocks too, forked in batch 45.
    let devnet = node_at(LAST + 6, Some(178));
    let site = Site::new(&devnet);
    let mut run = site.start(site.command(&["recover", "--dry-run"]));
    assert_eq!(run.end().code(), Some(0), "{}", run.log());
    let line = run.out().lines().find(|line| line.starts_with("lost")).map(str::to_owned).unwrap();
    assert!(line.contains(" 6 local blocks above the last batch"), "{line}");
    let (code, report) = recover(&site, &["--yes"]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!((report["plan"]["replaced"].as_u64(), report["plan"]["lost"].as_u64()), (Some(23), Some(6)));
    assert_recovered(&devnet, &site, LAST);
}

#[test]
fn a_dry_run_shows_the_plan_and_writes_nothing() {
    let devnet = node_at(140, Some(130));
    let before = chain(&devnet, 140);
    let site = Site::new(&devnet);
    let (code, report) = recover(&site, &["--dry-run"]);
    assert_eq!((code, report["outcome"].as_str()), (Some(0), Some("dry-run")));
    assert_eq!(report["plan"]["blocks"], 71);
    assert!(report["plan"]["blobs_from"].as_array().is_some_and(|hosts| hosts.len() == 1));
    assert!(devnet.writes().is_empty() && devnet.tag_calls().is_empty() && devnet.reactor_calls().is_empty());
    assert_eq!(chain(&devnet, 140), before);
    assert_eq!((report["batches"].as_u64(), report["rewritten"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn without_a_terminal_nothing_is_written_without_yes() {
    let devnet = node_at(140, Some(130));
    let site = Site::new(&devnet);
    let mut run = site.start(site.command(&["recover"]));
    assert_eq!(run.end().code(), Some(1));
    assert!(run.log().contains("--yes"), "{}", run.log());
    assert!(run.out().contains("to write              batches 33 to 50, 71 blocks"), "{}", run.out());
    assert!(devnet.writes().is_empty() && devnet.reactor_calls().is_empty());
}

#[test]
fn to_batch_stops_there_and_the_rest_follows_later() {
    let devnet = node_at(140, Some(130));
    let site = Site::new(&devnet);
    let (code, report) = recover(&site, &["--yes", "--to-batch", "40"]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!((report["plan"]["last_batch"].as_u64(), report["plan"]["blocks"].as_u64()), (Some(40), Some(31)));
    assert_recovered(&devnet, &site, 160);
    let (code, _) = recover(&site, &["--yes"]);
    assert_eq!(code, Some(0));
    assert_recovered(&devnet, &site, LAST);
    assert_eq!(devnet.written(), (130..=LAST).collect::<Vec<_>>());
}

#[test]
fn p6_interrupted_twice_it_ends_the_same_when_repeated() {
    let devnet = node_at(140, Some(130));
    let site = Site::new(&devnet);
    devnet.latency(Server::Engine, Duration::from_millis(40));
    for written in [4, 30] {
        let mut run = site.start(site.command(&["recover", "--yes", "--json"]));
        run.until(|| devnet.written().len() >= written);
        run.signal(Signal::Interrupt);
        assert_eq!(run.end().code(), Some(1), "{}", run.log());
        let report: Value = serde_json::from_str(&run.out()).unwrap();
        assert_eq!(report["outcome"], "interrupted");
        assert!(!devnet.is_paused(), "{}", run.log());
        assert!(devnet.heads().local.number.get() < LAST, "interrupted too late to show anything");
    }
    let (code, report) = recover(&site, &["--yes"]);
    assert_eq!((code, report["outcome"].as_str()), (Some(0), Some("recovered")));
    assert_recovered(&devnet, &site, LAST);
    let batches = site.batches();
    let rewritten = |index: usize| batches[index].rewritten;
    assert_eq!((rewritten(32), rewritten(33)), (0, 3));
    assert!((34..=50).all(|index| rewritten(index) == 4), "{batches:?}");
}

#[test]
fn d4_recover_with_pruned_blobs_says_so_with_exit_code_4() {
    let devnet = node_at(120, None);
    let site = Site::new(&devnet);
    devnet.fault(Server::Beacon(0), Rule::on("/blob", Fault::Status(404, "{\"code\":404}".to_owned())));
    let (code, report) = recover(&site, &["--yes"]);
    assert_eq!(code, Some(4), "{report}");
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains("blob_pruned") || reason.contains("blob_missing"), "{reason}");
    assert!(devnet.writes().is_empty() && devnet.pauses() == 0, "nothing is paused for a blob that cannot be had");
}
