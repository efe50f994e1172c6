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

use super::finished::{FinishedRequest, Share};
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
    /// What its client's key is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
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
            api_key: request.key.as_ref().map(crate::types::KeyName::as_str),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::request::tests::{noted, record};
    use super::*;

    impl AccessLog {
        /// One with room for `room` lines, which the test reads itself.
        pub(in crate::telemetry) fn for_tests(
            share: f64,
            dropped: Counter,
            room: usize,
        ) -> (Self, mpsc::Receiver<FinishedRequest>) {
            let (queue, lines) = mpsc::channel(room);
            (Self { queue, share: Share::new(share), dropped, reopen: Arc::default() }, lines)
        }
    }

    fn counter() -> (Counter, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        (Counter::from_arc(Arc::clone(&count)), count)
    }

    fn answered(status: u16) -> FinishedRequest {
        noted(|record| record.own_answer(status, 0))
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (dropped, count) = counter();
        let (log, mut lines) = AccessLog::for_tests(1.0, dropped, 2);
        for _ in 0..5 {
            log.finished(answered(200));
        }
        assert_eq!(count.load(Ordering::Relaxed), 3);
        assert!(lines.try_recv().is_ok());
        log.finished(answered(200));
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn failures_are_in_it_whatever_the_share() {
        let (dropped, count) = counter();
        let (log, mut lines) = AccessLog::for_tests(0.0, dropped, 8);
        for status in [200, 404, 429, 499, 500, 503] {
            log.finished(answered(status));
        }
        log.finished(noted(|record| record.broke_off("stream_broken")));
        let codes: Vec<_> =
            std::iter::from_fn(|| lines.try_recv().ok()).map(|r| r.code()).collect();
        assert_eq!(codes, [500, 503, 499]);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_counted() {
        let (dropped, count) = counter();
        let full = Path::new("/dev/full");
        if full.exists() {
            let mut sink = Sink::open(Target::File(full.into()), dropped).expect("opens");
            sink.write(&[answered(200), answered(200)]);
            sink.write(&[answered(200)]);
            assert_eq!(count.load(Ordering::Relaxed), 3);
            assert!(sink.is_failing);
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_anew_goes_on_in_the_old_one() {
        let dir = tempfile::tempdir().expect("dir");
        let (place, moved) = (dir.path().join("logs"), dir.path().join("moved"));
        std::fs::create_dir(&place).expect("created");
        let path = place.join("a.jsonl");
        let mut sink = Sink::open(Target::File(path), Counter::noop()).expect("opens");
        std::fs::rename(&place, &moved).expect("moved");
        sink.reopen();
        sink.write(&[answered(200)]);
        let text = std::fs::read_to_string(moved.join("a.jsonl")).expect("read");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_line_is_one_line_whatever_clients_send() {
        let (noting, mut finished) = record(&[("x-request-id", "a\"b\tc"), ("cookie", "hush")]);
        drop(noting);
        let mut request = finished.try_recv().expect("ended");
        let long = format!("/{}", "x".repeat(5_000));
        let show = |request: &FinishedRequest| {
            let line = Line::of(request, UNIX_EPOCH + Duration::from_millis(1_500));
            serde_json::to_string(&line).expect("JSON")
        };
        request.ended_at = request.arrived_at + Duration::from_micros(1_234);
        assert_eq!(
            show(&request),
            r#"{"time":"1970-01-01T00:00:01.500Z","request_id":"a\"b\tc","method":"GET","path":"/p","instance_type":"none","status":499,"bytes_in":0,"bytes_out":0,"queue_ms":0.0,"total_ms":1.234,"tries":0,"client_left":true}"#
        );
        request.target = long.parse().ok();
        let shown: serde_json::Value = serde_json::from_str(&show(&request)).expect("JSON");
        assert_eq!(shown["path"].as_str().map(|path| path.chars().count()), Some(1_025));
    }
}
