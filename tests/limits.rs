//! What clients may take of the proxy: connections, memory, time in the middle of a body. Real sockets.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use http::Request;
use support::h2::H2;
use support::http::{self as plain, Client};
use support::{Forebay, Worker, by_hand, eventually};

/// Sends this much of a request and no more.
fn begin(forebay: &Forebay, text: &str) -> Client {
    let mut client = Client::connect(forebay.proxy);
    client.stream.write_all(text.as_bytes()).expect("sent");
    client
}

#[test]
fn a_client_that_stops_in_the_middle_of_its_body_is_answered_and_holds_nothing() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "body_timeout = \"300ms\"");
    // With a length it is read before it takes a slot: the worker never hears of it.
    let mut known = begin(&forebay, "POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nabc");
    let answer = known.read_answer();
    assert_eq!((answer.status, answer.header("x-forebay-error")), (408, Some("body_timeout")));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(known.is_closed(), "what comes next could be the rest");
    assert_eq!(worker.stat("started"), 0);
    // Without one it is sent on as it comes, and the worker's request is cancelled.
    let mut chunked = begin(
        &forebay,
        "POST /x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    );
    let answer = chunked.read_answer();
    assert_eq!((answer.status, answer.header("x-forebay-error")), (408, Some("body_timeout")));
    eventually("its slot is free", || {
        (forebay.gauge("forebay_outstanding_requests") == 0.0).then_some(())
    });
    assert_eq!(forebay.gauge("forebay_request_body_timeouts_total"), 2.0);
    // One that is slow but goes on is not bothered.
    let head = |bytes: usize| {
        format!("POST /invocations HTTP/1.1\r\nhost: t\r\ncontent-length: {bytes}\r\n\r\n")
    };
    let mut slow = begin(&forebay, &head(800));
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        slow.stream.write_all(&[b'1'; 100]).expect("sent");
    }
    assert_eq!(slow.read_answer().status, 200);
    // One that sends next to nothing, but never stops, only holds a place.
    let mut dripping = begin(&forebay, &head(800));
    let mut drops = dripping.stream.try_clone().expect("a socket");
    let tap = std::thread::spawn(move || {
        while drops.write_all(b"1").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(dripping.read_answer().header("x-forebay-error"), Some("body_timeout"));
    drop(dripping);
    tap.join().expect("the connection is closed");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_is_counted_as_one_that_left() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    for text in [
        "POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nabc",
        "POST /x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let before = forebay.gauge_where("forebay_invocations_total", "code=\"499\"");
        drop(begin(&forebay, text));
        eventually("it is counted", || {
            let left = forebay.gauge_where("forebay_invocations_total", "code=\"499\"");
            (left == before + 1.0).then_some(())
        });
    }
    assert_eq!(forebay.gauge_where("forebay_invocations_total", "code=\"400\""), 0.0);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "max_connections = 2");
    let open = |n: f64| {
        eventually("connections are counted", || {
            (forebay.gauge("forebay_client_connections") == n).then_some(())
        });
    };
    open(0.0);
    let mut held = [Client::connect(forebay.proxy), Client::connect(forebay.proxy)];
    open(2.0);
    let mut third = Client::connect(forebay.proxy);
    let answer = third.read_answer();
    assert_eq!(answer.header("x-forebay-error"), Some("too_many_connections"));
    assert_eq!(answer.status, 503);
    assert!(answer.complete && answer.json()["error"]["type"] == "too_many_connections");
    assert!(third.is_closed());
    assert_eq!(forebay.gauge("forebay_client_connections_refused_total"), 1.0);
    // Those that are connected are served, and one that leaves makes room.
    for client in &mut held {
        client.send("POST", "/invocations", &[], b"{}");
        assert_eq!(client.read_answer().status, 200);
    }
    let [first, _second] = held;
    drop(first);
    open(1.0);
    assert_eq!(plain::post(forebay.proxy, "/invocations", &[], "{}").status, 200);
}

#[test]
fn heads_that_do_not_come_hold_nothing() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "idle_timeout = \"400ms\"");
    // Nothing at all, half a line, the beginning of HTTP/2's preface, and a field that never ends.
    let mut clients = Vec::new();
    for text in ["", "GET /x HT", "PRI", "GET /x HTTP/1.1\r\nhost: t\r\nx: "] {
        clients.push(begin(&forebay, text));
    }
    let mut dripping = clients.pop().expect("the last one").stream;
    let started = Instant::now();
    // Each drop comes in time, and yet the whole does not.
    while dripping.write_all(b"x").is_ok() {
        assert!(started.elapsed() < support::DEADLINE, "it drips for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    for mut client in clients {
        // With a 408 at most, or a reset for what nobody read.
        while !client.is_closed() {}
    }
    // One that has been served is closed, too, once it has been idle for as long.
    let mut kept = Client::connect(forebay.proxy);
    kept.send("GET", "/x", &[], b"");
    assert_eq!(kept.read_answer().status, 200);
    assert!(kept.is_closed());
    eventually("nobody is connected", || {
        (forebay.gauge("forebay_client_connections") == 0.0).then_some(())
    });
    assert_eq!(worker.stat("started"), 1);
}

#[test]
fn stalled_uploads_take_no_more_memory_than_there_is() {
    let worker = Worker::start(&[]);
    let forebay =
        Forebay::limited(&worker, "max_body_buffers = \"1MiB\"\nmax_body_buffer = \"1MiB\"");
    let half = "x".repeat(500_000);
    let head = "POST /invocations HTTP/1.1\r\nhost: t\r\ncontent-length: 1000000\r\n\r\n";
    let stalled: Vec<_> = (0..4).map(|_| begin(&forebay, &format!("{head}{half}"))).collect();
    eventually("the limit is reached", || {
        (forebay.gauge("forebay_request_body_buffer_full_total") >= 1.0).then_some(())
    });
    // What was read when the limit was reached is the most there can be above it.
    assert!(forebay.gauge("forebay_request_body_buffer_bytes") < 2.0 * 1_048_576.0);
    drop(stalled);
    eventually("all of it is given back", || {
        (forebay.gauge("forebay_request_body_buffer_bytes") == 0.0).then_some(())
    });
    // Bodies above the limit go through: they are sent on as they come.
    let body = "y".repeat(3_000_000);
    let started = Instant::now();
    assert_eq!(plain::post(forebay.proxy, "/invocations", &[], &body).status, 200);
    assert!(started.elapsed() < support::DEADLINE);
    eventually("nothing is held", || {
        (forebay.gauge("forebay_request_body_buffer_bytes") == 0.0).then_some(())
    });
}

#[test]
fn a_stream_that_breaks_is_reset_where_only_the_connection_shows_its_end() {
    let worker = Worker::start(&["--fail", "cut-stream=2"]);
    let forebay = Forebay::limited(&worker, "");
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let mut client = begin(
        &forebay,
        &format!(
            "POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    let mut text = Vec::new();
    let end = client.stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
    let error = end.expect_err("a clean end would look like the whole answer");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // A whole one ends cleanly.
    let whole = Worker::start(&[]);
    let forebay = Forebay::limited(&whole, "");
    let mut client = begin(&forebay, "GET /v1/other HTTP/1.0\r\n\r\n");
    client.stream.read_to_end(&mut Vec::new()).expect("a clean end");
}

#[test]
fn a_body_that_is_too_long_is_refused_before_a_worker_hears_of_it_or_cut_where_it_shows() {
    let worker = Worker::start(&[]);
    let forebay =
        Forebay::limited(&worker, "max_body_bytes = \"100kB\"\nmax_body_buffer = \"10kB\"");
    let told = |answer: &plain::Answer| {
        (answer.status, answer.header("x-forebay-error").map(ToOwned::to_owned))
    };
    let refused = (413, Some("body_too_large".to_owned()));
    let head =
        |framing: &str| format!("POST /invocations HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n");
    // By its length: not a byte of it is needed, and nobody is asked for one.
    let mut long = begin(&forebay, &head("expect: 100-continue\r\ncontent-length: 100001"));
    assert_eq!(told(&long.read_answer()), refused);
    assert!(long.is_closed(), "what comes next could be the body");
    assert_eq!(worker.stat("started"), 0);
    // In chunks: the worker had some of it, and its request never ends.
    let mut chunked = begin(&forebay, &head("transfer-encoding: chunked"));
    let piece = format!("c350\r\n{}\r\n", "x".repeat(50_000));
    chunked.stream.write_all(piece.repeat(2).as_bytes()).expect("sent");
    eventually("the worker has its beginning", || (worker.stat("started") == 1).then_some(()));
    chunked.stream.write_all(b"1\r\nx\r\n0\r\n\r\n").expect("sent");
    assert_eq!(told(&chunked.read_answer()), refused);
    assert!(chunked.is_closed());
    eventually("the worker's request is cancelled", || {
        (worker.stat("cancelled") == 1).then_some(())
    });
    // As much as may be goes through, in either framing.
    assert_eq!(plain::post(forebay.proxy, "/invocations", &[], &"x".repeat(100_000)).status, 200);
    let mut chunked = begin(&forebay, &head("transfer-encoding: chunked"));
    chunked.stream.write_all(format!("{}0\r\n\r\n", piece.repeat(2)).as_bytes()).expect("sent");
    assert_eq!(chunked.read_answer().status, 200);
    forebay.wait_all_zero();
    assert_eq!(forebay.gauge_where("forebay_invocations_total", "code=\"413\""), 2.0);
}

#[test]
fn over_http2_a_body_that_is_too_long_costs_its_stream_alone() {
    let worker = Worker::start(&[]);
    let forebay =
        Forebay::limited(&worker, "max_body_bytes = \"100kB\"\nmax_body_buffer = \"10kB\"");
    let mut client = H2::connect(forebay.proxy);
    let mut ask = |length: Option<usize>, grpc: bool, bytes: usize| {
        let kind = if grpc { "application/grpc" } else { "text/plain" };
        let mut request = Request::post("http://e.example/x").header("content-type", kind);
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(()).expect("a request");
        let (answer, mut body) = client.sender.send_request(request, false).expect("is sent");
        // What is refused is not taken to its end.
        drop(body.send_data("x".repeat(bytes).into(), true));
        let head = client.head(answer);
        let told = head.headers().get("x-forebay-error").map(|kind| kind.to_str().expect("text"));
        let status = head.headers().get("grpc-status").map(|status| status.to_str().expect("text"));
        (head.status().as_u16(), told.map(ToOwned::to_owned), status.map(ToOwned::to_owned))
    };
    let refused = Some("body_too_large".to_owned());
    assert_eq!(ask(Some(100_001), false, 100_001), (413, refused.clone(), None));
    assert_eq!(worker.stat("started"), 0);
    assert_eq!(ask(None, false, 100_001), (413, refused.clone(), None));
    assert_eq!(ask(None, true, 100_001), (200, refused, Some("8".to_owned())));
    assert_eq!(ask(None, false, 100_000), (200, None, None));
    forebay.wait_all_zero();
}

/// HTTP/2's preface: as little of it as tells the protocol, most of it, and all of it with nothing behind.
const PREFACES: [&str; 3] =
    ["PRI * HTT", "PRI * HTTP/2.0\r\n\r\nSM", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];

#[test]
fn prefaces_that_nothing_follows_hold_nothing() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "idle_timeout = \"400ms\"");
    let started = Instant::now();
    for mut client in PREFACES.map(|text| begin(&forebay, text)) {
        // Behind its SETTINGS, or a GOAWAY.
        while !client.is_closed() {}
    }
    assert!(started.elapsed() < Duration::from_secs(4), "after {:?}", started.elapsed());
    eventually("nobody is connected", || {
        (forebay.gauge("forebay_client_connections") == 0.0).then_some(())
    });
}

#[test]
fn a_part_of_a_preface_and_a_close_hold_nothing() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    for text in ["P", PREFACES[0], PREFACES[1]] {
        drop(begin(&forebay, text));
        eventually("nobody is connected", || {
            (forebay.gauge("forebay_client_connections") == 0.0).then_some(())
        });
    }
}

#[test]
fn over_http2_there_are_as_many_requests_as_there_may_be_connections() {
    let worker = Worker::start(&["--first-token", "10s"]);
    let forebay = Forebay::limited(&worker, "max_connections = 2");
    let mut client = H2::connect(forebay.proxy);
    let _held = [client.chat(1, false), client.chat(1, false)];
    let third = client.chat(1, false);
    let third = client.head(third);
    assert_eq!(third.status(), 503);
    assert_eq!(third.headers()["x-forebay-error"], "too_many_connections");
    assert!(third.headers().contains_key("retry-after"));
    assert_eq!(forebay.gauge("forebay_client_connections"), 1.0);
    assert_eq!(forebay.gauge("forebay_client_connections_refused_total"), 1.0);
    drop(client);
    forebay.wait_all_zero();
}

/// Over HTTP/1.1 the limit on connections bounds them; here one has hundreds.
#[test]
fn over_http2_small_bodies_count_as_well() {
    const MOST: f64 = 256.0 * 1024.0;
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "max_body_buffers = \"256KiB\"");
    let held = || forebay.gauge("forebay_request_body_buffer_bytes");
    let mut client = H2::connect(forebay.proxy);
    let mut streams = Vec::new();
    for _ in 0..16 {
        let request = Request::post("http://e.example/x").header("content-length", 40_000);
        let request = request.body(()).expect("a request");
        client.sender = client.wait(client.sender.clone().ready()).expect("more");
        let (answer, mut rest) = client.sender.send_request(request, false).expect("is sent");
        rest.send_data(vec![b'x'; 39_999].into(), false).expect("is sent");
        streams.push((answer, rest));
    }
    eventually("the limit is reached", || {
        (forebay.gauge("forebay_request_body_buffer_full_total") >= 1.0).then_some(())
    });
    // Who waited for a piece when it was reached takes that one.
    assert!(held() <= MOST + 16.0 * 16_384.0, "{}", held());
    drop((streams, client));
    eventually("nothing is held", || (held() == 0.0).then_some(()));
    forebay.wait_all_zero();
}

#[test]
fn prefaces_that_nothing_follows_keep_no_process_from_its_end() {
    let worker = Worker::start(&[]);
    let mut forebay = Forebay::limited(&worker, "");
    let _clients = PREFACES.map(|text| begin(&forebay, text));
    eventually("they are connected", || {
        (forebay.gauge("forebay_client_connections") == 3.0).then_some(())
    });
    forebay.process.signal("TERM");
    assert!(forebay.process.wait().success());
}

#[test]
fn a_client_that_leaves_is_noticed_behind_what_it_has_sent() {
    let (arrival, arrived) = channel();
    let (departure, cancelled) = channel();
    let worker = by_hand::healthy(move |_, stream| {
        let _ = arrival.send(());
        // Silent until the other side closes.
        drop(stream.read_to_end(&mut Vec::new()));
        let _ = departure.send(());
    });
    let forebay = Forebay::limited_at(worker, "");
    let mut client = Client::connect(forebay.proxy);
    client.send("GET", "/x", &[], b"");
    client.send("POST", "/x", &[], &b"x".repeat(20_000));
    arrived.recv_timeout(support::DEADLINE).expect("the worker has it");
    let left = Instant::now();
    drop(client);
    cancelled.recv_timeout(support::DEADLINE).expect("the worker's request is cancelled");
    assert!(left.elapsed() < Duration::from_secs(5), "after {:?}", left.elapsed());
    forebay.wait_all_zero();
    assert!(arrived.try_recv().is_err(), "what was behind it has reached nobody");
}
