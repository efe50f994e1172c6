//! The worker's shell: its listener, its connections, its end.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::WorkerError;
use super::answer::Worker;
use super::fail::Faults;
use super::options::WorkerOptions;
use crate::runtime::tasks::Tasks;

/// Most connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16_384;

/// Serves until SIGTERM or SIGINT.
pub(super) async fn serve(options: WorkerOptions) -> Result<(), WorkerError> {
    let faults = Faults::new(&options.fail);
    if faults.exit_at_start {
        return Err(WorkerError::ExitAtStart);
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(WorkerError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(WorkerError::Runtime)?;
    let cannot_listen = |source| WorkerError::Listen { address: options.listen.clone(), source };
    let listener = TcpListener::bind(&options.listen).await.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?.to_string();
    // Whoever reads it may have gone away already; that is no reason to end.
    let _ = writeln!(std::io::stdout(), "listening on {address}");

    let (graceful, keep_alive) = (options.graceful, options.keep_alive);
    let worker = Arc::new(Worker::new(options, faults, address));
    let connections = Tasks::new();
    tokio::select! {
        () = accept(listener, &worker, &connections, keep_alive) => {}
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

async fn accept(
    listener: TcpListener,
    worker: &Arc<Worker>,
    connections: &Tasks,
    keep_alive: Option<Duration>,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (worker, stopping) = (Arc::clone(worker), connections.stopping());
                connections.spawn("connection", async move {
                    connection(stream, worker, stopping, keep_alive).await;
                    drop(place);
                });
            }
            // Out of file descriptors, or a client that left at once: either passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Serves one connection to its end. A client that closes its side ends it at once, and the request
/// that it carries is dropped with it.
async fn connection(
    stream: TcpStream,
    worker: Arc<Worker>,
    stopping: CancellationToken,
    keep_alive: Option<Duration>,
) {
    // Small answers must not wait for the acknowledgement of earlier ones. It fails only for a
    // connection that is dead already.
    let _ = stream.set_nodelay(true);
    worker.accepted.fetch_add(1, Ordering::Relaxed);
    worker.open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(Arc::clone(&worker));

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
