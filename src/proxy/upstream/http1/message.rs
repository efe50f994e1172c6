//! HTTP/1.1 as bytes (RFC 9112): a request's head written, an answer's head read, and what follows it taken
//! apart. Pure; whoever has the connection feeds it. Where two readers could understand an answer differently
//! it is malformed, and its connection is not used again.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Uri};
use smallvec::SmallVec;

use crate::proxy::strict::chunk_size;

/// The longest head of an answer, and how many fields it has at most.
const LONGEST_HEAD: usize = 64 << 10;
const MOST_FIELDS: usize = 100;
/// The longest line before a chunk, and all trailers together.
const LONGEST_LINE: usize = 4 << 10;
const LONGEST_TRAILERS: usize = 16 << 10;

/// What is wrong with an answer.
pub(super) type Malformed = &'static str;

/// Writes a request's head.
pub(super) fn write_head(method: &Method, target: &Uri, headers: &HeaderMap, into: &mut Vec<u8>) {
    into.extend_from_slice(method.as_str().as_bytes());
    into.push(b' ');
    let target = target.path_and_query().map_or("/", |target| target.as_str());
    into.extend_from_slice(target.as_bytes());
    into.extend_from_slice(b" HTTP/1.1\r\n");
    write_fields(headers, into);
}

/// Writes fields and the empty line behind them.
pub(super) fn write_fields(fields: &HeaderMap, into: &mut Vec<u8>) {
    for (name, value) in fields {
        into.extend_from_slice(name.as_str().as_bytes());
        into.extend_from_slice(b": ");
        into.extend_from_slice(value.as_bytes());
        into.extend_from_slice(b"\r\n");
    }
    into.extend_from_slice(b"\r\n");
}

/// An answer's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the connection may be used again once this answer is over.
    pub(super) keeps_alive: bool,
}

/// What follows a head (RFC 9112, 6.3).
#[derive(Debug)]
pub(super) enum Framing {
    /// Nothing, or nothing more.
    Over,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Whatever comes until the connection ends.
    UntilClose,
}

/// Takes an answer's head off the beginning of `bytes`, once all of it is there. `answers_head`: the request was
/// a HEAD.
///
/// # Errors
/// [`Malformed`].
pub(super) fn read_head(
    bytes: &mut BytesMut,
    answers_head: bool,
) -> Result<Option<Head>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let read = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields)
        .map_err(|_| "a head that is none")?;
    let length = match read {
        httparse::Status::Complete(length) if length <= LONGEST_HEAD => length,
        httparse::Status::Partial if bytes.len() < LONGEST_HEAD => return Ok(None),
        _ => return Err("a head that is too long"),
    };
    let (code, is_1_1) = (parsed.code.unwrap_or(0), parsed.version == Some(1));
    let status = StatusCode::from_u16(code).map_err(|_| "a status that is none")?;
    let at = |part: &[u8]| {
        let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
        start..start + part.len()
    };
    let places: SmallVec<[(Range<usize>, Range<usize>); 16]> =
        parsed.headers.iter().map(|field| (at(field.name.as_bytes()), at(field.value))).collect();
    let head = bytes.split_to(length).freeze();
    if memchr::memchr_iter(b'\n', &head).any(|at| at == 0 || head[at - 1] != b'\r') {
        return Err("a bare line feed");
    }
    let mut headers = HeaderMap::with_capacity(places.len() + 2);
    for (name, value) in places {
        let name = HeaderName::from_bytes(&head[name]).map_err(|_| "a field's name is none")?;
        let value = HeaderValue::from_maybe_shared(head.slice(value));
        headers.append(name, value.map_err(|_| "a field's value is none")?);
    }
    let (framing, is_clear) = framing(status, &mut headers, is_1_1, answers_head)?;
    let ends = matches!(framing, Framing::UntilClose);
    let keeps_alive = is_clear && !ends && keeps_alive(&headers, is_1_1);
    Ok(Some(Head { status, headers, framing, keeps_alive }))
}

/// What follows, and whether there is but one way to read that.
fn framing(
    status: StatusCode,
    headers: &mut HeaderMap,
    is_1_1: bool,
    answers_head: bool,
) -> Result<(Framing, bool), Malformed> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(coding), None) if is_1_1 => Some(coding),
        _ => return Err("several transfer codings"),
    };
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err("a transfer coding other than chunked");
    }
    let chunked = coding.is_some();
    let length = content_length(headers)?;
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let is_clear = !(chunked && length.is_some());
    let none = answers_head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let framing = match length {
        _ if none => Framing::Over,
        _ if chunked => Framing::Chunked(Chunks::Size),
        Some(0) => Framing::Over,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    };
    Ok((framing, is_clear))
}

/// The length that the head says, however often it says the same.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut found = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let digits = part.trim_ascii();
            let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
            let number: u64 =
                number.filter(|_| is_number).ok_or("a Content-Length that is no number")?;
            if found.replace(number).is_some_and(|other| other != number) {
                return Err("lengths that differ");
            }
        }
    }
    Ok(found)
}

fn keeps_alive(headers: &HeaderMap, is_1_1: bool) -> bool {
    let says = |what: &str| {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(what))
    };
    if is_1_1 { !says("close") } else { says("keep-alive") }
}

/// Where in a chunked body we are (RFC 9112, 7.1).
#[derive(Debug)]
pub(super) enum Chunks {
    /// In the line before a chunk.
    Size,
    /// So many bytes of a chunk are to come.
    Data(u64),
    /// Behind a chunk's bytes.
    End,
    /// Behind the last chunk.
    Trailers,
    /// Behind all of it.
    Over,
}

/// The next part of a chunked body.
#[derive(Debug)]
pub(super) enum Part {
    /// Not here yet.
    NotYet,
    Data(Bytes),
    Trailers(HeaderMap),
    /// There is no more.
    Over,
}

impl Chunks {
    /// Takes the next part off the beginning of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(super) fn take(&mut self, bytes: &mut BytesMut) -> Result<Part, Malformed> {
        loop {
            match self {
                Self::Size => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        let too_long = bytes.len() > LONGEST_LINE;
                        return if too_long {
                            Err("a chunk's line without end")
                        } else {
                            Ok(Part::NotYet)
                        };
                    };
                    let line = bytes[..end].strip_suffix(b"\r").ok_or("a bare line feed")?;
                    // Blanks behind the digits are written by some, and harm nobody from a worker.
                    let size = chunk_size(line.trim_ascii_end()).ok_or("a chunk's size is none")?;
                    bytes.advance(end + 1);
                    *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    if bytes.is_empty() {
                        return Ok(Part::NotYet);
                    }
                    let data = take(bytes, left);
                    if *left == 0 {
                        *self = Self::End;
                    }
                    return Ok(Part::Data(data));
                }
                Self::End => {
                    if bytes.len() < 2 {
                        return Ok(Part::NotYet);
                    }
                    if bytes[..2] != *b"\r\n" {
                        return Err("a chunk longer than it says");
                    }
                    bytes.advance(2);
                    *self = Self::Size;
                }
                Self::Trailers => {
                    if bytes.starts_with(b"\r\n") {
                        bytes.advance(2);
                        *self = Self::Over;
                        return Ok(Part::Over);
                    }
                    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                        let too_long = bytes.len() > LONGEST_TRAILERS;
                        return if too_long {
                            Err("trailers without end")
                        } else {
                            Ok(Part::NotYet)
                        };
                    };
                    let trailers = trailers(&bytes[..end + 4])?;
                    bytes.advance(end + 4);
                    *self = Self::Over;
                    return Ok(Part::Trailers(trailers));
                }
                Self::Over => return Ok(Part::Over),
            }
        }
    }
}

/// Takes what is here of the `left` bytes that belong together.
pub(super) fn take(bytes: &mut BytesMut, left: &mut u64) -> Bytes {
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= here as u64;
    bytes.split_to(here).freeze()
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

/// For the fuzzer: an answer is the same whatever pieces it comes in.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8], size: usize) {
    assert_eq!(all_of(&[bytes]), all_of(&bytes.chunks(size).collect::<Vec<_>>()));
}

/// What there is to see of an answer that comes in these pieces: its status, its body, whether it is over.
#[cfg(any(test, fuzzing))]
fn all_of(pieces: &[&[u8]]) -> Option<(u16, Vec<u8>, bool)> {
    let (mut bytes, mut head, mut data) = (BytesMut::new(), None, Vec::new());
    for piece in pieces {
        bytes.extend_from_slice(piece);
        if head.is_none() {
            head = read_head(&mut bytes, false).ok()?;
        }
        let Some(Head { framing, .. }) = &mut head else { continue };
        if let Framing::Chunked(chunks) = framing {
            loop {
                match chunks.take(&mut bytes).ok()? {
                    Part::Data(more) => data.extend_from_slice(&more),
                    Part::NotYet | Part::Over => break,
                    Part::Trailers(_) => {}
                }
            }
        }
    }
    let head = head?;
    Some((head.status.as_u16(), data, matches!(head.framing, Framing::Chunked(Chunks::Over))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Option<Head>, Malformed> {
        read_head(&mut BytesMut::from(text), false)
    }

    #[test]
    fn a_head_says_what_follows() {
        for (fields, shown) in [
            ("content-length: 5\r\n", "Length(5) true"),
            ("content-length: 5, 5\r\ncontent-length: 5\r\n", "Length(5) true"),
            ("content-length: 0\r\n", "Over true"),
            ("Transfer-Encoding: Chunked\r\n", "Chunked(Size) true"),
            ("transfer-encoding: chunked\r\ncontent-length: 1\r\n", "Chunked(Size) false"),
            ("content-length: 5\r\nconnection: x, Close\r\n", "Length(5) false"),
            ("", "UntilClose false"),
        ] {
            let head = read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).expect(fields);
            let head = head.expect("whole");
            assert_eq!(format!("{:?} {}", head.framing, head.keeps_alive), shown, "{fields}");
        }
        for head in ["HTTP/1.1 204 x\r\n\r\n", "HTTP/1.1 304 x\r\ncontent-length: 9\r\n\r\n"] {
            assert!(matches!(read(head), Ok(Some(Head { framing: Framing::Over, .. }))), "{head}");
        }
        let old = "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n";
        assert!(matches!(read(old), Ok(Some(Head { keeps_alive: false, .. }))));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_malformed() {
        for fields in [
            "x: y\ncontent-length: 5\r\n",
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: +5\r\n",
            "content-length: 5,\r\n",
            "content-length: 99999999999999999999\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "x: y\r\n folded\r\n",
            "x : y\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).is_err(), "{fields}");
        }
        assert!(read("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(read(&format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(LONGEST_HEAD))).is_err());
    }

    /// The parts of a body that comes in pieces of this size, its data joined.
    fn parts(text: &str, piece: usize) -> Result<(String, Option<HeaderMap>, bool), Malformed> {
        let (mut chunks, mut bytes) = (Chunks::Size, BytesMut::new());
        let (mut data, mut trailers, mut over) = (Vec::new(), None, false);
        for piece in text.as_bytes().chunks(piece) {
            bytes.extend_from_slice(piece);
            loop {
                match chunks.take(&mut bytes)? {
                    Part::NotYet => break,
                    Part::Data(more) => data.extend_from_slice(&more),
                    Part::Trailers(fields) => trailers = Some(fields),
                    Part::Over => {
                        over = true;
                        break;
                    }
                }
            }
        }
        Ok((String::from_utf8(data).expect("text"), trailers, over && bytes.is_empty()))
    }

    #[test]
    fn chunks_are_the_same_in_whatever_pieces_they_come() {
        for (text, expected) in [
            ("3 \r\nabc\r\n1;x=\"y\"\r\nd\r\n0\r\n\r\n", Some("abcd")),
            ("A\r\n0123456789\r\n00\r\nx-sum: 1\r\n\r\n", Some("0123456789")),
            ("3\r\nabcd\r\n0\r\n\r\n", None),
            ("3\nabc\r\n0\r\n\r\n", None),
            ("g\r\n", None),
            ("fffffffffffffffff\r\n", None),
            ("0\r\nno field\r\n\r\n", None),
        ] {
            for piece in 1..=text.len() {
                let found = parts(text, piece);
                match expected {
                    None => assert!(found.is_err(), "{text:?} in pieces of {piece}: {found:?}"),
                    Some(data) => {
                        let (found, trailers, over) = found.expect("well-formed");
                        assert!(over && found == data, "{text:?} in pieces of {piece}");
                        assert_eq!(trailers.is_some(), text.contains("x-sum"));
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_head(&mut BytesMut::from(&bytes[..]), false);
            let (mut chunks, mut bytes) = (Chunks::Size, BytesMut::from(&bytes[..]));
            while let Ok(Part::Data(_)) = chunks.take(&mut bytes) {}
        }

        #[test]
        fn what_is_written_is_what_is_read(
            fields in proptest::collection::vec(("[a-z][a-z0-9-]{0,12}", "[!-~]{1,20}"), 0..20),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                let name = HeaderName::from_bytes(format!("x-{name}").as_bytes()).expect("a name");
                headers.append(name, HeaderValue::from_str(value).expect("a value"));
            }
            let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
            write_fields(&headers, &mut text);
            let head = read_head(&mut BytesMut::from(&text[..]), false).expect("well-formed");
            prop_assert_eq!(head.expect("whole").headers, headers);
        }
    }
}
