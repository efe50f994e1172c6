//! Connections to workers, in the protocol that the instance type says. Over HTTP/1.1 a request has a
//! connection of its own ([`http1`]), over HTTP/2 it has a stream of one that is shared ([`http2`]).
//!
//! Pools belong to a thread: no lock, no hand-over between threads. Connections that nobody uses are closed
//! after `pool_idle_timeout` (3 s by default), before servers that close theirs after 5 s do; where the
//! engine is known to close them, never later than its profile says. A worker whose address is `https` is
//! spoken to over TLS ([`crate::tls`]); agreeing on it is part of connecting, and of its limit.

mod http1;
mod http2;
mod sent;

use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use thiserror::Error;
use tokio::net::TcpStream;

use super::body::BodyError;
use super::draft::Draft;
use super::snapshot::Backend;
use super::socket::Socket;
use crate::tls::{Connectors, Peer};
use crate::types::Protocol;

/// What a request is sent on. Dropping it tells the worker that nobody waits any more.
#[derive(Debug)]
pub(super) enum Connection {
    /// All of a connection.
    Http1(Box<http1::Connection>),
    /// One stream of a connection.
    Http2(http2::Stream),
}

/// Why a request got no answer's head.
#[derive(Debug)]
pub(super) enum SendError {
    /// Not a byte of it was written: here it is again.
    NotSent(Box<Draft>),
    /// The worker says that it did not look at it (RFC 9113, 8.7): here it is again, unless it is too large.
    Refused(Unseen, Option<Box<Draft>>),
    /// It may have run.
    Broken(UpstreamError),
}

/// Why a worker did not look at a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unseen {
    /// It leaves the connection, which says nothing of itself (RFC 9113, 6.8).
    Leaving,
    /// It takes no more, on this connection or at all.
    Full,
}

/// Why an exchange with a worker broke off.
#[derive(Debug, Error)]
pub(super) enum UpstreamError {
    /// The connection did.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It was closed before the end.
    #[error("the connection was closed before the end of the answer")]
    Closed,
    /// What came cannot be understood, or in more than one way.
    #[error("the worker sent {0}")]
    Malformed(&'static str),
    /// The client's body broke off while it was being sent.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The request has no form in the worker's protocol.
    #[error("the request cannot be said in HTTP/2")]
    Unsayable,
    /// Over HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl Connection {
    /// Whether it has served a request before.
    pub(super) fn is_reused(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_reused(),
            Self::Http2(stream) => stream.is_reused(),
        }
    }

    /// The next piece of the answer's body; `None` behind the last. Over HTTP/1.1 it moves the request's bytes too.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match self {
            Self::Http1(connection) => connection.poll_frame(cx),
            Self::Http2(stream) => stream.poll_frame(cx),
        }
    }

    /// Whether the answer has no more.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_over(),
            Self::Http2(stream) => stream.is_over(),
        }
    }

    /// How many more bytes of the answer there are, where that is known.
    pub(super) fn rest(&self) -> Option<u64> {
        match self {
            Self::Http1(connection) => connection.rest(),
            Self::Http2(stream) => stream.rest(),
        }
    }

    /// Sends `request` and waits for the head of the answer. Dropping the future and the connection
    /// cancels the request.
    ///
    /// # Errors
    /// [`SendError`], which tells whether it may be sent again.
    pub(super) async fn send(&mut self, request: Box<Draft>) -> Result<Response<()>, SendError> {
        match self {
            Self::Http1(connection) => {
                let error = match connection.send(request).await {
                    Ok(response) => return Ok(response),
                    Err(error) => error,
                };
                if matches!(error, UpstreamError::Io(_) | UpstreamError::Closed)
                    && connection.is_unsent()
                    && let Some(unsent) = connection.take_request()
                {
                    return Err(SendError::NotSent(unsent));
                }
                Err(SendError::Broken(error))
            }
            Self::Http2(stream) => Box::pin(stream.send(request)).await,
        }
    }

    /// The request once more, if all of it was kept.
    pub(super) fn take_request(&mut self) -> Option<Box<Draft>> {
        match self {
            Self::Http1(connection) => connection.take_request(),
            Self::Http2(stream) => stream.take_request(),
        }
    }

    /// The request will not be sent again: what was kept for that may go.
    pub(super) fn forget_request(&mut self) {
        match self {
            Self::Http1(connection) => connection.forget_request(),
            Self::Http2(stream) => stream.forget_request(),
        }
    }

    /// After the worker has agreed to switch protocols: the bare connection, and what the worker has said
    /// on it already. HTTP/2 has no such switch.
    pub(super) fn into_switched(self) -> Option<(Socket, Bytes)> {
        match self {
            Self::Http1(connection) => Some(connection.into_switched()),
            Self::Http2(_) => None,
        }
    }
}

/// One thread's connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    http1: http1::Pool,
    http2: http2::Pool,
    tls: Connectors,
}

impl Pool {
    /// One that reaches workers over TLS by these.
    pub(super) fn new(tls: Connectors) -> Self {
        Self { tls, ..Self::default() }
    }

    /// A connection to the backend, one that there is or a new one; `alone` if one that nobody else is on. Takes at most
    /// `limit`.
    ///
    /// # Errors
    /// The connection's, or `TimedOut`.
    pub(super) async fn connect(
        &self,
        backend: &Backend,
        limit: Duration,
        alone: bool,
    ) -> io::Result<Connection> {
        match backend.route.protocol {
            Protocol::Http1 => {
                if let Some(connection) = self.http1.take(backend) {
                    return Ok(Connection::Http1(connection));
                }
                // In a place of its own: most requests find one, and are not to be larger for those that do not.
                let connection = Box::pin(http1::open(backend, &self.tls, limit)).await?;
                Ok(Connection::Http1(Box::new(connection)))
            }
            Protocol::H2c | Protocol::H2 => {
                let stream = Box::pin(self.http2.stream(backend, &self.tls, limit, alone)).await?;
                Ok(Connection::Http2(stream))
            }
        }
    }

    /// Takes back a connection whose answer was read to its end `at` that time.
    pub(super) fn give_back(&self, backend: &Backend, connection: Connection, at: Instant) {
        match connection {
            Connection::Http1(connection) => self.http1.give_back(backend, connection, at),
            // The connection is the pool's already.
            Connection::Http2(_) => {}
        }
    }

    /// Closes what has been idle for longer than `limit`, or than its engine lets it.
    pub(super) fn close_idle(&self, limit: Duration) {
        self.http1.close_idle(limit);
        self.http2.close_idle(limit);
    }
}

/// A socket to the backend.
async fn dial(backend: &Backend, tls: &Connectors) -> io::Result<Socket> {
    let route = &backend.route;
    let stream = match backend.socket {
        Some(socket) => TcpStream::connect(socket).await,
        None => TcpStream::connect(route.address.authority()).await,
    }?;
    stream.set_nodelay(true)?;
    if !route.address.is_tls() {
        return Ok(Socket::Plain(stream));
    }
    let peer = Peer { address: &route.address, tls: route.tls.as_ref(), protocol: route.protocol };
    Ok(Socket::Tls(Box::new(tls.connect(stream, peer).await?.into())))
}
