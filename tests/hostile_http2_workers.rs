//! Workers that flood an HTTP/2 connection, frame by frame: the connection ends, its requests get a 502 or a
//! visibly cut answer, the proxy's memory stays where it is, and whoever asks another worker is served. And
//! workers that end an answer in the middle of it, or send what HTTP/1.1 could not say.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Request;
use support::frames::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, OK, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, literal,
};
use support::h2::H2;
use support::http::{self as plain, Client};
use support::{Forebay, resident_kib};

/// How long a flood goes on if nobody ends it.
const FLOOD: Duration = Duration::from_secs(5);
/// Others wait no longer for an answer meanwhile; ample, for a machine that does much else.
const SERVED: Duration = Duration::from_secs(2);
/// More than noise, less than what a flood that is kept would take.
const FLAT_KIB: u64 = 16 << 10;

/// What a worker sends on the stream of a request: once, and then over and over.
#[derive(Clone)]
struct Script {
    first: fn(u32) -> Vec<u8>,
    again: fn(u32) -> Vec<u8>,
    reads: bool,
}

/// Answers requests without a body, health checks among them, and floods behind all others.
struct Worker {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    /// Of each flood, whether the proxy ended it.
    ended: Receiver<bool>,
}

impl Worker {
    fn start() -> Self {
        let none = Script { first: |_| Vec::new(), again: |_| Vec::new(), reads: true };
        let script = Arc::new(Mutex::new(none));
        let (sender, ended) = channel();
        let read = Arc::clone(&script);
        let address = frames::worker(move |id, stream| {
            let script = read.lock().expect("whole").clone();
            let _ = sender.send(flood(stream, &script, id));
            false
        });
        Self { address, script, ended }
    }
}

/// Whether the proxy ended it.
fn flood(stream: &mut TcpStream, script: &Script, id: u32) -> bool {
    let mut reader = stream.try_clone().expect("a clone");
    let reads = script.reads;
    std::thread::spawn(move || {
        let mut piece = [0; 16 << 10];
        // Unless it is read, what the proxy says stays in the sockets.
        while reads && matches!(reader.read(&mut piece), Ok(1..)) {}
    });
    stream.set_write_timeout(Some(FLOOD)).expect("timeout");
    let again = (script.again)(id);
    let batch = again.repeat((64 << 10) / again.len());
    let began = Instant::now();
    let mut sent = stream.write_all(&(script.first)(id));
    while sent.is_ok() && began.elapsed() < FLOOD {
        sent = stream.write_all(&batch);
    }
    sent.is_err() && began.elapsed() < FLOOD
}

/// An interim answer: 103, with a field.
fn hints(id: u32) -> Vec<u8> {
    let block = [&[0x08, 3][..], b"103", &literal("link", "</a>")].concat();
    frame(HEADERS, END_HEADERS, id, &block)
}

/// What is flooded with, whether it is our own count that ends it, the script.
type Case = (&'static str, bool, fn(u32) -> Vec<u8>, fn(u32) -> Vec<u8>);

const CASES: [Case; 11] = [
    ("SETTINGS", true, |_| Vec::new(), |_| frame(SETTINGS, 0, 0, &[])),
    ("PING", true, |_| Vec::new(), |_| frame(PING, 0, 0, &[0; 8])),
    ("PING that answer nothing", true, |_| Vec::new(), |_| frame(PING, ACK, 0, &[0; 8])),
    ("WINDOW_UPDATE", true, |_| Vec::new(), |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    ("PRIORITY", true, |_| Vec::new(), |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
    ("unknown frames", true, |_| Vec::new(), |_| frame(0x55, 0, 0, &[])),
    ("interim answers", true, |_| Vec::new(), hints),
    ("resets", true, |_| Vec::new(), |id| frame(RST_STREAM, 0, id, &[0, 0, 0, 8])),
    ("empty DATA", false, |id| frame(HEADERS, END_HEADERS, id, OK), |id| frame(DATA, 0, id, &[])),
    (
        "CONTINUATION",
        false,
        |id| frame(HEADERS, 0, id, OK),
        |id| frame(CONTINUATION, 0, id, &literal("x-f", "y")),
    ),
    (
        "empty CONTINUATION",
        false,
        |id| frame(HEADERS, 0, id, OK),
        |id| frame(CONTINUATION, 0, id, &[]),
    ),
];

#[test]
fn a_flood_ends_its_connection_and_no_other() {
    let (flooding, good) = (Worker::start(), Worker::start());
    let endpoint = |name: &str| {
        format!(
            "[[endpoint]]\nname = \"{name}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"{name}\"\n\
             ejection_threshold = 0\nunhealthy_threshold = 1000\n\
             [[endpoint.variant.pool]]\ninstance_type = \"{name}\"\n"
        )
    };
    let forebay = Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nthreads = 1\n[admin]\nlisten = \"{{admin}}\"\n\
         [provider.existing]\nkind = \"static\"\n\
         [instance_type.a]\nprovider = \"existing\"\nprotocol = \"h2c\"\naddresses = [\"http://{}\"]\n\
         [instance_type.b]\nprovider = \"existing\"\nprotocol = \"h2c\"\naddresses = [\"http://{}\"]\n{}{}",
        flooding.address,
        good.address,
        endpoint("a"),
        endpoint("b")
    ));
    forebay.wait_in_service(2);
    let ask = |endpoint: &str| {
        let began = Instant::now();
        let headers = [("x-forebay-endpoint", endpoint)];
        let answer = plain::request(forebay.proxy, "GET", "/x", &headers, b"");
        assert_eq!(answer.status, 200, "{endpoint}");
        began.elapsed()
    };
    let floods = || forebay.gauge("forebay_upstream_http2_floods_total");
    let pid = forebay.process.pid();
    for (name, counted, first, again) in CASES {
        for reads in [true, false] {
            *flooding.script.lock().expect("whole") = Script { first, again, reads };
            ask("a");
            ask("b");
            let (before, counted_before) = (resident_kib(pid), floods());
            let mut client = Client::connect(forebay.proxy);
            client.send("POST", "/x", &[("x-forebay-endpoint", "a")], b"{}");
            let (mut slowest, mut grown) = (Duration::ZERO, 0);
            let ended = loop {
                slowest = slowest.max(ask("b"));
                grown = grown.max(resident_kib(pid).saturating_sub(before));
                if let Ok(ended) = flooding.ended.recv_timeout(Duration::from_millis(5)) {
                    break ended;
                }
            };
            let told = format!("{name}, read from: {reads}: {slowest:?}, {grown} KiB");
            assert!(ended, "{told}");
            assert!(slowest < SERVED, "{told}");
            assert!(grown < FLAT_KIB, "{told}");
            let answer = client.read_answer();
            let broken = answer.header("x-forebay-error") == Some("upstream_broken");
            let seen = (answer.status, broken, answer.complete);
            assert!([(502, true, true), (200, false, false)].contains(&seen), "{told}: {seen:?}");
            let ours = floods() - counted_before;
            assert_eq!(ours, f64::from(u8::from(counted)), "{told}");
            // It is as good as any other on its next connection.
            ask("a");
        }
    }
    forebay.wait_all_zero();
}

/// The proxy in front of a worker that answers so.
fn in_front_of(answer: impl Fn(u32, &mut TcpStream) -> bool + Send + Sync + 'static) -> Forebay {
    let worker = (frames::worker(answer), 4, "protocol = \"h2c\"\n");
    Forebay::in_front_of_types(&[worker], "ejection_threshold = 0\nunhealthy_threshold = 1000")
}

/// All that an HTTP/1.1 client gets that sends a request, and another behind it.
fn ask_twice(proxy: SocketAddr, fields: &[(&str, &str)], body: &[u8]) -> String {
    let mut client = Client::connect(proxy);
    client.send("POST", "/x", fields, body);
    client.send("GET", "/x", &[("connection", "close")], b"");
    let mut seen = Vec::new();
    // What is cut may end with a reset.
    drop(client.stream.read_to_end(&mut seen));
    String::from_utf8_lossy(&seen).into_owned()
}

/// Its name, what the worker sends, how long after the answer, and whether the connection goes on.
type Ending = (&'static str, fn(u32) -> Vec<u8>, Duration, bool);

#[test]
fn an_answer_without_its_end_is_cut_however_politely() {
    const PAUSE: Duration = Duration::from_millis(50);
    let reset = |id| frame(RST_STREAM, 0, id, &[0; 4]);
    let goaway = |_| frame(GOAWAY, 0, 0, &[0; 8]);
    let endings: [Ending; 3] = [
        ("a reset at once", reset, Duration::ZERO, true),
        ("a reset", reset, PAUSE, true),
        ("GOAWAY and the end of the connection", goaway, PAUSE, false),
    ];
    for (name, ending, pause, goes_on) in endings {
        for length in [true, false] {
            let told = format!("{name}, with a length: {length}");
            let forebay = in_front_of(move |id, stream| {
                let field = if length { literal("content-length", "50") } else { Vec::new() };
                let mut begin = frame(HEADERS, END_HEADERS, id, &[OK, &field].concat());
                begin.extend(frame(DATA, 0, id, b"part"));
                if pause.is_zero() {
                    begin.extend(ending(id));
                    return stream.write_all(&begin).is_ok();
                }
                let sent = stream.write_all(&begin);
                std::thread::sleep(pause);
                sent.and_then(|()| stream.write_all(&ending(id))).is_ok() && goes_on
            });
            let seen = ask_twice(forebay.proxy, &[], b"{}");
            assert!(seen.starts_with("HTTP/1.1 200 "), "{told}: {seen}");
            assert_eq!(seen.matches("HTTP/1.1 ").count(), 1, "{told}: {seen}");
            let end = if length { "\r\n\r\npart" } else { "\r\n\r\n4\r\npart\r\n" };
            assert!(seen.ends_with(end), "{told}: {seen}");
            let mut client = H2::connect(forebay.proxy);
            let answer = client.send("/x", "{}");
            let answer = client.head(answer);
            assert_eq!(answer.status(), 200, "{told}");
            let (body, error) = client.rest(answer);
            assert_eq!(body, b"part", "{told}");
            assert!(error.is_some_and(|error| error.is_reset() && error.is_remote()), "{told}");
            forebay.wait_all_zero();
        }
    }
}

#[test]
fn an_answer_with_its_end_is_whole_though_its_upload_is_stopped() {
    let forebay = in_front_of(|id, stream| {
        // RFC 9113, 8.1: the client is asked to stop what nobody wants.
        let head = [literal(":status", "413"), literal("content-length", "5")].concat();
        let answer = [
            frame(HEADERS, END_HEADERS, id, &head),
            frame(DATA, END_STREAM, id, b"large"),
            frame(RST_STREAM, 0, id, &[0; 4]),
        ];
        stream.write_all(&answer.concat()).is_ok()
    });
    let body = "x".repeat(3_000_000);
    let mut client = Client::connect(forebay.proxy);
    let mut upload = client.stream.try_clone().expect("a socket");
    let head = format!("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
    let request = head + &body;
    // It ends where the proxy closes.
    let uploading = std::thread::spawn(move || upload.write_all(request.as_bytes()));
    let answer = client.read_answer();
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (413, "large", true));
    drop(client);
    drop(uploading.join().expect("no panic"));
    let mut client = H2::connect(forebay.proxy);
    let request = Request::post("http://e.example/x").body(()).expect("a request");
    let (answer, mut upload) = client.sender.send_request(request, false).expect("is sent");
    // The answer may be there before it.
    drop(upload.send_data(body.into(), true));
    let answer = client.head(answer);
    assert_eq!(answer.status(), 413);
    let (body, error) = client.rest(answer);
    assert!(body == b"large" && error.is_none(), "{body:?}, {error:?}");
    forebay.wait_all_zero();
}

#[test]
fn behind_a_status_that_has_no_content_there_is_none() {
    for status in ["204", "304"] {
        let forebay = in_front_of(move |id, stream| {
            let head = frame(HEADERS, END_HEADERS, id, &literal(":status", status));
            let data = frame(DATA, END_STREAM, id, b"content");
            stream.write_all(&[head, data].concat()).is_ok()
        });
        let mut client = H2::connect(forebay.proxy);
        let answer = client.send("/x", "{}");
        let answer = client.head(answer);
        assert_eq!(answer.status().as_str(), status);
        let (body, error) = client.rest(answer);
        assert!(body.is_empty() && error.is_none(), "{status}: {body:?}, {error:?}");
        forebay.wait_all_zero();
    }
}

#[test]
fn a_worker_that_takes_nothing_is_not_the_end_of_what_its_client_asks_others() {
    // Its window is what HTTP/2 begins with, and never grows.
    let forebay = in_front_of(|_, _| true);
    let mut client = H2::connect(forebay.proxy);
    let request = Request::post("http://e.example/x").header("content-type", "application/grpc");
    let request = request.body(()).expect("a request");
    let (_answer, mut upload) = client.sender.send_request(request, false).expect("is sent");
    // Far more than its client may send ahead, in frames that are small.
    for _ in 0..10_000 {
        upload.send_data(vec![b'x'; 60].into(), false).expect("the stream is open");
    }
    for _ in 0..20 {
        let request = Request::get("http://e.example/x").header("x-forebay-endpoint", "nope");
        let request = request.body(()).expect("a request");
        client.sender = client.wait(client.sender.clone().ready()).expect("the connection lives");
        let (answer, _) = client.sender.send_request(request, true).expect("is sent");
        assert_eq!(client.head(answer).status(), 404);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_name_that_http_1_cannot_say_is_a_502() {
    let forebay = in_front_of(|id, stream| {
        let block = [OK, &literal("x\"y", "z")].concat();
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, &block)).is_ok()
    });
    let answer = plain::post(forebay.proxy, "/x", &[], "{}");
    assert_eq!((answer.status, answer.header("x-forebay-error")), (502, Some("upstream_broken")));
    forebay.wait_all_zero();
}

#[test]
fn of_trailers_those_pass_that_are_no_fields_of_a_head() {
    let forebay = in_front_of(|id, stream| {
        let trailers: Vec<u8> = [
            ("set-cookie", "a=b"),
            ("x-forebay-error", "mine"),
            ("grpc-status", "0"),
            ("x-checksum", "c"),
        ]
        .iter()
        .flat_map(|(name, value)| literal(name, value))
        .collect();
        let answer = [
            frame(HEADERS, END_HEADERS, id, OK),
            frame(DATA, 0, id, b"ok"),
            frame(HEADERS, END_HEADERS | END_STREAM, id, &trailers),
        ];
        stream.write_all(&answer.concat()).is_ok()
    });
    let seen = ask_twice(forebay.proxy, &[("te", "trailers")], b"{}");
    for name in ["set-cookie", "x-forebay-error"] {
        assert!(!seen.contains(name), "{name}: {seen}");
    }
    for field in ["\r\n0\r\n", "\r\ngrpc-status: 0\r\n", "\r\nx-checksum: c\r\n"] {
        assert!(seen.contains(field), "{field}: {seen}");
    }
    forebay.wait_all_zero();
}
