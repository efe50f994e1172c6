//! HTTP/1.1 to workers, by a client of our own ([`connection`]): each connection is driven by whoever
//! uses it, in the request's own task; while it is idle nobody does, and it is looked at once before it is used
//! again. hyper's client has the task and the pieces of a request meet in channels, and holds 16 KiB of buffers
//! and as much of channel for each connection, idle streams included.

mod connection;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::dial;
use crate::decision::engine;
use crate::proxy::snapshot::Backend;
use crate::runtime::clock;
use crate::tls::Connectors;
use crate::types::Generation;

pub(in crate::proxy) use connection::Connection;

/// Idle connections that one thread keeps to one backend.
const MOST_IDLE: usize = 256;

/// One thread's idle connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: RefCell<BTreeMap<Generation, Vec<Idle>>>,
}

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
    /// How long the engine lets us keep it.
    most: Duration,
}

/// A new connection to the backend.
///
/// # Errors
/// The connection's, or `TimedOut` after `limit`.
pub(super) async fn open(
    backend: &Backend,
    tls: &Connectors,
    limit: Duration,
) -> io::Result<Connection> {
    let dialed = tokio::time::timeout(limit, dial(backend, tls)).await;
    Ok(Connection::new(dialed.map_err(io::Error::from)??))
}

impl Pool {
    /// The connection to the backend that was used last and still works.
    pub(super) fn take(&self, backend: &Backend) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&backend.route.generation)?;
        while let Some(Idle { mut connection, .. }) = connections.pop() {
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end at `since`.
    pub(super) fn give_back(
        &self,
        backend: &Backend,
        mut connection: Box<Connection>,
        since: Instant,
    ) {
        if !connection.is_reusable() {
            return;
        }
        connection.rests();
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(backend.route.generation).or_default();
        if connections.len() < MOST_IDLE {
            let most = engine::pool_idle(backend.route.engine);
            connections.push(Idle { connection, since, most });
        }
    }

    /// Closes what has been idle for longer than `limit`, or than its engine lets it.
    pub(super) fn close_idle(&self, limit: Duration) {
        let now = clock::monotonic();
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|idle| now.duration_since(idle.since) < limit.min(idle.most));
            !connections.is_empty()
        });
    }
}
