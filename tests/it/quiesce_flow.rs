//! The reactors (scenarios G) in whole flows: what is paused, for how long, and that every pause ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use morph_deriver::adapters::reactors::{CommandReactors, NoReactors};
use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::{ForkShape, World};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Target;
use morph_deriver::flow::worker::{Panicked, contained};
use morph_deriver::flow::{FlowError, Ports, Settings};
use morph_deriver::ports::{EngineView, L2Engine, PortResult, WriteStopped};
use morph_deriver::types::{B256, Case, L2Header, L2Number, Lease, NewBlock};
use tokio_util::sync::CancellationToken;

use super::CLIENT;
use crate::support::rig::{Rig, STEP, WINDOW, cases, devnet_ports, guarded, options, reason, settings};

/// Longest wait for the end of a pause. The rig's calls to the reactors may be 2 s late.
const PATIENCE: Duration = Duration::from_secs(20);

/// `batches` batches of 8 blocks, of which the local node has the first `local` blocks. Writes need a pause.
async fn network(batches: u64, local: u64) -> Devnet {
    let options = DevnetOptions { refuse_unpaused_writes: true, ..options(CLIENT) };
    let devnet = Devnet::start(options).await.unwrap();
    devnet.with(|w| {
        for _ in 0..batches {
            w.produce(8).unwrap();
        }
        w.sync_to(local);
    });
    devnet.clear_counts();
    devnet
}

/// A network whose batch 2 is forked from its second block on.
async fn forked(batches: u64) -> Devnet {
    let devnet = network(batches, batches * 8).await;
    devnet.with(|w| w.fork_at(10, ForkShape::ExtraTransaction).unwrap());
    devnet.clear_counts();
    devnet
}

fn stopped(settings: &mut Settings) {
    settings.assume = Some(HeadTrend::Stopped);
}

async fn lease(rig: &Rig) -> Option<Lease> {
    rig.ports.progress.lease().await.unwrap()
}

fn refused() -> Fault {
    Fault::Error(RpcError::server("the reactors are in no mood"))
}

/// Everything that was paused was resumed, as often as it was paused, and nothing was written outside.
fn assert_balanced(devnet: &Devnet, pauses: u64) {
    assert_eq!((devnet.pauses(), devnet.resumes()), (pauses, pauses));
    assert!(!devnet.is_paused());
    assert!(devnet.unpaused_writes().is_empty());
    assert!(devnet.moments().iter().all(|m| m.is_ordered()), "{:?}", devnet.moments());
}

fn assert_like_the_sequencer(devnet: &Devnet, head: u64) {
    let (local, expected) = devnet.with(|w| (w.node.head().l2_ref(), w.expected(head)));
    assert_eq!(Some(local), expected);
}

#[tokio::test]
async fn m14_d_a_batch_that_cannot_be_written_yet_fetches_its_blob_once() {
    let devnet = forked(3).await;
    devnet.fault(Server::Reactors, Rule::on("pause", refused()).times(1000));
    let mut rig = Rig::with(&devnet, stopped).await;
    for _ in 0..8 {
        let _refused = rig.poll().await;
    }
    assert!(devnet.calls(Server::Reactors, "pause") >= 2 && devnet.unpaused_writes().is_empty());
    assert_eq!(devnet.calls(Server::Beacon(0), "blobs"), 1);
}

#[tokio::test]
async fn g1_a_failed_resume_is_tried_until_it_works_and_alarms_meanwhile() {
    let devnet = forked(3).await;
    devnet.fault(Server::Reactors, Rule::on("resume", refused()).times(3));
    let mut rig = Rig::with(&devnet, stopped).await;
    let error = rig.poll().await.unwrap_err();
    assert!(matches!(&error, FlowError::Port(error) if error.target == Target::Reactors), "{error}");
    let status = rig.worker.status().borrow().clone();
    assert!(status.reactors_degraded);
    assert_eq!(status.stall.unwrap().reason(), Reason::ReactorsDegraded);
    assert!(lease(&rig).await.is_some());
    // What was verified under the pause counts all the same.
    assert_eq!(rig.safe(), Some(24));
    assert_like_the_sequencer(&devnet, 24);
    let began = Instant::now();
    while rig.worker.quiesce().is_degraded() {
        assert!(began.elapsed() < Duration::from_secs(10), "never resumed");
        assert!(rig.poll().await.is_err(), "alarmed until it works");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.settle().await;
    assert!(!rig.worker.status().borrow().reactors_degraded);
    assert_balanced(&devnet, 1);
    assert_eq!(devnet.calls(Server::Reactors, "resume"), 4);
    assert_eq!(devnet.reactor_calls().last().unwrap().params, serde_json::json!([24]));
    assert_eq!(lease(&rig).await, None);
}

#[tokio::test]
async fn g2_a_half_done_pause_is_undone_and_nothing_is_written() {
    let devnet = forked(2).await;
    // The pause happens, the answer is lost.
    devnet.fault(Server::Reactors, Rule::on("pause", Fault::DropAfter).times(1));
    let mut rig = Rig::with(&devnet, stopped).await;
    assert!(rig.poll().await.is_err());
    assert!(devnet.writes().is_empty());
    assert_balanced(&devnet, 1);
    // Whether it happened is not known here, so it is resumed twice (M12) before another pause may begin.
    assert!(lease(&rig).await.is_some());
    assert_eq!(rig.poll().await.unwrap_err().stall().reason(), Reason::ReactorsDegraded);
    assert_eq!(devnet.pauses(), 1);
    rig.worker.quiesce().idle(PATIENCE).await;
    assert_eq!(lease(&rig).await, None);
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 2));
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
    assert_eq!((devnet.pauses(), devnet.resumes()), (2, 3));
    assert!(!devnet.is_paused() && devnet.unpaused_writes().is_empty());
}

#[tokio::test]
async fn m12_p5_a_pause_that_happens_after_its_answer_was_lost_is_resumed() {
    // A proxy gives up on the pause (504), the service behind it does not.
    let gave_up = Fault::Status(504, "upstream timed out".to_owned());
    for fault in [gave_up, Fault::Status(502, String::new()), Fault::Drop] {
        let devnet = forked(2).await;
        devnet.fault(Server::Reactors, Rule::on("pause", fault.clone()).times(1));
        let mut rig = Rig::with(&devnet, stopped).await;
        assert!(rig.poll().await.is_err());
        assert_eq!(devnet.resumes(), 1, "{fault:?}");
        devnet.pause_now();
        rig.worker.quiesce().idle(PATIENCE).await;
        assert!(!devnet.is_paused(), "{fault:?}");
        assert_eq!(lease(&rig).await, None);
        assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
        assert!(!devnet.is_paused() && devnet.unpaused_writes().is_empty());
    }
}

#[tokio::test]
async fn m24_p5_a_resume_that_lands_late_does_not_end_the_next_pause() {
    let devnet = forked(2).await;
    let mut rig = Rig::with(&devnet, stopped).await;
    // The first resume is given up after the 2 s of the rig's clients, and lands when a pause could have begun.
    devnet.fault(Server::Reactors, Rule::on("resume", Fault::Late(Duration::from_millis(3000))).times(1));
    assert!(rig.poll().await.is_err());
    // Something to write again as soon as writing is possible, slowly: the next pause lasts until the resume lands.
    devnet.with(|w| w.truncate_to(9));
    devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Delay(Duration::from_millis(200))));
    let began = Instant::now();
    while rig.safe() != Some(16) || devnet.written().len() < 14 {
        assert!(began.elapsed() < PATIENCE, "never written");
        let _ = rig.poll().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(devnet.unpaused_writes().is_empty(), "{:?}", devnet.unpaused_writes());
    rig.worker.quiesce().idle(PATIENCE).await;
    assert!(!devnet.is_paused());
}

#[tokio::test]
async fn m28_a_guard_that_cannot_resume_holds_up_what_must_be_written_and_nothing_else() {
    let devnet = forked(2).await;
    devnet.fault(Server::Reactors, Rule::on("resume", refused()));
    let mut rig = Rig::with(&devnet, stopped).await;
    assert!(rig.poll().await.is_err());
    assert_eq!(rig.safe(), Some(16));
    // A batch that needs nothing is verified and tagged; the reason is shown all the same.
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.sync();
    });
    assert_eq!(rig.poll().await.unwrap_err().stall().reason(), Reason::ReactorsDegraded);
    assert_eq!(rig.safe(), Some(24));
    assert_eq!(devnet.heads().safe.map(|s| s.number.get()), Some(24));
    assert!(rig.worker.status().borrow().reactors_degraded);
    // One that needs a write waits, and its blocks are not touched.
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.sync();
        w.fork_at(30, ForkShape::ExtraTransaction).unwrap();
    });
    let before = devnet.written();
    assert_eq!(rig.poll().await.unwrap_err().stall().reason(), Reason::ReactorsDegraded);
    assert_eq!((rig.safe(), devnet.written()), (Some(24), before));
    // Once the reactors can be resumed, the worker continues.
    devnet.heal(Server::Reactors);
    rig.worker.quiesce().idle(Duration::from_secs(20)).await;
    assert_eq!(cases(&rig.settle().await), [(4, Case::SelfHeal)]);
    assert!(devnet.unpaused_writes().is_empty() && !devnet.is_paused());
}

#[tokio::test]
async fn m11_without_reactors_a_pause_that_was_left_stays_stored_and_is_shown() {
    for observes in [true, false] {
        let devnet = forked(2).await;
        devnet.refuse_unpaused_writes(false);
        devnet.pause_now();
        let ports = devnet_ports(&devnet).await;
        let left = Lease { height: L2Number::new(3), since: 5 };
        ports.progress.set_lease(Some(left)).await.unwrap();
        let engine = ports.engine.clone().filter(|_| !observes);
        let without = Ports { engine, reactors: Arc::new(NoReactors), ..ports.clone() };
        let mut settings = settings();
        settings.rollup = devnet.rollup();
        stopped(&mut settings);
        let mut rig = Rig::start(without, settings.clone()).await;
        let report = rig.settle().await;
        assert_eq!(reason(&report), observes.then_some(Reason::WouldSelfHeal));
        assert_eq!(devnet.written().is_empty(), observes, "a write makes a pause of its own");
        let status = rig.worker.status().borrow().clone();
        assert!(status.pause_left_over && !status.reactors_degraded);
        rig.worker.quiesce().shutdown(PATIENCE).await;
        assert_eq!(lease(&rig).await, Some(left));
        assert!(devnet.is_paused());
        // A run that has the reactors resumes them.
        let next = Rig::start(ports, settings).await;
        assert!(!devnet.is_paused(), "before the first poll");
        next.worker.quiesce().idle(PATIENCE).await;
        assert_eq!(lease(&next).await, None);
        assert!(!next.worker.status().borrow().pause_left_over);
    }
}

#[tokio::test]
async fn g3_an_engine_that_stalls_costs_no_more_than_the_pauses_budget() {
    let devnet = forked(2).await;
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Hang).after(3).times(1));
    let mut rig = Rig::with(&devnet, |s| {
        stopped(s);
        s.pause_budget = Duration::from_millis(300);
        s.pause_per_block = Duration::ZERO;
        s.write_chunk = 1;
    })
    .await;
    let began = Instant::now();
    let report = rig.poll().await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    assert_eq!(reason(&report), Some(Reason::PauseBudget));
    // The resume waits until the head has stopped moving: the unanswered write may yet land.
    while devnet.is_paused() || lease(&rig).await.is_some() {
        assert!(began.elapsed() < Duration::from_secs(5), "never resumed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_balanced(&devnet, 1);
    assert_eq!(devnet.written(), [10, 11, 12]);
    // The next poll continues from there, and the batch ends with the case that it began with.
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
    assert_eq!(devnet.written(), (10..=16).collect::<Vec<_>>());
    assert_balanced(&devnet, 2);
    assert_like_the_sequencer(&devnet, 16);
}

#[tokio::test]
async fn g3_a_used_up_budget_ends_between_two_blocks_and_the_next_poll_continues() {
    let devnet = network(2, 8).await;
    // Room for three writes a pause: a machine that is busy for half a second under it leaves room for one.
    let slow = Fault::Delay(Duration::from_millis(400));
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", slow));
    let mut rig = Rig::with(&devnet, |s| {
        stopped(s);
        s.pause_budget = Duration::from_millis(1300);
        s.pause_per_block = Duration::ZERO;
        s.write_chunk = 1;
    })
    .await;
    let mut polls = 0;
    loop {
        let report = rig.poll().await.unwrap();
        polls += 1;
        if reason(&report) != Some(Reason::PauseBudget) {
            break;
        }
        assert_eq!(devnet.pauses(), polls);
        assert!(polls < 8);
    }
    assert!(polls > 1, "the budget was never used up");
    assert_eq!(rig.safe(), Some(16));
    // An unanswered write may or may not have landed, and is written at most once more.
    let mut written = devnet.written();
    written.dedup();
    assert_eq!(written, (9..=16).collect::<Vec<_>>());
    assert_like_the_sequencer(&devnet, 16);
    assert_eq!(devnet.pauses(), devnet.resumes());
    assert!(devnet.unpaused_writes().is_empty());
}

#[tokio::test]
async fn g3_a_blob_that_does_not_come_does_not_hold_an_open_pause() {
    // Gathered ahead, it is waited for before the pause.
    for (read_ahead, pauses) in [(0, 2), (24, 1)] {
        g3_a_late_blob(read_ahead, pauses).await;
    }
}

async fn g3_a_late_blob(read_ahead: usize, pauses: u64) {
    let devnet = network(3, 8).await;
    // Batch 2 is written; the blob of batch 3 takes far longer than the pause may.
    devnet.fault(Server::Beacon(0), Rule::on("blob", Fault::Delay(Duration::from_millis(1200))).after(1).times(1));
    let mut rig = Rig::with(&devnet, |s| {
        stopped(s);
        s.pause_budget = Duration::from_millis(400);
        s.pause_per_block = Duration::ZERO;
        s.read_ahead = read_ahead;
    })
    .await;
    let watched = async {
        let mut longest = Duration::ZERO;
        let mut since = None;
        loop {
            match (devnet.is_paused(), since) {
                (true, None) => since = Some(Instant::now()),
                (false, Some(_)) => since = None,
                _ => {}
            }
            longest = longest.max(since.map_or(Duration::ZERO, |s: Instant| s.elapsed()));
            tokio::time::sleep(Duration::from_millis(5)).await;
            if rig_done(&devnet) {
                return longest;
            }
        }
    };
    let (report, longest) = tokio::join!(rig.settle(), watched);
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::FillGap), (3, Case::FillGap)]);
    assert!(longest < Duration::from_millis(800), "paused for {longest:?}");
    assert_balanced(&devnet, pauses);
    assert_like_the_sequencer(&devnet, 24);
}

fn rig_done(devnet: &Devnet) -> bool {
    devnet.heads().safe.is_some_and(|s| s.number == L2Number::new(24)) && !devnet.is_paused()
}

#[tokio::test]
async fn g5_a_block_that_lands_while_the_reactors_stop_is_seen_before_the_write() {
    // On top of the fork that is to be healed: it goes with the fork, in the same poll.
    let devnet = network(3, 24).await;
    devnet.with(|w| {
        w.truncate_to(16);
        w.fork_at(10, ForkShape::ExtraTransaction).unwrap();
    });
    devnet.clear_counts();
    devnet.on_call(Server::Reactors, "pause", 1, |w| w.execute_to(17).unwrap());
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(cases(&rig.settle().await), [(1, Case::Consistent), (2, Case::SelfHeal)]);
    assert_eq!(devnet.written(), (10..=16).collect::<Vec<_>>());
    assert_eq!(devnet.writes()[0].head_before, 17);
    assert_balanced(&devnet, 1);

    // At the place that is to be filled: nothing is written, and the chain is alive after all.
    let devnet = network(2, 8).await;
    devnet.on_call(Server::Reactors, "pause", 1, |w| w.grow(1));
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..WINDOW.as_secs() / STEP.as_secs() {
        rig.poll().await.unwrap();
    }
    let error = rig.poll().await.unwrap_err();
    assert_eq!(error.stall().reason(), Reason::LocalChainChanged);
    assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::WaitingForBlocks));
    assert!(devnet.writes().is_empty());
    assert_balanced(&devnet, 1);

    // In place of the fork: the chain is no longer the one that the plan was made for.
    let devnet = forked(2).await;
    devnet.on_call(Server::Reactors, "pause", 1, |w| {
        w.build(1).unwrap();
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(rig.poll().await.unwrap_err().stall().reason(), Reason::LocalChainChanged);
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent)]);
    assert!(devnet.writes().is_empty());
    assert_balanced(&devnet, 1);
}

/// Runs the worker until `when` holds, then stops it. Returns how long the stop took.
async fn run_and_stop(rig: Rig, when: impl Fn() -> bool) -> Duration {
    let stop = CancellationToken::new();
    let running = tokio::spawn(rig.worker.run(stop.clone()));
    let began = Instant::now();
    while !when() {
        assert!(began.elapsed() < Duration::from_secs(20), "never came so far");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let told = Instant::now();
    stop.cancel();
    running.await.unwrap().unwrap();
    told.elapsed()
}

#[tokio::test]
async fn g6_a_shutdown_in_the_middle_of_a_heal_resumes_once_and_exits() {
    let devnet = forked(2).await;
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Hang).after(3));
    let rig = Rig::with(&devnet, |s| {
        stopped(s);
        s.write_chunk = 1;
    })
    .await;
    let ports = rig.ports.clone();
    let took = run_and_stop(rig, || devnet.written().len() == 3).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_balanced(&devnet, 1);
    let resumed_at = devnet.reactor_calls().last().unwrap().params.clone();
    assert_eq!(resumed_at, serde_json::json!([12]), "from the head, in the middle of the batch");
    assert_eq!(ports.progress.lease().await.unwrap(), None);
    // A start later, it is as if nothing had happened.
    devnet.heal(Server::Engine);
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    stopped(&mut settings);
    let mut next = Rig::start(ports, settings).await;
    assert_eq!(cases(&next.settle().await), [(2, Case::SelfHeal)]);
    assert_balanced(&devnet, 2);
    assert_like_the_sequencer(&devnet, 16);
}

#[tokio::test]
async fn g6_g7_it_stops_in_time_whichever_server_hangs() {
    for server in [Server::L2, Server::Engine, Server::L1(0), Server::Beacon(0)] {
        let devnet = forked(2).await;
        devnet.fault(server, Rule::always(Fault::Hang));
        let rig = Rig::with(&devnet, stopped).await;
        let took = run_and_stop(rig, || devnet.http_requests(server) > 0).await;
        assert!(took < Duration::from_secs(10), "{server:?}: {took:?}");
        assert_eq!(devnet.pauses(), devnet.resumes(), "{server:?}");
        assert!(!devnet.is_paused());
    }
}

#[tokio::test]
async fn g6_g8_a_node_that_hangs_in_the_middle_of_a_heal_is_resumed_from_the_last_block_written() {
    let devnet = forked(2).await;
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Hang).after(3));
    let rig = Rig::with(&devnet, |s| {
        stopped(s);
        s.write_chunk = 1;
    })
    .await;
    let ports = rig.ports.clone();
    let took = run_and_stop(rig, || {
        let so_far = devnet.calls(Server::Engine, "engine_newSafe") == 4;
        if so_far {
            devnet.fault(Server::L2, Rule::always(Fault::Hang));
        }
        so_far
    })
    .await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_balanced(&devnet, 1);
    assert_eq!(devnet.reactor_calls().last().unwrap().params, serde_json::json!([12]));
    assert_eq!(ports.progress.lease().await.unwrap(), None);
}

#[tokio::test]
async fn g6_a_resume_that_hangs_ends_with_the_lease_kept_and_the_next_start_resumes() {
    let devnet = forked(2).await;
    devnet.fault(Server::Reactors, Rule::on("resume", Fault::Hang));
    let rig = Rig::with(&devnet, stopped).await;
    let ports = rig.ports.clone();
    let took = run_and_stop(rig, || devnet.calls(Server::Reactors, "resume") > 0).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(devnet.is_paused());
    assert!(ports.progress.lease().await.unwrap().is_some(), "the next start must know");
    devnet.heal(Server::Reactors);
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    let next = Rig::start(ports, settings).await;
    assert!(!devnet.is_paused(), "before the first poll");
    // What the first process had under way may still land: the lease goes after that (M5).
    next.worker.quiesce().idle(PATIENCE).await;
    assert!(!devnet.is_paused());
    assert_eq!(lease(&next).await, None);
    assert_eq!(devnet.reactor_calls().last().unwrap().params, serde_json::json!([16]));
}

#[tokio::test]
async fn g6_commands_that_hang_do_not_hold_the_exit() {
    let argv = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let folder = tempfile::tempdir().unwrap();
    let began = folder.path().join("began");
    let hangs = format!("touch {}; sleep 60", began.display());
    let hangs = ["sh", "-c", &hangs];
    for (pause, resume, healing) in [(hangs, ["true", "", ""], false), (["true", "", ""], hangs, true)] {
        let devnet = forked(2).await;
        devnet.refuse_unpaused_writes(false);
        let mut ports = devnet_ports(&devnet).await;
        let limit = Duration::from_secs(30);
        ports.reactors = Arc::new(CommandReactors::new(argv(&pause), argv(&resume), limit).unwrap());
        let mut settings = settings();
        settings.rollup = devnet.rollup();
        stopped(&mut settings);
        let rig = Rig::start(ports.clone(), settings).await;
        let seen = rig.worker.quiesce();
        let healed = || devnet.heads().safe.is_some_and(|s| s.number == L2Number::new(16));
        // With a hanging pause: once it is under way; else once all is written.
        let took = run_and_stop(rig, || if healing { healed() } else { began.exists() }).await;
        assert!(took < Duration::from_secs(10), "{took:?}");
        // A resume that did not happen, or a pause that may still: either way the next start resumes.
        assert!(ports.progress.lease().await.unwrap().is_some());
        assert!(!seen.is_degraded());
        if !healing {
            assert!(devnet.writes().is_empty());
        }
    }
}

#[tokio::test]
async fn g4_a_lease_found_at_start_is_resumed_before_the_first_poll() {
    let devnet = network(1, 8).await;
    let ports = devnet_ports(&devnet).await;
    let held = Lease { height: L2Number::new(3), since: 0 };
    ports.progress.set_lease(Some(held)).await.unwrap();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    let mut rig = Rig::start(ports, settings).await;
    assert_eq!((devnet.pauses(), devnet.resumes()), (0, 1));
    assert_eq!(devnet.reactor_calls()[0].params, serde_json::json!([8]), "from the head, not from the lease");
    // Verifying continues meanwhile.
    rig.settle().await;
    assert_eq!(rig.safe(), Some(8));
    // What the process that left it had under way may still land: resumed once more before the lease goes (M5).
    rig.worker.quiesce().idle(PATIENCE).await;
    assert_eq!(lease(&rig).await, None);
    assert_eq!((devnet.pauses(), devnet.resumes()), (0, 2));
}

#[tokio::test]
async fn m5_p5_a_pause_that_lands_after_the_restart_is_resumed_and_nothing_is_written_before() {
    let devnet = forked(2).await;
    let ports = devnet_ports(&devnet).await;
    ports.progress.set_lease(Some(Lease { height: L2Number::new(16), since: 0 })).await.unwrap();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    stopped(&mut settings);
    let mut rig = Rig::start(ports, settings).await;
    assert_eq!(devnet.resumes(), 1);
    devnet.pause_now();
    assert_eq!(rig.poll().await.unwrap_err().stall().reason(), Reason::ReactorsDegraded);
    assert!(devnet.writes().is_empty());
    assert_eq!(rig.safe(), Some(8), "verifying continues");
    rig.worker.quiesce().idle(PATIENCE).await;
    assert!(!devnet.is_paused());
    assert_eq!(lease(&rig).await, None);
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
    assert!(devnet.unpaused_writes().is_empty() && !devnet.is_paused());
}

#[tokio::test]
async fn g4_a_poll_that_is_dropped_under_the_pause_resumes_once() {
    let devnet = forked(2).await;
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Hang).after(2).times(1));
    let mut rig = Rig::with(&devnet, |s| {
        stopped(s);
        s.write_chunk = 1;
    })
    .await;
    assert!(tokio::time::timeout(Duration::from_secs(1), rig.poll()).await.is_err());
    rig.worker.quiesce().shutdown(Duration::from_secs(5)).await;
    assert_balanced(&devnet, 1);
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
    assert_like_the_sequencer(&devnet, 16);
}

#[tokio::test]
async fn g9_eleven_missing_batches_cost_one_pause_and_safe_moves_batch_by_batch() {
    let devnet = network(11, 0).await;
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), (1..=11).map(|index| (index, Case::FillGap)).collect::<Vec<_>>());
    assert_balanced(&devnet, 1);
    assert_eq!(devnet.written(), (1..=88).collect::<Vec<_>>());
    let mut safes: Vec<_> = devnet.moments().iter().filter_map(|m| m.safe.map(|s| s.number.get())).collect();
    safes.dedup();
    // morph-reth marks what it writes safe; after each batch the tag goes back to where it was, until the batch is verified.
    let marked = |n: u64| (n * 8..n * 8 + 8).chain([n * 8 + 8, n * 8]).collect::<Vec<_>>();
    let expected: Vec<u64> = match CLIENT.is_reth() {
        true => (0..11).flat_map(marked).chain([88]).collect(),
        false => (0..=11).map(|n| n * 8).collect(),
    };
    assert_eq!(safes, expected);
    assert_like_the_sequencer(&devnet, 88);
}

#[tokio::test]
async fn g10_what_a_heal_dropped_is_filled_in_the_same_poll_if_the_head_is_flat() {
    let devnet = network(11, 88).await;
    devnet.with(|w| w.fork_at(67, ForkShape::OtherTransaction).unwrap());
    let mut rig = Rig::on(&devnet).await;
    // The head must count as stopped before L1 shows anything.
    devnet.fault(Server::L1(0), Rule::always(Fault::Status(503, String::new())));
    for _ in 0..=WINDOW.as_secs() / STEP.as_secs() {
        assert!(rig.poll().await.is_err());
    }
    devnet.heal(Server::L1(0));
    devnet.clear_counts();
    let report = rig.poll().await.unwrap();
    let healed = [(9, Case::SelfHeal), (10, Case::FillGap), (11, Case::FillGap)];
    assert_eq!(cases(&report)[8..], healed);
    assert_eq!(rig.safe(), Some(88));
    assert_eq!(devnet.written(), (67..=88).collect::<Vec<_>>());
    assert_balanced(&devnet, 1);
    assert_like_the_sequencer(&devnet, 88);
}

#[tokio::test]
async fn g10_what_a_heal_dropped_is_left_to_a_living_chain() {
    let devnet = network(11, 87).await;
    devnet.with(|w| w.fork_at(67, ForkShape::OtherTransaction).unwrap());
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    devnet.fault(Server::L1(0), Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    devnet.with(|w| w.execute_to(88).unwrap());
    devnet.heal(Server::L1(0));
    let report = rig.poll().await.unwrap();
    assert_eq!(rig.worker.status().borrow().verdict, Some(HeadTrend::Alive));
    assert_eq!(cases(&report).last(), Some(&(9, Case::SelfHeal)));
    assert_eq!(reason(&report), Some(Reason::WaitingForBlocks));
    assert_eq!(devnet.written(), (67..=72).collect::<Vec<_>>());
    // Our own truncation is neither growth nor a restart.
    rig.poll().await.unwrap();
    let verdict = rig.worker.status().borrow().verdict;
    assert!(matches!(verdict, Some(HeadTrend::Unknown(_))), "{verdict:?}");
    devnet.with(World::sync);
    assert_eq!(cases(&rig.settle().await), [(10, Case::Consistent), (11, Case::Consistent)]);
    assert_balanced(&devnet, 1);
    assert_like_the_sequencer(&devnet, 88);
}

#[tokio::test]
async fn p5_what_needs_no_pause_happens_before_it() {
    // Nothing is paused for a blob that cannot be had.
    let devnet = forked(2).await;
    devnet.fault(Server::Beacon(0), Rule::always(Fault::Status(404, String::new())));
    let mut rig = Rig::with(&devnet, stopped).await;
    assert!(rig.poll().await.is_err());
    assert_eq!(devnet.calls(Server::Reactors, ""), 0);
    devnet.heal(Server::Beacon(0));
    // And the pause is over before finality and the last look at the tags.
    devnet.with(|w| w.mine(20));
    rig.settle().await;
    assert_balanced(&devnet, 1);
}

/// An engine with a bug.
struct PanicsOnWrite(Arc<dyn L2Engine>);

#[async_trait]
impl L2Engine for PanicsOnWrite {
    async fn view(&self, number: L2Number) -> PortResult<EngineView> {
        self.0.view(number).await
    }

    async fn write_blocks(&self, _: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped> {
        panic!("a bug in the middle of a pause")
    }

    async fn set_tags(&self, _: Option<B256>, _: Option<B256>) -> PortResult<()> {
        Ok(())
    }
}

#[tokio::test]
async fn g4_a_panic_of_the_worker_resumes_the_reactors_before_the_program_ends() {
    let devnet = guarded(CLIENT).await;
    devnet.with(|w| w.produce(8)).unwrap();
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    let engine = rig.ports.engine.take().unwrap();
    rig.ports.engine = Some(Arc::new(PanicsOnWrite(engine)));
    rig.restart().await;
    let Rig { worker, ports, .. } = rig;
    devnet.latency(Server::Reactors, Duration::from_millis(200));
    // A runtime that ends with the command, as the program's does: its remaining tasks are dropped.
    let program = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(async {
            let ended = contained(&worker.quiesce(), worker.run(CancellationToken::new())).await;
            (ended, ports.progress.lease().await.unwrap())
        });
        runtime.shutdown_background();
        ended
    });
    let (ended, lease) = tokio::task::spawn_blocking(|| program.join()).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err(), Panicked);
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    assert!(!devnet.is_paused());
    assert_eq!(lease, None);
}
