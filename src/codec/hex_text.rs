//! The hex notations of Ethereum JSON-RPC as text: quantities, byte strings, hashes, addresses. Read and written here and
//! nowhere else in the program (the devnet has its own, so that one does not vouch for the other).
//!
//! A quantity is read with or without leading zeros, in either case, and with an odd number of digits; a caller that needs
//! it exact holds what comes out against a hash. Every reader answers none for anything else.

use crate::types::{Address, B256, U256};

/// A quantity of at most 256 bits.
pub fn quantity(text: &str) -> Option<U256> {
    let digits = digits(text).filter(|digits| !digits.is_empty())?;
    let digits = digits.trim_start_matches('0');
    let bytes = match digits.len() {
        0..=64 => const_hex::decode(format!("{digits:0>64}")).ok()?,
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
    const_hex::decode(digits(text)?).ok()
}

/// What follows `0x`. The decoder would take a second `0x`.
fn digits(text: &str) -> Option<&str> {
    text.strip_prefix("0x").filter(|digits| !digits.starts_with("0x"))
}

/// Exactly `N` bytes.
pub fn array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    const_hex::decode_to_slice(digits(text)?, &mut out).ok()?;
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
    const_hex::encode_prefixed(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j6_only_one_prefix_and_nothing_but_digits() {
        let long = format!("0x0x{}", "1".repeat(62));
        let table = ["", "0x0x", "0x0x12", "12", "0X12", "0x1x", "0x 1", "0x+1", &long, &format!("0x{long}")];
        for text in table {
            assert_eq!(quantity(text), None, "{text}");
            assert_eq!(number(text), None, "{text}");
            assert_eq!(bytes(text), None, "{text}");
            assert_eq!(array::<1>(text), None, "{text}");
            assert_eq!(array::<31>(text), None, "{text}");
            assert_eq!(hash(text), None, "{text}");
        }
        assert_eq!(quantity("0x0aB"), Some(U256::from(0xab)));
        assert_eq!(bytes("0x"), Some(Vec::new()));
        assert_eq!(bytes("0x0aB1"), Some(vec![0x0a, 0xb1]));
        assert_eq!(hex_bytes(&[0x0a, 0xb1]), "0x0ab1");
    }
}
