//! Beside morph-reth, by generation: what differs from go-ethereum and what the worker makes of it (group L). The whole flows
//! stand beside both clients in `beside_geth` and `beside_reth`; here is what only the second client does.

use std::sync::Arc;
use std::time::Duration;

use morph_deriver::adapters::engine::{EngineClient, JwtSecret};
use morph_deriver::adapters::l2::{L2Client, L2Config};
use morph_deriver::adapters::rpc::{Check, Pool};
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::client::{Client, Generation};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::node::Moment;
use morph_deriver::devnet::world::{ForkShape, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Target;
use morph_deriver::flow::{PollEnd, Settings};
use morph_deriver::ports::L2Reader as _;
use morph_deriver::types::{B256, Case, L2Block, L2Number};

use crate::support::clients::pool_config;
use crate::support::rig::{Rig, cases, devnet_ports, guarded, options, reason, settings, world_options};
use crate::support::standing;

const GENERATIONS: [Generation; 3] = [Generation::A, Generation::B, Generation::C];

/// Three batches of eight blocks, of which the local node has the first `local`.
async fn behind(client: Client, local: u64) -> Devnet {
    let devnet = guarded(client).await;
    fall_behind(&devnet, local);
    devnet
}

fn fall_behind(devnet: &Devnet, local: u64) {
    devnet.with(|w| {
        for _ in 0..3 {
            w.produce(8).unwrap();
        }
        w.sync_to(local);
        w.mine(2);
    });
}

fn hash_at(devnet: &Devnet, number: u64) -> Option<B256> {
    devnet.with(|w| w.node.at(number).map(|block| block.hash()))
}

fn assert_chain(devnet: &Devnet, last: u64, what: &str) {
    for number in 1..=last {
        let expected = devnet.with(|w| w.expected(number).map(|block| block.hash));
        assert_eq!(hash_at(devnet, number), expected, "{what}: block {number}");
    }
}

/// P2 and P5, at every moment that a reader could see.
fn assert_promises(devnet: &Devnet, what: &str) {
    assert!(devnet.moments().iter().all(Moment::is_ordered), "{what}: {:?}", devnet.moments());
    assert!(devnet.unpaused_writes().is_empty() && !devnet.is_paused(), "{what}");
}

fn tags(devnet: &Devnet) -> (Option<u64>, Option<u64>) {
    let heads = devnet.heads();
    (heads.safe.map(|tag| tag.number.get()), heads.finalized.map(|tag| tag.number.get()))
}

#[tokio::test]
async fn l1_l5_l6_a_gap_is_filled_in_beside_every_generation_without_an_error_and_in_one_pause() {
    for generation in GENERATIONS {
        let what = format!("{generation:?}");
        let devnet = behind(Client::Reth(generation), 4).await;
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle_stopped().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "{what}");
        assert_eq!(cases(&report), [(1, Case::FillGap), (2, Case::FillGap), (3, Case::FillGap)], "{what}");
        assert_chain(&devnet, 24, &what);
        assert_eq!((devnet.pauses(), rig.safe(), tags(&devnet).0), (1, Some(24), Some(24)), "{what}");
        let status = rig.worker.status().borrow().clone();
        assert!(status.stall.is_none() && !status.tags_contended && !status.safe_beyond_verified, "{what}");
        let known = status.execution_client.and_then(|client| client.capabilities);
        assert_eq!(known.map(|known| known.rewrites), Some(generation != Generation::A), "{what}");
        assert_promises(&devnet, &what);
    }
}

/// Block 0 is shown with a base fee that does not give its hash, and the tags stand on it.
#[tokio::test]
async fn l2_a_worker_starts_on_a_block_zero_that_does_not_give_its_hash() {
    let devnet = behind(Client::RETH, 0).await;
    let genesis = devnet.l2_genesis();
    devnet.with(|w| {
        w.node.moods.odd_genesis = true;
        w.node.set_block_tags(genesis, genesis).unwrap();
    });
    let mut ports = devnet_ports(&devnet).await;
    let over = |genesis| {
        let pool = Pool::new(Target::L2, &[devnet.l2_url()], pool_config(Check::None)).unwrap();
        L2Client::new(pool, L2Config { genesis, ..L2Config::default() })
    };
    assert!(over(None).snapshot().await.is_err(), "nothing is configured");
    ports.l2 = Arc::new(over(Some(genesis)));
    let secret = JwtSecret::new(devnet.jwt_secret());
    let engine = EngineClient::new(&devnet.engine_url(), secret, pool_config(Check::None));
    ports.engine = Some(Arc::new(engine.unwrap().with_genesis(Some(genesis))));
    let settings = Settings { rollup: devnet.rollup(), ..settings() };
    let mut rig = Rig::start(ports, settings).await;
    assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), tags(&devnet).0), (Some(24), Some(24)));
    assert_promises(&devnet, "odd genesis");
}

/// The first generation ignores the parent: nothing is appended in place of a rewrite, and the stall names the remedy. A
/// newer one in its place repairs the chain without a restart of the worker.
#[tokio::test]
async fn l3_l9_the_first_generation_appends_nothing_and_the_next_one_repairs() {
    let devnet = behind(Client::Reth(Generation::A), 24).await;
    devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::ElCannotReorg));
    let PollEnd::Stalled(stall) = &report.end else { panic!("{report:?}") };
    assert!(stall.detail().contains("upgrade"), "{stall:?}");
    assert_eq!((devnet.written(), devnet.heads().local.number.get(), rig.safe()), (vec![], 24, Some(8)));
    // The operator changes the software.
    devnet.with(|w| w.node.become_client(Client::RETH));
    rig.now += Duration::from_secs(3600);
    assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp);
    assert_chain(&devnet, 24, "upgraded");
    assert_eq!(rig.safe(), Some(24));
    assert_promises(&devnet, "upgraded");
}

/// A foreign transaction in a block that was written is found by its header: the stall names it, and safe does not move.
#[tokio::test]
async fn l4_l5_a_foreign_transaction_in_a_written_block_is_named_and_safe_does_not_move() {
    for generation in [Generation::A, Generation::B] {
        let what = format!("{generation:?}");
        let devnet = behind(Client::Reth(generation), 8).await;
        devnet.with(|w| {
            let foreign = w.sequencer.clone().transaction(None, 10);
            w.node.moods.pool = vec![foreign];
        });
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle_stopped().await;
        assert_eq!(reason(&report), Some(Reason::BlockRefused), "{what}");
        let PollEnd::Stalled(stall) = &report.end else { panic!("{report:?}") };
        assert!(stall.detail().contains("its transactions are others"), "{stall:?}");
        assert_eq!((rig.safe(), tags(&devnet).0), (Some(8), Some(8)), "{what}: put back");
        assert_promises(&devnet, &what);
    }
}

/// Content that gives another state root is written, and marked safe by the node itself. It does not stay safe, whether or
/// not anything was safe before, and nobody else is suspected.
#[tokio::test]
async fn l5_p1_a_block_whose_roots_fail_does_not_stay_safe() {
    for (generation, local) in [(Generation::B, 0), (Generation::C, 0), (Generation::C, 8), (Generation::A, 8)] {
        let what = format!("{generation:?} on {local}");
        let devnet = behind(Client::Reth(generation), local).await;
        devnet.with(|w| w.node.moods.wrong_state_from = Some(local + 1));
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle_stopped().await;
        assert_eq!(reason(&report), Some(Reason::StateRoot), "{what}");
        assert_eq!((rig.safe(), tags(&devnet).0.unwrap_or(0)), (Some(local), local), "{what}");
        let status = rig.worker.status().borrow().clone();
        assert!(!status.safe_beyond_verified && !status.tags_contended, "{what}");
        // Also behind a kill of the worker: another one finds the tag where the node put it.
        devnet.with(|w| {
            let top = w.node.head().hash();
            w.node.set_block_tags(top, B256::zero()).unwrap();
        });
        rig.restart().await;
        rig.poll().await.unwrap();
        assert_eq!(tags(&devnet).0.unwrap_or(0), local, "{what}: after a restart");
        assert!(!rig.worker.status().borrow().safe_beyond_verified, "{what}");
        assert_promises(&devnet, &what);
    }
}

/// The equal block below the head moves nothing on this client. It is not sent; a head that did not move is noticed.
#[tokio::test]
async fn l7_equal_blocks_are_not_written_again_and_a_head_that_did_not_move_is_noticed() {
    let devnet = behind(Client::RETH, 24).await;
    devnet.with(|w| w.fork_at(14, ForkShape::Timestamp).unwrap());
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp);
    assert_eq!(devnet.written(), (14..=24).collect::<Vec<_>>(), "the equal blocks below stayed");
    assert_chain(&devnet, 24, "healed");
    // A node that answers as if it had written.
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.node.moods.loses_what_it_writes = true;
    });
    let mut reasons = Vec::new();
    for _ in 0..7 {
        reasons.push(match rig.poll().await {
            Ok(report) => reason(&report),
            Err(error) => Some(error.stall().reason()),
        });
    }
    assert!(reasons.contains(&Some(Reason::LocalChainChanged)), "{reasons:?}");
    assert_eq!((rig.safe(), devnet.heads().local.number.get()), (Some(24), 24));
    devnet.with(|w| w.node.moods.loses_what_it_writes = false);
    rig.now += Duration::from_secs(3600);
    assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(32));
    assert_promises(&devnet, "lost writes");
}

/// A kill takes the newest blocks, which do not answer any more, and the tags come back null or too high.
#[tokio::test]
async fn l11_e19_e20_after_a_kill_the_blocks_are_written_again_and_the_tags_are_set_again() {
    for lost in [1, 2, 3, 5, 7, 9, 12, 15, 18, 20] {
        let what = format!("{lost} blocks lost");
        let devnet = behind(Client::RETH, 0).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle_stopped().await;
        devnet.with(|w| w.finalize(2).unwrap());
        devnet.with(|w| w.mine(20));
        rig.settle().await;
        let finalized = rig.finalized();
        assert!(finalized.is_some(), "{what}");
        devnet.with(|w| w.node.kill(24 - lost));
        assert_eq!((hash_at(&devnet, 24), tags(&devnet).1), (None, None), "{what}");
        devnet.clear_counts();
        assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp, "{what}");
        assert_chain(&devnet, 24, &what);
        assert_eq!(
            (rig.safe(), rig.finalized(), tags(&devnet)),
            (Some(24), finalized, (Some(24), finalized)),
            "{what}"
        );
    }
}

/// Another writer gave the node a finalized block that L1's chain does not hold: every write moves the head and is answered with an
/// error. The stall names it.
#[tokio::test]
async fn l13_a_finalized_block_off_the_chain_is_named() {
    let world = WorldOptions { finalized_depth: 10_000, ..world_options(Client::RETH) };
    let devnet = Devnet::start(DevnetOptions { world, ..options(Client::RETH) }).await.unwrap();
    fall_behind(&devnet, 8);
    devnet.with(|w| w.node.give_finalized(B256::repeat_byte(0xf1)));
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(reason(&report), Some(Reason::FinalizedElsewhere));
    let PollEnd::Stalled(stall) = &report.end else { panic!("{report:?}") };
    assert!(stall.detail().contains("finalized tag"), "{stall:?}");
    assert_eq!(rig.safe(), Some(8));
    // A restart of the node forgets it.
    devnet.with(|w| w.node.restart());
    rig.now += Duration::from_secs(3600);
    assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(24));
    assert_chain(&devnet, 24, "forgotten");
    // What landed while it was refused is in the journal too (P6).
    let journal = rig.ports.progress.journal_tail(1_000).await.unwrap();
    let journaled: std::collections::BTreeSet<u64> = journal.iter().map(|entry| entry.number.get()).collect();
    assert_eq!(journaled, (9..=24).collect());
    // Where L1 has finalized a batch, the worker moves the tag to it, and that alone ends it.
    let devnet = behind(Client::RETH, 8).await;
    devnet.with(|w| {
        w.finalize(1).unwrap();
        w.mine(20);
        w.node.give_finalized(B256::repeat_byte(0xf1));
    });
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(24));
}

/// Slow writes: nothing is given up as unanswered, the gap is filled, and no pause is longer than its blocks take.
#[tokio::test]
async fn l14_a_node_that_takes_long_for_a_block_is_given_as_many_as_it_answers_in_time() {
    let devnet = behind(Client::RETH, 0).await;
    let each = Duration::from_millis(60);
    devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Delay(each)));
    let mut rig = Rig::with(&devnet, |s| {
        s.pause_budget = Duration::from_millis(800);
        s.pause_per_block = Duration::from_millis(1);
    })
    .await;
    let mut ends = Vec::new();
    for _ in 0..20 {
        let end = rig.poll().await.unwrap().end;
        let done = end == PollEnd::CaughtUp;
        ends.push(end);
        if done {
            break;
        }
    }
    assert_eq!(ends.last(), Some(&PollEnd::CaughtUp), "{ends:?}");
    assert_chain(&devnet, 24, "slow");
    assert!((1..=5).contains(&devnet.pauses()), "{} pauses", devnet.pauses());
    assert_eq!(devnet.written(), (1..=24).collect::<Vec<_>>(), "nothing was written twice");
    assert_promises(&devnet, "slow");
}

/// Raw blocks of both shapes, and JSON of old and new versions, give the same blocks and the same blob.
#[tokio::test]
async fn l10_raw_and_json_blocks_of_every_client_give_the_same_hashes_and_the_same_blob() {
    let clients = [Client::Geth].into_iter().chain(GENERATIONS.map(Client::Reth));
    let mut read: Vec<(Vec<L2Block>, B256)> = Vec::new();
    for client in clients {
        for debug_closed in [false, true] {
            let devnet = behind(client, 24).await;
            devnet.with(|w| w.node.moods.debug_closed = debug_closed);
            let pool = Pool::new(Target::L2, &[devnet.l2_url()], pool_config(Check::None)).unwrap();
            let l2 = L2Client::new(pool, L2Config::default());
            let blocks = l2.blocks(L2Number::new(1), L2Number::new(24)).await.unwrap();
            let by_json = devnet.calls(Server::L2, "eth_getBlockByNumber") > 0;
            assert_eq!(by_json, debug_closed, "{client:?}");
            let mut rig = Rig::on(&devnet).await;
            assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{client:?}, {debug_closed}");
            let rows = standing(rig.ports.progress.as_ref()).await;
            assert!(
                rows.iter().filter(|row| row.index.get() > 0).all(|row| row.case == Some(Case::Consistent)),
                "{client:?}"
            );
            read.push((blocks, rows.last().map(|row| row.hash).unwrap()));
        }
    }
    assert!(read.windows(2).all(|pair| pair[0] == pair[1]));
}

/// The largest batch that there is: 600 blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_a_batch_of_600_blocks_gives_the_same_blob_raw_and_as_json() {
    for client in [Client::Geth, Client::RETH] {
        for debug_closed in [false, true] {
            let devnet = guarded(client).await;
            devnet.with(|w| {
                w.produce(600).unwrap();
                w.mine(2);
                w.sync();
                w.node.moods.debug_closed = debug_closed;
            });
            devnet.clear_counts();
            let mut rig = Rig::on(&devnet).await;
            assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{client:?}");
            assert_eq!(rig.safe(), Some(600), "{client:?}");
            let rows = standing(rig.ports.progress.as_ref()).await;
            assert_eq!(rows.last().map(|row| row.case), Some(Some(Case::Consistent)), "{client:?}");
            let raw = devnet.calls(Server::L2, "debug_getBlockRlp") + devnet.calls(Server::L2, "debug_getRawBlock");
            assert_eq!(raw >= 600, !debug_closed, "{client:?}: {raw} raw blocks");
        }
    }
}

/// The software of the node is changed in the middle of a gap, and changed back: the end is the same as without.
#[tokio::test]
async fn l1_l10_l16_a_change_of_the_client_in_the_middle_of_a_gap_ends_the_same() {
    let mut ends = Vec::new();
    for changes in [&[][..], &[Client::RETH], &[Client::RETH, Client::Geth], &[Client::Geth, Client::RETH]] {
        let what = format!("{changes:?}");
        let devnet = behind(Client::Geth, 4).await;
        for (place, client) in changes.iter().enumerate() {
            let client = *client;
            // In the middle of the second batch, then in the middle of the third.
            let nth = 6 + 8 * place as u64;
            devnet.on_call(Server::Engine, "engine_newSafeL2Block", nth, move |w| w.node.become_client(client));
        }
        let mut rig = Rig::on(&devnet).await;
        rig.settle_stopped().await;
        rig.now += Duration::from_secs(3600);
        assert_eq!(rig.settle_stopped().await.end, PollEnd::CaughtUp, "{what}");
        assert_chain(&devnet, 24, &what);
        assert_eq!((rig.safe(), tags(&devnet).0), (Some(24), Some(24)), "{what}");
        assert!(devnet.unpaused_writes().is_empty() && !devnet.is_paused(), "{what}");
        let rows = standing(rig.ports.progress.as_ref()).await;
        ends.push(rows.iter().map(|row| (row.index, row.hash, row.last)).collect::<Vec<_>>());
        let last = changes.last().copied().unwrap_or(Client::Geth);
        let known = rig.worker.status().borrow().execution_client.clone().unwrap();
        assert_eq!(known.version, last.version(), "{what}");
    }
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]));
}

/// A block below the head is missing: nothing is written over it, after a few polls the stall names it, and it ends when the
/// block is back.
#[tokio::test]
async fn l12_a_missing_block_below_the_head_is_named_and_ends_when_it_is_back() {
    for client in [Client::Geth, Client::RETH] {
        let devnet = behind(client, 24).await;
        devnet.with(|w| w.node.moods.holes.insert(12));
        let mut rig = Rig::on(&devnet).await;
        let mut reasons = Vec::new();
        for _ in 0..8 {
            reasons.push(match rig.poll().await {
                Ok(report) => reason(&report),
                Err(_) => None,
            });
            assert_eq!(rig.safe(), Some(8), "{client:?}");
        }
        let expected: Vec<_> = [None; 2].into_iter().chain([Some(Reason::BlockMissing); 6]).collect();
        assert_eq!(reasons, expected, "{client:?}: named after a few polls");
        let stall = rig.worker.status().borrow().stall.clone().unwrap();
        assert!(stall.detail().contains("no block 12"), "{stall:?}");
        assert!(devnet.writes().is_empty() && devnet.pauses() == 0, "{client:?}");
        devnet.with(|w| w.node.moods.holes.clear());
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{client:?}");
        assert_eq!((rig.safe(), tags(&devnet).0), (Some(24), Some(24)), "{client:?}");
    }
}
