//! `forebay plan`: what the manager would do now.

use std::path::Path;

use super::AppError;
use crate::config;

/// What the manager would do now, as text; does nothing.
///
/// # Errors
/// [`AppError`].
pub fn plan(path: &Path) -> Result<String, AppError> {
    let (config, _) = config::load(path).map_err(AppError::Config)?;
    let _ = config;
    Ok(String::new())
}
