//! One false answer of L1 is no halt for ever: a log in a canonical block that was never emitted, a proof that is gone, a
//! header that is missing once. What L1 does not confirm when it is asked for that very log is forgotten; what it
//! confirms counts.

use std::sync::Arc;
use std::time::Duration;

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::Devnet;
use morph_deriver::flow::PollEnd;
use morph_deriver::flow::{FinalityMeaning, Settings};
use morph_deriver::types::{B256, Case, L1Event, L1EventKind, L1Number, L1Ref, LogPos};

use crate::finality_flow::{commit_block, network};
use crate::support::lying_l1::{In, Lies, LyingL1, forged_commit, forged_proof, forged_revert};
use crate::support::rig::{Rig, cases, devnet_ports, reason, settings};

async fn lied_to(devnet: &Devnet, change: impl FnOnce(&mut Settings)) -> (Rig, Arc<LyingL1>) {
    let mut ports = devnet_ports(devnet).await;
    let l1 = LyingL1::over(ports.l1.clone());
    ports.l1 = l1.clone();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    // Finality and the scan for reverts take part in every poll of a catch-up.
    settings.settle_every = Duration::ZERO;
    change(&mut settings);
    (Rig::start(ports, settings).await, l1)
}

fn finalize_l1(devnet: &Devnet) {
    let head = devnet.with(|w| w.l1.head());
    devnet.l1_knobs(0, |k| k.finalized = Some(head));
}

fn l1_block(devnet: &Devnet, number: u64) -> L1Ref {
    devnet.with(|w| w.l1.block(number).map(|b| L1Ref { number: number.into(), hash: b.hash }).unwrap())
}

fn batch_hash(devnet: &Devnet, nth: usize) -> B256 {
    devnet.with(|w| w.batches[nth].hash)
}

fn l1_head(devnet: &Devnet) -> u64 {
    devnet.with(|w| w.l1.head())
}

fn is_revert(event: &L1Event) -> bool {
    matches!(event.kind, L1EventKind::Revert { .. })
}

/// The stored reverts.
async fn known_reverts(rig: &Rig) -> Vec<L1Event> {
    let progress = &rig.ports.progress;
    progress.reverts_within(LogPos::default(), L1Number::new(u64::MAX), 10).await.unwrap()
}

/// Polls until the scan ahead has stored a revert.
async fn until_read_ahead(rig: &mut Rig) {
    for _ in 0..20 {
        rig.poll().await.unwrap();
        let known = known_reverts(rig).await;
        if !known.is_empty() {
            return;
        }
    }
    panic!("no revert was read ahead");
}

#[tokio::test]
async fn a1_m2_a_forged_revert_that_was_read_ahead_is_forgotten_if_l1_does_not_confirm_it() {
    for index in [2, 9] {
        let devnet = network(3).await;
        let (mut rig, l1) = lied_to(&devnet, |s| s.fetch_range = 2).await;
        rig.settle().await;
        devnet.with(|w| w.mine(20));
        finalize_l1(&devnet);
        let block = l1_block(&devnet, l1_head(&devnet) - 8);
        let forged = vec![forged_revert(block, index, batch_hash(&devnet, 1))];
        l1.lie(Lies { forged, forged_in: In::SCANS, ..Lies::default() });
        until_read_ahead(&mut rig).await;
        l1.be_honest();
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "batch {index}");
        assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)), "batch {index}");
        assert_eq!(rig.worker.status().borrow().reverted, 0);
    }
}

fn is_commit_of_2(event: &L1Event) -> bool {
    matches!(event.kind, L1EventKind::Commit { index, .. } if index.get() == 2)
}

/// The log of the last batch that is asked for is left out once. The next commit shows the hole, though it lies beyond what
/// is asked for.
#[tokio::test]
async fn a1_p3_p4_a_left_out_commit_of_the_last_batch_that_is_asked_for_is_found_again() {
    let devnet = network(3).await;
    let passed = commit_block(&devnet, 1);
    let (mut rig, l1) = lied_to(&devnet, |s| {
        s.fetch_range = 1;
        s.to_batch = Some(2.into());
        s.read_ahead = 0;
    })
    .await;
    l1.lie(Lies { hides: Some(is_commit_of_2), hides_in: In::RANGES, ..Lies::default() });
    while rig.worker.status().borrow().l1_cursor.is_none_or(|read| read.get() < passed) {
        assert_eq!(rig.poll().await.unwrap().end, PollEnd::Behind);
    }
    assert_eq!(rig.safe(), Some(8), "passed over without its log");
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::Reached);
    assert_eq!(rig.safe(), Some(16));
}

#[tokio::test]
async fn a1_m2_a_batch_that_the_contract_holds_is_not_passed_over_for_a_forged_revert() {
    let devnet = network(3).await;
    devnet.with(|w| w.mine(20));
    finalize_l1(&devnet);
    let (mut rig, l1) = lied_to(&devnet, |s| s.fetch_range = 1).await;
    let block = l1_block(&devnet, l1_head(&devnet) - 19);
    let forged = vec![forged_revert(block, 2, batch_hash(&devnet, 1))];
    l1.lie(Lies { forged, forged_in: In::SCANS, ..Lies::default() });
    until_read_ahead(&mut rig).await;
    l1.be_honest();
    let mut seen = Vec::new();
    loop {
        let report = rig.poll().await.unwrap();
        seen.extend(cases(&report));
        let passed_over = rig.ports.progress.reverted_above(block.number.minus(1)).await.unwrap();
        assert_eq!(passed_over, None, "no commit is taken for reverted");
        if report.end != PollEnd::Behind {
            assert_eq!(report.end, PollEnd::CaughtUp);
            break;
        }
    }
    assert_eq!(seen, [2, 3].map(|index| (index, Case::Consistent)));
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)));
}

/// In the ordinary range it takes the batch down at once; the contract denies it, and the commit is read again.
#[tokio::test]
async fn a1_c1_a_forged_revert_in_a_range_is_undone_when_the_endpoint_is_honest_again() {
    for fetch_range in [2, 500] {
        let devnet = network(3).await;
        let (mut rig, l1) = lied_to(&devnet, |s| s.fetch_range = fetch_range).await;
        rig.settle().await;
        devnet.with(|w| w.mine(5));
        let block = l1_block(&devnet, l1_head(&devnet) - 2);
        let forged = vec![forged_revert(block, 3, batch_hash(&devnet, 2))];
        l1.lie(Lies { forged, forged_in: In::ALL, ..Lies::default() });
        for _ in 0..3 {
            rig.poll().await.unwrap();
        }
        l1.be_honest();
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "range {fetch_range}");
        assert_eq!(rig.safe(), Some(24), "range {fetch_range}");
        finalize_l1(&devnet);
        rig.settle().await;
        assert_eq!(rig.finalized(), Some(24), "range {fetch_range}");
    }
}

/// L1's logs deny a revert that was read ahead, and its contract does not: an index of logs that is being rebuilt.
#[tokio::test]
async fn a1_m2_a_revert_that_the_contract_shows_is_not_forgotten_for_want_of_its_log() {
    let devnet = network(3).await;
    let (mut rig, l1) = lied_to(&devnet, |s| s.fetch_range = 2).await;
    rig.settle().await;
    devnet.with(|w| {
        w.mine(10);
        w.revert(3).unwrap();
        w.mine(30);
    });
    finalize_l1(&devnet);
    until_read_ahead(&mut rig).await;
    l1.lie(Lies { hides: Some(is_revert), hides_in: In::ALL, ..Lies::default() });
    for _ in 0..20 {
        let report = rig.poll().await.unwrap();
        assert!(matches!(reason(&report), None | Some(Reason::Gap)), "{:?}", report.end);
        assert!(rig.finalized() <= Some(16), "finalized {:?} over a revert that is final", rig.finalized());
    }
    assert_eq!(reason(&rig.settle().await), Some(Reason::Gap));
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
}

/// Three batches verified, and a proof of all that is to come stored out of a block above them.
async fn with_a_proof(devnet: &Devnet, lies: impl FnOnce(L1Ref) -> Lies) -> (Rig, Arc<LyingL1>) {
    let (mut rig, l1) = lied_to(devnet, |_| {}).await;
    rig.settle().await;
    devnet.with(|w| w.mine(3));
    l1.lie(lies(l1_block(devnet, l1_head(devnet) - 1)));
    rig.settle().await;
    l1.be_honest();
    (rig, l1)
}

/// A proof that was never emitted, or whose block is gone, makes no halt of an ordinary revert.
#[tokio::test]
async fn m3_p8_a_forged_proof_makes_no_halt_of_an_ordinary_revert() {
    for (index, views) in [(3, true), (3, false), (u64::MAX >> 2, true), (u64::MAX >> 2, false)] {
        let devnet = network(3).await;
        let hash = batch_hash(&devnet, 2);
        let lies =
            |block| Lies { forged: vec![forged_proof(block, index, hash)], forged_in: In::RANGES, ..Lies::default() };
        let (mut rig, l1) = with_a_proof(&devnet, lies).await;
        let stored = rig.ports.progress.newest_proof(L1Number::new(u64::MAX)).await.unwrap();
        assert!(stored.is_some(), "the range stored it");
        devnet.with(|w| {
            w.revert(3).unwrap();
            w.mine(1);
        });
        l1.lie(Lies { no_views: !views, ..Lies::default() });
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{index}, views {views}");
        assert_eq!((rig.safe(), rig.worker.status().borrow().reverted), (Some(16), 1), "{index}, views {views}");
    }
}

/// The endpoint insists on the proof: then the contract's own word counts, and without it the halt lasts as long as L1 says
/// so.
#[tokio::test]
async fn m3_p8_a_proof_that_is_insisted_on_counts_only_if_the_contract_does_not_deny_it() {
    let devnet = network(3).await;
    let hash = batch_hash(&devnet, 2);
    let lies = |block| Lies { forged: vec![forged_proof(block, 3, hash)], forged_in: In::ALL, ..Lies::default() };
    let block = l1_head(&devnet) + 2;
    let (mut rig, l1) = with_a_proof(&devnet, lies).await;
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
    });
    let lies = lies(l1_block(&devnet, block));
    l1.lie(Lies { no_views: true, ..lies.clone() });
    for _ in 0..2 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::RevertBelowFinalized));
        assert_eq!(rig.safe(), Some(24));
    }
    l1.lie(lies);
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(16));
}

/// A worker that halted over a proof continues once L1 no longer has it (P8).
#[tokio::test]
async fn p8_m3_a_proof_that_was_reorganised_away_ends_the_halt_that_it_made() {
    let devnet = network(3).await;
    let (mut rig, l1) = lied_to(&devnet, |_| {}).await;
    rig.settle().await;
    // The proof of batch 3 comes in the same range as a revert of it that was never emitted.
    devnet.with(|w| {
        w.mine(1);
        w.finalize(3).unwrap();
        w.mine(3);
    });
    let block = l1_block(&devnet, l1_head(&devnet));
    let forged = vec![forged_revert(block, 3, batch_hash(&devnet, 2))];
    l1.lie(Lies { forged, forged_in: In::ALL, ..Lies::default() });
    for _ in 0..2 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::RevertBelowFinalized));
        assert_eq!(rig.safe(), Some(24));
    }
    assert!(rig.ports.progress.newest_proof(L1Number::new(u64::MAX)).await.unwrap().is_some());
    // Neither the proof nor the forged revert is on the new chain, and there the batch is reverted.
    l1.be_honest();
    devnet.with(|w| {
        w.reorg(3);
        w.mine(2);
        w.revert(3).unwrap();
        w.mine(3);
    });
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.worker.status().borrow().reverted), (Some(16), 1));
}

#[tokio::test]
async fn m3_p2_a_forged_proof_finalizes_nothing_in_the_proven_meaning() {
    for (index, wrong_hash) in [(3, false), (9, false), (3, true)] {
        for views in [true, false] {
            let devnet = network(3).await;
            devnet.with(|w| {
                w.finalize(1).unwrap();
                w.mine(10);
            });
            finalize_l1(&devnet);
            let (mut rig, l1) = lied_to(&devnet, |s| s.finality = FinalityMeaning::Proven).await;
            let block = l1_block(&devnet, l1_head(&devnet) - 3);
            let hash = if wrong_hash { B256::repeat_byte(9) } else { batch_hash(&devnet, 2) };
            let forged = vec![forged_proof(block, index, hash)];
            // With views it is insisted on.
            let forged_in = if views { In::ALL } else { In::RANGES };
            l1.lie(Lies { forged, forged_in, no_views: !views, ..Lies::default() });
            for _ in 0..4 {
                rig.settle().await;
                assert!(rig.finalized() <= Some(8), "{index} {wrong_hash} {views}: {:?}", rig.finalized());
            }
            l1.be_honest();
            rig.settle().await;
            rig.settle().await;
            assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(8)), "{index} {wrong_hash} {views}");
        }
    }
}

fn is_proof(event: &L1Event) -> bool {
    matches!(event.kind, L1EventKind::Finalize { .. })
}

/// An endpoint whose index of logs is being rebuilt says nothing against a proof that the contract has.
#[tokio::test]
async fn m3_p4_a_proof_whose_log_is_missing_once_is_not_forgotten() {
    let devnet = network(3).await;
    devnet.with(|w| {
        w.finalize(3).unwrap();
        w.mine(10);
    });
    let (mut rig, l1) = lied_to(&devnet, |s| s.finality = FinalityMeaning::Proven).await;
    rig.settle().await;
    finalize_l1(&devnet);
    l1.lie(Lies { hides: Some(is_proof), hides_in: In::SCANS, ..Lies::default() });
    rig.settle().await;
    assert!(rig.ports.progress.newest_proof(L1Number::new(u64::MAX)).await.unwrap().is_some());
    assert_eq!(rig.finalized(), Some(24), "by the contract's word");
}

/// A database that begins with batch 3 has no batch left when L1 takes it back: what is missing then still blocks (P3).
#[tokio::test]
async fn a1_p3_after_the_last_batch_was_taken_back_a_gap_still_blocks() {
    fn is_third(event: &L1Event) -> bool {
        matches!(event.kind, L1EventKind::Commit { index, .. } if index.get() == 3)
    }
    let devnet = network(3).await;
    let start = commit_block(&devnet, 2);
    let (mut rig, l1) = lied_to(&devnet, |s| s.start = start.into()).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| {
        w.mine(1);
        w.revert(3).unwrap();
        w.mine(1);
        w.recommit_state().unwrap();
        w.produce(8).unwrap();
        w.sync();
        w.mine(1);
    });
    l1.lie(Lies { hides: Some(is_third), hides_in: In::ALL, ..Lies::default() });
    for _ in 0..2 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::Gap));
        assert!(rig.ports.progress.batch(4.into()).await.unwrap().is_none());
    }
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(32));
    for index in [3, 4] {
        assert!(rig.ports.progress.batch(index.into()).await.unwrap().is_some(), "batch {index}");
    }
}

/// A revert of every stored batch takes nothing down if the contract still holds the batch.
#[tokio::test]
async fn a1_p3_a_forged_revert_of_every_batch_is_not_believed_over_the_contract() {
    let devnet = network(3).await;
    let start = commit_block(&devnet, 2);
    let (mut rig, l1) = lied_to(&devnet, |s| s.start = start.into()).await;
    rig.settle().await;
    devnet.with(|w| w.mine(3));
    let forged = vec![forged_revert(l1_block(&devnet, l1_head(&devnet) - 1), 3, batch_hash(&devnet, 2))];
    l1.lie(Lies { forged, forged_in: In::ALL, ..Lies::default() });
    for _ in 0..2 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::Gap));
        assert_eq!((rig.safe(), rig.worker.status().borrow().reverted), (Some(24), 0));
    }
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(24));
}

/// Batch 3 is reverted and committed again without blobs, and `forged` commits of it were made up in between.
async fn recommitted_among_forged(forged: u64) -> (Devnet, Vec<L1Event>) {
    let devnet = network(3).await;
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(20);
    });
    let block = l1_block(&devnet, l1_head(&devnet) - 5);
    devnet.with(|w| {
        w.recommit_state().unwrap();
        w.mine(1);
    });
    let forged = (0..forged).map(|n| {
        let event = forged_commit(block, 3, B256::repeat_byte(7));
        L1Event { log_index: event.log_index + n, ..event }
    });
    (devnet, forged.collect())
}

#[tokio::test]
async fn c2_a1_earlier_commits_that_were_made_up_are_not_tried_without_bound() {
    let (devnet, forged) = recommitted_among_forged(500).await;
    let (mut rig, l1) = lied_to(&devnet, |_| {}).await;
    let searches = In { searches: true, ..In::NOTHING };
    l1.lie(Lies { forged, forged_in: searches, ..Lies::default() });
    assert_eq!(reason(&rig.settle().await), Some(Reason::UnknownCommit), "which says nothing of the chain");
    assert!(l1.asked("transaction") < 60, "{} transactions", l1.asked("transaction"));
    assert_eq!(rig.safe(), Some(16));
    l1.be_honest();
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(24));
}

#[tokio::test]
async fn c2_p4_trying_earlier_commits_continues_in_the_next_poll() {
    let (devnet, forged) = recommitted_among_forged(20).await;
    let (mut rig, l1) = lied_to(&devnet, |s| s.search_time = Duration::ZERO).await;
    let searches = In { searches: true, ..In::NOTHING };
    l1.lie(Lies { forged, forged_in: searches, ..Lies::default() });
    let (mut searching, mut verified) = (0, Vec::new());
    for _ in 0..100 {
        let before = l1.asked("transaction");
        match rig.poll().await {
            Ok(report) if report.end == PollEnd::Behind => verified.extend(cases(&report)),
            Ok(report) => {
                verified.extend(cases(&report));
                assert_eq!(report.end, PollEnd::CaughtUp);
                break;
            }
            Err(error) => {
                assert_eq!(error.stall().reason(), Reason::SearchingL1, "{error}");
                searching += 1;
            }
        }
        // Each batch's own, that of the third twice since it does not bind ahead of its turn, and one that is tried.
        assert!(l1.asked("transaction") - before <= 5, "{} in one poll", l1.asked("transaction") - before);
    }
    assert!(searching >= 20, "{searching} polls");
    assert_eq!(verified.last(), Some(&(3, Case::Consistent)));
    assert_eq!(rig.safe(), Some(24));
}

/// One more batch, reverted and committed again above the finalized block, as the scan ahead sees it.
async fn read_ahead_to_the_end(fetch_range: u64) -> (Devnet, Rig, Arc<LyingL1>) {
    let devnet = network(3).await;
    let (mut rig, l1) = lied_to(&devnet, |s| s.fetch_range = fetch_range).await;
    rig.settle().await;
    devnet.with(|w| {
        w.mine(10);
        w.revert(3).unwrap();
        w.mine(10);
    });
    let final_to = l1_head(&devnet);
    devnet.with(|w| w.mine(40));
    devnet.l1_knobs(0, |k| k.finalized = Some(final_to));
    until_read_ahead(&mut rig).await;
    (devnet, rig, l1)
}

async fn known(rig: &Rig) -> (Option<L1Ref>, usize) {
    let reverts = known_reverts(rig).await;
    (rig.ports.progress.settled_to().await.unwrap(), reverts.len())
}

/// Only a base that is another one wipes what was read ahead; a piece that fits nothing is not taken, and that is all.
#[tokio::test]
async fn m2_a1_a_new_piece_that_is_torn_wipes_no_older_ones() {
    let (devnet, mut rig, l1) = read_ahead_to_the_end(2).await;
    let before = known(&rig).await;
    let torn = L1Ref { number: (l1_head(&devnet) - 30).into(), hash: B256::repeat_byte(5) };
    let last = l1_head(&devnet);
    devnet.l1_knobs(0, |k| k.finalized = Some(last));
    let forged = (0..40).map(|back| forged_revert(L1Ref { number: (last - back).into(), ..torn }, 2, B256::zero()));
    l1.lie(Lies { forged: forged.collect(), forged_in: In::SCANS, ..Lies::default() });
    rig.poll().await.unwrap();
    let after = known(&rig).await;
    assert!(after.0.map(|to| to.number) >= before.0.map(|to| to.number), "{before:?}, {after:?}");
    assert_eq!(after.1, before.1);
    assert!(rig.finalized().is_none_or(|f| f <= 16));
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
}

/// A missing header proves nothing: the scan does not move.
#[tokio::test]
async fn m2_b8_a_missing_header_wipes_no_scan() {
    let (devnet, mut rig, l1) = read_ahead_to_the_end(6).await;
    let before = known(&rig).await;
    assert_eq!(before.1, 1);
    let (Some(to), last) = (before.0, l1_head(&devnet)) else { panic!("nothing was read ahead") };
    // The scan's base, which the next piece is held against.
    devnet.l1_knobs(0, |k| k.finalized = Some(last));
    l1.lie(Lies { lacks: vec![to.number.get()], ..Lies::default() });
    for _ in 0..2 {
        assert!(rig.poll().await.is_err());
        assert_eq!(known(&rig).await, before);
    }
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
}

/// The log of a revert that was read ahead is gone, and the header of its block is missing. It lies in the middle
/// of a range, so that nothing but the look at that revert asks for it: the range waits, and the revert stays known.
#[tokio::test]
async fn m2_b8_a_missing_header_forgets_no_revert() {
    let devnet = network(3).await;
    let (mut rig, l1) = lied_to(&devnet, |s| {
        s.fetch_range = 6;
        // Each range in its turn, after the lie began.
        s.read_ahead = 0;
    })
    .await;
    rig.settle().await;
    // Five blocks into the second range after the batches.
    devnet.with(|w| {
        w.mine(9);
        w.revert(3).unwrap();
        w.mine(30);
    });
    finalize_l1(&devnet);
    let at = loop {
        rig.poll().await.unwrap();
        let next = rig.worker.status().borrow().l1_cursor.map_or(0, L1Number::get) + 1;
        let known = known_reverts(&rig).await;
        if let Some(revert) = known.first()
            && (next + 1..next + 5).contains(&revert.block.number.get())
        {
            break revert.block.number;
        }
        assert!(next < l1_head(&devnet), "the revert was not read ahead of its range");
    };
    let everywhere = Lies { hides: Some(is_revert), hides_in: In::ALL, no_views: true, ..Lies::default() };
    l1.lie(Lies { lacks: vec![at.get()], ..everywhere });
    for _ in 0..4 {
        let error = rig.poll().await.expect_err("the header is needed");
        assert_eq!(error.stall().reason(), Reason::L1Reorg, "{error}");
        assert_eq!(known(&rig).await.1, 1);
        assert!(rig.worker.status().borrow().l1_cursor.is_some_and(|to| to < at), "the range was passed");
    }
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
}

/// One answer in part, after a refusal, does not end the reading ahead for the rest of a catch-up.
#[tokio::test]
async fn m2_m16_an_answer_in_part_does_not_end_the_scan_ahead_of_a_catch_up() {
    let devnet = network(1).await;
    devnet.with(|w| w.mine(400));
    finalize_l1(&devnet);
    let (mut rig, l1) = lied_to(&devnet, |s| s.fetch_range = 4).await;
    let ahead = async |rig: &Rig| {
        let settled = rig.ports.progress.settled_to().await.unwrap().map_or(0, |to| to.number.get());
        settled.saturating_sub(rig.worker.status().borrow().l1_cursor.map_or(0, |n| n.get()))
    };
    l1.lie(Lies { most: Some(2), ..Lies::default() });
    rig.poll().await.unwrap();
    rig.poll().await.unwrap();
    l1.be_honest();
    for _ in 0..30 {
        assert_eq!(rig.poll().await.unwrap().end, PollEnd::Behind);
    }
    assert!(ahead(&rig).await > 100, "{} blocks ahead of the batches", ahead(&rig).await);
}

/// What a reorg moved is taken over also from an endpoint that answers a range in parts: safe never dips.
#[tokio::test]
async fn b2_m16_a_range_that_is_answered_in_parts_rebinds_what_moved() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.mine(20);
        w.produce(8).unwrap();
        w.mine(2);
        w.sync();
    });
    let (mut rig, l1) = lied_to(&devnet, |_| {}).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| {
        let known = w.batches.clone();
        let dropped = w.reorg(3);
        w.mine(9);
        w.resubmit(&dropped, &known).unwrap();
        w.mine(6);
    });
    l1.lie(Lies { most: Some(4), ..Lies::default() });
    let report = rig.poll().await.unwrap();
    assert!(report.batches.is_empty(), "what was verified stays verified");
    assert_eq!(rig.safe(), Some(24));
    l1.be_honest();
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.worker.status().borrow().verified), (Some(24), 3));
}
