//! From a launch request to a command line: placeholders, environment, where output goes, and what a
//! failure to start means.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;

use super::{ProcessConfig, scan};
use crate::types::launch::LaunchBatch;
use crate::types::{Address, InstanceId, ProviderError};

/// What a command may hold in braces.
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

/// The placeholders in `command` that there are not, as written, each once; for checking a config.
/// A shell's `${name}` is left alone, and so are braces around anything but letters, digits and `_`.
#[must_use]
pub fn unknown_placeholders(command: &[String]) -> Vec<String> {
    let mut unknown = Vec::new();
    for part in command.iter().flat_map(|word| parts(word)) {
        if let Part::Placeholder(name) = part
            && !PLACEHOLDERS.contains(&name)
        {
            let written = format!("{{{name}}}");
            if !unknown.contains(&written) {
                unknown.push(written);
            }
        }
    }
    unknown
}

enum Part<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

fn parts(word: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut text_from = 0;
    let mut at = 0;
    while let Some(open) = word[at..].find('{').map(|offset| at + offset) {
        at = open + 1;
        let Some(close) = word[at..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        else {
            break;
        };
        let close = at + close;
        let is_shells = word[..open].ends_with('$');
        if close > at && word[close..].starts_with('}') && !is_shells {
            parts.push(Part::Text(&word[text_from..open]));
            parts.push(Part::Placeholder(&word[at..close]));
            text_from = close + 1;
        }
        at = close;
    }
    parts.push(Part::Text(&word[text_from..]));
    parts
}

/// The command that starts one worker, in its own process group, with our tags in its environment.
pub(super) fn build(
    config: &ProcessConfig,
    batch: &LaunchBatch,
    instance: &InstanceId,
    socket: SocketAddr,
) -> Result<Command, ProviderError> {
    let fill = |word: &String| fill(word, config, batch, instance, socket);
    let Some((program, arguments)) = config.command.split_first() else {
        let reason = format!("provider {} has an empty command", config.name);
        return Err(ProviderError::Rejected { reason });
    };
    let mut command = Command::new(fill(program));
    command
        .args(arguments.iter().map(fill))
        // Without this, Python's setproctitle (vLLM uses it) overwrites the environment that a later
        // scan recognises the worker by.
        .env("SPT_NOENV", "1")
        .envs(&config.env)
        .env(scan::OWNER, &config.owner)
        .env(scan::PROVIDER, config.name.as_str())
        .env(scan::INSTANCE, instance.as_str())
        .env(scan::INSTANCE_TYPE, batch.instance_type.as_str())
        .env(scan::ENDPOINT, batch.variant.endpoint.as_str())
        .env(scan::VARIANT, batch.variant.variant.as_str())
        .env(scan::ADDRESS, Address::http(socket).to_string())
        // Its own group: a Ctrl-C in our terminal is not for the worker, and one signal can reach all
        // that it starts.
        .process_group(0)
        .stdin(Stdio::null());
    // Never a pipe to us: a worker that outlives us must be able to write.
    match &config.logs {
        None => command.stdout(Stdio::null()).stderr(Stdio::inherit()),
        Some(folder) => {
            let log = open_log(folder, instance).map_err(|error| log_failed(folder, &error))?;
            let copy = log.try_clone().map_err(|error| log_failed(folder, &error))?;
            command.stdout(log).stderr(copy)
        }
    };
    Ok(command)
}

fn fill(
    word: &str,
    config: &ProcessConfig,
    batch: &LaunchBatch,
    instance: &InstanceId,
    socket: SocketAddr,
) -> String {
    let mut filled = String::with_capacity(word.len());
    for part in parts(word) {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Placeholder("forebay") => filled.push_str(&config.forebay.to_string_lossy()),
            Part::Placeholder("address") => filled.push_str(&socket.to_string()),
            Part::Placeholder("port") => filled.push_str(&socket.port().to_string()),
            Part::Placeholder("instance") => filled.push_str(instance.as_str()),
            Part::Placeholder("instance_type") => filled.push_str(batch.instance_type.as_str()),
            Part::Placeholder("endpoint") => filled.push_str(batch.variant.endpoint.as_str()),
            Part::Placeholder("variant") => filled.push_str(batch.variant.variant.as_str()),
            Part::Placeholder("model") => filled.push_str(batch.model.as_str()),
            Part::Placeholder("copies") => filled.push_str(&batch.copies.to_string()),
            Part::Placeholder("max_concurrency") => {
                filled.push_str(&batch.max_concurrency.to_string());
            }
            // The config check has refused these; a worker that reads one says so best itself.
            Part::Placeholder(unknown) => {
                filled.push('{');
                filled.push_str(unknown);
                filled.push('}');
            }
        }
    }
    filled
}

fn open_log(folder: &Path, instance: &InstanceId) -> io::Result<fs::File> {
    fs::create_dir_all(folder)?;
    OpenOptions::new().create(true).append(true).open(folder.join(format!("{instance}.log")))
}

fn log_failed(folder: &Path, error: &io::Error) -> ProviderError {
    let reason = format!("cannot write a worker's log in {}: {error}", folder.display());
    match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::Interrupted
        | io::ErrorKind::WouldBlock => ProviderError::unavailable(reason),
        _ => ProviderError::Rejected { reason },
    }
}

/// Removes the oldest logs beyond `keep`, but none that `is_live` says is being written.
pub(super) fn prune_logs(folder: &Path, keep: usize, is_live: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut logs: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let instance = path.file_name()?.to_str()?.strip_suffix(".log")?.to_owned();
            let changed_at = path.metadata().ok()?.modified().ok()?;
            (!is_live(&instance)).then_some((changed_at, path))
        })
        .collect();
    if logs.len() <= keep {
        return;
    }
    logs.sort_unstable();
    for (_, path) in &logs[..logs.len() - keep] {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old worker log");
        }
    }
}

/// What it means that the operating system did not start `command`. Nothing runs then.
pub(super) fn spawn_failed(command: &Command, error: &io::Error) -> ProviderError {
    // The program alone: a command's debug form shows its environment, where secrets are.
    let program = command.get_program().to_string_lossy();
    let reason = format!("cannot start {program}: {error}");
    match Errno::from_io_error(error) {
        // The user's or the control group's limit on processes.
        Some(Errno::AGAIN) => ProviderError::QuotaExceeded { reason },
        Some(Errno::NOMEM) => ProviderError::InsufficientCapacity { reason },
        // Passing: somebody writes the file, or we or the machine are out of file descriptors.
        Some(Errno::TXTBSY | Errno::MFILE | Errno::NFILE | Errno::INTR | Errno::IO) => {
            ProviderError::unavailable(reason)
        }
        _ => ProviderError::Rejected { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VariantKey;

    fn batch() -> LaunchBatch {
        LaunchBatch {
            instances: vec![],
            instance_type: "ml.g6".parse().expect("valid"),
            variant: VariantKey {
                endpoint: "chat".parse().expect("valid"),
                variant: "primary".parse().expect("valid"),
            },
            model: "org/m".parse().expect("valid"),
            copies: 2,
            max_concurrency: 8,
        }
    }

    fn filled(words: &[&str]) -> Vec<String> {
        let config = ProcessConfig {
            command: words.iter().map(ToString::to_string).collect(),
            ..ProcessConfig::new("local".parse().expect("valid"), "me".to_owned())
        };
        let socket = SocketAddr::from(([127, 0, 0, 1], 4711));
        let id = "i-1".parse().expect("valid");
        let command = build(&config, &batch(), &id, socket).expect("builds");
        std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_failed_start_tells_no_secret() {
        let mut command = Command::new("/no/such/program");
        command.arg("--api-key=arg-SECRET").env("HF_TOKEN", "env-SECRET");
        let error = command.spawn().expect_err("there is no such program");
        let told = spawn_failed(&command, &error).to_string();
        assert!(told.contains("/no/such/program"), "{told}");
        assert!(!told.contains("SECRET") && !told.contains("HF_TOKEN"), "{told}");
    }

    #[test]
    fn every_placeholder_is_filled() {
        assert_eq!(
            filled(&["{instance}", "--at={address}", "{port}{copies}x{max_concurrency}"]),
            ["i-1", "--at=127.0.0.1:4711", "47112x8"]
        );
        let all: Vec<String> = PLACEHOLDERS.iter().map(|name| format!("{{{name}}}")).collect();
        let words: Vec<&str> = all.iter().map(String::as_str).collect();
        assert!(filled(&words).iter().all(|word| !word.contains('{')), "{:?}", filled(&words));
    }

    #[test]
    fn other_braces_pass() {
        let script = "f() { echo ${port} {} {\"a\": {b c}} é{; }; {";
        assert_eq!(filled(&["sh", script]), ["sh", script]);
        assert!(unknown_placeholders(&[script.to_owned()]).is_empty());
    }

    #[test]
    fn unknown_placeholders_are_named_once() {
        let command = ["{ports}", "{port}", "{x}-{ports}", "{Port}"].map(str::to_owned);
        assert_eq!(unknown_placeholders(&command), ["{ports}", "{x}", "{Port}"]);
    }

    #[test]
    fn old_logs_go_and_live_ones_stay() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["a.log", "b.log", "c.log", "d.log", "notes.txt"] {
            fs::write(folder.path().join(name), name).expect("written");
            let at =
                fs::metadata(folder.path().join(name)).expect("there").modified().expect("time");
            // Distinct times, whatever the file system's resolution.
            let later = at + std::time::Duration::from_secs(u64::from(name.as_bytes()[0]));
            let file =
                OpenOptions::new().append(true).open(folder.path().join(name)).expect("open");
            file.set_modified(later).expect("set");
        }
        prune_logs(folder.path(), 1, |instance| instance == "a");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
            .collect();
        left.sort();
        assert_eq!(left, ["a.log", "d.log", "notes.txt"]);
    }
}
