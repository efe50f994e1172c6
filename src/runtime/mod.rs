//! The only reader of the clock and of randomness, and the keeper of tasks: [`clock`], [`rng`],
//! [`tasks`] (named, tracked, drained at the end); [`sync`], the shared memory of hand-offs; and
//! [`tokens`], the secrets that are kept in files.

pub mod clock;
#[cfg(test)]
pub mod interleave;
pub mod rng;
pub mod sync;
pub mod tasks;
pub mod tokens;
