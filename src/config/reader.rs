//! Typed access to a table of the file. A [`Table`] remembers which keys were asked for; when it is
//! dropped, every other key in it is a mistake. So a section reads **all** of its keys first and only then
//! decides whether it is complete: an early return would make known keys look unknown.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::{Deref, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::Sink;
use super::suggest;
use super::values::{Read, Wrong, kind, shortened, shown};

/// A value and where it stands, as a byte offset.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

impl<T> Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A table of the file while it is read.
#[derive(Debug)]
pub(super) struct Table<'a> {
    entries: &'a DeTable<'a>,
    /// Where it begins.
    pub(super) at: usize,
    /// How messages call it, for example `[proxy]`.
    title: String,
    asked: RefCell<Vec<&'a str>>,
    sink: &'a Sink<'a>,
}

impl<'a> Table<'a> {
    /// The table `entries`, which begins at `at`.
    pub(super) fn new(
        entries: &'a DeTable<'a>,
        at: usize,
        title: impl Into<String>,
        sink: &'a Sink<'a>,
    ) -> Self {
        Self { entries, at, title: title.into(), asked: RefCell::default(), sink }
    }

    /// Where mistakes go.
    pub(super) fn sink(&self) -> &'a Sink<'a> {
        self.sink
    }

    /// The value of `key`, if it is there and right.
    pub(super) fn get<T: Read>(&self, key: &'static str) -> Option<Located<T>> {
        self.value(key).and_then(|value| read(value, key, self.sink))
    }

    /// The value of `key`, which must be there; `why` completes `[table]` needs `key`, …".
    pub(super) fn need<T: Read>(&self, key: &'static str, why: &str) -> Option<Located<T>> {
        self.must_have(key, why);
        self.get(key)
    }

    /// The items of the array `key`, which must be there; otherwise as [`Table::list`].
    pub(super) fn need_list<T: Read>(
        &self,
        key: &'static str,
        why: &str,
    ) -> Option<Located<Vec<Located<T>>>> {
        self.must_have(key, why);
        self.list(key)
    }

    /// Says that `key` has to be there, if it is not; `why` completes "`[table]` needs `key`, …".
    pub(super) fn must_have(&self, key: &'static str, why: &str) {
        if !self.entries.contains_key(key) {
            self.sink.missing(self.at, format!("{} needs `{key}`, {why}", self.title));
        }
    }

    /// The value of `key`, or what holds without it.
    pub(super) fn or<T: Read>(&self, key: &'static str, default: T) -> T {
        self.get(key).map_or(default, |found| found.value)
    }

    /// The value of `key` if it is there and within `range`.
    pub(super) fn get_in<T: Read + PartialOrd>(
        &self,
        key: &'static str,
        range: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<Located<T>> {
        let found = self.get::<T>(key)?;
        if range.contains(&found.value) {
            return Some(found);
        }
        let (low, high) = (show(range.start()), show(range.end()));
        let given = show(&found.value);
        self.sink.error(found.at, format!("`{key}` must be {low} to {high}, not {given}"));
        None
    }

    /// A number within `range`, or what holds without it.
    pub(super) fn number_or<T: Read + PartialOrd + Display>(
        &self,
        key: &'static str,
        range: RangeInclusive<T>,
        default: T,
    ) -> T {
        self.get_in(key, range, T::to_string).map_or(default, |found| found.value)
    }

    /// The items of the array `key`, each with its place; `None` if it is missing or any is wrong.
    pub(super) fn list<T: Read>(&self, key: &'static str) -> Option<Located<Vec<Located<T>>>> {
        let value = self.value(key)?;
        let at = value.span().start;
        let Some(items) = value.get_ref().as_array() else {
            let given = shown(value.get_ref());
            self.sink.error(at, format!("`{key}` must be an array, in brackets, not {given}"));
            return None;
        };
        let read: Vec<Option<Located<T>>> = items
            .iter()
            .map(|item| read(item, &format!("each item of `{key}`"), self.sink))
            .collect();
        let value = read.into_iter().collect::<Option<Vec<_>>>()?;
        Some(Located { value, at })
    }

    /// The sub-table `key`, under the title `[key]`.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let value = self.value(key)?;
        self.as_table(value, format!("[{key}]"))
    }

    /// The tables in it, each by its free name.
    pub(super) fn each_table(&self) -> Vec<(Located<String>, Table<'a>)> {
        let each = self.entries.iter().filter_map(|(name, value)| {
            self.ignore(name.get_ref());
            let at = name.span().start;
            let table = self.as_table(value, format!("`{}`", shortened(name.get_ref())))?;
            Some((Located { value: name.get_ref().to_string(), at }, table))
        });
        let mut found: Vec<_> = each.collect();
        found.sort_by_key(|(name, _)| name.at);
        found
    }

    /// The tables under `key` by their free names, in the file's order, under titles like `[key.name]`.
    pub(super) fn named_tables(&self, key: &'static str) -> Vec<(Located<&'a str>, Table<'a>)> {
        let mut found: Vec<_> = self
            .entries_of(key)
            .into_iter()
            .filter_map(|(name, value)| {
                let name = Located { value: &**name.get_ref(), at: name.span().start };
                let table = self.as_table(value, titled(key, &name))?;
                Some((name, table))
            })
            .collect();
        found.sort_by_key(|(name, _)| name.at);
        found
    }

    /// The texts under `key` by their free names.
    pub(super) fn named_texts(
        &self,
        key: &'static str,
    ) -> Vec<(Located<&'a str>, Located<String>)> {
        self.entries_of(key)
            .into_iter()
            .filter_map(|(name, value)| {
                let text =
                    read(value, &format!("`{key}.{}`", shortened(name.get_ref())), self.sink)?;
                Some((Located { value: &**name.get_ref(), at: name.span().start }, text))
            })
            .collect()
    }

    /// The tables of the array `key`, in the file's order, under `title`.
    pub(super) fn tables(&self, key: &'static str, title: &str) -> Vec<Table<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            let given = kind(value.get_ref());
            let rule = format!("`{key}` must be an array of tables: write {title}, not {given}");
            self.sink.missing(value.span().start, rule);
            return Vec::new();
        };
        items.iter().filter_map(|item| self.as_table(item, title.to_owned())).collect()
    }

    /// Warns at `key`, if it is there.
    pub(super) fn warn_at(&self, key: &str, message: String) {
        if let Some((key, _)) = self.entries.get_key_value(key) {
            self.sink.warning(key.span().start, message);
        }
    }

    /// Refuses `key`, which has no place here; `why` completes "`key` …".
    pub(super) fn refuse(&self, key: &'static str, why: &str) {
        self.ignore(key);
        if let Some((key_found, _)) = self.entries.get_key_value(key) {
            self.sink.error(key_found.span().start, format!("`{key}` {why}"));
        }
    }

    /// Whether it holds nothing but tables, and at least one.
    pub(super) fn has_only_tables(&self) -> bool {
        !self.entries.is_empty() && self.entries.values().all(|value| value.get_ref().is_table())
    }

    /// The innermost tables within it: where each begins, and the names on the way to it joined by
    /// dots. This accepts all of its keys. The parser limits how deep tables go.
    pub(super) fn innermost(&self) -> Vec<Located<String>> {
        fn walk(table: &DeTable<'_>, at: usize, path: &str, found: &mut Vec<Located<String>>) {
            if table.is_empty() || !table.values().all(|value| value.get_ref().is_table()) {
                found.push(Located { value: path.to_owned(), at });
                return;
            }
            for (key, value) in table {
                if let Some(inner) = value.get_ref().as_table() {
                    let joint = if path.is_empty() { "" } else { "." };
                    let path = format!("{path}{joint}{}", key.get_ref());
                    walk(inner, value.span().start, &path, found);
                }
            }
        }
        for key in self.entries.keys() {
            self.ignore(key.get_ref());
        }
        let mut found = Vec::new();
        walk(self.entries, self.at, "", &mut found);
        found
    }

    /// Accepts `key` without a look at it.
    pub(super) fn ignore(&self, key: &'a str) {
        self.asked.borrow_mut().push(key);
    }

    fn value(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.ignore(key);
        self.entries.get(key)
    }

    fn entries_of(&self, key: &'static str) -> Vec<Entry<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        if let Some(table) = value.get_ref().as_table() {
            return table.iter().collect();
        }
        let given = kind(value.get_ref());
        self.sink.missing(value.span().start, format!("`{key}` must be a table, not {given}"));
        Vec::new()
    }

    fn as_table(&self, value: &'a Spanned<DeValue<'a>>, title: String) -> Option<Table<'a>> {
        let at = value.span().start;
        if let Some(entries) = value.get_ref().as_table() {
            return Some(Table::new(entries, at, title, self.sink));
        }
        self.sink.missing(at, format!("{title} must be a table, not {}", kind(value.get_ref())));
        None
    }
}

type Entry<'a> = (&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>);

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let asked = self.asked.take();
        for (key, _) in self.entries {
            let name: &str = key.get_ref();
            if !asked.contains(&name) {
                let hint = suggest::did_you_mean(name, asked.iter().copied());
                let hint = if hint.is_empty() && !asked.is_empty() {
                    format!("; it may have {}", suggest::listed(asked.iter().copied()))
                } else {
                    hint
                };
                let (name, title) = (shortened(name), &self.title);
                self.sink.error(key.span().start, format!("unknown key `{name}` in {title}{hint}"));
            }
        }
    }
}

/// `[key.name]`, with the name in quotes where TOML wants them.
fn titled(key: &str, name: &str) -> String {
    let bare = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let name = shortened(name);
    if bare { format!("[{key}.{name}]") } else { format!("[{key}.\"{name}\"]") }
}

/// Reads one value; `what` is the key, in backticks if it has none yet.
fn read<T: Read>(value: &Spanned<DeValue<'_>>, what: &str, sink: &Sink<'_>) -> Option<Located<T>> {
    let at = value.span().start;
    let rule = match T::read(value.get_ref()) {
        Ok(value) => return Some(Located { value, at }),
        Err(Wrong::Type) => format!("must be {}, not {}", T::EXPECTED, shown(value.get_ref())),
        Err(Wrong::Value(rule)) => rule,
    };
    let what = if what.contains('`') { what.to_owned() } else { format!("`{what}`") };
    sink.error(at, format!("{what} {rule}"));
    None
}
