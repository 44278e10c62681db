//! The worker ended at every step of a repair, one step a run, and started again at once (P6, P5).
//!
//! A step is a call through a port (`adapters/kill_points.rs`): none needs a name, so none is left out. Two ways to end:
//! - inside this process, at *every* point: the runtime with everything in it goes away between two instructions, and what
//!   has reached the database, the node and the reactors stays. It costs little, so that hundreds of points are tried;
//! - the real binary by SIGKILL, after each of its calls that change something.
//!
//! What the second life makes of it must be what an undisturbed one made: heads, batch rows, reactors, and the journal
//! but for its times.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use morph_deriver::adapters::kill_points::{KillPoints, Point, VARIABLE, When};
use morph_deriver::adapters::reactors::JsonRpcReactors;
use morph_deriver::adapters::rpc::{Check, Pool, PoolConfig};
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::{ForkShape, Heads, World, WorldOptions};
use morph_deriver::devnet::{Devnet, node};
use morph_deriver::error::Target;
use morph_deriver::flow::worker::Worker;
use morph_deriver::flow::{Ports, Settings};
use morph_deriver::types::{B256, BatchRecord, HeightParam};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::CLIENT;
use crate::support::clients::pool_config;
use crate::support::program::{Program, Site, serve, wait_until};
use crate::support::rig::{devnet_ports, settings, world_options};
use crate::support::servers;

/// Longest life of a worker in a test.
const LIFE: Duration = Duration::from_secs(120);

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
    /// The L1 endpoint answers no `eth_call`: what the contract holds is not known.
    mute_contract: bool,
}

/// Two batches of three blocks, of which the worker knows the first; it becomes final on L1 with the second. `shape`
/// makes of the local node what is to be repaired.
fn scenario(name: &'static str, shape: impl FnOnce(&mut World)) -> Scenario {
    let mut world = World::new(&WorldOptions { finalized_depth: 3, ..world_options(CLIENT) }).unwrap();
    world.produce(3).unwrap();
    world.sync();
    let devnet = serve(world);
    let site = site(&devnet);
    let settled = || devnet.heads().safe == devnet.with(|w| w.expected(3));
    live(&devnet, &site.database(), KillPoints::new(|_, _| false), settled).unwrap();
    // What the life left in the write-ahead log is folded into the file that is copied.
    let wal = site.database().with_extension("sqlite-wal");
    let folded = || {
        servers().block_on(async { SqliteStore::open(&site.database()).await.unwrap().close().await });
        !wal.exists()
    };
    wait_until(|| "the log is not folded in".to_owned(), folded);
    let mut world = devnet.with(|w| w.clone());
    world.produce(3).unwrap();
    world.mine(1);
    shape(&mut world);
    world.node.clear_calls();
    let database = std::fs::read(site.database()).unwrap();
    Scenario { name, world, database, contended: false, mute_contract: false }
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

/// A site on which a run is over soon: the second poll already sees a flat head, and nothing is late.
fn site(devnet: &Devnet) -> Site {
    let mut site = Site::new(devnet);
    site.set("observation_window", "1ms").set("poll_interval", "20ms");
    site.set("reactors.timeout", "1s").set("reactors.head_still", "100ms");
    site
}

/// Devnet and site of one run.
fn start(scenario: &Scenario) -> (Devnet, Site) {
    let devnet = serve(scenario.world.clone());
    let site = site(&devnet);
    std::fs::write(site.database(), &scenario.database).unwrap();
    if scenario.contended {
        devnet.on_call(Server::Beacon(0), "/blob", 1, mark_head_safe);
    }
    if scenario.mute_contract {
        let fault = Fault::Error(RpcError::server("no state here"));
        devnet.fault(Server::L1(0), Rule::on("eth_call", fault));
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

/// How late a call to the reactors may be, and how long the head must not move.
#[derive(Clone, Copy)]
struct Pace {
    lateness: Duration,
    head_still: Duration,
}

/// Nothing is late.
const AT_ONCE: Pace = Pace { lateness: Duration::from_millis(200), head_still: Duration::from_millis(60) };

/// Ports of a worker on `devnet` with the database `file`, every call a point.
async fn ports(devnet: &Devnet, file: &Path, points: &KillPoints, pace: Pace) -> Ports {
    let ports = devnet_ports(devnet).await;
    let limit = PoolConfig { call_timeout: pace.lateness, ..pool_config(Check::None) };
    let pool = Pool::new(Target::Reactors, &[devnet.reactors_url()], limit).unwrap();
    let store = SqliteStore::open(file).await.unwrap();
    Ports {
        l1: points.l1(ports.l1),
        blobs: points.blobs(ports.blobs),
        l2: points.l2(ports.l2),
        engine: ports.engine.map(|engine| points.engine(engine)),
        reactors: points.reactors(Arc::new(JsonRpcReactors::new(pool, "pause", "resume", HeightParam::Number))),
        progress: points.progress(Arc::new(store)),
    }
}

/// One life of a worker in this process: from its start until `done`, or until `points` end it, which is `Err`. Either
/// way everything in it is gone afterwards, as after SIGKILL: no destructor can await, and no task continues.
fn live(devnet: &Devnet, file: &Path, points: KillPoints, done: impl Fn() -> bool) -> Result<(), ()> {
    live_at(devnet, file, points, AT_ONCE, done)
}

fn live_at(devnet: &Devnet, file: &Path, points: KillPoints, pace: Pace, done: impl Fn() -> bool) -> Result<(), ()> {
    let killed = CancellationToken::new();
    let (aim, told) = (points, killed.clone());
    let points = KillPoints::new(move |nth, point| {
        let end = aim.asks(nth, point);
        if end {
            told.cancel();
        }
        end
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let settings = Settings {
        rollup: devnet.rollup(),
        observation_window: Duration::from_millis(1),
        poll_interval: Duration::from_millis(20),
        head_still: pace.head_still,
        ..settings()
    };
    let ended = runtime.block_on(async {
        let life = async {
            let worker = Worker::start(ports(devnet, file, &points, pace).await, settings).await.unwrap();
            let guard = worker.quiesce();
            let stop = CancellationToken::new();
            let looked = async {
                while !done() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                guard.idle(LIFE).await;
                stop.cancel();
            };
            let (ran, ()) = tokio::join!(worker.run(stop.clone()), looked);
            ran.unwrap();
        };
        tokio::select! {
            biased;
            () = killed.cancelled() => Err(()),
            lived = tokio::time::timeout(LIFE, life) => { lived.expect("never settled"); Ok(()) }
        }
    });
    runtime.shutdown_background();
    ended
}

/// The undisturbed run: its end, and the points that it passed.
fn undisturbed(scenario: &Scenario) -> (Ending, Vec<Point>) {
    let (devnet, site) = start(scenario);
    let passed = Arc::new(Mutex::new(Vec::new()));
    let noted = passed.clone();
    let points = KillPoints::new(move |_, point| {
        noted.lock().unwrap().push(point);
        false
    });
    live(&devnet, &site.database(), points, || settled(&devnet, &scenario.world)).unwrap();
    let passed = passed.lock().unwrap().clone();
    // Idle polls follow once all is settled, up to the end of the pause.
    let last = passed.iter().rposition(|point| point.changes).unwrap();
    (ending(&devnet, &site), passed[..=last].to_vec())
}

/// A point by its name, and how often it was passed before: a run that is slower makes more polls, and each its own points.
type Aim = (String, usize);

/// The points of a run as aims.
fn aims(points: &[Point]) -> Vec<Aim> {
    let mut passed = BTreeMap::<String, usize>::new();
    let mut aims = Vec::new();
    for point in points {
        let before = passed.entry(point.to_string()).or_default();
        aims.push((point.to_string(), *before));
        *before += 1;
    }
    aims
}

/// Ends a worker at the point `aim`, starts another at once, gives the end; and the point, if it came so far.
fn ended_at(scenario: &Scenario, aim: &Aim) -> (Ending, Option<Point>) {
    let (devnet, site) = start(scenario);
    let at = Arc::new(Mutex::new(None));
    let (noted, (name, before)) = (at.clone(), aim.clone());
    let passed = AtomicUsize::new(0);
    let points = KillPoints::new(move |_, point| {
        let hit = point.to_string() == name && passed.fetch_add(1, Ordering::SeqCst) == before;
        if hit {
            *noted.lock().unwrap() = Some(point);
        }
        hit
    });
    let done = || settled(&devnet, &scenario.world);
    let _ = live(&devnet, &site.database(), points, done);
    live(&devnet, &site.database(), KillPoints::new(|_, _| false), done).unwrap();
    let at = *at.lock().unwrap();
    assert_in_order(&devnet, scenario, &format!("ended at {aim:?}: {at:?}"));
    (ending(&devnet, &site), at)
}

fn assert_in_order(devnet: &Devnet, scenario: &Scenario, what: &str) {
    let outside = devnet.unpaused_writes();
    assert!(outside.is_empty(), "{} {what}: {outside:?} written outside a pause", scenario.name);
    assert!(devnet.moments().iter().all(node::Moment::is_ordered), "{} {what}", scenario.name);
}

/// A few runs at a time, `jobs` in all; gives how often each name came.
fn at_once(threads: usize, jobs: usize, run: impl Fn(usize) -> Option<String> + Sync) -> BTreeMap<String, usize> {
    let next = AtomicUsize::new(0);
    let covered = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = next.fetch_add(1, Ordering::SeqCst);
                    if job >= jobs {
                        return;
                    }
                    if let Some(name) = run(job) {
                        *covered.lock().unwrap().entry(name).or_default() += 1;
                    }
                }
            });
        }
    });
    covered.into_inner().unwrap()
}

fn tell(name: &str, points: usize, covered: &BTreeMap<String, usize>) {
    println!("{name}: {points} points");
    for (name, times) in covered {
        println!("  {times} x {name}");
    }
}

/// Every point of `scenario`. Gives how often a run was ended at each.
fn every_point(scenario: &Scenario) -> BTreeMap<String, usize> {
    let (wanted, points) = undisturbed(scenario);
    assert_eq!(wanted.batches[2].case.map(|c| c.as_str()), Some(scenario.name));
    assert_eq!(wanted.journal.len(), 2, "{wanted:?}");
    assert!(!wanted.paused && !wanted.lease);
    let aims = aims(&points);
    let covered = at_once(4, aims.len(), |job| {
        let (got, at) = ended_at(scenario, &aims[job]);
        assert_eq!(got, wanted, "{} ended at {:?} ({at:?})", scenario.name, aims[job]);
        at.map(|point| point.to_string())
    });
    tell(scenario.name, points.len(), &covered);
    covered
}

/// No fewer than when the points had names: 36 names, 39 and 44 points.
fn assert_covered(covered: &BTreeMap<String, usize>, steps: &[&str]) {
    assert!(covered.len() >= 36, "only {covered:?}");
    assert!(covered.values().sum::<usize>() >= 80, "only {covered:?}");
    for step in steps {
        assert!(covered.contains_key(*step), "{step} was not passed");
    }
}

#[test]
fn p6_every_call_that_leaves_a_trace_is_tried_by_sigkill_too() {
    let (_, points) = undisturbed(&self_heal());
    let changes: BTreeSet<_> = points.iter().filter(|p| p.changes).map(|p| (p.port, p.method)).collect();
    let expected = [
        ("L2Engine", "set_tags"),
        ("L2Engine", "write_blocks"),
        ("Progress", "apply"),
        ("Progress", "journal"),
        ("Progress", "looked"),
        ("Progress", "note_intents"),
        ("Progress", "prune"),
        ("Progress", "set_lease"),
        ("Reactors", "pause"),
        ("Reactors", "resume"),
    ];
    assert_eq!(changes, expected.into());
}

#[test]
fn h1_p6_ended_at_every_step_of_a_self_heal_it_ends_as_undisturbed() {
    let covered = every_point(&self_heal());
    let steps = ["after L2Engine::set_tags", "after L2Engine::write_blocks", "after Reactors::pause"];
    assert_covered(&covered, &steps);
    assert_covered(&covered, &["after Progress::apply", "before L1Chain::events", "before L2Reader::snapshot"]);
}

#[test]
fn h1_p6_ended_at_every_step_of_a_fill_gap_it_ends_as_undisturbed() {
    let covered = every_point(&fill_gap());
    let steps = ["before BlobSource::blobs", "after L2Engine::write_blocks", "after Reactors::resume"];
    assert_covered(&covered, &steps);
    assert_covered(&covered, &["after Progress::set_lease", "after Progress::journal", "after Progress::apply"]);
}

#[test]
fn h1_p6_a8_ended_after_every_change_without_answers_of_the_contract_it_ends_as_undisturbed() {
    let scenario = Scenario { mute_contract: true, ..fill_gap() };
    let (wanted, points) = undisturbed(&scenario);
    let changes = aims(&points).into_iter().zip(&points).filter(|(_, p)| p.changes && p.when == When::After);
    let changes: Vec<Aim> = changes.map(|(aim, _)| aim).collect();
    let covered = at_once(4, changes.len(), |job| {
        let (got, at) = ended_at(&scenario, &changes[job]);
        assert_eq!(got, wanted, "ended at {:?} ({at:?})", changes[job]);
        at.map(|point| point.to_string())
    });
    tell("fill-gap without the contract", changes.len(), &covered);
    assert!(covered.contains_key("after Progress::apply"));
}

/// The calls of the real binary that change something, in their order: name and how often it came.
fn changes_of_the_binary(scenario: &Scenario) -> (Ending, Vec<(String, usize)>) {
    let (devnet, site) = start(scenario);
    let mut command = site.command(&["run"]);
    command.env(VARIABLE, "list");
    let run = settle(&devnet, scenario, &site, site.start(command));
    let log = run.log();
    let mut times = BTreeMap::<&str, usize>::new();
    let lines = log.lines().filter_map(|line| line.strip_prefix("kill-point ")?.split_once(" * "));
    let names = lines.map(|(_, name)| name).filter(|name| name.starts_with("after "));
    let changes = names.map(|name| {
        let n = times.entry(name).or_default();
        *n += 1;
        (name.to_owned(), *n)
    });
    let changes = changes.collect();
    (ending(&devnet, &site), changes)
}

fn settle(devnet: &Devnet, scenario: &Scenario, site: &Site, mut run: Program) -> Program {
    run.until_log("started");
    run.until(|| settled(devnet, &scenario.world) && site.stored().lease.is_none());
    run.stop();
    run
}

/// Kills the binary by SIGKILL at the `n`-th pass of `point`, continues in this process at once, and returns the end.
fn killed_at(scenario: &Scenario, point: &str, n: usize) -> Ending {
    let (devnet, site) = start(scenario);
    let mut command = site.command(&["run"]);
    command.env(VARIABLE, format!("{point} {n}"));
    let mut run = site.start(command);
    let status = run.end();
    assert_eq!(status.signal(), Some(9), "{} {n} x {point}: {status}\n{}", scenario.name, run.log());
    let done = || settled(&devnet, &scenario.world);
    live(&devnet, &site.database(), KillPoints::new(|_, _| false), done).unwrap();
    assert_in_order(&devnet, scenario, &format!("killed at {n} x {point}"));
    ending(&devnet, &site)
}

#[test]
fn h1_p6_the_binary_killed_after_each_of_its_changes_ends_as_undisturbed() {
    for scenario in [self_heal(), fill_gap()] {
        let (wanted, changes) = changes_of_the_binary(&scenario);
        let covered = at_once(2, changes.len(), |job| {
            let (name, n) = &changes[job];
            assert_eq!(killed_at(&scenario, name, *n), wanted, "{} killed at {n} x {name}", scenario.name);
            Some(name.clone())
        });
        tell(&format!("{} by SIGKILL", scenario.name), changes.len(), &covered);
        for step in ["Progress::apply", "L2Engine::write_blocks", "Reactors::pause", "Progress::set_lease"] {
            assert!(covered.contains_key(&format!("after {step}")), "{step} was not passed: {covered:?}");
        }
    }
}

/// Calls that are in flight when the worker ends land this much later.
const LATE: Duration = Duration::from_secs(5);

/// Reactors and a node whose effects land late: a worker on them must allow for that.
const LATE_PACE: Pace = Pace { lateness: Duration::from_millis(5_500), head_still: Duration::from_secs(6) };

/// Ends a worker while the first call of `method` is under way whose effect lands late, and starts another at once.
fn ended_while_late(scenario: &Scenario, call: (Server, &str, &str), late: Duration) -> (Devnet, Site) {
    let (server, method, name) = call;
    let (devnet, site) = start(scenario);
    devnet.fault(server, Rule::on(method, Fault::Late(late)).times(1));
    let end = format!("during {name}");
    let points = KillPoints::new(move |_, point| point.to_string() == end);
    let done = || settled(&devnet, &scenario.world);
    assert!(live_at(&devnet, &site.database(), points, LATE_PACE, done).is_err(), "{method} was never under way");
    let second = KillPoints::new(|_, _| false);
    // Settled only when nothing can land any more: whatever was under way has.
    live_at(&devnet, &site.database(), second, LATE_PACE, || done() && !devnet.has_late_calls()).unwrap();
    (devnet, site)
}

#[test]
fn m5_m6_p5_p6_ended_while_a_call_is_under_way_that_lands_up_to_5_s_late_it_ends_as_undisturbed() {
    let scenarios = [self_heal(), fill_gap()];
    let wanted: Vec<Ending> = scenarios.iter().map(|scenario| undisturbed(scenario).0).collect();
    let calls = [
        (Server::Reactors, "pause", "Reactors::pause"),
        (Server::Reactors, "resume", "Reactors::resume"),
        (Server::Engine, "engine_newSafeL2Block", "L2Engine::write_blocks"),
        (Server::Engine, "engine_setBlockTags", "L2Engine::set_tags"),
    ];
    let delays = [LATE / 5, LATE / 2, LATE];
    let jobs = scenarios.len() * calls.len() * delays.len();
    let covered = at_once(jobs, jobs, |job| {
        let (of, call, delay) = (job % 2, (job / 2) % calls.len(), job / 2 / calls.len());
        let (devnet, site) = ended_while_late(&scenarios[of], calls[call], delays[delay]);
        let what = format!("{} ended during {}, {:?} late", scenarios[of].name, calls[call].2, delays[delay]);
        assert_in_order(&devnet, &scenarios[of], &what);
        assert_eq!(ending(&devnet, &site), wanted[of], "{what}");
        Some(what)
    });
    tell("late", jobs, &covered);
}

#[test]
fn m5_m6_p5_p6_ended_at_the_points_of_the_guard_over_reactors_that_are_always_late_it_ends_as_undisturbed() {
    let scenario = self_heal();
    let wanted = undisturbed(&scenario).0;
    let late = Duration::from_millis(400);
    let pace = Pace { lateness: Duration::from_millis(900), head_still: Duration::from_millis(600) };
    let of_the_guard = |point: &Point| point.port == "Reactors" || point.method == "set_lease";
    let slow = |devnet: &Devnet| {
        devnet.fault(Server::Reactors, Rule::always(Fault::Late(late)));
        devnet.fault(Server::Engine, Rule::on("engine_newSafeL2Block", Fault::Late(late)).times(1));
    };
    let passed = Arc::new(AtomicUsize::new(0));
    {
        let (devnet, site) = start(&scenario);
        slow(&devnet);
        let noted = passed.clone();
        let points = KillPoints::new(move |_, point| {
            noted.fetch_add(usize::from(of_the_guard(&point)), Ordering::SeqCst);
            false
        });
        live_at(&devnet, &site.database(), points, pace, || settled(&devnet, &scenario.world)).unwrap();
    }
    let passed = passed.load(Ordering::SeqCst);
    assert!(passed >= 8, "lease and calls, before, during and after: {passed}");
    let covered = at_once(6, passed, |job| {
        let (devnet, site) = start(&scenario);
        slow(&devnet);
        let (count, at) = (AtomicUsize::new(0), Arc::new(Mutex::new(None)));
        let noted = at.clone();
        let points = KillPoints::new(move |_, point| {
            let hit = of_the_guard(&point) && count.fetch_add(1, Ordering::SeqCst) == job;
            if hit {
                *noted.lock().unwrap() = Some(point);
            }
            hit
        });
        let done = || settled(&devnet, &scenario.world);
        let _ = live_at(&devnet, &site.database(), points, pace, done);
        let second = KillPoints::new(|_, _| false);
        live_at(&devnet, &site.database(), second, pace, || done() && !devnet.has_late_calls()).unwrap();
        let at = *at.lock().unwrap();
        assert_in_order(&devnet, &scenario, &format!("ended at {at:?}, all late"));
        assert_eq!(ending(&devnet, &site), wanted, "ended at {at:?}, all late");
        at.map(|point| point.to_string())
    });
    tell("the guard's points, always late", passed, &covered);
}

#[test]
fn m26_the_test_hook_is_compiled_into_no_release_build() {
    let source = |path: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src").join(path);
        std::fs::read_to_string(path).unwrap()
    };
    let gated = |text: &str, what: &str| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let places: Vec<_> = lines.iter().enumerate().filter(|(_, line)| line.contains(what)).collect();
        assert!(!places.is_empty(), "{what} is nowhere");
        places.iter().all(|(at, _)| *at > 0 && lines[at - 1] == "#[cfg(debug_assertions)]")
    };
    assert!(gated(&source("adapters/mod.rs"), "pub mod kill_points;"));
    assert!(gated(&source("commands/wiring.rs"), "kill_points::"));
}
