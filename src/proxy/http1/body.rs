//! What follows a head (RFC 9112, 6.3 and 7): how much of it there is, and its parts as they come.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use http_body::Frame;

use super::buffers::copied;
use super::{MOST_FIELDS, Malformed};

/// The longest line before a chunk, and all trailers together.
const LONGEST_LINE: usize = 4 << 10;
const LONGEST_TRAILERS: usize = 16 << 10;

/// What is left of a message behind its head.
#[derive(Debug)]
pub(in crate::proxy) enum Framing {
    /// Nothing, or nothing more.
    Over,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Whatever comes until the connection ends.
    UntilClose,
}

impl Framing {
    pub(in crate::proxy) const CHUNKED: Self =
        Self::Chunked(Chunks { state: State::Size, takes_blanks: false });
    /// As some workers write it.
    pub(in crate::proxy) const CHUNKED_LOOSELY: Self =
        Self::Chunked(Chunks { state: State::Size, takes_blanks: true });

    /// Takes what is here off the beginning of `bytes`; `None` if there is nothing.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(in crate::proxy) fn take(
        &mut self,
        bytes: &mut BytesMut,
    ) -> Result<Option<Frame<Bytes>>, Malformed> {
        match self {
            Self::Over => Ok(None),
            Self::Length(_) | Self::UntilClose if bytes.is_empty() => Ok(None),
            Self::Length(left) => {
                let data = take(bytes, left);
                if *left == 0 {
                    *self = Self::Over;
                }
                Ok(Some(Frame::data(data)))
            }
            Self::UntilClose => Ok(Some(Frame::data(bytes.split().freeze()))),
            Self::Chunked(chunks) => match chunks.take(bytes)? {
                Part::NotYet => Ok(None),
                Part::Data(data) => Ok(Some(Frame::data(data))),
                Part::Trailers(trailers) => {
                    *self = Self::Over;
                    Ok(Some(Frame::trailers(trailers)))
                }
                Part::Over => {
                    *self = Self::Over;
                    Ok(None)
                }
            },
        }
    }

    pub(in crate::proxy) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// How much more there is, where that is known.
    pub(in crate::proxy) fn rest(&self) -> Option<u64> {
        match self {
            Self::Over => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }
}

/// A body that comes in chunks.
#[derive(Debug)]
pub(in crate::proxy) struct Chunks {
    state: State,
    /// Blanks behind the digits, which some write, are passed over.
    takes_blanks: bool,
}

/// Where in it we are.
#[derive(Debug)]
enum State {
    /// In the line before a chunk.
    Size,
    /// So many bytes of a chunk are to come.
    Data(u64),
    /// Behind a chunk's bytes.
    End,
    /// Behind the last chunk.
    Trailers,
}

/// The next part of a chunked body.
#[derive(Debug)]
enum Part {
    /// Not here yet.
    NotYet,
    Data(Bytes),
    Trailers(HeaderMap),
    /// There is no more.
    Over,
}

impl Chunks {
    fn take(&mut self, bytes: &mut BytesMut) -> Result<Part, Malformed> {
        loop {
            match &mut self.state {
                State::Size => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        let too_long = bytes.len() > LONGEST_LINE;
                        return if too_long {
                            Err("a chunk's line without end")
                        } else {
                            Ok(Part::NotYet)
                        };
                    };
                    let mut line = bytes[..end].strip_suffix(b"\r").ok_or("a bare line feed")?;
                    if self.takes_blanks {
                        line = line.trim_ascii_end();
                    }
                    let size = chunk_size(line).ok_or("a chunk's size is none")?;
                    bytes.advance(end + 1);
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(left) => {
                    if bytes.is_empty() {
                        return Ok(Part::NotYet);
                    }
                    let data = take(bytes, left);
                    if *left == 0 {
                        self.state = State::End;
                    }
                    return Ok(Part::Data(data));
                }
                State::End => {
                    let end = b"\r\n";
                    let here = bytes.len().min(end.len());
                    if bytes[..here] != end[..here] {
                        return Err("a chunk longer than it says");
                    }
                    if here < end.len() {
                        return Ok(Part::NotYet);
                    }
                    bytes.advance(end.len());
                    self.state = State::Size;
                }
                State::Trailers => {
                    if bytes.starts_with(b"\r\n") {
                        bytes.advance(2);
                        return Ok(Part::Over);
                    }
                    let end = memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4);
                    if has_bare_feed(&bytes[..end.unwrap_or(bytes.len())]) {
                        return Err("a bare line feed");
                    }
                    let Some(end) = end else {
                        let too_long = bytes.len() > LONGEST_TRAILERS;
                        return if too_long {
                            Err("trailers without end")
                        } else {
                            Ok(Part::NotYet)
                        };
                    };
                    let trailers = trailers(&bytes[..end])?;
                    bytes.advance(end);
                    return Ok(Part::Trailers(trailers));
                }
            }
        }
    }
}

/// Takes what is here of the `left` bytes that belong together. What is small is copied: the buffer is read into again,
/// and one that is shared with what is under way would have to be replaced.
fn take(bytes: &mut BytesMut, left: &mut u64) -> Bytes {
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= here as u64;
    if copied(here) < here {
        return bytes.split_to(here).freeze();
    }
    let data = Bytes::copy_from_slice(&bytes[..here]);
    bytes.advance(here);
    data
}

/// `1*HEXDIG [ ";" extensions ]`; nothing else before the semicolon, behind it nothing but text, and quotes in
/// pairs.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    if !(1..=16).contains(&digits) {
        return None;
    }
    let rest = &line[digits..];
    let in_quotes = rest.iter().fold(false, |within, byte| within ^ (*byte == b'"'));
    let is_text = rest.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    if rest.first().is_some_and(|byte| *byte != b';') || in_quotes || !is_text {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

/// Whether a line ends in LF alone (RFC 9112, 2.2).
pub(super) fn has_bare_feed(bytes: &[u8]) -> bool {
    // It looks at all of them, and so at many at once.
    let pairs = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    let bare = pairs.map(|(before, byte)| u8::from(*byte == b'\n' && *before != b'\r'));
    let is_bare = bare.fold(0, |found, one| found | one) > 0;
    is_bare || bytes.first() == Some(&b'\n')
}

fn trailers(bytes: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(bytes, &mut fields)
    else {
        return Err("trailers that are none");
    };
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        headers.append(
            name.map_err(|_| "a trailer's name is none")?,
            value.map_err(|_| "a trailer's value is none")?,
        );
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Its data joined, its trailers, and where it ends.
    type Whole = (Vec<u8>, Option<HeaderMap>, Option<usize>);

    /// A body that comes in pieces of this size.
    fn parts(mut framing: Framing, text: &[u8], piece: usize) -> Result<Whole, Malformed> {
        let (mut bytes, mut data, mut trailers, mut came) = (BytesMut::new(), Vec::new(), None, 0);
        for piece in text.chunks(piece) {
            bytes.extend_from_slice(piece);
            came += piece.len();
            while let Some(frame) = framing.take(&mut bytes)? {
                match frame.into_data() {
                    Ok(more) => data.extend_from_slice(&more),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            if framing.is_over() {
                return Ok((data, trailers, Some(came - bytes.len())));
            }
        }
        Ok((data, trailers, None))
    }

    #[test]
    fn chunks_are_the_same_in_whatever_pieces_they_come() {
        for (text, expected) in [
            ("3\r\nabc\r\n1;x=\"y;z\";q\r\nd\r\n0\r\n\r\n", Some("abcd")),
            ("A\r\n0\n\r\n456789\r\n00\r\nx-sum: 1\r\n\r\n", Some("0\n\r\n456789")),
            ("3 \r\nabc\r\n0\r\n\r\n", None),
            ("3\r\nabcd\r\n0\r\n\r\n", None),
            ("3\nabc\r\n0\r\n\r\n", None),
            ("3;a\nabc\r\n0\r\n\r\n", None),
            ("3;x=\"y\r\nabc\r\n", None),
            ("3;x=\u{1}y\r\nabc\r\n", None),
            ("3;x=\ry\r\nabc\r\n", None),
            ("3x\r\nabc\r\n", None),
            ("\r\n", None),
            ("g\r\n", None),
            ("fffffffffffffffff\r\n", None),
            ("00000000000000003\r\nabc\r\n", None),
            ("0\r\nno field\r\n\r\n", None),
            ("0\r\nx: y\n\r\n", None),
            ("0\r\n\n", None),
        ] {
            for piece in 1..=text.len() {
                let found = parts(Framing::CHUNKED, text.as_bytes(), piece);
                match expected {
                    None => assert!(found.is_err(), "{text:?} in pieces of {piece}: {found:?}"),
                    Some(data) => {
                        let (found, trailers, end) = found.expect("well-formed");
                        assert_eq!((&found[..], end), (data.as_bytes(), Some(text.len())));
                        assert_eq!(trailers.is_some(), text.contains("x-sum"));
                    }
                }
            }
        }
        let loose = parts(Framing::CHUNKED_LOOSELY, b"3 \r\nabc\r\n0\r\n\r\n", 1);
        assert_eq!(loose.expect("well-formed").0, b"abc");
    }

    #[test]
    fn lines_have_an_end() {
        for endless in ["1;", "0\r\nx: "] {
            let text = format!("{endless}{}", "a".repeat(LONGEST_TRAILERS));
            assert!(parts(Framing::CHUNKED, text.as_bytes(), 1_000).is_err(), "{endless}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_the_same(
            bytes in proptest::collection::vec(
                proptest::sample::select(b"\r\n\r\n:;\" 0123abcdefx-y: z".to_vec()), 0..300),
            piece in 1_usize..20,
            length in 0_u64..400,
        ) {
            for framing in [|_| Framing::CHUNKED, Framing::Length] {
                let of = |piece| parts(framing(length + 1), &bytes, piece);
                let (whole, pieces) = (of(bytes.len().max(1)), of(piece));
                match (whole, pieces) {
                    (Ok(whole), Ok(pieces)) => prop_assert_eq!(whole, pieces),
                    (whole, pieces) => prop_assert_eq!(whole.is_err(), pieces.is_err()),
                }
            }
        }
    }
}
