//! The worker's slots, its queue and its counters. A [`Ticket`] is one request's stay; its drop is the
//! only place that gives anything back, whatever ended the request.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Slots, queue and counters of one worker.
#[derive(Debug)]
pub(super) struct Desk {
    slots: Option<Slots>,
    max_queue: usize,
    running: AtomicUsize,
    waiting: AtomicUsize,
    started: AtomicU64,
    completed: AtomicU64,
    cancelled: AtomicU64,
    failed: AtomicU64,
    max_running: AtomicUsize,
    max_waiting: AtomicUsize,
}

#[derive(Debug)]
struct Slots {
    count: usize,
    free: Arc<Semaphore>,
}

/// The counters at one moment. `started` is the sum of the three ends and of what runs or waits, but
/// for requests whose body is still being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Requests in a slot.
    pub(super) running: usize,
    /// Requests in the queue.
    pub(super) waiting: usize,
    /// Requests that arrived.
    pub(super) started: u64,
    /// Requests answered in full.
    pub(super) completed: u64,
    /// Requests whose client went away before the end of the answer.
    pub(super) cancelled: u64,
    /// Requests that were refused, or failed as told.
    pub(super) failed: u64,
    /// The most requests that were ever in a slot at once.
    pub(super) max_running: usize,
    /// The most requests that were ever in the queue at once.
    pub(super) max_waiting: usize,
}

/// The queue holds as many as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull;

impl Desk {
    /// With `slots` places to work at (no limit if none) and `max_queue` places to wait.
    pub(super) fn new(slots: Option<NonZeroUsize>, max_queue: usize) -> Self {
        let slots = slots.map(|count| {
            let count = count.get().min(Semaphore::MAX_PERMITS);
            Slots { count, free: Arc::new(Semaphore::new(count)) }
        });
        Self {
            slots,
            max_queue,
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            max_running: AtomicUsize::new(0),
            max_waiting: AtomicUsize::new(0),
        }
    }

    /// Counts a request that has arrived.
    pub(super) fn start(self: &Arc<Self>) -> Ticket {
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        Ticket { desk: Arc::clone(self), number, place: Place::Outside, end: End::Cancelled }
    }

    /// Requests that have arrived so far.
    pub(super) fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// How full the slots are beyond the first: 0 for one request alone, 1 with every slot taken.
    pub(super) fn crowding(&self) -> f64 {
        let others = self.running.load(Ordering::Relaxed).saturating_sub(1);
        match &self.slots {
            Some(slots) if slots.count > 1 => others as f64 / (slots.count - 1) as f64,
            _ => 0.0,
        }
    }

    /// The share of a pretended KV cache in use, in which every slot has an equal part.
    pub(super) fn cache_use(&self) -> Option<f64> {
        let slots = self.slots.as_ref()?.count;
        Some(self.running.load(Ordering::Relaxed) as f64 / slots as f64)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            running: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            started: self.started.load(Ordering::Relaxed),
            completed: self.completed.load(Ordering::Relaxed),
            cancelled: self.cancelled.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            max_running: self.max_running.load(Ordering::Relaxed),
            max_waiting: self.max_waiting.load(Ordering::Relaxed),
        }
    }

    /// The counters as Prometheus text, under vLLM's names where it has one.
    pub(super) fn prometheus(&self, model: &str) -> String {
        let counts = self.counts();
        let model = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let mut text = String::with_capacity(1024);
        let mut row = |name: &str, kind: &str, help: &str, value: f64| {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{model_name=\"{model}\"}} {value}\n"
            );
        };
        row("vllm:num_requests_running", "gauge", "Requests in a slot.", counts.running as f64);
        row("vllm:num_requests_waiting", "gauge", "Requests in the queue.", counts.waiting as f64);
        if let Some(use_of_cache) = self.cache_use() {
            let help = "KV-cache usage: each slot has its share. 1 means 100 percent usage.";
            row("vllm:kv_cache_usage_perc", "gauge", help, use_of_cache);
        }
        let counters = [
            ("started", "Requests that arrived.", counts.started),
            ("completed", "Requests answered in full.", counts.completed),
            ("cancelled", "Requests whose client went away.", counts.cancelled),
            ("failed", "Requests that were refused or failed as told.", counts.failed),
        ];
        for (what, help, value) in counters {
            row(&format!("forebay_worker_requests_{what}_total"), "counter", help, value as f64);
        }
        text
    }
}

/// Where a request is.
#[derive(Debug)]
enum Place {
    /// Not at the desk yet, or no longer.
    Outside,
    Waiting,
    /// In a slot; with no limit on them there is no permit to hold.
    Running(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>),
}

#[derive(Debug, Clone, Copy)]
enum End {
    Completed,
    Cancelled,
    Failed,
}

/// One request's stay, from its arrival until this is dropped. Counts as cancelled unless told otherwise.
#[derive(Debug)]
pub(super) struct Ticket {
    desk: Arc<Desk>,
    number: u64,
    place: Place,
    end: End,
}

impl Ticket {
    /// Which request this is, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Takes a free slot, or else a place in the queue; [`Ticket::enter`] then waits in it.
    pub(super) fn line_up(&mut self) -> Result<(), QueueFull> {
        let Some(slots) = &self.desk.slots else {
            self.move_to(Place::Running(None));
            return Ok(());
        };
        if let Ok(permit) = Arc::clone(&slots.free).try_acquire_owned() {
            self.move_to(Place::Running(Some(permit)));
        } else if self.desk.waiting.load(Ordering::Relaxed) < self.desk.max_queue {
            self.move_to(Place::Waiting);
        } else {
            return Err(QueueFull);
        }
        Ok(())
    }

    /// Resolves in a slot. Does nothing for one that has it already.
    pub(super) async fn enter(&mut self) {
        if let (Place::Waiting, Some(slots)) = (&self.place, &self.desk.slots) {
            // The semaphore is never closed, so this is always a permit; its queue is first come first served.
            let permit = Arc::clone(&slots.free).acquire_owned().await.ok();
            self.move_to(Place::Running(permit));
        }
    }

    /// The answer is complete.
    pub(super) fn complete(mut self) {
        self.end = End::Completed;
    }

    /// The request was refused, or fails as told.
    pub(super) fn fail(mut self) {
        self.end = End::Failed;
    }

    fn move_to(&mut self, place: Place) {
        // The gauges change before the old place, and its permit, is let go: whoever gets the slot
        // next never sees more running than there are slots.
        match self.place {
            Place::Outside => {}
            Place::Waiting => _ = self.desk.waiting.fetch_sub(1, Ordering::Relaxed),
            Place::Running(_) => _ = self.desk.running.fetch_sub(1, Ordering::Relaxed),
        }
        match place {
            Place::Outside => {}
            Place::Waiting => {
                let now = self.desk.waiting.fetch_add(1, Ordering::Relaxed) + 1;
                self.desk.max_waiting.fetch_max(now, Ordering::Relaxed);
            }
            Place::Running(_) => {
                let now = self.desk.running.fetch_add(1, Ordering::Relaxed) + 1;
                self.desk.max_running.fetch_max(now, Ordering::Relaxed);
            }
        }
        self.place = place;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let ended = match self.end {
            End::Completed => &self.desk.completed,
            End::Cancelled => &self.desk.cancelled,
            End::Failed => &self.desk.failed,
        };
        ended.fetch_add(1, Ordering::Relaxed);
        self.move_to(Place::Outside);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn desk(slots: usize, max_queue: usize) -> Arc<Desk> {
        Arc::new(Desk::new(NonZeroUsize::new(slots), max_queue))
    }

    #[test]
    fn the_queue_is_first_come_first_served_and_bounded() {
        let desk = desk(1, 2);
        let mut tickets: Vec<Ticket> = (0..4).map(|_| desk.start()).collect();
        let lined_up: Vec<bool> = tickets.iter_mut().map(|t| t.line_up().is_ok()).collect();
        assert_eq!(lined_up, [true, true, true, false]);
        tickets.pop().expect("the fourth").fail();

        let mut third = tickets.pop().expect("the third");
        let mut second = tickets.pop().expect("the second");
        let first = tickets.pop().expect("the first");
        {
            let mut second_enters = Box::pin(second.enter());
            let mut third_enters = Box::pin(third.enter());
            assert!(second_enters.as_mut().now_or_never().is_none());
            assert!(third_enters.as_mut().now_or_never().is_none());
            first.complete();
            assert!(third_enters.as_mut().now_or_never().is_none());
            assert!(second_enters.as_mut().now_or_never().is_some());
        }
        assert_eq!((desk.counts().running, desk.counts().waiting), (1, 1));
        drop(second);
        drop(third);
        let counts = desk.counts();
        assert_eq!((counts.running, counts.waiting), (0, 0));
        assert_eq!((counts.started, counts.completed), (4, 1));
        assert_eq!((counts.cancelled, counts.failed), (2, 1));
    }

    #[test]
    fn a_place_in_the_queue_is_given_back_with_the_request() {
        let desk = desk(1, 1);
        let mut first = desk.start();
        first.line_up().expect("a slot");
        for _ in 0..3 {
            let mut next = desk.start();
            next.line_up().expect("the place that the one before gave back");
            assert!(next.enter().now_or_never().is_none());
        }
        assert_eq!(desk.counts().cancelled, 3);
        assert_eq!(desk.counts().waiting, 0);
    }

    #[test]
    fn crowding_runs_from_nothing_to_one() {
        let desk = desk(3, 0);
        let mut held = Vec::new();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let mut ticket = desk.start();
            ticket.line_up().expect("a slot");
            held.push(ticket);
            seen.push(desk.crowding());
        }
        assert_eq!(seen, [0.0, 0.5, 1.0]);
    }

    #[test]
    fn metrics_carry_vllms_names_and_an_escaped_model() {
        let desk = desk(1, 1);
        let mut ticket = desk.start();
        ticket.line_up().expect("a slot");
        let text = desk.prometheus("a\"b");
        assert!(text.contains("vllm:num_requests_running{model_name=\"a\\\"b\"} 1\n"), "{text}");
        assert!(text.contains("vllm:num_requests_waiting{model_name=\"a\\\"b\"} 0\n"), "{text}");
        assert!(text.contains("vllm:kv_cache_usage_perc{model_name=\"a\\\"b\"} 1\n"), "{text}");
        assert!(text.contains("forebay_worker_requests_started_total{"), "{text}");
    }
}
