//! How long a request runs at an instance: log-normal around a mean that grows with the instance's load, as
//! engines that batch do. What a request takes is drawn when it arrives, so that two policies that are
//! compared serve the same requests.

use std::time::Duration;

use crate::sim::rng::Rng;

/// What requests take at one instance type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::sim) struct ServiceTime {
    /// The mean of a request that is alone at its instance.
    pub(in crate::sim) mean: Duration,
    /// The mean where every slot is taken; between the two it grows evenly.
    pub(in crate::sim) mean_full: Duration,
    /// Standard deviation of the logarithm; 0: all take the same.
    pub(in crate::sim) sigma: f64,
}

/// How much a request asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::sim) enum Work {
    /// A standard normal number: more or less than others.
    Drawn(f64),
    /// This long, wherever it runs.
    Given(Duration),
}

impl Work {
    /// Draws one.
    pub(super) fn drawn(rng: &mut Rng) -> Self {
        // Box and Muller.
        let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
        Self::Drawn(radius * (std::f64::consts::TAU * rng.unit()).cos())
    }
}

impl ServiceTime {
    /// How long `work` runs at an instance that then has `load` of its slots (0 to 1) taken.
    pub(super) fn of(&self, work: Work, load: f64) -> Duration {
        let normal = match work {
            Work::Given(span) => return span,
            Work::Drawn(normal) => normal,
        };
        let (alone, full) = (self.mean.as_secs_f64(), self.mean_full.as_secs_f64());
        let mean = alone + (full - alone) * load.clamp(0.0, 1.0);
        // The mean of a log-normal is e^(mu + sigma²/2).
        let factor = (self.sigma * normal - self.sigma * self.sigma / 2.0).exp();
        Duration::try_from_secs_f64(mean * factor).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_what_they_are_said_to_be() {
        let (mean, mean_full) = (Duration::from_secs(4), Duration::from_secs(10));
        let service = ServiceTime { mean, mean_full, sigma: 0.5 };
        let mut rng = Rng::new(3);
        let works: Vec<Work> = (0..40_000).map(|_| Work::drawn(&mut rng)).collect();
        for (load, expected) in [(0.0, 4.0), (0.5, 7.0), (1.0, 10.0)] {
            let sum: f64 = works.iter().map(|work| service.of(*work, load).as_secs_f64()).sum();
            let found = sum / works.len() as f64;
            assert!((found / expected - 1.0).abs() < 0.02, "{found} at {load}");
        }
        let flat = ServiceTime { sigma: 0.0, ..service };
        assert!(works.iter().all(|work| flat.of(*work, 0.0) == mean));
        assert_eq!(service.of(Work::Given(mean), 1.0), mean);
    }
}
