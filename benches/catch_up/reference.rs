//! The access pattern of the reference node's own derivation: everything one after another. Nothing of it is taken from
//! there but the order of its requests.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use morph_deriver::adapters::l1::L1Client;
use morph_deriver::adapters::l2::{L2Client, L2Config};
use morph_deriver::adapters::rpc::{Pool, PoolConfig};
use morph_deriver::codec::{batch, blob, frame};
use morph_deriver::error::Target;
use morph_deriver::ports::{L1Chain as _, L2Reader as _};
use morph_deriver::types::{Blob, L1EventKind, L1Number, L2Block, L2Number};

use crate::network::{Shape, Urls};

/// What was measured.
pub struct Sequential {
    pub per_batch: Duration,
    pub batches: u64,
    pub blobs: Vec<Blob>,
    pub blobs_per_batch: f64,
}

/// Verifies batches one after another, for about as long as `patience` allows, and one at least.
pub async fn catch_up(urls: &Urls, shape: &Shape, patience: Duration) -> anyhow::Result<Sequential> {
    blob::warm_up()?;
    let pool = |target, url: &str| Pool::new(target, &[url.to_owned()], PoolConfig::default());
    let l1 = L1Client::new(pool(Target::L1, &urls.l1)?, urls.rollup, urls.queue);
    let l2 = L2Client::new(
        pool(Target::L2, &urls.l2)?,
        L2Config { blocks_per_batch: 1, parallel: 1, ..L2Config::default() },
    );
    // One connection each, and the form of blocks found out, before the clock runs.
    l2.blocks(L2Number::new(1), L2Number::new(1)).await?;
    let mut found = Sequential { per_batch: Duration::ZERO, batches: 0, blobs: Vec::new(), blobs_per_batch: 0.0 };
    let mut below = 0;
    let begin = Instant::now();
    for (at, &commit) in (0_u64..).zip(&urls.commits) {
        let range = l1.events(L1Number::new(below + 1), L1Number::new(commit)).await?;
        for number in below + 1..=commit {
            l1.headers(&[L1Number::new(number)]).await?;
        }
        let event = range
            .events
            .iter()
            .find(|event| matches!(event.kind, L1EventKind::Commit { index, .. } if index.get() == at + 1));
        let event = event.with_context(|| format!("the commit of batch {}", at + 1))?;
        l1.transaction(event.block, event.tx_index).await?.context("the commit's transaction")?;
        let queue = range.events.iter().filter_map(|event| match &event.kind {
            L1EventKind::Message(message) => Some(message.hash),
            _ => None,
        });
        let queue: Vec<_> = queue.collect();
        let (first, last) = (at * shape.blocks + 1, (at + 1) * shape.blocks);
        let mut local: Vec<L2Block> = Vec::new();
        for number in first..=last {
            let number = L2Number::new(number);
            local.extend(l2.blocks(number, number).await?);
        }
        let contents = batch::contents_of(&local, &queue).context("the batch's own blocks")?;
        let blobs = blob::pack(&frame::encode_slow(&batch::encode(&contents, false))?)?;
        for blob in &blobs {
            blob::commitment(blob)?;
        }
        let tip = local.last().context("no block")?.header.l2_ref();
        l2.message_root(tip).await?;
        found.blobs.extend(blobs);
        found.batches += 1;
        below = commit;
        if begin.elapsed() >= patience {
            break;
        }
    }
    found.per_batch = begin.elapsed().div_f64(found.batches as f64);
    found.blobs_per_batch = found.blobs.len() as f64 / found.batches as f64;
    Ok(found)
}
