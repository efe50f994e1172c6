//! Traces: a server span for each recorded request and a client span for each try at a worker, sent by
//! OTLP over HTTP. [`context`] reads and writes `traceparent`, [`spans`] turns a finished request into
//! spans, [`export`] sends them.
//!
//! # What is recorded
//!
//! Parent-based: a client's `traceparent` is continued, and its decision holds. Where there is none a
//! trace is started, and recorded with the configured share. The worker gets a `traceparent` whose parent
//! is the span of the try; of a trace that is not recorded it learns that too, so that it does not start
//! one of its own. `tracestate` is passed on untouched.
//!
//! # Why not the OpenTelemetry SDK
//!
//! What a trace needs is in [`FinishedRequest`] already, noted for the access log as well, so the SDK's
//! spans (each with its attributes allocated while the request runs) would be a second set of books. Its
//! batch processor counts what it drops only in its own logs, and its HTTP exporters bring a second client
//! (reqwest) or a thread without the runtime that ours needs. So only the wire format is taken from
//! `opentelemetry-proto`, and spans are made off the request path. A request that is not recorded costs
//! one look at its headers, and one header where it starts a trace.

mod context;
mod export;
mod spans;

use http::{HeaderMap, HeaderValue};
use metrics::Counter;
use tokio::sync::mpsc;

use super::finished::{Attempt, FinishedRequest, Share};
use super::traffic::NO_INSTANCE_TYPE;
use crate::runtime::rng;
use crate::runtime::tasks::Tasks;
use crate::types::Address;
pub use context::{SpanId, TraceId, shown};
use context::{TRACEPARENT, TRACESTATE, TraceContext};

/// Finished requests that may wait to be sent; more are dropped and counted.
const QUEUE: usize = 4_096;

/// Spans that were not sent: with `reason` `queue_full` because too many came at once, `export_failed`
/// because the receiver did not take them.
pub const SPANS_DROPPED: &str = "forebay_trace_spans_dropped_total";
/// Spans that the receiver has taken.
pub const SPANS_EXPORTED: &str = "forebay_trace_spans_exported_total";

/// Decides which requests are recorded, and takes those that are. Clones are the same.
#[derive(Debug, Clone)]
pub struct Tracer {
    queue: mpsc::Sender<FinishedRequest>,
    share: Share,
    dropped: Counter,
}

/// A recorded request's place in its trace.
#[derive(Debug, Clone)]
pub struct Traced {
    /// The trace.
    pub trace_id: TraceId,
    /// The request's own span.
    pub span_id: SpanId,
    /// The client's span.
    pub parent: Option<SpanId>,
    /// `tracestate`, as it came.
    pub state: Option<HeaderValue>,
    /// All tries but the last.
    pub earlier: Vec<Attempt>,
}

impl Traced {
    /// A span for a try, which `headers` name as the worker's parent.
    pub(super) fn announce_attempt(&self, headers: &mut HeaderMap) -> SpanId {
        let context = TraceContext { trace_id: self.trace_id, span_id: span_id(), sampled: true };
        headers.insert(TRACEPARENT, context.header());
        context.span_id
    }
}

impl Tracer {
    /// Starts sending to `endpoint`, on `tasks`. `share` is the part of the traces that start here which
    /// is recorded; `instance` names this process.
    #[must_use]
    pub fn start(endpoint: &Address, share: f64, instance: &str, tasks: &Tasks) -> Self {
        let (queue, finished) = mpsc::channel(QUEUE);
        let exporter = export::Exporter::new(endpoint, instance);
        let stop = tasks.stopping();
        tasks.spawn("trace-export", exporter.run(finished, stop));
        metrics::describe_counter!(
            SPANS_DROPPED,
            metrics::Unit::Count,
            "Spans that were not sent, by reason."
        );
        metrics::describe_counter!(
            SPANS_EXPORTED,
            metrics::Unit::Count,
            "Spans that the receiver has taken."
        );
        Self { queue, share: Share::new(share), dropped: dropped("queue_full") }
    }

    /// The place of a request with these headers in its trace, if that is recorded. Otherwise the worker
    /// is told that it is not.
    pub(super) fn begin(&self, headers: &mut HeaderMap) -> Option<Box<Traced>> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next().and_then(TraceContext::parse);
        // Two parents are none.
        let parent = parent.filter(|_| parents.next().is_none());
        if let Some(parent) = parent {
            return parent.sampled.then(|| {
                let state = headers.get(TRACESTATE).cloned();
                Box::new(Traced::new(parent.trace_id, Some(parent.span_id), state))
            });
        }
        // Without a parent, its state means nothing.
        headers.remove(TRACESTATE);
        let draw = rng::draw();
        let trace_id = trace_id(draw);
        if self.share.takes(draw) {
            return Some(Box::new(Traced::new(trace_id, None, None)));
        }
        let context = TraceContext { trace_id, span_id: span_id(), sampled: false };
        headers.insert(TRACEPARENT, context.header());
        None
    }

    /// Takes a recorded request, or drops it if too many wait.
    pub(super) fn finished(&self, request: FinishedRequest) {
        if let Err(
            mpsc::error::TrySendError::Full(request) | mpsc::error::TrySendError::Closed(request),
        ) = self.queue.try_send(request)
        {
            self.dropped.increment(spans::count(&request));
        }
    }
}

impl Traced {
    fn new(trace_id: TraceId, parent: Option<SpanId>, state: Option<HeaderValue>) -> Self {
        Self { trace_id, span_id: span_id(), parent, state, earlier: Vec::new() }
    }
}

fn dropped(reason: &'static str) -> Counter {
    metrics::counter!(SPANS_DROPPED, "InstanceType" => NO_INSTANCE_TYPE, "reason" => reason)
}

/// A new id that has `draw` in its last bytes, as samplers expect them to be random.
fn trace_id(draw: u64) -> TraceId {
    let high = u128::from(rng::draw());
    (high << 64 | u128::from(draw)).max(1).to_be_bytes()
}

fn span_id() -> SpanId {
    rng::draw().max(1).to_be_bytes()
}

/// For the fuzzer: what is read is written as what is read alike.
#[cfg(any(test, fuzzing))]
pub fn traceparent(bytes: &[u8]) {
    let Ok(header) = http::HeaderValue::from_bytes(bytes) else { return };
    if let Some(read) = context::TraceContext::parse(&header) {
        assert_eq!(context::TraceContext::parse(&read.header()), Some(read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(share: f64) -> (Tracer, mpsc::Receiver<FinishedRequest>) {
        let (queue, finished) = mpsc::channel(1);
        (Tracer { queue, share: Share::new(share), dropped: Counter::noop() }, finished)
    }

    fn headers(values: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_clients_decision_holds() {
        let mut recorded = headers(&[("traceparent", PARENT), ("tracestate", "a=b")]);
        let traced = tracer(0.0).0.begin(&mut recorded).expect("recorded");
        assert_eq!(shown(&traced.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(traced.parent.map(u64::from_be_bytes), Some(0x00f0_67aa_0ba9_02b7));
        assert_eq!(traced.state, Some(HeaderValue::from_static("a=b")));
        let span = traced.announce_attempt(&mut recorded);
        assert_ne!(span, traced.span_id);
        let told = TraceContext::parse(&recorded["traceparent"]).expect("valid");
        assert_eq!((told.trace_id, told.span_id, told.sampled), (traced.trace_id, span, true));

        let mut passed_on = headers(&[("traceparent", NOT), ("tracestate", "a=b")]);
        assert!(tracer(1.0).0.begin(&mut passed_on).is_none());
        assert_eq!(passed_on, headers(&[("traceparent", NOT), ("tracestate", "a=b")]));
    }

    #[test]
    fn traces_start_here_with_the_configured_share() {
        let mut none = headers(&[("traceparent", "nonsense"), ("tracestate", "a=b")]);
        assert!(tracer(0.0).0.begin(&mut none).is_none());
        let told = TraceContext::parse(&none["traceparent"]).expect("valid");
        assert!(!told.sampled, "the worker is not to start one of its own");
        assert!(!none.contains_key("tracestate"));

        let mut two = headers(&[("traceparent", PARENT), ("traceparent", PARENT)]);
        let traced = tracer(1.0).0.begin(&mut two).expect("recorded");
        assert_eq!(traced.parent, None);
        assert_ne!(shown(&traced.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        traced.announce_attempt(&mut two);
        assert_eq!(two.get_all("traceparent").iter().count(), 1);

        let (some, _queue) = tracer(0.25);
        let recorded = (0..10_000).filter(|_| some.begin(&mut HeaderMap::new()).is_some()).count();
        // Five standard deviations of a binomial are 217.
        assert!((2_283..=2_717).contains(&recorded), "{recorded}");
    }
}
