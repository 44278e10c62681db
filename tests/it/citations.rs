//! The repository is complete in itself: what its comments and pages cite is in it.
//!
//! Decided here: a page (`….md`) is named by its path from the root, from the folder of the file that names it, or from
//! `docs/`; a section of the protocol page exists; a path with `..` stays inside the repository and exists; so does a source
//! file that is named by its path. Nothing names a folder of somebody's machine.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// What is read, below the root.
const READ: [&str; 20] = [
    ".ci",
    "benches",
    "build",
    "build.rs",
    "Cargo.toml",
    "CHANGELOG.md",
    "clippy.toml",
    "config.toml",
    "CONTRIBUTING.md",
    "contracts",
    "deny.toml",
    "docs",
    "justfile",
    "LICENSE-MIT",
    "migrations",
    "README.md",
    "rustfmt.toml",
    "SECURITY.md",
    "src",
    "tests",
];

/// Folders that lie on one machine only.
const MACHINE: [&str; 3] = ["/work", "/root", "/home"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        found.push(path.to_path_buf());
        return;
    }
    for entry in std::fs::read_dir(path).unwrap() {
        files(&entry.unwrap().path(), found);
    }
}

/// The words of `text` that may name a file, with the text after each.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let part = |letter: char| letter.is_ascii_alphanumeric() || "_-./~:".contains(letter);
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[rest.find(part)?..];
        let end = rest.find(|letter| !part(letter)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        Some((word.trim_end_matches(['.', ':']), after))
    })
}

/// `path` without `.` and `..`; none if it leaves the root.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !plain.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

/// The numbers that follow `section` or `sections` at the head of `text`: `, sections 1 to 3, 5 and 7)` gives 1, 3, 5, 7.
fn sections(text: &str) -> Vec<u32> {
    let text = text.trim_start_matches(|letter: char| letter.is_whitespace() || "`),/!#'".contains(letter));
    let Some(rest) = text.strip_prefix("section") else { return Vec::new() };
    let mut found = Vec::new();
    for word in rest.strip_prefix('s').unwrap_or(rest).split_whitespace() {
        let number = word.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        match number.parse() {
            Ok(number) => found.push(number),
            Err(_) if matches!(word, "to" | "and" | "//" | "///" | "//!" | "#") => continue,
            Err(_) => break,
        }
        if !word.ends_with(',') && word != number {
            break;
        }
    }
    found
}

/// What a file that lies in the folder `folder` (below the root) cites wrongly. `exists` knows the repository.
fn faults(text: &str, folder: &Path, protocol: &str, exists: &dyn Fn(&Path) -> bool) -> BTreeSet<String> {
    let mut faults = BTreeSet::new();
    let there = |path: PathBuf| plain(&path).is_some_and(|path| exists(&path));
    for (word, after) in words(text).filter(|(word, _)| !word.contains("://")) {
        let path = Path::new(word);
        let machine = MACHINE.iter().any(|place| path.starts_with(place));
        let climbs = word.contains('/') && path.components().any(|part| part == Component::ParentDir);
        let source =
            word.ends_with(".rs") && ["src/", "tests/", "benches/", "build/"].iter().any(|at| word.starts_with(at));
        let page = word.ends_with(".md") && word.len() > 3;
        if machine || climbs && !there(folder.join(path)) || source && !there(path.to_path_buf()) {
            faults.insert(word.to_owned());
        }
        if page && !climbs {
            let places = [path.to_path_buf(), folder.join(path), Path::new("docs").join(path)];
            if !places.into_iter().any(there) {
                faults.insert(word.to_owned());
            }
        }
        if word.ends_with("protocol.md") {
            for section in sections(after) {
                if !protocol.contains(&format!("\n## {section}. ")) {
                    faults.insert(format!("{word}, section {section}"));
                }
            }
        }
    }
    faults
}

#[test]
fn whatever_is_cited_is_in_the_repository() {
    let protocol = std::fs::read_to_string(root().join("docs/protocol.md")).unwrap();
    let mut all = Vec::new();
    for place in READ {
        files(&root().join(place), &mut all);
    }
    assert!(all.len() > 100, "only {} files", all.len());
    let mut wrong = Vec::new();
    for path in all {
        let file = path.strip_prefix(root()).unwrap();
        // This file holds wrong citations on purpose; what is no text cites nothing.
        let Ok(text) = String::from_utf8(std::fs::read(&path).unwrap()) else { continue };
        if file.ends_with("tests/it/citations.rs") {
            continue;
        }
        let folder = file.parent().unwrap();
        let found = faults(&text, folder, &protocol, &|path| root().join(path).exists());
        wrong.extend(found.into_iter().map(|fault| format!("{}: {fault}", file.display())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn wrong_citations_are_found() {
    let there = ["README.md", "docs/protocol.md", "tests/it/main.rs", "tests/it", "build/patch.rs"];
    let check = |text: &str| -> Vec<String> {
        let protocol = "# The protocol\n\n## 1. One\n\n## 2. Two\n";
        let exists = |path: &Path| there.iter().any(|known| Path::new(known) == path);
        faults(text, Path::new("tests/it"), protocol, &exists).into_iter().collect()
    };
    for right in [
        "(protocol.md, section 1)",
        "(protocol.md,\n/// section 2)",
        "protocol.md, sections 1 and 2.",
        "[`docs/protocol.md`](../../docs/protocol.md)",
        "include_str!(\"../../README.md\")",
        "#[path = \"../../build/patch.rs\"]",
        "README.md, tests/it/main.rs.",
        "0..5, [..], a/b, https://example.org/other.md",
    ] {
        assert!(check(right).is_empty(), "{right}: {:?}", check(right));
    }
    assert_eq!(check("the case table of design.md, section 3"), ["design.md"]);
    assert_eq!(check("(protocol.md, section 3)"), ["protocol.md, section 3"]);
    assert_eq!(check("protocol.md, sections 1, 4 and 7;"), ["protocol.md, section 4", "protocol.md, section 7"]);
    assert_eq!(check("concat!(env!(\"HERE\"), \"/../shared\")"), ["/../shared"]);
    assert_eq!(check("../../../shared/README.md"), ["../../../shared/README.md"]);
    assert_eq!(check("what tests/encoder.rs does"), ["tests/encoder.rs"]);
    assert_eq!(check("ls /root/x"), ["/root/x"]);
}
