//! The feed between a manager and the proxies in other processes: tables out, by long poll; reports in.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ApiState;
use super::error::ApiError;
use crate::types::report::ProxyReport;
use crate::types::table::{RoutingTable, TableVersion};

/// The longest wait that can be asked for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a follower has and how long it waits for more.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableQuery {
    /// The table it has, as `EPOCH.REVISION`; none to begin with.
    after: Option<String>,
    /// Milliseconds to wait for a newer one; 0 to be answered at once.
    #[serde(default)]
    wait_ms: u64,
}

pub(super) async fn table(
    State(state): State<ApiState>,
    stop: Option<Extension<CancellationToken>>,
    query: Result<Query<TableQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let after = query.after.as_deref().map_or(Ok(TableVersion::default()), str::parse);
    let after = after.map_err(|_| {
        ApiError::bad_request("after must be a version as EPOCH.REVISION, such as 3.14")
    })?;
    let wait = Duration::from_millis(query.wait_ms).min(LONGEST_WAIT);
    let mut tables = state.manager()?.tables();
    let stopping = stop.map_or_else(CancellationToken::new, |Extension(token)| token);
    let newer = tokio::select! {
        newer = timeout(wait, tables.wait_for(|table| table.version > after)) => newer,
        () = stopping.cancelled() => return Ok(StatusCode::NO_CONTENT.into_response()),
    };
    match newer {
        Ok(Ok(table)) => {
            let table: Arc<RoutingTable> = table.clone();
            Ok(Json(table).into_response())
        }
        Ok(Err(_gone)) => Err(crate::control::HandleError::Ended.into()),
        Err(_elapsed) => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

pub(super) async fn report(
    State(state): State<ApiState>,
    report: Result<Json<ProxyReport>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(report) = report?;
    state.manager()?.report(report).await?;
    Ok(StatusCode::NO_CONTENT)
}
