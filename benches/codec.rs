//! What encoding and committing cost: the sequencer's own way (`slow`), the one taken here (`taken`), its fast half
//! (`fast`), and stock zstd, side by side on the same payloads.

#![allow(missing_docs)]

#[allow(dead_code, clippy::unwrap_used)]
#[path = "../tests/encoder/generate.rs"]
mod generate;
#[path = "../tests/vectors/unpack.rs"]
mod unpack;

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use divan::Bencher;
use divan::counter::BytesCount;
use morph_deriver::codec::{blob, frame};
use morph_deriver::types::Blob;
use zstd::zstd_safe::{CParameter, ParamSwitch};

fn main() {
    blob::warm_up();
    divan::main();
}

struct Payload {
    name: String,
    bytes: Vec<u8>,
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn payloads() -> Vec<Payload> {
    let mut payloads = Vec::new();
    for blocks in [70, 300, 600] {
        payloads.push(Payload { name: format!("{blocks} empty blocks"), bytes: generate::empty_blocks(7, blocks) });
    }
    for kilobytes in [100, 350] {
        let bytes = generate::transactions(7, kilobytes * 1000);
        payloads.push(Payload { name: format!("transactions, {kilobytes} kB"), bytes });
    }
    payloads.push(Payload {
        name: "hardly compressible, 250 kB".to_owned(),
        bytes: generate::repeats(7, 250_000, 190, 14),
    });
    let folder = unpack::vectors();
    for name in ["mainnet-47561", "batch-55157", "batch-54334"] {
        payloads.push(Payload { name: name.to_owned(), bytes: real(&folder.join("blobs").join(name)) });
    }
    payloads
}

fn real(folder: &Path) -> Vec<u8> {
    read(folder).unwrap_or_else(|| panic!("{} holds no batch", folder.display()))
}

fn read(folder: &Path) -> Option<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let blobs: Option<Vec<_>> = files.iter().map(|file| read_blob(file)).collect();
    let data = blob::unpack(&blobs?).ok()?;
    Some(frame::decode(&data, frame::MAX_PAYLOAD).ok()?.payload.to_vec())
}

fn read_blob(file: &Path) -> Option<Blob> {
    let text = fs::read_to_string(file).ok()?;
    Blob::new(hex::decode(text.trim().trim_start_matches("0x")).ok()?)
}

fn stock_frame(payload: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 0)?;
    encoder.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Disable))?;
    encoder.set_parameter(CParameter::WindowLog(17))?;
    encoder.set_parameter(CParameter::TargetCBlockSize(124 * 1024))?;
    encoder.include_checksum(false)?;
    encoder.include_magicbytes(false)?;
    encoder.include_dictid(false)?;
    encoder.set_pledged_src_size(u64::try_from(payload.len()).ok())?;
    encoder.write_all(payload)?;
    encoder.finish()
}

fn run<R>(bencher: Bencher<'_, '_>, payload: &Payload, encode: impl Fn(&[u8]) -> R + Sync) {
    bencher.counter(BytesCount::new(payload.bytes.len())).bench(|| encode(&payload.bytes));
}

#[divan::bench(args = payloads(), max_time = Duration::from_millis(500))]
fn fast(bencher: Bencher<'_, '_>, payload: &Payload) {
    run(bencher, payload, frame::encode_fast);
}

#[divan::bench(args = payloads(), max_time = Duration::from_millis(500))]
fn taken(bencher: Bencher<'_, '_>, payload: &Payload) {
    run(bencher, payload, frame::encode);
}

#[divan::bench(args = payloads(), max_time = Duration::from_millis(500))]
fn slow(bencher: Bencher<'_, '_>, payload: &Payload) {
    run(bencher, payload, frame::encode_slow);
}

#[divan::bench(args = payloads(), max_time = Duration::from_millis(500))]
fn stock(bencher: Bencher<'_, '_>, payload: &Payload) {
    run(bencher, payload, stock_frame);
}

#[divan::bench(args = payloads(), max_time = Duration::from_millis(500))]
fn decode(bencher: Bencher<'_, '_>, payload: &Payload) {
    let Ok(frame) = frame::encode(&payload.bytes) else { return };
    bencher.counter(BytesCount::new(payload.bytes.len())).bench(|| frame::decode(&frame.bytes, frame::MAX_PAYLOAD));
}

/// The first blob of each.
#[divan::bench(args = payloads(), max_time = Duration::from_millis(500))]
fn commitment(bencher: Bencher<'_, '_>, payload: &Payload) {
    let blobs = frame::encode(&payload.bytes).ok().and_then(|frame| blob::pack(&frame.bytes).ok()).unwrap_or_default();
    let Some(first) = blobs.first() else { return };
    bencher.bench(|| blob::commitment(first));
}
