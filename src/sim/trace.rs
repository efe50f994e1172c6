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
    /// The lines that a reader of a scenario wants to see.
    Story(Vec<String>),
}

/// Lines of a story; what comes after is left out.
const STORY_LIMIT: usize = 100_000;

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

    /// Keeps the story.
    pub(super) fn story() -> Self {
        Self::Story(Vec::new())
    }

    /// Adds a line of the story.
    pub(super) fn tell(&mut self, now: Timestamp, line: impl FnOnce() -> String) {
        match self {
            Self::Story(lines) if lines.len() < STORY_LIMIT => {
                lines.push(format!("{} {}", clock(now), line()));
            }
            Self::Story(_) => {}
            Self::Off | Self::Tail(..) => self.note(now, line),
        }
    }

    /// The lines that were kept, oldest first.
    pub(super) fn into_lines(self) -> Vec<String> {
        match self {
            Self::Off => Vec::new(),
            Self::Tail(kept, _) => kept.into(),
            Self::Story(lines) => lines,
        }
    }
}

/// Time since the start as `m:ss.mmm`.
pub(super) fn clock(now: Timestamp) -> String {
    let ms = now.0.saturating_sub(START.0);
    format!("{:>3}:{:02}.{:03}", ms / 60_000, ms / 1000 % 60, ms % 1000)
}
