//! The command line and exit codes: 0 done, 1 the thing asked for failed, 2 bad usage. Results go to
//! standard output, errors to standard error, one line each.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use forebay::telemetry::logs;
use forebay::types::Address;
use forebay::types::tls::{CertificateFiles, WorkerTls};
use forebay::{app, cli, config, sim, worker};

// It takes the place of the C library's allocator. A request takes some thirty pieces of memory, several of them too
// large for what that has at hand for a thread: this one serves them with half the instructions, and 256 requests at
// once with less of the cache.
use mimalloc as _;

/// Capacity-aware instance pools in front of any set of model servers
#[derive(Debug, Parser)]
#[command(name = "forebay", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy and the manager in one process
    Serve(ConfigFile),
    /// Run the proxy alone; it takes its routing table from a manager
    Proxy(ConfigFile),
    /// Run the manager alone
    Manager(ConfigFile),
    /// Print every mistake in a config with its line
    Check(ConfigFile),
    /// Run a stand-in model server
    Worker(Box<worker::WorkerOptions>),
    /// Run the real deciders against a simulated cloud and print what happened
    Simulate {
        /// The scenario
        #[arg(value_name = "FILE")]
        scenario: PathBuf,
        /// Everything random follows from it; the same seed makes the same run
        #[arg(long, value_name = "N")]
        seed: u64,
        /// Play the fleet of this config in the same world as well, and print both side by side
        #[arg(long, value_name = "CONFIG")]
        compare: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print the figures alone, not what happened
        #[arg(long, conflicts_with_all = ["json", "compare"])]
        summary: bool,
        /// Write a picture of the fleet over time
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Show the endpoints, pools and instances of a running manager
    Status {
        #[command(flatten)]
        admin: Admin,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Set how many instances a variant should have
    Scale {
        /// Which one; the variant may be left out where there is only one
        #[arg(value_name = "ENDPOINT[/VARIANT]")]
        target: String,
        /// The desired instance count
        #[arg(value_name = "N")]
        count: u32,
        #[command(flatten)]
        admin: Admin,
    },
    /// Drain and remove one instance; the fleet replaces it if it is then below its desired count
    Drain {
        /// Its id, as `forebay status` shows it
        #[arg(value_name = "INSTANCE")]
        instance: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Tell why an endpoint's fleet is what it is: the last decisions with their reasons and figures
    Explain {
        /// Which one
        #[arg(value_name = "ENDPOINT")]
        endpoint: String,
        #[command(flatten)]
        admin: Admin,
        /// Print JSON instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Print what the manager would do now; does nothing
    Plan(ConfigFile),
    /// Make a key for a client and print it with the SHA-256 by which a config knows it
    ApiKey {
        /// Print the SHA-256 of the key on standard input instead
        #[arg(long)]
        stdin: bool,
    },
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Admin {
    /// The running manager's management address
    #[arg(
        long = "admin",
        value_name = "URL",
        env = "FOREBAY_ADMIN",
        default_value = "http://127.0.0.1:8081"
    )]
    url: Address,
    /// A file with the token that it wants; the environment may have the token itself, as `FOREBAY_TOKEN`
    #[arg(long = "token-file", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Whom to believe that they vouch for the manager's certificate, in PEM, where its address is `https`; default:
    /// whom this machine trusts
    #[arg(long = "ca-file", value_name = "FILE", env = "FOREBAY_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// A certificate to show it, in PEM
    #[arg(
        long = "client-cert",
        value_name = "FILE",
        env = "FOREBAY_CLIENT_CERT",
        requires = "client_key"
    )]
    client_cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(
        long = "client-key",
        value_name = "FILE",
        env = "FOREBAY_CLIENT_KEY",
        requires = "client_cert"
    )]
    client_key: Option<PathBuf>,
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return bad_usage(&error),
    };
    match logs::init().map_err(describe).and_then(|()| run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(lines) => {
            print_errors(lines.lines().map(|line| format!("forebay: {line}")));
            ExitCode::FAILURE
        }
    }
}

/// Help and the version are results; a mistake is one line and says where to look.
fn bad_usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        clap::error::ErrorKind::DisplayHelp
            | clap::error::ErrorKind::DisplayVersion
            | clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        error.exit();
    }
    let text = error.to_string();
    let told = text.lines().take_while(|line| !line.starts_with("Usage:"));
    let told: Vec<_> = told.map(str::trim).filter(|line| !line.is_empty()).collect();
    let told = told.join(" ");
    let told = told.trim_start_matches("error: ");
    print_errors([format!("forebay: {told}; forebay --help tells what there is")]);
    ExitCode::from(2)
}

/// Does what was asked for. An error is text for people, one or more lines.
fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Serve(file) => app::serve(&file.config).map_err(describe),
        Command::Proxy(file) => app::proxy(&file.config).map_err(describe),
        Command::Manager(file) => app::manager(&file.config).map_err(describe),
        Command::Check(file) => check(&file.config),
        Command::Plan(file) => print(app::plan(&file.config)),
        Command::ApiKey { stdin: false } => print(cli::new_api_key()),
        Command::ApiKey { stdin: true } => print(cli::digest_of(std::io::stdin().lock())),
        Command::Worker(options) => worker::run(*options).map_err(describe),
        Command::Simulate { scenario, seed, compare, json, summary, svg } => {
            let asked = Simulation { scenario, seed, compare, json, summary, svg };
            simulate(&asked)
        }
        Command::Status { admin, json } => {
            ask(async |admin| cli::status(admin, json).await, &admin)
        }
        Command::Scale { target, count, admin } => {
            ask(async |admin| cli::scale(admin, &target, count).await, &admin)
        }
        Command::Drain { instance, admin } => {
            ask(async |admin| cli::drain(admin, &instance).await, &admin)
        }
        Command::Explain { endpoint, admin, json } => {
            ask(async |admin| cli::explain(admin, &endpoint, json).await, &admin)
        }
    }
}

/// Puts a question to a running manager and prints its answer.
fn ask(
    question: impl AsyncFnOnce(&cli::Admin) -> Result<String, cli::CliError>,
    admin: &Admin,
) -> Result<(), String> {
    // Not an argument, which other users of the machine could see.
    let token = std::env::var("FOREBAY_TOKEN").ok().filter(|token| !token.is_empty());
    let file = admin.token_file.as_deref();
    let client = admin.client_cert.clone().zip(admin.client_key.clone());
    let client = client.map(|(chain, key)| CertificateFiles { chain, key });
    let tls = WorkerTls { ca_file: admin.ca_file.clone(), client, ..WorkerTls::default() };
    let admin = cli::Admin::new(admin.url.to_string(), tls, file, token.as_deref());
    let admin = admin.map_err(describe)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    print(runtime.block_on(question(&admin)))
}

fn check(path: &Path) -> Result<(), String> {
    let name = path.display();
    match config::load(path) {
        Ok((config, warnings)) => {
            print_errors(&warnings);
            let endpoints = counted(config.fleet.endpoints.len(), "endpoint");
            let types = counted(config.fleet.instance_types.len(), "instance type");
            print(Ok::<_, String>(format!("{name}: ok ({endpoints}, {types})")))
        }
        Err(mistakes) => {
            print_errors(&mistakes);
            let errors = mistakes.iter().filter(|mistake| mistake.is_error()).count();
            Err(format!("{name} has {}", counted(errors, "mistake")))
        }
    }
}

/// What `forebay simulate` is asked for.
struct Simulation {
    scenario: PathBuf,
    seed: u64,
    compare: Option<PathBuf>,
    json: bool,
    summary: bool,
    svg: Option<PathBuf>,
}

/// Plays a scenario and prints the report; one that breaks a rule is a failure.
fn simulate(asked: &Simulation) -> Result<(), String> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| error.to_string());
    let named = |path: &Path| {
        let name = path.display().to_string();
        read(path).map(|text| (text, name.clone())).map_err(|error| format!("{name}: {error}"))
    };
    let (text, name) = named(&asked.scenario)?;
    let folder = asked.scenario.parent().unwrap_or(Path::new(""));
    let beside = |file: &Path| read(&folder.join(file));
    let ours = sim::Scenario::parse(&text, &name, &beside).map_err(|error| error.to_string())?;
    let mut played = vec![(name, ours.clone())];
    if let Some(path) = &asked.compare {
        let (text, name) = named(path)?;
        let theirs = ours.with_policy(&text, &name).map_err(|error| error.to_string())?;
        played.push((name, theirs));
    }
    for warning in played.iter().flat_map(|(_, scenario)| &scenario.warnings) {
        eprintln!("{warning}");
    }
    let reports: Vec<(&str, sim::Report)> = played
        .iter()
        .map(|(name, scenario)| (name.as_str(), sim::play(scenario, asked.seed)))
        .collect();
    let shown: Vec<(&str, &sim::Report)> = reports.iter().map(|(n, report)| (*n, report)).collect();
    if let Some(path) = &asked.svg {
        let written = std::fs::write(path, sim::picture(&shown));
        written.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let text = match shown.as_slice() {
        [(_, report)] if asked.json => serde_json::to_string_pretty(report).map_err(describe)?,
        all if asked.json => {
            let named = |(name, report)| serde_json::json!({ "name": name, "report": report });
            let all: Vec<_> = all.iter().copied().map(named).collect();
            serde_json::to_string_pretty(&all).map_err(describe)?
        }
        [ours, theirs] => sim::compare(*ours, *theirs),
        [(_, report), ..] if asked.summary => report.summary().to_string(),
        [(_, report), ..] => report.to_string(),
        [] => String::new(),
    };
    print(Ok::<_, String>(text))?;
    let failed = shown.iter().find_map(|(name, report)| {
        let failure = report.failure.as_ref()?;
        Some(format!("{name}, seed {}: {failure}", asked.seed))
    });
    failed.map_or(Ok(()), Err)
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// An error with its whole chain of causes, on one line if it is one.
fn describe(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Prints a result on a line of its own. A reader that has gone away is not an error.
fn print<E: Display>(result: Result<String, E>) -> Result<(), String> {
    let text = result.map_err(|error| error.to_string())?;
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}{newline}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

/// Prints lines to standard error; there is nowhere left to report that it cannot be written to.
fn print_errors(lines: impl IntoIterator<Item = impl Display>) {
    let mut out = std::io::stderr().lock();
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}
