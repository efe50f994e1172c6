//! One connection to a worker, and the exchange under way on it. Whoever waits for the answer moves the
//! request's bytes too: there is no task of its own, no channel, and no buffer while nothing comes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, Method, Response};
use http_body::{Body, Frame};
use smallvec::SmallVec;
use tokio::io::AsyncWrite;

use super::super::UpstreamError;
use crate::proxy::draft::Draft;
use crate::proxy::headers::Length;
use crate::proxy::http1::{self, Burst, Framing, Head, ReadBuffer, WriteBuffer};
use crate::proxy::socket::Socket;

/// Interim answers (1xx) before the final one.
const MOST_INTERIM: u32 = 64;

/// One connection to a worker. Dropping it closes it.
#[derive(Debug)]
pub(in crate::proxy) struct Connection {
    socket: Socket,
    /// What the worker has sent and nobody has taken.
    read: ReadBuffer,
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
            read: ReadBuffer::default(),
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
    /// [`UpstreamError`]. What can be sent again is here ([`Connection::take_request`]).
    pub(in crate::proxy) async fn send(
        &mut self,
        request: Box<Draft>,
    ) -> Result<Response<()>, UpstreamError> {
        let answers_head = request.parts.method == Method::HEAD;
        self.request = Outgoing::new(request);
        std::future::poll_fn(|cx| self.poll_head(cx, answers_head)).await
    }

    /// Whether not a byte of the request was written.
    pub(in crate::proxy) fn is_unsent(&self) -> bool {
        !self.request.is_begun
    }

    /// The request once more, if it was not sent, or kept.
    pub(in crate::proxy) fn take_request(&mut self) -> Option<Box<Draft>> {
        self.request.take_back()
    }

    /// The request will not be sent again.
    pub(in crate::proxy) fn forget_request(&mut self) {
        self.request.forget();
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        answers_head: bool,
    ) -> Poll<Result<Response<()>, UpstreamError>> {
        self.poll_request(cx)?;
        loop {
            if !self.read.bytes.is_empty()
                && let Some(head) = http1::read_response(&mut self.read.bytes, answers_head)
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
            if ready!(self.read.poll_fill(&mut self.socket, cx))? == 0 {
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
            match self.framing.take(&mut self.read.bytes) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Err(error) => return Poll::Ready(Some(Err(UpstreamError::Malformed(error)))),
                Ok(None) if self.is_over() => return Poll::Ready(None),
                Ok(None) => {}
            }
            match self.read.poll_fill(&mut self.socket, cx) {
                Poll::Ready(Ok(0)) if matches!(self.framing, Framing::UntilClose) => {
                    self.framing = Framing::Over;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(UpstreamError::Closed))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether the answer has no more.
    pub(in crate::proxy) fn is_over(&self) -> bool {
        self.framing.is_over()
    }

    /// How much more of the answer there is, where that is known.
    pub(in crate::proxy) fn rest(&self) -> Option<u64> {
        self.framing.rest()
    }

    /// Whether another request may be sent on it, as far as is known without a look at the socket.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_over() && self.keeps_alive && self.is_sent() && self.read.bytes.is_empty()
    }

    fn is_sent(&self) -> bool {
        self.request.is_whole && self.request.bytes.is_empty() && !self.is_unflushed
    }

    /// Nobody uses it for a while: it keeps no more memory than it needs.
    pub(super) fn rests(&mut self) {
        self.read.rest();
    }

    /// Looks at an idle connection: whether another request can be sent on it.
    pub(super) fn is_usable(&mut self) -> bool {
        // Nobody waits for it while it is idle, so nobody needs to be woken. Whatever comes unasked, be it the
        // connection's end, is no answer to what is to be sent.
        let mut nobody = Context::from_waker(Waker::noop());
        self.read.is_silent(&self.socket)
            || self.read.poll_fill(&mut self.socket, &mut nobody).is_pending()
    }

    /// After the worker has agreed to switch protocols: the bare connection, and what the worker has said
    /// on it already.
    pub(in crate::proxy) fn into_switched(self) -> (Socket, Bytes) {
        (self.socket, self.read.bytes.freeze())
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
            if self.request.burst.poll(cx).is_pending() {
                return Ok(());
            }
            self.is_unflushed = true;
            match self.request.bytes.poll_write(&mut self.socket, cx) {
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
    bytes: WriteBuffer,
    burst: Burst,
    /// With what of its body is not in `bytes` yet, or kept.
    draft: Option<Box<Draft>>,
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
    fn new(draft: Box<Draft>) -> Self {
        let parts = &draft.parts;
        let here = match draft.body.length() {
            Length::Exact(bytes) => usize::try_from(bytes).map_or(0, http1::copied),
            _ => 0,
        };
        let mut outgoing =
            Self { is_chunked: parts.headers.contains_key(TRANSFER_ENCODING), ..Self::default() };
        outgoing.bytes.write_with(|into| {
            into.reserve(http1::USUAL_HEAD + here);
            draft.write_head(into);
        });
        if draft.body.is_end_stream() {
            // Its head may promise chunks all the same: one without the last would take the next request's bytes.
            outgoing.end(None);
        }
        outgoing.draft = Some(draft);
        outgoing
    }

    /// Takes on what there is of the body.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), UpstreamError> {
        while !self.is_whole && self.bytes.len() < http1::MOST_AT_ONCE {
            let Some(draft) = &mut self.draft else { break };
            match Pin::new(&mut draft.body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Err(error))) => return Err(error.into()),
                Poll::Ready(Some(Ok(frame))) => self.take(frame),
                Poll::Ready(None) => self.end(None),
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
                    self.bytes.push_chunk(data);
                } else {
                    self.bytes.push(data);
                    self.is_whole =
                        self.draft.as_ref().is_none_or(|draft| draft.body.is_end_stream());
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().ok();
                self.end(trailers.as_ref());
                if let (Some(trailers), Some(draft)) = (trailers, &mut self.draft) {
                    draft.body.put_back_trailers(trailers);
                }
            }
        }
    }

    /// There is no more of the body.
    fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.is_whole = true;
        if self.is_chunked {
            self.bytes.push_last_chunk(trailers);
        }
    }

    fn note_written(&mut self) {
        self.is_begun = true;
        self.restorable.clear();
        if self.bytes.is_empty() {
            self.burst.end();
        }
        if self.is_whole {
            self.bytes.rest();
        }
        self.drop_what_is_sent();
    }

    /// Nobody needs it any more.
    fn drop_what_is_sent(&mut self) {
        if self.is_whole && !self.is_kept() {
            self.draft = None;
        }
    }

    fn is_kept(&self) -> bool {
        self.draft.as_ref().is_some_and(|draft| draft.body.is_kept())
    }

    fn forget(&mut self) {
        if let Some(draft) = &mut self.draft {
            draft.body.forget();
        }
        self.drop_what_is_sent();
    }

    fn give_up(&mut self, error: io::Error) {
        self.bytes = WriteBuffer::default();
        self.is_whole = true;
        self.drop_what_is_sent();
        self.failure = Some(error);
    }

    /// Why there is no answer.
    fn failure(&mut self) -> UpstreamError {
        self.failure.take().map_or(UpstreamError::Closed, UpstreamError::Io)
    }

    /// It as it was, if not a byte of it was written, or it was kept.
    fn take_back(&mut self) -> Option<Box<Draft>> {
        if self.is_begun && !self.is_kept() {
            return None;
        }
        let mut draft = self.draft.take()?;
        draft.body.put_back(self.restorable.drain(..));
        Some(draft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::body::RequestBody;
    use crate::proxy::names::Names;
    use http::{HeaderValue, Request};

    fn outgoing(request: http::request::Builder) -> Outgoing {
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let names = Names::of(&parts.headers);
        Outgoing::new(Box::new(Draft::new(parts, names, None, RequestBody::empty())))
    }

    #[test]
    fn chunks_that_are_promised_end_even_if_there_are_none() {
        let chunked =
            Request::post("/x").header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        let bytes = outgoing(chunked).bytes.take_all();
        assert!(bytes.ends_with(b"chunked\r\n\r\n0\r\n\r\n"), "{bytes:?}");
        let bytes = outgoing(Request::get("/x")).bytes.take_all();
        assert_eq!(bytes, b"GET /x HTTP/1.1\r\n\r\n");
    }
}
