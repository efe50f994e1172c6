//! The worker's shell: its listener, its connections, its end.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::WorkerError;
use super::answer::Worker;
use super::fail::Faults;
use super::options::WorkerOptions;
use crate::runtime::tasks::Tasks;
use crate::tls::{Purpose, Tls, TlsError};
use crate::types::tls::{CertificateFiles, TlsFiles};

/// Most connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16_384;

/// Serves until SIGTERM or SIGINT.
pub(super) async fn serve(options: WorkerOptions) -> Result<(), WorkerError> {
    let faults = Faults::new(&options.fail);
    if faults.exit_at_start {
        return Err(WorkerError::ExitAtStart);
    }
    let tls = tls(&options).map_err(WorkerError::Tls)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(WorkerError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(WorkerError::Runtime)?;
    let cannot_listen = |source| WorkerError::Listen { address: options.listen.clone(), source };
    let listener = TcpListener::bind(&options.listen).await.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?.to_string();
    // Whoever reads it may have gone away already; that is no reason to end.
    let _ = writeln!(std::io::stdout(), "listening on {address}");

    let graceful = options.graceful;
    let manners = Manners { keep_alive: options.keep_alive, tls };
    let worker = Arc::new(Worker::new(options, faults, address));
    let connections = Tasks::new();
    tokio::select! {
        () = accept(listener, &worker, &connections, &manners) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if graceful {
        // The listener is closed by now: idle connections close, the others after their answer.
        tokio::select! {
            _ = connections.stop(Duration::MAX) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    Ok(())
}

/// What holds for every connection.
#[derive(Clone)]
struct Manners {
    keep_alive: Option<Duration>,
    tls: Option<Arc<Tls>>,
}

fn tls(options: &WorkerOptions) -> Result<Option<Arc<Tls>>, TlsError> {
    let Some((chain, key)) = options.tls_cert.clone().zip(options.tls_key.clone()) else {
        return Ok(None);
    };
    let certificates = vec![CertificateFiles { chain, key }];
    let files = TlsFiles { certificates, client_ca: options.tls_client_ca.clone() };
    Tls::load(files, Purpose::Requests).map(Some)
}

async fn accept(
    listener: TcpListener,
    worker: &Arc<Worker>,
    connections: &Tasks,
    manners: &Manners,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (worker, stopping) = (Arc::clone(worker), connections.stopping());
                let manners = manners.clone();
                connections.spawn("connection", async move {
                    connection(stream, worker, stopping, manners).await;
                    drop(place);
                });
            }
            // Out of file descriptors, or a client that left at once: either passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(
    stream: TcpStream,
    worker: Arc<Worker>,
    stopping: CancellationToken,
    manners: Manners,
) {
    // Small answers must not wait for the acknowledgement of earlier ones. It fails only for a
    // connection that is dead already.
    let _ = stream.set_nodelay(true);
    worker.accepted.fetch_add(1, Ordering::Relaxed);
    worker.open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(Arc::clone(&worker));
    match manners.tls {
        None => converse(stream, worker, stopping, manners.keep_alive).await,
        Some(tls) => {
            let agreed = tokio::select! {
                agreed = tls.accept(stream) => agreed,
                () = stopping.cancelled() => return,
            };
            // Whoever cannot agree has been told so.
            if let Ok((stream, _)) = agreed {
                converse(stream, worker, stopping, manners.keep_alive).await;
            }
        }
    }
}

/// Serves one connection to its end. A client that closes its side ends it at once, and the request
/// that it carries is dropped with it.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    worker: Arc<Worker>,
    stopping: CancellationToken,
    keep_alive: Option<Duration>,
) {
    let service = service_fn(move |request| {
        let worker = Arc::clone(&worker);
        async move { worker.answer(request).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if keep_alive.is_some() {
        builder.http1().timer(TokioTimer::new());
    }
    builder.http1().header_read_timeout(keep_alive);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Errors are the other side's (it broke off, or spoke no HTTP) or as told; hyper has closed the
    // connection, and there is nobody to tell.
    tokio::select! {
        _ = serving.as_mut() => return,
        () = stopping.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
