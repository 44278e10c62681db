//! The main job on whole flows over HTTP: the case table, the recorded network, a real batch (issue "The main job").

use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::pull::PullEnd;
use morph_deriver::types::Case;

use crate::support::rig::{Rig, cases};

#[tokio::test]
async fn a_chain_that_is_what_l1_committed_to_is_consistent_throughout() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    devnet.with(|w| {
        for _ in 0..3 {
            w.produce(8).unwrap();
        }
        w.mine(20);
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PullEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::Consistent), (3, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(24));
    assert_eq!(rig.finalized(), Some(24));
    assert!(devnet.writes().is_empty());
}
