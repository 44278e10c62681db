//! The payload of a batch: block contexts, then L2 transactions (protocol.md, section 3).
//!
//! Here it is taken apart and put together. Whether its numbers follow the parent's, end where calldata says and
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
    /// A transaction is missing or malformed.
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

/// Where the block contexts of a batch are.
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

/// The context at the head of `bytes`; none if there are fewer than 60.
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

/// How many block contexts are at the head of `payload`, as far as their numbers show: the length of the run of
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::rlp::RlpError;

    fn context(number: u64, txs: u16, l1_messages: u16) -> BlockContext {
        BlockContext {
            number: L2Number::new(number),
            timestamp: 1_700_000_000,
            base_fee: U256::from(1_000_000),
            gas_limit: 30_000_000,
            txs,
            l1_messages,
        }
    }

    /// A typed transaction of 60 bytes without meaning.
    fn tx(kind: u8, fill: u8) -> RawTx {
        let mut raw = vec![kind, 0xf8, 57];
        raw.extend([fill; 57]);
        RawTx::from(raw)
    }

    fn decode_list(bytes: &[u8], layout: Layout<'_>) -> Result<Payload, PayloadError> {
        decode(Bytes::copy_from_slice(bytes), layout)
    }

    #[test]
    fn f4_f6_f9_lies_about_counts_and_lengths() {
        let good = encode([(&context(7, 3, 1), &[tx(2, 1), tx(0x7f, 2)][..]), (&context(8, 0, 0), &[][..])]);
        let block = L2Number::new(7);
        let mut too_many_messages = good.clone();
        too_many_messages[58..60].copy_from_slice(&4_u16.to_be_bytes());
        let mut unknown = good.clone();
        unknown[120] = 0x03;
        let mut long = good.clone();
        long[182] = 0xff;
        let mut padded = good.clone();
        padded.extend([0; 9]);
        padded[57] = 4;
        let transaction = |place, source| PayloadError::Transaction { block, place, source };

        for (bytes, count, expected) in [
            (&good[..], 0, PayloadError::NoBlocks),
            (&good[..], 5, PayloadError::ContextsBeyondEnd { claimed: 5, bytes: good.len() }),
            (&good[..], u64::MAX, PayloadError::ContextsBeyondEnd { claimed: u64::MAX, bytes: good.len() }),
            (&too_many_messages, 2, PayloadError::Counts { block, txs: 3, l1_messages: 4 }),
            (&unknown, 2, transaction(0, TransactionError::UnknownType(3))),
            (&long, 2, transaction(1, TransactionError::Rlp(RlpError::BeyondEnd { declared: 0xff, left: 57 }))),
            (&good[..180], 2, transaction(1, TransactionError::Empty)),
            (&padded, 2, transaction(2, TransactionError::EndOfPayload)),
        ] {
            assert_eq!(decode_list(bytes, Layout::Contexts(count)).unwrap_err(), expected);
        }

        padded[57] = 3;
        let payload = decode_list(&padded, Layout::Contexts(2)).unwrap();
        assert_eq!(payload.trailing, 9);
        assert_eq!(payload.blocks[0].transactions, [tx(2, 1), tx(0x7f, 2)]);
        assert_eq!(decode_list(&[], Layout::Calldata(&[])).unwrap_err(), PayloadError::NoBlocks);
        assert_eq!(decode_context(&good[..59]).unwrap_err(), PayloadError::ContextLength(59));
    }

    #[test]
    fn contexts_are_counted_by_their_numbers() {
        let blocks: Vec<_> = (5..9).map(|number| context(number, 1, 0)).collect();
        let txs = [tx(2, 7)];
        let payload = encode(blocks.iter().map(|context| (context, &txs[..])));
        assert_eq!(count_contexts(&payload), 4);
        assert_eq!(count_contexts(&payload[..100]), 1);
        assert_eq!(count_contexts(&[]), 0);
        assert_eq!(count_contexts(&encode([(&context(u64::MAX, 0, 0), &[][..]), (&context(0, 0, 0), &[][..])])), 1);
        let decoded = decode_list(&payload, Layout::Contexts(4)).unwrap();
        assert_eq!(count_by_kind(&decoded.blocks), BTreeMap::from([(TxKind::DynamicFee, 4)]));
    }

    prop_compose! {
        fn any_block()(
            words: [u64; 3],
            base_fee: [u64; 4],
            l1_messages in 0_u16..500,
            fills in prop::collection::vec((prop::sample::select(vec![1_u8, 2, 4, 0x7f]), 2_u8..), 0..5),
        ) -> (BlockContext, Vec<RawTx>) {
            let transactions: Vec<_> = fills.into_iter().map(|(kind, fill)| tx(kind, fill)).collect();
            let context = BlockContext {
                number: L2Number::new(words[0]),
                timestamp: words[1],
                base_fee: U256(base_fee),
                gas_limit: words[2],
                txs: l1_messages + u16::try_from(transactions.len()).unwrap(),
                l1_messages,
            };
            (context, transactions)
        }
    }

    proptest! {
        #[test]
        fn both_layouts_round_trip(blocks in prop::collection::vec(any_block(), 1..6), padding in 0_usize..40) {
            let contexts: Vec<_> = blocks.iter().map(|(context, _)| *context).collect();
            let mut bytes = encode(blocks.iter().map(|(context, txs)| (context, &txs[..])));
            bytes.resize(bytes.len() + padding, 0);
            let expected = Payload {
                blocks: blocks.into_iter().map(|(context, transactions)| BlockContent { context, transactions }).collect(),
                trailing: padding,
            };
            let today = decode_list(&bytes, Layout::Contexts(contexts.len() as u64)).unwrap();
            prop_assert_eq!(&today, &expected);
            let older = decode_list(&bytes[60 * contexts.len()..], Layout::Calldata(&contexts)).unwrap();
            prop_assert_eq!(&older, &expected);
        }

        #[test]
        fn p7_f9_any_payload_is_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            count in 0_u64..8,
            context in any_block(),
        ) {
            let _ = decode_list(&bytes, Layout::Contexts(count));
            let _ = decode_list(&bytes, Layout::Calldata(&[context.0]));
            let _ = count_contexts(&bytes);
        }

        #[test]
        fn p7_f9_a_cut_payload_is_an_error(blocks in prop::collection::vec(any_block(), 1..4), cut in 1_usize..60) {
            let bytes = encode(blocks.iter().map(|(context, txs)| (context, &txs[..])));
            let cut = bytes.len() - cut.min(bytes.len());
            prop_assert!(decode_list(&bytes[..cut], Layout::Contexts(blocks.len() as u64)).is_err());
        }
    }
}
