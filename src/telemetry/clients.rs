//! What clients take of the proxy, and where they reach its limits.

use metrics::{Counter, Gauge, Unit, counter, gauge};

use super::traffic::NO_INSTANCE_TYPE;

/// Clients' connections that are open.
pub const CONNECTIONS: &str = "forebay_client_connections";
/// Connections that were refused because there were too many.
pub const CONNECTIONS_REFUSED: &str = "forebay_client_connections_refused_total";
/// TLS handshakes that came to nothing.
pub const HANDSHAKES_FAILED: &str = "forebay_tls_handshake_failures_total";
/// Memory taken by bodies that are read before they are sent on; of small ones it is not counted.
pub const BODY_BUFFER: &str = "forebay_request_body_buffer_bytes";
/// Times that a body was not read ahead because that memory was full.
pub const BODY_BUFFER_FULL: &str = "forebay_request_body_buffer_full_total";
/// Requests that ended because their client sent nothing more of the body.
pub const BODY_TIMEOUTS: &str = "forebay_request_body_timeouts_total";
/// Connections and streams that ended because their client took nothing of an answer.
pub const WRITE_TIMEOUTS: &str = "forebay_client_write_timeouts_total";

/// HTTP/2 connections that were ended for a flood of frames.
pub const FLOODS: &str = "forebay_http2_floods_total";

/// The handles.
#[derive(Debug)]
pub struct ClientTraffic {
    connections: Gauge,
    refused: Counter,
    handshakes_failed: Counter,
    held: Gauge,
    full: Counter,
    timeouts: Counter,
    write_timeouts: Counter,
    floods: Counter,
}

impl ClientTraffic {
    /// Describes the metrics and looks the handles up.
    #[must_use]
    pub fn new() -> Self {
        metrics::describe_gauge!(CONNECTIONS, Unit::Count, "Clients' connections that are open.");
        metrics::describe_counter!(
            CONNECTIONS_REFUSED,
            Unit::Count,
            "Clients' connections that were refused because max_connections were open."
        );
        metrics::describe_counter!(
            HANDSHAKES_FAILED,
            Unit::Count,
            "TLS handshakes with clients that failed or took too long."
        );
        metrics::describe_gauge!(
            BODY_BUFFER,
            Unit::Bytes,
            "Memory taken by larger request bodies that are read before they are sent on."
        );
        metrics::describe_counter!(
            BODY_BUFFER_FULL,
            Unit::Count,
            "Times that a request body was not read ahead because max_body_buffers was reached."
        );
        metrics::describe_counter!(
            BODY_TIMEOUTS,
            Unit::Count,
            "Requests whose client sent too little of the body for body_timeout."
        );
        metrics::describe_counter!(
            WRITE_TIMEOUTS,
            Unit::Count,
            "Connections and streams whose client took nothing of an answer for write_timeout."
        );
        metrics::describe_counter!(
            FLOODS,
            Unit::Count,
            "HTTP/2 connections that were ended because of a flood of frames that ask for nothing."
        );
        Self {
            floods: counter!(FLOODS, "InstanceType" => NO_INSTANCE_TYPE),
            connections: gauge!(CONNECTIONS, "InstanceType" => NO_INSTANCE_TYPE),
            refused: counter!(CONNECTIONS_REFUSED, "InstanceType" => NO_INSTANCE_TYPE),
            handshakes_failed: counter!(HANDSHAKES_FAILED, "InstanceType" => NO_INSTANCE_TYPE),
            held: gauge!(BODY_BUFFER, "InstanceType" => NO_INSTANCE_TYPE),
            full: counter!(BODY_BUFFER_FULL, "InstanceType" => NO_INSTANCE_TYPE),
            timeouts: counter!(BODY_TIMEOUTS, "InstanceType" => NO_INSTANCE_TYPE),
            write_timeouts: counter!(WRITE_TIMEOUTS, "InstanceType" => NO_INSTANCE_TYPE),
        }
    }

    /// A connection too many.
    pub fn connection_refused(&self) {
        self.refused.increment(1);
    }

    /// A client and we could not agree on TLS.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.increment(1);
    }

    /// A body is not read ahead.
    pub fn bodies_full(&self) {
        self.full.increment(1);
    }

    /// A client sent nothing more.
    pub fn timed_out(&self) {
        self.timeouts.increment(1);
    }

    /// A client has flooded its connection.
    pub fn flooded(&self) {
        self.floods.increment(1);
    }

    /// A client took nothing of its answer.
    pub fn not_taken(&self) {
        self.write_timeouts.increment(1);
    }

    /// What is taken now.
    pub fn set(&self, connections: u64, held: u64) {
        self.connections.set(connections as f64);
        self.held.set(held as f64);
    }
}

impl Default for ClientTraffic {
    fn default() -> Self {
        Self::new()
    }
}
