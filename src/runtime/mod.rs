//! The only reader of the clock and of randomness, and the keeper of tasks: [`clock`], [`rng`],
//! [`tasks`] (named, tracked, drained at the end).

pub mod clock;
pub mod rng;
pub mod tasks;
