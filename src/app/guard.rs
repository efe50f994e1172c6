//! The tokens of the admin listener, which follow their file.

use std::io;
use std::time::Duration;

use super::AppError;
use crate::api::Guard;
use crate::config::AdminConfig;
use crate::runtime::tasks::Tasks;
use crate::runtime::tokens;

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The guard of the admin listener: with the tokens in its file, or one that lets everybody in, or nobody but those
/// whose certificates somebody vouches for.
///
/// # Errors
/// [`AppError::Token`] when the file cannot be used. Later on that changes nothing and is told once.
pub(super) fn start(admin: &AdminConfig, tasks: &Tasks) -> Result<Guard, AppError> {
    let guard = Guard::default();
    let Some(path) = admin.token_file.clone() else {
        if admin.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) {
            guard.admit(&[]);
        }
        return Ok(guard);
    };
    let mut known = tokens::read(&path).map_err(AppError::Token)?;
    guard.admit(&known);
    let followed = guard.clone();
    tasks.spawn_until_stopped("admin-tokens", async move {
        let mut is_failing = false;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || tokens::read(&path)).await;
            match read.map_err(io::Error::other).and_then(|read| read) {
                Ok(tokens) => {
                    is_failing = false;
                    if tokens != known {
                        followed.admit(&tokens);
                        known = tokens;
                        tracing::info!(tokens = known.len(), "new admin tokens are in force");
                    }
                }
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!(%error, "the admin tokens of before stay in force");
                }
                Err(_) => {}
            }
        }
    });
    Ok(guard)
}
