//! The report as people read it: the story, then the figures.

use std::fmt;

use super::{Report, TypeFigures};
use crate::sim::traffic::tally::{RequestCounts, Waits};

impl Report {
    /// The figures alone, without the story.
    #[must_use]
    pub fn summary(&self) -> Summary<'_> {
        Summary(self)
    }
}

/// A report's figures, as text.
#[derive(Debug, Clone, Copy)]
pub struct Summary<'a>(&'a Report);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        for line in &self.story {
            writeln!(f, "{line}")?;
        }
        writeln!(f)?;
        self.summary().fmt(f)
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        let counts = report.requests;
        writeln!(f, "{:<20}{:>7.3} %", "availability", report.availability * 100.0)?;
        write!(f, "{:<20}{}", "requests", Counts(counts))?;
        let open = report.open;
        writeln!(
            f,
            "{}",
            if open > 0 { format!(", {open} under way at the end") } else { String::new() }
        )?;
        writeln!(f, "{:<20}{}", "waits for a slot", Seconds(report.waits))?;
        writeln!(f, "{:<20}{:>7.1} % of the time", "full size", report.full_share * 100.0)?;
        let fallback = report.fallback_share * 100.0;
        writeln!(f, "{:<20}{fallback:>7.1} % of the instance time", "fallback")?;
        if report.cost > 0.0 {
            writeln!(f, "{:<20}{:>9.2}", "cost", report.cost)?;
        }
        writeln!(f, "{:<20}{} crashes", "manager", report.crashes)?;
        writeln!(
            f,
            "\n{:<24} {:>8} {:>8} {:>12} {:>12} {:>10}",
            "type", "launches", "refusals", "hours served", "hours paid", "cost"
        )?;
        for (kind, figures) in &report.types {
            let TypeFigures { launches, refusals, hours_served, hours_paid, cost, .. } = figures;
            writeln!(
                f,
                "{:<24} {launches:>8} {refusals:>8} {hours_served:>12.2} {hours_paid:>12.2} {cost:>10.2}",
                kind.as_str()
            )?;
        }
        if report.variants.len() > 1 {
            writeln!(f)?;
            for (name, figures) in &report.variants {
                let availability = figures.requests.availability() * 100.0;
                let full = figures.full_share * 100.0;
                writeln!(
                    f,
                    "{name}: {availability:.3} % available, full size {full:.1} % of the time"
                )?;
                writeln!(f, "  {}; waits {}", Counts(figures.requests), Seconds(figures.waits))?;
            }
        }
        write!(f, "\ndecisions ")?;
        for (number, (kind, count)) in report.decisions.iter().enumerate() {
            write!(f, "{}{count} {kind}", if number == 0 { "" } else { ", " })?;
        }
        writeln!(f)?;
        match &report.failure {
            None => Ok(()),
            Some(failure) => writeln!(f, "\nbroken: {failure}"),
        }
    }
}

/// Counts on one line; those that are 0 are left out.
struct Counts(RequestCounts);

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestCounts { asked, answered, queue_full, queue_timeout, no_instance, lost } =
            self.0;
        write!(f, "{asked} asked, {answered} answered, {} refused", self.0.refused())?;
        let reasons = [
            (queue_full, "queue full"),
            (queue_timeout, "waited too long"),
            (no_instance, "no table"),
        ];
        let reasons: Vec<_> = reasons
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, why)| format!("{count} {why}"))
            .collect();
        if !reasons.is_empty() {
            write!(f, " ({})", reasons.join(", "))?;
        }
        write!(f, ", {lost} lost")
    }
}

struct Seconds(Waits);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Waits { p50_s, p90_s, p99_s, max_s } = self.0;
        write!(f, "p50 {p50_s:.1} s, p90 {p90_s:.1} s, p99 {p99_s:.1} s, longest {max_s:.1} s")
    }
}
