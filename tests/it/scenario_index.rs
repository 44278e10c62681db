//! `tests/SCENARIOS.md` and the tests' names say the same: which fault scenario is tried by which test.
//!
//! A test belongs to a scenario when its name begins with the scenario's id in lower case (`a2_…`, `f4_e18_…`,
//! `e12_and_e13_…`). The simulated chains' own tests (`src/devnet/`) do not count: they try the simulation, not the
//! program. The table is written anew with `MORPH_WRITE_SCENARIOS=1 cargo test --test it scenario_index`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The scenarios of each group, by the last number and the numbers that are not in use. Group L (morph-reth) is left out:
/// its ids read like the names of the two chains.
const GROUPS: [(char, u32, &[u32]); 13] = [
    ('A', 12, &[]),
    ('B', 8, &[]),
    ('C', 13, &[9]),
    ('D', 9, &[]),
    ('E', 25, &[4]),
    ('F', 10, &[5]),
    ('G', 10, &[]),
    ('H', 7, &[]),
    ('I', 13, &[]),
    ('J', 9, &[8]),
    ('K', 8, &[]),
    ('M', 30, &[]),
    ('N', 4, &[]),
];

const HEADER: &str = "\
# Fault scenarios and the tests that try them

Id, test, file. Written by `MORPH_WRITE_SCENARIOS=1 cargo test --test it scenario_index` from the tests' names, which
begin with the ids of the scenarios that they inject; a test holds the two together. A test that stands under several
ids tries all of them. Tests of the simulated chains themselves are not listed.

";

type Id = (char, u32);
type Table = BTreeMap<Id, BTreeSet<(String, String)>>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn is_scenario((group, number): Id) -> bool {
    GROUPS
        .iter()
        .any(|(letter, last, unused)| *letter == group && (1..=*last).contains(&number) && !unused.contains(&number))
}

/// The scenarios that a test's name begins with.
fn ids(name: &str) -> Vec<Id> {
    let mut found = Vec::new();
    for word in name.split('_') {
        let mut letters = word.chars();
        let group = letters.next().filter(char::is_ascii_lowercase).map(|letter| letter.to_ascii_uppercase());
        match (group, letters.as_str().parse::<u32>()) {
            (Some(group), Ok(number)) if is_scenario((group, number)) => found.push((group, number)),
            _ if word == "and" && !found.is_empty() => {}
            _ => break,
        }
    }
    found
}

/// The tests of one source file: functions with a `test` attribute in the lines above.
fn tests(source: &str) -> Vec<String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (place, line) in lines.iter().enumerate() {
        let rest = line.strip_prefix("async ").unwrap_or(line);
        let Some(rest) = rest.strip_prefix("fn ") else { continue };
        let name: String = rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
        let above = lines[place.saturating_sub(6)..place].iter().rev();
        let mut attributes = above.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        if attributes.any(|line| line.starts_with("#[") && line.contains("test")) {
            found.push(name);
        }
    }
    found
}

/// What the sources hold.
fn present() -> Table {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    let mut table = Table::new();
    for path in files {
        let file = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
        if file.starts_with("src/devnet/") || file.ends_with("scenario_index.rs") {
            continue;
        }
        for name in tests(&std::fs::read_to_string(&path).unwrap()) {
            for id in ids(&name) {
                table.entry(id).or_default().insert((name.clone(), file.clone()));
            }
        }
    }
    table
}

/// What the table says.
fn listed(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let ["", id, name, file, ""] = cells.as_slice() else { continue };
        let mut letters = id.chars();
        let (Some(group), Ok(number)) = (letters.next(), letters.as_str().parse()) else { continue };
        table.entry((group, number)).or_default().insert(((*name).to_owned(), (*file).to_owned()));
    }
    table
}

fn written(table: &Table) -> String {
    let mut text = HEADER.to_owned();
    text.push_str("| id | test | file |\n| --- | --- | --- |\n");
    for ((group, number), rows) in table {
        for (name, file) in rows {
            writeln!(text, "| {group}{number} | `{name}` | `{file}` |").unwrap();
        }
    }
    let all = GROUPS.iter().flat_map(|(group, last, _)| (1..=*last).map(move |number| (*group, number)));
    let missing: Vec<String> = all
        .filter(|id| is_scenario(*id) && !table.contains_key(id))
        .map(|(group, number)| format!("{group}{number}"))
        .collect();
    if !missing.is_empty() {
        writeln!(text, "\nNo test bears these ids: {}.", missing.join(", ")).unwrap();
    }
    text
}

#[test]
fn the_table_names_the_tests_that_there_are() {
    let path = root().join("tests/SCENARIOS.md");
    let present = present();
    if std::env::var_os("MORPH_WRITE_SCENARIOS").is_some_and(|value| value == "1") {
        std::fs::write(&path, written(&present)).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let listed = listed(&text);
    let rows = |table: &Table| -> BTreeSet<(Id, String, String)> {
        let all = table.iter().flat_map(|(id, rows)| rows.iter().map(move |row| (*id, row.0.clone(), row.1.clone())));
        all.collect()
    };
    let gone: Vec<_> = rows(&listed).difference(&rows(&present)).cloned().collect();
    assert!(gone.is_empty(), "listed, but not in the sources: {gone:?}");
    let unlisted: Vec<_> = rows(&present).difference(&rows(&listed)).cloned().collect();
    assert!(unlisted.is_empty(), "write the table anew (see the head of this file), not listed yet: {unlisted:?}");
}

#[test]
fn ids_are_read_off_names() {
    assert_eq!(ids("a2_ranges"), [('A', 2)]);
    assert_eq!(ids("f4_e18_every_fault"), [('F', 4), ('E', 18)]);
    assert_eq!(ids("e12_and_e13_moods"), [('E', 12), ('E', 13)]);
    assert_eq!(ids("l1_events"), []);
    assert_eq!(ids("a_dead_one"), []);
    assert_eq!(ids("e4_unused"), []);
    let source = "#[tokio::test]\nasync fn a1_x() {}\nfn a2_helper() {}\n#[test]\n// why\nfn a3_y() {}\n";
    assert_eq!(tests(source), ["a1_x", "a3_y"]);
}
