//! The life of a request, from its head to the head of the answer: resolve, read what is small, be
//! admitted, send, and send elsewhere what harms nobody there. Every request to a worker, whatever its
//! path or protocol, goes through [`serve`] and holds an exchange while it is out.

use std::cell::{Cell, OnceCell};
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::header::{EXPECT, HeaderValue};
use http::request::Parts;
use http::{Response, Version};

use super::admission::{Affinity, Reservation};
use super::alarm::Alarm;
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
use super::origin::Mark;
use super::own::Own;
use super::refusal::{Dialect, Refusal};
use super::resolve::Target;
use super::retry::Retry;
use super::router::{Newest, Router};
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
    pub(super) newest: Newest,
    pub(super) sender: Rc<Sender>,
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
    alarm: Rc<Alarm>,
    mut mark: Option<Mark>,
    (mut parts, body): (Parts, Incoming),
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    let arrived_at = clock::monotonic();
    if thread.observers.are_any()
        && let Some(mark) = mark.take()
    {
        mark.insert(&mut parts.headers);
    }
    let record = thread.observers.begin(&mut parts, arrived_at);
    let names = mark.as_ref().map_or_else(|| Names::of(&parts.headers), |mark| mark.names);
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
            let newest = &thread.newest;
            let by_head = newest.look(|snapshot| target.resolve_by_head(&parts, snapshot));
            let by_head = by_head.map(|found| allowed(found?, key.as_deref()));
            (key, None, by_head)
        }
    };
    let (variant, accountable) = (OnceCell::new(), Cell::default());
    let refusal = by_head.and_then(|found| found.map(|found| variant.set(found)).err());
    if let Some(variant) = variant.get() {
        accountable.set(Accountable::Nobodys);
        variant.room.arrived();
        record.resolved(&variant.key, &variant.model);
    }
    let body = RequestBody::new(body, record.body_meter(), &thread.clients);
    let mut draft = Box::new(Draft::new(parts, names, mark, body));
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
        variant,
        accountable,
        at_instance: Cell::new(false),
        may_have_run: Cell::new(false),
        tls_fault: Cell::new(None),
        thread,
        alarm,
        record,
    };
    async move {
        Ok(if let Some(own) = own {
            let answer = own.answer(&life.thread.router, life.key.as_deref());
            life.record.own_answer(answer.status().as_u16(), full_length(&answer));
            answer
        } else {
            life.answer(target, draft, refusal).await
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
    /// The timer of the task that serves it.
    alarm: Rc<Alarm>,
    arrived_at: Instant,
    /// The client's own.
    deadline: Deadline,
    /// Who asks, where keys are asked for.
    key: Option<Arc<Key>>,
    variant: OnceCell<Arc<Variant>>,
    accountable: Cell<Accountable>,
    /// A try is under way, and counts for itself.
    at_instance: Cell<bool>,
    /// A worker had it and broke off.
    may_have_run: Cell<bool>,
    /// Why the last try did not get through TLS, where that was the reason.
    tls_fault: Cell<Option<Fault>>,
    record: RequestRecord,
}

/// Where an answer of our own is counted.
#[derive(Debug, Default)]
enum Accountable {
    /// Nowhere: it is for no variant, or counted already.
    #[default]
    No,
    /// With what no instance was involved in.
    Nobodys,
    /// With the instance type that failed.
    Of(Arc<Traffic>),
}

impl Life {
    async fn answer(
        self,
        target: Target,
        draft: Box<Draft>,
        refusal: Option<Refusal>,
    ) -> Response<ResponseBody> {
        let dialect = target.dialect;
        let answer = match refusal {
            Some(refusal) => Err(refusal),
            None => self.run(target, draft).await,
        };
        let refusal = match answer {
            Ok(response) => return response,
            Err(refusal) => refusal,
        };
        let (kind, code) = (refusal.kind(), refusal.code());
        self.count(code);
        let response = refusal.into_response(dialect);
        // To gRPC every answer is a 200.
        let told = if dialect == Dialect::Grpc { code } else { response.status().as_u16() };
        self.record.refused(told, kind, full_length(&response));
        response
    }

    /// Counts an answer of our own, once.
    fn count(&self, code: u16) {
        match self.accountable.take() {
            Accountable::No => {}
            Accountable::Nobodys => {
                self.variant.get().inspect(|variant| variant.unserved.answered(code));
            }
            Accountable::Of(traffic) => traffic.answered(code),
        }
    }

    async fn run(
        &self,
        target: Target,
        mut draft: Box<Draft>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        draft.body.check_length().map_err(|error| Refusal::of_body(&error))?;
        let variant = if let Some(variant) = self.variant.get() {
            variant
        } else {
            let found = pin!(self.resolve_by_body(&target, &mut draft));
            let found = self.deadline.bound(&self.alarm, found).await?;
            self.variant.get_or_init(|| found)
        };
        self.accountable.set(Accountable::Nobodys);
        let deadline = self.deadline.with(&variant.requests, self.arrived_at);
        deadline.bound(&self.alarm, pin!(self.read_small_body(&mut draft.body))).await?;
        draft.prepare(target.worker_path);
        if reads_mark(&variant.requests) {
            draft.say_mark();
        }
        self.send_somewhere(variant, draft, deadline).await
    }

    async fn resolve_by_body(
        &self,
        target: &Target,
        draft: &mut Draft,
    ) -> Result<Arc<Variant>, Refusal> {
        let (newest, most) = (&self.thread.newest, self.thread.clients.limits.body);
        let variant = target.resolve_by_body(&draft.parts, &mut draft.body, newest, most).await?;
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
        &self,
        variant: &Variant,
        draft: Box<Draft>,
        deadline: Deadline,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let answer = self.try_somewhere(variant, draft, deadline).await;
        answer.map_err(|refusal| match refusal {
            // It says so itself.
            Refusal::DeadlineExceeded => refusal,
            _ if self.may_have_run.get() => Refusal::UpstreamBroken,
            Refusal::NoOtherInstance => self.tls_fault.get().map_or(refusal, Refusal::TlsFailed),
            _ => refusal,
        })
    }

    async fn try_somewhere(
        &self,
        variant: &Variant,
        mut draft: Box<Draft>,
        deadline: Deadline,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let caller = caller(&draft, &variant.requests, self.key.as_deref());
        let names = draft.names;
        let affinity = sticky::affinity(&mut draft.parts.headers, names, &variant.requests);
        let mut retry = Retry::new(variant, draft.parts.uri.path());
        loop {
            let admitted = self.admit(variant, caller, affinity, &retry, &mut draft.body);
            let reservation = deadline.bound(&self.alarm, pin!(admitted)).await?;
            retry.trying(&reservation.backend);
            self.accountable.set(Accountable::Of(Arc::clone(&reservation.backend.traffic)));
            let keep = retry.may_follow();
            let hold_head = keep && retry.replays() && draft.body.is_complete();
            self.at_instance.set(true);
            let (arrived_at, record, alarm) = (self.arrived_at, &self.record, &self.alarm);
            let terms = Terms { arrived_at, record, keep, hold_head, deadline, alarm };
            let outcome = self.thread.sender.send(reservation, draft, terms).await;
            self.at_instance.set(false);
            match outcome {
                Ok(response) => {
                    self.accountable.take();
                    return Ok(response);
                }
                Err(Failure::Counted(refusal)) => {
                    // The try has counted it.
                    self.accountable.take();
                    return Err(refusal);
                }
                Err(Failure::NotSent(unsent, fault)) => {
                    self.tls_fault.set(fault);
                    if !retry.after_not_sent() {
                        return Err(Refusal::NoOtherInstance);
                    }
                    draft = unsent;
                }
                Err(Failure::NotRun(answer, kept)) => {
                    let Some(kept) = kept.filter(|_| retry.after_not_run()) else {
                        self.accountable.take();
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
                    self.may_have_run.set(true);
                    let kept = kept.filter(|_| retry.after_broken());
                    draft = kept.ok_or(Refusal::UpstreamBroken)?;
                }
            }
        }
    }

    /// A slot, by the newest table. Meanwhile a body of unknown length is read on up to the limit, so
    /// that a client that leaves is noticed.
    async fn admit(
        &self,
        variant: &Variant,
        caller: Caller,
        affinity: Affinity,
        retry: &Retry<'_>,
        body: &mut RequestBody,
    ) -> Result<Reservation, Refusal> {
        let newest = if variant.is_current() {
            None
        } else {
            let newest = self.thread.router.current().variant(&variant.key).cloned();
            Some(newest.ok_or(Refusal::VariantRemoved)?)
        };
        let variant = newest.as_deref().unwrap_or(variant);
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
        if !self.at_instance.get() {
            self.count(CLIENT_LEFT);
        }
    }
}

/// Whether the policy looks at fields that may be among those that we write.
fn reads_mark(policy: &RequestPolicy) -> bool {
    let RequestPolicy { caller_header, priority_header, sticky_header, .. } = policy;
    Mark::may_have(caller_header)
        || [priority_header, sticky_header].into_iter().flatten().any(|name| Mark::may_have(name))
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
