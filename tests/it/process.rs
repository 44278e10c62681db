//! The whole program as a process: `run` through a restart, `record` and `replay` with their reports and exit codes,
//! and the end on SIGTERM whatever hangs (P4).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use morph_deriver::adapters::fixture::Fixture;
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::world::ForkShape;
use morph_deriver::ports::LeaseStore as _;
use morph_deriver::types::Lease;
use serde_json::Value;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::support::program::{Signal, Site, devnet, program};
use crate::support::servers;

/// What P4 promises from SIGTERM to the end.
const SHUTDOWN: Duration = Duration::from_secs(10);

fn safe(devnet: &Devnet) -> Option<u64> {
    devnet.heads().safe.map(|tag| tag.number.get())
}

fn paused(devnet: &Devnet) -> bool {
    devnet.is_paused()
}

/// How often each batch was verified, by the log's own lines.
fn verified(log: &str) -> BTreeMap<u64, u32> {
    let mut times = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("batch verified")) {
        let index = line.split("batch=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        *times.entry(index.parse().unwrap()).or_default() += 1;
    }
    times
}

#[test]
fn p6_thirty_batches_through_a_sigterm_and_a_restart_and_none_is_verified_twice() {
    let devnet = devnet(|w| {
        for _ in 0..3 {
            w.produce(4).unwrap();
        }
        w.sync();
    });
    let site = Site::new(&devnet);
    let produce = |until: usize| {
        devnet.with(|w| {
            while w.batches.len() < until {
                w.produce(4).unwrap();
                w.sync();
            }
        });
    };
    let mut first = site.run();
    first.until(|| safe(&devnet).is_some_and(|s| s >= 12));
    produce(15);
    // In the middle: some of the new batches are verified, others are not yet.
    first.until(|| safe(&devnet).is_some_and(|s| s >= 24));
    first.stop();
    let between = verified(&first.log());
    produce(30);
    let mut second = site.run();
    let wanted = devnet.with(|w| w.expected(120));
    second.until(|| devnet.heads().safe == wanted);
    second.stop();

    let mut times = between.clone();
    for (batch, n) in verified(&second.log()) {
        *times.entry(batch).or_default() += n;
    }
    assert!(times.values().all(|n| *n == 1), "no batch twice: {times:?}");
    // A batch that was stored as the first run received the signal may be missing from its log.
    let untold = (1..=30).filter(|batch| !times.contains_key(batch)).count();
    assert!(untold <= 1, "{untold} batches are missing from the log: {times:?}");
    assert!(!between.is_empty() && between.len() < 30);
    let stored = site.stored();
    assert_eq!(stored.safe, wanted);
    assert_eq!(site.batches().len(), 31, "genesis and thirty batches");
    assert!(devnet.writes().is_empty());
    assert!(devnet.moments().iter().all(morph_deriver::devnet::node::Moment::is_ordered));
}

pub fn replay(fixture: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let output = program().arg("replay").arg(fixture).arg("--json").args(more).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

pub fn cases(report: &Value) -> Vec<(u64, &str, u64, u64)> {
    let of = |b: &'_ Value, key: &str| b[key].as_u64().unwrap();
    let batches = report["batches"].as_array().unwrap();
    batches.iter().map(|b| (of(b, "index"), b["case"].as_str().unwrap(), of(b, "blocks"), of(b, "rewritten"))).collect()
}

/// A devnet of three batches of 4 blocks, recorded through the command line into `out`.
fn recorded(site: &Site) -> std::path::PathBuf {
    recorded_to(site, 20)
}

/// L1 blocks 0 to `to`, recorded through the command line.
pub fn recorded_to(site: &Site, to: u64) -> std::path::PathBuf {
    let out = site.path().join("fixture");
    let mut command = site.command(&["record", "--from", "0", "--to", &to.to_string()]);
    let output = command.arg("--out").arg(&out).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

pub fn three_batches() -> Devnet {
    devnet(|w| {
        for _ in 0..3 {
            w.produce(4).unwrap();
        }
        w.mine(20);
        w.sync();
    })
}

#[test]
fn record_then_replay_gives_the_heads_of_the_running_worker() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    let fixture = recorded(&site);
    let (code, report) = replay(&fixture, &[]);
    assert_eq!(code, Some(0));
    assert_eq!(keys(&report), ["batches", "finalized", "fixture", "outcome", "reason", "safe"]);
    assert_eq!(keys(&report["batches"][0]), ["blocks", "case", "index", "rewritten"]);
    assert_eq!(keys(&report["safe"]), ["hash", "number"]);
    assert_eq!(keys(&report["finalized"]), ["hash", "number"]);
    assert_eq!(report["outcome"], "verified");
    assert_eq!(report["reason"], Value::Null);
    assert_eq!(report["fixture"], "fixture");
    let consistent = |n| (n, "consistent", 4, 0);
    assert_eq!(cases(&report), [consistent(1), consistent(2), consistent(3)]);

    let mut run = site.run();
    run.until(|| safe(&devnet) == Some(12) && devnet.heads().finalized.is_some());
    run.stop();
    let heads = devnet.heads();
    assert_eq!(report["safe"], serde_json::to_value(heads.safe).unwrap());
    assert_eq!(report["safe"]["number"], 12);
    // The running worker has seen L1 beyond the recorded range, which can only finalize more.
    assert!(report["finalized"]["number"].as_u64() <= heads.finalized.map(|f| f.number.get()));
}

#[test]
fn one_fixture_serves_all_four_cases() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    let fixture = recorded(&site);
    let consistent = |n| (n, "consistent", 4, 0);

    let (code, report) = replay(&fixture, &["--mode", "blob"]);
    assert_eq!((code, cases(&report)), (Some(0), vec![consistent(1), consistent(2), consistent(3)]));

    let (code, report) = replay(&fixture, &["--fault", "missing-tail=6", "--fault", "stopped"]);
    let filled = [consistent(1), (2, "fill-gap", 4, 2), (3, "fill-gap", 4, 4)];
    assert_eq!((code, cases(&report)), (Some(0), filled.to_vec()));
    assert_eq!(report["safe"]["number"], 12);

    let (code, report) = replay(&fixture, &["--fault", "fork-at=7", "--fault", "stopped"]);
    let healed = [consistent(1), (2, "self-heal", 4, 2), (3, "fill-gap", 4, 4)];
    assert_eq!((code, cases(&report)), (Some(0), healed.to_vec()));

    let (code, report) = replay(&fixture, &["--fault", "missing-tail=2", "--fault", "alive"]);
    assert_eq!((code, cases(&report)), (Some(4), vec![consistent(1), consistent(2), (3, "wait", 4, 0)]));
    assert_eq!(report["outcome"], "incomplete");
    assert!(report["reason"].as_str().unwrap().contains("waiting_for_blocks"), "{}", report["reason"]);
    assert_eq!(report["safe"]["number"], 8, "safe stays before the batch that is waited for");
}

#[test]
fn a_root_that_differs_is_a_divergence_with_exit_code_3() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    let fixture = recorded(&site);
    // The recorded chain says another withdrawal root at the end of batch 2 than its calldata.
    let mut changed = Fixture::read(&fixture).unwrap();
    let roots = &mut changed.l2.as_mut().unwrap().message_roots;
    *roots.get_mut(&8.into()).expect("a root at the end of batch 2") = morph_deriver::types::keccak(b"another");
    let copy = site.path().join("copy");
    changed.write(&copy).unwrap();
    let (code, report) = replay(&copy, &[]);
    assert_eq!(code, Some(3), "{report}");
    assert_eq!(report["outcome"], "diverged");
    assert!(report["reason"].as_str().unwrap().contains("withdrawal_root"), "{}", report["reason"]);
    assert_eq!(report["safe"]["number"], 4, "safe does not pass the batch that differs");
    assert_eq!(cases(&report), [(1, "consistent", 4, 0)]);
}

#[test]
fn a_question_without_an_answer_is_named_with_exit_code_4() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    let fixture = recorded(&site);
    let blobs = fixture.join("blobs");
    for file in std::fs::read_dir(&blobs).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    // Consistent blocks need no blob; a missing one does.
    assert_eq!(replay(&fixture, &[]).0, Some(0));
    let (code, report) = replay(&fixture, &["--fault", "missing-tail=2", "--fault", "stopped"]);
    assert_eq!(code, Some(4), "{report}");
    assert_eq!(report["outcome"], "incomplete");
    let hash = devnet.with(|w| format!("{:?}", w.batches[2].blobs[0].hash));
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains(&hash), "the reason names the blob {hash}: {reason}");
}

/// A local node with a fork in batch 2 of 3: the worker has to pause and write.
pub fn forked() -> Devnet {
    devnet(|w| {
        for _ in 0..3 {
            w.produce(4).unwrap();
        }
        w.sync();
        w.fork_at(6, ForkShape::ExtraTransaction).unwrap();
    })
}

#[test]
fn g7_sigterm_while_the_l2_node_hangs_ends_in_time() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    let mut run = site.run();
    run.until(|| safe(&devnet) == Some(12));
    devnet.fault(Server::L2, Rule::always(Fault::Hang));
    let before = devnet.http_requests(Server::L2);
    run.until(|| devnet.http_requests(Server::L2) > before);
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
}

#[test]
fn a4_sigterm_while_l1_hangs_ends_in_time() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    // Hanging from the first question on: the network cannot even be checked.
    devnet.fault(Server::L1(0), Rule::always(Fault::Hang));
    let mut run = site.run();
    run.until(|| devnet.http_requests(Server::L1(0)) > 0);
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
    devnet.heal(Server::L1(0));
    // And in the middle of a poll.
    let mut run = site.run();
    run.until(|| safe(&devnet) == Some(12));
    devnet.fault(Server::L1(0), Rule::always(Fault::Hang));
    let before = devnet.http_requests(Server::L1(0));
    run.until(|| devnet.http_requests(Server::L1(0)) > before);
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
}

#[test]
fn g6_sigterm_while_a_write_hangs_resumes_the_reactors_before_the_end() {
    let devnet = forked();
    let site = Site::new(&devnet);
    devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Hang));
    let mut run = site.run();
    run.until(|| devnet.calls(Server::Engine, "engine_newSafeL2Block") > 0);
    assert!(paused(&devnet), "the write is made inside a pause");
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
    assert!(!paused(&devnet), "{}", run.log());
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    assert_eq!(site.stored().lease, None);
    // The next start has nothing to resume and heals.
    devnet.heal(Server::Engine);
    let mut run = site.run();
    run.until(|| safe(&devnet) == Some(12));
    run.stop();
    assert_eq!(devnet.pauses(), devnet.resumes());
    assert!(devnet.unpaused_writes().is_empty());
}

#[test]
fn g6_sigterm_while_the_reactor_command_hangs_keeps_the_lease_and_says_so() {
    let devnet = forked();
    let mut site = Site::new(&devnet);
    let noted = site.path().join("resumed");
    let resume = site.path().join("resume.sh");
    std::fs::write(&resume, "sleep 60\n").unwrap();
    site.replace(
        "reactors",
        &format!(
            "kind = \"command\"\npause_command = [\"true\"]\nresume_command = [\"sh\", \"{}\", \"{{height}}\"]\n",
            resume.display()
        ),
    );
    devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Hang));
    let mut run = site.run();
    run.until(|| devnet.calls(Server::Engine, "engine_newSafeL2Block") > 0);
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
    assert!(run.log().contains("the lease stays stored"), "{}", run.log());
    assert!(site.stored().lease.is_some());
    // The next start resumes before anything else, and hangs in it: it too ends in time.
    let mut run = site.run();
    run.until_log("resuming them first");
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
    assert!(run.log().contains("lease stays stored"), "{}", run.log());
    assert!(site.stored().lease.is_some());
    // Once the command works, the next start resumes first, and at the node's head.
    std::fs::write(&resume, format!("echo $1 >> {}\n", noted.display())).unwrap();
    site.set("reactors.timeout", "3s").set("reactors.head_still", "100ms");
    // The rewrite continues as soon as the lease is gone; it must end, or its own lease would hide that the old one went.
    devnet.heal(Server::Engine);
    let mut run = site.run();
    let noted = || std::fs::read_to_string(&noted).unwrap_or_default();
    run.until(|| noted() == "12\n");
    // And once more when what the first two had under way can land no more: only then does the lease go (M5).
    assert!(site.stored().lease.is_some());
    run.until(|| noted().starts_with("12\n12\n") && site.stored().lease.is_none());
    run.stop();
}

#[test]
fn g6_sigterm_while_the_pause_command_hangs_undoes_the_pause_and_keeps_its_lease() {
    let devnet = forked();
    let mut site = Site::new(&devnet);
    let began = site.path().join("began");
    let noted = site.path().join("resumed");
    site.replace(
        "reactors",
        &format!(
            "kind = \"command\"\npause_command = [\"sh\", \"-c\", \"touch {}; sleep 60\"]\n\
             resume_command = [\"sh\", \"-c\", \"echo x >> {}\"]\n",
            began.display(),
            noted.display()
        ),
    );
    let mut run = site.run();
    run.until(|| began.exists());
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
    assert_eq!(std::fs::read_to_string(&noted).unwrap(), "x\n", "exactly one resume");
    // What the killed command had set going may still come: the next start resumes once more.
    assert!(run.log().contains("the next start resumes once more"), "{}", run.log());
    assert!(site.stored().lease.is_some());
    assert!(devnet.writes().is_empty());
}

/// Commands for the reactors: the pause survives its caller and takes effect `late` seconds after it began.
/// Gives the files that exist once it began, while it is paused, and ever since the pause took effect.
fn late_commands(site: &mut Site, late: u32) -> (PathBuf, PathBuf, PathBuf) {
    let file = |name: &str| site.path().join(name);
    let (began, paused, landed) = (file("began"), file("PAUSED"), file("landed"));
    let table = format!(
        "kind = \"command\"\ntimeout = \"{}s\"\nhead_still = \"100ms\"\n\
         pause_command = [\"sh\", \"-c\", \"touch {}; (sleep {late}; touch {} {}) & sleep 60\"]\n\
         resume_command = [\"sh\", \"-c\", \"rm -f {}; echo x >> {}\"]\n",
        late + 2,
        began.display(),
        paused.display(),
        landed.display(),
        paused.display(),
        file("resumed").display(),
    );
    site.replace("reactors", &table);
    (began, paused, landed)
}

#[test]
fn m5_p5_a_pause_that_lands_after_the_process_was_ended_and_restarted_does_not_stay() {
    std::thread::scope(|scope| {
        for signal in [Signal::Term, Signal::Kill] {
            scope.spawn(move || {
                let devnet = forked();
                let mut site = Site::new(&devnet);
                let (began, paused, landed) = late_commands(&mut site, 3);
                let mut run = site.run();
                run.until(|| began.exists());
                run.signal(signal);
                run.end();
                devnet.with(morph_deriver::devnet::world::World::sync);
                // Restarted at once, with nothing left to write.
                let mut run = site.run();
                run.until(|| landed.exists() || site.stored().lease.is_none());
                assert!(landed.exists(), "{signal:?}: the lease went before the pause landed");
                run.until(|| site.stored().lease.is_none());
                run.stop();
                assert!(!paused.exists(), "{signal:?}: paused for ever\n{}", run.log());
            });
        }
    });
}

#[test]
fn m6_p5_a_write_that_lands_after_the_process_was_killed_and_restarted_lands_inside_the_pause() {
    let devnet = forked();
    let mut site = Site::new(&devnet);
    site.set("reactors.timeout", "1s").set("reactors.head_still", "4s");
    devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Late(Duration::from_secs(2))).times(1));
    let mut run = site.run();
    run.until(|| devnet.calls(Server::Engine, "engine_newSafeL2Block") > 0);
    run.signal(Signal::Kill);
    run.end();
    devnet.heal(Server::Engine);
    let mut run = site.run();
    run.until(|| site.stored().lease.is_none() && safe(&devnet) == Some(12));
    run.stop();
    assert!(!devnet.writes().is_empty());
    assert!(devnet.unpaused_writes().is_empty(), "{:?}\n{}", devnet.unpaused_writes(), run.log());
    assert!(!devnet.is_paused());
}

#[test]
fn m11_observing_keeps_a_pause_that_was_left_and_only_a_run_with_reactors_or_the_operator_ends_it() {
    let devnet = forked();
    let mut site = Site::new(&devnet);
    site.set("reactors.timeout", "500ms").set("reactors.head_still", "100ms");
    devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Hang));
    let mut run = site.run();
    run.until(|| devnet.calls(Server::Engine, "engine_newSafeL2Block") > 0);
    run.signal(Signal::Kill);
    run.end();
    assert!(paused(&devnet) && site.stored().lease.is_some());

    let mut run = site.start(site.command(&["run", "--observe"]));
    run.until_log("pause_left_over");
    run.until_log("would-self-heal");
    run.stop();
    assert!(paused(&devnet) && site.stored().lease.is_some());
    // Only a configuration without reactors may drop a pause.
    let mut run = site.start(site.command(&["run", "--reactors.forget-pause"]));
    assert_eq!(run.end().code(), Some(2));
    assert!(site.stored().lease.is_some());

    devnet.heal(Server::Engine);
    let mut run = site.run();
    run.until(|| safe(&devnet) == Some(12) && !paused(&devnet) && site.stored().lease.is_none());
    run.stop();

    // The consensus node is gone for good.
    servers().block_on(async {
        let store = SqliteStore::open(&site.database()).await.unwrap();
        store.set_lease(Some(Lease { height: 5.into(), since: 0 })).await.unwrap();
        store.close().await;
    });
    site.replace("reactors", "kind = \"none\"\n");
    let mut run = site.run();
    run.until_log("pause_left_over");
    run.stop();
    assert!(site.stored().lease.is_some());
    let mut run = site.start(site.command(&["run", "--reactors.forget-pause"]));
    run.until_log("started");
    run.stop();
    assert!(run.log().contains("dropping the pause"), "{}", run.log());
    assert_eq!(site.stored().lease, None);
}

#[test]
fn m22_p4_sigterm_while_the_database_hangs_ends_in_time() {
    let devnet = forked();
    let mut site = Site::new(&devnet);
    site.set("reactors.head_still", "100ms");
    devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Hang));
    let mut run = site.run();
    run.until(|| devnet.calls(Server::Engine, "engine_newSafeL2Block") > 0);
    // Another program holds the database: the lease cannot be dropped after the resume.
    let mut held = servers().block_on(async {
        let file = SqliteConnectOptions::new().filename(site.database());
        let mut held = SqliteConnection::connect_with(&file).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut held).await.unwrap();
        held
    });
    let took = run.stop();
    assert!(took < SHUTDOWN, "{took:?}");
    servers().block_on(async {
        sqlx::query("ROLLBACK").execute(&mut held).await.unwrap();
        held.close().await.unwrap();
    });
    assert!(!paused(&devnet));
    assert!(site.stored().lease.is_some());
}
