//! `[provider.NAME]`: where instances come from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::mistake::Sink;
use super::reader::{Located, Table};
use super::suggest;
use super::values::{Word, shortened};
use crate::provider::process::{PLACEHOLDERS, unknown_placeholders};
use crate::types::ProviderName;

/// A provider's settings, by its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderConfig {
    /// Child processes on this machine.
    Process {
        /// Program and arguments, with [placeholders](crate::provider::process::PLACEHOLDERS); at least the program.
        command: Vec<String>,
        /// Further environment variables.
        env: BTreeMap<String, String>,
        /// The directory for the workers' output; `None`: it is not kept.
        logs: Option<PathBuf>,
    },
    /// Servers that somebody else runs; their addresses are with the instance types.
    Static,
}

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
            Some(Kind::Static) => Some(fixed(&table)),
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

fn fixed(table: &Table<'_>) -> ProviderConfig {
    for key in ["command", "env", "logs"] {
        table.refuse(
            key,
            "has no meaning for a provider of kind \"static\", which launches nothing",
        );
    }
    ProviderConfig::Static
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
        tells_where |= part.contains("{address}") || part.contains("{port}");
        for unknown in unknown_placeholders(std::slice::from_ref(&part.value)) {
            let hint = suggest::nearest(unknown.trim_matches(['{', '}']), PLACEHOLDERS);
            let rule = hint.map_or_else(
                || {
                    format!(
                        "known are {}",
                        PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(" ")
                    )
                },
                |near| format!("did you mean {{{near}}}?"),
            );
            let rule =
                format!("`command` has the unknown placeholder {}; {rule}", shortened(&unknown));
            sink.error(part.at, rule);
        }
    }
    if !tells_where {
        let rule = "`command` has neither {address} nor {port}; its worker must take FOREBAY_ADDRESS from its environment to know where to listen";
        sink.warning(command.at, rule);
    }
}
