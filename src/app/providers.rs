//! Providers as the config describes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::config::{Config, ProviderConfig};
use crate::control::ManagedProvider;
use crate::provider::Provider;
use crate::provider::limited::{CallLimits, Limited};
use crate::provider::observed::Observed;
use crate::provider::process::{ProcessConfig, ProcessProvider};
use crate::provider::static_servers::StaticProvider;
use crate::runtime::tasks::Tasks;
use crate::types::spec::{FleetSpec, InstanceTypeSpec};
use crate::types::{Address, InstanceTypeName, ProviderName};

/// The providers of one process, by kind, so that a reload can reach what it may change.
#[derive(Debug, Clone, Default)]
pub(super) struct Providers {
    process: BTreeMap<ProviderName, ProcessProvider>,
    fixed: BTreeMap<ProviderName, Arc<StaticProvider>>,
}

impl Providers {
    /// Makes every provider of `config`; what the manager is to ask is the second part.
    pub(super) fn build(
        config: &Config,
        tasks: &Tasks,
    ) -> (Self, BTreeMap<ProviderName, ManagedProvider>) {
        let mut providers = Self::default();
        let mut managed = BTreeMap::new();
        for (name, kind) in &config.providers {
            let nudge = Arc::new(Notify::new());
            let provider: Arc<dyn Provider> = match kind {
                ProviderConfig::Process { command, env, logs } => {
                    let mut options = ProcessConfig::new(name.clone(), owner(&config.store.path));
                    options.command.clone_from(command);
                    options.env.clone_from(env);
                    options.logs.clone_from(logs);
                    options.capacity = capacity(&config.fleet, name);
                    options.forebay = std::env::current_exe().unwrap_or_else(|_| "forebay".into());
                    let provider = ProcessProvider::new(options, Arc::clone(&nudge), tasks.clone());
                    providers.process.insert(name.clone(), provider.clone());
                    Arc::new(provider)
                }
                ProviderConfig::Static => {
                    let addresses = addresses(&config.fleet, name);
                    let provider = Arc::new(StaticProvider::new(name.clone(), addresses));
                    providers.fixed.insert(name.clone(), Arc::clone(&provider));
                    provider
                }
            };
            // The limit inside, so that a call that it cuts off is measured too.
            let limited = Arc::new(Limited::new(provider, CallLimits::default()));
            let observed = Arc::new(Observed::new(limited, name.clone()));
            managed.insert(name.clone(), ManagedProvider::new(observed, nudge));
        }
        (providers, managed)
    }

    /// Applies what a reload may change: capacities and addresses.
    pub(super) fn reconfigure(&self, fleet: &FleetSpec) {
        for (name, provider) in &self.process {
            provider.set_capacity(capacity(fleet, name));
        }
        for (name, provider) in &self.fixed {
            provider.set_addresses(addresses(fleet, name));
        }
    }
}

/// Marks our workers among all processes of this machine: whoever uses the same store owns them.
fn owner(store: &Path) -> String {
    let path = std::path::absolute(store).unwrap_or_else(|_| store.to_owned());
    path.display().to_string()
}

fn types_of<'a>(
    fleet: &'a FleetSpec,
    provider: &'a ProviderName,
) -> impl Iterator<Item = (&'a InstanceTypeName, &'a InstanceTypeSpec)> {
    fleet.instance_types.iter().filter(move |(_, spec)| spec.provider == *provider)
}

fn capacity(fleet: &FleetSpec, provider: &ProviderName) -> BTreeMap<InstanceTypeName, Option<u32>> {
    types_of(fleet, provider).map(|(name, spec)| (name.clone(), spec.capacity)).collect()
}

fn addresses(fleet: &FleetSpec, provider: &ProviderName) -> Vec<(InstanceTypeName, Vec<Address>)> {
    types_of(fleet, provider).map(|(name, spec)| (name.clone(), spec.addresses.clone())).collect()
}
