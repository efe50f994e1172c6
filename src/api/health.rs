//! Whether the process lives, whether it can do its work, and its metrics.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use tokio::time::timeout;

use super::ApiState;
use super::error::ApiError;
use crate::telemetry::signals;

/// How long a scrape waits for the manager.
const STATUS_TIME: Duration = Duration::from_secs(1);
/// The text format that scrapers ask for.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn alive() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(state): State<ApiState>) -> Result<&'static str, ApiError> {
    let manager = state.manager.as_ref().and_then(|manager| manager.readiness().err());
    let proxy = state.proxy.as_ref().and_then(|ready| ready().err());
    let missing: Vec<_> = [("manager", manager), ("proxy", proxy)]
        .into_iter()
        .filter_map(|(half, missing)| Some(format!("{half}: {}", missing?)))
        .collect();
    if missing.is_empty() { Ok("ready\n") } else { Err(ApiError::not_ready(&missing.join("; "))) }
}

pub(super) async fn metrics(State(state): State<ApiState>) -> Result<impl IntoResponse, ApiError> {
    let mut told = String::new();
    if let Some(manager) = &state.manager {
        // One that only stands by has no fleet to show, and one that hangs must not hide the traffic.
        if let Ok(Ok(status)) = timeout(STATUS_TIME, manager.status()).await {
            state.fleet_metrics.refresh(&status, &manager.spec());
            told = signals::render(&status);
        }
    }
    for refresh in &state.refresh {
        refresh().await;
    }
    let text = state.metrics.as_ref().map(|handle| {
        handle.run_upkeep();
        handle.render()
    });
    Ok(([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text.unwrap_or_default() + &told))
}
