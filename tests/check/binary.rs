//! What `forebay check` and its like say and exit with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forebay::config::{self, Mistake};

use crate::BASE;

/// Fifteen mistakes of all kinds.
const FIFTEEN: &str = r#"[proxy]
listen = "everywhere"
thread = 2
connect_timeout = 2

[admin]
listen = "127.0.0.1:99999"

[provider.local]
kind = "process"
command = ["{forebay}", "{addres}", "{port}"]

[instance_type."ml.p5"]
provider = "locl"
capacity = -1

[[endpoint]]
name = "-"
  [[endpoint.variant]]
  name = "primary"
  model = ""
  min_instance_count = 3
  max_instance_count = 2
  routing = "FASTEST"
  fallback = "at-once"
  drain_timeout = "10"
    [[endpoint.variant.pool]]
    instance_type = "ml.p4"
    priority = 0
"#;

#[test]
fn the_binary_shows_all_of_fifteen_mistakes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (output, path) = check(dir.path(), FIFTEEN);
    assert_eq!(output.status.code(), Some(1));
    let shown = stderr(&output).replace(&path.display().to_string(), "fifteen.toml");
    assert_eq!(shown.matches(": error: ").count(), 15, "{shown}");
    insta::assert_snapshot!("fifteen_mistakes", shown);
    assert!(output.stdout.is_empty());
}

#[test]
fn the_binary_says_ok_and_shows_warnings() {
    let dir = tempfile::tempdir().expect("a directory");
    let (output, path) = check(dir.path(), BASE);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let ok = format!("{}: ok (1 endpoint, 2 instance types)\n", path.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), ok);
    assert!(output.stderr.is_empty(), "{}", stderr(&output));

    let (output, path) = check(dir.path(), "");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stderr(&output),
        format!(
            "{}:1:1: warning: there is no [[endpoint]], so nothing will be served\n",
            path.display()
        )
    );
}

#[test]
fn files_that_cannot_be_read_are_mistakes_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("missing.toml");
    let binary = dir.path().join("binary.toml");
    let large = dir.path().join("large.toml");
    std::fs::write(&binary, b"a = \"\xff\"").expect("written");
    std::fs::write(&large, "#".repeat((4 << 20) + 1)).expect("written");
    for (path, message) in [
        (&missing, "error: cannot be read: No such file or directory (os error 2)"),
        (&binary, "error: cannot be read: it is not UTF-8 text (from byte 5 on)"),
        (&large, "error: cannot be read: it is larger than 4 MiB"),
    ] {
        let mistakes = config::load(path).expect_err("a mistake");
        let shown: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
        assert_eq!(shown, [format!("{}: {message}", path.display())]);
        assert_eq!(
            forebay(&["check", "--config", &path.display().to_string()]).status.code(),
            Some(1)
        );
    }
}

#[test]
fn commands_that_need_a_config_refuse_a_wrong_one_with_all_its_mistakes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("wrong.toml");
    std::fs::write(&path, FIFTEEN).expect("written");
    for command in ["serve", "proxy", "manager", "plan"] {
        let output = forebay(&[command, "--config", &path.display().to_string()]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let text = stderr(&output);
        assert_eq!(text.matches(": error: ").count(), 15, "{command}: {text}");
        assert!(text.lines().all(|line| line.starts_with("forebay: ")), "{command}: {text}");
    }
}

#[test]
fn bad_usage_is_two() {
    for arguments in [
        &["no-such-command"][..],
        &[],
        &["check"],
        &["scale", "chat"],
        &["scale", "chat", "many"],
        &["status", "--admin", "no address"],
        &["simulate", "x.toml"],
    ] {
        assert_eq!(forebay(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(forebay(&["--help"]).status.code(), Some(0));
    assert_eq!(forebay(&["--version"]).status.code(), Some(0));
}

#[test]
fn a_log_filter_that_cannot_be_read_is_refused() {
    let output =
        command(&["check", "--config", "any"]).env("FOREBAY_LOG", "=").output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("forebay: FOREBAY_LOG=\"=\" is no filter"),
        "{}",
        stderr(&output)
    );
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(arguments).env_remove("FOREBAY_LOG").env_remove("FOREBAY_ADMIN");
    command
}

fn forebay(arguments: &[&str]) -> Output {
    command(arguments).output().expect("forebay runs")
}

fn check(dir: &Path, text: &str) -> (Output, PathBuf) {
    let path = dir.join("a.toml");
    std::fs::write(&path, text).expect("written");
    (forebay(&["check", "--config", &path.display().to_string()]), path)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
