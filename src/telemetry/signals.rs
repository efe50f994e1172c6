//! What instances tell of their own load, as gauges for each instance type of a variant: the average over the
//! instances in service that told it lately.
//!
//! They are written at each scrape from the fleet's status instead of being kept as handles, because a type of
//! which nothing is told must have no series: a recorder never lets go of one, and a 0 would be a lie.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::types::InstanceState;
use crate::types::signals::Signals;
use crate::types::status::FleetStatus;

/// How busy the GPUs are.
pub const GPU_UTILIZATION: &str = "forebay_gpu_utilization_ratio";
/// How much of the GPUs' memory is in use.
pub const GPU_MEMORY_UTILIZATION: &str = "forebay_gpu_memory_utilization_ratio";
/// How much of the engines' KV cache is in use.
pub const KV_CACHE_UTILIZATION: &str = "forebay_kv_cache_utilization_ratio";
/// Requests that an engine works on.
pub const ENGINE_RUNNING: &str = "forebay_engine_running_requests";
/// Requests that wait in an engine.
pub const ENGINE_WAITING: &str = "forebay_engine_waiting_requests";

type Value = fn(&Signals) -> Option<f64>;

/// Each gauge, its help and its value.
const GAUGES: [(&str, &str, Value); 5] = [
    (
        GPU_UTILIZATION,
        "Share of time that the GPUs of an instance are busy, averaged over the instances that tell it.",
        |signals| signals.gpu,
    ),
    (
        GPU_MEMORY_UTILIZATION,
        "Share of the GPU memory of an instance in use, averaged over the instances that tell it.",
        |signals| signals.gpu_memory,
    ),
    (
        KV_CACHE_UTILIZATION,
        "Share of an engine's KV cache in use, averaged over the instances that tell it.",
        |signals| signals.kv_cache,
    ),
    (
        ENGINE_RUNNING,
        "Requests that an engine says it works on, averaged over the instances that tell it.",
        |signals| signals.running,
    ),
    (
        ENGINE_WAITING,
        "Requests that an engine says wait in it, averaged over the instances that tell it.",
        |signals| signals.waiting,
    ),
];

/// The gauges in the Prometheus format; nothing where nothing is told.
#[must_use]
pub fn render(status: &FleetStatus) -> String {
    let mut text = String::new();
    for (name, help, value) in GAUGES {
        let mut types: BTreeMap<_, (f64, u32)> = BTreeMap::new();
        for endpoint in &status.endpoints {
            for variant in &endpoint.variants {
                let in_service =
                    variant.instances.iter().filter(|i| i.state == InstanceState::InService);
                for instance in in_service {
                    let Some(value) = value(&instance.signals) else { continue };
                    let labels = (&endpoint.name, &variant.name, &instance.instance_type);
                    let (sum, count) = types.entry(labels).or_default();
                    *sum += value;
                    *count += 1;
                }
            }
        }
        if types.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for ((endpoint, variant, kind), (sum, count)) in types {
            let labels = [
                ("InstanceType", kind.as_str()),
                ("endpoint", endpoint.as_str()),
                ("variant", variant.as_str()),
            ];
            let labels = labels.map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
            let _ = writeln!(text, "{name}{{{}}} {}", labels.join(","), sum / f64::from(count));
        }
        text.push('\n');
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(instances: &[(&str, &str, &str)]) -> FleetStatus {
        let instances: Vec<_> = instances
            .iter()
            .enumerate()
            .map(|(n, (kind, state, signals))| {
                format!(
                    r#"{{"id":"i-{n}","generation":1,"instance_type":"{kind}","provider":"p","state":"{state}",
                    "address":null,"outstanding":0,"copies":1,"model":"m","asked_at":0,"reason":null,
                    "signals":{signals}}}"#
                )
            })
            .collect();
        let json = format!(
            r#"{{"endpoints":[{{"name":"e","status":"InService","variants":[{{"name":"v",
            "desired_instance_count":3,"in_service_instance_count":0,"queued":0,"waiting_for":null,
            "price_per_hour":null,"pools":[],"instances":[{}]}}]}}]}}"#,
            instances.join(",")
        );
        serde_json::from_str(&json).expect("a status")
    }

    #[test]
    fn gauges_are_averages_over_those_in_service_that_tell() {
        let text = render(&fleet(&[
            ("p5", "InService", r#"{"gpu":0.5,"running":3.0}"#),
            ("p5", "InService", r#"{"gpu":1.0,"gpu_memory":0.25}"#),
            ("p5", "InService", "{}"),
            ("p5", "Draining", r#"{"gpu":0.0}"#),
            ("g6", "InService", r#"{"waiting":0.0,"kv_cache":0.125}"#),
        ]));
        let samples: Vec<_> = text.lines().filter(|line| line.contains('{')).collect();
        let of = |kind: &str| format!("{{InstanceType=\"{kind}\",endpoint=\"e\",variant=\"v\"}}");
        let (p5, g6) = (of("p5"), of("g6"));
        assert_eq!(
            samples,
            [
                format!("forebay_gpu_utilization_ratio{p5} 0.75"),
                format!("forebay_gpu_memory_utilization_ratio{p5} 0.25"),
                format!("forebay_kv_cache_utilization_ratio{g6} 0.125"),
                format!("forebay_engine_running_requests{p5} 3"),
                format!("forebay_engine_waiting_requests{g6} 0"),
            ]
        );
        for (name, _, _) in GAUGES {
            assert!(text.contains(&format!("# HELP {name} ")), "{text}");
            assert!(text.contains(&format!("# TYPE {name} gauge\n")), "{text}");
        }
    }

    #[test]
    fn what_nobody_tells_has_no_series() {
        assert_eq!(render(&fleet(&[("p5", "InService", "{}")])), "");
        assert_eq!(render(&FleetStatus::default()), "");
    }
}
