//! The ledger: heads, cursor and write intents, in memory as in the database.
//!
//! The only door to both. A change is stored first, and then a pure function makes the same change in memory. So memory
//! equals what a fresh [`Progress::load`] gives. After a failed change it is not known whether it was stored: then the
//! ledger [is unsure](Ledger::is_unsure), and is [read again](Ledger::refresh) before anything else.

use std::sync::Arc;

use tracing::info;

use crate::decide::cursor;
use crate::decide::heads::Heads;
use crate::ports::{PortResult, Progress, Step, Stored};
use crate::types::{
    B256, BatchIndex, BatchRecord, Case, Cursor, JournalEntry, L1Number, L2Number, QueueIndex, SpuriousTag, WriteIntent,
};

/// The part of the database that is held in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Memory {
    heads: Heads,
    cursor: Option<Cursor>,
    /// Write intents whose batch is not stored yet, by height.
    intents: Vec<WriteIntent>,
    spurious: Option<SpuriousTag>,
}

impl Memory {
    fn of(stored: &Stored) -> Self {
        let Stored { cursor, safe, finalized, intents, spurious, lease: _, tip: _ } = stored;
        Self { heads: Heads::stored(*safe, *finalized), cursor: *cursor, intents: intents.clone(), spurious: *spurious }
    }

    fn stepped(&mut self, step: &Step) {
        let safe = step.safe.or(self.heads.safe().filter(|_| !step.clear_safe));
        self.heads = Heads::stored(safe, step.finalized.or(self.heads.finalized()));
        self.cursor = step.cursor.or(self.cursor.filter(|_| !step.clear_cursor));
        if let Some(batch) = &step.batch {
            self.intents.retain(|write| write.batch > batch.index);
        }
    }

    fn begun(&mut self, writes: &[WriteIntent]) {
        let Some(first) = writes.first() else { return };
        self.intents.retain(|known| known.batch_hash == first.batch_hash);
        for write in writes {
            match self.intents.iter_mut().find(|known| known.number == write.number) {
                Some(known) => (known.finalized, known.seen) = (write.finalized, write.seen),
                None => self.intents.push(*write),
            }
        }
        self.intents.sort_unstable_by_key(|write| write.number);
    }

    fn withdrawn(&mut self, from: L2Number, standing: L2Number) {
        let is_made = |write: &WriteIntent| write.number < from || write.new_hash.is_some();
        self.intents.retain(|write| is_made(write) || (write.old_hash.is_some() && write.number > standing));
        self.intents.iter_mut().filter(|write| !is_made(write)).for_each(|write| write.seen = true);
    }

    fn journaled(&mut self, entries: &[JournalEntry]) {
        for entry in entries {
            let noted = self.intents.iter_mut().find(|w| w.number == entry.number && w.batch == entry.batch);
            noted.into_iter().for_each(|write| write.new_hash = Some(entry.new_hash));
        }
    }

    fn looked(&mut self, seen_to: Option<L2Number>, spurious: Option<SpuriousTag>) {
        self.spurious = spurious;
        let seen = self.intents.iter_mut().filter(|write| seen_to.is_some_and(|to| write.number <= to));
        seen.for_each(|write| write.seen = true);
    }
}

/// Heads, cursor and write intents. Only it changes what is stored of the chain.
pub(crate) struct Ledger {
    progress: Arc<dyn Progress>,
    memory: Memory,
    unsure: bool,
}

impl Ledger {
    /// What is stored, and the standing batch with the highest index.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn load(progress: Arc<dyn Progress>) -> PortResult<(Self, Option<BatchRecord>)> {
        let stored = progress.load().await?;
        Ok((Self { progress, memory: Memory::of(&stored), unsure: false }, stored.tip))
    }

    /// Reads everything from the database again if a change failed since; then gives the standing batch with the
    /// highest index as well. The database answers in order, so a change that is still under way is stored, or lost, by
    /// then.
    ///
    /// # Errors
    /// When the database cannot be read: it stays unsure.
    pub(crate) async fn refresh(&mut self) -> PortResult<Option<Option<BatchRecord>>> {
        if !self.unsure {
            return Ok(None);
        }
        let stored = self.progress.load().await?;
        self.memory = Memory::of(&stored);
        self.unsure = false;
        info!(safe = ?stored.safe.map(|s| s.number.get()), "a step failed; going on from what is stored");
        Ok(Some(stored.tip))
    }

    /// A change failed, and it is not known whether it was stored: no head is moved by what memory says.
    pub(crate) const fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// Our verified heads.
    pub(crate) const fn heads(&self) -> Heads {
        self.memory.heads
    }

    /// How far L1 was read.
    pub(crate) const fn cursor(&self) -> Option<Cursor> {
        self.memory.cursor
    }

    /// Write intents whose batch is not stored yet, by height.
    pub(crate) fn intents(&self) -> &[WriteIntent] {
        &self.memory.intents
    }

    /// A finalized tag that the node set by itself and that is not put back yet.
    pub(crate) const fn spurious(&self) -> Option<SpuriousTag> {
        self.memory.spurious
    }

    /// The case under which the writing of this batch began, if it began already.
    pub(crate) fn case_begun(&self, index: BatchIndex, hash: B256) -> Option<Case> {
        self.intents().iter().find(|w| w.batch == index && w.batch_hash == hash).map(|w| w.case)
    }

    /// The standing batch that safe stands on: the newest one whose commit the cursor has passed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn standing_at_cursor(&self) -> PortResult<Option<BatchRecord>> {
        let Some(at) = self.cursor() else { return Ok(None) };
        let mut newest = self.progress.newest_at_or_below(at.block.number).await?;
        while let Some(record) = newest {
            if cursor::has_passed(Some(&at), record.pos()) {
                return Ok(Some(record));
            }
            newest = self.standing_before(&record).await?;
        }
        Ok(None)
    }

    /// The standing batch with the index before `record`'s.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn standing_before(&self, record: &BatchRecord) -> PortResult<Option<BatchRecord>> {
        match record.index.get() {
            0 => Ok(None),
            _ => self.progress.batch(record.index.minus(1)).await,
        }
    }

    /// Stores `step` and remembers it.
    ///
    /// # Errors
    /// When the database cannot be written; the ledger is unsure then.
    pub(crate) async fn commit(&mut self, step: &Step) -> PortResult<()> {
        // Set before each change: a call that is dropped half-way may be stored too.
        let known = std::mem::replace(&mut self.unsure, true);
        self.progress.apply(step).await?;
        self.memory.stepped(step);
        self.unsure = known;
        Ok(())
    }

    /// Notes that `writes` are about to be made. A write that is noted already keeps what it says of the block that
    /// stood there first; notes of another batch hash are dropped.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub(crate) async fn begin_writes(&mut self, writes: &[WriteIntent]) -> PortResult<()> {
        let known = std::mem::replace(&mut self.unsure, true);
        self.progress.note_intents(writes).await?;
        self.memory.begun(writes);
        self.unsure = known;
        Ok(())
    }

    /// Takes back the notes at `from` and above that are not in the journal: those blocks were not written. Up to
    /// `standing` the old blocks still stand; the notes of old blocks above it stay, as looked at.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub(crate) async fn withdraw_writes(&mut self, from: L2Number, standing: L2Number) -> PortResult<()> {
        let known = std::mem::replace(&mut self.unsure, true);
        self.progress.withdraw_writes(from, standing).await?;
        self.memory.withdrawn(from, standing);
        self.unsure = known;
        Ok(())
    }

    /// Appends to the journal what was written.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub(crate) async fn journal(&mut self, entries: &[JournalEntry]) -> PortResult<()> {
        let known = std::mem::replace(&mut self.unsure, true);
        self.progress.journal(entries).await?;
        self.memory.journaled(entries);
        self.unsure = known;
        Ok(())
    }

    /// Stores what a look at the node showed: up to `seen_to` all that our writes did to its tags is known, and
    /// `spurious` is the one among these marks that is not put back yet.
    ///
    /// # Errors
    /// As [`Ledger::commit`].
    pub(crate) async fn looked(&mut self, seen_to: Option<L2Number>, spurious: Option<SpuriousTag>) -> PortResult<()> {
        let known = std::mem::replace(&mut self.unsure, true);
        self.progress.looked(seen_to, spurious).await?;
        self.memory.looked(seen_to, spurious);
        self.unsure = known;
        Ok(())
    }

    /// Drops what is no longer needed: L1 blocks below `l1`, L1 messages below `queue`, batches below `batch`.
    ///
    /// # Errors
    /// When the database cannot be written. Nothing of it is held in memory.
    pub(crate) async fn prune(&self, l1: L1Number, queue: QueueIndex, batch: BatchIndex) -> PortResult<()> {
        self.progress.prune(l1, queue, batch).await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Mutex;

    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;
    use crate::adapters::kill_points::{KillPoints, When};
    use crate::adapters::store::SqliteStore;
    use crate::types::{L1Number, L1Ref, L2Ref, Outcome};

    /// One change, in small numbers, so that changes meet.
    #[derive(Clone, Debug)]
    enum Change {
        Step { safe: Option<u64>, finalized: Option<u64>, cursor: Option<u64>, clear: (bool, bool), batch: Option<u64> },
        Begin { batch: u64, from: u64, count: u64, seen: bool },
        Withdraw(u64, u64),
        Journal { batch: u64, number: u64 },
        Looked { seen_to: Option<u64>, spurious: Option<u64> },
        Rewind(u64),
    }

    /// How a change ends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum End {
        Stored,
        /// The caller is gone before the database was asked.
        GoneBefore,
        /// The caller is gone after it was stored.
        GoneAfter,
    }

    fn l2(number: u64) -> L2Ref {
        L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) }
    }

    fn l1(number: u64) -> L1Ref {
        L1Ref { number: L1Number::new(number), hash: B256::from_low_u64_be(number) }
    }

    fn record(index: u64) -> BatchRecord {
        BatchRecord {
            index: index.into(),
            hash: B256::from_low_u64_be(index),
            l1: l1(index),
            log_index: index,
            tx_hash: B256::zero(),
            outcome: Outcome::Verified,
            case: Some(Case::SelfHeal),
            first: Some(1.into()),
            last: Some(l2(index)),
            post_state_root: B256::zero(),
            withdrawal_root: B256::zero(),
            total_l1_popped: 0,
            rewritten: 0,
            encoder_drift: false,
            blobs: 0,
        }
    }

    fn write(batch: u64, number: u64, seen: bool) -> WriteIntent {
        WriteIntent {
            number: number.into(),
            batch: batch.into(),
            batch_hash: B256::from_low_u64_be(batch),
            case: Case::SelfHeal,
            old_hash: seen.then(B256::zero),
            new_hash: None,
            finalized: seen.then(|| l2(number)),
            seen,
        }
    }

    fn changes() -> impl Strategy<Value = Vec<(Change, End)>> {
        let number = || 0..6_u64;
        let maybe = || proptest::option::of(0..6_u64);
        let change = prop_oneof![
            (maybe(), maybe(), maybe(), any::<(bool, bool)>(), maybe()).prop_map(
                |(safe, finalized, cursor, clear, batch)| Change::Step { safe, finalized, cursor, clear, batch }
            ),
            (number(), number(), 0..4_u64, any::<bool>()).prop_map(|(batch, from, count, seen)| Change::Begin {
                batch,
                from,
                count,
                seen
            }),
            (number(), number()).prop_map(|(from, standing)| Change::Withdraw(from, standing)),
            (number(), number()).prop_map(|(batch, number)| Change::Journal { batch, number }),
            (maybe(), maybe()).prop_map(|(seen_to, spurious)| Change::Looked { seen_to, spurious }),
            number().prop_map(Change::Rewind),
        ];
        let end = prop_oneof![4 => Just(End::Stored), 1 => Just(End::GoneBefore), 1 => Just(End::GoneAfter)];
        proptest::collection::vec((change, end), 1..24)
    }

    async fn make(ledger: &mut Ledger, change: &Change) -> PortResult<()> {
        match *change {
            Change::Step { safe, finalized, cursor, clear: (clear_safe, clear_cursor), batch } => {
                let cursor = cursor.map(|at| Cursor { block: l1(at), log_index: None });
                let step = Step {
                    clear_safe: clear_safe && safe.is_none(),
                    safe: safe.map(l2),
                    finalized: finalized.map(l2),
                    clear_cursor: clear_cursor && cursor.is_none(),
                    cursor,
                    batch: batch.map(record),
                    ..Step::default()
                };
                ledger.commit(&step).await
            }
            Change::Begin { batch, from, count, seen } => {
                let writes: Vec<_> = (from..from + count).map(|number| write(batch, number, seen)).collect();
                ledger.begin_writes(&writes).await
            }
            Change::Withdraw(from, standing) => ledger.withdraw_writes(from.into(), standing.into()).await,
            Change::Journal { batch, number } => {
                let entry = JournalEntry {
                    at: 1,
                    batch: batch.into(),
                    number: number.into(),
                    old_hash: None,
                    new_hash: B256::repeat_byte(9),
                    why: Case::SelfHeal.as_str().to_owned(),
                };
                ledger.journal(&[entry]).await
            }
            Change::Looked { seen_to, spurious } => {
                let spurious = spurious.map(|at| SpuriousTag { tag: l2(at), before: None });
                ledger.looked(seen_to.map(Into::into), spurious).await
            }
            Change::Rewind(to) => ledger.commit(&Step { rewind_to: Some(L1Number::new(to)), ..Step::default() }).await,
        }
    }

    /// Memory against what a fresh start would find, after each of `changes`.
    async fn holds(changes: Vec<(Change, End)>) {
        let store: Arc<dyn Progress> = Arc::new(SqliteStore::in_memory().await.unwrap());
        let (gone, mut is_gone) = mpsc::unbounded_channel();
        let next = Arc::new(Mutex::new(End::Stored));
        let aim = next.clone();
        let points = KillPoints::new(move |_, point| {
            let ends = match *aim.lock().unwrap() {
                End::Stored => false,
                End::GoneBefore => point.when == When::Before,
                End::GoneAfter => point.when == When::After,
            };
            if ends {
                gone.send(()).unwrap();
            }
            ends
        });
        let (mut ledger, _) = Ledger::load(points.progress(store.clone())).await.unwrap();
        for (change, end) in changes {
            *next.lock().unwrap() = end;
            let made = {
                let making = pin!(make(&mut ledger, &change));
                tokio::select! {
                    made = making => Some(made),
                    _ = is_gone.recv() => None,
                }
            };
            *next.lock().unwrap() = End::Stored;
            assert_eq!(made.is_none(), end != End::Stored, "{change:?}");
            assert_eq!(ledger.is_unsure(), made.is_none_or(|made| made.is_err()), "{change:?}");
            ledger.refresh().await.unwrap();
            assert_eq!(ledger.memory, Memory::of(&store.load().await.unwrap()), "after {change:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn p6_memory_is_what_a_fresh_start_loads_whatever_ends_a_change(changes in changes()) {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(holds(changes));
        }
    }
}
