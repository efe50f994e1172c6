//! Bodies in and out: reading a request in constant memory, writing a plain answer whose head and body
//! leave in one write (its first data is ready when the head is, and hyper then joins them).

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

use super::desk::Ticket;

/// The body of every answer.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, Broken>;

/// The worker breaks its connection here, because it was told to. Never seen by a client.
#[derive(Debug, thiserror::Error)]
#[error("the worker breaks the connection as told")]
pub(super) struct Broken;

/// Most bytes kept of a request's body.
pub(super) const KEPT_BYTES: usize = 8 << 20;

/// A request's body, or only its length if there is more of it than was to be kept.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    /// Its length in bytes.
    pub(super) length: u64,
    /// All of it.
    pub(super) kept: Option<Bytes>,
}

/// Reads a body to its end and keeps it if it is no longer than `keep`.
///
/// # Errors
/// The body's own: its client broke off, or framed it wrongly.
pub(super) async fn read<B>(mut body: B, keep: usize) -> Result<Arrived, B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut length = 0_u64;
    let mut kept = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len() as u64;
        if length <= keep as u64 {
            kept.extend_from_slice(&data);
        } else {
            kept = BytesMut::new();
        }
    }
    let kept = (length <= keep as u64).then(|| kept.freeze());
    Ok(Arrived { length, kept })
}

/// A plain body. With a ticket, its last byte completes the request; `cut` breaks off halfway.
pub(super) fn plain(bytes: Bytes, ticket: Option<Ticket>, cut: bool) -> AnswerBody {
    let length = bytes.len() as u64;
    Measured::new(Source::Bytes(bytes), length, ticket, cut).boxed_unsync()
}

/// A body of `length` times `x`, in constant memory.
pub(super) fn padding(length: u64, ticket: Option<Ticket>, cut: bool) -> AnswerBody {
    Measured::new(Source::Padding, length, ticket, cut).boxed_unsync()
}

static PADDING: [u8; 64 * 1024] = [b'x'; 64 * 1024];

#[derive(Debug)]
enum Source {
    Bytes(Bytes),
    Padding,
}

/// A body of a length that is promised in the head.
#[derive(Debug)]
struct Measured {
    source: Source,
    promised: u64,
    /// How much of what is promised is yet to be sent before the end, or the break.
    left: u64,
    /// What is promised and will never be sent.
    missing: u64,
    about_to_break: bool,
    ticket: Option<Ticket>,
}

impl Measured {
    fn new(source: Source, length: u64, mut ticket: Option<Ticket>, cut: bool) -> Self {
        let missing = if cut { length.div_ceil(2) } else { 0 };
        if length == 0
            && let Some(ticket) = ticket.take()
        {
            ticket.complete(); // An empty body is never asked for its frames.
        }
        let left = length - missing;
        Self { source, promised: length, left, missing, about_to_break: false, ticket }
    }

    fn take(&mut self) -> Bytes {
        let take = usize::try_from(self.left).unwrap_or(usize::MAX);
        let data = match &mut self.source {
            Source::Bytes(bytes) => bytes.split_to(take.min(bytes.len())),
            Source::Padding => Bytes::from_static(&PADDING[..take.min(PADDING.len())]),
        };
        self.left -= data.len() as u64;
        self.promised -= data.len() as u64;
        data
    }
}

impl Body for Measured {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.left > 0 {
            let data = self.take();
            if self.promised == 0
                && let Some(ticket) = self.ticket.take()
            {
                ticket.complete();
            }
            Poll::Ready(Some(Ok(Frame::data(data))))
        } else if self.missing == 0 {
            Poll::Ready(None)
        } else if self.about_to_break {
            if let Some(ticket) = self.ticket.take() {
                ticket.fail();
            }
            Poll::Ready(Some(Err(Broken)))
        } else {
            // One pause, in which hyper writes out what it has; at an error it would drop that.
            self.about_to_break = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    fn is_end_stream(&self) -> bool {
        self.promised == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::Arc;

    use http_body_util::StreamBody;

    use super::super::desk::Desk;
    use super::*;

    fn request(chunks: &[&'static [u8]]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let frames: VecDeque<_> =
            chunks.iter().map(|c| Ok(Frame::data(Bytes::from_static(c)))).collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn keeps_a_body_up_to_the_limit_and_only_counts_beyond() {
        let Ok(whole) = read(request(&[b"ab", b"cd"]), 4).await;
        assert_eq!(whole.length, 4);
        assert_eq!(whole.kept.as_deref(), Some(&b"abcd"[..]));
        let Ok(longer) = read(request(&[b"ab", b"cd", b"e"]), 4).await;
        assert_eq!(longer.length, 5);
        assert_eq!(longer.kept, None);
    }

    #[tokio::test]
    async fn padding_has_the_length_it_promises() {
        let body = padding(200_001, None, false);
        assert_eq!(body.size_hint().exact(), Some(200_001));
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        assert_eq!(bytes.len(), 200_001);
        assert!(bytes.iter().all(|byte| *byte == b'x'));
    }

    #[tokio::test]
    async fn the_last_byte_completes_the_request() {
        let desk = Arc::new(Desk::new(None, 0));
        let mut body = padding(70_000, Some(desk.start()), false);
        body.frame().await.expect("a frame").expect("data");
        assert_eq!(desk.counts().completed, 0);
        body.frame().await.expect("a frame").expect("data");
        assert_eq!(desk.counts().completed, 1);
        drop(padding(70_000, Some(desk.start()), false));
        assert_eq!(desk.counts().cancelled, 1);
        drop(plain(Bytes::new(), Some(desk.start()), false));
        assert_eq!(desk.counts().completed, 2);
    }

    #[tokio::test]
    async fn a_cut_body_promises_more_than_it_sends() {
        let desk = Arc::new(Desk::new(None, 0));
        let mut body = plain(Bytes::from_static(b"abcde"), Some(desk.start()), true);
        assert_eq!(body.size_hint().exact(), Some(5));
        let half = body.frame().await.expect("a frame").expect("data").into_data();
        assert_eq!(half.expect("data"), "ab");
        assert!(body.frame().await.expect("a frame").is_err());
        assert_eq!(desk.counts().failed, 1);
    }
}
