//! Frame ↔ blobs, and the commitments that bind blobs to L1 (protocol.md, section 3).
//!
//! Decided here: how bytes lie in field elements, how many blobs a batch may have, and what a blob's versioned hash is.
//! Not decided here: what the bytes mean (`frame`), where blobs come from.

use bytes::Bytes;
use c_kzg::{KzgSettings, ethereum_kzg_settings};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::error::Severity;
use crate::types::{B256, BLOB_BYTES, Blob};

/// Field elements in a blob.
pub const FIELD_ELEMENTS: usize = 4096;

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

/// Multiplications prepared ahead, as c-kzg counts them; they speed up cell proofs only, which nobody asks for here.
const PRECOMPUTE: u64 = 0;

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
    /// The KZG library refused the blob: an element is not below the field's modulus.
    #[error("the blob has no commitment: a field element is not canonical")]
    NotCanonical,
}

impl BlobError {
    /// All of it is in the bytes.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Empty | Self::TooMany { .. } | Self::HighByte { .. } | Self::NotCanonical => Severity::Halt,
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

fn settings() -> &'static KzgSettings {
    ethereum_kzg_settings(PRECOMPUTE)
}

/// Loads the trusted setup, which takes some hundred milliseconds, so that the first commitment need not.
pub fn warm_up() {
    let _ = settings();
}

/// The blob's KZG commitment: a compressed G1 point. Costs 13 to 42 ms of one core.
pub fn commitment(blob: &Blob) -> Result<[u8; 48], BlobError> {
    let blob = c_kzg::Blob::from_bytes(blob.as_bytes()).map_err(|_| BlobError::NotCanonical)?;
    let commitment = settings().blob_to_kzg_commitment(&blob).map_err(|_| BlobError::NotCanonical)?;
    Ok(commitment.to_bytes().into_inner())
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
