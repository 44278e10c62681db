//! Makes the C sources of the sequencer's compressor out of those of the pinned `zstd-sys`.
//!
//! Decided here: which four places differ (protocol.md, section 3), that each must be found exactly once, and what the
//! copy's external names are called. Not decided here: how the copy is compiled (`build.rs`).
//!
//! Plain `std`, because it is compiled twice: into the build script, and into `tests/encoder`, which alters a copy of
//! the sources and wants to see the step fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What every external name of the copy begins with, so that it links beside the stock library.
pub const PREFIX: &str = "exact_";

/// One of the four differences.
pub struct Edit {
    /// What it is called in messages.
    pub name: &'static str,
    /// The file, below the folder of the library.
    pub file: &'static str,
    /// Stock text; must occur exactly once.
    pub find: &'static str,
    /// The sequencer's.
    pub replace: &'static str,
}

/// The four differences, in the order of protocol.md, section 3.
pub const EDITS: [Edit; 4] = [
    // Single segment up to 2^24 bytes of content, not only up to the window.
    Edit {
        name: "single-segment header",
        file: "compress/zstd_compress.c",
        find: "params->fParams.contentSizeFlag && (windowSize >= pledgedSrcSize);",
        replace: "params->fParams.contentSizeFlag && (windowSize >= pledgedSrcSize\n\
                  \x20       || (params->cParams.windowLog <= 17 && pledgedSrcSize <= ((U64)1 << 24)));",
    },
    // Sequences that all share one symbol: the predefined table for any number of them, not only for one or two.
    Edit {
        name: "predefined instead of RLE",
        file: "compress/zstd_compress_sequences.c",
        find: "if (isDefaultAllowed && nbSeq <= 2) {",
        replace: "if (isDefaultAllowed) {",
    },
    // Forgetting the table of the block before, at the head of the choice, closes both of its ways to repeat it.
    Edit {
        name: "no repeated table",
        file: "compress/zstd_compress_sequences.c",
        find: "    if (mostFrequent == nbSeq) {\n",
        replace: "    *repeatMode = FSE_repeat_none;\n    if (mostFrequent == nbSeq) {\n",
    },
    // Only what is written changes. The estimate that decides where to split still assumes that tables are written once.
    Edit {
        name: "tables in every sub-block",
        file: "compress/zstd_compress_superblock.c",
        find: "    if (writeEntropy) {\n        const U32 LLtype = fseMetadata->llType;\n",
        replace: "    if (1) {\n        const U32 LLtype = fseMetadata->llType;\n",
    },
];

/// Sources that compression on one thread, without tracing, does not need.
const LEFT_OUT: [&str; 5] = ["debug.c", "pool.c", "threading.c", "xxhash.c", "zstdmt_compress.c"];

/// What the library's external names begin with. xxHash is compiled into its users (`XXH_PRIVATE_API`).
const FAMILIES: [&str; 6] = ["ZSTD_", "HUF_", "FSE_", "HIST_", "ERR_", "POOL_"];

/// Makes `edit` in `text`, or says which edit found no single place in which file.
pub fn apply(text: &str, edit: &Edit) -> Result<String, String> {
    let found = text.matches(edit.find).count();
    if found != 1 {
        return Err(format!(
            "edit \"{}\" must match in exactly one place of {}, matched in {found}: these are not the sources of \
             zstd 1.5.5 that the pinned zstd-sys carries",
            edit.name, edit.file
        ));
    }
    Ok(text.replacen(edit.find, edit.replace, 1))
}

/// Copies the library at `from` to `to` with the four edits and prefixed names; answers the C files to compile.
///
/// Fails when a file is missing, or when an edit does not match in exactly one place.
pub fn prepare(from: &Path, to: &Path) -> Result<Vec<PathBuf>, String> {
    let mut texts = Vec::new();
    for name in ["zstd.h", "zstd_errors.h"] {
        texts.push((name.to_owned(), read(&from.join(name))?));
    }
    for folder in ["common", "compress"] {
        for name in names_in(&from.join(folder))? {
            let text = read(&from.join(folder).join(&name))?;
            texts.push((format!("{folder}/{name}"), text));
        }
    }
    for edit in &EDITS {
        let Some((_, text)) = texts.iter_mut().find(|(name, _)| name == edit.file) else {
            return Err(format!("edit \"{}\" needs {}, which {} does not hold", edit.name, edit.file, from.display()));
        };
        *text = apply(text, edit)?;
    }
    let mut sources = Vec::new();
    for (name, text) in &texts {
        if LEFT_OUT.iter().any(|left_out| name.ends_with(&format!("/{left_out}"))) {
            continue;
        }
        let path = to.join(name);
        write(&path, &rename(text))?;
        if name.ends_with(".c") {
            sources.push(path);
        }
    }
    Ok(sources)
}

/// `text` with [`PREFIX`] before every name of the library.
///
/// A name is a word that begins with a family's prefix and holds a small letter behind it, or nothing, where the macro
/// processor appends the rest; settings, which the build gives from outside, are all capitals. Types, macros and static functions are renamed with the rest, which does no harm.
/// Text and not `#define`s, because the library undefines and defines some of its functions' names itself. `build.rs`
/// looks at the finished archive, so a name that this misses stops the build.
fn rename(text: &str) -> String {
    let mut renamed = String::with_capacity(text.len() + text.len() / 8);
    let mut rest = text;
    while let Some(at) = rest.find(is_word) {
        let (before, from) = rest.split_at(at);
        let (word, behind) = from.split_at(from.find(|c| !is_word(c)).unwrap_or(from.len()));
        renamed.push_str(before);
        if is_name(word) {
            renamed.push_str(PREFIX);
        }
        renamed.push_str(word);
        rest = behind;
    }
    renamed.push_str(rest);
    renamed
}

fn is_name(word: &str) -> bool {
    let behind = FAMILIES.iter().find_map(|family| word.strip_prefix(family));
    behind.is_some_and(|behind| behind.is_empty() || behind.contains(|c: char| c.is_ascii_lowercase()))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The `.c` and `.h` files of a folder, sorted.
fn names_in(folder: &Path) -> Result<BTreeSet<String>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".c") || name.ends_with(".h") {
            names.insert(name);
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .map_err(|e| format!("cannot write {}: {e}", path.display()))
}
