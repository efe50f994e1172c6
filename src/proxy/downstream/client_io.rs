//! The socket of a client that speaks HTTP/2. What it adds to hyper's own is that a client that takes nothing of
//! what waits for it is not waited for without end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::time::Sleep;

use crate::proxy::calm::Calm;
use crate::proxy::limits::Clients;
use crate::proxy::socket::Socket;

/// The client's side of a connection.
#[derive(Debug)]
pub(super) struct ClientIo {
    io: TokioIo<Calm<Socket>>,
    clients: Arc<Clients>,
    /// Runs while nothing can be written.
    patience: Option<Pin<Box<Sleep>>>,
    /// Nobody reads what a clean close would still wait to deliver.
    ends_by_reset: bool,
}

impl ClientIo {
    pub(super) fn new(stream: Calm<Socket>, clients: &Arc<Clients>) -> Self {
        let clients = Arc::clone(clients);
        Self { io: TokioIo::new(stream), clients, patience: None, ends_by_reset: false }
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
            drop(self.io.inner().socket().tcp().set_zero_linger());
        }
    }
}

impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.bounded(cx, shut)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.bounded(cx, written)
    }
}
