//! A range of L1, read consistently: all of its logs on one chain that builds on what is recorded.

use tracing::debug;

use crate::decide::cursor::Range;
use crate::decide::range::{self, RangeFacts};
use crate::flow::FlowError;
use crate::ports::{L1Chain, RangeLogs};
use crate::types::{Cursor, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag};

/// One range of L1 that was read and checked against its headers.
pub(crate) struct Reading {
    /// Its logs, in order.
    pub(crate) events: Vec<L1Event>,
    /// Blocks of the reorg window, and those that hold events; the last one is the range's end.
    pub(crate) blocks: Vec<L1Ref>,
    /// Their headers.
    pub(crate) headers: Vec<L1Header>,
    /// The last block of the range.
    pub(crate) end: L1Ref,
    /// Whether one answer held all of the range that was asked for.
    pub(crate) whole: bool,
    /// When the newest commit of the range was made, in seconds since the Unix epoch.
    pub(crate) last_commit_at: Option<u64>,
}

/// Reads the logs of a range, or of its first part, between two reads of its end header. All that is read must lie on
/// one chain, and this must hold the `known` blocks, one of which may lie right below the range (B1). `window` is how
/// many blocks below the end a later reorg may still change.
///
/// # Errors
/// When L1 cannot be asked, and `l1_reorg` if its answers do not fit together.
pub(crate) async fn read(l1: &dyn L1Chain, range: Range, known: &[L1Ref], window: u64) -> Result<Reading, FlowError> {
    let Range { from, to } = range;
    let before = one(l1.headers(&[to]).await?, to)?.l1_ref();
    let RangeLogs { events, ends } = l1.events(from, to).await?;
    let facts = RangeFacts { from, known, before, ends: &ends, events: &events, headers: &[] };
    // An endpoint that serves narrow ranges answers only the first part: the range ends there.
    let answered = ends.last().map_or(to, |end| end.number.clamp(from, to));
    let whole = ends.len() == 1 && answered == to;
    let numbers = range::heights(&facts, still_open(l1, from, answered, window).await);
    let live = l1.headers(&numbers).await?;
    let headers: Vec<_> = numbers.into_iter().zip(live).collect();
    let chain = range::check(&RangeFacts { headers: &headers, ..facts });
    let chain = chain.map_err(|fault| FlowError::l1_changed(fault.to_string()))?;
    let newest_commit = events.iter().rev().find(|e| matches!(e.kind, L1EventKind::Commit { .. }));
    let commit_header = newest_commit.and_then(|e| chain.iter().find(|header| header.l1_ref() == e.block));
    let last_commit_at = commit_header.map(|header| header.timestamp);
    let blocks: Vec<_> = chain.iter().map(L1Header::l1_ref).collect();
    let Some(end) = blocks.last().copied() else {
        return Err(FlowError::l1_changed(format!("L1 block {to} is unknown")));
    };
    debug!(from = from.get(), to = end.number.get(), events = events.len(), "L1 range read");
    Ok(Reading { events, blocks, headers: chain, end, whole, last_commit_at })
}

/// Heights of the range that a later reorg could still change: recorded one by one, so that the common ancestor can be
/// found to the block. Below L1 finality nothing changes and only the end is recorded. If the finalized block is not
/// known, nothing is taken for final (A8).
async fn still_open(l1: &dyn L1Chain, from: L1Number, to: L1Number, window: u64) -> Vec<L1Number> {
    let finalized = l1.tagged(L1Tag::Finalized).await.ok().flatten();
    if finalized.is_some_and(|f| to <= f.number) {
        return Vec::new();
    }
    let low = from.max(to.minus(window));
    (low.get()..to.get()).map(L1Number::new).collect()
}

/// The cursor that makes the log at `log_index` of `block` the next one; none if nothing lies below it.
///
/// # Errors
/// When L1 cannot be asked, and `l1_reorg` if it does not know the block below.
pub(crate) async fn cursor_before(l1: &dyn L1Chain, block: L1Ref, log_index: u64) -> Result<Option<Cursor>, FlowError> {
    if let Some(before) = log_index.checked_sub(1) {
        return Ok(Some(Cursor { block, log_index: Some(before) }));
    }
    if block.number.get() == 0 {
        return Ok(None);
    }
    let below = block.number.minus(1);
    let parent = one(l1.headers(&[below]).await?, below)?;
    Ok(Some(Cursor { block: parent.l1_ref(), log_index: None }))
}

fn one(headers: Vec<Option<L1Header>>, number: L1Number) -> Result<L1Header, FlowError> {
    let header = headers.first().copied().flatten();
    header.ok_or_else(|| FlowError::l1_changed(format!("L1 block {number} is unknown")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Severity;
    use crate::flow::testing::World;

    fn range(from: u64, to: u64) -> Range {
        Range { from: from.into(), to: to.into() }
    }

    #[tokio::test]
    async fn b1_a_range_lies_on_one_chain_that_builds_on_what_is_known() {
        let world = World::recorded().await;
        let known = world.l1.now().at(10);
        let reading = read(&world.l1, range(11, 20), &[known], 64).await.unwrap();
        assert_eq!((reading.end, reading.events.len()), (world.l1.now().at(20), 3));
        world.l1.now().reorganise(10);
        let torn = read(&world.l1, range(11, 20), &[known], 64).await.map(|reading| reading.end);
        assert_eq!(torn.unwrap_err().severity(), Severity::Reset);
        let known = world.l1.now().at(10);
        world.l1.now().events.last_mut().unwrap().block.hash.0[0] ^= 1;
        let torn = read(&world.l1, range(11, 20), &[known], 64).await.map(|reading| reading.end);
        assert_eq!(torn.unwrap_err().severity(), Severity::Reset);
    }

    #[tokio::test]
    async fn a_narrow_answer_makes_a_shorter_range() {
        let world = World::recorded().await;
        world.l1.now().reach = 3;
        let reading = read(&world.l1, range(11, 20), &[], 64).await.unwrap();
        assert_eq!((reading.end, reading.events.len()), (world.l1.now().at(13), 2));
    }

    #[tokio::test]
    async fn the_cursor_before_a_log_is_the_log_or_the_block_below_it() {
        let world = World::recorded().await;
        let [ninth, tenth] = [9, 10].map(|number| world.l1.now().at(number));
        let before = cursor_before(&world.l1, tenth, 1).await.unwrap();
        assert_eq!(before, Some(Cursor { block: tenth, log_index: Some(0) }));
        let before = cursor_before(&world.l1, tenth, 0).await.unwrap();
        assert_eq!(before, Some(Cursor { block: ninth, log_index: None }));
        let first = world.l1.now().at(0);
        assert_eq!(cursor_before(&world.l1, first, 0).await.unwrap(), None);
    }
}
