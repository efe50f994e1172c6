//! Mistakes in how a variant is scaled: its policies, their expressions, its schedule.

use std::fmt::Write as _;

use crate::{BASE, mistakes};

/// Mistakes of one such table of a variant that has these keys after its name, by their sentences alone.
fn within(table: &str, keys: &str) -> Vec<String> {
    let text = format!("{BASE}\n[[endpoint.variant.{table}]]\nname = \"x\"\n{keys}\n");
    let first = text.lines().count() - keys.lines().count();
    let told = mistakes(&text).into_iter().map(|mistake| {
        let (line, rest) = mistake.split_once(':').expect("a line");
        let line: usize = line.parse().expect("a number");
        format!("{}:{rest}", line.saturating_sub(first))
    });
    told.collect()
}

#[test]
fn mistakes_in_scaling() {
    let query = |keys: &str| format!("metrics.p5 = {{ {keys} }}");
    let p5 = query("metric = \"ConcurrentRequestsPerModel\", instance_type = \"ml.p5\"");
    let of = |expression: &str, query: &str| {
        format!("expression = \"{expression}\"\ntarget = 0.7\n{query}")
    };
    let step = |steps: &str| {
        format!("kind = \"step\"\nmetric = \"queue_depth\"\nthreshold = 5.0\nsteps = {steps}")
    };
    let mut told = String::new();
    for keys in [
        "metric = \"utilization\"\ntarget = 0.7".to_owned(),
        "metric = \"utilisation\"\ntarget = 0.7".to_owned(),
        "target = 0.7".to_owned(),
        "metric = \"utilization\"".to_owned(),
        "metric = \"utilization\"\ntarget = 0.0\ntolerance = 2.0\nperiod = \"1ms\"\nscale_out_periods = 0"
            .to_owned(),
        "metric = \"utilization\"\ntarget = 0.7\nscale_in = \"no\"\nthreshold = 1.0".to_owned(),
        format!("metric = \"utilization\"\n{}", of("p5 / 20", &p5)),
        format!("metric = \"utilization\"\ntarget = 0.7\n{p5}"),
        of("p5 / 20", &p5),
        of("p5 / 40", &p5),
        of("p5 / + 2", &p5),
        of("h100", &p5),
        of("1", &p5),
        of("p5", &query("instance_type = \"ml.p6\"")),
        of("p5", &query("metric = \"Invocations\", stat = \"p99\"")),
        of("p5", &query("metric = \"ModelLatency\", stat = \"median\"")),
        of("1", "metrics.5p = { metric = \"Invocations\" }"),
        step("[{ from = 0.0, change = 1.0 }]"),
        step("[{ from = 0.0, to = 5.0, change = 1.0 }, { from = 6.0, change = 2.0 }]"),
        step("[{ from = 5.0, to = 0.0, change = 1.0 }]"),
        step("[{ from = 0.0 }]"),
        step("[]"),
        step("[{ to = 0.0, change = 1.0 }, { from = 0.0, change = 0.4 }]"),
        step("[{ from = 0.0, change = -2.5 }]\nadjustment = \"exact_capacity\""),
        step("[{ from = 0.0, change = -1.0 }]\nadjustment = \"exact_capacity\""),
        step("[{ from = 0.0, change = 12.5 }]\nadjustment = \"percent_change_in_capacity\""),
        step("[{ to = 0.0, change = 1.0 }, { from = 0.0, change = 2.0 }]\nbreach = \"below\""),
        of("p5", &query("metric = \"GPUUtilization\", instance_type = \"ml.p5\"")),
        of("p5", &query("metric = \"KVCacheUtilization\"")),
        of("p5", &query("metric = \"ModelLatency\", stat = \"p+5\"")),
        "metric = \"utilization\"\ntarget = 0.95".to_owned(),
        "kind = \"step\"\nmetric = \"utilization\"\nthreshold = 5.0\nsteps = [{ change = 1.0 }]".to_owned(),
        "metric = \"model_latency_p99\"\ntarget = 2.0\nperiod = \"1h\"".to_owned(),
        "metric = \"queue_depth\"\ntarget = 2.0\nperiod = \"24h\"\nscale_in_periods = 100".to_owned(),
        of("p5 / 120", &query("metric = \"ConcurrentRequestsPerModel\", instance_type = \"ml.p5\", stat = \"Sum\"")),
        format!("{}\ntarget = 0.7", step("3")),
        "kind = \"step\"\nmetric = \"queue_depth\"".to_owned(),
    ] {
        let _ = writeln!(told, "{keys}");
        for mistake in within("scaling", &keys) {
            let _ = writeln!(told, "  -> {mistake}");
        }
        told.push('\n');
    }
    let twice = "metric = \"queue_depth\"\ntarget = 1.0\n[[endpoint.variant.scaling]]\nname = \"x\"\n\
                 metric = \"queue_depth\"\ntarget = 1.0";
    let _ = writeln!(told, "{twice}\n  -> {}", within("scaling", twice).join("\n  -> "));
    insta::assert_snapshot!(told);
}

#[test]
fn a_mistake_in_an_expression_is_placed_in_quotes_of_any_kind() {
    let p5 = "metrics.p5 = { metric = \"Invocations\", instance_type = \"ml.p5\" }";
    for (open, close, place) in [
        ("\"", "\"", "1:20:"),
        ("'", "'", "1:20:"),
        ("'''", "'''", "1:22:"),
        ("'''\n", "'''", "2:6:"),
    ] {
        let found =
            within("scaling", &format!("expression = {open}p5 / h100{close}\ntarget = 0.7\n{p5}"));
        assert!(found.iter().any(|mistake| mistake.starts_with(place)), "{open:?}: {found:?}");
    }
}

#[test]
fn mistakes_in_a_schedule() {
    let mut told = String::new();
    for keys in [
        "schedule = \"cron(0 8 ? * MON-FRI *)\"\ntimezone = \"Europe/Berlin\"\nmin_instance_count = 1",
        "schedule = \"at(2026-12-24T18:00:00)\"",
        "schedule = \"at(24 December)\"\nmin_instance_count = 1",
        "schedule = \"cron(0 8 * * MON-FRI)\"\nmin_instance_count = 1",
        "schedule = \"rate(1 day)\"\nmin_instance_count = 1",
        "schedule = \"cron(0 8 ? * MON *)\"\ntimezone = \"Berlin\"\nmin_instance_count = 1",
        "schedule = \"cron(0 8 ? * MON *)\"\nmin_instance_count = 5\nmax_instance_count = 4",
        "schedule = \"cron(0 8 ? * MON *)\"\nmin_instance_count = 5000",
        "min_instances = 1",
    ] {
        let _ = writeln!(told, "{keys}");
        for mistake in within("schedule", keys) {
            let _ = writeln!(told, "  -> {mistake}");
        }
        told.push('\n');
    }
    insta::assert_snapshot!(told);
}
