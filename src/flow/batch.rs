//! One batch through the case table.
//!
//! Outline → anchor → first look → (blob → second look → plan → `derive_force`) → roots. The result is either a record
//! to be stored with the heads and the cursor, or the reason to stop at this batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::codec::batch;
use crate::decide::binding::{self, BoundCommit, queue_range};
use crate::decide::content::{self, ContentFault};
use crate::decide::dispatch::{self, FirstFacts, FirstLook, SecondFacts, SecondLook};
use crate::decide::liveness::HeadTrend;
use crate::decide::local_chain::Lost;
use crate::decide::reconcile::{self, Anchor, AnchorFacts, held_bytes};
use crate::decide::stall::{Cause, Final, Gap, Stall};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::ahead::{Ahead, Given, Segment};
use crate::flow::commit::{self, Everything};
use crate::flow::gather::{BatchContext, Gatherer, poison};
use crate::flow::l1_search::L1Search;
use crate::flow::ledger::Ledger;
use crate::flow::roots::{Asked, Roots};
use crate::flow::writer::{Hands, Order, Writer};
use crate::flow::{Decided, FlowError, Mode, Ports, Settings, Stop, intents};
use crate::ports::{L1Chain, L2Reader, Rows};
use crate::types::{
    Address, B256, BatchIndex, BatchRecord, Case, CommitEvent, L1Header, L1Message, L1Number, L2Header, L2Number,
    LogPos, NewBlock, Outcome, QueueIndex,
};

/// How a decided batch ended. If the flow stalls at it, the cursor stays before it.
#[derive(Debug)]
pub(crate) enum BatchEnd {
    /// Verified: to be stored.
    Verified(Box<BatchRecord>),
    /// The anchor is wrong: the batch of this commit must be verified first.
    WalkBack(CommitEvent),
}

/// What the batch stands on.
enum Below {
    /// The local block below it, which is the one that L1 committed to.
    Anchor(L2Header),
    /// Another one: the batch of this commit must be verified first.
    Unverified(CommitEvent),
}

/// What was done, and the batch's last local block.
struct Resolved {
    case: Case,
    last: L2Header,
    rewritten: u64,
    drift: bool,
}

/// What a batch's turn may change, and what its poll decides by.
pub(crate) struct Turn<'a> {
    /// What a write may change.
    pub(crate) hands: Hands<'a>,
    /// L1's history.
    pub(crate) search: &'a mut L1Search,
    /// Whether the head grows.
    pub(crate) verdict: HeadTrend,
    /// How many blocks the batch has, once that is known; zero before. It is reported also for a batch at which the
    /// flow is stalled.
    pub(crate) blocks: u64,
    /// What comes next in the range.
    pub(crate) upcoming: &'a Upcoming,
}

/// What a range holds for the batches of it that are to be verified, and the ranges after it, as far as they are read.
#[derive(Debug, Default)]
pub(crate) struct Upcoming {
    /// How many ranges.
    ranges: usize,
    commits: Vec<CommitEvent>,
    /// Hashes of the ranges' own L1 messages.
    messages: Arc<BTreeMap<QueueIndex, B256>>,
    /// The headers of the L1 blocks that hold its logs.
    headers: Arc<BTreeMap<L1Number, L1Header>>,
}

impl Upcoming {
    /// Adds a range: its commits in order, without those that are not to be verified, the hashes of its L1 messages, and
    /// the headers of their L1 blocks.
    pub(crate) fn add(
        &mut self,
        (commits, messages): (Vec<CommitEvent>, Vec<(QueueIndex, B256)>),
        headers: &[L1Header],
    ) {
        self.ranges = self.ranges.saturating_add(1);
        self.commits.extend(commits);
        Arc::make_mut(&mut self.messages).extend(messages);
        Arc::make_mut(&mut self.headers).extend(headers.iter().map(|header| (header.number, *header)));
    }

    /// How many ranges it knows.
    pub(crate) const fn ranges(&self) -> usize {
        self.ranges
    }

    /// The last commit that it knows.
    pub(crate) fn last(&self) -> Option<&CommitEvent> {
        self.commits.last()
    }

    /// How many commits come after the log at `pos`.
    pub(crate) fn count_after(&self, pos: LogPos) -> usize {
        self.commits.len().saturating_sub(self.commits.partition_point(|other| other.pos() <= pos))
    }

    /// The commits after `commit`.
    fn after(&self, commit: &CommitEvent) -> &[CommitEvent] {
        let at = self.commits.partition_point(|other| other.pos() <= commit.pos());
        self.commits.get(at..).unwrap_or_default()
    }
}

/// The case table: one batch after another.
pub(crate) struct Batches {
    l1: Arc<dyn L1Chain>,
    l2: Arc<dyn L2Reader>,
    rows: Arc<dyn Rows>,
    rollup: Address,
    mode: Mode,
    switch_ms: u64,
    local_bytes: usize,
    search_time: Duration,
    gatherer: Arc<Gatherer>,
    ahead: Ahead,
    roots: Roots,
    /// The writer.
    pub(crate) writer: Writer,
    /// Batches whose bytes differed under equal content.
    drift: u64,
}

impl Batches {
    /// No batch yet.
    pub(crate) fn new(ports: &Ports, writer: Writer, settings: &Settings) -> Self {
        let gatherer = Arc::new(Gatherer::new(ports.l1.clone(), ports.blobs.clone(), ports.l2.clone()));
        Self {
            l1: ports.l1.clone(),
            l2: ports.l2.clone(),
            ahead: Ahead::new(ports, settings, gatherer.clone()),
            rows: ports.progress.clone(),
            rollup: settings.rollup,
            mode: settings.mode,
            switch_ms: settings.switch_ms,
            local_bytes: settings.local_bytes,
            search_time: settings.search_time,
            gatherer,
            roots: Roots::default(),
            writer,
            drift: 0,
        }
    }

    /// Batches whose bytes differed under equal content.
    pub(crate) const fn drift(&self) -> u64 {
        self.drift
    }

    /// Finds the commit and binds it to its event's hash.
    pub(crate) async fn bind(
        &self,
        commit: &CommitEvent,
        before: Option<&BatchRecord>,
        search: &mut L1Search,
        ledger: &mut Ledger,
    ) -> Decided<BoundCommit> {
        let (l1, l2, rows) = (self.l1.as_ref(), self.l2.as_ref(), self.rows.as_ref());
        let mut elsewhere = Everything { l1, l2, rows, search, ledger, before };
        commit::bind(l1, self.rollup, commit, &mut elsewhere).await
    }

    /// Verified batches left the local chain, or L1's: what was gathered above them is useless.
    pub(crate) fn chain_changed(&mut self) {
        self.ahead.forget();
    }

    /// Begins to gather the batches after the one of `commit`, if this one has its blocks or gets them in this poll.
    fn look_ahead(&mut self, commit: &CommitEvent, last: L2Number, turn: &Turn<'_>) {
        let height = turn.hands.node.height();
        let writes = turn.verdict == HeadTrend::Stopped && self.writer.can_write();
        if writes || dispatch::is_present(last, height) {
            let Upcoming { messages, headers, .. } = turn.upcoming;
            let given = Given { height, messages: messages.clone(), headers: headers.clone(), writes };
            self.ahead.top_up(turn.upcoming.after(commit), last.plus(1), &given);
        }
    }

    /// The blocks that were gathered, if they begin with `first`, lie at or below the head at `height` by which the
    /// poll decides, and the node has them now.
    async fn still_there(
        &self,
        segment: Option<Segment>,
        first: L2Number,
        height: L2Number,
    ) -> Result<Option<Segment>, FlowError> {
        let fits = |s: &Segment| s.anchor.number.plus(1) == first && dispatch::is_present(s.last.number, height);
        let Some(segment) = segment.filter(fits) else { return Ok(None) };
        let (node, last) = self.l2.snapshot_and(segment.last.number).await?;
        if !dispatch::is_present(segment.last.number, node.head.number) {
            // A node that was killed still answers for blocks above its fallen head (E19).
            return Err(FlowError::local_changed(format!("block {} is gone", segment.last.number)));
        }
        Ok(last.is_some_and(|last| last.hash == segment.last.hash).then_some(segment))
    }

    /// Judges the batch of `commit`, repairs the local chain if the table says so, and verifies the roots.
    pub(crate) async fn judge(
        &mut self,
        commit: &CommitEvent,
        before: Option<&BatchRecord>,
        turn: &mut Turn<'_>,
    ) -> Decided<BatchEnd> {
        let CommitEvent { index, hash, .. } = *commit;
        let (bound, segment) = match self.ahead.take(commit).await {
            Some(gathered) => (gathered.bound, gathered.segment),
            None => (self.bind(commit, before, turn.search, turn.hands.ledger).await?, None),
        };
        if let Some(before) = before
            && let Err(fault) = binding::continues(&bound.outline, before)
        {
            return Err(Stall::at(index, Cause::Discontinued(fault)).into());
        }
        let first = self.first_block(&bound, before).await?;
        let blocks = content::extent(first, bound.outline.last).map_err(|fault| poison(index, fault))?;
        self.look_ahead(commit, bound.outline.last, turn);
        let segment = self.still_there(segment, first, turn.hands.node.height()).await?;
        let anchor = match self.anchor(&bound, before, first, segment.as_ref(), turn).await? {
            Below::Anchor(anchor) => anchor,
            Below::Unverified(commit) => return Ok(BatchEnd::WalkBack(commit)),
        };
        turn.blocks = blocks;
        let batch = BatchContext { bound: &bound, before, first, blocks, anchor };
        let mut resolved = self.resolve_case(&batch, segment.as_ref(), turn).await?;
        let known = segment.filter(|s| s.last.hash == resolved.last.hash).and_then(|s| s.withdrawal_root);
        let asked = Asked::of(&batch, &resolved.last, known);
        self.roots.check(self.l2.as_ref(), &asked, self.search_time, turn.hands.now).await?;
        let (ledger, height) = (&mut *turn.hands.ledger, turn.hands.node.height());
        let noted = intents::close(ledger, self.l2.as_ref(), (index, hash), resolved.last.number, height).await?;
        if let Some((case, rewritten)) = noted {
            (resolved.case, resolved.rewritten) = (case, rewritten);
        } else if let Some((row, _)) = intents::written_again(ledger, self.rows.as_ref(), index, hash).await? {
            let case = row.case.unwrap_or(resolved.case);
            resolved = Resolved { case, rewritten: row.rewritten, drift: row.encoder_drift, ..resolved };
        }
        let header = &bound.outline.header;
        Ok(BatchEnd::Verified(Box::new(BatchRecord {
            index,
            hash,
            l1: commit.block,
            log_index: commit.log_index,
            tx_hash: commit.tx_hash,
            outcome: Outcome::Verified,
            case: Some(resolved.case),
            first: Some(first),
            last: Some(resolved.last.l2_ref()),
            post_state_root: header.post_state_root,
            withdrawal_root: header.withdrawal_root,
            total_l1_popped: header.total_l1_message_popped,
            rewritten: resolved.rewritten,
            encoder_drift: resolved.drift,
            blobs: bound.outline.versioned_hashes.len() as u64,
        })))
    }

    /// The batch's first block: from the parent header, the batch before, the contract, or the payload.
    async fn first_block(&self, bound: &BoundCommit, before: Option<&BatchRecord>) -> Decided<L2Number> {
        let outline = &bound.outline;
        if let Some(first) = outline.first {
            return Ok(first);
        }
        if let Some(last) = before.and_then(|b| b.last) {
            return Ok(last.number.plus(1));
        }
        // A version 0 parent has no last block, and nothing is stored of it: the content itself gives the number.
        let bytes = self.gatherer.payload(bound).await?;
        batch::first_block(&bytes).map_err(|_| poison(outline.index(), ContentFault::Empty).into())
    }

    /// The local block below the batch, if the batch may be judged on it.
    async fn anchor(
        &mut self,
        bound: &BoundCommit,
        before: Option<&BatchRecord>,
        first: L2Number,
        segment: Option<&Segment>,
        turn: &mut Turn<'_>,
    ) -> Decided<Below> {
        let index = bound.outline.index();
        let number = first.minus(1);
        if !dispatch::is_present(number, turn.hands.node.height()) {
            // Even the block below is missing. After a verified batch this means that the chain changed under way.
            if before.is_some() {
                return Err(FlowError::local_changed(format!("block {number} is gone")).into());
            }
            let facts = first_facts(bound.outline.last, turn, false, None);
            return match dispatch::first_look(&facts) {
                FirstLook::FetchBlob => walk_back(index, number, false, turn).await,
                FirstLook::Wait | FirstLook::WaitBeforeSwitch | FirstLook::Consistent => {
                    turn.blocks = bound.outline.last.above(first).saturating_add(1);
                    Err(waiting(index, bound.outline.last, turn).into())
                }
            };
        }
        let local = match segment {
            Some(segment) => Some(segment.anchor),
            None => self.l2.header(number).await?,
        };
        let local = local.ok_or_else(|| FlowError::local_changed(format!("block {number} is gone")))?;
        let facts = AnchorFacts {
            local,
            prev_state_root: bound.outline.header.prev_state_root,
            verified: before.and_then(|b| b.last),
        };
        match reconcile::anchor(&facts) {
            Anchor::Canonical => Ok(Below::Anchor(local)),
            Anchor::NotTheVerified { expected } => {
                Err(FlowError::local_changed(format!("block {number} is no longer the verified {expected}")).into())
            }
            Anchor::StateRoot { expected, actual } if before.is_some() => {
                Err(Stall::at(index, Cause::PrevStateRoot { expected, actual }).into())
            }
            Anchor::StateRoot { expected, actual } => {
                warn!(
                    code = "walk_back",
                    entity = index.get(),
                    batch = index.get(),
                    ?expected,
                    ?actual,
                    "the local chain differs below this batch; going back one batch"
                );
                walk_back(index, number, true, turn).await
            }
        }
    }

    /// The case table: looks, and acts if there is something to write.
    async fn resolve_case(
        &mut self,
        batch: &BatchContext<'_>,
        segment: Option<&Segment>,
        turn: &mut Turn<'_>,
    ) -> Decided<Resolved> {
        let (index, last) = (batch.index(), batch.last());
        let before_switch = dispatch::is_before_switch(batch.anchor.timestamp, self.switch_ms);
        if let Some(segment) = segment
            && dispatch::first_look(&first_facts(last, turn, before_switch, Some(true))) == FirstLook::Consistent
        {
            return Ok(Resolved { case: Case::Consistent, last: segment.last, rewritten: 0, drift: false });
        }
        // What follows may take long; tags that were held back do not wait for it.
        turn.hands.node.sync_tags(turn.hands.ledger).await?;
        let present = dispatch::is_present(last, turn.hands.node.height());
        let mut local = Vec::new();
        if present {
            local = self.gatherer.local_blocks(batch, last, self.local_bytes).await?;
        }
        let whole = local.len() as u64 == batch.blocks;
        let same_bytes = if present && whole && self.mode == Mode::Local {
            Some(self.gatherer.same_bytes(batch, &local).await?)
        } else {
            None
        };
        match dispatch::first_look(&first_facts(last, turn, before_switch, same_bytes)) {
            FirstLook::Consistent => {
                let Some(block) = local.last() else {
                    return Err(FlowError::local_changed("no block was read").into());
                };
                return Ok(Resolved { case: Case::Consistent, last: block.header, rewritten: 0, drift: false });
            }
            FirstLook::Wait => return Err(waiting(index, last, turn).into()),
            FirstLook::WaitBeforeSwitch => {
                return Err(Stall::at(index, Cause::BeforeSwitch).into());
            }
            FirstLook::FetchBlob => {}
        }
        let expected = self.expected_blocks(batch, turn).await?;
        let top = last.min(turn.hands.node.height());
        if !whole && top >= batch.first {
            drop(local);
            local = self
                .gatherer
                .local_blocks(batch, top, expected.iter().map(|b| held_bytes(&b.transactions)).sum())
                .await?;
        }
        let (equal, difference) = reconcile::equal_prefix(batch.anchor.l2_ref(), &expected, &local);
        if difference.is_none() && top >= batch.first && local.last().is_none_or(|b| b.header.number != top) {
            // Local blocks with more bytes than the content cannot equal it.
            return Err(FlowError::local_changed("blocks changed while they were compared").into());
        }
        let bytes_differed = same_bytes == Some(false);
        let case = match dispatch::after_rebuild(&SecondFacts { present, difference, bytes_differed, before_switch }) {
            SecondLook::Consistent { drift } => {
                if drift {
                    let (code, batch) = ("encoder_drift", index.get());
                    warn!(code, entity = batch, batch, "the content is equal, but its bytes differ from our encoder's");
                    self.drift = self.drift.saturating_add(1);
                }
                let Some(block) = local.last() else {
                    return Err(FlowError::local_changed("no block was read").into());
                };
                return Ok(Resolved { case: Case::Consistent, last: block.header, rewritten: 0, drift });
            }
            SecondLook::DivergesBeforeSwitch => {
                return Err(Stall::at(index, Cause::DiffersBeforeSwitch(difference)).into());
            }
            SecondLook::SelfHeal => Case::SelfHeal,
            SecondLook::FillGap => Case::FillGap,
        };
        let hash = batch.bound.outline.header.hash();
        let case = turn.hands.ledger.case_begun(index, hash).unwrap_or(case);
        if let Some(difference) = difference {
            info!(batch = index.get(), %difference, "the local chain differs from L1");
        }
        let Some(plan) = reconcile::plan(batch.anchor.l2_ref(), expected, &local, equal) else {
            return Err(FlowError::local_changed("nothing is left to write").into());
        };
        let rewritten = plan.blocks.len() as u64;
        if plan.rewrites() {
            self.ahead.forget();
        } else if !turn.hands.pause.is_open() {
            self.ahead.settle().await;
        }
        let last = self.writer.derive_force(Order { index, hash, case, plan }, &mut turn.hands).await?;
        Ok(Resolved { case, last, rewritten, drift: false })
    }

    /// The batch's blocks as its blob and the queue hold them, checked against calldata.
    async fn expected_blocks(&mut self, batch: &BatchContext<'_>, turn: &mut Turn<'_>) -> Decided<Vec<NewBlock>> {
        let outline = &batch.bound.outline;
        let poisoned = |fault| poison(batch.index(), fault);
        let blocks = self.gatherer.content(batch).await?;
        content::check(&blocks, &batch.demands()).map_err(poisoned)?;
        let messages = self.messages(turn.search, turn.hands.ledger, outline.first_message, outline.messages).await?;
        let hashes_fit = messages.iter().map(|m| m.hash).eq(outline.message_hashes.iter().copied());
        if !hashes_fit {
            return Err(FlowError::l1_changed("the stored L1 messages are not those that the batch is bound to").into());
        }
        let count = || ContentFault::MessageCount { expected: outline.messages, actual: messages.len() as u64 };
        Ok(content::with_messages(&blocks, &messages).ok_or_else(count).map_err(poisoned)?)
    }

    /// Asks for all that rebuilding `commit` takes, whatever the local chain holds and whether or not L1 took it back
    /// since: its calldata, its blobs, its L1 messages. For a recording: if L1 or the blobs lack something, every
    /// worker stalls at the same point.
    pub(crate) async fn ask_for_all(
        &self,
        commit: &CommitEvent,
        search: &mut L1Search,
        ledger: &mut Ledger,
    ) -> Result<(), FlowError> {
        let bound = self.bind(commit, None, search, ledger).await;
        let Some(bound) = Stop::none_if_it_stands(bound)? else { return Ok(()) };
        let _decoded = Stop::none_if_it_stands(self.gatherer.payload(&bound).await)?;
        let outline = &bound.outline;
        self.messages(search, ledger, outline.first_message, outline.messages).await?;
        Ok(())
    }

    /// L1 messages `first..first + count` with their bytes: the stored ones, else looked for further back on L1.
    async fn messages(
        &self,
        search: &mut L1Search,
        ledger: &mut Ledger,
        first: QueueIndex,
        count: u64,
    ) -> Result<Vec<L1Message>, FlowError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let stored = self.rows.messages(first, count).await?;
        if stored.len() as u64 == count {
            return Ok(stored);
        }
        search.scan_back(ledger, first, count).await?;
        let stored = self.rows.messages(first, count).await?;
        if stored.len() as u64 == count {
            return Ok(stored);
        }
        let missing = queue_range(first, count).into_iter().find(|i| stored.iter().all(|m| m.index != *i));
        let detail = format!("L1 message {} was not found on L1", missing.unwrap_or(first));
        Err(FlowError::Port(PortError::new(Target::L1, PortErrorKind::NotFound, detail)))
    }
}

/// The anchor at `number` below batch `index` is wrong and nothing is stored of the batch before: it is looked for on
/// L1 and verified first. If the block is `present`, this goes down to the finalized head at most (E5).
async fn walk_back(index: BatchIndex, number: L2Number, present: bool, turn: &mut Turn<'_>) -> Decided<Below> {
    if present && turn.hands.node.tags.is_final(turn.hands.ledger, number) {
        return Err(Stall::at(index, Cause::BelowFinalized(Final::Anchor(number))).into());
    }
    if index.get() <= 1 {
        return Err(Stall::at(index, Cause::BelowFinalized(Final::Genesis)).into());
    }
    match turn.search.standing_commit(index.minus(1)).await? {
        Some(commit) => Ok(Below::Unverified(commit)),
        None => Err(Stall::at(index, Cause::Gap(Gap::CommitBelow(index.minus(1)))).into()),
    }
}

fn first_facts(last: L2Number, turn: &Turn<'_>, before_switch: bool, same_bytes: Option<bool>) -> FirstFacts {
    FirstFacts { last, head: turn.hands.node.height(), verdict: turn.verdict, before_switch, same_bytes }
}

fn waiting(index: BatchIndex, last: L2Number, turn: &Turn<'_>) -> Stall {
    let head = turn.hands.node.height();
    let cause = match turn.hands.node.local.lost() {
        Some(Lost { from, .. }) => Cause::BlocksLost { from, head, last },
        None => Cause::BlocksMissing { head, last },
    };
    Stall::at(index, cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::{World, cause_of};
    use crate::flow::writer::SharedPause;
    use crate::ports::Step;
    use crate::types::{L1Event, L2Ref};

    /// Batch 1, blocks 1 to 12, in a poll of its own.
    async fn judged(world: &mut World, verdict: HeadTrend) -> Decided<BatchEnd> {
        let messages: Vec<_> = world.l1.now().events.iter().cloned().filter_map(L1Event::into_message).collect();
        world.store(Step { messages, ..Step::default() }).await;
        let mut batches = Batches::new(&world.ports, world.writer(), &world.settings);
        let mut search = L1Search::new(&world.ports, &world.settings);
        let (mut node, mut pause, commit) = (world.poll_begins().await, SharedPause::default(), world.commit(1));
        let now = Duration::from_secs(60);
        let hands = Hands { ledger: &mut world.ledger, node: &mut node, pause: &mut pause, now };
        let upcoming = Upcoming::default();
        let mut turn = Turn { hands, search: &mut search, verdict, blocks: 0, upcoming: &upcoming };
        let end = batches.judge(&commit, None, &mut turn).await;
        pause.release().await.unwrap();
        end
    }

    /// Batches 1 and 2 in one poll. What comes after batch 1 is gathered completely; then `change` is made to the world
    /// and batch 2 has its turn.
    async fn second_after(change: impl FnOnce(&World, &mut Batches)) -> (Decided<BatchEnd>, usize) {
        let mut world = World::recorded().await;
        let messages: Vec<_> = world.l1.now().events.iter().cloned().filter_map(L1Event::into_message).collect();
        let hashes: Vec<_> = messages.iter().map(|(_, message)| (message.index, message.hash)).collect();
        world.store(Step { messages, ..Step::default() }).await;
        let commits: Vec<_> = (1..=6).map(|index| world.commit(index)).collect();
        let mut upcoming = Upcoming::default();
        upcoming.add((commits.clone(), hashes), &[]);
        let mut batches = Batches::new(&world.ports, world.writer(), &world.settings);
        let mut search = L1Search::new(&world.ports, &world.settings);
        let (mut node, mut pause) = (world.poll_begins().await, SharedPause::default());
        let now = Duration::from_secs(60);
        let verdict = HeadTrend::Alive;
        let hands = Hands { ledger: &mut world.ledger, node: &mut node, pause: &mut pause, now };
        let mut turn = Turn { hands, search: &mut search, verdict, blocks: 0, upcoming: &upcoming };
        let first = batches.judge(&commits[0], None, &mut turn).await.unwrap();
        let BatchEnd::Verified(first) = first else { panic!("{first:?}") };
        batches.ahead.settle().await;
        change(&world, &mut batches);
        let asked = world.l1.now().transactions_asked;
        let hands = Hands { ledger: &mut world.ledger, node: &mut node, pause: &mut pause, now };
        let mut turn = Turn { hands, search: &mut search, verdict, blocks: 0, upcoming: &upcoming };
        let end = batches.judge(&commits[1], Some(&first), &mut turn).await;
        pause.release().await.unwrap();
        let asked = world.l1.now().transactions_asked - asked;
        (end, asked)
    }

    #[tokio::test]
    async fn a_batch_that_was_gathered_ahead_is_verified_without_asking_l1_again() {
        let (end, asked) = second_after(|_, _| {}).await;
        assert_eq!(verified(end).0, Some(Case::Consistent));
        assert_eq!(asked, 0);
    }

    #[tokio::test]
    async fn p1_e2_blocks_that_were_gathered_on_a_chain_that_is_gone_do_not_count() {
        let (end, _) = second_after(|world, _| world.fork_l2(20)).await;
        let (case, _, rewritten) = verified(end);
        assert_eq!((case, rewritten), (Some(Case::SelfHeal), 5), "blocks 20 to 24");
    }

    #[tokio::test]
    async fn p8_after_a_reorg_nothing_that_was_gathered_counts() {
        let (end, asked) = second_after(|_, batches| batches.chain_changed()).await;
        assert_eq!(verified(end).0, Some(Case::Consistent));
        assert!(asked >= 1, "bound anew");
    }

    /// Case, last block and blocks written.
    fn verified(end: Decided<BatchEnd>) -> (Option<Case>, Option<L2Ref>, u64) {
        let Ok(BatchEnd::Verified(record)) = end else { panic!("{end:?}") };
        (record.case, record.last, record.rewritten)
    }

    #[tokio::test]
    async fn equal_blocks_are_consistent_and_nothing_is_written() {
        for mode in [Mode::Local, Mode::Blob] {
            let mut world = World::recorded().await;
            world.settings.mode = mode;
            let end = judged(&mut world, HeadTrend::Stopped).await;
            assert_eq!(verified(end), (Some(Case::Consistent), Some(world.l2(12)), 0));
            assert!(world.node.node().writes().is_empty());
        }
    }

    #[tokio::test]
    async fn missing_blocks_are_waited_for_and_written_once_the_head_stopped() {
        let mut world = World::recorded().await;
        world.node.node().truncate(5);
        let missing = Cause::BlocksMissing { head: 5.into(), last: 12.into() };
        assert_eq!(cause_of(judged(&mut world, HeadTrend::Alive).await), Some(missing));
        assert!(world.node.node().writes().is_empty());
        let end = judged(&mut world, HeadTrend::Stopped).await;
        assert_eq!(verified(end), (Some(Case::FillGap), Some(world.l2(12)), 7));
        assert_eq!(world.shown().await.head, world.l2(12));
    }

    #[tokio::test]
    async fn other_content_is_rewritten_from_the_first_block_that_differs() {
        let mut world = World::recorded().await;
        world.fork_l2(7);
        let end = judged(&mut world, HeadTrend::Alive).await;
        assert_eq!(verified(end), (Some(Case::SelfHeal), Some(world.l2(12)), 6));
        assert_eq!(world.node.node().writes()[0].number, 7);
    }

    #[tokio::test]
    async fn p1_e1_equal_content_with_another_state_root_is_not_verified() {
        let mut world = World::recorded().await;
        world.node.node().moods.wrong_state_from = Some(12);
        world.node.node().truncate(5);
        let cause = cause_of(judged(&mut world, HeadTrend::Stopped).await);
        assert!(matches!(cause, Some(Cause::StateRoot { number, .. }) if number.get() == 12), "{cause:?}");
    }
}
