//! An HTTP/2 connection of a client, by hyper's server: each stream a task of its own.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{COOKIE, HeaderMap};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::task::TaskTracker;

use super::client_io::ClientIo;
use super::taking::Taking;
use crate::proxy::body::{Incoming, ResponseBody};
use crate::proxy::calm::Calm;
use crate::proxy::ending::Ending;
use crate::proxy::headers;
use crate::proxy::http1::MOST_FIELDS;
use crate::proxy::limits::Clients;
use crate::proxy::names::Names;
use crate::proxy::origin::Origin;
use crate::proxy::refusal::{Dialect, Refusal};
use crate::proxy::request::{Thread, serve};
use crate::proxy::socket::Socket;
use crate::runtime::clock;

/// How far the peer of an HTTP/2 connection may send ahead of us: one stream, and all of them. The h2 crate ends a
/// connection whose unread small frames use up half of its window: a slow worker is not to be the end of all that its
/// client asks others, a flood of single bytes is.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes that wait for a stream's client in our memory.
const SEND_BUFFER: usize = 64 << 10;
/// A client is asked whether it is there after so much silence, and has as long again to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long a client that has no streams may take to close a connection that is over.
const LEAVE: Duration = Duration::from_secs(2);

/// Serves all requests of a connection, until the proxy ends.
pub(super) async fn serve_connection(
    socket: Socket,
    origin: Rc<Origin>,
    thread: Rc<Thread>,
    ending: Ending,
) {
    let limits = &thread.clients.limits;
    let (most_streams, idle_timeout) = (limits.streams, limits.idle_timeout);
    let (running, began) = (Rc::new(Running::default()), clock::monotonic());
    let streams = Streams {
        tasks: thread.sender.tasks.clone(),
        running: Rc::clone(&running),
        clients: Arc::clone(&thread.clients),
        next: Rc::default(),
    };
    let next = Rc::clone(&streams.next);
    let io = ClientIo::new(socket, &thread.clients);
    let io = TokioIo::new(Calm::of_client(io, &thread.clients));
    let service = {
        let thread = Rc::clone(&thread);
        service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let taking = Rc::new(Taking::default());
            // hyper gives it to its task before it looks for another.
            next.replace(Some(Rc::clone(&taking)));
            let presence = thread.clients.asked_by_stream();
            let taken = match (&presence, has_too_many_fields(request.headers())) {
                (None, _) => Err(Refusal::TooManyStreams),
                (Some(_), true) => Err(Refusal::HeadTooLarge),
                (Some(_), false) => Ok(()),
            };
            let is_head = request.method() == Method::HEAD;
            let answer = taken.map(|()| {
                let names = Names::of(request.headers());
                let mark = origin.mark(request.headers_mut(), names, Version::HTTP_2);
                let (parts, body) = request.into_parts();
                let request = (parts, Incoming::Http2(body));
                // In a place of its own: hyper moves what answers a stream several times.
                Box::pin(serve(Rc::clone(&thread), Rc::default(), mark, request))
            });
            async move {
                let mut answer = match answer {
                    Ok(answer) => answer.await?,
                    Err(refusal) => refusal.into_response(Dialect::OpenAi),
                };
                if let Some(signature) = answer.body().signature() {
                    let fields = signature.map(|(name, value)| (name, value.clone()));
                    answer.headers_mut().extend(fields);
                }
                let (answer, is_empty) = without_what_has_no_place(answer, is_head);
                Ok::<_, Infallible>(answer.map(|body| taking.watch(body, is_empty, presence)))
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
            () = running.idle_for(idle_timeout, began) => {}
        }
    };
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = is_over => {
            // GOAWAY: streams that have begun are finished, others are not taken.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                // It has no streams, and does not take leave: it may not even have begun.
                () = running.idle_for(LEAVE, clock::monotonic()) => Ok(()),
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

/// Whether an answer has content is told by its request and its status (RFC 9110, 6.4.1), which hyper leaves to us:
/// the answer, and whether it must have none. A worker's may come to its end later all the same.
fn without_what_has_no_place(
    mut answer: Response<ResponseBody>,
    is_head: bool,
) -> (Response<ResponseBody>, bool) {
    let is_empty =
        is_head || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&answer.status());
    if is_empty && let ResponseBody::Full(bytes) = answer.body_mut() {
        let length = bytes.take().map_or(0, |bytes| bytes.len() as u64);
        if is_head && length > 0 {
            headers::set_length(answer.headers_mut(), length);
        }
    }
    (answer, is_empty)
}

/// There is only a limit on their bytes, within which thousands of small ones fit. Cookies count as one: HTTP/2 may send them apart (RFC 9113, 8.2.3).
fn has_too_many_fields(headers: &HeaderMap) -> bool {
    headers.len() > MOST_FIELDS
        && headers.len() - headers.get_all(COOKIE).iter().count() >= MOST_FIELDS
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
    /// Resolves when there has been no stream for `limit`, all of it after `from`.
    async fn idle_for(&self, limit: Duration, from: Instant) {
        loop {
            let idle = match self.count.get() {
                0 => clock::monotonic().duration_since(self.idle_since.get().max(from)),
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
