//! The frames of an HTTP/2 connection as its peer sent them. The h2 crate keeps no memory for floods, and ends
//! those of resets, CONTINUATION and empty DATA; of PING, SETTINGS, PRIORITY, window updates and unknown frames it
//! takes as many as come, all those that are here in one go, and meanwhile no other connection of the thread gets
//! its turn. [`Calm`] counts them against what the connection is good for, and ends it beyond that.
//!
//! A connection may send [`MOST`] frames that bring nothing. Each request earns it a few, and so does what it
//! is sent, since a peer that reads much updates its windows often; beyond that they come back with time.
//! Peers that ping us for each piece they read (gRPC's, to measure the bandwidth) stay far within that. A client's
//! requests are its HEADERS. A worker's HEADERS may be interim answers without end, so they earn it nothing: what it
//! is asked is noted by whoever asks ([`Asked`]).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::Clients;
use crate::runtime::clock;
use crate::telemetry::traffic::Traffic;

/// What every client begins with (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// A frame's head (RFC 9113, 4.1).
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// Frames that bring nothing, at most in a row.
const MOST: i64 = 10_000;
/// What a request earns a client.
const PER_REQUEST: i64 = 4;
/// What it earns a worker, which answers with two HEADERS or an empty DATA, updates windows and may reset the stream.
const PER_ASKED: i64 = 8;
/// Bytes that are sent for each that is earned: less than any frame of an answer with its window updates.
const PER_SENT: usize = 32;
/// How long each takes to come back by itself.
const COMES_BACK: Duration = Duration::from_millis(10);

/// Follows the frames of one connection, in whatever pieces they come.
#[derive(Debug)]
struct Frames {
    /// Bytes that are passed over.
    skip: usize,
    head: [u8; HEAD],
    /// How much of it is here.
    has: usize,
    left: i64,
    /// What HEADERS earn, or cost.
    per_headers: i64,
}

impl Frames {
    fn of_client() -> Self {
        Self { skip: PREFACE, head: [0; HEAD], has: 0, left: MOST, per_headers: PER_REQUEST }
    }

    fn of_worker() -> Self {
        Self { skip: 0, per_headers: -1, ..Self::of_client() }
    }

    /// Some more has come. False: the connection has sent more than it is good for.
    fn came(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return self.left >= 0;
            }
            let taken = (HEAD - self.has).min(bytes.len());
            self.head[self.has..self.has + taken].copy_from_slice(&bytes[..taken]);
            self.has += taken;
            bytes = &bytes[taken..];
            if self.has == HEAD {
                self.has = 0;
                let [high, middle, low, kind, ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                match kind {
                    HEADERS => self.earn(self.per_headers),
                    DATA if self.skip > 0 => {}
                    _ => self.left -= 1,
                }
            }
        }
    }

    fn earn(&mut self, frames: i64) {
        self.left = (self.left + frames).min(MOST);
    }
}

/// Requests to a worker that its connection has not been told of.
pub(super) type Asked = Rc<Cell<u32>>;

/// Whose connection it is.
#[derive(Debug)]
enum Peer {
    Client(Arc<Clients>),
    Worker(Asked, Arc<Traffic>),
}

/// A connection of which is known that it speaks HTTP/2.
#[derive(Debug)]
pub(super) struct Calm<T> {
    stream: T,
    frames: Frames,
    /// Bytes sent that have earned nothing yet.
    sent: usize,
    /// Up to when time has been taken into account; it is looked at only where nothing else is left.
    since: Instant,
    peer: Peer,
}

impl<T> Calm<T> {
    pub(super) fn of_client(stream: T, clients: &Arc<Clients>) -> Self {
        Self::new(stream, Frames::of_client(), Peer::Client(Arc::clone(clients)))
    }

    /// `asked` is to count up with each request, `traffic` is told of a flood.
    pub(super) fn of_worker(stream: T, asked: &Asked, traffic: &Arc<Traffic>) -> Self {
        let peer = Peer::Worker(Rc::clone(asked), Arc::clone(traffic));
        Self::new(stream, Frames::of_worker(), peer)
    }

    fn new(stream: T, frames: Frames, peer: Peer) -> Self {
        Self { stream, frames, sent: 0, since: clock::monotonic(), peer }
    }

    /// Whether the time that has passed makes up for it.
    fn has_waited(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since).as_millis() / COMES_BACK.as_millis();
        self.since = now;
        self.frames.earn(i64::try_from(earned).unwrap_or(MOST));
        self.frames.left >= 0
    }

    fn earn(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            let sent = self.sent + bytes;
            self.frames.earn(i64::try_from(sent / PER_SENT).unwrap_or(MOST));
            self.sent = sent % PER_SENT;
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Calm<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Peer::Worker(asked, _) = &self.peer {
            let earned = i64::from(asked.take()) * PER_ASKED;
            self.frames.earn(earned);
        }
        if !self.frames.came(&buffer.filled()[before..]) && !self.has_waited(clock::monotonic()) {
            match &self.peer {
                Peer::Client(clients) => clients.flooded(),
                Peer::Worker(_, traffic) => traffic.flooded(),
            }
            return Poll::Ready(Err(io::Error::other("a flood of frames that bring nothing")));
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Calm<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.earn(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.earn(&written);
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PING: u8 = 6;

    fn frame(kind: u8, length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        let mut bytes = vec![0, high, low, kind, 0, 0, 0, 0, 1];
        bytes.extend(vec![0xff; length.into()]);
        bytes
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frames.concat());
        bytes
    }

    proptest! {
        /// However the bytes are cut, the same frames are counted.
        #[test]
        fn pieces_make_no_difference(
            frames in proptest::collection::vec((0_u8..12, 0_u16..600), 0..40),
            piece in 1_usize..2_000,
        ) {
            let costs = |(kind, length): &(u8, u16)| {
                *kind != HEADERS && (*kind != DATA || *length == 0)
            };
            // Whatever is earned on the way is earned from below the most.
            let mut followed = Frames { left: 0, ..Frames::of_client() };
            let bytes: Vec<_> = frames.iter().map(|(kind, length)| frame(*kind, *length)).collect();
            for bytes in connection(&bytes).chunks(piece) {
                followed.came(bytes);
            }
            let cost = frames.iter().filter(|frame| costs(frame)).count();
            let requests = frames.iter().filter(|(kind, _)| *kind == HEADERS).count();
            let left = i64::try_from(requests).expect("few") * PER_REQUEST
                - i64::try_from(cost).expect("few");
            prop_assert_eq!(followed.left, left);
            prop_assert_eq!((followed.skip, followed.has), (0, 0));
        }
    }

    #[test]
    fn it_is_good_for_so_many_and_for_more_with_each_request() {
        let mut frames = Frames::of_client();
        assert!(frames.came(&connection(&vec![frame(PING, 8); 10_000])));
        assert!(!frames.came(&frame(PING, 8)));
        assert!(frames.came(&frame(HEADERS, 20)));
        assert!(frames.came(&[frame(PING, 8), frame(DATA, 500), frame(PING, 8)].concat()));
        // More is never saved up.
        frames.earn(1_000_000);
        assert!(!frames.came(&vec![frame(PING, 8); 10_001].concat()));
    }

    #[test]
    fn a_worker_earns_nothing_by_its_heads() {
        let mut frames = Frames::of_worker();
        assert!(frames.came(&vec![frame(HEADERS, 20); 10_000].concat()));
        assert!(!frames.came(&frame(HEADERS, 20)));
        frames.earn(PER_ASKED);
        assert!(frames.came(&[frame(HEADERS, 20), frame(DATA, 9), frame(HEADERS, 20)].concat()));
    }
}
