//! Sequencer and batcher: L2 blocks with signed transactions of every type, and batches of them for L1.
//!
//! Decided here: what blocks hold and how a batch is put together (payload, frame, blobs, calldata), the right way and
//! in the wrong ways that tests ask for. Deterministic from a seed.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::block::{StoredBlock, message_passer};
use super::l1::SimBlob;
use super::node::{Node, SafeL2Data};
use super::signing::{self, Account, Body, Form};
use crate::codec::batch::{self, Contexts};
use crate::codec::calldata::{CommitCalldata, CommitForm};
use crate::codec::{blob, frame};
use crate::types::{Address, B256, Blob, BlockContent, BlockContext, L1Message, L2Number, RawTx, U256, is_l1_message};

/// Base fee of simulated blocks, as recorded.
pub const BASE_FEE: u64 = 1_000_000;
/// Gas limit of simulated blocks, as recorded.
pub const GAS_LIMIT: u64 = 30_000_000;

/// What one L2 block shall hold.
#[derive(Clone, Debug, Default)]
pub struct BlockPlan {
    /// Signed transactions, their types taken in turn.
    pub txs: usize,
    /// Bytes of random calldata in each: hardly compressible.
    pub noise: usize,
    /// Transactions to L2ToL1MessagePasser, each of which changes the withdrawal root.
    pub withdrawals: usize,
    /// L1 messages taken from the queue; fewer if the queue holds fewer.
    pub messages: usize,
}

impl BlockPlan {
    /// No answer.
    pub fn empty() -> Self {
        Self::default()
    }
}

/// The sequencer: its own node, its accounts, its clock.
#[derive(Clone, Debug)]
pub struct Sequencer {
    /// The chain that batches are made of.
    pub node: Node,
    /// Seconds between blocks.
    pub block_time: u64,
    accounts: Vec<Account>,
    forms: usize,
    rng: StdRng,
}

impl Sequencer {
    /// A sequencer on top of `node`'s head.
    pub fn new(node: Node, seed: u64, block_time: u64) -> Self {
        let account = |n: u64| Account::from_seed(&[seed.to_be_bytes(), n.to_be_bytes()].concat());
        Self {
            node,
            block_time,
            accounts: (0..4).map(account).collect(),
            forms: 0,
            rng: StdRng::seed_from_u64(seed ^ 0x5e9),
        }
    }

    /// A plan as a quiet network makes them: often empty, else a few transactions, now and then a withdrawal.
    pub fn casual_plan(&mut self) -> BlockPlan {
        if self.rng.gen_ratio(1, 3) {
            return BlockPlan { messages: 1, ..BlockPlan::default() };
        }
        BlockPlan {
            txs: self.rng.gen_range(1..4),
            noise: self.rng.gen_range(0..120),
            withdrawals: usize::from(self.rng.gen_ratio(1, 5)),
            messages: self.rng.gen_range(0..3),
        }
    }

    /// One signed transaction of the next type in turn.
    pub fn transaction(&mut self, to: Option<Address>, noise: usize) -> RawTx {
        let form = self.next_form();
        let at = self.forms % self.accounts.len();
        let mut input = vec![0u8; noise];
        self.rng.fill_bytes(&mut input);
        let body = Body {
            chain_id: self.node.chain_id(),
            gas: 300_000,
            to: to.or_else(|| Some(Address::from_low_u64_be(0x20000 + self.rng.gen_range(0..1000)))),
            value: U256::from(self.rng.gen_range(0u64..1000)),
            input,
        };
        match self.accounts.get_mut(at) {
            Some(account) => signing::sign(account, &form, &body),
            None => RawTx::new(),
        }
    }

    fn next_form(&mut self) -> Form {
        self.forms += 1;
        match self.forms % 7 {
            1 => Form::Legacy,
            2 => Form::AccessList,
            3 => Form::DynamicFee,
            4 => Form::SetCode,
            5 => Form::MorphV0 { fee_token: 2 },
            6 => {
                let reference = Some(super::node::made_up("reference", self.forms as u64));
                Form::MorphV1 { fee_token: 0, reference, memo: Vec::new() }
            }
            _ => Form::MorphV1 { fee_token: 1, reference: None, memo: b"memo".to_vec() },
        }
    }

    /// Builds the next block. `queue` holds the L1 messages from index 0.
    pub fn build(&mut self, plan: &BlockPlan, queue: &[L1Message]) -> anyhow::Result<Arc<StoredBlock>> {
        let head = self.node.head();
        let next = usize::try_from(head.next_l1_index)?;
        let messages = queue.iter().skip(next).take(plan.messages);
        let mut transactions: Vec<RawTx> = messages.map(|message| message.raw.clone()).collect();
        for _ in 0..plan.txs {
            transactions.push(self.transaction(None, plan.noise));
        }
        for _ in 0..plan.withdrawals {
            transactions.push(self.transaction(Some(message_passer()), 36));
        }
        self.append(&SafeL2Data {
            number: head.number() + 1,
            gas_limit: GAS_LIMIT,
            base_fee: Some(BASE_FEE.into()),
            timestamp: head.header.timestamp + self.block_time,
            transactions,
            batch_hash: None,
            parent_hash: None,
        })
    }

    /// Appends a given block.
    pub fn append(&mut self, block: &SafeL2Data) -> anyhow::Result<Arc<StoredBlock>> {
        self.node.new_safe_l2_block(block).map_err(|e| anyhow::anyhow!("sequencer: {}", e.message))
    }

    /// Appends decoded batch content: `messages` are put in front of the blocks that count them.
    pub fn append_contents(&mut self, contents: &[BlockContent], queue: &[L1Message]) -> anyhow::Result<()> {
        for content in contents {
            let next = usize::try_from(self.node.head().next_l1_index)?;
            let messages = queue.iter().skip(next).take(content.context.l1_messages.into());
            let raws = messages.map(|message| message.raw.clone()).chain(content.transactions.iter().cloned());
            self.append(&SafeL2Data {
                number: content.context.number.get(),
                gas_limit: content.context.gas_limit,
                base_fee: (!content.context.base_fee.is_zero()).then_some(content.context.base_fee),
                timestamp: content.context.timestamp,
                transactions: raws.collect(),
                batch_hash: None,
                parent_hash: None,
            })?;
        }
        Ok(())
    }
}

/// A block as a batch describes it.
pub fn content_of(block: &StoredBlock) -> anyhow::Result<BlockContent> {
    let l2: Vec<RawTx> = block.transactions.iter().filter(|raw| !is_l1_message(raw)).cloned().collect();
    Ok(BlockContent {
        context: BlockContext {
            number: L2Number::new(block.number()),
            timestamp: block.header.timestamp,
            base_fee: block.header.base_fee,
            gas_limit: block.header.gas_limit,
            txs: u16::try_from(block.transactions.len())?,
            l1_messages: u16::try_from(block.transactions.len() - l2.len())?,
        },
        transactions: l2,
    })
}

/// How the payload is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As the sequencer does: rebuilt bytes are equal.
    #[default]
    Sequencer,
    /// With this zstd level: same content, other bytes.
    Level(i32),
}

/// A change that a test makes to something on its way.
pub type Edit<T> = Box<dyn FnOnce(&mut T) + Send>;

/// How a batch shall be committed; the default is right in every way.
#[derive(Default)]
pub struct BatchSpec {
    /// Last block; none takes the sequencer's head.
    pub last: Option<u64>,
    /// Which function; none is `commitBatch`.
    pub form: Option<CommitForm>,
    /// Header version; none is 2.
    pub version: Option<u8>,
    /// Through another contract.
    pub forward: Option<super::l1::Forward>,
    /// Compression.
    pub compression: Compression,
    /// Changes the contents before they are encoded; calldata and roots stay those of the sequencer's chain.
    pub edit_contents: Option<Edit<Vec<BlockContent>>>,
    /// Changes the payload's bytes.
    pub edit_payload: Option<Edit<Vec<u8>>>,
    /// Changes the frame's bytes before they are packed.
    pub edit_frame: Option<Edit<Vec<u8>>>,
    /// Changes the blobs.
    pub edit_blobs: Option<Edit<Vec<Blob>>>,
    /// Blobs used as they are, instead of encoding.
    pub blobs: Option<Vec<Blob>>,
    /// No blobs at all: for `commitState` and a blobless `commitBatchWithProof`.
    pub no_blobs: bool,
    /// Changes the commit before the contract sees it: the event's hash fits the change (a wrong root, for one).
    pub edit_commit: Option<Edit<CommitCalldata>>,
    /// Calldata shown instead; the event does not fit it.
    pub shown_input: Option<Vec<u8>>,
    /// Another batch hash in the event.
    pub event_hash: Option<B256>,
    /// Blob hashes that the header is made of, instead of those of the blobs.
    pub versioned_hashes: Option<Vec<B256>>,
}

/// The blobs of a payload; none if it is empty, as an older form's without L2 transactions.
pub fn encode_blobs(payload: &[u8], spec: &mut BatchSpec) -> anyhow::Result<Vec<Arc<SimBlob>>> {
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = match spec.compression {
        Compression::Sequencer => frame::encode(payload)?.bytes,
        Compression::Level(level) => compress(payload, level)?,
    };
    if let Some(edit) = spec.edit_frame.take() {
        edit(&mut bytes);
    }
    let mut blobs = blob::pack(&bytes)?;
    if let Some(edit) = spec.edit_blobs.take() {
        edit(&mut blobs);
    }
    measure(blobs)
}

/// Computes commitments and hashes.
pub fn measure(blobs: Vec<Blob>) -> anyhow::Result<Vec<Arc<SimBlob>>> {
    blobs.into_iter().map(|blob| SimBlob::new(blob).map(Arc::new)).collect()
}

/// A magicless zstd frame of another level than the sequencer's.
fn compress(payload: &[u8], level: i32) -> anyhow::Result<Vec<u8>> {
    use zstd::zstd_safe::{CParameter, FrameFormat};
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.set_parameter(CParameter::Format(FrameFormat::Magicless))?;
    compressor.set_parameter(CParameter::ChecksumFlag(false))?;
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    Ok(compressor.compress(payload)?)
}

/// Decodes a real batch's blobs in today's form, to make a chain of it.
pub fn decode_contents(blobs: &[Blob]) -> anyhow::Result<Vec<BlockContent>> {
    Ok(batch::open(batch::payload_of(blobs)?.payload, Contexts::Consecutive)?.blocks)
}
