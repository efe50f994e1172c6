//! A pretend provider for tests of asynchronous code: it records every call, answers from a capacity
//! table, and plays scripted faults. Its clones share one cloud, so a clone is what a restarted manager
//! would see. (The simulator has its own; this one can take time and hang.)

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Provider;
use crate::types::launch::{Grant, LaunchBatch, LaunchOutcome, ProviderInstance, ProviderStatus};
use crate::types::{Address, InstanceId, InstanceTypeName, ProviderError, Timestamp, VariantKey};

/// What the next call does. One script is used up by one call, in the order of [`FakeProvider::script`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// Answer as usual.
    Pass,
    /// Do nothing and answer this.
    Fail(ProviderError),
    /// Carry the call out and answer `Unavailable` all the same.
    CarryOutThenUnavailable,
    /// Answer as usual after this long.
    Delay(Duration),
    /// Do nothing and never answer.
    Hang,
    /// Carry the call out and never answer.
    CarryOutThenHang,
}

/// A call that came in, in the order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`Provider::list`].
    List,
    /// [`Provider::launch`].
    Launch(LaunchBatch),
    /// [`Provider::terminate`].
    Terminate {
        /// Which.
        instance: InstanceId,
        /// With how much grace.
        grace: Duration,
    },
}

/// The pretend provider.
#[derive(Debug, Clone, Default)]
pub struct FakeProvider {
    cloud: Arc<Mutex<Cloud>>,
}

#[derive(Debug, Default)]
struct Cloud {
    instances: BTreeMap<InstanceId, ProviderInstance>,
    /// A type that is not here has no limit.
    capacity: BTreeMap<InstanceTypeName, usize>,
    addresses: VecDeque<Address>,
    granted: u16,
    ends_slowly: bool,
    scripts: VecDeque<Script>,
    calls: Vec<Call>,
}

impl FakeProvider {
    /// A cloud without limits and with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with a limit on one type.
    #[must_use]
    pub fn with_capacity(self, instance_type: &str, count: usize) -> Self {
        self.set_capacity(instance_type, count);
        self
    }

    /// Changes how many of a type there are. Nothing that runs is ended.
    pub fn set_capacity(&self, instance_type: &str, count: usize) {
        let name = InstanceTypeName::new(instance_type).expect("a test's instance type is valid");
        self.cloud().capacity.insert(name, count);
    }

    /// What a coming call does; see [`Script`].
    pub fn script(&self, script: Script) {
        self.cloud().scripts.push_back(script);
    }

    /// The address of a coming grant (for tests with real servers); without, they are made up.
    pub fn next_address(&self, address: Address) {
        self.cloud().addresses.push_back(address);
    }

    /// From now on a terminated instance stays `Stopping` until [`FakeProvider::end`].
    pub fn end_slowly(&self) {
        self.cloud().ends_slowly = true;
    }

    /// Every call so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.cloud().calls.clone()
    }

    /// What there is now, without a recorded call.
    #[must_use]
    pub fn instances(&self) -> Vec<ProviderInstance> {
        self.cloud().instances.values().cloned().collect()
    }

    /// Ends an instance from outside, as a crash would. Whether it ran.
    #[must_use]
    pub fn end(&self, instance: &InstanceId, reason: &str) -> bool {
        self.change(instance, |one| {
            one.status = ProviderStatus::Ended { reason: reason.to_owned() };
        })
    }

    /// Announces that an instance will be taken away. Whether it ran.
    #[must_use]
    pub fn interrupt(&self, instance: &InstanceId, at: Timestamp) -> bool {
        self.change(instance, |one| one.interruption_at = Some(at))
    }

    /// Makes a running instance one that is accepted and does not run yet, or back. Whether it ran.
    #[must_use]
    pub fn set_pending(&self, instance: &InstanceId, is_pending: bool) -> bool {
        self.change(instance, |one| {
            one.status = if is_pending { ProviderStatus::Pending } else { ProviderStatus::Running };
        })
    }

    fn change(&self, instance: &InstanceId, change: impl FnOnce(&mut ProviderInstance)) -> bool {
        let mut cloud = self.cloud();
        let one = cloud.instances.get_mut(instance).filter(|one| is_live(one));
        one.map(change).is_some()
    }

    fn cloud(&self) -> MutexGuard<'_, Cloud> {
        self.cloud.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call and plays its script around `work`.
    async fn play<T>(
        &self,
        call: Call,
        work: impl FnOnce(&mut Cloud) -> T,
    ) -> Result<T, ProviderError> {
        let script = {
            let mut cloud = self.cloud();
            cloud.calls.push(call);
            cloud.scripts.pop_front().unwrap_or(Script::Pass)
        };
        match script {
            Script::Pass => Ok(work(&mut self.cloud())),
            Script::Fail(error) => Err(error),
            Script::CarryOutThenUnavailable => {
                work(&mut self.cloud());
                Err(ProviderError::unavailable("scripted, after the call was carried out"))
            }
            Script::Delay(delay) => {
                tokio::time::sleep(delay).await;
                Ok(work(&mut self.cloud()))
            }
            Script::Hang => std::future::pending().await,
            Script::CarryOutThenHang => {
                work(&mut self.cloud());
                std::future::pending().await
            }
        }
    }
}

fn is_live(instance: &ProviderInstance) -> bool {
    !matches!(instance.status, ProviderStatus::Ended { .. })
}

impl Cloud {
    fn launch(&mut self, batch: &LaunchBatch, id: &InstanceId) -> Result<Grant, ProviderError> {
        if let Some(one) = self.instances.get(id) {
            return Ok(Grant { address: one.address.clone() });
        }
        let in_use = self
            .instances
            .values()
            .filter(|one| is_live(one) && one.instance_type == batch.instance_type)
            .count();
        if let Some(capacity) = self.capacity.get(&batch.instance_type)
            && in_use >= *capacity
        {
            let reason = format!("{in_use} of {capacity} {} are in use", batch.instance_type);
            return Err(ProviderError::InsufficientCapacity { reason });
        }
        self.granted += 1;
        let address = self.addresses.pop_front().unwrap_or_else(|| {
            let [high, low] = self.granted.to_be_bytes();
            Address::http(([127, 99, high, low], 8000).into())
        });
        let one = ProviderInstance {
            id: id.clone(),
            instance_type: batch.instance_type.clone(),
            variant: Some(batch.variant.clone()),
            address: Some(address.clone()),
            status: ProviderStatus::Running,
            interruption_at: None,
        };
        self.instances.insert(id.clone(), one);
        Ok(Grant { address: Some(address) })
    }

    fn terminate(&mut self, id: &InstanceId) -> Result<(), ProviderError> {
        let one = self.instances.get_mut(id).filter(|one| is_live(one));
        let one = one.ok_or(ProviderError::NotFound)?;
        one.status = if self.ends_slowly {
            ProviderStatus::Stopping
        } else {
            ProviderStatus::Ended { reason: "terminated".to_owned() }
        };
        Ok(())
    }
}

impl Provider for FakeProvider {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>> {
        Box::pin(self.play(Call::List, |cloud| cloud.instances.values().cloned().collect()))
    }

    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>> {
        Box::pin(async move {
            let launched = self
                .play(Call::Launch(batch.clone()), |cloud| {
                    let outcome = |id: &InstanceId| LaunchOutcome {
                        instance: id.clone(),
                        result: cloud.launch(&batch, id),
                    };
                    batch.instances.iter().map(outcome).collect()
                })
                .await;
            launched.unwrap_or_else(|error| super::all_failed(&batch.instances, &error))
        })
    }

    fn terminate(
        &self,
        instance: InstanceId,
        grace: Duration,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async move {
            let call = Call::Terminate { instance: instance.clone(), grace };
            self.play(call, |cloud| cloud.terminate(&instance)).await?
        })
    }
}

/// A batch for tests: one model copy for `endpoint/primary`.
#[must_use]
pub fn batch(instance_type: &str, instances: &[&str]) -> LaunchBatch {
    const VALID: &str = "a test's names are valid";
    LaunchBatch {
        instances: instances.iter().map(|id| id.parse().expect(VALID)).collect(),
        instance_type: instance_type.parse().expect(VALID),
        variant: VariantKey {
            endpoint: "endpoint".parse().expect(VALID),
            variant: "primary".parse().expect(VALID),
        },
        model: "model".parse().expect(VALID),
        copies: 1,
        max_concurrency: 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> InstanceId {
        InstanceId::new(text).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn scripts_are_played_in_order_and_calls_recorded() {
        let fake = FakeProvider::new();
        fake.script(Script::Fail(ProviderError::unavailable("before")));
        fake.script(Script::CarryOutThenUnavailable);
        fake.script(Script::CarryOutThenHang);
        let refused = fake.launch(batch("g6", &["a"])).await;
        assert_eq!(refused[0].result, Err(ProviderError::unavailable("before")));
        assert!(fake.instances().is_empty());
        let unclear = fake.launch(batch("g6", &["a"])).await;
        assert!(matches!(unclear[0].result, Err(ProviderError::Unavailable { .. })));
        assert_eq!(fake.instances().len(), 1);
        let hung = fake.terminate(id("a"), Duration::ZERO);
        assert!(tokio::time::timeout(Duration::from_secs(60), hung).await.is_err());
        assert_eq!(
            fake.instances()[0].status,
            ProviderStatus::Ended { reason: "terminated".to_owned() }
        );
        let expected = [
            Call::Launch(batch("g6", &["a"])),
            Call::Launch(batch("g6", &["a"])),
            Call::Terminate { instance: id("a"), grace: Duration::ZERO },
        ];
        assert_eq!(fake.calls(), expected);
    }

    #[tokio::test]
    async fn instances_can_be_ended_and_interrupted() {
        let fake = FakeProvider::new();
        fake.launch(batch("g6", &["a", "b"])).await;
        assert!(fake.interrupt(&id("a"), Timestamp(7)));
        assert!(fake.set_pending(&id("a"), true));
        assert!(fake.end(&id("b"), "signal 9"));
        assert!(!fake.end(&id("b"), "again"));
        let list = fake.list().await.expect("answers");
        assert_eq!(list[0].interruption_at, Some(Timestamp(7)));
        assert_eq!(list[0].status, ProviderStatus::Pending);
        assert_eq!(list[1].status, ProviderStatus::Ended { reason: "signal 9".to_owned() });
    }
}
