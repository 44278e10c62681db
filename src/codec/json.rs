//! Fields of JSON objects in the hex notations of [`hex_text`]. Null counts as absent.

use serde_json::Value;

use super::hex_text;
pub use super::hex_text::{hex_bytes as to_hex, hex_quantity as to_quantity};
use crate::types::{Address, B256, U256};

/// A field of a JSON object that is missing or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Absent or null.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// There, and unreadable.
    #[error("field {0} is malformed")]
    Malformed(&'static str),
}

/// The field `name` of `object`; none if absent or null.
pub fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// Reads an optional field with `read`.
pub fn optional<T>(
    object: &Value,
    name: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, FieldError> {
    let Some(value) = field(object, name) else { return Ok(None) };
    read(value).map(Some).ok_or(FieldError::Malformed(name))
}

/// Reads a field that must be there with `read`.
pub fn required<T>(object: &Value, name: &'static str, read: impl Fn(&Value) -> Option<T>) -> Result<T, FieldError> {
    optional(object, name, read)?.ok_or(FieldError::Missing(name))
}

/// A number of at most 256 bits.
pub fn quantity(value: &Value) -> Option<U256> {
    hex_text::quantity(value.as_str()?)
}

/// A number of at most 64 bits.
pub fn number(value: &Value) -> Option<u64> {
    hex_text::number(value.as_str()?)
}

/// A byte string.
pub fn bytes(value: &Value) -> Option<Vec<u8>> {
    hex_text::bytes(value.as_str()?)
}

/// Exactly `N` bytes.
pub fn array<const N: usize>(value: &Value) -> Option<[u8; N]> {
    hex_text::array(value.as_str()?)
}

/// A hash.
pub fn hash(value: &Value) -> Option<B256> {
    hex_text::hash(value.as_str()?)
}

/// An address.
pub fn address(value: &Value) -> Option<Address> {
    hex_text::address(value.as_str()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities() {
        let widest = format!("0x{}", "f".repeat(64));
        let wider = format!("0x1{}", "0".repeat(64));
        let padded = format!("0x{}1", "0".repeat(90));
        for (text, expected) in [
            ("0x0", Some(U256::zero())),
            ("0x9b2", Some(U256::from(0x9b2))),
            (widest.as_str(), Some(U256::MAX)),
            (wider.as_str(), None),
            (padded.as_str(), Some(U256::one())),
            ("0x", None),
            ("", None),
            ("12", None),
            ("0xg", None),
            ("0x-1", None),
        ] {
            assert_eq!(quantity(&json!(text)), expected, "{text}");
        }
        assert_eq!(quantity(&json!(12)), None);
        assert_eq!(number(&json!("0x10000000000000000")), None);
    }

    #[test]
    fn null_is_absent() {
        let object = json!({"a": null, "b": "0x"});
        assert_eq!(optional(&object, "a", bytes), Ok(None));
        assert_eq!(required(&object, "a", bytes), Err(FieldError::Missing("a")));
        assert_eq!(required(&object, "b", bytes), Ok(vec![]));
        assert_eq!(required(&object, "b", hash), Err(FieldError::Malformed("b")));
        assert_eq!(optional(&json!("text"), "a", bytes), Ok(None));
    }
}
