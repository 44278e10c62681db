//! What the simulated node does in morph-reth's way: writes, tags, a kill, a restart (protocol.md, section 7).
//!
//! A block is built, checked like any block from the network, and made the head by a fork choice update that names the block
//! safe and the finalized block that the node was last given. So unlike go-ethereum it checks what it is given; and
//! unlike go-ethereum it does nothing at all with a block that it has on its chain already.

use std::sync::Arc;

use super::block::StoredBlock;
use super::jsonrpc::RpcError;
use super::node::{Node, SafeL2Data};
use super::signing;
use crate::types::{B256, RawTx, U256};

/// The base fee of a block that is written without one, in wei.
const DEFAULT_BASE_FEE: u64 = 1_000_000;
/// The highest base fee that it takes: 10 gwei.
const HIGHEST_BASE_FEE: u64 = 10_000_000_000;
/// The lowest gas limit that it takes.
const LOWEST_GAS_LIMIT: u64 = 5_000;

fn discontinuous(got: u64, expected: u64) -> RpcError {
    RpcError { code: -32001, message: format!("discontinuous block number {got}, expected {expected}") }
}

fn build_failed(words: &str) -> RpcError {
    RpcError { code: -32003, message: format!("failed to build block: failed to get built payload: {words}") }
}

fn invalid(words: &str) -> RpcError {
    RpcError { code: -32004, message: format!("block validation failed: newPayload returned INVALID: {words}") }
}

fn internal(words: &str) -> RpcError {
    RpcError { code: -32099, message: format!("internal error: {words}") }
}

impl Node {
    /// `engine_newSafeL2Block`.
    pub(super) fn write_as_reth(&mut self, block: &SafeL2Data) -> Result<Arc<StoredBlock>, RpcError> {
        let parent = match block.parent_hash.filter(|_| !self.ignores_parent()) {
            Some(wanted) => {
                self.by_hash(wanted).ok_or_else(|| internal(&format!("parent block not found: {wanted:?}")))?
            }
            None => self.head(),
        };
        if block.number != parent.number() + 1 {
            return Err(discontinuous(block.number, parent.number() + 1));
        }
        if !self.has_state(&parent) {
            return Err(build_failed(&format!("state at block #{} is pruned", parent.number())));
        }
        let mut data = block.clone();
        data.base_fee = Some(block.base_fee.unwrap_or_else(|| DEFAULT_BASE_FEE.into()));
        data.gas_limit = data.gas_limit.min(self.moods.gas_limit_cap.unwrap_or(u64::MAX));
        self.supply_transactions(&mut data, &parent)?;
        check_rules(&data, &parent, self.moods.clock)?;
        let made = self.execute(&parent, &data)?;
        if self.reth.invalid.contains(&made.hash()) {
            return Err(invalid("block is in the cache of invalid blocks"));
        }
        if self.moods.loses_what_it_writes {
            return Ok(made);
        }
        self.choose(&made)?;
        Ok(made)
    }

    /// The transactions that the block will hold.
    fn supply_transactions(&self, data: &mut SafeL2Data, parent: &StoredBlock) -> Result<(), RpcError> {
        let mut has_l2 = false;
        let mut gas_used = 0_u64;
        let mut kept: Vec<RawTx> = Vec::new();
        for raw in &data.transactions {
            signing::decodable(raw).map_err(|words| build_failed(&format!("failed to decode transaction: {words}")))?;
            let is_message = signing::queue_index(raw).is_some();
            if is_message && has_l2 {
                return Err(build_failed("L1 message behind an ordinary transaction"));
            }
            has_l2 |= !is_message;
            let gas = signing::gas_limit(raw);
            if !is_message && gas_used.saturating_add(gas) > data.gas_limit {
                if self.client() == super::client::Client::Reth(super::client::Generation::B) {
                    break;
                }
                return Err(build_failed(&format!("transaction gas limit {gas} exceeds what is left of the block's")));
            }
            gas_used = gas_used.saturating_add(21_000);
            match self.check_nonces(parent, std::slice::from_ref(raw)) {
                Ok(()) => kept.push(raw.clone()),
                // The first generation leaves out what it cannot apply, and says nothing.
                Err(_) if self.client().marks_finalized() => {}
                Err(error) => return Err(build_failed(&format!("invalid supplied transaction: {}", error.message))),
            }
        }
        if self.client().mixes_in_its_pool() {
            let applies = |raw: &&RawTx| self.check_nonces(parent, std::slice::from_ref(*raw)).is_ok();
            let pooled = self.moods.pool.iter().filter(applies).filter(|raw| !kept.contains(raw));
            let pooled: Vec<_> = pooled.cloned().collect();
            kept.extend(pooled);
        }
        data.transactions = kept;
        Ok(())
    }

    /// The fork choice update that follows a block's import.
    fn choose(&mut self, block: &Arc<StoredBlock>) -> Result<(), RpcError> {
        let on_chain = self.at(block.number()).is_some_and(|known| known.hash() == block.hash());
        if on_chain && block.number() < self.head().number() {
            return Ok(());
        }
        if block.hash() != self.head().hash() {
            self.make_head(block);
            let height = block.number();
            self.cut_above(height);
        }
        let finalized = self.reth.given_finalized;
        let off_chain = |hash: B256| !self.is_ancestor(hash, block);
        if finalized.is_some_and(off_chain) {
            self.seen();
            return Err(RpcError {
                code: -32005,
                message: "block execution failed: forkchoice update error: Invalid forkchoice state".to_owned(),
            });
        }
        let marked = if self.client().marks_finalized() { Some(block.hash()) } else { finalized };
        if marked.is_some() {
            self.put_finalized(marked);
        }
        self.put_safe(Some(block.hash()));
        self.reth.stored_safe = Some(block.number());
        if self.client().marks_finalized() {
            self.reth.stored_finalized = Some(block.number());
        }
        self.seen();
        Ok(())
    }

    /// `engine_setBlockTags`: both are looked up before anything changes, then safe is set, then finalized. Nothing of it
    /// goes to disk.
    pub(super) fn tag_as_reth(&mut self, safe: B256, finalized: B256) -> Result<(), RpcError> {
        let number = |hash: B256, tag: &str| match hash.is_zero() {
            true => Ok(None),
            false => {
                let found = self.by_hash(hash).map(|block| Some(block.number()));
                found.ok_or_else(|| internal(&format!("{tag} block {hash:?} not found")))
            }
        };
        let (safe_number, finalized_number) = (number(safe, "safe")?, number(finalized, "finalized")?);
        let refused = |words: String| RpcError { code: -32004, message: format!("block validation failed: {words}") };
        let head = self.head().number();
        for (tag, number) in [("safe", safe_number), ("finalized", finalized_number)] {
            if let Some(number) = number.filter(|number| *number > head) {
                return Err(refused(format!("{tag} block number {number} exceeds canonical head number {head}")));
            }
        }
        if let (Some(safe), Some(finalized)) = (safe_number, finalized_number)
            && finalized > safe
        {
            return Err(refused(format!("finalized block number {finalized} exceeds safe block number {safe}")));
        }
        if safe_number.is_some() {
            self.put_safe(Some(safe));
            self.seen();
        }
        if finalized_number.is_some() {
            self.put_finalized(Some(finalized));
            self.reth.given_finalized = Some(finalized);
            self.seen();
        }
        Ok(())
    }

    /// A clean restart: all blocks are there; of the tags only what fork choice updates left on disk.
    pub(super) fn restart_as_reth(&mut self) {
        self.reth.given_finalized = None;
        let at = |number: Option<u64>| number.and_then(|number| self.at(number)).map(|block| block.hash());
        let finalized = at(self.reth.stored_finalized);
        let safe = at(self.reth.stored_safe).or(finalized);
        self.put_finalized(finalized);
        self.put_safe(safe);
        self.seen();
    }

    /// A kill: the blocks above `height` were in memory only, and nothing is left of them.
    pub(super) fn kill_as_reth(&mut self, height: u64) {
        let Some(fallen) = self.at(height).filter(|_| height <= self.head().number()) else { return };
        self.stand_on(fallen);
        self.cut_above(height);
        self.restart_as_reth();
    }

    /// A block with this hash is refused from now on, as one that was once judged invalid is.
    pub fn judge_invalid(&mut self, hash: B256) {
        self.reth.invalid.insert(hash);
    }

    /// The finalized block that fork choice updates name is this one from now on: what another writer gave it.
    pub fn give_finalized(&mut self, hash: B256) {
        self.reth.given_finalized = Some(hash);
        self.put_finalized(Some(hash));
        self.seen();
    }
}

/// The rules that a block is held to. The times, the limits and the fees are those of its fork Emerald.
fn check_rules(data: &SafeL2Data, parent: &StoredBlock, clock: Option<u64>) -> Result<(), RpcError> {
    let before = parent.header.timestamp;
    if data.timestamp < before {
        return Err(invalid(&format!(
            "block timestamp {} is in the past compared to the parent's {before}",
            data.timestamp
        )));
    }
    if let Some(clock) = clock.filter(|clock| data.timestamp > *clock) {
        let words = format!("block timestamp {} is in the future compared to our clock time {clock}", data.timestamp);
        return Err(invalid(&words));
    }
    let limit = parent.header.gas_limit;
    if data.gas_limit.abs_diff(limit) >= (limit / 1024).max(1) && data.gas_limit != limit {
        return Err(invalid(&format!("gas limit {} moves too far from the parent's {limit}", data.gas_limit)));
    }
    if data.gas_limit < LOWEST_GAS_LIMIT {
        return Err(invalid(&format!("gas limit {} is below the minimum", data.gas_limit)));
    }
    if data.base_fee.is_some_and(|fee| fee > U256::from(HIGHEST_BASE_FEE)) {
        return Err(invalid("base fee is over the limit"));
    }
    let mut next = parent.next_l1_index;
    for index in data.transactions.iter().filter_map(|raw| signing::queue_index(raw)) {
        if index != next {
            return Err(invalid(&format!("L1 message with queue index {index}, expected {next}")));
        }
        next = next.saturating_add(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devnet::chain::{BlockPlan, Sequencer};
    use crate::devnet::client::{Client, Generation};
    use crate::devnet::node::made_up;

    const GENERATIONS: [Generation; 3] = [Generation::A, Generation::B, Generation::C];

    fn node(generation: Generation) -> Node {
        let mut node = Node::new(53077, StoredBlock::genesis(1_000, made_up("genesis", 1)));
        node.become_client(Client::Reth(generation));
        node
    }

    fn grown(generation: Generation, last: u64) -> Node {
        let mut node = node(generation);
        (1..=last).for_each(|number| drop(node.new_safe_l2_block(&SafeL2Data::empty(number)).unwrap()));
        node
    }

    fn on(node: &Node, parent: u64, block: SafeL2Data) -> SafeL2Data {
        SafeL2Data { parent_hash: Some(node.at(parent).unwrap().hash()), ..block }
    }

    fn number(tag: Option<crate::types::L2Ref>) -> Option<u64> {
        tag.map(|tag| tag.number.get())
    }

    #[test]
    fn the_first_generation_takes_head_plus_one_whatever_parent_it_is_given() {
        let mut node = grown(Generation::A, 10);
        let rewrite = on(&node, 4, SafeL2Data::empty(5));
        assert_eq!(node.new_safe_l2_block(&rewrite), Err(discontinuous(5, 11)));
        for generation in [Generation::B, Generation::C] {
            let mut node = grown(generation, 10);
            let other = on(&node, 4, SafeL2Data { timestamp: 1_009, ..SafeL2Data::empty(5) });
            let made = node.new_safe_l2_block(&other).unwrap();
            assert_eq!((node.head().hash(), node.at(6)), (made.hash(), None), "a shorter chain too");
            let wrong = on(&node, 4, SafeL2Data::empty(7));
            assert_eq!(node.new_safe_l2_block(&wrong), Err(discontinuous(7, 5)));
        }
    }

    #[test]
    fn an_equal_block_below_the_head_moves_nothing() {
        let mut node = grown(Generation::C, 10);
        let five = node.at(5).unwrap();
        let again = on(&node, 4, SafeL2Data::empty(5));
        assert_eq!(node.new_safe_l2_block(&again).unwrap().hash(), five.hash());
        assert_eq!((node.head().number(), number(node.safe())), (10, Some(10)));
    }

    #[test]
    fn a_write_marks_safe_and_only_the_first_generation_marks_finalized() {
        for generation in GENERATIONS {
            let node = grown(generation, 10);
            let finalized = (generation == Generation::A).then_some(10);
            assert_eq!((number(node.safe()), number(node.finalized())), (Some(10), finalized), "{generation:?}");
        }
    }

    #[test]
    fn tags_are_looked_up_first_and_safe_is_set_before_finalized() {
        let mut node = grown(Generation::C, 10);
        let hash = |node: &Node, number| node.at(number).unwrap().hash();
        let (nine, five, unknown) = (hash(&node, 9), hash(&node, 5), B256::repeat_byte(1));
        for (safe, finalized) in [(nine, unknown), (unknown, nine), (five, nine)] {
            assert!(node.set_block_tags(safe, finalized).is_err());
            assert_eq!((number(node.safe()), node.finalized()), (Some(10), None), "nothing was applied");
        }
        node.set_block_tags(nine, five).unwrap();
        let moments: Vec<_> = node.moments().iter().rev().take(2).collect();
        assert_eq!((number(moments[1].safe), moments[1].finalized), (Some(9), None));
        node.set_block_tags(five, B256::zero()).unwrap();
        assert_eq!((number(node.safe()), number(node.finalized())), (Some(5), Some(5)));
    }

    #[test]
    fn a_write_off_the_finalized_block_moves_the_head_and_is_an_error_from_then_on() {
        let mut node = grown(Generation::C, 10);
        let nine = node.at(9).unwrap().hash();
        node.set_block_tags(nine, nine).unwrap();
        let other = on(&node, 6, SafeL2Data { timestamp: 1_013, ..SafeL2Data::empty(7) });
        let error = node.new_safe_l2_block(&other).unwrap_err();
        assert_eq!((error.code, node.head().number()), (-32005, 7));
        assert_eq!(node.new_safe_l2_block(&SafeL2Data::empty(8)).unwrap_err().code, -32005);
        assert_eq!(node.head().number(), 8);
    }

    #[test]
    fn a_kill_leaves_nothing_above_and_only_the_safe_tag_of_the_last_write() {
        let mut node = grown(Generation::C, 10);
        let (ten, six) = (node.at(10).unwrap().hash(), node.at(6).unwrap().hash());
        node.set_block_tags(six, six).unwrap();
        let mut killed = node.clone();
        killed.kill(8);
        assert_eq!((killed.head().number(), killed.at(9), killed.by_hash(ten)), (8, None, None));
        assert_eq!((killed.safe(), killed.finalized()), (None, None), "safe was stored at 10, which is gone");
        node.restart();
        assert_eq!((node.head().number(), number(node.safe()), node.finalized()), (10, Some(10), None));
    }

    #[test]
    fn it_checks_what_it_is_given() {
        let base = grown(Generation::C, 5);
        let refused = [
            (SafeL2Data { timestamp: 1_009, ..SafeL2Data::empty(6) }, -32004),
            (SafeL2Data { gas_limit: 29_000_000, ..SafeL2Data::empty(6) }, -32004),
            (SafeL2Data { base_fee: Some(20_000_000_000_u64.into()), ..SafeL2Data::empty(6) }, -32004),
            (SafeL2Data { transactions: vec![vec![0x55, 0xc0].into()], ..SafeL2Data::empty(6) }, -32003),
            (SafeL2Data::empty(9), -32001),
            (SafeL2Data { parent_hash: Some(B256::repeat_byte(1)), ..SafeL2Data::empty(6) }, -32099),
        ];
        for (block, code) in refused {
            let mut node = base.clone();
            assert_eq!(node.new_safe_l2_block(&block).unwrap_err().code, code, "{block:?}");
            assert_eq!(node.head().number(), 5);
        }
        let mut node = base.clone();
        node.moods.clock = Some(1_011);
        assert!(node.new_safe_l2_block(&SafeL2Data::empty(6)).unwrap_err().message.contains("future"));
        // Without a base fee it takes its own, and what was judged invalid once stays so.
        let made = base.clone().new_safe_l2_block(&SafeL2Data { base_fee: None, ..SafeL2Data::empty(6) }).unwrap();
        assert_eq!(made.header.base_fee, 1_000_000.into());
        let mut node = base;
        node.judge_invalid(made.hash());
        assert_eq!(node.new_safe_l2_block(&SafeL2Data::empty(6)).unwrap_err().code, -32004);
    }

    #[test]
    fn the_older_generations_make_other_blocks_than_they_are_asked_for() {
        let genesis = || Node::new(53077, StoredBlock::genesis(1_000, made_up("genesis", 1)));
        let mut sequencer = Sequencer::new(genesis(), 7, 2);
        let wanted = sequencer.build(&BlockPlan { txs: 2, ..BlockPlan::default() }, &[]).unwrap();
        let foreign = sequencer.transaction(None, 10);
        for generation in GENERATIONS {
            let mut node = node(generation);
            node.moods.pool = vec![foreign.clone()];
            let data = SafeL2Data { parent_hash: None, ..SafeL2Data::from(&wanted.as_new_block()) };
            let made = node.new_safe_l2_block(&data).unwrap();
            let exact = generation == Generation::C;
            assert_eq!((made.hash() == wanted.hash(), made.transactions.len()), (exact, if exact { 2 } else { 3 }));
            // The same transactions once more cannot be applied: skipped in silence, or refused.
            node.moods.pool.clear();
            let again = SafeL2Data { number: 2, timestamp: 1_010, ..data };
            match node.new_safe_l2_block(&again) {
                Ok(made) => assert_eq!((generation, made.transactions.len()), (Generation::A, 0)),
                Err(error) => {
                    assert!(error.message.contains("invalid supplied transaction"), "{generation:?}: {error:?}")
                }
            }
        }
    }
}
