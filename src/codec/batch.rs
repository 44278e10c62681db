//! A batch's bytes, both ways: blocks → payload → frame → blobs → versioned hashes, and back.
//!
//! Composed here from `payload`, `frame` and `blob`; all code that opens or closes a batch calls this file. Not decided
//! here: whether the blocks are those that calldata and the chain before the batch demand (`decide/content`).

use bytes::Bytes;

use super::blob::{self, BlobError};
use super::frame::{self, FrameError};
use super::payload::{self, CONTEXT_BYTES, Layout, Payload, PayloadError};
use crate::types::{B256, Blob, BlockContent, BlockContext, L2Block, L2Number, RawTx, is_l1_message, keccak};

/// Why blobs do not open, or a payload does not close.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The blobs are malformed, too many, or missing.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The frame is malformed, or the payload cannot be compressed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The payload is malformed.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The payload begins above the last block of the batch.
    #[error("the payload begins with block {first}, which lies above block {last}")]
    BeginsAbove {
        /// Number in the payload's first block context.
        first: L2Number,
        /// The batch's last block.
        last: L2Number,
    },
}

/// How many block contexts a payload holds, as far as the caller knows.
#[derive(Clone, Copy, Debug)]
pub enum Contexts<'a> {
    /// None: calldata holds them (the two older forms).
    Calldata(&'a [BlockContext]),
    /// This many.
    Count(u64),
    /// From the number in the first one up to this block.
    UpTo(L2Number),
    /// As many as have consecutive numbers.
    Consecutive,
}

/// The payload that `blobs` hold, in their order.
///
/// # Errors
/// Malformed blobs or frame, or a frame that declares more than [`frame::MAX_PAYLOAD`] bytes.
pub fn payload_of(blobs: &[Blob]) -> Result<frame::Decoded, BatchError> {
    let data = blob::unpack(blobs)?;
    Ok(frame::decode(&data, frame::MAX_PAYLOAD)?)
}

/// The number of the payload's first block, by its first context.
///
/// # Errors
/// A payload that is shorter than one context.
pub fn first_block(payload: &[u8]) -> Result<L2Number, BatchError> {
    let head = payload.get(..CONTEXT_BYTES).ok_or(PayloadError::ContextLength(payload.len()))?;
    Ok(payload::decode_context(head)?.number)
}

/// Takes a payload apart. The transactions share its allocation.
///
/// # Errors
/// A payload that is not contexts and then transactions.
pub fn open(payload: Bytes, contexts: Contexts<'_>) -> Result<Payload, BatchError> {
    let layout = match contexts {
        Contexts::Calldata(contexts) => Layout::Calldata(contexts),
        Contexts::Count(count) => Layout::Contexts(count),
        Contexts::Consecutive => Layout::Contexts(u64::try_from(payload::count_contexts(&payload)).unwrap_or(u64::MAX)),
        Contexts::UpTo(last) => {
            let first = first_block(&payload)?;
            if last < first {
                return Err(BatchError::BeginsAbove { first, last });
            }
            Layout::Contexts(last.above(first).saturating_add(1))
        }
    };
    Ok(payload::decode(payload, layout)?)
}

/// Local blocks as a batch would describe them; none if their L1 messages are not the queue's `message_hashes`, in
/// order and in front of all L2 transactions, or if a block has more transactions than a context can count.
pub fn contents_of(local: &[L2Block], message_hashes: &[B256]) -> Option<Vec<BlockContent>> {
    let mut queue = message_hashes.iter();
    let mut contents = Vec::with_capacity(local.len());
    for block in local {
        let l1_messages = block.transactions.iter().take_while(|raw| is_l1_message(raw)).count();
        for raw in block.transactions.iter().take(l1_messages) {
            if queue.next() != Some(&keccak(raw)) {
                return None;
            }
        }
        let transactions: Vec<RawTx> = block.transactions.iter().skip(l1_messages).cloned().collect();
        if transactions.iter().any(|raw| is_l1_message(raw)) {
            return None;
        }
        let header = &block.header;
        let context = BlockContext {
            number: header.number,
            timestamp: header.timestamp,
            base_fee: header.base_fee,
            gas_limit: header.gas_limit,
            txs: u16::try_from(block.transactions.len()).ok()?,
            l1_messages: u16::try_from(l1_messages).ok()?,
        };
        contents.push(BlockContent { context, transactions });
    }
    queue.next().is_none().then_some(contents)
}

/// The payload of `contents`: today's form, or, with the contexts in calldata, the transactions alone.
pub fn encode(contents: &[BlockContent], contexts_in_calldata: bool) -> Vec<u8> {
    if contexts_in_calldata {
        return contents.iter().flat_map(|c| &c.transactions).flat_map(|raw| raw.iter().copied()).collect();
    }
    payload::encode(contents.iter().map(|c| (&c.context, c.transactions.as_slice())))
}

/// A payload as the sequencer commits to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The compressed payload.
    pub frame: frame::Frame,
    /// The blobs that carry the frame.
    pub blobs: Vec<Blob>,
}

/// Compresses `payload` as the sequencer does and packs it into blobs.
///
/// # Errors
/// An empty payload, or one that is too large for the blobs of one transaction.
pub fn close(payload: &[u8]) -> Result<Closed, BatchError> {
    let frame = frame::encode(payload)?;
    let blobs = blob::pack(&frame.bytes)?;
    Ok(Closed { frame, blobs })
}

/// The blobs that `contents` give; none if they cannot be encoded, or if `calldata`, the block contexts of the two older
/// forms, are not theirs. Contexts in calldata and no transaction give no blob.
///
/// Costs a compression: not for an async thread.
pub fn rebuilt(contents: &[BlockContent], calldata: Option<&[BlockContext]>) -> Option<Vec<Blob>> {
    if calldata.is_some_and(|contexts| !contexts.iter().eq(contents.iter().map(|c| &c.context))) {
        return None;
    }
    let payload = encode(contents, calldata.is_some());
    if calldata.is_some() && payload.is_empty() {
        return Some(Vec::new());
    }
    close(&payload).ok().map(|closed| closed.blobs)
}

/// Whether `blobs` have the versioned hashes `wanted`, in this order.
///
/// Costs a commitment for each blob: not for an async thread.
pub fn have_hashes(blobs: &[Blob], wanted: &[B256]) -> bool {
    blobs.len() == wanted.len()
        && blobs.iter().zip(wanted).all(|(blob, hash)| blob::blob_hash(blob).is_ok_and(|ours| ours == *hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{L2Header, U256};

    fn hashes_equal(contents: &[BlockContent], calldata: Option<&[BlockContext]>, wanted: &[B256]) -> bool {
        rebuilt(contents, calldata).is_some_and(|blobs| have_hashes(&blobs, wanted))
    }

    fn header(number: u64) -> L2Header {
        L2Header {
            number: number.into(),
            hash: B256::repeat_byte(number as u8),
            parent_hash: B256::repeat_byte(number as u8 - 1),
            state_root: B256::repeat_byte(9),
            timestamp: 1_000 + number,
            base_fee: U256::from(7),
            gas_limit: 30_000_000,
            transactions_root: B256::zero(),
            next_l1_index: None,
        }
    }

    /// A legacy transaction's list, long enough to be one.
    fn transaction(seed: u8) -> RawTx {
        let mut raw = vec![0xf8, 0x60];
        raw.extend_from_slice(&[seed; 0x60]);
        raw.into()
    }

    fn message(seed: u8) -> RawTx {
        vec![0x7e, 0xc1, seed].into()
    }

    fn block(number: u64, transactions: Vec<RawTx>) -> L2Block {
        L2Block { header: header(number), transactions }
    }

    fn local() -> Vec<L2Block> {
        vec![
            block(5, vec![message(1), message(2), transaction(3)]),
            block(6, vec![]),
            block(7, vec![message(4), transaction(5), transaction(6)]),
        ]
    }

    fn queue() -> Vec<B256> {
        [1, 2, 4].map(|seed| keccak(&message(seed))).to_vec()
    }

    fn hashes(blobs: &[Blob]) -> Vec<B256> {
        blobs.iter().map(|blob| blob::blob_hash(blob).unwrap()).collect()
    }

    #[test]
    fn local_blocks_come_back_from_their_own_blobs() {
        let contents = contents_of(&local(), &queue()).unwrap();
        let payload = encode(&contents, false);
        let closed = close(&payload).unwrap();
        let decoded = payload_of(&closed.blobs).unwrap();
        assert_eq!((decoded.payload.as_ref(), decoded.frame_bytes), (payload.as_slice(), closed.frame.bytes.len()));
        assert_eq!(first_block(&payload).unwrap().get(), 5);
        for contexts in [Contexts::Count(3), Contexts::UpTo(7.into()), Contexts::Consecutive] {
            let opened = open(payload.clone().into(), contexts).unwrap();
            assert_eq!((opened.blocks, opened.trailing), (contents.clone(), 0));
        }
        assert!(hashes_equal(&contents, None, &hashes(&closed.blobs)));
    }

    #[test]
    fn contexts_in_calldata_leave_the_transactions_to_the_payload() {
        let contents = contents_of(&local(), &queue()).unwrap();
        let contexts: Vec<_> = contents.iter().map(|c| c.context).collect();
        let payload = encode(&contents, true);
        assert_eq!(payload.len(), 3 * 0x62);
        assert_eq!(open(payload.clone().into(), Contexts::Calldata(&contexts)).unwrap().blocks, contents);
        let wanted = hashes(&close(&payload).unwrap().blobs);
        assert!(hashes_equal(&contents, Some(&contexts), &wanted));
        assert!(!hashes_equal(&contents, Some(&contexts[..2]), &wanted), "a context too few");
        assert!(!hashes_equal(&contents, None, &wanted), "the other form");
        let empty =
            [BlockContent { context: BlockContext { txs: 0, l1_messages: 0, ..contexts[1] }, transactions: vec![] }];
        assert!(hashes_equal(&empty, Some(&[empty[0].context]), &[]), "no transaction needs no blob");
        assert!(!hashes_equal(&empty, Some(&[empty[0].context]), &wanted));
        assert_eq!(rebuilt(&empty, Some(&[empty[0].context])), Some(vec![]));
        assert_eq!(rebuilt(&contents, Some(&contexts)), Some(close(&payload).unwrap().blobs));
        assert_eq!(rebuilt(&contents, Some(&contexts[..2])), None);
        assert_eq!(rebuilt(&[], None), None, "no block at all");
        assert!(!hashes_equal(&contents, Some(&contexts), &[]));
        assert!(!hashes_equal(&empty, None, &[]), "today's form always has a payload");
    }

    #[test]
    fn any_other_content_gives_other_hashes() {
        let contents = contents_of(&local(), &queue()).unwrap();
        let wanted = hashes(&close(&encode(&contents, false)).unwrap().blobs);
        let edits: [fn(&mut Vec<BlockContent>); 6] = [
            |c| c[0].context.timestamp += 1,
            |c| c[1].context.base_fee += U256::one(),
            |c| c[2].context.gas_limit -= 1,
            |c| c[2].transactions.swap(0, 1),
            |c| drop(c.pop()),
            |c| c[0].transactions.clear(),
        ];
        for (at, edit) in edits.iter().enumerate() {
            let mut other = contents.clone();
            edit(&mut other);
            assert!(!hashes_equal(&other, None, &wanted), "edit {at}");
        }
        assert!(!hashes_equal(&contents, None, &[wanted.clone(), wanted].concat()), "a blob too many");
    }

    #[test]
    fn e2_messages_that_are_not_the_queues_are_no_content() {
        type Edit = fn(&mut Vec<L2Block>);
        let table: [(&str, Edit); 5] = [
            ("another message", |l| l[0].transactions[1] = message(9)),
            ("swapped", |l| l[0].transactions.swap(0, 1)),
            ("one missing", |l| drop(l[2].transactions.remove(0))),
            ("one more", |l| l[1].transactions.push(message(7))),
            ("after an L2 transaction", |l| l[2].transactions.swap(0, 1)),
        ];
        for (what, edit) in table {
            let mut other = local();
            edit(&mut other);
            assert_eq!(contents_of(&other, &queue()), None, "{what}");
        }
        let crowded = block(5, vec![transaction(1); 65_536]);
        assert_eq!(contents_of(&[crowded], &[]), None, "more than a context counts");
    }

    #[test]
    fn what_does_not_open_says_why() {
        let payload = encode(&contents_of(&local(), &queue()).unwrap(), false);
        let open = |contexts| open(payload.clone().into(), contexts);
        let (first, last) = (5.into(), 4.into());
        assert_eq!(open(Contexts::UpTo(last)), Err(BatchError::BeginsAbove { first, last }));
        assert!(matches!(open(Contexts::Count(u64::MAX)), Err(BatchError::Payload(_))));
        assert_eq!(first_block(&payload[..59]), Err(BatchError::Payload(PayloadError::ContextLength(59))));
        assert_eq!(payload_of(&[]), Err(BatchError::Blob(BlobError::Empty)));
        assert!(matches!(close(&[]), Err(BatchError::Frame(FrameError::EmptyPayload))));
    }
}
