//! The real binary killed with SIGKILL at every step of a repair, one step a run (issue "The node beside it", P6).
//!
//! `MORPH_DERIVER_TEST_KILL_AT=list` names the points that an undisturbed run passes; each of them is then the end of
//! one run (which point it was, the run says itself: how often it polls is a matter of time), and what a second run makes of it must be what the undisturbed run made: heads, batch rows, reactors, and
//! the journal but for its times.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::world::{ForkShape, Heads, World, WorldOptions};
use morph_deriver::devnet::{Devnet, node};
use morph_deriver::types::{B256, BatchRecord};
use serde_json::json;

use crate::support::program::{Program, Site, serve};

const VARIABLE: &str = "MORPH_DERIVER_TEST_KILL_AT";

/// What a run must end in.
#[derive(Debug, PartialEq)]
struct Ending {
    heads: Heads,
    stored_safe: Option<u64>,
    stored_finalized: Option<u64>,
    batches: Vec<BatchRecord>,
    /// Batch, height, old and new hash, why.
    journal: Vec<(u64, u64, Option<B256>, B256, String)>,
    paused: bool,
    lease: bool,
}

/// A world, and the database of a worker that has verified the first of its two batches: the runs begin where the
/// repair does.
struct Scenario {
    name: &'static str,
    world: World,
    database: Vec<u8>,
    /// Another writer moves the node's safe tag onto the fork when the blob is asked for.
    contended: bool,
}

/// Two batches of three blocks, of which the worker knows the first; it becomes final on L1 with the second. `shape`
/// makes of the local node what is to be repaired.
fn scenario(name: &'static str, shape: impl FnOnce(&mut World)) -> Scenario {
    let mut world = World::new(&WorldOptions { finalized_depth: 3, ..WorldOptions::default() }).unwrap();
    world.produce(3).unwrap();
    world.sync();
    let devnet = serve(world);
    let site = site(&devnet);
    let mut run = site.run();
    run.until(|| devnet.heads().safe == devnet.with(|w| w.expected(3)));
    run.stop();
    let mut world = devnet.with(|w| w.clone());
    world.produce(3).unwrap();
    world.mine(1);
    shape(&mut world);
    world.node.clear_calls();
    Scenario { name, world, database: std::fs::read(site.database()).unwrap(), contended: false }
}

/// Block 5 of 6 is another one, and safe must be lowered before it can be rewritten.
fn self_heal() -> Scenario {
    let shape = |w: &mut World| {
        w.sync();
        w.fork_at(5, ForkShape::ExtraTransaction).unwrap();
    };
    Scenario { contended: true, ..scenario("self-heal", shape) }
}

fn mark_head_safe(w: &mut World) {
    let head = w.node.head().hash();
    w.node.call(node::Side::Engine, "engine_setBlockTags", &[json!(head), json!(B256::zero())]).unwrap();
}

/// Blocks 5 and 6 of 6 are missing and the head is flat.
fn fill_gap() -> Scenario {
    scenario("fill-gap", |w| w.sync_to(4))
}

/// A site on which a run is over soon: the second poll already sees a flat head.
fn site(devnet: &Devnet) -> Site {
    let mut site = Site::new(devnet);
    site.set("observation_window", "1ms").set("poll_interval", "20ms");
    site.set("reactors.timeout", "1s").set("reactors.head_still", "100ms");
    site
}

/// Scenario and site of one run.
fn start(scenario: &Scenario) -> (Devnet, Site) {
    let devnet = serve(scenario.world.clone());
    let site = site(&devnet);
    std::fs::write(site.database(), &scenario.database).unwrap();
    if scenario.contended {
        devnet.on_call(Server::Beacon(0), "/blob", 1, mark_head_safe);
    }
    (devnet, site)
}

fn settled(devnet: &Devnet, wanted: &World) -> bool {
    let heads = devnet.heads();
    heads.safe == wanted.expected(6) && heads.finalized == wanted.expected(3) && !devnet.is_paused()
}

fn ending(devnet: &Devnet, site: &Site) -> Ending {
    let stored = site.stored();
    let journal = site.journal().into_iter();
    Ending {
        heads: devnet.heads(),
        stored_safe: stored.safe.map(|s| s.number.get()),
        stored_finalized: stored.finalized.map(|f| f.number.get()),
        batches: site.batches(),
        journal: journal.map(|e| (e.batch.get(), e.number.get(), e.old_hash, e.new_hash, e.why)).collect(),
        paused: devnet.is_paused(),
        lease: stored.lease.is_some(),
    }
}

fn settle(devnet: &Devnet, scenario: &Scenario, site: &Site, mut run: Program) -> Program {
    // A point near the end leaves everything settled: what the second run makes of it is to be seen all the same.
    run.until_log("started");
    run.until(|| settled(devnet, &scenario.world) && site.stored().lease.is_none());
    run.stop();
    run
}

/// The undisturbed run: its end and the names of the points that it passed up to where everything was settled.
fn undisturbed(scenario: &Scenario) -> (Ending, Vec<String>) {
    let (devnet, site) = start(scenario);
    let mut command = site.command(&["run"]);
    command.env(VARIABLE, "list");
    let run = settle(&devnet, scenario, &site, site.start(command));
    let log = run.log();
    let points: Vec<String> = log
        .lines()
        .filter_map(|line| line.strip_prefix("kill-point "))
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect();
    // Idle polls follow once all is settled: the last point of interest is the reactors' lease and the tags behind it.
    let last = points.iter().rposition(|name| !name.starts_with("poll: ") && !name.starts_with("range: ")).unwrap();
    (ending(&devnet, &site), points[..=last].to_vec())
}

/// Kills a run at point `n`, runs again, gives the end; and whether the point was reached.
fn killed_at(scenario: &Scenario, n: usize) -> (Ending, String) {
    let (devnet, site) = start(scenario);
    let mut command = site.command(&["run"]);
    command.env(VARIABLE, n.to_string());
    let mut run = site.start(command);
    let status = run.end();
    assert_eq!(status.signal(), Some(9), "{} at {n}: {status}\n{}", scenario.name, run.log());
    let log = run.log();
    let name = log.lines().find_map(|line| line.strip_prefix("killed-at ")).expect("the point's name");
    let name = name.split_once(' ').unwrap().1.to_owned();
    settle(&devnet, scenario, &site, site.run());
    assert!(devnet.unpaused_writes().is_empty(), "{} killed at {n} ({name}): written outside a pause", scenario.name);
    assert!(devnet.moments().iter().all(node::Moment::is_ordered), "{} killed at {n} ({name})", scenario.name);
    (ending(&devnet, &site), name)
}

/// Every point of `scenario`, a few runs at a time. Gives how often a run was killed at each.
fn every_point(scenario: &Scenario) -> BTreeMap<String, usize> {
    let (wanted, points) = undisturbed(scenario);
    assert_eq!(wanted.batches[2].case.map(|c| c.as_str()), Some(scenario.name));
    assert_eq!(wanted.journal.len(), 2, "{wanted:?}");
    let next = AtomicUsize::new(1);
    let covered = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n > points.len() {
                        return;
                    }
                    let (got, name) = killed_at(scenario, n);
                    assert_eq!(got, wanted, "{} killed at {n} ({name})", scenario.name);
                    *covered.lock().unwrap().entry(name).or_default() += 1;
                }
            });
        }
    });
    let covered = covered.into_inner().unwrap();
    println!("{}: {} points", scenario.name, points.len());
    for (name, times) in &covered {
        println!("  {times} x {name}");
    }
    covered
}

#[test]
fn h1_p6_killed_at_every_step_of_a_self_heal_it_ends_as_undisturbed() {
    let covered = every_point(&self_heal());
    assert!(covered.values().sum::<usize>() >= 25, "only {covered:?}");
    for step in ["tags: safe lowered", "write: chunk written", "reactors: paused", "batch: stored", "finality: stored"]
    {
        assert!(covered.contains_key(step), "{step} was not passed");
    }
}

#[test]
fn h1_p6_killed_at_every_step_of_a_fill_gap_it_ends_as_undisturbed() {
    let covered = every_point(&fill_gap());
    assert!(covered.values().sum::<usize>() >= 25, "only {covered:?}");
    for step in ["batch: blobs fetched", "write: chunk written", "reactors: resumed", "lease: dropped", "range: stored"]
    {
        assert!(covered.contains_key(step), "{step} was not passed");
    }
}
