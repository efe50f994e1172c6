//! Thousands of requests that end in every way there is, over HTTP/1.1 and HTTP/2 on both sides, plain and
//! streamed: afterwards every counter is at 0, and as many slots were given back as were taken.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::Request;
use support::by_hand;
use support::h2::H2;
use support::http::{self as plain, Client};
use support::{Forebay, Worker, eventually};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const JSON: (&str, &str) = ("content-type", "application/json");
const PATH: &str = "/v1/chat/completions";

/// A worker that answers with these bytes, and then sends back whatever comes.
fn answering(answer: &'static str) -> SocketAddr {
    by_hand::healthy(move |_, stream| {
        drop(stream.write_all(answer.as_bytes()));
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            if stream.write_all(&piece[..length]).is_err() {
                return;
            }
        }
    })
}

/// How long a client puts up with it, different each time and the same in each run.
fn patience(number: u64) -> Duration {
    Duration::from_millis(number.wrapping_mul(2_654_435_761) % 40)
}

fn over_http1(proxy: SocketAddr, number: u64) {
    let mut client = Client::connect(proxy);
    let body = if number.is_multiple_of(3) { CHAT } else { STREAM };
    match number % 8 {
        // Leaves after half of its head, half of its body, or all of it.
        0 => {
            drop(client.stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncont"));
        }
        1 => {
            let head = format!(
                "POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            drop(client.stream.write_all(head.as_bytes()));
            drop(client.stream.write_all(&body.as_bytes()[..body.len() / 2]));
            std::thread::sleep(patience(number));
        }
        2 | 3 => {
            client.send("POST", PATH, &[JSON], body.as_bytes());
            std::thread::sleep(patience(number));
        }
        // A chunked body that breaks off in the middle of a chunk.
        4 => {
            let head = format!(
                "POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{{\"model\""
            );
            drop(client.stream.write_all(head.as_bytes()));
            std::thread::sleep(patience(number));
        }
        5 => {
            client.send("GET", "/ws", &[("connection", "upgrade"), ("upgrade", "echo")], b"");
            drop(client.stream.set_read_timeout(Some(patience(number) + Duration::from_millis(1))));
            drop(client.stream.write_all(b"anybody there?"));
            drop(client.stream.read(&mut [0; 64]));
        }
        _ => {
            client.send("POST", PATH, &[JSON], body.as_bytes());
            client.try_read_answer();
        }
    }
}

/// Several streams of one connection, each with an end of its own.
fn over_http2(proxy: SocketAddr, round: u64) {
    let mut client = H2::connect(proxy);
    let mut answers = Vec::new();
    for stream in 0..12 {
        let number = round * 12 + stream;
        let body = if number.is_multiple_of(3) { CHAT } else { STREAM };
        let Ok(ready) = client.wait(client.sender.clone().ready()) else { return };
        client.sender = ready;
        let request = Request::post(format!("http://x{PATH}"))
            .header("content-type", "application/json")
            .body(())
            .expect("a request");
        let Ok((answer, mut rest)) = client.sender.send_request(request, false) else { return };
        let half = &body[..body.len() / 2];
        match number % 4 {
            // A reset in the middle of the body, at some moment of the answer, or none.
            0 => {
                drop(rest.send_data(Bytes::from(half), false));
                rest.send_reset(Reason::CANCEL);
            }
            1 => {
                drop(rest.send_data(Bytes::from(body), true));
                std::thread::sleep(patience(number));
                drop(answer);
            }
            _ => {
                drop(rest.send_data(Bytes::from(body), true));
                answers.push(answer);
            }
        }
    }
    // The connection's end is the end of what is still under way.
    if round.is_multiple_of(3) {
        return;
    }
    for answer in answers {
        if let Ok(head) = client.wait(answer) {
            client.rest(head);
        }
    }
}

#[test]
fn a_storm_ends_with_every_counter_at_zero_and_as_many_releases_as_grants() {
    let good = Worker::start(&["--first-token", "5ms", "--tokens-per-second", "200"]);
    let good2 = Worker::start(&["--first-token", "5ms", "--tokens-per-second", "200"]);
    let cutting = Worker::start(&["--first-token", "5ms", "--fail", "cut-stream=2"]);
    let cutting2 = Worker::start(&["--first-token", "5ms", "--fail", "cut-stream=2"]);
    let dropping = Worker::start(&["--fail", "drop-connection"]);
    let failing = Worker::start(&["--fail", "error=500"]);
    let not_run = answering(
        "HTTP/1.1 503 Busy\r\nx-forebay-not-run: true\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    let switching = answering(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello",
    );
    let (http1, http2) = ("", "protocol = \"h2c\"\n");
    let forebay = Forebay::in_front_of_types(
        &[
            (good.address, 3, http1),
            (good2.address, 3, http2),
            (cutting.address, 2, http1),
            (cutting2.address, 2, http2),
            (dropping.address, 4, http1),
            (failing.address, 4, http1),
            (not_run, 4, http1),
            (switching, 4, http1),
        ],
        "unhealthy_threshold = 1000\nqueue_limit = 64\nqueue_timeout = \"50ms\"\n",
    );
    // In the storm itself the budget may be spent on other tries, and who switches unasked be left alone.
    eventually("one is switched", || {
        let mut client = Client::connect(forebay.proxy);
        client.send("GET", "/ws", &[("connection", "upgrade"), ("upgrade", "echo")], b"");
        (client.read_head().status == 101).then_some(())
    });
    eventually("one is retried because it was not run", || {
        plain::post(forebay.proxy, PATH, &[JSON], CHAT);
        let retries = forebay.gauge_where("forebay_retries_total", "reason=\"not_run\"");
        (retries > 0.0).then_some(())
    });
    std::thread::scope(|scope| {
        let proxy = forebay.proxy;
        for thread in 0..16_u64 {
            scope.spawn(move || (0..125).for_each(|n| over_http1(proxy, thread * 1_000 + n)));
        }
        for thread in 0..8_u64 {
            scope.spawn(move || (0..12).for_each(|n| over_http2(proxy, thread * 1_000 + n)));
        }
    });
    forebay.wait_all_zero();
    for worker in [&good, &good2, &cutting, &cutting2] {
        eventually("the workers are idle", || (worker.stat("running") == 0).then_some(()));
    }
    eventually("the manager has heard of it", || {
        let all = forebay.instances();
        (all.len() == 8 && all.iter().all(|i| i["outstanding"] == 0)).then_some(())
    });
    // Every slot taken shows as a request sent; it was given back by an end at the worker, or because the
    // request was not sent after all or is told elsewhere.
    let taken = forebay.gauge("forebay_overhead_latency_seconds_count");
    let ended = forebay.gauge("forebay_model_latency_seconds_count");
    let not_sent = forebay.gauge("forebay_upstream_connect_failures_total");
    let elsewhere = forebay.gauge_where("forebay_retries_total", "reason=\"not_run\"");
    assert_eq!(taken, ended + not_sent + elsewhere, "{ended} + {not_sent} + {elsewhere}");
    let answered =
        |code: u16| forebay.gauge_where("forebay_invocations_total", &format!("code=\"{code}\""));
    for code in [101, 200, 499, 500, 502, 503] {
        assert!(answered(code) > 0.0, "nothing of the storm ended with {code}");
    }
    assert!(taken > 1_000.0, "{taken} requests reached a worker");
    // And it still serves.
    eventually("served", || {
        (plain::post(forebay.proxy, PATH, &[JSON], CHAT).status == 200).then_some(())
    });
}
