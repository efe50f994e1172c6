//! Pools under scarcity, from outside: the real binary keeps fleets of real processes while capacity is
//! missing, comes back, or is taken away. Where requests can be served they are, all the time: a light
//! streaming load runs beside, and not one request of it may fail.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact figures"
)]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use forebay::control::{ManagedProvider, Manager, ManagerOptions, OnExit};
use forebay::provider::fake::{FakeProvider, Script};
use forebay::store::memory::MemoryStore;
use forebay::types::{Address, ProviderError};
use serde_json::Value;
use support::http::{self, Client};
use support::{Forebay, Worker, eventually};

const JSON: (&str, &str) = ("content-type", "application/json");
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const P5: &str = "ml.p5.48xlarge";
const G6: &str = "ml.g6.48xlarge";

/// A config that a test changes and reloads.
#[derive(Clone)]
struct Scene {
    /// Name and keys of each instance type.
    types: Vec<(&'static str, String)>,
    /// Keys of the variant.
    variant: String,
    /// Instance type and priority.
    pools: Vec<(&'static str, u32)>,
    /// Further tables.
    more: String,
}

impl Scene {
    /// `p5` preferred instances there are, and `g6` of the fallback; `None`: as many as wanted.
    fn new(p5: Option<u32>, g6: Option<u32>, variant: &str) -> Self {
        Self {
            types: vec![(P5, local(p5)), (G6, local(g6))],
            variant: variant.to_owned(),
            pools: vec![(P5, 1), (G6, 2)],
            more: String::new(),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{HEAD}{}\n", self.more);
        for (name, keys) in &self.types {
            text += &format!("[instance_type.\"{name}\"]\n{keys}\n");
        }
        text += "[[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n";
        text += "startup_health_interval = \"50ms\"\nhealth_interval = \"200ms\"\ndrain_timeout = \"20s\"\n";
        text += &self.variant;
        for (name, priority) in &self.pools {
            text += &format!(
                "\n[[endpoint.variant.pool]]\ninstance_type = \"{name}\"\npriority = {priority}\n"
            );
        }
        text
    }

    fn serve(&self) -> Forebay {
        Forebay::serve(&self.text())
    }

    /// Puts this in place of what `forebay` runs with.
    fn reload(&self, forebay: &Forebay) {
        support::write_config(&forebay.config_path(), &self.text(), forebay.proxy, forebay.admin);
        let answer = http::post(forebay.admin, "/api/v1/reload", &[], "");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

const HEAD: &str = r#"
[proxy]
listen = "{proxy}"
[admin]
listen = "{admin}"
[provider.local]
kind = "process"
command = ["{forebay}", "worker", "--listen", "{address}", "--instance-type", "{instance_type}", "--model", "{model}",
  "--max-concurrency", "{max_concurrency}", "--first-token", "10ms", "--tokens-per-second", "200"]
"#;

fn local(capacity: Option<u32>) -> String {
    let limit = capacity.map(|count| format!("capacity = {count}\n")).unwrap_or_default();
    format!("provider = \"local\"\nmax_concurrency = 8\n{limit}")
}

fn counts(initial: u32, min: u32, max: u32) -> String {
    format!(
        "initial_instance_count = {initial}\nmin_instance_count = {min}\nmax_instance_count = {max}\n"
    )
}

fn types(instances: &[Value]) -> Vec<String> {
    let names = instances.iter().map(|i| i["instance_type"].as_str().unwrap_or_default());
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names
}

fn wait_types(forebay: &Forebay, expected: &[&str]) {
    let mut expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    eventually(&format!("{expected:?} in service and nothing else"), || {
        let all = forebay.instances();
        let same = types(&all) == expected && all.iter().all(|i| i["state"] == "InService");
        (same && forebay.proxies_are_current()).then_some(())
    });
}

fn explained(forebay: &Forebay, endpoint: &str) -> Value {
    http::get(forebay.admin, &format!("/api/v1/endpoints/{endpoint}/explain")).json()
}

/// Every decision of a kind, as time and sentence.
fn events(forebay: &Forebay, kind: &str) -> Vec<(u64, String)> {
    let all = explained(forebay, "e")["events"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|event| event["kind"] == kind)
        .map(|e| (e["at"].as_u64().expect("a time"), e["message"].as_str().expect("text").into()))
        .collect()
}

fn first_about(events: &[(u64, String)], words: &str) -> u64 {
    let found = events.iter().find(|(_, message)| message.contains(words));
    found.unwrap_or_else(|| panic!("nothing about {words:?} in {events:?}")).0
}

fn said(forebay: &Forebay, args: &[&str]) -> String {
    let output = forebay.cli(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stream(proxy: SocketAddr) -> Result<(), String> {
    let answer = http::post(proxy, "/v1/chat/completions", &[JSON], STREAM);
    let ended = answer.complete && answer.text().trim_end().ends_with("[DONE]");
    if answer.status == 200 && ended {
        return Ok(());
    }
    Err(format!("{}: {}", answer.status, answer.text()))
}

/// Ends the threads of a load, also when what runs beside them fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Streams without a break while `act` runs, and watches the fleet: no request may fail, and never may
/// fewer than `at_least` be in service.
fn under_load(forebay: &Forebay, at_least: usize, act: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    let lost = std::sync::Mutex::new(Vec::new());
    let fewest = AtomicUsize::new(usize::MAX);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match stream(forebay.proxy) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(why) => lost.lock().expect("no panic").push(why),
                    }
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fewest.fetch_min(forebay.in_service().len(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        eventually("the load runs", || (served.load(Ordering::Relaxed) > 4).then_some(()));
        act();
        let before = served.load(Ordering::Relaxed);
        eventually("and goes on", || (served.load(Ordering::Relaxed) > before + 4).then_some(()));
    });
    let lost = lost.into_inner().expect("no panic");
    assert!(
        lost.is_empty(),
        "{} requests lost, {} served: {lost:?}",
        lost.len(),
        served.into_inner()
    );
    assert!(fewest.load(Ordering::Relaxed) >= at_least, "{fewest:?} in service, not {at_least}");
}

#[test]
fn an_endpoint_created_in_a_drought_comes_up_when_anything_is_free() {
    let keys = counts(1, 1, 4) + "provision_timeout = \"1s\"";
    let scene = Scene::new(Some(0), Some(0), &keys);
    let mut forebay = scene.serve();
    eventually("both pools have had their turn, and the first again", || {
        let asked = events(&forebay, "launch_asked");
        let last = asked.last()?.1.contains(P5);
        (last && asked.iter().any(|(_, message)| message.contains(G6))).then_some(())
    });
    let status = forebay.status();
    assert_eq!(status["endpoints"][0]["status"], "Creating");
    assert_eq!(status["capacity_holds"].as_array().map(Vec::len), Some(2), "{status}");
    let shown = said(&forebay, &["status"]);
    assert!(shown.contains("NEXT-TRY-IN") && shown.contains("0 of 0"), "{shown}");
    let early = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], STREAM);
    assert_eq!(early.status, 503, "{}", early.text());
    assert!(early.header("retry-after").is_some());
    // The memory of refusals survives the manager.
    let refusals = |forebay: &Forebay| {
        let holds = forebay.status()["capacity_holds"].as_array().cloned().unwrap_or_default();
        holds.iter().map(|hold| hold["refusals"].as_u64().expect("a number")).sum::<u64>()
    };
    let before = refusals(&forebay);
    forebay.process.kill();
    forebay.restart();
    eventually("the memory is back", || (refusals(&forebay) >= before).then_some(()));
    let one = Scene { types: vec![(P5, local(Some(0))), (G6, local(Some(1)))], ..scene };
    one.reload(&forebay);
    wait_types(&forebay, &[G6]);
    under_load(&forebay, 1, || ());
}

#[test]
fn the_window_is_for_the_first_pool_alone() {
    let keys = counts(1, 1, 4) + "provision_timeout = \"2s\"";
    let forebay = Scene::new(Some(0), None, &keys).serve();
    wait_types(&forebay, &[G6]);
    let asked = events(&forebay, "launch_asked");
    let waited = first_about(&asked, G6) - first_about(&asked, P5);
    assert!((1_990..4_000).contains(&waited), "the next pool had its turn after {waited} ms");
    let tries = asked.iter().filter(|(_, message)| message.contains(P5)).count();
    assert!(tries >= 2, "retried within the window: {asked:?}");
}

#[test]
fn at_once_asks_the_next_pool_at_once() {
    let keys = counts(1, 1, 4) + "provision_timeout = \"600s\"\nfallback = \"at_once\"";
    let forebay = Scene::new(Some(0), None, &keys).serve();
    wait_types(&forebay, &[G6]);
    let asked = events(&forebay, "launch_asked");
    let waited = first_about(&asked, G6) - first_about(&asked, P5);
    assert!(waited < 1_000, "the next pool had its turn after {waited} ms");
}

#[test]
fn parallel_keeps_whichever_answers_and_releases_the_surplus_fallback() {
    let keys = counts(2, 1, 4) + "provision_timeout = \"60s\"\nfallback = \"parallel\"";
    let scene = Scene::new(Some(0), None, &keys);
    let forebay = scene.serve();
    wait_types(&forebay, &[G6, G6]);
    let back = Scene { types: vec![(P5, local(Some(2))), (G6, local(None))], ..scene };
    under_load(&forebay, 2, || {
        back.reload(&forebay);
        wait_types(&forebay, &[P5, P5]);
    });
}

#[test]
fn partial_capacity_is_used() {
    let keys = counts(4, 1, 4) + "fallback = \"at_once\"";
    let forebay = Scene::new(Some(2), None, &keys).serve();
    wait_types(&forebay, &[P5, P5, G6, G6]);
    let asked = events(&forebay, "launch_asked");
    assert!(asked[0].1.contains(&format!("4 × {P5}")), "asked for all at once: {asked:?}");
    assert!(asked[1].1.contains(&format!("2 × {G6}")), "and for the rest elsewhere: {asked:?}");
    assert_eq!(forebay.gauge_where("forebay_capacity_errors_total", P5), 2.0);
}

#[test]
fn equal_priorities_are_filled_evenly() {
    let mut scene = Scene::new(None, None, &(counts(4, 1, 8) + "fallback = \"at_once\""));
    scene.pools = vec![(P5, 1), (G6, 1)];
    let forebay = scene.serve();
    wait_types(&forebay, &[P5, P5, G6, G6]);
    said(&forebay, &["scale", "e", "6"]);
    wait_types(&forebay, &[P5, P5, P5, G6, G6, G6]);
}

/// A preferred type whose workers are started by `command`; the fallback is a good one.
fn with_faulty_preferred(command: &str, variant: &str) -> Scene {
    let mut scene =
        Scene::new(None, None, &(counts(1, 1, 4) + "fallback = \"at_once\"\n" + variant));
    scene.types[0].1 = "provider = \"faulty\"\n".into();
    scene.more = format!("[provider.faulty]\nkind = \"process\"\ncommand = {command}\n");
    scene
}

/// Fails twice for a reason that is not capacity: shown, held back for longer each time, and no other
/// pool is asked.
fn backs_off_without_a_march(scene: &Scene, kind: &str, words: &str) {
    let forebay = scene.serve();
    eventually("it fails a third time", || (events(&forebay, kind).len() >= 3).then_some(()));
    let failed = events(&forebay, kind);
    assert!(failed.iter().all(|(_, message)| message.contains(words)), "{failed:?}");
    let pauses: Vec<_> = failed.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses[0] >= 400, "it backs off: {pauses:?}");
    let asked = events(&forebay, "launch_asked");
    assert!(asked.iter().all(|(_, message)| !message.contains(G6)), "a march: {asked:?}");
    let why = explained(&forebay, "e")["summary"].to_string();
    assert!(why.contains("in a row") && why.contains(words), "{why}");
    let waits = eventually("status says what it waits for", || {
        forebay.status()["endpoints"][0]["variants"][0]["waiting_for"].as_str().map(str::to_owned)
    });
    assert!(waits.contains(P5), "{waits}");
    assert_eq!(forebay.gauge("forebay_capacity_errors_total"), 0.0);
}

#[test]
fn a_bad_command_backs_off_and_does_not_march_through_the_pools() {
    let scene = with_faulty_preferred("[\"/nowhere/engine\", \"{address}\"]", "");
    backs_off_without_a_march(&scene, "launch_rejected", "/nowhere/engine");
}

#[test]
fn a_worker_that_ends_at_its_start_backs_off() {
    let command = "[\"{forebay}\", \"worker\", \"--listen\", \"{address}\", \"--instance-type\", \"t\", \"--model\", \"m\", \"--fail\", \"exit-at-start\"]";
    backs_off_without_a_march(&with_faulty_preferred(command, ""), "start_failed", "exit");
}

#[test]
fn a_worker_that_never_gets_healthy_is_terminated_and_backs_off() {
    let command = "[\"{forebay}\", \"worker\", \"--listen\", \"{address}\", \"--instance-type\", \"t\", \"--model\", \"m\", \"--fail\", \"refuse-startup\"]";
    let scene = with_faulty_preferred(command, "startup_timeout = \"1s\"\n");
    backs_off_without_a_march(&scene, "startup_timeout", "503");
}

#[test]
fn an_active_fleet_returns_to_preferred_capacity_one_by_one_and_never_below_its_size() {
    let keys = counts(3, 1, 4)
        + "fallback = \"at_once\"\nrebalance = \"active\"\nrebalance_min_interval = \"1s\"";
    let scene = Scene::new(Some(0), None, &keys);
    let forebay = scene.serve();
    wait_types(&forebay, &[G6, G6, G6]);
    let back = Scene { types: vec![(P5, local(Some(2))), (G6, local(None))], ..scene };
    let most = AtomicUsize::new(0);
    under_load(&forebay, 3, || {
        back.reload(&forebay);
        eventually("two moves", || {
            let all = forebay.instances();
            let growing = |i: &&Value| i["state"] == "InService" || i["state"] == "Starting";
            most.fetch_max(all.iter().filter(growing).count(), Ordering::Relaxed);
            (types(&all) == [G6, P5, P5]).then_some(())
        });
    });
    wait_types(&forebay, &[P5, P5, G6]);
    assert!(most.into_inner() <= 4, "one at a time, by its budget");
    let moves = events(&forebay, "move_started");
    let leaves = events(&forebay, "scale_in");
    assert!(moves.len() >= 2 && moves[1].0 - moves[0].0 >= 1_000, "{moves:?}");
    assert!(leaves.len() == 2 && leaves[0].0 > moves[0].0, "launched first: {moves:?} {leaves:?}");
}

#[test]
fn to_zero_and_back_with_one_wake_sized_to_the_need() {
    let keys = counts(1, 0, 4) + "fallback = \"at_once\"\nscale_to_zero_after = \"1s\"";
    let mut scene = Scene::new(None, None, &keys);
    // Slow enough to start that all twelve are seen before the first is healthy.
    let worker = HEAD.split("command = ").nth(1).expect("a command").replace("]\n", "");
    scene.more = format!(
        "[provider.slow]\nkind = \"process\"\ncommand = {worker}, \"--startup-delay\", \"1s\"]\n"
    );
    scene.types[0].1 = "provider = \"slow\"\nmax_concurrency = 4\n".into();
    let forebay = scene.serve();
    eventually("it serves before it goes to zero", || {
        (events(&forebay, "in_service").len() == 1).then_some(())
    });
    eventually("idle, it goes to zero", || forebay.instances().is_empty().then_some(()));
    assert_eq!(events(&forebay, "to_zero").len(), 1);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..12).map(|_| scope.spawn(|| stream(forebay.proxy))).collect();
        for request in waiting {
            assert_eq!(request.join().expect("no panic"), Ok(()), "held, then served");
        }
    });
    let woken = events(&forebay, "woken");
    // The need is known once all have arrived, which takes some milliseconds.
    let asked = events(&forebay, "launch_asked");
    assert!(woken.len() <= 2, "one wake, perhaps corrected as they arrive: {woken:?}");
    let launched = asked[1..].iter().filter_map(|(_, m)| m.split(" × ").next()?.rsplit(' ').next());
    let launched: u32 = launched.map(|count| count.parse::<u32>().expect("a number")).sum();
    assert_eq!(launched, 3, "12 requests, 4 at once each: {asked:?}");
    eventually("idle again", || forebay.instances().is_empty().then_some(()));
    // One that came and went between two looks still counts.
    let wakes = events(&forebay, "woken").len();
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &[JSON], STREAM.as_bytes());
    drop(client);
    eventually("it wakes", || (events(&forebay, "woken").len() > wakes).then_some(()));
    eventually("and goes to zero again", || {
        let is_idle = events(&forebay, "to_zero").len() == 3 && forebay.instances().is_empty();
        is_idle.then_some(())
    });
}

#[test]
fn zero_by_an_operator_is_left_by_the_next_request() {
    let forebay = Scene::new(None, None, &counts(2, 0, 4)).serve();
    wait_types(&forebay, &[P5, P5]);
    said(&forebay, &["scale", "e", "0"]);
    eventually("zero", || forebay.instances().is_empty().then_some(()));
    assert_eq!(stream(forebay.proxy), Ok(()));
    wait_types(&forebay, &[P5]);
}

#[test]
fn a_pool_that_leaves_the_config_drains_after_its_replacement() {
    let scene = Scene::new(Some(2), None, &(counts(3, 1, 4) + "fallback = \"at_once\""));
    let forebay = scene.serve();
    wait_types(&forebay, &[P5, P5, G6]);
    let without = Scene { pools: vec![(G6, 1)], ..scene.clone() };
    under_load(&forebay, 3, || {
        without.reload(&forebay);
        wait_types(&forebay, &[G6, G6, G6]);
    });
    let removed = events(&forebay, "pool_removed");
    assert_eq!(removed.len(), 2, "{removed:?}");
    // The type goes, too, and another comes.
    let other =
        Scene { types: vec![("ml.trn2", local(None))], pools: vec![("ml.trn2", 1)], ..scene };
    under_load(&forebay, 3, || {
        other.reload(&forebay);
        wait_types(&forebay, &["ml.trn2"; 3]);
    });
}

#[test]
fn one_endpoints_troubles_delay_no_other() {
    let mut scene = Scene::new(Some(0), Some(0), &(counts(2, 1, 4) + "fallback = \"at_once\""));
    scene.more =
        "[provider.faulty]\nkind = \"process\"\ncommand = [\"/nowhere/engine\", \"{address}\"]\n"
            .into();
    scene.types.push(("ml.faulty", "provider = \"faulty\"\n".into()));
    scene.types.push(("ml.good", local(None)));
    let endpoint = |name: &str, kind: &str| {
        format!(
            "[[endpoint]]\nname = \"{name}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m-{name}\"\nstartup_health_interval = \"50ms\"\n[[endpoint.variant.pool]]\ninstance_type = \"{kind}\"\n"
        )
    };
    let text = scene.text() + &endpoint("broken", "ml.faulty") + &endpoint("fine", "ml.good");
    let started = std::time::Instant::now();
    let forebay = Forebay::serve(&text);
    wait_types(&forebay, &["ml.good"]);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let body = STREAM.replace("\"m\"", "\"m-fine\"");
    let answer = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn why_is_my_endpoint_on_g6_has_an_answer_in_one_command() {
    let keys = counts(2, 1, 4) + "fallback = \"at_once\"";
    let forebay = Scene::new(Some(1), None, &keys).serve();
    wait_types(&forebay, &[P5, G6]);
    let why = said(&forebay, &["explain", "e"]);
    for words in [
        "2 desired, 2 in service (1 × ml.p5.48xlarge, 1 × ml.g6.48xlarge)",
        "ml.p5.48xlarge was refused",
        "1 of 1 ml.p5.48xlarge of provider local are in use",
        "asked first again at",
        "ml.g6.48xlarge has its turn (priority 2",
        "asks local for 1 × ml.g6.48xlarge: 1 counted, 2 desired",
    ] {
        assert!(why.contains(words), "{words:?} is missing in\n{why}");
    }
}

#[test]
fn a_plan_is_shown_and_nothing_is_done() {
    let keys = counts(2, 1, 4) + "fallback = \"at_once\"";
    let forebay = Scene::new(Some(1), None, &keys).serve();
    wait_types(&forebay, &[P5, G6]);
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("other.toml");
    let text = Scene::new(Some(1), None, &keys).text();
    support::write_config(&path, &text, support::local(1), support::local(2));
    let plan = |config: &std::path::Path, dir: &std::path::Path| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["plan", "--config", &config.display().to_string()])
            .current_dir(dir)
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let fresh = plan(&path, dir.path());
    assert!(fresh.contains("2 × ml.p5.48xlarge"), "{fresh}");
    let files: Vec<_> = std::fs::read_dir(dir.path()).expect("dir").flatten().collect();
    assert_eq!(files.len(), 1, "no store is made: {files:?}");
    // Of one that runs: what a changed config would do, and nothing of it is done.
    let events_before = explained(&forebay, "e")["events"].clone();
    assert!(
        !plan(&forebay.config_path(), forebay.dir.path()).contains("asks"),
        "all is as it should be"
    );
    let changed = text.replace("ml.g6.48xlarge", "ml.other");
    support::write_config(&forebay.config_path(), &changed, forebay.proxy, forebay.admin);
    let then = plan(&forebay.config_path(), forebay.dir.path());
    assert!(then.contains("ml.other") || then.contains("ml.g6"), "{then}");
    assert_eq!(explained(&forebay, "e")["events"], events_before);
    wait_types(&forebay, &[P5, G6]);
}

#[test]
fn cost_and_power_are_shown() {
    let mut scene = Scene::new(Some(1), None, &(counts(3, 1, 4) + "fallback = \"at_once\""));
    scene.types[0].1 += "price_per_hour = 98.5\nwatts = 10200\n";
    scene.types[1].1 += "price_per_hour = 16.25\nwatts = 4000.5\n";
    let forebay = scene.serve();
    wait_types(&forebay, &[P5, G6, G6]);
    let variant = forebay.status()["endpoints"][0]["variants"][0].clone();
    assert_eq!(variant["price_per_hour"], 131.0);
    assert!(said(&forebay, &["status"]).contains("131.00"));
    assert_eq!(forebay.gauge("forebay_fleet_price_per_hour"), 131.0);
    assert_eq!(forebay.gauge_where("forebay_fleet_price_per_hour", G6), 32.5);
    assert_eq!(forebay.gauge("forebay_fleet_power_watts"), 18_201.0);
}

#[test]
fn an_announced_interruption_is_replaced_first_and_then_drained() {
    let workers = [
        Worker::start(&["--tokens-per-second", "200"]),
        Worker::start(&["--tokens-per-second", "200"]),
    ];
    let addresses = |some: &[&Worker]| {
        let all: Vec<_> = some.iter().map(|w| format!("\"http://{}\"", w.address)).collect();
        format!("provider = \"existing\"\naddresses = [{}]\n", all.join(", "))
    };
    let mut scene = Scene::new(None, None, &(counts(2, 1, 4) + "fallback = \"at_once\""));
    scene.more = "[provider.existing]\nkind = \"static\"\n".into();
    scene.types[0].1 = addresses(&[&workers[0], &workers[1]]);
    let forebay = scene.serve();
    wait_types(&forebay, &[P5, P5]);
    // A long stream on the one that goes finishes.
    let mut streams: Vec<_> = (0..4)
        .map(|_| {
            let mut client = Client::connect(forebay.proxy);
            client.send(
                "POST",
                "/v1/chat/completions",
                &[JSON, ("x-worker-tokens", "300")],
                STREAM.as_bytes(),
            );
            client.read_head();
            client
        })
        .collect();
    scene.types[0].1 = addresses(&[&workers[0]]);
    under_load(&forebay, 2, || {
        scene.reload(&forebay);
        wait_types(&forebay, &[P5, G6]);
    });
    for client in &mut streams {
        let mut text = String::new();
        while let Some(chunk) = client.read_chunk() {
            text += &String::from_utf8_lossy(&chunk.expect("the stream finishes"));
        }
        assert!(text.trim_end().ends_with("[DONE]"));
    }
    let announced = events(&forebay, "interruption");
    let left = events(&forebay, "interrupted");
    let served = events(&forebay, "in_service");
    assert_eq!((announced.len(), left.len()), (1, 1));
    let replacement = served.last().expect("three").0;
    assert!(announced[0].0 <= replacement && replacement <= left[0].0, "{served:?} {left:?}");
}

/// A manager in this process over pretend providers `slow` (which owns `ml.slow`) and `fine` (`ml.fine`),
/// with an endpoint on each and one, `both`, that prefers `ml.slow`. Waits until `check` holds.
fn with_pretend_providers(
    slow: &FakeProvider,
    fine: &FakeProvider,
    check: impl Fn(&Value) -> bool,
) {
    let mut text = String::new();
    for (name, kind) in [("slow", "ml.slow"), ("fine", "ml.fine")] {
        text += &format!(
            "[provider.{name}]\nkind = \"process\"\ncommand = [\"x\", \"{{address}}\"]\n[instance_type.\"{kind}\"]\nprovider = \"{name}\"\n"
        );
    }
    for (name, kinds) in [
        ("on-slow", &["ml.slow"][..]),
        ("on-fine", &["ml.fine"]),
        ("both", &["ml.slow", "ml.fine"]),
    ] {
        text += &format!(
            "[[endpoint]]\nname = \"{name}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m-{name}\"\nfallback = \"at_once\"\nstartup_health_interval = \"50ms\"\n"
        );
        for (number, kind) in kinds.iter().enumerate() {
            text += &format!(
                "[[endpoint.variant.pool]]\ninstance_type = \"{kind}\"\npriority = {}\n",
                number + 1
            );
        }
    }
    let config = forebay::config::load_str(&text, "test.toml").expect("valid").0;
    let with_bell = |fake: &FakeProvider| {
        ManagedProvider::new(std::sync::Arc::new(fake.clone()), std::sync::Arc::default())
    };
    let names = config.providers.keys().cloned();
    let providers = names
        .map(|name| {
            let fake = if name.as_str() == "slow" { slow } else { fine };
            (name, with_bell(fake))
        })
        .collect();
    let options = ManagerOptions::new(config.fleet, providers);
    let (manager, handle) = Manager::new(options, Box::new(MemoryStore::new()));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let running = runtime.spawn(manager.run());
    let started = std::time::Instant::now();
    loop {
        let status = runtime.block_on(handle.status());
        let status = status.map_or(Value::Null, |s| serde_json::to_value(s).expect("JSON"));
        if check(&status) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{status:#}\n{:?}", slow.calls());
        std::thread::sleep(Duration::from_millis(10));
    }
    handle.stop(OnExit::Keep);
    runtime.block_on(running).expect("no panic").expect("a good end");
}

/// A pretend provider whose instances are at a real worker.
fn pretend(worker: &Worker, scripts: impl IntoIterator<Item = Script>) -> FakeProvider {
    let fake = FakeProvider::new();
    for _ in 0..4 {
        fake.next_address(Address::http(worker.address));
    }
    scripts.into_iter().for_each(|script| fake.script(script));
    fake
}

fn in_service_of<'a>(status: &'a Value, endpoint: &str) -> Vec<&'a Value> {
    let endpoints = status["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = endpoints.iter().filter(|e| e["name"] == endpoint);
    let all = found.flat_map(|e| e["variants"][0]["instances"].as_array().into_iter().flatten());
    all.filter(|instance| instance["state"] == "InService").collect()
}

#[test]
fn a_provider_that_hangs_delays_no_other_endpoint() {
    let worker = Worker::start(&[]);
    // It does not even list; then it lists and never answers a launch.
    for lists in [0, 1] {
        let hangs = std::iter::repeat_n(Script::Hang, 100);
        let slow = pretend(&worker, std::iter::repeat_n(Script::Pass, lists).chain(hangs));
        let fine = pretend(&worker, []);
        with_pretend_providers(&slow, &fine, |status| {
            in_service_of(status, "on-fine").len() == 1 && slow.calls().len() > lists
        });
        assert!(slow.instances().is_empty());
    }
}

#[test]
fn missing_quota_is_named_and_falls_through() {
    let worker = Worker::start(&[]);
    let quota = Script::Fail(ProviderError::QuotaExceeded { reason: "0 of 0 vCPUs".into() });
    let slow = pretend(&worker, [Script::Pass].into_iter().chain(std::iter::repeat_n(quota, 100)));
    let fine = pretend(&worker, []);
    with_pretend_providers(&slow, &fine, |status| {
        let hold = &status["capacity_holds"][0];
        in_service_of(status, "both").len() == 1
            && in_service_of(status, "on-slow").is_empty()
            && hold["reason"].as_str().is_some_and(|reason| reason.contains("vCPUs"))
    });
}
