//! Asks instances in service for their own view of their load, and hands what they tell to the controller as
//! [`Event::Signals`]: their engine's metrics, and a GPU exporter or `nvidia-smi` (`ask`).
//!
//! Engines tell their metrics with the threads that serve requests, and a wedged driver hangs whoever asks it.
//! So each instance is asked seldom, at moments of its own, by one question at a time, which is given up after
//! [`TIME`]; one that tells nothing is asked ever more seldom. All of it runs beside the driver: when that is
//! busy, what was told is dropped, and a scrape never waits for, or holds up, a probe or a round.

mod ask;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::decision::controller::Event;
use crate::runtime::rng;
use crate::runtime::tasks::Tasks;
use crate::telemetry::fleet::FleetMetrics;
use crate::tls::Connectors;
use crate::types::spec::FleetSpec;
use crate::types::table::RoutingTable;
use ask::{Answers, Asker};
use targets::{Key, Target};

/// Questions under way at once.
const QUESTIONS: usize = 64;
/// Answers that wait to be taken in.
const ANSWERS: usize = 64;
/// How long one question to an instance may take.
const TIME: Duration = Duration::from_secs(5);
/// One that tells nothing is asked at least this often, or at its interval if that is longer.
const SELDOM: Duration = Duration::from_secs(300);
/// How often the pause doubles at most; beyond that it is longer than [`SELDOM`] anyway.
const DOUBLINGS: u32 = 16;

/// What asks; stops when told to.
pub(super) struct Scraper {
    tasks: Tasks,
}

impl Scraper {
    /// Follows the tables and the fleet from now on.
    pub(super) fn start(
        tables: watch::Receiver<Arc<RoutingTable>>,
        spec: watch::Receiver<Arc<FleetSpec>>,
        events: mpsc::Sender<Event>,
        metrics: FleetMetrics,
        tls: Connectors,
    ) -> Self {
        let tasks = Tasks::new();
        let (answer, answers) = mpsc::channel(ANSWERS);
        let rounds = Rounds {
            tables,
            spec,
            events,
            metrics,
            turns: BTreeMap::new(),
            asker: Arc::new(Asker::new(tls)),
            slots: Arc::new(Semaphore::new(QUESTIONS)),
            answer,
            answers,
            tasks: tasks.clone(),
        };
        tasks.spawn_until_stopped("scraper", rounds.run());
        Self { tasks }
    }

    /// Drops every question that is under way.
    pub(super) async fn stop(&self) {
        self.tasks.stop(Duration::from_secs(1)).await;
    }
}

struct Rounds {
    tables: watch::Receiver<Arc<RoutingTable>>,
    spec: watch::Receiver<Arc<FleetSpec>>,
    events: mpsc::Sender<Event>,
    metrics: FleetMetrics,
    turns: BTreeMap<Key, Turn>,
    asker: Arc<Asker>,
    slots: Arc<Semaphore>,
    answer: mpsc::Sender<(Key, Answers)>,
    answers: mpsc::Receiver<(Key, Answers)>,
    tasks: Tasks,
}

/// When an instance is asked next.
struct Turn {
    target: Arc<Target>,
    next_at: Instant,
    is_asked: bool,
    /// Questions in a row that brought nothing.
    failures: u32,
    /// Whether the log has been told that something is missing.
    has_problem: bool,
}

impl Rounds {
    async fn run(mut self) {
        self.follow();
        loop {
            let waiting = self.turns.values().filter(|turn| !turn.is_asked);
            let due = waiting.map(|turn| turn.next_at).min();
            tokio::select! {
                changed = self.tables.changed() => match changed {
                    Ok(()) => self.follow(),
                    Err(_) => return,
                },
                changed = self.spec.changed() => match changed {
                    Ok(()) => self.follow(),
                    Err(_) => return,
                },
                Some((key, answers)) = self.answers.recv() => self.take_in(&key, answers),
                () = async { match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }} => self.ask_whoever_is_due(),
            }
        }
    }

    /// Takes over who is there now. New ones have their first turn somewhere within their interval.
    fn follow(&mut self) {
        let table = self.tables.borrow_and_update().clone();
        let spec = self.spec.borrow_and_update().clone();
        let mut targets = targets::of(&table, &spec);
        self.asker.keep_only(targets.values());
        self.turns.retain(|key, turn| match targets.remove(key) {
            Some(target) => {
                if *turn.target != target {
                    turn.next_at = turn.next_at.min(Instant::now() + target.interval);
                    turn.target = Arc::new(target);
                }
                true
            }
            None => false,
        });
        for (key, target) in targets {
            let next_at = Instant::now() + target.interval.mul_f64(draw());
            let target = Arc::new(target);
            let turn = Turn { target, next_at, is_asked: false, failures: 0, has_problem: false };
            self.turns.insert(key, turn);
        }
    }

    fn ask_whoever_is_due(&mut self) {
        let now = Instant::now();
        let due = self.turns.iter_mut().filter(|(_, turn)| !turn.is_asked && turn.next_at <= now);
        for (key, turn) in due {
            turn.is_asked = true;
            let (key, target) = (key.clone(), turn.target.clone());
            let (asker, slots, answer) =
                (self.asker.clone(), self.slots.clone(), self.answer.clone());
            self.tasks.spawn_until_stopped("scrape", async move {
                // The semaphore is never closed.
                let slot = slots.acquire().await;
                let answers = asker.ask(&target).await;
                drop(slot);
                // The receiver is only gone when everything ends.
                let _ = answer.send((key, answers)).await;
            });
        }
    }

    fn take_in(&mut self, key: &Key, answers: Answers) {
        // It may have left meanwhile.
        let Some(turn) = self.turns.get_mut(key) else { return };
        let target = &turn.target;
        for (source, is_ok) in answers.outcomes() {
            self.metrics.scraped(&target.variant, &target.instance_type, source, is_ok);
        }
        let (signals, problem) = answers.told();
        turn.is_asked = false;
        turn.failures = if signals.is_empty() { turn.failures.saturating_add(1) } else { 0 };
        turn.next_at =
            Instant::now() + pause(target.interval, turn.failures).mul_f64(0.9 + draw() / 5.0);
        let (instance, generation) = key.clone();
        match &problem {
            Some(problem) if !turn.has_problem => {
                tracing::warn!(%instance, problem, "an instance does not tell all of its load");
            }
            None if turn.has_problem => {
                tracing::info!(%instance, "an instance tells its load again");
            }
            _ => {}
        }
        turn.has_problem = problem.is_some();
        // A driver that is busy has better things to do.
        let _ = self.events.try_send(Event::Signals { instance, generation, signals, problem });
    }
}

/// The time to the next question after so many in a row that brought nothing.
fn pause(interval: Duration, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(DOUBLINGS);
    interval.saturating_mul(1 << doublings).min(SELDOM).max(interval)
}

/// 0 to 1.
fn draw() -> f64 {
    rng::draw() as f64 / u64::MAX as f64
}
