//! RLP, as strict as the nodes that will read it: no length in more bytes than it needs, no single byte in a longer
//! form, no number with leading zeros, nothing past the end.
//!
//! Reading borrows from the input and allocates nothing; a list is walked, never collected. Which list means what is
//! said by the callers.

use crate::types::{Address, B256, U256};

/// Why bytes are not the RLP that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RlpError {
    /// The input ends before the item does.
    #[error("the item runs past the end: {declared} bytes declared, {left} left")]
    BeyondEnd {
        /// Bytes that the item's head declares.
        declared: u64,
        /// Bytes left.
        left: usize,
    },
    /// A length or a number takes more bytes than it needs.
    #[error("not in its shortest form")]
    NotCanonical,
    /// A list in place of a byte string, or the other way round.
    #[error("a list in place of a string, or a string in place of a list")]
    WrongKind,
    /// A string of another length than the field has.
    #[error("a field of the wrong length: {0} bytes")]
    WrongLength(usize),
    /// A list has fewer items than the structure.
    #[error("an item is missing")]
    Missing,
    /// Bytes or items are left over.
    #[error("something follows the last item")]
    Trailing,
}

/// One item, borrowed from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Whether it is a list.
    pub list: bool,
    /// What it holds, without its head.
    pub body: &'a [u8],
    /// Head and body.
    pub whole: &'a [u8],
}

impl<'a> Item<'a> {
    /// The items of a list.
    pub fn items(&self) -> Result<Items<'a>, RlpError> {
        if self.list { Ok(Items { rest: self.body }) } else { Err(RlpError::WrongKind) }
    }

    /// The bytes of a string.
    pub fn bytes(&self) -> Result<&'a [u8], RlpError> {
        if self.list { Err(RlpError::WrongKind) } else { Ok(self.body) }
    }

    /// The bytes of a string of exactly `N` bytes.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], RlpError> {
        let bytes = self.bytes()?;
        <[u8; N]>::try_from(bytes).map_err(|_| RlpError::WrongLength(bytes.len()))
    }

    /// A string of 32 bytes.
    pub fn hash(&self) -> Result<B256, RlpError> {
        self.array().map(B256)
    }

    /// A string of 20 bytes.
    pub fn address(&self) -> Result<Address, RlpError> {
        self.array().map(Address::from)
    }

    /// A number of at most 256 bits.
    pub fn u256(&self) -> Result<U256, RlpError> {
        let bytes = self.bytes()?;
        if bytes.len() > 32 {
            return Err(RlpError::WrongLength(bytes.len()));
        }
        if bytes.first() == Some(&0) {
            return Err(RlpError::NotCanonical);
        }
        Ok(U256::from_big_endian(bytes))
    }

    /// A number of at most 64 bits.
    pub fn u64(&self) -> Result<u64, RlpError> {
        u64::try_from(self.u256()?).map_err(|_| RlpError::WrongLength(self.body.len()))
    }
}

/// The items of a list, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Items<'a> {
    /// The next item, which must be there.
    pub fn need(&mut self) -> Result<Item<'a>, RlpError> {
        self.next().ok_or(RlpError::Missing)?
    }

    /// That no item is left.
    pub fn end(self) -> Result<(), RlpError> {
        if self.rest.is_empty() { Ok(()) } else { Err(RlpError::Trailing) }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, RlpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match split(self.rest) {
            Ok((item, rest)) => {
                self.rest = rest;
                Some(Ok(item))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// The item at the start of `bytes`, and what follows it.
pub fn split(bytes: &[u8]) -> Result<(Item<'_>, &[u8]), RlpError> {
    let Some((&first, after)) = bytes.split_first() else { return Err(RlpError::Missing) };
    let (list, body, rest) = match first {
        0x00..=0x7f => {
            let (body, rest) = cut(bytes, 1)?;
            (false, body, rest)
        }
        0x80..=0xb7 => {
            let (body, rest) = cut(after, u64::from(first.saturating_sub(0x80)))?;
            if matches!(body, [byte] if *byte < 0x80) {
                return Err(RlpError::NotCanonical);
            }
            (false, body, rest)
        }
        0xb8..=0xbf => {
            let (body, rest) = cut_long(after, first.saturating_sub(0xb7))?;
            (false, body, rest)
        }
        0xc0..=0xf7 => {
            let (body, rest) = cut(after, u64::from(first.saturating_sub(0xc0)))?;
            (true, body, rest)
        }
        0xf8..=0xff => {
            let (body, rest) = cut_long(after, first.saturating_sub(0xf7))?;
            (true, body, rest)
        }
    };
    let (whole, rest) = bytes.split_at_checked(bytes.len().saturating_sub(rest.len())).ok_or(RlpError::Missing)?;
    Ok((Item { list, body, whole }, rest))
}

/// The one item that `bytes` consists of.
pub fn only(bytes: &[u8]) -> Result<Item<'_>, RlpError> {
    let (item, rest) = split(bytes)?;
    if rest.is_empty() { Ok(item) } else { Err(RlpError::Trailing) }
}

fn cut(bytes: &[u8], length: u64) -> Result<(&[u8], &[u8]), RlpError> {
    let beyond = RlpError::BeyondEnd { declared: length, left: bytes.len() };
    let length = usize::try_from(length).map_err(|_| beyond)?;
    bytes.split_at_checked(length).ok_or(beyond)
}

fn cut_long(bytes: &[u8], size: u8) -> Result<(&[u8], &[u8]), RlpError> {
    let (digits, rest) = cut(bytes, u64::from(size))?;
    if digits.first() == Some(&0) {
        return Err(RlpError::NotCanonical);
    }
    let length = digits.iter().fold(0_u64, |length, digit| length.wrapping_shl(8) | u64::from(*digit));
    if length < 56 {
        return Err(RlpError::NotCanonical);
    }
    cut(rest, length)
}

/// A list under construction.
#[derive(Clone, Debug, Default)]
pub struct List {
    body: Vec<u8>,
}

impl List {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a byte string.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        if !matches!(bytes, [byte] if *byte < 0x80) {
            head(&mut self.body, 0x80, bytes.len());
        }
        self.body.extend_from_slice(bytes);
        self
    }

    /// Appends a number.
    pub fn u256(&mut self, number: U256) -> &mut Self {
        let mut bytes = [0; 32];
        number.to_big_endian(&mut bytes);
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        self.bytes(bytes.get(zeros..).unwrap_or_default())
    }

    /// Appends a number.
    pub fn u64(&mut self, number: u64) -> &mut Self {
        self.u256(U256::from(number))
    }

    /// Appends what is RLP already.
    pub fn raw(&mut self, item: &[u8]) -> &mut Self {
        self.body.extend_from_slice(item);
        self
    }

    /// Appends a list.
    pub fn list(&mut self, list: &Self) -> &mut Self {
        head(&mut self.body, 0xc0, list.body.len());
        self.body.extend_from_slice(&list.body);
        self
    }

    /// The list's RLP.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_after(&[])
    }

    /// `prefix` followed by the list's RLP: a typed transaction.
    pub fn encode_after(&self, prefix: &[u8]) -> Vec<u8> {
        let mut out = prefix.to_vec();
        head(&mut out, 0xc0, self.body.len());
        out.extend_from_slice(&self.body);
        out
    }
}

/// The head of a string (`base` 0x80) or list (0xc0) of `length` bytes.
fn head(out: &mut Vec<u8>, base: u8, length: usize) {
    match u8::try_from(length) {
        Ok(short) if short < 56 => out.push(base.saturating_add(short)),
        _ => {
            let digits = length.to_be_bytes();
            let zeros = digits.iter().take_while(|byte| **byte == 0).count();
            let digits = digits.get(zeros..).unwrap_or_default();
            let size = u8::try_from(digits.len()).unwrap_or(8);
            out.push(base.saturating_add(55).saturating_add(size));
            out.extend_from_slice(digits);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms_only() {
        for (bytes, expected) in [
            (&[][..], RlpError::Missing),
            (&[0x81, 0x01], RlpError::NotCanonical),
            (&[0x82, 0x01], RlpError::BeyondEnd { declared: 2, left: 1 }),
            (&[0xb8, 0x37], RlpError::NotCanonical),
            (&[0xb9, 0x00, 0x38], RlpError::NotCanonical),
            (&[0xb8], RlpError::BeyondEnd { declared: 1, left: 0 }),
            (&[0xc2, 0x01], RlpError::BeyondEnd { declared: 2, left: 1 }),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                RlpError::BeyondEnd { declared: u64::MAX, left: 0 },
            ),
        ] {
            assert_eq!(split(bytes).unwrap_err(), expected, "{bytes:02x?}");
        }
        assert_eq!(only(&[0x01, 0x02]).unwrap_err(), RlpError::Trailing);
        assert_eq!(only(&[0x00]).unwrap().u64(), Err(RlpError::NotCanonical));
        assert_eq!(only(&[0x80]).unwrap().u64(), Ok(0));
        assert_eq!(only(&[0xc0]).unwrap().bytes(), Err(RlpError::WrongKind));
        assert_eq!(only(&[0x80]).unwrap().items().unwrap_err(), RlpError::WrongKind);
    }

    proptest! {
        #[test]
        fn strings_and_numbers_round_trip(text in prop::collection::vec(any::<u8>(), 0..300), n: u64, words: [u64; 4]) {
            let mut list = List::new();
            let mut inner = List::new();
            inner.bytes(&text);
            list.bytes(&text).u64(n).u256(U256(words)).list(&inner);
            let bytes = list.encode();
            let mut items = only(&bytes).unwrap().items().unwrap();
            prop_assert_eq!(items.need().unwrap().bytes().unwrap(), &text[..]);
            prop_assert_eq!(items.need().unwrap().u64().unwrap(), n);
            prop_assert_eq!(items.need().unwrap().u256().unwrap(), U256(words));
            let nested = items.need().unwrap();
            prop_assert_eq!(nested.whole, &inner.encode()[..]);
            prop_assert!(items.end().is_ok());
        }

        #[test]
        fn p7_any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok((item, rest)) = split(&bytes) {
                prop_assert_eq!(item.whole.len() + rest.len(), bytes.len());
                if let Ok(items) = item.items() {
                    for inner in items {
                        let _ = inner.map(|inner| (inner.u64(), inner.address(), inner.hash()));
                    }
                }
            }
        }
    }
}
