//! The files in `config/`: each is without a mistake, the reference has every key and shows the
//! defaults as they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay::config::{self, Config, ProviderConfig};
use forebay::types::spec::{Fallback, HealthCheck, RequestPolicy, VariantSpec};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn load(name: &str) -> Config {
    let (config, warnings) = config::load(&example(name)).expect("no mistake");
    assert!(warnings.is_empty(), "{warnings:?}");
    config
}

fn only_variant(config: &Config) -> &VariantSpec {
    &config.fleet.endpoints[0].variants[0]
}

#[test]
fn every_file_is_without_a_mistake_or_a_warning() {
    let mut seen = 0;
    for entry in std::fs::read_dir(example("")).expect("config/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            seen += 1;
            match config::load(&path) {
                Ok((_, warnings)) => assert!(warnings.is_empty(), "{warnings:?}"),
                Err(mistakes) => panic!("{mistakes:#?}"),
            }
        }
    }
    assert!(seen >= 4, "only {seen} files");
}

#[test]
fn the_quickstart_falls_back_at_once() {
    let config = load("quickstart.toml");
    let variant = only_variant(&config);
    let types = &config.fleet.instance_types;
    assert_eq!(config.fleet.endpoints[0].name.as_str(), "my-endpoint");
    assert_eq!((variant.name.as_str(), variant.model.as_str()), ("primary", "my-llm"));
    assert_eq!(
        (variant.initial_instance_count, variant.min_instance_count, variant.max_instance_count),
        (3, 1, 6)
    );
    assert_eq!(variant.fallback, Fallback::AtOnce);
    let pools: Vec<_> = variant
        .pools
        .iter()
        .map(|pool| {
            let spec = &types[&pool.instance_type];
            (pool.instance_type.as_str(), pool.priority, spec.capacity, spec.max_concurrency)
        })
        .collect();
    assert_eq!(pools, [("ml.p5.48xlarge", 1, Some(1), 20), ("ml.g6.48xlarge", 2, None, 8)]);
}

#[test]
fn the_halves_fit_together() {
    let (proxy, manager) = (load("proxy.toml"), load("manager.toml"));
    let followed = proxy.proxy.manager.expect("a manager to follow");
    assert_eq!(followed.authority(), manager.admin.listen.to_string());
    assert_ne!(proxy.admin.listen, manager.admin.listen);
    assert!(proxy.fleet.endpoints.is_empty() && !manager.fleet.endpoints.is_empty());
}

/// The reference without everything that it says to be a default.
const ONLY_WHAT_IS_NEEDED: &str = r#"
[provider.local]
kind = "process"
command = ["{forebay}", "worker", "--listen", "{address}", "--instance-type", "{instance_type}", "--model", "{model}"]
env = { CUDA_DEVICE_ORDER = "PCI_BUS_ID" }
[provider.existing]
kind = "static"
[instance_type."ml.p5.48xlarge"]
provider = "local"
capacity = 1
max_concurrency = 20
[instance_type."ml.g6.48xlarge"]
provider = "local"
max_concurrency = 8
[instance_type."onprem.a100"]
provider = "existing"
addresses = ["http://127.0.0.1:9001", "https://gpu-1.internal:9443"]
[[endpoint]]
name = "my-endpoint"
[[endpoint.variant]]
name = "primary"
model = "my-llm"
initial_instance_count = 2
max_instance_count = 6
[[endpoint.variant.pool]]
instance_type = "ml.p5.48xlarge"
model = "my-llm-p5"
[[endpoint.variant.pool]]
instance_type = "onprem.a100"
priority = 3
[[endpoint.variant.pool]]
instance_type = "ml.g6.48xlarge"
priority = 2
"#;

#[test]
fn the_reference_shows_the_defaults_as_they_are() {
    let (short, _) = config::load_str(ONLY_WHAT_IS_NEEDED, "short").expect("no mistake");
    let mut reference = load("reference.toml");
    // A listener for TLS is there only with certificates, of which the reference names an example.
    assert!(reference.proxy.tls.take().is_some());
    assert!(reference.admin.tls.take().is_some());
    // Keys are needed only where there are some.
    assert_eq!(std::mem::take(&mut reference.api_keys).len(), 1);
    // Nor does a fleet change its size unless it is told how.
    let fleet = std::sync::Arc::make_mut(&mut reference.fleet);
    let variant = &mut fleet.endpoints[0].variants[0];
    assert_eq!(std::mem::take(&mut variant.scaling).len(), 3);
    assert_eq!(std::mem::take(&mut variant.schedule).len(), 2);
    assert_eq!(reference, short);
}

#[test]
fn defaults_are_the_documented_ones() {
    let (config, _) = config::load_str(ONLY_WHAT_IS_NEEDED, "short").expect("no mistake");
    let variant = only_variant(&config);
    let a100 = &config.fleet.instance_types["onprem.a100"];
    assert_eq!(config.proxy.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
    assert!(config.proxy.threads >= 1);
    assert_eq!(config.proxy.max_body_buffer, 1_048_576);
    assert_eq!(config.proxy.max_body_bytes, None);
    assert_eq!(config.proxy.drain_timeout, Duration::from_secs(600));
    assert_eq!(config.manager.on_exit, None);
    assert_eq!(config.store.path, Path::new("forebay.db"));
    assert_eq!(
        (a100.max_concurrency, a100.copies, a100.capacity, a100.engine),
        (256, 1, None, None)
    );
    assert_eq!(a100.signals.interval, Duration::from_secs(15));
    assert_eq!(variant.min_instance_count, 1);
    assert_eq!(variant.provision_timeout, Duration::from_secs(1_200));
    assert_eq!(variant.startup_timeout, Duration::from_secs(600));
    assert_eq!(variant.drain_timeout, Duration::from_secs(600));
    assert_eq!(variant.health.check, HealthCheck::Get("/ping".into()));
    assert_eq!(variant.queue.limit, 1_024);
    assert_eq!(variant.requests, RequestPolicy::default());
    assert_eq!(variant.pools.iter().map(|pool| pool.priority).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn counts_follow_each_other_when_they_are_left_out() {
    let counts = |lines: &str| {
        let text = ONLY_WHAT_IS_NEEDED
            .replace("initial_instance_count = 2\nmax_instance_count = 6", lines);
        let (config, _) = config::load_str(&text, "counts").expect("no mistake");
        let variant = only_variant(&config);
        (variant.min_instance_count, variant.initial_instance_count, variant.max_instance_count)
    };
    assert_eq!(counts(""), (1, 1, 1));
    assert_eq!(counts("min_instance_count = 3"), (3, 3, 3));
    assert_eq!(counts("initial_instance_count = 4"), (1, 4, 4));
    assert_eq!(counts("max_instance_count = 5"), (1, 1, 5));
    assert_eq!(counts("min_instance_count = 0"), (0, 0, 1));
}

/// A key that no table has makes each table list the keys that it may have; all of those must be in
/// the reference, as a key, a table's name, or a commented key.
#[test]
fn the_reference_has_every_key() {
    let reference = std::fs::read_to_string(example("reference.toml")).expect("readable");
    let mut probed = String::new();
    for line in reference.lines() {
        probed.push_str(line);
        probed.push('\n');
        if line.trim_start().starts_with('[') {
            probed.push_str("qqqqqqqqqqqq = 1\n");
        }
    }
    let probed = format!("qqqqqqqqqqqq = 1\n{probed}");
    let mistakes = config::load_str(&probed, "reference").expect_err("unknown keys");
    let keys: BTreeSet<String> = mistakes
        .iter()
        .filter_map(|mistake| mistake.message.split_once("it may have "))
        .flat_map(|(_, keys)| keys.split(", ").map(|key| key.trim_matches('`').to_owned()))
        .collect();
    assert!(keys.len() > 40, "{keys:?}");
    let missing: Vec<_> = keys
        .iter()
        .filter(|key| {
            !reference.lines().any(|line| {
                let line = line.trim_start().trim_start_matches("# ");
                line.starts_with(&format!("{key} = "))
                    || line.starts_with(&format!("{key}."))
                    || line.starts_with(&format!("[{key}"))
                    || line.starts_with(&format!("[[{key}]]"))
                    || line.contains(&format!(".{key}]"))
            })
        })
        .collect();
    assert!(missing.is_empty(), "not in the reference: {missing:?}");
}

#[test]
fn provider_settings_arrive() {
    let text = std::fs::read_to_string(example("reference.toml"))
        .expect("readable")
        .replace("# logs = \"logs\"", "logs = \"some/where\"");
    let (config, _) = config::load_str(&text, "reference").expect("no mistake");
    let ProviderConfig::Process { command, env, logs } = &config.providers["local"] else {
        panic!("a process provider");
    };
    assert_eq!(command[..3], ["{forebay}", "worker", "--listen"]);
    assert_eq!(env["CUDA_DEVICE_ORDER"], "PCI_BUS_ID");
    assert_eq!(logs.as_deref(), Some(Path::new("some/where")));
    assert_eq!(config.providers["existing"], ProviderConfig::Static);
}

#[test]
fn commented_keys_of_the_reference_are_valid_too() {
    let text: String = std::fs::read_to_string(example("reference.toml"))
        .expect("readable")
        .lines()
        .map(|line| {
            let bare = line.trim_start();
            let is_key = bare.strip_prefix("# ").is_some_and(|rest| {
                rest.split_once(" = ").is_some_and(|(key, _)| {
                    key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                })
            });
            // The one way to ask for health that goes with neither another nor with HTTP/1.1.
            let is_other = bare.starts_with("# health_grpc_service");
            let line = if is_key && !is_other { &bare[2..] } else { line };
            // The example follows a manager elsewhere, over TLS, and scaling to zero needs a minimum of 0.
            let line = line.replace(
                "manager = \"http://127.0.0.1:8081\"",
                "manager = \"https://127.0.0.1:9\"",
            );
            line.replace("min_instance_count = 1 ", "min_instance_count = 0 ") + "\n"
        })
        .collect();
    let (config, warnings) = config::load_str(&text, "uncommented").expect("no mistake");
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(config.proxy.manager_tls.ca_file.is_some());
    assert!(config.proxy.manager.is_some() && config.manager.on_exit.is_some());
    assert_eq!(config.proxy.threads, 2);
    let key = &config.api_keys[0];
    assert!(key.rate.is_some() && key.endpoints.is_some());
    let requests = &only_variant(&config).requests;
    assert_eq!(requests.priority_header.as_deref(), Some("x-priority"));
    assert_eq!(requests.stall_timeout, Some(Duration::from_secs(60)));
    assert_eq!(only_variant(&config).scale_to_zero_after, Some(Duration::from_secs(900)));
    let p5 = &config.fleet.instance_types["ml.p5.48xlarge"];
    assert!(p5.engine.is_some() && p5.price_per_hour.is_some() && p5.watts.is_some());
    let signals = &p5.signals;
    assert_eq!((signals.path.as_deref(), signals.port), (Some("/metrics"), Some(8002)));
    assert!(signals.load_metrics.is_some());
    assert!(signals.gpu.is_some() && signals.gpu_labels["pod"] == "{instance}");
}
