//! Scenarios for people: those that are shipped, told as before; what a request waits for, to the millisecond;
//! two policies in one world; the pictures and the JSON of the command.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact figures"
)]

use std::path::Path;
use std::process::Command;

use forebay::sim::{
    Report, RequestCounts, Scenario, compare, picture, play_checked as play, simulate,
};

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config/scenarios"))
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).expect("a scenario")
}

fn nothing(path: &Path) -> Result<String, String> {
    Err(format!("{} is not there", path.display()))
}

fn scenario(text: &str) -> Scenario {
    Scenario::parse(text, "test.toml", &nothing).unwrap_or_else(|error| panic!("{error}"))
}

fn run(text: &str, seed: u64) -> Report {
    let report = play(&scenario(text), seed);
    assert_eq!(report.failure, None, "{report}");
    let RequestCounts { asked, answered, lost, .. } = report.requests;
    assert_eq!(asked, answered + report.requests.refused() + lost + report.open, "{report}");
    report
}

/// Each shipped scenario has a transcript. The week's is its figures: its story has thousands of lines.
macro_rules! told_as_before {
    ($($test:ident: $file:literal,)*) => {
        $(#[test]
        fn $test() {
            let report = run(&shipped($file), 1);
            let week = $file == "week.toml";
            let text = if week { report.summary().to_string() } else { report.to_string() };
            insta::assert_snapshot!(stringify!($test), text);
        })*

        #[test]
        fn every_shipped_scenario_has_its_transcript() {
            let entries = std::fs::read_dir(folder()).expect("config/scenarios");
            let names = entries.map(|entry| entry.expect("an entry").file_name());
            let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
            names.sort();
            let mut told = vec![$($file),*];
            told.sort_unstable();
            assert_eq!(names, told);
        }
    };
}

told_as_before! {
    capacity_drought_and_return: "drought.toml",
    flapping_capacity: "flapping.toml",
    interruptions: "interruptions.toml",
    slow_start_up: "slow-start-up.toml",
    week_of_days_and_spot: "week.toml",
    burst_from_zero: "zero.toml",
    zone_loss: "zone-loss.toml",
}

/// The load grows elevenfold at once, for instances that start in five minutes. A full fleet shows what is asked of
/// it, so all that is needed is decided on at once, and not a fleet's third at a time.
#[test]
fn a_step_of_load_is_one_decision_or_two() {
    for (metric, target) in [("utilization", 0.7), ("concurrency_per_copy", 2.8)] {
        let text = format!(
            r#"
[provider.cloud]
kind = "process"
command = ["true"]

[instance_type.big]
provider = "cloud"
max_concurrency = 4

[[endpoint]]
name = "e"
  [[endpoint.variant]]
  name = "primary"
  model = "m"
  initial_instance_count = 2
  min_instance_count = 2
  max_instance_count = 60
    [[endpoint.variant.pool]]
    instance_type = "big"
    priority = 1
    [[endpoint.variant.scaling]]
    name = "busy"
    metric = "{metric}"
    target = {target}

[simulation]
duration = "1h"
provider_latency = ["1s", "2s"]
startup_delay = ["5m", "5m"]

[simulation.service]
mean = "5s"
sigma = 0.6

[[simulation.arrivals]]
steps = [["20m", 1.0], ["40m", 11.0]]
"#
        );
        for seed in [1, 2, 3] {
            let report = run(&text, seed);
            let told = report.to_string();
            let out: Vec<&str> =
                told.lines().filter(|line| line.contains("autoscaled: ")).collect();
            // 11 in a second for 5 s each at 0.7 of 4 slots: 19.6.
            assert!((1..=2).contains(&out.len()), "{metric}, seed {seed}: {out:#?}");
            let size = out.last().and_then(|line| line.split_once(" to ")?.1.split(' ').next());
            let size: u32 = size.and_then(|size| size.parse().ok()).expect("a size");
            assert!((19..=24).contains(&size), "{metric}, seed {seed}: {out:#?}");
        }
    }
}

#[test]
fn other_seeds_break_no_rule_and_a_seed_is_one_world() {
    for name in
        ["drought.toml", "flapping.toml", "interruptions.toml", "zero.toml", "zone-loss.toml"]
    {
        let text = shipped(name);
        let reports = [2, 3].map(|seed| run(&text, seed));
        assert_ne!(reports[0].requests, reports[1].requests, "{name}");
        assert_eq!(reports[0], run(&text, 2), "{name}");
    }
}

/// One instance with `slots` slots, and requests from a trace an hour after the start.
fn one_instance(slots: u32, more: &str, trace: &str) -> Scenario {
    let text = format!(
        r#"
[provider.cloud]
kind = "process"
command = ["true"]

[instance_type.t]
provider = "cloud"
max_concurrency = {slots}
price_per_hour = 2.0

[[endpoint]]
name = "e"
  [[endpoint.variant]]
  name = "v"
  model = "m"
  initial_instance_count = 1
  max_instance_count = 1
  {more}
    [[endpoint.variant.pool]]
    instance_type = "t"
    priority = 1

[simulation]
duration = "2h"
[[simulation.arrivals]]
from = "1h"
trace = "trace.csv"
"#
    );
    let read = |path: &Path| {
        assert_eq!(path, Path::new("trace.csv"));
        Ok(trace.to_owned())
    };
    Scenario::parse(&text, "one.toml", &read).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn requests_wait_for_exactly_as_long_as_the_slots_are_taken() {
    // One slot, each runs for ten seconds: they wait for 0, 9 and 18 s.
    let report = play(&one_instance(1, "", "at_s,duration_s\n0,10\n1,10\n2,10\n"), 1);
    let waits = report.waits;
    assert_eq!((waits.p50_s, waits.p90_s, waits.max_s), (9.0, 18.0, 18.0));
    assert_eq!(report.requests.answered, 3);
    assert_eq!(report.availability, 1.0);
    // Two slots: the third has one after eight.
    let report = play(&one_instance(2, "", "0,10\n1,10\n2,10\n"), 1);
    assert_eq!((report.waits.p50_s, report.waits.max_s), (0.0, 8.0));
    // The third would have to wait for longer than it may.
    let report = play(&one_instance(1, "queue_timeout = \"15s\"", "0,10\n1,10\n2,10\n"), 1);
    let RequestCounts { answered, queue_timeout, .. } = report.requests;
    assert_eq!((answered, queue_timeout, report.waits.max_s), (2, 1, 9.0));
    // There is no room for it to wait.
    let report = play(&one_instance(1, "queue_limit = 1", "0,10\n1,10\n2,10\n"), 1);
    let RequestCounts { answered, queue_full, .. } = report.requests;
    assert_eq!((answered, queue_full, report.requests.queue_timeout), (2, 1, 0));
}

#[test]
fn the_checker_changes_nothing() {
    let scenario = scenario(&shipped("zone-loss.toml"));
    assert_eq!(forebay::sim::play(&scenario, 3), play(&scenario, 3));
}

#[test]
fn what_is_paid_is_the_time_from_grant_to_end() {
    let report = play(&one_instance(1, "", "0,10\n"), 1);
    let (_, figures) = report.types.iter().next().expect("a type");
    // It is granted within a second or two of the start and runs to the end; it serves a minute later.
    assert!((1.999..2.0).contains(&figures.hours_paid), "{figures:?}");
    assert!((1.982..1.984).contains(&figures.hours_served), "{figures:?}");
    assert_eq!(report.cost, figures.hours_paid * 2.0);
    assert!((report.full_share - figures.hours_served / 2.0).abs() < 1e-9, "{}", report.full_share);
}

#[test]
fn scheduled_actions_act_at_their_time_of_a_scenario() {
    // A scenario begins at midnight (UTC): four are desired for an hour, and then six.
    let text = shipped("zone-loss.toml")
        .replace("initial_instance_count = 6", "initial_instance_count = 4")
        .replace(
            "    [[endpoint.variant.pool]]\n    instance_type = \"g6.far\"",
            "    [[endpoint.variant.schedule]]\n    name = \"morning\"\n    \
             schedule = \"at(2025-01-01T01:00:00)\"\n    min_instance_count = 6\n\n    \
             [[endpoint.variant.pool]]\n    instance_type = \"g6.far\"",
        );
    let report = run(&text, 1);
    let desired = |from: f64, until: f64| {
        let within = |at: f64| (from..until).contains(&at);
        let moments = report.timeline.iter().filter(|moment| within(moment.at_s));
        moments.map(|moment| moment.desired).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(desired(60.0, 3_600.0).into_iter().collect::<Vec<_>>(), [4]);
    assert_eq!(desired(3_660.0, 7_200.0).into_iter().collect::<Vec<_>>(), [6]);
}

#[test]
fn requests_at_an_instance_that_ends_are_lost() {
    let text = shipped("drought.toml")
        .replace("[[simulation.crash]]", "[[simulation.kill]]\nat = \"50m\"\n[[simulation.crash]]");
    let before = run(&shipped("drought.toml"), 1);
    assert!(run(&text, 1).requests.lost > before.requests.lost);
}

/// The flapping scenario with another policy: a pool's window is waited for before the next pool is asked.
fn patient() -> String {
    let eager = shipped("flapping.toml");
    let patient = eager.replace("fallback = \"at_once\"", "provision_timeout = \"5m\"");
    assert_ne!(eager, patient);
    patient
}

#[test]
fn two_policies_meet_the_same_requests_and_the_same_capacity() {
    let eager = scenario(&shipped("flapping.toml"));
    let patient = eager.with_policy(&patient(), "patient.toml").expect("the same names");
    let (ours, theirs) = (play(&eager, 1), play(&patient, 1));
    assert_eq!(ours.requests.asked, theirs.requests.asked);
    let asked = |report: &Report| report.timeline.iter().map(|m| m.asked).collect::<Vec<_>>();
    assert_eq!(asked(&ours), asked(&theirs));
    assert!(ours.availability > theirs.availability, "waiting for a window costs requests");
    insta::assert_snapshot!("compare", compare(("eager", &ours), ("patient", &theirs)));
}

#[test]
fn a_policy_that_the_world_cannot_play_is_refused() {
    let world = scenario(&shipped("flapping.toml"));
    for (from, to, expected) in [
        ("ml.p5.48xlarge", "other", "there is no [instance_type.\"ml.p5.48xlarge\"]"),
        ("name = \"chat\"", "name = \"chess\"", "no endpoint is called \"chat\""),
        ("priority = 1", "priority = \"first\"", "other.toml:"),
    ] {
        let text = shipped("flapping.toml").replace(from, to);
        let error = world.with_policy(&text, "other.toml").expect_err(to).to_string();
        assert!(error.starts_with("other.toml") && error.contains(expected), "{error}");
    }
}

#[test]
fn mistakes_of_the_simulation_are_told() {
    let text = shipped("zone-loss.toml");
    for (from, to, expected) in [
        ("rate = 2.2", "", "say one of rate, steps, diurnal, bursts and trace"),
        (
            "rate = 2.2",
            "rate = 1.0\nbursts = { rate = 1.0, lasts = \"1m\", every = \"1h\" }",
            "say one of",
        ),
        ("rate = 2.2", "rate = -1.0", "-1 is no rate"),
        ("rate = 2.2", "rate = 1e6", "no more than 20000000 are played"),
        ("rate = 2.2", "steps = [[\"2m\", 1.0], [\"1m\", 2.0]]", "not in the order of their times"),
        ("rate = 2.2", "trace = \"no.csv\"", "no.csv: no.csv is not there"),
        ("rate = 2.2", "endpoint = \"chess\"\nrate = 2.2", "no endpoint is called \"chess\""),
        (
            "provider = \"zone-a\"\nlasts",
            "provider = \"zone-c\"\nlasts",
            "nothing comes from \"zone-c\"",
        ),
        ("proxies = 2", "proxies = 0", "1 to 100 are played"),
        ("proxies = 2", "report_every = \"10s\"", "report_every must be"),
        ("sigma = 0.6", "sigma = 30.0", "sigma is 30"),
        (
            "at = \"0s\"\ninstance_type",
            "at = \"0s\"\nevery = \"1ms\"\ninstance_type",
            "at most once in a second",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        let bad = text.replacen(from, to, 1);
        let error = simulate(&bad, "bad.toml", 1, &nothing).expect_err(to).to_string();
        assert!(error.starts_with("bad.toml: error: ") && error.contains(expected), "{error}");
    }
}

/// Numbers in an attribute of all elements of a kind.
fn points(svg: &str, element: &str) -> Vec<Vec<f64>> {
    let start = format!("<{element} points=\"");
    svg.split(&start)
        .skip(1)
        .map(|part| {
            let text = part.split('"').next().expect("an attribute");
            text.split([' ', ',']).map(|n| n.parse().expect("a number")).collect()
        })
        .collect()
}

#[test]
fn a_picture_shows_every_type_within_its_frame() {
    let report = run(&shipped("drought.toml"), 1);
    let svg = picture(&[("one & <only>", &report), ("again", &report)]);
    assert!(svg.contains("one &amp; &lt;only&gt;, seed 1"));
    for kind in report.types.keys() {
        assert_eq!(svg.matches(&format!(">{kind}</text>")).count(), 2, "in both legends");
    }
    // Both types, what starts or leaves, and what waits; desired and rate; twice each.
    let (areas, lines) = (points(&svg, "polygon"), points(&svg, "polyline"));
    assert_eq!((areas.len(), lines.len()), (8, 4));
    for shape in areas.iter().chain(&lines) {
        let inside = |xy: &[f64]| (64.0..=780.0).contains(&xy[0]) && (0.0..=560.0).contains(&xy[1]);
        assert!(shape.len() >= 4 && shape.chunks(2).all(inside), "{shape:?}");
    }
}

fn forebay(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let output = command.current_dir(folder()).args(arguments).output().expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_prints_json_compares_and_draws() {
    let scratch = tempfile::tempdir().expect("a folder");
    let svg = scratch.path().join("zero.svg");
    let svg_name = svg.to_str().expect("text");
    let (code, out, error) =
        forebay(&["simulate", "zero.toml", "--seed", "1", "--json", "--svg", svg_name]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let report = run(&shipped("zero.toml"), 1);
    assert_eq!(json["requests"]["asked"], report.requests.asked);
    assert_eq!(json["waits"]["p99_s"], report.waits.p99_s);
    assert_eq!(json["types"]["ml.g6.48xlarge"]["launches"], 5);
    assert!(json["timeline"].as_array().is_some_and(|moments| moments.len() > 500));
    let drawn = std::fs::read_to_string(&svg).expect("the picture");
    assert_eq!(drawn, picture(&[("zero.toml", &report)]));

    let patient_file = scratch.path().join("patient.toml");
    std::fs::write(&patient_file, patient()).expect("written");
    let other = patient_file.to_str().expect("text");
    let (code, out, _) = forebay(&["simulate", "flapping.toml", "--seed", "1", "--compare", other]);
    assert_eq!(code, Some(0));
    assert!(out.contains("availability, %") && out.contains("flapping.toml"), "{out}");

    let (code, out, error) = forebay(&["simulate", "nowhere.toml", "--seed", "1"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.starts_with("forebay: nowhere.toml: ") && error.lines().count() == 1, "{error}");
}

#[test]
fn a_trace_is_read_beside_the_scenario() {
    let scratch = tempfile::tempdir().expect("a folder");
    let text = shipped("zone-loss.toml").replace("rate = 2.2", "trace = \"requests.csv\"");
    std::fs::write(scratch.path().join("s.toml"), text).expect("written");
    std::fs::write(scratch.path().join("requests.csv"), "600,5\n601,5\n").expect("written");
    let file = scratch.path().join("s.toml");
    let file = file.to_str().expect("text");
    let (code, out, error) = forebay(&["simulate", file, "--seed", "1", "--summary"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert!(out.contains("2 asked, 2 answered, 0 refused, 0 lost"), "{out}");
}

#[test]
fn what_the_config_warns_of_and_what_is_not_played_is_told() {
    let told = |policy: &str| {
        let text = format!(
            "[provider.p]\nkind = \"process\"\ncommand = [\"x\"]\n[instance_type.t]\nprovider = \"p\"\n\
             [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
             [[endpoint.variant.pool]]\ninstance_type = \"t\"\n\
             [[endpoint.variant.scaling]]\nname = \"x\"\n{policy}\n[simulation]\nduration = \"1h\"\n"
        );
        let nothing = |_: &std::path::Path| Err("no file".to_owned());
        let scenario = Scenario::parse(&text, "test.toml", &nothing);
        scenario.unwrap_or_else(|error| panic!("{error}")).warnings.join("\n")
    };
    assert!(told("metric = \"utilization\"\ntarget = 0.95").contains("only while still more"));
    assert!(told("metric = \"first_chunk_p99\"\ntarget = 2.0").contains("does nothing here"));
    assert_eq!(told("metric = \"queue_depth\"\ntarget = 2.0"), "");
}
