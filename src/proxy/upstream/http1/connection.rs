//! One connection to a worker, and the exchange under way on it. Whoever waits for the answer moves the
//! request's bytes too: there is no task of its own, no channel, and no buffer while nothing comes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::TRANSFER_ENCODING;
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use smallvec::SmallVec;
use tokio::io::AsyncWrite;
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::super::{Socket, UpstreamError};
use super::message::{self, Framing, Head, Part};
use crate::proxy::body::RequestBody;

/// Bytes of a request that wait for the worker in our memory, about.
const MOST_OUTGOING: usize = 64 << 10;
/// How much is read at once: less of what comes in small pieces, more of what comes in large ones.
const LEAST_READ: usize = 8 << 10;
const MOST_READ: usize = 64 << 10;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// Interim answers (1xx) before the final one.
const MOST_INTERIM: u32 = 64;

/// One connection to a worker. Dropping it closes it.
#[derive(Debug)]
pub(in crate::proxy) struct Connection {
    socket: Socket,
    /// What the worker has sent and nobody has taken.
    read: BytesMut,
    next_read: usize,
    request: Outgoing,
    /// Some of it may be in the layer below.
    is_unflushed: bool,
    /// What is left of the answer.
    framing: Framing,
    /// May be used again once the answer is over.
    keeps_alive: bool,
    has_served: bool,
}

impl Connection {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            read: BytesMut::new(),
            next_read: LEAST_READ,
            request: Outgoing::default(),
            is_unflushed: false,
            framing: Framing::Over,
            keeps_alive: true,
            has_served: false,
        }
    }

    /// Whether it has served a request before.
    pub(in crate::proxy) fn is_reused(&self) -> bool {
        self.has_served
    }

    /// Sends a request and waits for the head of the answer; on with the request's body goes whoever polls for
    /// the answer's. Dropping the future and the connection cancels the request.
    ///
    /// # Errors
    /// With the request as it was, if not a byte of it was written.
    pub(in crate::proxy) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<()>, (Option<Box<Request<RequestBody>>>, UpstreamError)> {
        let (parts, body) = request.into_parts();
        self.request = Outgoing::new(&parts, body);
        let answers_head = parts.method == Method::HEAD;
        let answered = std::future::poll_fn(|cx| self.poll_head(cx, answers_head)).await;
        answered.map_err(|error| {
            let unsent = self.request.take_back();
            (unsent.map(|body| Box::new(Request::from_parts(parts, body))), error)
        })
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        answers_head: bool,
    ) -> Poll<Result<Response<()>, UpstreamError>> {
        self.poll_request(cx)?;
        loop {
            if !self.read.is_empty()
                && let Some(head) = message::read_head(&mut self.read, answers_head)
                    .map_err(UpstreamError::Malformed)?
            {
                if !head.status.is_informational() || head.status.as_u16() == 101 {
                    return Poll::Ready(Ok(self.begin_answer(head)));
                }
                self.request.interim += 1;
                if self.request.interim > MOST_INTERIM {
                    return Poll::Ready(Err(UpstreamError::Malformed(
                        "interim answers without end",
                    )));
                }
                continue;
            }
            if ready!(self.poll_read(cx))? == 0 {
                return Poll::Ready(Err(self.request.failure()));
            }
        }
    }

    fn begin_answer(&mut self, head: Head) -> Response<()> {
        self.has_served = true;
        self.framing = head.framing;
        self.keeps_alive &= head.keeps_alive;
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }

    /// The next piece of the answer's body; `None` behind the last.
    pub(in crate::proxy) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        if let Err(error) = self.poll_request(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.take_frame() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Err(error) => return Poll::Ready(Some(Err(UpstreamError::Malformed(error)))),
                Ok(None) if self.is_over() => return Poll::Ready(None),
                Ok(None) => {}
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) if matches!(self.framing, Framing::UntilClose) => {
                    self.framing = Framing::Over;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(UpstreamError::Closed))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Pending => {
                    // A stream may be silent for long: it holds no memory meanwhile.
                    if self.read.is_empty() {
                        self.read = BytesMut::new();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// What is here of the answer.
    fn take_frame(&mut self) -> Result<Option<Frame<Bytes>>, message::Malformed> {
        match &mut self.framing {
            Framing::Over => Ok(None),
            Framing::Length(_) | Framing::UntilClose if self.read.is_empty() => Ok(None),
            Framing::Length(left) => {
                let data = message::take(&mut self.read, left);
                if *left == 0 {
                    self.framing = Framing::Over;
                }
                Ok(Some(Frame::data(data)))
            }
            Framing::UntilClose => Ok(Some(Frame::data(self.read.split().freeze()))),
            Framing::Chunked(chunks) => match chunks.take(&mut self.read)? {
                Part::NotYet => Ok(None),
                Part::Data(data) => Ok(Some(Frame::data(data))),
                Part::Trailers(trailers) => {
                    self.framing = Framing::Over;
                    Ok(Some(Frame::trailers(trailers)))
                }
                Part::Over => {
                    self.framing = Framing::Over;
                    Ok(None)
                }
            },
        }
    }

    /// Whether the answer has no more.
    pub(in crate::proxy) fn is_over(&self) -> bool {
        matches!(self.framing, Framing::Over)
    }

    /// How much more of the answer there is, where that is known.
    pub(in crate::proxy) fn rest(&self) -> Option<u64> {
        match self.framing {
            Framing::Over => Some(0),
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// Whether another request may be sent on it, as far as is known without a look at the socket.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_over() && self.keeps_alive && self.is_sent() && self.read.is_empty()
    }

    fn is_sent(&self) -> bool {
        self.request.is_whole && self.request.bytes.is_empty() && !self.is_unflushed
    }

    /// Nobody uses it for a while: it keeps no more memory than it needs.
    pub(super) fn rests(&mut self) {
        if self.read.capacity() > LEAST_READ {
            self.read = BytesMut::new();
        }
    }

    /// Looks at an idle connection: whether another request can be sent on it.
    pub(super) fn is_usable(&mut self) -> bool {
        // Nobody waits for it while it is idle, so nobody needs to be woken. Whatever comes unasked, be it the
        // connection's end, is no answer to what is to be sent.
        self.poll_read(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// After the worker has agreed to switch protocols: the bare connection, and what the worker has said
    /// on it already.
    pub(in crate::proxy) fn into_switched(self) -> (Socket, Bytes) {
        (self.socket, self.read.freeze())
    }

    /// Reads what there is, at least one byte; 0 is the connection's end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Socket::Plain(socket) = &self.socket {
            // So that there is memory only for what is there.
            ready!(socket.poll_read_ready(cx))?;
        }
        if self.read.capacity() - self.read.len() < self.next_read / 4 {
            self.read.reserve(self.next_read);
        }
        let room = self.read.capacity() - self.read.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.read))?;
        self.next_read = if read >= room {
            (self.next_read * 2).min(MOST_READ)
        } else if read < self.next_read / 4 {
            (self.next_read / 2).max(LEAST_READ)
        } else {
            self.next_read
        };
        Poll::Ready(Ok(read))
    }

    /// Sends on what there is of the request, as far as the worker takes it.
    ///
    /// # Errors
    /// The client's body broke off, or nothing could be written at all. One that cannot be written any more may
    /// have been answered already: that is seen when the answer is read.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), UpstreamError> {
        while !self.is_sent() {
            self.request.fill(cx)?;
            if self.request.bytes.is_empty() {
                self.is_unflushed &= Pin::new(&mut self.socket).poll_flush(cx).is_pending();
                return Ok(());
            }
            self.is_unflushed = true;
            match poll_write_buf(Pin::new(&mut self.socket), cx, &mut self.request.bytes) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(written)) if written > 0 => self.request.note_written(),
                Poll::Ready(written) => {
                    let error = written.err().unwrap_or(io::ErrorKind::WriteZero.into());
                    self.keeps_alive = false;
                    if !self.request.is_begun {
                        return Err(error.into());
                    }
                    self.request.give_up(error);
                    self.is_unflushed = false;
                }
            }
        }
        Ok(())
    }
}

/// A request on its way.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Pieces,
    /// What is not in `bytes` yet.
    body: Option<RequestBody>,
    is_chunked: bool,
    /// All of the body is in `bytes`.
    is_whole: bool,
    /// Some of it was written.
    is_begun: bool,
    /// Pieces of the body in `bytes`, until something was written.
    restorable: SmallVec<[Bytes; 2]>,
    /// Why no more of it can be written.
    failure: Option<io::Error>,
    /// Interim answers to it so far.
    interim: u32,
}

impl Outgoing {
    fn new(parts: &Parts, body: RequestBody) -> Self {
        let mut head = Vec::with_capacity(1_024);
        message::write_head(&parts.method, &parts.uri, &parts.headers, &mut head);
        let mut outgoing =
            Self { is_chunked: parts.headers.contains_key(TRANSFER_ENCODING), ..Self::default() };
        outgoing.bytes.push(head.into());
        if body.is_end_stream() {
            // Its head may promise chunks all the same: one without the last would take the next request's bytes.
            outgoing.end(LAST_CHUNK.to_vec());
        }
        outgoing.body = Some(body);
        outgoing
    }

    /// Takes on what there is of the body.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), UpstreamError> {
        while !self.is_whole && self.bytes.length < MOST_OUTGOING {
            let Some(body) = &mut self.body else { break };
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Err(error))) => return Err(error.into()),
                Poll::Ready(Some(Ok(frame))) => self.take(frame),
                Poll::Ready(None) => self.end(LAST_CHUNK.to_vec()),
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                if !self.is_begun {
                    self.restorable.push(data.clone());
                }
                if self.is_chunked {
                    self.bytes.push(format!("{:x}\r\n", data.len()).into());
                    self.bytes.push(data);
                    self.bytes.push(Bytes::from_static(b"\r\n"));
                } else {
                    self.bytes.push(data);
                    self.is_whole = self.body.as_ref().is_none_or(Body::is_end_stream);
                }
            }
            Err(frame) => {
                let mut last = b"0\r\n".to_vec();
                if let Ok(trailers) = frame.into_trailers() {
                    message::write_fields(&trailers, &mut last);
                    if let Some(body) = &mut self.body {
                        body.put_back_trailers(trailers);
                    }
                }
                self.end(last);
            }
        }
    }

    /// There is no more of the body.
    fn end(&mut self, last: Vec<u8>) {
        self.is_whole = true;
        if self.is_chunked {
            self.bytes.push(last.into());
        }
    }

    fn note_written(&mut self) {
        self.is_begun = true;
        self.restorable.clear();
        if self.is_whole {
            self.body = None;
        }
    }

    fn give_up(&mut self, error: io::Error) {
        (self.bytes, self.body) = (Pieces::default(), None);
        self.is_whole = true;
        self.failure = Some(error);
    }

    /// Why there is no answer.
    fn failure(&mut self) -> UpstreamError {
        self.failure.take().map_or(UpstreamError::Closed, UpstreamError::Io)
    }

    /// The body as it was, if not a byte of the request was written.
    fn take_back(&mut self) -> Option<RequestBody> {
        let mut body = self.body.take().filter(|_| !self.is_begun)?;
        body.put_back(self.restorable.drain(..));
        Some(body)
    }
}

/// Bytes in several pieces, written in one go.
#[derive(Debug, Default)]
struct Pieces {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        self.pieces.push_back(piece);
    }

    fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [io::IoSlice<'a>]) -> usize {
        let pieces = into.iter_mut().zip(&self.pieces);
        pieces.map(|(slice, piece)| *slice = io::IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.length -= count;
        while let Some(first) = self.pieces.front_mut() {
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn chunks_that_are_promised_end_even_if_there_are_none() {
        let chunked =
            Request::post("/x").header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        let (parts, ()) = chunked.body(()).expect("a request").into_parts();
        let mut outgoing = Outgoing::new(&parts, RequestBody::empty());
        let bytes = outgoing.bytes.copy_to_bytes(outgoing.bytes.remaining());
        assert!(bytes.ends_with(b"chunked\r\n\r\n0\r\n\r\n"), "{bytes:?}");
        let (parts, ()) = Request::get("/x").body(()).expect("a request").into_parts();
        let mut outgoing = Outgoing::new(&parts, RequestBody::empty());
        let bytes = outgoing.bytes.copy_to_bytes(outgoing.bytes.remaining());
        assert_eq!(bytes, "GET /x HTTP/1.1\r\n\r\n");
    }
}
