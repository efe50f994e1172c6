//! What a worker is told of where a request comes from, and what a client cannot make it believe. Real
//! sockets, both protocols.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod support;

use std::io::Write;

use support::h2::H2;
use support::http;
use support::{Forebay, Worker, by_hand};

const CLAIMS: [(&str, &str); 5] = [
    ("x-forwarded-for", "1.1.1.1"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "bank.example"),
    ("forwarded", "for=1.1.1.1"),
    ("x-real-ip", "1.1.1.1"),
];

/// A header as it arrived.
fn told<'a>(echo: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    let lines = echo["headers"][name].as_array()?;
    assert_eq!(lines.len(), 1, "{name}: {lines:?}");
    lines[0].as_str()
}

#[test]
fn a_client_is_not_believed_and_a_trusted_hop_is() {
    let worker = Worker::start(&[]);
    let strict = Forebay::limited(&worker, "");
    let echo = http::request(strict.proxy, "GET", "/x", &CLAIMS, b"").json();
    assert_eq!(told(&echo, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(told(&echo, "x-forwarded-proto"), Some("http"));
    for name in ["x-forwarded-host", "forwarded", "x-real-ip"] {
        assert_eq!(told(&echo, name), None, "{name}");
    }
    let trusting = Forebay::limited(&worker, "trusted_proxies = [\"127.0.0.0/8\", \"::1\"]");
    let echo = http::request(trusting.proxy, "GET", "/x", &CLAIMS, b"").json();
    assert_eq!(told(&echo, "x-forwarded-for"), Some("1.1.1.1, 127.0.0.1"));
    assert_eq!(told(&echo, "x-forwarded-proto"), Some("https"));
    assert_eq!(told(&echo, "forwarded"), Some("for=1.1.1.1, for=127.0.0.1;proto=http"));
    assert_eq!(told(&echo, "x-forwarded-host"), Some("bank.example"));
}

#[test]
fn what_we_say_cannot_be_taken_away_by_nominating_it() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let headers = [
        ("connection", "x-forwarded-for, x-forwarded-proto, X-Request-Id, x-private"),
        ("x-private", "1"),
    ];
    let echo = http::request(forebay.proxy, "GET", "/x", &headers, b"").json();
    assert_eq!(told(&echo, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(told(&echo, "x-forwarded-proto"), Some("http"));
    assert!(told(&echo, "x-request-id").is_some());
    assert_eq!(told(&echo, "x-private"), None);
}

#[test]
fn what_is_between_a_client_and_its_proxy_is_no_workers_and_the_other_way_round() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let headers = [
        ("proxy-authorization", "Basic c2VjcmV0"),
        ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
        ("x-public", "1"),
    ];
    let echo = http::request(forebay.proxy, "GET", "/x", &headers, b"").json();
    assert_eq!(told(&echo, "proxy-authorization"), None);
    assert_eq!(told(&echo, "http2-settings"), None);
    assert_eq!(told(&echo, "x-public"), Some("1"));
    let asking = by_hand::healthy(|_, stream| {
        let answer = "HTTP/1.1 407 No\r\nproxy-authenticate: Basic\r\nproxy-authentication-info: x\r\n\
                      x-public: 1\r\ncontent-length: 0\r\n\r\n";
        drop(stream.write_all(answer.as_bytes()));
    });
    let answer = http::get(Forebay::limited_at(asking, "").proxy, "/x");
    assert_eq!((answer.status, answer.header("x-public")), (407, Some("1")));
    assert_eq!(answer.header("proxy-authenticate"), None);
    assert_eq!(answer.header("proxy-authentication-info"), None);
}

#[test]
fn via_names_us_behind_those_before() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let via = |headers: &[(&str, &str)]| {
        let echo = http::request(forebay.proxy, "GET", "/x", headers, b"").json();
        told(&echo, "via").map(ToOwned::to_owned)
    };
    assert_eq!(via(&[]).as_deref(), Some("1.1 forebay"));
    let before = [("via", "1.0 a"), ("via", "2.0 b"), ("connection", "via")];
    assert_eq!(via(&before).as_deref(), Some("1.0 a, 2.0 b, 1.1 forebay"));
}

#[test]
fn an_options_goes_as_far_as_it_may() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let ask = |target: &str, forwards: &[&str]| {
        let headers: Vec<_> = forwards.iter().map(|number| ("max-forwards", *number)).collect();
        http::request(forebay.proxy, "OPTIONS", target, &headers, b"")
    };
    for target in ["*", "/x"] {
        assert_eq!(ask(target, &["0"]).status, 204);
    }
    assert_eq!(ask("/x", &["zero"]).header("x-forebay-error"), Some("malformed_request"));
    assert_eq!(ask("/x", &["1", "1"]).header("x-forebay-error"), Some("malformed_request"));
    assert_eq!(worker.stat("started"), 0, "no worker has seen it");
    let echo = ask("/x", &["7"]).json();
    assert_eq!(told(&echo, "max-forwards"), Some("6"));
    // To other methods it means nothing.
    let echo = http::request(forebay.proxy, "GET", "/x", &[("max-forwards", "0")], b"").json();
    assert_eq!(told(&echo, "max-forwards"), Some("0"));
}

#[test]
fn a_requests_id_is_kept_or_made() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let echo = http::request(forebay.proxy, "GET", "/x", &[("x-request-id", "mine-7")], b"").json();
    assert_eq!(told(&echo, "x-request-id"), Some("mine-7"));
    let twice = [("x-request-id", "mine-7"), ("x-request-id", "mine-8")];
    let echo = http::request(forebay.proxy, "GET", "/x", &twice, b"").json();
    assert_eq!(echo["headers"].to_string().matches("mine-").count(), 1, "{echo}");
    let mut client = H2::connect(forebay.proxy);
    let mut made = || {
        let answer = client.send("/x", "{}");
        let head = client.head(answer);
        let (body, error) = client.rest(head);
        assert!(error.is_none());
        let echo: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(told(&echo, "x-forwarded-for"), Some("127.0.0.1"));
        told(&echo, "x-request-id").expect("an id").to_owned()
    };
    let (first, second) = (made(), made());
    assert_ne!(first, second);
    assert!([first, second].iter().all(|id| id.len() == 32));
}
