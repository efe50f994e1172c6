//! How long requests may take, and their clients: every limit is met by an answer or a visible break, and
//! frees what was held. Real sockets.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ::http::Request;
use bytes::Bytes;
use support::bulk::Bulk;
use support::by_hand::healthy;
use support::h2::H2;
use support::http::{self, Client};
use support::{Forebay, Worker, eventually};

const STREAM: &str =
    r#"{"model":"m","stream":true,"max_tokens":400,"messages":[{"role":"user","content":"hi"}]}"#;

fn counted(forebay: &Forebay, code: u16) -> f64 {
    forebay.gauge_where("forebay_invocations_total", &format!("code=\"{code}\""))
}

#[test]
fn a_client_says_how_long_it_waits() {
    let worker = Worker::start(&["--max-concurrency", "1", "--first-token", "20s"]);
    let forebay = Forebay::in_front_of(&[(&worker, 1)], "");
    let started = Instant::now();
    let whole = STREAM.replace("true", "false");
    let late = |headers: &[(&str, &str)]| {
        let answer = http::post(forebay.proxy, "/v1/chat/completions", headers, &whole);
        let error = answer.header("x-forebay-error").map(str::to_owned);
        assert_eq!((answer.status, error.as_deref()), (504, Some("deadline_exceeded")));
        assert!(answer.complete);
    };
    // At the worker, which is told at once.
    late(&[("x-forebay-timeout-ms", "200")]);
    eventually("it is cancelled", || (worker.stat("running") == 0).then_some(()));
    // In the queue, behind one that has the only slot.
    let mut holder = Client::connect(forebay.proxy);
    holder.send("POST", "/v1/chat/completions", &[], whole.as_bytes());
    eventually("it runs", || (worker.stat("running") == 1).then_some(()));
    late(&[("x-forebay-timeout-ms", "200")]);
    assert_eq!(worker.stat("started"), 2, "the one in the queue never got there");
    drop(holder);
    // gRPC says so in its own way, and is told in its own way.
    let headers = [("content-type", "application/grpc"), ("grpc-timeout", "200m")];
    let answer = http::post(forebay.proxy, "/v1/chat/completions", &headers, &whole);
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("4")));
    assert!(started.elapsed() < Duration::from_secs(15), "nobody waited for the worker");
    forebay.wait_all_zero();
    assert_eq!(counted(&forebay, 504), 3.0);
}

#[test]
fn a_limit_or_an_endpoint_that_cannot_be_read_is_refused() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "");
    for headers in [
        &[("x-forebay-timeout-ms", "soon")][..],
        &[("x-forebay-timeout-ms", "0")],
        &[("x-forebay-timeout-ms", "100"), ("x-forebay-timeout-ms", "200")],
        &[("grpc-timeout", "2")],
        &[("x-forebay-endpoint", "e"), ("x-forebay-endpoint", "other")],
        &[("x-forebay-endpoint", "\u{e9}")],
        &[("x-amzn-sagemaker-target-variant", "v"), ("x-amzn-sagemaker-target-variant", "v")],
    ] {
        let answer = http::post(forebay.proxy, "/v1/chat/completions", headers, STREAM);
        let error = answer.header("x-forebay-error");
        assert_eq!((answer.status, error), (400, Some("malformed_request")), "{headers:?}");
    }
    // To gRPC it is its own fault, as its servers tell it.
    let headers = [("content-type", "application/grpc"), ("grpc-timeout", "soon")];
    let answer = http::post(forebay.proxy, "/x", &headers, "");
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("13")));
    assert_eq!(worker.stat("started"), 0, "none of them got there");
    forebay.wait_all_zero();
}

#[test]
fn a_variant_says_how_long_its_requests_may_take() {
    let quick = ["--first-token", "10ms", "--tokens-per-second", "20"];
    let worker = Worker::start(&quick);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "request_timeout = \"700ms\"");
    // In the middle of its answer it breaks off, visibly.
    let answer = http::post(forebay.proxy, "/v1/chat/completions", &[], STREAM);
    assert_eq!(answer.status, 200);
    assert!(!answer.body.is_empty() && !answer.complete);
    eventually("it is cancelled", || (worker.stat("running") == 0).then_some(()));
    // Over HTTP/2 by a reset of this stream alone.
    let mut client = H2::connect(forebay.proxy);
    let long = client.chat(400, true);
    let head = client.head(long);
    let (body, error) = client.rest(head);
    assert!(!body.is_empty() && error.is_some_and(|error| error.is_reset()));
    let short = client.chat(1, false);
    assert_eq!(client.head(short).status(), 200, "the connection goes on");
    forebay.wait_all_zero();
}

#[test]
fn a_worker_has_so_long_to_begin_and_to_go_on() {
    let worker = Worker::start(&["--first-token", "20s"]);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "first_byte_timeout = \"200ms\"");
    // What does not stream has its first byte when all of it is there.
    let body = STREAM.replace("true", "false");
    let answer = http::post(forebay.proxy, "/v1/chat/completions", &[], &body);
    assert_eq!(
        (answer.status, answer.header("x-forebay-error")),
        (504, Some("first_byte_timeout"))
    );
    eventually("it is cancelled", || (worker.stat("running") == 0).then_some(()));
    forebay.wait_all_zero();
    // One token a second: silent for too long between two, though the first came in time.
    let worker = Worker::start(&["--first-token", "10ms", "--tokens-per-second", "1"]);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "stream_idle_timeout = \"300ms\"");
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &[], STREAM.as_bytes());
    let answer = client.read_answer();
    assert_eq!(answer.status, 200);
    assert!(!answer.complete, "{}", answer.text());
    eventually("it is cancelled", || (worker.stat("running") == 0).then_some(()));
    forebay.wait_all_zero();
}

/// Asks for far more than any buffer on the way holds.
fn large(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client.send("GET", "/bytes/500000000", &[], b"");
    assert_eq!(client.read_head().status, 200);
    client
}

#[test]
fn a_client_that_takes_nothing_of_its_answer_loses_it() {
    let forebay = Forebay::limited_at(Bulk::start().address, "write_timeout = \"300ms\"");
    let mut idle = large(forebay.proxy);
    eventually("its slot is free", || {
        (forebay.gauge("forebay_outstanding_requests") == 0.0).then_some(())
    });
    assert_eq!(forebay.gauge("forebay_client_write_timeouts_total"), 1.0);
    // Whatever it still reads, it is no whole answer.
    let mut all = 0;
    let mut piece = vec![0; 1 << 20];
    while let Ok(length @ 1..) = std::io::Read::read(&mut idle.stream, &mut piece) {
        all += length;
    }
    assert!(all < 500_000_000);
    // A stream without window, on a connection that is read: the others go on.
    let mut client = H2::connect(forebay.proxy);
    let request = Request::get("http://t/bytes/500000000").body(()).expect("a request");
    let (answer, _) = client.sender.send_request(request, true).expect("is sent");
    let unread = client.head(answer);
    eventually("its slot is free", || {
        (forebay.gauge("forebay_client_write_timeouts_total") == 2.0).then_some(())
    });
    let other = client.send("/x", "{}");
    assert_eq!(client.head(other).status(), 200);
    let (_, error) = client.rest(unread);
    assert!(error.is_some_and(|error| error.is_reset()));
    forebay.wait_all_zero();
}

#[test]
fn a_client_that_takes_nothing_of_a_tunnel_loses_it() {
    let worker = healthy(|_, stream| {
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        let mut written = stream.write_all(switched.as_bytes());
        while written.is_ok() {
            written = stream.write_all(&[b'x'; 8 << 10]);
        }
    });
    let forebay = Forebay::limited_at(worker, "write_timeout = \"300ms\"");
    let mut client = Client::connect(forebay.proxy);
    client.send("GET", "/x", &[("connection", "upgrade"), ("upgrade", "x")], b"");
    assert_eq!(client.read_head().status, 101);
    eventually("its slot is free", || {
        (forebay.gauge("forebay_outstanding_requests") == 0.0).then_some(())
    });
    assert_eq!(forebay.gauge("forebay_client_write_timeouts_total"), 1.0);
    forebay.wait_all_zero();
}

/// A tunnel to a worker that says everything back, with what the proxy's log has of it once it has ended.
fn tunnel(variant: &str, header: &[(&str, &str)], talk: impl Fn(&mut Client)) -> serde_json::Value {
    let worker = healthy(|_, stream| {
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello";
        drop(stream.write_all(switched.as_bytes()));
        let mut piece = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            drop(stream.write_all(&piece[..length]));
        }
    });
    let forebay = Forebay::in_front_of_addresses(
        &[(worker, 4)],
        &format!("{variant}\n[telemetry]\naccess_log = \"access.jsonl\""),
    );
    let mut client = Client::connect(forebay.proxy);
    let upgrade = [("connection", "upgrade"), ("upgrade", "x")];
    client.send("GET", "/tunnel", &[&upgrade, header].concat(), b"");
    assert_eq!(client.read_head().status, 101);
    talk(&mut client);
    drop(client);
    forebay.wait_all_zero();
    let path = forebay.dir.path().join("access.jsonl");
    eventually("it is in the log", || {
        let log = std::fs::read_to_string(&path).unwrap_or_default();
        let line = log.lines().find(|line| line.contains("/tunnel"))?;
        serde_json::from_str(line).ok()
    })
}

#[test]
fn a_tunnel_has_a_deadline_and_its_bytes_are_told_however_it_ends() {
    let until_the_end = |client: &mut Client| {
        client.stream.write_all(b"0123456789").expect("sent");
        let began = Instant::now();
        while !client.is_closed() {}
        assert!(began.elapsed() < Duration::from_secs(10));
    };
    let told = tunnel("", &[("x-forebay-timeout-ms", "300")], until_the_end);
    assert_eq!((&told["bytes_in"], &told["bytes_out"]), (&10.into(), &15.into()), "{told}");
    assert_eq!(told["error"], "deadline_exceeded", "{told}");
    // A client that goes away in the middle, by a reset: what it has not read is thrown away.
    let told = tunnel("", &[], |client| {
        client.stream.write_all(b"0123456789").expect("sent");
        while client.stream.peek(&mut [0; 64]).expect("the echo") < 10 {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert_eq!((&told["bytes_in"], &told["bytes_out"]), (&10.into(), &15.into()), "{told}");
    assert_eq!(told["error"], serde_json::Value::Null, "{told}");
}

#[test]
fn a_tunnel_may_be_silent_for_as_long_as_a_stream() {
    let told = tunnel("stream_idle_timeout = \"400ms\"", &[], |client| {
        let began = Instant::now();
        for _ in 0..8 {
            client.stream.write_all(b"x").expect("sent");
            std::thread::sleep(Duration::from_millis(100));
        }
        while !client.is_closed() {}
        assert!(began.elapsed() >= Duration::from_millis(1_100), "after {:?}", began.elapsed());
    });
    assert_eq!((&told["bytes_in"], &told["bytes_out"]), (&8.into(), &13.into()), "{told}");
    assert_eq!(told["error"], "stream_idle", "{told}");
}

#[test]
fn grpc_streams_may_be_silent() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "body_timeout = \"100ms\"");
    let mut client = H2::connect(forebay.proxy);
    let send = |client: &mut H2, kind: &str| {
        let request = Request::post("http://t/pkg.Service/Method")
            .header("content-type", kind)
            .body(())
            .expect("a request");
        client.sender.send_request(request, false).expect("is sent")
    };
    let (grpc, mut rest) = send(&mut client, "application/grpc");
    rest.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).expect("is sent");
    // Three others run into the limit one after the other meanwhile.
    for _ in 0..3 {
        let (other, _rest) = send(&mut client, "application/json");
        assert_eq!(client.head(other).status(), 408);
    }
    rest.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).expect("is sent");
    assert_eq!(client.head(grpc).status(), 200);
    forebay.wait_all_zero();
}

#[test]
fn a_head_has_a_size() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "max_header_bytes = \"8KiB\"");
    let large = "x".repeat(9_000);
    assert_eq!(http::request(forebay.proxy, "GET", "/x", &[("a", &large)], b"").status, 431);
    let fits = "x".repeat(4_000);
    assert_eq!(http::request(forebay.proxy, "GET", "/x", &[("a", &fits)], b"").status, 200);
    let client = H2::connect(forebay.proxy);
    let request =
        |value: &str| Request::get("http://t/x").header("a", value).body(()).expect("a request");
    let (fitting, _) = client.sender.clone().send_request(request(&fits), true).expect("is sent");
    assert_eq!(client.head(fitting).status(), 200);
    let (refused, _) = client.sender.clone().send_request(request(&large), true).expect("is sent");
    assert_eq!(client.head(refused).status(), 431);
}
