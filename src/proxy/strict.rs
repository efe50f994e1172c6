//! The bytes of an HTTP/1.1 connection as its client sent them. The parser below lets some things pass that
//! cannot be seen afterwards: lines that end in LF alone (RFC 9112, 2.2), Content-Length beside
//! Transfer-Encoding (6.1), a Content-Length that is said twice (6.3), blanks and unpaired quotes in a chunk's first line (7.1). A reader in front of us
//! may have understood them otherwise, and taken for one request what we would take for two.
//!
//! [`Strict`] follows the framing just far enough to know where heads begin, looks at heads and chunk lines,
//! and passes over bodies. What must not pass is made unreadable, so that the parser refuses it: a head with
//! 400, a body as malformed. Behind a request that asks for an upgrade bytes may be anything and are not
//! looked at; the connection is closed if it stays HTTP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::client_io::Transport;

/// As much of a line before a chunk as is kept until its end comes. Of a head it is as much as a head may have:
/// what cannot be kept cannot be judged, and does not pass.
const CHUNK_LINE: usize = 4 << 10;
/// What a line that came in pieces leaves behind for the next, in bytes.
const LEFT: usize = 256;

/// The end of a head, or of anything else that is made of lines.
const END: &[u8] = b"\r\n\r\n";

/// Where in the stream we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a head, or before one.
    Head,
    /// So many bytes of a body are still to come.
    Body(u64),
    /// In the line before a chunk.
    ChunkLine,
    /// So many bytes of a chunk, its line's end included.
    Chunk(u64),
    /// Behind the last chunk.
    Trailers,
    /// Not looked at any more.
    Anything,
}

const BY_UPGRADE: u8 = 1;
const BY_CONNECTION: u8 = 2;
const ASKED_FOR: u8 = BY_UPGRADE | BY_CONNECTION;

/// What a head says of what follows it.
#[derive(Debug, Clone, Copy, Default)]
struct Framing {
    has_begun: bool,
    length: u64,
    /// How often it says so.
    lengths: u32,
    chunked: bool,
    /// Which of the two fields ask for an upgrade; it takes both.
    upgrade: u8,
}

/// Follows one direction of a connection.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    framing: Framing,
    /// The beginning of a line that came in pieces.
    line: Vec<u8>,
    /// The last byte of it.
    last: u8,
    /// The longest line of a head.
    longest: usize,
    /// What must not pass stands in the line before a chunk.
    stopped_in_chunks: bool,
}

impl Scanner {
    /// For heads of at most `longest` bytes.
    pub(super) fn new(longest: usize) -> Self {
        let framing = Framing::default();
        Self {
            state: State::Head,
            framing,
            line: Vec::new(),
            last: 0,
            longest,
            stopped_in_chunks: false,
        }
    }

    fn kept(&self) -> usize {
        if self.state == State::ChunkLine { CHUNK_LINE } else { self.longest }
    }

    /// Looks at the next bytes. Where the first stands that must not pass, if there is one.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Anything => return None,
                State::Body(left) => {
                    let here = left.min((bytes.len() - at) as u64);
                    at += usize::try_from(here).unwrap_or(bytes.len());
                    self.state = if left == here { State::Head } else { State::Body(left - here) };
                }
                State::Chunk(left) => {
                    let here = left.min((bytes.len() - at) as u64);
                    at += usize::try_from(here).unwrap_or(bytes.len());
                    self.state =
                        if left == here { State::ChunkLine } else { State::Chunk(left - here) };
                }
                State::Head | State::ChunkLine | State::Trailers => {
                    let rest = &bytes[at..];
                    let room = self.kept().saturating_sub(self.line.len());
                    let within = &rest[..rest.len().min(room + 1)];
                    let Some(length) = memchr::memchr(b'\n', within) else {
                        if rest.len() <= room {
                            self.keep(rest);
                            return None;
                        }
                        self.stop();
                        return Some(at + room);
                    };
                    let end = at + length;
                    if !self.take_line(&bytes[at..end]) {
                        self.stop();
                        return Some(end);
                    }
                    at = end + 1;
                }
            }
        }
        None
    }

    fn stop(&mut self) {
        self.stopped_in_chunks = self.state == State::ChunkLine;
        self.state = State::Anything;
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        self.last = bytes.last().copied().unwrap_or(self.last);
    }

    /// A line is here but for its LF. Whether it may pass.
    fn take_line(&mut self, rest: &[u8]) -> bool {
        let last = rest.last().copied().unwrap_or(self.last);
        // A line that came whole is looked at where it is.
        let mut line = std::mem::take(&mut self.line);
        let whole = if line.is_empty() && self.last == 0 {
            rest
        } else {
            line.extend_from_slice(rest);
            &line
        };
        let ends_well = last == b'\r';
        let passes = ends_well && self.understand(whole.strip_suffix(b"\r").unwrap_or(whole));
        self.last = 0;
        line.clear();
        line.shrink_to(LEFT);
        self.line = line;
        passes
    }

    fn understand(&mut self, line: &[u8]) -> bool {
        match self.state {
            State::Head => self.understand_head(line),
            State::ChunkLine => match chunk_size(line) {
                Some(0) => {
                    self.state = State::Trailers;
                    true
                }
                // And the end of the line behind it.
                Some(size) => {
                    self.state = State::Chunk(size.saturating_add(2));
                    true
                }
                None => false,
            },
            State::Trailers => {
                if line.is_empty() {
                    self.state = State::Head;
                }
                true
            }
            State::Body(_) | State::Chunk(_) | State::Anything => true,
        }
    }

    fn understand_head(&mut self, line: &[u8]) -> bool {
        if !line.is_empty() {
            if self.framing.has_begun {
                self.understand_field(line);
                return true;
            }
            self.framing.has_begun = true;
            // A target has no fragment (RFC 9112, 3.2); the parser would cut it off.
            return !line.contains(&b'#');
        }
        let framing = std::mem::take(&mut self.framing);
        if !framing.has_begun {
            // An empty line before a request is passed over (RFC 9112, 2.2).
            return true;
        }
        if framing.lengths + u32::from(framing.chunked) > 1 {
            return false;
        }
        self.state = match framing {
            Framing { upgrade: ASKED_FOR, .. } => State::Anything,
            Framing { chunked: true, .. } => State::ChunkLine,
            Framing { length: length @ 1.., .. } => State::Body(length),
            _ => State::Head,
        };
        true
    }

    fn understand_field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // By their lengths most fields are none of these.
        match name.len() {
            14 if is(b"content-length") => {
                // One that is no number is refused by the parser, two that differ as well.
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                self.framing.lengths = self.framing.lengths.saturating_add(1);
                self.framing.length = number.unwrap_or(0);
            }
            17 if is(b"transfer-encoding") => self.framing.chunked = true,
            7 if is(b"upgrade") => self.framing.upgrade |= BY_UPGRADE,
            10 if is(b"connection") => {
                let mut tokens = value.split(|byte| *byte == b',');
                if tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade")) {
                    self.framing.upgrade |= BY_CONNECTION;
                }
            }
            _ => {}
        }
    }
}

/// `1*HEXDIG [ ";" extensions ]`; nothing else before the semicolon, and quotes in pairs behind it.
pub(super) fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    if !(1..=16).contains(&digits) {
        return None;
    }
    let rest = &line[digits..];
    let in_quotes = rest.iter().fold(false, |within, byte| within ^ (*byte == b'"'));
    if rest.first().is_some_and(|byte| *byte != b';') || in_quotes {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

/// A client's transport of which every byte that is read is looked at.
#[derive(Debug)]
pub(super) struct Strict<T> {
    stream: T,
    scanner: Scanner,
}

impl<T> Strict<T> {
    /// For heads of at most `longest` bytes.
    pub(super) fn new(stream: T, longest: usize) -> Self {
        Self { stream, scanner: Scanner::new(longest) }
    }
}

impl<T: Transport> Transport for Strict<T> {
    fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Strict<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(at) = self.scanner.look(&buffer.filled()[before..]) {
            // No text may have a NUL, and the parser looks at a head only once it is complete. In the line before a
            // chunk it takes anything but a line feed that nothing comes before.
            let is_bare = buffer.filled()[..before + at].last() != Some(&b'\r')
                && buffer.filled()[before + at] == b'\n';
            let is_chunks = std::mem::take(&mut self.scanner.stopped_in_chunks);
            if !(is_chunks && is_bare) {
                buffer.filled_mut()[before + at] = 0;
            }
            buffer.set_filled(before + at + 1);
            if buffer.remaining() >= END.len() {
                buffer.put_slice(END);
            }
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Strict<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the first byte of `text` is that must not pass, when it comes in pieces of this size.
    fn stops(text: &str, piece: usize) -> Option<usize> {
        let mut scanner = Scanner::new(64 << 10);
        let mut pieces = text.as_bytes().chunks(piece).enumerate();
        pieces.find_map(|(n, bytes)| Some(n * piece + scanner.look(bytes)?))
    }

    fn passes(text: &str) -> bool {
        let whole = stops(text, text.len());
        for piece in 1..text.len() {
            assert_eq!(stops(text, piece), whole, "{text:?} in pieces of {piece}");
        }
        whole.is_none()
    }

    const HEAD: &str = "POST / HTTP/1.1\r\nhost: h\r\n";

    #[test]
    fn what_is_well_formed_passes_as_it_is() {
        for rest in [
            "\r\n",
            "content-length: 5\r\n\r\na\nb\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n",
            "content-length: 0\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n4\r\na\nb\n\r\n1F;x=\"y;z\";q\r\n0123456789012345678901234567890\r\n0\r\nx-y: z\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "upgrade: echo\r\nconnection: x, Upgrade\r\n\r\nanything\nat all\n",
        ] {
            assert!(passes(&format!("{HEAD}{rest}")), "{rest:?}");
        }
        let long = "a".repeat(1_000);
        assert!(passes(&format!(
            "GET /{long} HTTP/1.1\r\nx: {long}\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        )));
    }

    #[test]
    fn what_others_may_understand_otherwise_does_not() {
        for text in [
            "GET / HTTP/1.1\nhost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\r\n\n",
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nCONTENT-LENGTH:3\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nabGET / HTTP/1.1\nhost: h\r\n\r\n",
        ] {
            assert!(!passes(text), "{text:?}");
        }
        for chunks in [
            "3 \r\nabc\r\n",
            "3\nabc\r\n",
            "\r\n",
            "3;x=\"y\r\nabc\r\n",
            "3x\r\nabc\r\n",
            "00000000000000003\r\nabc\r\n",
            "3\r\nabc\r\n0\r\nx: y\n\r\n",
        ] {
            let text = format!("{HEAD}transfer-encoding: chunked\r\n\r\n{chunks}");
            assert!(!passes(&text), "{chunks:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_seen_alike(
            bytes in proptest::collection::vec(
                proptest::sample::select(b"\r\n\r\n:;\" 013aTecontent-length: 3transfer-encoding: chunked".to_vec()), 0..300),
            sizes in proptest::collection::vec(1_usize..20, 1..50),
        ) {
            let whole = Scanner::new(64 << 10).look(&bytes);
            let (mut scanner, mut at, mut found) = (Scanner::new(64 << 10), 0, None);
            for size in sizes.iter().cycle() {
                if at >= bytes.len() || found.is_some() {
                    break;
                }
                let end = (at + size).min(bytes.len());
                found = scanner.look(&bytes[at..end]).map(|within| at + within);
                at = end;
            }
            prop_assert_eq!(found, whole);
        }
    }
}
