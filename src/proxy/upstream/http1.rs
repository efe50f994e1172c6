//! HTTP/1.1 to workers. Each connection is driven by whoever uses it: while a request has one, the
//! request's own task polls it (no second task to wake, measured as 5 to 8 % of the CPU time per request);
//! while it is idle nobody does, and it is looked at once before it is used again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::{SendError, Socket, dial};
use crate::decision::engine;
use crate::proxy::body::RequestBody;
use crate::proxy::snapshot::Backend;
use crate::runtime::clock;
use crate::tls::Connectors;
use crate::types::Generation;

/// Idle connections that one thread keeps to one backend.
const MOST_IDLE: usize = 256;

type Sender = http1::SendRequest<RequestBody>;
type Driver = http1::Connection<TokioIo<Socket>, RequestBody>;

/// One connection to a worker. Dropping it closes it.
#[derive(Debug)]
pub(in crate::proxy) struct Connection {
    sender: Sender,
    driver: Driver,
    /// The driver has finished: nothing more comes, nothing can be sent.
    closed: bool,
    reused: bool,
}

impl Connection {
    /// Connects within `limit`.
    ///
    /// # Errors
    /// The connection's, or `TimedOut`.
    pub(super) async fn open(
        backend: &Backend,
        tls: &Connectors,
        limit: Duration,
    ) -> std::io::Result<Self> {
        let stream = tokio::time::timeout(limit, dial(backend, tls))
            .await
            .map_err(std::io::Error::from)??;
        let (sender, driver) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        Ok(Self { sender, driver, closed: false, reused: false })
    }

    /// Whether it has served a request before.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Moves bytes between the socket and whoever sends or reads.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.closed && Pin::new(&mut self.driver).poll(cx).is_ready() {
            self.closed = true;
        }
    }

    /// Sends `request` and waits for the head of the answer. Dropping the future and the connection
    /// cancels the request.
    ///
    /// # Errors
    /// [`SendError`], which tells whether it may be sent again.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let (driver, closed) = (&mut self.driver, &mut self.closed);
        let outcome = std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(outcome) = answer.as_mut().poll(cx) {
                    return Poll::Ready(outcome);
                }
                if *closed {
                    // The dispatcher is gone and has answered for what it held.
                    return answer.as_mut().poll(cx);
                }
                if Pin::new(&mut *driver).poll(cx).is_pending() {
                    return answer.as_mut().poll(cx);
                }
                *closed = true;
            }
        })
        .await;
        outcome.map_err(|mut error| match error.take_message() {
            Some(request) => SendError::NotSent(Box::new(request)),
            None => SendError::Broken(error.into_error()),
        })
    }

    /// After the worker has agreed to switch protocols: the bare connection, and what the worker has said
    /// on it already.
    pub(super) async fn into_switched(mut self) -> (Socket, Bytes) {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            if self.closed { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let parts = self.driver.into_parts();
        (parts.io.into_inner(), parts.read_buf)
    }

    /// Looks at an idle connection: whether another request can be sent on it.
    fn is_usable(&mut self) -> bool {
        // Nobody waits for it while it is idle, so nobody needs to be woken.
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.closed && self.sender.is_ready()
    }
}

/// One thread's idle connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: RefCell<HashMap<Generation, Vec<Idle>>>,
}

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
    /// How long the engine lets us keep it.
    most: Duration,
}

impl Pool {
    /// The connection to the backend that was used last and still works.
    pub(super) fn take(&self, backend: &Backend) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&backend.route.generation)?;
        while let Some(Idle { mut connection, .. }) = connections.pop() {
            if connection.is_usable() {
                connection.reused = true;
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(super) fn give_back(&self, backend: &Backend, connection: Box<Connection>) {
        if connection.closed {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(backend.route.generation).or_default();
        if connections.len() < MOST_IDLE {
            let most = engine::pool_idle(backend.route.engine);
            connections.push(Idle { connection, since: clock::monotonic(), most });
        }
    }

    /// Closes what has been idle for longer than `limit`, or than its engine lets it.
    pub(super) fn close_idle(&self, limit: Duration) {
        let now = clock::monotonic();
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|idle| now.duration_since(idle.since) < limit.min(idle.most));
            !connections.is_empty()
        });
    }
}
