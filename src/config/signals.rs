//! The keys of an instance type that say where its instances tell their own view of their load. All have
//! defaults; where the engine is known, so is the place.

use std::collections::BTreeMap;

use http::uri::PathAndQuery;

use super::limits::{self, Span};
use super::mistake::Sink;
use super::provider::Kind;
use super::reader::{Located, Table};
use super::values::{Word, shortened};
use crate::types::spec::{GpuSource, LoadFormat, SignalSpec};

/// The word for the program of that name.
const NVIDIA_SMI: &str = "nvidia-smi";
/// What may be filled in.
const HOST: &str = "{host}";
const INSTANCE: &str = "{instance}";
/// Below this, asking is work for the engine.
const OFTEN: std::time::Duration = std::time::Duration::from_secs(1);

impl Word for LoadFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

pub(super) fn read(table: &Table<'_>, kind: Option<Kind>) -> SignalSpec {
    let default = SignalSpec::default();
    let sink = table.sink();
    let interval = limits::duration_at(table, "scrape_interval", Span::Any);
    let path = table.get::<String>("metrics_path");
    let port = table.get_in("metrics_port", 1..=u32::from(u16::MAX), u32::to_string);
    let gpu_metrics = table.get::<String>("gpu_metrics");
    let labels = table.named_texts("gpu_labels");
    let load_metrics = table.get::<LoadFormat>("load_metrics_format");
    if let Some(path) = &path
        && (!path.starts_with('/')
            || PathAndQuery::try_from(path.as_str()).is_err()
            || path.contains('#'))
    {
        sink.error(path.at, "`metrics_path` must be the path of a GET, such as \"/metrics\"");
    }
    if let Some(interval) = interval.as_ref().filter(|i| !i.is_zero() && i.value < OFTEN) {
        let rule = "`scrape_interval` is below 1s: engines tell their metrics with the same threads that \
                    serve requests";
        sink.warning(interval.at, rule);
    }
    if interval.as_ref().is_some_and(|interval| interval.is_zero()) {
        for key in ["metrics_path", "metrics_port", "gpu_metrics", "gpu_labels"] {
            table.warn_at(key, format!("`{key}` has no effect with `scrape_interval = \"0s\"`"));
        }
    }
    let gpu = gpu_metrics.as_ref().map(|source| gpu_source(source, kind, sink));
    if let (Some((first, _)), None) = (labels.first(), &gpu_metrics) {
        sink.error(first.at, "`gpu_labels` pick among what `gpu_metrics` tells; name that too");
    }
    for (_, value) in &labels {
        check_placeholders("`gpu_labels`", value, &[INSTANCE, HOST], sink);
    }
    let named = |(name, value): (Located<&str>, Located<String>)| (name.value.into(), value.value);
    SignalSpec {
        interval: interval.map_or(default.interval, |found| found.value),
        path: path.map(|found| found.value),
        port: port.and_then(|found| u16::try_from(found.value).ok()),
        gpu,
        gpu_labels: labels.into_iter().map(named).collect::<BTreeMap<_, _>>(),
        load_metrics: load_metrics.map(|found| found.value),
    }
}

fn gpu_source(source: &Located<String>, kind: Option<Kind>, sink: &Sink<'_>) -> GpuSource {
    if source.as_str() == NVIDIA_SMI {
        if kind == Some(Kind::Static) {
            let rule = "`gpu_metrics` \"nvidia-smi\" asks the manager's own machine, where servers of a static \
                        provider need not run; write the URL of an exporter there";
            sink.error(source.at, rule);
        }
        return GpuSource::NvidiaSmi;
    }
    check_placeholders("`gpu_metrics`", source, &[HOST], sink);
    let example = source.replace(HOST, "host");
    let is_url = example.parse::<http::Uri>().is_ok_and(|url| {
        url.scheme_str() == Some("http") && url.host().is_some_and(|host| !host.is_empty())
    });
    if !is_url {
        let rule = format!(
            "`gpu_metrics` must be \"nvidia-smi\" or the URL of an exporter, such as \
             \"http://{{host}}:9400/metrics\", over plain http, not \"{}\"",
            shortened(source)
        );
        sink.error(source.at, rule);
    }
    GpuSource::Exporter(source.value.clone())
}

fn check_placeholders(key: &str, text: &Located<String>, known: &[&str], sink: &Sink<'_>) {
    let rest = known.iter().fold(text.value.clone(), |rest, one| rest.replace(one, ""));
    if rest.contains(['{', '}']) {
        let known = known.join(" and ");
        sink.error(text.at, format!("{key} may have {known} in braces, and nothing else"));
    }
}
