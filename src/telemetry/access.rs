//! The access log: one JSON object a line for each finished request, or for a share of them; failures are
//! always in it. The request only hands over what was noted of it ([`FinishedRequest`]), if there is room;
//! a task of its own formats and writes in batches, and what does not fit is dropped and counted.
//!
//! No line has a query, a body or a header, but for the client's `x-request-id`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use metrics::Counter;
use serde::Serialize;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::request::{FinishedRequest, Share};
use super::trace;
use super::traffic::NO_INSTANCE_TYPE;
use crate::runtime::tasks::Tasks;
use crate::runtime::{clock, rng};

/// Lines that were not written, because too many came at once or the file could not be written.
pub const ACCESS_LOG_DROPPED: &str = "forebay_access_log_dropped_total";

/// Lines that may wait to be written, about 6 MiB.
const QUEUE: usize = 16_384;
/// Lines that are written at once.
const BATCH: usize = 4_096;
/// After a batch the writer waits for the next one to gather: otherwise it would have to be woken for
/// each line, at the expense of the request that wakes it.
const GATHER: Duration = Duration::from_millis(50);
/// Paths and ids are cut off after so many characters.
const LONGEST_PATH: usize = 1_024;
const LONGEST_ID: usize = 128;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// The end of this file.
    File(PathBuf),
}

/// Takes finished requests. Clones are the same log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    queue: mpsc::Sender<FinishedRequest>,
    share: Share,
    dropped: Counter,
    reopen: Arc<Notify>,
}

impl AccessLog {
    /// Opens the log, written by a task of `tasks`. `share` of all requests that did not fail are in it.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn start(target: Target, share: f64, tasks: &Tasks) -> io::Result<Self> {
        metrics::describe_counter!(
            ACCESS_LOG_DROPPED,
            metrics::Unit::Count,
            "Lines of the access log that were not written."
        );
        let dropped = metrics::counter!(ACCESS_LOG_DROPPED, "InstanceType" => NO_INSTANCE_TYPE);
        let (queue, lines) = mpsc::channel(QUEUE);
        let reopen = Arc::new(Notify::new());
        let sink = Sink::open(target, dropped.clone())?;
        let writer = write_all(sink, lines, Arc::clone(&reopen), tasks.stopping());
        tasks.spawn("access-log", writer);
        Ok(Self { queue, share: Share::new(share), dropped, reopen })
    }

    /// Opens the file anew, because the one that is open has been moved away.
    pub fn reopen(&self) {
        self.reopen.notify_one();
    }

    /// Takes a request if it is to be logged and there is room.
    pub(super) fn finished(&self, request: FinishedRequest) {
        if (request.has_failed() || self.share.takes(rng::draw()))
            && self.queue.try_send(request).is_err()
        {
            self.dropped.increment(1);
        }
    }
}

async fn write_all(
    mut sink: Sink,
    mut lines: mpsc::Receiver<FinishedRequest>,
    reopen: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = lines.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = reopen.notified() => sink = blocking(sink, Sink::reopen).await,
            () = stop.cancelled(), if !lines.is_closed() => lines.close(),
        }
        if batch.is_empty() {
            continue;
        }
        let is_full = batch.len() >= BATCH;
        let written = std::mem::take(&mut batch);
        sink = blocking(sink, move |sink| sink.write(&written)).await;
        if !is_full {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// Files block; they do so on a thread that may.
async fn blocking(mut sink: Sink, work: impl FnOnce(&mut Sink) + Send + 'static) -> Sink {
    let dropped = sink.dropped.clone();
    let done = tokio::task::spawn_blocking(move || {
        work(&mut sink);
        sink
    });
    // It fails only when the process ends.
    done.await.unwrap_or(Sink { output: Output::Nowhere, dropped, is_failing: false })
}

#[derive(Debug)]
enum Output {
    Stderr,
    File(PathBuf, File),
    Nowhere,
}

#[derive(Debug)]
struct Sink {
    output: Output,
    dropped: Counter,
    is_failing: bool,
}

impl Sink {
    fn open(target: Target, dropped: Counter) -> io::Result<Self> {
        let output = match target {
            Target::Stderr => Output::Stderr,
            Target::File(path) => {
                let file = open(&path)?;
                Output::File(path, file)
            }
        };
        Ok(Self { output, dropped, is_failing: false })
    }

    fn reopen(&mut self) {
        if let Output::File(path, file) = &mut self.output {
            match open(path) {
                Ok(new) => *file = new,
                Err(error) => {
                    tracing::error!(%error, "the access log stays in the file that it was in");
                }
            }
        }
    }

    fn write(&mut self, requests: &[FinishedRequest]) {
        let (now, wall) = (clock::monotonic(), Duration::from_nanos(clock::wall_nanos()));
        let mut text = Vec::with_capacity(requests.len() * 400);
        for request in requests {
            let ago = now.saturating_duration_since(request.arrived_at);
            let time = UNIX_EPOCH + wall.saturating_sub(ago);
            // It has no maps with keys that are no text, the one thing that could fail.
            drop(serde_json::to_writer(&mut text, &Line::of(request, time)));
            text.push(b'\n');
        }
        let written = match &mut self.output {
            Output::Stderr => io::stderr().lock().write_all(&text),
            Output::File(_, file) => file.write_all(&text),
            Output::Nowhere => Err(io::ErrorKind::NotFound.into()),
        };
        match written {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                self.dropped.increment(requests.len() as u64);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(%error, "the access log cannot be written: its lines are dropped");
                }
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
        let what = format!("cannot open the access log {}: {error}", path.display());
        io::Error::new(error.kind(), what)
    })
}

/// One line. Members that are not known of a request are left out.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// When the request arrived.
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    instance_type: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    bytes_in: u64,
    bytes_out: u64,
    queue_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_chunk_ms: Option<f64>,
    total_ms: f64,
    tries: u32,
    client_left: bool,
}

impl<'a> Line<'a> {
    fn of(request: &'a FinishedRequest, time: std::time::SystemTime) -> Self {
        let attempt = request.attempt.as_ref();
        let variant = request.variant.as_ref();
        let model = attempt.map(|a| &a.model).or(request.model.as_ref());
        let since_sent = |end: Option<Instant>| {
            Some(milliseconds(end?.saturating_duration_since(attempt?.sent_at)))
        };
        let id = request.request_id.as_ref().and_then(|id| id.to_str().ok());
        Self {
            time: humantime::format_rfc3339_millis(time).to_string(),
            request_id: id.map(|id| shortened(id, LONGEST_ID)),
            trace_id: request.traced.as_ref().map(|traced| trace::shown(&traced.trace_id)),
            method: shortened(request.method.as_str(), LONGEST_ID),
            path: shortened(request.path(), LONGEST_PATH),
            endpoint: variant.map(|variant| variant.endpoint.as_str()),
            variant: variant.map(|variant| variant.variant.as_str()),
            model: model.map(crate::types::ModelName::as_str),
            instance: attempt.map(|attempt| attempt.instance.as_str()),
            instance_type: attempt.map_or(NO_INSTANCE_TYPE, |a| a.instance_type.as_str()),
            status: request.code(),
            error: request.error,
            bytes_in: request.bytes_in,
            bytes_out: request.bytes_out,
            queue_ms: milliseconds(request.queued),
            model_ms: since_sent(attempt.and_then(|attempt| attempt.ended_at)),
            first_chunk_ms: since_sent(attempt.and_then(|attempt| attempt.first_chunk_at)),
            total_ms: milliseconds(request.ended_at.saturating_duration_since(request.arrived_at)),
            tries: request.tries,
            client_left: request.client_left,
        }
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
