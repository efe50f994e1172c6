//! A client's socket. What it adds to hyper's own is how it ends. An HTTP/1.0 client knows a body's end
//! only by the connection's, so an answer that broke off must end in a reset and never in a clean close.
//! And a client that takes nothing of what waits for it is not waited for without end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use super::limits::Clients;

/// Says, while the connection lives, how it is to be closed.
#[derive(Debug, Clone, Default)]
pub(super) struct Closing(Arc<AtomicBool>);

impl Closing {
    /// From now on its end is a reset, or is not.
    pub(super) fn by_reset(&self, reset: bool) {
        self.0.store(reset, Ordering::Relaxed);
    }
}

/// What bytes of a client go through: its socket, or TLS on it.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The socket below.
    fn socket(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Transport for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// The client's side of a connection.
#[derive(Debug)]
pub(super) struct ClientIo<T: Transport> {
    io: TokioIo<T>,
    closing: Closing,
    clients: Arc<Clients>,
    /// Runs while nothing can be written.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<T: Transport> ClientIo<T> {
    pub(super) fn new(stream: T, closing: Closing, clients: &Arc<Clients>) -> Self {
        Self { io: TokioIo::new(stream), closing, clients: Arc::clone(clients), patience: None }
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
        // Nobody reads what a clean close would still wait to deliver.
        self.closing.by_reset(true);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Transport> Drop for ClientIo<T> {
    fn drop(&mut self) {
        if self.closing.0.load(Ordering::Relaxed) {
            // A socket that is closed already needs none.
            drop(self.io.inner().socket().set_zero_linger());
        }
    }
}

impl<T: Transport> Read for ClientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: Transport> Write for ClientIo<T> {
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
