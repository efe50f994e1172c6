//! What is wrong with a file, and where. [`Sink`] collects while the file is read, so that one run
//! reports everything; [`Mistake`] is what a person sees, one line each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use super::quoted;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but says something that has no effect or is unlikely to be meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A place in a file, as editors count: both from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in it.
    pub column: usize,
}

/// One thing that is wrong, shown as `config/x.toml:12:5: error: …`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Mistake {
    /// The file, as it was named.
    pub file: String,
    /// Where in it; `None` when it is about the file as a whole.
    pub position: Option<Position>,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence: what is wrong and what would be right.
    pub message: String,
}

impl Mistake {
    /// A mistake about the file as a whole.
    pub(super) fn of_file(file: &str, message: String) -> Self {
        Self { file: file.to_owned(), position: None, severity: Severity::Error, message }
    }

    /// Whether the file cannot be used because of it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}: {}", self.severity, self.message)
    }
}

/// A mistake on its way: `at` is a byte offset into the text.
#[derive(Debug)]
struct Found {
    at: usize,
    severity: Severity,
    message: String,
}

/// Collects mistakes while a file is read. Shared by everything that reads the same file.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    found: RefCell<Vec<Found>>,
    errors: Cell<usize>,
    /// Lines that are no TOML: what they seem to say is not judged as well.
    broken: BTreeSet<usize>,
    /// Lines that ended up in another table than they seem to, and are not judged either.
    astray: BTreeSet<usize>,
}

impl<'a> Sink<'a> {
    /// Starts with what the parser could not read, as offsets and messages.
    pub(super) fn new(text: &'a str, syntax: Vec<(usize, String)>) -> Self {
        let lines =
            std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let mut sink = Self {
            text,
            lines,
            found: RefCell::default(),
            errors: Cell::default(),
            broken: BTreeSet::new(),
            astray: BTreeSet::new(),
        };
        for (at, message) in syntax {
            // The parser stumbles on over the rest of a line; its first complaint is the one that helps.
            if sink.break_line(sink.line(at)) {
                sink.errors.set(sink.errors.get() + 1);
                sink.found.get_mut().push(Found { at, severity: Severity::Error, message });
            }
        }
        sink
    }

    /// Notes a line that is no TOML; `false` if it was known. Behind a broken header, nobody knows
    /// which table the lines up to the next one belong to.
    fn break_line(&mut self, line: usize) -> bool {
        let is_header = |line: usize| {
            let (start, end) = (self.lines.get(line - 1), self.lines.get(line));
            let end = end.copied().unwrap_or(self.text.len());
            start.is_some_and(|start| self.text[*start..end].trim_start().starts_with('['))
        };
        if is_header(line) {
            let following = (line + 1..=self.lines.len()).take_while(|line| !is_header(*line));
            self.astray.extend(following);
        }
        self.broken.insert(line)
    }

    /// Something at `at` is wrong.
    pub(super) fn error(&self, at: usize, message: impl Into<String>) {
        self.push(at, Severity::Error, message.into());
    }

    /// Something that should be at `at` or elsewhere is missing, or is not the table that it should be.
    /// Not reported for a file with broken lines: they may well hold it.
    pub(super) fn missing(&self, at: usize, message: impl Into<String>) {
        if self.broken.is_empty() {
            self.error(at, message);
        }
    }

    /// Something at `at` is allowed but unlikely to be meant.
    pub(super) fn warning(&self, at: usize, message: impl Into<String>) {
        if self.broken.is_empty() {
            self.push(at, Severity::Warning, message.into());
        }
    }

    /// How many errors there are so far; two equal counts say that nothing between them was wrong.
    pub(super) fn errors(&self) -> usize {
        self.errors.get()
    }

    /// The line of an offset, from 1, for messages that point to a second place.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }

    /// Where the byte `within` is of the text that is written at `at`, in quotes of whichever kind.
    pub(super) fn inside(&self, at: usize, within: usize) -> usize {
        let written = self.text.get(at..).unwrap_or_default();
        at + quoted::place(written, within)
    }

    /// Everything found, in the file's order.
    pub(super) fn into_mistakes(self, file: &str) -> Vec<Mistake> {
        let mut found = self.found.take();
        found.sort_by(|a, b| (a.at, a.severity, &a.message).cmp(&(b.at, b.severity, &b.message)));
        found.dedup_by(|a, b| a.at == b.at && a.message == b.message);
        let mistake = |Found { at, severity, message }| Mistake {
            file: file.to_owned(),
            position: Some(self.position(at)),
            severity,
            message,
        };
        found.into_iter().map(mistake).collect()
    }

    /// What a file names is in many messages as it stands there, a line's end within it included; a
    /// mistake stays on one line all the same.
    fn push(&self, at: usize, severity: Severity, mut message: String) {
        while let Some(found) = message.find(char::is_control) {
            let control = message.remove(found);
            message.insert_str(found, &control.escape_debug().to_string());
        }
        let line = self.line(at);
        if !self.broken.contains(&line) && !self.astray.contains(&line) {
            self.errors.set(self.errors.get() + usize::from(severity == Severity::Error));
            self.found.borrow_mut().push(Found { at, severity, message });
        }
    }

    /// `at` may point anywhere, also into a character or past the end.
    fn position(&self, at: usize) -> Position {
        let line = self.line(at);
        let start = self.lines[line - 1];
        let mut end = at.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let column = self.text.get(start..end).map_or(0, |before| before.chars().count()) + 1;
        Position { line, column }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_any_offset_is_safe() {
        let text = "a\nbé c\n";
        let sink = Sink::new(text, Vec::new());
        assert_eq!(sink.position(0), Position { line: 1, column: 1 });
        assert_eq!(sink.position(6), Position { line: 2, column: 4 });
        // Inside the two bytes of é, and past the end.
        assert_eq!(sink.position(4), Position { line: 2, column: 2 });
        assert_eq!(sink.position(999), Position { line: 3, column: 1 });
    }

    #[test]
    fn behind_a_broken_header_only_syntax_is_judged() {
        let text = "[a\nx = 1\n[b]\ny = 1\n";
        let sink = Sink::new(text, vec![(2, "unclosed".into())]);
        sink.error(3, "x may be fine in [a]");
        sink.error(13, "y");
        let shown: Vec<_> = sink.into_mistakes("f").iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["f:1:3: error: unclosed", "f:4:1: error: y"]);
    }

    #[test]
    fn a_broken_line_is_reported_once_and_hides_what_may_follow_from_it() {
        let text = "one\ntwo\n";
        let sink = Sink::new(text, vec![(0, "first".into()), (2, "second".into())]);
        sink.error(1, "on the broken line");
        sink.missing(4, "may be on the broken line");
        sink.error(5, "elsewhere");
        let shown: Vec<_> = sink.into_mistakes("f").iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["f:1:1: error: first", "f:2:2: error: elsewhere"]);
    }
}
