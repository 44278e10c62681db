//! Frame ↔ blobs, and the commitments that bind blobs to L1 (protocol.md, section 3).
//!
//! Decided here: how bytes lie in field elements, how many blobs a batch may have, and what a blob's versioned hash is.
//! Not decided here: what the bytes mean (`frame`), where blobs come from.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::field::{self, Scalar};
use super::kzg::{self, Damaged};
use crate::error::Severity;
use crate::types::{B256, BLOB_BYTES, Blob};

pub use super::kzg::FIELD_ELEMENTS;

/// Bytes of a field element.
const ELEMENT_BYTES: usize = 32;

/// Bytes of data in a field element: its first byte is zero, which keeps it below the field's modulus.
const ELEMENT_DATA_BYTES: usize = 31;

/// Bytes of data in a blob: 4096 × 31 = 126,976.
pub const BLOB_DATA_BYTES: usize = FIELD_ELEMENTS * ELEMENT_DATA_BYTES;

/// Most blobs that a batch may have.
///
/// A transaction carries 6 at most on today's mainnet and carried up to 9 under an earlier fork; the rest is room for a
/// fork to come. Seen in real batches: 1 and 2.
pub const MAX_BLOBS: usize = 16;

/// First byte of a versioned hash that binds a KZG commitment (EIP-4844).
const VERSION_KZG: u8 = 0x01;

/// Why bytes do not fit blobs, or blobs are not what a batch may carry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BlobError {
    /// There is nothing to pack, or no blob to unpack.
    #[error("there is no data")]
    Empty,
    /// More than [`MAX_BLOBS`].
    #[error("{blobs} blobs, more than {MAX_BLOBS}")]
    TooMany {
        /// How many there are, or would be.
        blobs: usize,
    },
    /// The first byte of a field element is not zero.
    #[error("field element {element} of blob {blob} begins with 0x{byte:02x}, not zero")]
    HighByte {
        /// Place of the blob in the batch.
        blob: usize,
        /// Place of the element in the blob.
        element: usize,
        /// The byte.
        byte: u8,
    },
    /// A field element is not below the field's modulus.
    #[error("the blob has no commitment: a field element is not canonical")]
    NotCanonical,
    /// The points that commitments are made with are not what they were built as: this program is damaged.
    #[error("the commitment points built into this program are damaged")]
    Damaged,
}

impl From<Damaged> for BlobError {
    fn from(_: Damaged) -> Self {
        Self::Damaged
    }
}

impl BlobError {
    /// All of it is in the bytes, or in the program.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Empty | Self::TooMany { .. } | Self::HighByte { .. } | Self::NotCanonical | Self::Damaged => {
                Severity::Halt
            }
        }
    }
}

/// The blobs that carry `frame`: as few as hold it, the rest of the last one zero.
pub fn pack(frame: &[u8]) -> Result<Vec<Blob>, BlobError> {
    if frame.is_empty() {
        return Err(BlobError::Empty);
    }
    let blobs = frame.len().div_ceil(BLOB_DATA_BYTES);
    if blobs > MAX_BLOBS {
        return Err(BlobError::TooMany { blobs });
    }
    Ok(frame.chunks(BLOB_DATA_BYTES).filter_map(pack_one).collect())
}

/// `data` is at most [`BLOB_DATA_BYTES`] long, so there is always a blob.
fn pack_one(data: &[u8]) -> Option<Blob> {
    let mut bytes = Vec::with_capacity(BLOB_BYTES);
    for element in data.chunks(ELEMENT_DATA_BYTES) {
        bytes.push(0);
        bytes.extend_from_slice(element);
    }
    bytes.resize(BLOB_BYTES, 0);
    Blob::new(Bytes::from(bytes))
}

/// The data of `blobs`, in their order: [`BLOB_DATA_BYTES`] each, padding included.
///
/// Every field element must begin with a zero byte (scenario F1); the error names the first that does not.
pub fn unpack(blobs: &[Blob]) -> Result<Vec<u8>, BlobError> {
    if blobs.is_empty() {
        return Err(BlobError::Empty);
    }
    if blobs.len() > MAX_BLOBS {
        return Err(BlobError::TooMany { blobs: blobs.len() });
    }
    let mut data = Vec::with_capacity(blobs.len().saturating_mul(BLOB_DATA_BYTES));
    for (place, blob) in blobs.iter().enumerate() {
        let (elements, _) = blob.as_bytes().as_chunks::<ELEMENT_BYTES>();
        for (element, [high, rest @ ..]) in elements.iter().enumerate() {
            if *high != 0 {
                return Err(BlobError::HighByte { blob: place, element, byte: *high });
            }
            data.extend_from_slice(rest);
        }
    }
    Ok(data)
}

/// Loads the points that commitments are made with, which takes a few milliseconds, so that the first commitment need not.
///
/// # Errors
/// When the program is damaged.
pub fn warm_up() -> Result<(), BlobError> {
    kzg::points()?;
    Ok(())
}

/// The elements of `blob`, each below the field's modulus.
pub(super) fn elements(blob: &Blob) -> impl Iterator<Item = Result<Scalar, BlobError>> {
    let (elements, _) = blob.as_bytes().as_chunks::<ELEMENT_BYTES>();
    elements.iter().map(|bytes| field::element(bytes).ok_or(BlobError::NotCanonical))
}

/// The blob's KZG commitment: a compressed G1 point. Costs up to 40 ms of one core, less if the blob is not full.
///
/// # Errors
/// [`BlobError::NotCanonical`], and [`BlobError::Damaged`], which says nothing about the blob.
pub fn commitment(blob: &Blob) -> Result<[u8; 48], BlobError> {
    let elements: Vec<Scalar> = elements(blob).collect::<Result<_, _>>()?;
    Ok(kzg::sum(kzg::points()?, &elements))
}

/// `0x01 ‖ sha256(commitment)[1..]`.
pub fn versioned_hash(commitment: &[u8; 48]) -> B256 {
    let mut hash: [u8; 32] = Sha256::digest(commitment).into();
    hash[0] = VERSION_KZG;
    B256(hash)
}

/// The versioned hash of the blob's own commitment.
pub fn blob_hash(blob: &Blob) -> Result<B256, BlobError> {
    Ok(versioned_hash(&commitment(blob)?))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A blob of zeros with `byte` at `place`.
    fn blob_with(place: usize, byte: u8) -> Blob {
        let mut bytes = vec![0; BLOB_BYTES];
        bytes[place] = byte;
        Blob::new(bytes).unwrap()
    }

    #[test]
    fn f1_a_high_byte_is_an_error_that_names_its_element() {
        // From element 3,968 on, 32 × element lies after the 126,976 bytes of data.
        for element in [0, 1, 3967, 3968, 4000, 4095] {
            let found = unpack(&[blob_with(32, 0), blob_with(element * 32, 0x80)]);
            assert_eq!(found, Err(BlobError::HighByte { blob: 1, element, byte: 0x80 }));
        }
        assert_eq!(
            BlobError::HighByte { blob: 0, element: 3968, byte: 0x80 }.to_string(),
            "field element 3968 of blob 0 begins with 0x80, not zero"
        );
    }

    #[test]
    fn data_follows_the_high_bytes() {
        let frame: Vec<u8> = (0..40).map(|n| n + 1).collect();
        let blobs = pack(&frame).unwrap();
        let bytes = blobs[0].as_bytes();
        assert_eq!((bytes[0], &bytes[1..32], bytes[32], &bytes[33..42]), (0, &frame[..31], 0, &frame[31..]));
        assert!(bytes[42..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn as_few_blobs_as_hold_the_frame() {
        for (bytes, blobs) in [(1, 1), (126_976, 1), (126_977, 2), (16 * 126_976, 16)] {
            assert_eq!(pack(&vec![1; bytes]).map(|blobs| blobs.len()), Ok(blobs));
        }
        assert_eq!(pack(&[]), Err(BlobError::Empty));
        assert_eq!(pack(&vec![1; 16 * 126_976 + 1]), Err(BlobError::TooMany { blobs: 17 }));
        assert_eq!(unpack(&[]), Err(BlobError::Empty));
        assert_eq!(unpack(&vec![blob_with(1, 1); 17]), Err(BlobError::TooMany { blobs: 17 }));
    }

    #[test]
    fn the_empty_blob_has_the_known_hash() {
        // protocol.md, section 2; its commitment is the point at infinity.
        let empty = blob_with(0, 0);
        let mut infinity = [0; 48];
        infinity[0] = 0xc0;
        assert_eq!(commitment(&empty), Ok(infinity));
        let expected = "010657f37554c781402a22917dee2f75def7ab966d7b770905398eba3c444014";
        assert_eq!(blob_hash(&empty).map(|hash| const_hex::encode(hash.0)), Ok(expected.to_owned()));
    }

    #[test]
    fn an_element_above_the_modulus_has_no_commitment() {
        assert_eq!(commitment(&blob_with(3968 * 32, 0xff)), Err(BlobError::NotCanonical));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_packed_unpacks(frame in proptest::collection::vec(any::<u8>(), 1..300_000)) {
            let data = unpack(&pack(&frame).unwrap()).unwrap();
            prop_assert_eq!(data.len() % BLOB_DATA_BYTES, 0);
            prop_assert_eq!(&data[..frame.len()], &frame[..]);
            prop_assert!(data[frame.len()..].iter().all(|byte| *byte == 0));
        }
    }
}
