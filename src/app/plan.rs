//! `forebay plan`: what the manager would do now.

use std::path::Path;
use std::sync::Arc;

use super::AppError;
use crate::config;
use crate::decision::controller::preview;
use crate::runtime::clock;
use crate::store::Store;
use crate::store::sqlite::SqliteStore;
use crate::types::record::StoredState;

/// What the manager would do now, as text; does nothing.
///
/// # Errors
/// [`AppError`].
pub fn plan(path: &Path) -> Result<String, AppError> {
    let (config, _) = config::load(path).map_err(AppError::Config)?;
    let store = &config.store.path;
    // Opening would create it, and a plan does nothing.
    let stored = if store.exists() {
        let failed = |error| AppError::Store { path: store.display().to_string(), error };
        SqliteStore::open(store).map_err(failed)?.load().map_err(failed)?
    } else {
        StoredState::default()
    };
    let lines = preview(clock::now(), Arc::clone(&config.fleet), stored);
    Ok(if lines.is_empty() { "nothing to do".to_owned() } else { lines.join("\n") })
}
