//! What the proxy counts about requests. One [`Traffic`] for each endpoint, variant, model and instance
//! type, made when the routing table changes; a request only adds to its handles.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Label, Unit};

use crate::types::durations::{self, BUCKETS};
use crate::types::{InstanceTypeName, ModelName, VariantKey};

/// Stands for the instance type where no instance is involved.
pub const NO_INSTANCE_TYPE: &str = "none";

/// Bucket bounds of all latency histograms, in seconds: from a cached embedding to a long generation.
pub const LATENCY_BUCKETS: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
];

const INVOCATIONS: &str = "forebay_invocations_total";
const MODEL_LATENCY: &str = "forebay_model_latency_seconds";
const OVERHEAD_LATENCY: &str = "forebay_overhead_latency_seconds";
const FIRST_CHUNK_LATENCY: &str = "forebay_first_chunk_latency_seconds";
const QUEUE_WAIT: &str = "forebay_queue_wait_seconds";
const QUEUED: &str = "forebay_queued_requests";
const OUTSTANDING: &str = "forebay_outstanding_requests";
const PER_MODEL: &str = "forebay_concurrent_requests_per_model";
const PER_COPY: &str = "forebay_concurrent_requests_per_copy";
const SLOTS: &str = "forebay_slots";
const QUEUE_LIMIT: &str = "forebay_queue_limit";
const EJECTIONS: &str = "forebay_ejections_total";
const RETRIES: &str = "forebay_retries_total";
const RETRIES_DENIED: &str = "forebay_retries_denied_total";
const CONNECT_FAILURES: &str = "forebay_upstream_connect_failures_total";
const FLOODS: &str = "forebay_upstream_http2_floods_total";

/// Names, units and help texts, once for the process.
pub fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        INVOCATIONS,
        Unit::Count,
        "Requests answered, by status code (499: the client left first)."
    );
    describe_histogram!(
        MODEL_LATENCY,
        Unit::Seconds,
        "From sending a request to a worker to its last byte."
    );
    describe_histogram!(
        OVERHEAD_LATENCY,
        Unit::Seconds,
        "From a request's arrival to sending it to a worker, waiting included."
    );
    describe_histogram!(
        FIRST_CHUNK_LATENCY,
        Unit::Seconds,
        "From sending a request to a worker to the first byte of the answer's body."
    );
    describe_histogram!(
        QUEUE_WAIT,
        Unit::Seconds,
        "How long requests waited for a free slot, those that had to."
    );
    describe_gauge!(QUEUED, Unit::Count, "Requests waiting for a free slot.");
    describe_gauge!(
        QUEUE_LIMIT,
        Unit::Count,
        "Requests that may wait for a free slot in this proxy."
    );
    describe_gauge!(
        SLOTS,
        Unit::Count,
        "Requests that the instances in service take at once, over all their copies."
    );
    describe_gauge!(
        OUTSTANDING,
        Unit::Count,
        "Requests at workers whose last byte has not been passed on."
    );
    describe_gauge!(PER_MODEL, Unit::Count, "Outstanding requests per instance in service.");
    describe_gauge!(PER_COPY, Unit::Count, "Outstanding requests per model copy.");
    describe_counter!(
        EJECTIONS,
        Unit::Count,
        "Backends that were left alone for a while because their answers were bad."
    );
    describe_counter!(
        RETRIES,
        Unit::Count,
        "Requests sent again elsewhere: not_sent, not_run, or replay after a worker broke off."
    );
    describe_counter!(
        RETRIES_DENIED,
        Unit::Count,
        "Requests not sent again because the budget or the number of tries was used up."
    );
    describe_counter!(
        CONNECT_FAILURES,
        Unit::Count,
        "Connections to workers that were refused or broke before an answer."
    );
    describe_counter!(
        FLOODS,
        Unit::Count,
        "HTTP/2 connections to workers that were ended because they were flooded."
    );
}

/// The histograms that get [`LATENCY_BUCKETS`].
#[must_use]
pub fn histograms() -> [&'static str; 4] {
    [MODEL_LATENCY, OVERHEAD_LATENCY, FIRST_CHUNK_LATENCY, QUEUE_WAIT]
}

fn labels(variant: &VariantKey, model: &ModelName, instance_type: &str) -> Vec<Label> {
    vec![
        Label::new("endpoint", variant.endpoint.to_string()),
        Label::new("variant", variant.variant.to_string()),
        Label::new("model", model.to_string()),
        Label::new("InstanceType", instance_type.to_owned()),
    ]
}

/// The handles of one endpoint, variant, model and instance type.
#[derive(Debug)]
pub struct Traffic {
    labels: Vec<Label>,
    codes: Box<[OnceLock<Counter>]>,
    model_latency: Histogram,
    overhead_latency: Histogram,
    first_chunk_latency: Histogram,
    /// The same two once more, for the manager: it asks for what has been added since it last asked.
    latency: Durations,
    first_chunk: Durations,
    connect_failures: Counter,
    floods: Counter,
    ejections: Counter,
    outstanding: Gauge,
    slots: Gauge,
    per_model: Gauge,
    per_copy: Gauge,
}

impl Traffic {
    /// Looks the handles up. `instance_type` is `None` for what no instance was involved in.
    #[must_use]
    pub fn new(
        variant: &VariantKey,
        model: &ModelName,
        instance_type: Option<&InstanceTypeName>,
    ) -> Self {
        let name = instance_type.map_or(NO_INSTANCE_TYPE, InstanceTypeName::as_str);
        let labels = labels(variant, model, name);
        Self {
            codes: (0..500).map(|_| OnceLock::new()).collect(),
            model_latency: metrics::histogram!(MODEL_LATENCY, labels.clone()),
            overhead_latency: metrics::histogram!(OVERHEAD_LATENCY, labels.clone()),
            first_chunk_latency: metrics::histogram!(FIRST_CHUNK_LATENCY, labels.clone()),
            latency: Durations::default(),
            first_chunk: Durations::default(),
            connect_failures: metrics::counter!(CONNECT_FAILURES, labels.clone()),
            floods: metrics::counter!(FLOODS, labels.clone()),
            ejections: metrics::counter!(EJECTIONS, labels.clone()),
            outstanding: metrics::gauge!(OUTSTANDING, labels.clone()),
            slots: metrics::gauge!(SLOTS, labels.clone()),
            per_model: metrics::gauge!(PER_MODEL, labels.clone()),
            per_copy: metrics::gauge!(PER_COPY, labels.clone()),
            labels,
        }
    }

    /// A request was answered with `code` (100 to 599).
    pub fn answered(&self, code: u16) {
        let Some(slot) = self.codes.get(usize::from(code).wrapping_sub(100)) else { return };
        let counter = slot.get_or_init(|| {
            let mut labels = self.labels.clone();
            labels.push(Label::new("code", code.to_string()));
            metrics::counter!(INVOCATIONS, labels)
        });
        counter.increment(1);
    }

    /// A request left for a worker `overhead` after it had arrived.
    pub fn sent(&self, overhead: Duration) {
        self.overhead_latency.record(overhead.as_secs_f64());
    }

    /// The first byte of the answer's body came.
    pub fn first_chunk(&self, latency: Duration) {
        self.first_chunk_latency.record(latency.as_secs_f64());
        self.first_chunk.add(latency);
    }

    /// The last byte of the answer came.
    pub fn finished(&self, latency: Duration) {
        self.model_latency.record(latency.as_secs_f64());
        self.latency.add(latency);
    }

    /// What requests took so far, to their last byte and to the first of their answers' bodies.
    #[must_use]
    pub fn durations(&self) -> [Vec<(u8, u64)>; 2] {
        [self.latency.counts(), self.first_chunk.counts()]
    }

    /// A connection to a worker was refused or broke before an answer.
    pub fn connect_failed(&self) {
        self.connect_failures.increment(1);
    }

    /// A worker has flooded its connection.
    pub fn flooded(&self) {
        self.floods.increment(1);
    }

    /// A backend is left alone for a while.
    pub fn ejected(&self) {
        self.ejections.increment(1);
    }

    /// The gauges, as they are now: over `instances` in service with `copies` of the model, which
    /// together take `slots` requests.
    pub fn set_concurrency(&self, outstanding: u32, instances: u32, copies: u32, slots: u64) {
        let share = |of: u32| if of == 0 { 0.0 } else { f64::from(outstanding) / f64::from(of) };
        self.outstanding.set(f64::from(outstanding));
        self.slots.set(slots as f64);
        self.per_model.set(share(instances));
        self.per_copy.set(share(copies));
    }
}

/// How many durations fell into which bucket.
#[derive(Debug)]
struct Durations(Box<[AtomicU64]>);

impl Default for Durations {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Durations {
    fn add(&self, span: Duration) {
        if let Some(count) = self.0.get(usize::from(durations::bucket(span))) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The buckets that have any, ascending.
    fn counts(&self) -> Vec<(u8, u64)> {
        let counts =
            (0..=u8::MAX).zip(&self.0).map(|(at, count)| (at, count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// The handles of one variant's queue.
#[derive(Debug)]
pub struct QueueTraffic {
    wait: Histogram,
    queued: Gauge,
    limit: Gauge,
}

impl QueueTraffic {
    /// Looks the handles up.
    #[must_use]
    pub fn new(variant: &VariantKey, model: &ModelName) -> Self {
        let labels = labels(variant, model, NO_INSTANCE_TYPE);
        Self {
            wait: metrics::histogram!(QUEUE_WAIT, labels.clone()),
            queued: metrics::gauge!(QUEUED, labels.clone()),
            limit: metrics::gauge!(QUEUE_LIMIT, labels),
        }
    }

    /// A request got its slot after `wait` in the queue.
    pub fn waited(&self, wait: Duration) {
        self.wait.record(wait.as_secs_f64());
    }

    /// So many wait now, of `limit` that may.
    pub fn set_queued(&self, queued: u32, limit: u32) {
        self.queued.set(f64::from(queued));
        self.limit.set(f64::from(limit));
    }
}

/// The handles of one variant's retries, by reason.
#[derive(Debug)]
pub struct RetryTraffic {
    reasons: [(&'static str, Counter, Counter); 3],
}

impl RetryTraffic {
    /// Looks the handles up.
    #[must_use]
    pub fn new(variant: &VariantKey, model: &ModelName) -> Self {
        let counter = |name: &'static str, reason: &'static str| {
            let mut labels = labels(variant, model, NO_INSTANCE_TYPE);
            labels.push(Label::new("reason", reason));
            metrics::counter!(name, labels)
        };
        let reasons = ["not_sent", "not_run", "replay"]
            .map(|reason| (reason, counter(RETRIES, reason), counter(RETRIES_DENIED, reason)));
        Self { reasons }
    }

    /// A retry for `reason` was decided, or denied.
    pub fn note(&self, reason: &'static str, decided: bool) {
        if let Some((_, made, denied)) = self.reasons.iter().find(|(name, ..)| *name == reason) {
            if decided { made.increment(1) } else { denied.increment(1) }
        }
    }
}
