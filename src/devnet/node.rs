//! The simulated Morph execution node: a synchronous state machine without I/O.
//!
//! Decided here: what the real node was seen to do with good and bad requests (protocol.md, section 7; a test walks
//! through `recorded/l2/answers.json`). It checks next to nothing, truncates on a write below its head, leaves its tags
//! behind, applies half of a tag call, and after a kill still answers for blocks above its head. All that is go-ethereum's
//! way; morph-reth's stands in `reth`. Not decided here: what each method of its RPC answers (`node_rpc`); HTTP, tokens,
//! latency (`serve`).
//!
//! Execution is simulated, and deterministic: an empty block keeps its parent's state root, as on the real chain; any
//! other gets keccak256 over the parent's root and its content. So nodes that write the same content come to the same
//! hashes, and a block that differs only in an empty block's time or fee passes the state root check, as in reality.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::json;

use super::block::{Appended, Content, StoredBlock, message_passer};
use super::client::{Client, RethState};
use super::headers::Header;
use super::jsonrpc::RpcError;
use super::oracle::Oracle;
use super::signing;
use crate::types::{Address, B256, L2Ref, NewBlock, RawTx, U256, keccak, keccak256};

/// States of this many newest blocks are kept without archive mode (geth's `TriesInMemory`).
const KEPT_STATES: u64 = 128;

/// Parameters of `engine_newSafeL2Block`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafeL2Data {
    /// Height.
    pub number: u64,
    /// Gas limit.
    pub gas_limit: u64,
    /// Base fee; none is absent.
    pub base_fee: Option<U256>,
    /// Time.
    pub timestamp: u64,
    /// All transactions.
    pub transactions: Vec<RawTx>,
    /// Given back, not part of the hash.
    pub batch_hash: Option<B256>,
    /// Parent to build on; none means the head.
    pub parent_hash: Option<B256>,
}

impl From<&NewBlock> for SafeL2Data {
    fn from(block: &NewBlock) -> Self {
        Self {
            number: block.number.get(),
            gas_limit: block.gas_limit,
            base_fee: Some(block.base_fee),
            timestamp: block.timestamp,
            transactions: block.transactions.clone(),
            batch_hash: None,
            parent_hash: block.parent_hash,
        }
    }
}

/// How the node deviates from an obliging one.
#[derive(Clone, Debug)]
pub struct Moods {
    /// Keeps every state. The real default is not to.
    pub archive: bool,
    /// Ignores `parentHash`, takes head + 1 only (E13): one thing of the oldest morph-reth alone.
    pub refuses_rewrites: bool,
    /// Sets safe and finalized to each block it writes (E12): one thing of the oldest morph-reth alone.
    pub tags_what_it_writes: bool,
    /// Logs of blocks below this height are gone.
    pub logs_from: u64,
    /// Says that it is syncing.
    pub syncing: bool,
    /// From this height on, another state root comes out of the same content (E1).
    pub wrong_state_from: Option<u64>,
    /// From this height on, another withdrawal root comes out of the same content.
    pub wrong_withdrawals_from: Option<u64>,
    /// The `debug` namespace is closed: no raw blocks.
    pub debug_closed: bool,
    /// Heights below the head at which it has no block to give.
    pub holes: HashSet<u64>,
    /// Transactions in its own pool, which some morph-reth put behind those that they are given.
    pub pool: Vec<RawTx>,
    /// The node's clock, in seconds since the Unix epoch, where it is looked at.
    pub clock: Option<u64>,
    /// Block 0 is shown with a base fee that does not give its hash.
    pub odd_genesis: bool,
    /// Makes every block with at most this gas limit, whatever it is given.
    pub gas_limit_cap: Option<u64>,
    /// Answers every write with this error.
    pub write_error: Option<RpcError>,
    /// Answers the write of this height with this error, once for each entry.
    pub write_error_at: HashMap<u64, RpcError>,
    /// Answers a write as if it were made, and its head does not move.
    pub loses_what_it_writes: bool,
    /// What `web3_clientVersion` says; none is the client's own version.
    pub client_version: Option<String>,
    /// Answers every tag call with this error.
    pub tags_error: Option<RpcError>,
    /// Answers every fork choice update with this status, and nothing moves.
    pub forkchoice_status: Option<String>,
}

impl Default for Moods {
    fn default() -> Self {
        Self {
            archive: true,
            refuses_rewrites: false,
            tags_what_it_writes: false,
            logs_from: 0,
            syncing: false,
            wrong_state_from: None,
            wrong_withdrawals_from: None,
            debug_closed: false,
            holes: HashSet::new(),
            pool: Vec::new(),
            clock: None,
            odd_genesis: false,
            gas_limit_cap: None,
            write_error: None,
            write_error_at: HashMap::new(),
            loses_what_it_writes: false,
            client_version: None,
            tags_error: None,
            forkchoice_status: None,
        }
    }
}

/// One accepted or refused call of `engine_newSafeL2Block`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Height asked for.
    pub number: u64,
    /// The `parentHash` given.
    pub parent: Option<B256>,
    /// The head before.
    pub head_before: u64,
    /// The new block's hash, or the error.
    pub result: Result<B256, RpcError>,
}

/// One call of `engine_setBlockTags`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagCall {
    /// `safe` asked for; zero leaves it alone.
    pub safe: B256,
    /// `finalized` asked for; zero leaves it alone.
    pub finalized: B256,
    /// Whether the whole call went through.
    pub accepted: bool,
}

/// What a reader of the node could see at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Head.
    pub head: L2Ref,
    /// `safe`.
    pub safe: Option<L2Ref>,
    /// `finalized`.
    pub finalized: Option<L2Ref>,
}

impl Moment {
    /// finalized ≤ safe ≤ head (P2); a tag never set lies below everything.
    pub fn is_ordered(&self) -> bool {
        let height = |tag: Option<L2Ref>| tag.map_or(0, |tag| tag.number.get());
        height(self.finalized) <= height(self.safe) && height(self.safe) <= self.head.number.get()
    }
}

/// Records of calls and moments kept; the oldest go first.
const KEPT_RECORDS: usize = 100_000;

fn record<T>(records: &mut Vec<T>, entry: T) {
    if records.len() >= KEPT_RECORDS {
        records.drain(..KEPT_RECORDS / 2);
    }
    records.push(entry);
}

/// Which endpoint a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// No token; `engine_*` is unknown here.
    Eth,
    /// With a token; serves `eth_*` too.
    Engine,
}

/// The simulated execution node.
#[derive(Clone, Debug)]
pub struct Node {
    /// How it deviates.
    pub moods: Moods,
    client: Client,
    /// What only a morph-reth remembers.
    pub(super) reth: RethState,
    chain_id: u64,
    blocks: HashMap<B256, Arc<StoredBlock>>,
    /// Height → canonical hash. After a kill it still holds heights above the head, as the real node's database does.
    canonical: BTreeMap<u64, B256>,
    head: Arc<StoredBlock>,
    safe: Option<B256>,
    finalized: Option<B256>,
    /// Blocks whose state is in memory since the last restart; none before the first one, when all of them are.
    recent_states: Option<HashSet<B256>>,
    /// Blocks whose state is on disk, archive mode or not.
    flushed_states: HashSet<B256>,
    /// Blocks whose state a kill took, archive mode or not.
    lost_states: HashSet<B256>,
    /// Transaction → blocks that hold it.
    transactions: HashMap<B256, Vec<B256>>,
    oracle: Option<Arc<Oracle>>,
    writes: Vec<Write>,
    tag_calls: Vec<TagCall>,
    moments: Vec<Moment>,
    /// Whole blocks as they were answered before, if they are kept.
    pub(super) kept: Option<KeptAnswers>,
}

/// Answers about whole blocks, by the block, the method and the client.
pub(super) type KeptAnswers = HashMap<(B256, &'static str, Client), Arc<str>>;

impl Node {
    /// A fresh node with only `genesis`, tags never set.
    pub fn new(chain_id: u64, genesis: StoredBlock) -> Self {
        let genesis = Arc::new(genesis);
        let mut node = Self {
            moods: Moods::default(),
            client: Client::default(),
            reth: RethState::default(),
            chain_id,
            blocks: HashMap::new(),
            canonical: BTreeMap::new(),
            head: Arc::clone(&genesis),
            safe: None,
            finalized: None,
            recent_states: None,
            flushed_states: HashSet::from([genesis.hash()]),
            lost_states: HashSet::new(),
            transactions: HashMap::new(),
            oracle: None,
            writes: Vec::new(),
            tag_calls: Vec::new(),
            moments: Vec::new(),
            kept: None,
        };
        node.import(genesis);
        node
    }

    /// Which client it imitates.
    pub const fn client(&self) -> Client {
        self.client
    }

    /// Becomes another client with the same chain, as after a change of the software on a folder that was copied over: the
    /// tags are not part of the chain, and the new client knows of none.
    pub fn become_client(&mut self, client: Client) {
        self.client = client;
        self.reth = RethState::default();
        (self.safe, self.finalized) = (None, None);
        self.seen();
    }

    /// Whether it takes no notice of `parentHash`.
    pub(super) const fn ignores_parent(&self) -> bool {
        self.moods.refuses_rewrites || self.client.ignores_parent()
    }

    /// Gives recorded results to recorded content.
    #[must_use]
    pub fn with_oracle(mut self, oracle: Arc<Oracle>) -> Self {
        self.oracle = Some(oracle);
        self
    }

    /// Takes a block as it is, as the canonical head, without execution: a chain that was synced, or an anchor far
    /// above genesis. Blocks above it leave the canonical chain.
    pub fn import(&mut self, block: Arc<StoredBlock>) {
        self.insert(&block);
        self.canonical.split_off(&block.number());
        self.canonical.insert(block.number(), block.hash());
        self.head = block;
        self.seen();
    }

    fn insert(&mut self, block: &Arc<StoredBlock>) {
        self.lost_states.remove(&block.hash());
        if let Some(recent) = &mut self.recent_states {
            recent.insert(block.hash());
        }
        if self.blocks.insert(block.hash(), Arc::clone(block)).is_none() {
            for raw in &block.transactions {
                self.transactions.entry(keccak(raw)).or_default().push(block.hash());
            }
        }
    }

    /// Chain id.
    pub const fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Whole blocks are rendered once from now on, and the text is kept; those that it has, at once. A real node takes
    /// their bytes from its database. What a simulated one spends on making them would be measured by a benchmark as if
    /// it were the worker's time.
    pub fn keep_answers(&mut self) {
        self.kept.get_or_insert_default();
        for number in 1..=self.head.number() {
            let hex = format!("{number:#x}");
            let (method, params) = match (self.moods.debug_closed, self.client) {
                (true, _) => ("eth_getBlockByNumber", json!([hex, true])),
                (false, Client::Geth) => ("debug_getBlockRlp", json!([number])),
                (false, Client::Reth(_)) => ("debug_getRawBlock", json!([hex])),
            };
            self.kept_answer(method, params.as_array().map(Vec::as_slice).unwrap_or_default());
        }
    }

    /// The hash of the block at `number`.
    pub(super) fn hash_at(&self, number: u64) -> Option<B256> {
        self.canonical.get(&number).copied()
    }

    /// The newest block.
    pub fn head(&self) -> Arc<StoredBlock> {
        Arc::clone(&self.head)
    }

    /// The `safe` tag.
    pub fn safe(&self) -> Option<L2Ref> {
        self.safe.and_then(|hash| self.blocks.get(&hash)).map(|block| block.l2_ref())
    }

    /// The `finalized` tag.
    pub fn finalized(&self) -> Option<L2Ref> {
        self.finalized.and_then(|hash| self.blocks.get(&hash)).map(|block| block.l2_ref())
    }

    /// The block that the node answers with for this height, above a fallen head too.
    pub fn at(&self, number: u64) -> Option<Arc<StoredBlock>> {
        self.canonical.get(&number).and_then(|hash| self.blocks.get(hash)).cloned()
    }

    /// A block by hash, canonical or not.
    pub fn by_hash(&self, hash: B256) -> Option<Arc<StoredBlock>> {
        self.blocks.get(&hash).cloned()
    }

    /// The canonical block that holds a transaction.
    pub(super) fn holder_of(&self, transaction: B256) -> Option<Arc<StoredBlock>> {
        let holders = self.transactions.get(&transaction).map(Vec::as_slice).unwrap_or_default();
        let mut blocks = holders.iter().filter_map(|hash| self.blocks.get(hash));
        blocks.find(|block| self.canonical.get(&block.number()) == Some(&block.hash())).cloned()
    }

    /// Every call of `engine_newSafeL2Block` so far.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Every call of `engine_setBlockTags` so far.
    pub fn tag_calls(&self) -> &[TagCall] {
        &self.tag_calls
    }

    /// Everything that a reader could see since the start, in order: after each write, and between the two halves of
    /// each tag call. What the test itself did to the node (import, kill, fork) leaves its mark too.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// Forgets the recorded calls and moments.
    pub fn clear_calls(&mut self) {
        self.writes.clear();
        self.tag_calls.clear();
        self.moments.clear();
    }

    pub(super) fn seen(&mut self) {
        let moment = Moment { head: self.head.l2_ref(), safe: self.safe(), finalized: self.finalized() };
        if self.moments.last() != Some(&moment) {
            record(&mut self.moments, moment);
        }
    }

    /// `engine_newSafeL2Block`.
    pub fn new_safe_l2_block(&mut self, block: &SafeL2Data) -> Result<Arc<StoredBlock>, RpcError> {
        let head_before = self.head.number();
        let result = self.write(block);
        let result_hash = result.as_ref().map(|block| block.hash()).map_err(Clone::clone);
        let write = Write { number: block.number, parent: block.parent_hash, head_before, result: result_hash };
        record(&mut self.writes, write);
        result
    }

    /// Writes a block past the moods, past any check of the client's, and without leaving a record: how a test gives the
    /// node another chain.
    pub fn write_unseen(&mut self, block: &SafeL2Data) -> Result<Arc<StoredBlock>, RpcError> {
        let moods = std::mem::take(&mut self.moods);
        let client = std::mem::take(&mut self.client);
        let result = self.write(block);
        (self.moods, self.client) = (moods, client);
        if client.is_reth() {
            // It knows of no block above its head, whatever was there before.
            let head = self.head.number();
            self.cut_above(head);
        }
        result
    }

    /// Writes a block in the present moods, without leaving a record, as its consensus node hands it over: no tag moves.
    pub fn write_quietly(&mut self, block: &SafeL2Data) -> Result<Arc<StoredBlock>, RpcError> {
        let (tags, before) = ((self.safe, self.finalized), self.moments.len());
        let result = self.write(block);
        if self.client.is_reth() {
            (self.safe, self.finalized) = tags;
            self.moments.truncate(before);
            self.seen();
        }
        result
    }

    fn write(&mut self, block: &SafeL2Data) -> Result<Arc<StoredBlock>, RpcError> {
        if let Some(error) = self.moods.write_error.clone() {
            return Err(error);
        }
        if let Some(error) = self.moods.write_error_at.remove(&block.number) {
            return Err(error);
        }
        if self.client.is_reth() {
            let made = self.write_as_reth(block)?;
            if self.moods.tags_what_it_writes {
                self.finalized = Some(made.hash());
                self.seen();
            }
            return Ok(made);
        }
        let parent = self.parent_of(block)?;
        for (index, raw) in block.transactions.iter().enumerate() {
            signing::decodable(raw)
                .map_err(|words| RpcError::server(format!("invalid transaction {index}: {words}")))?;
        }
        if !self.has_state(&parent) {
            return Err(missing_state(&parent));
        }
        let cap = self.moods.gas_limit_cap.unwrap_or(block.gas_limit);
        let executed = self.execute(&parent, &SafeL2Data { gas_limit: block.gas_limit.min(cap), ..block.clone() })?;
        if self.moods.loses_what_it_writes {
            return Ok(executed);
        }
        self.make_head(&executed);
        if self.moods.tags_what_it_writes {
            self.safe = Some(executed.hash());
            self.finalized = Some(executed.hash());
        }
        self.seen();
        Ok(executed)
    }

    fn parent_of(&self, block: &SafeL2Data) -> Result<Arc<StoredBlock>, RpcError> {
        let Some(wanted) = block.parent_hash.filter(|_| !self.ignores_parent()) else {
            let expected = self.head.number() + 1;
            if block.number != expected {
                return Err(RpcError::server(format!(
                    "cannot assemble block with discontinuous block number {}, expected number is {expected}",
                    block.number
                )));
            }
            return Ok(self.head());
        };
        let parent =
            self.by_hash(wanted).ok_or_else(|| RpcError::server(format!("parent block not found: {wanted:?}")))?;
        if block.number != parent.number() + 1 {
            return Err(RpcError::server(format!(
                "wrong block number: expected {}, got {}",
                parent.number() + 1,
                block.number
            )));
        }
        Ok(parent)
    }

    pub(super) fn execute(&self, parent: &StoredBlock, block: &SafeL2Data) -> Result<Arc<StoredBlock>, RpcError> {
        let content = Content {
            number: block.number,
            parent: parent.hash(),
            timestamp: block.timestamp,
            base_fee: block.base_fee.unwrap_or_default(),
            gas_limit: block.gas_limit,
            transactions: &block.transactions,
        };
        let bent = self.moods.wrong_state_from.is_some_and(|from| block.number >= from)
            || self.moods.wrong_withdrawals_from.is_some_and(|from| block.number >= from);
        let recorded = self.oracle.as_ref().filter(|_| !bent).and_then(|oracle| oracle.lookup(&content));
        if let Some(recorded) = recorded {
            let batch_hash = block.batch_hash.unwrap_or_default();
            return Ok(Arc::new(StoredBlock { batch_hash, ..(*recorded).clone() }));
        }
        self.check_nonces(parent, &block.transactions)?;
        Ok(Arc::new(self.simulate(parent, block)))
    }

    /// The one thing about content that the real node does notice: a transaction that was already executed.
    pub(super) fn check_nonces(&self, parent: &StoredBlock, transactions: &[RawTx]) -> Result<(), RpcError> {
        for (index, raw) in transactions.iter().enumerate() {
            let id = keccak(raw);
            let Some(holders) = self.transactions.get(&id).filter(|_| signing::queue_index(raw).is_none()) else {
                continue;
            };
            if !holders.iter().any(|holder| self.is_ancestor(*holder, parent)) {
                continue;
            }
            let sender = signing::sender(raw).unwrap_or_default();
            return Err(RpcError::server(format!(
                "could not apply tx {index} [{id:?}]: nonce too low: address {}, tx: {} state: {}",
                ethers_core::utils::to_checksum(&sender, None),
                signing::nonce(raw),
                self.account_nonce(sender, parent)
            )));
        }
        Ok(())
    }

    pub(super) fn is_ancestor(&self, block: B256, of: &StoredBlock) -> bool {
        let Some(number) = self.blocks.get(&block).map(|block| block.number()) else { return false };
        if number > of.number() {
            return false;
        }
        if self.canonical.get(&of.number()) == Some(&of.hash()) {
            return self.canonical.get(&number) == Some(&block);
        }
        self.ancestors(of).find(|ancestor| ancestor.number() <= number).is_some_and(|found| found.hash() == block)
    }

    /// `block` and everything below it, downwards.
    fn ancestors<'a>(&'a self, block: &'a StoredBlock) -> impl Iterator<Item = &'a StoredBlock> {
        std::iter::successors(Some(block), |block| self.blocks.get(&block.header.parent_hash).map(Arc::as_ref))
    }

    fn account_nonce(&self, account: Address, at: &StoredBlock) -> u64 {
        self.ancestors(at)
            .flat_map(|block| block.transactions.iter().rev())
            .find(|raw| signing::queue_index(raw).is_none() && signing::sender(raw) == Some(account))
            .map_or(0, |raw| signing::nonce(raw) + 1)
    }

    fn simulate(&self, parent: &StoredBlock, block: &SafeL2Data) -> StoredBlock {
        let hashes: Vec<B256> = block.transactions.iter().map(|raw| keccak(raw)).collect();
        let mut full = Header::empty(block.number, parent.hash(), block.timestamp);
        full.gas_limit = block.gas_limit;
        full.base_fee = block.base_fee;
        full.seal_l2_transactions(&block.transactions);
        full.state_root = self.state_after(parent, block, &hashes);
        full.next_l1_index = block
            .transactions
            .iter()
            .rev()
            .find_map(|raw| signing::queue_index(raw))
            .map_or(parent.next_l1_index, |index| index.saturating_add(1));
        let mut root = parent.withdrawal_root.unwrap_or_default();
        let mut appended = Vec::new();
        for (index, raw) in block.transactions.iter().enumerate() {
            let is_withdrawal = signing::queue_index(raw).is_none()
                && signing::call_of(raw).is_some_and(|(to, _)| to == message_passer());
            if !is_withdrawal {
                continue;
            }
            let message_hash = hashes.get(index).copied().unwrap_or_default();
            root = keccak(&[root.as_bytes(), message_hash.as_bytes()].concat());
            if self.moods.wrong_withdrawals_from.is_some_and(|from| block.number >= from) {
                root = keccak(root.as_bytes());
            }
            let place = appended.len() as u64;
            appended.push(Appended {
                index: parent.messages_total + place,
                message_hash,
                root,
                tx_index: index as u64,
                log_index: place,
            });
        }
        if appended.is_empty() && self.moods.wrong_withdrawals_from == Some(block.number) {
            root = keccak(root.as_bytes());
        }
        StoredBlock {
            header: full.to_l2(),
            batch_hash: block.batch_hash.unwrap_or_default(),
            transactions: block.transactions.clone(),
            withdrawal_root: Some(root),
            messages_total: parent.messages_total + appended.len() as u64,
            appended,
            next_l1_index: full.next_l1_index,
            full: Some(full),
        }
    }

    fn state_after(&self, parent: &StoredBlock, block: &SafeL2Data, hashes: &[B256]) -> B256 {
        let mut root = parent.header.state_root;
        if !hashes.is_empty() {
            let mut bytes = root.as_bytes().to_vec();
            bytes.extend_from_slice(&block.number.to_be_bytes());
            bytes.extend_from_slice(&block.timestamp.to_be_bytes());
            let mut fee = [0u8; 32];
            block.base_fee.unwrap_or_default().to_big_endian(&mut fee);
            bytes.extend_from_slice(&fee);
            hashes.iter().for_each(|hash| bytes.extend_from_slice(hash.as_bytes()));
            root = keccak(&bytes);
        }
        if self.moods.wrong_state_from.is_some_and(|from| block.number >= from) {
            root = keccak(root.as_bytes());
        }
        root
    }

    /// On top of the head nothing above is touched (a killed node's stale heights stay); anywhere else it is a reorg,
    /// which drops every height above.
    pub(super) fn make_head(&mut self, block: &Arc<StoredBlock>) {
        self.insert(block);
        let is_append = block.header.parent_hash == self.head.hash();
        if !is_append {
            self.canonical.split_off(&block.number());
            let mut at = block.header.parent_hash;
            while let Some(ancestor) = self.blocks.get(&at) {
                if self.canonical.insert(ancestor.number(), at) == Some(at) {
                    break;
                }
                at = ancestor.header.parent_hash;
            }
        }
        self.canonical.insert(block.number(), block.hash());
        self.head = Arc::clone(block);
    }

    /// `engine_setBlockTags`: finalized first, then safe; no check but that the block is known.
    pub fn set_block_tags(&mut self, safe: B256, finalized: B256) -> Result<(), RpcError> {
        let result = self.apply_tags(safe, finalized);
        record(&mut self.tag_calls, TagCall { safe, finalized, accepted: result.is_ok() });
        result
    }

    /// `engine_forkchoiceUpdatedV3` of a standard execution node, without payload attributes: head, safe and finalized in one
    /// step. Gives the payload status. A head that is an ancestor of the present one leaves it where it is.
    pub fn forkchoice_updated(&mut self, head: B256, safe: B256, finalized: B256) -> Result<String, RpcError> {
        if let Some(status) = self.moods.forkchoice_status.clone() {
            return Ok(status);
        }
        let Some(block) = self.by_hash(head) else { return Ok("SYNCING".to_owned()) };
        let is_known = |tag: &B256| tag.is_zero() || self.blocks.contains_key(tag);
        if ![safe, finalized].iter().all(is_known) {
            return Err(RpcError { code: -38_002, message: "Invalid forkchoice state".to_owned() });
        }
        if block.number() > self.head.number() || self.canonical.get(&block.number()) != Some(&head) {
            self.make_head(&block);
        }
        self.safe = Some(safe).filter(|safe| !safe.is_zero()).or(self.safe);
        self.finalized = Some(finalized).filter(|finalized| !finalized.is_zero()).or(self.finalized);
        self.seen();
        Ok("VALID".to_owned())
    }

    fn apply_tags(&mut self, safe: B256, finalized: B256) -> Result<(), RpcError> {
        if let Some(error) = self.moods.tags_error.clone() {
            return Err(error);
        }
        if self.client.is_reth() {
            return self.tag_as_reth(safe, finalized);
        }
        for (tag, wanted) in [("finalized", finalized), ("safe", safe)] {
            if wanted.is_zero() {
                continue;
            }
            if !self.blocks.contains_key(&wanted) {
                return Err(RpcError::server(format!("{tag} block {wanted:?} not found")));
            }
            if tag == "safe" {
                self.safe = Some(wanted);
            } else {
                self.finalized = Some(wanted);
            }
            self.seen();
        }
        Ok(())
    }

    /// A clean restart: finalized is kept, safe falls to it, and of the states only those that it writes to disk are left
    /// (without archive mode): of the head, of the block below it, and of the two at the far end of what it kept.
    pub fn restart(&mut self) {
        if self.client.is_reth() {
            return self.restart_as_reth();
        }
        self.safe = self.finalized;
        let head = self.head.number();
        for below in [0, 1, KEPT_STATES - 2, KEPT_STATES - 1] {
            let written = head.checked_sub(below).and_then(|number| self.at(number));
            self.flushed_states.extend(written.filter(|block| self.has_state(block)).map(|block| block.hash()));
        }
        self.recent_states = Some(HashSet::new());
        self.seen();
    }

    /// A kill: the head falls to `height`; tags, blocks and heights above it stay in the database, their states do not. Of a
    /// morph-reth nothing is left above it, and a real one loses the newest 2 to 20 blocks only.
    pub fn kill(&mut self, height: u64) {
        if self.client.is_reth() {
            return self.kill_as_reth(height);
        }
        let Some(fallen) = self.at(height).filter(|_| height <= self.head.number()) else { return };
        self.lost_states.extend(self.canonical.range(height + 1..).map(|(_, hash)| *hash));
        self.flushed_states.insert(fallen.hash());
        self.recent_states = Some(HashSet::new());
        self.head = fallen;
        self.safe = self.finalized;
        self.seen();
    }

    /// Cuts the chain at `height`, as an operator's `debug_setHead` does: the blocks above are gone. Tags stay.
    pub fn truncate(&mut self, height: u64) {
        let Some(block) = self.at(height) else { return };
        self.canonical.split_off(&(height + 1));
        self.head = block;
        self.seen();
    }

    pub(super) const fn put_safe(&mut self, hash: Option<B256>) {
        self.safe = hash;
    }

    pub(super) const fn put_finalized(&mut self, hash: Option<B256>) {
        self.finalized = hash;
    }

    pub(super) fn stand_on(&mut self, block: Arc<StoredBlock>) {
        self.head = block;
    }

    /// Forgets every canonical block above `height`: it answers no more, neither by number nor by hash.
    pub(super) fn cut_above(&mut self, height: u64) {
        for hash in self.canonical.split_off(&height.saturating_add(1)).into_values() {
            self.blocks.remove(&hash);
        }
    }

    /// Whether it has the state of `block`.
    pub fn has_state(&self, block: &StoredBlock) -> bool {
        let hash = block.hash();
        if self.lost_states.contains(&hash) {
            return false;
        }
        let in_memory = || {
            block.number() + KEPT_STATES > self.head.number()
                && self.recent_states.as_ref().is_none_or(|recent| recent.contains(&hash))
        };
        self.moods.archive || self.flushed_states.contains(&hash) || in_memory()
    }

    /// `messageRoot()` at a block; the error is the real node's for a state that is gone.
    pub fn message_root(&self, block: &StoredBlock) -> Result<B256, RpcError> {
        if !self.has_state(block) {
            return Err(missing_state(block));
        }
        block.withdrawal_root.ok_or_else(|| missing_state(block))
    }

    /// The root that the last AppendMessage log of the canonical blocks `first..=last` carries.
    pub fn last_appended_root(&self, first: u64, last: u64) -> Option<B256> {
        let last = last.min(self.head.number());
        if first > last {
            return None;
        }
        let mut blocks = self.canonical.range(first..=last).rev().filter_map(|(_, hash)| self.blocks.get(hash));
        blocks.find_map(|block| block.appended.last()).map(|appended| appended.root)
    }
}

/// The real node's words for a state that is gone.
pub(super) fn missing_state(block: &StoredBlock) -> RpcError {
    RpcError::server(format!("missing trie node {} (path )", const_hex::encode(block.header.state_root.as_bytes())))
}

/// A deterministic hash for made-up values.
pub fn made_up(text: &str, number: u64) -> B256 {
    B256(keccak256([text.as_bytes(), &number.to_be_bytes()].concat()))
}

#[cfg(test)]
impl SafeL2Data {
    /// An empty block at `number`, on the devnet's times.
    pub(super) fn empty(number: u64) -> Self {
        Self {
            number,
            gas_limit: 30_000_000,
            base_fee: Some(1_000_000.into()),
            timestamp: 1_000 + 2 * number,
            transactions: Vec::new(),
            batch_hash: None,
            parent_hash: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devnet::block::empty_message_root;
    use crate::devnet::chain::{BlockPlan, Sequencer};

    fn node() -> Node {
        Node::new(53077, StoredBlock::genesis(1_000, made_up("genesis", 1)))
    }

    fn grown(last: u64) -> Node {
        let mut node = node();
        (1..=last).for_each(|number| drop(node.new_safe_l2_block(&SafeL2Data::empty(number)).unwrap()));
        node
    }

    fn on(node: &Node, parent: u64, block: SafeL2Data) -> SafeL2Data {
        SafeL2Data { parent_hash: Some(node.at(parent).unwrap().hash()), ..block }
    }

    #[test]
    fn refusals_have_the_real_words() {
        let mut node = grown(60);
        let hash = B256::repeat_byte(0x22);
        let table = [
            (
                SafeL2Data::empty(65),
                "cannot assemble block with discontinuous block number 65, expected number is 61".to_owned(),
            ),
            (
                SafeL2Data { parent_hash: Some(hash), ..SafeL2Data::empty(61) },
                format!("parent block not found: {hash:?}"),
            ),
            (on(&node, 50, SafeL2Data::empty(61)), "wrong block number: expected 51, got 61".to_owned()),
            (
                SafeL2Data { transactions: vec![vec![0x55, 0xc0].into()], ..SafeL2Data::empty(61) },
                "invalid transaction 0: transaction type not supported".to_owned(),
            ),
        ];
        for (block, words) in table {
            assert_eq!(node.new_safe_l2_block(&block), Err(RpcError::server(words)));
            assert_eq!(node.head().number(), 60);
        }
        assert_eq!(node.writes().len(), 64);
    }

    #[test]
    fn nearly_anything_is_executed() {
        let mut node = grown(5);
        let odd = [
            SafeL2Data { base_fee: Some(5.into()), ..SafeL2Data::empty(6) },
            SafeL2Data { gas_limit: 1, ..SafeL2Data::empty(6) },
            SafeL2Data { timestamp: 1, ..SafeL2Data::empty(6) },
        ];
        let state = node.head().header.state_root;
        for block in odd {
            let block = on(&node, 5, block);
            let written = node.new_safe_l2_block(&block).unwrap();
            assert_eq!(node.head().hash(), written.hash());
            // An empty block keeps the state root: the root alone proves nothing.
            assert_eq!(written.header.state_root, state);
        }
    }

    #[test]
    fn a_write_below_the_head_truncates_and_the_tags_stay() {
        let mut node = grown(10);
        let (safe, finalized) = (node.at(9).unwrap().hash(), node.at(8).unwrap().hash());
        node.set_block_tags(safe, finalized).unwrap();
        let equal = on(&node, 4, SafeL2Data::empty(5));
        assert_eq!(node.new_safe_l2_block(&equal).unwrap().hash(), node.at(5).unwrap().hash());
        assert_eq!(node.head().number(), 5);
        assert!(node.at(6).is_none());
        assert_eq!(node.safe().unwrap().number.get(), 9);
        assert_eq!(node.finalized().unwrap().number.get(), 8);
        assert!(node.by_hash(safe).is_some());
        assert!(!node.moments().last().unwrap().is_ordered());
    }

    #[test]
    fn a_write_on_an_orphan_brings_its_chain_back() {
        let mut node = grown(10);
        let old = node.head();
        let fork = on(&node, 5, SafeL2Data { timestamp: 7, ..SafeL2Data::empty(6) });
        node.new_safe_l2_block(&fork).unwrap();
        let back = SafeL2Data { parent_hash: Some(old.hash()), ..SafeL2Data::empty(11) };
        node.new_safe_l2_block(&back).unwrap();
        assert_eq!(node.at(10).unwrap().hash(), old.hash());
        assert_eq!(node.at(6).unwrap().header.timestamp, 1_012);
    }

    #[test]
    fn e11_tags_are_half_applied_and_unchecked() {
        let mut node = grown(10);
        let hash = |node: &Node, number| node.at(number).unwrap().hash();
        let (nine, five) = (hash(&node, 9), hash(&node, 5));
        let unknown = B256::repeat_byte(0x11);
        let words = format!("safe block {unknown:?} not found");
        assert_eq!(node.set_block_tags(unknown, nine), Err(RpcError::server(words)));
        assert_eq!((node.safe(), node.finalized().unwrap().number.get()), (None, 9));
        node.set_block_tags(five, B256::zero()).unwrap();
        assert_eq!((node.safe().unwrap().number.get(), node.finalized().unwrap().number.get()), (5, 9));
        assert_eq!(node.tag_calls().len(), 2);
    }

    #[test]
    fn e19_after_a_kill_blocks_above_the_head_still_answer() {
        let mut node = grown(10);
        let (ten, eight) = (node.at(10).unwrap(), node.at(8).unwrap());
        node.set_block_tags(ten.hash(), eight.hash()).unwrap();
        node.kill(3);
        assert_eq!(node.head().number(), 3);
        assert_eq!(node.at(10), Some(Arc::clone(&ten)));
        assert_eq!(node.by_hash(ten.hash()), Some(ten.clone()));
        assert_eq!(node.safe(), node.finalized());
        // Their states are gone: nothing can be built on them.
        let above = SafeL2Data { parent_hash: Some(ten.hash()), ..SafeL2Data::empty(11) };
        assert!(node.new_safe_l2_block(&above).unwrap_err().message.starts_with("missing trie node"));
        node.new_safe_l2_block(&SafeL2Data::empty(4)).unwrap();
        assert_eq!(node.head().number(), 4);
        assert_eq!(node.at(10), Some(ten));
    }

    #[test]
    fn e12_and_e13_moods_of_morph_reth() {
        let mut node = grown(10);
        node.moods.refuses_rewrites = true;
        let rewrite = on(&node, 4, SafeL2Data::empty(5));
        assert!(node.new_safe_l2_block(&rewrite).unwrap_err().message.contains("discontinuous"));
        node.moods.tags_what_it_writes = true;
        let written = node.new_safe_l2_block(&SafeL2Data::empty(11)).unwrap();
        assert_eq!(node.safe(), Some(written.l2_ref()));
        assert_eq!(node.finalized(), Some(written.l2_ref()));
    }

    #[test]
    fn states_are_pruned_without_archive_mode() {
        let mut node = grown(200);
        node.moods.archive = false;
        let kept = |node: &Node, number| node.message_root(&node.at(number).unwrap()).is_ok();
        assert_eq!([kept(&node, 72), kept(&node, 73), kept(&node, 200)], [false, true, true]);
        node.restart();
        let left: Vec<u64> = (0..=200).filter(|number| kept(&node, *number)).collect();
        assert_eq!(left, [0, 73, 74, 199, 200]);
        // A block is executed only on a state that the node has; its own state exists from then on.
        let on_a_gone_state = on(&node, 80, SafeL2Data { timestamp: 7, ..SafeL2Data::empty(81) });
        assert!(node.new_safe_l2_block(&on_a_gone_state).unwrap_err().message.starts_with("missing trie node"));
        let before: Vec<_> = (75..=81).map(|number| node.at(number).unwrap().l2_ref()).collect();
        for had in before {
            let number = had.number.get();
            let block = on(&node, number - 1, SafeL2Data::empty(number));
            assert_eq!(node.new_safe_l2_block(&block).unwrap().l2_ref(), had);
        }
        assert!(kept(&node, 81));
    }

    #[test]
    fn execution_is_deterministic_and_withdrawals_move_the_root() {
        let mut sequencer = Sequencer::new(node(), 7, 2);
        let quiet = sequencer.build(&BlockPlan { txs: 3, ..BlockPlan::default() }, &[]).unwrap();
        let busy = sequencer.build(&BlockPlan { withdrawals: 2, ..BlockPlan::default() }, &[]).unwrap();
        assert_eq!(quiet.withdrawal_root, Some(empty_message_root()));
        assert_eq!(busy.withdrawal_root, busy.appended.last().map(|appended| appended.root));
        assert_eq!(busy.appended.len(), 2);
        assert_eq!(sequencer.node.last_appended_root(1, 2), busy.withdrawal_root);
        let mut other = node();
        for block in [&quiet, &busy] {
            let mut data = SafeL2Data::from(&block.as_new_block());
            data.parent_hash = None;
            assert_eq!(other.new_safe_l2_block(&data).unwrap().hash(), block.hash());
        }
        let mut again = SafeL2Data::from(&quiet.as_new_block());
        (again.number, again.parent_hash) = (3, None);
        assert!(other.new_safe_l2_block(&again).unwrap_err().message.contains("nonce too low"));
    }

    #[test]
    fn e1_wrong_roots_come_out_of_right_content() {
        let mut sequencer = Sequencer::new(node(), 7, 2);
        let block = sequencer.build(&BlockPlan::empty(), &[]).unwrap();
        let mut data = SafeL2Data::from(&block.as_new_block());
        data.parent_hash = None;
        let mut wrong = node();
        wrong.moods.wrong_state_from = Some(1);
        assert_ne!(wrong.new_safe_l2_block(&data).unwrap().header.state_root, block.header.state_root);
        let mut wrong = node();
        wrong.moods.wrong_withdrawals_from = Some(1);
        let written = wrong.new_safe_l2_block(&data).unwrap();
        assert_eq!(written.header.state_root, block.header.state_root);
        assert_ne!(written.withdrawal_root, block.withdrawal_root);
    }
}
