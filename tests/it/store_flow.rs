//! The database under a running worker: full disk, two processes, size over time, lost, and of another network.

use std::process::Command;

use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::node::Moment;
use morph_deriver::devnet::world::{ForkShape, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::PollEnd;

use super::CLIENT;
use crate::support::program::{Program, Site, devnet_beside};
use crate::support::rig::{Rig, devnet_ports, guarded, options, settings, world_options};
use crate::support::standing;

fn safe(devnet: &Devnet) -> Option<u64> {
    devnet.heads().safe.map(|tag| tag.number.get())
}

fn produce(devnet: &Devnet, batches: usize) {
    devnet.with(|w| {
        for _ in 0..batches {
            w.produce(4).unwrap();
            w.sync();
        }
    });
}

/// `run` under a shell that makes a refused write an error and not a signal, as on a full disk.
fn run_without_signal(site: &Site) -> Program {
    let plain = site.command(&["run"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    site.start_piped(shell)
}

/// Lets the running program write to files, or takes that away. False if the system has no `prlimit`.
fn disk(run: &Program, has_room: bool) -> bool {
    // The soft limit only: the hard one could not be raised again.
    let limit = if has_room { "--fsize=unlimited:" } else { "--fsize=0:" };
    let done = Command::new("prlimit").args(["--pid", &run.id().to_string(), limit]).status();
    done.is_ok_and(|status| status.success())
}

#[test]
fn h2_a_disk_that_fills_up_in_the_middle_of_a_run_loses_nothing() {
    let devnet = devnet_beside(CLIENT, |_| {});
    produce(&devnet, 3);
    let mut site = Site::new(&devnet);
    site.set("poll_interval", "100ms");
    let mut run = run_without_signal(&site);
    run.until(|| safe(&devnet) == Some(12));
    assert!(disk(&run, false), "this test needs `prlimit` (util-linux)");
    // One batch to verify and one to heal: both need the database before the node is touched.
    let tags = devnet.tag_calls().len();
    devnet.with(|w| {
        w.produce(4).unwrap();
        w.produce(4).unwrap();
        w.sync();
        w.fork_at(18, ForkShape::ExtraTransaction).unwrap();
    });
    let polls = devnet.calls(Server::L2, "eth_syncing");
    run.until(|| devnet.calls(Server::L2, "eth_syncing") > polls + 5);
    run.until_log("store_unavailable");
    assert_eq!(safe(&devnet), Some(12), "the node's tag does not move to what could not be stored");
    assert_eq!(devnet.tag_calls().len(), tags);
    assert!(devnet.writes().is_empty() && devnet.pauses() == 0);
    assert!(disk(&run, true));
    run.until(|| safe(&devnet) == Some(20) && !devnet.is_paused());
    run.stop();
    assert_eq!(devnet.heads().safe, devnet.with(|w| w.expected(20)));
    assert_eq!(site.stored().safe, devnet.heads().safe);
    assert_eq!(site.batches().len(), 6);
    assert_eq!(devnet.written(), [18, 19, 20]);
    assert!(devnet.unpaused_writes().is_empty());
}

#[test]
fn h3_a_second_start_on_the_same_database_is_refused_with_a_clear_message() {
    let devnet = devnet_beside(CLIENT, |_| {});
    produce(&devnet, 1);
    let site = Site::new(&devnet);
    let mut first = site.run();
    first.until(|| safe(&devnet) == Some(4));
    for command in [&["run"][..], &["recover", "--yes"]] {
        let mut second = site.start(site.command(command));
        assert_eq!(second.end().code(), Some(1));
        let said = second.log();
        assert!(said.contains("in use by another morph-deriver process"), "{said}");
    }
    produce(&devnet, 1);
    first.until(|| safe(&devnet) == Some(8));
    first.stop();
    // The lock goes with the process.
    let mut third = site.run();
    produce(&devnet, 1);
    third.until(|| safe(&devnet) == Some(12));
    third.stop();
}

/// Bytes of the database at `path` with its log.
async fn size(store: &std::path::Path) -> u64 {
    let wal = store.with_extension("sqlite-wal");
    let bytes = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |m| m.len());
    bytes(store) + bytes(&wal)
}

#[tokio::test]
async fn h5_the_database_stays_as_large_as_it_is_over_many_polls() {
    let world = WorldOptions { finalized_depth: 4, ..world_options(CLIENT) };
    let devnet = Devnet::start(DevnetOptions { world, ..options(CLIENT) }).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let mut ports = devnet_ports(&devnet).await;
    ports.progress = std::sync::Arc::new(SqliteStore::open(&path).await.unwrap());
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    settings.reorg_window = 8;
    let mut rig = Rig::start(ports, settings).await;
    // Until rows are pruned as fast as they come: 64 batches are kept below the finalized one.
    let mut grown = Vec::new();
    for round in 0..4 {
        for _ in 0..45 {
            devnet.with(|w| {
                w.tick(6).unwrap();
                w.sync();
            });
            rig.settle().await;
        }
        let l1_blocks = rig.ports.progress.l1_blocks().await.unwrap().len();
        let batches = standing(rig.ports.progress.as_ref()).await.len();
        grown.push((size(&path).await, l1_blocks, batches));
        assert!(round == 0 || rig.finalized().is_some());
    }
    let [.., (before, blocks_before, batches_before), (after, blocks_after, batches_after)] = grown[..] else {
        panic!()
    };
    assert_eq!((blocks_before, batches_before), (blocks_after, batches_after), "{grown:?}");
    assert!(after <= before + before / 20, "{grown:?}");
    // Polls that find nothing write nothing.
    for _ in 0..50 {
        rig.settle().await;
    }
    assert_eq!(size(&path).await, after);
}

#[test]
fn h6_a_lost_database_never_lowers_the_nodes_finalized_tag() {
    let devnet = devnet_beside(CLIENT, |_| {});
    produce(&devnet, 6);
    devnet.with(|w| w.mine(12));
    let site = Site::new(&devnet);
    let mut run = site.run();
    run.until(|| devnet.heads().finalized.is_some_and(|f| f.number.get() == 24));
    run.stop();
    for file in ["store.sqlite", "store.sqlite-wal", "store.sqlite-shm", "store.sqlite.lock"] {
        let _ = std::fs::remove_file(site.path().join(file));
    }
    let before = devnet.moments().len();
    produce(&devnet, 1);
    let mut run = site.run();
    run.until(|| safe(&devnet) == Some(28));
    run.stop();
    let seen = devnet.moments().split_off(before.min(devnet.moments().len()));
    let finalized = |m: &Moment| m.finalized.map(|f| f.number.get());
    assert!(seen.iter().all(|m| finalized(m) == Some(24)), "{:?}", seen.iter().map(finalized).collect::<Vec<_>>());
    assert!(seen.iter().all(Moment::is_ordered));
    assert_eq!(site.batches().len(), 8, "everything was verified again");
}

#[test]
fn h7_m25_a_database_of_another_network_is_refused_by_the_field_that_differs() {
    let devnet = devnet_beside(CLIENT, |_| {});
    produce(&devnet, 1);
    let mut site = Site::new(&devnet);
    let mut run = site.run();
    run.until(|| safe(&devnet) == Some(4));
    run.stop();
    let chain = |n: i64| toml::Value::from(n);
    let other = |digits: usize| toml::Value::from(format!("0x{}", "12".repeat(digits / 2)));
    let (l1_chain, l2_chain) = devnet.with(|w| (w.l1.config.chain_id, w.sequencer.node.chain_id()));
    let table = [
        ("l1.chain_id", chain(901), chain(l1_chain.try_into().unwrap()), "L1 chain id"),
        ("l2.chain_id", chain(2), chain(l2_chain.try_into().unwrap()), "L2 chain id"),
        ("l1.rollup", other(40), format!("{:?}", devnet.rollup()).into(), "Rollup contract"),
        ("l1.queue", other(40), format!("{:?}", devnet.queue()).into(), "L1MessageQueue contract"),
        ("l2.genesis_hash", other(64), format!("{:?}", devnet.l2_genesis()).into(), "L2 genesis hash"),
    ];
    let requests = devnet.all_http_requests();
    for (key, wrong, right, name) in table {
        site.set(key, wrong);
        let mut run = site.run();
        assert_eq!(run.end().code(), Some(1), "{key}");
        let said = run.log();
        assert!(said.contains("belongs to another network") && said.contains(name), "{key}: {said}");
        site.set(key, right);
    }
    // m25: the first L1 block that is read is a part of it.
    site.set("l1.start_block", chain(3));
    let mut run = site.run();
    assert_eq!(run.end().code(), Some(1));
    assert!(run.log().contains("l1.start_block = 0, configured is 3"), "{}", run.log());
    site.set("l1.start_block", chain(0));
    assert_eq!(devnet.all_http_requests(), requests, "refused before anybody is asked");
    let mut run = site.run();
    produce(&devnet, 1);
    run.until(|| safe(&devnet) == Some(8));
    run.stop();
}

#[tokio::test]
async fn h5_recorded_l1_blocks_are_bounded_while_nothing_is_finalized() {
    let devnet = guarded(CLIENT).await;
    devnet.with(|w| {
        w.l1.config.finalized_depth = 1_000_000;
        w.produce(4).unwrap();
        w.sync();
    });
    let mut rig = Rig::with(&devnet, |s| s.reorg_window = 5).await;
    for _ in 0..12 {
        devnet.with(|w| w.mine(3));
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
        assert_eq!(rig.finalized(), None, "only finality used to prune");
    }
    let recorded = rig.ports.progress.l1_blocks().await.unwrap();
    assert!(recorded.len() <= 11, "{} blocks", recorded.len());
    // A reorg inside the window still heals itself.
    devnet.with(|w| {
        w.reorg(4);
        w.mine(6);
    });
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.worker.status().borrow().reorgs, 1);
}
