//! Servers that somebody else runs, at addresses that the config names. Launching one grants a free
//! address, terminating gives the address back: **the server itself is neither started nor stopped**.
//!
//! Nothing out there knows which address was granted to which instance; only the manager's records do.
//! So this provider is told them once, by [`StaticProvider::adopt`], before its first call; until then
//! every call answers `Unavailable` rather than an incomplete list, on which the manager would give up
//! instances that serve. The record of an instance whose grant was not written down yet has no address
//! and is not adopted: launching it again grants one, as nothing was started that could be doubled.
//!
//! An address given back goes to the end of its type's queue, so that a server that keeps failing its
//! health checks does not keep a healthy one from being tried.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Provider;
use crate::runtime::clock;
use crate::types::launch::{Grant, LaunchBatch, LaunchOutcome, ProviderInstance, ProviderStatus};
use crate::types::record::InstanceRecord;
use crate::types::{
    Address, InstanceId, InstanceTypeName, ProviderError, ProviderName, Timestamp, VariantKey,
};

/// How long an instance may go on after its address has left the config.
const REMOVAL_NOTICE: Duration = Duration::from_secs(600);

/// Hands out the addresses of servers that run anyway.
#[derive(Debug)]
pub struct StaticProvider {
    name: ProviderName,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_adopted: bool,
    /// Every address there is, by type; the first is the next to be tried.
    queues: BTreeMap<InstanceTypeName, VecDeque<Address>>,
    granted: BTreeMap<InstanceId, Granted>,
}

#[derive(Debug)]
struct Granted {
    instance_type: InstanceTypeName,
    address: Address,
    variant: VariantKey,
    /// Its address is no longer in the config; at this moment it is to be gone.
    leaves_at: Option<Timestamp>,
}

impl StaticProvider {
    /// A provider of `addresses`, those of each type in the order in which they are to be used. An
    /// address should be named once; named again, it still serves one instance at a time.
    #[must_use]
    pub fn new(
        name: ProviderName,
        addresses: impl IntoIterator<Item = (InstanceTypeName, Vec<Address>)>,
    ) -> Self {
        let provider = Self { name, state: Mutex::default() };
        provider.set_addresses(addresses);
        provider
    }

    /// Replaces the addresses there are. An instance whose address is no longer among them is listed
    /// with an interruption in ten minutes, so that it is replaced first and drained then.
    pub fn set_addresses(
        &self,
        addresses: impl IntoIterator<Item = (InstanceTypeName, Vec<Address>)>,
    ) {
        let mut state = self.state();
        let mut old = std::mem::take(&mut state.queues);
        for (instance_type, new) in addresses {
            // What stays keeps its place in the queue.
            let mut queue = old.remove(&instance_type).unwrap_or_default();
            queue.retain(|address| new.contains(address));
            for address in new {
                if !queue.contains(&address) {
                    queue.push_back(address);
                }
            }
            state.queues.insert(instance_type, queue);
        }
        state.note_removed();
    }

    /// The state holds its invariants between any two statements, so a panic has broken nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready(&self) -> Result<MutexGuard<'_, State>, ProviderError> {
        let state = self.state();
        if state.is_adopted {
            return Ok(state);
        }
        Err(ProviderError::unavailable(format!(
            "provider {} has not been told yet which addresses are in use",
            self.name
        )))
    }
}

impl State {
    fn has(&self, instance_type: &InstanceTypeName, address: &Address) -> bool {
        self.queues.get(instance_type).is_some_and(|queue| queue.contains(address))
    }

    /// Notes which granted addresses have gone from the config, or come back.
    fn note_removed(&mut self) {
        let mut granted = std::mem::take(&mut self.granted);
        for one in granted.values_mut() {
            let is_there = self.has(&one.instance_type, &one.address);
            one.leaves_at = match one.leaves_at {
                _ if is_there => None,
                None => Some(clock::now() + REMOVAL_NOTICE),
                noted => noted,
            };
        }
        self.granted = granted;
    }

    fn launch(&mut self, batch: &LaunchBatch, id: &InstanceId) -> Result<Grant, ProviderError> {
        if let Some(granted) = self.granted.get(id) {
            return Ok(Grant { address: Some(granted.address.clone()) });
        }
        let instance_type = &batch.instance_type;
        let Some(queue) = self.queues.get(instance_type) else {
            let reason = format!("there are no servers of instance type {instance_type}");
            return Err(ProviderError::Rejected { reason });
        };
        let is_free = |address: &&Address| !self.granted.values().any(|g| g.address == **address);
        let Some(address) = queue.iter().find(is_free).cloned() else {
            let reason = format!("all {} servers of {instance_type} are in use", queue.len());
            return Err(ProviderError::InsufficientCapacity { reason });
        };
        let granted = Granted {
            instance_type: instance_type.clone(),
            address: address.clone(),
            variant: batch.variant.clone(),
            leaves_at: None,
        };
        self.granted.insert(id.clone(), granted);
        Ok(Grant { address: Some(address) })
    }

    fn give_back(&mut self, id: &InstanceId) -> Result<(), ProviderError> {
        let granted = self.granted.remove(id).ok_or(ProviderError::NotFound)?;
        if let Some(queue) = self.queues.get_mut(&granted.instance_type)
            && let Some(at) = queue.iter().position(|address| *address == granted.address)
            && let Some(address) = queue.remove(at)
        {
            queue.push_back(address);
        }
        Ok(())
    }

    fn list(&self) -> Vec<ProviderInstance> {
        self.granted
            .iter()
            .map(|(id, granted)| ProviderInstance {
                id: id.clone(),
                instance_type: granted.instance_type.clone(),
                variant: Some(granted.variant.clone()),
                address: Some(granted.address.clone()),
                status: ProviderStatus::Running,
                interruption_at: granted.leaves_at,
            })
            .collect()
    }
}

impl Provider for StaticProvider {
    /// Takes in what was granted before the manager started: the records of this provider's instances
    /// (others are passed over) that have an address.
    fn adopt(&self, records: &[InstanceRecord]) {
        let mut state = self.state();
        for record in records.iter().filter(|record| record.provider == self.name) {
            let Some(address) = record.address.clone() else { continue };
            let granted = Granted {
                instance_type: record.instance_type.clone(),
                address,
                variant: record.variant.clone(),
                leaves_at: None,
            };
            state.granted.insert(record.id.clone(), granted);
        }
        state.is_adopted = true;
        state.note_removed();
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>> {
        Box::pin(async { Ok(self.ready()?.list()) })
    }

    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>> {
        Box::pin(async move {
            let mut state = match self.ready() {
                Ok(state) => state,
                Err(error) => return super::all_failed(&batch.instances, &error),
            };
            batch
                .instances
                .iter()
                .map(|id| LaunchOutcome { instance: id.clone(), result: state.launch(&batch, id) })
                .collect()
        })
    }

    fn terminate(
        &self,
        instance: InstanceId,
        _grace: Duration,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async move { self.ready()?.give_back(&instance) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::fake::batch;

    fn address(port: u16) -> Address {
        Address::http(([127, 0, 0, 1], port).into())
    }

    fn addresses(ports: &[u16]) -> [(InstanceTypeName, Vec<Address>); 1] {
        let instance_type = InstanceTypeName::new("a100").expect("valid");
        [(instance_type, ports.iter().copied().map(address).collect())]
    }

    fn provider(ports: &[u16]) -> StaticProvider {
        let name = ProviderName::new("existing").expect("valid");
        StaticProvider::new(name, addresses(ports))
    }

    async fn launch(provider: &StaticProvider, id: &str) -> Result<Address, ProviderError> {
        let outcome = provider.launch(batch("a100", &[id])).await.remove(0);
        outcome.result.map(|grant| grant.address.expect("known at once"))
    }

    fn id(text: &str) -> InstanceId {
        InstanceId::new(text).expect("valid")
    }

    #[tokio::test]
    async fn nothing_is_said_before_the_records_are_known() {
        let provider = provider(&[1]);
        assert!(matches!(provider.list().await, Err(ProviderError::Unavailable { .. })));
        assert!(matches!(launch(&provider, "a").await, Err(ProviderError::Unavailable { .. })));
        let ended = provider.terminate(id("a"), Duration::ZERO).await;
        assert!(matches!(ended, Err(ProviderError::Unavailable { .. })));
        provider.adopt(&[]);
        assert_eq!(provider.list().await, Ok(vec![]));
    }

    #[tokio::test]
    async fn a_failing_server_goes_to_the_end_of_the_queue() {
        let provider = provider(&[1, 2, 3]);
        provider.adopt(&[]);
        assert_eq!(launch(&provider, "a").await, Ok(address(1)));
        assert_eq!(provider.terminate(id("a"), Duration::ZERO).await, Ok(()));
        assert_eq!(launch(&provider, "b").await, Ok(address(2)));
        assert_eq!(launch(&provider, "c").await, Ok(address(3)));
        assert_eq!(launch(&provider, "d").await, Ok(address(1)));
        assert_eq!(
            launch(&provider, "e").await,
            Err(ProviderError::InsufficientCapacity {
                reason: "all 3 servers of a100 are in use".to_owned()
            })
        );
    }

    #[tokio::test]
    async fn an_address_that_leaves_the_config_is_announced() {
        let provider = provider(&[1, 2]);
        provider.adopt(&[]);
        assert_eq!(launch(&provider, "a").await, Ok(address(1)));
        let interruption = async || provider.list().await.expect("answers")[0].interruption_at;
        assert_eq!(interruption().await, None);
        provider.set_addresses(addresses(&[2, 4]));
        let noted = interruption().await.expect("announced");
        provider.set_addresses(addresses(&[2, 4]));
        assert_eq!(interruption().await, Some(noted));
        provider.set_addresses(addresses(&[1, 2]));
        assert_eq!(interruption().await, None);
        provider.set_addresses(addresses(&[4]));
        assert_eq!(provider.terminate(id("a"), Duration::ZERO).await, Ok(()));
        assert_eq!(launch(&provider, "b").await, Ok(address(4)));
    }

    #[tokio::test]
    async fn an_address_under_two_types_serves_one_instance() {
        let provider = provider(&[1]);
        let other = InstanceTypeName::new("h100").expect("valid");
        let [a100] = addresses(&[1]);
        provider.set_addresses([a100, (other, vec![address(1)])]);
        provider.adopt(&[]);
        assert!(launch(&provider, "a").await.is_ok());
        let refused = provider.launch(batch("h100", &["b"])).await.remove(0).result;
        assert!(matches!(refused, Err(ProviderError::InsufficientCapacity { .. })));
    }
}
