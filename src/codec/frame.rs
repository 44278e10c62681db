//! Payload ↔ zstd frame (protocol.md, section 3).
//!
//! Decided here: when the sequencer's slow way of compressing gives other bytes than the fast one, what a frame from
//! outside may declare, and how large a payload may be. Not decided here: what a payload means (`payload`), how a frame
//! lies in blobs (`blob`), how the C library is called (`exact`).
//!
//! Encoding goes through the second build of zstd that `build.rs` makes, decoding through the stock crate. A frame from
//! outside is first walked by our own code, which knows its length and the most that it can hold before anything is
//! allocated (P7).

use std::cell::RefCell;

use bytes::Bytes;
use thiserror::Error;
use zstd_safe::{DCtx, DParameter, FrameFormat, get_error_name};

use super::blob::{BLOB_DATA_BYTES, MAX_BLOBS};
use super::exact::{Compressor, Refused};
use crate::error::Severity;

/// Largest payload that is encoded or decoded: 64 × 16 blobs × 126,976 bytes = 130,023,424.
///
/// Why 64-fold: real batches expand two- to fivefold, a batch of nothing but empty blocks about 22-fold
/// (tests/vectors, `encoder/16` to `18`), and 600 blocks, the most seen in one batch, still have 216 KB each. Why not the
/// reference's 1,000,000,000: a frame of zeros expands 30,000-fold, so that one blob could claim a gigabyte (scenario
/// F3); with a few batches in flight this bound holds the worker's memory to some hundred megabytes.
pub const MAX_PAYLOAD: usize = 64 * MAX_BLOBS * BLOB_DATA_BYTES;

/// The sequencer's target size of a compressed block.
const TARGET_BLOCK_BYTES: usize = 124 * 1024;

/// How far below the target a block is already sent the slow way.
///
/// Whether a block is split hangs on the library's *estimate* of its size, which counts symbols by their mean cost and
/// so may miss the true size by part of a bit a symbol, either way. Near the target blocks were seen to hold up to some
/// 2,500 sequences of three symbols; at a bit each that is about 940 bytes, here doubled. Seen so far: estimates below the
/// true size, by up to 700 bytes, so that the margin costs a little time and never was needed.
const ESTIMATE_MARGIN: usize = 2048;

/// Content of a block, but for the last.
const BLOCK_CONTENT_BYTES: u64 = 128 * 1024;

/// Largest window that a frame may ask for: what a streaming decoder accepts by default.
const MAX_WINDOW: u64 = 1 << 27;

/// Why a payload could not be encoded, or a frame not decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// There is no batch without a block context.
    #[error("the payload is empty")]
    EmptyPayload,
    /// Above [`MAX_PAYLOAD`].
    #[error("the payload has {bytes} bytes, more than {limit}")]
    PayloadTooLarge {
        /// Its length.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The compressor refused, which it does for want of memory only.
    #[error("the compressor failed: {what}")]
    Compressor {
        /// The library's own words.
        what: &'static str,
    },
    /// The frame ends inside `what`.
    #[error("the frame ends inside its {what}")]
    Truncated {
        /// The part.
        what: &'static str,
    },
    /// The frame breaks the format.
    #[error("the frame is malformed: {what}")]
    Malformed {
        /// The rule.
        what: &'static str,
    },
    /// The header says no content size.
    #[error("the frame declares no content size")]
    NoContentSize,
    /// The declared content size is above the caller's bound.
    #[error("the frame declares {declared} bytes, more than {limit}")]
    DeclaredTooLarge {
        /// What the header says.
        declared: u64,
        /// The bound.
        limit: usize,
    },
    /// The blocks cannot hold what the header says.
    #[error("the frame declares {declared} bytes, its blocks hold at most {possible}")]
    DeclaredUnfounded {
        /// What the header says.
        declared: u64,
        /// What the blocks can hold.
        possible: u64,
    },
    /// The frame asks for too large a window.
    #[error("the frame asks for a window of {window} bytes")]
    WindowTooLarge {
        /// Its size.
        window: u64,
    },
    /// The content is shorter than declared.
    #[error("the frame declares {declared} bytes and holds {decoded}")]
    LengthMismatch {
        /// What the header says.
        declared: u64,
        /// What came out.
        decoded: u64,
    },
    /// The decompressor refused the frame.
    #[error("the frame does not decode: {what}")]
    Decompressor {
        /// The library's own words.
        what: &'static str,
    },
}

impl FrameError {
    /// Want of memory passes; everything else is in the bytes.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::Compressor { .. } => Severity::Temporary,
            Self::EmptyPayload
            | Self::PayloadTooLarge { .. }
            | Self::Truncated { .. }
            | Self::Malformed { .. }
            | Self::NoContentSize
            | Self::DeclaredTooLarge { .. }
            | Self::DeclaredUnfounded { .. }
            | Self::WindowTooLarge { .. }
            | Self::LengthMismatch { .. }
            | Self::Decompressor { .. } => Severity::Halt,
        }
    }
}

/// A payload as the sequencer compresses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The frame, without magic bytes.
    pub bytes: Vec<u8>,
    /// Whether the target block size was needed.
    pub slow_path: bool,
}

/// What a frame held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The content.
    pub payload: Bytes,
    /// Length of the frame; bytes after it are not read.
    pub frame_bytes: usize,
}

/// The frame that the sequencer makes of `payload`, byte for byte.
///
/// Compresses the fast way first, and again with the target block size if [`needs_target`] says that the two may
/// differ. Refuses an empty payload and one above [`MAX_PAYLOAD`].
pub fn encode(payload: &[u8]) -> Result<Frame, FrameError> {
    let bytes = encode_fast(payload)?;
    if !needs_target(&bytes) {
        return Ok(Frame { bytes, slow_path: false });
    }
    Ok(Frame { bytes: encode_slow(payload)?, slow_path: true })
}

/// The sequencer's own way: with the target block size. The yardstick of tests and benches.
#[doc(hidden)]
pub fn encode_slow(payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    const TARGET: i32 = 124 * 1024;
    compress(payload, Some(TARGET))
}

/// Without the target block size: right unless [`needs_target`].
#[doc(hidden)]
pub fn encode_fast(payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    compress(payload, None)
}

thread_local! {
    /// One compressor a thread: setting one up costs as much as compressing a small batch.
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
}

fn compress(payload: &[u8], target: Option<i32>) -> Result<Vec<u8>, FrameError> {
    if payload.is_empty() {
        return Err(FrameError::EmptyPayload);
    }
    if payload.len() > MAX_PAYLOAD {
        return Err(FrameError::PayloadTooLarge { bytes: payload.len(), limit: MAX_PAYLOAD });
    }
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Compressor::new();
        }
        let compressor = slot.as_mut().ok_or(FrameError::Compressor { what: "no memory for a context" })?;
        compressor
            .compress(payload, target)
            .map_err(|Refused(code)| FrameError::Compressor { what: get_error_name(code) })
    })
}

/// Whether the sequencer's way may give other bytes than `frame`, which was compressed without the target block size.
///
/// True in three cases, and for a frame that cannot be walked:
///
/// - a compressed block near or above the target: it is split into sub-blocks;
/// - a compressed block of exactly 127 sequences: the sub-block writer spends two bytes on that count (`80 7f`), the
///   ordinary one a single byte (`7f`);
/// - a compressed last block that, header included, is no shorter than its content: the sub-block writer takes it
///   back and writes the content as it is. Only a last block of less than 64 bytes may save so little.
pub fn needs_target(frame: &[u8]) -> bool {
    needs_target_checked(frame).unwrap_or(true)
}

fn needs_target_checked(frame: &[u8]) -> Result<bool, FrameError> {
    let header = header(frame)?;
    let content = header.content.ok_or(FrameError::NoContentSize)?;
    let last_content = match content % BLOCK_CONTENT_BYTES {
        0 => BLOCK_CONTENT_BYTES,
        rest => rest,
    };
    for block in Blocks::behind(frame, &header) {
        let block = block?;
        if block.kind != BlockKind::Compressed {
            continue;
        }
        if block.body.len() > TARGET_BLOCK_BYTES.saturating_sub(ESTIMATE_MARGIN) {
            return Ok(true);
        }
        if sequence_count(block.body)? == 127 {
            return Ok(true);
        }
        let written = u64::try_from(block.body.len().saturating_add(BLOCK_HEADER_BYTES)).unwrap_or(u64::MAX);
        if block.last && written >= last_content {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The payload in the frame at the start of `data`; what follows the frame is ignored.
///
/// The content size must be declared and be at most `limit`, and the blocks must be able to hold it: only then is
/// that much allocated. What comes out must have the declared length.
pub fn decode(data: &[u8], limit: usize) -> Result<Decoded, FrameError> {
    let shape = shape(data)?;
    let Some(declared) = shape.header.content else { return Err(FrameError::NoContentSize) };
    let too_large = FrameError::DeclaredTooLarge { declared, limit };
    let Ok(capacity) = usize::try_from(declared) else { return Err(too_large) };
    if capacity > limit {
        return Err(too_large);
    }
    if shape.header.window > MAX_WINDOW {
        return Err(FrameError::WindowTooLarge { window: shape.header.window });
    }
    if declared > shape.possible {
        return Err(FrameError::DeclaredUnfounded { declared, possible: shape.possible });
    }
    let frame = data.get(..shape.bytes).ok_or(FrameError::Truncated { what: "blocks" })?;

    let refused = |code| FrameError::Decompressor { what: get_error_name(code) };
    let mut context = DCtx::try_create().ok_or(FrameError::Decompressor { what: "no memory for a context" })?;
    context.set_parameter(DParameter::Format(FrameFormat::Magicless)).map_err(refused)?;
    let mut payload = Vec::with_capacity(capacity);
    context.decompress(&mut payload, frame).map_err(refused)?;
    if payload.len() != capacity {
        let decoded = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        return Err(FrameError::LengthMismatch { declared, decoded });
    }
    Ok(Decoded { payload: Bytes::from(payload), frame_bytes: shape.bytes })
}

/// Length of a block's header.
const BLOCK_HEADER_BYTES: usize = 3;

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Its own length.
    bytes: usize,
    /// Declared content size.
    content: Option<u64>,
    /// Window size; the content size in a single segment.
    window: u64,
    /// Whether four bytes of checksum follow the blocks.
    checksum: bool,
}

/// A frame as far as it can be known without decompressing it.
struct Shape {
    header: Header,
    /// Length, checksum included.
    bytes: usize,
    /// The most that its blocks can hold.
    possible: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    Raw,
    Rle,
    Compressed,
}

struct Block<'a> {
    last: bool,
    kind: BlockKind,
    /// The size that the header says: of the content in a raw or RLE block, of the body in a compressed one.
    size: u64,
    body: &'a [u8],
}

/// The blocks of a frame, up to the last or the first malformed one.
struct Blocks<'a> {
    rest: &'a [u8],
    largest: u64,
    done: bool,
}

impl<'a> Blocks<'a> {
    fn behind(frame: &'a [u8], header: &Header) -> Self {
        Self {
            rest: frame.get(header.bytes..).unwrap_or_default(),
            largest: header.window.min(BLOCK_CONTENT_BYTES),
            done: false,
        }
    }

    /// A block's header: bit 0 last, bits 1 and 2 the kind, the other 21 the size, in three little-endian bytes.
    fn read(&mut self) -> Result<Block<'a>, FrameError> {
        let (header, rest) = self
            .rest
            .split_first_chunk::<BLOCK_HEADER_BYTES>()
            .ok_or(FrameError::Truncated { what: "block header" })?;
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let size = u64::from(header >> 3);
        let (kind, stored) = match (header >> 1) & 3 {
            0 => (BlockKind::Raw, size),
            1 => (BlockKind::Rle, 1),
            2 => (BlockKind::Compressed, size),
            _ => return Err(FrameError::Malformed { what: "reserved block type" }),
        };
        if size > self.largest {
            return Err(FrameError::Malformed { what: "block larger than its window allows" });
        }
        let stored = usize::try_from(stored).unwrap_or(usize::MAX);
        let (body, rest) = rest.split_at_checked(stored).ok_or(FrameError::Truncated { what: "block" })?;
        self.rest = rest;
        let last = header & 1 == 1;
        self.done = last;
        Ok(Block { last, kind, size, body })
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let block = self.read();
        self.done |= block.is_err();
        Some(block)
    }
}

/// Reads the header of a frame without magic bytes (RFC 8878, section 3.1.1.1).
fn header(frame: &[u8]) -> Result<Header, FrameError> {
    let truncated = FrameError::Truncated { what: "header" };
    let (descriptor, rest) = frame.split_first().ok_or_else(|| truncated.clone())?;
    if descriptor & 0x08 != 0 {
        return Err(FrameError::Malformed { what: "reserved bit of the descriptor" });
    }
    let single_segment = descriptor & 0x20 != 0;
    let window_bytes = usize::from(!single_segment);
    let dictionary_bytes = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
    let content_bytes = match (descriptor >> 6, single_segment) {
        (0, false) => 0,
        (0, true) => 1,
        (1, _) => 2,
        (2, _) => 4,
        _ => 8,
    };
    let (window, rest) = rest.split_at_checked(window_bytes).ok_or_else(|| truncated.clone())?;
    let (_, rest) = rest.split_at_checked(dictionary_bytes).ok_or_else(|| truncated.clone())?;
    let (content, rest) = rest.split_at_checked(content_bytes).ok_or(truncated)?;

    let number = content.iter().rev().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
    let content = match content.len() {
        0 => None,
        // Two bytes count from 256, so that they reach as far as they can.
        2 => Some(number.saturating_add(256)),
        _ => Some(number),
    };
    let window = match window.first() {
        None => content.unwrap_or_default(),
        Some(byte) => {
            // Five bits of exponent above 2^10, three of mantissa in eighths.
            let base = (1u64 << 10) << (byte >> 3);
            base.saturating_add((base >> 3).saturating_mul(u64::from(byte & 7)))
        }
    };
    let bytes = frame.len().saturating_sub(rest.len());
    Ok(Header { bytes, content, window, checksum: descriptor & 0x04 != 0 })
}

/// Walks the whole frame at the start of `data`.
fn shape(data: &[u8]) -> Result<Shape, FrameError> {
    let header = header(data)?;
    let mut blocks = Blocks::behind(data, &header);
    let mut possible = 0u64;
    for block in blocks.by_ref() {
        let block = block?;
        let content = match block.kind {
            BlockKind::Raw | BlockKind::Rle => block.size,
            BlockKind::Compressed => header.window.min(BLOCK_CONTENT_BYTES),
        };
        possible = possible.saturating_add(content);
    }
    let checksum = if header.checksum { 4 } else { 0 };
    let rest = blocks.rest.get(checksum..).ok_or(FrameError::Truncated { what: "checksum" })?;
    Ok(Shape { header, bytes: data.len().saturating_sub(rest.len()), possible })
}

/// How many sequences a compressed block holds (RFC 8878, sections 3.1.1.3.1.1 and 3.1.1.3.2.1).
fn sequence_count(body: &[u8]) -> Result<u32, FrameError> {
    let truncated = FrameError::Truncated { what: "literals" };
    let mut start = [0u8; 5];
    for (to, from) in start.iter_mut().zip(body) {
        *to = *from;
    }
    let [b0, b1, b2, b3, b4] = start;
    let number = u64::from_le_bytes([b0, b1, b2, b3, b4, 0, 0, 0]);
    let size_format = (b0 >> 2) & 3;
    // Length of the section's header, and of the bytes after it.
    let (header, stored) = match (b0 & 3, size_format) {
        // Raw: 5, 12 or 20 bits of size.
        (0, 0 | 2) => (1, number >> 3 & 0x1f),
        (0, 1) => (2, number >> 4 & 0xfff),
        (0, _) => (3, number >> 4 & 0xf_ffff),
        // One byte repeated.
        (1, 0 | 2) => (1, 1),
        (1, 1) => (2, 1),
        (1, _) => (3, 1),
        // Huffman: twice 10, 14 or 18 bits; the second is the stored size. The sequencer never writes these.
        (_, 0 | 1) => (3, number >> 14 & 0x3ff),
        (_, 2) => (4, number >> 18 & 0x3fff),
        _ => (5, number >> 22 & 0x3_ffff),
    };
    let stored = usize::try_from(stored).unwrap_or(usize::MAX);
    let sequences = body.get(header..).and_then(|rest| rest.get(stored..)).ok_or(truncated.clone())?;
    match *sequences {
        [count @ 0..=127, ..] => Ok(u32::from(count)),
        [high @ 128..=254, low, ..] => Ok(u32::from_be_bytes([0, 0, high & 0x7f, low])),
        [255, low, high, ..] => Ok(u32::from(u16::from_le_bytes([low, high])).saturating_add(0x7f00)),
        _ => Err(truncated),
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1 << 20;

    /// Enough of a payload to compress: counted, with some noise.
    fn payload(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| if n % 7 == 0 { (n as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0] } else { 3 }).collect()
    }

    #[test]
    fn an_empty_payload_is_refused() {
        assert_eq!(encode(&[]), Err(FrameError::EmptyPayload));
    }

    #[test]
    fn f3_a_payload_above_the_bound_is_refused_both_ways() {
        let zeros = vec![0; MAX_PAYLOAD + 1];
        let expected = FrameError::PayloadTooLarge { bytes: MAX_PAYLOAD + 1, limit: MAX_PAYLOAD };
        assert_eq!(encode(&zeros), Err(expected));
        const { assert!(MAX_PAYLOAD < 1_000_000_000 && MAX_PAYLOAD > 17 << 20) };
    }

    #[test]
    fn what_follows_the_frame_is_ignored() {
        let payload = payload(5000);
        let mut data = encode(&payload).unwrap().bytes;
        let frame_bytes = data.len();
        data.extend([0xff; 300]);
        let expected = Decoded { payload: Bytes::from(payload), frame_bytes };
        assert_eq!(decode(&data, LIMIT), Ok(expected));
    }

    #[test]
    fn f3_the_limit_is_on_the_declared_size() {
        let frame = encode(&payload(5000)).unwrap().bytes;
        assert!(decode(&frame, 5000).is_ok());
        assert_eq!(decode(&frame, 4999), Err(FrameError::DeclaredTooLarge { declared: 5000, limit: 4999 }));
    }

    #[test]
    fn f3_a_gigabyte_is_refused_before_it_is_allocated() {
        // Single segment, four bytes of size: 1,000,000,000. One RLE block of 128 KiB, the last.
        let mut bomb = vec![0xa0];
        bomb.extend(1_000_000_000u32.to_le_bytes());
        bomb.extend([0x03, 0x00, 0x10, 0x00]);
        let declared = 1_000_000_000;
        assert_eq!(decode(&bomb, MAX_PAYLOAD), Err(FrameError::DeclaredTooLarge { declared, limit: MAX_PAYLOAD }));
        // Below the limit, the blocks must still be able to hold it.
        bomb.splice(1..5, 100_000_000u32.to_le_bytes());
        let unfounded = FrameError::DeclaredUnfounded { declared: 100_000_000, possible: 131_072 };
        assert_eq!(decode(&bomb, MAX_PAYLOAD), Err(unfounded));
        // Eight bytes of size: all of them.
        let mut absurd = vec![0xe0];
        absurd.extend([0xff; 8]);
        absurd.extend([0x03, 0x00, 0x10, 0x00]);
        let refused = decode(&absurd, MAX_PAYLOAD);
        assert_eq!(refused, Err(FrameError::DeclaredTooLarge { declared: u64::MAX, limit: MAX_PAYLOAD }));
    }

    #[test]
    fn f3_headers_that_are_refused() {
        let block = [0x09, 0x00, 0x00, 0x61];
        let with = |header: &[u8]| decode(&[header, &block].concat(), LIMIT);
        let truncated = FrameError::Truncated { what: "header" };
        let cases: [(&[u8], Result<usize, FrameError>); 8] = [
            // One byte of size, single segment.
            (&[0x20, 1], Ok(1)),
            // With a window of 1 KiB and a size of 256 + 0: more than the block holds.
            (&[0x40, 0x00, 0, 0], Err(FrameError::DeclaredUnfounded { declared: 256, possible: 1 })),
            // Less than the block holds.
            (&[0x20, 0], Err(FrameError::Malformed { what: "block larger than its window allows" })),
            // No size, whatever the blocks expand to.
            (&[0x00, 0x38], Err(FrameError::NoContentSize)),
            (&[0x28, 1], Err(FrameError::Malformed { what: "reserved bit of the descriptor" })),
            // Largest window of the format, size 1.
            (&[0x80, 0xff, 1, 0, 0, 0], Err(FrameError::WindowTooLarge { window: (1 << 41) + 7 * (1 << 38) })),
            (&[0xe0, 1, 0], Err(truncated.clone())),
            (&[], Err(FrameError::Malformed { what: "reserved bit of the descriptor" })),
        ];
        for (header, expected) in cases {
            let found = with(header).map(|decoded| decoded.payload.len());
            assert_eq!(found, expected, "{header:02x?}");
        }
        assert_eq!(decode(&[], LIMIT), Err(truncated));
    }

    #[test]
    fn blocks_that_are_refused() {
        let cases: [(&[u8], FrameError); 5] = [
            (&[0x20, 1], FrameError::Truncated { what: "block header" }),
            (&[0x20, 1, 0x09, 0, 0], FrameError::Truncated { what: "block" }),
            (&[0x20, 1, 0x0f, 0, 0, 0], FrameError::Malformed { what: "reserved block type" }),
            // Not the last, and nothing follows.
            (&[0x20, 1, 0x08, 0, 0, 0x61], FrameError::Truncated { what: "block header" }),
            // With a checksum.
            (&[0x24, 1, 0x09, 0, 0, 0x61], FrameError::Truncated { what: "checksum" }),
        ];
        for (frame, expected) in cases {
            assert_eq!(decode(frame, LIMIT), Err(expected), "{frame:02x?}");
        }
        // Declares two bytes, holds an empty block and one byte.
        let short = decode(&[0x20, 2, 0x00, 0, 0, 0x09, 0, 0, 0x61], LIMIT);
        assert_eq!(short, Err(FrameError::DeclaredUnfounded { declared: 2, possible: 1 }));
    }

    #[test]
    fn the_count_of_sequences_is_read_after_the_literals() {
        let cases: [(&[u8], u32); 8] = [
            // Two raw literals, 5 bits of size.
            (&[2 << 3, 9, 9, 127, 0], 127),
            // The sub-block writer's form of the same.
            (&[2 << 3, 9, 9, 0x80, 0x7f], 127),
            // 12 bits of size.
            (&[2 << 4 | 1 << 2, 0, 9, 9, 126], 126),
            // 20 bits.
            (&[2 << 4 | 3 << 2, 0, 0, 9, 9, 0xff, 1, 0], 0x7f01),
            // RLE: one byte whatever the size.
            (&[30 << 3 | 1, 9, 5], 5),
            // Huffman, 10 bits of stored size in bits 14 to 23.
            (&[2, 0x80, 0, 9, 9, 7], 7),
            (&[0, 0], 0),
            (&[0, 0x81, 0x00], 256),
        ];
        for (body, expected) in cases {
            assert_eq!(sequence_count(body), Ok(expected), "{body:02x?}");
        }
        let cut: [&[u8]; 5] = [&[], &[8], &[2 << 3, 9, 9], &[0, 0x80], &[0, 0xff, 1]];
        for body in cut {
            assert_eq!(sequence_count(body), Err(FrameError::Truncated { what: "literals" }), "{body:02x?}");
        }
    }

    #[test]
    fn f10_an_incompressible_last_block_takes_the_slow_path() {
        // 60 bytes whose one repeat saves three: as long as its content once the header is counted.
        let mut seen = 0;
        for seed in 0..3000u32 {
            let mut payload: Vec<u8> =
                (0..60).map(|n| (seed * 61 + n).wrapping_mul(0x9e37_79b1).to_be_bytes()[1]).collect();
            let length = 10 + seed as usize % 4;
            payload.copy_within(5..5 + length, 30);
            let (fast, slow) = (encode_fast(&payload).unwrap(), encode_slow(&payload).unwrap());
            let made = encode(&payload).unwrap();
            assert_eq!(made.bytes, slow);
            assert_eq!(made.slow_path, needs_target(&fast));
            seen += usize::from(fast != slow);
        }
        assert!(seen > 0);
    }

    #[test]
    fn a_frame_that_cannot_be_walked_is_not_trusted() {
        assert!(needs_target(&[]));
        assert!(needs_target(&[0x20, 1, 0x0f, 0, 0]));
    }

    #[test]
    fn f3_truncated_frames_are_refused() {
        let frame = encode(&payload(3000)).unwrap().bytes;
        for length in 0..frame.len() {
            assert!(decode(&frame[..length], LIMIT).is_err(), "{length} of {}", frame.len());
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(payload in proptest::collection::vec(0u8..4, 1..20_000)) {
            let frame = encode(&payload).unwrap();
            let decoded = decode(&frame.bytes, LIMIT).unwrap();
            prop_assert_eq!(&decoded.payload[..], &payload[..]);
            prop_assert_eq!(decoded.frame_bytes, frame.bytes.len());
        }

        #[test]
        fn f3_hostile_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (decode(&data, LIMIT), needs_target(&data), sequence_count(&data));
        }

        #[test]
        fn f3_spoiled_frames_never_panic(place in 0usize..2000, byte: u8, bytes in 1usize..4000) {
            let mut frame = encode(&payload(bytes)).unwrap().bytes;
            let place = place % frame.len();
            frame[place] = byte;
            if let Ok(decoded) = decode(&frame, LIMIT) {
                prop_assert!(decoded.payload.len() <= LIMIT && decoded.frame_bytes <= frame.len());
            }
            let _ = needs_target(&frame);
        }
    }
}
