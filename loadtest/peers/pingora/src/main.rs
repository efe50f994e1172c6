//! `pingora-peer LISTEN WORKER…`: a reverse proxy on pingora, with one thread, that sends each request to the
//! worker with the fewest outstanding requests. It is as small as such a proxy can be: no routing by the
//! body, no metrics, no queue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Worker {
    address: SocketAddr,
    outstanding: AtomicUsize,
}

struct Proxy {
    workers: Vec<Arc<Worker>>,
}

/// A request that is counted until it is dropped.
struct Counted(Arc<Worker>);

impl Counted {
    fn new(worker: &Arc<Worker>) -> Self {
        worker.outstanding.fetch_add(1, Ordering::Relaxed);
        Self(worker.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Option<Counted>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn upstream_peer(&self, _: &mut Session, counted: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        *counted = None; // A retry is not outstanding where it failed.
        let least = self.workers.iter().min_by_key(|w| w.outstanding.load(Ordering::Relaxed));
        let worker = least.ok_or_else(|| Error::new(ErrorType::HTTPStatus(503)))?;
        *counted = Some(Counted::new(worker));
        Ok(Box::new(HttpPeer::new(worker.address, false, String::new())))
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: pingora-peer LISTEN WORKER…";
    let listen = arguments.next().expect(usage);
    let workers: Vec<_> = arguments
        .map(|address| Arc::new(Worker { address: address.parse().expect(usage), outstanding: AtomicUsize::new(0) }))
        .collect();
    assert!(!workers.is_empty(), "{usage}");

    // The keep-alive pool holds every connection that a run opens.
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 8192, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Proxy { workers });
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever();
}
