//! What a request's head must be beyond what the parser asks for. Whatever two readers could understand
//! differently is refused, so that what reaches a worker is unambiguous. Each rule names its paragraph.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, MAX_FORWARDS,
    TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Version};
use http_body::Frame;

use super::headers;
use super::refusal::Refusal;

/// Fields that frame a message, say for whom or from whom it is: some servers read `_` in a name as `-`.
const DISGUISED: [&str; 11] = [
    "content_length",
    "transfer_encoding",
    "content_type",
    "x_forwarded_for",
    "x_forwarded_proto",
    "x_forwarded_host",
    "x_forwarded_port",
    "x_real_ip",
    "x_api_key",
    "proxy_authorization",
    "x_forebay_endpoint",
];

/// Fields that must not come in a trailer (RFC 9110, 6.5.1), besides those that end at a hop: they frame, route or
/// authenticate, or say where a request comes from.
const NOT_IN_TRAILERS: [&str; 13] = [
    "content-length",
    "host",
    "trailer",
    "authorization",
    "x-api-key",
    "content-encoding",
    "content-type",
    "expect",
    "cookie",
    "set-cookie",
    "forwarded",
    "x-real-ip",
    "x-request-id",
];

/// Whether a trailer's name is one that only a head may have, or looks like it to those who read `_` as `-`.
fn is_for_heads(name: &HeaderName) -> bool {
    let mut name = Cow::Borrowed(name.as_str());
    if name.contains('_') {
        name = name.replace('_', "-").into();
    }
    let prefixes = ["x-forwarded-", "x-forebay-", "x-amzn-sagemaker-", "proxy-"];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        || NOT_IN_TRAILERS.contains(&&*name)
        || headers::ends_at_this_hop(&name)
}

/// Whether trailers frame the message, which they cannot (RFC 9110, 6.5.1).
pub(super) fn frames(trailers: &HeaderMap) -> bool {
    [CONTENT_LENGTH, TRANSFER_ENCODING, HOST].iter().any(|name| trailers.contains_key(name))
}

/// Whether the head means one thing.
///
/// # Errors
/// [`Refusal::Malformed`], with what is wrong.
pub(super) fn check(parts: &Parts) -> Result<(), Refusal> {
    let wrong = method(parts).or_else(|| target(parts)).or_else(|| fields(parts));
    wrong.map_or(Ok(()), |why| Err(Refusal::Malformed(why)))
}

/// Whether an OPTIONS is for whoever gets it now; if not, it has one forward less (RFC 9110, 7.6.2).
///
/// # Errors
/// [`Refusal::Malformed`] where it is not said how many it has.
pub(super) fn ends_here(parts: &mut Parts) -> Result<bool, Refusal> {
    if parts.method != Method::OPTIONS {
        return Ok(false);
    }
    let mut values = parts.headers.get_all(MAX_FORWARDS).iter();
    let Some(value) = values.next() else { return Ok(false) };
    let left =
        value.to_str().ok().filter(|_| headers::is_plain_number(value) && values.next().is_none());
    // There are never more hops than that.
    let left = left.map(|digits| digits.parse().unwrap_or(u32::MAX));
    let left = left.ok_or(Refusal::Malformed("Max-Forwards is not one plain number"))?;
    if let Some(left) = left.checked_sub(1) {
        parts.headers.insert(MAX_FORWARDS, left.into());
    }
    Ok(left == 0)
}

/// Whether a field's name is one (RFC 9110, 5.6.2): the type for names takes `"` as well, which HTTP/1.1 refuses.
pub(super) fn is_token(name: &HeaderName) -> bool {
    !name.as_str().contains('"')
}

/// A piece of a message, of trailers without what has no place there.
pub(super) fn cleaned(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            clean_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// Drops what has no place in trailers.
fn clean_trailers(trailers: &mut HeaderMap) {
    let odd: Vec<HeaderName> = trailers.keys().filter(|name| is_for_heads(name)).cloned().collect();
    for name in odd {
        trailers.remove(name);
    }
}

fn method(parts: &Parts) -> Option<&'static str> {
    match parts.method {
        // A tunnel to anywhere is for forward proxies (RFC 9110, 9.3.6).
        Method::CONNECT => Some("CONNECT is not served"),
        // The answer would show what was added on the way (RFC 9110, 9.3.8).
        Method::TRACE => Some("TRACE is not served"),
        // Methods are case-sensitive (RFC 9110, 9.1), and not everybody knows.
        ref other if other.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) => {
            Some("the method has small letters")
        }
        _ => None,
    }
}

/// The target's form (RFC 9112, 3.2).
fn target(parts: &Parts) -> Option<&'static str> {
    let uri = &parts.uri;
    if let Some(authority) = uri.authority() {
        if uri.scheme().is_none() {
            return Some("the target is an authority, which is for CONNECT alone");
        }
        if authority.as_str().contains('@') {
            // RFC 9110, 4.2.4: a reader may take what is before the @ for the host.
            return Some("the target has user information");
        }
        if !is_plain(authority) {
            return Some("the target's host or port is none");
        }
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Some("the target's scheme is neither http nor https");
        }
    }
    let target = uri.path_and_query().map_or("", PathAndQuery::as_str).as_bytes();
    if !target.iter().all(u8::is_ascii_graphic) {
        // RFC 3986, 2: some readers take such bytes as they are, some in quotes, some not at all.
        return Some("the target has a byte that is to be written with a percent sign");
    }
    if target.contains(&b'\\') {
        // RFC 3986, 3.3: to some it is a slash.
        return Some("the target has a backslash");
    }
    for at in memchr::memchr_iter(b'%', target) {
        match &target[at + 1..] {
            // RFC 3986, 7.3: to some the rest is not there.
            [b'0', b'0', ..] => return Some("the target has a NUL"),
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {}
            // RFC 3986, 2.1.
            _ => return Some("the target has a percent sign that no two digits follow"),
        }
    }
    if parts.version == Version::HTTP_2 && target.starts_with(b"?") {
        // RFC 9113, 8.3.1.
        return Some("the target is no path");
    }
    match uri.path() {
        "*" if parts.method != Method::OPTIONS => Some("the target `*` is for OPTIONS alone"),
        path if path.starts_with('/') || path == "*" => None,
        _ => Some("the target is no path"),
    }
}

/// One look at each field.
fn fields(parts: &Parts) -> Option<&'static str> {
    let (mut host, mut length, mut coding) = (None, None, None);
    for (name, value) in &parts.headers {
        if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = value.as_bytes() {
            // RFC 9113, 8.2.1. In HTTP/1.1 they are not the value's.
            return Some("a field's value begins or ends with a blank");
        }
        let (seen, twice) = match *name {
            // RFC 9112, 3.2.
            HOST => (&mut host, "there are several Host fields"),
            // RFC 9112, 6.3; equal ones are one too many as well.
            CONTENT_LENGTH => (&mut length, "there are several Content-Length fields"),
            // RFC 9112, 6.1.
            TRANSFER_ENCODING => (&mut coding, "there are several Transfer-Encoding fields"),
            // RFC 9110, 7.6.1: what frames a message is for its recipient, whoever that is.
            CONNECTION if nominates_framing(value) => {
                return Some("Connection names a field that frames the message");
            }
            // RFC 9110, 10.1.1.
            EXPECT if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
                return Some("Expect is something other than 100-continue");
            }
            _ if name.as_str().bytes().any(|byte| matches!(byte, b'"' | b'_')) => {
                if !is_token(name) {
                    return Some("a field's name is none");
                }
                if DISGUISED.contains(&name.as_str()) {
                    return Some("a field's name is that of another but for an underscore");
                }
                continue;
            }
            _ => continue,
        };
        if seen.replace(value).is_some() {
            return Some(twice);
        }
    }
    let http1 = parts.version <= Version::HTTP_11;
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Some("Transfer-Encoding is something other than chunked");
    }
    if coding.is_some() && parts.version == Version::HTTP_10 {
        // RFC 9112, 6.1.
        return Some("the version is one that has no Transfer-Encoding");
    }
    if coding.is_some() && length.is_some() {
        return Some("both Content-Length and Transfer-Encoding are there");
    }
    if length.is_some_and(|length| !headers::is_plain_number(length)) {
        return Some("Content-Length is no plain number");
    }
    match host {
        None if http1 && parts.version == Version::HTTP_11 => Some("there is no Host"),
        None => None,
        Some(host) => host_is_wrong(parts, host),
    }
}

/// Whether it is a host (RFC 3986, 3.2.2; an address in brackets is one), and digits up to 65535 for a port, or none.
fn is_plain(authority: &Authority) -> bool {
    let host = authority.host();
    let is_host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty(),
    };
    let is_port = match authority.as_str().strip_prefix(host) {
        Some("") => true,
        Some(rest) => rest.strip_prefix(':').is_some_and(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && (port.is_empty() || port.parse::<u16>().is_ok())
        }),
        None => false,
    };
    is_host && is_port
}

fn host_is_wrong(parts: &Parts, host: &HeaderValue) -> Option<&'static str> {
    let host = host.as_bytes();
    // Nearly all are plain names. It may be empty, where the target has no authority (RFC 9112, 3.2).
    let is_name = host.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte));
    let is_host = |host: Authority| !host.as_str().contains('@') && is_plain(&host);
    if !is_name && !Authority::try_from(host).is_ok_and(is_host) {
        return Some("Host is no host");
    }
    let authority = parts.uri.authority()?;
    // RFC 9112, 3.2.2 would have it overwritten, RFC 9113, 8.3.1 refused.
    let same = authority.as_str().as_bytes().eq_ignore_ascii_case(host);
    (!same).then_some("Host is not the one of the target")
}

fn nominates_framing(connection: &HeaderValue) -> bool {
    let mut tokens = connection.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tokens.any(|token| {
        [&b"host"[..], b"content-length", b"transfer-encoding"]
            .iter()
            .any(|name| token.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn refused(method: &str, target: &str, fields: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("hyper would let it through").into_parts();
        check(&parts).err().map(|refusal| refusal.to_string())
    }

    #[test]
    fn what_means_one_thing_passes() {
        for (method, target, fields) in [
            ("GET", "/", &[("host", "models.example:8080")][..]),
            ("POST", "/v1?x=%2f", &[("host", "[::1]:80"), ("content-length", "0")]),
            ("POST", "/x", &[("host", "h"), ("transfer-encoding", "Chunked")]),
            ("GET", "http://H.example/x", &[("host", "h.EXAMPLE")]),
            ("OPTIONS", "*", &[("host", "h"), ("expect", "100-Continue")]),
            ("GET", "/", &[("host", "")]),
            ("GET", "http://[::1]/", &[("host", "[::1]")]),
            ("GET", "/%7e%C3%9C", &[("host", "h:")]),
            ("GET", "/", &[("host", "h"), ("x_request_id", "1")]),
        ] {
            assert_eq!(refused(method, target, fields), None, "{method} {target} {fields:?}");
        }
    }

    #[test]
    fn an_options_has_so_many_forwards() {
        let left = |method: &str, said: &[&str]| {
            let request = Request::builder().method(method).uri("/");
            let request = said.iter().fold(request, |r, value| r.header(MAX_FORWARDS, *value));
            let (mut parts, ()) = request.body(()).expect("a request").into_parts();
            let ends = ends_here(&mut parts).ok()?;
            let left =
                parts.headers.get(MAX_FORWARDS).map(|v| v.to_str().expect("text").to_owned());
            Some((ends, left.unwrap_or_default()))
        };
        let some = |ends, left: &str| Some((ends, left.to_owned()));
        assert_eq!(left("OPTIONS", &[]), some(false, ""));
        assert_eq!(left("OPTIONS", &["0"]), some(true, "0"));
        assert_eq!(left("OPTIONS", &["1"]), some(false, "0"));
        assert_eq!(left("OPTIONS", &["99999999999"]), some(false, "4294967294"));
        assert_eq!(left("GET", &["0"]), some(false, "0"));
        for said in [&[""][..], &["-1"], &["01"], &["1", "1"], &["one"]] {
            assert_eq!(left("OPTIONS", said), None, "{said:?}");
        }
    }

    #[test]
    fn trailers_have_nothing_of_a_head_or_a_hop() {
        let mut trailers = HeaderMap::new();
        for name in [
            "content-length",
            "content_length",
            "host",
            "x-forwarded-for",
            "x_forwarded-for",
            "keep-alive",
            "proxy-connection",
            "te",
            "upgrade",
            "grpc-status",
            "x-checksum",
            "x_checksum",
        ] {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        clean_trailers(&mut trailers);
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum", "x_checksum"]);
    }
}
