//! Header fields between the two connections: what concerns one connection alone is not passed on
//! (RFC 9110, 7.6.1), and the framing is set anew from the body itself, so that what reaches a worker
//! is never ambiguous.

use super::names::Names;
use super::origin;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Uri};

/// Fields that end at this hop, besides those that `Connection` nominates. What is between a client and a proxy is
/// none of a worker's (RFC 9110, 11.7), and `HTTP2-Settings` begins an upgrade that is never made (RFC 7540, 3.2.1).
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-authentication-info",
    "http2-settings",
];

/// Whether fields of this name are never passed on.
pub(super) fn ends_at_this_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Removes what concerns only the connection that the message came by, whose fields have these names.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap, names: Names) {
    if !names.may_have_any(const { Names::among(&HOP_BY_HOP) }) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        remove_nominated(headers);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes the fields that `Connection` names. `Host`, the length and what we say of the request's origin are
/// never a hop's own: a client that nominates them must not be able to take them away.
fn remove_nominated(headers: &mut HeaderMap) {
    let nominated: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH && !origin::is_ours(name))
        .collect();
    for name in nominated {
        headers.remove(name);
    }
}

/// The target's authority, where it has one (HTTP/2, absolute-form), is what the request is for, whatever
/// `Host` says (RFC 9112, 3.2.2).
pub(super) fn set_host(headers: &mut HeaderMap, uri: &Uri) {
    let authority = uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
    if let Some(authority) = authority {
        headers.insert(HOST, authority);
    }
}

/// HTTP/2 may send one `cookie` field for each of them; HTTP/1.1 knows one for all (RFC 9113, 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (all.next(), all.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(all) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// What a message's body is, as far as that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// `application/grpc`, or with a suffix for its encoding.
    Grpc,
    /// JSON of some kind, or its sender did not say what it is.
    Json,
    Other,
}

impl Content {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(kind) = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else {
            return Self::Json;
        };
        let rest = kind.strip_prefix(b"application/grpc");
        if rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';'))) {
            return Self::Grpc;
        }
        let is_json = kind.windows(4).any(|word| word.eq_ignore_ascii_case(b"json"));
        if is_json { Self::Json } else { Self::Other }
    }
}

/// Whether the body is a stream of server-sent events.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// How long a message's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none, and nothing has to be said about it.
    None,
    /// Exactly so many bytes.
    Exact(u64),
    /// Until it ends.
    Unknown,
}

/// Says the length of a request's body to the worker.
pub(super) fn set_request_framing(method: &Method, headers: &mut HeaderMap, length: Length) {
    match length {
        // Where there could be one it is said that there is none (RFC 9110, 8.6).
        Length::None if [Method::POST, Method::PUT, Method::PATCH].contains(method) => {
            set_length(headers, 0);
        }
        Length::None => {
            headers.remove(CONTENT_LENGTH);
        }
        // Where it says so already it says the same: that is how the length is known.
        Length::Exact(_) if headers.contains_key(CONTENT_LENGTH) => {}
        Length::Exact(bytes) => set_length(headers, bytes),
        Length::Unknown => {
            headers.remove(CONTENT_LENGTH);
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
}

/// What a field says that may come once at most, of a head with these names.
pub(super) fn only<'a>(
    headers: &'a HeaderMap,
    names: Names,
    name: &HeaderName,
) -> Result<Option<&'a str>, ()> {
    if !names.may_have(name) {
        return Ok(None);
    }
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(drop),
        _ => Err(()),
    }
}

/// Digits, and no more of them than it takes: `010` is 8 to some.
pub(super) fn is_plain_number(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    !digits.is_empty()
        && digits.iter().all(u8::is_ascii_digit)
        && (digits == b"0" || digits[0] != b'0')
}

/// Says the length in one field, in plain digits. Nearly every message says it so already.
pub(super) fn set_length(headers: &mut HeaderMap, bytes: u64) {
    let mut said = headers.get_all(CONTENT_LENGTH).iter();
    let (plain, other) = (said.next().filter(|value| is_plain_number(value)), said.next());
    let number = plain.and_then(|digits| digits.to_str().ok()?.parse().ok());
    if number != Some(bytes) || other.is_some() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    }
}

/// The protocol that both sides are asked to switch to, if the message asks for it, whose fields have these names.
pub(super) fn wanted_upgrade(headers: &HeaderMap, names: Names) -> Option<HeaderValue> {
    if !names.may_have(UPGRADE) {
        return None;
    }
    // HTTP/2 is never begun this way any more (RFC 9113, 3.1), least of all through a proxy.
    let wanted = headers.get(UPGRADE).filter(|to| !to.as_bytes().eq_ignore_ascii_case(b"h2c"))?;
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    asks.then(|| wanted.clone())
}

/// Whether `to` is among the protocols of a request's `Upgrade`.
pub(super) fn offers(asked: &HeaderValue, to: &HeaderValue) -> bool {
    let mut all = asked.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    all.any(|one| one.eq_ignore_ascii_case(to.as_bytes().trim_ascii()))
}

/// Whether the client takes trailers, whose head has these names.
pub(super) fn takes_trailers(headers: &HeaderMap, names: Names) -> bool {
    names.may_have(TE)
        && headers.get_all(TE).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        })
}

/// Asks the worker, or tells the client, to switch to `protocol`.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// A worker's answer whose length only its framing tells must not carry a length of its own.
pub(super) fn fix_response_framing(headers: &mut HeaderMap, names: Names, exact: bool) {
    let superfluous = if exact { TRAILER } else { CONTENT_LENGTH };
    if names.may_have(&superfluous) {
        headers.remove(superfluous);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).expect("name"),
                HeaderValue::from_str(value).expect("value"),
            );
        }
        map
    }

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let mut map = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "host, content-length"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "Basic c2VjcmV0"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authentication-info", "x"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("x-private", "1"),
            ("x-public", "2"),
            ("host", "h"),
            ("content-length", "3"),
        ]);
        let names = Names::of(&map);
        strip_hop_by_hop(&mut map, names);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-public"]);
    }

    #[test]
    fn what_http2_says_in_its_own_way_is_said_as_http1_does() {
        let mut map =
            headers(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut map);
        set_host(&mut map, &Uri::from_static("https://models.example:8443/v1?x=1"));
        assert_eq!(
            map,
            headers(&[("cookie", "a=1; b=2; c=3"), ("x", "y"), ("host", "models.example:8443")])
        );
        set_host(&mut map, &Uri::from_static("/v1"));
        assert_eq!(map[HOST], "models.example:8443");
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_fields() {
        let asks = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        let wanted = |map: &HeaderMap| wanted_upgrade(map, Names::of(map));
        assert_eq!(wanted(&asks), Some(HeaderValue::from_static("websocket")));
        assert_eq!(wanted(&headers(&[("upgrade", "websocket")])), None);
    }

    #[test]
    fn a_length_is_said_once_and_plainly() {
        for (said, bytes, then) in [
            (&[][..], 5, "5"),
            (&["5"], 5, "5"),
            (&["05"], 5, "5"),
            (&["+5"], 5, "5"),
            (&["5", "5"], 5, "5"),
            (&["5, 5"], 5, "5"),
            (&["7"], 5, "5"),
            (&["0"], 0, "0"),
            (&["00"], 0, "0"),
            (&["18446744073709551615"], u64::MAX, "18446744073709551615"),
        ] {
            let lines: Vec<_> = said.iter().map(|value| ("content-length", *value)).collect();
            let mut map = headers(&lines);
            set_length(&mut map, bytes);
            assert_eq!(map.get_all(CONTENT_LENGTH).iter().collect::<Vec<_>>(), [then], "{said:?}");
        }
    }
}
