//! The door to the sequencer's compressor, which `build.rs` compiles: the one place of the crate with `unsafe`.
//!
//! Decided here: the parameters, and the order and buffer sizes of the calls, which must be the sequencer's, because a
//! streaming compressor's bytes depend on them. Not decided here: when the target block size is needed (`frame`).

use std::ffi::{c_int, c_ulonglong};
use std::ptr::{self, NonNull};

use zstd_sys::{ZSTD_CCtx, ZSTD_EndDirective, ZSTD_ResetDirective, ZSTD_cParameter, ZSTD_inBuffer, ZSTD_outBuffer};

// Compiled from the headers that `zstd_sys` was generated from, so its types describe these functions too.
unsafe extern "C" {
    #[link_name = "exact_ZSTD_createCCtx"]
    fn create() -> *mut ZSTD_CCtx;
    #[link_name = "exact_ZSTD_freeCCtx"]
    fn free(context: *mut ZSTD_CCtx) -> usize;
    #[link_name = "exact_ZSTD_CCtx_reset"]
    fn reset(context: *mut ZSTD_CCtx, what: ZSTD_ResetDirective) -> usize;
    #[link_name = "exact_ZSTD_CCtx_setParameter"]
    fn set_parameter(context: *mut ZSTD_CCtx, parameter: ZSTD_cParameter, value: c_int) -> usize;
    #[link_name = "exact_ZSTD_CCtx_setPledgedSrcSize"]
    fn set_size(context: *mut ZSTD_CCtx, size: c_ulonglong) -> usize;
    #[link_name = "exact_ZSTD_compressStream2"]
    fn compress(
        context: *mut ZSTD_CCtx,
        output: *mut ZSTD_outBuffer,
        input: *mut ZSTD_inBuffer,
        end: ZSTD_EndDirective,
    ) -> usize;
    #[link_name = "exact_ZSTD_isError"]
    safe fn is_error(code: usize) -> u32;
}

/// Output a call. The sequencer's writer hands over buffers of this size, and whether a block is compressed into the
/// caller's buffer or an inner one depends on it.
const OUTPUT_BYTES: usize = 32 * 1024;

/// A refusal of the C library: its error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) usize);

/// A compression context, to be used again and again.
///
/// Not `Send`, so it never leaves its thread.
pub(super) struct Compressor {
    context: NonNull<ZSTD_CCtx>,
    output: Vec<u8>,
}

impl Compressor {
    /// `None` when there is no memory for one.
    pub(super) fn new() -> Option<Self> {
        // SAFETY: takes nothing; null on failure, otherwise a context that is ours to free.
        let context = NonNull::new(unsafe { create() })?;
        Some(Self { context, output: vec![0; OUTPUT_BYTES] })
    }

    /// One frame of `payload`, without magic bytes, its blocks aimed at `target` bytes if there is one.
    ///
    /// The result grows with what comes out; nothing is allocated ahead of it. After an error the compressor is as
    /// good as new, since every call begins with a reset.
    pub(super) fn compress(&mut self, payload: &[u8], target: Option<c_int>) -> Result<Vec<u8>, Refused> {
        self.prepare(payload.len(), target)?;
        let mut frame = Vec::new();
        let mut input = ZSTD_inBuffer { src: payload.as_ptr().cast(), size: payload.len(), pos: 0 };
        // As the sequencer's writer: everything is written, then the frame is ended with no input left, so that a
        // payload that fills its last block gets an empty block after it.
        while input.pos < input.size {
            self.step(&mut input, ZSTD_EndDirective::ZSTD_e_continue, &mut frame)?;
        }
        let mut nothing = ZSTD_inBuffer { src: ptr::null(), size: 0, pos: 0 };
        while self.step(&mut nothing, ZSTD_EndDirective::ZSTD_e_end, &mut frame)? != 0 {}
        Ok(frame)
    }

    /// protocol.md, section 3: level 0, literals never compressed, window log 17, no checksum, no dictionary id, no
    /// magic, content size on and pledged.
    fn prepare(&mut self, size: usize, target: Option<c_int>) -> Result<(), Refused> {
        use ZSTD_cParameter as P;
        // The library's header names these three only by macro.
        const FORMAT: P = P::ZSTD_c_experimentalParam2;
        const LITERAL_COMPRESSION_MODE: P = P::ZSTD_c_experimentalParam5;
        const TARGET_BLOCK_SIZE: P = P::ZSTD_c_experimentalParam6;
        const MAGICLESS: c_int = 1;
        /// `ZSTD_ps_disable`.
        const NEVER: c_int = 2;

        let context = self.context.as_ptr();
        // SAFETY: the context is alive and only we hold it; the call takes no other pointer.
        accept(unsafe { reset(context, ZSTD_ResetDirective::ZSTD_reset_session_and_parameters) })?;
        let parameters = [
            (P::ZSTD_c_compressionLevel, 0),
            (LITERAL_COMPRESSION_MODE, NEVER),
            (P::ZSTD_c_windowLog, 17),
            (P::ZSTD_c_checksumFlag, 0),
            (FORMAT, MAGICLESS),
            (P::ZSTD_c_dictIDFlag, 0),
            (P::ZSTD_c_contentSizeFlag, 1),
        ];
        for (parameter, value) in parameters.into_iter().chain(target.map(|bytes| (TARGET_BLOCK_SIZE, bytes))) {
            // SAFETY: as above.
            accept(unsafe { set_parameter(context, parameter, value) })?;
        }
        let size = c_ulonglong::try_from(size).unwrap_or(c_ulonglong::MAX);
        // SAFETY: as above.
        accept(unsafe { set_size(context, size) })?;
        Ok(())
    }

    /// One call: takes what it can of `input`, appends what comes out to `frame`, answers what is left to flush.
    fn step(
        &mut self,
        input: &mut ZSTD_inBuffer,
        end: ZSTD_EndDirective,
        frame: &mut Vec<u8>,
    ) -> Result<usize, Refused> {
        let mut output = ZSTD_outBuffer { dst: self.output.as_mut_ptr().cast(), size: self.output.len(), pos: 0 };
        // SAFETY: the context is alive and only we hold it. `input` describes a slice that outlives the call, or
        // nothing at all, and is only read; `output` describes `self.output`, which is initialised and not touched
        // by anyone else meanwhile. The library keeps neither pointer (buffers are not declared stable), unwinds
        // never, and on return `pos <= size` holds for both.
        let left = unsafe { compress(self.context.as_ptr(), &raw mut output, &raw mut *input, end) };
        let left = accept(left)?;
        frame.extend_from_slice(self.output.get(..output.pos).unwrap_or_default());
        Ok(left)
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        // SAFETY: the context came from `create` and is freed here only.
        unsafe { free(self.context.as_ptr()) };
    }
}

fn accept(code: usize) -> Result<usize, Refused> {
    if is_error(code) == 0 { Ok(code) } else { Err(Refused(code)) }
}
