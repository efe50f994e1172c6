//! The load that proxies are measured under, from one thread. `loadtest/peers` runs it; it prints one JSON
//! object a line.
//!
//! * `peer_load closed`: so many connections, each sending its next request when the last one is answered;
//! * `peer_load streams`: so many event streams held open at once, the gaps between their events and the events'
//!   delay;
//! * `peer_load open`: requests that arrive when they arrive (Poisson), however long the answers take.

mod closed;
mod connection;
mod multiplexed;
mod open;
mod streams;
#[path = "../wire/mod.rs"]
mod wire;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser};

type Error = Box<dyn std::error::Error>;

#[derive(Parser)]
enum Load {
    Closed(closed::Options),
    Streams(streams::Options),
    Open(open::Options),
}

/// What every load has.
#[derive(Args, Clone)]
struct Target {
    /// The proxy.
    #[arg(long)]
    address: SocketAddr,
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// The body's `model`.
    #[arg(long, default_value = "bench")]
    model: String,
    /// Whether `model` comes behind the messages, as the OpenAI client has it, and not first.
    #[arg(long)]
    model_last: bool,
    /// The bodies' length, at least.
    #[arg(long, default_value_t = 1024)]
    body_bytes: usize,
}

impl Target {
    /// A chat request that asks the backend for `wish`.
    fn body(&self, wish: &str, stream: bool) -> String {
        let model = format!("\"model\":\"{}\"", self.model);
        let stream = if stream { ",\"stream\":true" } else { "" };
        let others = format!("\"user\":\"bench:{wish}\"{stream}");
        let text = |padding: &str| {
            let messages =
                format!("\"messages\":[{{\"role\":\"user\",\"content\":\"{padding}\"}}]");
            if self.model_last {
                format!("{{{others},{messages},{model}}}")
            } else {
                format!("{{{model},{others},{messages}}}")
            }
        };
        text(&"a".repeat(self.body_bytes.saturating_sub(text("").len())))
    }

    /// The same with its head, for HTTP/1.1.
    fn request(&self, wish: &str, stream: bool, close: bool) -> Vec<u8> {
        let body = self.body(wish, stream);
        let close = if close { "connection: close\r\n" } else { "" };
        format!(
            "POST {} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{close}content-length: {}\r\n\r\n{body}",
            self.path,
            body.len()
        )
        .into_bytes()
    }
}

fn main() -> ExitCode {
    let load = Load::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Error::from).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            match load {
                Load::Closed(options) => closed::run(options).await,
                Load::Streams(options) => streams::run(options).await,
                Load::Open(options) => open::run(options).await,
            }
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer_load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One JSON object for whoever runs this.
fn tell(what: &serde_json::Value) -> Result<(), Error> {
    use std::io::Write;
    let mut out = std::io::stdout();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}

/// Median, 99th percentile and maximum of microseconds, as JSON; `null` where there are none.
fn spread(mut micros: Vec<u32>) -> serde_json::Value {
    micros.sort_unstable();
    let at = |share: f64| {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a length is an index"
        )]
        let index = ((micros.len() as f64 * share) as usize).min(micros.len().saturating_sub(1));
        micros.get(index)
    };
    serde_json::json!({ "p50_us": at(0.5), "p99_us": at(0.99), "max_us": micros.last() })
}
