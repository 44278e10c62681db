//! Where unit tests find the recorded vectors. Compiled for tests only.

use std::path::PathBuf;

use serde_json::Value;

/// The folder of recorded vectors: `MORPH_VECTORS`, else `../shared/vectors` beside the crate.
///
/// None when it is absent, after saying so on stderr; with `MORPH_REQUIRE_VECTORS=1` its absence fails the test.
pub fn vectors() -> Option<PathBuf> {
    let folder = std::env::var_os("MORPH_VECTORS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/vectors")), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    let required = std::env::var("MORPH_REQUIRE_VECTORS").is_ok_and(|value| value == "1");
    assert!(!required, "vectors are required and {} does not exist", folder.display());
    let thread = std::thread::current();
    eprintln!("vectors not found, {} not checked", thread.name().unwrap_or("this test"));
    None
}

/// A JSON file of the vectors.
pub fn json(path: &str) -> Option<Value> {
    let text = std::fs::read_to_string(vectors()?.join(path)).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// Bytes of a hex text, with or without 0x, white space at the ends ignored.
pub fn unhex(text: &str) -> Vec<u8> {
    let text = text.trim();
    hex::decode(text.strip_prefix("0x").unwrap_or(text)).unwrap()
}

/// Bytes of a JSON string of hex.
pub fn bytes(value: &Value) -> Vec<u8> {
    unhex(value.as_str().unwrap())
}

/// A hash in a JSON string.
pub fn hash(value: &Value) -> crate::types::B256 {
    crate::types::B256::from_slice(&bytes(value))
}
