//! What the documents say, held against the program.

use morph_deriver::commands::Exit;
use morph_deriver::decide::stall::Reason;

#[test]
fn k8_the_readme_explains_every_reason_and_no_other() {
    let readme = include_str!("../../README.md");
    let troubleshooting = readme.split("## Troubleshooting").nth(1).expect("a section on troubleshooting");
    let listed: Vec<&str> = troubleshooting
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    for reason in Reason::ALL {
        assert!(listed.contains(&reason.code()), "README does not explain {reason}");
    }
    let codes: Vec<_> = Reason::ALL.iter().map(|r| r.code()).collect();
    let unknown: Vec<_> = listed.iter().filter(|code| !codes.contains(code)).collect();
    assert!(unknown.is_empty(), "README explains reasons that do not exist: {unknown:?}");
}

#[test]
fn k8_the_readme_names_every_reason_of_exit_code_4_and_no_other() {
    let readme = include_str!("../../README.md");
    let sentence = readme.split("4 for ").nth(1).and_then(|rest| rest.split("; 1 for any other").next());
    let mut listed: Vec<&str> = sentence.expect("a sentence on exit codes").split('`').skip(1).step_by(2).collect();
    let unavailable = Reason::ALL.iter().filter(|reason| Exit::from(**reason) == Exit::Unavailable);
    let mut codes: Vec<_> = unavailable.map(|reason| reason.code()).collect();
    codes.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, codes);
}

#[test]
fn the_two_commands_come_first() {
    let readme = include_str!("../../README.md");
    let block = readme.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a first code block");
    let commands: Vec<_> = block.lines().collect();
    assert_eq!(commands, ["cargo run --release -- replay tests/fixtures/devnet-small", "cargo test"]);
}

/// Every test that the architecture page names exists, and every file.
#[test]
fn the_architecture_page_names_what_there_is() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = include_str!("../../docs/architecture.md");
    let mut sources = String::new();
    let mut folders = vec![root.join("src"), root.join("tests/it")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|e| e == "rs") => {
                    sources.push_str(&std::fs::read_to_string(path).unwrap());
                }
                false => {}
            }
        }
    }
    let quoted: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    let tests = quoted.iter().filter(|word| word.matches('_').count() >= 4 && !word.contains(['/', '.']));
    let missing: Vec<_> = tests.clone().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty() && tests.count() >= 15, "no such tests: {missing:?}");
    let files = quoted.iter().filter(|word| word.ends_with(".rs") && word.contains('/'));
    let gone: Vec<_> = files.filter(|f| !root.join(f).exists() && !root.join("src").join(f).exists()).collect();
    assert!(gone.is_empty(), "no such files: {gone:?}");
    for promise in 1..=10 {
        assert!(page.contains(&format!("| P{promise}: ")), "nothing is said of P{promise}");
    }
}
