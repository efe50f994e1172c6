//! How long a request takes: the wait for its first token and for each further one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::desk::Desk;

/// The clock of one answer. Each token has a due time that follows from the one before, so that late
/// timers do not add up; how crowded the worker is counts anew for each token, as it does in an engine
/// that batches continuously.
#[derive(Debug)]
pub(super) struct Pace {
    first_token: Duration,
    interval: Duration,
    slowdown: f64,
    desk: Arc<Desk>,
    due: Option<Instant>,
}

impl Pace {
    pub(super) fn new(
        desk: Arc<Desk>,
        first_token: Duration,
        interval: Duration,
        slowdown: f64,
    ) -> Self {
        Self { first_token, interval, slowdown, desk, due: None }
    }

    /// Resolves when the first token is there, counted from now.
    pub(super) async fn first(&mut self) {
        self.wait_for(self.first_token, 1).await;
    }

    /// Resolves when the next token is there, counted from the one before.
    pub(super) async fn next(&mut self) {
        self.wait_for(self.interval, 1).await;
    }

    /// Resolves when `tokens` further ones are there.
    pub(super) async fn rest(&mut self, tokens: u32) {
        if self.slowdown == 0.0 {
            self.wait_for(self.interval, tokens).await;
        } else {
            for _ in 0..tokens {
                self.next().await;
            }
        }
    }

    async fn wait_for(&mut self, span: Duration, times: u32) {
        if span.is_zero() || times == 0 {
            return;
        }
        let factor = 1.0 + self.slowdown * self.desk.crowding();
        let wait = span.saturating_mul(times).mul_f64(factor);
        let due = self.due.unwrap_or_else(Instant::now) + wait;
        self.due = Some(due);
        sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn desk() -> Arc<Desk> {
        Arc::new(Desk::new(NonZeroUsize::new(2), 0))
    }

    #[tokio::test(start_paused = true)]
    async fn a_plain_answer_takes_as_long_as_a_streamed_one() {
        let began = Instant::now();
        let mut plain = Pace::new(desk(), 50 * MS, 10 * MS, 0.0);
        plain.first().await;
        plain.rest(4).await;
        assert_eq!(began.elapsed(), 90 * MS);

        let began = Instant::now();
        let mut streamed = Pace::new(desk(), 50 * MS, 10 * MS, 0.0);
        streamed.first().await;
        for _ in 0..4 {
            streamed.next().await;
        }
        assert_eq!(began.elapsed(), 90 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_slows_down_what_comes_after_it_arrived() {
        let desk = desk();
        let mut alone = desk.start();
        alone.line_up().expect("a slot");
        let began = Instant::now();
        let mut pace = Pace::new(Arc::clone(&desk), 10 * MS, 10 * MS, 1.0);
        pace.first().await;
        assert_eq!(began.elapsed(), 10 * MS);
        let mut other = desk.start();
        other.line_up().expect("a slot");
        pace.rest(2).await;
        assert_eq!(began.elapsed(), 50 * MS);
    }
}
