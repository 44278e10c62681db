//! The parties together: L1, beacon, sequencer, and the local node that the worker watches over.
//!
//! Decided here: how a day of the network goes (messages, blocks, batches, finalization) and how the local node comes to
//! lag, fork, lose or grow blocks. Synchronous and without I/O; `serve` puts HTTP around it.

use std::sync::Arc;

use super::beacon::BeaconConfig;
use super::block::StoredBlock;
use super::chain::{BatchSpec, BlockPlan, Sequencer, content_of, encode_blobs, measure};
use super::client::Client;
use super::headers::Header;
use super::l1::{CommitOp, L1, L1Config, L1Op, L1Tx, SimBlob};
use super::node::{Node, SafeL2Data, made_up};
use super::oracle::Oracle;
use crate::codec::batch;
use crate::codec::calldata::{CommitCalldata, CommitForm};
use crate::codec::header::{BatchHeader, EMPTY_BLOB_HASH};
use crate::codec::transaction::L1MessageFields;
use crate::types::{
    Address, B256, BatchIndex, Blob, BlockContent, L1Message, L1Ref, L2Number, L2Ref, RawTx, U256, is_l1_message,
    keccak,
};

/// A batch that was committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Index.
    pub index: u64,
    /// First L2 block.
    pub first: u64,
    /// Last L2 block.
    pub last: u64,
    /// Header, as the contract made it.
    pub header: BatchHeader,
    /// Batch hash in the event.
    pub hash: B256,
    /// The commit's transaction; its block is found with [`L1::find_tx`] once it is mined.
    pub tx: B256,
    /// Blobs that the batch consists of.
    pub blobs: Vec<Arc<SimBlob>>,
    /// Calldata of the commit.
    pub calldata: CommitCalldata,
}

/// How a block of the local node differs from the sequencer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkShape {
    /// One L2 transaction is another one (or is added to a block that has none).
    OtherTransaction,
    /// One more L2 transaction.
    ExtraTransaction,
    /// The last transaction is missing (in a block without any: one more).
    MissingTransaction,
    /// Many hardly compressible transactions more: the batch takes another number of blobs.
    Bulky,
    /// Another base fee.
    BaseFee,
    /// Another gas limit.
    GasLimit,
    /// A second later.
    Timestamp,
    /// Its L1 messages carry other data under the same queue index.
    ForgedL1Message,
    /// Its L1 messages are left out.
    MissingL1Messages,
}

/// What a world is made from.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Seed of everything random.
    pub seed: u64,
    /// L1 chain id.
    pub l1_chain_id: u64,
    /// L2 chain id.
    pub l2_chain_id: u64,
    /// Time of L1 block 0 and of L2 genesis.
    pub start_time: u64,
    /// Beacon genesis before `start_time`, in slots.
    pub beacon_lead_slots: u64,
    /// Distance of L1's `safe` tag.
    pub safe_depth: u64,
    /// Distance of L1's `finalized` tag.
    pub finalized_depth: u64,
    /// Seconds between L2 blocks.
    pub l2_block_time: u64,
    /// The L2 starts at this height instead of 0: the block there is made up, batch 0 ends on it.
    pub anchor: Option<u64>,
    /// Recorded results for the local node and the sequencer, with their genesis.
    pub oracle: Option<Arc<Oracle>>,
    /// The client that the local node imitates. The sequencer's chain is go-ethereum's either way.
    pub client: Client,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            l1_chain_id: 900,
            l2_chain_id: 53077,
            start_time: 1_790_000_000,
            beacon_lead_slots: 1000,
            safe_depth: 4,
            finalized_depth: 8,
            l2_block_time: 2,
            anchor: None,
            oracle: None,
            client: Client::Geth,
        }
    }
}

/// Everything simulated.
#[derive(Clone, Debug)]
pub struct World {
    /// L1.
    pub l1: L1,
    /// Beacon constants.
    pub beacon: BeaconConfig,
    /// Sequencer.
    pub sequencer: Sequencer,
    /// The local node.
    pub node: Node,
    /// Standing batches, oldest first; batch 0 is not among them.
    pub batches: Vec<Committed>,
    /// Batches that were reverted.
    pub reverted: Vec<Committed>,
    first_block: u64,
    spare: u64,
}

impl World {
    /// A world with genesis imported in L1 block 1, and nothing else.
    pub fn new(options: &WorldOptions) -> anyhow::Result<Self> {
        let genesis = match options.oracle.as_ref().and_then(|oracle| oracle.at(0)) {
            Some(recorded) => (*recorded).clone(),
            None => StoredBlock::genesis(options.start_time, made_up("genesis state", options.seed)),
        };
        let mut node = Node::new(options.l2_chain_id, genesis.clone());
        if let Some(oracle) = &options.oracle {
            node = node.with_oracle(Arc::clone(oracle));
        }
        let mut first_block = 1;
        if let Some(anchor) = options.anchor {
            let mut header = Header::empty(anchor, made_up("anchor parent", anchor), options.start_time);
            header.state_root = made_up("anchor state", anchor);
            header.base_fee = Some(super::chain::BASE_FEE.into());
            node.import(Arc::new(StoredBlock::anchor(header)));
            first_block = anchor + 1;
        }
        let l1 = L1::new(L1Config {
            chain_id: options.l1_chain_id,
            start_time: options.start_time,
            block_time: 12,
            safe_depth: options.safe_depth,
            finalized_depth: options.finalized_depth,
            seed: options.seed,
        });
        let beacon = BeaconConfig {
            genesis_time: options.start_time.saturating_sub(options.beacon_lead_slots * 12),
            seconds_per_slot: 12,
        };
        let sequencer = Sequencer::new(node.clone(), options.seed, options.l2_block_time);
        node.become_client(options.client);
        let mut world =
            Self { l1, beacon, sequencer, node, batches: Vec::new(), reverted: Vec::new(), first_block, spare: 0 };
        world.import_genesis()?;
        Ok(world)
    }

    fn import_genesis(&mut self) -> anyhow::Result<()> {
        let head = self.sequencer.node.head();
        let header = BatchHeader {
            version: 2,
            index: BatchIndex::new(0),
            l1_message_popped: 0,
            total_l1_message_popped: 0,
            data_hash: made_up("genesis data", 0),
            blob_field: EMPTY_BLOB_HASH,
            prev_state_root: B256::zero(),
            post_state_root: head.header.state_root,
            withdrawal_root: B256::zero(),
            sequencer_sets_hash: B256::zero(),
            parent_hash: B256::zero(),
            last_block: Some(L2Number::new(head.number())),
        };
        self.l1.submit(L1Op::ImportGenesis(header))?;
        self.l1.mine();
        Ok(())
    }

    fn queue(&self) -> Vec<L1Message> {
        self.l1.messages().cloned().collect()
    }

    /// Enqueues `n` L1 messages in the pending L1 block.
    pub fn enqueue(&mut self, n: u64) -> anyhow::Result<()> {
        for _ in 0..n {
            let index = self.l1.messages().len() as u64;
            self.l1.submit(L1Op::Enqueue(L1MessageFields {
                queue_index: index,
                gas_limit: U256::from(200_000 + index),
                to: Address::from_low_u64_be(0x1000 + index),
                value: U256::from(index),
                data: made_up("message", index).as_bytes().repeat(1 + (index % 3) as usize).into(),
                sender: Address::repeat_byte(0x5e),
            }))?;
        }
        Ok(())
    }

    /// Builds `n` L2 blocks as a quiet network makes them.
    pub fn build(&mut self, n: u64) -> anyhow::Result<()> {
        for _ in 0..n {
            let plan = self.sequencer.casual_plan();
            self.build_planned(&plan)?;
        }
        Ok(())
    }

    /// Builds one L2 block.
    pub fn build_planned(&mut self, plan: &BlockPlan) -> anyhow::Result<Arc<StoredBlock>> {
        let queue = self.queue();
        self.sequencer.build(plan, &queue)
    }

    /// Mines `n` L1 blocks, what is pending in the first.
    pub fn mine(&mut self, n: u64) -> L1Ref {
        let mut last = self.l1.mine();
        for _ in 1..n {
            last = self.l1.mine();
        }
        last
    }

    /// First block of the next batch.
    pub fn next_first(&self) -> u64 {
        self.batches.last().map_or(self.first_block, |batch| batch.last + 1)
    }

    fn parent_header(&self) -> anyhow::Result<BatchHeader> {
        let index = self.batches.last().map_or(0, |batch| batch.index);
        self.l1.header(index).ok_or_else(|| anyhow::anyhow!("batch {index} is not committed"))
    }

    /// Commits the sequencer's blocks that are not yet committed in the pending L1 block.
    pub fn commit(&mut self, mut spec: BatchSpec) -> anyhow::Result<Committed> {
        let first = self.next_first();
        let last = spec.last.unwrap_or_else(|| self.sequencer.node.head().number());
        anyhow::ensure!(first <= last, "no block to commit: {first} to {last}");
        let node = &self.sequencer.node;
        let blocks = (first..=last).map(|number| node.at(number)).collect::<Option<Vec<_>>>();
        let blocks = blocks.ok_or_else(|| anyhow::anyhow!("the sequencer lacks blocks {first} to {last}"))?;
        let mut contents = blocks.iter().map(|block| content_of(block)).collect::<anyhow::Result<Vec<_>>>()?;
        let (Some(tip), Some(below)) = (blocks.last(), node.at(first - 1)) else { anyhow::bail!("no parent block") };
        let form = spec.form.unwrap_or(CommitForm::CommitBatch);
        let messages: u64 = contents.iter().map(|content| u64::from(content.context.l1_messages)).sum();
        let mut calldata = CommitCalldata {
            form,
            version: spec.version.unwrap_or(if form.is_legacy() { 0 } else { 2 }),
            parent_header: self.parent_header()?.encode(),
            last_block: (!form.is_legacy()).then_some(L2Number::new(last)),
            num_l1_messages: (!form.is_legacy()).then_some(u16::try_from(messages)?),
            contexts: form.is_legacy().then(|| contents.iter().map(|content| content.context).collect()),
            prev_state_root: below.header.state_root,
            post_state_root: tip.header.state_root,
            withdrawal_root: tip.withdrawal_root.unwrap_or_default(),
            sequencer_sets: b"sequencers".to_vec(),
        };
        if let Some(edit) = spec.edit_commit.take() {
            edit(&mut calldata);
        }
        if let Some(edit) = spec.edit_contents.take() {
            edit(&mut contents);
        }
        let blobs = self.blobs_for(&contents, form, &mut spec)?;
        let op = CommitOp {
            calldata: calldata.clone(),
            blobs: blobs.clone(),
            forward: spec.forward,
            shown_input: spec.shown_input,
            event_hash: spec.event_hash,
            versioned_hashes: spec.versioned_hashes,
        };
        let tx = self.l1.submit(L1Op::Commit(Box::new(op)))?;
        let index = self.l1.last_committed();
        let header = self.l1.header(index).ok_or_else(|| anyhow::anyhow!("commit of batch {index} left no header"))?;
        let hash = self.l1.committed_hash(index);
        let batch = Committed { index, first, last, header, hash, tx: tx.hash, blobs, calldata };
        self.batches.push(batch.clone());
        Ok(batch)
    }

    fn blobs_for(
        &self,
        contents: &[BlockContent],
        form: CommitForm,
        spec: &mut BatchSpec,
    ) -> anyhow::Result<Vec<Arc<SimBlob>>> {
        if spec.no_blobs || form == CommitForm::CommitState {
            return Ok(Vec::new());
        }
        if let Some(blobs) = spec.blobs.take() {
            return measure(blobs);
        }
        let mut payload = batch::encode(contents, form.is_legacy());
        if let Some(edit) = spec.edit_payload.take() {
            edit(&mut payload);
        }
        encode_blobs(&payload, spec)
    }

    /// Makes one ordinary batch from nothing: a message, blocks, the commit; mines what is pending.
    pub fn produce(&mut self, blocks: u64) -> anyhow::Result<Committed> {
        self.enqueue(1)?;
        self.mine(1);
        self.build(blocks)?;
        let batch = self.commit(BatchSpec::default())?;
        self.mine(1);
        Ok(batch)
    }

    /// One L1 block of an ordinary day: L2 blocks for its seconds, now and then a message, a commit when
    /// `blocks_per_batch` blocks wait, contract finalization after L1's own. The local node does not change.
    pub fn tick(&mut self, blocks_per_batch: u64) -> anyhow::Result<()> {
        if self.l1.head().is_multiple_of(3) {
            self.enqueue(1)?;
        }
        let waiting = (self.sequencer.node.head().number() + 1).saturating_sub(self.next_first());
        if waiting >= blocks_per_batch.max(1) {
            let last = self.next_first() + blocks_per_batch.max(1) - 1;
            self.commit(BatchSpec { last: Some(last), ..BatchSpec::default() })?;
        }
        let deep = self.batches.iter().rev().find(|batch| {
            let block = self.l1.find_tx(batch.tx).map(|(block, ..)| block.header.number);
            block.is_some_and(|number| number + self.l1.config.finalized_depth <= self.l1.head())
        });
        if let Some(index) = deep.map(|batch| batch.index).filter(|index| *index > self.l1.last_finalized()) {
            self.finalize(index)?;
        }
        self.mine(1);
        self.build(self.l1.config.block_time / self.sequencer.block_time.max(1))
    }

    /// A batch from given contents, under these blobs as they are, or encoded if there are none. Mines it.
    pub fn produce_from(&mut self, contents: &[BlockContent], blobs: Option<Vec<Blob>>) -> anyhow::Result<Committed> {
        let queue = self.queue();
        self.sequencer.append_contents(contents, &queue)?;
        let batch = self.commit(BatchSpec { blobs, ..BatchSpec::default() })?;
        self.mine(1);
        Ok(batch)
    }

    /// `revertBatch(from)` in the pending block: this batch and all above.
    pub fn revert(&mut self, from: u64) -> anyhow::Result<()> {
        self.l1.submit(L1Op::Revert(from))?;
        let at = self.batches.iter().position(|batch| batch.index >= from).unwrap_or(self.batches.len());
        self.reverted.extend(self.batches.split_off(at));
        Ok(())
    }

    /// `commitState` in the pending block for the next index, which was reverted before: the same blocks over the blobs
    /// that the reverted commit stored.
    pub fn recommit_state(&mut self) -> anyhow::Result<Committed> {
        let index = self.batches.last().map_or(1, |batch| batch.index + 1);
        let last = self.reverted.iter().rev().find(|batch| batch.index == index).map(|batch| batch.last);
        anyhow::ensure!(last.is_some(), "batch {index} was never reverted");
        self.commit(BatchSpec { last, form: Some(CommitForm::CommitState), ..BatchSpec::default() })
    }

    /// Finalizes batches up to and with `index` on L1, in the pending block.
    pub fn finalize(&mut self, index: u64) -> anyhow::Result<()> {
        self.l1.submit(L1Op::Finalize(index)).map(|_| ())
    }

    /// Drops the newest `depth` L1 blocks. Batches and reverts in them are forgotten. Gives their
    /// transactions, to be resubmitted or not.
    pub fn reorg(&mut self, depth: u64) -> Vec<Arc<L1Tx>> {
        let dropped = self.l1.reorg(depth);
        let mut all: Vec<Committed> = self.reverted.drain(..).chain(self.batches.drain(..)).collect();
        all.retain(|batch| self.l1.find_tx(batch.tx).is_some());
        all.sort_by_key(|batch| batch.index);
        for batch in all {
            // A recommit over the same blocks has the hash of the commit before it: the later one counts.
            if let Some(older) = self.batches.pop_if(|older| older.index == batch.index) {
                self.reverted.push(older);
            }
            if self.l1.committed_hash(batch.index) == batch.hash {
                self.batches.push(batch);
            } else {
                self.reverted.push(batch);
            }
        }
        dropped
    }

    /// Resubmits dropped transactions in the pending block and takes their batches up again.
    pub fn resubmit(&mut self, dropped: &[Arc<L1Tx>], known: &[Committed]) -> anyhow::Result<()> {
        for tx in dropped {
            self.l1.resubmit(Arc::clone(tx))?;
            if let Some(batch) = known.iter().find(|batch| batch.tx == tx.hash) {
                self.batches.push(batch.clone());
            }
        }
        Ok(())
    }

    // The local node.

    /// Gives the local node the sequencer's blocks up to `last`, from where the two part, as they are: nothing is executed.
    pub fn sync_to(&mut self, last: u64) {
        let mut from = self.node.head().number().min(last);
        let same = |from: u64, world: &Self| match (world.node.at(from), world.sequencer.node.at(from)) {
            (Some(ours), Some(theirs)) => ours.hash() == theirs.hash(),
            _ => false,
        };
        while from > 0 && !same(from, self) {
            from -= 1;
        }
        let blocks: Vec<_> = (from + 1..=last).filter_map(|number| self.sequencer.node.at(number)).collect();
        blocks.into_iter().for_each(|block| self.node.import(block));
    }

    /// Gives the local node everything that the sequencer has.
    pub fn sync(&mut self) {
        self.sync_to(self.sequencer.node.head().number());
    }

    /// The local node executes the sequencer's content by itself, from its head up to `last`, in its present moods: what
    /// comes out may differ (E1).
    pub fn execute_to(&mut self, last: u64) -> anyhow::Result<()> {
        for number in self.node.head().number() + 1..=last {
            let block = self.sequencer.node.at(number);
            let block = block.ok_or_else(|| anyhow::anyhow!("the sequencer lacks block {number}"))?;
            let data = SafeL2Data { parent_hash: None, ..SafeL2Data::from(&block.as_new_block()) };
            self.node.write_quietly(&data).map_err(|e| anyhow::anyhow!("block {number}: {}", e.message))?;
        }
        Ok(())
    }

    /// The local node's chain ends at `last`: the blocks above are gone.
    pub fn truncate_to(&mut self, last: u64) {
        self.node.truncate(last);
    }

    /// The local node takes the sequencer's next `n` blocks, as from its consensus node.
    pub fn grow(&mut self, n: u64) {
        self.sync_to(self.node.head().number() + n);
    }

    /// From block `number` on, the local node holds another chain: that block in another `shape`, the ones above it up to
    /// its present head with the sequencer's content. The worker's own records of writes stay untouched.
    pub fn fork_at(&mut self, number: u64, shape: ForkShape) -> anyhow::Result<()> {
        let until = self.node.head().number().max(number);
        for at in number..=until {
            let source = self.sequencer.node.at(at).ok_or_else(|| anyhow::anyhow!("the sequencer lacks block {at}"))?;
            let mut block = SafeL2Data { parent_hash: None, ..SafeL2Data::from(&source.as_new_block()) };
            if at == number {
                self.bend(&mut block, shape);
                block.parent_hash = self.node.at(number - 1).map(|parent| parent.hash());
            }
            self.node.write_unseen(&block).map_err(|e| anyhow::anyhow!("fork at {at}: {}", e.message))?;
        }
        Ok(())
    }

    fn spare_transaction(&mut self, noise: usize) -> RawTx {
        // A sequencer of its own, so that making a fork does not change what the real one builds next.
        self.spare += 1;
        let mut other = Sequencer::new(self.sequencer.node.clone(), 0xf0_4b + self.spare, 1);
        other.transaction(None, noise)
    }

    fn bend(&mut self, block: &mut SafeL2Data, shape: ForkShape) {
        let is_l2 = |raw: &RawTx| !is_l1_message(raw);
        match shape {
            ForkShape::BaseFee => block.base_fee = Some(block.base_fee.unwrap_or_default() + 1),
            ForkShape::GasLimit => block.gas_limit += 1,
            ForkShape::Timestamp => block.timestamp += 1,
            ForkShape::ExtraTransaction => block.transactions.push(self.spare_transaction(20)),
            ForkShape::Bulky => {
                for _ in 0..12 {
                    let raw = self.spare_transaction(12_000);
                    block.transactions.push(raw);
                }
            }
            ForkShape::MissingTransaction => {
                if block.transactions.last().is_some_and(is_l2) {
                    block.transactions.pop();
                } else {
                    block.transactions.push(self.spare_transaction(20));
                }
            }
            ForkShape::OtherTransaction => {
                let spare = self.spare_transaction(20);
                match block.transactions.iter_mut().find(|raw| is_l2(raw)) {
                    Some(raw) => *raw = spare,
                    None => block.transactions.push(spare),
                }
            }
            ForkShape::ForgedL1Message => {
                for raw in block.transactions.iter_mut().filter(|raw| is_l1_message(raw)) {
                    let Some(index) = super::signing::queue_index(raw) else { continue };
                    *raw = crate::codec::transaction::encode_l1_message(&L1MessageFields {
                        queue_index: index,
                        gas_limit: U256::from(200_000),
                        to: Address::repeat_byte(0xee),
                        value: U256::from(1_000_000),
                        data: keccak(raw).as_bytes().to_vec().into(),
                        sender: Address::repeat_byte(0x5e),
                    })
                    .raw;
                }
            }
            ForkShape::MissingL1Messages => block.transactions.retain(is_l2),
        }
    }

    /// The heads of the two chains: local head, safe, finalized; the sequencer's head.
    pub fn heads(&self) -> Heads {
        Heads {
            local: self.node.head().l2_ref(),
            safe: self.node.safe(),
            finalized: self.node.finalized(),
            sequencer: self.sequencer.node.head().l2_ref(),
        }
    }

    /// The sequencer's block at `number`.
    pub fn expected(&self, number: u64) -> Option<L2Ref> {
        self.sequencer.node.at(number).map(|block| block.l2_ref())
    }
}

/// Heads at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// The local node's head.
    pub local: L2Ref,
    /// Its `safe` tag.
    pub safe: Option<L2Ref>,
    /// Its `finalized` tag.
    pub finalized: Option<L2Ref>,
    /// The sequencer's head.
    pub sequencer: L2Ref,
}
