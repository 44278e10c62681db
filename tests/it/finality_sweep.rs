//! Finality over whole histories with reverts and recommits, at every width of a range and every depth of L1's finalized
//! block, in both meanings (M2, M3). The network is played back in process and held
//! against a model of the rules that shares nothing with the worker.
//!
//! What a run can show depends on where ranges are cut, and on which logs are final. So the devnet's history, whose
//! proofs lie between its reverts and recommits, is run at every width and every depth in both meanings. The recorded one
//! proves three batches, and only in its last blocks:
//! - without those blocks the proven meaning finalizes nothing, whatever was reverted before; its reverts and recommits
//!   are run in the committed meaning, at every width and every depth;
//! - the proven meaning is run at every depth that separates the proofs, and at one width for each way of cutting the
//!   blocks that hold them. All widths and depths would be some 2,700 whole runs, of which all but 80 repeat others.

use std::collections::BTreeMap;
use std::sync::Arc;

use morph_deriver::adapters::fixture::Fixture;
use morph_deriver::decide::finality::Held;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::FinalityMeaning;
use morph_deriver::flow::PollEnd;
use morph_deriver::types::B256;

use crate::support::clients;
use crate::support::played::{self, Model, Played};
use crate::support::recorded::{L1_END, RecordedNetwork};
use crate::support::recorded_l2::RecordedL2;
use crate::support::rig::{Rig, devnet_ports, reason, settings};

const MEANINGS: [FinalityMeaning; 2] = [FinalityMeaning::Committed, FinalityMeaning::Proven];

/// A network and what its batches are.
struct Network {
    fixture: Arc<Fixture>,
    /// Where each batch ends, by its hash; poison batches are left out.
    ends: BTreeMap<B256, u64>,
    /// The first L1 block that is read.
    start: u64,
    /// Its last L1 block.
    end: u64,
    /// The L1 blocks at which a poison batch is the newest thing that is known: a stall is right there, and only there.
    poison: std::ops::Range<u64>,
}

/// How L1 is shown to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    /// All of it at once, final up to `depth` blocks below its end: the worker comes back after a long time.
    AtOnce,
    /// `width` blocks more between two polls, with the finalized block following `depth` blocks below.
    Growing,
}

/// One worker from the start to the end.
async fn run(network: &Network, show: Show, width: u64, depth: u64, meaning: FinalityMeaning) {
    let what = format!("{show:?}, width {width}, depth {depth}, {meaning:?}");
    let played = Played::new(network.fixture.clone());
    let mut settings = played::settings(&network.fixture, settings());
    settings.start = network.start.into();
    settings.fetch_range = width;
    settings.finality = meaning;
    let mut rig = Rig::start(played::ports(&played).await, settings).await;
    let mut model = Model::new(network.fixture.clone(), network.start, meaning, network.ends.clone());
    let mut head = match show {
        Show::AtOnce => network.end,
        Show::Growing => (network.start + width - 1).min(network.end),
    };
    loop {
        let final_to = head.saturating_sub(depth);
        played.show(head, final_to);
        let expected = model.read(head, final_to);
        loop {
            let report = rig.poll().await.unwrap_or_else(|error| panic!("{what}, head {head}: {error}"));
            let finalized = rig.finalized().unwrap_or(0);
            assert!(finalized <= expected.most, "{what}, head {head}: {finalized} is final, {expected:?}");
            match report.end {
                PollEnd::Behind => {}
                PollEnd::CaughtUp => break,
                _ if reason(&report) == Some(Reason::StateRoot) && network.poison.contains(&head) => break,
                end => panic!("{what}, head {head}: {end:?}"),
            }
        }
        let status = rig.worker.status().borrow().clone();
        let finalized = rig.finalized().unwrap_or(0);
        assert!(finalized >= expected.least, "{what}, head {head}: {finalized} is final, {expected:?}");
        assert_eq!(rig.safe().unwrap_or(0), expected.last.max(finalized), "{what}, head {head}: {expected:?}");
        assert_eq!(status.uncommitted_finalized, expected.last < finalized, "{what}, head {head}: {expected:?}");
        let held = status.finality_held.filter(|held| *held != Held::NotProven);
        assert_eq!(held, None, "{what}, head {head}");
        if head == network.end {
            return;
        }
        head = head.saturating_add(width).min(network.end);
    }
}

/// Widths from 1 to 500, each once for the cuts that it makes: a range begins where the one before ended, so all widths
/// from the number of blocks on make the same single range.
fn widths(network: &Network) -> impl Iterator<Item = u64> {
    let blocks = network.end - network.start + 1;
    (1..=500).take_while(move |width| *width <= blocks)
}

/// Batches 3 and 4 are verified, reverted, and committed again unchanged; so is batch 5, twice; proofs come between.
async fn devnet_network() -> Network {
    let world = WorldOptions { finalized_depth: 10_000, ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|w| {
        let commit = |w: &mut World| {
            w.build(2).unwrap();
            w.commit(BatchSpec::default()).unwrap();
            w.mine(1);
        };
        for _ in 1..=4 {
            commit(w);
        }
        w.mine(1);
        w.revert(3).unwrap();
        w.mine(2);
        w.recommit_state().unwrap();
        w.mine(1);
        w.finalize(2).unwrap();
        w.mine(1);
        w.recommit_state().unwrap();
        w.mine(1);
        commit(w);
        w.mine(1);
        for _ in 0..2 {
            w.revert(5).unwrap();
            w.mine(1);
            w.recommit_state().unwrap();
            w.mine(1);
        }
        w.finalize(4).unwrap();
        commit(w);
        w.finalize(5).unwrap();
        w.mine(2);
        w.sync();
    });
    let (end, ends) = devnet.with(|w| {
        let all = w.batches.iter().chain(&w.reverted);
        (w.l1.head(), all.map(|b| (b.hash, b.last)).collect::<BTreeMap<_, _>>())
    });
    let ports = devnet_ports(&devnet).await;
    let fixture = played::recorded(ports.l1, ports.blobs, ports.l2, devnet.rollup(), end).await;
    let genesis = genesis_hash(&fixture);
    Network { fixture, ends: ends.into_iter().chain([(genesis, 0)]).collect(), start: 0, end, poison: 0..0 }
}

async fn recorded_network() -> Network {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let l2 = RecordedL2::start(126);
    let rollup = clients::address(&recording.rollup);
    let (l1, blobs) = (Arc::new(clients::l1(&network)), Arc::new(clients::beacon(&network)));
    let fixture = played::recorded(l1, blobs, Arc::new(clients::l2(&l2)), rollup, L1_END).await;
    let ends = recording.standing.iter().map(|b| (b.hash, b.last)).collect();
    // Batch 7 was committed under a wrong state root, 8 on top of it.
    Network { fixture, ends, start: 0, end: L1_END, poison: 24..26 }
}

fn genesis_hash(fixture: &Fixture) -> B256 {
    let standing = fixture.facts.committed.newest.first_key_value();
    *standing.expect("the genesis batch is recorded").1
}

/// Every width and every depth of L1's finalized block, in both meanings.
#[tokio::test]
async fn m2_m3_m17_reverts_and_recommits_at_every_width_and_every_depth() {
    let network = devnet_network().await;
    for meaning in MEANINGS {
        for width in widths(&network) {
            for depth in 0..=network.end {
                run(&network, Show::AtOnce, width, depth, meaning).await;
                run(&network, Show::Growing, width, depth, meaning).await;
            }
        }
    }
}

/// From the block after batch 4 on: nothing below it is ever reverted, and that it is verified at any width other
/// tests say. Depths from there down are one: nothing that was read is final.
#[tokio::test]
async fn m2_m3_the_recorded_reverts_and_recommits_at_every_width_and_every_depth() {
    let network = Network { start: 19, ..recorded_network().await };
    let below = network.end - network.start;
    for width in widths(&network) {
        for depth in (0..=below).chain([network.end]) {
            run(&network, Show::AtOnce, width, depth, FinalityMeaning::Committed).await;
            run(&network, Show::Growing, width, depth, FinalityMeaning::Committed).await;
        }
    }
}

/// One width for each set of blocks from `first` on that end a range.
fn widths_by_cuts(network: &Network, first: u64) -> Vec<u64> {
    let ends = |width: u64| (first..network.end).filter(move |block| (block + 1 - network.start).is_multiple_of(width));
    let mut seen = std::collections::BTreeSet::new();
    widths(network).filter(|width| seen.insert(ends(*width).collect::<Vec<_>>())).collect()
}

/// The recorded proofs are of batches 1 to 3 and lie in L1 blocks 33 to 35: which of them is final the depths 0 to 4
/// tell, and all greater ones say the same as 4. How ranges are cut matters from the block before them on.
#[tokio::test]
async fn m3_the_recorded_proofs_at_every_depth_and_every_cut() {
    let network = recorded_network().await;
    let widths = widths_by_cuts(&network, 32);
    assert!(widths.len() >= 8, "{widths:?}");
    for (width, depth) in widths.into_iter().flat_map(|width| (0..=4).map(move |depth| (width, depth))) {
        run(&network, Show::AtOnce, width, depth, FinalityMeaning::Proven).await;
        run(&network, Show::Growing, width, depth, FinalityMeaning::Proven).await;
    }
}
