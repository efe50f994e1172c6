//! What clients may take of the proxy as a whole: connections, memory for bodies that are read ahead, and
//! time between two pieces of a body. Reaching a limit is a metric and a clear answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::telemetry::clients::ClientTraffic;
use crate::types::Network;

/// Bodies up to this many bytes are not worth counting one by one where a connection has but one at a time: the limit
/// on connections bounds them.
const SMALL_BODY: u64 = 64 << 10;

/// How much clients may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at once, and requests over HTTP/2 at once.
    pub connections: u64,
    /// Bytes of one request's body that are read before they are sent on.
    pub body: u64,
    /// The same over all requests.
    pub bodies: u64,
    /// Bytes of one request's body at all.
    pub whole_body: Option<u64>,
    /// Streams at once on one HTTP/2 connection.
    pub streams: u32,
    /// How long a connection may wait for a request's head, idle or in the middle of it.
    pub idle_timeout: Duration,
    /// How long a client may send nothing, or next to nothing, in the middle of a request's body.
    pub body_timeout: Duration,
    /// How long it may take nothing of an answer that waits for it; zero: for ever.
    pub write_timeout: Duration,
    /// Bytes of a request's head.
    pub head: u32,
    /// Hops before this one that are believed what they say of a request's origin.
    pub trusted: Vec<Network>,
}

/// The limits, and what is taken now; shared by all threads.
#[derive(Debug)]
pub struct Clients {
    pub(super) limits: ClientLimits,
    connections: AtomicU64,
    streams: AtomicU64,
    held: AtomicU64,
    traffic: ClientTraffic,
}

impl Clients {
    pub(super) fn new(limits: ClientLimits) -> Arc<Self> {
        let traffic = ClientTraffic::new();
        let (connections, streams, held) = Default::default();
        Arc::new(Self { limits, connections, streams, held, traffic })
    }

    /// Takes in one more connection, unless there are as many as may be.
    pub(super) fn connected(self: &Arc<Self>) -> Option<Presence> {
        self.one_more(|clients| &clients.connections)
    }

    /// The same for a request over HTTP/2, which takes as much as a connection does: there may be hundreds on one.
    pub(super) fn asked_by_stream(self: &Arc<Self>) -> Option<Presence> {
        self.one_more(|clients| &clients.streams)
    }

    fn one_more(self: &Arc<Self>, count: fn(&Self) -> &AtomicU64) -> Option<Presence> {
        let before = count(self).fetch_add(1, Ordering::Relaxed);
        // Made at once, so that its drop counts down on either way.
        let presence = Presence { clients: Arc::clone(self), count };
        if before >= self.limits.connections {
            self.traffic.connection_refused();
            return None;
        }
        Some(presence)
    }

    /// Whether bodies of `length` (if it is known) are counted in the memory for bodies, where a connection has but
    /// one at a time.
    pub(super) fn counts(length: Option<u64>) -> bool {
        length.is_none_or(|bytes| bytes > SMALL_BODY)
    }

    /// Whether no more is to be read ahead.
    pub(super) fn bodies_are_full(&self) -> bool {
        let full = self.held.load(Ordering::Relaxed) >= self.limits.bodies;
        if full {
            self.traffic.bodies_full();
        }
        full
    }

    pub(super) fn handshake_failed(&self) {
        self.traffic.handshake_failed();
    }

    /// A client has flooded its connection.
    pub(super) fn flooded(&self) {
        self.traffic.flooded();
    }

    /// A client took nothing of its answer.
    pub(super) fn not_taken(&self) {
        self.traffic.not_taken();
    }

    pub(super) fn timed_out(&self) {
        self.traffic.timed_out();
    }

    /// Brings the gauges up to date.
    pub fn refresh_gauges(&self) {
        self.traffic
            .set(self.connections.load(Ordering::Relaxed), self.held.load(Ordering::Relaxed));
    }
}

/// One client's connection, or request over HTTP/2, while it lasts.
#[derive(Debug)]
pub(super) struct Presence {
    clients: Arc<Clients>,
    count: fn(&Clients) -> &AtomicU64,
}

impl Drop for Presence {
    fn drop(&mut self) {
        (self.count)(&self.clients).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body's share of the memory for bodies.
#[derive(Debug, Default)]
pub(super) struct Held {
    clients: Option<Arc<Clients>>,
    bytes: u64,
}

impl Held {
    /// Some more is here.
    pub(super) fn more(&mut self, clients: Option<&Arc<Clients>>, bytes: u64) {
        let Some(clients) = clients else { return };
        clients.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        self.clients.get_or_insert_with(|| Arc::clone(clients));
    }

    /// Some of it has been passed on.
    pub(super) fn less(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        if let Some(clients) = &self.clients {
            clients.held.fetch_sub(bytes, Ordering::Relaxed);
            self.bytes -= bytes;
        }
    }

    /// The same once more, for a copy: it outlives the original.
    pub(super) fn again(&self) -> Self {
        let mut again = Self::default();
        again.more(self.clients.as_ref(), self.bytes);
        again
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.less(self.bytes);
    }
}
