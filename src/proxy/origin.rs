//! Where a request comes from, as the worker is told: `X-Forwarded-For` and `X-Forwarded-Proto`, and
//! `Forwarded` (RFC 7239) where the hop before speaks it. What a client says of itself in them is believed,
//! and added to, only where its address is one of `trusted_proxies`; from all others these fields are
//! removed. `x-request-id` is kept, or made, and `Via` names us (RFC 9110, 7.6.3).

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::header::{FORWARDED, HeaderName, HeaderValue, VIA};
use http::{HeaderMap, Version};

use super::http1::write_field;
use super::names::Names;
use crate::runtime::rng;
use crate::types::Network;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What hops say of a request: ours to remove, to set or to add to. The first are only kept of hops that are trusted.
const OURS: [&str; 8] = [
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
    "via",
];
const OURS_AMONG: Names = Names::among(&OURS);
/// Longer ids are no ids.
const LONGEST_ID: usize = 128;

/// Whether a client must not be able to take this field away by nominating it in `Connection`.
pub(super) fn is_ours(name: &HeaderName) -> bool {
    OURS.contains(&name.as_str())
}

/// The client's side of one connection.
#[derive(Debug)]
pub(super) struct Origin {
    /// Its address, as `X-Forwarded-For` has it.
    address: HeaderValue,
    /// The same as an element of `Forwarded`.
    element: HeaderValue,
    proto: HeaderValue,
    is_trusted: bool,
}

impl Origin {
    pub(super) fn new(peer: SocketAddr, is_tls: bool, trusted: &[Network]) -> Self {
        let ip = peer.ip().to_canonical();
        let proto = if is_tls { "https" } else { "http" };
        let node = if ip.is_ipv6() { format!("\"[{ip}]\"") } else { ip.to_string() };
        // Shared by all requests of the connection: no copy for each.
        let value = |text: String| {
            HeaderValue::from_maybe_shared(Bytes::from(text)).expect("digits, letters and dots")
        };
        Self {
            address: value(ip.to_string()),
            element: value(format!("for={node};proto={proto}")),
            proto: HeaderValue::from_static(proto),
            is_trusted: trusted.iter().any(|network| network.contains(ip)),
        }
    }

    /// Says it in the head of a request that came in this version of HTTP, whose fields have these names; or leaves it to
    /// whoever writes that head, which is most often the case.
    pub(super) fn mark(
        self: &Rc<Self>,
        headers: &mut HeaderMap,
        names: Names,
        version: Version,
    ) -> Option<Mark> {
        if !names.may_have_any(OURS_AMONG) {
            let (origin, via, id) = (Rc::clone(self), via(version), new_id());
            return Some(Mark { origin, names, via, id });
        }
        let via = HeaderValue::from_static(via(version));
        add(headers, &VIA, &via);
        if self.is_trusted {
            add(headers, &FOR, &self.address);
            if headers.contains_key(FORWARDED) {
                add(headers, &FORWARDED, &self.element);
            }
            headers.entry(PROTO).or_insert_with(|| self.proto.clone());
        } else {
            for name in &OURS[..4] {
                headers.remove(*name);
            }
            headers.insert(FOR, self.address.clone());
            headers.insert(PROTO, self.proto.clone());
        }
        let mut said = headers.get_all(REQUEST_ID).iter();
        let (first, is_one) = (said.next().filter(|id| is_id(id)).cloned(), said.next().is_none());
        if first.is_none() || !is_one {
            headers.insert(REQUEST_ID, first.unwrap_or_else(|| id_value(&new_id())));
        }
        None
    }
}

/// What a head has still to say of where its request comes from.
#[derive(Debug)]
pub(super) struct Mark {
    origin: Rc<Origin>,
    /// Of the fields that the head has so far.
    pub(super) names: Names,
    via: &'static str,
    id: [u8; 32],
}

impl Mark {
    /// Whether a field of this name may be among what it says.
    pub(super) fn may_have(name: &str) -> bool {
        OURS_AMONG.may_have(name)
    }

    /// Says it in `headers`.
    pub(super) fn insert(self, headers: &mut HeaderMap) {
        headers.insert(FOR, self.origin.address.clone());
        headers.insert(PROTO, self.origin.proto.clone());
        headers.insert(REQUEST_ID, id_value(&self.id));
        headers.insert(VIA, HeaderValue::from_static(self.via));
    }

    /// Writes it, each field a line.
    pub(super) fn write(&self, into: &mut BytesMut) {
        write_field(FOR.as_str(), self.origin.address.as_bytes(), into);
        write_field(PROTO.as_str(), self.origin.proto.as_bytes(), into);
        write_field(REQUEST_ID.as_str(), &self.id, into);
        write_field(VIA.as_str(), self.via.as_bytes(), into);
    }
}

fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0 forebay",
        Version::HTTP_2 => "2.0 forebay",
        _ => "1.1 forebay",
    }
}

/// Appends to the list that a field is, on as many lines as it may be.
fn add(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    let mut list = Vec::new();
    for before in headers.get_all(name) {
        list.extend_from_slice(before.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(value.as_bytes());
    // It is made of values.
    if let Ok(list) = HeaderValue::from_maybe_shared(Bytes::from(list)) {
        headers.insert(name.clone(), list);
    }
}

fn is_id(value: &HeaderValue) -> bool {
    let id = value.as_bytes();
    (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// Thirty-two hexadecimal digits.
fn new_id() -> [u8; 32] {
    let drawn = u128::from(rng::draw()) << 64 | u128::from(rng::draw());
    std::array::from_fn(|place| {
        let digit = (drawn >> (4 * place)) & 15;
        b"0123456789abcdef"[digit as usize]
    })
}

fn id_value(id: &[u8; 32]) -> HeaderValue {
    HeaderValue::from_bytes(id).expect("digits and letters")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(origin: &Rc<Origin>, headers: &mut HeaderMap, version: Version) {
        let names = Names::of(headers);
        if let Some(mark) = origin.mark(headers, names, version) {
            let mut written = BytesMut::new();
            mark.write(&mut written);
            mark.insert(headers);
            let mut inserted = BytesMut::new();
            crate::proxy::http1::write_fields(headers, &mut inserted);
            assert!(inserted.ends_with(&written), "{inserted:?}");
        }
    }

    fn told(peer: &str, tls: bool, said: &[(&'static str, &'static str)]) -> Vec<String> {
        let trusted = ["10.0.0.0/8".parse().expect("a network")];
        let peer = SocketAddr::new(peer.parse().expect("an address"), 4_711);
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        marked(&Rc::new(Origin::new(peer, tls, &trusted)), &mut headers, Version::HTTP_11);
        let id = headers.remove(REQUEST_ID).expect("an id");
        assert!(is_id(&id));
        assert_eq!(headers.remove(VIA).expect("one"), "1.1 forebay");
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        lines.sort();
        lines
    }

    const CLAIMS: [(&str, &str); 6] = [
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "a.example"),
        ("x-real-ip", "1.1.1.1"),
        ("forwarded", "for=1.1.1.1"),
    ];

    #[test]
    fn only_trusted_hops_are_believed() {
        assert_eq!(
            told("192.0.2.7", false, &CLAIMS),
            ["x-forwarded-for: 192.0.2.7", "x-forwarded-proto: http"]
        );
        assert_eq!(
            told("::ffff:10.0.0.9", false, &CLAIMS),
            [
                "forwarded: for=1.1.1.1, for=10.0.0.9;proto=http",
                "x-forwarded-for: 1.1.1.1, 2.2.2.2, 10.0.0.9",
                "x-forwarded-host: a.example",
                "x-forwarded-proto: https",
                "x-real-ip: 1.1.1.1"
            ]
        );
        assert_eq!(
            told("10.0.0.9", true, &[]),
            ["x-forwarded-for: 10.0.0.9", "x-forwarded-proto: https"]
        );
        let v6 = Origin::new("[2001:db8::1]:1".parse().expect("an address"), true, &[]);
        assert_eq!(v6.element, "for=\"[2001:db8::1]\";proto=https");
    }

    #[test]
    fn each_of_ours_is_looked_for() {
        let hosts = ["x-forwarded-host", "x-forwarded-port", "x-real-ip"];
        let hosts = hosts.map(HeaderName::from_static);
        let ours = [FOR, PROTO, FORWARDED, REQUEST_ID, VIA];
        assert!(ours.iter().chain(&hosts).all(is_ours));
        assert!(!is_ours(&HeaderName::from_static("x-stainless-lang")));
        assert!(OURS.iter().all(|name| Mark::may_have(name)));
        // Where callers are told apart by default.
        assert!(!Mark::may_have("authorization"));
    }

    #[test]
    fn via_names_each_hop() {
        let origin = Rc::new(Origin::new("192.0.2.7:1".parse().expect("an address"), false, &[]));
        let mut headers = HeaderMap::new();
        for (version, via) in [
            (Version::HTTP_10, "1.0 forebay"),
            (Version::HTTP_2, "1.0 forebay, 2.0 forebay"),
            (Version::HTTP_11, "1.0 forebay, 2.0 forebay, 1.1 forebay"),
        ] {
            marked(&origin, &mut headers, version);
            assert_eq!(headers.get_all(VIA).iter().collect::<Vec<_>>(), [via]);
        }
    }

    #[test]
    fn an_id_is_kept_or_made() {
        let origin = Rc::new(Origin::new("192.0.2.7:1".parse().expect("an address"), false, &[]));
        let id = |said: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(said) = said {
                headers.insert(REQUEST_ID, HeaderValue::from_static(said));
            }
            marked(&origin, &mut headers, Version::HTTP_11);
            headers[REQUEST_ID].to_str().expect("text").to_owned()
        };
        assert_eq!(id(Some("abc-1")), "abc-1");
        assert_eq!(id(None).len(), 32);
        assert_ne!(id(None), id(None));
        for odd in ["", "two words"] {
            assert_eq!(id(Some(odd)).len(), 32, "{odd:?}");
        }
    }
}
