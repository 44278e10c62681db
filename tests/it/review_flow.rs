//! Faults that only a close reading of the flow found: what each of them would have done, and that it does not.

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::world::ForkShape;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::pull::PullEnd;
use morph_deriver::types::Case;

use crate::support::rig::{Rig, cases, reason};

async fn devnet() -> Devnet {
    Devnet::start(DevnetOptions { refuse_unpaused_writes: true, ..DevnetOptions::default() }).await.unwrap()
}

#[tokio::test]
async fn e1_a_fork_before_the_switch_is_a_divergence_and_never_rewritten() {
    let devnet = devnet().await;
    let batch = devnet.with(|w| {
        w.produce(8).unwrap();
        let batch = w.produce(8).unwrap();
        w.sync();
        w.fork_at(batch.first + 3, ForkShape::ExtraTransaction).unwrap();
        batch
    });
    let mut rig = Rig::with(&devnet, |s| s.switch_ms = u64::MAX).await;
    for _ in 0..3 {
        let report = rig.settle_stopped().await;
        assert_eq!(reason(&report), Some(Reason::DivergesBeforeSwitch));
    }
    assert!(Reason::DivergesBeforeSwitch.is_divergence() && Reason::DivergesBeforeSwitch.is_halt());
    assert_eq!(rig.safe(), Some(batch.first - 1));
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
    // The node is resynced by hand: it goes on by itself.
    devnet.with(|w| {
        w.truncate_to(batch.first - 1);
        w.sync();
    });
    let report = rig.settle().await;
    assert_eq!(report.end, PullEnd::CaughtUp);
    assert_eq!(cases(&report), [(2, Case::Consistent)]);
}
