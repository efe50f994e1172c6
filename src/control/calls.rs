//! Asks providers. Every call is a task with a time limit that always comes back as an event: with an
//! answer, with `Unavailable` when there was none in time or the provider panicked, with `Rejected`
//! when there is no such provider. Calls that start or end instances are limited in number per
//! provider, so one that hangs holds up only itself.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::crash::{CrashPoint, CrashPoints};
use super::{Limits, ManagedProvider};
use crate::decision::controller::Event;
use crate::provider::Provider;
use crate::runtime::tasks::Tasks;
use crate::telemetry::fleet::FleetMetrics;
use crate::types::launch::{LaunchBatch, LaunchOutcome, ProviderInstance};
use crate::types::{InstanceId, ProviderError, ProviderName};

/// Launches and terminations under way at once, for each provider.
const CALLS_PER_PROVIDER: usize = 64;

/// What asks the providers.
#[derive(Clone)]
pub(super) struct Calls {
    providers: Arc<BTreeMap<ProviderName, Entry>>,
    limits: Limits,
    events: mpsc::Sender<Event>,
    tasks: Tasks,
    crash: Arc<CrashPoints>,
    metrics: FleetMetrics,
}

struct Entry {
    managed: ManagedProvider,
    slots: Semaphore,
}

impl Calls {
    pub(super) fn new(
        providers: BTreeMap<ProviderName, ManagedProvider>,
        limits: Limits,
        events: mpsc::Sender<Event>,
        crash: Arc<CrashPoints>,
        metrics: FleetMetrics,
    ) -> Self {
        let providers = providers
            .into_iter()
            .map(|(name, managed)| {
                (name, Entry { managed, slots: Semaphore::new(CALLS_PER_PROVIDER) })
            })
            .collect();
        Self { providers: Arc::new(providers), limits, events, tasks: Tasks::new(), crash, metrics }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ProviderName> {
        self.providers.keys()
    }

    pub(super) fn has(&self, name: &ProviderName) -> bool {
        self.providers.contains_key(name)
    }

    /// Passes every provider's bell on as an event. A bell holds at most one ring.
    pub(super) fn listen_for_nudges(&self) {
        for (name, entry) in self.providers.iter() {
            let (name, nudge) = (name.clone(), entry.managed.nudge.clone());
            let events = self.events.clone();
            self.tasks.spawn_until_stopped("nudge", async move {
                loop {
                    nudge.notified().await;
                    if events.send(Event::ProviderNudged(name.clone())).await.is_err() {
                        return;
                    }
                }
            });
        }
    }

    /// Asks for everything that runs at `provider` and answers with [`Event::Listed`].
    pub(super) fn list(&self, provider: ProviderName) {
        self.task("list", |calls| async move {
            let result = calls.listing(&provider).await;
            calls.crash.pass(CrashPoint::AfterList);
            Event::Listed { provider, result: result.map(Into::into) }
        });
    }

    /// Launches `batch` and answers with [`Event::Launched`], with one outcome for each of its ids.
    pub(super) fn launch(&self, provider: ProviderName, batch: LaunchBatch) {
        self.task("launch", |calls| async move {
            let ids = batch.instances.clone();
            let (variant, kind) = (batch.variant.clone(), batch.instance_type.clone());
            calls.crash.pass(CrashPoint::BeforeLaunch);
            let answer = calls
                .call(&provider, calls.limits.launch, |p| async move { Ok(p.launch(batch).await) })
                .await;
            calls.crash.pass(CrashPoint::AfterLaunch);
            let outcomes = one_each(&ids, answer);
            for error in outcomes.iter().filter_map(|outcome| outcome.result.as_ref().err()) {
                calls.metrics.provider_error(&provider, "launch", error);
                if error.falls_through() {
                    calls.metrics.capacity_error(&variant, &kind);
                }
            }
            Event::Launched { provider, outcomes }
        });
    }

    /// Ends `instance` and answers with [`Event::Terminated`].
    pub(super) fn terminate(&self, provider: ProviderName, instance: InstanceId) {
        self.task("terminate", |calls| async move {
            let result = calls.termination(&provider, instance.clone()).await;
            Event::Terminated { instance, result }
        });
    }

    /// Everything that runs at `provider`.
    pub(super) async fn listing(
        &self,
        provider: &ProviderName,
    ) -> Result<Vec<ProviderInstance>, ProviderError> {
        let Some(entry) = self.providers.get(provider) else { return Err(unknown(provider)) };
        let list = entry.managed.provider.list();
        let result = limited(self.limits.list, list).await.unwrap_or_else(Err);
        if let Err(error) = &result {
            self.metrics.provider_error(provider, "list", error);
        }
        result
    }

    /// Ends `instance` at `provider`.
    pub(super) async fn termination(
        &self,
        provider: &ProviderName,
        instance: InstanceId,
    ) -> Result<(), ProviderError> {
        let grace = self.limits.grace;
        self.crash.pass(CrashPoint::BeforeTerminate);
        let result =
            self.call(provider, self.limits.terminate, |p| async move {
                p.terminate(instance, grace).await
            })
            .await;
        self.crash.pass(CrashPoint::AfterTerminate);
        if let Err(error) = &result {
            self.metrics.provider_error(provider, "terminate", error);
        }
        result
    }

    /// Drops every call that is under way.
    pub(super) async fn stop(&self) {
        self.tasks.stop(Duration::from_secs(5)).await;
    }

    /// Calls a provider once it has a slot free; the limit covers the wait too.
    async fn call<T, F>(
        &self,
        provider: &ProviderName,
        limit: Duration,
        ask: impl FnOnce(Arc<dyn Provider>) -> F,
    ) -> Result<T, ProviderError>
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        let Some(entry) = self.providers.get(provider) else { return Err(unknown(provider)) };
        let work = async {
            let _slot = entry.slots.acquire().await;
            ask(entry.managed.provider.clone()).await
        };
        limited(limit, work).await.unwrap_or_else(Err)
    }

    fn task<F>(&self, name: &'static str, work: impl FnOnce(Self) -> F)
    where
        F: Future<Output = Event> + Send + 'static,
    {
        let (work, events) = (work(self.clone()), self.events.clone());
        self.tasks.spawn_until_stopped(name, async move {
            // The driver is only gone when everything ends.
            let _ = events.send(work.await).await;
        });
    }
}

/// Bounds `work` in time and turns a panic into an error: an answer that never comes would leave the
/// controller waiting for ever.
async fn limited<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, ProviderError> {
    match timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_panic)) => Err(ProviderError::unavailable("the provider panicked; see the log")),
        Err(_elapsed) => {
            Err(ProviderError::unavailable(format!("the provider gave no answer in {limit:?}")))
        }
    }
}

fn unknown(provider: &ProviderName) -> ProviderError {
    ProviderError::Rejected { reason: format!("this process has no provider \"{provider}\"") }
}

/// One outcome for each id, in the ids' order, whatever the provider answered.
fn one_each(
    ids: &[InstanceId],
    answer: Result<Vec<LaunchOutcome>, ProviderError>,
) -> Vec<LaunchOutcome> {
    let missing = match &answer {
        Err(error) => error.clone(),
        Ok(_) => ProviderError::unavailable("the provider's answer left this instance out"),
    };
    let mut given: BTreeMap<_, _> =
        answer.unwrap_or_default().into_iter().map(|o| (o.instance, o.result)).collect();
    ids.iter()
        .map(|id| LaunchOutcome {
            instance: id.clone(),
            result: given.remove(id).unwrap_or_else(|| Err(missing.clone())),
        })
        .collect()
}

#[cfg(test)]
mod tests;
