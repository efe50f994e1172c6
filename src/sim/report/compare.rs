//! Two policies in the same world, side by side.

use std::fmt::Write as _;

use super::Report;

/// A table with a line for each figure: what `ours` and `theirs` came to, and by how much they differ.
#[must_use]
pub fn compare(ours: (&str, &Report), theirs: (&str, &Report)) -> String {
    let ((our_name, ours), (their_name, theirs)) = (ours, theirs);
    let mut text = format!("seed {}\n", ours.seed);
    let width = our_name.len().max(their_name.len()).max(12);
    let _ =
        writeln!(text, "{:<28} {our_name:>width$} {their_name:>width$} {:>12}", "", "difference");
    let mut line = |name: &str, places: usize, [one, other]: [f64; 2]| {
        // Of what would be shown, so that figures that look the same do not differ.
        let grain = 10_f64.powi(i32::try_from(places).unwrap_or(0));
        let [one, other] = [one, other].map(|figure| (figure * grain).round() / grain);
        let difference = other - one;
        let difference =
            if difference == 0.0 { String::new() } else { format!("{difference:+.places$}") };
        let figures = format!("{one:>width$.places$} {other:>width$.places$} {difference:>12}");
        let _ = writeln!(text, "{name:<28} {}", figures.trim_end());
    };
    let both = |figure: fn(&Report) -> f64| [figure(ours), figure(theirs)];
    line("availability, %", 3, both(|r| r.availability * 100.0));
    line("requests asked", 0, both(|r| r.requests.asked as f64));
    line("requests answered", 0, both(|r| r.requests.answered as f64));
    line("refused: queue full", 0, both(|r| r.requests.queue_full as f64));
    line("refused: waited too long", 0, both(|r| r.requests.queue_timeout as f64));
    line("refused: no table", 0, both(|r| r.requests.no_instance as f64));
    line("lost", 0, both(|r| r.requests.lost as f64));
    line("wait p50, s", 1, both(|r| r.waits.p50_s));
    line("wait p90, s", 1, both(|r| r.waits.p90_s));
    line("wait p99, s", 1, both(|r| r.waits.p99_s));
    line("longest wait, s", 1, both(|r| r.waits.max_s));
    line("full size, % of the time", 1, both(|r| r.full_share * 100.0));
    line("fallback, % of the instances", 1, both(|r| r.fallback_share * 100.0));
    line("cost", 2, both(|r| r.cost));
    let kinds: std::collections::BTreeSet<_> =
        ours.types.keys().chain(theirs.types.keys()).collect();
    for kind in kinds {
        let of = |report: &Report| report.types.get(kind).copied().unwrap_or_default();
        let (one, other) = (of(ours), of(theirs));
        line(&format!("{kind}: launches"), 0, [one.launches as f64, other.launches as f64]);
        line(&format!("{kind}: refusals"), 0, [one.refusals as f64, other.refusals as f64]);
        line(&format!("{kind}: hours paid"), 2, [one.hours_paid, other.hours_paid]);
    }
    let kinds: std::collections::BTreeSet<_> =
        ours.decisions.keys().chain(theirs.decisions.keys()).collect();
    for kind in kinds {
        let of = |report: &Report| report.decisions.get(kind).copied().unwrap_or(0) as f64;
        line(&format!("decisions: {kind}"), 0, [of(ours), of(theirs)]);
    }
    for (name, report) in [(our_name, ours), (their_name, theirs)] {
        if let Some(failure) = &report.failure {
            let _ = writeln!(text, "\n{name}: broken: {failure}");
        }
    }
    text
}
