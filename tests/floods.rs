//! Clients that flood an HTTP/2 connection, frame by frame: whatever they send, the proxy's memory stays
//! where it is, other clients are served meanwhile, and the connection ends or costs no more than its bytes.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use http::Request;
use support::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITY,
    RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, frame, literal, request,
};
use support::h2::H2;
use support::http::{get, post};
use support::{Forebay, Worker, by_hand, resident_kib};

/// How long a flood goes on if nobody ends it.
const FLOOD: Duration = Duration::from_secs(2);
/// Others wait no longer for an answer meanwhile; ample, for a machine that does much else.
const SERVED: Duration = Duration::from_secs(2);
/// More than noise, less than what a flood that is kept would take.
const FLAT_KIB: u64 = 16 << 10;

/// How a flood went.
#[derive(Debug)]
struct Flooded {
    /// The proxy ended the connection.
    ended: bool,
    sent: usize,
    /// By how much the proxy grew at most.
    grown_kib: u64,
    /// How long others waited at most.
    slowest: Duration,
}

/// Sends `first`, then `again` over and over, on a connection that is read from (`reads`) or not, while
/// another client asks on connections of its own.
fn flood(forebay: &Forebay, first: &[u8], again: &[u8], reads: bool) -> Flooded {
    let pid = forebay.process.pid();
    let ask = || {
        let began = Instant::now();
        assert_eq!(get(forebay.proxy, "/other").status, 200, "others are served");
        began.elapsed()
    };
    ask();
    let before = resident_kib(pid);
    let mut raw = Raw::connect(forebay.proxy);
    raw.send(first);
    let batch = again.repeat((64 << 10) / again.len());
    raw.0.set_write_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let mut reader = raw.0.try_clone().expect("a clone");
    let reading = std::thread::spawn(move || {
        let mut piece = [0; 16 << 10];
        // Unless it is read, what the proxy says stays in the sockets.
        while reads && matches!(reader.read(&mut piece), Ok(1..)) {}
    });
    let mut flooded = Flooded { ended: false, sent: 0, grown_kib: 0, slowest: Duration::ZERO };
    let began = Instant::now();
    let mut next_ask = began;
    while began.elapsed() < FLOOD && !flooded.ended {
        match raw.0.write(&batch[flooded.sent % again.len()..]) {
            Ok(written) => flooded.sent += written,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => flooded.ended = true,
        }
        if Instant::now() >= next_ask {
            flooded.slowest = flooded.slowest.max(ask());
            flooded.grown_kib = flooded.grown_kib.max(resident_kib(pid).saturating_sub(before));
            next_ask = Instant::now() + Duration::from_millis(20);
        }
    }
    flooded.slowest = flooded.slowest.max(ask());
    flooded.grown_kib = flooded.grown_kib.max(resident_kib(pid).saturating_sub(before));
    drop(raw.0.shutdown(Shutdown::Both));
    reading.join().expect("reads");
    flooded
}

/// What is sent once, and what is sent over and over behind it. With `counted`, it is our own count that ends it.
struct Case {
    name: &'static str,
    counted: bool,
    first: Vec<u8>,
    again: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let case = |name, first: Vec<u8>, again| Case { name, counted: first.is_empty(), first, again };
    let none = Vec::new;
    let open = || frame(HEADERS, END_HEADERS, 1, &request("/x"));
    let unfinished = || frame(HEADERS, 0, 1, &request("/x"));
    let of_idle =
        Case { counted: false, ..case("resets", none(), frame(RST_STREAM, 0, 1, &[0; 4])) };
    vec![
        case("SETTINGS", none(), frame(SETTINGS, 0, 0, &[])),
        case("SETTINGS that change windows", none(), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        case("PING", none(), frame(PING, 0, 0, &[0; 8])),
        case("PING that answer nothing", none(), frame(PING, ACK, 0, &[0; 8])),
        case("WINDOW_UPDATE", none(), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        case("PRIORITY", none(), frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        case("unknown frames", none(), frame(0x55, 0, 0, &[])),
        of_idle,
        case("empty DATA", open(), frame(DATA, 0, 1, &[])),
        case("DATA of padding alone", open(), frame(DATA, PADDED, 1, &[0])),
        case("DATA of one byte", open(), frame(DATA, 0, 1, b"x")),
        case("CONTINUATION", unfinished(), frame(CONTINUATION, 0, 1, &literal("x-f", "y"))),
        case("empty CONTINUATION", unfinished(), frame(CONTINUATION, 0, 1, &[])),
    ]
}

#[test]
fn floods_end_their_connection_and_others_are_served() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "threads = 1\n");
    for Case { name, counted, first, again } in cases() {
        for reads in [true, false] {
            let before = forebay.gauge("forebay_http2_floods_total");
            let flooded = flood(&forebay, &first, &again, reads);
            let told = format!("{name}, read from: {reads}: {flooded:?}");
            assert!(flooded.ended, "{told}");
            assert!(flooded.grown_kib < FLAT_KIB, "{told}");
            assert!(flooded.slowest < SERVED, "{told}");
            let ours = forebay.gauge("forebay_http2_floods_total") - before;
            assert_eq!(ours, f64::from(u8::from(counted)), "{told}");
        }
    }
    forebay.wait_all_zero();
}

/// One entry of 4,000 bytes in the table, which each further byte of the head repeats (RFC 7541, 2.3.2).
#[test]
fn a_head_that_unpacks_without_end_is_refused_and_takes_no_memory() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "threads = 1\n");
    let pid = forebay.process.pid();
    let before = resident_kib(pid);
    let mut raw = Raw::connect(forebay.proxy);
    // A literal that is indexed, with a name of one byte and a value of 4,000: 127 + 3,873 in seven-bit digits.
    let mut block = request("/x");
    block.extend([0x40, 1, b'x', 127, 0xa1, 0x1e]);
    block.extend(vec![b'y'; 4_000]);
    let repeated = |times: usize| [block.clone(), vec![0xbe; times]].concat();
    let ask = |raw: &mut Raw, stream: u32, block: &[u8]| {
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, block));
        raw.next_of(stream)
    };
    // Somewhat more than may be costs the stream, and the connection goes on: both sides have the same table.
    assert_eq!(ask(&mut raw, 1, &repeated(20)).0, HEADERS, "an answer");
    assert_eq!(worker.stat("started"), 0, "no worker has seen it");
    assert_eq!(ask(&mut raw, 3, &repeated(2)).0, HEADERS, "an answer");
    assert_eq!(worker.stat("started"), 1, "this one is within the limit");
    // Far more costs the connection.
    let (kind, payload) = ask(&mut raw, 5, &repeated(12_000));
    let enhance_your_calm = [0, 0, 0, 11];
    assert_eq!((kind, &payload[4..8]), (GOAWAY, &enhance_your_calm[..]));
    assert!(resident_kib(pid).saturating_sub(before) < FLAT_KIB);
    assert_eq!(worker.stat("started"), 1);
    forebay.wait_all_zero();
}

#[test]
fn a_head_has_a_hundred_fields_at_most_over_either_protocol() {
    // One that has no limit of its own: the proxy adds fields.
    let worker = by_hand::healthy(|_, stream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    });
    let forebay = Forebay::limited_at(worker, "");
    let names: Vec<_> = (0..101).map(|number| format!("x-{number}")).collect();
    // Host and the body's length are two more.
    let http1 = |count: usize| {
        let fields: Vec<_> = names[..count].iter().map(|name| (name.as_str(), "1")).collect();
        post(forebay.proxy, "/x", &fields, "{}").status
    };
    assert_eq!((http1(98), http1(99)), (200, 431));
    let mut h2 = H2::connect(forebay.proxy);
    let mut http2 = |count: usize, cookies: usize| {
        let mut request = Request::get("http://e.example/x");
        for name in &names[..count] {
            request = request.header(name, "1");
        }
        for number in 0..cookies {
            request = request.header("cookie", format!("c{number}=1"));
        }
        let request = request.body(()).expect("a request");
        let answer = h2.sender.send_request(request, true).expect("is sent").0;
        h2.head(answer).status().as_u16()
    };
    assert_eq!((http2(100, 0), http2(101, 0)), (200, 431));
    // Crumbs of cookies are one field, which is what the worker gets.
    assert_eq!((http2(99, 50), http2(100, 50)), (200, 431));
    // The connection has been the same all along.
    assert_eq!(http2(1, 0), 200);
    forebay.wait_all_zero();
}

/// Extended CONNECT (RFC 8441) is not offered: whoever asks for it all the same loses the stream alone.
#[test]
fn a_websocket_over_http2_is_refused_and_the_connection_goes_on() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let mut raw = Raw::connect(forebay.proxy);
    let mut block = literal(":method", "CONNECT");
    for (name, value) in [(":protocol", "websocket"), (":scheme", "http"), (":path", "/ws")] {
        block.extend(literal(name, value));
    }
    block.extend(literal(":authority", "e.example"));
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block));
    let protocol_error = vec![0, 0, 0, 1];
    assert_eq!(raw.next_of(1), (RST_STREAM, protocol_error));
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &request("/x")));
    assert_eq!(raw.next_of(3).0, HEADERS);
    assert_eq!(worker.stat("started"), 1, "the one after it");
}
