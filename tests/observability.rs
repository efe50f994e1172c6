//! What the proxy tells about single requests, from outside: the lines of the access log, and the spans
//! that a receiver gets. The rules and the dashboard are held to the metrics that there really are.

#![allow(clippy::float_cmp, reason = "what is compared are counts, whole numbers all")]
#![allow(clippy::format_push_string, reason = "a config or a rule file is put together once")]

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value as Json;
use support::http::{self, Client};
use support::{Forebay, Worker, by_hand, eventually, free_port, local};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const JSON: (&str, &str) = ("content-type", "application/json");
const PATH: &str = "/v1/chat/completions";

fn in_front_of(worker: &Worker, slots: u32, telemetry: &str, variant: &str) -> Forebay {
    // The section follows the keys of the last instance type.
    let section = format!("[telemetry]\n{telemetry}\n");
    Forebay::in_front_of_types(&[(worker.address, slots, &section)], variant)
}

fn lines(forebay: &Forebay, name: &str) -> Vec<Json> {
    let text = std::fs::read_to_string(forebay.dir.path().join(name)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

/// The line with this `x-request-id`, once it is written.
fn line(forebay: &Forebay, id: &str) -> Json {
    eventually(&format!("a line for {id}"), || {
        let mut found = lines(forebay, "access.jsonl");
        found.retain(|line| line["request_id"] == id);
        assert!(found.len() <= 1, "one line a request: {found:?}");
        found.pop()
    })
}

fn number(line: &Json, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {line}"))
}

#[test]
fn each_finished_request_is_one_line() {
    let worker = Worker::start(&["--first-token", "30ms"]);
    let forebay = in_front_of(&worker, 8, "access_log = \"access.jsonl\"", "");
    let secret = [JSON, ("x-request-id", "plain"), ("authorization", "Bearer hush")];
    let path = format!("{PATH}?api_key=hush");
    let answer = http::post(forebay.proxy, &path, &secret, CHAT);
    assert_eq!(answer.status, 200);
    let plain = line(&forebay, "plain");
    for (name, value) in [
        ("method", "POST"),
        ("path", PATH),
        ("endpoint", "e"),
        ("variant", "v"),
        ("model", "m"),
        ("instance_type", "ml.t0"),
    ] {
        assert_eq!(plain[name], value, "{name} in {plain}");
    }
    assert_eq!(
        Some(plain["instance"].as_str().expect("text")),
        answer.header("x-forebay-instance")
    );
    assert_eq!((&plain["status"], &plain["tries"]), (&200.into(), &1.into()));
    assert_eq!(plain["client_left"], false);
    assert_eq!(plain["bytes_in"], CHAT.len());
    assert_eq!(plain["bytes_out"], answer.body.len());
    assert_eq!(plain["error"], Json::Null);
    assert!(number(&plain, "model_ms") >= 30.0, "{plain}");
    assert!(number(&plain, "first_chunk_ms") <= number(&plain, "model_ms"), "{plain}");
    assert!(number(&plain, "total_ms") >= number(&plain, "model_ms"), "{plain}");
    assert!(number(&plain, "queue_ms") < 30.0, "{plain}");
    let time = plain["time"].as_str().expect("text");
    let since = humantime::parse_rfc3339(time).expect("a time").elapsed().expect("in the past");
    assert!(since < support::DEADLINE, "{time}");

    // A stream, whose body comes in pieces both ways.
    let mut client = Client::connect(forebay.proxy);
    let headers = [JSON, ("x-request-id", "stream"), ("transfer-encoding", "chunked")];
    let headers: String = headers.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: h\r\n{headers}");
    let body = format!("{head}\r\n{:x}\r\n{STREAM}\r\n0\r\n\r\n", STREAM.len());
    client.stream.write_all(body.as_bytes()).expect("sent");
    client.read_head();
    let mut bytes = 0;
    while let Some(chunk) = client.read_chunk() {
        bytes += chunk.expect("no break").len();
    }
    let stream = line(&forebay, "stream");
    assert_eq!((&stream["bytes_in"], &stream["bytes_out"]), (&STREAM.len().into(), &bytes.into()));
    assert_eq!(stream["client_left"], false);

    // What no worker was asked for.
    let headers = [("x-forebay-endpoint", "nobody"), ("x-request-id", "unknown")];
    let answer = http::post(forebay.proxy, "/x", &headers, "");
    assert_eq!(answer.status, 404);
    let unknown = line(&forebay, "unknown");
    assert_eq!((&unknown["status"], &unknown["error"]), (&404.into(), &"unknown_endpoint".into()));
    assert_eq!((&unknown["tries"], &unknown["instance_type"]), (&0.into(), &"none".into()));
    assert_eq!(unknown["bytes_out"], answer.body.len());
    http::request(forebay.proxy, "GET", "/v1/models", &[("x-request-id", "models")], b"");
    assert_eq!(line(&forebay, "models")["status"], 200);

    let log = std::fs::read_to_string(forebay.dir.path().join("access.jsonl")).expect("log");
    assert!(!log.contains("hush") && !log.contains("api_key"), "{log}");
}

#[test]
fn what_goes_wrong_says_how() {
    let worker = Worker::start(&["--first-token", "1s"]);
    let telemetry = "access_log = \"access.jsonl\"\naccess_log_sample = 0.0";
    let variant = "queue_limit = 1\nqueue_timeout = \"300ms\"\nunhealthy_threshold = 1000\n";
    let forebay = in_front_of(&worker, 1, telemetry, variant);
    let send = |id: &str, more: (&str, &str), body: &str| {
        let mut client = Client::connect(forebay.proxy);
        client.send("POST", PATH, &[JSON, ("x-request-id", id), more], body.as_bytes());
        client
    };
    let none = ("x-none", "1");
    // One runs, one waits until its limit, one more is too many: of these only the 503 is a failure, and
    // only failures are logged at a share of 0.
    let mut runs = send("runs", ("x-worker-first-token-ms", "2000"), CHAT);
    eventually("one runs", || (worker.stat("running") == 1).then_some(()));
    let mut waits = send("waits", none, CHAT);
    eventually("one waits", || (forebay.gauge("forebay_queued_requests") == 1.0).then_some(()));
    assert_eq!(send("too-many", none, CHAT).read_answer().status, 429);
    assert_eq!(waits.read_answer().status, 503);
    let waits = line(&forebay, "waits");
    assert_eq!((&waits["status"], &waits["error"]), (&503.into(), &"queue_timeout".into()));
    assert!(number(&waits, "queue_ms") >= 300.0 && number(&waits, "queue_ms") < 2_000.0, "{waits}");
    assert_eq!((&waits["endpoint"], &waits["tries"]), (&"e".into(), &0.into()));
    assert_eq!(runs.read_answer().status, 200);

    let fast = ("x-worker-first-token-ms", "0");
    // Slow enough that the head has left before the stream breaks.
    let paced = ("x-worker-token-interval-ms", "20");
    let failing = |id: &str, how: &str, body: &str| {
        let mut client = Client::connect(forebay.proxy);
        let headers = [JSON, ("x-request-id", id), ("x-worker-fail", how), fast, paced];
        client.send("POST", PATH, &headers, body.as_bytes());
        client.read_answer()
    };
    assert_eq!(failing("error", "error=500", CHAT).status, 500);
    assert_eq!(line(&forebay, "error")["status"], 500);
    assert!(!failing("cut", "cut-stream=3", STREAM).complete);
    let cut = line(&forebay, "cut");
    assert_eq!((&cut["status"], &cut["error"]), (&200.into(), &"stream_broken".into()));
    assert_eq!(cut["client_left"], false);
    assert!(number(&cut, "bytes_out") > 0.0, "{cut}");
    assert_eq!(failing("dropped", "drop-connection", CHAT).status, 502);
    let dropped = line(&forebay, "dropped");
    assert_eq!((&dropped["status"], &dropped["tries"]), (&502.into(), &1.into()));
    assert_eq!(dropped["error"], "upstream_broken");

    let ids: Vec<_> = lines(&forebay, "access.jsonl");
    let ids: Vec<_> = ids.iter().map(|line| line["request_id"].as_str().unwrap_or("")).collect();
    assert_eq!(ids, ["waits", "error", "cut", "dropped"]);
}

#[test]
fn clients_that_leave_are_told_from_those_that_stay() {
    let worker = Worker::start(&[]);
    let forebay = in_front_of(&worker, 1, "access_log = \"access.jsonl\"", "");
    let send = |id: &str, first_token: &str, body: &str| {
        let mut client = Client::connect(forebay.proxy);
        let headers = [
            JSON,
            ("x-request-id", id),
            ("x-worker-first-token-ms", first_token),
            ("x-worker-token-interval-ms", "20"),
            ("x-worker-tokens", "1000"),
        ];
        client.send("POST", PATH, &headers, body.as_bytes());
        client
    };
    let before_head = send("before-head", "20000", CHAT);
    eventually("it runs", || (worker.stat("running") == 1).then_some(()));
    let queued = send("queued", "0", CHAT);
    eventually("it waits", || (forebay.gauge("forebay_queued_requests") == 1.0).then_some(()));
    drop(queued);
    let left = line(&forebay, "queued");
    assert_eq!((&left["status"], &left["client_left"]), (&499.into(), &true.into()));
    assert_eq!((&left["tries"], &left["instance"]), (&0.into(), &Json::Null));
    drop(before_head);
    let left = line(&forebay, "before-head");
    assert_eq!((&left["status"], &left["client_left"]), (&499.into(), &true.into()));
    assert_eq!((&left["tries"], &left["bytes_out"]), (&1.into(), &0.into()));

    let mut streaming = send("streaming", "0", STREAM);
    streaming.read_head();
    streaming.read_chunk().expect("a chunk").expect("no break");
    drop(streaming);
    let left = line(&forebay, "streaming");
    assert_eq!((&left["status"], &left["client_left"]), (&200.into(), &true.into()));
    assert!(number(&left, "bytes_out") > 0.0 && number(&left, "first_chunk_ms") >= 0.0, "{left}");
}

#[test]
fn a_moved_file_is_opened_anew_and_the_end_loses_no_line() {
    let worker = Worker::start(&[]);
    let mut forebay = in_front_of(&worker, 8, "access_log = \"access.jsonl\"", "");
    let post = |id: &str| {
        let answer = http::post(forebay.proxy, PATH, &[JSON, ("x-request-id", id)], CHAT);
        assert_eq!(answer.status, 200);
    };
    post("old");
    line(&forebay, "old");
    let file = forebay.dir.path().join("access.jsonl");
    std::fs::rename(&file, forebay.dir.path().join("access.1.jsonl")).expect("moved");
    forebay.process.signal("HUP");
    eventually("the file is there again", || file.exists().then_some(()));
    for number in 0..200 {
        post(&format!("new-{number}"));
    }
    forebay.process.signal("TERM");
    assert!(forebay.process.wait().success());
    assert_eq!(lines(&forebay, "access.jsonl").len(), 200);
    assert_eq!(lines(&forebay, "access.1.jsonl").len(), 1);
}

#[test]
fn standard_error_takes_lines_too() {
    let worker = Worker::start(&[]);
    let forebay = in_front_of(&worker, 8, "access_log = \"stderr\"", "");
    http::request(forebay.proxy, "GET", "/v1/models", &[("x-request-id", "seen")], b"");
    let line = eventually("a line among the logs", || {
        let log = forebay.log();
        log.lines().find(|line| line.contains("\"request_id\":\"seen\"")).map(str::to_owned)
    });
    let line: Json = serde_json::from_str(&line).expect("one object a line");
    assert_eq!((&line["status"], &line["path"]), (&200.into(), &"/v1/models".into()));
}

#[test]
fn a_log_that_cannot_be_opened_keeps_it_from_starting() {
    let dir = tempfile::tempdir().expect("dir");
    let config = dir.path().join("forebay.toml");
    let text = "[proxy]\nlisten = \"{proxy}\"\n[admin]\nlisten = \"{admin}\"\n\
                [telemetry]\naccess_log = \"no/such/folder/access.jsonl\"\n";
    support::write_config(&config, text, local(free_port()), local(free_port()));
    let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["serve", "--config"])
        .arg(&config)
        .current_dir(dir.path())
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot open the access log no/such/folder/access.jsonl"), "{told}");
}

/// Takes spans as a collector does.
struct Receiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    resources: Arc<Mutex<Vec<HashMap<String, String>>>>,
}

impl Receiver {
    /// Answers the first requests with `refusals`, the rest with 200.
    fn start(refusals: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("address");
        let receiver = Self { address, spans: Arc::default(), resources: Arc::default() };
        let (spans, resources) = (Arc::clone(&receiver.spans), Arc::clone(&receiver.resources));
        let mut refusals = refusals.to_vec();
        // It ends with the process; each connection is served to its end.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                while let Some(body) = read_request(&stream) {
                    let refusal = (!refusals.is_empty()).then(|| refusals.remove(0));
                    if refusal.is_none() {
                        keep(&body, &spans, &resources);
                    }
                    let status = refusal.unwrap_or("200 OK");
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    (&stream).write_all(answer.as_bytes()).expect("answered");
                }
            }
        });
        receiver
    }

    fn config(&self, more: &str) -> String {
        format!("otlp_endpoint = \"http://{}\"\n{more}", self.address)
    }

    fn of_trace(&self, trace_id: &str, count: usize) -> Vec<Span> {
        eventually(&format!("{count} spans of {trace_id}"), || {
            let spans = self.spans.lock().expect("lock");
            let found = spans.iter().filter(|s| hex(&s.trace_id) == trace_id).cloned();
            let found: Vec<_> = found.collect();
            assert!(found.len() <= count, "{found:?}");
            (found.len() == count).then_some(found)
        })
    }
}

fn keep(body: &[u8], spans: &Mutex<Vec<Span>>, resources: &Mutex<Vec<HashMap<String, String>>>) {
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    for resource in request.resource_spans {
        let facts = resource.resource.expect("a resource").attributes;
        resources.lock().expect("lock").push(attributes(&facts));
        for scope in resource.scope_spans {
            assert_eq!(scope.scope.expect("a scope").name, "forebay");
            spans.lock().expect("lock").extend(scope.spans);
        }
    }
}

fn read_request(mut stream: &TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn attributes(list: &[KeyValue]) -> HashMap<String, String> {
    let shown = |value: &KeyValue| match value.value.clone().and_then(|any| any.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => panic!("{other:?}"),
    };
    let map: HashMap<_, _> = list.iter().map(|kv| (kv.key.clone(), shown(kv))).collect();
    assert_eq!(map.len(), list.len(), "each key once: {list:?}");
    map
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT_SPAN: &str = "00f067aa0ba902b7";

#[test]
fn a_clients_trace_goes_on_through_the_proxy_to_the_worker() {
    let receiver = Receiver::start(&["503 Service Unavailable"]);
    let worker = Worker::start(&["--first-token", "20ms"]);
    let telemetry = receiver.config("trace_sample = 0.0\naccess_log = \"access.jsonl\"");
    let forebay = in_front_of(&worker, 8, &telemetry, "");
    let parent = format!("00-{TRACE}-{CLIENT_SPAN}-01");
    let headers =
        [JSON, ("traceparent", parent.as_str()), ("tracestate", "a=b"), ("x-request-id", "t")];
    assert_eq!(http::post(forebay.proxy, &format!("{PATH}?q=hush"), &headers, CHAT).status, 200);
    let spans = receiver.of_trace(TRACE, 2);
    let [server, client] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((server.kind, client.kind), (2, 3));
    assert_eq!(hex(&server.parent_span_id), CLIENT_SPAN);
    assert_eq!(client.parent_span_id, server.span_id);
    assert_eq!((server.trace_state.as_str(), client.trace_state.as_str()), ("a=b", "a=b"));
    assert_eq!((server.flags, client.flags), (0x301, 0x101));
    assert_eq!(
        (server.name.as_str(), client.name.as_str()),
        ("POST /v1/chat/completions", "chat m")
    );
    assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
    assert!(client.end_time_unix_nano <= server.end_time_unix_nano);
    assert!(client.end_time_unix_nano - client.start_time_unix_nano >= 20_000_000);
    let age = forebay::runtime::clock::wall_nanos() - server.end_time_unix_nano;
    assert!(u128::from(age) < support::DEADLINE.as_nanos(), "{age}");
    assert!(server.status.is_none() && client.status.is_none());

    let facts = attributes(&server.attributes);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", PATH),
        ("url.path", PATH),
        ("url.scheme", "http"),
        ("http.response.status_code", "200"),
        ("http.request.body.size", &CHAT.len().to_string()),
        ("forebay.endpoint", "e"),
        ("forebay.variant", "v"),
        ("forebay.instance_type", "ml.t0"),
        ("forebay.tries", "1"),
        ("forebay.client_left", "false"),
    ] {
        assert_eq!(facts.get(key).map(String::as_str), Some(value), "{key} in {facts:?}");
    }
    assert!(facts.contains_key("forebay.queue_ms"));
    let facts = attributes(&client.attributes);
    let (port, url) =
        (worker.address.port().to_string(), format!("http://{}{PATH}", worker.address));
    for (key, value) in [
        ("http.request.method", "POST"),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
        ("url.full", &url),
        ("http.response.status_code", "200"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("forebay.instance_type", "ml.t0"),
    ] {
        assert_eq!(facts.get(key).map(String::as_str), Some(value), "{key} in {facts:?}");
    }
    assert!(!format!("{spans:?}").contains("hush"));
    let resource = receiver.resources.lock().expect("lock")[0].clone();
    assert_eq!(resource["service.name"], "forebay");
    assert!(resource["service.instance.id"].starts_with("proxy-"));
    // One batch was refused at first, and nothing was lost by that.
    assert_eq!(forebay.gauge("forebay_trace_spans_dropped_total"), 0.0);
    eventually("counted", || {
        (forebay.gauge("forebay_trace_spans_exported_total") == 2.0).then_some(())
    });
    assert_eq!(line(&forebay, "t")["trace_id"], TRACE);
}

#[test]
fn the_worker_is_told_whose_child_it_is() {
    let receiver = Receiver::start(&[]);
    let worker = Worker::start(&[]);
    let forebay = in_front_of(&worker, 8, &receiver.config("trace_sample = 1.0"), "");
    // The stand-in worker shows the headers it got on paths that it does not know.
    let echo = http::post(forebay.proxy, "/some/path", &[], "x").json();
    let told = echo["headers"]["traceparent"][0].as_str().expect("a traceparent").to_owned();
    let parts: Vec<_> = told.split('-').collect();
    let spans = receiver.of_trace(parts[1], 2);
    assert_eq!((parts[0], hex(&spans[1].span_id).as_str(), parts[3]), ("00", parts[2], "01"));
    assert_eq!(spans[0].parent_span_id, b"");
    // Paths that nobody knows are not in names, of which there must be few.
    assert_eq!((spans[0].name.as_str(), spans[1].name.as_str()), ("POST", "POST"));
    assert_eq!(spans[0].flags, 0x101);

    let unsampled = format!("00-{TRACE}-{CLIENT_SPAN}-00");
    let headers = [("traceparent", unsampled.as_str())];
    let echo = http::post(forebay.proxy, "/some/path", &headers, "x").json();
    assert_eq!(echo["headers"]["traceparent"][0], unsampled);

    // The runtime protocol's paths have patterns, and another path at the worker.
    let parent = format!("00-{TRACE}-{CLIENT_SPAN}-01");
    let headers = [JSON, ("traceparent", parent.as_str())];
    http::post(forebay.proxy, "/endpoints/e/invocations", &headers, "{}");
    let spans = receiver.of_trace(TRACE, 2);
    assert_eq!(spans[0].name, "POST /endpoints/{endpoint}/invocations");
    let url = attributes(&spans[1].attributes)["url.full"].clone();
    assert_eq!(url, format!("http://{}/invocations", worker.address));
}

#[test]
fn each_try_is_a_span_and_failures_are_marked() {
    let receiver = Receiver::start(&[]);
    let mut gone = Worker::start(&[]);
    let stays = Worker::start(&["--fail", "error=404"]);
    let section = format!(
        "[telemetry]\naccess_log = \"access.jsonl\"\n{}\n",
        receiver.config("trace_sample = 0.0")
    );
    let types = [(gone.address, 8, ""), (stays.address, 8, section.as_str())];
    let forebay = Forebay::in_front_of_types(&types, "unhealthy_threshold = 1000\n");
    gone.process.kill();
    // Which instance is tried first is chance; the first that is tried twice tells.
    let resent = (0..200).find_map(|number| {
        let (id, trace) = (format!("r{number}"), format!("{:032x}", number + 1));
        let parent = format!("00-{trace}-{CLIENT_SPAN}-01");
        let headers = [JSON, ("traceparent", parent.as_str()), ("x-request-id", id.as_str())];
        let answer = http::post(forebay.proxy, PATH, &headers, CHAT);
        assert_eq!(answer.status, 404, "{}", answer.text());
        (line(&forebay, &id)["tries"] == 2).then(|| receiver.of_trace(&trace, 3))
    });
    let resent = resent.expect("one was tried at the instance that is gone");
    let [server, first, second] = resent.as_slice() else { panic!("{resent:?}") };
    assert_eq!(first.parent_span_id, server.span_id);
    assert_eq!(second.parent_span_id, server.span_id);
    assert_ne!(first.span_id, second.span_id);
    let (server_facts, first_facts, second_facts) = (
        attributes(&server.attributes),
        attributes(&first.attributes),
        attributes(&second.attributes),
    );
    assert_eq!(first_facts["error.type"], "connect_failed");
    assert_eq!(first_facts["forebay.instance_type"], "ml.t0");
    assert!(!first_facts.contains_key("http.request.resend_count"));
    assert_eq!(second_facts["http.request.resend_count"], "1");
    assert_eq!(second_facts["error.type"], "404");
    // A 404 is an error for who asked, not for who answers.
    let failed = |span: &Span| span.status.as_ref().map(|status| status.code) == Some(2);
    assert!(!failed(server) && failed(first) && failed(second), "{resent:?}");
    assert_eq!(server_facts["forebay.tries"], "2");
    assert!(!server_facts.contains_key("error.type"));
    assert!(first.end_time_unix_nano <= second.start_time_unix_nano);
}

#[test]
fn what_is_replayed_is_told_as_one_request_with_its_tries() {
    let good = Worker::start(&[]);
    for (fails, keys, error, status) in [
        ("drop-connection", "", "upstream_broken", None),
        ("error=503", "engine = \"vllm\"\n", "not_run", Some("503")),
    ] {
        let receiver = Receiver::start(&[]);
        let bad = Worker::start(&["--fail", fails]);
        let section = format!(
            "[telemetry]\naccess_log = \"access.jsonl\"\n{}\n",
            receiver.config("trace_sample = 0.0")
        );
        let types = [(bad.address, 8, keys), (good.address, 8, section.as_str())];
        let forebay = Forebay::in_front_of_types(&types, "unhealthy_threshold = 1000\n");
        let parent = format!("00-{TRACE}-{CLIENT_SPAN}-01");
        // Which instance is tried first is chance; the first that is tried twice tells.
        let (line, spans) = (0..200)
            .find_map(|number| {
                let trace = format!("{:032x}", number + 1);
                let (id, parent) = (format!("r{number}"), parent.replace(TRACE, &trace));
                let headers =
                    [JSON, ("traceparent", parent.as_str()), ("x-request-id", id.as_str())];
                let answer = http::post(forebay.proxy, PATH, &headers, CHAT);
                assert_eq!(answer.status, 200, "{}", answer.text());
                let line = line(&forebay, &id);
                assert_eq!(line["bytes_out"], answer.body.len(), "{line}");
                (line["tries"] == 2).then(|| (line, receiver.of_trace(&trace, 3)))
            })
            .expect("one was tried at the bad instance first");
        assert_eq!((&line["status"], &line["error"]), (&200.into(), &Json::Null));
        assert_eq!(
            (&line["instance_type"], &line["client_left"]),
            (&"ml.t1".into(), &false.into())
        );
        let [server, first, second] = spans.as_slice() else { panic!("{spans:?}") };
        assert!(server.status.is_none() && second.status.is_none(), "{spans:?}");
        assert_eq!(first.status.as_ref().map(|status| status.code), Some(2));
        let first = attributes(&first.attributes);
        assert_eq!(first["error.type"], error);
        assert_eq!(first.get("http.response.status_code").map(String::as_str), status);
        assert_eq!(attributes(&second.attributes)["http.request.resend_count"], "1");
    }
}

#[test]
fn a_worker_that_finishes_for_nobody_is_told_as_that() {
    let worker = Worker::start(&[]);
    let keys = "on_client_abort = \"finish\"\n[telemetry]\naccess_log = \"access.jsonl\"\n";
    let forebay = Forebay::in_front_of_types(&[(worker.address, 8, keys)], "");
    for (id, body, status) in [("before", CHAT, 499), ("within", STREAM, 200)] {
        let mut client = Client::connect(forebay.proxy);
        let headers = [
            JSON,
            ("x-request-id", id),
            ("x-worker-first-token-ms", if status == 499 { "300" } else { "0" }),
            ("x-worker-token-interval-ms", "20"),
            ("x-worker-tokens", "10"),
        ];
        client.send("POST", PATH, &headers, body.as_bytes());
        eventually("it runs", || (worker.stat("running") == 1).then_some(()));
        if status == 200 {
            client.read_head();
            client.read_chunk().expect("a chunk").expect("no break");
        }
        drop(client);
        let line = line(&forebay, id);
        assert_eq!(
            (&line["status"], &line["client_left"]),
            (&status.into(), &true.into()),
            "{line}"
        );
        assert_eq!(worker.stat("cancelled"), 0);
    }
}

#[test]
fn a_receiver_that_is_away_costs_spans_and_no_request() {
    let worker = Worker::start(&[]);
    let nobody = format!("otlp_endpoint = \"http://{}\"\ntrace_sample = 1.0", local(free_port()));
    let mut forebay = in_front_of(&worker, 8, &nobody, "");
    for _ in 0..20 {
        assert_eq!(http::post(forebay.proxy, PATH, &[JSON], CHAT).status, 200);
    }
    eventually("what was lost is counted", || {
        (forebay.gauge("forebay_trace_spans_dropped_total") >= 40.0).then_some(())
    });
    // And it ends all the same.
    forebay.process.signal("TERM");
    assert!(forebay.process.wait().success());
    assert!(forebay.log().contains("spans cannot be sent"), "{}", forebay.log());
}

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// `promtool`, where it is installed.
fn promtool(args: &[&str]) -> Option<std::process::Output> {
    match Command::new("promtool").args(args).current_dir(config("prometheus")).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("promtool is not installed: not checked with it");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn rules_are_accepted_and_fire_when_they_should() {
    for args in [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]] {
        let Some(output) = promtool(&args) else { return };
        let told = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{args:?}: {told}");
    }
}

/// Metrics of a Forebay that has served something, without the suffixes of histograms.
fn real_metrics() -> Vec<String> {
    let receiver = Receiver::start(&[]);
    let worker = Worker::start(&["--first-token", "300ms", "--max-concurrency", "1"]);
    let gpus = by_hand::start(|_, stream| {
        let page = include_str!("../src/decision/signals/testdata/dcgm.txt");
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", page.len());
        drop(stream.write_all((head + page).as_bytes()));
    });
    let telemetry = receiver.config("trace_sample = 1.0\naccess_log = \"access.jsonl\"");
    let mut config = String::from("[proxy]\nlisten = \"{proxy}\"\n[admin]\nlisten = \"{admin}\"\n");
    config += &format!("[telemetry]\n{telemetry}\n");
    config += &format!(
        "[provider.p]\nkind = \"static\"\n[instance_type.t]\nprovider = \"p\"\nmax_concurrency = 1\n\
         addresses = [\"http://{}\"]\nprice_per_hour = 2.0\nwatts = 700.0\n\
         engine = \"vllm\"\nscrape_interval = \"100ms\"\ngpu_metrics = \"http://{gpus}/metrics\"\n\
         [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         min_instance_count = 1\n[[endpoint.variant.pool]]\ninstance_type = \"t\"\n",
        worker.address
    );
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(1);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| http::post(forebay.proxy, PATH, &[JSON], CHAT));
        }
    });
    let text = eventually("it has told of its load and of its GPUs", || {
        let text = http::get(forebay.admin, "/metrics").text();
        let told = ["forebay_gpu_utilization_ratio{", "forebay_kv_cache_utilization_ratio{"];
        told.iter().all(|name| text.contains(name)).then_some(text)
    });
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

/// Every word in `expression` that looks like a metric of ours or a recorded one.
fn metrics_in(expression: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !is_part(c));
    words.filter(|w| w.starts_with("forebay_") || w.contains(':')).map(str::to_owned).collect()
}

fn expressions(value: &Json, found: &mut Vec<String>) {
    match value {
        Json::Object(members) => {
            for (key, value) in members {
                match value {
                    Json::String(text) if key == "expr" || key == "definition" => {
                        found.push(text.clone());
                    }
                    value => expressions(value, found),
                }
            }
        }
        Json::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// The values of `key` in a YAML file that is written one to a line, or as blocks with `|`.
fn yaml_values(text: &str, key: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let found = line.trim_start().trim_start_matches("- ");
        let indent = line.len() - found.len();
        let Some(value) = found.strip_prefix(&format!("{key}: ")) else { continue };
        let mut value = value.trim_matches(['|', ' ']).to_owned();
        while let Some(next) = lines
            .peek()
            .filter(|next| next.trim().is_empty() || next.len() - next.trim_start().len() > indent)
        {
            value = format!("{value} {}", next.trim());
            lines.next();
        }
        values.push(value);
    }
    values
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_there_are() {
    let real = real_metrics();
    let rules = std::fs::read_to_string(config("prometheus/rules.yml")).expect("rules");
    let recorded = yaml_values(&rules, "record");
    let dashboard = std::fs::read_to_string(config("grafana/forebay.json")).expect("dashboard");
    let dashboard: Json = serde_json::from_str(&dashboard).expect("valid JSON");
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    let of_rules = yaml_values(&rules, "expr");
    assert!(of_rules.iter().any(|e| e.contains("group_left")), "blocks are read: {of_rules:?}");
    assert!(asked.len() >= 15 && of_rules.len() >= 15, "{} and {}", asked.len(), of_rules.len());
    let known = |name: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let is_real = |name: &str| real.iter().any(|metric| metric == name);
        recorded.iter().any(|record| record == name) || is_real(name) || base.is_some_and(is_real)
    };
    let names: Vec<_> = asked.iter().chain(&of_rules).flat_map(|e| metrics_in(e)).collect();
    assert!(names.len() > 40, "{names:?}");
    let unknown: Vec<_> = names.iter().filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?} are in none of {real:?}");

    // The dashboard's queries are parsed as rules, with Grafana's variables replaced.
    let mut file = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (number, expression) in asked.iter().enumerate() {
        let expression = expression
            .replace("$__rate_interval", "5m")
            .replace("$__range", "1h")
            .replace("label_values(", "count(")
            .replace(", endpoint)", ")")
            .replace("$endpoint", "e");
        assert!(!expression.contains('$'), "{expression}");
        let quoted = serde_json::to_string(&expression).expect("text");
        file += &format!("  - record: dashboard:{number}:expr\n    expr: {quoted}\n");
    }
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("dashboard.yml");
    std::fs::write(&path, file).expect("written");
    if let Some(output) = promtool(&["check", "rules", path.to_str().expect("text")]) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
