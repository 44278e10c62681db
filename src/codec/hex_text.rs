//! The hex notations of Ethereum JSON-RPC as text: quantities, byte strings, hashes, addresses. Read and written here and
//! nowhere else in the program (the devnet has its own, so that one does not vouch for the other).
//!
//! A quantity is read with or without leading zeros, in either case, and with an odd number of digits; a caller that needs
//! it exact holds what comes out against a hash. Every reader answers none for anything else.

use crate::types::{Address, B256, U256};

/// A quantity of at most 256 bits.
pub fn quantity(text: &str) -> Option<U256> {
    let digits = text.strip_prefix("0x").filter(|digits| !digits.is_empty())?;
    let digits = digits.trim_start_matches('0');
    let bytes = match digits.len() {
        0..=64 => hex::decode(format!("{digits:0>64}")).ok()?,
        _ => return None,
    };
    Some(U256::from_big_endian(&bytes))
}

/// A quantity of at most 64 bits.
pub fn number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Bytes, with an even number of digits.
pub fn bytes(text: &str) -> Option<Vec<u8>> {
    hex::decode(text.strip_prefix("0x")?).ok()
}

/// Exactly `N` bytes.
pub fn array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut out).ok()?;
    Some(out)
}

/// A hash.
pub fn hash(text: &str) -> Option<B256> {
    array(text).map(B256)
}

/// An address.
pub fn address(text: &str) -> Option<Address> {
    array(text).map(Address::from)
}

/// Bytes as `0x…`.
pub fn hex_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2).saturating_add(2));
    text.push_str("0x");
    text.push_str(&hex::encode(bytes));
    text
}

/// A number as a quantity: hex without leading zeros.
pub fn hex_quantity(number: impl Into<U256>) -> String {
    format!("{:#x}", number.into())
}

/// A hash as `0x…`.
pub fn hex_hash(hash: &B256) -> String {
    hex_bytes(&hash.0)
}

/// An address as `0x…`.
pub fn hex_address(address: &Address) -> String {
    hex_bytes(&address.0)
}
