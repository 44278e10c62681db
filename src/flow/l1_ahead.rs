//! Ranges of L1 that are read while the one before them is dealt with.
//!
//! In a catch-up the batches of the next ranges are gathered before their turn (`ahead`), so that the cores have work also
//! when a range ends. Each range is read here as it is in its turn (`l1_range`), on the last block of the one before.
//!
//! Nothing is decided here, and nothing outdated is used. In its turn a range counts only if it is the very range that
//! would be read now, if nothing is recorded of its blocks besides the block that it was read on, and if its last block
//! is still canonical: that block's hash pins every block below it. Otherwise this range and those above it are dropped,
//! and it is read again. A reorg drops them all, and so does reading a range that ends in anything but "go on".

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::decide::cursor::{self, Range};
use crate::flow::l1_range::{self, Reading};
use crate::flow::{Ports, Settings};
use crate::ports::L1Chain;
use crate::types::{Cursor, L1Number, L1Ref};

/// Ranges that are held at once, each at most what one call for logs gives: some 4 MiB, and 8 MiB of a hostile endpoint
/// (P7).
const RANGES_AT_ONCE: usize = 6;

/// One range.
struct ReadAhead {
    range: Range,
    /// The block right below it.
    base: L1Ref,
    work: Work,
}

enum Work {
    UnderWay(AbortOnDropHandle<Option<Reading>>),
    Done(Option<Box<Reading>>),
}

impl ReadAhead {
    /// What was read, if it is done.
    fn reading(&mut self) -> Option<&Reading> {
        if let Work::UnderWay(work) = &mut self.work
            && work.is_finished()
        {
            let reading = work.now_or_never().and_then(Result::ok).flatten();
            self.work = Work::Done(reading.map(Box::new));
        }
        match &self.work {
            Work::Done(Some(reading)) => Some(reading),
            Work::Done(None) | Work::UnderWay(_) => None,
        }
    }

    async fn end(self) -> Option<Box<Reading>> {
        match self.work {
            Work::UnderWay(work) => work.await.ok().flatten().map(Box::new),
            Work::Done(reading) => reading,
        }
    }
}

/// The ranges after the one that has its turn, in their order.
pub(crate) struct RangesAhead {
    l1: Arc<dyn L1Chain>,
    width: u64,
    window: u64,
    ranges: VecDeque<ReadAhead>,
}

impl RangesAhead {
    /// None yet.
    pub(crate) fn new(ports: &Ports, settings: &Settings) -> Self {
        let (width, window) = (settings.fetch_range, settings.reorg_window);
        Self { l1: ports.l1.clone(), width, window, ranges: VecDeque::new() }
    }

    /// Drops all of them.
    pub(crate) fn forget(&mut self) {
        self.ranges.clear();
    }

    /// Begins to read the range after those that are read, the first of which follows block `end`. One at a time, none
    /// after one that took several requests (A3), and only what is settled up to its last block: a range that ends at
    /// `confirmed` is another one at the next poll.
    pub(crate) fn begin(&mut self, end: L1Ref, confirmed: L1Number) {
        let base = match self.ranges.back_mut() {
            None => end,
            Some(last) => match last.reading() {
                Some(reading) if reading.whole => reading.end,
                Some(_) | None => return,
            },
        };
        let below = Cursor { block: base, log_index: None };
        let range = cursor::next_range(Some(&below), base.number, confirmed, self.width);
        let Some(range) = range.filter(|range| range.to < confirmed) else { return };
        if self.ranges.len() >= RANGES_AT_ONCE {
            return;
        }
        let (l1, window) = (self.l1.clone(), self.window);
        let read = async move {
            let read = l1_range::read(l1.as_ref(), range, &[base], window).await;
            read.inspect_err(|error| debug!(%error, from = range.from.get(), "an L1 range was not read ahead")).ok()
        };
        let work = Work::UnderWay(AbortOnDropHandle::new(tokio::spawn(read)));
        self.ranges.push_back(ReadAhead { range, base, work });
    }

    /// Those that are read, from the first one on.
    pub(crate) fn readings(&mut self) -> impl Iterator<Item = &Reading> {
        self.ranges.iter_mut().map_while(ReadAhead::reading)
    }

    /// What was read of `range`, whose turn it is, if it counts: `known` is what is recorded of its blocks and of the one
    /// below it.
    pub(crate) async fn take(&mut self, range: Range, known: &[L1Ref]) -> Option<Box<Reading>> {
        let first = self.ranges.pop_front()?;
        let reading = match first.range == range && known == [first.base] {
            true => first.end().await,
            false => None,
        };
        let counts = match &reading {
            Some(reading) => self.is_canonical(reading.end).await,
            None => false,
        };
        if !counts {
            self.forget();
        }
        reading.filter(|_| counts)
    }

    /// Whether L1 has this block now. If it cannot be asked, the range is read again, and that gives the error.
    async fn is_canonical(&self, block: L1Ref) -> bool {
        let live = self.l1.headers(&[block.number]).await;
        live.is_ok_and(|live| live.first().copied().flatten().is_some_and(|header| header.l1_ref() == block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;

    const CONFIRMED: u64 = 30;

    /// Ranges of five blocks, of which those after block 10 are read ahead: 11 to 15, 16 to 20, 21 to 25.
    async fn read() -> (World, RangesAhead) {
        let mut world = World::recorded().await;
        world.settings.fetch_range = 5;
        let mut ranges = RangesAhead::new(&world.ports, &world.settings);
        let end = world.l1.now().at(10);
        while ranges.ranges.len() < 3 || ranges.readings().count() < 3 {
            ranges.begin(end, CONFIRMED.into());
            tokio::task::yield_now().await;
        }
        (world, ranges)
    }

    fn range(from: u64, to: u64) -> Range {
        Range { from: from.into(), to: to.into() }
    }

    #[tokio::test]
    async fn each_range_is_read_on_the_end_of_the_one_before_and_counts_in_its_turn() {
        let (world, mut ranges) = read().await;
        for (from, to) in [(11, 15), (16, 20), (21, 25)] {
            let below = world.l1.now().at(from - 1);
            let ahead = ranges.take(range(from, to), &[below]).await.unwrap();
            let now = l1_range::read(&world.l1, range(from, to), &[below], world.settings.reorg_window).await.unwrap();
            assert_eq!((ahead.end, ahead.blocks, ahead.headers), (now.end, now.blocks, now.headers));
            assert_eq!(ahead.events, now.events);
        }
        assert!(ranges.ranges.is_empty());
    }

    #[tokio::test]
    async fn nothing_above_the_confirmed_block_is_read_and_no_more_ranges_than_allowed() {
        let (world, mut ranges) = read().await;
        for _ in 0..50 {
            ranges.begin(world.l1.now().at(10), CONFIRMED.into());
            tokio::task::yield_now().await;
        }
        let last = ranges.ranges.back().map(|last| last.range);
        assert_eq!(last, Some(range(21, 25)), "26 to 30 is another range when block 31 is confirmed");
    }

    #[tokio::test]
    async fn b1_p8_a_range_whose_blocks_left_l1_does_not_count_nor_do_those_above() {
        let (world, mut ranges) = read().await;
        let base = world.l1.now().at(10);
        // The logs stay those of the first chain; the last block alone shows the reorg.
        world.l1.now().reorganise(13);
        assert!(ranges.take(range(11, 15), &[base]).await.is_none());
        assert!(ranges.ranges.is_empty());
    }

    #[tokio::test]
    async fn b1_a_range_that_would_not_be_read_now_does_not_count() {
        let other = |world: &World| world.l1.now().at(9);
        let base = |world: &World| world.l1.now().at(10);
        let inside = |world: &World| world.l1.now().at(12);
        for case in 0..4 {
            let (world, mut ranges) = read().await;
            let (range, known) = match case {
                0 => (range(11, 14), vec![base(&world)]),
                1 => (range(10, 15), vec![base(&world)]),
                2 => (range(11, 15), vec![other(&world)]),
                _ => (range(11, 15), vec![inside(&world), base(&world)]),
            };
            assert!(ranges.take(range, &known).await.is_none(), "case {case}");
            assert!(ranges.ranges.is_empty(), "case {case}");
        }
    }

    #[tokio::test]
    async fn a_range_that_could_not_be_read_is_read_in_its_turn() {
        let mut world = World::recorded().await;
        world.settings.fetch_range = 5;
        let mut ranges = RangesAhead::new(&world.ports, &world.settings);
        let stray = L1Ref { number: 10.into(), hash: crate::types::B256::repeat_byte(1) };
        ranges.begin(stray, CONFIRMED.into());
        assert!(ranges.take(range(11, 15), &[stray]).await.is_none(), "it does not build on that block");
    }
}
