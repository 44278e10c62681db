//! The simulated execution node behind the ports, in process, for `replay`.
//!
//! Not decided here: how the node behaves (`node`). An answer is given as the network adapters give it: a tag never set
//! is none, a missing block `NotFound`, lost state `Pruned`, an error of the node `Refused`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::block::StoredBlock;
use super::jsonrpc::RpcError;
use super::node::{Node, SafeL2Data};
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{EngineView, L2Engine, L2Reader, MessageRoot, PortResult, WriteStopped};
use crate::types::{B256, L2Block, L2Header, L2Number, L2Ref, L2Snapshot, NewBlock};

/// A shared simulated node.
#[derive(Clone, Debug)]
pub struct Embedded(Arc<Mutex<Node>>);

fn refused(target: Target, error: &RpcError) -> PortError {
    PortError::new(
        target,
        PortErrorKind::Refused { code: error.code, message: error.message.clone() },
        error.message.clone(),
    )
}

impl Embedded {
    /// Puts `node` behind the ports.
    pub fn new(node: Node) -> Self {
        Self(Arc::new(Mutex::new(node)))
    }

    /// The node itself, to look at it or to bend it.
    pub fn node(&self) -> MutexGuard<'_, Node> {
        // A panic while the lock was held cannot leave a half-made block: `Node` changes its fields last.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl L2Reader for Embedded {
    async fn snapshot(&self) -> PortResult<L2Snapshot> {
        let node = self.node();
        let head = node.head().header;
        Ok(L2Snapshot {
            head: head.l2_ref(),
            head_parent: head.parent_hash,
            head_time: head.timestamp,
            safe: node.safe(),
            finalized: node.finalized(),
            syncing: node.moods.syncing,
        })
    }

    async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>> {
        Ok(self.node().at(number.get()).map(|block| block.header))
    }

    async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        let node = self.node();
        let mut blocks: Vec<L2Block> = Vec::new();
        for number in first.get()..=last.get() {
            let block = node.at(number).ok_or_else(|| {
                PortError::new(Target::L2, PortErrorKind::NotFound, format!("block {number} is missing"))
            })?;
            if blocks.last().is_some_and(|below| below.header.hash != block.header.parent_hash) {
                return Err(PortError::malformed(Target::L2, format!("block {number} does not follow the one below")));
            }
            blocks.push(L2Block { header: block.header, transactions: block.transactions.clone() });
        }
        Ok(blocks)
    }

    async fn has_states(&self, numbers: &[L2Number]) -> PortResult<Option<Vec<bool>>> {
        let node = self.node();
        let kept = |number: &L2Number| node.at(number.get()).is_some_and(|block| node.has_state(&block));
        Ok(Some(numbers.iter().map(kept).collect()))
    }

    async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot> {
        let node = self.node();
        let found = on_chain(&node, block)?;
        Ok(node.message_root(&found).map_or(MessageRoot::Pruned, MessageRoot::Root))
    }

    async fn last_appended_root(&self, first: L2Number, last: L2Number, tip: L2Ref) -> PortResult<Option<B256>> {
        let node = self.node();
        if node.head().header.number < on_chain(&node, tip)?.header.number {
            let detail = format!("block {} lies above the head", tip.number);
            return Err(PortError::new(Target::L2, PortErrorKind::NotFound, detail));
        }
        Ok(node.last_appended_root(first.get(), last.get()))
    }
}

/// `block`, which must be what the node has at its height. A killed node answers for heights above its head.
fn on_chain(node: &Node, block: L2Ref) -> PortResult<Arc<StoredBlock>> {
    let found = node.at(block.number.get()).filter(|found| found.hash() == block.hash);
    found.ok_or_else(|| {
        let detail = format!("header for hash not found: block {}", block.number);
        PortError::new(Target::L2, PortErrorKind::NotFound, detail)
    })
}

#[async_trait]
impl L2Engine for Embedded {
    async fn view(&self, number: L2Number) -> PortResult<EngineView> {
        let node = self.node();
        let at = node.at(number.get()).map(|block| block.l2_ref());
        Ok(EngineView { chain_id: node.chain_id(), head: node.head().l2_ref(), at, version: None })
    }

    async fn write_blocks(&self, blocks: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped> {
        let mut node = self.node();
        let mut written = Vec::new();
        for block in blocks {
            match node.new_safe_l2_block(&SafeL2Data::from(block)) {
                Ok(block) => written.push(block.header),
                Err(error) => return Err(WriteStopped { written, error: refused(Target::Engine, &error) }),
            }
        }
        Ok(written)
    }

    async fn set_tags(&self, safe: Option<B256>, finalized: Option<B256>) -> PortResult<()> {
        let mut node = self.node();
        let result = node.set_block_tags(safe.unwrap_or_default(), finalized.unwrap_or_default());
        result.map_err(|error| refused(Target::Engine, &error))
    }
}
