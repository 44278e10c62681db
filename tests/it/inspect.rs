//! `inspect` as a shell sees it: real blobs against what an independent decoder found in them, the sequencer's
//! compressor, a batch of the devnet, and files that are none.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::types::Blob;
use serde_json::{Value, json};

use crate::support::vectors;

pub fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_morph-deriver"));
    for (name, _) in std::env::vars() {
        if name.starts_with("MORPH_") {
            program.env_remove(name);
        }
    }
    program.current_dir(std::env::temp_dir());
    program
}

pub fn json_of(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn blob_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn real_blobs_hold_what_an_independent_decoder_found() {
    let vectors = vectors();
    let expected = read_json(&vectors.join("blobs/expected.json"));
    let batches = expected.as_object().unwrap();
    assert_eq!(batches.len(), 3);
    for (name, expected) in batches {
        let files = blob_files(&vectors.join("blobs").join(name));
        let mut report = json_of(&program().args(["inspect", "--json", "--blob"]).args(&files).output().unwrap());
        let identical = report.as_object_mut().unwrap().remove("reencoded_identical");
        assert_eq!(identical, Some(json!(true)), "{name}");
        assert_eq!(&report, expected, "{name}");
        // The same with the last block given, and from binary files.
        let folder = tempfile::tempdir().unwrap();
        let mut binary = program();
        binary.args(["inspect", "--json", "--last-block", &expected["last_block"].to_string()]);
        for (place, file) in files.iter().enumerate() {
            let text = std::fs::read_to_string(file).unwrap();
            let path = folder.path().join(format!("{place}.bin"));
            std::fs::write(&path, const_hex::decode(text.trim().trim_start_matches("0x")).unwrap()).unwrap();
            binary.arg("--blob").arg(path);
        }
        let report = json_of(&binary.output().unwrap());
        assert_eq!(report["payload_keccak"], expected["payload_keccak"], "{name}");
        assert_eq!(report["block_contexts_in_payload"], expected["block_contexts_in_payload"], "{name}");
    }
}

#[test]
fn blobs_of_another_batch_order_or_end_are_refused() {
    let vectors = vectors();
    let mut files = blob_files(&vectors.join("blobs/batch-54334"));
    files.reverse();
    let output = program().args(["inspect", "--blob"]).args(&files).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    files.reverse();
    // One block less than the payload holds: its context is then taken for a transaction.
    let short = program().args(["inspect", "--last-block=23496976", "--blob"]).args(&files).output().unwrap();
    assert_eq!(short.status.code(), Some(1));
    let below = program().args(["inspect", "--last-block=5", "--blob"]).args(&files).output().unwrap();
    assert_eq!(below.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&below.stderr).contains("above block 5"));
}

#[test]
fn a_table_for_people_says_the_same() {
    let vectors = vectors();
    let files = blob_files(&vectors.join("blobs/mainnet-47561"));
    let output = program().args(["inspect", "--blob"]).args(&files).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0));
    for part in ["19616916", "19617515", "legacy: 58", "reencoded identical", "yes"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// Three of them through the shell, each of which loads the trusted setup; all of them at the same time as `inspect` itself.
#[test]
fn payloads_become_the_sequencers_frames() {
    let vectors = vectors();
    let folder = vectors.join("encoder");
    let expected = read_json(&folder.join("expected.json"));
    let out = tempfile::tempdir().unwrap();
    let frame = out.path().join("frame");
    for (name, slow) in [("02", false), ("10", true), ("12", true)] {
        let row = expected.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
        let mut command = program();
        command.args(["inspect", "--json", "--payload"]).arg(folder.join(format!("{name}.payload")));
        let report = json_of(&command.arg("--frame").arg(&frame).output().unwrap());
        for key in ["payload_bytes", "payload_sha256", "frame_bytes", "frame_sha256"] {
            assert_eq!(report[key], row[key], "{name}: {key}");
        }
        assert_eq!(std::fs::read(&frame).unwrap(), std::fs::read(folder.join(format!("{name}.frame"))).unwrap());
        let blobs = usize::try_from(row["frame_bytes"].as_u64().unwrap()).unwrap().div_ceil(126_976);
        assert_eq!(report["blobs"], blobs, "{name}");
        assert_eq!(report["versioned_hashes"].as_array().unwrap().len(), blobs, "{name}");
        assert_eq!(report["slow_path"], slow, "{name}");
    }
}

/// A payload's versioned hashes are those of the blobs that it came from.
#[test]
fn a_batchs_payload_gives_its_own_versioned_hashes() {
    let vectors = vectors();
    let expected = read_json(&vectors.join("blobs/expected.json"));
    let folder = tempfile::tempdir().unwrap();
    for name in ["batch-54334", "batch-55157"] {
        let blobs: Vec<Blob> = blob_files(&vectors.join("blobs").join(name))
            .iter()
            .map(|path| {
                Blob::new(const_hex::decode(&std::fs::read_to_string(path).unwrap().trim()[2..]).unwrap()).unwrap()
            })
            .collect();
        let data = morph_deriver::codec::blob::unpack(&blobs).unwrap();
        let payload = morph_deriver::codec::frame::decode(&data, 1 << 24).unwrap().payload;
        let path = folder.path().join(name);
        std::fs::write(&path, payload).unwrap();
        let report = json_of(&program().args(["inspect", "--json", "--payload"]).arg(&path).output().unwrap());
        assert_eq!(report["versioned_hashes"], expected[name]["versioned_hashes"]);
    }
}

#[test]
fn f1_malformed_files_fail_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut high = vec![0_u8; 131_072];
    high[64] = 7;
    let table: &[(&str, &str, Vec<u8>, &str)] = &[
        ("--blob", "empty", Vec::new(), "a blob has 131072 bytes"),
        ("--blob", "short", b"0x00ff".to_vec(), "a blob has 131072 bytes, not 2"),
        ("--blob", "text", b"hello".to_vec(), "neither 131072 bytes nor the same in hex"),
        ("--blob", "long", vec![b'0'; 300_000], "longer than"),
        ("--blob", "high", high, "field element 2 of blob 0 begins with 0x07"),
        ("--blob", "zeros", vec![0; 131_072], "error:"),
        ("--payload", "nothing", Vec::new(), "the payload is empty"),
    ];
    for (flag, name, bytes, reason) in table {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let output = program().args(["inspect", flag]).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains(reason) && output.stdout.is_empty(), "{name}: {text}");
    }
    let missing = program().args(["inspect", "--blob", "/does/not/exist"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn k7_one_subject_and_only_one() {
    let table: &[&[&str]] = &[
        &["inspect"],
        &["inspect", "--index=1", "--blob=x"],
        &["inspect", "--index=1", "--payload=x"],
        &["inspect", "--tx=0x12"],
        &["inspect", "--blob=x", "--frame=y"],
        &["inspect", "--index=1", "--last-block=4"],
        // No L1 is configured.
        &["inspect", "--index=1"],
    ];
    for args in table {
        assert_eq!(program().args(*args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}

/// The flags that point a command at `devnet`.
pub fn flags(devnet: &Devnet) -> Vec<String> {
    vec![
        format!("--l1.rpc={}", devnet.l1_url()),
        format!("--l1.beacon={}", devnet.beacon_url()),
        "--l1.chain-id=900".to_owned(),
        format!("--l1.rollup={:?}", devnet.rollup()),
        format!("--l1.queue={:?}", devnet.queue()),
        "--l1.start-block=0".to_owned(),
        "--l1.timeout=2s".to_owned(),
        format!("--l2.eth={}", devnet.l2_url()),
        format!("--l2.engine={}", devnet.engine_url()),
        format!("--l2.jwt-secret={}", devnet.jwt_secret_path().display()),
        "--l2.chain-id=53077".to_owned(),
        format!("--l2.genesis-hash={:?}", devnet.l2_genesis()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_batch_of_the_chain_by_index_and_by_transaction() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    let batch = devnet.with(|w| {
        w.produce(5).unwrap();
        w.enqueue(2).unwrap();
        let batch = w.produce(7).unwrap();
        w.mine(3);
        batch
    });
    let by_index = json_of(&program().args(["inspect", "--json", "--index=2"]).args(flags(&devnet)).output().unwrap());
    assert_eq!(by_index["batch_hash"], json!(batch.hash));
    assert_eq!((&by_index["index"], &by_index["standing"]), (&json!(2), &json!(true)));
    assert_eq!(by_index["first_block"], batch.first);
    assert_eq!(by_index["last_block"], batch.last);
    assert_eq!(by_index["reencoded_identical"], true);
    assert_eq!(by_index["l1_messages"], by_index["l1_messages_popped"]);
    assert_eq!(by_index["versioned_hashes"], by_index["bound_versioned_hashes"]);
    let tx = format!("--tx={:?}", batch.tx);
    let by_tx = json_of(&program().args(["inspect", "--json", &tx]).args(flags(&devnet)).output().unwrap());
    assert_eq!(by_tx, by_index);

    let none = program().args(["inspect", "--index=9"]).args(flags(&devnet)).output().unwrap();
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no commit of batch 9"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn c2_a_reverted_batch_and_its_recommit_without_blobs() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    let (first, again) = devnet.with(|w| {
        let first = w.produce(5).unwrap();
        w.revert(1).unwrap();
        w.mine(1);
        let again = w.recommit_state().unwrap();
        w.mine(3);
        (first, again)
    });
    let newest = json_of(&program().args(["inspect", "--json", "--index=1"]).args(flags(&devnet)).output().unwrap());
    assert_eq!(newest["batch_hash"], json!(again.hash));
    assert_eq!(newest["tx"], json!(again.tx));
    assert_eq!((&newest["standing"], &newest["last_block"]), (&json!(true), &json!(first.last)));
}
