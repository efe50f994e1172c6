//! How long the simulator takes for a day of many endpoints: `cargo bench --bench day`, or with other sizes
//! `cargo bench --bench day -- ENDPOINTS INSTANCES HOURS`. Not a criterion benchmark: one run takes long enough
//! to be measured by itself. Figures are in `README.md` beside this file.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "measures real time and prints it"
)]

use std::fmt::Write as _;
use std::time::Instant;

use forebay::sim::{Scenario, play};
// The allocator of the binary.
use mimalloc as _;

/// Endpoints of two pools, preferred instances that are lent for twenty days on average, and requests that
/// follow the day, each endpoint at another hour.
fn scenario(endpoints: u32, instances: u32, hours: u32) -> Scenario {
    let mut text = String::new();
    for (kind, price) in [("spot", 5.0), ("reserved", 13.0)] {
        let _ = writeln!(
            text,
            "[provider.{kind}]\nkind = \"process\"\ncommand = [\"true\"]\n\
             [instance_type.{kind}]\nprovider = \"{kind}\"\nmax_concurrency = 8\n\
             price_per_hour = {price}"
        );
    }
    for endpoint in 0..endpoints {
        let _ = writeln!(
            text,
            "[[endpoint]]\nname = \"e{endpoint}\"\n\
             [[endpoint.variant]]\nname = \"v\"\nmodel = \"m{endpoint}\"\n\
             initial_instance_count = {instances}\nmax_instance_count = {}\n\
             health_interval = \"60s\"\n\
             [[endpoint.variant.pool]]\ninstance_type = \"spot\"\npriority = 1\n\
             [[endpoint.variant.pool]]\ninstance_type = \"reserved\"\npriority = 2",
            instances + 20
        );
    }
    let _ = writeln!(
        text,
        "[simulation]\nduration = \"{hours}h\"\nsample_every = \"1h\"\nreport_every = \"8s\"\n\
         service = {{ mean = \"30s\" }}\n\
         [[simulation.spot]]\ninstance_type = \"spot\"\nmean_life = \"20d\""
    );
    for endpoint in 0..endpoints {
        let _ = writeln!(
            text,
            "[[simulation.arrivals]]\nendpoint = \"e{endpoint}\"\n\
             diurnal = {{ low = 0.02, high = 0.2, peak_at = \"{}h\" }}",
            endpoint % 24
        );
    }
    let nothing = |path: &std::path::Path| Err(path.display().to_string());
    Scenario::parse(&text, "day.toml", &nothing).expect("a scenario")
}

fn main() {
    // cargo adds flags of its own.
    let given: Vec<u32> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let sizes = match given.as_slice() {
        [endpoints, instances, hours] => vec![(*endpoints, *instances, *hours)],
        _ => vec![(10, 10, 24), (100, 10, 24), (100, 100, 24)],
    };
    for (endpoints, instances, hours) in sizes {
        let scenario = scenario(endpoints, instances, hours);
        let begun = Instant::now();
        let report = play(&scenario, 1);
        let took = begun.elapsed().as_secs_f64();
        assert_eq!(report.failure, None);
        println!(
            "{endpoints} endpoints x {instances} instances, {hours} h: {took:.2} s for {} requests, {} launches",
            report.requests.asked,
            report.types.values().map(|figures| figures.launches).sum::<u64>()
        );
    }
}
