//! The access log and traces as the config describes them.

use super::AppError;
use crate::config::{AccessLogTarget, TelemetryConfig};
use crate::runtime::tasks::Tasks;
use crate::telemetry::access::{AccessLog, Target};
use crate::telemetry::request::Observers;
use crate::telemetry::trace::Tracer;

/// Starts what `config` asks for; `id` names this process in traces.
pub(super) fn start(
    config: &TelemetryConfig,
    id: &str,
    tasks: &Tasks,
) -> Result<Observers, AppError> {
    let target = match &config.access_log {
        AccessLogTarget::Off => None,
        AccessLogTarget::Stderr => Some(Target::Stderr),
        AccessLogTarget::File(path) => Some(Target::File(path.clone())),
    };
    let access = target
        .map(|target| AccessLog::start(target, config.access_log_sample, tasks))
        .transpose()
        .map_err(AppError::Start)?;
    let tracer = config
        .otlp_endpoint
        .as_ref()
        .map(|endpoint| Tracer::start(endpoint, config.trace_sample, id, tasks));
    Ok(Observers { access, tracer })
}
