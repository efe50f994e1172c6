//! HTTP/2 to workers: many requests share a connection, each a stream of it, driven by a task of its own.
//!
//! * A connection takes as many streams as the worker lets it; beyond that another one is opened, so that
//!   requests wait in our queue and nowhere else. A new connection is used once the worker's SETTINGS are
//!   here, which also shows that it speaks HTTP/2 at all.
//! * A client that does not read must not harm those whose answers share its connection. What one stream may
//!   have unread is small; what the connection may have is no limit at all, since the h2 crate ends a
//!   connection whose unread small frames use up half of that window.
//! * A worker that floods its connection ([`Calm`]) loses it, and with it the requests that are on it alone.
//! * No pings: gRPC servers end connections that are pinged more often than each five minutes. TCP's own
//!   keep-alive finds hosts that have gone, `stall_timeout` workers that hang.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::sync::Mutex;

use super::{SendError, UpstreamError, dial};
use crate::decision::engine;
use crate::proxy::body::RequestBody;
use crate::proxy::calm::{Asked, Calm};
use crate::proxy::draft::Draft;
use crate::proxy::head::is_token;
use crate::proxy::incoming::came_whole;
use crate::proxy::snapshot::Backend;
use crate::proxy::socket::Socket;
use crate::runtime::clock;
use crate::tls::Connectors;
use crate::types::{Generation, Protocol};

/// Streams at once on one connection, whatever the worker would take.
const MOST_STREAMS: usize = 100;
/// Bytes that one stream may have unread, and all of a connection's together.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Bytes of a request that wait for the worker in the connection's memory.
const SEND_BUFFER: usize = 64 << 10;
/// The header fields of an answer, as HTTP/2 counts them.
const HEADER_LIST: u32 = 64 << 10;
/// How often a new connection is looked at for the worker's SETTINGS.
const NEXT_LOOK: Duration = Duration::from_millis(1);
/// How long a connection is silent before its peer's host is asked, and how long between asking again.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connection, for whoever sends on it.
#[derive(Debug)]
struct Shared {
    sender: SendRequest<RequestBody>,
    /// A task of its own polls it; here it is asked what the worker allows.
    driver: Driver,
    streams: Cell<usize>,
    asked: Asked,
    /// Since when there has been no stream.
    idle_since: Cell<Instant>,
    has_served: Cell<bool>,
    /// How long the engine lets us keep it idle.
    most_idle: Duration,
    scheme: Scheme,
}

impl Shared {
    async fn open(backend: &Backend, tls: &Connectors) -> io::Result<Self> {
        let stream = dial(backend, tls).await?;
        let keep_alive =
            TcpKeepalive::new().with_time(TCP_KEEP_ALIVE).with_interval(TCP_KEEP_ALIVE);
        SockRef::from(stream.tcp()).set_tcp_keepalive(&keep_alive)?;
        let asked = Asked::default();
        let stream = Calm::of_worker(stream, &asked, &backend.traffic);
        let (sender, connection) = Builder::new(Local)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST)
            // None until its SETTINGS say how many.
            .initial_max_send_streams(0)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let driver = Driver(Rc::new(RefCell::new(Some(connection))));
        tokio::task::spawn_local(driver.clone().drive());
        while driver.most_streams() == 0 {
            if sender.is_closed() {
                let why = "it does not speak HTTP/2, or closed the connection";
                return Err(io::Error::new(io::ErrorKind::ConnectionReset, why));
            }
            tokio::time::sleep(NEXT_LOOK).await;
        }
        let scheme =
            if backend.route.protocol == Protocol::H2 { Scheme::HTTPS } else { Scheme::HTTP };
        Ok(Self {
            sender,
            driver,
            streams: Cell::new(0),
            asked,
            idle_since: Cell::new(clock::monotonic()),
            has_served: Cell::new(false),
            most_idle: engine::pool_idle(backend.route.engine),
            scheme,
        })
    }

    fn has_room(&self) -> bool {
        let most = self.driver.most_streams().min(MOST_STREAMS);
        self.sender.is_ready() && self.streams.get() < most
    }

    /// A closed one with streams is kept by those.
    fn is_worth_keeping(&self, limit: Duration, now: Instant) -> bool {
        let unused = self.streams.get() == 0
            && now.duration_since(self.idle_since.get()) >= limit.min(self.most_idle);
        self.sender.is_ready() && !unused
    }
}

/// What moves a connection's bytes. Once that has ended it is dropped, so that those who wait for a place
/// on it are told.
#[derive(Debug, Clone)]
struct Driver(Rc<RefCell<Option<Socketed>>>);

type Socketed = Connection<TokioIo<Calm<Socket>>, RequestBody, Local>;

impl Driver {
    async fn drive(self) {
        let ended = poll_fn(|cx| match &mut *self.0.borrow_mut() {
            Some(connection) => Pin::new(connection).poll(cx),
            None => Poll::Ready(Ok(())),
        });
        let ended = ended.await;
        // What it drops may look here.
        let over = self.0.borrow_mut().take();
        drop(over);
        if let Err(error) = ended {
            tracing::debug!(%error, "a worker's HTTP/2 connection ended early");
        }
    }

    /// Streams that the worker lets us have at once; none before its SETTINGS, and none any more.
    fn most_streams(&self) -> usize {
        self.0.borrow().as_ref().map_or(0, Connection::current_max_send_streams)
    }
}

/// A place on a connection, for one request. Dropping it, and the answer, resets the stream.
#[derive(Debug)]
pub(in crate::proxy) struct Stream {
    // The answer's body first: its drop resets the stream.
    incoming: Option<Incoming>,
    shared: Rc<Shared>,
    is_reused: bool,
    has_trailers: bool,
    /// What was sent, if it is to be kept.
    kept: Option<Box<Draft>>,
}

impl Stream {
    fn of(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self {
            incoming: None,
            shared: Rc::clone(shared),
            is_reused: shared.has_served.replace(true),
            has_trailers: false,
            kept: None,
        }
    }

    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    pub(super) async fn send(&mut self, mut draft: Box<Draft>) -> Result<Response<()>, SendError> {
        self.kept = draft.body.is_kept().then(|| draft.copy()).flatten();
        let mut request = draft.take();
        as_http2(&mut request, &self.shared.scheme);
        self.shared.asked.update(|asked| asked.saturating_add(1));
        let mut sender = self.shared.sender.clone();
        let response = sender.try_send_request(request).await.map_err(|mut error| {
            if let Some(mut request) = error.take_message() {
                as_http1(&mut request);
                draft.put_back(request);
                return SendError::NotSent(draft);
            }
            let error = error.into_error();
            if is_refusal(&error) {
                SendError::Refused(error)
            } else {
                SendError::Broken(error.into())
            }
        })?;
        let (head, incoming) = response.into_parts();
        if !head.headers.keys().all(is_token) {
            return Err(SendError::Broken(UpstreamError::Malformed("a field's name that is none")));
        }
        self.incoming = Some(incoming);
        Ok(Response::from_parts(head, ()))
    }

    /// The request once more, if it was kept.
    pub(super) fn take_request(&mut self) -> Option<Box<Draft>> {
        self.kept.take()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match &mut self.incoming {
            Some(incoming) => match std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                Some(frame) => {
                    self.has_trailers |= frame.as_ref().is_ok_and(Frame::is_trailers);
                    Poll::Ready(Some(frame.map_err(UpstreamError::from)))
                }
                None if self.has_trailers || came_whole(incoming) => Poll::Ready(None),
                None => Poll::Ready(Some(Err(UpstreamError::Closed))),
            },
            None => Poll::Ready(None),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    pub(super) fn rest(&self) -> Option<u64> {
        self.incoming.as_ref().map_or(Some(0), |incoming| incoming.size_hint().exact())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.streams.set(shared.streams.get() - 1);
        shared.idle_since.set(clock::monotonic());
    }
}

/// Whether the worker says that it has not looked at the request (RFC 9113, 8.7): the stream was refused,
/// or is none of those that a GOAWAY lets finish.
fn is_refusal(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

/// The head as HTTP/2 has it (RFC 9113, 8.3.1): the authority is part of the target, and what frames a
/// message of HTTP/1.1 is none of its fields.
fn as_http2(request: &mut Request<RequestBody>, scheme: &Scheme) {
    let headers = request.headers_mut();
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let host = headers.remove(HOST);
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    target.authority = host.and_then(|host| host.as_bytes().try_into().ok());
    target.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    if target.authority.is_some() {
        target.scheme = Some(scheme.clone());
    }
    *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
}

/// Undoes [`as_http2`], for another connection.
fn as_http1(request: &mut Request<RequestBody>) {
    let target = std::mem::take(request.uri_mut()).into_parts();
    let host = target.authority.and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = target.path_and_query.map_or_else(Uri::default, Uri::from);
    *request.version_mut() = Version::HTTP_11;
}

/// One thread's shared connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    backends: RefCell<HashMap<Generation, Rc<Connections>>>,
}

/// Those to one backend.
#[derive(Debug, Default)]
struct Connections {
    open: RefCell<Vec<Rc<Shared>>>,
    /// Held while one is being opened, so that those who wait for it do not each open another.
    opening: Mutex<()>,
}

impl Connections {
    fn with_room(&self) -> Option<Stream> {
        self.open.borrow().iter().find(|shared| shared.has_room()).map(Stream::of)
    }
}

impl Pool {
    /// A place on a connection that there is, or on a new one. Takes at most `limit`.
    ///
    /// # Errors
    /// The connection's, or `TimedOut`.
    pub(super) async fn stream(
        &self,
        backend: &Backend,
        tls: &Connectors,
        limit: Duration,
    ) -> io::Result<Stream> {
        let connections =
            Rc::clone(self.backends.borrow_mut().entry(backend.route.generation).or_default());
        if let Some(stream) = connections.with_room() {
            return Ok(stream);
        }
        let open = async {
            let alone = connections.opening.lock().await;
            if let Some(stream) = connections.with_room() {
                return Ok(stream);
            }
            let shared = Rc::new(Shared::open(backend, tls).await?);
            let stream = Stream::of(&shared);
            connections.open.borrow_mut().push(shared);
            drop(alone);
            Ok(stream)
        };
        tokio::time::timeout(limit, open).await.map_err(io::Error::from)?
    }

    /// Closes what has been idle for longer than `limit`, or than its engine lets it.
    pub(super) fn close_idle(&self, limit: Duration) {
        let now = clock::monotonic();
        self.backends.borrow_mut().retain(|_, connections| {
            let mut open = connections.open.borrow_mut();
            open.retain(|shared| shared.is_worth_keeping(limit, now));
            !open.is_empty() || Rc::strong_count(connections) > 1
        });
    }
}

/// Runs what belongs to a connection on its thread.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, work: F) {
        tokio::task::spawn_local(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::names::Names;

    #[test]
    fn what_was_not_sent_is_what_it_was_before() {
        for upgrade in [false, true] {
            let mut request = Request::post("/x?y").header(HOST, "h");
            if upgrade {
                request = request.header(CONNECTION, "upgrade").header(UPGRADE, "websocket");
            }
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            let names = Names::of(&parts.headers);
            let mut draft = Draft::new(parts, names, RequestBody::of_unknown_length());
            draft.prepare(None);
            let before = draft.parts.clone();
            assert_eq!(before.headers[TRANSFER_ENCODING], "chunked");
            let mut request = draft.take();
            as_http2(&mut request, &Scheme::HTTP);
            as_http1(&mut request);
            draft.put_back(request);
            assert_eq!((&draft.parts.uri, &draft.parts.headers), (&before.uri, &before.headers));
        }
    }
}
