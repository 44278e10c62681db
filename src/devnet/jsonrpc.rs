//! JSON-RPC as the simulated nodes speak it: error values, hex numbers, block tags. Shared by L1 and L2; no I/O.

use serde_json::{Value, json};

use crate::types::{Address, B256, U256};

/// A JSON-RPC error object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcError {
    /// The code: −32000 for nearly everything, −32601 unknown method, −32602 bad parameters.
    pub code: i64,
    /// The node's own words.
    pub message: String,
}

/// What a simulated method gives back.
pub type RpcResult = Result<Value, RpcError>;

impl RpcError {
    /// Code −32000.
    pub fn server(message: impl Into<String>) -> Self {
        Self { code: -32000, message: message.into() }
    }

    /// Code −32602.
    pub fn params(message: impl Into<String>) -> Self {
        Self { code: -32602, message: message.into() }
    }

    /// Code −32601, in geth's words.
    pub fn no_method(method: &str) -> Self {
        Self { code: -32601, message: format!("the method {method} does not exist/is not available") }
    }

    /// The error object.
    pub fn to_json(&self) -> Value {
        json!({ "code": self.code, "message": self.message })
    }
}

/// `0x`-hex of a number, without leading zeros.
pub fn quantity(number: u64) -> Value {
    Value::String(format!("0x{number:x}"))
}

/// `0x`-hex of a 256 bit number, without leading zeros.
pub fn big(number: U256) -> Value {
    Value::String(format!("0x{number:x}"))
}

/// `0x`-hex of bytes.
pub fn data(bytes: &[u8]) -> Value {
    Value::String(format!("0x{}", const_hex::encode(bytes)))
}

/// `0x`-hex of a hash.
pub fn hash(hash: B256) -> Value {
    data(hash.as_bytes())
}

/// `0x`-hex of an address.
pub fn address(address: Address) -> Value {
    data(address.as_bytes())
}

/// Bytes of a `0x`-hex string.
pub fn parse_data(value: &Value) -> Option<Vec<u8>> {
    const_hex::decode(value.as_str()?.strip_prefix("0x")?).ok()
}

/// A 32 byte hash.
pub fn parse_hash(value: &Value) -> Option<B256> {
    let bytes = parse_data(value)?;
    (bytes.len() == 32).then(|| B256::from_slice(&bytes))
}

/// A 20 byte address.
pub fn parse_address(value: &Value) -> Option<Address> {
    let bytes = parse_data(value)?;
    (bytes.len() == 20).then(|| Address::from_slice(&bytes))
}

/// A number: a hex quantity, or a plain JSON integer as `debug_getBlockRlp` takes it.
pub fn parse_quantity(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => u64::from_str_radix(text.strip_prefix("0x")?, 16).ok(),
        other => other.as_u64(),
    }
}

/// A 256 bit number.
pub fn parse_big(value: &Value) -> Option<U256> {
    U256::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// The block that a parameter means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockId {
    /// By height.
    Number(u64),
    /// By hash (`{"blockHash": …}`).
    Hash(B256),
    /// `latest` (and `pending`).
    Latest,
    /// `safe`.
    Safe,
    /// `finalized`.
    Finalized,
    /// `earliest`.
    Earliest,
}

/// Reads a block parameter; absent means latest.
pub fn parse_block_id(value: Option<&Value>) -> Result<BlockId, RpcError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(BlockId::Latest) };
    if let Some(object) = value.as_object() {
        if let Some(hash) = object.get("blockHash").and_then(parse_hash) {
            return Ok(BlockId::Hash(hash));
        }
        if let Some(number) = object.get("blockNumber").and_then(parse_quantity) {
            return Ok(BlockId::Number(number));
        }
        return Err(RpcError::params("invalid argument: block reference"));
    }
    match value.as_str() {
        Some("latest" | "pending") => Ok(BlockId::Latest),
        Some("safe") => Ok(BlockId::Safe),
        Some("finalized") => Ok(BlockId::Finalized),
        Some("earliest") => Ok(BlockId::Earliest),
        Some(text) if text.len() == 66 => {
            parse_hash(value).map(BlockId::Hash).ok_or_else(|| RpcError::params("invalid argument: hash"))
        }
        _ => parse_quantity(value).map(BlockId::Number).ok_or_else(|| RpcError::params("invalid argument: block")),
    }
}

/// Whether a log with these `topics` passes a filter's `topics` (null, one, or a list of alternatives a place).
pub fn topics_match(filter: Option<&Value>, topics: &[B256]) -> bool {
    let Some(Value::Array(places)) = filter else { return true };
    places.iter().enumerate().all(|(place, wanted)| match wanted {
        Value::Null => true,
        Value::Array(any) => {
            any.is_empty() || topics.get(place).is_some_and(|topic| any.iter().any(|w| parse_hash(w) == Some(*topic)))
        }
        one => topics.get(place).is_some_and(|topic| parse_hash(one) == Some(*topic)),
    })
}

/// Whether `emitter` passes a filter's `address` (absent, one, or a list).
pub fn address_matches(filter: Option<&Value>, emitter: Address) -> bool {
    match filter {
        None | Some(Value::Null) => true,
        Some(Value::Array(any)) => any.iter().any(|a| parse_address(a) == Some(emitter)),
        Some(one) => parse_address(one) == Some(emitter),
    }
}
