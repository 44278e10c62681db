//! What `deploy/` says of the program is true: every metric and every reason that its rules and its dashboard name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use morph_deriver::decide::stall::Reason;

use crate::support::program::{Site, devnet};

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names in `text` that begin as our metrics do.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    let ours = |word: &&str| word.starts_with("morph_deriver_") || word.starts_with("morphnode_derivation_");
    words.filter(ours).map(str::to_owned).collect()
}

/// The metrics of a worker beside a simulated network, in which a batch is verified and final. They are kept for the
/// tools that check their form.
fn scrape() -> String {
    let devnet = devnet(|w| {
        w.produce(3).unwrap();
        w.mine(200);
        w.sync();
    });
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut site = Site::new(&devnet);
    site.set("server.listen", address.clone());
    let mut run = site.run();
    let runtime = crate::support::servers();
    let mut text = String::new();
    run.until(|| {
        let url = format!("http://{address}/metrics");
        text = runtime.block_on(async { reqwest::get(&url).await?.text().await }).unwrap_or_default();
        text.contains("morph_deriver_l2_finalized ") && text.contains("morph_deriver_node_finalized ")
    });
    run.stop();
    std::fs::write(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("scrape.prom"), classic(&text)).unwrap();
    text
}

/// OpenMetrics as the older text format, the only one that `promtool check metrics` reads. There a metric's description
/// bears the name of its sample.
fn classic(text: &str) -> String {
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let suffix = |name: &str| match types.get(name) {
        Some(&"counter") => "_total",
        Some(&"info") => "_info",
        _ => "",
    };
    let line = |line: &str| match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
        Some((word @ ("HELP" | "TYPE"), rest)) => {
            let (name, rest) = rest.split_once(' ').unwrap();
            format!("# {word} {name}{} {}\n", suffix(name), if rest == "info" { "gauge" } else { rest })
        }
        _ => format!("{line}\n"),
    };
    text.lines().filter(|line| *line != "# EOF").map(line).collect()
}

#[test]
fn rules_and_dashboard_name_metrics_that_there_are() {
    let scraped = metrics_in(&scrape());
    assert!(scraped.contains("morph_deriver_stall"), "{scraped:?}");
    for file in ["prometheus/alerts.yml", "grafana/dashboards/morph-deriver.json"] {
        let named = metrics_in(&deploy(file));
        assert!(named.len() > 5, "{file} names {named:?}");
        let unknown: Vec<_> = named.difference(&scraped).collect();
        assert!(unknown.is_empty(), "{file} names metrics that no worker has: {unknown:?}");
    }
}

#[test]
fn rules_name_reasons_that_there_are_and_page_for_every_halt() {
    let rules = deploy("prometheus/alerts.yml");
    let matchers = rules.split("reason").filter_map(|rest| rest.strip_prefix("=~\"").or(rest.strip_prefix("!~\"")));
    let lists: Vec<BTreeSet<&str>> =
        matchers.map(|rest| rest.split('"').next().unwrap().split('|').collect()).collect();
    let known: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
    for list in &lists {
        let unknown: Vec<_> = list.difference(&known).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
    let [halts, patient] = lists.as_slice() else { panic!("{} lists of reasons", lists.len()) };
    for reason in Reason::ALL {
        // A divergence has a rule of its own.
        assert_eq!(halts.contains(reason.code()), reason.is_halt() && !reason.is_divergence(), "{reason}");
        assert!(!reason.is_halt() || !patient.contains(reason.code()), "{reason}");
    }
}
