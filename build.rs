//! Compiles the sequencer's compressor: the C sources of the pinned `zstd-sys` once more, with the four differences of
//! `build/patch.rs`.
//!
//! The sources come from the registry's copy of `zstd-sys`, whose build script passes their folder to its dependents
//! (`DEP_ZSTD_INCLUDE`); a vendored or offline registry does as well, nothing is fetched.

#[path = "build/patch.rs"]
mod patch;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Name of the static library.
const LIBRARY: &str = "exact_zstd";

fn main() -> ExitCode {
    let Err(why) = build() else { return ExitCode::SUCCESS };
    eprintln!("the sequencer's compressor cannot be built: {why}");
    ExitCode::FAILURE
}

fn build() -> Result<(), String> {
    let sources = sources()?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build/patch.rs");
    println!("cargo:rerun-if-changed={}", sources.display());
    // For the test that alters a copy of them.
    println!("cargo:rustc-env=EXACT_ENCODER_SOURCES={}", sources.display());

    let out = PathBuf::from(variable("OUT_DIR")?);
    let copy = out.join("exact");
    let files = patch::prepare(&sources, &copy)?;
    cc::Build::new()
        .files(files)
        .include(&copy)
        .include(copy.join("common"))
        .define("XXH_PRIVATE_API", "")
        .define("ZSTDLIB_VISIBILITY", "")
        .define("ZSTDERRORLIB_VISIBILITY", "")
        .define("ZSTD_DISABLE_ASM", "")
        .define("ZSTD_LEGACY_SUPPORT", "0")
        .define("DEBUGLEVEL", "0")
        // No abort() in the library: the differential tests catch what an assertion would.
        .define("NDEBUG", None)
        .flag_if_supported("-fvisibility=hidden")
        .flag_if_supported("-ffunction-sections")
        .flag_if_supported("-fdata-sections")
        // Optimised in every profile: unoptimised, the tests would take minutes.
        .opt_level(3)
        .debug(false)
        .warnings(false)
        .try_compile(LIBRARY)
        .map_err(|e| e.to_string())?;
    check_names(&out.join(format!("lib{LIBRARY}.a")))
}

/// The folder with `common/` and `compress/`.
fn sources() -> Result<PathBuf, String> {
    let folders = variable("DEP_ZSTD_INCLUDE")?;
    let found = env::split_paths(&folders).find(|folder| folder.join("compress").is_dir());
    found.ok_or_else(|| {
        format!(
            "no sources in {folders:?}, which zstd-sys names; the exact encoder is made from its bundled sources, so \
             ZSTD_SYS_USE_PKG_CONFIG and the feature pkg-config must be off"
        )
    })
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}

/// Refuses an archive that exports a name without the prefix: linked beside the stock library, the linker might take
/// either of the two.
///
/// Reads the symbol index of a GNU archive: 8 bytes of magic, a 60-byte member header (name first, decimal size at 48),
/// then a big-endian count, as many 4-byte offsets, and the names, each ended by a zero. Archives of other systems have
/// other indices and are passed over; the sources are the same there.
fn check_names(archive: &Path) -> Result<(), String> {
    let Ok(bytes) = fs::read(archive) else { return Ok(()) };
    let Some(header) = bytes.get(8..68).filter(|header| header.starts_with(b"/ ")) else { return Ok(()) };
    let size: usize = String::from_utf8_lossy(&header[48..58]).trim().parse().unwrap_or_default();
    let index = bytes.get(68..68 + size).ok_or("the archive's index is cut off")?;
    let count = index.first_chunk().map_or(0, |count| u32::from_be_bytes(*count)) as usize;
    let names = index.get(4 + 4 * count..).ok_or("the archive's index is cut off")?;
    let mut checked = 0;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).take(count) {
        let name = String::from_utf8_lossy(name);
        if !name.starts_with(patch::PREFIX) {
            return Err(format!("the external name {name} was not prefixed"));
        }
        checked += 1;
    }
    if checked == 0 {
        return Err("the archive exports no name at all".to_owned());
    }
    Ok(())
}
