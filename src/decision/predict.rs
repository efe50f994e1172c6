//! What `PREDICTED_LATENCY` knows: how long one more request takes on a copy that then has m in flight,
//! S(m) = a + b·m, learned for each instance type of a variant from successful service alone.
//!
//! * Only time **in service** is learned from, never a wait (which would count load twice), and only from
//!   requests that succeeded: a copy that fails fast must not look fast.
//! * The line is fitted by least squares in which a sample's weight fades with the samples that follow it
//!   ([`HORIZON`]), not with time: one long stream is longer than any sensible number of seconds.
//! * Sizes of answers are spread widely (log-normal with σ = 1 is normal), so a sample counts at most
//!   [`CEILING`] times what was expected. That shortens what is predicted, by the same share for every
//!   type that serves the same requests; only the comparison matters.
//! * The line is straight and not its logarithm: engines slow down about evenly with the batch, and an
//!   exponential through such times errs where it matters, near the limit.
//! * The slope is pulled towards 0 until loads have differed enough to show one, and is never negative:
//!   more company never makes a copy faster.
//!
//! Reading is one atomic load. Writing takes a short lock, at the end of a request.
//!
//! Properties, each with its test: P1 nothing is predicted before [`LEAST_SAMPLES`]; P2 what is predicted
//! is finite, above 0, and never falls as m grows, whatever was learned from; P3 a line is found through
//! noise, and a new one after a change; P4 with it the choice does as well as one that knows the truth.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Samples before anything is predicted.
pub const LEAST_SAMPLES: usize = 20;

/// Samples after which a sample's weight has faded to 1/e.
pub const HORIZON: f64 = 400.0;

/// How many times what was expected a sample counts at most.
const CEILING: f64 = 5.0;

/// What is taken as known of the slope beforehand: as much as loads that differ this much (as a variance)
/// among themselves would tell of a slope of 0.
const PRIOR_SPREAD: f64 = 0.5;

/// The least share of the mean that is taken to be there without any company.
const LEAST_BASE: f64 = 0.05;

/// The service times that are believed, in seconds: a microsecond to a day.
const SECONDS: RangeInclusive<f64> = 1e-6..=86_400.0;
/// The loads that are believed.
const LOADS: RangeInclusive<f64> = 1.0..=1e6;

/// What is known of one instance type's service of one model. Shared by all threads.
#[derive(Debug)]
pub struct ServiceTimes {
    /// a and b as the bits of two `f32`, a in the upper half; `NaN` while too little is known.
    line: AtomicU64,
    samples: Mutex<Samples>,
}

impl Default for ServiceTimes {
    fn default() -> Self {
        Self { line: AtomicU64::new(pack(f32::NAN, f32::NAN)), samples: Mutex::default() }
    }
}

impl ServiceTimes {
    /// Predicted seconds of service with `in_flight` requests on a copy, the one that it is about
    /// included; `NaN` while too little is known.
    #[must_use]
    #[inline]
    pub fn predict(&self, in_flight: f32) -> f32 {
        let (a, b) = unpack(self.line.load(Ordering::Relaxed));
        a + b * in_flight
    }

    /// Whether anything is predicted yet. While that is not so for one of the types to choose among, the
    /// choice is best made without predictions: what is unknown cannot be ranked.
    #[must_use]
    #[inline]
    pub fn is_known(&self) -> bool {
        !unpack(self.line.load(Ordering::Relaxed)).0.is_nan()
    }

    /// A request was served in full in `seconds`, from being sent to its last byte, with `in_flight`
    /// requests on its copy meanwhile, itself included: best the mean of the numbers as it began and as
    /// it ended. Nonsense is clamped.
    pub fn learn(&self, seconds: f64, in_flight: f64) {
        let seconds = within(seconds, SECONDS);
        let in_flight = within(in_flight, LOADS);
        // Nothing in there panics half-way; what is in it is usable whatever happened.
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((a, b)) = samples.add(in_flight, seconds) {
            self.line.store(pack(a, b), Ordering::Relaxed);
        }
    }
}

fn within(value: f64, range: RangeInclusive<f64>) -> f64 {
    // `max` of NaN and a number is the number.
    value.max(*range.start()).min(*range.end())
}

fn pack(a: f32, b: f32) -> u64 {
    u64::from(a.to_bits()) << 32 | u64::from(b.to_bits())
}

fn unpack(line: u64) -> (f32, f32) {
    #[allow(clippy::cast_possible_truncation, reason = "each half is 32 bits")]
    let half = |bits: u64| f32::from_bits(bits as u32);
    (half(line >> 32), half(line))
}

/// Weighted sums over the samples so far.
#[derive(Debug)]
enum Samples {
    /// Too few to know which of them are outliers.
    First(Vec<(f64, f64)>),
    Many(Sums),
}

impl Default for Samples {
    fn default() -> Self {
        Self::First(Vec::new())
    }
}

impl Samples {
    /// Takes in a sample; the line, once there are enough.
    fn add(&mut self, load: f64, seconds: f64) -> Option<(f32, f32)> {
        match self {
            Self::First(first) => {
                first.push((load, seconds));
                if first.len() < LEAST_SAMPLES {
                    return None;
                }
                let sums = Sums::of(first);
                let line = sums.line();
                *self = Self::Many(sums);
                Some(narrow(line))
            }
            Self::Many(sums) => {
                let (a, b) = sums.line();
                sums.add(load, seconds.min(CEILING * (a + b * load)));
                Some(narrow(sums.line()))
            }
        }
    }
}

fn narrow((a, b): (f64, f64)) -> (f32, f32) {
    #[allow(clippy::cast_possible_truncation, reason = "both are within `SECONDS`, rounded")]
    let narrowed = (a as f32, b as f32);
    narrowed
}

/// Means and central second moments, updated as in West (1979), "Updating mean and variance estimates":
/// no sum grows without bound and no two large ones are subtracted.
#[derive(Debug, Default)]
struct Sums {
    weight: f64,
    mean_load: f64,
    mean_seconds: f64,
    /// Σ w (load − mean)².
    spread: f64,
    /// Σ w (load − mean)(seconds − mean).
    common: f64,
}

impl Sums {
    /// Of the first samples: there is no expectation yet, so their median is the measure.
    fn of(first: &[(f64, f64)]) -> Self {
        let mut times: Vec<f64> = first.iter().map(|(_, seconds)| *seconds).collect();
        times.sort_by(f64::total_cmp);
        let ceiling = 2.0 * CEILING * times[times.len() / 2];
        let mut sums = Self::default();
        for (load, seconds) in first {
            sums.add(*load, seconds.min(ceiling));
        }
        sums
    }

    fn add(&mut self, load: f64, seconds: f64) {
        let fade = 1.0 - 1.0 / HORIZON;
        self.weight = self.weight * fade + 1.0;
        let share = 1.0 / self.weight;
        let off = load - self.mean_load;
        self.mean_load += share * off;
        self.mean_seconds += share * (seconds - self.mean_seconds);
        self.spread = self.spread * fade + off * (load - self.mean_load);
        self.common = self.common * fade + off * (seconds - self.mean_seconds);
    }

    /// a > 0 and b ≥ 0 of the line through them.
    fn line(&self) -> (f64, f64) {
        let slope = self.common / (self.spread + PRIOR_SPREAD * self.weight);
        let steepest = self.mean_seconds * (1.0 - LEAST_BASE) / self.mean_load.max(1.0);
        let slope = if slope.is_finite() { slope.clamp(0.0, steepest) } else { 0.0 };
        (self.mean_seconds - slope * self.mean_load, slope)
    }
}

#[cfg(test)]
#[path = "predict_tests.rs"]
mod tests;
