//! Transactions in their EIP-2718 binary form: how long one is, of which type, and how it comes out of a node's JSON.
//!
//! Nothing here judges a transaction: signatures, fees and nonces are the execution node's matter. A transaction
//! rebuilt from JSON is right if and only if keccak256 of it is the stated hash, so that alone is checked.
//! protocol.md, sections 3, 5, 6.

use std::fmt;

use bytes::Bytes;
use serde_json::Value;

use super::json::{self, FieldError};
use super::rlp::{self, List, RlpError};
use crate::types::{Address, B256, L1_MESSAGE_TYPE, L1Message, QueueIndex, RawTx, U256, keccak};

/// First byte of a MorphTx.
const MORPH_TYPE: u8 = 0x7f;

/// Why bytes or JSON are not a transaction that can be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// No byte is left.
    #[error("the payload ends where a transaction must begin")]
    Empty,
    /// A zero byte: the payload's end.
    #[error("zero padding where a transaction must begin")]
    EndOfPayload,
    /// A type that this program does not know.
    #[error("unknown transaction type {0:#04x}")]
    UnknownType(u64),
    /// A MorphTx of a version that this program does not know.
    #[error("unknown MorphTx version {0}")]
    UnknownVersion(u64),
    /// A list too short to hold a signed transaction, or no list at all.
    #[error("byte {0:#04x} cannot begin the fields of a signed transaction")]
    NotSigned(u8),
    /// The field list is malformed or longer than what is left.
    #[error(transparent)]
    Rlp(#[from] RlpError),
    /// A JSON field is missing or unreadable.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// What was rebuilt is not the transaction that the node names.
    #[error("rebuilt transaction hashes to {actual:?}, the node says {expected:?}")]
    Hash {
        /// The node's hash.
        expected: B256,
        /// keccak256 of the rebuilt bytes.
        actual: B256,
    },
    /// Not an L1 message.
    #[error("not an L1 message")]
    NotL1Message,
}

/// The types of transactions that blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TxKind {
    /// No type byte.
    Legacy,
    /// 0x01, EIP-2930.
    AccessList,
    /// 0x02, EIP-1559.
    DynamicFee,
    /// 0x04, EIP-7702.
    SetCode,
    /// 0x7e, from the L1 queue.
    L1Message,
    /// 0x7f, with a fee token.
    Morph,
}

impl TxKind {
    /// `legacy`, or the type byte in hex.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::AccessList => "0x01",
            Self::DynamicFee => "0x02",
            Self::SetCode => "0x04",
            Self::L1Message => "0x7e",
            Self::Morph => "0x7f",
        }
    }
}

impl fmt::Display for TxKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The type of `raw` by its first byte; none for an unknown type.
pub fn kind(raw: &[u8]) -> Option<TxKind> {
    match *raw.first()? {
        0x01 => Some(TxKind::AccessList),
        0x02 => Some(TxKind::DynamicFee),
        0x04 => Some(TxKind::SetCode),
        L1_MESSAGE_TYPE => Some(TxKind::L1Message),
        MORPH_TYPE => Some(TxKind::Morph),
        0xc0..=0xff => Some(TxKind::Legacy),
        _ => None,
    }
}

/// Bytes of the transaction that stands at the start of `bytes` inside a payload; at most `bytes.len()`.
///
/// Only the head of its field list is read. A list of 55 bytes or less cannot hold a signed transaction and is
/// refused; that also bounds how many transactions a payload can claim to hold.
pub fn length(bytes: &[u8]) -> Result<usize, TransactionError> {
    let list = match *bytes {
        [] => return Err(TransactionError::Empty),
        [0x00, ..] => return Err(TransactionError::EndOfPayload),
        [MORPH_TYPE, 0x01, ref list @ ..] => list,
        [0x01 | 0x02 | 0x04 | MORPH_TYPE, ref list @ ..] => list,
        [0xf8..=0xff, ..] => bytes,
        [first @ 0xc0..=0xf7, ..] => return Err(TransactionError::NotSigned(first)),
        [first, ..] => return Err(TransactionError::UnknownType(u64::from(first))),
    };
    match list.first() {
        None => return Err(TransactionError::Empty),
        Some(0xf8..=0xff) => {}
        Some(first) => return Err(TransactionError::NotSigned(*first)),
    }
    let (_, rest) = rlp::split(list)?;
    Ok(bytes.len().saturating_sub(rest.len()))
}

/// The raw transaction that a node's JSON object describes; its keccak256 is the object's `hash`.
///
/// [`TransactionError::UnknownType`] and [`TransactionError::UnknownVersion`] say that only the node itself can give
/// the bytes (`eth_getRawTransactionByHash`). `gasPrice` is read for legacy and 0x01 only: elsewhere it is the
/// effective price of the mined transaction and not part of it.
pub fn from_json(tx: &Value) -> Result<RawTx, TransactionError> {
    let expected = json::required(tx, "hash", json::hash)?;
    let raw = match json::optional(tx, "type", json::number)?.unwrap_or(0) {
        0x00 => legacy(tx)?,
        0x01 => access_list(tx)?,
        0x02 => dynamic_fee(tx)?,
        0x04 => set_code(tx)?,
        0x7e => l1_message(tx)?,
        0x7f => morph(tx)?,
        unknown => return Err(TransactionError::UnknownType(unknown)),
    };
    let actual = keccak(&raw);
    if actual != expected {
        return Err(TransactionError::Hash { expected, actual });
    }
    Ok(RawTx::from(raw))
}

fn legacy(tx: &Value) -> Result<Vec<u8>, TransactionError> {
    let mut list = List::new();
    list.u256(json::required(tx, "nonce", json::quantity)?);
    list.u256(json::required(tx, "gasPrice", json::quantity)?);
    push_call(&mut list, tx)?;
    push_signature(&mut list, tx)?;
    Ok(list.encode())
}

fn access_list(tx: &Value) -> Result<Vec<u8>, TransactionError> {
    let mut list = List::new();
    list.u256(json::required(tx, "chainId", json::quantity)?);
    list.u256(json::required(tx, "nonce", json::quantity)?);
    list.u256(json::required(tx, "gasPrice", json::quantity)?);
    push_call(&mut list, tx)?;
    push_access_list(&mut list, tx)?;
    push_signature(&mut list, tx)?;
    Ok(list.encode_after(&[0x01]))
}

fn dynamic_fee(tx: &Value) -> Result<Vec<u8>, TransactionError> {
    let mut list = List::new();
    push_fee_market(&mut list, tx)?;
    push_signature(&mut list, tx)?;
    Ok(list.encode_after(&[0x02]))
}

fn set_code(tx: &Value) -> Result<Vec<u8>, TransactionError> {
    let mut list = List::new();
    push_fee_market(&mut list, tx)?;
    let mut authorizations = List::new();
    for authorization in array(tx, "authorizationList")? {
        let mut fields = List::new();
        fields.u256(json::required(authorization, "chainId", json::quantity)?);
        fields.bytes(json::required(authorization, "address", json::address)?.as_bytes());
        fields.u256(json::required(authorization, "nonce", json::quantity)?);
        push_signature(&mut fields, authorization)?;
        authorizations.list(&fields);
    }
    list.list(&authorizations);
    push_signature(&mut list, tx)?;
    Ok(list.encode_after(&[0x04]))
}

fn morph(tx: &Value) -> Result<Vec<u8>, TransactionError> {
    let version = json::optional(tx, "version", json::number)?.unwrap_or(0);
    if version > 1 {
        return Err(TransactionError::UnknownVersion(version));
    }
    let mut list = List::new();
    push_fee_market(&mut list, tx)?;
    list.u256(json::required(tx, "feeTokenID", json::quantity)?);
    list.u256(json::optional(tx, "feeLimit", json::quantity)?.unwrap_or_default());
    if version == 0 {
        push_signature(&mut list, tx)?;
        return Ok(list.encode_after(&[MORPH_TYPE]));
    }
    list.bytes(&json::optional(tx, "reference", json::bytes)?.unwrap_or_default());
    list.bytes(&json::optional(tx, "memo", json::bytes)?.unwrap_or_default());
    push_signature(&mut list, tx)?;
    Ok(list.encode_after(&[MORPH_TYPE, 0x01]))
}

fn l1_message(tx: &Value) -> Result<Vec<u8>, TransactionError> {
    let sender = match json::optional(tx, "sender", json::address)? {
        Some(sender) => sender,
        None => json::required(tx, "from", json::address)?,
    };
    Ok(encode_fields(&L1MessageFields {
        queue_index: json::required(tx, "queueIndex", json::number)?,
        gas_limit: json::required(tx, "gas", json::quantity)?,
        to: json::required(tx, "to", json::address)?,
        value: json::required(tx, "value", json::quantity)?,
        data: json::required(tx, "input", json::bytes)?.into(),
        sender,
    }))
}

/// chainId up to and with the access list, as types 0x02, 0x04 and 0x7f begin.
fn push_fee_market(list: &mut List, tx: &Value) -> Result<(), TransactionError> {
    list.u256(json::required(tx, "chainId", json::quantity)?);
    list.u256(json::required(tx, "nonce", json::quantity)?);
    list.u256(json::required(tx, "maxPriorityFeePerGas", json::quantity)?);
    list.u256(json::required(tx, "maxFeePerGas", json::quantity)?);
    push_call(list, tx)?;
    push_access_list(list, tx)
}

/// gas, to, value, data.
fn push_call(list: &mut List, tx: &Value) -> Result<(), TransactionError> {
    list.u256(json::required(tx, "gas", json::quantity)?);
    match json::optional(tx, "to", json::address)? {
        Some(to) => list.bytes(to.as_bytes()),
        None => list.bytes(&[]),
    };
    list.u256(json::required(tx, "value", json::quantity)?);
    list.bytes(&json::required(tx, "input", json::bytes)?);
    Ok(())
}

fn push_access_list(list: &mut List, tx: &Value) -> Result<(), TransactionError> {
    let mut accesses = List::new();
    for access in array(tx, "accessList")? {
        let mut keys = List::new();
        for key in array(access, "storageKeys")? {
            let key = json::hash(key).ok_or(FieldError::Malformed("storageKeys"))?;
            keys.bytes(key.as_bytes());
        }
        let mut fields = List::new();
        fields.bytes(json::required(access, "address", json::address)?.as_bytes()).list(&keys);
        accesses.list(&fields);
    }
    list.list(&accesses);
    Ok(())
}

/// v, r, s. Some nodes give only `yParity`, some only `v`; where both are, they agree or the hash will not.
fn push_signature(list: &mut List, tx: &Value) -> Result<(), TransactionError> {
    let v = match json::optional(tx, "v", json::quantity)? {
        Some(v) => v,
        None => json::required(tx, "yParity", json::quantity)?,
    };
    list.u256(v);
    list.u256(json::required(tx, "r", json::quantity)?);
    list.u256(json::required(tx, "s", json::quantity)?);
    Ok(())
}

/// A JSON array; absent and null are empty.
fn array<'a>(object: &'a Value, name: &'static str) -> Result<&'a [Value], FieldError> {
    match json::field(object, name) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(FieldError::Malformed(name)),
    }
}

/// What an L1 message says (protocol.md, section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L1MessageFields {
    /// Place in the queue.
    pub queue_index: u64,
    /// Gas that it may use on L2.
    pub gas_limit: U256,
    /// Called address.
    pub to: Address,
    /// Value in wei.
    pub value: U256,
    /// Calldata.
    pub data: Bytes,
    /// Caller on L2 (aliased where it is a contract).
    pub sender: Address,
}

fn encode_fields(fields: &L1MessageFields) -> Vec<u8> {
    let mut list = List::new();
    list.u64(fields.queue_index).u256(fields.gas_limit).bytes(fields.to.as_bytes());
    list.u256(fields.value).bytes(&fields.data).bytes(fields.sender.as_bytes());
    list.encode_after(&[L1_MESSAGE_TYPE])
}

/// The message's binary form with its place and hash.
pub fn encode_l1_message(fields: &L1MessageFields) -> L1Message {
    let raw = encode_fields(fields);
    L1Message { index: QueueIndex::new(fields.queue_index), hash: keccak(&raw), raw: RawTx::from(raw) }
}

/// The fields of an L1 message's binary form.
pub fn decode_l1_message(raw: &[u8]) -> Result<L1MessageFields, TransactionError> {
    let Some((&L1_MESSAGE_TYPE, list)) = raw.split_first() else { return Err(TransactionError::NotL1Message) };
    let mut items = rlp::only(list)?.items()?;
    let fields = L1MessageFields {
        queue_index: items.need()?.u64()?,
        gas_limit: items.need()?.u256()?,
        to: items.need()?.address()?,
        value: items.need()?.u256()?,
        data: Bytes::copy_from_slice(items.need()?.bytes()?),
        sender: items.need()?.address()?,
    };
    items.end()?;
    Ok(fields)
}

/// Place in the queue of an L1 message's binary form. Only its first field is read.
pub fn queue_index(raw: &[u8]) -> Result<QueueIndex, TransactionError> {
    let Some((&L1_MESSAGE_TYPE, list)) = raw.split_first() else { return Err(TransactionError::NotL1Message) };
    let index = rlp::only(list)?.items()?.need()?.u64()?;
    Ok(QueueIndex::new(index))
}
