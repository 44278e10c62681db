//! Results that a real node computed, by content: a simulated node that writes exactly this content gets exactly these
//! results, and simulated ones for any other content.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::block::{Appended, Content, StoredBlock};
use super::headers::Header;
use super::jsonrpc::{parse_data, parse_hash, parse_quantity};
use crate::codec::block::transactions_root;
use crate::types::{B256, L2Block, L2Header, RawTx, U256};

/// Recorded blocks by the hash of what a writer says of them.
#[derive(Debug, Default)]
pub struct Oracle {
    blocks: HashMap<B256, Arc<StoredBlock>>,
    by_number: HashMap<u64, Arc<StoredBlock>>,
}

impl Oracle {
    /// No recorded block.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a recorded block.
    pub fn insert(&mut self, block: StoredBlock) {
        let block = Arc::new(block);
        let content = Content {
            number: block.number(),
            parent: block.header.parent_hash,
            timestamp: block.header.timestamp,
            base_fee: block.header.base_fee,
            gas_limit: block.header.gas_limit,
            transactions: &block.transactions,
        };
        self.blocks.insert(content.key(), Arc::clone(&block));
        self.by_number.insert(block.number(), block);
    }

    /// Adds a recorded block with only the fields that the worker reads, for `replay`. The withdrawal root is none if it was
    /// not recorded; `appended` is the root in the last AppendMessage log up to here, if that was recorded.
    pub fn insert_light(&mut self, block: &L2Block, withdrawal_root: Option<B256>, appended: Option<B256>) {
        let log = |root| Appended { index: 0, message_hash: B256::zero(), root, tx_index: 0, log_index: 0 };
        self.insert(StoredBlock {
            header: L2Header { transactions_root: transactions_root(&block.transactions), ..block.header },
            full: None,
            batch_hash: B256::zero(),
            transactions: block.transactions.clone(),
            withdrawal_root,
            appended: appended.map(log).into_iter().collect(),
            messages_total: 0,
            next_l1_index: 0,
        });
    }

    /// The recorded block with this content.
    pub fn lookup(&self, content: &Content<'_>) -> Option<Arc<StoredBlock>> {
        self.blocks.get(&content.key()).cloned()
    }

    /// The recorded block at this height.
    pub fn at(&self, number: u64) -> Option<Arc<StoredBlock>> {
        self.by_number.get(&number).cloned()
    }

    /// The highest recorded height.
    pub fn last(&self) -> Option<u64> {
        self.by_number.keys().max().copied()
    }

    /// Reads a recorded L2 (`blocks.json`, `raw-transactions.json`, `message-roots.json`, `append-message-logs.json`).
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| -> anyhow::Result<Value> {
            let text = std::fs::read_to_string(dir.join(name)).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
            serde_json::from_str(&text).map_err(|e| anyhow::anyhow!("{name}: {e}"))
        };
        let blocks = read("blocks.json")?;
        let raws = read("raw-transactions.json")?;
        let roots = read("message-roots.json")?;
        let logs = read("append-message-logs.json")?;
        Self::from_json(&blocks, &raws, &roots, &logs).ok_or_else(|| anyhow::anyhow!("recorded L2: malformed"))
    }

    fn from_json(blocks: &Value, raws: &Value, roots: &Value, logs: &Value) -> Option<Self> {
        let mut oracle = Self::new();
        let mut messages_total = 0;
        for block in blocks.as_array()? {
            let full = Header::from_json(block)?;
            let mut transactions = Vec::new();
            for tx in block["transactions"].as_array()? {
                transactions.push(RawTx::from(parse_data(&raws[tx["hash"].as_str()?])?));
            }
            let hash = parse_hash(&block["hash"])?;
            let appended: Vec<Appended> = logs
                .as_array()?
                .iter()
                .filter(|log| parse_hash(&log["blockHash"]) == Some(hash))
                .map(appended_from_json)
                .collect::<Option<_>>()?;
            messages_total += appended.len() as u64;
            oracle.insert(StoredBlock {
                header: full.to_l2(),
                batch_hash: B256::zero(),
                transactions,
                withdrawal_root: parse_hash(&roots[full.number.to_string()]),
                appended,
                messages_total,
                next_l1_index: full.next_l1_index,
                full: Some(full),
            });
        }
        Some(oracle)
    }
}

fn appended_from_json(log: &Value) -> Option<Appended> {
    let topics = log["topics"].as_array()?;
    let index = U256::from_big_endian(parse_hash(topics.get(1)?)?.as_bytes());
    Some(Appended {
        index: index.as_u64(),
        message_hash: parse_hash(topics.get(2)?)?,
        root: parse_hash(topics.get(3)?)?,
        tx_index: parse_quantity(&log["transactionIndex"])?,
        log_index: parse_quantity(&log["logIndex"])?,
    })
}
