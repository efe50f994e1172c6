//! One request at one worker, from being sent until its last byte: the slot it holds, the connection it
//! drives, what is measured of it. However it ends (completed, failed, client gone, panic), dropping it
//! gives the slot back and writes down what happened.

use std::time::{Duration, Instant};

use super::admission::Reservation;
use super::deadline::Late;
use super::refusal::Refusal;
use super::snapshot::Backend;
use crate::decision::outcome::Outcome;
use crate::runtime::clock;
use crate::telemetry::request::RequestRecord;

/// What clients that left first are counted under (nginx's convention).
pub(super) const CLIENT_LEFT: u16 = 499;

/// A request that holds a slot. Its drop is the end of the request.
#[derive(Debug)]
pub(super) struct Exchange {
    reservation: Reservation,
    sent_at: Instant,
    /// When something of the answer came last, or it was sent.
    heard_at: Instant,
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
        reservation.backend.slot.note_sent(clock::uptime_ms_at(sent_at));
        let company = reservation.backend.slot.outstanding();
        let (heard_at, record) = (sent_at, record.clone());
        Self { reservation, sent_at, heard_at, company, end: End::Waiting, record }
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
        self.heard_at = clock::monotonic();
        self.backend().slot.note_work(clock::uptime_ms_at(self.heard_at));
    }

    /// When something of the answer came last.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard_at
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

    /// It ends before its time for a reason that says nothing of the worker: the client's own body broke off, or a
    /// tunnel is cut.
    pub(super) fn spoilt(&self, refusal: &Refusal) {
        self.record.broke_off(refusal.kind());
    }

    /// The answer goes to nobody: the request is tried elsewhere and counted there.
    pub(super) fn superseded(&mut self) {
        if let End::Begun(_, outcome) | End::Complete(_, outcome) = self.end {
            self.reservation.note_outcome(outcome);
        }
        self.end = End::Elsewhere;
        self.record.attempt_failed("not_run");
    }

    /// The answer says no more than that the instance is full.
    pub(super) fn was_full(&mut self) {
        self.end = match self.end {
            End::Begun(code, _) => End::Begun(code, Outcome::Full),
            End::Complete(code, _) => End::Complete(code, Outcome::Full),
            other => other,
        };
    }

    /// Time is up before the head of the answer: told to the client as `refusal`, and held against the
    /// instance only where it was given a time of its own.
    pub(super) fn timed_out(&mut self, refusal: &Refusal) {
        let outcome = match refusal {
            Refusal::DeadlineExceeded => Outcome::Neutral,
            _ => Outcome::Bad,
        };
        self.end = End::Complete(refusal.code(), outcome);
        self.record.attempt_failed(refusal.kind());
    }

    /// Time is up in the middle of the answer.
    pub(super) fn cut(&mut self, late: Late) {
        let refusal = Refusal::from(late);
        if let End::Begun(code, _) = self.end {
            let outcome = if late == Late::Whole { Outcome::Neutral } else { Outcome::Bad };
            self.end = End::Complete(code, outcome);
        }
        self.record.broke_off(refusal.kind());
    }

    pub(super) fn sent_at(&self) -> Instant {
        self.sent_at
    }

    /// It was not sent after all.
    pub(super) fn not_sent(mut self) {
        self.record.attempt_failed("connect_failed");
        self.backend().slot.note_connect_failure();
        self.backend().traffic.connect_failed();
        self.reservation.note_outcome(Outcome::Bad);
        self.end = End::Elsewhere;
    }

    /// The instance did not look at it, which says this of it.
    pub(super) fn refused(mut self, outcome: Outcome) {
        self.record.attempt_failed("refused");
        self.reservation.note_outcome(outcome);
        self.end = End::Elsewhere;
    }

    /// A piece of the answer is here, maybe the first; `together` with what came last.
    pub(super) fn has_come(&mut self, is_first: bool, together: bool) {
        if !together {
            self.heard_at = clock::monotonic();
            self.backend().slot.note_work(clock::uptime_ms_at(self.heard_at));
        }
        if is_first {
            self.backend().traffic.first_chunk(self.heard_at.duration_since(self.sent_at));
        }
    }

    /// How long the instance took, and in what company: on the mean of its beginning and its end.
    fn learn(&self, spent: Duration) {
        let backend = self.backend();
        let company = f64::from(self.company + backend.slot.outstanding()) / 2.0;
        backend.times.learn(spent.as_secs_f64(), company / f64::from(backend.route.copies));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let spent = self.sent_at.elapsed();
        let (code, outcome) = match self.end {
            End::Elsewhere => return,
            End::Waiting => (CLIENT_LEFT, Outcome::Neutral),
            End::Begun(code, Outcome::Full) => (code, Outcome::Full),
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
