//! What `record` writes and `replay` reads: the facts of a range of L1, and the L2 blocks that belong to it.
//!
//! A folder with `fixture.json` (L1 facts), `l2.json.zst` (blocks, compressed JSON) and `blobs/HASH.zst` (one blob a
//! file, compressed). Decided here: the format and its bounds. A fixture is input like any other: every size is
//! bounded before anything is allocated, and a blob counts only if its commitment gives its name.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::types::{
    B256, BLOB_BYTES, BatchIndex, Blob, Identity, L1Event, L1Header, L1Number, L1Transaction, L2Block, L2Number,
    QueueIndex, TracedCall,
};

/// The format's version; another one is refused.
const FORMAT: u32 = 1;
/// Largest `fixture.json` that is read.
const MAX_FACTS: u64 = 256 << 20;
/// Largest `l2.json` after decompression: bounds the allocation before it happens.
const MAX_L2: usize = 1 << 30;

/// A fixture that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// A file cannot be read or written.
    #[error("{file}: {source}")]
    Io {
        /// The file's name inside the fixture.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content is not what it must be.
    #[error("{file}: {detail}")]
    Content {
        /// The file's name inside the fixture.
        file: String,
        /// What is wrong.
        detail: String,
    },
}

/// The L1 facts of a fixture.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Format version.
    pub format: u32,
    /// The networks and contracts.
    pub identity: Identity,
    /// The single-sequencer switch in milliseconds since the Unix epoch.
    pub switch_ms: u64,
    /// First L1 block of the range.
    pub from: L1Number,
    /// Last L1 block of the range.
    pub to: L1Number,
    /// Logs below `from` were read down to here, for L1 messages that the range's batches consume.
    pub scanned_from: L1Number,
    /// L1's finalized header when it was recorded, at most `to`.
    pub finalized: Option<L1Header>,
    /// Headers of the range and of every other block that something below lies in.
    pub headers: Vec<L1Header>,
    /// Logs from `scanned_from` to `to`.
    pub events: Vec<L1Event>,
    /// Commits of the range's indices that lie below `from` (blobs that a blobless commit reuses).
    pub earlier_commits: Vec<L1Event>,
    /// Every committing transaction.
    pub transactions: Vec<L1Transaction>,
    /// Calls to the Rollup contract inside transactions that reach it through another contract; none where no
    /// endpoint traced.
    pub traces: BTreeMap<B256, Option<Vec<TracedCall>>>,
    /// `committedBatches`, newest state.
    pub committed: BTreeMap<BatchIndex, B256>,
    /// `lastCommittedBatchIndex` at `to`.
    pub last_committed: Option<BatchIndex>,
    /// `getCrossDomainMessage` of the consumed messages.
    pub queue_hashes: BTreeMap<QueueIndex, B256>,
}

/// The L2 side of a fixture.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L2Facts {
    /// The chain from the block below the first batch to the last batch's end and what was recorded above it.
    pub blocks: Vec<L2Block>,
    /// `messageRoot()` at those blocks where it was asked.
    pub message_roots: BTreeMap<L2Number, B256>,
}

/// A whole fixture.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// L1.
    pub facts: Facts,
    /// L2; none when it was recorded without an L2 node.
    pub l2: Option<L2Facts>,
    /// Blobs by versioned hash.
    pub blobs: BTreeMap<B256, Blob>,
}

fn io(file: &str) -> impl FnOnce(std::io::Error) -> FixtureError + '_ {
    move |source| FixtureError::Io { file: file.to_owned(), source }
}

fn content(file: &str, detail: impl std::fmt::Display) -> FixtureError {
    FixtureError::Content { file: file.to_owned(), detail: detail.to_string() }
}

impl Fixture {
    /// A new set of facts in the present format.
    pub const fn format() -> u32 {
        FORMAT
    }

    /// Reads the fixture in folder `dir`.
    ///
    /// # Errors
    /// Unreadable or oversized files, another format, a blob that does not hash to its name.
    pub fn read(dir: &Path) -> Result<Self, FixtureError> {
        let name = "fixture.json";
        let path = dir.join(name);
        let size = std::fs::metadata(&path).map_err(io(name))?.len();
        if size > MAX_FACTS {
            return Err(content(name, format!("{size} bytes are more than {MAX_FACTS}")));
        }
        let text = std::fs::read(&path).map_err(io(name))?;
        let facts: Facts = serde_json::from_slice(&text).map_err(|e| content(name, e))?;
        if facts.format != FORMAT {
            return Err(content(name, format!("format {} is not {FORMAT}", facts.format)));
        }
        Ok(Self { facts, l2: read_l2(dir)?, blobs: read_blobs(dir)? })
    }

    /// Writes the fixture into folder `dir`, which is created.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), FixtureError> {
        std::fs::create_dir_all(dir.join("blobs")).map_err(io("blobs"))?;
        let facts = serde_json::to_vec_pretty(&self.facts).map_err(|e| content("fixture.json", e))?;
        std::fs::write(dir.join("fixture.json"), facts).map_err(io("fixture.json"))?;
        if let Some(l2) = &self.l2 {
            let name = "l2.json.zst";
            let text = serde_json::to_vec(l2).map_err(|e| content(name, e))?;
            let packed = zstd::bulk::compress(&text, 19).map_err(io(name))?;
            std::fs::write(dir.join(name), packed).map_err(io(name))?;
        }
        for (hash, blob) in &self.blobs {
            let name = format!("blobs/{hash:?}.zst");
            let packed = zstd::bulk::compress(blob.as_bytes(), 19).map_err(io(&name))?;
            std::fs::write(dir.join(&name), packed).map_err(io(&name))?;
        }
        Ok(())
    }
}

fn read_l2(dir: &Path) -> Result<Option<L2Facts>, FixtureError> {
    let name = "l2.json.zst";
    let path = dir.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let packed = std::fs::read(path).map_err(io(name))?;
    let text = unpack(&packed, MAX_L2).map_err(io(name))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| content(name, e))
}

/// Decompresses at most `limit` bytes, allocating only for what really comes out.
fn unpack(packed: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    let bound = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut decoder = zstd::stream::Decoder::new(packed)?.take(bound.saturating_add(1));
    decoder.read_to_end(&mut text)?;
    if text.len() > limit {
        return Err(std::io::Error::other(format!("more than {limit} bytes after decompression")));
    }
    Ok(text)
}

fn read_blobs(dir: &Path) -> Result<BTreeMap<B256, Blob>, FixtureError> {
    let mut blobs = BTreeMap::new();
    let folder = dir.join("blobs");
    if !folder.exists() {
        return Ok(blobs);
    }
    for entry in std::fs::read_dir(folder).map_err(io("blobs"))? {
        let entry = entry.map_err(io("blobs"))?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let Some(stem) = file.strip_suffix(".zst") else { continue };
        let hash: B256 = stem.parse().map_err(|e| content(&file, e))?;
        let packed = std::fs::read(entry.path()).map_err(io(&file))?;
        let bytes = unpack(&packed, BLOB_BYTES).map_err(io(&file))?;
        let blob = Blob::new(bytes).ok_or_else(|| content(&file, "not 131072 bytes"))?;
        let actual = crate::codec::blob::blob_hash(&blob).map_err(|e| content(&file, e))?;
        if actual != hash {
            return Err(content(&file, format!("its versioned hash is {actual:?}")));
        }
        blobs.insert(hash, blob);
    }
    Ok(blobs)
}
