//! Thousands of requests that end in every way there is, over HTTP/1.1 and HTTP/2 on both sides, plain and
//! streamed: afterwards every counter is at 0, and as many slots were given back as were taken.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use support::chaos::{CHAT, JSON, PATH, answering, over_http1, over_http2};
use support::http::{self as plain, Client};
use support::{Forebay, Worker, eventually};

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
    // In the storm itself the budget may be spent on other tries or be enough for all, and who drops connections
    // or switches unasked be left alone.
    eventually("one that may have run is not sent again", || {
        let status = plain::post(forebay.proxy, "/generate", &[JSON], CHAT).status;
        (status == 502).then_some(())
    });
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
