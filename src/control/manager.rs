//! A manager's life: wait for the lease, load, drive, and end as the operator wants.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::calls::Calls;
use super::crash::CrashPoint;
use super::driver::Driver;
use super::durable::Durable;
use super::handle::{Command, Ends, HandleError, Phase};
use super::lease::{Lease, Terms};
use super::probe::Prober;
use super::scrape::Scraper;
use super::{ManagerError, ManagerHandle, ManagerOptions, OnExit};
use crate::decision::controller::Controller;
use crate::runtime::tasks::Tasks;
use crate::store::Store;
use crate::telemetry::fleet::FleetMetrics;
use crate::types::record::StoredState;

/// Events from tasks that wait to be taken in; a task with one more waits.
const EVENTS: usize = 1024;
/// How long the renewal may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// The manager before it runs.
pub struct Manager {
    options: ManagerOptions,
    store: Durable,
    ends: Ends,
}

impl Manager {
    /// A manager and the handle to it.
    #[must_use]
    pub fn new(options: ManagerOptions, store: Box<dyn Store>) -> (Self, ManagerHandle) {
        let (handle, ends) = ManagerHandle::new(options.spec.clone());
        (Self { options, store: Durable::new(store), ends }, handle)
    }

    /// Lives until [`ManagerHandle::stop`].
    ///
    /// # Errors
    /// [`ManagerError::LeaseLost`] when another manager has taken over, [`ManagerError::Store`] when the
    /// records cannot be read. Everything that was under way has been dropped then, as in a crash; the
    /// process should end with a failure. [`ManagerError::Panicked`] once it has been told how to end
    /// ([`ManagerHandle::over`] tells that it is time to), and has done so.
    pub async fn run(self) -> Result<(), ManagerError> {
        let Self { options, store, mut ends } = self;
        let phase = ends.phase.clone();
        let result = match wait_for_lease(&options, &store, &mut ends).await {
            Ok(Some(held)) => hold_lease(options, &store, ends, held).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        phase.send_replace(Phase::Ended);
        result
    }
}

/// The lease, or nothing when the operator ends the wait.
async fn wait_for_lease(
    options: &ManagerOptions,
    store: &Durable,
    ends: &mut Ends,
) -> Result<Option<(u64, Instant)>, ManagerError> {
    let terms = terms(options);
    let phase = ends.phase.clone();
    let waiting = |reason: &str| {
        phase.send_replace(Phase::Waiting(reason.to_owned()));
    };
    tokio::select! {
        held = terms.acquire(store, waiting) => held.map(Some),
        _on_exit = stop_requested(ends.stop.clone()) => Ok(None),
        never = refuse(&mut ends.commands, &ends.phase) => match never {},
    }
}

fn terms(options: &ManagerOptions) -> Terms {
    let owner = options.owner.clone();
    Terms { owner, ttl: options.limits.lease, clock: options.clock.clone() }
}

/// How the operator wants the end. A manager that nobody has a handle on any more ends, too.
async fn stop_requested(mut stop: watch::Receiver<Option<OnExit>>) -> OnExit {
    stop.wait_for(Option::is_some).await.ok().and_then(|on_exit| *on_exit).unwrap_or(OnExit::Keep)
}

/// Answers whoever asks while this manager does not act.
async fn refuse(
    commands: &mut mpsc::Receiver<Command>,
    phase: &watch::Sender<Phase>,
) -> Infallible {
    while let Some(command) = commands.recv().await {
        let reason = match &*phase.borrow() {
            Phase::Waiting(reason) => reason.clone(),
            Phase::Acting { .. } | Phase::Failed | Phase::Ended => "it is about to begin".into(),
        };
        command.refuse(HandleError::Standby { reason });
    }
    std::future::pending().await
}

/// Everything that happens between taking the lease and giving it back.
async fn hold_lease(
    options: ManagerOptions,
    store: &Durable,
    ends: Ends,
    held: (u64, Instant),
) -> Result<(), ManagerError> {
    let renewal = Tasks::new();
    let lease = terms(&options).keep(store.clone(), held, &renewal);
    tracing::info!(epoch = lease.epoch(), "this manager holds the lease and acts");
    options.crash.pass(CrashPoint::AfterLease);
    let result = act(options, store, ends, &lease).await;
    renewal.stop(ENDING).await;
    match &result {
        Err(error @ ManagerError::LeaseLost { .. }) => tracing::error!(%error, "stopped acting"),
        _ => {
            if let Err(error) = store.release_lease(lease.epoch()).await {
                tracing::warn!(%error, "could not give the lease back; it will run out");
            }
        }
    }
    result
}

async fn act(
    options: ManagerOptions,
    store: &Durable,
    ends: Ends,
    lease: &Lease,
) -> Result<(), ManagerError> {
    let stored = store.load().await.map_err(ManagerError::Store)?;
    options.crash.pass(CrashPoint::AfterLoad);
    for managed in options.providers.values() {
        managed.provider.adopt(&stored.instances);
    }
    let limits = options.limits.clone();
    let requested = ends.stop.clone();
    let mut driver = driver(options, store, ends, lease, stored);
    // What is left behind by a panic is only ended.
    let drive = AssertUnwindSafe(driver.drive()).catch_unwind();
    let end = tokio::select! {
        on_exit = stop_requested(requested.clone()) => Ok(on_exit),
        error = lease.lost() => Err(error),
        error = drive => Err(error.unwrap_or_else(|panic| ManagerError::Panicked(said(&*panic)))),
    };
    driver.calls.stop().await;
    driver.prober.stop().await;
    driver.scraper.stop().await;
    let (on_exit, result) = match end {
        Ok(on_exit) => (on_exit, Ok(())),
        Err(error @ ManagerError::Panicked(_)) => {
            tracing::error!(%error, "stopped acting");
            driver.phase.send_replace(Phase::Failed);
            (driver.refuse_until(stop_requested(requested)).await, Err(error))
        }
        Err(error) => return Err(error),
    };
    match on_exit {
        OnExit::Keep => result,
        OnExit::Stop => tokio::select! {
            () = driver.end_everything(&limits) => result,
            error = lease.lost() => result.and(Err(error)),
        },
    }
}

/// What a panic says.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    // An error is one line.
    text.map_or_else(|| "without a word".to_owned(), |text| text.replace('\n', " "))
}

fn driver(
    options: ManagerOptions,
    store: &Durable,
    ends: Ends,
    lease: &Lease,
    stored: StoredState,
) -> Driver {
    let ManagerOptions { spec, providers, seed, limits, clock, crash, worker_tls, .. } = options;
    let unlisted: BTreeSet<_> = providers.keys().cloned().collect();
    ends.phase.send_replace(Phase::Acting { lease: lease.clone(), unlisted });
    let (sender, events) = mpsc::channel(EVENTS);
    let crash = Arc::new(crash);
    let metrics = FleetMetrics::new();
    let calls = Calls::new(providers, limits, sender.clone(), crash.clone(), metrics.clone());
    calls.listen_for_nudges();
    let (tables, fleet) = (ends.tables.subscribe(), ends.spec.subscribe());
    let scraper = Scraper::start(tables, fleet, sender.clone(), metrics, worker_tls.clone());
    Driver {
        controller: Controller::new(lease.epoch(), clock.now(), spec, stored, seed),
        clock,
        store: store.clone(),
        lease: lease.clone(),
        calls,
        prober: Prober::new(sender, worker_tls),
        scraper,
        crash,
        events,
        commands: ends.commands,
        reports: ends.reports,
        tables: ends.tables,
        spec: ends.spec,
        phase: ends.phase,
        answers: Vec::new(),
    }
}
