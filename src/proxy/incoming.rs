//! A client's body where it comes from, whatever the client speaks, and why it may not come whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use thiserror::Error;

use super::downstream::ClientBody;

/// Why a client's body did not come whole.
#[derive(Debug, Error)]
pub(super) enum BodyError {
    /// The connection broke off.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It cannot be understood, or in more than one way.
    #[error("the client sent {0}")]
    Malformed(&'static str),
    /// Over HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
    /// Its trailers frame it, which they cannot.
    #[error("the trailers have a field that frames the message")]
    Trailers,
    /// It is not sent before we say that it is wanted, which we cannot.
    #[error("the client waits for a 100 (Continue)")]
    Expectation,
    /// Too little came for as long as the limit says.
    #[error("the client sent too little of its body for {0:?}")]
    Stalled(Duration),
    /// It names its model twice.
    #[error("the body has more than one \"model\"")]
    ModelTwice,
    /// It has more bytes than may be.
    #[error("the body has more than {0} bytes")]
    TooLarge(u64),
}

/// Whether a body over HTTP/2 of which no more comes is all there. hyper takes a reset without an error for its end,
/// since one may follow a whole answer (RFC 9113, 8.1); it may as well break off anything.
pub(super) fn came_whole(body: &hyper::body::Incoming) -> bool {
    body.is_end_stream() || body.size_hint().exact() == Some(0)
}

/// A client's body where it comes from.
#[derive(Debug)]
pub(super) enum Incoming {
    /// There is none.
    Nothing,
    /// The rest of what its connection was asked.
    Http1(ClientBody),
    /// A stream.
    Http2(hyper::body::Incoming),
}

impl Incoming {
    /// The next piece; `None` behind the last.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Nothing => Poll::Ready(None),
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => match std::task::ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(frame) => Poll::Ready(Some(frame.map_err(BodyError::from))),
                None if came_whole(body) => Poll::Ready(None),
                None => Poll::Ready(Some(Err(BodyError::Io(io::ErrorKind::UnexpectedEof.into())))),
            },
        }
    }

    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Http1(body) => body.is_over(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    /// Whether its connection may have hundreds of others at the same time.
    pub(super) fn is_one_of_many(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// How much more there is, where that is known.
    pub(super) fn rest(&self) -> Option<u64> {
        match self {
            Self::Nothing => Some(0),
            Self::Http1(body) => body.rest(),
            Self::Http2(body) => body.size_hint().exact(),
        }
    }
}
