//! A request as workers get it, which may have to be sent more than once. It is moved as a box from one who sends
//! it to the next: head and body in place take hundreds of bytes of each future that they pass through.

use bytes::BytesMut;
use http::header::{EXPECT, HOST, HeaderValue, TE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Uri, Version};

use super::body::RequestBody;
use super::headers;
use super::http1::write_request;
use super::names::Names;
use super::origin::Mark;
use super::snapshot::Backend;
use super::told::LOAD_METRICS_FORMAT;
use crate::types::Protocol;

/// Head and body, and what the client said that depends on the worker.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) parts: Parts,
    pub(super) body: RequestBody,
    /// Of the fields that it came with.
    pub(super) names: Names,
    /// What its head has still to say.
    mark: Option<Mark>,
    names_host: bool,
    takes_trailers: bool,
    asks_for_load: bool,
    /// What the worker is asked to switch to, whatever else the client wrote.
    pub(super) upgrade: Option<HeaderValue>,
}

impl Draft {
    /// As it came, its fields with these names.
    pub(super) fn new(parts: Parts, names: Names, mark: Option<Mark>, body: RequestBody) -> Self {
        Self {
            parts,
            body,
            names,
            mark,
            names_host: false,
            takes_trailers: false,
            asks_for_load: false,
            upgrade: None,
        }
    }

    /// Makes the head one for workers, but for what depends on which worker that is; `path` if not its own.
    pub(super) fn prepare(&mut self, path: Option<PathAndQuery>) {
        let Parts { headers, uri, version, .. } = &mut self.parts;
        headers::set_host(headers, uri);
        if *version == Version::HTTP_2 {
            headers::join_cookies(headers);
        }
        let path = path.or_else(|| rooted(uri.path_and_query()?));
        *uri = path.map_or_else(Uri::default, Uri::from);
        // HTTP/1.0 knows no switch (RFC 9110, 7.8).
        let switches = *version == Version::HTTP_11;
        self.upgrade = switches.then(|| headers::wanted_upgrade(headers, self.names)).flatten();
        // One of HTTP/1.1 has been refused without it.
        self.names_host = *version == Version::HTTP_11 || headers.contains_key(HOST);
        *version = Version::HTTP_11;
        self.takes_trailers = headers::takes_trailers(headers, self.names);
        headers::strip_hop_by_hop(headers, self.names);
        if self.names.may_have(EXPECT) {
            // The body is read here, whether or not the worker would have wanted it.
            headers.remove(EXPECT);
        }
        self.frame();
    }

    /// Has its head say all that it has to, for those who read it.
    pub(super) fn say_mark(&mut self) {
        if let Some(mark) = self.mark.take() {
            mark.insert(&mut self.parts.headers);
            self.names = Names::of(&self.parts.headers);
        }
    }

    /// Writes its head for a worker that speaks HTTP/1.1.
    pub(super) fn write_head(&self, into: &mut BytesMut) {
        let Parts { method, uri, headers, .. } = &self.parts;
        write_request(method, uri, headers, into);
        if let Some(mark) = &self.mark {
            mark.write(into);
        }
        into.extend_from_slice(b"\r\n");
    }

    /// Says how the body is told from what follows it, and what is to be switched to: HTTP/1.1 alone does.
    fn frame(&mut self) {
        let headers = &mut self.parts.headers;
        headers::set_request_framing(&self.parts.method, headers, self.body.length());
        if let Some(protocol) = &self.upgrade {
            headers::set_upgrade(headers, protocol.clone());
        }
    }

    /// Addresses it to this worker, and no longer to the one before.
    pub(super) fn address(&mut self, backend: &Backend) {
        if backend.route.protocol != Protocol::Http1 {
            self.say_mark();
        }
        let headers = &mut self.parts.headers;
        if !self.names_host {
            headers.insert(HOST, backend.host_header.clone());
        }
        // Over HTTP/2 it is not about one connection alone: gRPC workers ask for it.
        match (self.takes_trailers, backend.route.protocol) {
            (false, _) => {}
            (true, Protocol::Http1) => drop(headers.remove(TE)),
            (true, _) => drop(headers.insert(TE, HeaderValue::from_static("trailers"))),
        }
        let asks = backend.route.load_metrics;
        if let Some(format) = asks {
            headers.insert(LOAD_METRICS_FORMAT, HeaderValue::from_static(format.as_str()));
        } else if self.asks_for_load {
            headers.remove(LOAD_METRICS_FORMAT);
        }
        self.asks_for_load = asks.is_some();
    }
}

/// A target's path and query, which begins with a slash even where the path is empty (RFC 9112, 3.2.1).
fn rooted(target: &PathAndQuery) -> Option<PathAndQuery> {
    if target.as_str().starts_with('?') {
        // It is shown with one.
        return PathAndQuery::try_from(target.to_string()).ok();
    }
    Some(target.clone())
}
