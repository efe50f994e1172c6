//! A closed loop: every connection sends its next request when the last one is answered.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use forebay::runtime::clock;
use futures_util::future::join_all;
use serde_json::json;

use crate::connection::Connection;
use crate::{Error, Target, multiplexed, spread, tell, wire};

#[derive(Args, Clone)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    #[arg(long, default_value_t = 32)]
    pub(crate) connections: usize,
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// A new connection for every request.
    #[arg(long)]
    fresh: bool,
    /// What is spoken.
    #[arg(long, value_enum, default_value = "http1")]
    pub(crate) protocol: Protocol,
    /// With HTTP/2: requests at once on each connection.
    #[arg(long, default_value_t = 8)]
    pub(crate) streams: usize,
    /// With TLS: the certificate to trust.
    #[arg(long)]
    pub(crate) trust: Option<PathBuf>,
    /// How long the worker shall take for each request, in microseconds; with it the answers' workers are
    /// counted.
    #[arg(long)]
    work_us: Option<u64>,
    /// Go on after errors, and say when they were.
    #[arg(long)]
    tolerant: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
    /// HTTP/1.1 over TLS.
    Tls1,
    /// HTTP/2 over TLS.
    Tls2,
}

/// What has been seen so far.
pub(crate) struct Seen {
    began: Instant,
    ends: Instant,
    latencies: RefCell<Vec<u32>>,
    /// Errors with their time, in milliseconds.
    errors: RefCell<Vec<(u64, String)>>,
    /// Answers by tenth of a second and worker.
    workers: RefCell<BTreeMap<u64, BTreeMap<u64, u64>>>,
}

impl Seen {
    pub(crate) fn goes_on(&self) -> bool {
        clock::monotonic() < self.ends
    }

    pub(crate) fn latency(&self, sent: Instant) {
        let micros = u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.latencies.borrow_mut().push(micros);
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn answered_by(&self, content: &[u8]) {
        let Some(at) = memchr::memmem::find(content, b"\"worker\":") else { return };
        let Some(worker) = wire::number(&content[at + 9..]) else { return };
        let mut workers = self.workers.borrow_mut();
        *workers.entry(self.elapsed_ms() / 100).or_default().entry(worker).or_default() += 1;
    }
}

pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let began = clock::monotonic();
    let seen = Seen {
        began,
        ends: began + Duration::from_secs_f64(options.seconds),
        latencies: RefCell::default(),
        errors: RefCell::default(),
        workers: RefCell::default(),
    };
    let all = (0..options.connections).map(|number| {
        let (options, seen) = (&options, &seen);
        async move {
            match options.protocol {
                Protocol::Http1 => one_by_one(options, number, seen).await,
                _ => multiplexed::run(options, seen).await,
            }
        }
    });
    let ended: Result<Vec<()>, Error> =
        tokio::task::unconstrained(join_all(all)).await.into_iter().collect();
    ended?;
    let seconds = began.elapsed().as_secs_f64();
    let latencies = seen.latencies.into_inner();
    tell(&json!({
        "requests": latencies.len(),
        "seconds": seconds,
        "latency": spread(latencies),
        "errors": seen.errors.into_inner(),
        "workers": seen.workers.into_inner(),
    }))
}

async fn one_by_one(options: &Options, number: usize, seen: &Seen) -> Result<(), Error> {
    let wish = options.work_us.map_or("echo".to_owned(), |us| format!("work {us}"));
    let request = options.target.request(&wish, false, options.fresh);
    let mut kept = None;
    while seen.goes_on() {
        let sent = clock::monotonic();
        let answered = one(options, number, kept.take(), &request).await;
        match answered {
            Ok((200, content, connection)) if content.len() == wire::ANSWER => {
                seen.latency(sent);
                if options.work_us.is_some() {
                    seen.answered_by(&content);
                }
                kept = connection;
            }
            Ok((status, content, connection)) => {
                let text = String::from_utf8_lossy(&content).into_owned();
                failed(options, seen, format!("{status} {text}"))?;
                kept = connection;
            }
            Err(error) => failed(options, seen, error.to_string())?,
        }
    }
    Ok(())
}

/// One request and its answer; the connection if it is good for another.
async fn one(
    options: &Options,
    number: usize,
    kept: Option<Connection>,
    request: &[u8],
) -> std::io::Result<(u64, Vec<u8>, Option<Connection>)> {
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(options.target.address, number).await?,
    };
    let (status, content, keep_alive) = connection.exchange(request).await?;
    Ok((status, content, (keep_alive && !options.fresh).then_some(connection)))
}

fn failed(options: &Options, seen: &Seen, what: String) -> Result<(), Error> {
    if !options.tolerant {
        return Err(what.into());
    }
    seen.errors.borrow_mut().push((seen.elapsed_ms(), what));
    Ok(())
}
