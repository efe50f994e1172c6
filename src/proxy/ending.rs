//! How the proxy ends: at once, where somebody ends it, or softly, where a successor has its sockets. Softly
//! means that nobody is cut off: each connection stays until its turn comes, spread over a while so that the
//! clients do not come back all at once; from then on it ends with the request that it serves next, or when
//! it has been idle for too long. A connection is never closed while its client may be sending a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::runtime::rng;

/// Tells every thread and connection. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    /// Nothing more is accepted.
    told: CancellationToken,
    /// Nor waited for.
    at_once: CancellationToken,
    /// The same as `told`, for those who ask often.
    has_begun: Arc<AtomicBool>,
    spread: Duration,
}

impl Ending {
    pub(super) fn new(spread: Duration) -> Self {
        let (told, at_once) = (CancellationToken::new(), CancellationToken::new());
        Self { told, at_once, has_begun: Arc::default(), spread }
    }

    /// Whoever waits for a request is closed.
    pub(super) fn end(&self) {
        self.at_once.cancel();
        self.hand_over();
    }

    /// A successor accepts from now on.
    pub(super) fn hand_over(&self) {
        self.has_begun.store(true, Ordering::Release);
        self.told.cancel();
    }

    /// Whether it ends, in either way.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    /// Resolves when nothing more is to be accepted.
    pub(super) async fn told(&self) {
        self.told.cancelled().await;
    }

    /// Resolves when a connection must take no other request.
    pub(super) async fn at_once(&self) {
        // One look for all of a connection's life: `told` comes first either way.
        self.told.cancelled().await;
        self.at_once.cancelled().await;
    }

    /// Resolves when a connection's turn to leave has come.
    pub(super) async fn turn(&self) {
        self.told.cancelled().await;
        let share = (rng::draw() >> 11) as f64 / (1_u64 << 53) as f64;
        tokio::select! {
            biased;
            () = self.at_once.cancelled() => {}
            () = tokio::time::sleep(self.spread.mul_f64(share)) => {}
        }
    }
}
