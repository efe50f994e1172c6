//! A client's socket, whatever is spoken on it. What it adds is that a client that takes nothing of what waits for
//! it is not waited for without end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::Sleep;

use crate::proxy::limits::Clients;
use crate::proxy::socket::Socket;

/// The client's side of a connection.
#[derive(Debug)]
pub(in crate::proxy) struct ClientIo {
    socket: Socket,
    clients: Arc<Clients>,
    /// Runs while nothing can be written.
    patience: Option<Pin<Box<Sleep>>>,
    /// Nobody is to wait for a clean close, or to take it for the end of what was sent.
    ends_by_reset: bool,
}

impl ClientIo {
    pub(super) fn new(socket: Socket, clients: &Arc<Clients>) -> Self {
        Self { socket, clients: Arc::clone(clients), patience: None, ends_by_reset: false }
    }

    /// What is read from: only writing is waited for with patience.
    pub(super) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Whether the client has closed its side, as far as the kernel knows.
    pub(super) fn has_gone(&mut self) -> bool {
        let ready = std::pin::pin!(self.socket.tcp().ready(Interest::READABLE));
        let ready = ready.poll(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Whether it has an end of its own, beside that of the connection below.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self.socket, Socket::Tls(_))
    }

    /// Its end is to be a reset, or not.
    pub(super) fn end_by_reset(&mut self, ends_by_reset: bool) {
        self.ends_by_reset = ends_by_reset;
    }

    /// `written`, or an error once nothing could be written for `write_timeout`.
    fn bounded<W>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<W>>,
    ) -> Poll<io::Result<W>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let limit = self.clients.limits.write_timeout;
        if limit == Duration::ZERO {
            return Poll::Pending;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        std::task::ready!(patience.as_mut().poll(cx));
        self.clients.not_taken();
        self.ends_by_reset = true;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if self.ends_by_reset {
            // A socket that is closed already needs none.
            drop(self.socket.tcp().set_zero_linger());
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, pieces);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.bounded(cx, shut)
    }
}
