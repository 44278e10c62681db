//! The payload of a batch: block contexts, then L2 transactions (protocol.md, section 3).
//!
//! Here it is taken apart and put together. Whether its numbers run on from the parent, end where calldata says and
//! count the L1 messages that calldata counts is decided elsewhere.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::transaction::{self, TransactionError, TxKind};
use crate::types::{BlockContent, BlockContext, L2Number, RawTx, U256};

/// Bytes of one block context.
pub const CONTEXT_BYTES: usize = 60;

/// Why a payload cannot be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// A batch of zero blocks.
    #[error("a batch of zero blocks")]
    NoBlocks,
    /// More block contexts are claimed than the bytes hold.
    #[error("{claimed} block contexts do not fit into {bytes} bytes")]
    ContextsBeyondEnd {
        /// Claimed number of contexts.
        claimed: u64,
        /// Bytes there.
        bytes: usize,
    },
    /// A block context is not 60 bytes long.
    #[error("a block context of {0} bytes")]
    ContextLength(usize),
    /// A block claims more L1 messages than transactions.
    #[error("block {block} claims {l1_messages} L1 messages among {txs} transactions")]
    Counts {
        /// The block.
        block: L2Number,
        /// Claimed transactions.
        txs: u16,
        /// Claimed L1 messages.
        l1_messages: u16,
    },
    /// A transaction is not there or is malformed.
    #[error("block {block}, L2 transaction {place}: {source}")]
    Transaction {
        /// The block.
        block: L2Number,
        /// Place among the block's L2 transactions.
        place: u16,
        /// What is wrong with it.
        source: TransactionError,
    },
}

/// Where the block contexts of a batch stand.
#[derive(Clone, Copy, Debug)]
pub enum Layout<'a> {
    /// At the head of the payload, this many.
    Contexts(u64),
    /// In the calldata of the two older forms; the payload holds transactions only.
    Calldata(&'a [BlockContext]),
}

/// A payload taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The blocks, in order; at least one.
    pub blocks: Vec<BlockContent>,
    /// Bytes after the last transaction.
    pub trailing: usize,
}

/// The 60 bytes of a block context.
pub fn encode_context(context: &BlockContext) -> [u8; CONTEXT_BYTES] {
    let mut base_fee = [0; 32];
    context.base_fee.to_big_endian(&mut base_fee);
    let fields = context
        .number
        .get()
        .to_be_bytes()
        .into_iter()
        .chain(context.timestamp.to_be_bytes())
        .chain(base_fee)
        .chain(context.gas_limit.to_be_bytes())
        .chain(context.txs.to_be_bytes())
        .chain(context.l1_messages.to_be_bytes());
    let mut out = [0; CONTEXT_BYTES];
    for (place, byte) in out.iter_mut().zip(fields) {
        *place = byte;
    }
    out
}

/// A block context from exactly 60 bytes.
pub fn decode_context(bytes: &[u8]) -> Result<BlockContext, PayloadError> {
    if bytes.len() != CONTEXT_BYTES {
        return Err(PayloadError::ContextLength(bytes.len()));
    }
    context_fields(bytes).ok_or(PayloadError::ContextLength(bytes.len()))
}

/// The context at the head of `bytes`; none where there are fewer than 60.
fn context_fields(bytes: &[u8]) -> Option<BlockContext> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let (timestamp, rest) = rest.split_first_chunk::<8>()?;
    let (base_fee, rest) = rest.split_first_chunk::<32>()?;
    let (gas_limit, rest) = rest.split_first_chunk::<8>()?;
    let (txs, rest) = rest.split_first_chunk::<2>()?;
    let l1_messages = rest.first_chunk::<2>()?;
    Some(BlockContext {
        number: L2Number::new(u64::from_be_bytes(*number)),
        timestamp: u64::from_be_bytes(*timestamp),
        base_fee: U256::from_big_endian(base_fee),
        gas_limit: u64::from_be_bytes(*gas_limit),
        txs: u16::from_be_bytes(*txs),
        l1_messages: u16::from_be_bytes(*l1_messages),
    })
}

/// The payload of `blocks` in today's form: the contexts of all, then the L2 transactions of all. L1 messages must
/// not be among the transactions given.
pub fn encode<'a>(blocks: impl IntoIterator<Item = (&'a BlockContext, &'a [RawTx])>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut transactions = Vec::new();
    for (context, txs) in blocks {
        out.extend_from_slice(&encode_context(context));
        for tx in txs {
            transactions.extend_from_slice(tx);
        }
    }
    out.append(&mut transactions);
    out
}

/// Takes a payload apart. The transactions share its allocation.
///
/// Memory beyond the payload itself stays below four times its length: a context takes 60 bytes of it and a
/// transaction more than 56.
pub fn decode(payload: Bytes, layout: Layout<'_>) -> Result<Payload, PayloadError> {
    let (contexts, mut rest) = match layout {
        Layout::Contexts(count) => split_contexts(payload, count)?,
        Layout::Calldata(contexts) => (contexts.to_vec(), payload),
    };
    if contexts.is_empty() {
        return Err(PayloadError::NoBlocks);
    }
    let mut blocks = Vec::with_capacity(contexts.len());
    for context in contexts {
        let transactions = take_transactions(&mut rest, &context)?;
        blocks.push(BlockContent { context, transactions });
    }
    Ok(Payload { blocks, trailing: rest.len() })
}

fn split_contexts(mut payload: Bytes, count: u64) -> Result<(Vec<BlockContext>, Bytes), PayloadError> {
    let beyond = PayloadError::ContextsBeyondEnd { claimed: count, bytes: payload.len() };
    let size = usize::try_from(count).ok().and_then(|count| count.checked_mul(CONTEXT_BYTES));
    let size = size.filter(|size| *size <= payload.len()).ok_or(beyond)?;
    let head = payload.split_to(size);
    let contexts = head.chunks_exact(CONTEXT_BYTES).map(decode_context).collect::<Result<_, _>>()?;
    Ok((contexts, payload))
}

fn take_transactions(rest: &mut Bytes, context: &BlockContext) -> Result<Vec<RawTx>, PayloadError> {
    let BlockContext { number: block, txs, l1_messages, .. } = *context;
    let Some(count) = txs.checked_sub(l1_messages) else {
        return Err(PayloadError::Counts { block, txs, l1_messages });
    };
    // Not reserved by `count`: that is a claim.
    let mut transactions = Vec::new();
    for place in 0..count {
        let length = transaction::length(rest).map_err(|source| PayloadError::Transaction { block, place, source })?;
        transactions.push(rest.split_to(length.min(rest.len())));
    }
    Ok(transactions)
}

/// How many block contexts stand at the head of `payload`, as far as their numbers tell: the length of the run of
/// consecutive numbers. For a look at blobs without their calldata.
pub fn count_contexts(payload: &[u8]) -> usize {
    let mut expected = None;
    payload
        .chunks_exact(CONTEXT_BYTES)
        .map_while(context_fields)
        .take_while(|context| {
            let number = context.number.get();
            let follows = expected.is_none_or(|expected| Some(number) == expected);
            expected = Some(number.checked_add(1));
            follows
        })
        .count()
}

/// The L2 transactions of `blocks` by type; those of unknown type are left out.
pub fn count_by_kind(blocks: &[BlockContent]) -> BTreeMap<TxKind, usize> {
    let mut counts = BTreeMap::new();
    for kind in blocks.iter().flat_map(|block| &block.transactions).filter_map(|tx| transaction::kind(tx)) {
        let count: &mut usize = counts.entry(kind).or_default();
        *count = count.saturating_add(1);
    }
    counts
}
