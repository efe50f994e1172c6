//! Randomness for whoever decides: draws are made here and handed on as arguments.

#![allow(clippy::disallowed_methods, reason = "this is the one module that draws random numbers")]

/// One draw, uniform over all of `u64`, from the thread's own generator.
#[must_use]
pub fn draw() -> u64 {
    fastrand::u64(..)
}

/// Sixteen hexadecimal digits for names that must not collide.
#[must_use]
pub fn unique_suffix() -> String {
    format!("{:016x}", draw())
}
