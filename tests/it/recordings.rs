//! `record` through the command line: what a fixture holds, what it never holds, and that it is whole (P6, P7, P10).

use std::path::{Path, PathBuf};
use std::process::Command;

use morph_deriver::adapters::fixture::Fixture;
use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::l1::Forward;
use serde_json::Value;

use crate::process::{cases, forked, recorded_to, replay, three_batches};
use crate::support::program::{Signal, Site, devnet};

/// A batch of a report: index, case, blocks, written ones.
type Case = (u64, String, u64, u64);

fn case(index: u64, case: &str, rewritten: u64) -> Case {
    (index, case.to_owned(), 4, rewritten)
}

/// Four batches of 4 blocks: the second one committed through another contract, the third and fourth reverted and
/// committed again, the third by `commitState` over the blobs of its first commit; the first one proved at last. Every
/// batch consumes an L1 message. Gives the L1 block below which everything was committed for the first time.
fn four_batches_with_a_history() -> (Devnet, u64) {
    let mut reverted_at = 0;
    let devnet = devnet(|w| {
        for index in 1..=4 {
            w.enqueue(1).unwrap();
            w.mine(1);
            w.build_planned(&BlockPlan { messages: 1, ..BlockPlan::default() }).unwrap();
            w.build(3).unwrap();
            let forward = (index == 2).then_some(Forward { outer_input: None });
            w.commit(BatchSpec { forward, ..BatchSpec::default() }).unwrap();
            w.mine(1);
        }
        w.revert(3).unwrap();
        w.mine(2);
        reverted_at = w.l1.head();
        w.recommit_state().unwrap();
        w.mine(1);
        w.commit(BatchSpec { last: Some(16), ..BatchSpec::default() }).unwrap();
        w.mine(1);
        w.finalize(1).unwrap();
        w.mine(80);
        w.sync();
    });
    (devnet, reverted_at)
}

/// A fixture that is replayed in every way.
struct Replays<'a> {
    fixture: &'a Path,
    /// Safe after the last batch.
    safe: Value,
}

impl Replays<'_> {
    /// Exit code and cases. No question may be without an answer.
    fn run(&self, args: &[&str]) -> (Option<i32>, Vec<Case>) {
        let (code, report) = replay(self.fixture, args);
        assert!(!report["reason"].as_str().unwrap_or_default().contains("no answer"), "{args:?}: {report}");
        if code == Some(0) {
            assert_eq!(report["safe"], self.safe, "{args:?}");
        }
        (code, cases(&report).into_iter().map(|(n, case, b, r)| (n, case.to_owned(), b, r)).collect())
    }

    /// The same under faults.
    fn with(&self, mode: &str, faults: &[&str]) -> (Option<i32>, Vec<Case>) {
        let mut args = vec!["--mode", mode];
        faults.iter().for_each(|fault| args.extend(["--fault", fault]));
        self.run(&args)
    }

    /// Every fault over the batches from `first` to 4.
    fn every_fault(&self, first: u64) {
        let all = |of: &[Case]| (Some(0), of[usize::try_from(first - 1).unwrap()..].to_vec());
        let consistent = |n| case(n, "consistent", 0);
        let equal = [1, 2, 3, 4].map(consistent);
        for finality in ["committed", "proven"] {
            assert_eq!(self.run(&["--finality", finality]), all(&equal), "{finality}");
        }
        assert_eq!(self.with("blob", &[]), all(&equal));
        let filled = [consistent(1), consistent(2), case(3, "fill-gap", 2), case(4, "fill-gap", 4)];
        assert_eq!(self.with("local", &["missing-tail=6"]), all(&filled), "stopped after a while");
        assert_eq!(self.with("blob", &["missing-tail=6", "stopped"]), all(&filled));
        assert_eq!(self.with("local", &["missing-tail=1000", "stopped"]).0, Some(0), "no block is there");
        let lowest = (first - 1) * 4 + 1;
        for (mode, fork) in [("local", lowest), ("blob", lowest), ("local", 12), ("local", 16)] {
            let (code, cases) = self.with(mode, &[&format!("fork-at={fork}"), "stopped"]);
            assert_eq!(code, Some(0), "{mode}: fork at {fork}: {cases:?}");
            let healed = cases.iter().find(|c| c.0 == (fork - 1) / 4 + 1).expect("its batch");
            assert_eq!(healed.1, "self-heal", "{mode}: fork at {fork}: {cases:?}");
        }
        let (code, waiting) = self.with("local", &["missing-tail=2", "alive"]);
        assert_eq!((code, waiting.last().map(|c| c.1.as_str())), (Some(4), Some("wait")));
    }
}

#[test]
fn c2_c7_one_fixture_with_a_revert_a_recommit_and_a_forwarded_commit_serves_every_fault() {
    let (devnet, _) = four_batches_with_a_history();
    let safe = serde_json::to_value(devnet.with(|w| w.expected(16))).unwrap();
    let site = Site::new(&devnet);
    let fixture = recorded_to(&site, devnet.with(|w| w.l1.head()));
    drop(devnet);
    let facts = Fixture::read(&fixture).unwrap().facts;
    assert!(!facts.last_finalized.at.is_empty(), "what is asked in the other meaning of finality");
    Replays { fixture: &fixture, safe }.every_fault(1);
}

/// Its L1 messages, the commits whose blobs are taken again, and the batch before lie below the range. L1 is read in narrow
/// pieces, and a replay that waits begins them elsewhere.
#[test]
fn c2_a_fixture_that_begins_in_the_middle_serves_every_fault() {
    let (devnet, from) = four_batches_with_a_history();
    let safe = serde_json::to_value(devnet.with(|w| w.expected(16))).unwrap();
    let mut site = Site::new(&devnet);
    site.set("l1.fetch_block_range", 5);
    let head = devnet.with(|w| w.l1.head());
    let (fixture, _) = record(&site, from, head);
    drop(devnet);
    Replays { fixture: &fixture, safe }.every_fault(3);
}

/// `record` of L1 blocks `from` to `to`, not started yet, and the folder that it writes.
fn recording(site: &Site, from: u64, to: u64) -> (Command, PathBuf) {
    let out = site.path().join("fixture");
    let mut command = site.command(&["record", "--from", &from.to_string(), "--to", &to.to_string()]);
    command.arg("--out").arg(&out);
    (command, out)
}

/// Records, and gives the folder and what was said on both streams.
fn record(site: &Site, from: u64, to: u64) -> (PathBuf, Vec<u8>) {
    let (mut command, out) = recording(site, from, to);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&said));
    (out, said)
}

/// The node that is read holds another chain: the flow stalls on its first fork, and what every batch takes is
/// recorded all the same.
#[test]
fn a_fixture_holds_the_blobs_of_every_batch_wherever_the_flow_stalls() {
    let devnet = forked();
    let mut site = Site::new(&devnet);
    let blobs = devnet.with(|w| w.batches.iter().flat_map(|b| &b.blobs).map(|b| b.hash).collect::<Vec<_>>());
    assert_eq!(blobs.len(), 3);
    let head = devnet.with(|w| w.l1.head());
    let (out, said) = record(&site, 0, head);
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("the flow stalls before the end") && said.contains("would-self-heal (batch 2)"), "{said}");
    let held: Vec<_> = Fixture::read(&out).unwrap().blobs.into_keys().collect();
    assert!(blobs.iter().all(|hash| held.contains(hash)), "{held:?}");
    // Healed by what L1 says, the blocks are not those that this node had: their roots are another chain's.
    let (code, report) = replay(&out, &["--fault", "stopped"]);
    assert_eq!((code, report["outcome"].as_str()), (Some(3), Some("diverged")), "{report}");

    // Without an L2 node the rest is recorded. There is nothing to replay it against.
    std::fs::remove_dir_all(&out).unwrap();
    site.unset("l2.eth");
    record(&site, 0, head);
    let fixture = Fixture::read(&out).unwrap();
    assert_eq!(fixture.l2, None);
    assert!(blobs.iter().all(|hash| fixture.blobs.contains_key(hash)));
    let output = crate::support::program::program().arg("replay").arg(&out).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("without an L2 node"));
}

/// Every byte of a fixture, decompressed, and the names of its files.
fn everything(dir: &Path, into: &mut Vec<u8>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        into.extend(path.file_name().unwrap().as_encoded_bytes());
        if path.is_dir() {
            everything(&path, into);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        into.extend(if path.extension().is_some_and(|e| e == "zst") {
            zstd::decode_all(&bytes[..]).unwrap()
        } else {
            bytes
        });
    }
}

#[test]
fn p10_no_url_and_no_credential_is_recorded() {
    let devnet = three_batches();
    let mut site = Site::new(&devnet);
    let with = |url: String| format!("{}/canary?key=canary", url.replace("http://", "http://u5er:canary@"));
    site.set("l1.rpc", vec![with(devnet.l1_url())])
        .set("l1.beacon", vec![devnet.beacon_url().replace("//", "//u5er:canary@")]);
    site.set("l2.eth", with(devnet.l2_url()));
    let (out, mut all) = record(&site, 0, 20);
    everything(&out, &mut all);
    let secret = const_hex::encode(devnet.jwt_secret());
    let port = devnet.l1_url().rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let host = format!("127.0.0.1:{port}");
    for word in ["canary", "u5er", "http", secret.as_str(), host.as_str()] {
        let found = all.windows(word.len()).position(|bytes| bytes == word.as_bytes());
        let around =
            found.map(|at| String::from_utf8_lossy(&all[at.saturating_sub(60)..(at + 60).min(all.len())]).into_owned());
        assert_eq!(around, None, "{word}");
    }
}

#[test]
fn p6_an_interrupted_recording_leaves_nothing_that_is_taken_for_a_fixture() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    for signal in [Signal::Interrupt, Signal::Term, Signal::Kill] {
        // In the middle of it: the beacon node hangs.
        devnet.fault(Server::Beacon(0), Rule::on("/blob", Fault::Hang));
        let before = devnet.calls(Server::Beacon(0), "/blob");
        let (command, out) = recording(&site, 0, 20);
        let mut run = site.start(command);
        run.until(|| devnet.calls(Server::Beacon(0), "/blob") > before);
        run.signal(signal);
        assert!(!run.end().success(), "{signal:?}");
        assert!(!out.exists(), "{signal:?}");
        devnet.heal(Server::Beacon(0));
    }
    // And once more, to the end.
    assert_eq!(replay(&recorded_to(&site, 20), &[]).0, Some(0));
    let names: Vec<_> = std::fs::read_dir(site.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("partial")), "{names:?}");
}

#[test]
fn p7_a_range_that_no_fixture_can_hold_is_refused() {
    let devnet = three_batches();
    let site = Site::new(&devnet);
    let refused = |to: u64, code: i32, words: &str| {
        let (mut command, out) = recording(&site, 0, to);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!out.exists());
    };
    refused(u64::MAX, 1, "more than 500000 L1 blocks");
    // L1 has not come so far.
    refused(10_000, 1, "L1 has no block 10000 yet");
}

/// A fixture of the first format is read as before.
#[test]
fn a_fixture_of_the_first_format_serves_every_fault() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/devnet-small");
    let text = std::fs::read_to_string(fixture.join("fixture.json")).unwrap();
    assert!(text.starts_with("{\n  \"format\": 1,"), "record another one for this test before this one is replaced");
    let end = serde_json::json!({
        "number": 72, "hash": "0xc7a1c2aabe6770560fdc5585ffb14253d99339d427a3edac55c2044531512491"
    });
    // The first batches are found as they are, then one as a case, then the rest is filled.
    let served = |mode: &str, faults: &[&str], equal: u64, healed: Option<u64>| {
        let args: Vec<_> = faults.iter().flat_map(|fault| ["--fault", fault]).collect();
        let (code, report) = replay(&fixture, &[&args[..], &["--mode", mode]].concat());
        let mut wanted: Vec<_> = (1..=equal).map(|n| (n, "consistent", 12, 0)).collect();
        wanted.extend(healed.map(|rewritten| (equal + 1, "self-heal", 12, rewritten)));
        let found = wanted.len() as u64;
        wanted.extend((found + 1..=6).map(|n| (n, "fill-gap", 12, 12)));
        assert_eq!((code, cases(&report)), (Some(0), wanted), "{mode} {faults:?}");
        assert_eq!((&report["safe"], &report["finalized"]), (&end, &end), "{mode} {faults:?}");
        assert_eq!((&report["outcome"], &report["reason"]), (&Value::from("verified"), &Value::Null));
    };
    served("local", &[], 6, None);
    served("blob", &[], 6, None);
    served("local", &["fork-at=7", "stopped"], 0, Some(6));
    served("blob", &["fork-at=25", "stopped"], 2, Some(12));
    served("local", &["missing-tail=1000", "stopped"], 0, None);
}
