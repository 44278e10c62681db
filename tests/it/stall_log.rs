//! Every stall is in the log under its reason's code, and so is its end (P9).

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use morph_deriver::config::LogFormat;
use morph_deriver::decide::content::ContentFault;
use morph_deriver::decide::stall::{Cause, Gap, Reason, Stall, StateMissing};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::error::{PortError, PortErrorKind, Target};
use morph_deriver::flow::stall_log::{Doing, StallLog};
use morph_deriver::telemetry;
use morph_deriver::types::BatchIndex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::beside_geth::node_flow::{batch, network, synced};
use crate::support::causes::one_of_each;
use crate::support::rig::Rig;

/// The log of this thread, as the program writes it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn capture() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let layer = telemetry::layer(LogFormat::Json, false, "info".parse().unwrap(), move || writer.clone());
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        (log, guard)
    }

    /// Lines about stalls so far.
    fn stalls(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["target"] == "stall").collect()
    }
}

/// Code (none for an end), entity and level.
fn told(line: &Value) -> (Option<String>, String, String) {
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let code = line["code"].as_str().map(str::to_owned);
    assert_ne!(code.is_some(), line["recovered"] == true, "{line}");
    (code, text("entity"), text("level"))
}

/// The place of a cause's kind in the enum. It names every kind, so that a new one must be named here, and then shown.
fn kind(cause: &Cause) -> usize {
    match cause {
        Cause::Port(_) => 0,
        Cause::NodeSyncing => 1,
        Cause::BlocksMissing { .. } => 2,
        Cause::BlocksLost { .. } => 3,
        Cause::BlockMissing { .. } => 39,
        Cause::BeforeSwitch => 4,
        Cause::LocalChanged(_) => 5,
        Cause::L1Changed(_) => 6,
        Cause::NoL1Block => 7,
        Cause::NoSettledL1Block => 8,
        Cause::L1HeadBelowCursor => 9,
        Cause::L1HeadBelow(_) => 10,
        Cause::L1Stale => 11,
        Cause::ReorgTooDeep { .. } => 12,
        Cause::Searching(_) => 13,
        Cause::NoProgress => 14,
        Cause::Gap(_) => 15,
        Cause::RevertPending => 16,
        Cause::RevertOfProved => 17,
        Cause::Commit { .. } => 18,
        Cause::Discontinued(_) => 19,
        Cause::Content(_) => 20,
        Cause::PrevStateRoot { .. } => 21,
        Cause::StateRoot { .. } => 22,
        Cause::WithdrawalRoot { .. } => 23,
        Cause::SearchingRoot { .. } => 24,
        Cause::RootUnknown(_) => 25,
        Cause::BelowFinalized(_) => 26,
        Cause::DiffersBeforeSwitch(_) => 27,
        Cause::CannotRewrite { .. } => 28,
        Cause::StateMissing(_) => 29,
        Cause::TwoNodes { .. } => 30,
        Cause::OtherBlockMade { .. } => 31,
        Cause::Refused(_) => 32,
        Cause::RefusedAgain { .. } => 33,
        Cause::PauseBudget { .. } => 34,
        Cause::NotResumed => 35,
        Cause::NotWritten => 36,
        Cause::WouldWrite { .. } => 37,
        Cause::FinalizedElsewhere(_) => 38,
        Cause::FirstSync { .. } => 40,
        Cause::TargetMissing { .. } => 41,
        Cause::SourceDropped(_) => 42,
        Cause::SourceDiffers { .. } => 43,
    }
}

#[test]
fn p9_every_cause_has_its_code_and_every_code_a_cause() {
    let table = one_of_each();
    for (cause, reason) in &table {
        assert_eq!(cause.reason(), *reason, "{cause}");
        assert!(!cause.to_string().is_empty(), "{cause:?}");
    }
    let kinds: BTreeSet<_> = table.iter().map(|(cause, _)| kind(cause)).collect();
    assert_eq!(kinds, (0..=43).collect());
    for reason in Reason::ALL {
        assert!(table.iter().any(|(_, has)| has == reason), "nothing causes {reason}");
    }
}

#[test]
fn a_stall_is_three_fields_for_programs_and_says_what_to_do_to_people() {
    for (cause, reason) in one_of_each() {
        let stall = Stall::at(BatchIndex::new(7), cause.clone());
        let expected = json!({ "reason": reason.code(), "batch": 7, "detail": cause.to_string() });
        assert_eq!(serde_json::to_value(&stall).unwrap(), expected);
        assert_eq!(stall.to_string(), format!("{} (batch 7): {cause}", reason.code()));
        let advice: &[&str] = match cause {
            Cause::CannotRewrite { .. } => &["upgrade", "cut its chain by hand at block 0"],
            Cause::StateMissing(StateMissing::NoneKept { .. }) => &["block 59", "archive"],
            Cause::StateMissing(StateMissing::BeforeSwitch { .. }) => &["block 60", "archive"],
            Cause::Gap(Gap::Commit(_)) => &["gap(7)"],
            Cause::ReorgTooDeep { .. } => &["fresh database"],
            Cause::L1Stale => &["clock"],
            _ => &[],
        };
        assert!(advice.iter().all(|words| cause.to_string().contains(words)), "{cause}");
    }
}

#[test]
fn every_reason_is_logged_under_its_code_once_and_so_is_its_end() {
    for (cause, reason) in one_of_each() {
        for (doing, level) in [
            (Doing::Waiting, "WARN"),
            (Doing::TryingAgain, "WARN"),
            (Doing::ReadingAgain, "WARN"),
            (Doing::Halted, "ERROR"),
        ] {
            for at in [None, Some(7)] {
                let (log, _guard) = Log::capture();
                let mut stalls = StallLog::default();
                let stall = match at {
                    Some(index) => Stall::at(BatchIndex::new(index), cause.clone()),
                    None => Stall::new(cause.clone()),
                };
                stalls.goes_on();
                (0..5).for_each(|_| stalls.stalled(&stall, doing));
                let entity = at.map(|index| format!("batch {index}")).unwrap_or_default();
                let code = reason.code().to_owned();
                let expected = (Some(code), entity.clone(), level.to_owned());
                assert_eq!(log.stalls().iter().map(told).collect::<Vec<_>>(), std::slice::from_ref(&expected));
                assert_eq!(log.stalls()[0]["detail"], cause.to_string());
                assert_eq!(log.stalls()[0]["batch"].as_u64(), at);
                (0..3).for_each(|_| stalls.goes_on());
                let end = (None, entity, "INFO".to_owned());
                assert_eq!(log.stalls().iter().map(told).collect::<Vec<_>>(), [expected, end]);
                assert_eq!(log.stalls()[1]["repeated"], 5);
                assert!(log.stalls()[1]["lasted_s"].is_u64());
            }
        }
    }
}

#[test]
fn a_halt_at_another_batch_is_logged_at_once_and_ends_the_one_before() {
    let (log, _guard) = Log::capture();
    let mut stalls = StallLog::default();
    let poison = |index: u64| Stall::at(BatchIndex::new(index), Cause::Content(ContentFault::Empty));
    let down = Stall::new(Cause::Port(PortError::new(Target::L1, PortErrorKind::Timeout, "why")));
    for stall in [&poison(7), &poison(7), &down, &poison(7), &down, &poison(8), &poison(8)] {
        stalls.stalled(stall, Doing::Halted);
    }
    stalls.goes_on();
    let lines: Vec<_> = log.stalls().iter().map(told).map(|(code, entity, _)| (code, entity)).collect();
    let code = |reason: Reason| Some(reason.code().to_owned());
    let expected = [
        (code(Reason::PoisonBatch), "batch 7"),
        (code(Reason::L1Unavailable), ""),
        (None, "batch 7"),
        (code(Reason::PoisonBatch), "batch 8"),
        (None, ""),
        (None, "batch 8"),
    ];
    assert_eq!(lines, expected.map(|(code, entity)| (code, entity.to_owned())));
}

/// Whether the lines so far are enough.
type Seen = Box<dyn Fn(&[Value]) -> bool>;

/// Runs the worker until the log of stalls is as `done` wants it.
async fn run_until(rig: Rig, log: &Log, steps: Vec<(Seen, Box<dyn Fn()>)>) {
    let stop = CancellationToken::new();
    let running = tokio::spawn(rig.worker.run(stop.clone()));
    for (seen, then) in steps {
        let wait = async {
            while !seen(&log.stalls()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(came.is_ok(), "never came so far: {:?}", log.stalls());
        then();
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

fn has(lines: &[Value], code: Option<Reason>, entity: &str) -> bool {
    let wanted = (code.map(|c| c.code().to_owned()), entity.to_owned());
    lines.iter().map(told).any(|(code, entity, _)| (code, entity) == wanted)
}

#[tokio::test]
async fn a_running_worker_logs_its_stalls_and_their_ends() {
    let devnet = Arc::new(synced(1).await);
    let (log, _guard) = Log::capture();
    let down = Rule::always(Fault::Status(503, String::new()));
    devnet.fault(Server::L1(0), down);
    let rig = Rig::on(&devnet).await;
    let (up, more, grown) = (devnet.clone(), devnet.clone(), devnet.clone());
    run_until(
        rig,
        &log,
        vec![
            (Box::new(|lines| has(lines, Some(Reason::L1Unavailable), "")), Box::new(move || up.heal(Server::L1(0)))),
            (Box::new(|lines| has(lines, None, "")), Box::new(move || more.with(batch))),
            (
                Box::new(|lines| has(lines, Some(Reason::WaitingForBlocks), "batch 2")),
                Box::new(move || grown.with(|w| w.sync())),
            ),
            (Box::new(|lines| has(lines, None, "batch 2")), Box::new(|| {})),
        ],
    )
    .await;
    assert_eq!(log.stalls().len(), 4, "{:?}", log.stalls());
    assert!(log.stalls().iter().take(3).all(|line| line["level"] != "ERROR"));
}

#[tokio::test]
async fn a_running_worker_logs_a_halt_with_its_batch() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.node.moods.wrong_state_from = Some(12);
        w.execute_to(16).unwrap();
    });
    let (log, _guard) = Log::capture();
    let rig = Rig::on(&devnet).await;
    let halted: Seen = Box::new(|lines| has(lines, Some(Reason::StateRoot), "batch 2"));
    run_until(rig, &log, vec![(halted, Box::new(|| {}))]).await;
    assert_eq!(told(&log.stalls()[0]).2, "ERROR");
}
