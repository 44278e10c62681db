//! Write intents: writes that were begun and whose batch is not stored yet.
//!
//! Every chunk is noted before it is written. So a batch whose writing was interrupted, by a crash or by a fault of the
//! node, ends with the row that it would have had otherwise: the case under which it began, and all the blocks that
//! were written for it; and the journal has them all (P6).

use tracing::info;

use crate::flow::ledger::Ledger;
use crate::flow::{FlowError, unix_now};
use crate::ports::{L2Reader, PortResult, Rows};
use crate::types::{B256, BatchIndex, BatchRecord, Case, JournalEntry, L2Number, WriteIntent};

/// The batch under which writes are noted and entered in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noted {
    /// The batch.
    pub(crate) batch: BatchIndex,
    /// Its hash.
    pub(crate) hash: B256,
    /// The case under which its writing began.
    pub(crate) case: Case,
}

impl From<WriteIntent> for Noted {
    fn from(note: WriteIntent) -> Self {
        Self { batch: note.batch, hash: note.batch_hash, case: note.case }
    }
}

/// Notes that the blocks `numbers` are about to be written. `template` names the batch; `old_hash_of` gives the block
/// that stands at a height.
pub(crate) async fn begin(
    ledger: &mut Ledger,
    template: WriteIntent,
    numbers: &[L2Number],
    old_hash_of: impl Fn(L2Number) -> Option<B256>,
) -> PortResult<()> {
    let begun = |number: &L2Number| WriteIntent { number: *number, old_hash: old_hash_of(*number), ..template };
    let writes: Vec<_> = numbers.iter().map(begun).collect();
    ledger.begin_writes(&writes).await
}

/// All writes that were made for this batch, whose blocks `..=last` now stand as L1 has them under a head at `head`:
/// its case and how many blocks. None if it was never written. Blocks that the journal lacks are entered now. A block
/// that the consensus node brought in the meantime cannot be distinguished from ours and is taken for it. A block that
/// was noted and never dropped is not entered.
pub(crate) async fn close(
    ledger: &mut Ledger,
    l2: &dyn L2Reader,
    (index, hash): (BatchIndex, B256),
    last: L2Number,
    head: L2Number,
) -> Result<Option<(Case, u64)>, FlowError> {
    let of_batch = |w: &&WriteIntent| w.batch == index && w.batch_hash == hash;
    let noted: Vec<_> = ledger.intents().iter().filter(of_batch).copied().collect();
    let (mut missing, mut unchanged) = (Vec::new(), Vec::new());
    for write in noted.iter().filter(|w| w.number <= last && w.new_hash.is_none()) {
        let Some(header) = l2.header(write.number).await? else {
            return Err(FlowError::local_changed(format!("block {} is gone", write.number)));
        };
        let entry = JournalEntry {
            at: unix_now(),
            batch: index,
            number: write.number,
            old_hash: write.old_hash,
            new_hash: header.hash,
            why: write.case.as_str().to_owned(),
        };
        let entries = if write.old_hash == Some(header.hash) { &mut unchanged } else { &mut missing };
        entries.push(entry);
    }
    if !unchanged.is_empty() && were_dropped(l2, &noted, last, head).await? {
        missing.append(&mut unchanged);
        missing.sort_unstable_by_key(|entry| entry.number);
    }
    if !missing.is_empty() {
        info!(batch = index.get(), blocks = missing.len(), "entering in the journal what a cut-off run had written");
        ledger.journal(&missing).await?;
    }
    let known = noted.iter().filter(|w| w.number <= last && w.new_hash.is_some()).count();
    let written = known.saturating_add(missing.len());
    Ok(noted.first().filter(|_| written > 0).map(|first| (first.case, written as u64)))
}

/// Whether equal blocks that were `noted` left the chain and came back, because they are written again (M30): a write
/// among them was answered, or the noted block right above `last` has gone.
async fn were_dropped(
    l2: &dyn L2Reader,
    noted: &[WriteIntent],
    last: L2Number,
    head: L2Number,
) -> Result<bool, FlowError> {
    if noted.iter().any(|w| w.new_hash.is_some()) {
        return Ok(true);
    }
    let Some(above) = noted.iter().find(|w| w.number > last && w.old_hash.is_some()) else { return Ok(false) };
    if above.number > head {
        return Ok(true);
    }
    Ok(l2.header(above.number).await?.map(|header| header.hash) != above.old_hash)
}

/// The row of a verified batch whose last block is noted to be written again, equal, for a later batch (M30), and that
/// note. Its missing blocks are written under the note, and the row stays as it is: an interrupted write ends as if it
/// had not been interrupted (P6).
pub(crate) async fn written_again(
    ledger: &Ledger,
    rows: &dyn Rows,
    index: BatchIndex,
    hash: B256,
) -> Result<Option<(BatchRecord, WriteIntent)>, FlowError> {
    if ledger.intents().iter().all(|w| w.batch <= index) {
        return Ok(None);
    }
    let row = rows.batch(index).await?.filter(|row| row.hash == hash);
    let Some((row, last)) = row.and_then(|row| row.last.map(|last| (row, last))) else { return Ok(None) };
    let is_it = |w: &&WriteIntent| {
        let equal = w.old_hash == Some(last.hash) && w.new_hash.is_none_or(|new| new == last.hash);
        w.batch > index && w.number == last.number && equal
    };
    Ok(ledger.intents().iter().find(is_it).map(|note| (row, *note)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;

    const BATCH: (BatchIndex, B256) = (BatchIndex::new(2), B256::repeat_byte(2));

    /// Blocks 13 and 14 are about to be written for batch 2, in place of what `old` says.
    async fn begun(old: impl Fn(&World, L2Number) -> Option<B256>) -> World {
        let mut world = World::recorded().await;
        let template = WriteIntent {
            number: 0.into(),
            batch: BATCH.0,
            batch_hash: BATCH.1,
            case: Case::FillGap,
            old_hash: None,
            new_hash: None,
            finalized: None,
            seen: false,
        };
        let old: Vec<_> = [13, 14].map(|number: u64| (L2Number::new(number), old(&world, number.into()))).to_vec();
        let old_hash_of = |number| old.iter().find(|(at, _)| *at == number).and_then(|(_, hash)| *hash);
        begin(&mut world.ledger, template, &[13.into(), 14.into()], old_hash_of).await.unwrap();
        world
    }

    #[tokio::test]
    async fn p6_what_a_cut_off_run_had_written_is_entered_in_the_journal_and_counted_for_its_batch() {
        let mut world = begun(|_, _| None).await;
        let l2 = world.ports.l2.clone();
        let other = (BATCH.0, B256::repeat_byte(9));
        assert_eq!(close(&mut world.ledger, l2.as_ref(), other, 14.into(), 76.into()).await.unwrap(), None);
        assert!(world.ports.progress.journal_tail(9).await.unwrap().is_empty());
        let closed = close(&mut world.ledger, l2.as_ref(), BATCH, 14.into(), 76.into()).await.unwrap();
        assert_eq!(closed, Some((Case::FillGap, 2)));
        let journal = world.ports.progress.journal_tail(9).await.unwrap();
        let new: Vec<_> = journal.iter().rev().map(|entry| entry.new_hash).collect();
        assert_eq!(new, [world.l2(13).hash, world.l2(14).hash]);
    }

    #[tokio::test]
    async fn p6_a_block_that_was_noted_and_never_left_the_chain_is_not_entered() {
        let mut world = begun(|world, number| Some(world.l2(number.get()).hash)).await;
        let l2 = world.ports.l2.clone();
        let closed = close(&mut world.ledger, l2.as_ref(), BATCH, 14.into(), 76.into()).await.unwrap();
        assert_eq!(closed, None);
        assert!(world.ports.progress.journal_tail(9).await.unwrap().is_empty());
    }
}
