//! One request at one worker, from being sent until its last byte: the slot it holds, the connection it
//! drives, what is measured of it. However it ends (completed, failed, client gone, panic), dropping it
//! gives the slot back and writes down what happened.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use super::admission::Reservation;
use super::attempt::Sender;
use super::snapshot::Backend;
use super::upstream::{Connection, Pool};
use crate::decision::engine;
use crate::decision::outcome::Outcome;
use crate::runtime::clock;
use crate::telemetry::request::RequestRecord;
use crate::types::spec::OnClientAbort;

/// What clients that left first are counted under (nginx's convention).
pub(super) const CLIENT_LEFT: u16 = 499;

/// A request that holds a slot. Its drop is the end of the request.
#[derive(Debug)]
pub(super) struct Exchange {
    reservation: Reservation,
    sent_at: Instant,
    /// Requests at the instance when it was sent, itself included.
    company: u32,
    end: End,
    record: RequestRecord,
}

/// How a request has ended so far.
#[derive(Debug, Clone, Copy)]
enum End {
    /// No head of an answer yet: if this is the end, the client has left.
    Waiting,
    /// The head came with this code, and what it says of the instance; the body is not complete.
    Begun(u16, Outcome),
    /// All of it came.
    Complete(u16, Outcome),
    /// The worker broke off, after a head with this code or before one.
    Broken(Option<u16>),
    /// It was not sent, or goes on elsewhere: it is counted there.
    Elsewhere,
}

impl Exchange {
    /// A request that arrived at `arrived_at` is sent from now on.
    pub(super) fn begin(
        reservation: Reservation,
        arrived_at: Instant,
        record: &RequestRecord,
    ) -> Self {
        let sent_at = clock::monotonic();
        reservation.backend.traffic.sent(sent_at.duration_since(arrived_at));
        reservation.backend.slot.note_sent(clock::uptime_ms());
        let company = reservation.backend.slot.outstanding();
        Self { reservation, sent_at, company, end: End::Waiting, record: record.clone() }
    }

    /// Notes where it is sent, and says so in the trace's header.
    pub(super) fn announce(&self, headers: &mut http::HeaderMap) {
        self.record.attempt(&self.backend().route, self.sent_at, headers);
    }

    pub(super) fn record(&self) -> &RequestRecord {
        &self.record
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.reservation.backend
    }

    /// The head of the answer is here.
    pub(super) fn answered(&mut self, code: u16, outcome: Outcome) {
        self.end = End::Begun(code, outcome);
        self.record.answered(code);
        self.worked();
    }

    /// The last byte of the answer is here.
    pub(super) fn completed(&mut self) {
        if let End::Begun(code, outcome) = self.end {
            self.end = End::Complete(code, outcome);
            self.record.completed();
        }
    }

    /// The worker broke off.
    pub(super) fn failed(&mut self) {
        let (end, error) = match self.end {
            End::Begun(code, _) => (End::Broken(Some(code)), "stream_broken"),
            _ => (End::Broken(None), "upstream_broken"),
        };
        self.end = end;
        self.record.broke_off(error);
    }

    /// The answer goes to nobody: the request is tried elsewhere and counted there.
    pub(super) fn superseded(&mut self) {
        if let End::Begun(_, outcome) | End::Complete(_, outcome) = self.end {
            self.reservation.note_outcome(outcome);
        }
        self.end = End::Elsewhere;
        self.record.attempt_failed("not_run");
    }

    /// The answer turns out to say no more than that the instance is full.
    fn was_full(&mut self) {
        self.end = match self.end {
            End::Begun(code, _) => End::Begun(code, Outcome::Neutral),
            End::Complete(code, _) => End::Complete(code, Outcome::Neutral),
            other => other,
        };
    }

    /// It was not sent after all.
    pub(super) fn not_sent(mut self) {
        self.record.attempt_failed("connect_failed");
        self.backend().slot.note_connect_failure();
        self.backend().traffic.connect_failed();
        self.reservation.note_outcome(Outcome::Bad);
        self.end = End::Elsewhere;
    }

    /// The instance did not look at it.
    pub(super) fn refused(mut self) {
        self.record.attempt_failed("refused");
        self.reservation.note_outcome(Outcome::Neutral);
        self.end = End::Elsewhere;
    }

    fn first_chunk(&self) {
        self.backend().traffic.first_chunk(self.sent_at.elapsed());
    }

    /// How long the instance took, and in what company: on the mean of its beginning and its end.
    fn learn(&self, spent: Duration) {
        let backend = self.backend();
        let company = f64::from(self.company + backend.slot.outstanding()) / 2.0;
        backend.times.learn(spent.as_secs_f64(), company / f64::from(backend.route.copies));
    }

    fn worked(&self) {
        self.backend().slot.note_work(clock::uptime_ms());
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let spent = self.sent_at.elapsed();
        let (code, outcome) = match self.end {
            End::Elsewhere => return,
            End::Waiting => (CLIENT_LEFT, Outcome::Neutral),
            End::Begun(code, _) => (code, Outcome::Neutral),
            End::Complete(code, outcome) => {
                if outcome == Outcome::Good {
                    self.learn(spent);
                }
                (code, outcome)
            }
            // A break before the head is told by whoever answers for it.
            End::Broken(None) => (0, Outcome::Bad),
            End::Broken(Some(code)) => (code, Outcome::Bad),
        };
        let traffic = &self.backend().traffic;
        if code != 0 {
            traffic.answered(code);
        }
        traffic.finished(spent);
        self.reservation.note_outcome(outcome);
    }
}

/// A worker's answer on its way to the client. Polling it drives the worker's connection.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    rest: Option<Rest>,
    /// Read before the head was passed on.
    ahead: Option<Frame<Bytes>>,
    /// Where the worker broke off, not told yet.
    failure: Option<hyper::Error>,
    pool: Rc<Pool>,
    tasks: TaskTracker,
    has_begun: bool,
}

/// What is needed until the last byte.
#[derive(Debug)]
struct Rest {
    // Dropped in this order: the connection (which cancels what still runs) before the slot is free.
    incoming: Incoming,
    connection: Option<Connection>,
    exchange: Exchange,
    /// The worker closes the connection behind this answer.
    is_last: bool,
}

impl UpstreamBody {
    pub(super) fn new(
        incoming: Incoming,
        connection: Connection,
        exchange: Exchange,
        sender: &Sender,
    ) -> Self {
        let is_stream = incoming.size_hint().exact().is_none();
        let engine = exchange.backend().route.engine.map(engine::profile);
        let is_last = is_stream && engine.is_some_and(|profile| profile.closes_after_stream);
        let rest = Rest { incoming, connection: Some(connection), exchange, is_last };
        let mut body = Self {
            rest: Some(rest),
            ahead: None,
            failure: None,
            pool: Rc::clone(&sender.pool),
            tasks: sender.tasks.clone(),
            has_begun: false,
        };
        body.finish_if_over();
        body
    }

    /// Reads the first piece, and keeps it for the client.
    ///
    /// # Errors
    /// The worker broke off before it.
    pub(super) async fn read_ahead(&mut self) -> Result<(), hyper::Error> {
        match std::future::poll_fn(|cx| self.poll_frame(cx)).await {
            Some(Ok(frame)) => {
                self.ahead = Some(frame);
                Ok(())
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Whether the beginning of this event stream says that the request was not run. Only engines that may
    /// say so there are waited for, and no longer than they take for it.
    ///
    /// # Errors
    /// The worker broke off before the first piece.
    pub(super) async fn says_not_run(&mut self) -> Result<bool, hyper::Error> {
        let engine = self.rest.as_ref().and_then(|rest| rest.exchange.backend().route.engine);
        let Some(wait) = engine.and_then(|engine| engine::profile(engine).first_event_wait) else {
            return Ok(false);
        };
        if let Ok(read) = tokio::time::timeout(wait, self.read_ahead()).await {
            read?;
        }
        let first = self.ahead.as_ref().and_then(Frame::data_ref);
        let says = first.is_some_and(|bytes| engine::first_event_says_not_run(engine, bytes));
        if says && let Some(rest) = &mut self.rest {
            rest.exchange.was_full();
        }
        Ok(says)
    }

    /// Nobody gets this answer: the request goes on elsewhere.
    pub(super) fn supersede(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.exchange.superseded();
        }
    }

    /// The next piece for the client. An error comes one poll late, after what was read before it: the
    /// connection flushes while it waits, and throws away what is unwritten when it sees the error.
    pub(super) fn poll_for_client(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(error) = self.failure.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match std::task::ready!(self.poll_frame(cx)) {
            Some(Err(error)) => {
                self.failure = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => Poll::Ready(frame),
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(frame) = self.ahead.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let frame = match Pin::new(&mut rest.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if let Some(connection) = &mut rest.connection {
                    connection.drive(cx);
                }
                std::task::ready!(Pin::new(&mut rest.incoming).poll_frame(cx))
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                rest.exchange.record.passed_on(bytes);
                rest.exchange.worked();
                if !self.has_begun {
                    self.has_begun = true;
                    rest.exchange.first_chunk();
                }
                self.finish_if_over();
            }
            Some(Err(_)) => {
                rest.exchange.failed();
                rest.connection = None;
            }
            None => self.finish(),
        }
        Poll::Ready(frame)
    }

    fn finish_if_over(&mut self) {
        if self.rest.as_ref().is_some_and(|rest| rest.incoming.is_end_stream()) {
            self.finish();
        }
    }

    /// The last byte is here: the worker is done with the request, and its connection free for another.
    /// The slot is held until the client has it too.
    fn finish(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.exchange.completed();
            if let Some(connection) = rest.connection.take()
                && !rest.is_last
            {
                self.pool.give_back(rest.exchange.backend(), connection);
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.ahead.is_none()
            && self.failure.is_none()
            && self.rest.as_ref().is_none_or(|rest| rest.incoming.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let ahead =
            self.ahead.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        match self.rest.as_ref().map(|rest| rest.incoming.size_hint().exact()) {
            None => SizeHint::with_exact(ahead),
            Some(Some(rest)) => SizeHint::with_exact(ahead + rest),
            Some(None) => SizeHint::new(),
        }
    }

    /// Whether the worker is to finish though the client has left.
    fn must_finish(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| {
            rest.connection.is_some()
                && rest.exchange.backend().route.on_client_abort == OnClientAbort::Finish
        })
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        if !self.must_finish() {
            return;
        }
        if let Some(rest) = &self.rest {
            rest.exchange.record.client_left();
        }
        let mut orphan = Self {
            rest: self.rest.take(),
            ahead: None,
            failure: None,
            pool: Rc::clone(&self.pool),
            tasks: self.tasks.clone(),
            has_begun: true,
        };
        self.tasks.spawn_local(async move {
            while let Some(Ok(_)) = std::future::poll_fn(|cx| orphan.poll_frame(cx)).await {}
            // Read to its end or broken: either way nothing is left to finish.
            if let Some(rest) = &mut orphan.rest {
                rest.connection = None;
            }
        });
    }
}
