//! Sending a request again: where, how often, and with what. The rules:
//!
//! * never at an instance that it was tried at, and at [`MOST_TRIES`] instances in all;
//! * within the variant's budgets, which count tries decided against first tries: one for what a worker has not
//!   run; one for replays, with credit for all that a dying worker had at once; and a wider one
//!   ([`UNSENT_PERCENT`]) for what was provably not sent: so the death of a worker is paid for, and a dead fleet
//!   is not hammered;
//! * what was not sent, or says that it was not run, always; what may have run only where the variant's
//!   [`Replay`] policy says that this harms nobody, and no byte of an answer has gone to the client.

use smallvec::SmallVec;

use super::snapshot::{Backend, Variant};
use crate::decision::budget::RetryBudget;
use crate::types::Generation;
use crate::types::spec::Replay;

/// Instances that one request is tried at.
const MOST_TRIES: usize = 3;

/// Share of first tries that may be tried elsewhere after they were not sent: every one of them, once.
const UNSENT_PERCENT: u32 = 100;

/// Paths whose only effect is the answer: generation and embedding in OpenAI's API.
const HARMLESS_PATHS: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/score",
];

/// A variant's budgets, by what is tried again.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    not_run: RetryBudget,
    replay: RetryBudget,
    not_sent: RetryBudget,
}

impl Budgets {
    /// A request is sent for the first time.
    fn first_try(&self, percent: u32) {
        self.not_run.first_try(percent);
        self.replay.first_try(percent);
        self.not_sent.first_try(UNSENT_PERCENT);
    }
}

/// What has been tried for one request.
#[derive(Debug)]
pub(super) struct Retry<'a> {
    variant: &'a Variant,
    tried: SmallVec<[Generation; MOST_TRIES]>,
    /// Requests that the last of them takes at once.
    slots: u32,
    replays: bool,
}

impl<'a> Retry<'a> {
    pub(super) fn new(variant: &'a Variant, path: &str) -> Self {
        variant.shared.budgets.first_try(variant.requests.retry_percent);
        let replays = match variant.requests.replay {
            Replay::BeforeFirstByte => true,
            Replay::NeverSent => false,
            Replay::ByPath => HARMLESS_PATHS.contains(&path),
        };
        Self { variant, tried: SmallVec::new(), slots: 0, replays }
    }

    /// Starts of instances that it must not go to again.
    pub(super) fn tried(&self) -> &[Generation] {
        &self.tried
    }

    pub(super) fn trying(&mut self, backend: &Backend) {
        self.tried.push(backend.route.generation);
        self.slots = backend.slots();
    }

    /// Whether another try may follow the one under way, so that the request is worth keeping.
    pub(super) fn may_follow(&self) -> bool {
        self.tried.len() < MOST_TRIES && self.tried.len() < self.variant.backends.len()
    }

    /// Whether it may be sent again though it may have run.
    pub(super) fn replays(&self) -> bool {
        self.replays
    }

    pub(super) fn after_not_sent(&self) -> bool {
        let budget = &self.variant.shared.budgets.not_sent;
        self.decide("not_sent", || budget.may_retry())
    }

    pub(super) fn after_not_run(&self) -> bool {
        let budget = &self.variant.shared.budgets.not_run;
        self.may_follow() && self.decide("not_run", || budget.may_retry())
    }

    pub(super) fn after_broken(&self) -> bool {
        let budget = &self.variant.shared.budgets.replay;
        let credit = if self.variant.requests.retry_percent == 0 { 0 } else { self.slots };
        self.replays && self.may_follow() && self.decide("replay", || budget.may_replay(credit))
    }

    fn decide(&self, reason: &'static str, pays: impl FnOnce() -> bool) -> bool {
        let decided = self.tried.len() < MOST_TRIES && pays();
        self.variant.shared.retries.note(reason, decided);
        decided
    }
}
