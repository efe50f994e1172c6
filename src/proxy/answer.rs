//! A worker's answer on its way to the client: piece by piece, as the client takes them, within the
//! request's deadline. It holds the exchange until the client has the last of it.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use thiserror::Error;

use super::attempt::Sender;
use super::deadline::{Late, Watch};
use super::draft::Draft;
use super::exchange::Exchange;
use super::head;
use super::refusal::Refusal;
use super::snapshot::Signature;
use super::upstream::{Connection, UpstreamError};
use crate::decision::engine;
use crate::decision::outcome::Outcome;
use crate::types::spec::OnClientAbort;

/// Why an answer did not come whole.
#[derive(Debug, Error)]
pub(super) enum AnswerError {
    /// The worker broke off.
    #[error(transparent)]
    Worker(#[from] UpstreamError),
    /// Time is up.
    #[error("{}", Refusal::from(*.0))]
    Late(Late),
}

/// A worker's answer on its way to the client. Polling it drives the worker's connection.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    rest: Option<Rest>,
    /// Read before the head was passed on.
    ahead: Option<Frame<Bytes>>,
    /// The request, as long as it may have to be sent again and its connection serves others.
    request: Option<Box<Draft>>,
    /// Where the worker broke off, not told yet.
    failure: Option<AnswerError>,
    watch: Watch,
    sender: Rc<Sender>,
    has_begun: bool,
    /// Nothing was waited for since something came.
    is_fresh: bool,
}

/// What is needed until the last byte.
#[derive(Debug)]
struct Rest {
    // Dropped in this order: the connection (which cancels what still runs) before the slot is free. There is
    // none once the last byte is here, or the worker broke off.
    connection: Option<Connection>,
    exchange: Exchange,
    /// The worker closes the connection behind this answer.
    is_last: bool,
}

impl UpstreamBody {
    pub(super) fn new(
        connection: Connection,
        exchange: Exchange,
        sender: &Rc<Sender>,
        watch: Watch,
    ) -> Self {
        let is_stream = connection.rest().is_none();
        let engine = exchange.backend().route.engine.map(engine::profile);
        let is_last = is_stream && engine.is_some_and(|profile| profile.closes_after_stream);
        let rest = Rest { connection: Some(connection), exchange, is_last };
        let mut body = Self {
            rest: Some(rest),
            ahead: None,
            request: None,
            failure: None,
            watch,
            sender: Rc::clone(sender),
            has_begun: false,
            is_fresh: true,
        };
        body.finish_if_over();
        body
    }

    /// Reads the first piece, and keeps it for the client.
    ///
    /// # Errors
    /// The worker or the client broke off before it, or time is up: then that is what the request is counted as.
    pub(super) async fn read_ahead(&mut self) -> Result<(), AnswerError> {
        match std::future::poll_fn(|cx| self.poll_frame(cx)).await {
            Some(Ok(frame)) => {
                self.ahead = Some(frame);
                Ok(())
            }
            Some(Err(error)) => {
                if let Some(rest) = &mut self.rest {
                    match &error {
                        AnswerError::Late(late) => rest.exchange.timed_out(&Refusal::from(*late)),
                        AnswerError::Worker(error) => {
                            if let Some(refusal) = Refusal::of_request(error) {
                                rest.exchange.answered(refusal.code(), Outcome::Neutral);
                            }
                        }
                    }
                }
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Whether the beginning of this event stream says that the request was not run. Only engines that may
    /// say so there are waited for, and no longer than they take for it.
    ///
    /// # Errors
    /// The worker broke off before the first piece, or time is up.
    pub(super) async fn says_not_run(&mut self) -> Result<bool, AnswerError> {
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

    /// The request once more, if it was kept.
    pub(super) fn take_request(&mut self) -> Option<Box<Draft>> {
        let connection = self.rest.as_mut().and_then(|rest| rest.connection.as_mut());
        self.request.take().or_else(|| connection?.take_request())
    }

    /// The request will not be sent again.
    pub(super) fn forget_request(&mut self) {
        self.request = None;
        if let Some(connection) = self.rest.as_mut().and_then(|rest| rest.connection.as_mut()) {
            connection.forget_request();
        }
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
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
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
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        if let Some(frame) = self.ahead.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if self.watch.is_over() {
            return Poll::Ready(Some(Err(self.cut(Late::Whole))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let Some(connection) = &mut rest.connection else { return Poll::Ready(None) };
        let Poll::Ready(frame) = connection.poll_frame(cx) else {
            self.is_fresh = false;
            let late = std::task::ready!(self.watch.poll(cx));
            return Poll::Ready(Some(Err(self.cut(late))));
        };
        self.watch.progressed();
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                rest.exchange.record().passed_on(bytes);
                let is_first = !std::mem::replace(&mut self.has_begun, true);
                rest.exchange.has_come(is_first, std::mem::replace(&mut self.is_fresh, true));
                self.finish_if_over();
            }
            Some(Err(error)) => {
                match Refusal::of_request(error) {
                    Some(refusal) => rest.exchange.spoilt(&refusal),
                    None => rest.exchange.failed(),
                }
                self.request = rest.connection.take().and_then(|mut it| it.take_request());
            }
            None => self.finish(),
        }
        Poll::Ready(frame.map(|frame| frame.map(head::cleaned).map_err(AnswerError::from)))
    }

    /// Time is up, for the client. Its worker may have to finish all the same.
    fn cut(&mut self, late: Late) -> AnswerError {
        self.watch = Watch::without_limit();
        if let Some(rest) = &mut self.rest {
            rest.exchange.cut(late);
        }
        AnswerError::Late(late)
    }

    fn finish_if_over(&mut self) {
        if self.connection().is_some_and(Connection::is_over) {
            self.finish();
        }
    }

    /// The last byte is here: the worker is done with the request, and its connection free for another.
    /// The slot is held until the client has it too.
    fn finish(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.exchange.completed();
            if let Some(mut connection) = rest.connection.take() {
                self.request = connection.take_request();
                if !rest.is_last {
                    let exchange = &rest.exchange;
                    self.sender.pool.give_back(exchange.backend(), connection, exchange.heard_at());
                }
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.ahead.is_none()
            && self.failure.is_none()
            && self.connection().is_none_or(Connection::is_over)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let ahead =
            self.ahead.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        match self.connection().map(Connection::rest) {
            None => SizeHint::with_exact(ahead),
            Some(Some(rest)) => SizeHint::with_exact(ahead + rest),
            Some(None) => SizeHint::new(),
        }
    }

    /// What the client is told of the worker.
    pub(super) fn signature(&self) -> Option<Signature<'_>> {
        Some(self.rest.as_ref()?.exchange.backend().signature())
    }

    fn connection(&self) -> Option<&Connection> {
        self.rest.as_ref()?.connection.as_ref()
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
            rest.exchange.record().client_left();
        }
        let mut orphan = Self {
            rest: self.rest.take(),
            ahead: None,
            request: None,
            failure: None,
            // Nobody is left to be late for.
            watch: Watch::without_limit(),
            sender: Rc::clone(&self.sender),
            has_begun: true,
            is_fresh: false,
        };
        self.sender.tasks.spawn_local(async move {
            while let Some(Ok(_)) = std::future::poll_fn(|cx| orphan.poll_frame(cx)).await {}
            // Read to its end or broken: either way nothing is left to finish.
            if let Some(rest) = &mut orphan.rest {
                rest.connection = None;
            }
        });
    }
}
