//! The life of a request, from its head to the head of the answer: resolve, read what is small, be
//! admitted, send, and send elsewhere what harms nobody there. Every request to a worker, whatever its
//! path or protocol, goes through [`serve`] and holds an exchange while it is out.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::header::{EXPECT, HeaderValue};
use http::{Request, Response, Version};

use super::admission::{Affinity, Reservation};
use super::attempt::{Failure, Sender, Terms};
use super::body::{Incoming, RequestBody, ResponseBody};
use super::deadline::Deadline;
use super::draft::Draft;
use super::exchange::CLIENT_LEFT;
use super::head;
use super::headers::Length;
use super::keys::{ApiKeys, Key};
use super::limits::Clients;
use super::names::Names;
use super::own::Own;
use super::refusal::{Dialect, Refusal};
use super::resolve::Target;
use super::retry::Retry;
use super::router::Router;
use super::snapshot::Variant;
use super::sticky;
use crate::decision::admit::Caller;
use crate::runtime::clock;
use crate::telemetry::request::{Observers, RequestRecord};
use crate::telemetry::traffic::Traffic;
use crate::tls::Fault;
use crate::types::spec::RequestPolicy;

/// The priority of requests that name none.
const USUAL_PRIORITY: u8 = 5;

/// What a thread needs to serve requests.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) router: Arc<Router>,
    pub(super) sender: Sender,
    pub(super) clients: Arc<Clients>,
    pub(super) keys: Arc<ApiKeys>,
    pub(super) observers: Rc<Observers>,
}

/// Answers one request; what goes wrong is an answer too.
///
/// Everything up to the returned future happens at once: of a client that has left by the time its request
/// is read, the future is dropped without ever being polled, and its request must count all the same.
pub(super) fn serve(
    thread: Rc<Thread>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    let (mut parts, body) = request.into_parts();
    let arrived_at = clock::monotonic();
    let record = thread.observers.begin(&mut parts, arrived_at);
    let names = Names::of(&parts.headers);
    let target = Target::of(&parts, names);
    let asked = head::check(&parts);
    let asked = asked.and_then(|()| Deadline::asked(&parts.headers, names, arrived_at));
    let deadline = asked.as_ref().map_or_else(|_| Deadline::default(), |deadline| *deadline);
    let admitted = asked.and_then(|_| thread.keys.admit(&mut parts.headers, arrived_at));
    if let Ok(Some(key)) = &admitted {
        record.came_with(&key.name);
    }
    let admitted = admitted.and_then(|key| Ok((key, Own::of(&mut parts)?)));
    let (key, own, by_head) = match admitted {
        Err(refusal) => (None, None, Some(Err(refusal))),
        Ok((key, Some(own))) => (key, Some(own), None),
        Ok((key, None)) => {
            let by_head = target.resolve_by_head(&parts, &thread.router.current());
            let by_head = by_head.map(|found| allowed(found?, key.as_deref()));
            (key, None, by_head)
        }
    };
    let mut accountable = None;
    if let Some(Ok(variant)) = &by_head {
        accountable = Some(Arc::clone(&variant.unserved));
        variant.room.arrived();
        record.resolved(&variant.key, &variant.model);
    }
    let body = RequestBody::new(body, record.body_meter(), &thread.clients);
    let mut draft = Box::new(Draft::new(parts, names, body));
    if draft.parts.version == Version::HTTP_2 {
        if target.dialect == Dialect::Grpc {
            draft.body.may_be_silent();
        }
        if names.may_have(EXPECT) && draft.parts.headers.contains_key(EXPECT) {
            draft.body.expects_continue();
        }
    }
    let life = Life {
        arrived_at,
        deadline,
        key,
        variant: None,
        accountable,
        at_instance: false,
        may_have_run: false,
        tls_fault: None,
        thread,
        record,
    };
    async move {
        Ok(if let Some(own) = own {
            let answer = own.answer(&life.thread.router, life.key.as_deref());
            life.record.own_answer(answer.status().as_u16(), full_length(&answer));
            answer
        } else {
            life.answer(target, draft, by_head).await
        })
    }
}

/// The length of a body that is here already.
fn full_length(response: &Response<ResponseBody>) -> u64 {
    http_body::Body::size_hint(response.body()).lower()
}

/// The variant, if the key is for its endpoint.
fn allowed(variant: Arc<Variant>, key: Option<&Key>) -> Result<Arc<Variant>, Refusal> {
    key.map_or(Ok(()), |key| key.asks(&variant.key.endpoint))?;
    Ok(variant)
}

struct Life {
    thread: Rc<Thread>,
    arrived_at: Instant,
    /// The client's own, and the variant's once it is known.
    deadline: Deadline,
    /// Who asks, where keys are asked for.
    key: Option<Arc<Key>>,
    variant: Option<Arc<Variant>>,
    /// Where an answer of our own is counted: at the instance type that failed, or at none.
    accountable: Option<Arc<Traffic>>,
    /// A try is under way, and counts for itself.
    at_instance: bool,
    /// A worker had it and broke off.
    may_have_run: bool,
    /// Why the last try did not get through TLS, where that was the reason.
    tls_fault: Option<Fault>,
    record: RequestRecord,
}

impl Life {
    async fn answer(
        mut self,
        target: Target,
        draft: Box<Draft>,
        by_head: Option<Result<Arc<Variant>, Refusal>>,
    ) -> Response<ResponseBody> {
        let dialect = target.dialect;
        let refusal = match self.run(target, draft, by_head).await {
            Ok(response) => return response,
            Err(refusal) => refusal,
        };
        if let Some(traffic) = self.accountable.take() {
            traffic.answered(refusal.code());
        }
        let kind = refusal.kind();
        let code = refusal.code();
        let response = refusal.into_response(dialect);
        // To gRPC every answer is a 200.
        let told = if dialect == Dialect::Grpc { code } else { response.status().as_u16() };
        self.record.refused(told, kind, full_length(&response));
        response
    }

    async fn run(
        &mut self,
        target: Target,
        mut draft: Box<Draft>,
        by_head: Option<Result<Arc<Variant>, Refusal>>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let by_head = by_head.transpose()?;
        draft.body.check_length().map_err(|error| Refusal::of_body(&error))?;
        let variant = match by_head {
            Some(variant) => variant,
            None => self.deadline.bound(pin!(self.resolve_by_body(&target, &mut draft))).await?,
        };
        self.accountable = Some(Arc::clone(&variant.unserved));
        self.deadline = self.deadline.with(&variant.requests, self.arrived_at);
        self.variant = Some(variant);
        self.deadline.bound(pin!(self.read_small_body(&mut draft.body))).await?;
        draft.prepare(target.worker_path);
        self.send_somewhere(draft).await
    }

    async fn resolve_by_body(
        &self,
        target: &Target,
        draft: &mut Draft,
    ) -> Result<Arc<Variant>, Refusal> {
        let snapshot = self.thread.router.current().clone();
        let most = self.thread.clients.limits.body;
        let variant =
            target.resolve_by_body(&draft.parts, &mut draft.body, &snapshot, most).await?;
        let variant = allowed(variant, self.key.as_deref())?;
        variant.room.arrived();
        self.record.resolved(&variant.key, &variant.model);
        Ok(variant)
    }

    /// Bodies of a known, small length are read before a slot is taken: a slow upload holds none, and a
    /// client that leaves meanwhile is noticed.
    async fn read_small_body(&self, body: &mut RequestBody) -> Result<(), Refusal> {
        let most = self.thread.clients.limits.body;
        if matches!(body.length(), Length::Exact(bytes) if bytes <= most) {
            while !body.is_complete() && body.may_read_ahead() {
                std::future::poll_fn(|cx| body.poll_read_more(cx))
                    .await
                    .map_err(|error| Refusal::of_body(&error))?;
            }
        } else {
            // One that is whole already can be sent again.
            let read = std::future::poll_fn(|cx| Poll::Ready(body.read_ahead(cx, most))).await;
            read.map_err(|error| Refusal::of_body(&error))?;
        }
        Ok(())
    }

    /// Once a worker has broken off with the request, whatever else goes wrong must not be told as
    /// something that is safe to send again.
    async fn send_somewhere(
        &mut self,
        draft: Box<Draft>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let answer = self.try_somewhere(draft).await;
        answer.map_err(|refusal| match refusal {
            // It says so itself.
            Refusal::DeadlineExceeded => refusal,
            _ if self.may_have_run => Refusal::UpstreamBroken,
            Refusal::NoOtherInstance => self.tls_fault.map_or(refusal, Refusal::TlsFailed),
            _ => refusal,
        })
    }

    async fn try_somewhere(
        &mut self,
        mut draft: Box<Draft>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let Some(variant) = self.variant.clone() else { return Err(Refusal::NoInstance) };
        let deadline = self.deadline;
        let caller = caller(&draft, &variant.requests, self.key.as_deref());
        let names = draft.names;
        let affinity = sticky::affinity(&mut draft.parts.headers, names, &variant.requests);
        let mut retry = Retry::new(&variant, draft.parts.uri.path());
        loop {
            let admitted = self.admit(caller, affinity, &retry, &mut draft.body);
            let reservation = deadline.bound(pin!(admitted)).await?;
            retry.trying(&reservation.backend);
            self.accountable = Some(Arc::clone(&reservation.backend.traffic));
            let keep = retry.may_follow();
            let hold_head = keep && retry.replays() && draft.body.is_complete();
            self.at_instance = true;
            let (arrived_at, record) = (self.arrived_at, &self.record);
            let terms = Terms { arrived_at, record, keep, hold_head, deadline };
            let outcome = self.thread.sender.send(reservation, draft, terms).await;
            self.at_instance = false;
            match outcome {
                Ok(response) => {
                    self.accountable = None;
                    return Ok(response);
                }
                Err(Failure::Counted(refusal)) => {
                    // The try has counted it.
                    self.accountable = None;
                    return Err(refusal);
                }
                Err(Failure::NotSent(unsent, fault)) => {
                    self.tls_fault = fault;
                    if !retry.after_not_sent() {
                        return Err(Refusal::NoOtherInstance);
                    }
                    draft = unsent;
                }
                Err(Failure::NotRun(answer, kept)) => {
                    let Some(kept) = kept.filter(|_| retry.after_not_run()) else {
                        self.accountable = None;
                        return Ok(*answer);
                    };
                    answer.into_body().supersede();
                    draft = kept;
                }
                Err(Failure::Refused(kept)) => {
                    let kept = kept.filter(|_| retry.after_not_run());
                    draft = kept.ok_or(Refusal::NoOtherInstance)?;
                }
                Err(Failure::Broken(kept)) => {
                    self.may_have_run = true;
                    let kept = kept.filter(|_| retry.after_broken());
                    draft = kept.ok_or(Refusal::UpstreamBroken)?;
                }
            }
        }
    }

    /// A slot, by the newest table. Meanwhile a body of unknown length is read on up to the limit, so
    /// that a client that leaves is noticed.
    async fn admit(
        &mut self,
        caller: Caller,
        affinity: Affinity,
        retry: &Retry,
        body: &mut RequestBody,
    ) -> Result<Reservation, Refusal> {
        let key = self.variant.as_ref().map(|variant| &variant.key).ok_or(Refusal::NoInstance)?;
        let variant = self.thread.router.current().variant(key).cloned();
        let variant = variant.ok_or(Refusal::VariantRemoved)?;
        if variant.backends.is_empty() {
            self.thread.router.want_report();
        }
        self.record.waiting();
        let mut admitted = pin!(variant.admit(caller, retry.tried(), affinity));
        let most = self.thread.clients.limits.body;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = admitted.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            body.read_ahead(cx, most).map_err(|error| Refusal::of_body(&error))?;
            Poll::Pending
        })
        .await
    }
}

impl Drop for Life {
    /// A client that left while its request was read or waited.
    fn drop(&mut self) {
        if let Some(traffic) = self.accountable.take().filter(|_| !self.at_instance) {
            traffic.answered(CLIENT_LEFT);
        }
    }
}

/// Who asks, to the queue: whoever has the key, or without keys by the configured header, of which nothing but
/// a hash is kept.
fn caller(draft: &Draft, policy: &RequestPolicy, key: Option<&Key>) -> Caller {
    let field =
        |name: &String| draft.names.may_have(name).then(|| draft.parts.headers.get(name)).flatten();
    let by_header =
        || field(&policy.caller_header).map_or(0, |value| sticky::hash(value.as_bytes()));
    let id = key.map_or_else(by_header, |key| key.caller);
    let priority = policy.priority_header.as_ref().and_then(field);
    let priority = match priority.map(HeaderValue::as_bytes) {
        Some([digit @ b'0'..=b'9']) => digit - b'0',
        _ => USUAL_PRIORITY,
    };
    Caller { priority, id }
}
