//! Small values on the wire: hex quantities, hex bytes, hashes, addresses, lists of bounded length.
//!
//! Decided here: what counts as well formed. Every function answers `None` for anything else; the caller knows how to
//! call that error.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::codec::hex_text;
pub use crate::codec::hex_text::{
    address, array, hash, hex_address, hex_bytes, hex_hash, hex_quantity, number as quantity,
};

/// Hex bytes, as a buffer that is cheap to share.
pub fn bytes(text: &str) -> Option<Bytes> {
    hex_text::bytes(text).map(Bytes::from)
}

/// A JSON list of at most `MAX` elements. A body of a few megabytes can hold millions of elements that take far more
/// room once parsed than they took as text (P7).
#[derive(Debug)]
pub struct Bounded<T, const MAX: usize>(pub Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    if elements.len() >= MAX {
                        return Err(A::Error::custom(format_args!("a list of more than {MAX}")));
                    }
                    elements.push(element);
                }
                Ok(Bounded(elements))
            }
        }

        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// A JSON list of at most `MAX` elements, or none if there are more: for answers that may be asked for in smaller
/// pieces. What is too much is read to its end and not kept.
#[derive(Debug)]
pub struct AtMost<T, const MAX: usize>(pub Option<Vec<T>>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for AtMost<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
            type Value = AtMost<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while elements.len() < MAX {
                    match list.next_element()? {
                        Some(element) => elements.push(element),
                        None => return Ok(AtMost(Some(elements))),
                    }
                }
                if list.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(AtMost(Some(elements)));
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(AtMost(None))
            }
        }

        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Most values in one [`Tree`]: a block of thousands of transactions has a tenth of it, and so many take some 40 MiB.
pub const TREE_MAX: usize = 1 << 18;

/// Any JSON of at most [`TREE_MAX`] values, objects' fields and lists' elements counted.
#[derive(Debug)]
pub struct Tree(pub Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut left = TREE_MAX;
        Branch { left: &mut left }.deserialize(deserializer).map(Tree)
    }
}

/// What is left to be read of a tree.
struct Branch<'a> {
    left: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Branch<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(D::Error::custom(format_args!("more than {TREE_MAX} values")));
        };
        *self.left = left;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Branch<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element_seed(Branch { left: self.left })? {
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let value = object.next_value_seed(Branch { left: self.left })?;
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
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

    #[test]
    fn m20_a_tree_ends_at_its_bound_and_is_the_same_json_below() {
        let texts = [
            "null",
            "[]",
            "{}",
            "[[],[{}]]",
            r#"{"a":[1,-1,1.5,true,"\u00e9",null],"b":{"c":"d"}}"#,
            "[",
            "{\"a\"}",
            "7 7",
        ];
        for text in texts {
            let plain = serde_json::from_str::<Value>(text);
            assert_eq!(serde_json::from_str::<Tree>(text).ok().map(|tree| tree.0), plain.ok(), "{text}");
        }
        let list = |elements: usize| format!("[{}]", vec!["[]"; elements].join(","));
        assert!(serde_json::from_str::<Tree>(&list(TREE_MAX - 1)).is_ok());
        assert!(serde_json::from_str::<Tree>(&list(TREE_MAX)).is_err());
        let fields: Vec<String> = (0..TREE_MAX).map(|n| format!("\"{n}\":0")).collect();
        assert!(serde_json::from_str::<Tree>(&format!("{{{}}}", fields.join(","))).is_err());
        assert!(serde_json::from_str::<Tree>(&"[".repeat(200_000)).is_err(), "depth is bounded too");
    }

    #[test]
    fn lists_end_at_their_bound() {
        assert_eq!(serde_json::from_str::<Bounded<u8, 3>>("[1,2,3]").unwrap().0, [1, 2, 3]);
        assert!(serde_json::from_str::<Bounded<u8, 2>>("[1,2,3]").is_err());
        assert!(serde_json::from_str::<Bounded<u8, 2>>("{}").is_err());
        assert_eq!(serde_json::from_str::<AtMost<u8, 3>>("[1,2,3]").unwrap().0, Some(vec![1, 2, 3]));
        assert_eq!(serde_json::from_str::<AtMost<u8, 3>>("[1]").unwrap().0, Some(vec![1]));
        assert_eq!(serde_json::from_str::<AtMost<u8, 2>>("[1,2,3,4]").unwrap().0, None);
        assert!(serde_json::from_str::<AtMost<u8, 2>>("[1,2,3").is_err());
        assert!(serde_json::from_str::<AtMost<u8, 2>>("{}").is_err());
    }
}
