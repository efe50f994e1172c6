//! A request's body in the hands of hyper, which sends it over HTTP/2 and keeps to itself why it did not come
//! whole: whoever waits for the answer is told of a stream that was reset, by ourselves. Here that is noted; and
//! what is taken of it stays here, so that a request that the worker did not look at can be sent once more.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::body::{BodyError, RequestBody};
use crate::proxy::headers;

/// What is taken of a body whose rest is still to come is kept up to here, for as long as there is no answer: as much
/// as HTTP/2 lets a stream send at first (RFC 9113, 6.9.2), what waits in hyper behind it, and a piece. A worker takes no
/// more of a request that it does not look at.
const MOST_TAKEN: usize = 256 << 10;

/// A body that two hold: hyper, and whoever waits for the answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    /// None where it broke off, or was taken back.
    body: Option<RequestBody>,
    /// What was taken of it and did not stay there; none where that is too much, or not needed any more.
    taken: Option<Taken>,
    fault: Option<BodyError>,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: BytesMut,
    trailers: Option<HeaderMap>,
}

impl Sent {
    pub(super) fn new(mut body: RequestBody) -> Self {
        body.keep();
        let taken = (!body.is_kept()).then(Taken::default);
        Self(Rc::new(RefCell::new(State { body: Some(body), taken, fault: None })))
    }

    /// Why it did not come whole, where the client is to blame.
    pub(super) fn fault(&self) -> Option<BodyError> {
        self.0.borrow_mut().fault.take()
    }

    /// All of it once more, if all of it was here from the beginning.
    pub(super) fn copy(&self) -> Option<RequestBody> {
        self.0.borrow().body.as_ref().filter(|body| body.is_kept())?.try_copy()
    }

    /// It as it was, if that is still here. Nobody else can send it any more.
    pub(super) fn take_back(&self) -> Option<RequestBody> {
        let mut state = self.0.borrow_mut();
        let taken = state.taken.take();
        let mut body = state.body.take_if(|body| body.is_kept() || taken.is_some())?;
        let Taken { bytes, trailers } = taken.unwrap_or_default();
        body.put_back((!bytes.is_empty()).then(|| bytes.freeze()).into_iter());
        if let Some(trailers) = trailers {
            body.put_back_trailers(trailers);
        }
        Some(body)
    }

    /// The worker has looked at it: what of it is still to come goes there alone.
    pub(super) fn was_seen(&self) {
        self.0.borrow_mut().taken = None;
    }

    /// It will not be sent again.
    pub(super) fn forget(&self) {
        self.was_seen();
        if let Some(body) = &mut self.0.borrow_mut().body {
            body.forget();
        }
    }
}

impl State {
    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(taken) = &mut self.taken else { return };
        match frame.data_ref() {
            Some(data) if taken.bytes.len() + data.len() > MOST_TAKEN => self.taken = None,
            Some(data) => taken.bytes.extend_from_slice(data),
            None => taken.trailers = frame.trailers_ref().cloned(),
        }
    }

    fn fails(&mut self, error: BodyError) -> h2::Error {
        (self.body, self.fault) = (None, Some(error));
        Reason::CANCEL.into()
    }
}

impl Body for Sent {
    type Data = Bytes;
    /// What the stream is reset with.
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let state = &mut *self.0.borrow_mut();
        let Some(body) = &mut state.body else {
            return Poll::Ready(Some(Err(Reason::CANCEL.into())));
        };
        Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)) {
            // The h2 crate would refuse them, and hyper leave the stream open.
            Some(Ok(frame)) if frame.trailers_ref().is_some_and(has_fields_of_a_hop) => {
                Some(Err(state.fails(BodyError::Trailers)))
            }
            Some(Ok(frame)) => {
                state.note(&frame);
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(state.fails(error))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.borrow().body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

fn has_fields_of_a_hop(trailers: &HeaderMap) -> bool {
    trailers.keys().any(|name| headers::ends_at_this_hop(name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use http::HeaderValue;
    use http_body_util::BodyExt;

    fn next(sent: &mut Sent) -> Result<Frame<Bytes>, h2::Error> {
        sent.frame().now_or_never().expect("is here").expect("a frame")
    }

    fn of_pieces(pieces: &[&'static [u8]]) -> Sent {
        let mut body = RequestBody::empty();
        body.put_back(pieces.iter().map(|piece| Bytes::from_static(piece)));
        Sent::new(body)
    }

    #[test]
    fn what_was_taken_comes_back() {
        let mut sent = of_pieces(&[b"one", b"two"]);
        assert_eq!(next(&mut sent).expect("a piece").into_data().expect("data"), "one");
        let copy = sent.copy().expect("all of it is here");
        let mut again = Sent::new(sent.take_back().expect("it was not looked at"));
        for mut body in [Sent::new(copy), again.clone()] {
            assert_eq!(next(&mut body).expect("a piece").into_data().expect("data"), "one");
        }
        assert_eq!(next(&mut again).expect("a piece").into_data().expect("data"), "two");
        // Its end is not that of the request.
        assert!(!sent.is_end_stream());
        assert_eq!(next(&mut sent).expect_err("a reset").reason(), Some(Reason::CANCEL));
        assert!(sent.fault().is_none(), "which is nobody's fault");
    }

    #[test]
    fn trailers_that_cannot_be_sent_end_the_stream() {
        for name in ["connection", "keep-alive", "proxy-connection", "te", "upgrade"] {
            let mut body = RequestBody::empty();
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static(name),
                HeaderValue::from_static("x"),
            )]);
            body.put_back_trailers(trailers);
            let mut sent = Sent::new(body);
            assert_eq!(next(&mut sent).expect_err("a reset").reason(), Some(Reason::CANCEL));
            assert!(matches!(sent.fault(), Some(BodyError::Trailers)), "{name}");
        }
    }
}
