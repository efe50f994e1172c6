//! Load reports that come with answers: ORCA, Open Request Cost Aggregation
//! (<https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto>), as the header
//! `endpoint-load-metrics` in its three forms: `TEXT name=value, …`, `JSON {…}` and `BIN` with the message in
//! base64. What a report has under the names that engines use becomes [`Signals`]; the rest is not looked at.
//!
//! Names: vllm-project/vllm, `entrypoints/openai/orca_metrics.py`; triton-inference-server/server,
//! `src/orca_http.cc`.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use serde::Deserialize;

use crate::types::signals::Signals;

/// The header that a report comes in.
pub const LOAD_METRICS: &str = "endpoint-load-metrics";
/// The header of a request that asks for one, in the form that it names.
pub const LOAD_METRICS_FORMAT: &str = "endpoint-load-metrics-format";
/// Bytes of a report beyond which it is none.
pub const LONGEST: usize = 4 << 10;

/// Under which of a report's metrics engines tell what.
const RUNNING: &[&str] = &["num_requests_running"];
const WAITING: &[&str] = &["num_requests_waiting"];
const KV_CACHE: &[&str] = &["kv_cache_usage_perc", "kv_cache_utilization", "gpu_cache_usage_perc"];
const GPU: &[&str] = &["gpu_utilization"];
const GPU_MEMORY: &[&str] = &["gpu_memory_utilization"];

/// `xds.data.orca.v3.OrcaLoadReport`, as far as it is read.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct Report {
    #[prost(map = "string, double", tag = "5")]
    utilization: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "8")]
    #[serde(alias = "namedMetrics")]
    named_metrics: HashMap<String, f64>,
}

/// What a report tells; `None`: it is none, or tells nothing that is known here.
///
/// # Examples
/// ```
/// use forebay::decision::signals::orca::load_report;
/// let told = load_report(b"TEXT named_metrics.num_requests_waiting=2.0").expect("a report");
/// assert_eq!(told.waiting, Some(2.0));
/// assert_eq!(load_report(b"TEXT cpu_utilization=0.3"), None);
/// ```
#[must_use]
pub fn load_report(value: &[u8]) -> Option<Signals> {
    if value.len() > LONGEST {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?.trim();
    let (form, rest) = text.split_once(' ')?;
    let report = match form.to_ascii_uppercase().as_str() {
        "TEXT" => by_name(rest),
        "JSON" => serde_json::from_str(rest).ok()?,
        "BIN" => Report::decode(BASE64_STANDARD.decode(rest.trim()).ok()?.as_slice()).ok()?,
        _ => return None,
    };
    let told = report.signals();
    (!told.is_empty()).then_some(told)
}

/// Pairs with a comma between them; the maps' members have the map's name before theirs.
fn by_name(text: &str) -> Report {
    let mut report = Report::default();
    for pair in text.split(',') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        let Ok(value) = value.trim().parse() else { continue };
        let name = name.trim();
        if let Some(name) = name.strip_prefix("named_metrics.") {
            report.named_metrics.insert(name.to_owned(), value);
        } else if let Some(name) = name.strip_prefix("utilization.") {
            report.utilization.insert(name.to_owned(), value);
        }
    }
    report
}

impl Report {
    fn signals(&self) -> Signals {
        let value = |names: &[&str]| {
            let maps = [&self.named_metrics, &self.utilization];
            names.iter().find_map(|name| maps.iter().find_map(|map| map.get(*name).copied()))
        };
        let told = Signals {
            running: value(RUNNING),
            waiting: value(WAITING),
            kv_cache: value(KV_CACHE),
            gpu: value(GPU),
            gpu_memory: value(GPU_MEMORY),
        };
        told.checked()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(waiting: f64) -> Signals {
        Signals { waiting: Some(waiting), ..Signals::default() }
    }

    #[test]
    fn all_three_forms_say_the_same() {
        let report = Report {
            named_metrics: [("num_requests_waiting".to_owned(), 2.0)].into(),
            utilization: [("gpu_utilization".to_owned(), 0.5)].into(),
        };
        let binary = format!("BIN {}", BASE64_STANDARD.encode(report.encode_to_vec()));
        let told = Some(Signals { waiting: Some(2.0), gpu: Some(0.5), ..Signals::default() });
        for text in [
            "TEXT cpu_utilization=0.3, named_metrics.num_requests_waiting=2.0, utilization.gpu_utilization=0.5",
            "text utilization.gpu_utilization=0.5,named_metrics.num_requests_waiting=2",
            r#"JSON {"cpu_utilization": 0.3, "named_metrics": {"num_requests_waiting": 2.0, "x": 1},
                "utilization": {"gpu_utilization": 0.5}}"#,
            r#"JSON {"namedMetrics": {"num_requests_waiting": 2}, "utilization": {"gpu_utilization": 0.5}}"#,
            &binary,
        ] {
            assert_eq!(load_report(text.as_bytes()), told, "{text}");
        }
    }

    #[test]
    fn the_names_of_engines_are_known() {
        for (text, told) in [
            // vLLM's two.
            (
                "TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=0.0",
                Signals { kv_cache: Some(0.25), waiting: Some(0.0), ..Signals::default() },
            ),
            // Triton's with TensorRT-LLM.
            (
                r#"JSON {"named_metrics": {"kv_cache_utilization": 0.4, "max_token_capacity": 5000}}"#,
                Signals { kv_cache: Some(0.4), ..Signals::default() },
            ),
        ] {
            assert_eq!(load_report(text.as_bytes()), Some(told), "{text}");
        }
    }

    #[test]
    fn what_is_no_report_tells_nothing() {
        // The specification's own example: two metrics that are nobody's here, and the processor's use.
        let example = "CZqZmZmZmbk/MQAAAAAAAABAQg4KA2ZvbxGamZmZmZm5P0IOCgNiYXIRmpmZmZmZyT8=";
        let bytes = BASE64_STANDARD.decode(example).expect("base64");
        let report = Report::decode(bytes.as_slice()).expect("a report");
        assert_eq!(report.named_metrics, [("foo".to_owned(), 0.1), ("bar".to_owned(), 0.2)].into());
        let example = format!("BIN {example}");
        let long = format!("TEXT {}named_metrics.num_requests_waiting=1", " ".repeat(LONGEST));
        for text in [
            &example,
            &long,
            "",
            "TEXT",
            "TEXT ",
            "TEXT num_requests_waiting=1",
            "TEXT named_metrics.num_requests_waiting=one",
            "TEXT named_metrics.num_requests_waiting=NaN",
            "TEXT named_metrics.num_requests_waiting=-1",
            "JSON {",
            "JSON [1]",
            r#"JSON {"named_metrics": {"num_requests_waiting": "1"}}"#,
            "BIN !",
            "BIN AAAA",
            "XML <a/>",
        ] {
            assert_eq!(load_report(text.as_bytes()), None, "{text}");
        }
        assert_eq!(load_report(b"TEXT \xff"), None);
        // One pair that is none spoils no other.
        assert_eq!(
            load_report(b"TEXT ,=,a,named_metrics.num_requests_waiting=3,b="),
            Some(waiting(3.0))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(
            form in "(TEXT|JSON|BIN|) ?",
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
        ) {
            let _ = load_report(&[form.as_bytes(), &bytes].concat());
        }

        #[test]
        fn whatever_is_told_is_in_its_range(value in proptest::num::f64::ANY) {
            let names = ["num_requests_running", "kv_cache_usage_perc", "gpu_utilization"];
            let pairs = names.map(|name| format!("named_metrics.{name}={value}")).join(",");
            if let Some(told) = load_report(format!("TEXT {pairs}").as_bytes()) {
                prop_assert!(told.running.is_some_and(|running| running >= 0.0), "{told:?}");
                for share in [told.kv_cache, told.gpu].into_iter().flatten() {
                    prop_assert!((0.0..=1.0).contains(&share), "{told:?}");
                }
            }
        }
    }
}
