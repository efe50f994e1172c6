//! A client's connection, from its first byte to its close: HTTP/2 for those who begin with its preface
//! (RFC 9113, 3.3) or agree on it in the TLS handshake, HTTP/1.1 for all others. Whatever it speaks, each of its requests enters by [`serve`].

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, COOKIE, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::body::ResponseBody;
use super::calm::Calm;
use super::client_io::{ClientIo, Closing, Transport};
use super::ending::Ending;
use super::limits::Clients;
use super::origin::Origin;
use super::request::{Thread, serve};
use super::strict::Strict;
use super::taking::{Taken, Taking};
use crate::runtime::clock;
use crate::tls::Tls;

/// How an HTTP/2 connection begins, as far as it takes to tell it from every method of HTTP/1.1.
const PREFACE: &[u8; 4] = b"PRI ";
/// How long a beginning that is not long enough to tell is left alone.
const NEXT_LOOK: Duration = Duration::from_millis(5);

/// Fields of a head. Over HTTP/1.1 hyper's own limit; over HTTP/2 there is only one on their bytes, within which
/// thousands of small ones fit.
const MOST_FIELDS: usize = 100;

/// How far the peer of an HTTP/2 connection may send ahead of us: one stream, and all of them.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// How much of an HTTP/1.1 connection's bytes is held either way.
const BUFFER: usize = 64 << 10;
/// Bytes that wait for a stream's client in our memory.
const SEND_BUFFER: usize = 64 << 10;
/// How long a socket is silent before the client's host is asked, and how long between asking again.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A client is asked whether it is there after so much silence, and has as long again to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Serves all requests of a connection, until the proxy ends.
pub(super) async fn serve_connection(
    (stream, peer): (TcpStream, SocketAddr),
    tls: Option<Arc<Tls>>,
    thread: Rc<Thread>,
    ending: Ending,
) {
    // Failing to set it costs latency, nothing else.
    drop(stream.set_nodelay(true));
    // One whose host has gone must not hold a silent stream for ever.
    drop(
        SockRef::from(&stream).set_tcp_keepalive(
            &TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE),
        ),
    );
    let origin = Origin::new(peer, tls.is_some(), &thread.clients.limits.trusted);
    let begins = begin(stream, tls.as_deref());
    let begins = tokio::time::timeout(thread.clients.limits.idle_timeout, begins);
    let begun = tokio::select! {
        begun = begins => begun,
        () = ending.at_once() => return,
    };
    match begun {
        Ok(Ok(Begun::Plain(stream, true))) => serve_http2(stream, origin, thread, ending).await,
        Ok(Ok(Begun::Plain(stream, false))) => serve_http1(stream, origin, thread, ending).await,
        Ok(Ok(Begun::Tls(stream, true))) => serve_http2(*stream, origin, thread, ending).await,
        Ok(Ok(Begun::Tls(stream, false))) => serve_http1(*stream, origin, thread, ending).await,
        // Nothing of a request has come: nobody is owed an answer.
        Ok(Err(_)) | Err(_) if tls.is_none() => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            thread.clients.handshake_failed();
        }
        Err(_) => thread.clients.handshake_failed(),
    }
}

/// A connection of which is known what it speaks: HTTP/2 or not.
enum Begun {
    Plain(TcpStream, bool),
    Tls(Box<TlsStream<TcpStream>>, bool),
}

async fn begin(stream: TcpStream, tls: Option<&Tls>) -> io::Result<Begun> {
    match tls {
        None => {
            let http2 = speaks_http2(&stream).await?;
            Ok(Begun::Plain(stream, http2))
        }
        Some(tls) => {
            let (stream, http2) = tls.accept(stream).await?;
            Ok(Begun::Tls(Box::new(stream), http2))
        }
    }
}

/// Looks at the first bytes and leaves them where they are.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut first).await?;
        if first[..length] != PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // "P" begins a POST too. More does not make the socket any readier than it is.
        tokio::time::sleep(NEXT_LOOK).await;
    }
}

async fn serve_http1(stream: impl Transport, origin: Origin, thread: Rc<Thread>, ending: Ending) {
    let closing = Closing::default();
    let head = thread.clients.limits.head as usize;
    // The parser refuses what is longer than it takes before we do.
    let io = ClientIo::new(Strict::new(stream, 2 * head), closing.clone(), &thread.clients);
    let while_unfinished = closing.clone();
    let idle_timeout = thread.clients.limits.idle_timeout;
    // Whether the next answer is the last one here.
    let leaves = Rc::new(Cell::new(false));
    let says_so = Rc::clone(&leaves);
    let service = service_fn(move |mut request: Request<Incoming>| {
        origin.mark(request.headers_mut());
        while_unfinished.by_reset(request.version() == Version::HTTP_10);
        let answer = serve(Rc::clone(&thread), request);
        let leaves = Rc::clone(&says_so);
        async move {
            let mut answer = answer.await?;
            if leaves.get() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_header_size(head)
        .max_buf_size(head.max(BUFFER))
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let is_over = async {
        ending.turn().await;
        leaves.set(true);
        ending.at_once().await;
    };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = is_over => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if outcome.is_ok() {
        closing.by_reset(false);
    }
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

async fn serve_http2(stream: impl Transport, origin: Origin, thread: Rc<Thread>, ending: Ending) {
    let limits = &thread.clients.limits;
    let (most_streams, idle_timeout) = (limits.streams, limits.idle_timeout);
    let running = Rc::new(Running::default());
    let streams = Streams {
        tasks: thread.sender.tasks.clone(),
        running: Rc::clone(&running),
        clients: Arc::clone(&thread.clients),
        next: Rc::default(),
    };
    let next = Rc::clone(&streams.next);
    let io = ClientIo::new(Calm::new(stream, &thread.clients), Closing::default(), &thread.clients);
    let service = {
        let thread = Rc::clone(&thread);
        service_fn(move |mut request: Request<Incoming>| {
            let taking = Rc::new(Taking::default());
            // hyper gives it to its task before it looks for another.
            next.replace(Some(Rc::clone(&taking)));
            let answer = (!has_too_many_fields(request.headers())).then(|| {
                origin.mark(request.headers_mut());
                serve(Rc::clone(&thread), request)
            });
            async move {
                let Some(answer) = answer else { return Ok(too_many_fields(taking)) };
                Ok::<_, Infallible>(answer.await?.map(|body| taking.watch(body)))
            }
        })
    };
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(most_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        // As HTTP/2 counts them (RFC 9113, 6.5.2).
        .max_header_list_size(limits.head)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let is_over = async {
        tokio::select! {
            () = ending.turn() => {}
            () = running.idle_for(idle_timeout) => {}
        }
    };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = is_over => {
            // GOAWAY: streams that have begun are finished, others are not taken.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

/// Cookies count as one: HTTP/2 may send them apart (RFC 9113, 8.2.3).
fn has_too_many_fields(headers: &HeaderMap) -> bool {
    headers.len() > MOST_FIELDS
        && headers.len() - headers.get_all(COOKIE).iter().count() >= MOST_FIELDS
}

/// As hyper answers such a head over HTTP/1.1.
fn too_many_fields(taking: Rc<Taking>) -> Response<Taken> {
    let mut answer = Response::new(taking.watch(ResponseBody::full(Bytes::new())));
    *answer.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    answer
}

/// Runs the streams of a connection, each a task of its own: a stream lasts until the last byte of its
/// answer is handed on.
#[derive(Debug, Clone)]
struct Streams {
    tasks: TaskTracker,
    running: Rc<Running>,
    clients: Arc<Clients>,
    /// How the stream that comes next to be run is taken.
    next: Rc<RefCell<Option<Rc<Taking>>>>,
}

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let one = One::of(&self.running);
        let (taking, clients) = (self.next.take(), Arc::clone(&self.clients));
        self.tasks.spawn_local(async move {
            let limit = clients.limits.write_timeout;
            match taking.filter(|_| !limit.is_zero()) {
                None => {
                    stream.await;
                }
                Some(taking) => tokio::select! {
                    _ = stream => {}
                    // What is dropped with the stream resets it.
                    () = taking.stalled(limit) => clients.not_taken(),
                },
            }
            drop(one);
        });
    }
}

/// Streams that run, and since when there are none.
#[derive(Debug)]
struct Running {
    count: Cell<usize>,
    idle_since: Cell<Instant>,
}

impl Default for Running {
    fn default() -> Self {
        Self { count: Cell::new(0), idle_since: Cell::new(clock::monotonic()) }
    }
}

impl Running {
    /// Resolves when there has been no stream for `limit`.
    async fn idle_for(&self, limit: Duration) {
        loop {
            let idle = match self.count.get() {
                0 => clock::monotonic().duration_since(self.idle_since.get()),
                _ => Duration::ZERO,
            };
            if idle >= limit {
                return;
            }
            tokio::time::sleep(limit.saturating_sub(idle)).await;
        }
    }
}

/// One of the streams that run.
#[derive(Debug)]
struct One(Rc<Running>);

impl One {
    fn of(running: &Rc<Running>) -> Self {
        running.count.set(running.count.get() + 1);
        Self(Rc::clone(running))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.idle_since.set(clock::monotonic());
    }
}
