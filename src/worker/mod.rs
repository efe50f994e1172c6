//! `forebay worker`: a stand-in model server. It speaks the HTTP that engines such as vLLM speak, takes
//! as long as it is told to, and fails as it is told to. The quickstart launches it, tests and load
//! tests are built on it.
//!
//! It owns no part of Forebay's work: the proxy and the manager know it only over HTTP.
//!
//! # What it answers
//!
//! | path | answer |
//! |---|---|
//! | `POST /v1/chat/completions`, `/v1/completions` | OpenAI's, plain or as server-sent events |
//! | `POST /v1/embeddings` | OpenAI's, eight numbers for each input |
//! | `POST /invocations` | JSON that says what arrived; events when the body says `"stream": true` |
//! | `GET /v1/models` | the one model |
//! | `GET /ping`, `/health` | 200 once healthy, 503 before |
//! | `GET /metrics` | Prometheus text, vLLM's names |
//! | `GET /stats` | the same counters as JSON |
//! | anything else | JSON that says what arrived |
//!
//! # How a request goes
//!
//! It is counted as started, its body is read (at most 8 MiB of it is kept), it waits for one of
//! `--max-concurrency` slots, first come first served, then for its first token, then for each further
//! one. A streamed answer's head leaves at once, before the slot is granted, as in vLLM. A client that
//! goes away at any point frees the slot, or the place in the queue, at once: [`desk::Ticket`] is the
//! one guard, and its drop the only place that gives back. A streamed answer is produced as the client
//! takes it, so one that reads slowly holds its slot for longer (an engine would buffer without limit).
//!
//! Request headers change a single answer, and pass any proxy: [`wish`] lists them. [`fail`] lists the
//! failures.
//!
//! On SIGTERM it ends at once and breaks what it is answering, as engines do; `--graceful` finishes
//! first.
//!
//! Start with [`options`], then [`answer`].

mod answer;
mod body;
mod desk;
mod fail;
mod openai;
mod options;
mod pace;
mod plain;
mod server;
mod stream;
mod wish;

pub use fail::FailMode;
pub use options::WorkerOptions;

/// Why the worker ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The runtime or a signal handler could not be set up.
    #[error("cannot start the worker's runtime: {0}")]
    Runtime(#[source] std::io::Error),
    /// The address is taken, not ours, or not an address.
    #[error("cannot listen on {address}: {source}; choose another --listen address")]
    Listen {
        /// What `--listen` said.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What `--tls-cert` and its like name.
    #[error("cannot speak TLS: {0}")]
    Tls(#[source] crate::tls::TlsError),
    /// `--fail exit-at-start`.
    #[error("the worker exits at its start because --fail exit-at-start says so")]
    ExitAtStart,
}

/// Serves until SIGTERM or SIGINT, on a current-thread runtime of its own. Once it listens it prints
/// `listening on ADDRESS` to standard output, which tells the port that `--listen HOST:0` was given.
///
/// # Errors
/// See [`WorkerError`].
pub fn run(options: WorkerOptions) -> Result<(), WorkerError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(WorkerError::Runtime)?;
    runtime.block_on(server::serve(options))
}
