//! The proxy's threads: each has its own runtime, its own listener on the shared port (`SO_REUSEPORT`)
//! and its own pool of connections to workers; they share the router.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempt::Sender;
use super::downstream::serve_connection;
use super::limits::{ClientLimits, Clients};
use super::request::Thread;
use super::router::Router;
use super::tls::Tls;
use super::upstream::Pool;
use crate::telemetry::request::Observers;

/// How the proxy listens and connects.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where they connect over TLS, and with which certificates.
    pub tls: Option<(SocketAddr, Arc<Tls>)>,
    /// Threads, at least 1.
    pub threads: usize,
    /// How long connecting to a worker may take.
    pub connect_timeout: Duration,
    /// Idle connections to workers are closed after this long.
    pub pool_idle_timeout: Duration,
    /// How much clients may take.
    pub limits: ClientLimits,
    /// How long requests may finish once the proxy is told to end.
    pub drain_timeout: Duration,
    /// Who is told about finished requests.
    pub observers: Observers,
}

/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The shortest and the longest pause between two looks at the idle connections.
const SWEEP: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
const BACKLOG: i32 = 4096;

/// What a client is told that may not connect.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\nx-forebay-error: too_many_connections\r\nretry-after: 1\r\n\
    content-length: 110\r\nconnection: close\r\n\r\n\
    {\"error\":{\"type\":\"too_many_connections\",\"message\":\"as many clients as may be are connected; try again later\"}}";

/// The running threads. Dropping it leaves them running; [`Listening::stop`] ends them.
#[derive(Debug)]
pub struct Listening {
    clients: Arc<Clients>,
    address: SocketAddr,
    stop: CancellationToken,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Listening {
    /// Where clients connect (the port that was chosen, if the options said 0).
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients take, for whoever reads the gauges.
    #[must_use]
    pub fn clients(&self) -> Arc<Clients> {
        Arc::clone(&self.clients)
    }

    /// Accepts nothing more, lets the requests that run finish (`drain_timeout` at most) and waits for
    /// the threads. Blocks.
    pub fn stop(self) {
        self.stop.cancel();
        for thread in self.threads {
            // A thread that panicked has told so itself.
            drop(thread.join());
        }
    }
}

/// Binds the listeners and starts the threads.
///
/// # Errors
/// When the address is taken or a thread cannot be started.
pub fn listen(options: &ProxyOptions, router: &Arc<Router>) -> io::Result<Listening> {
    let first = bind_first(options.listen)?;
    let address = first.local_addr()?;
    let mut first_doors = vec![Door { listener: first, tls: None }];
    if let Some((address, tls)) = &options.tls {
        let tls = Some(Arc::clone(tls));
        first_doors.push(Door { listener: bind_first(*address)?, tls });
    }
    let mut threads_doors = vec![first_doors];
    for _ in 1..options.threads {
        let again = threads_doors[0].iter().map(Door::again).collect::<io::Result<_>>()?;
        threads_doors.push(again);
    }
    let stop = CancellationToken::new();
    let clients = Clients::new(options.limits.clone());
    let mut threads = Vec::new();
    for (number, doors) in threads_doors.into_iter().enumerate() {
        let (options, router, stop) = (options.clone(), Arc::clone(router), stop.clone());
        let clients = Arc::clone(&clients);
        let name = format!("proxy-{number}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = run_thread(doors, &options, router, clients, &stop) {
                tracing::error!(%error, "a proxy thread could not start");
            }
        })?);
    }
    Ok(Listening { clients, address, stop, threads })
}

/// One thread's listener on one of the addresses.
struct Door {
    listener: StdListener,
    tls: Option<Arc<Tls>>,
}

impl Door {
    /// Another one on the same address.
    fn again(&self) -> io::Result<Self> {
        let listener = bind_shared(self.listener.local_addr()?)?;
        Ok(Self { listener, tls: self.tls.clone() })
    }
}

/// Binding once without sharing finds out whether another process listens there: with sharing alone, two
/// proxies on one port would silently take half of the connections each.
fn bind_first(address: SocketAddr) -> io::Result<StdListener> {
    if address.port() != 0 {
        let exclusive =
            Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        exclusive.set_reuse_address(true)?;
        exclusive.bind(&address.into())?;
    }
    bind_shared(address)
}

fn bind_shared(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn run_thread(
    doors: Vec<Door>,
    options: &ProxyOptions,
    router: Arc<Router>,
    clients: Arc<Clients>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    let sender = Sender {
        pool: Rc::new(Pool::default()),
        connect_timeout: options.connect_timeout,
        tasks: TaskTracker::new(),
    };
    let thread =
        Rc::new(Thread { router, sender, clients, observers: Rc::new(options.observers.clone()) });
    runtime.block_on(async {
        let doors = doors
            .into_iter()
            .map(|door| Ok((TcpListener::from_std(door.listener)?, door.tls)))
            .collect::<io::Result<Vec<_>>>()?;
        let pool = Rc::clone(&thread.sender.pool);
        let idle = options.pool_idle_timeout;
        let sweeper = tokio::task::spawn_local(async move {
            loop {
                // Engines may want theirs closed sooner than `idle`; zero must not keep the thread busy.
                tokio::time::sleep((idle / 4).clamp(SWEEP.0, SWEEP.1)).await;
                pool.close_idle(idle);
            }
        });
        let accepting =
            doors.iter().map(|(listener, tls)| accept(listener, tls.as_ref(), &thread, stop));
        futures_util::future::join_all(accepting).await;
        drop(doors);
        thread.sender.tasks.close();
        if tokio::time::timeout(options.drain_timeout, thread.sender.tasks.wait()).await.is_err() {
            tracing::warn!(
                connections = thread.sender.tasks.len(),
                "the drain timeout has passed: closing connections with requests on them"
            );
        }
        sweeper.abort();
        Ok(())
    })
}

async fn accept(
    listener: &TcpListener,
    tls: Option<&Arc<Tls>>,
    thread: &Rc<Thread>,
    stop: &CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Some(presence) = thread.clients.connected() else {
                    // Whatever of it does not go out at once is not worth waiting for.
                    drop(stream.try_write(TOO_MANY_CONNECTIONS));
                    continue;
                };
                let connection =
                    serve_connection(stream, tls.cloned(), Rc::clone(thread), stop.clone());
                thread.sender.tasks.spawn_local(async move {
                    connection.await;
                    drop(presence);
                });
            }
            // The client has gone already: nothing is wrong here.
            Err(error) if is_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
