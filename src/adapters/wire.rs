//! Small values on the wire: hex quantities, hex bytes, hashes, addresses.
//!
//! Decided here: what counts as well formed. Every function answers `None` for anything else; who asked knows how to
//! call that error.

use bytes::Bytes;
use serde_json::Value;

use crate::types::{Address, B256, U256};

/// `0x…` as a u64; JSON-RPC's quantity. Upper-case digits and leading zeros are accepted, as some servers send them.
pub fn quantity(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// A u64 as JSON-RPC's quantity.
pub fn hex_quantity(number: u64) -> String {
    format!("{number:#x}")
}

/// A U256 as JSON-RPC's quantity.
pub fn hex_u256(number: U256) -> String {
    format!("{number:#x}")
}

/// `0x…` with an even number of digits as bytes.
pub fn bytes(text: &str) -> Option<Bytes> {
    hex::decode(text.strip_prefix("0x")?).ok().map(Bytes::from)
}

/// Bytes as `0x…`.
pub fn hex_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2).saturating_add(2));
    text.push_str("0x");
    text.push_str(&hex::encode(bytes));
    text
}

/// `0x…` of exactly 32 bytes as a hash.
pub fn hash(text: &str) -> Option<B256> {
    let mut hash = B256::zero();
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut hash.0).ok()?;
    Some(hash)
}

/// A hash as `0x…`.
pub fn hex_hash(hash: &B256) -> String {
    hex_bytes(&hash.0)
}

/// `0x…` of exactly 20 bytes as an address.
pub fn address(text: &str) -> Option<Address> {
    let mut address = Address::zero();
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut address.0).ok()?;
    Some(address)
}

/// An address as `0x…`.
pub fn hex_address(address: &Address) -> String {
    hex_bytes(&address.0)
}

/// The quantity under `key` of a JSON object.
pub fn field_quantity(object: &Value, key: &str) -> Option<u64> {
    quantity(object.get(key)?.as_str()?)
}

/// The hash under `key` of a JSON object.
pub fn field_hash(object: &Value, key: &str) -> Option<B256> {
    hash(object.get(key)?.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_strict_about_what_is_not_a_number() {
        let table: [(&str, Option<u64>); 9] = [
            ("0x0", Some(0)),
            ("0x10", Some(16)),
            ("0x0a", Some(10)),
            ("0xFFFFFFFFFFFFFFFF", Some(u64::MAX)),
            ("0x10000000000000000", None),
            ("0x", None),
            ("0x+1", None),
            ("10", None),
            ("0xg", None),
        ];
        for (text, expected) in table {
            assert_eq!(quantity(text), expected, "{text}");
        }
        assert_eq!(hex_quantity(500), "0x1f4");
    }

    #[test]
    fn hashes_need_their_exact_length() {
        let text = format!("0x{}", "11".repeat(32));
        assert_eq!(hex_hash(&hash(&text).unwrap()), text);
        assert_eq!(hash("0x11"), None);
        assert_eq!(address("0x11"), None);
    }
}
