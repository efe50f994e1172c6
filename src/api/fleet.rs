//! The fleet: what it is, why, and the commands that change it.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::{ApiState, ReloadOutcome};
use crate::control::ManagerHandle;
use crate::types::status::{Explanation, FleetStatus};
use crate::types::{EndpointName, VariantName};

/// How many instances a variant should have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScaleRequest {
    #[serde(default)]
    variant: Option<String>,
    desired_instance_count: u32,
}

/// What was set.
#[derive(Debug, Serialize)]
pub(super) struct Scaled {
    endpoint: EndpointName,
    variant: VariantName,
    desired_instance_count: u32,
}

/// What drains now.
#[derive(Debug, Serialize)]
pub(super) struct Draining {
    instance: String,
    state: &'static str,
}

impl ApiState {
    /// The manager. Its routes are only there where it is.
    pub(super) fn manager(&self) -> Result<&ManagerHandle, ApiError> {
        self.manager.as_ref().ok_or_else(|| {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "no manager runs in this process")
        })
    }
}

pub(super) async fn status(State(state): State<ApiState>) -> Result<Json<FleetStatus>, ApiError> {
    Ok(Json(state.manager()?.status().await?))
}

pub(super) async fn explain(
    State(state): State<ApiState>,
    endpoint: Result<Path<String>, PathRejection>,
) -> Result<Json<Explanation>, ApiError> {
    let Path(endpoint) = endpoint?;
    Ok(Json(state.manager()?.explain(&endpoint).await?))
}

pub(super) async fn scale(
    State(state): State<ApiState>,
    endpoint: Result<Path<String>, PathRejection>,
    request: Result<Json<ScaleRequest>, JsonRejection>,
) -> Result<Json<Scaled>, ApiError> {
    let (Path(endpoint), Json(request)) = (endpoint?, request?);
    let desired_instance_count = request.desired_instance_count;
    let manager = state.manager()?;
    let key = manager.scale(&endpoint, request.variant.as_deref(), desired_instance_count).await?;
    Ok(Json(Scaled { endpoint: key.endpoint, variant: key.variant, desired_instance_count }))
}

pub(super) async fn drain(
    State(state): State<ApiState>,
    instance: Result<Path<String>, PathRejection>,
) -> Result<Json<Draining>, ApiError> {
    let Path(instance) = instance?;
    state.manager()?.drain(&instance).await?;
    Ok(Json(Draining { instance, state: "Draining" }))
}

pub(super) async fn reload(State(state): State<ApiState>) -> Result<Json<ReloadOutcome>, ApiError> {
    let reload = state.reload.as_ref().ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "this process has no config to read again",
        )
    })?;
    Ok(Json(reload().await?))
}
