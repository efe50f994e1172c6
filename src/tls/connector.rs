//! How hyper's client reaches the one server that an address names: over TLS where that says `https`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::{Connectors, Peer};
use crate::types::tls::WorkerTls;
use crate::types::{Address, Protocol};

/// Connects to one server, whatever the request's target says.
#[derive(Debug, Clone)]
pub struct Connector {
    address: Address,
    tls: Arc<WorkerTls>,
    connectors: Connectors,
    limit: Duration,
}

impl Connector {
    /// To `address` in at most `limit`; over TLS as `tls` has it, whose files `connectors` keep.
    #[must_use]
    pub fn new(
        address: Address,
        tls: Arc<WorkerTls>,
        connectors: Connectors,
        limit: Duration,
    ) -> Self {
        Self { address, tls, connectors, limit }
    }

    async fn connect(self) -> io::Result<Stream> {
        let stream = TcpStream::connect(self.address.authority()).await?;
        stream.set_nodelay(true)?;
        if !self.address.is_tls() {
            return Ok(Stream(TokioIo::new(Either::Left(stream))));
        }
        let peer = Peer { address: &self.address, tls: Some(&self.tls), protocol: Protocol::Http1 };
        let stream = self.connectors.connect(stream, peer).await?;
        Ok(Stream(TokioIo::new(Either::Right(stream))))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (limit, connecting) = (self.limit, self.clone().connect());
        Box::pin(
            async move { tokio::time::timeout(limit, connecting).await.map_err(io::Error::from)? },
        )
    }
}

/// A connection that it has made.
#[derive(Debug)]
pub struct Stream(TokioIo<Either<TcpStream, TlsStream<TcpStream>>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
