//! The composition root: config in, everything wired, start order and drain order out.

use std::path::Path;

use thiserror::Error;

use crate::config::{self, Mistake};

/// Why a command could not do its work.
#[derive(Debug, Error)]
pub enum AppError {
    /// The config cannot be used. One mistake a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<Mistake>),
    /// This build has no such part.
    #[error("{0} is not part of this build")]
    Absent(&'static str),
}

/// Runs both halves until told to end.
///
/// # Errors
/// [`AppError`].
pub fn serve(path: &Path) -> Result<(), AppError> {
    absent(path, "serve")
}

/// Runs the proxy alone until told to end.
///
/// # Errors
/// [`AppError`].
pub fn proxy(path: &Path) -> Result<(), AppError> {
    absent(path, "proxy")
}

/// Runs the manager alone until told to end.
///
/// # Errors
/// [`AppError`].
pub fn manager(path: &Path) -> Result<(), AppError> {
    absent(path, "manager")
}

/// What the manager would do now, as text; does nothing.
///
/// # Errors
/// [`AppError`].
pub fn plan(path: &Path) -> Result<String, AppError> {
    absent(path, "plan").map(|()| String::new())
}

fn absent(path: &Path, what: &'static str) -> Result<(), AppError> {
    config::load(path).map_err(AppError::Config)?;
    Err(AppError::Absent(what))
}
