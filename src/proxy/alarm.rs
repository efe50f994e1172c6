//! When a task looks at the time again. A timer for each request costs as much as finding its worker does, and next to
//! none of them ever rings: so a task has one, which it sets anew only when that has rung too soon, or would ring too
//! late. Whoever waits asks for its own time each time it is polled.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::time::Sleep;

/// The one timer of a task, which all that the task waits for share.
#[derive(Debug, Default)]
pub(super) struct Alarm(RefCell<Option<Set>>);

#[derive(Debug)]
struct Set {
    timer: Pin<Box<Sleep>>,
    /// Whom it wakes: the task is moved to no other, but what is polled in it may be polled in another first.
    wakes: Waker,
}

impl Alarm {
    /// Ready once it is `due`. Until then the task is woken at that time, and maybe before.
    pub(super) fn poll(&self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let due = tokio::time::Instant::from(due);
        let mut set = self.0.borrow_mut();
        if let Some(Set { timer, wakes }) = &*set
            && !timer.is_elapsed()
            && timer.deadline() <= due
            && wakes.will_wake(cx.waker())
        {
            return Poll::Pending;
        }
        let Set { timer, wakes } = set.get_or_insert_with(|| Set {
            timer: Box::pin(tokio::time::sleep_until(due)),
            wakes: cx.waker().clone(),
        });
        wakes.clone_from(cx.waker());
        if !timer.is_elapsed() && timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if tokio::time::Instant::now() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Whether it has rung and was not set again. Until it rings nothing that was waited for is due.
    pub(super) fn has_rung(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|set| set.timer.is_elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;
    use crate::runtime::clock;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_is_told_at_its_time() {
        let (alarm, now) = (Alarm::default(), tokio::time::Instant::now().into_std());
        for seconds in [5, 1, 3, 3, 8] {
            let due = now + seconds * SECOND;
            poll_fn(|cx| alarm.poll(cx, due)).await;
            assert!(tokio::time::Instant::now().into_std() >= due, "{seconds}");
            assert!(alarm.has_rung());
        }
        let spent = tokio::time::Instant::now().into_std() - now;
        assert!((8 * SECOND..9 * SECOND).contains(&spent), "{spent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_the_first_wakes() {
        let (alarm, now) = (Alarm::default(), tokio::time::Instant::now().into_std());
        let both = poll_fn(|cx| {
            let late = alarm.poll(cx, now + 9 * SECOND);
            let soon = alarm.poll(cx, now + 2 * SECOND);
            assert!(late.is_pending());
            soon
        });
        both.await;
        let spent = tokio::time::Instant::now().into_std() - now;
        assert!((2 * SECOND..3 * SECOND).contains(&spent), "{spent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_due_soon_enough_is_left_alone() {
        let (alarm, now) = (Alarm::default(), tokio::time::Instant::now().into_std());
        let deadline = |alarm: &Alarm| alarm.0.borrow().as_ref().map(|set| set.timer.deadline());
        poll_fn(|cx| {
            assert!(alarm.poll(cx, now + 2 * SECOND).is_pending());
            let set = deadline(&alarm);
            assert!(alarm.poll(cx, now + 9 * SECOND).is_pending());
            assert_eq!(deadline(&alarm), set);
            Poll::Ready(())
        })
        .await;
        // It is for another then.
        let other = alarm.poll(&mut Context::from_waker(Waker::noop()), now + 9 * SECOND);
        assert!(other.is_pending());
        assert!(!alarm.has_rung() && clock::monotonic() >= now);
    }
}
