//! Heads of requests and answers: read once all of one is here, and written.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use super::body::{Framing, has_bare_feed};
use super::{MOST_FIELDS, Malformed};
use crate::proxy::headers;
use crate::proxy::names::Names;

/// The longest head of an answer.
const LONGEST_ANSWER: usize = 64 << 10;

/// Writes a request's first line, and fields.
pub(in crate::proxy) fn write_request(
    method: &Method,
    target: &Uri,
    headers: &HeaderMap,
    into: &mut BytesMut,
) {
    let target = target.path_and_query().map_or("/", |target| target.as_str());
    for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        into.extend_from_slice(part.as_bytes());
    }
    write_fields(headers, into);
}

/// Writes the first line of an answer.
pub(in crate::proxy) fn write_status(version: Version, status: StatusCode, into: &mut BytesMut) {
    let version = if version == Version::HTTP_10 { "HTTP/1.0 " } else { "HTTP/1.1 " };
    let reason = status.canonical_reason().unwrap_or_default();
    for part in [version, status.as_str(), " ", reason, "\r\n"] {
        into.extend_from_slice(part.as_bytes());
    }
}

/// Writes fields, each a line.
pub(in crate::proxy) fn write_fields(fields: &HeaderMap, into: &mut BytesMut) {
    for (name, value) in fields {
        write_field(name.as_str(), value.as_bytes(), into);
    }
}

/// Writes one of them.
pub(in crate::proxy) fn write_field(name: &str, value: &[u8], into: &mut BytesMut) {
    into.reserve(name.len() + value.len() + 4);
    into.extend_from_slice(name.as_bytes());
    into.extend_from_slice(b": ");
    into.extend_from_slice(value);
    into.extend_from_slice(b"\r\n");
}

/// Why there is no request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum HeadError {
    /// It is none.
    Malformed(Malformed),
    /// It is longer, or of more fields, than may be.
    TooLarge,
}

/// A request's head.
#[derive(Debug)]
pub(in crate::proxy) struct RequestHead {
    pub(in crate::proxy) parts: Parts,
    /// Of its fields.
    pub(in crate::proxy) names: Names,
    pub(in crate::proxy) framing: Framing,
    /// Whether the client keeps the connection for another.
    pub(in crate::proxy) keeps_alive: bool,
    /// It waits to be told that its body is wanted.
    pub(in crate::proxy) expects_continue: bool,
}

/// Takes a request's head of at most `longest` bytes off the beginning of `bytes`, once all of it is there. `seen`:
/// how much of it was here before. What the head means is not looked at but for what tells its end and its body's:
/// that is [`crate::proxy::head`]'s.
///
/// # Errors
/// [`HeadError`].
pub(in crate::proxy) fn read_request(
    bytes: &mut BytesMut,
    mut seen: usize,
    longest: usize,
) -> Result<Option<RequestHead>, HeadError> {
    // Empty lines before a request are passed over (RFC 9112, 2.2).
    while bytes.starts_with(b"\r\n") {
        bytes.advance(2);
        seen = seen.saturating_sub(2);
    }
    if bytes.len() < longest && (bytes.len() < 2 || !may_end(bytes, seen)) {
        return Ok(None);
    }
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let read = parsed.parse_with_uninit_headers(bytes, &mut fields);
    let length = match read {
        Ok(httparse::Status::Complete(length)) if length <= longest => length,
        Ok(httparse::Status::Partial) if bytes.len() < longest => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(error) => return Err(HeadError::Malformed(what_is_wrong(error))),
    };
    let head = request_head(&bytes[..length], &parsed).map_err(HeadError::Malformed)?;
    bytes.advance(length);
    Ok(Some(head))
}

/// What it keeps are copies: small ones cost less than to share the buffer with what comes behind them.
fn request_head(
    bytes: &[u8],
    parsed: &httparse::Request<'_, '_>,
) -> Result<RequestHead, Malformed> {
    let is_1_1 = parsed.version == Some(1);
    let (headers, names) = fields_of(bytes, parsed.headers)?;
    let target = parsed.path.unwrap_or_default().as_bytes();
    if target.contains(&b'#') {
        // RFC 9112, 3.2; the type for targets would cut it off.
        return Err("the target has a fragment");
    }
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes());
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method.map_err(|_| "the method is none")?;
    parts.uri = uri(&parts.method, target).ok_or("the target is none")?;
    parts.version = if is_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let framing = request_framing(&headers, names)?;
    let keeps_alive = keeps_alive(&headers, names, is_1_1);
    let expects_continue = is_1_1
        && names.may_have(EXPECT)
        && headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    parts.headers = headers;
    Ok(RequestHead { parts, names, framing, keeps_alive, expects_continue })
}

/// The type for targets does not tell a missing path from `/`, which are two to an OPTIONS: what is not about a path is
/// about the server (RFC 9112, 3.2.4).
fn uri(method: &Method, target: &[u8]) -> Option<Uri> {
    let is_bare = *method == Method::OPTIONS
        && memchr::memmem::find(target, b"://")
            .is_some_and(|at| memchr::memchr2(b'/', b'?', &target[at + 3..]).is_none());
    let uri = Uri::try_from(target).ok()?;
    if !is_bare {
        return Some(uri);
    }
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("*"));
    Uri::from_parts(parts).ok()
}

/// Whether it is worth a look: a head that grows by single bytes is not parsed anew for each.
fn may_end(bytes: &[u8], seen: usize) -> bool {
    seen == 0 || memchr::memchr(b'\n', &bytes[seen..]).is_some()
}

fn what_is_wrong(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::HeaderName => "a field's name is none",
        httparse::Error::HeaderValue => "a field's value is none",
        httparse::Error::NewLine => "a line does not end as lines do",
        httparse::Error::Version => "the version is none that is spoken here",
        _ => "the request's first line is none",
    }
}

/// What follows, of a head whose fields say one thing ([`crate::proxy::head`] refuses the others).
fn request_framing(headers: &HeaderMap, names: Names) -> Result<Framing, Malformed> {
    if names.may_have(TRANSFER_ENCODING) && headers.contains_key(TRANSFER_ENCODING) {
        return Ok(Framing::CHUNKED);
    }
    let Some(length) = headers.get(CONTENT_LENGTH) else { return Ok(Framing::Over) };
    match std::str::from_utf8(length.as_bytes()).ok().and_then(|digits| digits.parse().ok()) {
        Some(0) => Ok(Framing::Over),
        Some(length) => Ok(Framing::Length(length)),
        None => Err("Content-Length is no plain number"),
    }
}

/// An answer's head.
#[derive(Debug)]
pub(in crate::proxy) struct Head {
    pub(in crate::proxy) status: StatusCode,
    pub(in crate::proxy) headers: HeaderMap,
    pub(in crate::proxy) framing: Framing,
    /// Whether the connection may be used again once this answer is over.
    pub(in crate::proxy) keeps_alive: bool,
}

/// Takes an answer's head off the beginning of `bytes`, once all of it is there. `answers_head`: the request was
/// a HEAD.
///
/// # Errors
/// [`Malformed`].
pub(in crate::proxy) fn read_response(
    bytes: &mut BytesMut,
    answers_head: bool,
) -> Result<Option<Head>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let read = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields)
        .map_err(|_| "a head that is none")?;
    let length = match read {
        httparse::Status::Complete(length) if length <= LONGEST_ANSWER => length,
        httparse::Status::Partial if bytes.len() < LONGEST_ANSWER => return Ok(None),
        _ => return Err("a head that is too long"),
    };
    let (code, is_1_1) = (parsed.code.unwrap_or(0), parsed.version == Some(1));
    let status = StatusCode::from_u16(code).map_err(|_| "a status that is none")?;
    let (mut headers, names) = fields_of(&bytes[..length], parsed.headers)?;
    bytes.advance(length);
    let (framing, is_clear) = response_framing(status, &mut headers, names, is_1_1, answers_head)?;
    let ends = matches!(framing, Framing::UntilClose);
    let keeps_alive = is_clear && !ends && keeps_alive(&headers, names, is_1_1);
    Ok(Some(Head { status, headers, framing, keeps_alive }))
}

fn fields_of(
    head: &[u8],
    fields: &[httparse::Header<'_>],
) -> Result<(HeaderMap, Names), Malformed> {
    if has_bare_feed(head) {
        return Err("a bare line feed");
    }
    let mut headers = HeaderMap::with_capacity(fields.len());
    let mut names = Names::default();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| "a field's name is none")?;
        names.note(&name);
        let value = HeaderValue::from_bytes(field.value).map_err(|_| "a field's value is none")?;
        headers.append(name, value);
    }
    Ok((headers, names))
}

/// What follows, and whether there is but one way to read that.
fn response_framing(
    status: StatusCode,
    headers: &mut HeaderMap,
    names: Names,
    is_1_1: bool,
    answers_head: bool,
) -> Result<(Framing, bool), Malformed> {
    let coding = if names.may_have(TRANSFER_ENCODING) {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        match (codings.next(), codings.next()) {
            (None, _) => None,
            (Some(coding), None) if is_1_1 => Some(coding),
            _ => return Err("several transfer codings"),
        }
    } else {
        None
    };
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err("a transfer coding other than chunked");
    }
    let chunked = coding.is_some();
    let length = content_length(headers, names)?;
    let is_clear = !(chunked && length.is_some());
    let none = answers_head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let framing = match length {
        _ if none => Framing::Over,
        _ if chunked => Framing::CHUNKED_LOOSELY,
        Some(0) => Framing::Over,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    };
    Ok((framing, is_clear))
}

/// The length that the head says, however often it says the same; from here on it says it once, in plain digits.
fn content_length(headers: &mut HeaderMap, names: Names) -> Result<Option<u64>, Malformed> {
    if !names.may_have(CONTENT_LENGTH) {
        return Ok(None);
    }
    let (mut found, mut times, mut is_plain) = (None, 0, true);
    for value in headers.get_all(CONTENT_LENGTH) {
        is_plain &= headers::is_plain_number(value);
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let digits = part.trim_ascii();
            let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
            let number: u64 =
                number.filter(|_| is_number).ok_or("a Content-Length that is no number")?;
            times += 1;
            if found.replace(number).is_some_and(|other| other != number) {
                return Err("lengths that differ");
            }
        }
    }
    if let Some(length) = found
        && !(is_plain && times == 1)
    {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    Ok(found)
}

fn keeps_alive(headers: &HeaderMap, names: Names, is_1_1: bool) -> bool {
    if !names.may_have(CONNECTION) {
        return is_1_1;
    }
    let says = |what: &str| {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(what))
    };
    // In HTTP/1.0 too (RFC 9112, 9.3).
    !says("close") && (is_1_1 || says("keep-alive"))
}

/// For the fuzzer: a request, or an answer, is the same whatever pieces it comes in.
#[cfg(any(test, fuzzing))]
pub(in crate::proxy) fn fuzz(bytes: &[u8], size: usize, is_request: bool) {
    let pieces: Vec<_> = bytes.chunks(size).collect();
    assert_eq!(all_of(&[bytes], is_request), all_of(&pieces, is_request));
}

/// What there is to see of a message that comes in these pieces: its first line, its body, whether it is over.
#[cfg(any(test, fuzzing))]
fn all_of(pieces: &[&[u8]], is_request: bool) -> Option<(String, Vec<u8>, bool)> {
    let (mut bytes, mut head, mut data, mut seen) = (BytesMut::new(), None, Vec::new(), 0);
    for piece in pieces {
        bytes.extend_from_slice(piece);
        if head.is_none() {
            head = if is_request {
                let head = read_request(&mut bytes, seen, LONGEST_ANSWER).ok()?;
                head.map(|head| (format!("{:?}", head.parts), head.framing))
            } else {
                let head = read_response(&mut bytes, false).ok()?;
                head.map(|head| (head.status.to_string(), head.framing))
            };
            seen = bytes.len();
        }
        let Some((_, framing)) = &mut head else { continue };
        while let Some(frame) = framing.take(&mut bytes).ok()? {
            data.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }
    let (first, framing) = head?;
    Some((first, data, framing.is_over()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(text: &str) -> Result<Option<Head>, Malformed> {
        read_response(&mut BytesMut::from(text), false)
    }

    fn request(text: &str) -> Result<Option<RequestHead>, HeadError> {
        read_request(&mut BytesMut::from(text), 0, 1 << 10)
    }

    #[test]
    fn a_head_says_what_follows() {
        for (fields, shown) in [
            ("content-length: 5\r\n", "Some(5) true"),
            ("content-length: 5, 5\r\ncontent-length: 5\r\n", "Some(5) true"),
            ("content-length: 0\r\n", "Some(0) true"),
            ("Transfer-Encoding: Chunked\r\n", "None true"),
            ("transfer-encoding: chunked\r\ncontent-length: 1\r\n", "None false"),
            ("content-length: 5\r\nconnection: x, Close\r\n", "Some(5) false"),
            ("", "None false"),
        ] {
            let head = answer(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).expect(fields);
            let head = head.expect("whole");
            assert_eq!(
                format!("{:?} {}", head.framing.rest(), head.keeps_alive),
                shown,
                "{fields}"
            );
        }
        for head in ["HTTP/1.1 204 x\r\n\r\n", "HTTP/1.1 304 x\r\ncontent-length: 9\r\n\r\n"] {
            assert!(
                matches!(answer(head), Ok(Some(Head { framing: Framing::Over, .. }))),
                "{head}"
            );
        }
        let old = "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n";
        assert!(matches!(answer(old), Ok(Some(Head { keeps_alive: false, .. }))));
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
            assert!(answer(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).is_err(), "{fields}");
        }
        assert!(answer("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(answer(&format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(LONGEST_ANSWER))).is_err());
    }

    #[test]
    fn a_request_says_what_follows_and_whether_it_is_the_last() {
        for (head, shown) in [
            ("GET / HTTP/1.1\r\n", "Some(0) true false"),
            ("\r\n\r\nGET / HTTP/1.1\r\n", "Some(0) true false"),
            ("GET / HTTP/1.0\r\n", "Some(0) false false"),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n", "Some(0) true false"),
            (
                "PUT / HTTP/1.1\r\ncontent-length: 7\r\nexpect: 100-Continue\r\n",
                "Some(7) true true",
            ),
            (
                "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n",
                "None false false",
            ),
        ] {
            let head = request(&format!("{head}\r\n")).expect(head).expect("whole");
            let shown_head =
                format!("{:?} {} {}", head.framing.rest(), head.keeps_alive, head.expects_continue);
            assert_eq!(shown_head, shown);
        }
    }

    #[test]
    fn requests_that_others_may_understand_otherwise_are_none() {
        for text in [
            "\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nhost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\r\n\n",
            "GET /#x HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nx : y\r\n\r\n",
            "GET / HTTP/1.1\r\nx: y\r\n z\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
            "GET / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        ] {
            assert!(matches!(request(text), Err(HeadError::Malformed(_))), "{text:?}");
        }
        for text in [
            format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 10)),
            format!("GET / HTTP/1.1\r\n{}", "a".repeat(1 << 10)),
            format!("GET / HTTP/1.1\r\n{}\r\n", "a:\r\n".repeat(101)),
        ] {
            assert_eq!(request(&text).err(), Some(HeadError::TooLarge), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_the_same(
            first in proptest::sample::select(vec!["", "GET / HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\n"]),
            rest in proptest::collection::vec(
                proptest::sample::select(b"\r\n\r\n: 013aTecontent-length: 3transfer-encoding: chunked".to_vec()), 0..300),
            size in 1_usize..20,
        ) {
            let bytes = [first.as_bytes(), &rest].concat();
            fuzz(&bytes, size, true);
            fuzz(&bytes, size, false);
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
            let mut text = BytesMut::new();
            write_status(Version::HTTP_11, StatusCode::OK, &mut text);
            write_fields(&headers, &mut text);
            text.extend_from_slice(b"\r\n");
            let head = read_response(&mut text, false).expect("well-formed");
            prop_assert_eq!(head.expect("whole").headers, headers);
        }
    }
}
