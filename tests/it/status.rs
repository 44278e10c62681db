//! `status` and `config --check` as a shell sees them: a running worker's HTTP status, the journal, and every endpoint
//! asked.

use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::decide::stall::{Cause, Stall};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::Status;
use morph_deriver::ports::Progress as _;
use morph_deriver::server;
use morph_deriver::types::{B256, BatchIndex, JournalEntry, L2Number};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::inspect::{flags, json_of, program};

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_running_worker_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = watch::channel(Status { verified: 12, polls: 1, ..Status::default() });
    let stop = CancellationToken::new();
    let served = tokio::spawn(server::serve(listener, receiver, None, stop.clone()));
    let at = format!("--at={address}");
    let listen = format!("--server.listen={address}");

    let status = json_of(&program().args(["status", "--json", &listen]).output().unwrap());
    assert_eq!((&status["verified"], &status["ready"]), (&12.into(), &false.into()));
    let table = program().args(["status", &at]).output().unwrap();
    assert_eq!(table.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&table.stdout).contains("catching_up"));

    let (expected, actual) = (B256::zero(), B256::repeat_byte(1));
    let cause = Cause::StateRoot { number: L2Number::new(9), expected, actual };
    let stall = Stall::at(BatchIndex::new(3), cause);
    sender.send_replace(Status { stall: Some(stall), ..Status::default() });
    let diverged = program().args(["status", "--json", &at]).output().unwrap();
    assert_eq!(diverged.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&diverged.stdout).contains("state_root"));

    stop.cancel();
    served.await.unwrap();
    let gone = program().args(["status", &at]).output().unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains(&address.to_string()));
    let nowhere = program().args(["status", "--server.listen=none"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_journal_is_read_while_a_worker_holds_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.sqlite");
    let store = SqliteStore::open(&path).await.unwrap();
    let entry = |number: u64| JournalEntry {
        at: 1_700_000_000 + number,
        batch: BatchIndex::new(4),
        number: L2Number::new(number),
        old_hash: (number == 2).then(|| B256::repeat_byte(9)),
        new_hash: B256::from_low_u64_be(number),
        why: "self-heal".to_owned(),
    };
    store.journal(&[entry(1), entry(2), entry(3)]).await.unwrap();
    let at = format!("--store.path={}", path.display());
    let report = json_of(&program().args(["status", "--journal", "--limit=2", "--json", &at]).output().unwrap());
    let numbers: Vec<_> = report["journal"].as_array().unwrap().iter().map(|row| row["number"].as_u64()).collect();
    assert_eq!(numbers, [Some(3), Some(2)], "newest first, as many as asked for");
    let table = program().args(["status", "--journal", &at]).output().unwrap();
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    for part in ["2023-11-14T22:13:21Z", "self-heal", "nothing", "0x09090909"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let missing = format!("--store.path={}", folder.path().join("none.sqlite").display());
    let output = program().args(["status", "--journal", &missing]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!folder.path().join("none.sqlite").exists(), "asking creates nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn k7_check_config_asks_every_endpoint() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    devnet.with(|w| w.mine(1));
    let good = json_of(&program().args(["config", "--check", "--json"]).args(flags(&devnet)).output().unwrap());
    let probes = good["probes"].as_array().unwrap();
    let keys: Vec<_> = probes.iter().map(|probe| probe["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["l1.rpc", "l1.beacon", "l2.eth", "l2.engine"]);
    assert!(probes.iter().all(|probe| probe["problem"].is_null()), "{probes:?}");
    assert!(devnet.writes().is_empty() && devnet.pauses() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn k7_a11_check_config_names_the_endpoint_at_fault() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    devnet.with(|w| w.mine(1));
    let other = "0x00000000000000000000000000000000000000aa";
    let table: &[(&str, &[&str])] = &[
        ("--l1.chain-id=901", &["l1.rpc"]),
        (&format!("--l1.rollup={other}"), &["l1.rpc"]),
        ("--l2.chain-id=1", &["l2.eth", "l2.engine"]),
        ("--l1.beacon-genesis-time=5", &["l1.beacon"]),
        ("--l1.beacon-archive=http://user:canary@127.0.0.1:9/canary", &["l1.beacon_archive"]),
        (
            "--l2.genesis-hash=0x649c9b1f9f831771529dbf286a63dd071530d73c8fa410997eebaf449acfa7a9",
            &["l2.eth", "l2.engine"],
        ),
    ];
    for (flag, at_fault) in table {
        let key = flag.split('=').next().unwrap();
        let mut flags = flags(&devnet);
        flags.retain(|flag| flag.split('=').next() != Some(key));
        let output = program().args(["config", "--check", "--json", flag]).args(&flags).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{flag}: {text}");
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let wrong: Vec<_> = report["probes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|probe| !probe["problem"].is_null())
            .map(|probe| probe["key"].as_str().unwrap())
            .collect();
        assert_eq!(&wrong, at_fault, "{flag}: {text}");
        let everything = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!everything.contains("canary"), "{everything}");
        assert!(!report["probes"].to_string().contains("://"), "{text}");
    }
}
