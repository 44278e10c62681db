//! Calldata of the Rollup contract: the five forms in which batches were ever committed (protocol.md, section 1).
//!
//! Selectors, argument types and encoding come from `contracts/abi/Rollup.json`. Decoding goes through ABI tokens, not
//! through the generated structs: those cut numbers to their width without a word, and here a number that does not
//! fit is malformed. No argument is an array, so nothing is allocated beyond what the bytes hold: six byte strings,
//! each cut from the input after its length was checked.

use ethers_core::abi::{AbiEncode, AbiType, ParamType, Token, decode};

use super::payload::{CONTEXT_BYTES, decode_context, encode_context};
use crate::types::{B256, BlockContext, L2Number, U256};

/// Bindings made from `contracts/abi/Rollup.json`: call structs, their selectors and argument types.
#[allow(missing_docs, clippy::all, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::todo, clippy::unimplemented)]
#[allow(rust_2018_idioms)]
mod bindings {
    ethers_contract::abigen!(Rollup, "./contracts/abi/Rollup.json");
}

// Two generator traits shape the ABI file: overloads are named after the argument in which they differ, and structs are
// looked up by function and argument name, so the overloads of `commitBatch` name their first argument differently.
use bindings::{
    BatchDataInput, BatchSignatureInput, CommitBatchCall, CommitBatchWithContextsCall as CommitBatchContextsCall,
    CommitBatchWithProofCall, CommitBatchWithSkipBitmapCall as CommitBatchSkipBitmapCall, CommitStateCall,
    ContextsBatchDataInput, SkipBitmapBatchDataInput,
};

/// Why calldata is not that of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalldataError {
    /// Fewer than the selector's four bytes.
    #[error("calldata of {0} bytes holds no selector")]
    TooShort(usize),
    /// None of the five commit functions.
    #[error("unknown selector 0x{}", hex::encode(.0))]
    UnknownSelector([u8; 4]),
    /// An argument is missing, too wide, or points past the end.
    #[error("malformed commit calldata: {what}")]
    Malformed {
        /// The argument.
        what: &'static str,
    },
}

/// The functions that commit a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommitForm {
    /// `commitBatch` with the last block's number: today's.
    CommitBatch,
    /// `commitState`: as today's, without blobs, over a stored blob field.
    CommitState,
    /// `commitBatchWithProof`: as today's, by anybody.
    CommitBatchWithProof,
    /// `commitBatch` with block contexts in calldata: older.
    LegacyContexts,
    /// As before, with a bitmap of skipped L1 messages: oldest.
    LegacySkipBitmap,
}

impl CommitForm {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::CommitBatch,
        Self::CommitState,
        Self::CommitBatchWithProof,
        Self::LegacyContexts,
        Self::LegacySkipBitmap,
    ];

    /// The function's selector.
    pub fn selector(self) -> [u8; 4] {
        use ethers_contract::EthCall;
        match self {
            Self::CommitBatch => CommitBatchCall::selector(),
            Self::CommitState => CommitStateCall::selector(),
            Self::CommitBatchWithProof => CommitBatchWithProofCall::selector(),
            Self::LegacyContexts => CommitBatchContextsCall::selector(),
            Self::LegacySkipBitmap => CommitBatchSkipBitmapCall::selector(),
        }
    }

    /// The function's name, for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CommitBatch => "commitBatch",
            Self::CommitState => "commitState",
            Self::CommitBatchWithProof => "commitBatchWithProof",
            Self::LegacyContexts => "commitBatch (block contexts)",
            Self::LegacySkipBitmap => "commitBatch (block contexts, skip bitmap)",
        }
    }

    /// Whether the block contexts stand in calldata, and the payload holds transactions only.
    pub const fn is_legacy(self) -> bool {
        matches!(self, Self::LegacyContexts | Self::LegacySkipBitmap)
    }

    fn of(selector: [u8; 4]) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.selector() == selector)
    }

    fn param_types(self) -> Vec<ParamType> {
        let call = match self {
            Self::CommitBatch => CommitBatchCall::param_type(),
            Self::CommitState => CommitStateCall::param_type(),
            Self::CommitBatchWithProof => CommitBatchWithProofCall::param_type(),
            Self::LegacyContexts => CommitBatchContextsCall::param_type(),
            Self::LegacySkipBitmap => CommitBatchSkipBitmapCall::param_type(),
        };
        match call {
            ParamType::Tuple(arguments) => arguments,
            single => vec![single],
        }
    }
}

/// What a commit's calldata says. Signature, bitmaps and proof are checked by the contract and not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitCalldata {
    /// Which function.
    pub form: CommitForm,
    /// Header version of the new batch.
    pub version: u8,
    /// The parent's header, encoded.
    pub parent_header: Vec<u8>,
    /// The last L2 block; today's three forms only.
    pub last_block: Option<L2Number>,
    /// L1 messages that the batch consumes; today's three forms only.
    pub num_l1_messages: Option<u16>,
    /// Block contexts; the two older forms only.
    pub contexts: Option<Vec<BlockContext>>,
    /// State root before the batch.
    pub prev_state_root: B256,
    /// State root after the batch.
    pub post_state_root: B256,
    /// Withdrawal root after the batch.
    pub withdrawal_root: B256,
    /// The signature struct's sequencer sets; their keccak256 is in the header.
    pub sequencer_sets: Vec<u8>,
}

impl CommitCalldata {
    /// The batch's last L2 block, in any form; none for an older form without contexts.
    pub fn last_block_number(&self) -> Option<L2Number> {
        self.last_block.or_else(|| Some(self.contexts.as_ref()?.last()?.number))
    }

    /// L1 messages that the batch consumes, in any form.
    pub fn l1_message_count(&self) -> u64 {
        match self.num_l1_messages {
            Some(count) => u64::from(count),
            None => self.contexts.iter().flatten().map(|context| u64::from(context.l1_messages)).sum(),
        }
    }
}

/// Decodes the calldata of any of the five commit functions.
///
/// Bytes after the arguments are tolerated, as the contract does. `num_l1_messages` and numbers that do not fit
/// their Solidity type are malformed.
pub fn decode_commit(input: &[u8]) -> Result<CommitCalldata, CalldataError> {
    let Some((selector, arguments)) = input.split_first_chunk::<4>() else {
        return Err(CalldataError::TooShort(input.len()));
    };
    let form = CommitForm::of(*selector).ok_or(CalldataError::UnknownSelector(*selector))?;
    let tokens = decode(&form.param_types(), arguments).map_err(|_| CalldataError::Malformed { what: "arguments" })?;
    let mut arguments = Fields(tokens.into_iter());
    let mut batch = arguments.tuple("batchDataInput")?;
    let mut signature = arguments.tuple("batchSignatureInput")?;

    let version = u8::try_from(batch.number("version")?).map_err(|_| CalldataError::Malformed { what: "version" })?;
    let parent_header = batch.bytes("parentBatchHeader")?;
    let (mut last_block, mut num_l1_messages, mut contexts) = (None, None, None);
    if form.is_legacy() {
        contexts = Some(decode_contexts(&batch.bytes("blockContexts")?)?);
        if form == CommitForm::LegacySkipBitmap {
            batch.bytes("skippedL1MessageBitmap")?;
        }
    } else {
        last_block = Some(L2Number::new(batch.number("lastBlockNumber")?));
        let count = batch.number("numL1Messages")?;
        let count = u16::try_from(count).map_err(|_| CalldataError::Malformed { what: "numL1Messages" })?;
        num_l1_messages = Some(count);
    }
    Ok(CommitCalldata {
        form,
        version,
        parent_header,
        last_block,
        num_l1_messages,
        contexts,
        prev_state_root: batch.word("prevStateRoot")?,
        post_state_root: batch.word("postStateRoot")?,
        withdrawal_root: batch.word("withdrawalRoot")?,
        sequencer_sets: signature.sequencer_sets()?,
    })
}

/// Calldata that [`decode_commit`] reads `commit` from: no signature, empty bitmaps, no proof.
///
/// Fields that the form does not have are left out; absent ones that it has are zero or empty.
pub fn encode_commit(commit: &CommitCalldata) -> Vec<u8> {
    let today = || BatchDataInput {
        version: commit.version,
        parent_batch_header: commit.parent_header.clone().into(),
        last_block_number: commit.last_block.unwrap_or_default().get(),
        num_l1_messages: commit.num_l1_messages.unwrap_or_default(),
        prev_state_root: commit.prev_state_root.0,
        post_state_root: commit.post_state_root.0,
        withdrawal_root: commit.withdrawal_root.0,
    };
    let signature = BatchSignatureInput {
        signed_sequencers_bitmap: U256::zero(),
        sequencer_sets: commit.sequencer_sets.clone().into(),
        signature: Default::default(),
    };
    match commit.form {
        CommitForm::CommitBatch => {
            CommitBatchCall { batch_data_input: today(), batch_signature_input: signature }.encode()
        }
        CommitForm::CommitState => {
            CommitStateCall { batch_data_input: today(), batch_signature_input: signature }.encode()
        }
        CommitForm::CommitBatchWithProof => CommitBatchWithProofCall {
            batch_data_input: today(),
            batch_signature_input: signature,
            batch_header: Default::default(),
            batch_proof: Default::default(),
        }
        .encode(),
        CommitForm::LegacyContexts => CommitBatchContextsCall {
            contexts: ContextsBatchDataInput {
                version: commit.version,
                parent_batch_header: commit.parent_header.clone().into(),
                block_contexts: encode_contexts(commit.contexts.as_deref().unwrap_or_default()).into(),
                prev_state_root: commit.prev_state_root.0,
                post_state_root: commit.post_state_root.0,
                withdrawal_root: commit.withdrawal_root.0,
            },
            batch_signature_input: signature,
        }
        .encode(),
        CommitForm::LegacySkipBitmap => CommitBatchSkipBitmapCall {
            skip_bitmap: SkipBitmapBatchDataInput {
                version: commit.version,
                parent_batch_header: commit.parent_header.clone().into(),
                block_contexts: encode_contexts(commit.contexts.as_deref().unwrap_or_default()).into(),
                skipped_l1_message_bitmap: Default::default(),
                prev_state_root: commit.prev_state_root.0,
                post_state_root: commit.post_state_root.0,
                withdrawal_root: commit.withdrawal_root.0,
            },
            batch_signature_input: signature,
        }
        .encode(),
    }
}

/// `u16 count ‖ count × 60 bytes`, nothing more.
fn decode_contexts(bytes: &[u8]) -> Result<Vec<BlockContext>, CalldataError> {
    const MALFORMED: CalldataError = CalldataError::Malformed { what: "blockContexts" };
    let (count, contexts) = bytes.split_first_chunk::<2>().ok_or(MALFORMED)?;
    let expected = usize::from(u16::from_be_bytes(*count)).checked_mul(CONTEXT_BYTES);
    if expected != Some(contexts.len()) {
        return Err(MALFORMED);
    }
    contexts.chunks_exact(CONTEXT_BYTES).map(|context| decode_context(context).map_err(|_| MALFORMED)).collect()
}

/// At most 65,535 contexts: the count has two bytes.
fn encode_contexts(contexts: &[BlockContext]) -> Vec<u8> {
    let count = u16::try_from(contexts.len()).unwrap_or(u16::MAX);
    let mut out = count.to_be_bytes().to_vec();
    for context in contexts.iter().take(usize::from(count)) {
        out.extend_from_slice(&encode_context(context));
    }
    out
}

/// The fields of a decoded tuple, taken in order.
struct Fields(std::vec::IntoIter<Token>);

impl Fields {
    fn tuple(&mut self, what: &'static str) -> Result<Self, CalldataError> {
        let token = self.0.next().and_then(Token::into_tuple).ok_or(CalldataError::Malformed { what })?;
        Ok(Self(token.into_iter()))
    }

    fn number(&mut self, what: &'static str) -> Result<u64, CalldataError> {
        let number = self.0.next().and_then(Token::into_uint).ok_or(CalldataError::Malformed { what })?;
        u64::try_from(number).map_err(|_| CalldataError::Malformed { what })
    }

    fn bytes(&mut self, what: &'static str) -> Result<Vec<u8>, CalldataError> {
        self.0.next().and_then(Token::into_bytes).ok_or(CalldataError::Malformed { what })
    }

    fn word(&mut self, what: &'static str) -> Result<B256, CalldataError> {
        let bytes = self.0.next().and_then(Token::into_fixed_bytes).ok_or(CalldataError::Malformed { what })?;
        <[u8; 32]>::try_from(bytes).map(B256).map_err(|_| CalldataError::Malformed { what })
    }

    /// The second field of the signature struct.
    fn sequencer_sets(&mut self) -> Result<Vec<u8>, CalldataError> {
        self.0.next();
        self.bytes("sequencerSets")
    }
}
