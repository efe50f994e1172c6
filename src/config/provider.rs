//! `[provider.NAME]`: where instances come from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::mistake::Sink;
use super::reader::{Located, Table};
use super::suggest;
use super::values::Word;
use crate::types::ProviderName;

/// A provider's settings, by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderConfig {
    /// Child processes on this machine.
    Process {
        /// Program and arguments, with the placeholders of [`PLACEHOLDERS`]; at least the program.
        command: Vec<String>,
        /// Further environment variables.
        env: BTreeMap<String, String>,
        /// The directory for the workers' output; `None`: it is not kept.
        logs: Option<PathBuf>,
    },
    /// Servers that somebody else runs; their addresses are with the instance types.
    Static,
}

/// What a process provider's command may have filled in, each written `{name}`.
pub const PLACEHOLDERS: [&str; 10] = [
    "forebay",
    "address",
    "port",
    "instance",
    "instance_type",
    "endpoint",
    "variant",
    "model",
    "copies",
    "max_concurrency",
];

/// A provider's implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Process,
    Static,
}

impl Word for Kind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("process", Self::Process), ("static", Self::Static)];
}

/// What the file says about providers. A wrong one is in it too, so that those who name it are not
/// blamed for naming an unknown one.
#[derive(Debug, Default)]
pub(super) struct Providers {
    /// By name: where it is and, if that much is right, its kind.
    pub(super) known: BTreeMap<String, Located<Option<Kind>>>,
    /// Those without a mistake.
    pub(super) configs: BTreeMap<ProviderName, ProviderConfig>,
}

/// Reads all providers.
pub(super) fn read(root: &Table<'_>) -> Providers {
    let mut providers = Providers::default();
    for (name, table) in root.named_tables("provider") {
        let valid = ProviderName::new(*name)
            .map_err(|refusal| root.sink().error(name.at, refusal.to_string()))
            .ok();
        let kind = table.need::<Kind>("kind", "which is \"process\" or \"static\"");
        let kind = kind.map(|found| found.value);
        let config = match kind {
            Some(Kind::Process) => process(&table),
            Some(Kind::Static) => fixed(&table),
            None => {
                ignore_all(&table);
                None
            }
        };
        providers.known.insert(name.value.to_owned(), Located { value: kind, at: name.at });
        if let (Some(valid), Some(config)) = (valid, config) {
            providers.configs.insert(valid, config);
        }
    }
    providers
}

fn process(table: &Table<'_>) -> Option<ProviderConfig> {
    let why = "the program that is a worker and its arguments, as an array of texts";
    let command = table.need_list::<String>("command", why);
    let env = table.named_texts("env");
    let logs = table.get::<PathBuf>("logs").map(|found| found.value);
    for (name, value) in &env {
        check_variable(name, value, table.sink());
    }
    let command = command?;
    check_command(&command, table.sink());
    Some(ProviderConfig::Process {
        command: command.value.into_iter().map(|part| part.value).collect(),
        env: env.into_iter().map(|(name, value)| (name.value.to_owned(), value.value)).collect(),
        logs,
    })
}

fn fixed(table: &Table<'_>) -> Option<ProviderConfig> {
    for key in ["command", "env", "logs"] {
        table.refuse(
            key,
            "has no meaning for a provider of kind \"static\", which launches nothing",
        );
    }
    Some(ProviderConfig::Static)
}

/// Without a kind, nothing can be said about the other keys.
fn ignore_all(table: &Table<'_>) {
    for key in ["command", "env", "logs"] {
        table.ignore(key);
    }
}

fn check_variable(name: &Located<&str>, value: &Located<String>, sink: &Sink<'_>) {
    if name.is_empty() || name.contains(['=', '\0']) {
        let rule = "a name in `env` must not be empty and must not contain `=` or NUL";
        sink.error(name.at, rule);
    }
    if value.contains('\0') {
        sink.error(value.at, "a value in `env` must not contain NUL");
    }
}

fn check_command(command: &Located<Vec<Located<String>>>, sink: &Sink<'_>) {
    if command.first().is_none_or(|program| program.is_empty()) {
        sink.error(command.at, "`command` must begin with a program, for example \"{forebay}\"");
        return;
    }
    let mut tells_where = false;
    for part in &command.value {
        if part.contains('\0') {
            sink.error(part.at, "`command` must not contain NUL");
        }
        for name in placeholders(part) {
            tells_where |= name == "address" || name == "port";
            if !PLACEHOLDERS.contains(&name) {
                let hint = suggest::nearest(name, PLACEHOLDERS);
                let rule = hint.map_or_else(
                    || format!("known are {}", PLACEHOLDERS.map(|p| format!("{{{p}}}")).join(" ")),
                    |near| format!("did you mean {{{near}}}?"),
                );
                let rule = format!("`command` has the unknown placeholder {{{name}}}; {rule}");
                sink.error(part.at, rule);
            }
        }
    }
    if !tells_where {
        let rule =
            "`command` has neither {address} nor {port}, so the worker is not told where to listen";
        sink.warning(command.at, rule);
    }
}

/// The names between braces in `text`. Braces around anything else, such as JSON, are left alone.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('{').filter_map(|(open, _)| {
        let rest = &text[open + 1..];
        let name = &rest[..rest.find('}')?];
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        is_name.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_words_in_braces() {
        for (text, names) in [
            ("http://{address}", vec!["address"]),
            ("{a}{b_c}", vec!["a", "b_c"]),
            (r#"{"json": 1}"#, vec![]),
            (r#"{"inner": {model}}"#, vec!["model"]),
            ("{}", vec![]),
            ("a{3}", vec![]),
            ("{open", vec![]),
            ("{{x}}", vec!["x"]),
        ] {
            assert_eq!(placeholders(text).collect::<Vec<_>>(), names, "{text}");
        }
    }
}
