//! A client's socket. All it adds to hyper's own is how it closes: an HTTP/1.0 client knows a body's end
//! only by the connection's, so an answer that broke off must end in a reset and never in a clean close.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Says, while the connection lives, how it is to be closed.
#[derive(Debug, Clone, Default)]
pub(super) struct Closing(Arc<AtomicBool>);

impl Closing {
    /// From now on its end is a reset, or is not.
    pub(super) fn by_reset(&self, reset: bool) {
        self.0.store(reset, Ordering::Relaxed);
    }
}

/// The socket.
#[derive(Debug)]
pub(super) struct ClientIo {
    io: TokioIo<TcpStream>,
    closing: Closing,
}

impl ClientIo {
    pub(super) fn new(stream: TcpStream, closing: Closing) -> Self {
        Self { io: TokioIo::new(stream), closing }
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if self.closing.0.load(Ordering::Relaxed) {
            // A socket that is closed already needs none.
            drop(self.io.inner().set_zero_linger());
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
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }
}
