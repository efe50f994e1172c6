//! `[telemetry]`: the access log and traces. Metrics need no setting; logs are set by the environment
//! ([`crate::telemetry::logs`]).

use std::path::PathBuf;

use toml::de::DeValue;

use super::reader::Table;
use super::values::{Read, Wrong};
use crate::types::Address;

/// What is told about single requests, and where to.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// Where the access log goes.
    pub access_log: AccessLogTarget,
    /// The share of requests that the access log has, 0 to 1; failures are always in it.
    pub access_log_sample: f64,
    /// The OTLP/HTTP receiver that spans are sent to, without `/v1/traces`; `None`: no traces.
    pub otlp_endpoint: Option<Address>,
    /// The share of traces that start here which are recorded, 0 to 1. Where the client has decided, its
    /// decision holds.
    pub trace_sample: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            access_log: AccessLogTarget::Off,
            access_log_sample: 1.0,
            otlp_endpoint: None,
            trace_sample: 0.01,
        }
    }
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    Off,
    /// Standard error, among the other logs.
    Stderr,
    /// Appended to this file.
    File(PathBuf),
}

impl Read for AccessLogTarget {
    const EXPECTED: &'static str = "\"off\", \"stderr\" or the path of a file, in quotes";

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value.as_str() {
            None => Err(Wrong::Type),
            Some("off") => Ok(Self::Off),
            Some("stderr") => Ok(Self::Stderr),
            Some("stdout" | "-") => Err(Wrong::Value(
                "must be \"off\", \"stderr\" or the path of a file: standard output is not logged to"
                    .to_owned(),
            )),
            Some(_) => PathBuf::read(value).map(Self::File),
        }
    }
}

/// Reads the section.
pub(super) fn read(root: &Table<'_>) -> TelemetryConfig {
    let default = TelemetryConfig::default();
    let Some(table) = root.table("telemetry") else { return default };
    let endpoint = table.get::<Address>("otlp_endpoint");
    if let Some(found) = endpoint.as_ref().filter(|found| found.is_tls()) {
        let rule = "`otlp_endpoint` must begin with http://: spans are sent without TLS; send them to a \
                    collector on this machine, which may pass them on with TLS";
        root.sink().error(found.at, rule.to_owned());
    }
    TelemetryConfig {
        access_log: table.or("access_log", default.access_log),
        access_log_sample: table.number_or(
            "access_log_sample",
            0.0..=1.0,
            default.access_log_sample,
        ),
        otlp_endpoint: endpoint.map(|found| found.value),
        trace_sample: table.number_or("trace_sample", 0.0..=1.0, default.trace_sample),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_str;

    fn read(section: &str) -> Result<TelemetryConfig, String> {
        match load_str(section, "t.toml") {
            Ok((config, _)) => Ok(config.telemetry),
            Err(mistakes) => {
                Err(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    #[test]
    fn nothing_is_told_about_single_requests_unless_asked_for() {
        assert_eq!(read(""), Ok(TelemetryConfig::default()));
        assert_eq!(read("[telemetry]"), Ok(TelemetryConfig::default()));
        let all = read(
            "[telemetry]\naccess_log = \"logs/access.jsonl\"\naccess_log_sample = 0.1\n\
             otlp_endpoint = \"http://127.0.0.1:4318\"\ntrace_sample = 1",
        );
        let all = all.expect("valid");
        assert_eq!(all.access_log, AccessLogTarget::File("logs/access.jsonl".into()));
        assert_eq!(all.otlp_endpoint.map(|a| a.to_string()), Some("http://127.0.0.1:4318".into()));
        assert!((all.access_log_sample - 0.1).abs() < f64::EPSILON);
        assert!((all.trace_sample - 1.0).abs() < f64::EPSILON);
        let stderr = read("[telemetry]\naccess_log = \"stderr\"").expect("valid");
        assert_eq!(stderr.access_log, AccessLogTarget::Stderr);
    }

    #[test]
    fn what_cannot_be_is_a_mistake() {
        for (section, says) in [
            ("access_log = true", "\"off\", \"stderr\" or the path of a file"),
            ("access_log = \"\"", "must not be empty"),
            ("access_log = \"stdout\"", "standard output is not logged to"),
            ("access_log_sample = 1.5", "`access_log_sample` must be 0 to 1, not 1.5"),
            ("trace_sample = -0.1", "`trace_sample` must be 0 to 1"),
            ("otlp_endpoint = \"https://collector:4318\"", "without TLS"),
            ("otlp_endpoint = \"http://c:4318/v1/traces\"", "without a path"),
            ("acess_log = \"off\"", "did you mean `access_log`"),
        ] {
            let mistakes = read(&format!("[telemetry]\n{section}")).expect_err(section);
            assert!(mistakes.contains(says), "{section}: {mistakes}");
            assert!(mistakes.contains(":2:"), "{section}: {mistakes}");
        }
    }
}
