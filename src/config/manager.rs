//! `[manager]` and `[store]`: what the control plane needs beside the fleet itself.

use std::path::PathBuf;

use super::reader::Table;
use super::values::Word;

/// The control plane's own settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ManagerConfig {
    /// What becomes of the workers when the manager ends; `None`: as the command has it (`manager`
    /// keeps them, `serve` stops them).
    pub on_exit: Option<OnExit>,
}

/// What becomes of the workers when the manager ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They run on, and the next manager adopts them.
    Keep,
    /// They are drained and stopped.
    Stop,
}

impl Word for OnExit {
    const WORDS: &'static [(&'static str, Self)] = &[("keep", Self::Keep), ("stop", Self::Stop)];
}

/// Where the manager's state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The database file.
    pub path: PathBuf,
}

/// Reads both sections.
pub(super) fn read(root: &Table<'_>) -> (ManagerConfig, StoreConfig) {
    let on_exit = root.table("manager").and_then(|table| table.get("on_exit"));
    let path = root.table("store").and_then(|table| table.get("path"));
    (
        ManagerConfig { on_exit: on_exit.map(|found| found.value) },
        StoreConfig { path: path.map_or_else(|| "forebay.db".into(), |found| found.value) },
    )
}
