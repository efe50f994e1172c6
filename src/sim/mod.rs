//! A deterministic world that drives the very [`crate::decision::controller::Controller`] that runs in
//! production: a virtual clock, a pretend cloud with its refusals and faults, workers, proxies, a durable
//! store, operators, and a manager that dies between any two of its actions. One seed makes all of it.
//!
//! Two kinds of worlds are played. Generated ones look for mistakes in the controller: [`run`]. Scenarios are
//! for people who want to know what a policy comes to: [`Scenario`], [`play`], [`Report`]; their clients send
//! single requests through the deciders of the proxy ([`traffic`]).
//!
//! Start with [`run`]: it plays a generated world ([`Profile`]) and returns an [`Outcome`]. After every
//! action the checker ([`crate::decision::check`]) is asked, then the world's own truth: nothing is
//! terminated under running requests, and when the trouble ends the fleet becomes exactly what was asked
//! for, stays so, and survives a restart unchanged. A scenario is played without the checker, as the
//! controller runs in production, unless it is [`play_checked()`].

mod cloud;
mod driver;
mod fleets;
mod generate;
mod happen;
mod machines;
mod probing;
mod proxies;
mod report;
mod rng;
mod scenario;
mod settle;
mod setup;
mod store;
mod trace;
mod traffic;
mod truth;
mod usage;
mod world;

use std::fmt;

pub use generate::Profile;
pub use report::{
    Moment, Report, Summary, TypeFigures, VariantFigures, compare, picture, play, play_checked,
    simulate,
};
pub use scenario::{Scenario, ScenarioError, WorldSpec};
pub use traffic::tally::{RequestCounts, Waits};

use trace::Trace;
use world::{START, World};

/// Lines of a transcript that are shown with a failure.
const SHOWN_LINES: usize = 200;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The kinds of trouble.
    pub profile: Profile,
    /// Turns of the world's loop.
    pub steps: u64,
    /// Actions that the controllers asked for.
    pub actions: u64,
    /// Managers that died.
    pub crashes: u64,
    /// Simulated time in milliseconds.
    pub simulated_ms: u64,
    /// What went wrong first, if anything.
    pub failure: Option<String>,
    /// The last lines of what happened before that; empty without a failure.
    pub transcript: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(failure) = &self.failure else {
            return write!(f, "seed {} ({:?}) holds", self.seed, self.profile);
        };
        for line in &self.transcript {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {} ({:?}): {failure}", self.seed, self.profile)
    }
}

/// Plays the world of `seed` with the trouble of `profile`. The same arguments give the same outcome.
#[must_use]
pub fn run(seed: u64, profile: Profile) -> Outcome {
    let outcome = play_seed(seed, profile, Trace::Off);
    if outcome.failure.is_none() {
        return outcome;
    }
    play_seed(seed, profile, Trace::tail(SHOWN_LINES))
}

/// As [`run`], with the last `lines` lines of the transcript whatever comes of it.
#[must_use]
pub fn run_traced(seed: u64, profile: Profile, lines: usize) -> Outcome {
    play_seed(seed, profile, Trace::tail(lines))
}

fn play_seed(seed: u64, profile: Profile, trace: Trace) -> Outcome {
    let mut world = World::new(generate::setup(seed, profile), seed, trace);
    world.advance(START + world.setup.length);
    world.settle();
    Outcome {
        seed,
        profile,
        steps: world.tally.steps,
        actions: world.tally.actions,
        crashes: world.tally.crashes,
        simulated_ms: world.now.0 - START.0,
        failure: world.fault,
        transcript: world.trace.into_lines(),
    }
}
