//! `tests/SCENARIOS.md` says what each fault scenario is and which tests try it.
//!
//! What a scenario is, `tests/scenarios.txt` says: one line for each id. A test belongs to a scenario when its name begins
//! with the scenario's id in lower case (`a2_…`, `f4_e18_…`, `e12_and_e13_…`). The simulated chains' own tests
//! (`src/devnet/`) do not count: they try the simulation, not the program. The page is written anew with
//! `MORPH_WRITE_SCENARIOS=1 cargo test --test it scenario_index`.
//!
//! `l1_` and `l2_` are the two chains wherever the words that follow speak of one; `is_of_a_chain` has those words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const HEADER: &str = "\
# Fault scenarios and the tests that try them

Each scenario is a fault and what the program must do about it; the tests below it inject the fault. This page is made from
`tests/scenarios.txt` and from the names of the tests, which begin with the ids of the scenarios that they try; a test
under several ids tries all of them. `MORPH_WRITE_SCENARIOS=1 cargo test --test it scenario_index` writes it anew, and a
test holds it to both. Tests of the simulated chains themselves are not listed.
";

type Id = (char, u32);
type Table = BTreeMap<Id, BTreeSet<(String, String)>>;

/// What `tests/scenarios.txt` says.
struct Scenarios {
    /// Titles of the groups.
    groups: BTreeMap<char, String>,
    /// What each scenario is.
    meanings: BTreeMap<Id, String>,
}

impl Scenarios {
    fn read() -> Self {
        Self::parse(&std::fs::read_to_string(root().join("tests/scenarios.txt")).unwrap())
    }

    fn parse(text: &str) -> Self {
        let mut read = Self { groups: BTreeMap::new(), meanings: BTreeMap::new() };
        let mut group = None;
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with("# ")) {
            if let Some(title) = line.strip_prefix("## ") {
                let (letter, title) = title.split_once(' ').unwrap();
                let letter = letter.parse::<char>().unwrap();
                assert!(read.groups.insert(letter, title.to_owned()).is_none(), "group {letter} is listed twice");
                group = Some(letter);
                continue;
            }
            let (word, meaning) = line.split_once(' ').unwrap_or_else(|| panic!("{line} has no meaning"));
            let id = id_of(word).unwrap_or_else(|| panic!("{word} is no id"));
            assert_eq!(Some(id.0), group, "{word} is in another group");
            assert!(meaning.len() >= 20 && meaning.ends_with('.'), "{word}: a meaning is one sentence or more");
            let before = read.meanings.last_key_value().filter(|(last, _)| **last >= id);
            assert!(before.is_none(), "{word} is listed twice or out of order");
            read.meanings.insert(id, meaning.to_owned());
        }
        read
    }
}

/// The id that is `word`: `"M12"`.
fn id_of(word: &str) -> Option<Id> {
    let mut letters = word.chars();
    let group = letters.next().filter(char::is_ascii_uppercase)?;
    let digits = letters.as_str();
    let plain = digits.starts_with(|digit: char| ('1'..='9').contains(&digit));
    Some((group, digits.parse().ok().filter(|_| plain)?))
}

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

/// Whether a name that begins with `l1_` or `l2_` speaks of that chain, and not of the scenario.
fn is_of_a_chain(name: &str) -> bool {
    const CHAIN_WORDS: [&str; 9] =
        ["events", "headers", "hashes", "blocks", "forks", "ends", "message", "messages", "facts"];
    name.split('_').nth(1).is_some_and(|word| CHAIN_WORDS.contains(&word))
}

/// The scenarios that a test's name begins with.
fn ids(name: &str, groups: &BTreeMap<char, String>) -> Vec<Id> {
    let mut found = Vec::new();
    for word in name.split('_') {
        let id = if word == word.to_ascii_lowercase() { id_of(&word.to_ascii_uppercase()) } else { None };
        match id.filter(|(group, _)| groups.contains_key(group)) {
            Some(('L', 1 | 2)) if found.is_empty() && is_of_a_chain(name) => break,
            Some(id) => found.push(id),
            None if word == "and" && !found.is_empty() => {}
            None => break,
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
fn present(scenarios: &Scenarios) -> Table {
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
            for id in ids(&name, &scenarios.groups) {
                let known = scenarios.meanings.contains_key(&id);
                assert!(
                    known,
                    "{file}: {name} begins with {}{}, which tests/scenarios.txt does not explain",
                    id.0, id.1
                );
                table.entry(id).or_default().insert((name.clone(), file.clone()));
            }
        }
    }
    table
}

fn written(scenarios: &Scenarios, table: &Table) -> String {
    let mut text = HEADER.to_owned();
    let mut group = None;
    for (id, meaning) in &scenarios.meanings {
        if group != Some(id.0) {
            group = Some(id.0);
            write!(text, "\n## {}. {}\n", id.0, scenarios.groups[&id.0]).unwrap();
        }
        write!(text, "\n**{}{}.** {meaning}\n\n", id.0, id.1).unwrap();
        match table.get(id) {
            Some(rows) => rows.iter().for_each(|(name, file)| writeln!(text, "- `{name}`, {file}").unwrap()),
            None => text.push_str("- No test yet.\n"),
        }
    }
    text
}

#[test]
fn the_page_names_every_scenario_and_the_tests_that_there_are() {
    let path = root().join("tests/SCENARIOS.md");
    let scenarios = Scenarios::read();
    let made = written(&scenarios, &present(&scenarios));
    if std::env::var_os("MORPH_WRITE_SCENARIOS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &made).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let gone: Vec<_> = lines(&text).difference(&lines(&made)).cloned().collect();
    let missing: Vec<_> = lines(&made).difference(&lines(&text)).cloned().collect();
    let how = "write the page anew (see the head of this file)";
    assert!(gone.is_empty() && missing.is_empty(), "{how}: out of date {gone:#?}, missing {missing:#?}");
    assert!(text == made, "{how}: the order differs");
}

#[test]
fn every_comment_that_names_a_scenario_names_a_known_one() {
    let scenarios = Scenarios::read();
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "build"] {
        sources(&root().join(folder), &mut files);
    }
    let mut unknown = BTreeSet::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("//")) {
            let words = line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            for id in words.filter_map(id_of).filter(|(group, _)| scenarios.groups.contains_key(group)) {
                if !scenarios.meanings.contains_key(&id) {
                    unknown.insert(format!("{}: {}{}", path.display(), id.0, id.1));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn ids_are_read_off_names() {
    let groups: BTreeMap<char, String> = "AEFL".chars().map(|letter| (letter, String::new())).collect();
    let ids = |name| ids(name, &groups);
    assert_eq!(ids("a2_ranges"), [('A', 2)]);
    assert_eq!(ids("f4_e18_every_fault"), [('F', 4), ('E', 18)]);
    assert_eq!(ids("e12_and_e13_moods"), [('E', 12), ('E', 13)]);
    assert_eq!(ids("l1_events"), []);
    assert_eq!(ids("l2_blocks_read"), []);
    assert_eq!(ids("l1_e20_a_written_header"), [('L', 1), ('E', 20)]);
    assert_eq!(ids("l2_tags_on_a_block_zero"), [('L', 2)]);
    assert_eq!(ids("p1_a_promise"), []);
    assert_eq!(ids("a_dead_one"), []);
    assert_eq!(ids("a0_none"), []);
    let source = "#[tokio::test]\nasync fn a1_x() {}\nfn a2_helper() {}\n#[test]\n// why\nfn a3_y() {}\n";
    assert_eq!(tests(source), ["a1_x", "a3_y"]);
}

#[test]
fn meanings_are_read() {
    let text = "# A comment.\n\n## A The first\nA1 Something fails in some way.\nA3 Another thing fails.\n";
    let read = Scenarios::parse(text);
    assert_eq!(read.groups[&'A'], "The first");
    assert_eq!(read.meanings.keys().copied().collect::<Vec<_>>(), [('A', 1), ('A', 3)]);
    for bad in
        ["A1 The same id once more.", "B1 An id of another group.", "A4", "A4 too short.", "A04 A number like that."]
    {
        let text = format!("{text}{bad}\n");
        assert!(std::panic::catch_unwind(|| Scenarios::parse(&text)).is_err(), "{bad}");
    }
}
