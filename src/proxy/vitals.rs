//! What traffic alone tells of a backend: its breaker, its age, whether it hangs. The rules are in
//! [`crate::decision::eject`] and [`crate::decision::ramp`]; here they meet the slots.
//!
//! Three states are told apart. *Dead*: connections fail, answers are bad; the breaker leaves it alone.
//! *Busy*: its probes fail, but it sends bytes; reports say so and it stays. *Hung*: it holds requests
//! and sends nothing for `stall_timeout`; it is left alone and reported, so that it is replaced.
//!
//! One that says that it is *full* is believed: it gets no more than it then has until one of those is
//! done, or [`FULL_MS`] have passed. A refusal takes no time, so the one that refuses would else look like
//! the least loaded of all.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::snapshot::{Backend, Variant};
use super::told::Told;
use crate::decision::eject::{Breaker, Share, State};
use crate::decision::outcome::Outcome;
use crate::decision::ramp;
use crate::runtime::clock;
use crate::types::spec::RequestPolicy;

/// How long a backend that said it was full is believed, if nothing of what it has is done before.
const FULL_MS: u64 = 1_000;

/// The vitals of one start of an instance.
#[derive(Debug)]
pub(super) struct Vitals {
    breaker: Mutex<Breaker>,
    /// The breaker is as it was at first: good outcomes change nothing, and most outcomes are good.
    calm: AtomicBool,
    /// Until when it counts as hanging, by the process's clock; 0: it does not.
    stalled_until_ms: AtomicU64,
    /// Until when it is taken for full, by the process's clock; 0: it is not.
    full_until_ms: AtomicU64,
    /// What it had when it said so.
    full_at: AtomicU32,
    /// How often its health checks are known to have passed again.
    recoveries: AtomicU32,
    /// When it came into the table, in milliseconds of the process's clock; 0: before the proxy started.
    appeared_at_ms: u64,
    /// What it says of its own load.
    pub(super) told: Told,
}

impl Vitals {
    /// Of an instance that is new, or was there before the proxy.
    pub(super) fn new(is_new: bool) -> Self {
        Self {
            breaker: Mutex::default(),
            calm: AtomicBool::new(true),
            stalled_until_ms: AtomicU64::new(0),
            full_until_ms: AtomicU64::new(0),
            full_at: AtomicU32::new(0),
            recoveries: AtomicU32::new(0),
            appeared_at_ms: if is_new { clock::uptime_ms() } else { 0 },
            told: Told::default(),
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `outcome` can change anything.
    pub(super) fn minds(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Neutral => false,
            Outcome::Good => !self.calm.load(Ordering::Relaxed) || self.is_full(),
            Outcome::Bad | Outcome::Full => true,
        }
    }

    /// Whether it is left alone, or just trying again.
    pub(super) fn is_away(&self) -> bool {
        self.breaker().is_away()
    }

    fn is_full(&self) -> bool {
        self.full_until_ms.load(Ordering::Relaxed) > 0
    }

    /// Takes in whether it is full; `has` are the requests that it goes on with.
    fn note_full(&self, outcome: Outcome, has: u32, now_ms: u64) {
        let until = match outcome {
            Outcome::Full => now_ms + FULL_MS,
            Outcome::Good => 0,
            Outcome::Bad | Outcome::Neutral => return,
        };
        self.full_at.store(has, Ordering::Relaxed);
        self.full_until_ms.store(until, Ordering::Relaxed);
    }

    /// What it takes at most because it said that it was full.
    fn full_limit(&self, now_ms: u64) -> u32 {
        match self.full_until_ms.load(Ordering::Relaxed) {
            0 => u32::MAX,
            until if until <= now_ms => {
                self.full_until_ms.store(0, Ordering::Relaxed);
                u32::MAX
            }
            _ => self.full_at.load(Ordering::Relaxed),
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_until_ms.load(Ordering::Relaxed) > 0
    }

    fn set(&self, breaker: Breaker) {
        self.calm.store(breaker == Breaker::default(), Ordering::Relaxed);
        *self.breaker() = breaker;
    }
}

/// What a tick has brought.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tick {
    /// Slots may have come free.
    pub(super) freed: bool,
    /// Something that the manager should hear of at once.
    pub(super) news: bool,
}

impl Variant {
    /// Takes in how a request at `backend` has ended. Whether slots may have come free.
    pub(super) fn judge(&self, backend: &Backend, outcome: Outcome) -> bool {
        // One at a time, so that the share that is away is exact.
        let _judging = self.shared.judging.lock().unwrap_or_else(PoisonError::into_inner);
        let share = self.share_beside(backend);
        let now_ms = clock::uptime_ms();
        // The request that ends still has its slot.
        backend.vitals.note_full(outcome, backend.slot.outstanding().saturating_sub(1), now_ms);
        let before = *backend.vitals.breaker();
        let after = before.after(&self.requests.ejection, outcome, share, now_ms);
        backend.vitals.set(after);
        if let (State::Ejected { until_ms }, false) = (after.state, before.state == after.state) {
            backend.traffic.ejected();
            tracing::warn!(
                instance = %backend.route.instance,
                times = after.times,
                seconds = (until_ms - now_ms) / 1000,
                "left alone: its answers are bad"
            );
        }
        self.apply_standing(backend, now_ms)
    }

    /// The backends beside this one, for the bound on how many are away.
    fn share_beside(&self, backend: &Backend) -> Share {
        let others =
            self.backends.iter().filter(|b| b.route.generation != backend.route.generation);
        let away = others.filter(|other| other.vitals.is_away()).count();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Share { backends: count(self.backends.len()), away: count(away) }
    }

    /// Does what time alone brings: ejections end, at once where the fleet has shrunk too far for them, new copies get more slots, silence becomes a stall.
    pub(super) fn tick_vitals(&self) -> Tick {
        let now_ms = clock::uptime_ms();
        let (mut freed, mut news) = (false, false);
        for backend in &self.backends {
            self.pass_time(backend, now_ms);
            if let Some(limit) = self.requests.stall_timeout {
                news |= self.watch_for_stall(backend, limit, now_ms);
            }
            freed |= self.apply_standing(backend, now_ms);
        }
        Tick { freed, news }
    }

    fn pass_time(&self, backend: &Backend, now_ms: u64) {
        let vitals = &backend.vitals;
        if !vitals.is_away() {
            return;
        }
        let _judging = self.shared.judging.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *vitals.breaker();
        let after = before.at(now_ms).recalled(&self.requests.ejection, self.share_beside(backend));
        if after != before {
            vitals.set(after);
        }
    }

    /// A backend that hangs is left alone for as long as it does, and at least for the time of a first
    /// ejection, whoever gives up on it meanwhile. Whether it has just begun to.
    fn watch_for_stall(&self, backend: &Backend, limit: Duration, now_ms: u64) -> bool {
        let silent = Duration::from_millis(backend.slot.silent_ms(now_ms));
        let until = &backend.vitals.stalled_until_ms;
        if silent < limit {
            if until.load(Ordering::Relaxed) <= now_ms {
                until.store(0, Ordering::Relaxed);
            }
            return false;
        }
        let least = u64::try_from(self.requests.ejection.base.as_millis()).unwrap_or(u64::MAX);
        let has_begun = until.swap(now_ms.saturating_add(least), Ordering::Relaxed) == 0;
        if has_begun {
            tracing::warn!(
                instance = %backend.route.instance,
                outstanding = backend.slot.outstanding(),
                ?silent,
                "left alone: it holds requests and sends nothing"
            );
        }
        has_begun
    }

    /// Makes the slot say what the vitals mean. Whether it takes more than before.
    fn apply_standing(&self, backend: &Backend, now_ms: u64) -> bool {
        let vitals = &backend.vitals;
        let slot = &backend.slot;
        let state = vitals.breaker().state;
        let limit = match state {
            State::HalfOpen => 1,
            _ => allowed(backend, &self.requests, now_ms),
        };
        let grows = slot.set_limit(limit.min(vitals.full_limit(now_ms)));
        let away = matches!(state, State::Ejected { .. }) || vitals.is_stalled();
        match (away, slot.is_ejected()) {
            (true, false) => slot.eject(),
            (false, true) => {
                slot.readmit();
                return true;
            }
            _ => {}
        }
        grows
    }
}

fn allowed(backend: &Backend, policy: &RequestPolicy, now_ms: u64) -> u32 {
    let age = match backend.vitals.appeared_at_ms {
        0 => Duration::MAX,
        at => Duration::from_millis(now_ms.saturating_sub(at)),
    };
    ramp::allowed(backend.slots(), age, policy.slow_start)
}

impl Variant {
    fn note_recovery(&self, backend: &Backend) {
        let (vitals, recoveries) = (&backend.vitals, backend.route.recoveries);
        if vitals.recoveries.swap(recoveries, Ordering::Relaxed) < recoveries {
            let _judging = self.shared.judging.lock().unwrap_or_else(PoisonError::into_inner);
            let breaker = vitals.breaker().recovered(&self.requests.ejection);
            vitals.set(breaker);
        }
    }

    /// What a backend takes that has just come into a snapshot.
    pub(super) fn admit_backends(&self) {
        let now_ms = clock::uptime_ms();
        for backend in &self.backends {
            self.note_recovery(backend);
            self.apply_standing(backend, now_ms);
            backend.slot.open();
        }
    }
}
