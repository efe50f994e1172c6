//! An open loop: requests arrive at random (Poisson), each with its work (log-normal), whatever became of
//! those before. Written to a file, a line each: when it was sent and when its work began and ended, in
//! microseconds since the start, its work, its worker, its status (0: the connection broke).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use forebay::runtime::clock;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;

use crate::connection::Connection;
use crate::{Error, Target, tell, wire};

#[derive(Args, Clone)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// Arrivals a second, in the mean.
    #[arg(long)]
    rate: f64,
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// The mean work of a request, in microseconds on a fast slot.
    #[arg(long, default_value_t = 100_000.0)]
    work_us: f64,
    /// The deviation of its logarithm.
    #[arg(long, default_value_t = 1.0)]
    sigma: f64,
    /// How many times more arrive in the first quarter of every cycle; the mean stays the same.
    #[arg(long, default_value_t = 1.0)]
    burst: f64,
    /// The cycle of bursts.
    #[arg(long, default_value_t = 20.0)]
    cycle: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file for what became of each request.
    #[arg(long)]
    requests: PathBuf,
}

/// What became of a request.
struct Told {
    sent_us: u64,
    began_us: u64,
    ended_us: u64,
    work_us: u64,
    worker: u64,
    status: u64,
}

pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let idle = RefCell::new(VecDeque::new());
    let start_us = clock::wall_nanos() / 1000 + 100_000;
    let mut running = FuturesUnordered::new();
    let mut told = Vec::new();
    let mut arrivals = Arrivals::new(&options).enumerate().peekable();
    loop {
        let wait = arrivals.peek().map(|(_, (at_us, _))| {
            Duration::from_micros((start_us + at_us).saturating_sub(clock::wall_nanos() / 1000))
        });
        if let Some(Duration::ZERO) = wait {
            if let Some((number, (_, work_us))) = arrivals.next() {
                running.push(one(&options, &idle, number, work_us, start_us));
            }
            continue;
        }
        if wait.is_none() && running.is_empty() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)) => {}
            Some(done) = running.next() => told.push(done),
        }
    }
    told.sort_by_key(|t| t.sent_us);
    let mut lines = "sent_us,began_us,ended_us,work_us,worker,status\n".to_owned();
    for Told { sent_us, began_us, ended_us, work_us, worker, status } in &told {
        writeln!(lines, "{sent_us},{began_us},{ended_us},{work_us},{worker},{status}")?;
    }
    std::fs::write(&options.requests, lines)?;
    let errors = told.iter().filter(|t| t.status != 200).count();
    tell(&json!({ "requests": told.len(), "errors": errors }))
}

async fn one(
    options: &Options,
    idle: &RefCell<VecDeque<Connection>>,
    number: usize,
    work_us: u64,
    start_us: u64,
) -> Told {
    let request = options.target.request(&format!("work {work_us}"), false, false);
    let since_start = |at_us: u64| at_us.saturating_sub(start_us);
    let sent_us = since_start(clock::wall_nanos() / 1000);
    let kept = idle.borrow_mut().pop_back();
    let answer = async {
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(options.target.address, number).await?,
        };
        let (status, content, keep_alive) = connection.exchange(&request).await?;
        if keep_alive {
            idle.borrow_mut().push_back(connection);
        }
        Ok::<_, std::io::Error>((status, content))
    };
    let (status, content) = answer.await.unwrap_or_default();
    let ended_us = since_start(clock::wall_nanos() / 1000);
    let told = |name: &[u8]| {
        let at = memchr::memmem::find(&content, name)?;
        wire::number(&content[at + name.len()..])
    };
    let began_us = told(b"\"started_us\":").map_or(0, since_start);
    let worker = told(b"\"worker\":").unwrap_or(0);
    // An answer that does not say when its work began is none of a worker's.
    let status = if began_us == 0 { 0 } else { status };
    Told { sent_us, began_us, ended_us, work_us, worker, status }
}

/// When requests arrive, in microseconds, and their work. The same for the same options, of which the
/// target is none.
struct Arrivals<'o> {
    options: &'o Options,
    random: fastrand::Rng,
    at: f64,
}

impl<'o> Arrivals<'o> {
    fn new(options: &'o Options) -> Self {
        Self { options, random: fastrand::Rng::with_seed(options.seed), at: 0.0 }
    }

    /// Arrivals a second at this time.
    fn rate(&self) -> f64 {
        let Options { rate, burst, cycle, .. } = self.options;
        // A quarter of the time at `burst` times what it is otherwise.
        let calm = rate / (0.75 + 0.25 * burst);
        if self.at % cycle < cycle / 4.0 { calm * burst } else { calm }
    }

    /// Uniform, above 0 and at most 1.
    fn uniform(&mut self) -> f64 {
        1.0 - self.random.f64()
    }
}

impl Iterator for Arrivals<'_> {
    type Item = (u64, u64);

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive times of a run, in whole microseconds"
    )]
    fn next(&mut self) -> Option<Self::Item> {
        // Piecewise constant rate; a gap across a change of it is off by less than one gap.
        self.at -= self.uniform().ln() / self.rate();
        if self.at > self.options.seconds {
            return None;
        }
        let normal =
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        let sigma = self.options.sigma;
        // With this mean of its logarithm, the mean itself is `work_us`.
        let work = self.options.work_us * (sigma * normal - sigma * sigma / 2.0).exp();
        Some(((self.at * 1e6) as u64, work as u64))
    }
}
