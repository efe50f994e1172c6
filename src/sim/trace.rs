//! The transcript of a run: nothing, the last lines, or all of them. Lines are made only if kept.

use std::collections::VecDeque;

use super::world::START;
use crate::types::Timestamp;

/// What is kept of a run.
#[derive(Debug)]
pub(super) enum Trace {
    /// Nothing.
    Off,
    /// The last so many lines.
    Tail(VecDeque<String>, usize),
}

impl Trace {
    /// Keeps the last `lines` lines.
    pub(super) fn tail(lines: usize) -> Self {
        Self::Tail(VecDeque::new(), lines)
    }

    /// Adds a line.
    pub(super) fn note(&mut self, now: Timestamp, line: impl FnOnce() -> String) {
        if let Self::Tail(kept, limit) = self {
            if kept.len() == *limit {
                kept.pop_front();
            }
            kept.push_back(format!("{} {}", clock(now), line()));
        }
    }

    /// The lines that were kept, oldest first.
    pub(super) fn into_lines(self) -> Vec<String> {
        match self {
            Self::Off => Vec::new(),
            Self::Tail(kept, _) => kept.into(),
        }
    }
}

/// Time since the start as `m:ss.mmm`.
pub(super) fn clock(now: Timestamp) -> String {
    let ms = now.0.saturating_sub(START.0);
    format!("{:>3}:{:02}.{:03}", ms / 60_000, ms / 1000 % 60, ms % 1000)
}
