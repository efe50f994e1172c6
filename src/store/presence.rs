//! Whether the holder of a lease still lives: each holder keeps a locked file named after its epoch
//! beside the database, and the kernel drops the lock when the process ends, however it ends. So a
//! manager that was killed is succeeded at once instead of after its lease has run out. It is only a
//! short cut: where the file cannot be made or is missing, the lease's time alone decides.
//!
//! The lock can be trusted because the database's journal already ties all its users to one machine.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// The locked file of the lease that this process holds.
#[derive(Debug)]
pub(super) struct Presence {
    path: PathBuf,
    // The lock lives as long as the open file.
    _file: File,
}

impl Presence {
    /// Shows that this process holds the lease `epoch` of `database`.
    pub(super) fn announce(database: &Path, epoch: u64) -> Option<Self> {
        let path = path(database, epoch);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).ok()?;
        file.try_lock().ok()?;
        Some(Self { path, _file: file })
    }

    /// Takes the file away when the lease is given back: nobody needs to find it. One that is only
    /// dropped leaves its file unlocked, which is what tells of a death.
    pub(super) fn end(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Whether the holder of the lease `epoch` is known to be dead.
    pub(super) fn is_gone(database: &Path, epoch: u64) -> bool {
        let Ok(file) = OpenOptions::new().write(true).open(path(database, epoch)) else {
            return false;
        };
        match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
        }
    }

    /// Removes what the dead holder of the lease `epoch` left behind.
    pub(super) fn forget(database: &Path, epoch: u64) {
        // It may never have been there, and a file that stays does no harm.
        let _ = std::fs::remove_file(path(database, epoch));
    }
}

fn path(database: &Path, epoch: u64) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(format!(".lease-{epoch}"));
    PathBuf::from(name)
}
