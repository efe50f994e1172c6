//! The life of a request, from its head to the head of the answer: resolve, read what is small, be
//! admitted, send, and send elsewhere what was never sent. Every request to a worker, whatever its path
//! or protocol, goes through [`serve`] and holds an [`Exchange`] while it is out.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, EXPECT, HOST, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::admission::Reservation;
use super::body::{RequestBody, ResponseBody};
use super::exchange::{Exchange, UpstreamBody};
use super::headers::{self, Length};
use super::refusal::Refusal;
use super::resolve::Target;
use super::router::Router;
use super::snapshot::Variant;
use super::upstream::{Connection, Pool, SendError};
use crate::decision::admit::Caller;
use crate::runtime::clock;
use crate::telemetry::request::{Observers, RequestRecord};
use crate::types::Generation;

/// Instances that one request is tried at.
const MOST_TRIES: usize = 3;

/// What a thread needs to serve requests.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) router: Arc<Router>,
    pub(super) pool: Rc<Pool>,
    pub(super) connect_timeout: Duration,
    /// Bodies up to this size are read before a slot is taken.
    pub(super) max_body_buffer: u64,
    pub(super) observers: Rc<Observers>,
    pub(super) tasks: tokio_util::task::TaskTracker,
}

/// Answers one request.
///
/// # Errors
/// Never: what goes wrong is an answer.
pub(super) async fn serve(
    thread: Rc<Thread>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let arrived_at = clock::monotonic();
    let record = thread.observers.begin(&mut parts, arrived_at);
    if parts.method == Method::GET && parts.uri.path() == "/v1/models" {
        let models = list_models(&thread.router);
        record.own_answer(models.status().as_u16(), full_length(&models));
        return Ok(models);
    }
    let target = Target::of(&parts);
    let sagemaker = target.is_sagemaker();
    let mut life = Life {
        arrived_at,
        body: RequestBody::new(body, record.body_meter()),
        record,
        parts,
        variant: None,
        thread,
    };
    match life.run(&target).await {
        Ok(response) => Ok(response),
        Err(refusal) => {
            if let Some(variant) = &life.variant {
                variant.unserved.answered(refusal.code());
            }
            let kind = refusal.kind();
            let response = refusal.into_response(sagemaker);
            life.record.refused(response.status().as_u16(), kind, full_length(&response));
            Ok(response)
        }
    }
}

/// The length of a body that is here already.
fn full_length(response: &Response<ResponseBody>) -> u64 {
    http_body::Body::size_hint(response.body()).lower()
}

fn list_models(router: &Router) -> Response<ResponseBody> {
    let snapshot = router.current();
    let endpoints = snapshot.endpoints.iter().map(|endpoint| endpoint.name.as_str());
    let mut names = snapshot.model_names();
    for name in endpoints {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let data: Vec<_> = names
        .iter()
        .map(|id| serde_json::json!({ "id": id, "object": "model", "created": 0, "owned_by": "forebay" }))
        .collect();
    let body = serde_json::json!({ "object": "list", "data": data }).to_string();
    let mut response = Response::new(ResponseBody::full(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

struct Life {
    thread: Rc<Thread>,
    arrived_at: Instant,
    parts: Parts,
    body: RequestBody,
    variant: Option<Arc<Variant>>,
    record: RequestRecord,
}

impl Life {
    async fn run(&mut self, target: &Target) -> Result<Response<ResponseBody>, Refusal> {
        let snapshot = self.thread.router.current().clone();
        let most = self.thread.max_body_buffer;
        let variant = target.resolve(&self.parts, &mut self.body, &snapshot, most).await?;
        drop(snapshot);
        variant.room.arrived();
        self.record.resolved(&variant.key, &variant.model);
        self.variant = Some(variant);
        self.read_small_body().await?;
        self.prepare_head(target);
        self.send_somewhere().await
    }

    /// Bodies of a known, small length are read before a slot is taken: a slow upload holds none, and a
    /// client that leaves meanwhile is noticed.
    async fn read_small_body(&mut self) -> Result<(), Refusal> {
        if matches!(self.body.length(), Length::Exact(bytes) if bytes <= self.thread.max_body_buffer)
        {
            while !self.body.is_complete() {
                std::future::poll_fn(|cx| self.body.poll_read_more(cx))
                    .await
                    .map_err(|_| Refusal::BadBody)?;
            }
        }
        Ok(())
    }

    /// The head as the worker gets it, but for what depends on which worker that is.
    fn prepare_head(&mut self, target: &Target) {
        let path = target.worker_path.clone().or_else(|| self.parts.uri.path_and_query().cloned());
        self.parts.uri = path.map_or_else(Uri::default, Uri::from);
        self.parts.version = Version::HTTP_11;
        let upgrade = headers::wanted_upgrade(&self.parts.headers);
        headers::strip_hop_by_hop(&mut self.parts.headers);
        // The body is read here, whether or not the worker would have wanted it.
        self.parts.headers.remove(EXPECT);
        headers::set_request_framing(&mut self.parts.headers, self.body.length());
        if let Some(protocol) = upgrade {
            headers::set_upgrade(&mut self.parts.headers, protocol);
        }
    }

    async fn send_somewhere(&mut self) -> Result<Response<ResponseBody>, Refusal> {
        let mut tried: Vec<Generation> = Vec::new();
        let mut request = self.take_request();
        loop {
            let reservation = self.admit(&tried, request.body_mut()).await?;
            let generation = reservation.backend.route.generation;
            match self.send_to(reservation, request).await {
                Ok(response) => return Ok(response),
                Err(Failure::NotSent(unsent)) => request = *unsent,
                Err(Failure::Refused(refusal)) => return Err(refusal),
            }
            tried.push(generation);
            if tried.len() >= MOST_TRIES {
                return Err(Refusal::NoOtherInstance);
            }
        }
    }

    fn take_request(&mut self) -> Request<RequestBody> {
        let (mut parts, ()) = Request::new(()).into_parts();
        std::mem::swap(&mut parts, &mut self.parts);
        let body = std::mem::replace(&mut self.body, RequestBody::empty());
        Request::from_parts(parts, body)
    }

    /// A slot, by the newest table. Meanwhile a body of unknown length is read on up to the limit, so
    /// that a client that leaves is noticed.
    async fn admit(
        &mut self,
        tried: &[Generation],
        body: &mut RequestBody,
    ) -> Result<Reservation, Refusal> {
        let key = match &self.variant {
            Some(variant) => variant.key.clone(),
            None => return Err(Refusal::NoInstance),
        };
        let variant = self.thread.router.current().variant(&key).cloned();
        let variant = variant.ok_or(Refusal::VariantRemoved)?;
        self.variant = Some(Arc::clone(&variant));
        if variant.backends.is_empty() {
            self.thread.router.want_report();
        }
        let caller = Caller { priority: 0, id: 0 };
        self.record.waiting();
        let mut admitted = pin!(variant.admit(caller, tried));
        let most = self.thread.max_body_buffer;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = admitted.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            while !body.is_complete() && body.buffered() < most {
                match body.poll_read_more(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Refusal::BadBody)),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn send_to(
        &self,
        reservation: Reservation,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let mut exchange = Exchange::begin(reservation, self.arrived_at, &self.record);
        exchange.announce(request.headers_mut());
        if !request.headers().contains_key(HOST) {
            let host = exchange.backend().host_header.clone();
            request.headers_mut().insert(HOST, host);
        }
        let client_upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        loop {
            let mut connection = match self.connection(&exchange).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(instance = %exchange.backend().route.instance, %error, "cannot connect");
                    restore_upgrade(&mut request, client_upgrade);
                    exchange.not_sent();
                    return Err(Failure::NotSent(Box::new(request)));
                }
            };
            match connection.send(request).await {
                Ok(response) => {
                    return Ok(self.answer(response, connection, exchange, client_upgrade));
                }
                // It closed while it was idle, or just now: another connection to the same instance.
                Err(SendError::NotSent(unsent)) if connection.is_reused() => request = *unsent,
                Err(SendError::NotSent(unsent)) => {
                    request = *unsent;
                    restore_upgrade(&mut request, client_upgrade);
                    exchange.not_sent();
                    return Err(Failure::NotSent(Box::new(request)));
                }
                Err(SendError::Broken(error)) => {
                    let refusal = broken(&error);
                    exchange.answered(refusal.code());
                    return Err(Failure::Refused(refusal));
                }
            }
        }
    }

    async fn connection(&self, exchange: &Exchange) -> std::io::Result<Connection> {
        match self.thread.pool.take(exchange.backend()) {
            Some(connection) => Ok(connection),
            None => Connection::open(exchange.backend(), self.thread.connect_timeout).await,
        }
    }

    fn answer(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        mut exchange: Exchange,
        client_upgrade: Option<hyper::upgrade::OnUpgrade>,
    ) -> Response<ResponseBody> {
        let (mut parts, incoming) = response.into_parts();
        exchange.answered(parts.status.as_u16());
        let upgrade = headers::wanted_upgrade(&parts.headers);
        headers::strip_hop_by_hop(&mut parts.headers);
        let exact = http_body::Body::size_hint(&incoming).exact().is_some();
        headers::fix_response_framing(&mut parts.headers, exact);
        parts.headers.insert("x-forebay-instance", exchange.backend().instance_header.clone());
        parts
            .headers
            .insert("x-forebay-instance-type", exchange.backend().instance_type_header.clone());
        parts.version = Version::HTTP_11;
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(client), Some(protocol)) = (client_upgrade, upgrade) else {
                // A switch that nobody asked for.
                exchange.answered(Refusal::UpstreamBroken.code());
                return Refusal::UpstreamBroken.into_response(false);
            };
            headers::set_upgrade(&mut parts.headers, protocol);
            self.tunnel(client, connection, exchange);
            return Response::from_parts(parts, ResponseBody::full(Bytes::new()));
        }
        let pool = Rc::clone(&self.thread.pool);
        let body = UpstreamBody::new(incoming, connection, exchange, pool);
        Response::from_parts(parts, ResponseBody::Upstream(Box::new(body)))
    }

    /// Passes bytes both ways until either side closes; the slot is held for as long.
    fn tunnel(
        &self,
        client: hyper::upgrade::OnUpgrade,
        connection: Connection,
        exchange: Exchange,
    ) {
        self.thread.tasks.spawn_local(async move {
            let (client, (mut worker, said_already)) =
                tokio::join!(client, connection.into_switched());
            if let Ok(client) = client {
                let mut client = TokioIo::new(client);
                // Either side's abrupt end is the end; there is nobody left to tell.
                if client.write_all(&said_already).await.is_ok()
                    && let Ok((up, down)) =
                        tokio::io::copy_bidirectional(&mut client, &mut worker).await
                {
                    exchange.record().tunnelled(up, down);
                }
                exchange.record().completed();
            }
            drop(exchange);
        });
    }
}

enum Failure {
    /// It can be sent elsewhere: no byte of it has left.
    NotSent(Box<Request<RequestBody>>),
    Refused(Refusal),
}

fn restore_upgrade(request: &mut Request<RequestBody>, upgrade: Option<hyper::upgrade::OnUpgrade>) {
    if let Some(upgrade) = upgrade {
        request.extensions_mut().insert(upgrade);
    }
}

/// Whose fault a request was that got no answer: the client's body breaks off while it is being sent, or
/// the worker's connection does.
fn broken(error: &hyper::Error) -> Refusal {
    if error.is_user() || error.is_body_write_aborted() {
        Refusal::BadBody
    } else {
        tracing::debug!(%error, "a worker broke off");
        Refusal::UpstreamBroken
    }
}
