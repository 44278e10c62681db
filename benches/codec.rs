//! What encoding and committing cost, side by side on the same payloads: the sequencer's own way of encoding (`slow`), the
//! one taken here (`taken`), its fast half (`fast`), and stock zstd; a commitment here and by c-kzg; a group of blobs
//! checked at once and one by one.
//!
//! Before the rows, how long the points for commitments take to load, here and in c-kzg, and how many times as fast as one
//! by one a group is checked, both in CPU time of one core, run by run; and what each step of a real batch takes.

#![allow(missing_docs)]

#[allow(dead_code, clippy::unwrap_used)]
#[path = "../tests/encoder/generate.rs"]
mod generate;
#[path = "../tests/vectors/unpack.rs"]
mod unpack;

use std::fmt;
use std::fs;
use std::io::Write;
use std::num::NonZeroU128;
use std::path::Path;
use std::time::{Duration, Instant};

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use morph_deriver::codec::aggregate::{self, Member, Verdict};
use morph_deriver::codec::batch::{self, Contexts};
use morph_deriver::codec::block::{self, FullHeader, RawForm};
use morph_deriver::codec::{blob, frame};
use morph_deriver::types::{B256, Blob, BlockContent};
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// Sizes of the groups that are checked at once.
const GROUPS: [usize; 4] = [1, 2, 16, 64];

fn main() {
    let start = Instant::now();
    assert_eq!(blob::warm_up(), Ok(()));
    println!("points loaded in {:?}", start.elapsed());
    let start = Instant::now();
    black_box(c_kzg::ethereum_kzg_settings(0));
    println!("c-kzg's setup loaded in {:?}", start.elapsed());
    for size in GROUPS {
        let group = Group::new(size);
        let (mut at_once, mut one_by_one) = (Duration::MAX, Duration::MAX);
        for _ in 0..3 {
            at_once = at_once.min(timed(|| group.at_once()));
            one_by_one = one_by_one.min(timed(|| group.one_by_one()));
        }
        let ratio = one_by_one.as_secs_f64() / at_once.as_secs_f64();
        println!("{size} blobs: at once {at_once:.1?}, one by one {one_by_one:.1?}: {ratio:.1} times as fast");
    }
    stages();
    divan::main();
}

/// What each step on the way from a node's raw blocks to versioned hashes costs, and from blobs to blocks: batch 54334,
/// two blobs, its blocks with headers made up (and without L1 messages, which are not in the blobs).
fn stages() {
    let folder = unpack::vectors().join("blobs/batch-54334");
    let blobs: Vec<Blob> =
        ["blob-1.hex", "blob-2.hex"].iter().filter_map(|name| read_blob(&folder.join(name))).collect();
    let Ok(decoded) = batch::payload_of(&blobs) else { panic!("{}: no batch", folder.display()) };
    let open = || batch::open(decoded.payload.clone(), Contexts::Consecutive).map(|payload| payload.blocks);
    let Ok(blocks) = open() else { panic!("{}: no payload", folder.display()) };
    let raw = |block: &BlockContent| {
        let header = FullHeader {
            number: block.context.number.get(),
            timestamp: block.context.timestamp,
            gas_limit: block.context.gas_limit,
            base_fee: Some(block.context.base_fee),
            transactions_root: block::transactions_root(&block.transactions),
            ..FullHeader::default()
        };
        block::encode_rlp(&header, &block.transactions, RawForm::Flat)
    };
    let raw: Vec<Vec<u8>> = blocks.iter().map(raw).collect();
    let read = || raw.iter().filter_map(|raw| block::decode_rlp(raw).ok()).collect::<Vec<_>>();
    let local = read();
    let Some(contents) = batch::contents_of(&local, &[]) else { panic!("no contents") };
    let payload = batch::encode(&contents, false);
    let Ok(closed) = batch::close(&payload) else { panic!("no frame") };
    println!("batch 54334: {} blocks, {} blobs, payload of {} bytes", local.len(), closed.blobs.len(), payload.len());
    let steps: [(&str, &dyn Fn()); 6] = [
        ("raw blocks read, hashed and bound to their header", &|| drop(black_box(read()))),
        ("contents of the blocks", &|| drop(black_box(batch::contents_of(&local, &[])))),
        ("payload", &|| drop(black_box(batch::encode(&contents, false)))),
        ("frame", &|| drop(black_box(frame::encode(&payload)))),
        ("blobs", &|| drop(black_box(blob::pack(&closed.frame.bytes)))),
        ("commitments and hashes", &|| closed.blobs.iter().for_each(|blob| drop(black_box(blob::blob_hash(blob))))),
    ];
    shares("from blocks to hashes", &steps);
    let steps: [(&str, &dyn Fn()); 3] = [
        ("commitments and hashes", &|| blobs.iter().for_each(|blob| drop(black_box(blob::blob_hash(blob))))),
        ("payload out of the blobs", &|| drop(black_box(batch::payload_of(&blobs)))),
        ("blocks out of the payload", &|| drop(black_box(open()))),
    ];
    shares("from blobs to blocks", &steps);
}

fn shares(way: &str, steps: &[(&str, &dyn Fn())]) {
    let fastest = |step: &dyn Fn()| (0..7).map(|_| timed(step)).min().unwrap_or_default();
    let times: Vec<Duration> = steps.iter().map(|(_, step)| fastest(step)).collect();
    let whole: Duration = times.iter().sum();
    for ((name, _), time) in steps.iter().zip(times) {
        println!("{way}: {name}: {time:.2?}, {:.1} %", 100.0 * time.as_secs_f64() / whole.as_secs_f64());
    }
}

/// CPU time where the system tells it (Linux), else time by the clock: the machine may do other work beside.
fn timed(work: impl FnOnce()) -> Duration {
    let cpu = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    let (start, begun) = (Instant::now(), cpu());
    work();
    let by_the_clock = start.elapsed();
    begun.zip(cpu()).map_or(by_the_clock, |(begun, ended)| ended - begun)
}

/// Full blobs, each one different, with their commitments.
struct Group(Vec<(Blob, [u8; 48], B256)>);

impl Group {
    fn new(size: usize) -> Self {
        let folder = unpack::vectors().join("blobs/batch-54334");
        let Some(full) = read_blob(&folder.join("blob-1.hex")) else { panic!("{}: no blob", folder.display()) };
        let member = |n: usize| {
            let mut bytes = full.as_bytes().to_vec();
            bytes[n * 32 + 7] ^= 1;
            let blob = Blob::new(bytes)?;
            let commitment = blob::commitment(&blob).ok()?;
            Some((blob, commitment, blob::versioned_hash(&commitment)))
        };
        Self((0..size).filter_map(member).collect())
    }

    fn at_once(&self) {
        let members = self.0.iter().zip(1_u128..).map(|((blob, commitment, versioned_hash), n)| Member {
            blob,
            commitment: *commitment,
            versioned_hash: *versioned_hash,
            // As long as a random one.
            weight: NonZeroU128::new((u128::MAX / 3).wrapping_mul(n)).unwrap_or(NonZeroU128::MAX),
        });
        assert_eq!(aggregate::check(&members.collect::<Vec<_>>()), Ok(Verdict::Equal));
    }

    fn one_by_one(&self) {
        assert!(self.0.iter().all(|(blob, _, hash)| blob::blob_hash(blob) == Ok(*hash)));
    }
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
    Blob::new(const_hex::decode(text.trim().trim_start_matches("0x")).ok()?)
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

/// The first blob of each, by c-kzg.
#[divan::bench(args = payloads(), max_time = Duration::from_millis(500))]
fn commitment_c_kzg(bencher: Bencher<'_, '_>, payload: &Payload) {
    let blobs = frame::encode(&payload.bytes).ok().and_then(|frame| blob::pack(&frame.bytes).ok()).unwrap_or_default();
    let Some(first) = blobs.first().and_then(|blob| c_kzg::Blob::from_bytes(blob.as_bytes()).ok()) else { return };
    let settings = c_kzg::ethereum_kzg_settings(0);
    bencher.bench(|| settings.blob_to_kzg_commitment(&first));
}

#[divan::bench(args = GROUPS, max_time = Duration::from_secs(1))]
fn group_at_once(bencher: Bencher<'_, '_>, size: usize) {
    let group = Group::new(size);
    bencher.bench(|| group.at_once());
}

#[divan::bench(args = GROUPS, max_time = Duration::from_secs(1))]
fn group_one_by_one(bencher: Bencher<'_, '_>, size: usize) {
    let group = Group::new(size);
    bencher.bench(|| group.one_by_one());
}
