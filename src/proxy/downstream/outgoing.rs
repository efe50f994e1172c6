//! An answer on its way to a client that speaks HTTP/1.1: how its body is told from what follows, and its pieces as
//! fast as the client takes them.

use std::fmt::Write;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, DATE, HeaderMap};
use http::response::Parts;
use http::{StatusCode, Version};
use http_body::{Body, Frame};

use super::client::{Client, Seen};
use super::date;
use crate::proxy::body::ResponseBody;
use crate::proxy::http1::{MOST_AT_ONCE, USUAL_HEAD, WriteBuffer, write_field, write_status};
use crate::proxy::snapshot::Signature;

/// What an answer has to know of its request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) version: Version,
    pub(super) is_head: bool,
    /// Whether the connection may be kept for another.
    pub(super) keeps_alive: bool,
    pub(super) takes_trailers: bool,
}

/// How an answer's body goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// There is none.
    Nothing,
    /// As many bytes as its head says.
    Plain,
    Chunked {
        trailers: bool,
    },
    /// Up to the end of the connection.
    UntilClose,
}

/// An answer's body on its way out.
pub(super) struct Answer {
    body: ResponseBody,
    shape: Shape,
    /// How many bytes more its head promises, where it does.
    left: Option<u64>,
    /// Whether all of it came, once no more comes.
    end: Option<bool>,
}

impl Shape {
    pub(super) fn of(parts: &Parts, body: &ResponseBody, asked: &Asked) -> Self {
        let is_empty = asked.is_head
            || parts.status.is_informational()
            || parts.status == StatusCode::NO_CONTENT
            || parts.status == StatusCode::NOT_MODIFIED;
        match body.size_hint().exact() {
            _ if is_empty => Self::Nothing,
            Some(_) => Self::Plain,
            None if asked.version == Version::HTTP_10 => Self::UntilClose,
            None => Self::Chunked { trailers: asked.takes_trailers },
        }
    }
}

/// Writes a head; `connection` is what it says of what becomes of that.
pub(super) fn write_head(
    into: &mut BytesMut,
    (version, parts): (Version, &Parts),
    (shape, body): (Shape, &ResponseBody),
    connection: Option<&str>,
) {
    into.reserve(USUAL_HEAD);
    write_status(version, parts.status, into);
    let (mut has_length, mut has_date) = (false, false);
    for (name, value) in &parts.headers {
        has_length |= *name == CONTENT_LENGTH;
        has_date |= *name == DATE;
        write_field(name.as_str(), value.as_bytes(), into);
    }
    if let Some(signature) = body.signature() {
        write_signature(signature, into);
    }
    match (shape, body.size_hint().exact()) {
        (Shape::Chunked { .. }, _) => into.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // A HEAD's answer has the length of what a GET would get, if it says so itself.
        (Shape::Nothing, Some(0)) => {}
        // RFC 9110, 8.6.
        _ if parts.status == StatusCode::NO_CONTENT => {}
        (Shape::Plain | Shape::Nothing, Some(length)) if !has_length => {
            let _ = write!(into, "content-length: {length}\r\n");
        }
        _ => {}
    }
    if !has_date {
        date::write(into);
    }
    if let Some(connection) = connection {
        write_field("connection", connection.as_bytes(), into);
    }
    into.extend_from_slice(b"\r\n");
}

/// Writes which worker answers.
pub(super) fn write_signature(signature: Signature<'_>, into: &mut BytesMut) {
    for (name, value) in signature {
        write_field(name.as_str(), value.as_bytes(), into);
    }
}

impl Answer {
    pub(super) fn new(body: ResponseBody, shape: Shape) -> Self {
        let left = if shape == Shape::Plain { body.size_hint().exact() } else { None };
        Self { body, shape, left, end: None }
    }

    /// Moves it as fast as the client takes it; ready when all of it is out. False: it broke off.
    pub(super) fn poll_pass_on(
        &mut self,
        cx: &mut Context<'_>,
        client: &Client,
    ) -> Poll<io::Result<bool>> {
        loop {
            let has_stopped = self.fill(cx, client);
            let mut client = client.state();
            let sent = client.poll_send_in_burst(cx)?;
            if let Some(whole) = self.end {
                return sent.map(|()| Ok(whole));
            }
            if sent.is_ready() && has_stopped {
                client.out.rest();
            }
            match client.poll_watch(cx) {
                Poll::Ready(Seen::Left) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                // It may be what a worker waits for.
                Poll::Ready(Seen::Bytes) => {}
                Poll::Pending if sent.is_ready() && !has_stopped => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes what there is of it, until enough waits for the client. Whether there is no more for now.
    fn fill(&mut self, cx: &mut Context<'_>, client: &Client) -> bool {
        while self.end.is_none() {
            if client.state().out.len() >= MOST_AT_ONCE {
                return false;
            }
            if self.shape == Shape::Nothing {
                self.end = Some(true);
                break;
            }
            // It may read the request's body: the client is nobody's meanwhile.
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return true };
            let out = &mut client.state().out;
            match frame {
                Some(Ok(frame)) => self.push(frame, out),
                Some(Err(error)) => {
                    tracing::debug!(%error, "an answer breaks off");
                    self.end = Some(false);
                }
                None => self.finish(None, out),
            }
            if self.end.is_none() && self.body.is_end_stream() {
                self.finish(None, out);
            }
        }
        true
    }

    fn push(&mut self, frame: Frame<Bytes>, out: &mut WriteBuffer) {
        match (frame.into_data(), self.shape) {
            (Ok(data), _) if data.is_empty() => {}
            (Ok(data), Shape::Chunked { .. }) => out.push_chunk(data),
            (Ok(data), _) => self.push_plain(data, out),
            (Err(frame), Shape::Chunked { trailers: true }) => {
                self.finish(frame.into_trailers().ok().as_ref(), out);
            }
            (Err(_), _) => self.finish(None, out),
        }
    }

    /// Never more than the head promises: that would be read as the next answer.
    fn push_plain(&mut self, data: Bytes, out: &mut WriteBuffer) {
        match self.left.map(|left| left.checked_sub(data.len() as u64)) {
            Some(None) => self.end = Some(false),
            Some(left) => {
                self.left = left;
                out.push(data);
            }
            None => out.push(data),
        }
    }

    fn finish(&mut self, trailers: Option<&HeaderMap>, out: &mut WriteBuffer) {
        self.end = Some(self.left.unwrap_or(0) == 0);
        if matches!(self.shape, Shape::Chunked { .. }) {
            out.push_last_chunk(trailers);
        }
    }
}
