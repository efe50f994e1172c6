//! What is noted of one request while it lives, for the access log ([`super::access`]) and for traces
//! ([`super::trace`]). A [`RequestRecord`] goes with the request; when its last clone is dropped, however
//! the request has ended, what was noted becomes a [`FinishedRequest`] and is handed to both.
//!
//! Nothing here waits, formats or writes: noting fills a struct, finishing tries to put it into a bounded
//! queue. With neither log nor trace a record is empty and costs nothing but a comparison at each call.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::request::Parts;

use super::access::AccessLog;
use super::finished::{Attempt, FinishedRequest};
use super::trace::{SpanId, Tracer};
use crate::runtime::clock;
use crate::types::table::BackendRoute;
use crate::types::{KeyName, ModelName, VariantKey};

const REQUEST_ID: &str = "x-request-id";

/// Who is told about finished requests.
#[derive(Debug, Clone, Default)]
pub struct Observers {
    /// The access log, if there is one.
    pub access: Option<AccessLog>,
    /// The recorder of traces, if there is one.
    pub tracer: Option<Tracer>,
}

impl Observers {
    /// Whether there is one.
    #[must_use]
    pub fn are_any(&self) -> bool {
        self.access.is_some() || self.tracer.is_some()
    }

    /// A request with this head has arrived. Where traces are recorded its trace is continued or started,
    /// and `head` says so to the worker.
    #[must_use]
    pub fn begin(self: &Rc<Self>, head: &mut Parts, arrived_at: Instant) -> RequestRecord {
        let traced = self.tracer.as_ref().and_then(|tracer| tracer.begin(&mut head.headers));
        if self.access.is_none() && traced.is_none() {
            return RequestRecord::default();
        }
        let request = FinishedRequest {
            arrived_at,
            ended_at: arrived_at,
            method: head.method.clone(),
            target: head.uri.path_and_query().cloned(),
            request_id: head.headers.get(REQUEST_ID).cloned(),
            key: None,
            variant: None,
            model: None,
            attempt: None,
            tries: 0,
            status: None,
            error: None,
            broken: false,
            client_left: false,
            bytes_in: 0,
            bytes_out: 0,
            queued: Duration::ZERO,
            traced,
        };
        RequestRecord(Some(Rc::new(RefCell::new(Open {
            request: Some(request),
            complete: false,
            waiting_since: None,
            observers: Rc::clone(self),
        }))))
    }

    fn finished(&self, request: FinishedRequest) {
        match (&self.access, &self.tracer) {
            (Some(access), Some(tracer)) if request.traced.is_some() => {
                access.finished(request.clone());
                tracer.finished(request);
            }
            (Some(access), _) => access.finished(request),
            (None, Some(tracer)) => tracer.finished(request),
            (None, None) => {}
        }
    }
}

#[derive(Debug)]
struct Open {
    /// Taken only by the drop.
    request: Option<FinishedRequest>,
    /// Nothing more is to come.
    complete: bool,
    waiting_since: Option<Instant>,
    observers: Rc<Observers>,
}

impl Open {
    fn end_attempt(&mut self, error: Option<&'static str>) {
        let Some(attempt) = self.request.as_mut().and_then(|r| r.attempt.as_mut()) else { return };
        if attempt.ended_at.is_none() {
            attempt.ended_at = Some(clock::monotonic());
        }
        attempt.error = attempt.error.or(error);
    }

    fn end_wait(&mut self, now: Instant) {
        if let (Some(since), Some(request)) = (self.waiting_since.take(), &mut self.request) {
            request.queued += now.saturating_duration_since(since);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let now = clock::monotonic();
        self.end_wait(now);
        let Some(mut request) = self.request.take() else { return };
        request.ended_at = now;
        request.client_left |= !self.complete && !request.broken;
        if let Some(attempt) = &mut request.attempt {
            attempt.ended_at.get_or_insert(now);
        }
        self.observers.finished(request);
    }
}

/// The note that goes with a request. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct RequestRecord(Option<Rc<RefCell<Open>>>);

impl RequestRecord {
    fn note(&self, change: impl FnOnce(&mut FinishedRequest)) {
        if let Some(open) = &self.0
            && let Some(request) = &mut open.borrow_mut().request
        {
            change(request);
        }
    }

    /// It came with the key of this name.
    pub fn came_with(&self, key: &KeyName) {
        self.note(|request| request.key = Some(key.clone()));
    }

    /// It is for this variant, whose model is `model`.
    pub fn resolved(&self, variant: &VariantKey, model: &ModelName) {
        self.note(|request| {
            request.variant = Some(variant.clone());
            request.model = Some(model.clone());
        });
    }

    /// It asks for a slot, and may wait for it.
    pub fn waiting(&self) {
        let Some(open) = &self.0 else { return };
        open.borrow_mut().waiting_since = Some(clock::monotonic());
    }

    /// It is sent to `route` now, `headers` first; in a trace they name this try as their parent.
    pub fn attempt(&self, route: &BackendRoute, sent_at: Instant, headers: &mut HeaderMap) {
        let Some(open) = &self.0 else { return };
        let open = &mut *open.borrow_mut();
        open.end_wait(sent_at);
        let Some(request) = &mut open.request else { return };
        request.tries += 1;
        // Whatever an earlier try came to, nothing of it has gone to the client.
        (request.status, request.error, request.broken, request.bytes_out) = (None, None, false, 0);
        open.complete = false;
        let mut attempt = Attempt {
            instance: route.instance.clone(),
            instance_type: route.instance_type.clone(),
            model: route.model.clone(),
            address: None,
            span_id: SpanId::default(),
            sent_at,
            first_chunk_at: None,
            ended_at: None,
            status: None,
            error: None,
        };
        if let Some(traced) = &mut request.traced {
            attempt.address = Some(route.address.clone());
            attempt.span_id = traced.announce_attempt(headers);
            traced.earlier.extend(request.attempt.take());
        }
        request.attempt = Some(attempt);
    }

    /// The try has failed as `error` names it; the request may go on elsewhere.
    pub fn attempt_failed(&self, error: &'static str) {
        let Some(open) = &self.0 else { return };
        open.borrow_mut().end_attempt(Some(error));
    }

    /// The worker has answered with `status`, which the client gets.
    pub fn answered(&self, status: u16) {
        self.note(|request| {
            request.status = Some(status);
            if let Some(attempt) = &mut request.attempt {
                attempt.status = Some(status);
            }
        });
    }

    /// A piece of the answer's body, `bytes` long, is passed on.
    pub fn passed_on(&self, bytes: u64) {
        self.note(|request| {
            request.bytes_out += bytes;
            if let Some(attempt) = &mut request.attempt
                && attempt.first_chunk_at.is_none()
            {
                attempt.first_chunk_at = Some(clock::monotonic());
            }
        });
    }

    /// Both directions of a connection that has switched protocols.
    pub fn tunnelled(&self, bytes_in: u64, bytes_out: u64) {
        self.note(|request| {
            request.bytes_in += bytes_in;
            request.bytes_out += bytes_out;
        });
    }

    /// The answer is whole.
    pub fn completed(&self) {
        let Some(open) = &self.0 else { return };
        let open = &mut *open.borrow_mut();
        open.complete = true;
        open.end_attempt(None);
    }

    /// The worker broke off in the middle of its answer.
    pub fn broke_off(&self, error: &'static str) {
        let Some(open) = &self.0 else { return };
        open.borrow_mut().end_attempt(Some(error));
        self.note(|request| {
            request.broken = true;
            request.error = Some(error);
        });
    }

    /// The client has left in the middle of the answer, and the worker finishes for nobody.
    pub fn client_left(&self) {
        self.note(|request| request.client_left = true);
    }

    /// The client has left before the answer, and the worker finishes for nobody.
    pub fn client_left_unanswered(&self) {
        self.note(|request| {
            request.client_left = true;
            request.status = None;
        });
    }

    /// The proxy itself answers, with `status` and a body of `bytes`; `error` names why.
    pub fn refused(&self, status: u16, error: &'static str, bytes: u64) {
        self.note(|request| {
            request.error = Some(error);
            request.broken = false;
            // What was noted as the answer of a try that is not said to have failed was our own.
            if let Some(attempt) = request.attempt.as_mut().filter(|a| a.error.is_none()) {
                attempt.status = None;
            }
        });
        self.attempt_failed(error);
        self.own_answer(status, bytes);
    }

    /// The proxy itself answers, and nothing is wrong.
    pub fn own_answer(&self, status: u16, bytes: u64) {
        self.note(|request| {
            request.status = Some(status);
            request.bytes_out = bytes;
        });
        self.completed();
    }

    /// Counts the bytes of the request's body. It does not keep the request's end from being noted.
    #[must_use]
    pub fn body_meter(&self) -> BodyMeter {
        BodyMeter(self.0.as_ref().map(Rc::downgrade))
    }
}

/// Counts the bytes of a request's body for its record.
#[derive(Debug, Default)]
pub struct BodyMeter(Option<Weak<RefCell<Open>>>);

impl BodyMeter {
    /// `bytes` more have come.
    pub fn add(&self, bytes: usize) {
        if let Some(open) = self.0.as_ref().and_then(Weak::upgrade)
            && let Some(request) = &mut open.borrow_mut().request
        {
            request.bytes_in += bytes as u64;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use metrics::Counter;
    use tokio::sync::mpsc;

    use super::*;
    use crate::types::spec::OnClientAbort;
    use crate::types::{Generation, Protocol};

    /// A record for `GET /p?q`, and where it ends up.
    pub(in crate::telemetry) fn record(
        headers: &[(&'static str, &'static str)],
    ) -> (RequestRecord, mpsc::Receiver<FinishedRequest>) {
        let (access, finished) = AccessLog::for_tests(1.0, Counter::noop(), 8);
        let observers = Rc::new(Observers { access: Some(access), tracer: None });
        let mut request = http::Request::get("http://h/p?q");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut head = request.body(()).expect("a request").into_parts().0;
        (observers.begin(&mut head, clock::monotonic()), finished)
    }

    /// What was noted of such a request after `notes`.
    pub(in crate::telemetry) fn noted(notes: impl FnOnce(&RequestRecord)) -> FinishedRequest {
        let (record, mut finished) = record(&[]);
        notes(&record);
        drop(record);
        finished.try_recv().expect("it has ended")
    }

    fn route() -> BackendRoute {
        BackendRoute {
            instance: "i-1".parse().expect("valid"),
            generation: Generation(1),
            instance_type: "t".parse().expect("valid"),
            address: "http://[::1]:9".parse().expect("valid"),
            model: "m".parse().expect("valid"),
            copies: 1,
            max_concurrency: 1,
            protocol: Protocol::Http1,
            tls: None,
            engine: None,
            on_client_abort: OnClientAbort::default(),
            load_metrics: None,
            recoveries: 0,
        }
    }

    fn tried(record: &RequestRecord) {
        record.attempt(&route(), clock::monotonic(), &mut HeaderMap::new());
    }

    #[test]
    fn nothing_is_noted_where_nobody_listens() {
        let observers = Rc::new(Observers::default());
        let mut head = http::Request::new(()).into_parts().0;
        let record = observers.begin(&mut head, clock::monotonic());
        assert!(record.0.is_none());
        record.answered(200);
        record.body_meter().add(1);
    }

    #[test]
    fn it_ends_with_its_last_clone_and_is_told_once() {
        let (record, mut finished) = record(&[]);
        let meter = record.body_meter();
        let other = record.clone();
        drop(record);
        meter.add(5);
        assert!(finished.try_recv().is_err());
        drop(other);
        let request = finished.try_recv().expect("it has ended");
        assert_eq!((request.bytes_in, request.client_left, request.code()), (5, true, 499));
        assert!(finished.try_recv().is_err());
        // A body that outlives its request counts for nobody.
        meter.add(5);
    }

    #[test]
    fn who_ended_it_is_told_apart() {
        let whole = noted(|record| {
            tried(record);
            record.answered(200);
            record.passed_on(3);
            record.passed_on(4);
            record.completed();
        });
        assert_eq!((whole.code(), whole.bytes_out, whole.client_left), (200, 7, false));
        assert!(!whole.has_failed());

        let left = noted(|record| {
            tried(record);
            record.answered(200);
            record.passed_on(3);
        });
        assert_eq!((left.code(), left.client_left, left.has_failed()), (200, true, false));

        let broken = noted(|record| {
            tried(record);
            record.answered(200);
            record.broke_off("stream_broken");
        });
        assert_eq!((broken.code(), broken.client_left, broken.has_failed()), (200, false, true));
        assert_eq!(broken.attempt.and_then(|a| a.error), Some("stream_broken"));

        let refused = noted(|record| {
            record.waiting();
            record.refused(429, "queue_full", 9);
        });
        assert_eq!((refused.code(), refused.error), (429, Some("queue_full")));
        assert_eq!((refused.bytes_out, refused.client_left, refused.tries), (9, false, 0));
        assert!(!refused.has_failed());
    }

    #[test]
    fn only_the_last_try_counts_and_waits_add_up() {
        let request = noted(|record| {
            for _ in 0..2 {
                record.waiting();
                tried(record);
                record.attempt_failed("connect_failed");
            }
            record.waiting();
            tried(record);
            record.answered(200);
            record.completed();
        });
        assert_eq!(request.tries, 3);
        let last = request.attempt.expect("a try");
        assert_eq!((last.error, last.status), (None, Some(200)));
        assert_eq!(request.error, None);
        assert!(request.queued <= request.ended_at - request.arrived_at);
        assert!(last.ended_at.is_some_and(|end| end <= request.ended_at));
    }
}
