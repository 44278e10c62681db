//! Writes that were begun and whose batch is not stored yet.
//!
//! Every chunk is noted before it is written. So a batch whose writing was cut off, by a crash or by a fault of the
//! node, ends with the row that it would have had otherwise: the case under which it began, and all the blocks that
//! were written for it; and the journal has them all (P6).

use tracing::info;

use crate::flow::worker::Worker;
use crate::flow::{FlowError, unix_now};
use crate::types::{B256, BatchIndex, Case, JournalEntry, L2Number, OpenWrite};

impl Worker {
    /// Notes that the blocks `numbers` are about to be written. `template` says for which batch; `old_hash_of` what stands there.
    pub(crate) async fn begin_writes(
        &mut self,
        template: OpenWrite,
        numbers: &[L2Number],
        old_hash_of: impl Fn(L2Number) -> Option<B256>,
    ) -> Result<(), FlowError> {
        let begun = |number: &L2Number| OpenWrite { number: *number, old_hash: old_hash_of(*number), ..template };
        let writes: Vec<_> = numbers.iter().map(begun).collect();
        Ok(self.ledger.begin_writes(&writes).await?)
    }

    /// All writes that were made for this batch, whose blocks `..=last` now stand as L1 has them: its case and how many
    /// blocks. None where it was never written. What the journal does not know of is entered now; a block that the
    /// consensus node brought in the meantime cannot be told from ours and is taken for it.
    pub(crate) async fn settle_writes(
        &mut self,
        index: BatchIndex,
        hash: B256,
        last: L2Number,
    ) -> Result<Option<(Case, u64)>, FlowError> {
        let of_batch = |w: &&OpenWrite| w.batch == index && w.batch_hash == hash && w.number <= last;
        let writes: Vec<_> = self.ledger.writes().iter().filter(of_batch).copied().collect();
        let Some(first) = writes.first() else { return Ok(None) };
        let mut missing = Vec::new();
        for write in writes.iter().filter(|w| w.new_hash.is_none()) {
            let Some(header) = self.ports.l2.header(write.number).await? else {
                return Err(FlowError::local_changed(format!("block {} is gone", write.number)));
            };
            missing.push(JournalEntry {
                at: unix_now(),
                batch: index,
                number: write.number,
                old_hash: write.old_hash,
                new_hash: header.hash,
                why: write.case.as_str().to_owned(),
            });
        }
        if !missing.is_empty() {
            info!(
                batch = index.get(),
                blocks = missing.len(),
                "entering in the journal what a cut-off run had written"
            );
            self.ledger.journal(&missing).await?;
        }
        Ok(Some((first.case, writes.len() as u64)))
    }
}
