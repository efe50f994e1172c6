//! The loop in the middle of the manager: events into the controller, its actions out, in order. A
//! record is durable before anything after it is begun; everything else runs beside the loop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::calls::Calls;
use super::crash::{CrashPoint, CrashPoints};
use super::durable::Durable;
use super::handle::{Command, HandleError, Phase, Reports};
use super::lease::Lease;
use super::probe::Prober;
use super::scrape::Scraper;
use super::{Clock, ManagerError};
use crate::decision::check::check_table;
use crate::decision::controller::{Action, Controller, Event};
use crate::store::StoreError;
use crate::types::record::Change;
use crate::types::spec::FleetSpec;
use crate::types::table::RoutingTable;

/// Events taken in before their consequences are carried out.
const EVENTS_AT_ONCE: usize = 256;
/// The wall clock may jump, so a timer looks at it again at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// A timer that is already due again waits this long, so that no mistake can spin the loop.
const SHORTEST_SLEEP: Duration = Duration::from_millis(2);

/// The loop and what it needs.
pub(super) struct Driver {
    pub(super) controller: Controller,
    pub(super) clock: Clock,
    pub(super) store: Durable,
    pub(super) lease: Lease,
    pub(super) calls: Calls,
    pub(super) prober: Prober,
    pub(super) scraper: Scraper,
    pub(super) crash: Arc<CrashPoints>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) reports: Arc<Reports>,
    pub(super) tables: watch::Sender<Arc<RoutingTable>>,
    pub(super) spec: watch::Sender<Arc<FleetSpec>>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) answers: Vec<Box<dyn FnOnce() + Send + Sync>>,
}

impl Driver {
    /// Drives until something goes wrong that ends the manager. Dropped to make it stop: nothing is
    /// lost then, as with a crash.
    pub(super) async fn drive(&mut self) -> ManagerError {
        self.controller.handle_timeout(self.clock.now());
        loop {
            if let Err(error) = self.execute().await {
                return error;
            }
            // What the commands led to is durable now.
            self.answers.drain(..).for_each(|answer| answer());
            self.wait().await;
        }
    }

    async fn wait(&mut self) {
        let pause = self.pause();
        tokio::select! {
            Some(event) = self.events.recv() => self.take_in(event),
            Some(command) = self.commands.recv() => self.obey(command),
            reports = self.reports.take() => {
                let now = self.clock.now();
                for report in reports {
                    self.controller.handle_event(now, Event::Reported(report));
                }
            }
            () = sleep(pause) => {
                let now = self.clock.now();
                if self.controller.poll_timeout().is_some_and(|due| due <= now) {
                    self.controller.handle_timeout(now);
                }
            }
        }
    }

    fn pause(&self) -> Duration {
        let due = self.controller.poll_timeout();
        due.map_or(LONGEST_SLEEP, |due| {
            self.clock.now().until(due).clamp(SHORTEST_SLEEP, LONGEST_SLEEP)
        })
    }

    fn take_in(&mut self, first: Event) {
        let now = self.clock.now();
        let mut next = Some(first);
        for _ in 0..EVENTS_AT_ONCE {
            let Some(event) = next else { return };
            if let Event::Listed { provider, result: Ok(_) } = &event {
                self.phase.send_if_modified(|phase| match phase {
                    Phase::Acting { unlisted, .. } => unlisted.remove(provider),
                    _ => false,
                });
            }
            self.controller.handle_event(now, event);
            next = self.events.try_recv().ok();
        }
        if let Some(event) = next {
            self.controller.handle_event(now, event);
        }
    }

    fn obey(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Status(reply) => drop(reply.send(Ok(self.controller.status(now)))),
            Command::Explain(endpoint, reply) => {
                let answer = self.controller.explain(now, &endpoint).map_err(HandleError::from);
                drop(reply.send(answer));
            }
            Command::Scale { endpoint, variant, count, reply } => {
                let done = self.controller.set_desired(now, &endpoint, variant.as_deref(), count);
                self.answer_later(reply, done.map_err(HandleError::from));
            }
            Command::Drain(instance, reply) => {
                let done = self.controller.drain(now, &instance);
                self.answer_later(reply, done.map_err(HandleError::from));
            }
            Command::Reconfigure(spec, reply) => {
                let done = self.reconfigure(spec);
                self.answer_later(reply, done);
            }
        }
    }

    fn reconfigure(&mut self, spec: Arc<FleetSpec>) -> Result<(), HandleError> {
        let mut wanted = spec.instance_types.values().map(|kind| &kind.provider);
        if let Some(missing) = wanted.find(|provider| !self.calls.has(provider)) {
            return Err(HandleError::UnknownProvider(missing.clone()));
        }
        self.controller.handle_event(self.clock.now(), Event::Reconfigured(spec.clone()));
        self.spec.send_replace(spec);
        Ok(())
    }

    fn answer_later<T: Send + Sync + 'static>(
        &mut self,
        reply: tokio::sync::oneshot::Sender<T>,
        answer: T,
    ) {
        self.answers.push(Box::new(move || drop(reply.send(answer))));
    }

    async fn execute(&mut self) -> Result<(), ManagerError> {
        while let Some(action) = self.controller.poll_action() {
            match action {
                Action::Persist(changes) => self.persist(changes).await?,
                Action::Publish(table) => self.publish(table),
                Action::List(provider) => self.calls.list(provider),
                Action::Launch { provider, batch } => {
                    self.may_act().await?;
                    self.calls.launch(provider, batch);
                }
                Action::Terminate { provider, instance } => {
                    self.may_act().await?;
                    self.calls.terminate(provider, instance);
                }
                Action::Probe(probes) => self.prober.probe(&probes),
            }
        }
        Ok(())
    }

    /// Waits while the lease has run out without another manager having taken over.
    async fn may_act(&mut self) -> Result<(), ManagerError> {
        let lease = self.lease.clone();
        self.meanwhile("the lease could not be renewed", async move { lease.valid().await }).await
    }

    /// Answers questions while the loop has to wait for `work`, and refuses what would have to be
    /// recorded.
    async fn meanwhile<T>(&mut self, reason: &str, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(command) = self.commands.recv() => match command {
                    Command::Status(_) | Command::Explain(..) => self.obey(command),
                    other => other.refuse(HandleError::Standby { reason: reason.to_owned() }),
                },
            }
        }
    }

    /// Refuses whatever is asked until `told`.
    pub(super) async fn refuse_until<T>(&mut self, told: impl Future<Output = T>) -> T {
        tokio::pin!(told);
        loop {
            tokio::select! {
                biased;
                told = &mut told => return told,
                Some(command) = self.commands.recv() => command.refuse(HandleError::Ended),
            }
        }
    }

    /// Records `changes`, for as long as it takes: a disk that is full for a while pauses the manager.
    async fn persist(&mut self, changes: Vec<Change>) -> Result<(), ManagerError> {
        self.crash.before(&changes);
        let changes = Arc::new(changes);
        let mut pause = Duration::from_millis(50);
        loop {
            match self.store.commit(self.lease.epoch(), changes.clone()).await {
                Ok(()) => break,
                Err(StoreError::Io(reason)) => {
                    tracing::error!(reason, "cannot record a decision, trying again");
                    self.meanwhile(&reason, sleep(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(StoreError::Fenced { epoch }) => {
                    let reason = "another manager has taken over and writes to the store".into();
                    return Err(ManagerError::LeaseLost { epoch, reason });
                }
                Err(error) => return Err(ManagerError::Store(error)),
            }
        }
        self.crash.after(&changes);
        Ok(())
    }

    /// Hands `table` to the proxies, once the checker, which shares nothing with its maker, agrees.
    fn publish(&mut self, table: Arc<RoutingTable>) {
        self.crash.pass(CrashPoint::BeforePublish);
        let previous = self.tables.borrow().clone();
        let wrong = check_table(Some(&previous), &table);
        if !wrong.is_empty() {
            // The proxies keep the last good one: a wrong table would be worse than an old one.
            let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
            tracing::error!(version = %table.version, ?wrong, "a routing table breaks a rule and is not published");
            debug_assert!(false, "{wrong:?}");
            return;
        }
        self.tables.send_replace(table);
        self.crash.pass(CrashPoint::AfterPublish);
    }
}
