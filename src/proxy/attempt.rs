//! One try of a request at one instance: a connection, the head of the answer, and, where the request may
//! be replayed, the first piece of its body, so that a worker that dies before that costs time and no
//! error.

use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use http::{Response, StatusCode, Version};
use tokio_util::task::TaskTracker;

use super::admission::Reservation;
use super::alarm::Alarm;
use super::answer::{AnswerError, UpstreamBody};
use super::body::ResponseBody;
use super::deadline::Deadline;
use super::draft::Draft;
use super::exchange::Exchange;
use super::headers;
use super::names::Names;
use super::refusal::{ERROR, Refusal};
use super::snapshot::SIGNATURE;
use super::sticky;
use super::tunnel::Tunnel;
use super::upstream::{Connection, Pool, SendError, Unseen, UpstreamError};
use crate::decision::outcome::{self, Outcome};
use crate::runtime::clock;
use crate::telemetry::request::RequestRecord;
use crate::tls::{Fault, WorkerTlsError};
use crate::types::spec::OnClientAbort;

/// How often a request goes on another connection to the same instance that leaves one without looking at it.
const MOST_LEFT: u32 = 3;
/// The same where it refuses it.
const MOST_FULL: u32 = 2;

/// What an attempt needs of its thread.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) pool: Pool,
    pub(super) connect_timeout: Duration,
    pub(super) tasks: TaskTracker,
}

/// How an attempt ended without an answer for the client.
#[derive(Debug)]
pub(super) enum Failure {
    /// No byte of the request has left: here it is again. And what is wrong with the instance's TLS, where
    /// that is why.
    NotSent(Box<Draft>, Option<Fault>),
    /// The worker says that it has not run it. Its words, in case there is nowhere else to go.
    NotRun(Box<Response<ResponseBody>>, Option<Box<Draft>>),
    /// The worker says that it has not looked at it.
    Refused(Option<Box<Draft>>),
    /// It may have run; no byte of an answer went to the client.
    Broken(Option<Box<Draft>>),
    /// Nothing is to be tried again: the client's own body did not come whole, or time is up. The try has
    /// counted it.
    Counted(Refusal),
}

/// On which terms a request is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    /// When it came.
    pub(super) arrived_at: Instant,
    /// What is noted of it.
    pub(super) record: &'a RequestRecord,
    /// It may have to be sent again, elsewhere.
    pub(super) keep: bool,
    /// Its answer is handed over only once its body has begun.
    pub(super) hold_head: bool,
    pub(super) deadline: Deadline,
    /// The timer of the task that it is sent by.
    pub(super) alarm: &'a Rc<Alarm>,
}

impl Failure {
    /// Of an answer that ended before its first piece.
    fn of_body(error: &AnswerError, mut body: Box<UpstreamBody>) -> Self {
        match error {
            AnswerError::Worker(error) => match Refusal::of_request(error) {
                Some(refusal) => Self::Counted(refusal),
                None => Self::Broken(body.take_request()),
            },
            AnswerError::Late(late) => Self::Counted((*late).into()),
        }
    }
}

impl Sender {
    /// Sends `request` to the instance of `reservation`.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn send(
        self: &Rc<Self>,
        reservation: Reservation,
        request: Box<Draft>,
        terms: Terms<'_>,
    ) -> Result<Response<ResponseBody>, Failure> {
        if reservation.backend.route.on_client_abort == OnClientAbort::Cancel {
            return self.try_once(reservation, request, terms).await;
        }
        // Goes on without the client: whatever comes of it is read to its end.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (this, record, arrived_at) = (Rc::clone(self), terms.record.clone(), terms.arrived_at);
        let (keep, hold_head, deadline) = (terms.keep, terms.hold_head, terms.deadline);
        self.tasks.spawn_local(async move {
            // Time that is up for the client does not cut it short.
            let (deadline, alarm) = (Deadline::default(), Rc::default());
            let record = &record;
            let terms = Terms { arrived_at, record, keep, hold_head, deadline, alarm: &alarm };
            let outcome = this.try_once(reservation, request, terms).await;
            // A client that has left hands the answer back, whose drop reads it to its end.
            if let Err(unwanted) = sender.send(outcome) {
                record.client_left_unanswered();
                drop(unwanted);
            }
        });
        let answer = deadline.head(terms.alarm, clock::monotonic(), receiver).await;
        answer.map_err(Failure::Counted)?.unwrap_or(Err(Failure::Broken(None)))
    }

    async fn try_once(
        self: &Rc<Self>,
        reservation: Reservation,
        mut draft: Box<Draft>,
        terms: Terms<'_>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut exchange = Exchange::begin(reservation, terms.arrived_at, terms.record);
        exchange.announce(&mut draft.parts.headers);
        draft.address(exchange.backend());
        let asked = draft.upgrade.clone();
        let (mut unseen_on, mut left, mut full) = (None, 0, 0);
        loop {
            let backend = exchange.backend();
            let alone = unseen_on.is_some();
            let connected = self.pool.connect(backend, self.connect_timeout, alone);
            let mut connection = match connected.await {
                Ok(connection) => connection,
                Err(error) => {
                    let instance = &exchange.backend().route.instance;
                    tracing::debug!(%instance, %error, "cannot connect");
                    let fault = WorkerTlsError::fault_of(&error);
                    return Err(not_sent(exchange, draft, fault));
                }
            };
            // A connection that the worker closes while it is idle takes with it what is sent just then. What changes
            // nothing may be sent again (RFC 9112, 9.3.1).
            let again = connection.is_reused() && draft.parts.method.is_safe();
            if terms.keep || again {
                draft.body.keep();
            }
            let sent = {
                let sent = pin!(connection.send(draft));
                terms.deadline.head(terms.alarm, exchange.sent_at(), sent).await
            };
            match sent.map_err(|refusal| {
                exchange.timed_out(&refusal);
                Failure::Counted(refusal)
            })? {
                Ok(response) => {
                    return self.answer(response, connection, exchange, asked, terms).await;
                }
                // It closed while it was idle, or just now: another connection to the same instance.
                Err(SendError::NotSent(unsent)) if connection.is_reused() => draft = unsent,
                Err(SendError::NotSent(unsent)) => {
                    return Err(not_sent(exchange, unsent, None));
                }
                Err(SendError::Refused(why, unseen)) => {
                    let instance = &exchange.backend().route.instance;
                    tracing::debug!(%instance, ?why, "a worker did not look at a request");
                    let (times, most, outcome) = match why {
                        Unseen::Leaving => (&mut left, MOST_LEFT, Outcome::Neutral),
                        Unseen::Full => (&mut full, MOST_FULL, Outcome::Full),
                    };
                    *times += 1;
                    match unseen {
                        Some(unseen) if *times <= most => draft = unseen,
                        unseen => {
                            exchange.refused(outcome);
                            return Err(Failure::Refused(unseen));
                        }
                    }
                    // Next it has a connection of its own: those that others are on may all be full for a moment, until
                    // the worker too knows of the ends that we know of, or be left before it is its turn. But many are
                    // left at once, and one new connection is for all of those.
                    let alone = why == Unseen::Full || left > 1;
                    unseen_on = alone.then_some(connection);
                }
                Err(SendError::Broken(error)) => {
                    let again =
                        again && matches!(error, UpstreamError::Io(_) | UpstreamError::Closed);
                    match connection.take_request() {
                        Some(kept) if again => draft = kept,
                        kept => return Err(broken(exchange, &error, kept)),
                    }
                }
            }
        }
    }

    async fn answer(
        self: &Rc<Self>,
        response: Response<()>,
        mut connection: Connection,
        mut exchange: Exchange,
        asked: Option<HeaderValue>,
        terms: Terms<'_>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let (mut parts, ()) = response.into_parts();
        let names = Names::of(&parts.headers);
        let upgrade = headers::wanted_upgrade(&parts.headers, names);
        headers::strip_hop_by_hop(&mut parts.headers, names);
        exchange.backend().vitals.told.take_off(&mut parts.headers, names);
        sticky::name_sessions(&mut parts.headers, names, exchange.backend().route.generation);
        let says_length = connection.rest().is_some() && parts.status != StatusCode::NO_CONTENT;
        headers::fix_response_framing(&mut parts.headers, names, says_length);
        let backend = exchange.backend();
        // What the proxy says itself nobody else may.
        for name in SIGNATURE.into_iter().chain([ERROR]) {
            if names.may_have(&name) {
                parts.headers.remove(name);
            }
        }
        parts.version = Version::HTTP_11;
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let agreed = asked.zip(upgrade).filter(|(asked, to)| headers::offers(asked, to));
            let Some((_, protocol)) = agreed else {
                tracing::debug!("a worker switches protocols though nobody asked it to");
                exchange.failed();
                return Err(Failure::Broken(connection.take_request()));
            };
            exchange.answered(parts.status.as_u16(), Outcome::Good);
            headers::set_upgrade(&mut parts.headers, protocol);
            let watch = terms.deadline.watch(Rc::clone(terms.alarm));
            let tunnel = Tunnel { connection, exchange, watch };
            return Ok(Response::from_parts(parts, ResponseBody::Tunnel(Box::new(tunnel))));
        }
        let engine = backend.route.engine;
        let mut not_run = outcome::not_run(engine, parts.status.as_u16(), |name| {
            parts.headers.get(name).and_then(|value| value.to_str().ok())
        });
        exchange.answered(parts.status.as_u16(), outcome::of_status(engine, parts.status.as_u16()));
        if not_run {
            exchange.was_full();
        }
        let watch = terms.deadline.watch(Rc::clone(terms.alarm));
        let mut body = Box::new(UpstreamBody::new(connection, exchange, self, watch));
        if terms.hold_head
            && let Err(error) = body.read_ahead().await
        {
            return Err(Failure::of_body(&error, body));
        }
        if headers::is_event_stream(&parts.headers) {
            // The engine may say only there, behind a 200, that it is full.
            match body.says_not_run().await {
                Ok(says) => not_run |= says,
                Err(error) => return Err(Failure::of_body(&error, body)),
            }
        }
        let kept = if not_run { body.take_request() } else { None };
        body.forget_request();
        let response = Response::from_parts(parts, ResponseBody::Upstream(body));
        if not_run { Err(Failure::NotRun(Box::new(response), kept)) } else { Ok(response) }
    }
}

fn not_sent(exchange: Exchange, draft: Box<Draft>, fault: Option<Fault>) -> Failure {
    exchange.not_sent();
    Failure::NotSent(draft, fault)
}

/// Whose fault a request was that got no answer: the client's body broke off while it was being sent, or
/// the worker's connection did.
fn broken(mut exchange: Exchange, error: &UpstreamError, kept: Option<Box<Draft>>) -> Failure {
    if let Some(refusal) = Refusal::of_request(error) {
        exchange.answered(refusal.code(), Outcome::Neutral);
        return Failure::Counted(refusal);
    }
    let instance = &exchange.backend().route.instance;
    tracing::debug!(%instance, %error, "a worker broke off");
    exchange.failed();
    Failure::Broken(kept)
}
