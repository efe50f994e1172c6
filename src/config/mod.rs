//! The configuration file: what it may say, and the validated form of it. Two layers: the file as it
//! stands (TOML values with their places, through [`reader`]) and [`Config`], in which everything is
//! within its limits and refers to things that exist. **All** mistakes are reported at once, each with
//! its line; unknown keys are mistakes; lines that are no TOML do not hide those in the rest.
//!
//! Each section has its file, which names its keys, their defaults and their rules. `config/reference.toml`
//! shows every key. Start with [`load`].

mod access;
mod endpoint;
mod engine;
mod instance_type;
mod limits;
mod manager;
mod mistake;
mod provider;
mod proxy;
mod quoted;
mod reader;
mod requests;
mod scaling;
mod schedule;
mod signals;
mod suggest;
mod syntax;
mod telemetry;
mod values;
mod variant;
mod worker_tls;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;

pub use manager::{ManagerConfig, OnExit, StoreConfig};
use mistake::Sink;
pub use mistake::{Mistake, Position, Severity};
pub use provider::ProviderConfig;
pub use proxy::{AdminConfig, ProxyConfig, TlsConfig};
use reader::Table;
pub use telemetry::{AccessLogTarget, TelemetryConfig};

use crate::types::ProviderName;
use crate::types::access::ApiKey;
use crate::types::spec::FleetSpec;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// A validated configuration. Equal ones mean the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The data plane.
    pub proxy: ProxyConfig,
    /// The keys that clients need; none: they need none.
    pub api_keys: Vec<ApiKey>,
    /// The management listener.
    pub admin: AdminConfig,
    /// The control plane.
    pub manager: ManagerConfig,
    /// The control plane's durable state.
    pub store: StoreConfig,
    /// The access log and traces.
    pub telemetry: TelemetryConfig,
    /// Where instances come from; every instance type's provider is in it.
    pub providers: BTreeMap<ProviderName, ProviderConfig>,
    /// What should run.
    pub fleet: Arc<FleetSpec>,
}

/// Reads and validates the file at `path`. The second part of a success are warnings.
///
/// # Errors
/// Everything that is wrong with it, in its order; at least one is an error, warnings are among them.
pub fn load(path: &Path) -> Result<(Config, Vec<Mistake>), Vec<Mistake>> {
    let name = path.display().to_string();
    let text = read_file(path)
        .map_err(|reason| vec![Mistake::of_file(&name, format!("cannot be read: {reason}"))])?;
    load_str(&text, &name)
}

/// Validates `text`, which mistakes say is from `file_name`.
///
/// # Errors
/// As [`load`].
pub fn load_str(text: &str, file_name: &str) -> Result<(Config, Vec<Mistake>), Vec<Mistake>> {
    let (mended, syntax) = syntax::mend(text);
    let (document, _) = DeTable::parse_recoverable(&mended);
    let sink = Sink::new(text, syntax);
    let config = read(&Table::new(document.get_ref(), 0, "the file", &sink));
    let failed = sink.errors() > 0;
    let mistakes = sink.into_mistakes(file_name);
    if failed { Err(mistakes) } else { Ok((config, mistakes)) }
}

/// Reads every section, those first that others refer to.
fn read(root: &Table<'_>) -> Config {
    let (proxy, admin, pool_idle_timeout, (api_keys, named)) = proxy::read(root);
    let (manager, store) = manager::read(root);
    let telemetry = telemetry::read(root);
    let providers = provider::read(root);
    let types = instance_type::read(root, &providers);
    let endpoints = endpoint::read(root, &types);
    if endpoints.is_empty() && proxy.manager.is_none() && root.sink().errors() == 0 {
        let rule = "there is no [[endpoint]], so nothing will be served";
        root.sink().warning(0, rule);
    }
    access::check_endpoints(&named, &endpoints, root.sink());
    let fleet = Arc::new(FleetSpec { instance_types: types.specs, endpoints });
    if let Some(timeout) = &pool_idle_timeout {
        engine::check_pool(timeout, &fleet, root.sink());
    }
    Config {
        proxy,
        api_keys,
        admin,
        manager,
        store,
        telemetry,
        providers: providers.configs,
        fleet,
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it is larger than {} MiB", MAX_FILE >> 20));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("it is not UTF-8 text (from byte {} on)", error.utf8_error().valid_up_to())
    })
}
