//! What unit tests share: the real data, and the hex in it. Compiled for tests only.

#[path = "../../tests/vectors/unpack.rs"]
mod unpack;

use serde_json::Value;
pub use unpack::vectors;

/// A JSON file of the real data.
pub fn json(path: &str) -> Value {
    let text = std::fs::read_to_string(vectors().join(path)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Bytes of a hex text, with or without 0x, white space at the ends ignored.
pub fn unhex(text: &str) -> Vec<u8> {
    let text = text.trim();
    const_hex::decode(text.strip_prefix("0x").unwrap_or(text)).unwrap()
}

/// Bytes of a JSON string of hex.
pub fn bytes(value: &Value) -> Vec<u8> {
    unhex(value.as_str().unwrap())
}

/// A hash in a JSON string.
pub fn hash(value: &Value) -> crate::types::B256 {
    crate::types::B256::from_slice(&bytes(value))
}
