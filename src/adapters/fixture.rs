//! What `record` writes and `replay` reads: the facts of a range of L1, and the L2 blocks that belong to it.
//!
//! A folder with `fixture.json` (L1 facts), `l2.json.zst` (blocks, compressed JSON) and `blobs/HASH.zst` (one blob a
//! file, compressed). Decided here: the format and its bounds. A fixture is input like any other: every size is
//! bounded before anything is allocated, and a blob counts only if its commitment gives its name.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::blob;
use crate::types::{
    B256, BLOB_BYTES, BatchIndex, Blob, Identity, L1Event, L1Header, L1Number, L1Ref, L1Tag, L1Transaction, L2Block,
    L2Number, QueueIndex, TracedCall, hex_map,
};

/// The format's version. The first one is read too; any other is refused.
const FORMAT: u32 = 2;
/// Largest `fixture.json` that is read or written.
pub const MAX_FACTS: usize = 256 << 20;
/// Largest `l2.json` before compression: bounds the allocation before it happens.
pub const MAX_L2: usize = 1 << 30;
/// Most blobs that are read or written: 512 MiB in memory.
pub const MAX_BLOBS: usize = 4096;
/// The file that is written last and read first: a folder without it is no fixture.
const FACTS: &str = "fixture.json";
/// The L2 side.
const L2: &str = "l2.json.zst";

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

/// Which logs were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Logs {
    /// All of them.
    All,
    /// The CommitBatch logs of one batch.
    Commits(BatchIndex),
    /// The RevertBatch logs of one batch.
    Reverts(BatchIndex),
    /// The RevertBatch and FinalizeBatch logs.
    Settlements,
    /// The QueueTransaction logs.
    Queued,
}

impl Logs {
    /// Whether the answer to this question holds the answer to `other` as well.
    fn holds(self, other: Self) -> bool {
        self == other || self == Self::All || (self == Self::Settlements && matches!(other, Self::Reverts(_)))
    }
}

/// L1 blocks of which the logs were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Which ones.
    pub logs: Logs,
    /// First block.
    pub from: L1Number,
    /// Last block.
    pub to: L1Number,
}

/// What the contract said in several of its states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct States<T> {
    /// In its newest state.
    pub newest: T,
    /// After an L1 block.
    pub at: BTreeMap<L1Number, T>,
}

impl<T: Default> States<T> {
    /// In the state after L1 block `at`, in the newest one when none.
    pub fn get(&self, at: Option<L1Number>) -> Option<&T> {
        at.map_or(Some(&self.newest), |at| self.at.get(&at))
    }

    /// As [`States::get`], to be filled.
    pub fn get_mut(&mut self, at: Option<L1Number>) -> &mut T {
        match at {
            None => &mut self.newest,
            Some(at) => self.at.entry(at).or_default(),
        }
    }
}

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The networks and contracts.
    pub identity: Identity,
    /// The single-sequencer switch in milliseconds since the Unix epoch.
    pub switch_ms: u64,
    /// First L1 block of the range.
    pub from: L1Number,
    /// Last L1 block of the range: L1's newest block in a replay.
    pub to: L1Number,
    /// Nothing below this L1 block can hold a log.
    pub origin: L1Number,
    /// L1 blocks per request for logs.
    pub fetch_range: u64,
}

/// The L1 facts of a fixture: what was answered, by what it is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Format version.
    pub format: u32,
    /// What was recorded.
    pub range: Range,
    /// The headers that the tags named, none above `to`.
    pub tags: Vec<(L1Tag, Option<L1Header>)>,
    /// Headers of the range and of every other block that was asked for, ascending.
    pub headers: Vec<L1Header>,
    /// Which logs were asked for.
    pub stretches: Vec<Stretch>,
    /// Every log that was answered, ordered.
    pub events: Vec<L1Event>,
    /// The last block of every piece of an answer that names them.
    pub ends: Vec<L1Ref>,
    /// Transactions.
    pub transactions: Vec<L1Transaction>,
    /// Transactions that were asked for and that L1 does not have, by block and place.
    pub no_transactions: Vec<(L1Ref, u64)>,
    /// Calls to the Rollup contract inside transactions; none if no endpoint traced.
    pub traces: BTreeMap<B256, Option<Vec<TracedCall>>>,
    /// `committedBatches`.
    pub committed: States<BTreeMap<BatchIndex, B256>>,
    /// `lastCommittedBatchIndex`.
    pub last_committed: States<Option<BatchIndex>>,
    /// `lastFinalizedBatchIndex`.
    pub last_finalized: States<Option<BatchIndex>>,
    /// `batchBlobVersionedHashes`, newest state.
    pub blob_fields: BTreeMap<BatchIndex, B256>,
    /// `batchDataStore(index).blockNumber`, newest state.
    pub last_blocks: BTreeMap<BatchIndex, L2Number>,
    /// `getCrossDomainMessage`, newest state.
    pub queue_hashes: BTreeMap<QueueIndex, B256>,
    /// KZG commitments (48 bytes) that beacon blocks hold, by versioned hash, where they were asked for and offered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "hex_map")]
    pub commitments: BTreeMap<B256, Bytes>,
}

impl Facts {
    /// Nothing answered yet about `range`.
    pub fn new(range: Range) -> Self {
        Self {
            format: FORMAT,
            range,
            tags: Vec::new(),
            headers: Vec::new(),
            stretches: Vec::new(),
            events: Vec::new(),
            ends: Vec::new(),
            transactions: Vec::new(),
            no_transactions: Vec::new(),
            traces: BTreeMap::new(),
            committed: States::default(),
            last_committed: States::default(),
            last_finalized: States::default(),
            blob_fields: BTreeMap::new(),
            last_blocks: BTreeMap::new(),
            queue_hashes: BTreeMap::new(),
            commitments: BTreeMap::new(),
        }
    }

    /// Whether `logs` of blocks `from..=to` were asked for, in however many pieces.
    pub fn holds(&self, logs: Logs, from: L1Number, to: L1Number) -> bool {
        let mut next = from;
        loop {
            if next > to {
                return true;
            }
            let here = |s: &&Stretch| s.logs.holds(logs) && s.from <= next && s.to >= next;
            match self.stretches.iter().filter(here).map(|s| s.to).max() {
                None => return false,
                // The highest number has none after it.
                Some(reached) if reached >= to => return true,
                Some(reached) => next = reached.plus(1),
            }
        }
    }

    /// The header of an L1 block.
    pub fn header(&self, number: L1Number) -> Option<L1Header> {
        let place = self.headers.binary_search_by_key(&number, |h| h.number).ok()?;
        self.headers.get(place).copied()
    }

    /// Puts in order what is looked for by its place.
    fn sort(&mut self) {
        self.headers.sort_by_key(|h| h.number);
        self.events.sort_by_key(|e| (e.block.number, e.log_index));
        self.events.dedup();
    }
}

/// The facts as the first format had them: by batch and range, not by question.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstFacts {
    #[serde(rename = "format")]
    _format: u32,
    identity: Identity,
    switch_ms: u64,
    from: L1Number,
    to: L1Number,
    scanned_from: L1Number,
    finalized: Option<L1Header>,
    headers: Vec<L1Header>,
    events: Vec<L1Event>,
    earlier_commits: Vec<L1Event>,
    transactions: Vec<L1Transaction>,
    traces: BTreeMap<B256, Option<Vec<TracedCall>>>,
    committed: BTreeMap<BatchIndex, B256>,
    last_committed: Option<BatchIndex>,
    queue_hashes: BTreeMap<QueueIndex, B256>,
}

impl From<FirstFacts> for Facts {
    fn from(first: FirstFacts) -> Self {
        let stretch = |logs, from| Stretch { logs, from, to: first.to };
        fn of<T: Clone>(newest: T, to: L1Number) -> States<T> {
            States { at: std::iter::once((to, newest.clone())).collect(), newest }
        }
        let mut stretches = vec![stretch(Logs::All, first.scanned_from)];
        for index in first.committed.keys() {
            // Below the range such a fixture holds every commit, and no revert was left out that matters.
            stretches.extend([Logs::Commits(*index), Logs::Reverts(*index)].map(|logs| stretch(logs, 0.into())));
        }
        let events = first.earlier_commits.into_iter().chain(first.events).collect();
        let range = Range {
            identity: first.identity,
            switch_ms: first.switch_ms,
            from: first.from,
            to: first.to,
            origin: first.scanned_from,
            fetch_range: 500,
        };
        Self {
            tags: [L1Tag::Safe, L1Tag::Finalized].map(|tag| (tag, first.finalized)).to_vec(),
            headers: first.headers,
            stretches,
            events,
            transactions: first.transactions,
            traces: first.traces,
            committed: of(first.committed, first.to),
            last_committed: of(first.last_committed, first.to),
            queue_hashes: first.queue_hashes,
            ..Self::new(range)
        }
    }
}

/// The L2 side of a fixture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L2Facts {
    /// The chain from the block below the first batch to the last block that was asked for. Of the first one the header
    /// may be all there is.
    pub blocks: Vec<L2Block>,
    /// `messageRoot()` at those blocks if it was asked and the node still had it.
    pub message_roots: BTreeMap<L2Number, B256>,
    /// The root of the last AppendMessage log in the blocks from the first to the second number, if it was asked.
    #[serde(default)]
    pub appended_roots: Vec<(L2Number, L2Number, Option<B256>)>,
}

/// A whole fixture.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// L1.
    pub facts: Facts,
    /// L2; none if it was recorded without an L2 node.
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
    /// Reads the fixture in folder `dir`.
    ///
    /// # Errors
    /// Unreadable or oversized files, an unknown format, a blob that does not hash to its name.
    pub fn read(dir: &Path) -> Result<Self, FixtureError> {
        let text = read_file(dir, FACTS, MAX_FACTS)?;
        let mut facts = read_facts(&text).map_err(|e| content(FACTS, e))?;
        facts.sort();
        Ok(Self { facts, l2: read_l2(dir)?, blobs: read_blobs(dir)? })
    }

    /// Writes the fixture into folder `dir`, which is created. An interrupted write leaves no `dir`, only a folder
    /// beside it that is not a fixture.
    ///
    /// # Errors
    /// Files that cannot be written, a folder that exists, a fixture that is larger than what is read.
    pub fn write(&self, dir: &Path) -> Result<(), FixtureError> {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let partial = dir.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        // A process that was killed may have left one, and had this one's number.
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(io(&name))?;
        }
        let written = self.write_files(&partial).and_then(|()| std::fs::rename(&partial, dir).map_err(io(&name)));
        if written.is_err() {
            // What cannot be removed is no fixture either.
            let _ = std::fs::remove_dir_all(&partial);
        }
        written
    }

    fn write_files(&self, dir: &Path) -> Result<(), FixtureError> {
        std::fs::create_dir_all(dir.join("blobs")).map_err(io("blobs"))?;
        for (hash, blob) in &self.blobs {
            write_packed(dir, &format!("blobs/{hash:?}.zst"), blob.as_bytes(), BLOB_BYTES)?;
        }
        if let Some(l2) = &self.l2 {
            let text = serde_json::to_vec(l2).map_err(|e| content(L2, e))?;
            write_packed(dir, L2, &text, MAX_L2)?;
        }
        let text = serde_json::to_vec_pretty(&self.facts).map_err(|e| content(FACTS, e))?;
        if text.len() > MAX_FACTS {
            return Err(content(FACTS, format!("{} bytes are more than {MAX_FACTS}", text.len())));
        }
        std::fs::write(dir.join(FACTS), text).map_err(io(FACTS))
    }
}

/// Writes `bytes`, at most `limit` of them, compressed.
fn write_packed(dir: &Path, name: &str, bytes: &[u8], limit: usize) -> Result<(), FixtureError> {
    if bytes.len() > limit {
        return Err(content(name, format!("{} bytes are more than {limit}", bytes.len())));
    }
    let packed = zstd::bulk::compress(bytes, 19).map_err(io(name))?;
    std::fs::write(dir.join(name), packed).map_err(io(name))
}

fn read_facts(text: &[u8]) -> Result<Facts, String> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let Versioned { format } = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    match format {
        1 => serde_json::from_slice::<FirstFacts>(text).map(Facts::from).map_err(|e| e.to_string()),
        FORMAT => serde_json::from_slice(text).map_err(|e| e.to_string()).and_then(bound),
        other => Err(format!("format {other} is neither 1 nor {FORMAT}; was it recorded by a newer program?")),
    }
}

/// The facts, if every commitment in them hashes to its name.
fn bound(facts: Facts) -> Result<Facts, String> {
    let hashes_to = |bytes: &Bytes| Some(blob::versioned_hash(bytes.as_ref().try_into().ok()?));
    match facts.commitments.iter().find(|(hash, bytes)| hashes_to(bytes) != Some(**hash)) {
        Some((hash, _)) => Err(format!("the commitment of {hash:?} does not hash to it")),
        None => Ok(facts),
    }
}

fn read_l2(dir: &Path) -> Result<Option<L2Facts>, FixtureError> {
    if !dir.join(L2).exists() {
        return Ok(None);
    }
    let packed = read_file(dir, L2, MAX_L2)?;
    let text = unpack(&packed, MAX_L2).map_err(io(L2))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| content(L2, e))
}

/// The bytes of a file of at most `limit` bytes.
fn read_file(dir: &Path, name: &str, limit: usize) -> Result<Vec<u8>, FixtureError> {
    let file = std::fs::File::open(dir.join(name)).map_err(io(name))?;
    at_most(file, limit).map_err(io(name))
}

/// Decompresses at most `limit` bytes, allocating only for what really comes out.
fn unpack(packed: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    at_most(zstd::stream::Decoder::new(packed)?, limit)
}

fn at_most(from: impl Read, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let bound = u64::try_from(limit).unwrap_or(u64::MAX);
    from.take(bound.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(std::io::Error::other(format!("more than {limit} bytes")));
    }
    Ok(bytes)
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
        let packed = read_file(&dir.join("blobs"), &file, 2 * BLOB_BYTES)?;
        let bytes = unpack(&packed, BLOB_BYTES).map_err(io(&file))?;
        let blob = Blob::new(bytes).ok_or_else(|| content(&file, "not 131072 bytes"))?;
        let actual = blob::blob_hash(&blob).map_err(|e| content(&file, e))?;
        if actual != hash {
            return Err(content(&file, format!("its versioned hash is {actual:?}")));
        }
        if blobs.len() >= MAX_BLOBS {
            return Err(content("blobs", format!("more than {MAX_BLOBS} blobs")));
        }
        blobs.insert(hash, blob);
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Address;

    fn fixture() -> Fixture {
        let identity = Identity {
            l1_chain_id: 1,
            l2_chain_id: 2,
            rollup: Address::repeat_byte(1),
            queue: Address::repeat_byte(2),
            l2_genesis: B256::zero(),
        };
        let range = Range { identity, switch_ms: 0, from: 1.into(), to: 9.into(), origin: 0.into(), fetch_range: 500 };
        Fixture { facts: Facts::new(range), l2: Some(L2Facts::default()), blobs: BTreeMap::new() }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn p6_what_a_killed_process_of_the_same_number_left_is_no_part_of_a_fixture() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(format!(".out.{}.partial", std::process::id()));
        std::fs::create_dir_all(left.join("blobs")).unwrap();
        std::fs::write(left.join("blobs/stranger.zst"), b"x").unwrap();
        fixture().write(&folder.path().join("out")).unwrap();
        assert!(!folder.path().join("out/blobs/stranger.zst").exists() && !left.exists());
    }

    #[test]
    fn p6_a_fixture_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("below").join("fixture");
        fixture().write(&out).unwrap();
        assert_eq!(Fixture::read(&out).unwrap().l2, Some(L2Facts::default()));
        assert_eq!(names(&folder.path().join("below")), ["fixture"]);
        // An existing folder is not overwritten, and nothing is left beside it.
        let mut other = fixture();
        other.l2 = None;
        other.write(&out).unwrap_err();
        assert_eq!(Fixture::read(&out).unwrap().l2, Some(L2Facts::default()));
        assert_eq!(names(&folder.path().join("below")), ["fixture"]);
    }

    /// The file that makes a fixture is the last one: an interrupted write left what is not read.
    #[test]
    fn p6_what_an_interrupted_write_leaves_is_no_fixture() {
        let folder = tempfile::tempdir().unwrap();
        let partial = folder.path().join("partial");
        // A folder with the last file's name is in its way.
        std::fs::create_dir_all(partial.join(FACTS)).unwrap();
        fixture().write_files(&partial).unwrap_err();
        assert!(partial.join(L2).exists(), "the others were written before");
        std::fs::remove_dir(partial.join(FACTS)).unwrap();
        let error = Fixture::read(&partial).unwrap_err().to_string();
        assert!(error.starts_with("fixture.json: "), "{error}");
    }

    #[test]
    fn p7_no_file_is_read_beyond_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), vec![0; 11]).unwrap();
        assert_eq!(read_file(folder.path(), "file", 11).unwrap().len(), 11);
        read_file(folder.path(), "file", 10).unwrap_err();
        let packed = zstd::bulk::compress(&[0; 5000], 1).unwrap();
        assert_eq!(unpack(&packed, 5000).unwrap().len(), 5000);
        unpack(&packed, 4999).unwrap_err();
        write_packed(folder.path(), "packed", &[0; 11], 10).unwrap_err();
    }

    #[test]
    fn p7_a_commitment_that_does_not_hash_to_its_name_is_no_fact() {
        let commitment = [0xc0; 48];
        let named = |hash: B256, bytes: &[u8]| {
            let mut facts = fixture().facts;
            facts.commitments.insert(hash, Bytes::copy_from_slice(bytes));
            serde_json::to_string(&facts).unwrap()
        };
        let hash = blob::versioned_hash(&commitment);
        assert_eq!(read_facts(named(hash, &commitment).as_bytes()).unwrap().commitments.len(), 1);
        for text in [named(B256::repeat_byte(1), &commitment), named(hash, &commitment[1..]), named(hash, &[0; 48])] {
            assert!(read_facts(text.as_bytes()).unwrap_err().contains("does not hash"));
        }
        // A fixture of before has none, and one without any looks like one of before.
        let without = serde_json::to_string(&fixture().facts).unwrap();
        assert!(!without.contains("commitments") && read_facts(without.as_bytes()).unwrap().commitments.is_empty());
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        let text = serde_json::to_string(&fixture().facts).unwrap();
        assert!(text.contains("\"format\":2"), "{text}");
        read_facts(text.as_bytes()).unwrap();
        let newer = text.replace("\"format\":2", "\"format\":3");
        assert!(read_facts(newer.as_bytes()).unwrap_err().contains("format 3"));
        let unnumbered = text.replace("\"format\":2,", "");
        assert!(read_facts(unnumbered.as_bytes()).unwrap_err().contains("format"));
    }
}
