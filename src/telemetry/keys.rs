//! What is asked with each key, and what is asked without one that is known.

use metrics::{Counter, Unit, counter};

use super::traffic::NO_INSTANCE_TYPE;
use crate::types::KeyName;

/// Requests with a known key, by what became of it.
pub const KEY_REQUESTS: &str = "forebay_api_key_requests_total";
/// Requests that were refused for want of a known key.
pub const UNAUTHENTICATED: &str = "forebay_unauthenticated_requests_total";

/// One key's requests.
#[derive(Debug)]
pub struct KeyTraffic {
    allowed: Counter,
    rate_limited: Counter,
    not_allowed: Counter,
}

impl KeyTraffic {
    /// Looks the handles up.
    #[must_use]
    pub fn new(key: &KeyName) -> Self {
        metrics::describe_counter!(
            KEY_REQUESTS,
            Unit::Count,
            "Requests with a known API key, by outcome: allowed, rate_limited or not_allowed there."
        );
        let outcome = |outcome: &'static str| counter!(KEY_REQUESTS, "InstanceType" => NO_INSTANCE_TYPE, "key" => key.to_string(), "outcome" => outcome);
        Self {
            allowed: outcome("allowed"),
            rate_limited: outcome("rate_limited"),
            not_allowed: outcome("not_allowed"),
        }
    }

    /// It may ask.
    pub fn allowed(&self) {
        self.allowed.increment(1);
    }

    /// It has asked too often.
    pub fn rate_limited(&self) {
        self.rate_limited.increment(1);
    }

    /// It may ask, but not for that endpoint.
    pub fn not_allowed(&self) {
        self.not_allowed.increment(1);
    }
}

/// The count of requests without a known key.
pub fn unauthenticated() -> Counter {
    metrics::describe_counter!(
        UNAUTHENTICATED,
        Unit::Count,
        "Requests that were refused for want of a known API key."
    );
    counter!(UNAUTHENTICATED, "InstanceType" => NO_INSTANCE_TYPE)
}
