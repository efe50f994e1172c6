//! What the manager counts: instances by state, desired counts, refusals for lack of capacity, cost and
//! power. Gauges follow [`FleetStatus`] at each scrape; a series whose instances are gone shows 0.
//!
//! Every metric has the label `InstanceType`, `none` where no instance type is meant.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Label, Unit, counter, describe_counter, describe_gauge, gauge};

use crate::types::spec::FleetSpec;
use crate::types::status::{FleetStatus, InstanceStatus, VariantStatus};
use crate::types::{
    EndpointName, InstanceState, InstanceTypeName, ProviderError, ProviderName, VariantKey,
};

/// Instances, by pool and state.
pub const INSTANCE_COUNT: &str = "forebay_instance_count";
/// Instances that there should be.
pub const DESIRED_INSTANCE_COUNT: &str = "forebay_desired_instance_count";
/// A pool's place in its variant's list; 1 is the highest. What is not first is fallback.
pub const POOL_PRIORITY: &str = "forebay_pool_priority";
/// Launches refused for lack of capacity.
pub const CAPACITY_ERRORS: &str = "forebay_capacity_errors_total";
/// Calls of a provider that failed, whatever the reason.
pub const PROVIDER_ERRORS: &str = "forebay_provider_errors_total";
/// What the running instances cost.
pub const FLEET_PRICE: &str = "forebay_fleet_price_per_hour";
/// What the running instances draw.
pub const FLEET_POWER: &str = "forebay_fleet_power_watts";
/// Questions to instances for their own view of their load.
pub const SCRAPES: &str = "forebay_scrapes_total";
/// Proxies that report.
pub const PROXY_COUNT: &str = "forebay_proxies";

/// A metric's name and labels.
type Series = (&'static str, Vec<Label>);

/// The manager's metrics. Cheap to clone; every handle is looked up once and kept.
#[derive(Clone, Default)]
pub struct FleetMetrics {
    gauges: Arc<Mutex<HashMap<Series, Gauge>>>,
    counters: Arc<Mutex<HashMap<Series, Counter>>>,
}

impl FleetMetrics {
    /// Describes every metric to the recorder that is installed.
    #[must_use]
    pub fn new() -> Self {
        describe_gauge!(INSTANCE_COUNT, Unit::Count, "Instances of a pool by state.");
        describe_gauge!(
            DESIRED_INSTANCE_COUNT,
            Unit::Count,
            "Instances that a variant should have."
        );
        describe_gauge!(
            POOL_PRIORITY,
            Unit::Count,
            "A pool's place in its variant's list: 1 is the highest, what comes after the first is fallback."
        );
        describe_counter!(
            CAPACITY_ERRORS,
            Unit::Count,
            "Launches that a provider refused for lack of capacity or quota."
        );
        describe_counter!(
            PROVIDER_ERRORS,
            Unit::Count,
            "Failed calls of a provider by kind of error."
        );
        describe_counter!(
            SCRAPES,
            Unit::Count,
            "Scrapes of engines' and GPU exporters' metrics by outcome."
        );
        describe_gauge!(
            FLEET_PRICE,
            "Cost per hour of a pool's running instances, in the currency of the config."
        );
        describe_gauge!(FLEET_POWER, "Power draw of a pool's running instances in watts.");
        describe_gauge!(PROXY_COUNT, Unit::Count, "Proxies that report to this manager.");
        Self::default()
    }

    /// Counts a launch of `kind` for `variant` that was refused for lack of capacity.
    pub fn capacity_error(&self, variant: &VariantKey, kind: &InstanceTypeName) {
        let labels = labels(&variant.endpoint, variant.variant.as_str(), kind.as_str());
        self.counter((CAPACITY_ERRORS, labels)).increment(1);
    }

    /// Counts a failed call of `provider`.
    pub fn provider_error(
        &self,
        provider: &ProviderName,
        call: &'static str,
        error: &ProviderError,
    ) {
        let labels = vec![
            Label::from_static_parts("InstanceType", "none"),
            Label::new("provider", provider.to_string()),
            Label::from_static_parts("call", call),
            Label::from_static_parts("kind", error.kind()),
        ];
        self.counter((PROVIDER_ERRORS, labels)).increment(1);
    }

    /// Counts a scrape of an instance of `kind`: of its `engine`, or of its `gpu`s.
    pub fn scraped(
        &self,
        variant: &VariantKey,
        kind: &InstanceTypeName,
        source: &'static str,
        is_ok: bool,
    ) {
        let mut labels = labels(&variant.endpoint, variant.variant.as_str(), kind.as_str());
        labels.push(Label::from_static_parts("source", source));
        let outcome = if is_ok { "ok" } else { "failed" };
        labels.push(Label::from_static_parts("outcome", outcome));
        self.counter((SCRAPES, labels)).increment(1);
    }

    /// Makes the gauges show `status`. `spec` has what instance types cost and draw.
    pub fn refresh(&self, status: &FleetStatus, spec: &FleetSpec) {
        let mut values = BTreeMap::new();
        for endpoint in &status.endpoints {
            for variant in &endpoint.variants {
                self.measure(&endpoint.name, variant, spec, &mut values);
            }
        }
        let none = vec![Label::from_static_parts("InstanceType", "none")];
        values.insert(
            (PROXY_COUNT, none),
            status.proxies.iter().filter(|p| !p.silent).count() as f64,
        );
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        for (series, gauge) in gauges.iter() {
            if !values.contains_key(series) {
                gauge.set(0.0);
            }
        }
        for (series, value) in values {
            let handle = gauges
                .entry(series)
                .or_insert_with_key(|(name, labels)| gauge!(*name, labels.clone()));
            handle.set(value);
        }
    }

    fn measure(
        &self,
        endpoint: &EndpointName,
        variant: &VariantStatus,
        spec: &FleetSpec,
        values: &mut BTreeMap<Series, f64>,
    ) {
        let name = variant.name.as_str();
        let desired = labels(endpoint, name, "none");
        values.insert((DESIRED_INSTANCE_COUNT, desired), f64::from(variant.desired_instance_count));
        for pool in &variant.pools {
            let labels = labels(endpoint, name, pool.instance_type.as_str());
            values.insert((POOL_PRIORITY, labels), f64::from(pool.priority));
        }
        let pools = variant.pools.iter().map(|pool| &pool.instance_type);
        let kinds = pools.chain(variant.instances.iter().map(|instance| &instance.instance_type));
        for kind in kinds {
            // A refusal is to be seen as a rise from 0.
            self.counter((CAPACITY_ERRORS, labels(endpoint, name, kind.as_str()))).increment(0);
            let of_kind = || variant.instances.iter().filter(|i| &i.instance_type == kind);
            for state in InstanceState::ALL {
                let count = of_kind().filter(|instance| instance.state == state).count();
                let mut labels = labels(endpoint, name, kind.as_str());
                labels.push(Label::from_static_parts("state", state.as_str()));
                values.insert((INSTANCE_COUNT, labels), count as f64);
            }
            let running = of_kind().filter(|instance| runs(instance)).count() as f64;
            let facts = spec.instance_types.get(kind);
            let each = [
                (FLEET_PRICE, facts.and_then(|facts| facts.price_per_hour)),
                (FLEET_POWER, facts.and_then(|facts| facts.watts)),
            ];
            for (metric, fact) in each {
                if let Some(fact) = fact {
                    values.insert((metric, labels(endpoint, name, kind.as_str())), fact * running);
                }
            }
        }
    }

    fn counter(&self, series: Series) -> Counter {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters
            .entry(series)
            .or_insert_with_key(|(name, labels)| counter!(*name, labels.clone()))
            .clone()
    }
}

fn labels(endpoint: &EndpointName, variant: &str, kind: &str) -> Vec<Label> {
    vec![
        Label::new("InstanceType", kind.to_owned()),
        Label::new("endpoint", endpoint.to_string()),
        Label::new("variant", variant.to_owned()),
    ]
}

/// Whether an instance exists at its provider, and so costs.
fn runs(instance: &InstanceStatus) -> bool {
    instance.state != InstanceState::Pending
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    fn status(json: &str) -> FleetStatus {
        serde_json::from_str(json).expect("a status")
    }

    fn instance(id: &str, kind: &str, state: &str) -> String {
        format!(
            r#"{{"id":"{id}","generation":1,"instance_type":"{kind}","provider":"p","state":"{state}",
            "address":null,"outstanding":0,"copies":1,"model":"m","asked_at":0,"reason":null}}"#
        )
    }

    fn fleet(instances: &[String]) -> FleetStatus {
        let instances = instances.join(",");
        status(&format!(
            r#"{{"endpoints":[{{"name":"e","status":"InService","variants":[{{"name":"v",
            "desired_instance_count":3,"in_service_instance_count":0,"queued":0,"waiting_for":null,
            "price_per_hour":null,"pools":[{{"instance_type":"p5","priority":1,
            "current_instance_count":0,"in_service_instance_count":0}}],
            "instances":[{instances}]}}]}}]}}"#
        ))
    }

    fn spec() -> FleetSpec {
        let kind = crate::types::spec::InstanceTypeSpec {
            provider: ProviderName::new("p").expect("valid"),
            capacity: None,
            max_concurrency: 1,
            copies: 1,
            protocol: crate::types::Protocol::Http1,
            tls: None,
            engine: None,
            on_client_abort: crate::types::spec::OnClientAbort::default(),
            addresses: vec![],
            price_per_hour: Some(2.5),
            watts: Some(700.0),
            signals: Default::default(),
        };
        let name = InstanceTypeName::new("p5").expect("valid");
        FleetSpec { instance_types: [(name, kind)].into(), endpoints: vec![] }
    }

    #[test]
    fn gauges_follow_the_fleet_and_fall_back_to_0() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let rendered = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let metrics = FleetMetrics::new();
            let three = [
                instance("a", "p5", "InService"),
                instance("b", "p5", "Pending"),
                instance("c", "g6", "Starting"),
            ];
            metrics.refresh(&fleet(&three), &spec());
            let text = rendered.render();
            let pool = r#"InstanceType="p5",endpoint="e",variant="v""#;
            for line in [
                format!("forebay_instance_count{{{pool},state=\"InService\"}} 1"),
                format!("forebay_instance_count{{{pool},state=\"Draining\"}} 0"),
                r#"forebay_instance_count{InstanceType="g6",endpoint="e",variant="v",state="Starting"} 1"#.into(),
                r#"forebay_desired_instance_count{InstanceType="none",endpoint="e",variant="v"} 3"#.into(),
                format!("forebay_pool_priority{{{pool}}} 1"),
                format!("forebay_capacity_errors_total{{{pool}}} 0"),
                format!("forebay_fleet_price_per_hour{{{pool}}} 2.5"),
                format!("forebay_fleet_power_watts{{{pool}}} 700"),
                r#"forebay_proxies{InstanceType="none"} 0"#.into(),
            ] {
                assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
            }
            let key = VariantKey {
                endpoint: EndpointName::new("e").expect("valid"),
                variant: crate::types::VariantName::new("v").expect("valid"),
            };
            metrics.capacity_error(&key, &InstanceTypeName::new("p5").expect("valid"));
            metrics.refresh(&fleet(&[]), &spec());
            let text = rendered.render();
            for line in [
                format!("forebay_instance_count{{{pool},state=\"InService\"}} 0"),
                r#"forebay_instance_count{InstanceType="g6",endpoint="e",variant="v",state="Starting"} 0"#.into(),
                format!("forebay_capacity_errors_total{{{pool}}} 1"),
                format!("forebay_fleet_power_watts{{{pool}}} 0"),
            ] {
                assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
            }
        });
    }

    #[test]
    fn every_series_has_the_instance_type_and_every_metric_its_help() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let rendered = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let metrics = FleetMetrics::new();
            let provider = ProviderName::new("p").expect("valid");
            metrics.provider_error(&provider, "list", &ProviderError::unavailable("x"));
            metrics.refresh(&fleet(&[instance("a", "p5", "InService")]), &spec());
        });
        let text = rendered.render();
        let names = [
            INSTANCE_COUNT,
            DESIRED_INSTANCE_COUNT,
            CAPACITY_ERRORS,
            PROVIDER_ERRORS,
            FLEET_PRICE,
            FLEET_POWER,
            PROXY_COUNT,
        ];
        for name in names {
            assert!(text.contains(&format!("# HELP {name} ")), "no help for {name} in\n{text}");
            assert!(text.contains(&format!("\n{name}{{")), "no {name} in\n{text}");
        }
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(line.contains("InstanceType=\""), "{line}");
        }
    }
}
