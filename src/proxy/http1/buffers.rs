//! What has come on a connection and nobody has taken, and what waits to go out on it. Neither holds memory while
//! there is nothing.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use smallvec::SmallVec;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::head::write_fields;
use crate::proxy::socket::Socket;

/// How much is read or written at once, about, however much there is. The kernel takes 64 KiB at a time for as much
/// per byte as 16 KiB at best, and on some machines for twice as much.
pub(in crate::proxy) const MOST_AT_ONCE: usize = 32 << 10;
/// How much is read at once of what comes in small pieces.
const LEAST_READ: usize = 8 << 10;
/// Pieces up to this size are copied together, which costs less than one more piece to write does.
const SMALL: usize = 2 << 10;
/// Pieces that are written at once.
const MOST_PIECES: usize = 16;

/// How much of a piece of this length is copied.
pub(in crate::proxy) fn copied(length: usize) -> usize {
    if length <= SMALL { length } else { 0 }
}

/// What has come.
#[derive(Debug)]
pub(in crate::proxy) struct ReadBuffer {
    pub(in crate::proxy) bytes: BytesMut,
    next: usize,
    /// Which task the socket wakes, unless it has something already: it need not be asked to again.
    wakes: Option<usize>,
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), next: LEAST_READ, wakes: None }
    }
}

impl ReadBuffer {
    /// Reads what there is, at least one byte; 0 is the connection's end. It holds no memory while it waits: a stream may be
    /// silent for long.
    pub(in crate::proxy) fn poll_fill(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        // The socket keeps the waker that it is given, so that no other can be where that is.
        let task = cx.waker().data().addr();
        if let Socket::Plain(socket) = socket
            && !has_come(socket)
            && (self.wakes == Some(task) || socket.poll_read_ready(cx)?.is_pending())
        {
            self.wakes = Some(task);
            self.rest();
            return Poll::Pending;
        }
        self.wakes = None;
        if self.bytes.capacity() == 0 && self.next == LEAST_READ {
            self.bytes = spare::take();
        }
        if self.bytes.capacity() - self.bytes.len() < self.next / 4 {
            self.bytes.reserve(self.next);
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let Poll::Ready(read) = poll_read_buf(Pin::new(socket), cx, &mut self.bytes) else {
            self.rest();
            return Poll::Pending;
        };
        let read = read?;
        self.next = if read >= room {
            (self.next * 2).min(MOST_AT_ONCE)
        } else if read < self.next / 4 {
            (self.next / 2).max(LEAST_READ)
        } else {
            self.next
        };
        Poll::Ready(Ok(read))
    }

    /// Whether nothing has come, not even the end, as far as that is known without a look at the connection below.
    pub(in crate::proxy) fn is_silent(&self, socket: &Socket) -> bool {
        self.bytes.is_empty() && matches!(socket, Socket::Plain(socket) if !has_come(socket))
    }

    /// Whether as much waits to be taken as is read without being asked for.
    pub(in crate::proxy) fn is_full(&self) -> bool {
        self.bytes.len() >= LEAST_READ
    }

    /// Nothing may come for long.
    pub(in crate::proxy) fn rest(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > 0 {
            spare::keep(std::mem::take(&mut self.bytes));
        }
    }
}

/// Whether the kernel has told of something to read since all was read.
fn has_come(socket: &TcpStream) -> bool {
    socket.try_io(Interest::READABLE, || Ok(())).is_ok()
}

/// A thread's buffers that nobody reads into just now: each piece of a stream needs one for a moment, and they are
/// too large for an allocator to have them at hand.
mod spare {
    use std::cell::RefCell;

    use bytes::BytesMut;

    use super::LEAST_READ;

    /// How many are kept.
    const MOST: usize = 32;

    thread_local! {
        static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    }

    /// One that has room for [`LEAST_READ`], or none at all.
    pub(super) fn take() -> BytesMut {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Keeps it, if it is of the usual size and nothing of it is in use.
    pub(super) fn keep(mut buffer: BytesMut) {
        if buffer.try_reclaim(LEAST_READ) && buffer.capacity() < 2 * LEAST_READ {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MOST {
                    spare.push(buffer);
                }
            });
        }
    }
}

/// What waits to go out, in order: `pieces`, then `tail`.
#[derive(Debug, Default)]
pub(in crate::proxy) struct WriteBuffer {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    length: usize,
}

impl WriteBuffer {
    pub(in crate::proxy) fn push(&mut self, piece: Bytes) {
        if piece.len() <= SMALL {
            self.copy(&piece);
            return;
        }
        self.seal();
        self.length += piece.len();
        self.pieces.push_back(piece);
    }

    pub(in crate::proxy) fn copy(&mut self, bytes: &[u8]) {
        self.write_with(|tail| tail.extend_from_slice(bytes));
    }

    /// Lets `write` append to what is here.
    pub(in crate::proxy) fn write_with(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.length += self.tail.len() - before;
    }

    /// A chunk of a chunked body (RFC 9112, 7.1).
    pub(in crate::proxy) fn push_chunk(&mut self, data: Bytes) {
        self.write_with(|tail| {
            tail.reserve(data.len().min(SMALL) + 20);
            push_hex(data.len(), tail);
            tail.extend_from_slice(b"\r\n");
        });
        self.push(data);
        self.copy(b"\r\n");
    }

    /// What follows the last chunk.
    pub(in crate::proxy) fn push_last_chunk(&mut self, trailers: Option<&HeaderMap>) {
        self.write_with(|tail| {
            tail.extend_from_slice(b"0\r\n");
            if let Some(trailers) = trailers {
                write_fields(trailers, tail);
            }
            tail.extend_from_slice(b"\r\n");
        });
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    pub(in crate::proxy) fn len(&self) -> usize {
        self.length
    }

    pub(in crate::proxy) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Writes some of it. Nothing to write is an end without a byte, as a closed connection is.
    pub(in crate::proxy) fn poll_write(
        &mut self,
        socket: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let socket = Pin::new(socket);
        let tail = Some(&self.tail).filter(|tail| !tail.is_empty());
        let written = match (self.pieces.front(), tail, self.pieces.len()) {
            (None, None, _) => return Poll::Ready(Ok(0)),
            (None, Some(only), _) => ready!(socket.poll_write(cx, only))?,
            (Some(only), None, 1) => ready!(socket.poll_write(cx, only))?,
            _ if socket.is_write_vectored() => {
                let pieces = self.pieces.iter().map(|piece| &piece[..]);
                let all = pieces.chain(tail.map(|tail| &tail[..])).take(MOST_PIECES);
                let slices: SmallVec<[io::IoSlice<'_>; MOST_PIECES]> =
                    all.map(io::IoSlice::new).collect();
                ready!(socket.poll_write_vectored(cx, &slices))?
            }
            (Some(first), ..) => ready!(socket.poll_write(cx, first))?,
        };
        self.advance(written);
        Poll::Ready(Ok(written))
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
        self.tail.advance(count);
    }

    /// Nothing may have to be written for long.
    pub(in crate::proxy) fn rest(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// All that is here, for tests.
    #[cfg(test)]
    pub(in crate::proxy) fn take_all(&mut self) -> Vec<u8> {
        self.seal();
        self.length = 0;
        self.pieces.drain(..).flatten().collect()
    }
}

fn push_hex(number: usize, into: &mut BytesMut) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        into.extend_from_slice(&[b"0123456789abcdef"[(number >> (4 * place)) & 15]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chunks_say_their_length() {
        let mut buffer = WriteBuffer::default();
        for length in [1, 15, 16, 300, 5_000] {
            buffer.push_chunk(Bytes::from(vec![b'a'; length]));
            let all = String::from_utf8(buffer.take_all()).expect("text");
            assert_eq!(all, format!("{length:x}\r\n{}\r\n", "a".repeat(length)));
        }
        buffer.push_last_chunk(None);
        assert_eq!(buffer.take_all(), b"0\r\n\r\n");
    }

    proptest! {
        #[test]
        fn what_is_pushed_goes_out_in_order(
            sizes in proptest::collection::vec(0_usize..2 * SMALL, 0..20),
            written in proptest::collection::vec(1_usize..3 * SMALL, 1..20),
        ) {
            let (mut buffer, mut expected) = (WriteBuffer::default(), Vec::new());
            let mut out: Vec<u8> = Vec::new();
            for (number, size) in sizes.iter().enumerate() {
                let piece = vec![number.to_le_bytes()[0]; *size];
                expected.extend_from_slice(&piece);
                buffer.push(piece.into());
            }
            prop_assert_eq!(buffer.len(), expected.len());
            for count in written.iter().cycle() {
                if buffer.is_empty() {
                    break;
                }
                let count = (*count).min(buffer.len());
                let pieces = buffer.pieces.iter().map(|piece| &piece[..]).chain([&buffer.tail[..]]);
                out.extend(pieces.flatten().take(count));
                buffer.advance(count);
            }
            prop_assert_eq!(out, expected);
        }
    }
}
