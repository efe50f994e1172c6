//! One request at one worker, from being sent until its last byte: the slot it holds, the connection it
//! drives, what is measured of it. However it ends (completed, failed, client gone, panic), dropping it
//! gives the slot back and writes down what happened.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::admission::Reservation;
use super::snapshot::Backend;
use super::upstream::{Connection, Pool};
use crate::runtime::clock;
use crate::telemetry::request::RequestRecord;

/// What clients that left first are counted under (nginx's convention).
const CLIENT_LEFT: u16 = 499;

/// A request that holds a slot. Its drop is the end of the request.
#[derive(Debug)]
pub(super) struct Exchange {
    reservation: Reservation,
    sent_at: Instant,
    /// The code that it is counted under, once known; not counted where it goes on elsewhere.
    code: Option<u16>,
    record: RequestRecord,
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
        Self { reservation, sent_at, code: Some(CLIENT_LEFT), record: record.clone() }
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

    /// The client gets this status.
    pub(super) fn answered(&mut self, code: u16) {
        self.code = Some(code);
        self.record.answered(code);
    }

    /// It was not sent after all; the request goes on elsewhere and is counted there.
    pub(super) fn not_sent(mut self) {
        self.code = None;
        self.record.attempt_failed("connect_failed");
        self.backend().slot.note_connect_failure();
        self.backend().traffic.connect_failed();
    }

    fn first_chunk(&self) {
        self.backend().traffic.first_chunk(self.sent_at.elapsed());
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(code) = self.code {
            let traffic = &self.backend().traffic;
            traffic.answered(code);
            traffic.finished(self.sent_at.elapsed());
        }
    }
}

/// A worker's answer on its way to the client. Polling it drives the worker's connection.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    // Dropped in this order: the connection (which cancels what still runs) before the slot is free.
    incoming: Incoming,
    connection: Option<Connection>,
    exchange: Option<Exchange>,
    pool: Rc<Pool>,
    has_begun: bool,
}

impl UpstreamBody {
    pub(super) fn new(
        incoming: Incoming,
        connection: Connection,
        exchange: Exchange,
        pool: Rc<Pool>,
    ) -> Self {
        let mut body = Self {
            incoming,
            connection: Some(connection),
            exchange: Some(exchange),
            pool,
            has_begun: false,
        };
        if body.incoming.is_end_stream() {
            body.finish();
        }
        body
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if let Some(connection) = &mut self.connection {
                    connection.drive(cx);
                }
                std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx))
            }
        };
        if let (Some(Ok(frame)), Some(exchange)) = (&frame, &self.exchange) {
            exchange.record.passed_on(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        match &frame {
            Some(Ok(_)) if !self.has_begun => {
                self.has_begun = true;
                if let Some(exchange) = &self.exchange {
                    exchange.first_chunk();
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                self.connection = None;
                if let Some(exchange) = &self.exchange {
                    exchange.record.broke_off("stream_broken");
                }
            }
            None => self.finish(),
        }
        if matches!(frame, Some(Ok(_))) && self.incoming.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame)
    }

    /// The last byte is here: the worker is done with the request, and its connection free for another.
    fn finish(&mut self) {
        if let (Some(connection), Some(exchange)) = (self.connection.take(), self.exchange.as_ref())
        {
            exchange.record.completed();
            self.pool.give_back(exchange.backend(), connection);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
