//! Reading the config again: what may change while running is applied as a difference, what needs a
//! restart says so, and a file with a mistake changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::Mutex;

use super::halves::{ManagerHalf, ProxyHalf};
use super::providers::Providers;
use crate::api::{Reload, ReloadError, ReloadOutcome};
use crate::config::{self, Config};
use crate::control::ManagerHandle;
use crate::proxy::ApiKeys;
use crate::types::EndpointName;
use crate::types::access::ApiKey;
use crate::types::spec::FleetSpec;

/// Reloads the config of this process. Clones are the same one.
#[derive(Clone)]
pub(super) struct Reloader {
    path: PathBuf,
    /// What is in force. Held for a whole reload, so that two do not mix.
    current: Arc<Mutex<Arc<Config>>>,
    manager: Option<(ManagerHandle, Providers)>,
    /// The proxy's, where it runs here.
    keys: Option<Arc<ApiKeys>>,
}

impl Reloader {
    pub(super) fn new(
        path: &Path,
        config: &Arc<Config>,
        manager: Option<&ManagerHalf>,
        proxy: Option<&ProxyHalf>,
    ) -> Self {
        Self {
            path: path.to_owned(),
            current: Arc::new(Mutex::new(Arc::clone(config))),
            manager: manager.map(|half| (half.handle.clone(), half.providers.clone())),
            keys: proxy.map(|half| Arc::clone(&half.keys)),
        }
    }

    pub(super) fn as_api(&self) -> Reload {
        let reloader = self.clone();
        Arc::new(move || {
            let reloader = reloader.clone();
            async move { reloader.reload().await }.boxed()
        })
    }

    /// Reloads and tells the log, for a signal that has nobody to answer to.
    pub(super) async fn reload_and_log(&self) {
        match self.reload().await {
            Ok(outcome) => {
                for change in &outcome.changed {
                    tracing::info!("reloaded: {change}");
                }
                for change in &outcome.needs_restart {
                    tracing::warn!("needs a restart to take effect: {change}");
                }
                if outcome.changed.is_empty() && outcome.needs_restart.is_empty() {
                    tracing::info!("reloaded: nothing has changed");
                }
            }
            Err(ReloadError::Mistakes(mistakes)) => {
                for mistake in mistakes {
                    tracing::error!("not reloaded: {mistake}");
                }
            }
            Err(ReloadError::Failed(reason)) => tracing::error!("not reloaded: {reason}"),
        }
    }

    async fn reload(&self) -> Result<ReloadOutcome, ReloadError> {
        let mut current = self.current.lock().await;
        let (new, _) = config::load(&self.path).map_err(|mistakes| {
            ReloadError::Mistakes(mistakes.iter().map(ToString::to_string).collect())
        })?;
        let mut changed = fleet_changes(&current.fleet, &new.fleet);
        changed.extend(key_changes(&current.api_keys, &new.api_keys));
        let outcome = ReloadOutcome { changed, needs_restart: fixed_changes(&current, &new) };
        if let Some((manager, providers)) = &self.manager
            && current.fleet != new.fleet
        {
            // The manager first: it refuses a fleet that this process cannot provide for, and then
            // nothing has changed. A provider that learns of a change a moment later refuses or grants
            // by the old one, which the manager retries.
            manager
                .reconfigure(Arc::clone(&new.fleet))
                .await
                .map_err(|error| ReloadError::Failed(error.to_string()))?;
            providers.reconfigure(&new.fleet);
        }
        if let Some(keys) = &self.keys
            && current.api_keys != new.api_keys
        {
            keys.replace(&new.api_keys);
        }
        // What needs a restart stays as it is, and is reported again next time.
        *current =
            Arc::new(Config { fleet: new.fleet, api_keys: new.api_keys, ..(**current).clone() });
        Ok(outcome)
    }
}

/// The parts that are bound or started once.
fn fixed_changes(old: &Config, new: &Config) -> Vec<String> {
    let parts = [
        ("[proxy]", old.proxy != new.proxy),
        ("[admin]", old.admin != new.admin),
        ("[manager]", old.manager != new.manager),
        ("[store]", old.store != new.store),
        ("[telemetry]", old.telemetry != new.telemetry),
        ("[provider]", old.providers != new.providers),
    ];
    parts.iter().filter(|(_, differs)| *differs).map(|(part, _)| (*part).to_owned()).collect()
}

fn fleet_changes(old: &FleetSpec, new: &FleetSpec) -> Vec<String> {
    let mut changes = Vec::new();
    for (name, spec) in &new.instance_types {
        match old.instance_types.get(name) {
            None => changes.push(format!("instance type {name} is new")),
            Some(before) if before != spec => changes.push(format!("instance type {name}")),
            Some(_) => {}
        }
    }
    let gone = old.instance_types.keys().filter(|name| !new.instance_types.contains_key(*name));
    changes.extend(gone.map(|name| format!("instance type {name} is gone")));
    for endpoint in &new.endpoints {
        match old.endpoints.iter().find(|before| before.name == endpoint.name) {
            None => changes.push(format!("endpoint {} is new", endpoint.name)),
            Some(before) if before != endpoint => {
                changes.push(format!("endpoint {}", endpoint.name));
            }
            Some(_) => {}
        }
    }
    let stays = |name: &EndpointName| new.endpoints.iter().any(|endpoint| endpoint.name == *name);
    let gone = old.endpoints.iter().filter(|endpoint| !stays(&endpoint.name));
    changes.extend(gone.map(|endpoint| format!("endpoint {} is gone: it drains", endpoint.name)));
    changes
}

/// By their names: nothing else of a key is told.
fn key_changes(old: &[ApiKey], new: &[ApiKey]) -> Vec<String> {
    let mut changes = Vec::new();
    for key in new {
        match old.iter().find(|before| before.name == key.name) {
            None => changes.push(format!("key {} is new", key.name)),
            Some(before) if before != key => changes.push(format!("key {}", key.name)),
            Some(_) => {}
        }
    }
    let gone = old.iter().filter(|before| new.iter().all(|key| key.name != before.name));
    changes.extend(gone.map(|key| format!("key {} is gone", key.name)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = include_str!("../../config/quickstart.toml");

    fn config(text: &str) -> Config {
        config::load_str(text, "test.toml").expect("valid").0
    }

    #[test]
    fn differences_are_named_and_restarts_asked_for() {
        let old = config(CONFIG);
        let new = config(
            &CONFIG
                .replace("127.0.0.1:8080\"", "127.0.0.1:9999\"")
                .replace("capacity = 1 ", "capacity = 2 ")
                .replace("max_instance_count = 6", "max_instance_count = 7"),
        );
        assert_eq!(fixed_changes(&old, &new), ["[proxy]"]);
        assert_eq!(
            fleet_changes(&old.fleet, &new.fleet),
            ["instance type ml.p5.48xlarge", "endpoint my-endpoint"]
        );
        assert_eq!(fixed_changes(&old, &old), Vec::<String>::new());
        let renamed = config(&CONFIG.replace("my-endpoint", "other"));
        assert_eq!(
            fleet_changes(&old.fleet, &renamed.fleet),
            ["endpoint other is new", "endpoint my-endpoint is gone: it drains"]
        );
    }
}
