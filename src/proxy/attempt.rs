//! One try of a request at one instance: a connection, the head of the answer, and, where the request may
//! be replayed, the first piece of its body, so that a worker that dies before that costs time and no
//! error.

use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{HOST, HeaderName, HeaderValue, TE, UPGRADE};
use http::{Request, Response, StatusCode, Version};
use tokio_util::task::TaskTracker;

use super::admission::Reservation;
use super::answer::{AnswerError, UpstreamBody};
use super::body::{RequestBody, ResponseBody};
use super::deadline::Deadline;
use super::exchange::Exchange;
use super::headers;
use super::refusal::{ERROR, Refusal};
use super::retry;
use super::told::LOAD_METRICS_FORMAT;
use super::tunnel::Tunnel;
use super::upstream::{Connection, Pool, SendError, UpstreamError};
use crate::decision::outcome;
use crate::runtime::clock;
use crate::telemetry::request::RequestRecord;
use crate::tls::{Fault, WorkerTlsError};
use crate::types::Protocol;
use crate::types::spec::OnClientAbort;

/// Which worker an answer came from.
const INSTANCE: HeaderName = HeaderName::from_static("x-forebay-instance");
const INSTANCE_TYPE: HeaderName = HeaderName::from_static("x-forebay-instance-type");

/// What an attempt needs of its thread.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub(super) pool: Rc<Pool>,
    pub(super) connect_timeout: Duration,
    pub(super) tasks: TaskTracker,
}

/// How an attempt ended without an answer for the client.
#[derive(Debug)]
pub(super) enum Failure {
    /// No byte of the request has left: here it is again. And what is wrong with the instance's TLS, where
    /// that is why.
    NotSent(Box<Request<RequestBody>>, Option<Fault>),
    /// The worker says that it has not run it. Its words, in case there is nowhere else to go.
    NotRun(Box<Response<ResponseBody>>),
    /// The worker says that it has not looked at it.
    Refused,
    /// It may have run; no byte of an answer went to the client.
    Broken,
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
    /// Its answer is handed over only once its body has begun.
    pub(super) hold_head: bool,
    pub(super) deadline: Deadline,
}

impl Failure {
    /// Of an answer that ended before its first piece.
    #[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
    fn of_body(error: AnswerError) -> Self {
        match error {
            AnswerError::Worker(_) => Self::Broken,
            AnswerError::Late(late) => Self::Counted(late.into()),
        }
    }
}

impl Sender {
    /// Sends `request` to the instance of `reservation`.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn send(
        &self,
        reservation: Reservation,
        request: Request<RequestBody>,
        terms: Terms<'_>,
    ) -> Result<Response<ResponseBody>, Failure> {
        if reservation.backend.route.on_client_abort == OnClientAbort::Cancel {
            return self.try_once(reservation, request, terms).await;
        }
        // Goes on without the client: whatever comes of it is read to its end.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (this, record, arrived_at) = (self.clone(), terms.record.clone(), terms.arrived_at);
        let (hold_head, deadline) = (terms.hold_head, terms.deadline);
        self.tasks.spawn_local(async move {
            // Time that is up for the client does not cut it short.
            let untimed = Deadline::default();
            let terms = Terms { arrived_at, record: &record, hold_head, deadline: untimed };
            let outcome = this.try_once(reservation, request, terms).await;
            // A client that has left hands the answer back, whose drop reads it to its end.
            if let Err(unwanted) = sender.send(outcome) {
                record.client_left_unanswered();
                drop(unwanted);
            }
        });
        let answer = deadline.head(clock::monotonic(), receiver).await;
        answer.map_err(Failure::Counted)?.unwrap_or(Err(Failure::Broken))
    }

    async fn try_once(
        &self,
        reservation: Reservation,
        mut request: Request<RequestBody>,
        terms: Terms<'_>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut exchange = Exchange::begin(reservation, terms.arrived_at, terms.record);
        exchange.announce(request.headers_mut());
        if !request.headers().contains_key(HOST) {
            let host = exchange.backend().host_header.clone();
            request.headers_mut().insert(HOST, host);
        }
        if exchange.backend().route.protocol == Protocol::Http1 {
            // Over HTTP/2 it is not about one connection alone: gRPC workers ask for it.
            request.headers_mut().remove(TE);
        }
        if let Some(format) = exchange.backend().route.load_metrics {
            let format = HeaderValue::from_static(format.as_str());
            request.headers_mut().insert(LOAD_METRICS_FORMAT, format);
        }
        // Whatever the client wrote: this is what the worker is asked for.
        let asked = request.headers().get(UPGRADE).cloned();
        loop {
            let mut connection =
                match self.pool.connect(exchange.backend(), self.connect_timeout).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        let instance = &exchange.backend().route.instance;
                        tracing::debug!(%instance, %error, "cannot connect");
                        let fault = WorkerTlsError::fault_of(&error);
                        return Err(not_sent(exchange, request, fault));
                    }
                };
            // A connection that the worker closes while it is idle takes with it what is sent just then. What changes
            // nothing may be sent again (RFC 9112, 9.3.1).
            let again = connection.is_reused() && request.method().is_safe();
            let spare = again.then(|| retry::copy(&request)).flatten();
            let sent = {
                let sent = pin!(connection.send(request));
                terms.deadline.head(exchange.sent_at(), sent).await
            };
            match sent.map_err(|refusal| {
                exchange.timed_out(&refusal);
                Failure::Counted(refusal)
            })? {
                Ok(response) => {
                    return self.answer(response, connection, exchange, asked, terms).await;
                }
                // It closed while it was idle, or just now: another connection to the same instance.
                Err(SendError::NotSent(unsent)) if connection.is_reused() => request = *unsent,
                Err(SendError::NotSent(unsent)) => {
                    return Err(not_sent(exchange, *unsent, None));
                }
                Err(SendError::Refused(error)) => {
                    let instance = &exchange.backend().route.instance;
                    tracing::debug!(%instance, %error, "a worker refused a stream");
                    exchange.refused();
                    return Err(Failure::Refused);
                }
                Err(SendError::Broken(error)) => match (spare, error) {
                    (Some(spare), UpstreamError::Io(_) | UpstreamError::Closed) => request = spare,
                    (_, error) => return Err(broken(exchange, &error)),
                },
            }
        }
    }

    async fn answer(
        &self,
        response: Response<()>,
        connection: Connection,
        mut exchange: Exchange,
        asked: Option<HeaderValue>,
        terms: Terms<'_>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let (mut parts, ()) = response.into_parts();
        let upgrade = headers::wanted_upgrade(&parts.headers);
        headers::strip_hop_by_hop(&mut parts.headers);
        exchange.backend().vitals.told.take_off(&mut parts.headers);
        headers::fix_response_framing(&mut parts.headers, connection.rest().is_some());
        let backend = exchange.backend();
        // What the proxy says itself nobody else may.
        parts.headers.remove(ERROR);
        parts.headers.insert(INSTANCE, backend.instance_header.clone());
        parts.headers.insert(INSTANCE_TYPE, backend.instance_type_header.clone());
        parts.version = Version::HTTP_11;
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let agreed = asked.zip(upgrade).filter(|(asked, to)| headers::offers(asked, to));
            let Some((_, protocol)) = agreed else {
                tracing::debug!("a worker switches protocols though nobody asked it to");
                exchange.failed();
                return Err(Failure::Broken);
            };
            exchange.answered(parts.status.as_u16(), outcome::Outcome::Good);
            headers::set_upgrade(&mut parts.headers, protocol);
            let tunnel = Tunnel { connection, exchange, deadline: terms.deadline };
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
        let mut body = UpstreamBody::new(connection, exchange, self, terms.deadline);
        if terms.hold_head {
            body.read_ahead().await.map_err(Failure::of_body)?;
        }
        if headers::is_event_stream(&parts.headers) {
            // The engine may say only there, behind a 200, that it is full.
            not_run |= body.says_not_run().await.map_err(Failure::of_body)?;
        }
        let response = Response::from_parts(parts, ResponseBody::Upstream(Box::new(body)));
        if not_run { Err(Failure::NotRun(Box::new(response))) } else { Ok(response) }
    }
}

fn not_sent(exchange: Exchange, request: Request<RequestBody>, fault: Option<Fault>) -> Failure {
    exchange.not_sent();
    Failure::NotSent(Box::new(request), fault)
}

/// Whose fault a request was that got no answer: the client's body broke off while it was being sent, or
/// the worker's connection did.
fn broken(mut exchange: Exchange, error: &UpstreamError) -> Failure {
    if let Some(refusal) = Refusal::of_request(error) {
        exchange.answered(refusal.code(), outcome::Outcome::Neutral);
        return Failure::Counted(refusal);
    }
    let instance = &exchange.backend().route.instance;
    tracing::debug!(%instance, %error, "a worker broke off");
    exchange.failed();
    Failure::Broken
}
