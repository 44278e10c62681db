//! The command line as a shell sees it: exit codes, what is printed, and what never is.

use assert_cmd::Command;

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_morph-deriver"));
    for (name, _) in std::env::vars() {
        if name.starts_with("MORPH_") {
            program.env_remove(name);
        }
    }
    // Away from the sample in the project's folder.
    program.current_dir(std::env::temp_dir());
    program
}

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn k4_config_prints_no_credential() {
    let url = "https://user:canary@h.example/canary?key=canary";
    for json in [false, true] {
        let mut program = program();
        program.args(["config", "--mainnet", "--l1.rpc", url]).env("MORPH_NODE_L2_ETH_RPC", url);
        if json {
            program.arg("--json");
        }
        let output = program.output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let text = format!("{}{}", stdout(&output), String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("https://h.example") && !text.contains("canary"), "{text}");
        if json {
            let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
            let of =
                |key: &str| report["settings"].as_array().unwrap().iter().find(|s| s["key"] == key).unwrap().clone();
            assert_eq!(of("l2.chain_id")["value"], 2818);
            assert_eq!(of("l2.eth")["source"], "MORPH_NODE_L2_ETH_RPC");
        }
    }
}

#[test]
fn config_prints_toml_that_it_reads_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = stdout(&program().args(["config", "--hoodi", "--mode=blob"]).output().unwrap());
    let path = folder.path().join("printed.toml");
    std::fs::write(&path, &first).unwrap();
    let again = program().arg("config").arg("--config").arg(&path).output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    let values = |text: &str| text.lines().map(|line| line.split('#').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(values(&first), values(&stdout(&again)));
}

#[test]
fn k7_wrong_usage_and_configuration_exit_2() {
    type Row = (&'static [&'static str], Option<(&'static str, &'static str)>);
    let table: &[Row] = &[
        (&[], None),
        (&["config", "--l1.rpx=1"], None),
        (&["config", "--mainnet", "--hoodi"], None),
        (&["config", "--l1.rollup=junk"], None),
        (&["config", "--config=/does/not/exist"], None),
        (&["config", "--check"], None),
        (&["config"], Some(("MORPH_DERIVER_L1_RPX", "1"))),
        (&["config"], Some(("MORPH_NODE_L1_CONFIRMATIONS", "-2"))),
    ];
    for (args, env) in table {
        let mut program = program();
        program.args(*args).envs(env.iter().copied());
        let output = program.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?} {env:?}");
        assert!(!output.stderr.is_empty(), "{args:?} says nothing");
    }
}

#[test]
fn completions_come_for_every_usual_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = program().args(["completions", shell]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("morph-deriver"), "{shell}");
    }
}
