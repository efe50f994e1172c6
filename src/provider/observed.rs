//! Metrics and logs around each call of any provider.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Provider;
use crate::runtime::clock;
use crate::types::launch::{LaunchBatch, LaunchOutcome, ProviderInstance};
use crate::types::record::InstanceRecord;
use crate::types::{InstanceId, ProviderError, ProviderName};

/// How long provider calls take: a histogram in seconds with the labels `InstanceType` (always `none`),
/// `provider`, `call` (`list`, `launch`, `terminate`) and `result` (`ok`, `partial` for a batch of which
/// a part was granted, or [`ProviderError::kind`]).
pub const CALL_SECONDS: &str = "forebay_provider_call_seconds";

/// A provider whose calls are measured and whose failures are logged.
pub struct Observed {
    inner: Arc<dyn Provider>,
    name: ProviderName,
}

impl Observed {
    /// Watches the calls of `inner`, which the metrics call `name`.
    #[must_use]
    pub fn new(inner: Arc<dyn Provider>, name: ProviderName) -> Self {
        metrics::describe_histogram!(
            CALL_SECONDS,
            metrics::Unit::Seconds,
            "duration of calls to providers, by provider, call and result"
        );
        Self { inner, name }
    }

    fn note(&self, call: &'static str, took: Duration, result: &'static str) {
        let provider = self.name.as_str().to_owned();
        metrics::histogram!(
            CALL_SECONDS,
            "InstanceType" => "none", "provider" => provider, "call" => call, "result" => result
        )
        .record(took.as_secs_f64());
    }

    fn log(&self, call: &'static str, instance: Option<&InstanceId>, error: &ProviderError) {
        let instance = instance.map(tracing::field::display);
        // A want of capacity is an everyday answer, and that it is not there (any more) is success.
        if error.falls_through() || *error == ProviderError::NotFound {
            tracing::debug!(provider = %self.name, call, instance, %error, "provider call was refused");
        } else {
            tracing::warn!(provider = %self.name, call, instance, %error, "provider call failed");
        }
    }
}

fn result_of(outcomes: &[LaunchOutcome]) -> &'static str {
    let first_error = outcomes.iter().find_map(|outcome| outcome.result.as_ref().err());
    let any_granted = outcomes.iter().any(|outcome| outcome.result.is_ok());
    match first_error {
        None => "ok",
        Some(_) if any_granted => "partial",
        Some(error) => error.kind(),
    }
}

impl Provider for Observed {
    fn adopt(&self, records: &[InstanceRecord]) {
        self.inner.adopt(records);
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>> {
        Box::pin(async {
            let began = clock::monotonic();
            let listed = self.inner.list().await;
            let result = listed.as_ref().map_or_else(ProviderError::kind, |_| "ok");
            self.note("list", began.elapsed(), result);
            if let Err(error) = &listed {
                self.log("list", None, error);
            }
            listed
        })
    }

    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>> {
        Box::pin(async move {
            let began = clock::monotonic();
            let outcomes = self.inner.launch(batch).await;
            self.note("launch", began.elapsed(), result_of(&outcomes));
            for outcome in &outcomes {
                if let Err(error) = &outcome.result {
                    self.log("launch", Some(&outcome.instance), error);
                }
            }
            outcomes
        })
    }

    fn terminate(
        &self,
        instance: InstanceId,
        grace: Duration,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async move {
            let began = clock::monotonic();
            let ended = self.inner.terminate(instance.clone(), grace).await;
            let result = ended.as_ref().map_or_else(ProviderError::kind, |()| "ok");
            self.note("terminate", began.elapsed(), result);
            if let Err(error) = &ended {
                self.log("terminate", Some(&instance), error);
            }
            ended
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::provider::fake::{FakeProvider, Script, batch};

    #[test]
    fn every_call_is_measured_with_its_result() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let rendered = recorder.handle();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let fake = FakeProvider::new().with_capacity("g6", 1);
                let name = ProviderName::new("local").expect("valid");
                let observed = Observed::new(Arc::new(fake.clone()), name);
                assert!(observed.list().await.is_ok());
                observed.launch(batch("g6", &["a", "b"])).await;
                observed.launch(batch("g6", &["b"])).await;
                fake.script(Script::Fail(ProviderError::unavailable("scripted")));
                assert!(observed.list().await.is_err());
                let unknown = InstanceId::new("unknown").expect("valid");
                assert!(observed.terminate(unknown, Duration::ZERO).await.is_err());
            });
        });
        let text = rendered.render();
        let seen: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("forebay_provider_call_seconds_count{"))
            .filter_map(|line| line.split_once('}').map(|(labels, _)| labels))
            .collect();
        let label = |call: &str, result: &str| {
            format!(r#"InstanceType="none",provider="local",call="{call}",result="{result}""#)
        };
        let expected = [
            label("launch", "insufficient_capacity"),
            label("launch", "partial"),
            label("list", "ok"),
            label("list", "unavailable"),
            label("terminate", "not_found"),
        ];
        assert_eq!(seen, expected.iter().map(String::as_str).collect(), "{text}");
    }
}
