//! The simulated L1: blocks, transactions, logs, and the state of the Rollup and L1MessageQueue contracts, without I/O.
//!
//! Decided here: what the contracts emit, store and delete (protocol.md, sections 1 and 2), what a reorg takes back, and
//! how an endpoint over this chain answers, bent by its [`L1Knobs`]. A batch's event carries the hash of the header
//! rebuilt from what was committed, unless a test says otherwise; nothing else about a commit is checked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::headers::Header;
use super::jsonrpc::{
    self, BlockId, RpcError, RpcResult, address_matches, data, hash, parse_block_id, parse_data, parse_hash,
    parse_quantity, quantity, topics_match,
};
use super::signing::{self, Account, Body, Form, Place};
use crate::codec::blob;
use crate::codec::calldata::{CommitCalldata, encode_commit};
use crate::codec::event::{encode_event, number_word, selectors, topics};
use crate::codec::header::{BatchHeader, rebuild};
use crate::codec::transaction::{L1MessageFields, encode_l1_message};
use crate::types::{Address, B256, BatchIndex, Blob, L1EventKind, L1Message, L1Number, L1Ref, RawTx, U256, keccak};

/// A blob with what L1 and the beacon chain say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimBlob {
    /// Its bytes.
    pub blob: Blob,
    /// Its KZG commitment.
    pub commitment: [u8; 48],
    /// Its versioned hash.
    pub hash: B256,
}

impl SimBlob {
    /// Computes commitment and hash.
    pub fn new(blob: Blob) -> anyhow::Result<Self> {
        let commitment = blob::commitment(&blob)?;
        Ok(Self { hash: blob::versioned_hash(&commitment), commitment, blob })
    }
}

/// How a commit reaches the Rollup contract through another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Calldata of the outer transaction; none wraps the commit under an unknown selector.
    pub outer_input: Option<Vec<u8>>,
}

/// A commit transaction.
#[derive(Clone, Debug)]
pub struct CommitOp {
    /// What the contract is given.
    pub calldata: CommitCalldata,
    /// Its blobs.
    pub blobs: Vec<Arc<SimBlob>>,
    /// Through another contract.
    pub forward: Option<Forward>,
    /// Calldata shown instead of the encoded one: another selector, truncated, tampered. The event is not affected.
    pub shown_input: Option<Vec<u8>>,
    /// Batch hash in the event instead of the header's.
    pub event_hash: Option<B256>,
    /// Blob field in the header and the store, instead of that of the blobs (the contract's own quirks, C13).
    pub versioned_hashes: Option<Vec<B256>>,
}

/// What a transaction does when it is executed.
#[derive(Clone, Debug)]
pub enum L1Op {
    /// `sendMessage`: enqueues an L1 message; its queue index is the next one.
    Enqueue(L1MessageFields),
    /// One of the commit forms.
    Commit(Box<CommitOp>),
    /// `importGenesisBatch`.
    ImportGenesis(BatchHeader),
    /// `revertBatch`: reverts this index and all above.
    Revert(u64),
    /// Finalizes up to and with this index.
    Finalize(u64),
    /// Somebody else's transaction, perhaps with blobs.
    Noise(Vec<Arc<SimBlob>>),
}

/// A transaction of the simulated L1.
#[derive(Clone, Debug)]
pub struct L1Tx {
    /// Signed bytes.
    pub raw: RawTx,
    /// keccak of them.
    pub hash: B256,
    /// What it does.
    pub op: L1Op,
    /// Its blobs.
    pub blobs: Vec<Arc<SimBlob>>,
    /// Input of the call to Rollup inside a forwarded commit.
    inner_input: Option<Vec<u8>>,
}

/// A log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L1Log {
    /// Emitter.
    pub address: Address,
    /// Topics.
    pub topics: Vec<B256>,
    /// Data.
    pub data: Vec<u8>,
    /// Place of its transaction.
    pub tx_index: u64,
}

/// A block.
#[derive(Clone, Debug)]
pub struct L1Block {
    /// Header.
    pub header: Header,
    /// Its hash.
    pub hash: B256,
    /// Transactions.
    pub txs: Vec<Arc<L1Tx>>,
    /// Logs; the place in this list is the log index.
    pub logs: Vec<L1Log>,
}

impl L1Block {
    /// Number and hash.
    pub const fn l1_ref(&self) -> L1Ref {
        L1Ref { number: L1Number::new(self.header.number), hash: self.hash }
    }
}

/// A value's changes by block.
#[derive(Clone, Debug)]
struct History<T>(Vec<(u64, T)>);

impl<T> Default for History<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone + Default> History<T> {
    fn set(&mut self, block: u64, value: T) {
        self.0.push((block, value));
    }

    fn at(&self, block: u64) -> T {
        self.0.iter().rev().find(|(number, _)| *number <= block).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    fn cut(&mut self, block: u64) {
        self.0.retain(|(number, _)| *number <= block);
    }
}

/// Emitter, topics and data of a log.
type Emitted = (Address, (Vec<B256>, Vec<u8>));

/// `batchDataStore(index)`: origin timestamp, finalize timestamp, last block, bitmap.
type Stored = [u64; 4];

#[derive(Clone, Debug, Default)]
struct Contracts {
    last_committed: History<u64>,
    last_finalized: History<u64>,
    committed: HashMap<u64, History<B256>>,
    blob_fields: HashMap<u64, History<B256>>,
    store: HashMap<u64, History<Stored>>,
    headers: HashMap<u64, History<Option<BatchHeader>>>,
    /// The versioned hashes of the newest commit with blobs of an index.
    blob_hashes: HashMap<u64, History<Vec<B256>>>,
    queue: Vec<(u64, L1Message)>,
}

impl Contracts {
    fn cut(&mut self, block: u64) {
        self.last_committed.cut(block);
        self.last_finalized.cut(block);
        self.committed.values_mut().for_each(|history| history.cut(block));
        self.blob_fields.values_mut().for_each(|history| history.cut(block));
        self.store.values_mut().for_each(|history| history.cut(block));
        self.headers.values_mut().for_each(|history| history.cut(block));
        self.blob_hashes.values_mut().for_each(|history| history.cut(block));
        self.queue.retain(|(number, _)| *number <= block);
    }
}

/// Constants of the simulated L1.
#[derive(Clone, Copy, Debug)]
pub struct L1Config {
    /// Chain id.
    pub chain_id: u64,
    /// Time of block 0.
    pub start_time: u64,
    /// Seconds between blocks.
    pub block_time: u64,
    /// The `safe` tag's distance from the head.
    pub safe_depth: u64,
    /// The `finalized` tag's distance from the head.
    pub finalized_depth: u64,
    /// Seed of keys and addresses.
    pub seed: u64,
}

/// The simulated L1.
#[derive(Clone, Debug)]
pub struct L1 {
    /// Rollup contract.
    pub rollup: Address,
    /// L1MessageQueue contract.
    pub queue: Address,
    /// A contract through which commits are forwarded.
    pub forwarder: Address,
    /// Constants; the depths may be changed at any time.
    pub config: L1Config,
    blocks: Vec<Arc<L1Block>>,
    pending_txs: Vec<Arc<L1Tx>>,
    pending_logs: Vec<L1Log>,
    contracts: Contracts,
    account: Account,
    /// Grows with every reorg, so that equal blocks on two forks have two hashes.
    fork: u64,
}

fn contract_address(name: &str, seed: u64) -> Address {
    let digest = super::node::made_up(name, seed);
    Address::from_slice(&digest.as_bytes()[12..])
}

impl L1 {
    /// A chain with its block 0.
    pub fn new(config: L1Config) -> Self {
        let mut l1 = Self {
            rollup: contract_address("rollup", config.seed),
            queue: contract_address("queue", config.seed),
            forwarder: contract_address("forwarder", config.seed),
            config,
            blocks: Vec::new(),
            pending_txs: Vec::new(),
            pending_logs: Vec::new(),
            contracts: Contracts::default(),
            account: Account::from_seed(&[b"batcher".as_slice(), &config.seed.to_be_bytes()].concat()),
            fork: 0,
        };
        l1.mine();
        l1
    }

    /// Height of the newest block.
    pub fn head(&self) -> u64 {
        self.blocks.len().saturating_sub(1) as u64
    }

    /// The block at `number`.
    pub fn block(&self, number: u64) -> Option<&Arc<L1Block>> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    /// The newest block.
    pub fn head_block(&self) -> Option<&Arc<L1Block>> {
        self.blocks.last()
    }

    fn pending_number(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// The block of a given time; none if a slot is empty.
    pub fn block_at_time(&self, timestamp: u64) -> Option<&Arc<L1Block>> {
        let at = self.blocks.binary_search_by_key(&timestamp, |block| block.header.timestamp).ok()?;
        self.blocks.get(at)
    }

    /// Seals the pending transactions into a block.
    pub fn mine(&mut self) -> L1Ref {
        self.mine_after(self.config.block_time)
    }

    /// Seals a block this many seconds after its parent (a missed slot: twice the block time).
    pub fn mine_after(&mut self, seconds: u64) -> L1Ref {
        let number = self.pending_number();
        let (parent, timestamp) = match self.blocks.last() {
            Some(parent) => (parent.hash, parent.header.timestamp + seconds),
            None => (B256::zero(), self.config.start_time),
        };
        let mut header = Header::empty(number, parent, timestamp);
        header.base_fee = Some(1_000_000_007.into());
        header.extra = self.fork.to_be_bytes().to_vec().into();
        header.mix = super::node::made_up("randao", number ^ (self.fork << 32));
        header.state_root = super::node::made_up("state", number ^ (self.fork << 32));
        let txs = std::mem::take(&mut self.pending_txs);
        header.seal_transactions(&txs.iter().map(|tx| tx.hash).collect::<Vec<_>>());
        let logs = std::mem::take(&mut self.pending_logs);
        let block = L1Block { hash: header.hash(), header, txs, logs };
        let l1_ref = block.l1_ref();
        self.blocks.push(Arc::new(block));
        l1_ref
    }

    /// Drops the newest `depth` blocks and what is pending. Gives what the dropped blocks held, oldest first.
    pub fn reorg(&mut self, depth: u64) -> Vec<Arc<L1Tx>> {
        let keep = (self.blocks.len() as u64).saturating_sub(depth).max(1);
        let dropped = self.blocks.split_off(usize::try_from(keep).unwrap_or(usize::MAX));
        self.contracts.cut(keep - 1);
        self.pending_logs.clear();
        let pending = std::mem::take(&mut self.pending_txs);
        self.fork += 1;
        dropped.iter().flat_map(|block| block.txs.iter().cloned()).chain(pending).collect()
    }

    /// Executes `op` in the pending block.
    pub fn submit(&mut self, op: L1Op) -> anyhow::Result<Arc<L1Tx>> {
        let (to, input, inner_input, blobs) = match &op {
            L1Op::Enqueue(message) => (self.queue, message.data.to_vec(), None, Vec::new()),
            L1Op::ImportGenesis(header) => (self.rollup, header.encode(), None, Vec::new()),
            L1Op::Revert(index) => {
                (self.rollup, [[0x10, 0xd4, 0x45, 0x83].as_slice(), &index.to_be_bytes()].concat(), None, Vec::new())
            }
            L1Op::Finalize(index) => {
                (self.rollup, [[0x13, 0x36, 0x11, 0x01].as_slice(), &index.to_be_bytes()].concat(), None, Vec::new())
            }
            L1Op::Noise(blobs) => (Address::repeat_byte(0x99), Vec::new(), None, blobs.clone()),
            L1Op::Commit(commit) => {
                let inner = commit.shown_input.clone().unwrap_or_else(|| encode_commit(&commit.calldata));
                match &commit.forward {
                    Some(forward) => {
                        let wrap = || [[0x6b, 0x0a, 0x5e, 0x11].as_slice(), &inner].concat();
                        let outer = forward.outer_input.clone().unwrap_or_else(wrap);
                        (self.forwarder, outer, Some(inner), commit.blobs.clone())
                    }
                    None => (self.rollup, inner, None, commit.blobs.clone()),
                }
            }
        };
        let form = if blobs.is_empty() {
            Form::DynamicFee
        } else {
            Form::Blob { hashes: blobs.iter().map(|blob| blob.hash).collect() }
        };
        let body = Body { chain_id: self.config.chain_id, gas: 5_000_000, to: Some(to), value: U256::zero(), input };
        let raw = signing::sign(&mut self.account, &form, &body);
        let tx = Arc::new(L1Tx { hash: keccak(&raw), raw, op, blobs, inner_input });
        self.resubmit(Arc::clone(&tx))?;
        Ok(tx)
    }

    /// Executes the very same transaction (again) in the pending block.
    pub fn resubmit(&mut self, tx: Arc<L1Tx>) -> anyhow::Result<()> {
        let logs = self.execute(&tx.op)?;
        let tx_index = self.pending_txs.len() as u64;
        let logs = logs.into_iter().map(|(address, (topics, data))| L1Log { address, topics, data, tx_index });
        self.pending_logs.extend(logs);
        self.pending_txs.push(tx);
        Ok(())
    }

    fn execute(&mut self, op: &L1Op) -> anyhow::Result<Vec<Emitted>> {
        let at = self.pending_number();
        match op {
            L1Op::Noise(_) => Ok(Vec::new()),
            L1Op::Enqueue(fields) => {
                let message = encode_l1_message(&L1MessageFields {
                    queue_index: self.contracts.queue.len() as u64,
                    ..fields.clone()
                });
                self.contracts.queue.push((at, message.clone()));
                Ok(vec![(self.queue, encode_event(&L1EventKind::Message(message)))])
            }
            L1Op::ImportGenesis(header) => {
                let last = header.last_block.map_or(0, |last| last.get());
                self.store_commit(header, header.hash(), Vec::new(), last);
                // The genesis batch is final at once, and the contract says so (seen).
                let (index, hash) = (header.index, header.hash());
                let (topics, _) = encode_event(&L1EventKind::Finalize { index, hash });
                let roots = [header.post_state_root.0, header.withdrawal_root.0].concat();
                let commit = encode_event(&L1EventKind::Commit { index, hash });
                Ok(vec![(self.rollup, commit), (self.rollup, (topics, roots))])
            }
            L1Op::Commit(commit) => {
                let (header, hashes) = self.header_of(commit)?;
                let hash = commit.event_hash.unwrap_or_else(|| header.hash());
                let last = commit.calldata.last_block_number().map_or(0, |last| last.get());
                self.store_commit(&header, hash, hashes, last);
                let kind = L1EventKind::Commit { index: header.index, hash };
                Ok(vec![(self.rollup, encode_event(&kind))])
            }
            L1Op::Revert(from) => {
                let last = self.contracts.last_committed.at(at);
                let mut logs = Vec::new();
                for index in *from..=last {
                    let hash = self.committed_hash(index);
                    self.contracts.committed.entry(index).or_default().set(at, B256::zero());
                    self.contracts.store.entry(index).or_default().set(at, Stored::default());
                    self.contracts.headers.entry(index).or_default().set(at, None);
                    let kind = L1EventKind::Revert { index: BatchIndex::new(index), hash };
                    logs.push((self.rollup, encode_event(&kind)));
                }
                self.contracts.last_committed.set(at, from.saturating_sub(1));
                Ok(logs)
            }
            L1Op::Finalize(to) => {
                let mut logs = Vec::new();
                for index in self.contracts.last_finalized.at(at) + 1..=*to {
                    let Some(header) = self.header(index) else { anyhow::bail!("batch {index} is not committed") };
                    let mut data = header.post_state_root.as_bytes().to_vec();
                    data.extend_from_slice(header.withdrawal_root.as_bytes());
                    let topics = vec![topics::FINALIZE_BATCH, number_word(index), self.committed_hash(index)];
                    logs.push((self.rollup, (topics, data)));
                    // What the contract deletes when n is finalized: slot and blob field of n − 1 (seen).
                    let below = index.saturating_sub(1);
                    self.contracts.store.entry(below).or_default().set(at, Stored::default());
                    self.contracts.blob_fields.entry(below).or_default().set(at, B256::zero());
                }
                self.contracts.last_finalized.set(at, *to);
                Ok(logs)
            }
        }
    }

    fn header_of(&self, commit: &CommitOp) -> anyhow::Result<(BatchHeader, Vec<B256>)> {
        let parent = BatchHeader::decode(&commit.calldata.parent_header)?;
        let index = parent.index.get() + 1;
        let own: Vec<B256> = commit.blobs.iter().map(|blob| blob.hash).collect();
        let stored = self.contracts.blob_hashes.get(&index).map(|history| history.at(u64::MAX)).unwrap_or_default();
        let hashes = commit.versioned_hashes.clone().unwrap_or(if own.is_empty() { stored } else { own });
        let first = usize::try_from(parent.total_l1_message_popped)?;
        let count = usize::try_from(commit.calldata.l1_message_count())?;
        let messages = self.contracts.queue.get(first..first.saturating_add(count));
        let messages =
            messages.ok_or_else(|| anyhow::anyhow!("batch {index} consumes messages that are not queued"))?;
        let messages: Vec<B256> = messages.iter().map(|(_, message)| message.hash).collect();
        Ok((rebuild(&commit.calldata, &hashes, &messages)?, hashes))
    }

    fn store_commit(&mut self, header: &BatchHeader, hash: B256, blob_hashes: Vec<B256>, last: u64) {
        let (at, index) = (self.pending_number(), header.index.get());
        let now = self.blocks.last().map_or(0, |block| block.header.timestamp + self.config.block_time);
        self.contracts.committed.entry(index).or_default().set(at, hash);
        self.contracts.blob_fields.entry(index).or_default().set(at, header.blob_field);
        self.contracts.store.entry(index).or_default().set(at, [now, 0, last, 0]);
        self.contracts.headers.entry(index).or_default().set(at, Some(*header));
        self.contracts.blob_hashes.entry(index).or_default().set(at, blob_hashes);
        self.contracts.last_committed.set(at, index);
    }

    /// `lastCommittedBatchIndex()` including what is pending.
    pub fn last_committed(&self) -> u64 {
        self.contracts.last_committed.at(u64::MAX)
    }

    /// `lastFinalizedBatchIndex()` including what is pending.
    pub fn last_finalized(&self) -> u64 {
        self.contracts.last_finalized.at(u64::MAX)
    }

    /// `committedBatches(index)` including what is pending.
    pub fn committed_hash(&self, index: u64) -> B256 {
        self.contracts.committed.get(&index).map(|history| history.at(u64::MAX)).unwrap_or_default()
    }

    /// The standing header of a batch.
    pub fn header(&self, index: u64) -> Option<BatchHeader> {
        self.contracts.headers.get(&index).and_then(|history| history.at(u64::MAX))
    }

    /// The queue's messages, with those that are pending.
    pub fn messages(&self) -> impl ExactSizeIterator<Item = &L1Message> {
        self.contracts.queue.iter().map(|(_, message)| message)
    }

    /// The message at `index`, with the block that enqueued it.
    pub fn message(&self, index: u64) -> Option<&(u64, L1Message)> {
        self.contracts.queue.get(usize::try_from(index).ok()?)
    }

    /// The place of a transaction.
    pub fn find_tx(&self, wanted: B256) -> Option<(&Arc<L1Block>, u64, &Arc<L1Tx>)> {
        self.blocks.iter().rev().find_map(|block| {
            let index = block.txs.iter().position(|tx| tx.hash == wanted)?;
            Some((block, index as u64, block.txs.get(index)?))
        })
    }
}

/// How one endpoint over the simulated L1 bends its answers.
#[derive(Clone, Debug)]
pub struct L1Knobs {
    /// The endpoint has not seen anything above this height: it lags, or is frozen.
    pub head: Option<u64>,
    /// The endpoint serves this chain and not the world's: another fork.
    pub chain: Option<Arc<L1>>,
    /// Another chain id.
    pub chain_id: Option<u64>,
    /// The `safe` tag at this height.
    pub safe: Option<u64>,
    /// The `finalized` tag at this height.
    pub finalized: Option<u64>,
    /// The node knows no `safe` and `finalized`.
    pub no_tags: bool,
    /// `eth_getLogs` spans at most this many blocks, else `range_error`.
    pub range_cap: Option<u64>,
    /// The error of a wider span.
    pub range_error: RpcError,
    /// Logs left out, by block and log index.
    pub hidden_logs: HashSet<(u64, u64)>,
    /// Batch indices whose CommitBatch logs are left out.
    pub hidden_commits: HashSet<u64>,
    /// Logs are left out only if several kinds of logs are asked for at once.
    pub hidden_from_ranges_only: bool,
    /// Every log twice.
    pub duplicate_logs: bool,
    /// Logs in reverse order.
    pub reversed_logs: bool,
    /// Every log is followed by a copy marked `removed`.
    pub removed_logs: bool,
    /// Logs carry a block hash of another fork.
    pub foreign_log_hashes: bool,
    /// Logs added to every answer as they are.
    pub extra_logs: Vec<Value>,
    /// `debug_traceTransaction` is unknown.
    pub no_trace: bool,
    /// The contracts' addresses hold no code.
    pub no_code: bool,
    /// `eth_call` further back than this is refused.
    pub state_depth: Option<u64>,
    /// Calldata shown for a transaction.
    pub inputs: HashMap<B256, Vec<u8>>,
    /// Blob hashes shown for a transaction.
    pub blob_hashes: HashMap<B256, Vec<B256>>,
    /// Entries that a JSON-RPC batch may hold.
    pub batch_limit: usize,
}

impl Default for L1Knobs {
    fn default() -> Self {
        Self {
            head: None,
            chain: None,
            chain_id: None,
            safe: None,
            finalized: None,
            no_tags: false,
            range_cap: None,
            range_error: RpcError { code: -32005, message: "query exceeds max block range".to_owned() },
            hidden_logs: HashSet::new(),
            hidden_commits: HashSet::new(),
            hidden_from_ranges_only: false,
            duplicate_logs: false,
            reversed_logs: false,
            removed_logs: false,
            foreign_log_hashes: false,
            extra_logs: Vec::new(),
            no_trace: false,
            no_code: false,
            state_depth: None,
            inputs: HashMap::new(),
            blob_hashes: HashMap::new(),
            batch_limit: 1000,
        }
    }
}

/// One endpoint's view of the chain.
#[derive(Clone, Copy, Debug)]
pub struct L1View<'a> {
    /// The chain.
    pub l1: &'a L1,
    /// The endpoint's ways.
    pub knobs: &'a L1Knobs,
}

impl L1View<'_> {
    fn head(&self) -> u64 {
        self.knobs.head.map_or(self.l1.head(), |head| head.min(self.l1.head()))
    }

    fn number_of(&self, id: BlockId) -> Result<Option<u64>, RpcError> {
        let tag = |fixed: Option<u64>, depth: u64| {
            if self.knobs.no_tags {
                return Err(RpcError { code: -39001, message: "Unknown block".to_owned() });
            }
            Ok(fixed.or_else(|| self.head().checked_sub(depth)))
        };
        match id {
            BlockId::Latest => Ok(Some(self.head())),
            BlockId::Earliest => Ok(Some(0)),
            BlockId::Safe => tag(self.knobs.safe, self.l1.config.safe_depth),
            BlockId::Finalized => tag(self.knobs.finalized, self.l1.config.finalized_depth),
            BlockId::Number(number) => Ok((number <= self.head()).then_some(number)),
            BlockId::Hash(wanted) => Ok(self.by_hash(wanted).map(|block| block.header.number)),
        }
    }

    fn by_hash(&self, wanted: B256) -> Option<&L1Block> {
        let visible = usize::try_from(self.head()).ok()?.saturating_add(1);
        self.l1.blocks.iter().take(visible).rev().find(|block| block.hash == wanted).map(Arc::as_ref)
    }

    fn block(&self, id: BlockId) -> Result<Option<&L1Block>, RpcError> {
        Ok(self.number_of(id)?.and_then(|number| self.l1.block(number)).map(Arc::as_ref))
    }

    /// Answers one JSON-RPC request.
    pub fn call(&self, method: &str, params: &[Value]) -> RpcResult {
        let hash_param = |place: usize| {
            params.get(place).and_then(parse_hash).ok_or_else(|| RpcError::params("invalid argument: hash"))
        };
        match method {
            "eth_chainId" => Ok(quantity(self.knobs.chain_id.unwrap_or(self.l1.config.chain_id))),
            "net_version" => Ok(json!(self.knobs.chain_id.unwrap_or(self.l1.config.chain_id).to_string())),
            "web3_clientVersion" => Ok(json!("morph-deriver-devnet/l1")),
            "eth_syncing" => Ok(Value::Bool(false)),
            "eth_blockNumber" => Ok(quantity(self.head())),
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                let full = params.get(1).and_then(Value::as_bool).unwrap_or(false);
                Ok(self
                    .block(parse_block_id(params.first())?)?
                    .map_or(Value::Null, |block| self.block_json(block, full)))
            }
            "eth_getLogs" => self.logs(params.first().unwrap_or(&Value::Null)),
            "eth_getTransactionByHash" => {
                let wanted = hash_param(0)?;
                let found = self.l1.find_tx(wanted).filter(|(block, ..)| block.header.number <= self.head());
                Ok(found.map_or(Value::Null, |(block, index, tx)| self.tx_json(block, index, tx)))
            }
            "eth_getTransactionByBlockHashAndIndex" => {
                let block = self.by_hash(hash_param(0)?);
                let index = params.get(1).and_then(parse_quantity).unwrap_or(u64::MAX);
                let tx = block.and_then(|block| Some((block, block.txs.get(usize::try_from(index).ok()?)?)));
                Ok(tx.map_or(Value::Null, |(block, tx)| self.tx_json(block, index, tx)))
            }
            "eth_getCode" => {
                let target = params.first().and_then(jsonrpc::parse_address);
                let known = [self.l1.rollup, self.l1.queue, self.l1.forwarder];
                let has_code = !self.knobs.no_code && target.is_some_and(|target| known.contains(&target));
                Ok(json!(if has_code { "0x60806040" } else { "0x" }))
            }
            "eth_call" => self.eth_call(params),
            "debug_traceTransaction" if !self.knobs.no_trace => self.trace(hash_param(0)?),
            _ => Err(RpcError::no_method(method)),
        }
    }

    fn block_json(&self, block: &L1Block, full: bool) -> Value {
        let mut map = block.header.to_json();
        map.insert("hash".to_owned(), hash(block.hash));
        map.insert("size".to_owned(), quantity(600));
        map.insert("uncles".to_owned(), json!([]));
        let transactions = block
            .txs
            .iter()
            .enumerate()
            .map(|(index, tx)| if full { self.tx_json(block, index as u64, tx) } else { hash(tx.hash) });
        map.insert("transactions".to_owned(), transactions.collect());
        Value::Object(map)
    }

    fn tx_json(&self, block: &L1Block, index: u64, tx: &L1Tx) -> Value {
        let mut json = signing::to_json(
            &tx.raw,
            &Place {
                block_hash: block.hash,
                number: block.header.number,
                timestamp: block.header.timestamp,
                base_fee: block.header.base_fee.unwrap_or_default(),
                index,
            },
        );
        if let Some(input) = self.knobs.inputs.get(&tx.hash) {
            json["input"] = data(input);
        }
        if let Some(hashes) = self.knobs.blob_hashes.get(&tx.hash) {
            json["blobVersionedHashes"] = hashes.iter().copied().map(hash).collect();
        }
        json
    }

    fn logs(&self, filter: &Value) -> RpcResult {
        let number = |key: &str| {
            Ok::<u64, RpcError>(match parse_block_id(filter.get(key))? {
                BlockId::Number(number) => number,
                id => self.number_of(id)?.unwrap_or_default(),
            })
        };
        let blocks: Vec<&L1Block> = match filter.get("blockHash").and_then(parse_hash) {
            Some(wanted) => vec![self.by_hash(wanted).ok_or_else(|| RpcError::server("unknown block"))?],
            None => {
                let (from, to) = (number("fromBlock")?, number("toBlock")?);
                if from > to {
                    return Err(RpcError::params("invalid block range params"));
                }
                if self.knobs.range_cap.is_some_and(|cap| to - from >= cap) {
                    return Err(self.knobs.range_error.clone());
                }
                (from..=to.min(self.head())).filter_map(|number| self.l1.block(number)).map(Arc::as_ref).collect()
            }
        };
        let several = filter.pointer("/topics/0").is_some_and(Value::is_array);
        let may_hide = several || !self.knobs.hidden_from_ranges_only;
        let mut found = Vec::new();
        for block in blocks {
            for (index, log) in block.logs.iter().enumerate() {
                let wanted = address_matches(filter.get("address"), log.address)
                    && topics_match(filter.get("topics"), &log.topics)
                    && !(may_hide && self.is_hidden(block, index as u64, log));
                if wanted {
                    self.push_log(&mut found, block, index as u64, log);
                }
            }
        }
        found.extend(self.knobs.extra_logs.iter().cloned());
        if self.knobs.reversed_logs {
            found.reverse();
        }
        Ok(Value::Array(found))
    }

    fn is_hidden(&self, block: &L1Block, index: u64, log: &L1Log) -> bool {
        let is_commit = log.topics.first() == Some(&topics::COMMIT_BATCH);
        let batch = log.topics.get(1).map(|word| U256::from_big_endian(word.as_bytes()).low_u64());
        self.knobs.hidden_logs.contains(&(block.header.number, index))
            || (is_commit && batch.is_some_and(|batch| self.knobs.hidden_commits.contains(&batch)))
    }

    fn push_log(&self, found: &mut Vec<Value>, block: &L1Block, index: u64, log: &L1Log) {
        let block_hash = if self.knobs.foreign_log_hashes { keccak(block.hash.as_bytes()) } else { block.hash };
        let tx = usize::try_from(log.tx_index).ok().and_then(|at| block.txs.get(at));
        let mut json = json!({
            "address": jsonrpc::address(log.address),
            "topics": log.topics.iter().copied().map(hash).collect::<Value>(),
            "data": data(&log.data),
            "blockHash": hash(block_hash), "blockNumber": quantity(block.header.number),
            "blockTimestamp": quantity(block.header.timestamp),
            "transactionHash": hash(tx.map(|tx| tx.hash).unwrap_or_default()),
            "transactionIndex": quantity(log.tx_index), "logIndex": quantity(index), "removed": false,
        });
        found.push(json.clone());
        if self.knobs.duplicate_logs {
            found.push(json.clone());
        }
        if self.knobs.removed_logs {
            json["removed"] = Value::Bool(true);
            json["blockHash"] = hash(keccak(block.hash.as_bytes()));
            found.push(json);
        }
    }

    fn eth_call(&self, params: &[Value]) -> RpcResult {
        let call = params.first().unwrap_or(&Value::Null);
        let id = parse_block_id(params.get(1))?;
        let at = self.number_of(id)?.ok_or_else(|| RpcError::server("header not found"))?;
        if self.knobs.state_depth.is_some_and(|depth| at.saturating_add(depth) < self.head()) {
            return Err(RpcError::server("missing trie node (path )"));
        }
        let to = call.get("to").and_then(jsonrpc::parse_address);
        let input = call.get("data").or_else(|| call.get("input")).and_then(parse_data).unwrap_or_default();
        let selector: [u8; 4] = input.get(..4).and_then(|s| s.try_into().ok()).unwrap_or_default();
        let argument = input.get(28..36).and_then(|w| w.try_into().ok()).map(u64::from_be_bytes).unwrap_or_default();
        let known = to == Some(self.l1.rollup) || to == Some(self.l1.queue);
        if !known || self.knobs.no_code {
            return Ok(json!("0x"));
        }
        self.view(selector, argument, at).ok_or_else(|| RpcError { code: 3, message: "execution reverted".to_owned() })
    }

    fn view(&self, selector: [u8; 4], argument: u64, at: u64) -> Option<Value> {
        let contracts = &self.l1.contracts;
        let word = |value: Option<B256>| Some(hash(value.unwrap_or_default()));
        match selector {
            selectors::LAST_COMMITTED_BATCH_INDEX => Some(hash(number_word(contracts.last_committed.at(at)))),
            selectors::LAST_FINALIZED_BATCH_INDEX => Some(hash(number_word(contracts.last_finalized.at(at)))),
            selectors::COMMITTED_BATCHES => word(contracts.committed.get(&argument).map(|history| history.at(at))),
            selectors::BATCH_BLOB_VERSIONED_HASHES => {
                word(contracts.blob_fields.get(&argument).map(|history| history.at(at)))
            }
            selectors::BATCH_DATA_STORE => {
                let stored = contracts.store.get(&argument).map(|history| history.at(at)).unwrap_or_default();
                Some(data(&stored.into_iter().flat_map(|number| number_word(number).0).collect::<Vec<u8>>()))
            }
            selectors::GET_CROSS_DOMAIN_MESSAGE => {
                let message = self.l1.message(argument).filter(|(block, _)| *block <= at);
                word(message.map(|(_, message)| message.hash))
            }
            _ => None,
        }
    }

    fn trace(&self, wanted: B256) -> RpcResult {
        let (_, _, tx) = self.l1.find_tx(wanted).ok_or_else(|| RpcError::server("transaction not found"))?;
        let from = jsonrpc::address(signing::sender(&tx.raw).unwrap_or_default());
        let (to, input) = signing::call_of(&tx.raw).unwrap_or_default();
        let frame = |from: Value, to: Address, input: &[u8], kind: &str, calls: Value| {
            json!({
                "from": from, "gas": "0x4bd364", "gasUsed": "0x3d6c8", "to": jsonrpc::address(to),
                "input": data(input), "output": "0x", "calls": calls, "value": "0x0", "type": kind,
            })
        };
        let at_rollup = |caller: Address, input: &[u8]| {
            let code = Address::repeat_byte(0x1f);
            let inner = frame(jsonrpc::address(self.l1.rollup), code, input, "DELEGATECALL", json!([]));
            frame(jsonrpc::address(caller), self.l1.rollup, input, "CALL", json!([inner]))
        };
        Ok(match &tx.inner_input {
            // A call to Rollup that was rolled back comes before the one that counts, as after a wallet's retry.
            Some(inner) => {
                let mut failed = at_rollup(self.l1.forwarder, inner.get(..inner.len().min(100)).unwrap_or_default());
                failed["error"] = json!("execution reverted");
                frame(from, to, &input, "CALL", json!([failed, at_rollup(self.l1.forwarder, inner)]))
            }
            None => {
                let mut outer = frame(from, to, &input, "CALL", json!([]));
                outer["calls"] = at_rollup(to, &input)["calls"].clone();
                outer
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devnet::world::{World, WorldOptions};

    fn world() -> World {
        let mut world = World::new(&WorldOptions::default()).unwrap();
        for _ in 0..4 {
            world.produce(2).unwrap();
        }
        world
    }

    fn call(world: &World, knobs: &L1Knobs, method: &str, params: Value) -> RpcResult {
        L1View { l1: &world.l1, knobs }.call(method, params.as_array().unwrap())
    }

    fn view(world: &World, selector: [u8; 4], argument: u64, at: Value) -> String {
        let input = [selector.as_slice(), number_word(argument).as_bytes()].concat();
        let params = json!([{ "to": jsonrpc::address(world.l1.rollup), "data": data(&input) }, at]);
        call(world, &L1Knobs::default(), "eth_call", params).unwrap().as_str().unwrap().to_owned()
    }

    #[test]
    fn views_keep_their_history_and_forget_below_finalized() {
        let mut world = world();
        let batch = world.batches[1].clone();
        let before = world.l1.find_tx(batch.tx).unwrap().0.header.number - 1;
        let zero = format!("{:?}", B256::zero());
        assert_eq!(view(&world, selectors::COMMITTED_BATCHES, 2, json!("latest")), format!("{:?}", batch.hash));
        assert_eq!(view(&world, selectors::COMMITTED_BATCHES, 2, quantity(before)), zero);
        assert_eq!(
            view(&world, selectors::LAST_COMMITTED_BATCH_INDEX, 0, quantity(before)),
            format!("{:?}", number_word(1))
        );
        world.finalize(3).unwrap();
        world.mine(1);
        assert_eq!(view(&world, selectors::BATCH_BLOB_VERSIONED_HASHES, 2, json!("latest")), zero);
        assert_ne!(view(&world, selectors::BATCH_BLOB_VERSIONED_HASHES, 3, json!("latest")), zero);
        world.revert(4).unwrap();
        world.mine(1);
        assert_eq!(view(&world, selectors::COMMITTED_BATCHES, 4, json!("latest")), zero);
        // The blob field outlives the revert.
        assert_ne!(view(&world, selectors::BATCH_BLOB_VERSIONED_HASHES, 4, json!("latest")), zero);
        assert_eq!(
            view(&world, selectors::LAST_COMMITTED_BATCH_INDEX, 0, json!("latest")),
            format!("{:?}", number_word(3))
        );
        world.reorg(1);
        assert_eq!(
            view(&world, selectors::LAST_COMMITTED_BATCH_INDEX, 0, json!("latest")),
            format!("{:?}", number_word(4))
        );
        assert_eq!(world.batches.len(), 4);
    }

    #[test]
    fn a1_a2_a9_c6_knobs_bend_the_logs() {
        let world = world();
        let head = world.l1.head();
        let all = json!([{ "fromBlock": "0x0", "toBlock": quantity(head), "topics": [[hash(topics::COMMIT_BATCH)]] }]);
        let count = |knobs: &L1Knobs| {
            call(&world, knobs, "eth_getLogs", all.clone()).map(|logs| logs.as_array().map_or(0, Vec::len))
        };
        assert_eq!(count(&L1Knobs::default()), Ok(5));
        assert_eq!(count(&L1Knobs { head: Some(4), ..L1Knobs::default() }), Ok(2));
        assert_eq!(count(&L1Knobs { duplicate_logs: true, removed_logs: true, ..L1Knobs::default() }), Ok(15));
        assert_eq!(count(&L1Knobs { hidden_commits: [2, 3].into(), ..L1Knobs::default() }), Ok(3));
        assert!(count(&L1Knobs { range_cap: Some(head), ..L1Knobs::default() }).is_err());
        assert_eq!(count(&L1Knobs { range_cap: Some(head + 1), ..L1Knobs::default() }), Ok(5));
    }

    #[test]
    fn tags_follow_their_depths() {
        let world = world();
        let number = |knobs: &L1Knobs, tag: &str| {
            let block = call(&world, knobs, "eth_getBlockByNumber", json!([tag, false])).unwrap();
            parse_quantity(&block["number"])
        };
        let head = world.l1.head();
        let knobs = L1Knobs::default();
        assert_eq!([number(&knobs, "latest"), number(&knobs, "safe")], [Some(head), Some(head - 4)]);
        assert_eq!(number(&knobs, "finalized"), Some(head - 8));
        assert_eq!(number(&L1Knobs { finalized: Some(3), ..knobs }, "finalized"), Some(3));
    }
}
