//! The data plane from outside: real sockets, real workers, the real binary.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "tests run in real time, compare exact counts and print their seeds"
)]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use support::http::{self, Client};
use support::{Forebay, Worker, eventually};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const JSON: (&str, &str) = ("content-type", "application/json");

fn chat(forebay: &Forebay) -> http::Answer {
    http::post(forebay.proxy, "/v1/chat/completions", &[JSON], CHAT)
}

#[test]
fn every_kind_of_path_reaches_a_worker() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 8)], "");
    let answer = chat(&forebay);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["object"], "chat.completion");
    assert_eq!(answer.header("x-forebay-instance-type"), Some("ml.t0"));
    assert!(answer.header("x-forebay-instance").is_some());

    let answer = http::post(forebay.proxy, "/endpoints/e/invocations?a=b", &[JSON], "{}");
    assert_eq!(answer.status, 200, "{}", answer.text());

    let answer = http::post(forebay.proxy, "/some/path?q=1", &[("x-mine", "1")], "body");
    let echo = answer.json();
    assert_eq!(echo["method"], "POST");
    assert_eq!(echo["path"], "/some/path");
    assert_eq!(echo["query"], "q=1");
    assert_eq!(echo["body_bytes"], 4);
    assert_eq!(echo["headers"]["x-mine"][0], "1");
    assert_eq!(http::request(forebay.proxy, "DELETE", "/x", &[], b"").json()["method"], "DELETE");
    let head = http::request(forebay.proxy, "HEAD", "/x", &[], b"");
    assert_eq!(head.status, 200);

    let models = http::get(forebay.proxy, "/v1/models").json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "m");
    forebay.wait_all_zero();
}

#[test]
fn chunks_are_passed_on_as_they_come() {
    let worker = Worker::start(&["--first-token", "20ms", "--tokens-per-second", "10"]);
    let forebay = Forebay::in_front_of(&[(&worker, 8)], "");
    let mut client = Client::connect(forebay.proxy);
    client.send(
        "POST",
        "/v1/chat/completions",
        &[JSON, ("x-worker-tokens", "6")],
        STREAM.as_bytes(),
    );
    let head = client.read_head();
    assert_eq!(head.status, 200);
    let mut arrivals = Vec::new();
    let mut text = String::new();
    while let Some(chunk) = client.read_chunk() {
        text += &String::from_utf8_lossy(&chunk.expect("no break"));
        arrivals.push(Instant::now());
    }
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    assert!(arrivals.len() >= 6, "{} chunks", arrivals.len());
    let span = arrivals[arrivals.len() - 1].duration_since(arrivals[0]);
    assert!(span > Duration::from_millis(300), "held back: all within {span:?}");
    forebay.wait_all_zero();
}

#[test]
fn one_connection_serves_many_requests() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 8)], "");
    let mut client = Client::connect(forebay.proxy);
    for round in 0..50 {
        client.send("POST", "/v1/completions", &[JSON], br#"{"model":"m","prompt":"x"}"#);
        let answer = client.read_answer();
        assert_eq!((answer.status, answer.complete), (200, true), "round {round}");
    }
}

#[test]
fn simultaneous_requests_go_one_to_each_idle_copy() {
    let workers: Vec<_> = (0..4).map(|_| Worker::start(&["--first-token", "500ms"])).collect();
    let pairs: Vec<_> = workers.iter().map(|w| (w, 8)).collect();
    let forebay = Forebay::in_front_of(&pairs, "");
    for _ in 0..3 {
        let before: Vec<_> = workers.iter().map(|w| w.stat("started")).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(chat(&forebay).status, 200));
            }
        });
        for (worker, before) in workers.iter().zip(before) {
            assert_eq!(worker.stat("started") - before, 1);
        }
        forebay.wait_all_zero();
    }
}

#[test]
fn limits_hold_and_the_excess_waits_at_the_proxy() {
    let fast = Worker::start(&["--first-token", "50ms", "--max-concurrency", "5"]);
    let slow = Worker::start(&["--first-token", "100ms", "--max-concurrency", "2"]);
    let forebay = Forebay::in_front_of(&[(&fast, 5), (&slow, 2)], "");
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| assert_eq!(chat(&forebay).status, 200));
        }
        let seen = eventually("requests wait at the proxy", || {
            let queued = forebay.gauge("forebay_queued_requests");
            (queued > 0.0).then_some(queued)
        });
        assert!(seen <= 33.0);
    });
    assert!(fast.stat("max_running") <= 5, "{}", fast.stat("max_running"));
    assert!(slow.stat("max_running") <= 2);
    assert_eq!(fast.stat("max_waiting") + slow.stat("max_waiting"), 0);
    assert!(fast.stat("started") > slow.stat("started"));
    forebay.wait_all_zero();
}

#[test]
fn a_full_queue_and_a_passed_wait_are_told_apart() {
    let worker = Worker::start(&["--first-token", "3s"]);
    let forebay =
        Forebay::in_front_of(&[(&worker, 1)], "queue_limit = 1\nqueue_timeout = \"300ms\"\n");
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(chat(&forebay).status, 200));
        eventually("one is running", || (worker.stat("running") == 1).then_some(()));
        let waiting = scope.spawn(|| chat(&forebay));
        eventually("one waits", || (forebay.gauge("forebay_queued_requests") == 1.0).then_some(()));
        let full = chat(&forebay);
        assert_eq!(full.status, 429, "{}", full.text());
        assert_eq!(full.header("x-forebay-error"), Some("queue_full"));
        assert!(full.header("retry-after").is_some());
        let late = waiting.join().expect("no panic");
        assert_eq!(late.status, 503, "{}", late.text());
        assert_eq!(late.header("x-forebay-error"), Some("queue_timeout"));
        assert!(late.header("retry-after").is_some());
    });
    forebay.wait_all_zero();
}

#[test]
fn a_client_that_leaves_frees_the_worker_within_a_tenth_of_a_second() {
    let worker = Worker::start(&["--first-token", "200ms", "--tokens-per-second", "20"]);
    let forebay = Forebay::in_front_of(&[(&worker, 1)], "");
    let long = [JSON, ("x-worker-tokens", "1000")];
    let cancelled_in_time = |left: Instant, before: u64| {
        eventually("the worker has noticed", || (worker.stat("cancelled") > before).then_some(()));
        // The look at the worker's counter takes its own time; the limit is generous by that.
        assert!(left.elapsed() < Duration::from_millis(150), "{:?}", left.elapsed());
    };
    // While it waits for the head.
    let mut client = Client::connect(forebay.proxy);
    client.send(
        "POST",
        "/v1/chat/completions",
        &[JSON, ("x-worker-first-token-ms", "20000")],
        CHAT.as_bytes(),
    );
    eventually("it runs", || (worker.stat("running") == 1).then_some(()));
    let before = worker.stat("cancelled");
    drop(client);
    cancelled_in_time(Instant::now(), before);
    // While it streams.
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &long, STREAM.as_bytes());
    client.read_head();
    client.read_chunk().expect("a chunk").expect("no break");
    let before = worker.stat("cancelled");
    drop(client);
    cancelled_in_time(Instant::now(), before);
    // While it waits in the queue: it leaves at once and never reaches the worker.
    let mut holder = Client::connect(forebay.proxy);
    holder.send("POST", "/v1/chat/completions", &long, STREAM.as_bytes());
    holder.read_head();
    let mut waiting = Client::connect(forebay.proxy);
    waiting.send("POST", "/v1/chat/completions", &[JSON], CHAT.as_bytes());
    eventually("it waits", || (forebay.gauge("forebay_queued_requests") == 1.0).then_some(()));
    let started = worker.stat("started");
    drop(waiting);
    let left = Instant::now();
    eventually("it has left", || (forebay.gauge("forebay_queued_requests") == 0.0).then_some(()));
    assert!(left.elapsed() < Duration::from_millis(150), "{:?}", left.elapsed());
    drop(holder);
    forebay.wait_all_zero();
    assert_eq!(worker.stat("started"), started);
}

#[test]
fn what_was_never_sent_is_tried_elsewhere() {
    let mut gone = Worker::start(&[]);
    let stays = Worker::start(&[]);
    // Probes are rare, so that the dead worker stays in the table for the whole test.
    let forebay = Forebay::in_front_of(&[(&gone, 8), (&stays, 8)], "unhealthy_threshold = 1000\n");
    gone.process.kill();
    for _ in 0..20 {
        let answer = chat(&forebay);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-forebay-instance-type"), Some("ml.t1"));
    }
    let mut stays = stays;
    stays.process.kill();
    let answer = chat(&forebay);
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.header("x-forebay-error"), Some("connect_failed"));
    forebay.wait_all_zero();
}

#[test]
fn what_may_have_run_is_a_clear_error() {
    let worker = Worker::start(&["--fail", "drop-connection"]);
    let other = Worker::start(&["--fail", "drop-connection"]);
    let forebay =
        Forebay::in_front_of(&[(&worker, 8), (&other, 8)], "unhealthy_threshold = 1000\n");
    let answer = http::post(forebay.proxy, "/anything", &[], "x");
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.header("x-forebay-error"), Some("upstream_broken"));
    assert_eq!(answer.json()["error"]["type"], "upstream_broken");
    forebay.wait_all_zero();
}

#[test]
fn a_broken_stream_never_looks_like_an_end() {
    let worker = Worker::start(&["--fail", "cut-stream=3"]);
    let forebay = Forebay::in_front_of(&[(&worker, 8)], "unhealthy_threshold = 1000\n");
    let answer = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], STREAM);
    assert_eq!(answer.status, 200);
    assert!(!answer.complete, "{}", answer.text());
    assert!(!answer.text().contains("[DONE]"));
    drop(worker);
    let worker = Worker::start(&["--fail", "cut-body"]);
    let forebay = Forebay::in_front_of(&[(&worker, 8)], "unhealthy_threshold = 1000\n");
    // Here the break may come before the head has left.
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &[JSON], CHAT.as_bytes());
    let answer = client.try_read_answer();
    assert!(answer.as_ref().is_none_or(|a| !a.complete || a.status == 502), "{answer:?}");
    forebay.wait_all_zero();
}

#[test]
fn errors_of_the_worker_are_passed_on() {
    let worker = Worker::start(&["--fail", "error=500"]);
    let forebay = Forebay::in_front_of(&[(&worker, 8)], "unhealthy_threshold = 1000\n");
    let answer = chat(&forebay);
    assert_eq!(answer.status, 500);
    assert_eq!(answer.header("x-forebay-error"), None);
    assert!(answer.header("x-forebay-instance").is_some());
}

#[test]
fn metrics_carry_the_instance_type() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 8)], "");
    for _ in 0..3 {
        assert_eq!(chat(&forebay).status, 200);
    }
    let text = http::get(forebay.admin, "/metrics").text();
    let labels = r#"endpoint="e",variant="v",model="m",InstanceType="ml.t0""#;
    assert!(
        text.contains(&format!("forebay_invocations_total{{{labels},code=\"200\"}} 3")),
        "{text}"
    );
    for name in [
        "forebay_model_latency_seconds_count",
        "forebay_overhead_latency_seconds_count",
        "forebay_first_chunk_latency_seconds_count",
    ] {
        assert!(text.contains(&format!("{name}{{{labels}}} 3")), "{name}: {text}");
    }
    let bare: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("forebay_") && !line.contains("InstanceType=\""))
        .collect();
    assert!(bare.is_empty(), "without InstanceType: {bare:?}");
}

#[test]
fn the_endpoint_is_named_by_path_header_or_body() {
    let first = Worker::start(&["--model", "first-model"]);
    let second = Worker::start(&["--model", "second-model"]);
    let mut config = String::from(
        "[proxy]\nlisten = \"{proxy}\"\n[admin]\nlisten = \"{admin}\"\n[provider.existing]\nkind = \"static\"\n",
    );
    for (name, worker) in [("first", &first), ("second", &second)] {
        config += &format!(
            "[instance_type.\"ml.{name}\"]\nprovider = \"existing\"\naddresses = [\"http://{}\"]\n[[endpoint]]\nname = \"{name}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"{name}-model\"\ninitial_instance_count = 1\nmax_instance_count = 1\nstartup_health_interval = \"50ms\"\n[[endpoint.variant.pool]]\ninstance_type = \"ml.{name}\"\npriority = 1\n",
            worker.address
        );
    }
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(2);
    let went_to = |answer: &http::Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.header("x-forebay-instance-type").expect("from a worker").to_owned()
    };
    for name in ["first", "second"] {
        let expected = format!("ml.{name}");
        let path = format!("/endpoints/{name}/invocations");
        assert_eq!(went_to(&http::post(forebay.proxy, &path, &[JSON], "{}")), expected);
        let header = [("x-forebay-endpoint", name)];
        assert_eq!(went_to(&http::post(forebay.proxy, "/any", &header, "x")), expected);
        for model in [name.to_owned(), format!("{name}-model")] {
            let body = format!(
                r#"{{"messages":[{{"role":"user","content":"x","model":"no"}}],"model":"{model}"}}"#
            );
            let answer = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], &body);
            assert_eq!(went_to(&answer), expected);
        }
    }
    // A body in pieces is read only as far as it takes.
    let mut client = Client::connect(forebay.proxy);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    client.stream.write_all(head.as_bytes()).expect("sent");
    for piece in
        [r#"{"mod"#, r#"el":"sec"#, r#"ond-model","messages":[{"role":"user","content":"x"}]}"#]
    {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        client.stream.write_all(chunk.as_bytes()).expect("sent");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.stream.write_all(b"0\r\n\r\n").expect("sent");
    assert_eq!(went_to(&client.read_answer()), "ml.second");

    let answer = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], r#"{"model":"x"}"#);
    assert_eq!((answer.status, answer.header("x-forebay-error")), (404, Some("unknown_endpoint")));
    let answer = http::post(forebay.proxy, "/any", &[], "x");
    assert_eq!(
        (answer.status, answer.header("x-forebay-error")),
        (400, Some("endpoint_not_named"))
    );
    let answer = http::post(forebay.proxy, "/endpoints/none/invocations", &[JSON], "{}");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("x-amzn-errortype"), Some("ValidationError"));
    assert_eq!(answer.json()["ErrorCode"], "NO_SUCH_ENDPOINT");
    let models = http::get(forebay.proxy, "/v1/models").json();
    let ids: Vec<_> = models["data"].as_array().expect("list").iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["first-model", "second-model", "first", "second"]);
}

#[test]
fn an_upgrade_is_tunnelled_and_counted() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let address = upstream.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in upstream.incoming() {
            let mut stream = stream.expect("accepted");
            std::thread::spawn(move || {
                use std::io::Read;
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                if head.starts_with(b"GET /ping") {
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
                    return;
                }
                drop(stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello "));
                let mut piece = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut piece) {
                    drop(stream.write_all(&piece[..n]));
                }
            });
        }
    });
    let config = format!(
        "[proxy]\nlisten = \"{{proxy}}\"\n[admin]\nlisten = \"{{admin}}\"\n[provider.existing]\nkind = \"static\"\n[instance_type.\"ml.t\"]\nprovider = \"existing\"\naddresses = [\"http://{address}\"]\n[[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\ninitial_instance_count = 1\nmax_instance_count = 1\nstartup_health_interval = \"50ms\"\n[[endpoint.variant.pool]]\ninstance_type = \"ml.t\"\npriority = 1\n"
    );
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(1);
    let mut client = Client::connect(forebay.proxy);
    client.send("GET", "/ws", &[("connection", "Upgrade"), ("upgrade", "echo")], b"");
    let head = client.read_head();
    assert_eq!(head.status, 101);
    assert_eq!(head.header("upgrade"), Some("echo"));
    client.stream.write_all(b"and good-bye").expect("sent");
    let mut said = Vec::new();
    eventually("the echo", || {
        use std::io::Read;
        let mut piece = [0; 64];
        let n = client.stream.read(&mut piece).expect("read");
        said.extend_from_slice(&piece[..n]);
        // What came with the head may be in the client's buffer.
        said.ends_with(b"and good-bye").then_some(())
    });
    assert_eq!(forebay.gauge("forebay_outstanding_requests"), 1.0);
    drop(client);
    forebay.wait_all_zero();
}

#[test]
fn before_any_worker_a_request_waits_or_is_refused_clearly() {
    let worker = Worker::start(&["--startup-delay", "2s"]);
    let config = |timeout: &str| {
        format!(
            "[proxy]\nlisten = \"{{proxy}}\"\n[admin]\nlisten = \"{{admin}}\"\n[provider.existing]\nkind = \"static\"\n[instance_type.\"ml.t\"]\nprovider = \"existing\"\naddresses = [\"http://{}\"]\n[[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\ninitial_instance_count = 1\nmax_instance_count = 1\nstartup_health_interval = \"50ms\"\nqueue_timeout = \"{timeout}\"\n[[endpoint.variant.pool]]\ninstance_type = \"ml.t\"\npriority = 1\n",
            worker.address
        )
    };
    let (patient, hasty) = (Forebay::serve(&config("30s")), Forebay::serve(&config("200ms")));
    for forebay in [&patient, &hasty] {
        eventually("it has a table", || forebay.proxies_are_current().then_some(()));
    }
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| chat(&patient));
        let answer = chat(&hasty);
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.header("x-forebay-error"), Some("queue_timeout"));
        assert!(answer.header("retry-after").is_some());
        let answer = waits.join().expect("no panic");
        assert_eq!(answer.status, 200, "it waited for the worker: {}", answer.text());
    });
    patient.wait_all_zero();
    hasty.wait_all_zero();
}
