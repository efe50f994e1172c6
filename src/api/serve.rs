//! Accepts connections for the management API: so many at once, headers within a time, and at the end
//! those under way may finish. Not `axum::serve`, which bounds none of these.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::guard::Vouched;
use crate::runtime::tasks::Tasks;
use crate::tls::Tls;

/// Connections at once; the next one waits to be accepted.
const CONNECTIONS: usize = 4096;
/// How long a connection on which nothing was asked yet is kept when the end has come.
const FIRST_REQUEST_TIME: Duration = Duration::from_millis(500);
/// How long a client may take to send a request's head, and how long a connection may idle.
const HEAD_TIME: Duration = Duration::from_secs(75);
/// How long agreeing on TLS may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long requests under way may take once the end has come.
const ENDING: Duration = Duration::from_secs(5);

/// Serves `router` on `listener`, over TLS where that is given, until `stop` resolves and what is under way has finished, five seconds
/// at most. Requests that wait for something (the table feed) are answered at once then.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    stop: CancellationToken,
) {
    let router = router.layer(Extension(stop.clone()));
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = Tasks::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        if let Some((stream, slot)) = accepted {
            let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
            tasks.spawn("admin connection", async move {
                // Small answers should not wait for more to send.
                let _ = stream.set_nodelay(true);
                match tls {
                    None => connection(stream, router, stop).await,
                    Some(tls) => tls_connection(stream, &tls, router, stop).await,
                }
                drop(slot);
            });
        }
    }
    drop(listener);
    tasks.stop(ENDING).await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(error) => {
            // Out of file handles, most likely: it passes, and must not spin.
            tracing::warn!(%error, "cannot accept an admin connection");
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn tls_connection(stream: TcpStream, tls: &Tls, router: Router, stop: CancellationToken) {
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_TIME, tls.accept(stream)) => shaken,
        () = stop.cancelled() => return,
    };
    match shaken.map_err(io::Error::from).flatten() {
        Ok((stream, _)) if stream.get_ref().1.peer_certificates().is_some() => {
            connection(stream, router.layer(Extension(Vouched)), stop).await;
        }
        Ok((stream, _)) => connection(stream, router, stop).await,
        Err(error) => tracing::debug!(%error, "a TLS handshake for an admin connection failed"),
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    stop: CancellationToken,
) {
    let asked = Arc::new(Notify::new());
    let ending = {
        let asked = Arc::clone(&asked);
        async move {
            stop.cancelled().await;
            // One that was just accepted has its first request on the way.
            let _ = timeout(FIRST_REQUEST_TIME, asked.notified()).await;
        }
    };
    let service = service_fn(move |request: http::Request<Incoming>| {
        asked.notify_one();
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending => {
            connection.as_mut().graceful_shutdown();
            timeout(ENDING, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an admin connection broke");
    }
}

async fn answer(router: Router, request: http::Request<Incoming>) -> axum::response::Response {
    match router.oneshot(request.map(axum::body::Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
