//! The only reader of the clock and of randomness, and the keeper of tasks: [`clock`], [`rng`],
//! [`tasks`] (named, tracked, drained at the end); and [`sync`], the shared memory of hand-offs.

pub mod clock;
#[cfg(test)]
pub mod interleave;
pub mod rng;
pub mod sync;
pub mod tasks;
