//! The real ports with a memory: whatever they are asked they pass on, and what was answered is kept for a fixture.
//!
//! Decided here: how an answer is kept (by what it is about, so that another question about the same is answered too),
//! how much of it (P7), and that L1 ends at the recorded range. Not decided here: which questions there are. The flow
//! asks them, so that no question of the flow is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::adapters::fixture::{Facts, Fixture, L2Facts, Logs, MAX_BLOBS, MAX_FACTS, MAX_L2, Range, Stretch};
use crate::decide::client::Client;
use crate::decide::cursor::Walk;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{BlobSource, FoundLogs, L1Chain, L2Reader, MessageRoot, PortResult, RangeLogs, Suspect};
use crate::types::{
    B256, BatchIndex, Blob, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag, L1Transaction, L2Block, L2Header,
    L2Number, L2Ref, L2Snapshot, QueueIndex, TracedCall,
};

/// Headers asked for at once.
const HEADERS_AT_ONCE: usize = 100;
/// Length of a header in a fixture's text, rounded up.
const HEADER_TEXT: usize = 320;
/// Length of any other entry in a fixture's text, without bytes of its own, rounded up.
const ENTRY_TEXT: usize = 640;

/// The ports that are recorded.
#[derive(Clone)]
pub struct Sources {
    /// L1.
    pub l1: Arc<dyn L1Chain>,
    /// Blobs.
    pub blobs: Arc<dyn BlobSource>,
    /// The L2 node, if its blocks are to be recorded.
    pub l2: Option<Arc<dyn L2Reader>>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Length of the L1 facts as text.
    facts: usize,
    /// Length of the L2 facts as text.
    l2: usize,
    /// Blobs.
    blobs: usize,
}

/// What a fixture may hold (P7).
const ROOM: Room = Room { facts: MAX_FACTS, l2: MAX_L2, blobs: MAX_BLOBS };

/// What was answered so far.
struct Kept {
    facts: Facts,
    headers: BTreeMap<L1Number, L1Header>,
    stretches: BTreeSet<(Logs, L1Number, L1Number)>,
    events: BTreeMap<(L1Number, u64), L1Event>,
    ends: BTreeMap<L1Number, L1Ref>,
    transactions: BTreeMap<(L1Number, B256, u64), Option<L1Transaction>>,
    blobs: BTreeMap<B256, Blob>,
    l2_headers: BTreeMap<L2Number, L2Header>,
    l2_blocks: BTreeMap<L2Number, L2Block>,
    message_roots: BTreeMap<L2Number, B256>,
    appended_roots: BTreeMap<(L2Number, L2Number), Option<B256>>,
    room: Room,
    /// Two answers contradict each other: whose, and what they are about.
    changed: Option<(Target, String)>,
}

impl Kept {
    fn new(range: Range, room: Room) -> Self {
        Self {
            facts: Facts::new(range),
            headers: BTreeMap::new(),
            stretches: BTreeSet::new(),
            events: BTreeMap::new(),
            ends: BTreeMap::new(),
            transactions: BTreeMap::new(),
            blobs: BTreeMap::new(),
            l2_headers: BTreeMap::new(),
            l2_blocks: BTreeMap::new(),
            message_roots: BTreeMap::new(),
            appended_roots: BTreeMap::new(),
            room,
            changed: None,
        }
    }

    /// Why nothing more can be recorded.
    fn fault(&self) -> PortResult<()> {
        if let Some((target, what)) = &self.changed {
            return Err(PortError::malformed(*target, format!("{what} changed while it was recorded; record again")));
        }
        if self.room.facts == 0 || self.room.l2 == 0 || self.blobs.len() > self.room.blobs {
            let detail = "the range holds more than a fixture may; record it in parts";
            return Err(PortError::new(Target::Fixture, PortErrorKind::RangeTooWide, detail));
        }
        Ok(())
    }

    fn change(&mut self, target: Target, what: String) {
        self.changed.get_or_insert((target, what));
    }

    /// Takes room for an entry with `bytes` of its own, which are written in hex.
    fn take(&mut self, text: usize, bytes: usize) {
        self.room.facts = self.room.facts.saturating_sub(text.saturating_add(bytes.saturating_mul(2)));
    }

    fn take_l2(&mut self, text: usize, bytes: usize) {
        self.room.l2 = self.room.l2.saturating_sub(text.saturating_add(bytes.saturating_mul(2)));
    }

    fn keep_header(&mut self, header: L1Header) {
        match self.headers.insert(header.number, header) {
            None => self.take(HEADER_TEXT, 0),
            Some(old) if old != header => self.change(Target::L1, format!("L1 block {}", header.number)),
            Some(_) => {}
        }
    }

    fn keep_tag(&mut self, tag: L1Tag, header: Option<L1Header>) {
        header.into_iter().for_each(|header| self.keep_header(header));
        self.facts.tags.retain(|(known, _)| *known != tag);
        self.facts.tags.push((tag, header));
    }

    fn keep_logs(&mut self, logs: Logs, (from, to): (L1Number, L1Number), events: &[L1Event]) {
        if from <= to && self.stretches.insert((logs, from, to)) {
            self.take(ENTRY_TEXT, 0);
        }
        for event in events {
            let raw = if let L1EventKind::Message(message) = &event.kind { message.raw.len() } else { 0 };
            match self.events.insert((event.block.number, event.log_index), event.clone()) {
                None => self.take(ENTRY_TEXT, raw),
                Some(old) if old != *event => {
                    self.change(Target::L1, format!("a log in L1 block {}", event.block.number));
                }
                Some(_) => {}
            }
        }
    }

    /// An answer that goes up to the last of its ends.
    fn keep_range(&mut self, logs: Logs, from: L1Number, range: &RangeLogs) {
        let Some(reached) = range.ends.last() else { return };
        self.keep_logs(logs, (from, reached.number), &range.events);
        for end in &range.ends {
            if self.ends.insert(end.number, *end).is_none() {
                self.take(ENTRY_TEXT, 0);
            }
        }
    }

    fn keep_transaction(&mut self, block: L1Ref, index: u64, found: Option<&L1Transaction>) {
        let bytes = found.map_or(0, |t| t.input.len().saturating_add(t.blob_hashes.len().saturating_mul(64)));
        if self.transactions.insert((block.number, block.hash, index), found.cloned()).is_none() {
            self.take(ENTRY_TEXT, bytes);
        }
    }

    fn keep_trace(&mut self, tx: B256, calls: Option<&[TracedCall]>) {
        let bytes = |call: &TracedCall| call.input.len().saturating_add(ENTRY_TEXT);
        let bytes = calls.into_iter().flatten().map(bytes).fold(0, usize::saturating_add);
        if self.facts.traces.insert(tx, calls.map(<[_]>::to_vec)).is_none() {
            self.take(ENTRY_TEXT, bytes);
        }
    }

    fn keep_l2_header(&mut self, header: L2Header) {
        match self.l2_headers.insert(header.number, header) {
            None => self.take_l2(ENTRY_TEXT, 0),
            Some(old) if old.hash != header.hash => self.change(Target::L2, format!("L2 block {}", header.number)),
            Some(_) => {}
        }
    }

    fn keep_l2_block(&mut self, block: &L2Block) {
        self.keep_l2_header(block.header);
        let bytes = block.transactions.iter().map(|raw| raw.len().saturating_add(4)).fold(0, usize::saturating_add);
        if self.l2_blocks.insert(block.header.number, block.clone()).is_none() {
            self.take_l2(0, bytes);
        }
    }

    /// The longest chain of blocks that ends on the last one, and the parent of its first block.
    fn chain(&self) -> Vec<L2Block> {
        let mut chain: Vec<L2Block> = Vec::new();
        let mut next = self.l2_blocks.keys().next_back().copied();
        while let Some(number) = next {
            let Some(block) = self.l2_blocks.get(&number) else {
                // Of the block below the first batch only the header is ever asked for.
                let anchor = self.l2_headers.get(&number);
                chain.extend(anchor.map(|header| L2Block { header: *header, transactions: Vec::new() }));
                break;
            };
            chain.push(block.clone());
            next = (number.get() > 0).then(|| number.minus(1));
        }
        chain.reverse();
        chain
    }

    /// Whether `block` lies on the recorded L1, as far as that is known. An answer from another fork, which the flow has
    /// not taken, is no fact.
    fn is_canonical(&self, block: L1Ref) -> bool {
        self.headers.get(&block.number).is_none_or(|header| header.hash == block.hash)
    }

    fn l2_facts(&self) -> L2Facts {
        let appended_roots = self.appended_roots.iter().map(|((first, last), root)| (*first, *last, *root));
        L2Facts {
            blocks: self.chain(),
            message_roots: self.message_roots.clone(),
            appended_roots: appended_roots.collect(),
        }
    }

    fn facts(&self) -> Facts {
        let mut facts = self.facts.clone();
        facts.headers = self.headers.values().copied().collect();
        facts.stretches = merged(&self.stretches);
        facts.events = self.events.values().filter(|e| self.is_canonical(e.block)).cloned().collect();
        facts.ends = self.ends.values().filter(|end| self.is_canonical(**end)).copied().collect();
        for ((number, hash, index), found) in &self.transactions {
            match found {
                Some(transaction) => facts.transactions.push(transaction.clone()),
                None => facts.no_transactions.push((L1Ref { number: *number, hash: *hash }, *index)),
            }
        }
        facts
    }
}

/// The same stretches, those that touch each other as one.
fn merged(stretches: &BTreeSet<(Logs, L1Number, L1Number)>) -> Vec<Stretch> {
    let mut merged: Vec<Stretch> = Vec::new();
    for (logs, from, to) in stretches.iter().copied() {
        match merged.last_mut() {
            Some(below) if below.logs == logs && from <= below.to.plus(1) => below.to = below.to.max(to),
            _ => merged.push(Stretch { logs, from, to }),
        }
    }
    merged
}

/// The real ports, recorded.
pub struct Recorder {
    sources: Sources,
    range: Range,
    kept: Mutex<Kept>,
}

impl Recorder {
    /// Passes questions on to `sources`, for whom L1 ends on the last block of `range`.
    pub fn new(sources: Sources, range: Range) -> Self {
        Self { sources, kept: Mutex::new(Kept::new(range.clone(), ROOM)), range }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // An answer is kept by single inserts: a panic between two of them leaves nothing half-made.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what `keep` makes of `answer`, and gives the answer on. Fails from the first fault on.
    fn keep<T>(&self, answer: T, keep: impl FnOnce(&mut Kept, &T)) -> PortResult<T> {
        let mut kept = self.kept();
        keep(&mut kept, &answer);
        kept.fault()?;
        Ok(answer)
    }

    /// Why nothing more can be recorded.
    ///
    /// # Errors
    /// `Malformed` when a chain changed while it was recorded, `RangeTooWide` when the range holds too much.
    pub fn fault(&self) -> PortResult<()> {
        self.kept().fault()
    }

    /// Asks for what a replay may ask of the range itself, wherever its pieces begin: every header and every log. Gives
    /// the range's logs in order.
    ///
    /// # Errors
    /// When L1 cannot be asked, and as [`Recorder::fault`].
    pub async fn read_whole_range(&self) -> PortResult<Vec<L1Event>> {
        let (from, to) = (self.range.from, self.range.to);
        let held = self.kept().facts();
        let mut walk = Walk::new(from, to, true, self.range.fetch_range);
        while let Some(piece) = walk.piece(self.range.fetch_range) {
            let reached = match held.holds(Logs::All, piece.from, piece.to) {
                true => piece.to,
                false => self.read_piece(piece.from, piece.to).await?,
            };
            walk.pass(reached);
        }
        let range = (from.get()..=to.get()).map(L1Number::new);
        let missing: Vec<_> = range.filter(|number| held.header(*number).is_none()).collect();
        for numbers in missing.chunks(HEADERS_AT_ONCE) {
            let headers = L1Chain::headers(self, numbers).await?;
            if let Some((number, _)) = numbers.iter().zip(&headers).find(|(_, header)| header.is_none()) {
                let detail = format!("no endpoint has L1 block {number}");
                return Err(PortError::new(Target::L1, PortErrorKind::NotFound, detail));
            }
        }
        let events = self.kept().facts().events;
        Ok(events.into_iter().filter(|e| e.block.number >= from && e.block.number <= to).collect())
    }

    /// Reads the logs of L1 blocks `from..=to`, or of the first ones of them. Gives the last one.
    async fn read_piece(&self, from: L1Number, to: L1Number) -> PortResult<L1Number> {
        let logs = L1Chain::events(self, from, to).await?;
        let reached = logs.ends.last().map(|end| end.number).filter(|end| *end >= from && *end <= to);
        reached.ok_or_else(|| PortError::malformed(Target::L1, format!("no logs of L1 block {from} were given")))
    }

    /// Everything that was answered.
    ///
    /// # Errors
    /// As [`Recorder::fault`].
    pub fn fixture(&self) -> PortResult<Fixture> {
        let kept = self.kept();
        kept.fault()?;
        let l2 = self.sources.l2.is_some().then(|| kept.l2_facts());
        Ok(Fixture { facts: kept.facts(), l2, blobs: kept.blobs.clone() })
    }

    fn l2(&self) -> PortResult<&dyn L2Reader> {
        let missing = || PortError::new(Target::L2, PortErrorKind::Unsupported, "no L2 endpoint is configured");
        self.sources.l2.as_deref().ok_or_else(missing)
    }
}

// A method that only has its default body would ask and not be kept.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl L1Chain for Recorder {
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
        let named = match tag {
            L1Tag::Latest => None,
            L1Tag::Safe | L1Tag::Finalized => match self.sources.l1.tagged(tag).await? {
                Some(header) => Some(header).filter(|header| header.number <= self.range.to),
                None => return self.keep(None, |kept, _| kept.keep_tag(tag, None)),
            },
        };
        // In the recording nothing lies above the range.
        let header = match named {
            Some(header) => Some(header),
            None => L1Chain::headers(self, &[self.range.to]).await?.first().copied().flatten(),
        };
        self.keep(header, |kept, header| kept.keep_tag(tag, *header))
    }

    async fn latest_and(&self, tag: L1Tag) -> PortResult<(Option<L1Header>, Option<L1Header>)> {
        Ok((self.tagged(L1Tag::Latest).await?, self.tagged(tag).await?))
    }

    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
        let headers = self.sources.l1.headers(numbers).await?;
        self.keep(headers, |kept, headers| headers.iter().flatten().for_each(|header| kept.keep_header(*header)))
    }

    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let logs = self.sources.l1.events(from, to).await?;
        self.keep(logs, |kept, logs| kept.keep_range(Logs::All, from, logs))
    }

    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let logs = self.sources.l1.settlements(from, to).await?;
        self.keep(logs, |kept, logs| kept.keep_range(Logs::Settlements, from, logs))
    }

    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let found = self.sources.l1.commits_of(index, from, to).await?;
        self.keep(found, |kept, found| kept.keep_logs(Logs::Commits(index), (found.reached, to), &found.events))
    }

    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let found = self.sources.l1.reverts_of(index, from, to).await?;
        self.keep(found, |kept, found| kept.keep_logs(Logs::Reverts(index), (from, found.reached), &found.events))
    }

    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let found = self.sources.l1.queued(from, to).await?;
        self.keep(found, |kept, found| kept.keep_logs(Logs::Queued, (found.reached, to), &found.events))
    }

    async fn every_commit_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<Vec<L1Event>> {
        let events = self.sources.l1.every_commit_of(index, from, to).await?;
        self.keep(events, |kept, events| kept.keep_logs(Logs::Commits(index), (from, to), events))
    }

    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
        let found = self.sources.l1.transaction(block, index).await?;
        self.keep(found, |kept, found| kept.keep_transaction(block, index, found.as_ref()))
    }

    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
        let calls = self.sources.l1.rollup_calls(tx).await?;
        self.keep(calls, |kept, calls| kept.keep_trace(tx, calls.as_deref()))
    }

    async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>> {
        let hashes = self.sources.l1.committed_hashes(indices, at).await?;
        self.keep(hashes, |kept, hashes| {
            kept.take(ENTRY_TEXT.saturating_mul(hashes.len()), 0);
            kept.facts.committed.get_mut(at).extend(indices.iter().copied().zip(hashes.iter().copied()));
        })
    }

    async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let index = self.sources.l1.last_committed_index(at).await?;
        self.keep(index, |kept, index| {
            kept.take(ENTRY_TEXT, 0);
            *kept.facts.last_committed.get_mut(at) = Some(*index);
        })
    }

    async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let index = self.sources.l1.last_finalized_index(at).await?;
        self.keep(index, |kept, index| {
            kept.take(ENTRY_TEXT, 0);
            *kept.facts.last_finalized.get_mut(at) = Some(*index);
        })
    }

    async fn blob_field(&self, index: BatchIndex) -> PortResult<B256> {
        let hash = self.sources.l1.blob_field(index).await?;
        self.keep(hash, |kept, hash| {
            kept.take(ENTRY_TEXT, 0);
            kept.facts.blob_fields.insert(index, *hash);
        })
    }

    async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number> {
        let number = self.sources.l1.batch_last_block(index).await?;
        self.keep(number, |kept, number| {
            kept.take(ENTRY_TEXT, 0);
            kept.facts.last_blocks.insert(index, *number);
        })
    }

    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
        let hashes = self.sources.l1.queue_hashes(indices).await?;
        self.keep(hashes, |kept, hashes| {
            for (index, hash) in indices.iter().zip(hashes) {
                if kept.facts.queue_hashes.insert(*index, *hash).is_none() {
                    kept.take(ENTRY_TEXT, 0);
                }
            }
        })
    }

    fn distrust(&self, suspect: Suspect, why: &str) -> bool {
        self.sources.l1.distrust(suspect, why)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl BlobSource for Recorder {
    /// A blob is what its hash says, so that one that is kept is not fetched again.
    async fn blobs(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>> {
        let kept: Option<Vec<_>> = {
            let kept = self.kept();
            versioned_hashes.iter().map(|hash| kept.blobs.get(hash).cloned()).collect()
        };
        if let Some(blobs) = kept {
            return Ok(blobs);
        }
        let blobs = self.sources.blobs.blobs(header, versioned_hashes).await?;
        self.keep(blobs, |kept, blobs| kept.blobs.extend(versioned_hashes.iter().copied().zip(blobs.iter().cloned())))
    }

    /// A commitment is what its hash says; that nobody offered one is not kept, and a replay offers none then.
    async fn commitments(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Option<Vec<[u8; 48]>>> {
        let offered = self.sources.blobs.commitments(header, versioned_hashes).await?;
        self.keep(offered, |kept, offered| {
            for (hash, commitment) in versioned_hashes.iter().zip(offered.iter().flatten()) {
                if kept.facts.commitments.insert(*hash, Bytes::copy_from_slice(commitment)).is_none() {
                    kept.take(ENTRY_TEXT, commitment.len());
                }
            }
        })
    }
}

/// Of the L2 node the chain is kept and what it says of its roots. A snapshot is not: the head of the replayed node is
/// the last block that was asked for, and its tags are its own.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl L2Reader for Recorder {
    fn client(&self) -> Option<Client> {
        self.sources.l2.as_ref()?.client()
    }

    async fn snapshot(&self) -> PortResult<L2Snapshot> {
        self.l2()?.snapshot().await
    }

    async fn snapshot_and(&self, number: L2Number) -> PortResult<(L2Snapshot, Option<L2Header>)> {
        let answer = self.l2()?.snapshot_and(number).await?;
        self.keep(answer, |kept, (_, header)| header.iter().for_each(|header| kept.keep_l2_header(*header)))
    }

    async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>> {
        let header = self.l2()?.header(number).await?;
        self.keep(header, |kept, header| header.iter().for_each(|header| kept.keep_l2_header(*header)))
    }

    async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        let blocks = self.l2()?.blocks(first, last).await?;
        self.keep(blocks, |kept, blocks| blocks.iter().for_each(|block| kept.keep_l2_block(block)))
    }

    /// Asked only before a write, of which a recording makes none: the replayed node answers for its own states.
    async fn has_states(&self, numbers: &[L2Number]) -> PortResult<Option<Vec<bool>>> {
        self.l2()?.has_states(numbers).await
    }

    async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot> {
        let root = self.l2()?.message_root(block).await?;
        self.keep(root, |kept, root| {
            if let MessageRoot::Root(root) = root {
                kept.take_l2(ENTRY_TEXT, 0);
                kept.message_roots.insert(block.number, *root);
            }
        })
    }

    async fn last_appended_root(&self, first: L2Number, last: L2Number, tip: L2Ref) -> PortResult<Option<B256>> {
        let root = self.l2()?.last_appended_root(first, last, tip).await?;
        self.keep(root, |kept, root| {
            kept.take_l2(ENTRY_TEXT, 0);
            kept.appended_roots.insert((first, last), *root);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::replay::Replay;
    use crate::error::PortErrorKind;
    use crate::types::{Address, BLOB_BYTES, L1EventKind, L1Message, U256, keccak};

    /// Answers every question with something of its own.
    struct Everything;

    fn hash(name: &str, number: u64) -> B256 {
        keccak(&[name.as_bytes(), &number.to_be_bytes()].concat())
    }

    fn header(number: u64) -> L1Header {
        let parent_hash = hash("L1", number.saturating_sub(1));
        L1Header { number: number.into(), hash: hash("L1", number), parent_hash, timestamp: 12 * number }
    }

    fn event(number: u64, log_index: u64, kind: L1EventKind) -> L1Event {
        L1Event { block: header(number).l1_ref(), log_index, tx_hash: hash("tx", number), tx_index: 1, kind }
    }

    fn l2_header(number: u64) -> L2Header {
        L2Header {
            number: number.into(),
            hash: hash("L2", number),
            parent_hash: hash("L2", number.saturating_sub(1)),
            state_root: hash("state", number),
            timestamp: number,
            base_fee: U256::one(),
            gas_limit: 30_000_000,
            transactions_root: hash("transactions", number),
            next_l1_index: Some(number),
        }
    }

    fn blob() -> Blob {
        Blob::new(vec![0_u8; BLOB_BYTES]).unwrap()
    }

    fn calls() -> Vec<TracedCall> {
        vec![TracedCall { to: Address::repeat_byte(3), input: vec![1, 2].into() }]
    }

    #[async_trait]
    impl L1Chain for Everything {
        async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
            Ok(match tag {
                L1Tag::Latest => Some(header(90)),
                L1Tag::Safe => Some(header(80)),
                L1Tag::Finalized => Some(header(15)),
            })
        }

        async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
            Ok(numbers.iter().map(|n| (n.get() <= 90).then(|| header(n.get()))).collect())
        }

        async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
            let message = L1Message { index: 4.into(), hash: hash("message", 4), raw: vec![0x7e].into() };
            let events = vec![
                event(11, 0, L1EventKind::Message(message)),
                event(11, 1, L1EventKind::Commit { index: 7.into(), hash: hash("batch", 7) }),
                event(13, 0, L1EventKind::Revert { index: 7.into(), hash: hash("batch", 7) }),
            ];
            let events = events.into_iter().filter(|e| e.block.number >= from && e.block.number <= to).collect();
            Ok(RangeLogs { events, ends: vec![header(to.get()).l1_ref()] })
        }

        async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
            let mut logs = self.events(from, to).await?;
            logs.events.retain(|e| matches!(e.kind, L1EventKind::Revert { .. }));
            Ok(logs)
        }

        async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
            let events = vec![event(to.get(), 5, L1EventKind::Commit { index, hash: hash("earlier", index.get()) })];
            Ok(FoundLogs { events, reached: from })
        }

        async fn reverts_of(&self, index: BatchIndex, _: L1Number, to: L1Number) -> PortResult<FoundLogs> {
            let events = vec![event(to.get(), 6, L1EventKind::Revert { index, hash: hash("earlier", index.get()) })];
            Ok(FoundLogs { events, reached: to })
        }

        async fn queued(&self, from: L1Number, _: L1Number) -> PortResult<FoundLogs> {
            let message = L1Message { index: 2.into(), hash: hash("message", 2), raw: vec![0x7e].into() };
            Ok(FoundLogs { events: vec![event(from.get(), 7, L1EventKind::Message(message))], reached: from })
        }

        async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
            Ok((index == 1).then(|| L1Transaction {
                hash: hash("tx", block.number.get()),
                block,
                index,
                to: None,
                input: vec![9].into(),
                blob_hashes: vec![hash("blob", 1)],
            }))
        }

        async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
            Ok((tx == hash("tx", 11)).then(calls))
        }

        async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>> {
            let name = if at.is_some() { "then" } else { "now" };
            Ok(indices.iter().map(|index| hash(name, index.get())).collect())
        }

        async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
            Ok(at.map_or(40, L1Number::get).into())
        }

        async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
            Ok(at.map_or(30, |at| at.get() + 1).into())
        }

        async fn blob_field(&self, index: BatchIndex) -> PortResult<B256> {
            Ok(hash("field", index.get()))
        }

        async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number> {
            Ok(index.get().saturating_mul(10).into())
        }

        async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
            Ok(indices.iter().map(|index| hash("message", index.get())).collect())
        }

        fn distrust(&self, _: Suspect, _: &str) -> bool {
            true
        }
    }

    #[async_trait]
    impl BlobSource for Everything {
        async fn blobs(&self, _: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>> {
            Ok(versioned_hashes.iter().map(|_| blob()).collect())
        }

        async fn commitments(&self, _: &L1Header, versioned_hashes: &[B256]) -> PortResult<Option<Vec<[u8; 48]>>> {
            let infinity = crate::codec::blob::commitment(&blob()).unwrap();
            let known = |hash: &B256| (*hash == crate::codec::blob::versioned_hash(&infinity)).then_some(infinity);
            Ok(versioned_hashes.iter().map(known).collect())
        }
    }

    #[async_trait]
    impl L2Reader for Everything {
        async fn snapshot(&self) -> PortResult<L2Snapshot> {
            let L2Header { parent_hash: head_parent, timestamp: head_time, .. } = l2_header(70);
            let head = l2_header(70).l2_ref();
            Ok(L2Snapshot { head, head_parent, head_time, safe: None, finalized: None, syncing: false })
        }

        async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>> {
            Ok(Some(l2_header(number.get())))
        }

        async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
            let block = |n| L2Block { header: l2_header(n), transactions: vec![vec![2, 3].into()] };
            Ok((first.get()..=last.get()).map(block).collect())
        }

        async fn has_states(&self, numbers: &[L2Number]) -> PortResult<Option<Vec<bool>>> {
            Ok(Some(vec![true; numbers.len()]))
        }

        async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot> {
            Ok(match block.number.get() {
                60 => MessageRoot::Root(hash("root", 60)),
                _ => MessageRoot::Pruned,
            })
        }

        async fn last_appended_root(&self, _: L2Number, last: L2Number, _: L2Ref) -> PortResult<Option<B256>> {
            Ok(Some(hash("appended", last.get())))
        }
    }

    fn range() -> Range {
        let identity = crate::types::Identity {
            l1_chain_id: 1,
            l2_chain_id: 2,
            rollup: Address::repeat_byte(1),
            queue: Address::repeat_byte(2),
            l2_genesis: hash("L2", 0),
        };
        Range { identity, switch_ms: 5, from: 10.into(), to: 20.into(), origin: 3.into(), fetch_range: 7 }
    }

    fn recorder<S: L1Chain + BlobSource + L2Reader + 'static>(source: S) -> Recorder {
        let source = Arc::new(source);
        let sources = Sources { l1: source.clone(), blobs: source.clone(), l2: Some(source) };
        Recorder::new(sources, range())
    }

    /// One question of every kind to L1, each answer as text.
    async fn ask_l1(l1: &dyn L1Chain) -> Vec<String> {
        let (from, to) = (L1Number::new(10), L1Number::new(20));
        let (low, block) = (L1Number::new(4), header(11).l1_ref());
        let mut answers = Vec::new();
        for tag in [L1Tag::Latest, L1Tag::Safe, L1Tag::Finalized] {
            answers.push(format!("{:?}", l1.tagged(tag).await));
        }
        answers.push(format!("{:?}", l1.latest_and(L1Tag::Safe).await));
        answers.push(format!("{:?}", l1.headers(&[from, 12.into(), 5.into()]).await));
        answers.push(format!("{:?}", l1.events(from, to).await));
        answers.push(format!("{:?}", l1.commits_of(7.into(), low, 9.into()).await));
        answers.push(format!("{:?}", l1.reverts_of(7.into(), low, 8.into()).await));
        answers.push(format!("{:?}", l1.settlements(from, to).await));
        answers.push(format!("{:?}", l1.queued(3.into(), low).await));
        answers.push(format!("{:?}", l1.transaction(block, 1).await));
        answers.push(format!("{:?}", l1.transaction(block, 2).await));
        answers.push(format!("{:?}", l1.rollup_calls(hash("tx", 11)).await));
        answers.push(format!("{:?}", l1.rollup_calls(hash("tx", 12)).await));
        answers.push(format!("{:?}", l1.committed_hashes(&[7.into(), 8.into()], None).await));
        answers.push(format!("{:?}", l1.committed_hashes(&[7.into()], Some(to)).await));
        answers.push(format!("{:?}", l1.last_committed_index(None).await));
        answers.push(format!("{:?}", l1.last_committed_index(Some(to)).await));
        answers.push(format!("{:?}", l1.last_finalized_index(None).await));
        answers.push(format!("{:?}", l1.last_finalized_index(Some(to)).await));
        answers.push(format!("{:?}", l1.every_commit_of(7.into(), low, 9.into()).await));
        answers.push(format!("{:?}", l1.blob_field(7.into()).await));
        answers.push(format!("{:?}", l1.batch_last_block(7.into()).await));
        answers.push(format!("{:?}", l1.queue_hashes(&[4.into(), 5.into()]).await));
        answers
    }

    #[tokio::test]
    async fn every_answer_is_kept_and_given_again() {
        let recorder = recorder(Everything);
        let versioned = crate::codec::blob::blob_hash(&blob()).unwrap();
        let said = ask_l1(&recorder).await;
        assert!(said.iter().all(|answer| answer.starts_with("Ok")), "{said:?}");
        assert!(recorder.distrust(Suspect::Logs, "x"), "passed on");
        let blobs = recorder.blobs(&header(11), &[versioned]).await.unwrap();
        let commitments = recorder.commitments(&header(11), &[versioned, versioned]).await.unwrap();
        assert_eq!(commitments.as_ref().map(Vec::len), Some(2));
        assert_eq!(recorder.commitments(&header(11), &[hash("blob", 2)]).await.unwrap(), None);
        recorder.snapshot().await.unwrap();
        assert_eq!(recorder.has_states(&[50.into()]).await.unwrap(), Some(vec![true]), "passed on");
        assert_eq!(L2Reader::header(&recorder, 50.into()).await.unwrap(), Some(l2_header(50)));
        let blocks = recorder.blocks(51.into(), 60.into()).await.unwrap();
        recorder.message_root(l2_header(60).l2_ref()).await.unwrap();
        recorder.message_root(l2_header(55).l2_ref()).await.unwrap();
        recorder.last_appended_root(51.into(), 55.into(), l2_header(60).l2_ref()).await.unwrap();

        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("fixture");
        recorder.fixture().unwrap().write(&out).unwrap();
        let fixture = Fixture::read(&out).unwrap();
        assert_eq!(fixture.facts.range, range());
        let l2 = fixture.l2.clone().unwrap();
        assert_eq!(l2.blocks.first(), Some(&L2Block { header: l2_header(50), transactions: Vec::new() }));
        assert_eq!(l2.blocks.get(1..), Some(&blocks[..]));
        assert_eq!(l2.message_roots.into_iter().collect::<Vec<_>>(), [(60.into(), hash("root", 60))]);
        assert_eq!(l2.appended_roots, [(51.into(), 55.into(), Some(hash("appended", 55)))]);

        let replay = Replay::new(Arc::new(fixture));
        assert_eq!(ask_l1(&replay).await, said);
        assert_eq!(replay.blobs(&header(11), &[versioned]).await.unwrap(), blobs);
        assert_eq!(replay.commitments(&header(11), &[versioned, versioned]).await.unwrap(), commitments);
        for unknown in [vec![hash("blob", 2)], vec![versioned, hash("blob", 2)]] {
            assert_eq!(replay.commitments(&header(11), &unknown).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn p7_commitments_take_room_like_any_fact() {
        let recorder = recorder(Everything);
        let versioned = crate::codec::blob::blob_hash(&blob()).unwrap();
        let before = recorder.kept().room.facts;
        for _ in 0..3 {
            recorder.commitments(&header(11), &[versioned]).await.unwrap();
        }
        assert_eq!(before - recorder.kept().room.facts, ENTRY_TEXT + 96, "once");
    }

    #[tokio::test]
    async fn l1_ends_on_the_last_block_of_the_range() {
        let recorder = recorder(Everything);
        let number = async |tag| recorder.tagged(tag).await.unwrap().map(|h| h.number.get());
        assert_eq!(number(L1Tag::Latest).await, Some(20));
        assert_eq!(number(L1Tag::Safe).await, Some(20));
        assert_eq!(number(L1Tag::Finalized).await, Some(15));
    }

    #[tokio::test]
    async fn logs_are_given_again_in_any_pieces_and_no_others() {
        let recorder = recorder(Everything);
        let events = async |l1: &dyn L1Chain, from: u64, to: u64| l1.events(from.into(), to.into()).await;
        let (low, high) = (events(&recorder, 10, 12).await.unwrap(), events(&recorder, 13, 20).await.unwrap());
        recorder.commits_of(7.into(), 4.into(), 9.into()).await.unwrap();
        recorder.read_whole_range().await.unwrap();
        let replay = Replay::new(Arc::new(recorder.fixture().unwrap()));
        let all = [low.events, high.events].concat();
        assert_eq!(events(&replay, 10, 20).await.unwrap().events, all);
        assert_eq!(events(&replay, 11, 11).await.unwrap().events, all[..2]);
        assert_eq!(events(&replay, 14, 16).await.unwrap().ends, [header(16).l1_ref()]);
        // All logs of a range hold those of one batch too; those of one batch hold no others.
        assert_eq!(replay.commits_of(7.into(), 4.into(), 20.into()).await.unwrap().events.len(), 2);
        assert_eq!(replay.reverts_of(7.into(), 10.into(), 20.into()).await.unwrap().events, all[2..]);
        assert_eq!(replay.settlements(10.into(), 20.into()).await.unwrap().events, all[2..]);
        assert_eq!(replay.queued(10.into(), 20.into()).await.unwrap().events, all[..1]);
        for (from, to) in [(9, 12), (19, 21), (4, 9)] {
            assert_eq!(events(&replay, from, to).await.unwrap_err().kind, PortErrorKind::NotFound, "{from} to {to}");
        }
        assert!(replay.commits_of(8.into(), 4.into(), 9.into()).await.is_err());
        assert!(replay.reverts_of(7.into(), 4.into(), 9.into()).await.is_err());
    }

    #[tokio::test]
    async fn a_question_that_was_not_recorded_is_named() {
        let replay = Replay::new(Arc::new(recorder(Everything).fixture().unwrap()));
        let block = header(11).l1_ref();
        let errors = [
            ("Finalized", replay.tagged(L1Tag::Finalized).await.unwrap_err()),
            ("header of L1 block 5", replay.headers(&[5.into()]).await.unwrap_err()),
            ("logs", replay.events(10.into(), 20.into()).await.unwrap_err()),
            ("reverts and proofs", replay.settlements(10.into(), 20.into()).await.unwrap_err()),
            ("L1 messages", replay.queued(10.into(), 20.into()).await.unwrap_err()),
            ("commits of batch 7", replay.commits_of(7.into(), 10.into(), 20.into()).await.unwrap_err()),
            ("reverts of batch 7", replay.reverts_of(7.into(), 10.into(), 20.into()).await.unwrap_err()),
            ("transaction 1 of L1 block 11", replay.transaction(block, 1).await.unwrap_err()),
            ("calls inside L1 transaction", replay.rollup_calls(hash("tx", 11)).await.unwrap_err()),
            ("committedBatches(7)", replay.committed_hashes(&[7.into()], None).await.unwrap_err()),
            ("at L1 block 20", replay.committed_hashes(&[7.into()], Some(20.into())).await.unwrap_err()),
            ("lastCommittedBatchIndex()", replay.last_committed_index(None).await.unwrap_err()),
            ("lastFinalizedBatchIndex()", replay.last_finalized_index(None).await.unwrap_err()),
            ("batchBlobVersionedHashes(7)", replay.blob_field(7.into()).await.unwrap_err()),
            ("batchDataStore(7)", replay.batch_last_block(7.into()).await.unwrap_err()),
            ("getCrossDomainMessage(4)", replay.queue_hashes(&[4.into()]).await.unwrap_err()),
            ("the blob", replay.blobs(&header(11), &[hash("blob", 1)]).await.unwrap_err()),
        ];
        for (question, error) in errors {
            assert_eq!((error.target, &error.kind), (Target::Fixture, &PortErrorKind::NotFound), "{question}");
            assert!(error.detail.contains(question), "{question}: {}", error.detail);
        }
    }

    #[tokio::test]
    async fn b1_a_chain_that_changes_while_it_is_recorded_makes_no_fixture() {
        let recorder = recorder(Everything);
        recorder.kept().keep_header(L1Header { hash: hash("other", 12), ..header(12) });
        let error = L1Chain::headers(&recorder, &[12.into()]).await.unwrap_err();
        assert_eq!((error.target, &error.kind), (Target::L1, &PortErrorKind::Malformed));
        assert_eq!(recorder.fixture().unwrap_err(), error);
    }

    #[tokio::test]
    async fn the_whole_range_is_read_however_little_of_it_was_asked_for() {
        let recorder = recorder(Everything);
        recorder.events(12.into(), 15.into()).await.unwrap();
        let events = recorder.read_whole_range().await.unwrap();
        assert_eq!(events.iter().map(|e| e.block.number.get()).collect::<Vec<_>>(), [11, 11, 13]);
        let facts = recorder.fixture().unwrap().facts;
        assert_eq!(facts.stretches, [Stretch { logs: Logs::All, from: 10.into(), to: 20.into() }]);
        assert_eq!(facts.headers.iter().map(|h| h.number.get()).collect::<Vec<_>>(), (10..=20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn b1_a_log_of_another_fork_is_no_fact() {
        let recorder = recorder(Everything);
        let stray = L1Event { block: L1Ref { number: 12.into(), hash: hash("fork", 12) }, ..event(12, 3, commit()) };
        recorder.kept().keep_logs(Logs::All, (10.into(), 20.into()), &[stray]);
        recorder.read_whole_range().await.unwrap();
        let numbers: Vec<_> = recorder.fixture().unwrap().facts.events.iter().map(|e| e.block.number.get()).collect();
        assert!(!numbers.contains(&12), "{numbers:?}");
    }

    fn commit() -> L1EventKind {
        L1EventKind::Commit { index: 9.into(), hash: hash("batch", 9) }
    }

    #[tokio::test]
    async fn p7_a_range_that_holds_too_much_is_given_up_at_once() {
        let rooms = [Room { facts: 5_000, ..ROOM }, Room { l2: 5_000, ..ROOM }, Room { blobs: 1, ..ROOM }];
        for room in rooms {
            let recorder = recorder(Everything);
            recorder.kept().room = room;
            let mut asked = 0_u64;
            let error = loop {
                asked += 1;
                let number = asked;
                let hash = hash("blob", number);
                let blobs = recorder.blobs(&header(11), &[hash]).await.err();
                let fault = blobs.or(L2Reader::header(&recorder, number.into()).await.err());
                let fault = fault.or(recorder.transaction(header(number).l1_ref(), 1).await.err());
                if let Some(error) = fault {
                    break error;
                }
            };
            assert!(asked < 10, "{room:?}: {asked}");
            assert_eq!((error.target, &error.kind), (Target::Fixture, &PortErrorKind::RangeTooWide), "{room:?}");
            assert_eq!(recorder.fixture().unwrap_err(), error, "{room:?}");
            assert_eq!(recorder.snapshot().await.err(), None, "what is not kept is passed on");
        }
    }

    #[tokio::test]
    async fn without_an_l2_node_its_side_is_left_out() {
        let source = Arc::new(Everything);
        let recorder = Recorder::new(Sources { l1: source.clone(), blobs: source, l2: None }, range());
        recorder.read_whole_range().await.unwrap();
        assert_eq!(recorder.snapshot().await.unwrap_err().target, Target::L2);
        assert_eq!(recorder.fixture().unwrap().l2, None);
    }
}
