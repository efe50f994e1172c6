//! The two body types of the request path: what goes to a worker, and what goes to a client ([`ResponseBody`]).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::head;
use super::headers::Length;
use super::limits::{Clients, Held};
use super::model_field::{Finder, ModelField};
use crate::runtime::clock;
use crate::telemetry::request::BodyMeter;

pub(super) use super::incoming::{BodyError, Incoming};
pub(super) use super::response::ResponseBody;

/// A client's body: what has been read of it so far, and the rest.
#[derive(Debug)]
pub(super) struct RequestBody {
    read: VecDeque<Bytes>,
    buffered: u64,
    /// The part that is still to come; `None` once all has been read.
    rest: Option<Incoming>,
    trailers: Option<http::HeaderMap>,
    /// How much of what is here was taken, where it stays here all the same.
    taken: Option<usize>,
    /// What the head said.
    length: Length,
    meter: BodyMeter,
    /// How many more bytes there may be.
    room: u64,
    /// Looks whether it names its model once more.
    finder: Option<Box<Finder>>,
    clients: Option<Arc<Clients>>,
    /// Whether what of it is here is counted as held in memory.
    is_counted: bool,
    held: Held,
    patience: Option<Pin<Box<Sleep>>>,
    /// Silence is no fault.
    is_patient: bool,
    /// The client may wait for a word that it does not get.
    expects_continue: bool,
    /// Since when the client is waited for.
    waiting_since: Option<Instant>,
    /// How long it was waited for before that, and what came, since patience last began.
    waited: Duration,
    came: u64,
}

/// Less than so many bytes a second is no way to send a body (Kestrel's `MinRequestBodyDataRate`).
const LEAST_RATE: u64 = 240;

/// How long a client over HTTP/2 may wait to be told that its body is wanted: longer than those do that send it then all
/// the same.
const EXPECTATION: Duration = Duration::from_secs(3);

/// Pieces below this size are put together.
const SMALL: usize = 4 << 10;

impl RequestBody {
    pub(super) fn new(incoming: Incoming, meter: BodyMeter, clients: &Arc<Clients>) -> Self {
        let length = if incoming.is_over() {
            Length::None
        } else {
            incoming.rest().map_or(Length::Unknown, Length::Exact)
        };
        let is_counted = match length {
            Length::None => false,
            Length::Exact(bytes) => incoming.is_one_of_many() || Clients::counts(Some(bytes)),
            Length::Unknown => true,
        };
        let rest = (length != Length::None).then_some(incoming);
        let room = clients.limits.whole_body.unwrap_or(u64::MAX);
        let clients = rest.is_some().then(|| Arc::clone(clients));
        Self { rest, length, meter, room, clients, is_counted, ..Self::empty() }
    }

    /// Whether it is no longer than may be, as far as its head says.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`].
    pub(super) fn check_length(&self) -> Result<(), BodyError> {
        match self.length {
            Length::Exact(bytes) if bytes > self.room => Err(BodyError::TooLarge(self.room)),
            _ => Ok(()),
        }
    }

    /// No body at all.
    pub(super) fn empty() -> Self {
        let read = VecDeque::new();
        let meter = BodyMeter::default();
        Self {
            read,
            buffered: 0,
            rest: None,
            trailers: None,
            taken: None,
            length: Length::None,
            meter,
            room: u64::MAX,
            finder: None,
            clients: None,
            is_counted: false,
            held: Held::default(),
            patience: None,
            is_patient: false,
            expects_continue: false,
            waiting_since: None,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// gRPC's streams go both ways, and are as silent as their client likes.
    pub(super) fn may_be_silent(&mut self) {
        self.is_patient = true;
    }

    /// Its client waits to be told that it is wanted, which hyper's server has no way to say.
    pub(super) fn expects_continue(&mut self) {
        self.expects_continue = true;
    }

    /// Another one of the same content, sharing its memory; `None` unless all of it is here.
    pub(super) fn try_copy(&self) -> Option<Self> {
        self.is_complete().then(|| {
            Self {
                read: self.read.clone(),
                buffered: self.buffered,
                trailers: self.trailers.clone(),
                length: self.length,
                // What is sent again is not counted again.
                meter: BodyMeter::default(),
                held: self.held.again(),
                ..Self::empty()
            }
        })
    }

    /// From here on what is taken of it stays here, so that it can be sent again; unless it is not all here.
    pub(super) fn keep(&mut self) {
        self.taken = self.is_complete().then_some(0);
    }

    pub(super) fn is_kept(&self) -> bool {
        self.taken.is_some()
    }

    /// It will not be sent again.
    pub(super) fn forget(&mut self) {
        let taken = self.taken.take().unwrap_or(0);
        if taken > self.read.len() {
            self.trailers = None;
        }
        let pieces = taken.min(self.read.len());
        for piece in self.read.drain(..pieces) {
            self.held.less(piece.len() as u64);
        }
    }

    /// The next piece of what is kept.
    fn take_kept(&mut self) -> Option<Frame<Bytes>> {
        let taken = self.taken.as_mut()?;
        let frame = match self.read.get(*taken) {
            Some(piece) => Frame::data(piece.clone()),
            None if *taken == self.read.len() => Frame::trailers(self.trailers.clone()?),
            None => return None,
        };
        *taken += 1;
        Some(frame)
    }

    /// Whether more may be read before it can be sent on, as far as memory goes.
    pub(super) fn may_read_ahead(&self) -> bool {
        let Some(clients) = &self.clients else { return true };
        !self.is_counted || !clients.bodies_are_full()
    }

    /// The next frame from the client, which may not keep us waiting for ever.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let Poll::Ready(frame) = rest.poll_frame(cx) else {
            return self.poll_patience(cx);
        };
        if let Some(since) = self.waiting_since.take() {
            self.waited += clock::monotonic().duration_since(since);
        }
        if let Some(data) = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref()) {
            let bytes = data.len() as u64;
            self.came += bytes;
            self.expects_continue = false;
            self.meter.add(data.len());
            match self.room.checked_sub(bytes) {
                Some(room) => self.room = room,
                None => return Poll::Ready(Some(Err(self.too_large()))),
            }
            if let Some(finder) = &mut self.finder
                && finder.look(data) == Some(&ModelField::Twice)
            {
                return Poll::Ready(Some(Err(BodyError::ModelTwice)));
            }
        }
        Poll::Ready(frame.map(|frame| frame.and_then(checked)))
    }

    /// From now on `finder` looks at what comes.
    pub(super) fn watch_model(&mut self, finder: Finder) {
        self.finder = (!self.is_complete() && !finder.is_over()).then(|| Box::new(finder));
    }

    fn too_large(&self) -> BodyError {
        let most = self.clients.as_ref().and_then(|clients| clients.limits.whole_body);
        BodyError::TooLarge(most.unwrap_or(u64::MAX))
    }

    fn poll_patience(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(clients) = &self.clients else { return Poll::Pending };
        let is_patient = clients.limits.body_timeout.is_zero() || self.is_patient;
        if is_patient && !self.expects_continue {
            return Poll::Pending;
        }
        let limit = if self.expects_continue { EXPECTATION } else { clients.limits.body_timeout };
        let since = *self.waiting_since.get_or_insert_with(clock::monotonic);
        // One timer a body, set anew only when it runs out: most pieces come long before that.
        let patience = self.patience.get_or_insert_with(|| {
            (self.waited, self.came) = (Duration::ZERO, 0);
            Box::pin(tokio::time::sleep(limit))
        });
        while patience.as_mut().poll(cx).is_ready() {
            // Time in which nobody wanted more of it is not the client's.
            let now = clock::monotonic();
            let waited = self.waited + now.duration_since(since);
            let mut left = limit.saturating_sub(waited);
            if left.is_zero() {
                if self.expects_continue {
                    return Poll::Ready(Some(Err(BodyError::Expectation)));
                }
                if self.came < least(waited) {
                    clients.timed_out();
                    return Poll::Ready(Some(Err(BodyError::Stalled(limit))));
                }
                (self.waited, self.came, left) = (Duration::ZERO, 0, limit);
                self.waiting_since = Some(now);
            }
            patience.as_mut().reset(tokio::time::Instant::now() + left);
        }
        Poll::Pending
    }

    pub(super) fn length(&self) -> Length {
        self.length
    }

    /// Whether all of it is here.
    pub(super) fn is_complete(&self) -> bool {
        self.rest.is_none()
    }

    /// Bytes that are here.
    pub(super) fn buffered(&self) -> u64 {
        self.buffered
    }

    /// Reads one more piece into memory. Pending while the client sends nothing; ready at once when all
    /// is here.
    pub(super) fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        if self.is_complete() {
            return Poll::Ready(Ok(()));
        }
        match std::task::ready!(self.poll_rest(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.buffered += data.len() as u64;
                    if self.is_counted {
                        self.held.more(self.clients.as_ref(), data.len() as u64);
                    }
                    self.push(data);
                    if self.rest.as_ref().is_some_and(Incoming::is_over) {
                        self.rest = None;
                    }
                }
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            },
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => self.rest = None,
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into memory what there is, up to about `most` bytes. While it is not complete `cx` is woken for more.
    ///
    /// # Errors
    /// [`BodyError`].
    pub(super) fn read_ahead(&mut self, cx: &mut Context<'_>, most: u64) -> Result<(), BodyError> {
        while !self.is_complete() && self.buffered < most && self.may_read_ahead() {
            match self.poll_read_more(cx) {
                Poll::Ready(read) => read?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Keeps a piece. Small ones are put together: a body of single bytes must not take many times its size.
    fn push(&mut self, data: Bytes) {
        match self.read.back_mut() {
            Some(last) if last.len() < SMALL && data.len() < SMALL => {
                let mut both = std::mem::take(last).try_into_mut().unwrap_or_else(|shared| {
                    let mut both = BytesMut::with_capacity(2 * SMALL);
                    both.extend_from_slice(&shared);
                    both
                });
                both.extend_from_slice(&data);
                *last = both.freeze();
            }
            _ => self.read.push_back(data),
        }
    }

    /// It is to be sent again. What was taken from its beginning comes back, where it did not stay here.
    pub(super) fn put_back(&mut self, pieces: impl DoubleEndedIterator<Item = Bytes>) {
        if self.taken.take().is_some() {
            return;
        }
        for piece in pieces.rev() {
            if self.is_counted {
                self.held.more(self.clients.as_ref(), piece.len() as u64);
            }
            self.read.push_front(piece);
        }
    }

    /// The same for its trailers.
    pub(super) fn put_back_trailers(&mut self, trailers: http::HeaderMap) {
        self.trailers = Some(trailers);
        // They were its end.
        self.rest = None;
    }

    /// What is here beyond its first `skipped` bytes.
    pub(super) fn pieces_after(&self, mut skipped: usize) -> impl Iterator<Item = &[u8]> {
        self.read.iter().filter_map(move |piece| {
            let from = skipped.min(piece.len());
            skipped -= from;
            (from < piece.len()).then(|| &piece[from..])
        })
    }
}

/// Trailers without what has no place there, of a client that does not frame its message by them.
fn checked(frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
    if frame.trailers_ref().is_some_and(head::frames) {
        return Err(BodyError::Trailers);
    }
    Ok(head::cleaned(frame))
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_kept() {
            return Poll::Ready(self.take_kept().map(Ok));
        }
        if let Some(piece) = self.read.pop_front() {
            self.held.less(piece.len() as u64);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if self.is_complete() {
            return Poll::Ready(self.trailers.take().map(|t| Ok(Frame::trailers(t))));
        }
        self.poll_rest(cx)
    }

    fn is_end_stream(&self) -> bool {
        if let Some(taken) = self.taken {
            return taken >= self.read.len() + usize::from(self.trailers.is_some());
        }
        self.read.is_empty()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(Incoming::is_over)
    }

    fn size_hint(&self) -> SizeHint {
        let here = self.read.iter().skip(self.taken.unwrap_or(0));
        let here: u64 = here.map(|piece| piece.len() as u64).sum();
        match &self.rest {
            None => SizeHint::with_exact(here),
            Some(rest) => match rest.rest() {
                Some(more) => SizeHint::with_exact(here + more),
                None => SizeHint::new(),
            },
        }
    }
}

/// Bytes that must come in so much time, at least one.
fn least(waited: Duration) -> u64 {
    let millis = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    (millis.saturating_mul(LEAST_RATE) / 1_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_are_put_together() {
        let mut body = RequestBody::empty();
        let text: Vec<u8> = (0_u32..100_000).map(|n| n.to_le_bytes()[0]).collect();
        for byte in &text {
            body.push(Bytes::copy_from_slice(&[*byte]));
        }
        body.push(Bytes::from(text.clone()));
        assert!(body.read.len() <= text.len() / SMALL + 2, "{} pieces", body.read.len());
        let whole = |skipped| body.pieces_after(skipped).flatten().copied().collect::<Vec<u8>>();
        assert_eq!(whole(0), [text.clone(), text.clone()].concat());
        assert_eq!(whole(5_000), [&text[5_000..], &text].concat());
        assert!(whole(200_000).is_empty());
    }
}
