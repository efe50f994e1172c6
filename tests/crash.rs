//! Crash anywhere, on the real binary with real processes: the manager dies at every numbered crash point
//! between deciding, recording, acting and confirming, or at a drawn moment, or loses its lease; the next
//! one finds exactly the fleet that is wanted: what the operating system runs with our owner tag, what
//! the manager shows and what is desired are the same set, each instance as one process.
//!
//! `FOREBAY_CRASH_PASSES=N` kills at the first N passes of each point (default 2),
//! `FOREBAY_SEED=N` replays the drawn moments of one run.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests run in real time and print their seeds"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use forebay::control::crash::{CrashPoint, VARIABLE};
use support::http::{self, Client};
use support::{Process, eventually, free_port, local, write_config};

const P5: &str = "ml.p5.48xlarge";
const G6: &str = "ml.g6.48xlarge";

/// One of the preferred type, as many of the other as wanted; three at first.
const CONFIG: &str = r#"
[proxy]
listen = "{proxy}"
[admin]
listen = "{admin}"
[provider.local]
kind = "process"
command = ["{forebay}", "worker", "--listen", "{address}", "--instance-type", "{instance_type}", "--model", "{model}"]
[instance_type."ml.p5.48xlarge"]
provider = "local"
capacity = 1
[instance_type."ml.g6.48xlarge"]
provider = "local"
[[endpoint]]
name = "e"
[[endpoint.variant]]
name = "v"
model = "m"
initial_instance_count = 3
min_instance_count = 0
max_instance_count = 6
fallback = "at_once"
startup_health_interval = "50ms"
health_interval = "500ms"
drain_timeout = "10s"
[[endpoint.variant.pool]]
instance_type = "ml.p5.48xlarge"
priority = 1
[[endpoint.variant.pool]]
instance_type = "ml.g6.48xlarge"
priority = 2
"#;

/// A fleet whose manager is killed and started again. All that is shared is the folder with the store.
struct Fleet {
    manager: Process,
    command: &'static str,
    admin: SocketAddr,
    config: PathBuf,
    dir: tempfile::TempDir,
}

impl Fleet {
    fn start(command: &'static str, crash_at: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let (proxy, admin) = (local(free_port()), local(free_port()));
        let config = dir.path().join("forebay.toml");
        write_config(&config, CONFIG, proxy, admin);
        let manager = launch(command, &config, &dir, crash_at);
        Self { manager, command, admin, config, dir }
    }

    /// A manager in place of the one that is gone, or that is killed now.
    fn succeed(&mut self, crash_at: Option<&str>) {
        if !self.manager.has_ended() {
            self.manager.kill();
        }
        self.manager = launch(self.command, &self.config, &self.dir, crash_at);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("forebay.log")).unwrap_or_default()
    }

    /// The ids in the environments of the processes that carry our owner tag, one for each process.
    fn processes(&self) -> Vec<(String, u32)> {
        let owner = format!("FOREBAY_OWNER={}", self.dir.path().join("forebay.db").display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let environment = String::from_utf8_lossy(&environment);
            let mut variables = environment.split('\0');
            if variables.clone().any(|variable| variable == owner) {
                let id = variables.find_map(|v| v.strip_prefix("FOREBAY_INSTANCE="));
                found.push((id.unwrap_or_default().to_owned(), pid));
            }
        }
        found.sort();
        found
    }

    /// What the manager shows of its only variant, if it answers.
    fn variant(&self) -> Option<serde_json::Value> {
        let status = ask(self.admin, "GET", "/api/v1/status", "")?;
        (status.status == 200).then(|| status.json()["endpoints"][0]["variants"][0].clone())
    }

    /// Whether `desired` are wanted and in service, and nothing else is known or runs. None of them is
    /// `but`.
    fn is_settled(&self, desired: usize, but: &str) -> bool {
        let Some(variant) = self.variant() else { return false };
        let instances = variant["instances"].as_array().cloned().unwrap_or_default();
        let mut shown: Vec<_> =
            instances.iter().map(|i| i["id"].as_str().unwrap_or_default().to_owned()).collect();
        shown.sort();
        variant["desired_instance_count"] == desired
            && instances.len() == desired
            && instances.iter().all(|i| i["state"] == "InService")
            && shown.iter().all(|id| id != but)
            && self.processes().into_iter().map(|(id, _)| id).eq(shown)
    }

    fn settle(&self, desired: usize, but: &str, what: &str) {
        let start = Instant::now();
        while !self.is_settled(desired, but) {
            assert!(
                start.elapsed() < support::DEADLINE,
                "{what}: not settled at {desired}\nshown {:#?}\nprocesses {:?}\n{}",
                self.variant(),
                self.processes(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn types(&self) -> Vec<String> {
        let variant = self.variant().expect("a manager that answers");
        let instances = variant["instances"].as_array().cloned().unwrap_or_default();
        let types = instances.iter().map(|i| i["instance_type"].as_str().unwrap_or_default());
        let mut types: Vec<_> = types.map(str::to_owned).collect();
        types.sort();
        types
    }

    /// Asks for `count` until the manager has recorded it; `false` when it dies before.
    fn scale(&mut self, count: usize) -> bool {
        let body = format!("{{\"desired_instance_count\":{count}}}");
        let start = Instant::now();
        loop {
            if self.manager.has_ended() {
                return false;
            }
            let answer = ask(self.admin, "POST", "/api/v1/endpoints/e/scale", &body);
            match answer {
                Some(answer) if answer.status == 200 => return true,
                Some(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                None => {}
            }
            assert!(start.elapsed() < support::DEADLINE, "scale to {count} is not taken");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the manager has died, or all is done. Returns whether it died.
    fn dies_or_settles(&mut self, desired: usize, but: &str, what: &str) -> bool {
        let start = Instant::now();
        loop {
            if self.manager.has_ended() {
                return true;
            }
            if self.is_settled(desired, but) {
                return self.manager.has_ended();
            }
            assert!(start.elapsed() < support::DEADLINE, "{what}: neither dead nor settled");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Down to nothing: no process, no record.
    fn end(mut self, what: &str) {
        assert!(self.scale(0), "{what}: the last manager lives");
        self.settle(0, "", what);
        assert_eq!(self.processes(), [], "{what}");
        self.manager.signal("TERM");
        assert!(self.manager.wait().success(), "{what}: {}", self.log());
        assert_eq!(self.processes(), [], "{what}");
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let second = std::fs::read_to_string(self.dir.path().join("second.log"));
            eprintln!("{}\n--- second ---\n{}", self.log(), second.unwrap_or_default());
        }
        if !self.manager.has_ended() {
            self.manager.kill();
        }
        support::end_workers_of(self.dir.path());
    }
}

fn launch(
    command: &str,
    config: &std::path::Path,
    dir: &tempfile::TempDir,
    crash_at: Option<&str>,
) -> Process {
    let args = [command, "--config", &config.display().to_string()];
    let env: Vec<_> = crash_at.map(|point| (VARIABLE, point)).into_iter().collect();
    Process::start_with(&args, dir.path(), "forebay.log", &env)
}

/// A request to a manager that may die meanwhile.
fn ask(admin: SocketAddr, method: &str, path: &str, body: &str) -> Option<http::Answer> {
    std::net::TcpStream::connect(admin).ok()?;
    let (path, body, method) = (path.to_owned(), body.to_owned(), method.to_owned());
    // The plain client panics when the connection breaks, which is what is to be expected here.
    std::panic::catch_unwind(move || {
        let mut client = Client::connect(admin);
        client.send(&method, &path, &[("content-type", "application/json")], body.as_bytes());
        client.try_read_answer()
    })
    .ok()
    .flatten()
}

/// What happens to a fleet while a point is armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// From nothing to one preferred and two fallback.
    Create,
    /// From 3 to 5.
    Out,
    /// A worker is killed.
    Kill,
    /// From 5 to 2, fallback first.
    In,
}

/// Points that the first pass of which must be reached in a phase; the others may be.
fn must_pass(phase: Phase) -> &'static [CrashPoint] {
    use CrashPoint as P;
    const START: [P; 3] = [P::AfterLease, P::AfterLoad, P::AfterList];
    const GROW: [P; 13] = [
        START[0],
        START[1],
        START[2],
        P::BeforeIntent,
        P::AfterIntent,
        P::BeforeLaunch,
        P::AfterLaunch,
        P::BeforeGrant,
        P::AfterGrant,
        P::BeforeInService,
        P::AfterInService,
        P::BeforePublish,
        P::AfterPublish,
    ];
    const SHRINK: [P; 13] = [
        START[0],
        START[1],
        START[2],
        P::BeforePublish,
        P::AfterPublish,
        P::BeforeDraining,
        P::AfterDraining,
        P::BeforeStopping,
        P::AfterStopping,
        P::BeforeTerminate,
        P::AfterTerminate,
        P::BeforeDelete,
        P::AfterDelete,
    ];
    match phase {
        Phase::Create | Phase::Out | Phase::Kill => &GROW,
        Phase::In => &SHRINK,
    }
}

/// One fleet's whole life, with `armed` at every manager that begins a phase. Returns the phases in which
/// it died of it.
fn live_through(armed: &str) -> BTreeSet<Phase> {
    let mut died = BTreeSet::new();
    let mut fleet = Fleet::start("manager", Some(armed));
    let mut note = |fleet: &mut Fleet, phase: Phase, desired: usize, but: &str| {
        let what = format!("{armed} in {phase:?}");
        if fleet.dies_or_settles(desired, but, &what) {
            died.insert(phase);
        }
    };
    note(&mut fleet, Phase::Create, 3, "");
    fleet.succeed(None);
    fleet.settle(3, "", &format!("after {armed} in Create"));
    assert_eq!(fleet.types(), [G6, G6, P5], "{armed}");

    fleet.succeed(Some(armed));
    if fleet.scale(5) {
        note(&mut fleet, Phase::Out, 5, "");
        fleet.succeed(None);
    } else {
        note(&mut fleet, Phase::Out, 5, "");
        fleet.succeed(None);
        // It may have been recorded, and not answered.
        assert!(fleet.scale(5), "{armed}: the next manager takes it");
    }
    fleet.settle(5, "", &format!("after {armed} in Out"));

    fleet.succeed(Some(armed));
    let (victim, pid) = fleet.processes()[2].clone();
    support::signal(pid, "KILL");
    note(&mut fleet, Phase::Kill, 5, &victim);
    fleet.succeed(None);
    fleet.settle(5, &victim, &format!("after {armed} in Kill"));

    fleet.succeed(Some(armed));
    let taken = fleet.scale(2);
    note(&mut fleet, Phase::In, 2, "");
    fleet.succeed(None);
    assert!(taken || fleet.scale(2), "{armed}: the next manager takes it");
    fleet.settle(2, "", &format!("after {armed} in In"));
    fleet.end(armed);
    died
}

#[test]
fn a_panic_of_the_manager_is_a_failure_of_the_process_and_workers_end_as_the_config_says() {
    for (command, keeps) in [("serve", false), ("manager", true)] {
        let mut fleet = Fleet::start(command, Some("after_in_service:1:panic"));
        assert_eq!(fleet.manager.wait().code(), Some(1), "{command}: {}", fleet.log());
        let log = fleet.log();
        let told = "forebay: the manager ended: it panicked: crash point after_in_service reached";
        assert!(log.lines().any(|line| line.starts_with(told)), "{command}: {log}");
        assert_eq!(fleet.processes().is_empty(), !keeps, "{command}: {log}");
        fleet.succeed(None);
        fleet.settle(3, "", command);
        fleet.end(command);
    }
}

#[test]
fn a_manager_that_dies_at_any_point_leaves_neither_orphan_nor_double() {
    let passes = number("FOREBAY_CRASH_PASSES").unwrap_or(2);
    let cases: Vec<_> = CrashPoint::ALL
        .iter()
        .flat_map(|point| (1..=passes).map(move |nth| (*point, nth)))
        .collect();
    let next = AtomicUsize::new(0);
    let deaths = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((point, nth)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let died = live_through(&format!("{point}:{nth}"));
                    deaths.lock().expect("no panic").insert((point.name(), *nth), died);
                }
            });
        }
    });
    let deaths = deaths.into_inner().expect("no panic");
    println!("{} deaths", deaths.values().map(BTreeSet::len).sum::<usize>());
    for phase in [Phase::Create, Phase::Out, Phase::Kill, Phase::In] {
        for point in must_pass(phase) {
            assert!(
                deaths[&(point.name(), 1)].contains(&phase),
                "no death at {point} in {phase:?}"
            );
        }
    }
}

#[test]
fn a_serve_that_dies_while_it_ends_everything_comes_back_whole() {
    for armed in ["before_terminate:2", "after_terminate", "before_delete:2", "after_delete"] {
        let mut fleet = Fleet::start("serve", None);
        fleet.settle(3, "", armed);
        fleet.succeed(Some(armed));
        fleet.settle(3, "", armed);
        fleet.manager.signal("TERM");
        assert!(!fleet.manager.wait().success(), "{armed}: it died of it");
        fleet.succeed(None);
        fleet.settle(3, "", armed);
        fleet.manager.signal("TERM");
        assert!(fleet.manager.wait().success(), "{armed}: {}", fleet.log());
        assert_eq!(fleet.processes(), [], "{armed}");
    }
}

#[test]
fn a_manager_killed_at_drawn_moments_keeps_one_fleet() {
    let seed = number("FOREBAY_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(now.expect("after 1970").subsec_nanos())
    });
    println!("FOREBAY_SEED={seed}");
    let mut state = seed;
    // A linear congruential generator is drawn enough for moments and counts.
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut fleet = Fleet::start("manager", None);
    let mut desired = 3;
    for _ in 0..20 {
        match draw(3) {
            0 => {
                let count = usize::try_from(draw(7)).expect("small");
                assert!(fleet.scale(count), "nobody kills it now");
                desired = count;
            }
            1 => {
                let running = fleet.processes();
                if !running.is_empty() {
                    let at = draw(running.len() as u64);
                    let (_, pid) = &running[usize::try_from(at).expect("small")];
                    // It may be gone by itself since.
                    let _ =
                        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
                }
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(draw(400)));
        fleet.succeed(None);
        let ids: Vec<_> = fleet.processes().into_iter().map(|(id, _)| id).collect();
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "one process for each id: {ids:?}");
    }
    fleet.settle(desired, "", "after drawn deaths");
    fleet.end("after drawn deaths");
}

/// A second manager on the same store, with an admin listener of its own.
fn second(fleet: &Fleet) -> (Process, SocketAddr) {
    let admin = local(free_port());
    let path = fleet.dir.path().join("second.toml");
    write_config(&path, CONFIG, local(free_port()), admin);
    let args = ["manager", "--config", &path.display().to_string()];
    let process = Process::start(&args, fleet.dir.path(), "second.log");
    eventually("the second one waits and says why", || {
        let answer = ask(admin, "GET", "/readyz", "")?;
        (answer.status == 503 && answer.text().contains("another manager")).then_some(())
    });
    (process, admin)
}

#[test]
fn a_second_manager_waits_and_succeeds_a_killed_one_within_seconds() {
    let mut fleet = Fleet::start("manager", None);
    fleet.settle(3, "", "at first");
    let before = fleet.processes();
    let (process, admin) = second(&fleet);
    let refused = ask(admin, "POST", "/api/v1/endpoints/e/scale", "{\"desired_instance_count\":1}");
    assert_eq!(refused.expect("an answer").status, 503, "one that waits takes no orders");
    assert!(fleet.is_settled(3, ""));
    let killed_at = Instant::now();
    fleet.manager.kill();
    eventually("the second one is ready", || {
        (ask(admin, "GET", "/readyz", "")?.status == 200).then_some(())
    });
    assert!(killed_at.elapsed() < Duration::from_secs(5), "{:?}", killed_at.elapsed());
    fleet.manager = process;
    fleet.admin = admin;
    fleet.settle(3, "", "after the succession");
    assert_eq!(fleet.processes(), before, "the same processes");
    fleet.end("after the succession");
}

/// A process that sleeps inside a transaction keeps the database locked, so nobody can succeed it until it
/// wakes or ends: then it is woken and stopped again.
fn stop_between_transactions(fleet: &Fleet, other: SocketAddr) {
    eventually("it sleeps and the database is free", || {
        fleet.manager.signal("STOP");
        let start = Instant::now();
        // Longer than the other one waits between two looks and for a locked database.
        while start.elapsed() < Duration::from_secs(7) {
            let answer = ask(other, "GET", "/readyz", "")?;
            if answer.text().contains("cannot be used") {
                fleet.manager.signal("CONT");
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(())
    });
}

#[test]
fn a_manager_that_slept_through_its_lease_writes_nothing_and_fails() {
    let mut fleet = Fleet::start("manager", None);
    fleet.settle(3, "", "at first");
    let (process, admin) = second(&fleet);
    stop_between_transactions(&fleet, admin);
    // Reaches its socket while it sleeps: the first thing that it would do.
    let mut late = Client::connect(fleet.admin);
    let body = b"{\"desired_instance_count\":6}";
    let json = [("content-type", "application/json")];
    late.send("POST", "/api/v1/endpoints/e/scale", &json, body);
    eventually("the second one acts once the lease has run out", || {
        (ask(admin, "GET", "/readyz", "")?.status == 200).then_some(())
    });
    let mut slept = std::mem::replace(&mut fleet.manager, process);
    let first_admin = std::mem::replace(&mut fleet.admin, admin);
    assert!(fleet.scale(4));
    fleet.settle(4, "", "under the second one");
    let explained = || {
        let answer = ask(admin, "GET", "/api/v1/endpoints/e/explain", "")?;
        Some(answer.json()["events"].clone())
    };
    let (running, told) = (fleet.processes(), explained());
    slept.signal("CONT");
    let status = slept.wait();
    assert!(!status.success(), "{status}");
    let answer = late.try_read_answer();
    assert!(answer.as_ref().is_none_or(|a| a.status >= 500), "{answer:?}");
    assert!(fleet.log().contains("may not act any more"), "{}", fleet.log());
    assert!(fleet.is_settled(4, ""));
    assert_eq!((fleet.processes(), explained()), (running, told));
    // What it would have written would show in the records that the next one loads.
    fleet.succeed(None);
    fleet.admin = first_admin;
    fleet.settle(4, "", "from the records");
    fleet.end("from the records");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
