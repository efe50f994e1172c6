//! Sends spans by OTLP over HTTP with protobuf (<https://opentelemetry.io/docs/specs/otlp/>): batches, a
//! bounded number of tries for what the receiver asks to send again, and a count of what came to nothing.
//! While the receiver is away the queue fills up and then drops; no request notices.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use metrics::Counter;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::spans::{self, WallClock};
use crate::runtime::clock;
use crate::telemetry::finished::FinishedRequest;
use crate::telemetry::traffic::NO_INSTANCE_TYPE;
use crate::types::Address;

/// Requests of one batch at most.
const BATCH: usize = 512;
/// How long a batch may gather.
const GATHER: Duration = Duration::from_secs(1);
/// How long the receiver may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How often one batch is tried.
const MOST_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the last spans may take when the process ends.
const FLUSH: Duration = Duration::from_secs(3);
const LARGEST_ANSWER: usize = 64 << 10;

/// The one that sends.
pub(super) struct Exporter {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    resource: Resource,
    exported: Counter,
    failed: Counter,
    is_failing: bool,
}

enum Failure {
    /// The receiver asks to send it again, after a time of its choice.
    Again { reason: String, after: Option<Duration> },
    /// It would be refused again.
    Final(String),
}

impl Exporter {
    pub(super) fn new(endpoint: &Address, instance: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(ANSWER));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        let resource = Resource {
            attributes: vec![
                spans::text("service.name", "forebay"),
                spans::text("service.version", env!("CARGO_PKG_VERSION")),
                spans::text("service.instance.id", instance),
            ],
            ..Resource::default()
        };
        Self {
            client,
            url: format!("{endpoint}/v1/traces"),
            resource,
            exported: metrics::counter!(super::SPANS_EXPORTED, "InstanceType" => NO_INSTANCE_TYPE),
            failed: super::dropped("export_failed"),
            is_failing: false,
        }
    }

    /// Sends what comes until `stop`, then what is left.
    pub(super) async fn run(
        mut self,
        mut queue: mpsc::Receiver<FinishedRequest>,
        stop: CancellationToken,
    ) {
        let mut batch = Vec::new();
        while gather(&mut queue, &mut batch, &stop).await {
            self.send(&mut batch, &stop).await;
        }
        queue.close();
        let flush = async {
            loop {
                self.send(&mut batch, &stop).await;
                if queue.recv_many(&mut batch, BATCH).await == 0 {
                    return;
                }
            }
        };
        if tokio::time::timeout(FLUSH, flush).await.is_err() {
            tracing::warn!(url = %self.url, "the last spans could not be sent in time");
        }
    }

    async fn send(&mut self, batch: &mut Vec<FinishedRequest>, stop: &CancellationToken) {
        if batch.is_empty() {
            return;
        }
        let clock = WallClock { now: clock::monotonic(), now_nanos: clock::wall_nanos() };
        let spans: Vec<Span> = batch.drain(..).flat_map(|r| spans::of(&r, clock)).collect();
        let count = spans.len() as u64;
        match self.deliver(self.message(spans), stop).await {
            Ok(rejected) => {
                self.exported.increment(count.saturating_sub(rejected));
                self.failed.increment(rejected);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(url = %self.url, "spans are taken again");
                }
            }
            Err(reason) => {
                self.failed.increment(count);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(url = %self.url, reason, "spans cannot be sent, and are dropped");
                }
            }
        }
    }

    fn message(&self, spans: Vec<Span>) -> Bytes {
        let scope = InstrumentationScope {
            name: "forebay".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans,
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        };
        Bytes::from(request.encode_to_vec())
    }

    /// How many spans the receiver took nothing of.
    async fn deliver(&self, message: Bytes, stop: &CancellationToken) -> Result<u64, String> {
        let mut pause = FIRST_PAUSE;
        for number in 1.. {
            match self.post(message.clone()).await {
                Ok(rejected) => return Ok(rejected),
                Err(Failure::Final(reason)) => return Err(reason),
                Err(Failure::Again { reason, after }) => {
                    if number >= MOST_TRIES || stop.is_cancelled() {
                        return Err(reason);
                    }
                    let wait = after.unwrap_or(pause).min(LONGEST_PAUSE);
                    // Told to end, it is tried once more at once.
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        Err("it was never tried".to_owned())
    }

    async fn post(&self, message: Bytes) -> Result<u64, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(message))
            .map_err(|error| Failure::Final(error.to_string()))?;
        let answer = async {
            let again = |reason: String| Failure::Again { reason, after: None };
            let answer = self.client.request(request).await.map_err(|e| again(causes(&e)))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await;
            if head.status.is_success() {
                // What it says of a part that it did not take is optional.
                let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                return Ok(rejected(&body));
            }
            let reason = format!("the receiver answered {}", head.status);
            match head.status {
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT => {
                    let after = head.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok());
                    let after = after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
                    Err(Failure::Again { reason, after })
                }
                _ => Err(Failure::Final(reason)),
            }
        };
        tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|_| {
            Err(Failure::Again { reason: format!("no answer within {ANSWER:?}"), after: None })
        })
    }
}

/// Spans that the receiver says it did not take.
fn rejected(answer: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    answer.partial_success.map_or(0, |part| u64::try_from(part.rejected_spans).unwrap_or(0))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Waits for a request, then for more to come. False: told to stop, or nobody is left to send any.
async fn gather(
    queue: &mut mpsc::Receiver<FinishedRequest>,
    batch: &mut Vec<FinishedRequest>,
    stop: &CancellationToken,
) -> bool {
    let gathered = async {
        if queue.recv_many(batch, BATCH).await == 0 {
            return false;
        }
        let more = async {
            while batch.len() < BATCH && queue.recv_many(batch, BATCH - batch.len()).await > 0 {}
        };
        // Whether it is full or time is up, it goes.
        drop(tokio::time::timeout(GATHER, more).await);
        true
    };
    tokio::select! {
        gathered = gathered => gathered,
        () = stop.cancelled() => false,
    }
}
