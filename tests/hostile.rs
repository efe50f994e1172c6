//! Requests that two readers could understand differently, each sent whole and byte by byte: refused with
//! 400 and the connection closed, and nothing of them reaches a worker.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::by_hand;
use support::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Raw, frame, literal, request,
};
use support::http::post;
use support::{DEADLINE, Forebay, eventually};

/// What is wrong, by which paragraph, and the request. `{H}` is a good beginning: request line and Host.
const CASES: &[(&str, &str, &str)] = &[
    (
        "a line ends in LF alone",
        "RFC 9112, 2.2",
        "POST /x HTTP/1.1\nhost: h\r\ncontent-length: 0\r\n\r\n",
    ),
    ("a field ends in LF alone", "RFC 9112, 2.2", "{H}content-length: 0\n\r\n"),
    ("the head ends in LF alone", "RFC 9112, 2.2", "{H}content-length: 0\r\n\n"),
    ("a CR within a field", "RFC 9112, 2.2", "{H}x: a\rb\r\n\r\n"),
    ("blanks before the colon", "RFC 9112, 5.1", "{H}content-length : 0\r\n\r\n"),
    ("a field that is folded", "RFC 9112, 5.2", "{H}x: a\r\n b\r\n\r\n"),
    ("blanks before the first field", "RFC 9112, 2.2", "POST /x HTTP/1.1\r\n host: h\r\n\r\n"),
    ("no method", "RFC 9112, 3", " /x HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("blanks in the target", "RFC 9112, 3", "POST /x y HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("another version", "RFC 9112, 2.3", "POST /x HTTP/1.2\r\nhost: h\r\n\r\n"),
    ("a NUL in a field", "RFC 9110, 5.5", "{H}x: a\0b\r\n\r\n"),
    ("a control byte in a field", "RFC 9110, 5.5", "{H}x: a\x01b\r\n\r\n"),
    ("a bad name", "RFC 9110, 5.1", "{H}x(y): z\r\n\r\n"),
    ("no name", "RFC 9110, 5.1", "{H}: z\r\n\r\n"),
    ("no colon", "RFC 9112, 5", "{H}nothing\r\n\r\n"),
    ("no Host", "RFC 9112, 3.2", "POST /x HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
    ("two Hosts", "RFC 9112, 3.2", "{H}host: h\r\n\r\n"),
    ("a Host that is none", "RFC 9112, 3.2", "POST /x HTTP/1.1\r\nhost: a/b\r\n\r\n"),
    ("a Host with user information", "RFC 9110, 4.2.4", "POST /x HTTP/1.1\r\nhost: a@b\r\n\r\n"),
    (
        "a Host in brackets that is no address",
        "RFC 9112, 3.2",
        "GET / HTTP/1.1\r\nhost: [zz]\r\n\r\n",
    ),
    ("an address with more behind it", "RFC 9112, 3.2", "GET / HTTP/1.1\r\nhost: [::1]x\r\n\r\n"),
    ("a port without a host", "RFC 9110, 4.2.1", "GET http://:80/x HTTP/1.1\r\nhost: :80\r\n\r\n"),
    ("a backslash in the target", "RFC 3986, 3.3", "GET /a\\b HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("no digits behind a percent sign", "RFC 3986, 2.1", "GET /%zz HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("one digit behind a percent sign", "RFC 3986, 2.1", "GET /%2 HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("a Host unlike the target", "RFC 9112, 3.2.2", "POST http://a/x HTTP/1.1\r\nhost: b\r\n\r\n"),
    (
        "a target with user information",
        "RFC 9110, 4.2.4",
        "POST http://u:p@h/x HTTP/1.1\r\nhost: h\r\n\r\n",
    ),
    ("a target of another scheme", "RFC 9112, 3.2.2", "POST ftp://h/x HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("an authority without CONNECT", "RFC 9112, 3.2.3", "GET h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n"),
    ("a target that is no path", "RFC 9112, 3.2.1", "GET ! HTTP/1.1\r\nhost: !\r\n\r\n"),
    ("a star without OPTIONS", "RFC 9112, 3.2.4", "GET * HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("CONNECT", "RFC 9110, 9.3.6", "CONNECT h:443 HTTP/1.1\r\nhost: h:443\r\n\r\n"),
    ("TRACE", "RFC 9110, 9.3.8", "TRACE /x HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("a length that is none", "RFC 9112, 6.3", "{H}content-length: x\r\n\r\n"),
    ("a length with a sign", "RFC 9112, 6.3", "{H}content-length: +5\r\n\r\nabcde"),
    ("a length below 0", "RFC 9112, 6.3", "{H}content-length: -1\r\n\r\n"),
    ("a length that some read as 8", "RFC 9110, 8.6", "{H}content-length: 010\r\n\r\nabcdefghij"),
    ("a length as a list", "RFC 9110, 8.6", "{H}content-length: 5, 5\r\n\r\nabcde"),
    (
        "two equal lengths",
        "RFC 9112, 6.3",
        "{H}content-length: 5\r\ncontent-length: 5\r\n\r\nabcde",
    ),
    ("two lengths", "RFC 9112, 6.3", "{H}content-length: 5\r\ncontent-length: 6\r\n\r\nabcde"),
    (
        "a length and a coding",
        "RFC 9112, 6.1",
        "{H}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding and a length",
        "RFC 9112, 6.1",
        "{H}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    ),
    (
        "two codings",
        "RFC 9112, 6.1",
        "{H}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding that is not known",
        "RFC 9112, 6.1",
        "{H}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    ("codings in a list", "RFC 9112, 6.1", "{H}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("an empty coding", "RFC 9112, 6.1", "{H}transfer-encoding: ,chunked\r\n\r\n0\r\n\r\n"),
    (
        "a coding that is not the last",
        "RFC 9112, 6.3",
        "{H}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding in HTTP/1.0",
        "RFC 9112, 6.1",
        "POST /x HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a length in disguise", "RFC 9110, 5.1", "{H}content_length: 5\r\n\r\n"),
    ("a coding in disguise", "RFC 9110, 5.1", "{H}transfer_encoding: chunked\r\n\r\n"),
    ("an expectation that is not known", "RFC 9110, 10.1.1", "{H}expect: y 100-continue\r\n\r\n"),
    (
        "a chunk size that is none",
        "RFC 9112, 7.1",
        "{H}transfer-encoding: chunked\r\n\r\nx\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with a prefix",
        "RFC 9112, 7.1",
        "{H}transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with a sign",
        "RFC 9112, 7.1",
        "{H}transfer-encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with blanks",
        "RFC 9112, 7.1",
        "{H}transfer-encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size without end",
        "RFC 9112, 7.1",
        "{H}transfer-encoding: chunked\r\n\r\n11111111111111111\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk line that ends in LF",
        "RFC 9112, 7.1",
        "{H}transfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk that is longer than it says",
        "RFC 9112, 7.1",
        "{H}transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    ),
    (
        "an extension that does not end",
        "RFC 9112, 7.1.1",
        "{H}transfer-encoding: chunked\r\n\r\n3;a=\"b\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "an extension that ends in LF",
        "RFC 9112, 7.1.1",
        "{H}transfer-encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
    ),
    (
        "a chunk size with blanks behind an upgrade that nobody asks for",
        "RFC 9112, 7.1",
        "{H}upgrade: x\r\ntransfer-encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    ),
    (
        "a trailer that frames the message",
        "RFC 9110, 6.5.1",
        "{H}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\ncontent-length: 9\r\n\r\n",
    ),
    ("a method in small letters", "RFC 9110, 9.1", "trace /x HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("a fragment", "RFC 9112, 3.2", "POST /x#y HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("a Host with a port that is none", "RFC 9110, 7.2", "POST /x HTTP/1.1\r\nhost: h:x\r\n\r\n"),
    ("a Host with too large a port", "RFC 9110, 7.2", "POST /x HTTP/1.1\r\nhost: h:99999\r\n\r\n"),
    (
        "a length that is said to be the hop's",
        "RFC 9110, 7.6.1",
        "{H}connection: close, content-length\r\ncontent-length: 3\r\n\r\nabc",
    ),
    ("an origin in disguise", "RFC 9110, 5.1", "{H}x_forwarded_for: 1.1.1.1\r\n\r\n"),
    (
        "letters beyond ASCII in the target",
        "RFC 3986, 2",
        "POST /caf\u{e9} HTTP/1.1\r\nhost: h\r\n\r\n",
    ),
    ("a control byte in the target", "RFC 3986, 2", "POST /x\x7f HTTP/1.1\r\nhost: h\r\n\r\n"),
    ("a NUL in the target", "RFC 3986, 7.3", "POST /x?y=%00 HTTP/1.1\r\nhost: h\r\n\r\n"),
    (
        "a chunk size of many zeros",
        "RFC 9112, 7.1",
        concat!(
            "{H}transfer-encoding: chunked\r\n\r\n",
            "00000000000000000000000000000000000000000000000000000000000000003\r\nabc\r\n0\r\n\r\n"
        ),
    ),
    (
        "a trailer that is no field",
        "RFC 9113, 8.1",
        "{H}transfer-encoding: chunked\r\n\r\n0\r\n:path: /y\r\n\r\n",
    ),
    (
        "a trailer that ends in LF",
        "RFC 9112, 7.1.2",
        "{H}transfer-encoding: chunked\r\n\r\n0\r\nx: y\n\r\n",
    ),
];

/// A worker that keeps every byte it gets but for health checks, and answers each connection once.
fn recording() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let got = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&got);
    let address = by_hand::listen(move |mut stream| {
        let mut piece = [0; 4096];
        let mut all = Vec::new();
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            all.extend_from_slice(&piece[..length]);
            if !all.starts_with(b"GET /ping") {
                kept.lock().expect("whole").extend_from_slice(&piece[..length]);
            }
            if is_whole(&all) {
                let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                drop(stream.write_all(ok));
                return;
            }
        }
    });
    (address, got)
}

/// Whether a request is here to its last byte.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    if head.contains("transfer-encoding: chunked") {
        return body.ends_with("0\r\n\r\n");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// Sends a request in pieces of this size, and reads until the proxy closes. Nothing more is sent once it
/// has.
fn answer(proxy: SocketAddr, request: &[u8], piece: usize) -> String {
    let mut stream = TcpStream::connect(proxy).expect("connects");
    stream.set_nodelay(true).expect("set");
    stream.set_read_timeout(Some(DEADLINE)).expect("set");
    for bytes in request.chunks(piece) {
        if stream.write_all(bytes).is_err() {
            break;
        }
        if piece < request.len() {
            // Long enough for a byte to be read alone.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    let mut all = Vec::new();
    drop(stream.read_to_end(&mut all));
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn what_is_ambiguous_is_refused_and_reaches_no_worker() {
    let (worker, got) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 64)], "");
    let good = "POST /x HTTP/1.1\r\nhost: h\r\n";
    let mut wrong = Vec::new();
    for (what, paragraph, request) in CASES {
        let request = request.replace("{H}", good);
        for piece in [request.len(), 1] {
            let answer = answer(forebay.proxy, request.as_bytes(), piece);
            if !answer.starts_with("HTTP/1.1 400 ") && !answer.starts_with("HTTP/1.0 400 ") {
                wrong.push(format!("{what} ({paragraph}), in pieces of {piece}: {answer:?}"));
            }
            // One answer, and the connection closed behind it.
            if answer.matches("HTTP/1.").count() > 1 {
                wrong.push(format!("{what} ({paragraph}), in pieces of {piece}: answered twice"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    forebay.wait_all_zero();
    // A chunk size that never ends is not waited for.
    let zeros = format!("{good}transfer-encoding: chunked\r\n\r\n{}", "0".repeat(8 << 10));
    let refused = answer(forebay.proxy, zeros.as_bytes(), 1_000);
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused:?}");
    forebay.wait_all_zero();
    // A body that turns out to be malformed may have begun to be passed on; it never ends.
    let got = String::from_utf8_lossy(&got.lock().expect("whole")).into_owned();
    assert!(!got.contains("0\r\n\r\n"), "an ended body: {got:?}");
    for part in ["content_length", "expect", "gzip", "TRACE", "CONNECT", "xchunked"] {
        assert!(!got.contains(part), "{part} reached the worker: {got:?}");
    }
    // And the proxy is well.
    let fine = answer(forebay.proxy, format!("{good}connection: close\r\n\r\n").as_bytes(), 1_000);
    assert!(fine.starts_with("HTTP/1.1 200 "), "{fine:?}");
}

#[test]
fn what_is_well_formed_reaches_the_worker_in_one_form() {
    let (worker, got) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 64)], "");
    for (request, arrives) in [
        (
            "POST http://H.example/x?y=z HTTP/1.1\r\nHost: h.example\r\nConnection: close, x-hop\r\nx-hop: 1\r\nContent-Length: 2\r\n\r\n\r\n",
            "POST /x?y=z HTTP/1.1\r\n",
        ),
        ("OPTIONS * HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", "OPTIONS * HTTP/1.1\r\n"),
        // RFC 9112, 3.2.4 and 3.2.1.
        (
            "OPTIONS http://h HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\n",
        ),
        (
            "GET http://h?x=1 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
            "GET /?x=1 HTTP/1.1\r\n",
        ),
        ("GET http://h HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", "GET / HTTP/1.1\r\n"),
        // RFC 9110, 8.6.
        (
            "POST /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "\r\ncontent-length: 0\r\n",
        ),
        (
            "POST /t HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0\r\n\r\n",
            "c\r\n0\r\n\r\n",
        ),
    ] {
        for piece in [request.len(), 1] {
            got.lock().expect("whole").clear();
            let answer = answer(forebay.proxy, request.as_bytes(), piece);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{request:?}: {answer:?}");
            let got = String::from_utf8_lossy(&got.lock().expect("whole")).into_owned();
            assert!(got.contains(arrives), "{request:?}: {got:?}");
            for gone in ["x-hop", "H.example/", "x=\"y\""] {
                assert!(!got.contains(gone), "{gone} has reached the worker: {got:?}");
            }
        }
    }
    forebay.wait_all_zero();
}

#[test]
fn behind_an_upgrade_that_was_not_made_nothing_is_read() {
    let (worker, got) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 64)], "");
    for upgrade in ["websocket", "h2c"] {
        let request = format!(
            "GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n\r\nGET /smuggled HTTP/1.1\nhost: h\r\n\r\n"
        );
        let answer = answer(forebay.proxy, request.as_bytes(), request.len());
        // HTTP/2 is begun otherwise by now: what clients still ask for that way goes on as it is.
        let answers = if upgrade == "h2c" { 2 } else { 1 };
        assert_eq!(answer.matches("HTTP/1.1 ").count(), answers, "{answer:?}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer:?}");
    }
    eventually("both have reached the worker", || {
        let got = String::from_utf8_lossy(&got.lock().expect("whole")).into_owned();
        assert!(!got.contains("smuggled") && !got.contains("h2c"), "{got:?}");
        (got.matches("GET /ws").count() == 2).then_some(())
    });
}

/// Lines longer than what the proxy reads at once are understood as what they are.
#[test]
fn a_long_line_that_comes_in_pieces_hides_nothing() {
    let (worker, seen) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 8)], "");
    let blanks = " ".repeat(300);
    let proxy = forebay.proxy;
    let honest = format!(
        "POST /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length:{blanks}4\r\n\r\na\nb\n"
    );
    for piece in [1, 60, 200] {
        let answer = answer(proxy, honest.as_bytes(), piece);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    eventually("the body came as it was", || {
        let seen = seen.lock().expect("whole").clone();
        let bodies = seen.windows(8).filter(|window| *window == b"\r\n\r\na\nb\n").count();
        (bodies == 3).then_some(())
    });
    // What looks like an upgrade within a body is none.
    let body = "POST /y HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    let hidden = format!(
        "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length:{blanks}{}\r\n\r\n{body}POST /z HTTP/1.1\nhost: h\n\n",
        body.len()
    );
    let mut client = TcpStream::connect(proxy).expect("connects");
    client.set_read_timeout(Some(DEADLINE)).expect("set");
    for piece in hidden.as_bytes().chunks(200) {
        client.write_all(piece).expect("sent");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut answers = String::new();
    drop(client.read_to_string(&mut answers));
    assert!(answers.contains("HTTP/1.1 400"), "{answers}");
    let seen = String::from_utf8_lossy(&seen.lock().expect("whole")).into_owned();
    assert!(!seen.contains("/z HTTP"), "{seen}");
}

/// The first byte of an answer's head: its status, from the static table (RFC 7541, A).
const STATUS_200: u8 = 0x88;
const STATUS_400: u8 = 0x8c;

#[test]
fn odd_targets_over_http2_are_refused_or_arrive_in_one_form() {
    let (worker, got) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 64)], "");
    let mut raw = Raw::connect(forebay.proxy);
    let mut stream = 1;
    let mut ask = |path: &[u8]| {
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &request(path)));
        let (kind, payload) = raw.next_of(stream);
        stream += 2;
        (kind, payload[0])
    };
    for path in [&b"/caf\xc3\xa9"[..], b"/%00", b"/x?y=%00z", b"?x", b"/\\x"] {
        assert_eq!(ask(path), (HEADERS, STATUS_400), "{}", path.escape_ascii());
    }
    // These are no targets to the h2 crate, which ends the stream itself.
    for path in [&b"/x\x7f"[..], b"/x\x01y", b"/x y", b"/x\ny", b""] {
        assert_eq!(ask(path).0, RST_STREAM, "{}", path.escape_ascii());
    }
    // And that one is no text: no head, which ends the connection.
    let mut other = Raw::connect(forebay.proxy);
    other.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request(b"/\xff")));
    assert_eq!(other.next_of(1).0, GOAWAY);
    assert!(got.lock().expect("whole").is_empty(), "nothing has reached the worker");
    // The http crate cuts a fragment off: what a worker gets has none.
    assert_eq!(ask(b"/x?y#z"), (HEADERS, STATUS_200));
    let got = String::from_utf8_lossy(&got.lock().expect("whole")).into_owned();
    assert!(got.starts_with("POST /x?y HTTP/1.1\r\n"), "{got:?}");
    forebay.wait_all_zero();
}

#[test]
fn values_over_http2_have_no_blanks_around_them() {
    let (worker, got) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 64)], "");
    let mut raw = Raw::connect(forebay.proxy);
    // RFC 9113, 8.2.1.
    for (stream, value) in [(1, " a"), (3, "a "), (5, "\ta"), (7, " ")] {
        let block = [request("/x"), literal("x-odd", value)].concat();
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
        let (kind, payload) = raw.next_of(stream);
        assert_eq!((kind, payload[0]), (HEADERS, STATUS_400), "{value:?}");
    }
    assert!(got.lock().expect("whole").is_empty(), "nothing has reached the worker");
}

#[test]
fn trailers_over_http2_are_no_head() {
    let (worker, got) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 64)], "");
    let mut raw = Raw::connect(forebay.proxy);
    let mut stream = 1;
    let mut ask = |trailer: &str| {
        got.lock().expect("whole").clear();
        raw.send(&frame(HEADERS, END_HEADERS, stream, &request("/t")));
        raw.send(&frame(DATA, 0, stream, b"abc"));
        eventually("it has begun to arrive", || {
            let got = got.lock().expect("whole");
            got.windows(3).any(|window| window == b"abc").then_some(())
        });
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &literal(trailer, "/odd")));
        let (kind, payload) = raw.next_of(stream);
        stream += 2;
        let got = String::from_utf8_lossy(&got.lock().expect("whole")).into_owned();
        assert!(!got.contains("/odd"), "{trailer} has reached the worker: {got:?}");
        (kind, payload[0], got.ends_with("0\r\n\r\n"))
    };
    // The h2 crate takes these away, where RFC 9113, 8.1 would have the stream refused.
    for name in [":path", ":authority", ":scheme"] {
        assert_eq!(ask(name), (HEADERS, STATUS_200, true), "{name}");
    }
    // These are malformed: the worker's request never ends.
    assert_eq!(ask("content-length"), (HEADERS, STATUS_400, false));
    let (kind, _, is_ended) = ask("x y");
    assert_eq!((kind, is_ended), (GOAWAY, false));
    forebay.wait_all_zero();
}

#[test]
fn of_two_models_neither_is_taken() {
    let (first, got) = recording();
    let (second, other) = recording();
    let endpoint = |name: &str| {
        format!(
            "[[endpoint]]\nname = \"{name}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m-{name}\"\n\
             [[endpoint.variant.pool]]\ninstance_type = \"{name}\"\n"
        )
    };
    let forebay = Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nmax_body_buffer = \"1kB\"\n[admin]\nlisten = \"{{admin}}\"\n\
         [provider.existing]\nkind = \"static\"\n\
         [instance_type.a]\nprovider = \"existing\"\naddresses = [\"http://{first}\"]\n\
         [instance_type.b]\nprovider = \"existing\"\naddresses = [\"http://{second}\"]\n{}{}",
        endpoint("a"),
        endpoint("b")
    ));
    forebay.wait_in_service(2);
    let filler = "x".repeat(5_000);
    let ask = |body: &str| {
        let answer = post(forebay.proxy, "/x", &[], body);
        (answer.status, answer.header("x-forebay-error").map(ToOwned::to_owned))
    };
    let refused = (400, Some("ambiguous_model".to_owned()));
    for body in [
        r#"{"model":"a","model":"b"}"#.to_owned(),
        r#"{"model":"a","x":1,"mod\u0065l":"a"}"#.to_owned(),
        r#"{"model":7,"model":"b"}"#.to_owned(),
    ] {
        assert_eq!(ask(&body), refused, "{body}");
    }
    assert!(got.lock().expect("whole").is_empty(), "nothing has reached a worker");
    // The second one comes when the request is under way: it never ends.
    let late = format!(r#"{{"model":"a","x":"{filler}","model":"b"}}"#);
    let head =
        "POST /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let (begin, end) = late.split_at(5_000);
    let mut client = TcpStream::connect(forebay.proxy).expect("connects");
    client.set_read_timeout(Some(DEADLINE)).expect("set");
    client.write_all(format!("{head}{:x}\r\n{begin}\r\n", begin.len()).as_bytes()).expect("sent");
    eventually("it is under way", || (!got.lock().expect("whole").is_empty()).then_some(()));
    client.write_all(format!("{:x}\r\n{end}\r\n0\r\n\r\n", end.len()).as_bytes()).expect("sent");
    let mut answer = String::new();
    drop(client.read_to_string(&mut answer));
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("ambiguous_model"),
        "{answer:?}"
    );
    forebay.wait_all_zero();
    let seen = String::from_utf8_lossy(&got.lock().expect("whole")).into_owned();
    assert!(!seen.contains("\r\n0\r\n\r\n"), "an ended body: {seen:?}");
    assert!(other.lock().expect("whole").is_empty(), "the other one's worker has seen nothing");
    // Those within are nobody's.
    let nested = format!(r#"{{"model":"a","x":"{filler}","y":[{{"model":"b"}}]}}"#);
    assert_eq!(ask(&nested), (200, None));
}

#[test]
fn a_name_that_http_1_does_not_know_is_refused_over_http2() {
    let (worker, got) = recording();
    let forebay = Forebay::in_front_of_addresses(&[(worker, 64)], "");
    let mut raw = Raw::connect(forebay.proxy);
    // To the http crate it is a name (RFC 9110, 5.6.2 has no quote in a token).
    let block = [request("/x"), literal("x\"y", "z")].concat();
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
    let (kind, payload) = raw.next_of(1);
    assert_eq!((kind, payload[0]), (HEADERS, STATUS_400));
    assert!(got.lock().expect("whole").is_empty(), "nothing has reached the worker");
    forebay.wait_all_zero();
}
