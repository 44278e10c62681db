//! The house keeps its direction: reads the sources and fails on an import of a room to the right, and on async,
//! clocks, randomness or I/O in `codec/` and `decide/`, on SQL, JSON or HTTP in `flow/`, and on files that import each
//! other in a circle. Test modules and `testing.rs` files may import anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import besides itself.
const ROOMS: &[(&str, &[&str])] = &[
    ("types", &["error"]),
    ("error", &["types"]),
    ("codec", &["types", "error"]),
    ("decide", &["types", "error", "codec"]),
    ("ports", &["types", "error", "codec", "decide"]),
    ("redact", &["types", "error"]),
    ("adapters", &["types", "error", "codec", "decide", "ports", "redact"]),
    ("flow", &["types", "error", "codec", "decide", "ports"]),
    ("devnet", &["types", "error", "codec", "decide", "ports"]),
    ("config", &["types", "error", "redact"]),
    ("telemetry", &["types", "error", "redact", "config"]),
    ("server", &["types", "error", "codec", "decide", "ports", "redact", "flow", "config", "telemetry"]),
    (
        "commands",
        &[
            "types",
            "error",
            "codec",
            "decide",
            "ports",
            "redact",
            "adapters",
            "flow",
            "devnet",
            "config",
            "telemetry",
            "server",
        ],
    ),
    ("main", &["commands"]),
    ("lib", &[]),
];

/// Rooms without time, chance, log or I/O.
const PURE: &[&str] = &["codec", "decide"];

/// Words that have no place in a pure room.
const IMPURE_WORDS: &[&str] = &[
    "async",
    "await",
    "tokio",
    "sqlx",
    "tracing",
    "reqwest",
    "axum",
    "backoff",
    "rand",
    "getrandom",
    "SystemTime",
    "Instant",
    "println",
    "eprintln",
];

/// Paths that have no place in a pure room.
const IMPURE_PATHS: &[&str] = &["std::env", "std::fs", "std::net", "std::process", "std::thread"];

/// Words that have no place in `flow/`: everything outside is reached through ports.
const NOT_IN_FLOW: &[&str] = &["sqlx", "serde_json", "reqwest", "axum", "hyper", "ethers_core", "ethers_contract"];

/// `source` without comments, strings and test modules.
fn code_of(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut code = String::new();
    let mut i = 0;
    while i < chars.len() {
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                while i < chars.len() && !(at(i) == '*' && at(i + 1) == '/') {
                    i += 1;
                }
                i += 2;
            }
            'r' if matches!(at(i + 1), '"' | '#') && raw_string_end(&chars, i).is_some() => {
                i = raw_string_end(&chars, i).unwrap();
                code.push_str("\"\"");
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                code.push_str("\"\"");
            }
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c => {
                code.push(c);
                i += 1;
            }
        }
    }
    without_test_modules(&code)
}

/// Where the raw string that starts at `start` ends; none if none starts there.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let before = start.checked_sub(1).and_then(|i| chars.get(i));
    if before.is_some_and(|c| c.is_alphanumeric() || *c == '_') && before != Some(&'b') {
        return None;
    }
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let length = chars[open + 1..].windows(closing.len()).position(|window| window == closing)?;
    Some(open + 1 + length + closing.len())
}

/// Cuts every `#[cfg(test)] mod name { … }` out.
fn without_test_modules(code: &str) -> String {
    let mut rest = code;
    let mut kept = String::new();
    while let Some(start) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..start]);
        let behind = &rest[start + "#[cfg(test)]".len()..];
        let item = behind.trim_start();
        let is_module = item.starts_with("mod ") || item.starts_with("pub mod ") || item.starts_with("pub(crate) mod ");
        let (Some(open), semicolon) = (behind.find('{'), behind.find(';')) else {
            rest = behind;
            continue;
        };
        if !is_module || semicolon.is_some_and(|semicolon| semicolon < open) {
            rest = behind;
            continue;
        }
        let mut depth = 0;
        let end = behind[open..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + i + 1)
        });
        rest = &behind[end.unwrap_or(behind.len())..];
    }
    kept.push_str(rest);
    kept
}

/// The rooms that `code` names by `crate::` (or, in the binary, `morph_deriver::`).
fn imported(code: &str) -> BTreeSet<String> {
    let flat: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rooms = BTreeSet::new();
    for root in ["crate::", "morph_deriver::"] {
        for (at, _) in flat.match_indices(root) {
            let before = flat[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$')) {
                continue;
            }
            let path = flat[at + root.len()..].trim_start();
            match path.strip_prefix('{') {
                Some(group) => rooms.extend(first_names(group)),
                None => rooms.extend(name(path)),
            }
        }
    }
    rooms
}

fn name(path: &str) -> Option<String> {
    let name: String = path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The first name of each path of a `{a::b, c::{d, e}}` group.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut path = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(name(&std::mem::take(&mut path))),
            _ => {}
        }
        if depth == 0 && c != ',' {
            path.push(c);
        }
    }
    names.extend(name(&path));
    names
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect()
}

/// What is wrong with a file of `room`.
fn faults(room: &str, source: &str) -> Vec<String> {
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{room} is no room of the house: give it a place in {}", file!())];
    };
    let code = code_of(source);
    let known = |name: &str| ROOMS.iter().any(|(room, _)| *room == name);
    let mut faults: Vec<String> = imported(&code)
        .into_iter()
        .filter(|name| known(name) && name != room && !allowed.contains(&name.as_str()))
        .map(|name| format!("{room} imports {name}"))
        .collect();
    if PURE.contains(&room) {
        let words = words(&code);
        faults
            .extend(IMPURE_WORDS.iter().filter(|word| words.contains(*word)).map(|word| format!("{room} uses {word}")));
        faults
            .extend(IMPURE_PATHS.iter().filter(|path| code.contains(*path)).map(|path| format!("{room} uses {path}")));
    }
    if room == "flow" {
        let words = words(&code);
        faults.extend(NOT_IN_FLOW.iter().filter(|word| words.contains(*word)).map(|word| format!("flow uses {word}")));
    }
    faults
}

/// Every path that a use tree such as `a::{b, c::{self, D}}` names, as far as `end` or the tree's own end.
fn paths_of(tree: &str) -> Vec<Vec<String>> {
    fn walk(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, prefix: &[String], found: &mut Vec<Vec<String>>) {
        let mut path = prefix.to_vec();
        loop {
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            let mut name = String::new();
            while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '*')) {
                name.push(c);
            }
            if !name.is_empty() && name != "self" {
                path.push(name);
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if chars.next_if_eq(&'{').is_some() {
                loop {
                    walk(chars, &path, found);
                    while chars.next_if(|c| c.is_whitespace()).is_some() {}
                    if chars.next_if_eq(&',').is_none() {
                        chars.next_if_eq(&'}');
                        return;
                    }
                }
            }
            if chars.next_if_eq(&':').is_none() {
                found.push(path);
                return;
            }
            chars.next_if_eq(&':');
        }
    }
    let mut found = Vec::new();
    walk(&mut tree.chars().peekable(), &[], &mut found);
    found
}

/// The files, by their module names, that `code` of the module `own` imports.
fn files_imported(own: &str, code: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let flat: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let parent = own.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut imports = BTreeSet::new();
    for (root, base) in [("crate::", ""), ("super::", parent)] {
        for (at, _) in flat.match_indices(root) {
            if flat[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
                continue;
            }
            for path in paths_of(&flat[at + root.len()..]) {
                let names: Vec<_> = base.split("::").filter(|n| !n.is_empty()).map(str::to_owned).chain(path).collect();
                let longest = (1..=names.len()).rev().map(|n| names[..n].join("::")).find(|m| modules.contains(m));
                imports.extend(longest.filter(|module| module != own));
            }
        }
    }
    imports
}

/// Every set of files that reach each other by their imports.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &String| -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![from.clone()];
        while let Some(file) = open.pop() {
            let next = imports.get(&file).into_iter().flatten().filter(|next| seen.insert((*next).clone()));
            open.extend(next.cloned().collect::<Vec<_>>());
        }
        seen
    };
    let reach: BTreeMap<_, _> = imports.keys().map(|file| (file.clone(), reached(file))).collect();
    let circle = |file: &String| -> BTreeSet<String> {
        reach[file].iter().filter(|other| reach.get(*other).is_some_and(|back| back.contains(file))).cloned().collect()
    };
    reach.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

/// Module name and code of every file below `src`, `testing.rs` files, binary and library root left out.
fn modules_of(src: &Path) -> BTreeMap<String, String> {
    fn visit(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => visit(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut files = Vec::new();
    visit(src, &mut files);
    let name = |path: &Path| {
        let names = path.with_extension("").strip_prefix(src).unwrap().to_str().unwrap().replace('/', "::");
        names.strip_suffix("::mod").map_or(names.clone(), str::to_owned)
    };
    let kept = |path: &PathBuf| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        path.extension().is_some_and(|e| e == "rs") && !matches!(stem, "testing" | "lib" | "main")
    };
    files.iter().filter(|path| kept(path)).map(|p| (name(p), code_of(&fs::read_to_string(p).unwrap()))).collect()
}

fn visit(folder: &Path, room: Option<&str>, found: &mut Vec<String>, files: &mut usize) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let room = room.unwrap_or(&stem);
        if path.is_dir() {
            visit(&path, Some(room), found, files);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") || stem == "testing" {
            continue;
        }
        *files += 1;
        let source = fs::read_to_string(&path).unwrap();
        found.extend(faults(room, &source).into_iter().map(|fault| format!("{}: {fault}", path.display())));
    }
}

#[test]
fn the_house_keeps_its_direction() {
    let (mut found, mut files) = (Vec::new(), 0);
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut found, &mut files);
    assert!(files > 10, "the sources were not found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let modules = modules_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let names: BTreeSet<_> = modules.keys().cloned().collect();
    assert!(names.contains("flow::worker") && names.contains("decide"), "the sources were not found: {names:?}");
    let imports = modules.iter().map(|(own, code)| (own.clone(), files_imported(own, code, &names))).collect();
    let found = circles(&imports);
    assert!(found.is_empty(), "files that import each other in a circle: {found:#?}");
}

#[test]
fn the_circle_finder_finds_circles() {
    let found = |files: &[(&str, &str)]| {
        let names: BTreeSet<String> = files.iter().map(|(own, _)| (*own).to_owned()).collect();
        let imports = files.iter().map(|(own, code)| ((*own).to_owned(), files_imported(own, code, &names))).collect();
        circles(&imports).len()
    };
    assert_eq!(found(&[("a", "use crate::b::X;"), ("b", "use crate::a;")]), 1);
    assert_eq!(found(&[("a", "use crate::b;"), ("b", "use crate::c;"), ("c", "fn f(_: crate::a::T) {}")]), 1);
    assert_eq!(found(&[("r::a", "use super::b::X;"), ("r::b", "use crate::r::{c::Y, a};"), ("r::c", "")]), 1);
    assert_eq!(found(&[("r", "use crate::r::a::X;"), ("r::a", "use crate::r::{self, Z};")]), 1);
    assert_eq!(
        found(&[("r::a", "use crate::{\n    r::b,\n};"), ("r::b", "use crate::q; use super::a::{self};"), ("q", "")]),
        1
    );
    assert_eq!(found(&[("a", "use crate::b; use crate::c;"), ("b", "use crate::c;"), ("c", "use other::a;")]), 0);
    assert_eq!(found(&[("r::a", "use crate::r::b;"), ("r::b", "use crate::r::abc; let crate_a = 1;")]), 0);
}

/// One row of the table "who may change what" in `src/flow/mod.rs`.
struct Owner {
    file: String,
    doors: Vec<String>,
    /// A word that no other file of the flow may use.
    keeps: Option<String>,
}

/// The rows of the table in `doc`, the head of `src/flow/mod.rs`.
fn owners(doc: &str) -> Vec<Owner> {
    let quoted = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let rows = doc.lines().filter_map(|line| line.strip_prefix("//! | ")).filter(|row| row.contains("[`"));
    rows.map(|row| {
        let cells: Vec<_> = row.split(" | ").collect();
        let file = quoted(cells[1]).remove(0);
        Owner { file, doors: quoted(cells[2]), keeps: quoted(cells[3]).into_iter().next() }
    })
    .collect()
}

/// What contradicts the table: a door that its owner does not have, a field of an owner that others may write, a word
/// that others use. `files` are the flow's, by name; wiring (`settings`, `poll`, `mod`) may name types to hand them on.
fn strangers(owners: &[Owner], files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for Owner { file, doors, keeps } in owners {
        let Some(code) = files.get(file) else {
            found.push(format!("there is no flow/{file}.rs"));
            continue;
        };
        let named = words(code);
        let lacking = doors.iter().filter(|door| !code.contains(&format!("fn {door}")));
        found.extend(lacking.map(|door| format!("flow/{file}.rs has no door {door}")));
        let Some(kept) = keeps else { continue };
        if !named.contains(kept.as_str()) {
            found.push(format!("flow/{file}.rs does not use {kept}"));
        }
        let others = files.iter().filter(|(other, _)| *other != file && !matches!(other.as_str(), "settings" | "poll"));
        let using = others.filter(|(_, code)| words(code).contains(kept.as_str()));
        found.extend(using.map(|(other, _)| format!("flow/{other}.rs uses {kept}, which is {file}'s")));
    }
    found
}

/// A file that reaches up: only the loop, the poll, and the audit that drives the loop know the loop and the poll.
fn reaches_up(file: &str, code: &str) -> bool {
    let flat: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let up = ["flow::worker", "flow::poll", "super::worker", "super::poll"];
    !matches!(file, "worker" | "poll" | "audit") && up.iter().any(|path| flat.contains(path))
}

fn flow_files() -> (String, BTreeMap<String, String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/flow");
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !matches!(name.as_str(), "mod" | "testing") {
            files.insert(name, code_of(&fs::read_to_string(&path).unwrap()));
        }
    }
    (fs::read_to_string(folder.join("mod.rs")).unwrap(), files)
}

#[test]
fn every_fact_of_the_flow_has_one_owner() {
    let (doc, files) = flow_files();
    let owners = owners(&doc);
    assert!(owners.len() >= 12, "the table in src/flow/mod.rs was not found");
    assert_eq!(strangers(&owners, &files), Vec::<String>::new());
    let up: Vec<_> = files.iter().filter(|(file, code)| reaches_up(file, code)).map(|(file, _)| file).collect();
    assert!(up.is_empty(), "files that know the loop or the poll: {up:?}");
    let named: BTreeSet<_> = doc.split("[`").skip(1).filter_map(|rest| rest.split('`').next()).collect();
    let wiring = ["clock", "error", "settings"];
    let untold: Vec<_> =
        files.keys().filter(|f| !named.contains(f.as_str()) && !wiring.contains(&f.as_str())).collect();
    assert!(untold.is_empty(), "files that src/flow/mod.rs does not speak of: {untold:?}");
}

/// The text between the first braces after `at`.
fn block_at(code: &str, at: usize) -> &str {
    let Some(open) = code[at..].find('{').map(|open| at + open) else { return "" };
    let mut depth = 0;
    let end = code[open..].char_indices().find_map(|(i, c)| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        (depth == 0).then_some(open + i)
    });
    &code[open + 1..end.unwrap_or(code.len())]
}

/// The structs of `code` that change themselves, and have a field that others could change instead.
fn open_structs(code: &str) -> Vec<String> {
    let named = |at: usize| -> String { code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = Vec::new();
    for (at, word) in code.match_indices("struct ") {
        let name = named(at + word.len());
        let changes = |(at, _): (usize, &str)| block_at(code, at).contains("&mut self");
        let own = format!("impl {name} {{");
        if code.match_indices(&own).any(changes) && words(block_at(code, at)).contains("pub") {
            found.push(name);
        }
    }
    found
}

/// Whoever holds an owner holds it by its doors: no field of one can be written from outside its file. Owners of owners
/// hand them on.
#[test]
fn owners_have_no_open_fields() {
    let (doc, files) = flow_files();
    let hand_on = ["Events", "Node", "Batches"];
    for Owner { file, .. } in owners(&doc) {
        let open: Vec<_> = open_structs(&files[&file]).into_iter().filter(|s| !hand_on.contains(&s.as_str())).collect();
        assert!(open.is_empty(), "flow/{file}.rs: {open:?}");
    }
    assert_eq!(open_structs("struct A { pub x: u8 } impl A { fn f(&mut self) {} }"), ["A"]);
    assert!(open_structs("struct A { x: u8 } impl A { fn f(&mut self) {} }").is_empty());
    assert!(open_structs("struct A { pub x: u8 } impl A { fn f(&self) {} }").is_empty());
}

#[test]
fn the_owner_checker_catches_what_it_is_for() {
    let doc = "//! | what | owner | its doors | only it uses |\n//! | --- | --- | --- | --- |\n//! | tags | [`tags`] | `sync` | `set_tags` |\n";
    let files = |other: &str| -> BTreeMap<String, String> {
        let tags = "pub async fn sync() { engine.set_tags() }".to_owned();
        [("tags".to_owned(), tags), ("writer".to_owned(), other.to_owned())].into_iter().collect()
    };
    let owners = owners(doc);
    assert_eq!(strangers(&owners, &files("fn f() {}")), Vec::<String>::new());
    assert_eq!(strangers(&owners, &files("fn f() { engine.set_tags() }")).len(), 1);
    let gone = [("tags".to_owned(), "fn other() {}".to_owned())].into_iter().collect();
    assert_eq!(strangers(&owners, &gone).len(), 2, "no door and no use");
    assert_eq!(strangers(&owners, &BTreeMap::new()).len(), 1);
    assert!(reaches_up("tags", "use crate::flow::worker::Worker;"));
    assert!(reaches_up("tags", "use crate::{\n    flow::poll::Poll,\n};"));
    assert!(!reaches_up("poll", "use crate::flow::worker::Worker;") && !reaches_up("tags", "use crate::flow::node;"));
}

/// The bans of deny.toml hold in the lock file, also where cargo-deny is not installed.
#[test]
fn banned_crates_are_not_locked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap().parse::<toml::Table>().unwrap();
    let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
    let locked: BTreeSet<&str> =
        lock["package"].as_array().unwrap().iter().map(|package| package["name"].as_str().unwrap()).collect();
    let banned = deny["bans"]["deny"].as_array().unwrap();
    assert!(banned.len() >= 2 && locked.contains("ethers-core"));
    for ban in banned {
        let name = ban["crate"].as_str().unwrap();
        assert!(!locked.contains(name), "{name} came in: {}", ban["reason"]);
    }
}

#[test]
fn the_checker_catches_what_it_is_for() {
    let caught: &[(&str, &str)] = &[
        ("codec", "use crate::ports::L1Chain;"),
        ("codec", "use crate::{types::B256, decide};"),
        ("decide", "use crate::{\n    types::{B256, L2Ref},\n    flow::worker,\n};"),
        ("decide", "pub async fn f() {}"),
        ("decide", "let now = std::time::SystemTime::now();"),
        ("decide", "use std::time::{Duration, Instant};"),
        ("codec", "tracing::debug!(\"x\");"),
        ("codec", "let v = std::env::var(\"X\");"),
        ("codec", "let r: u64 = rand::random();"),
        ("ports", "fn f(_: crate::adapters::store::SqliteStore) {}"),
        ("flow", "use crate::adapters::l1::L1Client;"),
        ("adapters", "use crate::flow::worker;"),
        ("flow", "use crate::server;"),
        ("flow", "let v: serde_json::Value = x;"),
        ("types", "use crate::codec;"),
        ("main", "use morph_deriver::flow;"),
        ("codec", "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::flow;"),
        ("codec", "#[cfg(test)]\nuse crate::types;\nuse crate::flow;"),
        ("codec", "let c = '\"'; use crate::flow; let d = '\"';"),
        ("attic", ""),
    ];
    for (room, source) in caught {
        assert_eq!(faults(room, source).len(), 1, "{room}: {source}: {:?}", faults(room, source));
    }
    let fine: &[(&str, &str)] = &[
        ("codec", "// use crate::flow; async\nuse crate::types::B256;"),
        ("codec", "/* tokio */ let s = \"crate::flow async\"; let r = r#\"tracing \"quoted\" rand\"#;"),
        ("decide", "use std::time::Duration; use crate::codec::frame; fn strand() {}"),
        ("codec", "let v = env!(\"CARGO_MANIFEST_DIR\");"),
        ("codec", "use crate::types;\n#[cfg(test)]\nmod tests {\n    use crate::flow; async fn f() { if x { } }\n}"),
        ("flow", "use crate::decide::{self, dispatch}; async fn f() {}"),
        ("commands", "use crate::{adapters, flow, devnet};"),
        ("main", "use morph_deriver::commands::{self, Cli};"),
    ];
    for (room, source) in fine {
        assert_eq!(faults(room, source), Vec::<String>::new(), "{room}: {source}");
    }
}

/// The calls of `warn!` and `error!` in `code` that no `code` field counts.
fn uncounted(code: &str) -> Vec<String> {
    let calls = ["warn!(", "error!("].into_iter().flat_map(|call| code.match_indices(call));
    let arguments = calls.map(|(at, call)| {
        let mut depth = 1;
        let rest = &code[at + call.len()..];
        let end = rest.char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            (depth == 0).then_some(i)
        });
        rest[..end.unwrap_or(rest.len())].to_owned()
    });
    arguments.filter(|arguments| !words(arguments).contains("code")).collect()
}

/// A message without a code is logged at every repetition: at every poll of a fault that lasts.
#[test]
fn j7_p9_every_warning_and_every_error_has_a_code() {
    let files = modules_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let calls = files.values().map(|code| code.matches("warn!(").count() + code.matches("error!(").count());
    assert!(calls.sum::<usize>() >= 30, "the calls were not found");
    let found: Vec<_> =
        files.iter().map(|(file, code)| (file, uncounted(code))).filter(|(_, u)| !u.is_empty()).collect();
    assert!(found.is_empty(), "no code: {found:?}");
    assert_eq!(uncounted(&code_of("warn!(code, \"a (\"); error!(n = f(1), \"code\");")), ["n = f(1), \"\""]);
}
