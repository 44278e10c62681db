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
    #[error("unknown selector 0x{}", const_hex::encode(.0))]
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

    /// Whether the block contexts are in calldata and the payload holds transactions only.
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
/// Bytes after the arguments are tolerated, as the contract does. A number that does not fit its Solidity type is
/// malformed. The bitmap of the oldest form is not kept: the header's hash shows whether it mattered.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::header::BatchHeader;
    use crate::codec::testing::{unhex, vectors};

    fn sample(form: CommitForm) -> CommitCalldata {
        let context = BlockContext {
            number: L2Number::new(9),
            timestamp: 8,
            base_fee: U256::from(7),
            gas_limit: 6,
            txs: 5,
            l1_messages: 4,
        };
        CommitCalldata {
            form,
            version: 1,
            parent_header: vec![3; 257],
            last_block: (!form.is_legacy()).then_some(L2Number::new(9)),
            num_l1_messages: (!form.is_legacy()).then_some(4),
            contexts: form.is_legacy().then(|| vec![context; 2]),
            prev_state_root: B256::repeat_byte(1),
            post_state_root: B256::repeat_byte(2),
            withdrawal_root: B256::repeat_byte(3),
            sequencer_sets: vec![4; 70],
        }
    }

    #[test]
    fn selectors_are_the_contract_s() {
        for (form, selector) in CommitForm::ALL.into_iter().zip([
            [0x42, 0x88, 0x68, 0xb5],
            [0x1e, 0x88, 0x25, 0xbe],
            [0x4e, 0x8f, 0x1d, 0x67],
            [0x4a, 0x8d, 0x54, 0x4f],
            [0xd6, 0x3b, 0x35, 0x49],
        ]) {
            assert_eq!(form.selector(), selector, "{}", form.name());
        }
    }

    #[test]
    fn f2_c11_short_and_unknown_calldata() {
        assert_eq!(decode_commit(&[]), Err(CalldataError::TooShort(0)));
        assert_eq!(decode_commit(&[0x42, 0x88, 0x68]), Err(CalldataError::TooShort(3)));
        let unknown = CalldataError::UnknownSelector([0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(decode_commit(&[0xde, 0xad, 0xbe, 0xef, 1]), Err(unknown));
        assert_eq!(unknown.to_string(), "unknown selector 0xdeadbeef");
        for form in CommitForm::ALL {
            let bare = decode_commit(&form.selector());
            assert_eq!(bare, Err(CalldataError::Malformed { what: "arguments" }));
        }
    }

    /// Numbers wider than their Solidity type are not cut to it.
    #[test]
    fn wide_numbers_are_malformed() {
        // Words after the selector: two offsets, then version, offset of the parent header, last block, L1 messages.
        for (word, what) in [(2, "version"), (4, "lastBlockNumber"), (5, "numL1Messages")] {
            let mut input = encode_commit(&sample(CommitForm::CommitBatch));
            input[4 + 32 * word + 10] = 1;
            assert_eq!(decode_commit(&input), Err(CalldataError::Malformed { what }));
        }
        let mut input = encode_commit(&sample(CommitForm::CommitState));
        input[4 + 32 * 3] = 0xff;
        assert_eq!(decode_commit(&input), Err(CalldataError::Malformed { what: "arguments" }));
    }

    #[test]
    fn f8_contexts_are_exactly_as_many_as_counted() {
        let good = encode_contexts(&sample(CommitForm::LegacyContexts).contexts.unwrap());
        assert_eq!(decode_contexts(&good).unwrap().len(), 2);
        for bad in [&[][..], &[0], &good[..good.len() - 1], &[&good[..], &[0]].concat(), &[0xff; 122]] {
            assert_eq!(decode_contexts(bad), Err(CalldataError::Malformed { what: "blockContexts" }));
        }
        assert_eq!(decode_contexts(&[0, 0]), Ok(vec![]));
    }

    #[test]
    fn f8_c11_recorded_older_forms_decode_and_unknown_selector_is_refused() {
        let vectors = vectors();
        let read = |name: &str| unhex(&std::fs::read_to_string(vectors.join("calldata").join(name)).unwrap());
        for (name, form) in [
            ("legacy-block-contexts.hex", CommitForm::LegacyContexts),
            ("legacy-with-skip-bitmap.hex", CommitForm::LegacySkipBitmap),
        ] {
            let commit = decode_commit(&read(name)).unwrap();
            assert_eq!(commit.form, form);
            let parent = BatchHeader::decode(&commit.parent_header).unwrap();
            assert_eq!(parent.index.get(), 0x8a98);
            // Not asked of the other file: its body is, byte for byte, this one's seven fields under the selector of
            // the six-field form. Its byte strings are found, its roots come out one word off, and no header hash would
            // fit them. The six-field form's roots are held by a round trip, below and in the property test.
            if form == CommitForm::LegacySkipBitmap {
                assert_eq!(parent.post_state_root, commit.prev_state_root);
            }
            let contexts = commit.contexts.as_ref().unwrap();
            assert!(!contexts.is_empty());
            for pair in contexts.windows(2) {
                assert_eq!(pair[1].number, pair[0].number.plus(1));
                assert!(pair[1].timestamp >= pair[0].timestamp);
            }
            assert_eq!(commit.last_block_number(), Some(contexts.last().unwrap().number));
            assert_eq!(decode_commit(&encode_commit(&commit)), Ok(commit));
        }
        let real = decode_commit(&read("legacy-with-skip-bitmap.hex")).unwrap();
        let six_fields = CommitCalldata { form: CommitForm::LegacyContexts, ..real };
        assert_eq!(decode_commit(&encode_commit(&six_fields)), Ok(six_fields));
        let unknown = decode_commit(&read("unknown-selector.hex")).unwrap_err();
        assert_eq!(unknown, CalldataError::UnknownSelector([0x92, 0xf6, 0x5a, 0xf3]));
        assert_eq!(unknown.to_string(), "unknown selector 0x92f65af3");
    }

    prop_compose! {
        fn any_commit()(
            form in prop::sample::select(CommitForm::ALL.to_vec()),
            version: u8,
            parent_header in prop::collection::vec(any::<u8>(), 0..300),
            last_block: u64,
            count: u16,
            contexts in prop::collection::vec(any::<([u64; 3], [u64; 4], u16, u16)>(), 0..5),
            roots: [[u8; 32]; 3],
            sequencer_sets in prop::collection::vec(any::<u8>(), 0..100),
        ) -> CommitCalldata {
            let contexts = contexts.into_iter().map(|(words, base_fee, txs, l1_messages)| BlockContext {
                number: L2Number::new(words[0]),
                timestamp: words[1],
                base_fee: U256(base_fee),
                gas_limit: words[2],
                txs,
                l1_messages,
            });
            let legacy = form.is_legacy();
            CommitCalldata {
                form,
                version,
                parent_header,
                last_block: (!legacy).then_some(L2Number::new(last_block)),
                num_l1_messages: (!legacy).then_some(count),
                contexts: legacy.then(|| contexts.collect()),
                prev_state_root: B256(roots[0]),
                post_state_root: B256(roots[1]),
                withdrawal_root: B256(roots[2]),
                sequencer_sets,
            }
        }
    }

    proptest! {
        #[test]
        fn every_form_round_trips(commit in any_commit()) {
            prop_assert_eq!(decode_commit(&encode_commit(&commit)), Ok(commit));
        }

        #[test]
        fn p7_cut_and_changed_calldata_never_panics(
            commit in any_commit(),
            cut: prop::sample::Index,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut input = encode_commit(&commit);
            let _ = decode_commit(&input[..cut.index(input.len())]);
            for (place, byte) in changes {
                let place = place.index(input.len());
                input[place] = byte;
            }
            let _ = decode_commit(&input);
        }

        #[test]
        fn p7_random_arguments_never_panic(
            form in prop::sample::select(CommitForm::ALL.to_vec()),
            arguments in prop::collection::vec(prop_oneof![4 => Just(0_u8), 1 => any::<u8>()], 0..900),
        ) {
            let _ = decode_commit(&[&form.selector()[..], &arguments].concat());
        }
    }
}
