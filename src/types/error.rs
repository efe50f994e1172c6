//! What can go wrong at a provider, as a closed set: each kind has its own consequence in the deciders,
//! so a new provider maps its own errors onto these and never invents one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A provider's refusal or failure. `reason` is for people and ends up in `explain`; the kind decides.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProviderError {
    /// No capacity of that type now. Nothing was started. The fleet may fall through to the next pool.
    #[error("insufficient capacity: {reason}")]
    InsufficientCapacity {
        /// The provider's own words.
        reason: String,
    },
    /// Over the account's quota: treated like no capacity, named apart so that somebody raises it.
    #[error("quota exceeded: {reason}")]
    QuotaExceeded {
        /// The provider's own words.
        reason: String,
    },
    /// It does not exist (any more). For `terminate` this is success.
    #[error("not found")]
    NotFound,
    /// It will be refused the same way next time (a bad command, image, permission). Never falls through.
    #[error("rejected: {reason}")]
    Rejected {
        /// The provider's own words.
        reason: String,
    },
    /// No answer or a passing fault: **the call may have been carried out**. Ask again with the same
    /// token, after `retry_after` where the provider named a time.
    #[error("unavailable: {reason}")]
    Unavailable {
        /// What happened.
        reason: String,
        /// The provider's own wish, if it sent one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<Duration>,
    },
}

impl ProviderError {
    /// An [`ProviderError::Unavailable`] without a wish for when to come back.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after: None }
    }

    /// Whether the fleet may look for the capacity elsewhere.
    #[must_use]
    pub fn falls_through(&self) -> bool {
        matches!(self, Self::InsufficientCapacity { .. } | Self::QuotaExceeded { .. })
    }

    /// A stable word for metrics and JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InsufficientCapacity { .. } => "insufficient_capacity",
            Self::QuotaExceeded { .. } => "quota_exceeded",
            Self::NotFound => "not_found",
            Self::Rejected { .. } => "rejected",
            Self::Unavailable { .. } => "unavailable",
        }
    }
}
