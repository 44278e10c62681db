//! What the integration tests share: where the vectors are, small fake servers, and the recorded network served over
//! HTTP. Nothing here is a test, and nothing here decides what a right answer of the program is.

pub mod causes;
pub mod clients;
pub mod hostile;
pub mod late_store;
pub mod lying_l1;
pub mod played;
pub mod program;
pub mod recorded;
pub mod recorded_l2;
pub mod rig;
pub mod rlp;
pub mod server;
#[path = "../../vectors/unpack.rs"]
mod unpack;

use std::sync::OnceLock;

use morph_deriver::ports::Rows;
use morph_deriver::types::{B256, BatchRecord, L1Number, keccak};
use serde_json::Value;
pub use unpack::vectors;

/// The runtime that all fake servers run on: a test may then block its own thread, or run a child process.
pub fn servers() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-servers")
            .enable_all()
            .build()
            .expect("a runtime for the fake servers")
    })
}

/// The standing batches that `rows` holds, ascending.
pub async fn standing(rows: &(impl Rows + ?Sized)) -> Vec<BatchRecord> {
    let newest = rows.newest_at_or_below(L1Number::new(u64::MAX)).await.expect("the newest batch");
    let mut found = Vec::new();
    for index in 0..=newest.map_or(0, |newest| newest.index.get()) {
        found.extend(rows.batch(index.into()).await.expect("a batch"));
    }
    found
}

/// A quantity of JSON-RPC: `"0x1f"` (leading zeros are forgiven). None for anything else.
pub fn quantity(value: &Value) -> Option<u64> {
    let digits = value.as_str()?.strip_prefix("0x")?;
    u64::from_str_radix(digits, 16).ok()
}

/// `number` as JSON-RPC writes it.
pub fn hex_quantity(number: u64) -> String {
    format!("{number:#x}")
}

/// The bytes in `"0x…"`.
///
/// # Panics
/// When `text` is not that: for recorded data and for what a test wrote itself.
pub fn bytes(text: &str) -> Vec<u8> {
    const_hex::decode(text.strip_prefix("0x").expect("0x")).expect("hex digits")
}

/// `bytes` as `"0x…"`.
pub fn hex_bytes(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    // Blobs pass here: an unoptimised `const_hex::encode` would be a third of what some tests take.
    let mut text = vec![0; bytes.len() * 2 + 2];
    text[..2].copy_from_slice(b"0x");
    const_hex::encode_to_slice(bytes, &mut text[2..]).expect("twice as long");
    String::from_utf8(text).expect("hex digits")
}

/// The 32 bytes in `"0x…"`.
///
/// # Panics
/// As [`bytes`], and for another length.
pub fn hash(text: &str) -> B256 {
    let raw = bytes(text);
    assert_eq!(raw.len(), 32, "32 bytes: {text}");
    B256::from_slice(&raw)
}

/// keccak256 of `bytes` as `"0x…"`.
pub fn keccak_hex(bytes: &[u8]) -> String {
    hex_bytes(keccak(bytes))
}
