//! The body of what a client gets.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::answer::{AnswerError, UpstreamBody};
use super::snapshot::Signature;
use super::tunnel::Tunnel;

/// What a client gets: the proxy's own words, or a worker's, passed on as they come.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// All of it.
    Full(Option<Bytes>),
    /// A worker's.
    Upstream(Box<UpstreamBody>),
    /// Behind the head both sides speak something else.
    Tunnel(Box<Tunnel>),
}

impl ResponseBody {
    /// Nobody gets it: the request goes on elsewhere.
    pub(super) fn supersede(mut self) {
        if let Self::Upstream(body) = &mut self {
            body.supersede();
        }
    }

    /// What the client is told of the worker whose answer it is.
    pub(super) fn signature(&self) -> Option<Signature<'_>> {
        match self {
            Self::Full(_) => None,
            Self::Upstream(body) => body.signature(),
            Self::Tunnel(tunnel) => Some(tunnel.exchange.backend().signature()),
        }
    }

    pub(super) fn full(bytes: Bytes) -> Self {
        Self::Full(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(body) => body.poll_for_client(cx),
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Upstream(body) => body.size_hint(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}
