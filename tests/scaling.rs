//! Autoscaling on real processes: a fleet grows under load by weighted utilisation, and shrinks when the
//! load goes, fallback first, without losing a request. Periods are a second.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;
use support::http;
use support::{Forebay, eventually};

const JSON: (&str, &str) = ("content-type", "application/json");
const STREAM: &str =
    r#"{"model":"m","stream":true,"max_tokens":10,"messages":[{"role":"user","content":"hi"}]}"#;

/// One preferred instance with four slots and any number of fallbacks with two, one instance at first. The
/// policy is SageMaker's published one for these slots.
fn config(policy: &str) -> String {
    format!(
        r#"
[proxy]
listen = "{{proxy}}"
[admin]
listen = "{{admin}}"
[provider.local]
kind = "process"
command = ["{{forebay}}", "worker", "--listen", "{{address}}", "--instance-type", "{{instance_type}}", "--model", "{{model}}", "--max-concurrency", "{{max_concurrency}}", "--first-token", "50ms", "--tokens-per-second", "50"]
[instance_type."ml.p5"]
provider = "local"
capacity = 1
max_concurrency = 4
[instance_type."ml.g6"]
provider = "local"
max_concurrency = 2
[[endpoint]]
name = "e"
[[endpoint.variant]]
name = "v"
model = "m"
initial_instance_count = 2
min_instance_count = 1
max_instance_count = 5
fallback = "at_once"
startup_health_interval = "50ms"
[[endpoint.variant.pool]]
instance_type = "ml.p5"
priority = 1
[[endpoint.variant.pool]]
instance_type = "ml.g6"
priority = 2
[[endpoint.variant.scaling]]
name = "weighted"
{policy}
period = "1s"
scale_out_periods = 2
scale_in_periods = 3
scale_out_cooldown = "2s"
scale_in_cooldown = "2s"
"#
    )
}

const WEIGHTED: &str = r#"
expression = "(p5 / 4 + g6 / 2) / 2"
target = 0.7
metrics.p5 = { metric = "ConcurrentRequestsPerModel", instance_type = "ml.p5" }
metrics.g6 = { metric = "ConcurrentRequestsPerModel", instance_type = "ml.g6" }
"#;

fn types(forebay: &Forebay) -> Vec<String> {
    let mut types: Vec<_> = forebay
        .in_service()
        .iter()
        .filter_map(|instance| Some(instance["instance_type"].as_str()?.to_owned()))
        .collect();
    types.sort();
    types
}

fn variant(forebay: &Forebay) -> Value {
    forebay.status()["endpoints"][0]["variants"][0].clone()
}

/// Tells the clients to end, also when a test fails meanwhile: or its failure would never be told.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// So many clients, each with one stream after another, until `over`. Returns how many streams were whole;
/// any other fails.
fn load(forebay: &Forebay, clients: usize, act: impl FnOnce()) -> usize {
    let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let answer = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], STREAM);
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert!(answer.complete && answer.text().ends_with("data: [DONE]\n\n"));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _over = Over(&over);
        act();
    });
    done.into_inner()
}

#[test]
fn a_fleet_follows_its_load_by_weighted_utilisation_and_loses_nothing() {
    let forebay = Forebay::serve(&config(WEIGHTED));
    eventually("one of each", || (types(&forebay) == ["ml.g6", "ml.p5"]).then_some(()));
    let streams = load(&forebay, 10, || {
        eventually("it has grown to what the load needs", || {
            (types(&forebay) == ["ml.g6", "ml.g6", "ml.g6", "ml.g6", "ml.p5"]).then_some(())
        });
        let policy = &variant(&forebay)["scaling"][0];
        assert_eq!(policy["name"], "weighted");
        assert!(policy["value"].as_f64().is_some_and(|value| value > 0.7), "{policy}");
    });
    assert!(streams >= 20, "{streams} streams");
    // One client is left: one slot of what there is.
    let streams = load(&forebay, 1, || {
        eventually("it has shrunk, fallback first", || {
            (types(&forebay) == ["ml.p5"]).then_some(())
        });
    });
    assert!(streams >= 5, "{streams} streams");
    let explained = forebay.cli(&["explain", "e"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("policy weighted takes e/v from 2 to"), "{explained}");
    assert!(explained.contains("instances: "), "{explained}");
    forebay.wait_all_zero();
}

#[test]
fn a_queue_scales_out_by_steps_and_latency_is_measured() {
    let policy = "kind = \"step\"\nmetric = \"queue_depth\"\nthreshold = 1.0\nsteps = [{ from = 0.0, change = 2.0 }]";
    let forebay = Forebay::serve(
        &(config(policy)
            + "[[endpoint.variant.scaling]]\nname = \"slow\"\nmetric = \"model_latency_p99\"\ntarget = 60.0\nperiod = \"1s\"\nscale_in = false\n"),
    );
    eventually("one of each", || (types(&forebay) == ["ml.g6", "ml.p5"]).then_some(()));
    load(&forebay, 12, || {
        eventually("it has grown by two, and by two again up to its maximum", || {
            (types(&forebay).len() == 5).then_some(())
        });
        eventually("the latency is known", || {
            let value = variant(&forebay)["scaling"][1]["value"].as_f64()?;
            // A first token after 50 ms and nine more at 50 a second.
            (0.15..1.0).contains(&value).then_some(())
        });
    });
    forebay.wait_all_zero();
}

#[test]
fn a_scheduled_action_grows_the_fleet_at_its_moment() {
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(6);
    let soon = humantime::format_rfc3339_seconds(soon).to_string();
    let mut text = config(WEIGHTED);
    text += &format!(
        "[[endpoint.variant.schedule]]\nname = \"launch\"\nschedule = \"at({})\"\nmin_instance_count = 4\n",
        soon.trim_end_matches('Z')
    );
    let forebay = Forebay::serve(&text);
    eventually("one of each", || (types(&forebay) == ["ml.g6", "ml.p5"]).then_some(()));
    let told = || {
        let explained = forebay.cli(&["explain", "e"]);
        String::from_utf8_lossy(&explained.stdout).into_owned()
    };
    assert!(told().contains("scheduled action launch "), "{}", told());
    eventually("it has grown to the new least", || (types(&forebay).len() == 4).then_some(()));
    assert!(told().contains("keeps e/v between 4 and 5 instances, which takes it from "));
    let refused = forebay.cli(&["scale", "e", "2"]);
    assert_eq!(refused.status.code(), Some(1));
}
