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
//! * Servers end connections after so many requests, or so much time; what they say then that they did not look
//!   at goes on another connection to them ([`Unseen`]).

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
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::sync::Mutex;

use super::sent::Sent;
use super::{SendError, Unseen, UpstreamError, dial};
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
/// Streams that were reset of late, whose last frames may still be on their way.
const MOST_RESET: usize = 1_000;
/// How often a new connection is looked at for the worker's SETTINGS.
const NEXT_LOOK: Duration = Duration::from_millis(1);
/// How long a connection is silent before its peer's host is asked, and how long between asking again.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connection, for whoever sends on it.
#[derive(Debug)]
struct Shared {
    sender: SendRequest<Sent>,
    /// A task of its own polls it; here it is asked what the worker allows.
    driver: Driver,
    streams: Cell<usize>,
    asked: Asked,
    /// Since when there has been no stream.
    idle_since: Cell<Instant>,
    has_served: Cell<bool>,
    /// The worker takes no more requests on it.
    is_left: Cell<bool>,
    /// How long the engine lets us keep it idle.
    most_idle: Duration,
    scheme: Scheme,
    /// The worker's own.
    authority: Authority,
}

impl Shared {
    async fn open(backend: &Backend, tls: &Connectors) -> io::Result<Self> {
        let authority =
            Authority::try_from(backend.host_header.as_bytes()).map_err(io::Error::other)?;
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
            .max_concurrent_reset_streams(MOST_RESET)
            // Counted over all of a connection's life: clients that leave would add up to the end of everybody's.
            .max_local_error_reset_streams(None)
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
            is_left: Cell::new(false),
            most_idle: engine::pool_idle(backend.route.engine),
            scheme,
            authority,
        })
    }

    fn takes_requests(&self) -> bool {
        self.sender.is_ready() && !self.is_left.get()
    }

    fn has_room(&self) -> bool {
        let most = self.driver.most_streams().min(MOST_STREAMS);
        self.takes_requests() && self.streams.get() < most
    }

    /// A closed one with streams is kept by those.
    fn is_worth_keeping(&self, limit: Duration, now: Instant) -> bool {
        let unused = self.streams.get() == 0
            && now.duration_since(self.idle_since.get()) >= limit.min(self.most_idle);
        self.takes_requests() && !unused
    }
}

/// What moves a connection's bytes. Once that has ended it is dropped, so that those who wait for a place
/// on it are told.
#[derive(Debug, Clone)]
struct Driver(Rc<RefCell<Option<Socketed>>>);

type Socketed = Connection<TokioIo<Calm<Socket>>, Sent, Local>;

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
    /// The head of what was sent, as long as that may have to be sent again,
    draft: Option<Box<Draft>>,
    /// and its body.
    sent: Sent,
}

impl Stream {
    fn of(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self {
            incoming: None,
            shared: Rc::clone(shared),
            is_reused: shared.has_served.replace(true),
            has_trailers: false,
            draft: None,
            sent: Sent::default(),
        }
    }

    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    pub(super) async fn send(&mut self, mut draft: Box<Draft>) -> Result<Response<()>, SendError> {
        let body = std::mem::replace(&mut draft.body, RequestBody::empty());
        self.sent = Sent::new(body);
        let request = as_http2(&draft.parts, &self.shared, self.sent.clone());
        let request = request.map_err(SendError::Broken)?;
        self.draft = Some(draft);
        self.shared.asked.update(|asked| asked.saturating_add(1));
        let mut sender = self.shared.sender.clone();
        let answer = sender.try_send_request(request).await;
        let response = answer.map_err(|error| self.failure(error))?;
        self.sent.was_seen();
        let (head, incoming) = response.into_parts();
        if !head.headers.keys().all(is_token) {
            return Err(SendError::Broken(UpstreamError::Malformed("a field's name that is none")));
        }
        self.incoming = Some(incoming);
        Ok(Response::from_parts(head, ()))
    }

    /// Why there is no answer.
    fn failure(&mut self, mut error: TrySendError<Request<Sent>>) -> SendError {
        if error.take_message().is_some() {
            self.shared.is_left.set(true);
            if let Some(unsent) = self.take_back() {
                return SendError::NotSent(unsent);
            }
        }
        let error = error.into_error();
        if let Some(fault) = self.sent.fault() {
            return SendError::Broken(fault.into());
        }
        let Some(unseen) = unseen(&error) else { return SendError::Broken(error.into()) };
        if unseen == Unseen::Leaving {
            self.shared.is_left.set(true);
        }
        SendError::Refused(unseen, self.take_back())
    }

    /// The request as it was, which the worker did not look at.
    fn take_back(&mut self) -> Option<Box<Draft>> {
        let body = self.sent.take_back()?;
        let mut draft = self.draft.take()?;
        draft.body = body;
        Some(draft)
    }

    /// The request once more, if it was kept.
    pub(super) fn take_request(&mut self) -> Option<Box<Draft>> {
        let body = self.sent.copy()?;
        let mut draft = self.draft.take()?;
        draft.body = body;
        Some(draft)
    }

    /// It will not be sent again.
    pub(super) fn forget_request(&mut self) {
        self.draft = None;
        self.sent.forget();
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match &mut self.incoming {
            Some(incoming) => match std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                Some(frame) => {
                    self.has_trailers |= frame.as_ref().is_ok_and(Frame::is_trailers);
                    Poll::Ready(Some(frame.map_err(|error| self.broken(error.into()))))
                }
                None if self.has_trailers || came_whole(incoming) => Poll::Ready(None),
                None => Poll::Ready(Some(Err(self.broken(UpstreamError::Closed)))),
            },
            None => Poll::Ready(None),
        }
    }

    /// Why an answer has broken off: where the client's body did, the stream was reset for that alone.
    fn broken(&self, error: UpstreamError) -> UpstreamError {
        self.sent.fault().map_or(error, UpstreamError::Body)
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
fn unseen(error: &hyper::Error) -> Option<Unseen> {
    let error = error.source().and_then(|source| source.downcast_ref::<h2::Error>())?;
    match error.reason()? {
        _ if !error.is_remote() => None,
        h2::Reason::NO_ERROR if error.is_go_away() => Some(Unseen::Leaving),
        h2::Reason::REFUSED_STREAM => Some(Unseen::Full),
        _ => error.is_go_away().then_some(Unseen::Full),
    }
}

/// The request as HTTP/2 has it (RFC 9113, 8.3.1): the authority is part of the target, the worker's own where the
/// client names none, and what frames a message of HTTP/1.1 is none of its fields.
///
/// # Errors
/// It has no such form.
fn as_http2(parts: &Parts, shared: &Shared, body: Sent) -> Result<Request<Sent>, UpstreamError> {
    let mut request = Request::new(body);
    let mut headers = parts.headers.clone();
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let host = headers.remove(HOST).filter(|host| !host.is_empty());
    let authority = host.map_or_else(
        || Ok(shared.authority.clone()),
        |host| Authority::try_from(host.as_bytes()).map_err(http::Error::from),
    );
    let path = parts.uri.path_and_query().cloned();
    let target = authority.and_then(|authority| {
        Uri::builder()
            .scheme(shared.scheme.clone())
            .authority(authority)
            .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
            .build()
    });
    *request.uri_mut() = target.map_err(|_| UpstreamError::Unsayable)?;
    request.method_mut().clone_from(&parts.method);
    *request.headers_mut() = headers;
    *request.version_mut() = Version::HTTP_2;
    Ok(request)
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
    fn with_room(&self, alone: bool) -> Option<Stream> {
        let fits =
            |shared: &&Rc<Shared>| shared.has_room() && (!alone || shared.streams.get() == 0);
        self.open.borrow().iter().find(fits).map(Stream::of)
    }
}

impl Pool {
    /// A place on a connection that there is, or on a new one; `alone` if on one that nobody else is on. Takes at most
    /// `limit`.
    ///
    /// # Errors
    /// The connection's, or `TimedOut`.
    pub(super) async fn stream(
        &self,
        backend: &Backend,
        tls: &Connectors,
        limit: Duration,
        alone: bool,
    ) -> io::Result<Stream> {
        let connections =
            Rc::clone(self.backends.borrow_mut().entry(backend.route.generation).or_default());
        if let Some(stream) = connections.with_room(alone) {
            return Ok(stream);
        }
        let open = async {
            let opening = connections.opening.lock().await;
            if let Some(stream) = connections.with_room(alone) {
                return Ok(stream);
            }
            let shared = Rc::new(Shared::open(backend, tls).await?);
            let stream = Stream::of(&shared);
            connections.open.borrow_mut().push(shared);
            drop(opening);
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
