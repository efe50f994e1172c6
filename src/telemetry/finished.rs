//! What was noted of a request and of its tries, plain data; and which share of all requests is kept.

use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};

use super::trace::{SpanId, Traced};
use crate::types::{Address, InstanceId, InstanceTypeName, KeyName, ModelName, VariantKey};

/// What clients that left before an answer are noted with (nginx's convention).
const CLIENT_LEFT: u16 = 499;

/// One try of a request at one instance.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Where.
    pub instance: InstanceId,
    /// What that is.
    pub instance_type: InstanceTypeName,
    /// What it serves.
    pub model: ModelName,
    /// Where it listens; only known in a trace.
    pub address: Option<Address>,
    /// Its span, in a trace.
    pub span_id: SpanId,
    /// When the request was given to it.
    pub sent_at: Instant,
    /// When the first byte of the answer's body came.
    pub first_chunk_at: Option<Instant>,
    /// When the last byte came, or it failed, or the client left.
    pub ended_at: Option<Instant>,
    /// What the worker answered.
    pub status: Option<u16>,
    /// Why it failed.
    pub error: Option<&'static str>,
}

/// What was noted of a request.
#[derive(Debug, Clone)]
pub struct FinishedRequest {
    /// When its head was here.
    pub arrived_at: Instant,
    /// When its last byte had been passed on, or it failed, or the client left.
    pub ended_at: Instant,
    /// As the client said it.
    pub method: Method,
    /// As the client said it; nothing that is written down has the query.
    pub target: Option<PathAndQuery>,
    /// The client's `x-request-id`.
    pub request_id: Option<HeaderValue>,
    /// The name of the key that it came with.
    pub key: Option<KeyName>,
    /// What it was for, once known.
    pub variant: Option<VariantKey>,
    /// The variant's model.
    pub model: Option<ModelName>,
    /// The last try.
    pub attempt: Option<Attempt>,
    /// How many tries there were.
    pub tries: u32,
    /// What the client was answered; `None`: it left before.
    pub status: Option<u16>,
    /// A stable word for what went wrong.
    pub error: Option<&'static str>,
    /// The answer broke off after it had begun.
    pub broken: bool,
    /// The client left before the end.
    pub client_left: bool,
    /// Bytes of its body that came.
    pub bytes_in: u64,
    /// Bytes of the answer's body that were passed on.
    pub bytes_out: u64,
    /// How long it waited for slots, all tries together.
    pub queued: Duration,
    /// Its place in a trace, if it is recorded.
    pub traced: Option<Box<Traced>>,
}

impl FinishedRequest {
    /// The status that it is known by, 499 where the client left first.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.status.unwrap_or(CLIENT_LEFT)
    }

    /// Whether it is our side's failure.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.code() >= 500 || self.broken
    }

    /// The path alone: queries may hold secrets.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.as_ref().map_or("/", PathAndQuery::path)
    }
}

/// A share of all requests, as a threshold for a uniform draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    all: bool,
    below: u64,
}

impl Share {
    /// `share` is 0 to 1.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the product is 0 to 2^64, and the cast saturates"
    )]
    pub(super) fn new(share: f64) -> Self {
        Self { all: share >= 1.0, below: (share * 2.0_f64.powi(64)) as u64 }
    }

    /// Whether a uniform `draw` is within the share.
    pub(super) fn takes(self, draw: u64) -> bool {
        self.all || draw < self.below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_at_their_ends() {
        for draw in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(Share::new(1.0).takes(draw));
            assert!(!Share::new(0.0).takes(draw));
        }
        assert!(Share::new(0.5).takes(u64::MAX / 2));
        assert!(!Share::new(0.5).takes(u64::MAX / 2 + 1));
    }
}
