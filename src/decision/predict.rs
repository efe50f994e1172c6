//! What `PREDICTED_LATENCY` learns: how long one instance type serves a request at a given load, from
//! requests that were served in full, without the time they waited here.
//!
//! Service times of generations are log-normal within a factor of ten or so, and grow with the number of
//! requests in flight on a copy, m. So the logarithm is fitted: ln t = α + β·m, by least squares with
//! weights that decay over [`HORIZON`] *requests*: a long stream may outlast any horizon in seconds.
//! β is kept only where it is positive and clearly not chance. The choice compares α + β·m directly; the
//! exponential would not change an order.
//!
//! Nothing is learned from failures (fast ones would attract traffic) nor from time in a queue (load
//! would count twice). Until [`ENOUGH`] requests were seen nothing is predicted, and the choice falls back
//! to utilization.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Requests until a prediction is made.
const ENOUGH: f64 = 20.0;
/// Requests over which an observation's weight falls to 1/e.
const HORIZON: f64 = 500.0;
/// Standard errors that β must be away from 0.
const CLEARLY: f64 = 2.5;
/// Observations are taken to be within these bounds, in seconds.
const BOUNDS: (f64, f64) = (1e-4, 1e5);

/// One instance type's service times, shared by all threads. Reading is one atomic load.
#[derive(Debug)]
pub struct ServiceTimes {
    fit: Mutex<Fit>,
    /// α and β as two `f32`; `NaN` while too little is known.
    line: AtomicU64,
}

impl Default for ServiceTimes {
    fn default() -> Self {
        Self { fit: Mutex::default(), line: AtomicU64::new(pack(f32::NAN, 0.0)) }
    }
}

impl ServiceTimes {
    /// A request was served in full in `seconds`, with `in_flight` requests per copy meanwhile, itself
    /// included.
    pub fn learn(&self, seconds: f64, in_flight: f64) {
        let mut fit = self.fit.lock().unwrap_or_else(PoisonError::into_inner);
        fit.add(in_flight, seconds.clamp(BOUNDS.0, BOUNDS.1).ln());
        if let Some((alpha, beta)) = fit.line() {
            #[allow(clippy::cast_possible_truncation, reason = "an order needs no more precision")]
            self.line.store(pack(alpha as f32, beta as f32), Ordering::Relaxed);
        }
    }

    /// The logarithm of the service time, in ln seconds, of one more request where `in_flight` are on a
    /// copy with it; `NaN` while too little is known.
    #[must_use]
    pub fn predict(&self, in_flight: f32) -> f32 {
        let (alpha, beta) = unpack(self.line.load(Ordering::Relaxed));
        alpha + beta * in_flight
    }

    /// Whether enough is known to predict.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !unpack(self.line.load(Ordering::Relaxed)).0.is_nan()
    }
}

fn pack(alpha: f32, beta: f32) -> u64 {
    u64::from(alpha.to_bits()) << 32 | u64::from(beta.to_bits())
}

fn unpack(line: u64) -> (f32, f32) {
    let half = |bits: u64| f32::from_bits(u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0));
    (half(line >> 32), half(line))
}

/// Weighted moments around the running means, so that nothing cancels.
#[derive(Debug, Default)]
struct Fit {
    weight: f64,
    /// Σ of squared weights: how many observations they are worth.
    weight_squared: f64,
    mean_x: f64,
    mean_y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Fit {
    fn add(&mut self, x: f64, y: f64) {
        let keep = 1.0 - 1.0 / HORIZON;
        self.weight = self.weight * keep + 1.0;
        self.weight_squared = self.weight_squared * keep * keep + 1.0;
        for moment in [&mut self.xx, &mut self.xy, &mut self.yy] {
            *moment *= keep;
        }
        let (dx, dy) = (x - self.mean_x, y - self.mean_y);
        self.mean_x += dx / self.weight;
        self.mean_y += dy / self.weight;
        self.xx += dx * (x - self.mean_x);
        self.xy += dx * (y - self.mean_y);
        self.yy += dy * (y - self.mean_y);
    }

    fn line(&self) -> Option<(f64, f64)> {
        let observations = self.weight * self.weight / self.weight_squared;
        if observations < ENOUGH {
            return None;
        }
        let beta = self.slope(observations).unwrap_or(0.0);
        Some((self.mean_y - beta * self.mean_x, beta))
    }

    /// β, where it is clearly positive.
    fn slope(&self, observations: f64) -> Option<f64> {
        if self.xx <= f64::EPSILON * self.weight {
            return None;
        }
        let beta = self.xy / self.xx;
        let unexplained = (self.yy - beta * self.xy).max(0.0) / self.weight;
        let error = (unexplained / (self.xx / self.weight * (observations - 2.0))).sqrt();
        (beta > CLEARLY * error).then_some(beta)
    }
}

#[cfg(test)]
#[path = "predict_tests.rs"]
mod tests;
