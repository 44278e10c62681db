//! The real data of the tests: unpacks `vectors.tar.zst` and says where.
//!
//! Included by path where tests and benchmarks need it: the unit tests (`src/codec/testing.rs`), the integration tests,
//! the encoder's tests, the benchmark. `README.md` beside this file says what the archive holds and how it was made.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// Headers and contents of a tar archive are laid out in blocks of this size.
const TAR_BLOCK: usize = 512;

/// The folder of the real data. It is always there; tests only read it.
///
/// It lies in the build's own folder (`OUT_DIR`), under a name that holds the archive's digest: unpacked once a build,
/// unpacked anew if the archive changes, gone after `cargo clean`.
///
/// # Panics
/// If the archive is missing or broken, or the build's folder cannot be written.
pub fn vectors() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| unpacked(Path::new(env!("OUT_DIR")))).clone()
}

fn unpacked(room: &Path) -> PathBuf {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/vectors.tar.zst");
    let packed = must(fs::read(&archive), &archive);
    let folder = room.join(format!("vectors-{}", const_hex::encode(&Sha256::digest(&packed)[..8])));
    if folder.is_dir() {
        return folder;
    }
    let tar = must(zstd::decode_all(packed.as_slice()), &archive);
    // Another test process may unpack at this moment: each writes a folder of its own, and the first one gives its
    // folder the name.
    let own = folder.with_extension(std::process::id().to_string());
    for (name, content) in files(&tar) {
        let file = own.join(name);
        let parent = file.parent().unwrap_or(&own);
        must(fs::create_dir_all(parent), parent);
        must(fs::write(&file, content), &file);
    }
    if let Err(error) = fs::rename(&own, &folder) {
        assert!(folder.is_dir(), "{}: {error}", folder.display());
        must(fs::remove_dir_all(&own), &own);
    }
    folder
}

/// Names and contents of a tar archive with nothing but plain files under short names (ustar): what `pack.sh` writes.
/// A crate for tar would read every other kind too; none is needed.
fn files(tar: &[u8]) -> Vec<(&str, &[u8])> {
    /// A field of text, which ends at its first zero byte.
    fn text(field: &[u8]) -> &str {
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_else(|_| panic!("tar: a field is no text"))
    }
    let mut found = Vec::new();
    let mut rest = tar;
    while let Some((header, after)) = rest.split_at_checked(TAR_BLOCK).filter(|(header, _)| header[0] != 0) {
        let name = text(&header[..100]);
        assert!(header[156] == b'0' && header[345] == 0, "tar: {name} is no plain file under a short name");
        let plain = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        assert!(plain, "tar: {name} leaves the folder");
        let digits = text(&header[124..136]);
        let size =
            usize::from_str_radix(digits.trim(), 8).unwrap_or_else(|_| panic!("tar: {name} has the size {digits}"));
        let content = after.get(..size).unwrap_or_else(|| panic!("tar: {name} is cut off"));
        found.push((name, content));
        rest = after.get(size.next_multiple_of(TAR_BLOCK)..).unwrap_or_default();
    }
    assert!(!found.is_empty(), "tar: no file");
    found
}

fn must<T>(result: std::io::Result<T>, path: &Path) -> T {
    result.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
