//! Randomness for whoever decides: draws are made here and handed on as arguments.

#![allow(clippy::disallowed_methods, reason = "this is the one module that draws random numbers")]

/// One draw, uniform over all of `u64`, from the thread's own generator.
#[must_use]
pub fn draw() -> u64 {
    fastrand::u64(..)
}

/// For tests: this thread's draws are from now on those that `seed` begins.
#[cfg(test)]
pub fn begin_with(seed: u64) {
    fastrand::seed(seed);
}

/// A secret that nobody can guess: 256 bits of the system's own randomness.
///
/// # Errors
/// When the system has none.
pub fn secret() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| std::io::Error::other("the system has no randomness"))?;
    Ok(bytes)
}

/// Sixteen hexadecimal digits for names that must not collide.
#[must_use]
pub fn unique_suffix() -> String {
    format!("{:016x}", draw())
}
