//! `[proxy]` and `[admin]`: the listeners and what the data plane needs beside the routing table.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::access;
use super::limits::{self, Span};
use super::reader::{Located, Table};
use super::values::ByteCount;
use super::worker_tls;
use crate::types::tls::{CertificateFiles, TlsFiles, WorkerTls};
use crate::types::{Address, Network};

/// The data plane's own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where clients' requests arrive.
    pub listen: SocketAddr,
    /// Where they arrive over TLS, and with which certificates.
    pub tls: Option<TlsConfig>,
    /// Worker threads, one runtime each; at least 1.
    pub threads: usize,
    /// How long connecting to an instance may take.
    pub connect_timeout: Duration,
    /// How long an unused connection to an instance is kept.
    pub pool_idle_timeout: Duration,
    /// Bytes of a request's body that may be held to find out which model it asks for.
    pub max_body_buffer: usize,
    /// The same over all requests; of small bodies it is not counted.
    pub max_body_buffers: u64,
    /// Bytes that a request's body may have; `None`: as many as it likes.
    pub max_body_bytes: Option<u64>,
    /// Clients' connections at once.
    pub max_connections: u64,
    /// Streams at once on one HTTP/2 connection of a client.
    pub max_streams: u32,
    /// How long a client's connection may wait for a request's head.
    pub idle_timeout: Duration,
    /// How long a client may send nothing in the middle of a body; zero: for ever.
    pub body_timeout: Duration,
    /// How long a client may take nothing of an answer that waits for it; zero: for ever.
    pub write_timeout: Duration,
    /// Bytes of a request's head.
    pub max_header_bytes: u32,
    /// Hops before the proxy that are believed what they say of a request's origin.
    pub trusted_proxies: Vec<Network>,
    /// The manager's management API, for a proxy that runs alone.
    pub manager: Option<Address>,
    /// The file with the token that the manager wants; `None`: it wants none.
    pub manager_token_file: Option<PathBuf>,
    /// How it is spoken to where its address is `https`.
    pub manager_tls: WorkerTls,
    /// Where the last routing table is kept, for a start without a manager.
    pub table_path: PathBuf,
    /// How long running requests may take to finish once the proxy has been told to end.
    pub drain_timeout: Duration,
    /// The Unix socket where a new binary takes the listening sockets over; `None`: it cannot.
    pub takeover: Option<PathBuf>,
    /// Over how long connections leave once it has.
    pub close_spread: Duration,
}

/// The listener for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it shows and asks for.
    pub files: TlsFiles,
}

/// The management listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where metrics, health and the management API are served.
    pub listen: SocketAddr,
    /// It speaks TLS, with these; whoever shows a certificate from their `client_ca` needs no token.
    pub tls: Option<TlsFiles>,
    /// The file with the tokens of whoever may use it; without it and a `client_ca`, everybody may.
    pub token_file: Option<PathBuf>,
    /// Metrics need no token.
    pub public_metrics: bool,
}

const MAX_BODY_BUFFER: u64 = 1 << 30;
const MAX_BODY_BUFFERS: u64 = 1 << 40;
const MAX_BODY_BYTES: u64 = 1 << 50;
/// hyper reads in pieces of 8 KiB at least.
const HEADER_BYTES: RangeInclusive<ByteCount> = ByteCount(8 << 10)..=ByteCount(1 << 20);

/// What both sections say. Then `pool_idle_timeout` and its place, if the file has it: what goes with it depends
/// on the engines; and the keys of clients, which may name endpoints.
pub(super) type Read = (ProxyConfig, AdminConfig, Option<Located<Duration>>, access::Found);

/// Reads both sections, because their listeners must not clash.
pub(super) fn read(root: &Table<'_>) -> Read {
    let proxy = root.table("proxy");
    let admin = root.table("admin");
    let listen = proxy.as_ref().and_then(|table| table.get::<SocketAddr>("listen"));
    let admin_listen = admin.as_ref().and_then(|table| table.get::<SocketAddr>("listen"));
    let proxy_address = listen.as_ref().map_or(([127, 0, 0, 1], 8080).into(), |found| found.value);
    let admin_address =
        admin_listen.as_ref().map_or(([127, 0, 0, 1], 8081).into(), |found| found.value);
    let sink = root.sink();
    let tls = proxy.as_ref().and_then(|table| tls_config(table, &[proxy_address, admin_address]));
    if let Some(at) = admin_listen.as_ref().or(listen.as_ref()).map(|found| found.at)
        && clash(proxy_address, admin_address)
    {
        sink.error(
            at,
            format!(
                "`listen` of [admin] ({admin_address}) and of [proxy] ({proxy_address}) take the same \
                 port; give them different ones"
            ),
        );
    }
    let pool_idle =
        proxy.as_ref().and_then(|table| limits::duration_at(table, "pool_idle_timeout", Span::Any));
    let mut config = proxy_config(proxy.as_ref(), proxy_address, tls, pool_idle.as_ref());
    if let (Some(table), Some(manager)) = (&proxy, &config.manager)
        && !manager.is_tls()
        && manager.authority() == admin_address.to_string()
        && let Some(found) = table.get::<Address>("manager")
    {
        sink.error(
            found.at,
            format!(
                "`manager` is this proxy's own [admin] address ({admin_address}); name the manager's, \
                 and give this proxy another `listen` in [admin]"
            ),
        );
    }
    let keys = proxy.as_ref().map(access::read).unwrap_or_default();
    let admin = admin_config(admin.as_ref(), admin_address);
    // One token for all of a fleet is the usual case.
    config.manager_token_file = config.manager_token_file.or_else(|| admin.token_file.clone());
    (config, admin, pool_idle, keys)
}

fn admin_config(table: Option<&Table<'_>>, listen: SocketAddr) -> AdminConfig {
    let file = table.and_then(|table| table.get::<PathBuf>("token_file"));
    let public = table.and_then(|table| table.get::<bool>("public_metrics"));
    let tls = table.and_then(|table| table.table("tls"));
    let tls = tls.map(|table| tls_files(&table, "[[admin.tls.certificate]]"));
    let is_guarded = file.is_some() || tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if let (Some(table), false) = (table, is_guarded) {
        if !listen.ip().to_canonical().is_loopback()
            && let Some(found) = table.get::<SocketAddr>("listen")
        {
            let rule = format!(
                "`listen` of [admin] ({listen}) is open to other machines, and whoever reaches it could change the \
                 fleet: set `token_file`, or `client_ca` in [admin.tls], or listen on 127.0.0.1"
            );
            table.sink().error(found.at, rule);
        }
        if public.as_ref().is_some_and(|found| found.value) {
            table.warn_at(
                "public_metrics",
                "`public_metrics` does nothing without `token_file`, or `client_ca` in [admin.tls]"
                    .into(),
            );
        }
    }
    AdminConfig {
        listen,
        tls,
        token_file: file.map(|found| found.value),
        public_metrics: public.is_some_and(|found| found.value),
    }
}

fn proxy_config(
    table: Option<&Table<'_>>,
    listen: SocketAddr,
    tls: Option<TlsConfig>,
    pool_idle: Option<&Located<Duration>>,
) -> ProxyConfig {
    let span = |key, span: Span, default: u64| {
        let default = Duration::from_secs(default);
        table.map_or(default, |table| limits::duration_or(table, key, span, default))
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = table.and_then(|table| table.get_in("threads", 1..=1_024, u32::to_string));
    let bytes = |key, most: u64| {
        let range = ByteCount(0)..=ByteCount(most);
        let found = table.and_then(|table| table.get_in(key, range, |count| show_bytes(*count)));
        found.map(|found| found.value.0)
    };
    let connections =
        table.and_then(|table| table.get_in("max_connections", 1..=10_000_000, u32::to_string));
    let manager = table.and_then(|table| table.get::<Address>("manager")).map(|found| found.value);
    ProxyConfig {
        listen,
        tls,
        threads: threads.map_or(cores, |found| found.value as usize),
        connect_timeout: span("connect_timeout", Span::Positive, 2),
        pool_idle_timeout: pool_idle.map_or(Duration::from_secs(3), |found| found.value),
        max_body_buffer: bytes("max_body_buffer", MAX_BODY_BUFFER)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(1 << 20),
        max_body_buffers: bytes("max_body_buffers", MAX_BODY_BUFFERS).unwrap_or(256 << 20),
        max_body_bytes: bytes("max_body_bytes", MAX_BODY_BYTES).filter(|most| *most > 0),
        max_connections: connections.map_or(50_000, |found| u64::from(found.value)),
        max_streams: table.map_or(256, |table| table.number_or("max_streams", 1..=1_000_000, 256)),
        idle_timeout: span("idle_timeout", Span::Positive, 60),
        body_timeout: span("body_timeout", Span::Any, 60),
        write_timeout: span("write_timeout", Span::Any, 60),
        max_header_bytes: table
            .and_then(|table| table.get_in("max_header_bytes", HEADER_BYTES, |c| show_bytes(*c)))
            .and_then(|found| u32::try_from(found.value.0).ok())
            .unwrap_or(64 << 10),
        trusted_proxies: table
            .and_then(|table| table.list("trusted_proxies"))
            .map(|found| found.value.into_iter().map(|network| network.value).collect())
            .unwrap_or_default(),
        manager_tls: table
            .and_then(|table| {
                worker_tls::read_of_manager(table, manager.as_ref().is_some_and(Address::is_tls))
            })
            .unwrap_or_default(),
        manager,
        manager_token_file: table
            .and_then(|table| table.get("manager_token_file"))
            .map(|found| found.value),
        table_path: table
            .map_or_else(default_table, |table| table.or("table_path", default_table())),
        drain_timeout: span("drain_timeout", Span::Any, 600),
        takeover: table.and_then(|table| table.get("takeover")).map(|found| found.value),
        close_spread: span("close_spread", Span::Any, 10),
    }
}

/// `[proxy.tls]`. `taken` are the other listeners.
fn tls_config(proxy: &Table<'_>, taken: &[SocketAddr]) -> Option<TlsConfig> {
    let table = proxy.table("tls")?;
    let needs = "a port of its own for clients that speak TLS, such as \"0.0.0.0:8443\"";
    let listen = table.need::<SocketAddr>("listen", needs);
    if let Some(listen) = &listen
        && let Some(other) = taken.iter().find(|other| clash(listen.value, **other))
    {
        let rule = format!("`listen` of [proxy.tls] ({}) takes the port of {other}", listen.value);
        table.sink().error(listen.at, rule);
    }
    let files = tls_files(&table, "[[proxy.tls.certificate]]");
    Some(TlsConfig { listen: listen?.value, files })
}

/// The files of a listener; `title` is how each certificate's table is headed.
fn tls_files(table: &Table<'_>, title: &str) -> TlsFiles {
    table.must_have("certificate", &format!("at least one: {title}"));
    let certificates: Vec<_> = table
        .tables("certificate", title)
        .iter()
        .filter_map(|table| {
            let chain = table.need::<PathBuf>("chain", "the file with the certificate, in PEM");
            let key = table.need::<PathBuf>("key", "the file with its private key, in PEM");
            Some(CertificateFiles { chain: chain?.value, key: key?.value })
        })
        .collect();
    let client_ca = table.get::<PathBuf>("client_ca").map(|found| found.value);
    TlsFiles { certificates, client_ca }
}

fn show_bytes(count: ByteCount) -> String {
    format!("{} bytes", count.0)
}

fn default_table() -> PathBuf {
    "forebay-table.json".into()
}

/// Whether both cannot be bound at once. Port 0 takes any free port and never clashes.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_ip
}

#[cfg(test)]
mod tests {
    #[test]
    fn listeners_clash_on_the_same_port_where_their_addresses_meet() {
        let clash = |a: &str, b: &str| {
            super::clash(a.parse().expect("address"), b.parse().expect("address"))
        };
        assert!(clash("127.0.0.1:80", "127.0.0.1:80"));
        assert!(clash("0.0.0.0:80", "127.0.0.1:80"));
        assert!(clash("127.0.0.1:80", "[::]:80"));
        assert!(!clash("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!clash("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"));
    }
}
