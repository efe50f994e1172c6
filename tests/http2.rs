//! Clients that speak HTTP/2 with prior knowledge, on the port of HTTP/1.1. A client of the h2 crate shows
//! what HTTP/2 itself says of a request: its resets, its GOAWAY, its limits.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request};
use support::h2::H2;
use support::http::Client;
use support::{DEADLINE, Forebay, Worker, eventually};

#[test]
fn many_requests_share_a_connection_and_each_is_counted() {
    let worker = Worker::start(&["--max-concurrency", "4", "--first-token", "200ms"]);
    let forebay = Forebay::limited(&worker, "");
    let mut client = H2::connect(forebay.proxy);
    let answers: Vec<_> = (0..12).map(|number| client.chat(3, number % 2 == 0)).collect();
    eventually("four run and the others wait at the proxy", || {
        let outstanding = forebay.gauge("forebay_outstanding_requests");
        let queued = forebay.gauge("forebay_queued_requests");
        (outstanding == 4.0 && queued == 8.0).then_some(())
    });
    for (number, answer) in answers.into_iter().enumerate() {
        let head = client.head(answer);
        assert_eq!(head.status(), 200);
        assert!(head.headers().contains_key("x-forebay-instance"));
        for name in ["connection", "transfer-encoding", "keep-alive"] {
            assert!(!head.headers().contains_key(name), "{name} is no field of HTTP/2");
        }
        let (body, error) = client.rest(head);
        assert!(error.is_none());
        let text = String::from_utf8(body).expect("text");
        assert_eq!(text.ends_with("data: [DONE]\n\n"), number % 2 == 0, "{text}");
    }
    assert_eq!(worker.stat("max_running"), 4);
    assert_eq!(worker.stat("max_waiting"), 0);
    forebay.wait_all_zero();
}

#[test]
fn both_protocols_are_served_on_one_port_however_their_first_bytes_come() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    for pieces in
        [&["P", "O", "ST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n"][..], &["P"]]
    {
        let mut client = Client::connect(forebay.proxy);
        for piece in pieces {
            client.stream.write_all(piece.as_bytes()).expect("sent");
            std::thread::sleep(Duration::from_millis(20));
        }
        if pieces.len() > 1 {
            assert_eq!(client.read_answer().status, 200);
        }
    }
    let mut socket = TcpStream::connect(forebay.proxy).expect("connects");
    for piece in [&b"PR"[..], b"I", b" * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 0, 0, 4, 0, 0, 0, 0, 0]]
    {
        socket.write_all(piece).expect("sent");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut frame = [0; 9];
    socket.read_exact(&mut frame).expect("a frame");
    assert_eq!(frame[3], 4, "its SETTINGS");
    let mut h2 = H2::connect(forebay.proxy);
    let answer = h2.send("/ping-me", "");
    assert_eq!(h2.head(answer).status(), 200);
}

#[test]
fn a_reset_cancels_what_runs_and_what_waits() {
    let worker = Worker::start(&["--max-concurrency", "4", "--first-token", "20s"]);
    let forebay = Forebay::limited(&worker, "");
    let mut client = H2::connect(forebay.proxy);
    let mut running: Vec<_> = (0..4).map(|_| client.chat(3, false)).collect();
    eventually("they run", || (worker.stat("running") == 4).then_some(()));
    let waiting = client.chat(3, false);
    eventually("it waits", || (forebay.gauge("forebay_queued_requests") == 1.0).then_some(()));
    drop(waiting);
    eventually("it has left the queue", || {
        (forebay.gauge("forebay_queued_requests") == 0.0).then_some(())
    });
    let start = Instant::now();
    drop(running.pop());
    eventually("the worker has noticed", || (worker.stat("cancelled") == 1).then_some(()));
    assert!(start.elapsed() < Duration::from_millis(100), "after {:?}", start.elapsed());
    assert_eq!(worker.stat("running"), 3, "the others of the connection go on");
    // The connection's own end is the end of all of them.
    drop(client);
    drop(running);
    eventually("all are cancelled", || (worker.stat("cancelled") == 4).then_some(()));
    forebay.wait_all_zero();
}

#[test]
fn a_stream_that_breaks_at_the_worker_is_reset_and_never_ended() {
    let worker = Worker::start(&["--fail", "cut-stream=3"]);
    let forebay = Forebay::limited(&worker, "");
    let mut client = H2::connect(forebay.proxy);
    let answer = client.chat(10, true);
    let head = client.head(answer);
    assert_eq!(head.status(), 200);
    let (body, error) = client.rest(head);
    assert!(!body.is_empty(), "what came before is passed on");
    assert_eq!(error.and_then(|e| e.reason()), Some(Reason::INTERNAL_ERROR));
    forebay.wait_all_zero();
}

#[test]
fn a_body_that_breaks_off_is_the_clients_doing() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let mut client = H2::connect(forebay.proxy);
    let request = Request::post("http://t/x").body(()).expect("a request");
    let (answer, mut body) = client.sender.send_request(request, false).expect("is sent");
    body.send_data(Bytes::from_static(b"{"), false).expect("is sent");
    eventually("it has a slot", || {
        (forebay.gauge("forebay_outstanding_requests") == 1.0).then_some(())
    });
    body.send_reset(Reason::CANCEL);
    assert!(client.wait(answer).is_err());
    forebay.wait_all_zero();
    let of = |code| forebay.gauge_where("forebay_invocations_total", &format!("code=\"{code}\""));
    eventually("it is counted as the client's end", || (of(499) == 1.0).then_some(()));
    assert_eq!(of(502), 0.0, "the worker is not to blame");
}

#[test]
fn streams_beyond_the_limit_wait_at_the_client() {
    let worker = Worker::start(&["--max-concurrency", "4", "--first-token", "100ms"]);
    let forebay = Forebay::limited(&worker, "max_streams = 2");
    let mut client = H2::connect(forebay.proxy);
    // Its SETTINGS have come by the time that a first answer has.
    let models = Request::get("http://t/v1/models").body(()).expect("a request");
    let (answer, _) = client.sender.send_request(models, true).expect("is sent");
    assert_eq!(client.head(answer).status(), 200);
    let all: Vec<_> = (0..3)
        .map(|_| {
            let request = Request::get("http://t/x").body(()).expect("a request");
            client
                .wait(client.sender.clone().ready())
                .map(|mut ready| ready.send_request(request, true).expect("is sent").0)
        })
        .collect();
    for answer in all {
        assert_eq!(client.head(answer.expect("room in time")).status(), 200);
    }
    assert_eq!(worker.stat("max_running"), 2);
}

#[test]
fn being_told_to_end_finishes_the_streams_that_run() {
    let worker = Worker::start(&["--first-token", "300ms", "--tokens-per-second", "20"]);
    let mut forebay = Forebay::limited(&worker, "");
    let mut client = H2::connect(forebay.proxy);
    let answer = client.chat(10, true);
    eventually("it runs", || (worker.stat("running") == 1).then_some(()));
    forebay.process.signal("TERM");
    let head = client.head(answer);
    let (body, error) = client.rest(head);
    assert!(error.is_none(), "{error:?}");
    assert!(body.ends_with(b"data: [DONE]\n\n"));
    client
        .runtime
        .block_on(async {
            tokio::time::timeout(DEADLINE, client.connection).await.expect("closed").expect("ran")
        })
        .expect("a clean end, by GOAWAY");
    forebay.process.wait();
}

#[test]
fn a_connection_without_requests_is_closed_and_one_with_is_not() {
    let worker = Worker::start(&["--first-token", "700ms"]);
    let forebay = Forebay::limited(&worker, "idle_timeout = \"200ms\"");
    let mut busy = H2::connect(forebay.proxy);
    let idle = H2::connect(forebay.proxy);
    let answer = busy.chat(1, false);
    idle.runtime
        .block_on(async {
            tokio::time::timeout(DEADLINE, idle.connection).await.expect("closed").expect("ran")
        })
        .expect("a clean end, by GOAWAY");
    assert_eq!(busy.head(answer).status(), 200);
}

#[test]
fn a_flood_of_resets_ends_its_connection_and_no_other() {
    let worker = Worker::start(&["--first-token", "1s"]);
    let forebay = Forebay::limited(&worker, "");
    let mut other = H2::connect(forebay.proxy);
    let patient = other.chat(1, false);
    let mut flood = H2::connect(forebay.proxy);
    for _ in 0..20_000 {
        let request = Request::get("http://t/x").body(()).expect("a request");
        let Ok(ready) = flood.wait(flood.sender.clone().ready()) else { break };
        flood.sender = ready;
        // Dropped without an answer: a reset.
        drop(flood.sender.send_request(request, true));
    }
    let end = flood.runtime.block_on(async {
        tokio::time::timeout(DEADLINE, flood.connection).await.expect("closed").expect("ran")
    });
    let error = end.expect_err("it was told to calm down");
    // Whether it still reads that depends on what it is writing at that moment.
    let calm = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
    assert!(calm || error.is_io(), "{error}");
    assert_eq!(other.head(patient).status(), 200);
    forebay.wait_all_zero();
}

#[test]
fn an_answer_to_head_has_no_body_whoever_gives_it() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let mut client = H2::connect(forebay.proxy);
    for (endpoint, status) in [("nope", 404), ("e", 200)] {
        let ask = |client: &mut H2, method: Method| {
            let request = Request::builder().method(method).uri("http://e.example/x");
            let request = request.header("x-forebay-endpoint", endpoint).body(()).expect("one");
            client.sender = client.wait(client.sender.clone().ready()).expect("more");
            let (answer, _) = client.sender.send_request(request, true).expect("is sent");
            let head = client.head(answer);
            assert_eq!(head.status(), status);
            let length = head.headers()["content-length"].to_str().expect("text").to_owned();
            let (body, error) = client.rest(head);
            assert!(error.is_none(), "{error:?}");
            (body.len(), length)
        };
        let (_, length) = ask(&mut client, Method::GET);
        let (bytes, said) = ask(&mut client, Method::HEAD);
        assert_eq!(bytes, 0, "{status}");
        if status == 404 {
            assert_eq!(said, length, "as a GET has it");
        }
    }
    forebay.wait_all_zero();
}

/// Nothing can be said over HTTP/2 before the answer: who waits for it is told to ask otherwise (RFC 9110, 10.1.1).
#[test]
fn who_waits_for_a_word_is_answered_and_who_sends_without_is_served() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "");
    let mut client = H2::connect(forebay.proxy);
    for length in [Some("2"), None] {
        let mut ask = || {
            let mut request = Request::post("http://e.example/x").header("expect", "100-continue");
            if let Some(length) = length {
                request = request.header("content-length", length);
            }
            client.sender = client.wait(client.sender.clone().ready()).expect("more");
            client.sender.send_request(request.body(()).expect("one"), false).expect("is sent")
        };
        let (answer, mut body) = ask();
        let (waiting, _unsent) = ask();
        std::thread::sleep(Duration::from_millis(1_100));
        body.send_data("{}".into(), true).expect("is sent");
        assert_eq!(client.head(answer).status(), 200, "{length:?}");
        let head = client.head(waiting);
        assert_eq!(head.status(), 417, "{length:?}");
        assert_eq!(head.headers()["x-forebay-error"], "expectation_failed");
    }
    forebay.wait_all_zero();
}

/// Who has begun to send waits for no word: what is told then is that the rest does not come.
#[test]
fn who_stops_behind_a_beginning_is_told_so_whatever_it_expected() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::limited(&worker, "body_timeout = \"4s\"");
    let mut client = H2::connect(forebay.proxy);
    let request = Request::post("http://e.example/x").header("expect", "100-continue");
    let request = request.header("content-length", "20").body(()).expect("one");
    let (answer, mut body) = client.sender.send_request(request, false).expect("is sent");
    body.send_data("{".into(), false).expect("is sent");
    let head = client.head(answer);
    assert_eq!(head.status(), 408);
    assert_eq!(head.headers()["x-forebay-error"], "body_timeout");
    forebay.wait_all_zero();
}
