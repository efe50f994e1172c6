//! A connection whose two sides have agreed on another protocol: bytes both ways until either side closes, time is
//! up, or neither has had anything for longer than a stream may be silent. The slot is held for as long.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};

use super::deadline::{Late, Watch};
use super::downstream::ClientIo;
use super::exchange::Exchange;
use super::refusal::Refusal;
use super::upstream::Connection;

/// The worker's side of it, which waits for the client to be told.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) connection: Connection,
    pub(super) exchange: Exchange,
    pub(super) watch: Watch,
}

impl Tunnel {
    /// Passes bytes on until it is over. `from_client`: what the client has said already.
    pub(super) async fn run(mut self, client: ClientIo, from_client: Bytes) {
        let (up, down) = (Cell::new(0), Cell::new(0));
        let mut late = None;
        if let Some((worker, from_worker)) = self.connection.into_switched() {
            let mut client = Counted { io: client, taken: &down };
            let mut worker = Counted { io: worker, taken: &up };
            let copying = async {
                client.write_all(&from_worker).await?;
                worker.write_all(&from_client).await?;
                copy_bidirectional(&mut client, &mut worker).await
            };
            late = within(self.watch, copying, || up.get() + down.get()).await;
        }
        self.exchange.record().tunnelled(up.get(), down.get());
        match late {
            // Nobody can tell whose silence it was.
            Some(late) => self.exchange.spoilt(&Refusal::from(late)),
            // Either side's abrupt end is the end; there is nobody left to tell.
            None => self.exchange.completed(),
        }
    }
}

/// Copies until that ends, or why it was not waited for. `taken` are the bytes that have got across.
async fn within(
    mut watch: Watch,
    copying: impl Future<Output = io::Result<(u64, u64)>>,
    taken: impl Fn() -> u64,
) -> Option<Late> {
    let mut copying = pin!(copying);
    poll_fn(|cx| {
        if watch.is_over() {
            return Poll::Ready(Some(Late::Whole));
        }
        let before = taken();
        if copying.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if taken() != before {
            watch.progressed();
        }
        watch.poll(cx).map(Some)
    })
    .await
}

/// One side, and how many bytes it has taken.
struct Counted<'a, S> {
    io: S,
    taken: &'a Cell<u64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.taken.update(|taken| taken + bytes as u64);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
