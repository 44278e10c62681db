//! Where our heads stand on L1: what `optimism_syncStatus` says beyond number and hash.
//!
//! The L1 origin of an L2 block is the L1 block that holds the commit of its batch. A block above our safe head is in no
//! batch yet: it is shown with the origin of safe, the lowest that it can have. What could not be looked up is shown as
//! not known and looked up again in the next poll; nothing in the flow depends on it.

use std::sync::Arc;

use tracing::debug;

use crate::decide::heads::Heads;
use crate::flow::Ports;
use crate::ports::{L1Chain, L2Reader, PortResult, Rows};
use crate::types::{B256, L1Header, L1Ref, L2Place, L2Ref, L2Snapshot, SyncStatus};

/// What a poll saw, as far as the faces show it.
pub(crate) struct Seen {
    /// Our heads.
    pub(crate) heads: Heads,
    /// Up to which L1 was read.
    pub(crate) cursor: Option<L1Ref>,
    /// What the node showed last; none if it has not answered yet.
    pub(crate) node: Option<L2Snapshot>,
    /// L1's newest block.
    pub(crate) newest_l1: Option<L1Header>,
    /// L1's finalized block.
    pub(crate) finalized_l1: Option<L1Header>,
}

/// Where our heads stand on L1, as it was looked up last.
pub(crate) struct Places {
    l1: Arc<dyn L1Chain>,
    l2: Arc<dyn L2Reader>,
    rows: Arc<dyn Rows>,
    current_l1: Option<L1Header>,
    safe: Option<L2Place>,
    finalized: Option<L2Place>,
}

impl Places {
    /// Nothing looked up yet.
    pub(crate) fn new(ports: &Ports) -> Self {
        let (l1, l2, rows) = (ports.l1.clone(), ports.l2.clone(), ports.progress.clone());
        Self { l1, l2, rows, current_l1: None, safe: None, finalized: None }
    }

    /// Looks up what is not known yet of `heads` and of `cursor`. A head that did not move costs no request to a node;
    /// its row is read again each time, because an L1 reorg may have moved its commit.
    pub(crate) async fn look_up(&mut self, heads: Heads, cursor: Option<L1Ref>) {
        let note = |error| debug!(%error, "cannot look up where a head stands on L1; trying again in the next poll");
        match self.l1_header(cursor).await {
            Ok(header) => self.current_l1 = header,
            Err(error) => note(error),
        }
        match self.place_of(heads.safe(), [self.safe, self.finalized]).await {
            Ok(place) => self.safe = place,
            Err(error) => note(error),
        }
        match self.place_of(heads.finalized(), [self.finalized, self.safe]).await {
            Ok(place) => self.finalized = place,
            Err(error) => note(error),
        }
    }

    async fn l1_header(&self, block: Option<L1Ref>) -> PortResult<Option<L1Header>> {
        let Some(block) = block else { return Ok(None) };
        if let Some(known) = self.current_l1.filter(|known| known.l1_ref() == block) {
            return Ok(Some(known));
        }
        let header = self.l1.headers(&[block.number]).await?.into_iter().next().flatten();
        Ok(header.filter(|header| header.l1_ref() == block))
    }

    async fn place_of(&self, head: Option<L2Ref>, known: [Option<L2Place>; 2]) -> PortResult<Option<L2Place>> {
        let Some(block) = head else { return Ok(None) };
        let known = known.into_iter().flatten().find(|place| place.block == block);
        let Some(row) = self.rows.batch_ending_on(block).await? else { return Ok(known) };
        let sequence = row.first.map_or(0, |first| block.number.above(first));
        if let Some(known) = known {
            return Ok(Some(L2Place { origin: row.l1, sequence, ..known }));
        }
        let header = self.l2.header(block.number).await?.filter(|header| header.l2_ref() == block);
        Ok(header.map(|header| L2Place {
            block,
            parent_hash: header.parent_hash,
            timestamp: header.timestamp,
            origin: row.l1,
            sequence,
        }))
    }

    /// The heads of `seen` with their places, as far as they are known.
    pub(crate) fn show(&self, seen: &Seen) -> SyncStatus {
        let with_place = |head: Option<L2Ref>, known: Option<L2Place>| {
            head.map(|block| known.filter(|place| place.block == block).unwrap_or_else(|| bare(block)))
        };
        let safe_l2 = with_place(seen.heads.safe(), self.safe);
        let head = seen.node.map(|node| above(of_head(&node), safe_l2.as_ref()));
        SyncStatus {
            current_l1: self.current_l1.filter(|header| Some(header.l1_ref()) == seen.cursor),
            head_l1: seen.newest_l1,
            // Safe on L1 is not asked for. What is finalized there is safe.
            safe_l1: seen.finalized_l1,
            finalized_l1: seen.finalized_l1,
            unsafe_l2: head,
            safe_l2,
            finalized_l2: with_place(seen.heads.finalized(), self.finalized),
        }
    }
}

/// A block of which only number and hash are known.
pub(crate) fn bare(block: L2Ref) -> L2Place {
    let zero = L1Ref { number: 0.into(), hash: B256::zero() };
    L2Place { block, parent_hash: B256::zero(), timestamp: 0, origin: zero, sequence: 0 }
}

/// The head that `node` shows, without a place on L1.
pub(crate) fn of_head(node: &L2Snapshot) -> L2Place {
    L2Place { parent_hash: node.head_parent, timestamp: node.head_time, ..bare(node.head) }
}

/// The head, with the origin of the safe head below it. A safe head that we wrote since the head was read is the head.
pub(crate) fn above(head: L2Place, safe: Option<&L2Place>) -> L2Place {
    let Some(safe) = safe else { return head };
    if safe.block.number >= head.block.number {
        return *safe;
    }
    let sequence = safe.sequence.saturating_add(head.block.number.above(safe.block.number));
    L2Place { origin: safe.origin, sequence, ..head }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;
    use crate::ports::Step;

    async fn seen(world: &World) -> Seen {
        let newest = world.l1.now().headers.last().copied();
        Seen {
            heads: world.ledger.heads(),
            cursor: world.ledger.cursor().map(|cursor| cursor.block),
            node: Some(world.shown().await),
            newest_l1: newest,
            finalized_l1: newest,
        }
    }

    async fn shown(world: &World, places: &mut Places) -> SyncStatus {
        let seen = seen(world).await;
        places.look_up(seen.heads, seen.cursor).await;
        places.show(&seen)
    }

    #[tokio::test]
    async fn i12_a_head_is_shown_with_the_l1_block_of_its_batchs_commit() {
        let mut world = World::recorded().await;
        let mut places = Places::new(&world.ports);
        assert_eq!(shown(&world, &mut places).await.safe_l2, None);
        world.verified(6).await;
        world.store(Step { finalized: Some(world.l2(36)), ..Step::default() }).await;
        let status = shown(&world, &mut places).await;
        let l1 = |number: usize| world.l1.now().headers[number];
        assert_eq!(
            (status.current_l1, status.head_l1, status.finalized_l1),
            (Some(l1(14)), Some(l1(30)), Some(l1(30)))
        );
        let place = |number: u64, origin: usize, sequence| {
            let header = world.recorded.at(number).unwrap().header;
            let (parent_hash, timestamp) = (header.parent_hash, header.timestamp);
            Some(L2Place { block: world.l2(number), parent_hash, timestamp, origin: l1(origin).l1_ref(), sequence })
        };
        assert_eq!(status.safe_l2, place(72, 14, 11));
        assert_eq!(status.finalized_l2, place(36, 8, 11));
        assert_eq!(status.unsafe_l2, place(76, 14, 15), "above safe: the origin of safe, and counted on");
    }

    #[tokio::test]
    async fn b2_after_an_l1_reorg_no_old_origin_is_shown() {
        let mut world = World::recorded().await;
        world.verified(6).await;
        let mut places = Places::new(&world.ports);
        shown(&world, &mut places).await;
        world.l1.now().reorganise(11);
        // The same blocks, committed again in another L1 block.
        let row = world.row(6);
        let cursor = ledger_cursor(&row);
        let rebound = vec![row.clone()];
        world.store(Step { rewind_to: Some(10.into()), rebound, cursor, safe: row.last, ..Step::default() }).await;
        let status = shown(&world, &mut places).await;
        assert_eq!(status.safe_l2.map(|safe| safe.origin), Some(world.l1.now().at(14)));
        assert_eq!(status.current_l1.map(|header| header.l1_ref()), Some(world.l1.now().at(14)));
        // Before it is looked up, an L1 block that was left is not shown as the one that was read.
        world.l1.now().reorganise(11);
        let cursor = Some(world.l1.now().at(14));
        let moved = Seen { cursor, ..seen(&world).await };
        assert_eq!(places.show(&moved).current_l1, None);
    }

    fn ledger_cursor(row: &crate::types::BatchRecord) -> Option<crate::types::Cursor> {
        Some(crate::types::Cursor { block: row.l1, log_index: Some(row.log_index) })
    }
}
