//! What an instance tells of its own load: through its engine's metrics, a GPU exporter beside it, or the
//! answers that it gives. It advises people and scaling policies; nothing is routed or stopped by it.

use serde::{Deserialize, Serialize};

/// No amount is larger: sums stay finite.
pub const LARGEST: f64 = 1e18;

/// What one instance last told. `None`: not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Requests that its engine works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<f64>,
    /// Requests that wait in its engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<f64>,
    /// The share of its KV cache in use, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<f64>,
    /// How busy its GPUs are, 0 to 1, averaged over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<f64>,
    /// The share of its GPUs' memory in use, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<f64>,
}

impl Signals {
    /// Whether nothing is told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Each value, or where there is none the one of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            running: self.running.or(other.running),
            waiting: self.waiting.or(other.waiting),
            kv_cache: self.kv_cache.or(other.kv_cache),
            gpu: self.gpu.or(other.gpu),
            gpu_memory: self.gpu_memory.or(other.gpu_memory),
        }
    }

    /// Without what cannot be: amounts that are no number, negative or beyond all measure. Shares end at 1.
    #[must_use]
    pub fn checked(self) -> Self {
        let amount = |value: Option<f64>| value.filter(|value| (0.0..=LARGEST).contains(value));
        let share = |value| amount(value).map(|value| value.min(1.0));
        Self {
            running: amount(self.running),
            waiting: amount(self.waiting),
            kv_cache: share(self.kv_cache),
            gpu: share(self.gpu),
            gpu_memory: share(self.gpu_memory),
        }
    }
}
