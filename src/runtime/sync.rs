//! Shared memory for hand-offs between threads: words and a lock, all sequentially consistent. In tests
//! each access is a point at which the explorer (`interleave`) may switch threads.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{MutexGuard, PoisonError, TryLockError};

#[cfg(test)]
use super::interleave;

/// A point, outside of this module's types, at which it matters what other threads do; nothing outside of
/// tests.
#[inline]
pub fn step() {
    #[cfg(test)]
    interleave::step();
}

/// A count that several threads look at.
#[derive(Debug, Default)]
pub struct AtomicU32(std::sync::atomic::AtomicU32);

impl AtomicU32 {
    /// What it holds now.
    pub fn load(&self) -> u32 {
        step();
        self.0.load(SeqCst)
    }

    /// Holds `value` from now on.
    pub fn store(&self, value: u32) {
        step();
        self.0.store(value, SeqCst);
    }
}

/// A word that several threads change.
#[derive(Debug, Default)]
pub struct AtomicU64(std::sync::atomic::AtomicU64);

impl AtomicU64 {
    /// One that holds `value`.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(std::sync::atomic::AtomicU64::new(value))
    }

    /// What it holds now.
    pub fn load(&self) -> u64 {
        step();
        self.0.load(SeqCst)
    }

    /// Holds `new` from now on, if it holds `current`.
    ///
    /// # Errors
    /// What it holds instead.
    pub fn replace(&self, current: u64, new: u64) -> Result<(), u64> {
        step();
        self.0.compare_exchange(current, new, SeqCst, SeqCst).map(drop)
    }

    /// Holds `value` from now on.
    pub fn store(&self, value: u64) {
        step();
        self.0.store(value, SeqCst);
    }

    /// Takes `by` away; what it held before.
    pub fn subtract(&self, by: u64) -> u64 {
        step();
        self.0.fetch_sub(by, SeqCst)
    }

    /// Sets `bits`; what it held before.
    pub fn set(&self, bits: u64) -> u64 {
        step();
        self.0.fetch_or(bits, SeqCst)
    }

    /// Clears `bits`; what it held before.
    pub fn clear(&self, bits: u64) -> u64 {
        step();
        self.0.fetch_and(!bits, SeqCst)
    }
}

/// A lock that does not mind whether a thread has panicked under it: for what no operation leaves
/// half-done.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(test)]
        if let Some(guard) = interleave::lock(&self.0) {
            return guard;
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, unless another holds it now.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        step();
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
