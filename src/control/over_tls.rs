//! One request to an instance over TLS, on a connection of its own, so that the certificates and roots in force
//! are looked at each time.

use std::pin::pin;

use bytes::Bytes;
use futures_util::future::Either;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::probe::whole;
use crate::tls::{Connectors, Peer};
use crate::types::{Address, Protocol};

/// Connects to `peer`, sends `request` and has its answer read by `read`.
///
/// # Errors
/// What went wrong, in words.
pub(super) async fn exchange<T, R>(
    connectors: &Connectors,
    peer: Peer<'_>,
    request: Request<Full<Bytes>>,
    read: impl FnOnce(Response<Incoming>) -> R,
) -> Result<T, String>
where
    R: Future<Output = Result<T, String>>,
{
    let stream = TcpStream::connect(peer.address.authority()).await;
    let stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
    let stream = connectors.connect(stream, peer).await.map_err(|error| error.to_string())?;
    let stream = TokioIo::new(stream);
    if peer.protocol == Protocol::Http1 {
        let (mut sender, connection) =
            conn::http1::handshake(stream).await.map_err(|error| whole(&error))?;
        // In the form that is meant for a server itself.
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(header::HOST, host(peer.address)?);
        parts.uri = parts.uri.path_and_query().cloned().map_or_else(Default::default, Into::into);
        let answer = sender.send_request(Request::from_parts(parts, body));
        converse(answer, connection, read).await
    } else {
        let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(|error| whole(&error))?;
        let answer = sender.send_request(request);
        converse(answer, connection, read).await
    }
}

/// Moves the connection's bytes until the answer has been read.
async fn converse<T, R>(
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
    read: impl FnOnce(Response<Incoming>) -> R,
) -> Result<T, String>
where
    R: Future<Output = Result<T, String>>,
{
    let answered = pin!(async { read(answer.await.map_err(|error| whole(&error))?).await });
    let connection = pin!(async {
        // Whoever waits for something of it has been told.
        drop(connection.await);
        std::future::pending::<std::convert::Infallible>().await
    });
    match futures_util::future::select(answered, connection).await {
        Either::Left((result, _)) => result,
        Either::Right((never, _)) => match never {},
    }
}

fn host(address: &Address) -> Result<header::HeaderValue, String> {
    header::HeaderValue::from_str(address.authority()).map_err(|error| error.to_string())
}
