//! What the fuzzer of `fuzz/` calls: for each thing that reads untrusted bytes by hand a function that takes
//! any bytes and panics where a promise does not hold. Built for the fuzzer and for the tests, which see to it
//! that it goes on being built.

use crate::config;
use crate::decision::scale::expr::{self, Expr, Metrics};
use crate::decision::scale::schedule as schedules;
use crate::decision::signals;
use crate::types::Timestamp;
use crate::types::scaling::ScheduledAction;

pub use crate::proxy::fuzzing::{answer, model_field, request};
pub use crate::telemetry::trace::traceparent;

const NAMES: [&str; 2] = ["p5", "g6"];

/// Is parsed or refused with a place in it; what is parsed is shown as what parses to the same, and has a value
/// or a gap for each period.
pub fn expression(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parsed = match Expr::parse(text, &NAMES) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(error.start <= error.end && error.end <= text.len());
            assert!(text.is_char_boundary(error.start) && text.is_char_boundary(error.end));
            return;
        }
    };
    let shown = parsed.to_string();
    match Expr::parse(&shown, &NAMES) {
        Ok(again) => assert_eq!(again, parsed, "{shown}"),
        // With a blank on either side of each operator it may be too long, and nothing else.
        Err(error) => assert!(shown.len() > expr::LONGEST, "{shown}: {error}"),
    }
    let series = [("p5", vec![Some(1.0), None, Some(-3.5)]), ("g6", vec![None, Some(0.0)])];
    let series = series.map(|(name, values)| (name.to_owned(), values));
    let values = parsed.evaluate(&Metrics::new(3, series.into_iter().collect()));
    assert!(values.len() == 3 && values.iter().flatten().all(|value| value.is_finite()));
}

/// Is read or refused, and its moments are where they should be.
pub fn schedule(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(when) = schedules::parse(text, chrono_tz::Europe::Berlin) else { return };
    let name = String::new();
    let actions = [ScheduledAction { name, when, min: Some(1), max: None }];
    for now in [0, 1_774_746_000_000, 1_795_000_000_000, 4_000_000_000_000].map(Timestamp) {
        assert!(schedules::in_force(&actions, now).is_none_or(|(_, at)| at <= now));
        assert!(schedules::next(&actions, now).is_none_or(|(_, at)| at > now));
    }
}

/// What engines, GPU exporters, `nvidia-smi` and load reports tell is in the range that it is of, or nothing.
pub fn signals(bytes: &[u8]) {
    let labels = std::collections::BTreeMap::from([("gpu".to_owned(), "0".to_owned())]);
    let text = String::from_utf8_lossy(bytes);
    let told = [
        Some(signals::engine_page(&text, None)),
        Some(signals::gpu::exporter_page(&text, &labels)),
        Some(signals::gpu::nvidia_smi(&text, &labels)),
        signals::orca::load_report(bytes),
    ];
    for told in told.into_iter().flatten() {
        let share = |value: Option<f64>| value.is_none_or(|value| (0.0..=1.0).contains(&value));
        assert!(share(told.gpu) && share(told.gpu_memory) && share(told.kv_cache), "{told:?}");
        let count = |value: Option<f64>| value.is_none_or(|value| value >= 0.0);
        assert!(count(told.running) && count(told.waiting), "{told:?}");
    }
}

/// Is accepted or refused with at least one mistake.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(mistakes) = config::load_str(text, "fuzz.toml") {
        assert!(!mistakes.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_holds() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 8] = [
            ("model_field", model_field),
            ("request", request),
            ("expression", expression),
            ("schedule", schedule),
            ("traceparent", traceparent),
            ("config", config),
            ("signals", signals),
            ("answer", answer),
        ];
        for (name, target) in targets {
            let seeds = std::path::Path::new("fuzz/seeds").join(name);
            let seeds: Vec<_> = std::fs::read_dir(&seeds).expect("seeds").flatten().collect();
            assert!(!seeds.is_empty(), "{name}");
            for seed in seeds {
                target(&std::fs::read(seed.path()).expect("a seed"));
            }
            assert!(std::path::Path::new(&format!("fuzz/fuzz_targets/{name}.rs")).exists());
        }
    }
}
