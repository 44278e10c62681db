//! Audits: a range of batches verified once without an engine, and the reports of ranges joined.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use morph_deriver::adapters::reactors::NoReactors;
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::codec::calldata::{decode_commit, encode_commit};
use morph_deriver::decide::audit::{self, AuditEnd, AuditRange, AuditReport, Base, Verdict};
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::world::ForkShape;
use morph_deriver::flow::audit::{Audit, AuditStep};
use morph_deriver::flow::{Ports, Settings};
use morph_deriver::types::{B256, BatchIndex, Identity};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::program::{Signal, Site, devnet};
use crate::support::recorded::{L1_CHAIN_ID, L2_CHAIN_ID, RecordedNetwork, word};
use crate::support::recorded_l2::{Alter, RecordedL2};
use crate::support::{bytes, clients, hex_bytes, rig};

/// The history in one range, in two, and in five. It ends on batch 10.
const SPLITS: [&[(u64, Option<u64>)]; 3] = [
    &[(1, None)],
    &[(1, Some(5)), (6, None)],
    &[(1, Some(1)), (2, Some(4)), (5, Some(6)), (7, Some(9)), (10, Some(10))],
];

/// The recorded network beside an L2 node of its own. Its engine is there, and nobody may call it.
struct Recorded {
    network: RecordedNetwork,
    l2: RecordedL2,
    change: fn(&mut Settings),
}

impl Recorded {
    fn new(head: u64) -> Self {
        Self { network: RecordedNetwork::start(), l2: RecordedL2::start(head), change: |_| {} }
    }

    fn audit(&self, store: &Arc<SqliteStore>, from: u64, to: Option<u64>) -> Audit {
        let mut settings = Settings {
            rollup: clients::address(&self.network.contracts().0),
            observation_window: Duration::from_millis(100),
            poll_interval: Duration::from_millis(10),
            ..rig::settings()
        };
        (self.change)(&mut settings);
        let ports = Ports {
            l1: Arc::new(clients::l1(&self.network)),
            blobs: Arc::new(clients::beacon(&self.network)),
            l2: Arc::new(clients::l2(&self.l2)),
            engine: Some(Arc::new(clients::engine(&self.l2))),
            reactors: Arc::new(NoReactors),
            progress: store.clone(),
        };
        let (rollup, queue) = self.network.contracts();
        let identity = Identity {
            l1_chain_id: L1_CHAIN_ID,
            l2_chain_id: L2_CHAIN_ID,
            rollup: clients::address(&rollup),
            queue: clients::address(&queue),
            l2_genesis: self.network.recording().l2_hash(0),
        };
        let range = AuditRange { from: from.into(), to: to.map(Into::into) };
        Audit::new(ports, settings, store.clone(), identity, range)
    }

    /// One audit to its end, in a database of its own.
    async fn report(&self, from: u64, to: Option<u64>) -> (AuditEnd, AuditReport) {
        let store = Arc::new(SqliteStore::in_memory().await.unwrap());
        let audit = self.audit(&store, from, to);
        let end = audit.run(&mut |_| {}).await.unwrap();
        let report = audit.report(&end).await.unwrap();
        (end, report)
    }

    /// The history in each of the [`SPLITS`], each joined into one report.
    async fn in_every_split(&self) -> Vec<AuditReport> {
        let mut joined = Vec::new();
        for split in SPLITS {
            let mut reports = Vec::new();
            for (from, to) in split {
                let (end, report) = self.report(*from, *to).await;
                assert_eq!(end, AuditEnd::Done, "{from}..{to:?}");
                assert_eq!(report.base == Base::Genesis, *from == 1);
                reports.push((format!("{from}"), report));
            }
            joined.push(audit::merge(reports).unwrap_or_else(|refused| panic!("{split:?}: {refused:?}")));
        }
        assert_eq!(self.l2.engine.requests(), 0, "no engine is asked anything");
        joined
    }
}

#[tokio::test]
async fn the_recorded_history_is_verified_whole_and_in_ranges_with_one_verdict() {
    let recorded = Recorded::new(126);
    let joined = recorded.in_every_split().await;
    let whole = &joined[0];
    assert_eq!((whole.verdict, whole.finished), (Verdict::Verified, true));
    let counts = whole.counts;
    assert_eq!((counts.verified, counts.consistent, counts.blocks), (10, 10, 122));
    let blobs: usize = recorded.network.recording().standing.iter().map(|b| b.blob_hashes.len()).sum();
    assert!(counts.blobs >= blobs as u64, "{} blobs", counts.blobs);
    let (before, last) = (whole.before.unwrap(), whole.last.unwrap());
    assert_eq!((before.batch.get(), before.block.number.get()), (0, 0));
    assert_eq!((last.batch.get(), last.block.hash), (10, recorded.network.recording().l2_hash(122)));
    assert_eq!(last.hash, recorded.network.recording().standing[10].hash);
    assert!(joined.iter().all(|report| report == whole), "{joined:#?}");
}

#[tokio::test]
async fn p1_a_forked_chain_is_named_the_same_from_whichever_range() {
    let recording = RecordedNetwork::start().recording();
    for batch in [1, 4, 5, 6, 10] {
        let block = recording.standing[batch].first;
        let recorded = Recorded::new(126);
        recorded.l2.fork(block, &Alter::Timestamp);
        let joined = recorded.in_every_split().await;
        let whole = &joined[0];
        assert_eq!((whole.verdict, whole.finished), (Verdict::Diverged, true), "batch {batch}");
        let first = &whole.divergences[0];
        assert_eq!(first.batch.get(), batch as u64);
        assert_eq!(first.reason, Reason::WouldSelfHeal.code());
        assert_eq!(first.block.map(|n| n.get()), Some(block));
        // What stands on the fork has other roots: none of it counts as verified.
        let batches: Vec<_> = whole.divergences.iter().map(|d| d.batch.get()).collect();
        assert_eq!(batches, (batch as u64..=10).collect::<Vec<_>>());
        assert_eq!(whole.counts.verified, batch as u64 - 1);
        assert!(joined.iter().all(|report| report == whole), "batch {batch}: {joined:#?}");
    }
}

#[tokio::test]
async fn a_batch_that_does_not_bind_is_passed_by_the_header_that_the_next_one_carries() {
    let recorded = Recorded::new(126);
    recorded.network.edit(|recording| {
        let hash = hex_bytes(recording.standing[8].tx.unwrap());
        let input = &mut recording.transactions[&hash]["input"];
        let mut commit = decode_commit(&bytes(input.as_str().unwrap())).unwrap();
        commit.withdrawal_root = B256::repeat_byte(9);
        *input = json!(hex_bytes(encode_commit(&commit)));
    });
    let joined = recorded.in_every_split().await;
    let found: Vec<_> = joined[0].divergences.iter().map(|d| (d.batch.get(), d.reason.as_str())).collect();
    assert_eq!(found, [(8, Reason::Unbound.code())]);
    assert_eq!(joined[0].counts.verified, 9, "the others are verified");
    assert!(joined.iter().all(|report| *report == joined[0]), "{joined:#?}");
}

#[tokio::test]
async fn p6_ended_after_every_batch_and_begun_again_it_reports_the_same() {
    for (from, fork) in [(1, None), (1, Some(60)), (4, Some(60))] {
        let recorded = Recorded::new(126);
        if let Some(block) = fork {
            recorded.l2.fork(block, &Alter::Timestamp);
        }
        let (_, undisturbed) = recorded.report(from, Some(10)).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.sqlite");
        let mut runs = 0;
        let report = loop {
            let store = Arc::new(SqliteStore::open(&path).await.unwrap());
            let audit = recorded.audit(&store, from, Some(10));
            let stop = CancellationToken::new();
            let mut seen = |step| {
                if step != AuditStep::Polled {
                    stop.cancel();
                }
            };
            let end = stop.run_until_cancelled(audit.run(&mut seen)).await;
            let end = end.map_or(AuditEnd::Interrupted, Result::unwrap);
            let report = audit.report(&end).await.unwrap();
            store.close().await;
            runs += 1;
            assert!(runs < 30, "it does not get on: {report:#?}");
            if end == AuditEnd::Done {
                break report;
            }
            assert!(!report.finished);
        };
        assert!(runs > 1, "it was never interrupted");
        assert_eq!(report, undisturbed, "from {from}, fork {fork:?}");
        assert_eq!(recorded.l2.engine.requests(), 0);
    }
}

#[tokio::test]
async fn a13_without_l1s_old_states_the_start_is_found_in_the_logs() {
    let recorded = Recorded::new(126);
    let (_, by_state) = recorded.report(8, Some(9)).await;
    // Halving 37 blocks takes six requests.
    let calls = recorded.network.l1.count("eth_call");
    assert!(calls <= 20, "{calls} requests for states");
    recorded.network.l1.forget();
    recorded.network.set_archive(false);
    recorded.network.set_log_range_limit(Some(4));
    let (end, by_logs) = recorded.report(8, Some(9)).await;
    assert_eq!((end, &by_logs), (AuditEnd::Done, &by_state));
    let logs = recorded.network.l1.count("eth_getLogs");
    assert!(logs <= 60, "{logs} requests for logs");
}

#[tokio::test]
async fn a13_a_start_that_no_endpoint_shows_is_data_unavailable() {
    let recorded = Recorded::new(126);
    recorded.network.set_archive(false);
    let commit = "0x2c32d4ae151744d0bf0b9464a3e897a1d17ed2f1af71f7c9a75f12ce0d28238f";
    recorded.network.l1.rewrite("eth_getLogs", move |params, answer| {
        let topics = &params[0]["topics"];
        if topics[0].to_string().contains(commit) && topics[1].to_string().contains(&word(7)) {
            *answer = Ok(json!([]));
        }
    });
    let (end, report) = recorded.report(8, Some(9)).await;
    let AuditEnd::Stopped(stall) = end else { panic!("{end:?}") };
    assert_eq!((stall.reason(), stall.batch), (Reason::Gap, Some(BatchIndex::new(7))));
    assert_eq!((report.verdict, report.finished, report.before), (Verdict::Unavailable, false, None));
    assert!(audit::merge(vec![("it".to_owned(), report)]).is_err());
}

#[tokio::test]
async fn what_l1_or_the_node_does_not_have_is_data_unavailable() {
    // L1 has ten batches.
    let recorded = Recorded::new(126);
    for (from, to, missing) in [(9, Some(12), 11), (12, None, 11), (11, Some(11), 11)] {
        let (end, report) = recorded.report(from, to).await;
        assert_eq!(end, AuditEnd::NotCommitted(missing.into()), "{from}..{to:?}");
        assert_eq!((report.verdict, report.finished), (Verdict::Unavailable, false));
    }
    // L1 is read from a block on that lies above the first commits: not the whole history.
    let recorded = Recorded { change: |settings| settings.start = 16.into(), ..Recorded::new(126) };
    let (end, report) = recorded.report(1, None).await;
    let AuditEnd::Stopped(stall) = end else { panic!("{end:?}") };
    assert_eq!((stall.reason(), report.verdict, report.finished), (Reason::Gap, Verdict::Unavailable, false));
    // The node ends in the middle of batch 6, and stands still.
    let recorded = Recorded::new(100);
    let (end, report) = recorded.report(1, None).await;
    let AuditEnd::Stopped(stall) = end else { panic!("{end:?}") };
    assert_eq!(stall.reason(), Reason::WouldFillGap, "{stall}");
    assert_eq!((report.verdict, report.counts.would_fill_gap), (Verdict::Unavailable, 1));
    assert_eq!(recorded.l2.engine.requests(), 0);
    // The batch before the range is not there either.
    let (end, report) = recorded.report(9, None).await;
    let AuditEnd::Stopped(stall) = end else { panic!("{end:?}") };
    assert_eq!((stall.reason(), report.verdict), (Reason::WaitingForBlocks, Verdict::Unavailable));
}

/// Twelve batches of four blocks, and a configuration without an engine.
fn site(fork: Option<u64>) -> (Devnet, Site) {
    let devnet = devnet(|w| {
        for _ in 0..12 {
            w.produce(4).unwrap();
        }
        w.mine(4);
        w.sync();
        if let Some(block) = fork {
            w.fork_at(block, ForkShape::ExtraTransaction).unwrap();
        }
    });
    let mut site = Site::new(&devnet);
    site.unset("l2.engine").unset("l2.jwt_secret");
    (devnet, site)
}

/// Runs `audit` with `--json` and keeps what it printed in a file.
fn run(site: &Site, args: &[&str]) -> (Option<i32>, PathBuf, Value) {
    let output = site.command(&[&["audit", "--json"], args].concat()).output().unwrap();
    let path = site.path().join(format!("report-{}.json", args.join("")));
    std::fs::write(&path, &output.stdout).unwrap();
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), path, value)
}

fn merge(site: &Site, files: &[&Path]) -> (Option<i32>, String, Value) {
    let names = files.iter().map(|file| file.to_str().unwrap());
    let args: Vec<_> = ["audit", "--json", "--merge"].into_iter().chain(names).collect();
    let output = site.command(&args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said, serde_json::from_slice(&output.stdout).unwrap_or_default())
}

#[test]
fn the_program_audits_ranges_and_joins_their_reports() {
    let (devnet, site) = site(None);
    let (code, whole_path, whole) = run(&site, &[]);
    assert_eq!((code, whole["verdict"].as_str()), (Some(0), Some("verified")), "{whole}");
    assert_eq!((whole["counts"]["verified"].as_u64(), whole["counts"]["blocks"].as_u64()), (Some(12), Some(48)));
    let ranges: [&[&str]; 3] =
        [&["--to-batch", "5"], &["--from-batch", "6", "--to-batch", "9"], &["--from-batch", "10"]];
    let reports = ranges.map(|args| run(&site, args));
    assert!(reports.iter().all(|(code, ..)| *code == Some(0)), "{reports:?}");
    let [a, b, c] = [&reports[0].1, &reports[1].1, &reports[2].1].map(PathBuf::as_path);
    let (code, said, joined) = merge(&site, &[c, a, b]);
    assert_eq!((code, &joined), (Some(0), &whole), "{said}");

    let refused = |files: &[&Path], words: &[&str]| {
        let (code, said, printed) = merge(&site, files);
        assert_eq!((code, &printed), (Some(1), &Value::Null), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused(&[a, c], &["report---from-batch10.json", "batches 6 to 9", "no report"]);
    refused(&[a, b, c, b], &["batches 6 to 9", "earlier report too"]);
    refused(&[whole_path.as_path(), b], &["batches 6 to 12", "earlier report too"]);
    let damaged = site.path().join("damaged.json");
    let text = std::fs::read_to_string(b).unwrap();
    for (change, word) in [
        (text[..text.len() / 2].to_owned(), "damaged"),
        (text.replace("\"verified\": 4", "\"verified\": 3"), "damaged"),
        (text.replace("\"finished\": true", "\"finished\": false"), "not finished"),
        (text.replace("\"l2_chain_id\": ", "\"l2_chain_id\": 1"), "another network"),
        (text.replace("\"settled\": \"depth 0\"", "\"settled\": \"safe\""), "settled by"),
        (text.replace("\"format\": 1", "\"format\": 2"), "format is 2"),
    ] {
        assert_ne!(change, text, "{word}");
        std::fs::write(&damaged, change).unwrap();
        refused(&[a, &damaged, c], &["damaged.json", word]);
    }
    assert_eq!(devnet.calls(Server::Engine, ""), 0, "no engine is asked anything");
    assert!(devnet.reactor_calls().is_empty() && devnet.tag_calls().is_empty() && devnet.writes().is_empty());

    // A database belongs to its range; a worker's and an audit's are not exchanged.
    let database = site.path().join("store.audit-6-9.sqlite");
    assert!(database.exists());
    let output = site.command(&["audit", "--from-batch", "7", "--db", database.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("batches 6 to 9"), "{said}");
    let output = site.command(&["run", "--observe", "--store.path", database.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("is an audit's"), "{said}");
    assert_eq!(
        site.command(&["audit", "--from-batch", "7", "--to-batch", "6"]).output().unwrap().status.code(),
        Some(2)
    );
}

#[test]
fn a_divergence_exits_3_from_whichever_range_and_joined() {
    let (_devnet, site) = site(Some(18));
    let (code, _, whole) = run(&site, &[]);
    assert_eq!((code, whole["verdict"].as_str()), (Some(3), Some("diverged")), "{whole}");
    let first = &whole["divergences"][0];
    assert_eq!((first["batch"].as_u64(), first["reason"].as_str()), (Some(5), Some("would-self-heal")));
    let (first_code, a, _) = run(&site, &["--to-batch", "5"]);
    let (second_code, b, second) = run(&site, &["--from-batch", "6"]);
    let (clean_code, ..) = run(&site, &["--to-batch", "4"]);
    assert_eq!((first_code, second_code, clean_code), (Some(3), Some(3), Some(0)));
    assert_eq!(second["divergences"][0]["batch"], 6, "it stands on the fork");
    let (code, said, joined) = merge(&site, &[&b, &a]);
    assert_eq!((code, &joined), (Some(3), &whole), "{said}");
    // For people: a table that names the batch.
    let output = site.command(&["audit", "--merge", a.to_str().unwrap(), b.to_str().unwrap()]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("diverged") && printed.contains("would-self-heal"), "{printed}");
}

#[test]
fn p6_killed_and_interrupted_in_the_middle_it_goes_on_to_the_same_report() {
    let (devnet, site) = site(Some(30));
    let (_, _, undisturbed) = run(&site, &["--from-batch", "2", "--to-batch", "12"]);
    let database = site.path().join("again.sqlite");
    let args = ["audit", "--json", "--from-batch", "2", "--to-batch", "12", "--db", database.to_str().unwrap()];
    devnet.latency(Server::L2, Duration::from_millis(40));
    devnet.latency(Server::L1(0), Duration::from_millis(40));
    for (signal, log) in
        [(Signal::Kill, "batch verified"), (Signal::Interrupt, "contradicts"), (Signal::Term, "started")]
    {
        let asked = devnet.calls(Server::L2, "");
        let mut run = site.start(site.command(&args));
        if log == "started" {
            run.until(|| devnet.calls(Server::L2, "") > asked);
        } else {
            run.until_log(log);
        }
        run.signal(signal);
        let status = run.end();
        if matches!(signal, Signal::Kill) {
            assert_eq!(status.code(), None);
            continue;
        }
        let report: Value = serde_json::from_str(&run.out()).unwrap_or_else(|e| panic!("{e}: {}", run.log()));
        assert_eq!((report["finished"].as_bool(), report["stopped"].is_null()), (Some(false), true), "{report}");
    }
    devnet.latency(Server::L2, Duration::ZERO);
    devnet.latency(Server::L1(0), Duration::ZERO);
    let output = site.command(&args).output().unwrap();
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said()));
    assert_eq!((output.status.code(), report), (Some(3), undisturbed));
    assert_eq!(devnet.calls(Server::Engine, ""), 0);
}

/// A batch was committed, reverted, and committed again with the same hash far above. It diverges once.
#[tokio::test]
async fn c2_a_divergent_batch_that_was_committed_twice_is_passed_by_its_second_commit() {
    let devnet = crate::finality_flow::network(2).await;
    devnet.with(|w| {
        w.mine(30);
        w.revert(2).unwrap();
        w.mine(30);
        w.recommit_state().unwrap();
        w.mine(20);
        assert_eq!(w.batches[1].index, 2);
        w.sync();
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
    });
    let store = Arc::new(SqliteStore::in_memory().await.unwrap());
    let ports = Ports { progress: store.clone(), ..rig::devnet_ports(&devnet).await };
    let settings = Settings {
        rollup: devnet.rollup(),
        fetch_range: 4,
        poll_interval: Duration::from_millis(10),
        ..rig::settings()
    };
    let identity = Identity {
        l1_chain_id: devnet.with(|w| w.l1.config.chain_id),
        l2_chain_id: devnet.with(|w| w.sequencer.node.chain_id()),
        rollup: devnet.rollup(),
        queue: devnet.queue(),
        l2_genesis: devnet.l2_genesis(),
    };
    let range = AuditRange { from: 1.into(), to: Some(2.into()) };
    let audit = Audit::new(ports, settings, store, identity, range);
    let mut ignored = |_: AuditStep| {};
    let run = audit.run(&mut ignored);
    let end = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it never ends").unwrap();
    assert_eq!(end, AuditEnd::Done);
    let report = audit.report(&end).await.unwrap();
    assert_eq!((report.verdict, report.finished, report.counts.verified), (Verdict::Diverged, true, 1));
    assert_eq!(report.divergences.iter().map(|d| d.batch.get()).collect::<Vec<_>>(), [2]);
}
