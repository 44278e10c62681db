//! The real data that the other tests read (tests/vectors): whole, and only what its list names.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::support::vectors;

/// Digests by file name, `/` between folders, of all that lies in `folder`.
fn digests(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            digests(&entry.path(), &format!("{name}/"), found);
        } else {
            found.insert(name, const_hex::encode(Sha256::digest(std::fs::read(entry.path()).unwrap())));
        }
    }
}

#[test]
fn the_archive_holds_what_its_list_says() {
    let list = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/SHA256SUMS")).unwrap();
    let listed: BTreeMap<String, String> = list
        .lines()
        .map(|line| line.split_once("  ").unwrap())
        .map(|(digest, name)| (name.to_owned(), digest.to_owned()))
        .collect();
    let mut held = BTreeMap::new();
    digests(&vectors(), "", &mut held);
    assert_eq!(held, listed);
    assert_eq!(held.len(), 72);
}
