//! The proxy's threads: each has its own runtime, its own listener on the shared port (`SO_REUSEPORT`)
//! and its own pool of connections to workers; they share the router. Listeners may have been bound by the
//! process before this one.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::attempt::Sender;
use super::downstream::serve_connection;
use super::ending::Ending;
use super::keys::ApiKeys;
use super::limits::{ClientLimits, Clients};
use super::request::Thread;
use super::router::{Newest, Router};
use super::upstream::Pool;
use crate::telemetry::request::Observers;
use crate::tls::{Connectors, Tls};

/// How the proxy listens and connects.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where they connect over TLS, and with which certificates.
    pub tls: Option<(SocketAddr, Arc<Tls>)>,
    /// How workers are reached over TLS.
    pub worker_tls: Connectors,
    /// Threads, at least 1.
    pub threads: usize,
    /// How long connecting to a worker may take.
    pub connect_timeout: Duration,
    /// Idle connections to workers are closed after this long.
    pub pool_idle_timeout: Duration,
    /// How much clients may take.
    pub limits: ClientLimits,
    /// Who may ask.
    pub keys: Arc<ApiKeys>,
    /// How long requests may finish once the proxy is told to end.
    pub drain_timeout: Duration,
    /// Over how long connections leave once a successor accepts.
    pub close_spread: Duration,
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
    ending: Ending,
    sockets: Vec<StdListener>,
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
        self.ending.end();
        self.wait();
    }

    /// Its listening sockets, for a successor.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn sockets(&self) -> io::Result<Vec<StdListener>> {
        self.sockets.iter().map(StdListener::try_clone).collect()
    }

    /// Accepts nothing more, since a successor does: connections leave one after the other.
    pub fn hand_over(&mut self) {
        self.ending.hand_over();
        self.sockets.clear();
    }

    /// Waits until all connections have ended. Blocks.
    pub fn wait(self) {
        // Connections that nobody would accept must not wait in them.
        drop(self.sockets);
        for thread in self.threads {
            // A thread that panicked has told so itself.
            drop(thread.join());
        }
    }
}

/// Takes the listeners that are among `inherited`, binds the others, and starts the threads.
///
/// # Errors
/// When the address is taken or a thread cannot be started.
pub fn listen(
    options: &ProxyOptions,
    inherited: &mut Vec<StdListener>,
    router: &Arc<Router>,
) -> io::Result<Listening> {
    let plain = bind_all(options.listen, inherited, options.threads)?;
    let address = plain[0].local_addr()?;
    let mut doors: Vec<_> =
        plain.into_iter().map(|listener| Door { listener, tls: None }).collect();
    let plain_doors = doors.len();
    if let Some((address, tls)) = &options.tls {
        let listeners = bind_all(*address, inherited, options.threads)?;
        let door = |listener| Door { listener, tls: Some(Arc::clone(tls)) };
        doors.extend(listeners.into_iter().map(door));
    }
    let sockets = doors.iter().map(|door| door.listener.try_clone()).collect::<io::Result<_>>()?;
    let mut threads_doors: Vec<Vec<Door>> = (0..options.threads).map(|_| Vec::new()).collect();
    for (number, door) in doors.into_iter().enumerate() {
        // Each thread has one of either kind at least.
        let number = if door.tls.is_none() { number } else { number - plain_doors };
        threads_doors[number % options.threads].push(door);
    }
    let ending = Ending::new(options.close_spread);
    let clients = Clients::new(options.limits.clone());
    let mut threads = Vec::new();
    for (number, doors) in threads_doors.into_iter().enumerate() {
        let (options, router, ending) = (options.clone(), Arc::clone(router), ending.clone());
        let clients = Arc::clone(&clients);
        let name = format!("proxy-{number}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = run_thread(doors, &options, router, clients, &ending) {
                tracing::error!(%error, "a proxy thread could not start");
            }
        })?);
    }
    Ok(Listening { clients, address, ending, sockets, threads })
}

/// One thread's listener on one of the addresses.
struct Door {
    listener: StdListener,
    tls: Option<Arc<Tls>>,
}

/// Listeners on `address`, at least `count`: those among the inherited that are, and new ones.
fn bind_all(
    address: SocketAddr,
    inherited: &mut Vec<StdListener>,
    count: usize,
) -> io::Result<Vec<StdListener>> {
    let is_there = |listener: &mut StdListener| listener.local_addr().ok() == Some(address);
    let mut found: Vec<_> = inherited.extract_if(.., is_there).collect();
    if found.is_empty() {
        found.push(bind_first(address)?);
    }
    let address = found[0].local_addr()?;
    while found.len() < count {
        found.push(bind_shared(address)?);
    }
    Ok(found)
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
    ending: &Ending,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    let sender = Rc::new(Sender {
        pool: Pool::new(options.worker_tls.clone()),
        connect_timeout: options.connect_timeout,
        tasks: TaskTracker::new(),
    });
    let thread = Rc::new(Thread {
        newest: Newest::of(&router),
        router,
        sender,
        clients,
        keys: Arc::clone(&options.keys),
        observers: Rc::new(options.observers.clone()),
    });
    runtime.block_on(async {
        let doors = doors
            .into_iter()
            .map(|door| Ok((TcpListener::from_std(door.listener)?, door.tls)))
            .collect::<io::Result<Vec<_>>>()?;
        let sender = Rc::clone(&thread.sender);
        let idle = options.pool_idle_timeout;
        let sweeper = tokio::task::spawn_local(async move {
            loop {
                // Engines may want theirs closed sooner than `idle`; zero must not keep the thread busy.
                tokio::time::sleep((idle / 4).clamp(SWEEP.0, SWEEP.1)).await;
                sender.pool.close_idle(idle);
            }
        });
        let accepting =
            doors.iter().map(|(listener, tls)| accept(listener, tls.as_ref(), &thread, ending));
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
    ending: &Ending,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.told() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(presence) = thread.clients.connected() else {
                    if tls.is_none() {
                        // Whatever of it does not go out at once is not worth waiting for.
                        drop(stream.try_write(TOO_MANY_CONNECTIONS));
                    }
                    continue;
                };
                let (tls, ending) = (tls.cloned(), ending.clone());
                let of_connection = Rc::clone(thread);
                thread.sender.tasks.spawn_local(async move {
                    serve_connection((stream, peer), tls, of_connection, ending).await;
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
