//! What it answers, and when.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{CHAT, Worker};

fn chat(more: &Value) -> Value {
    let mut body = json!({"model": "my-llm", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn chat_completions_in_openais_shape() {
    let worker = Worker::start(&["--default-tokens", "2"]);
    let answer = worker.post(CHAT, &chat(&json!({}))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "my-llm");
    assert_eq!(body["system_fingerprint"], "ml.test");
    assert_eq!(body["choices"][0]["message"], json!({"role": "assistant", "content": "t0 t1 "}));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["completion_tokens"], 2);

    let body = worker.post(CHAT, &chat(&json!({"max_tokens": 5}))).await.json();
    assert_eq!(body["usage"]["completion_tokens"], 5);
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn streams_are_server_sent_events_that_end_with_done() {
    let worker = Worker::start(&[]);
    let ask = json!({"stream": true, "max_tokens": 3, "stream_options": {"include_usage": true}});
    let answer = worker.post(CHAT, &chat(&ask)).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let mut events = answer.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let events: Vec<Value> =
        events.iter().map(|e| serde_json::from_str(e).expect("JSON")).collect();
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk"));
    assert!(events.iter().all(|e| e["id"] == events[0]["id"]));
    let deltas: Vec<&Value> = events.iter().map(|e| &e["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant", "content": ""}));
    assert_eq!(deltas[1], &json!({"content": "t0 "}));
    assert_eq!(deltas[3], &json!({"content": "t2 "}));
    assert_eq!(events[4]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[5]["choices"], json!([]));
    assert_eq!(events[5]["usage"]["completion_tokens"], 3);
    assert_eq!(events.len(), 6);

    let ask = json!({"prompt": "once", "stream": true, "max_tokens": 2});
    let events = worker.post("/v1/completions", &ask).await.events();
    let first: Value = serde_json::from_str(&events[0]).expect("JSON");
    assert_eq!(first["choices"][0]["text"], "t0 ");
    assert_eq!(events.len(), 4);

    let ask = json!({"inputs": "x", "stream": true, "max_tokens": 2});
    let events = worker.post("/invocations", &ask).await.events();
    assert_eq!(events, [r#"{"text":"t0 "}"#, r#"{"text":"t1 "}"#, "[DONE]"]);
}

#[tokio::test]
async fn completions_embeddings_and_models() {
    let worker = Worker::start(&[]);
    let body =
        worker.post("/v1/completions", &json!({"prompt": "x", "max_tokens": 1})).await.json();
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"][0]["text"], "t0 ");
    let body = worker.post("/v1/embeddings", &json!({"input": ["a", "b"]})).await.json();
    assert_eq!(body["data"].as_array().map(Vec::len), Some(2));
    assert_eq!(body["data"][1]["embedding"].as_array().map(Vec::len), Some(8));
    let body = worker.get("/v1/models").await.json();
    assert_eq!(body["data"][0]["id"], "my-llm");
}

#[tokio::test]
async fn other_paths_and_invocations_tell_what_arrived() {
    let worker = Worker::start(&[]);
    let headers = "X-Twice: a\r\nx-twice: b\r\n";
    let body = worker.ask("PUT", "/some/path?q=1&r", headers, "12345").await.json();
    assert_eq!(body["method"], "PUT");
    assert_eq!(body["path"], "/some/path");
    assert_eq!(body["query"], "q=1&r");
    assert_eq!(body["headers"]["x-twice"], json!(["a", "b"]));
    assert_eq!(body["body_bytes"], 5);
    assert_eq!(body["instance_type"], "ml.test");
    assert_eq!(body["worker"], worker.address);

    let body = worker.post("/invocations", &json!({"inputs": [1, 2]})).await.json();
    assert_eq!(body["input"], json!({"inputs": [1, 2]}));
    assert_eq!(body["tokens"], 16);
    let body = worker.ask("POST", "/invocations", "", "\u{0}not JSON").await.json();
    assert_eq!(body["input"], Value::Null);
}

#[tokio::test]
async fn bad_input_is_refused_in_openais_error_shape() {
    let worker = Worker::start(&[]);
    let cases = [
        ("POST", CHAT, "", "{", 400),
        ("POST", CHAT, "", r#"{"messages":[]}"#, 400),
        ("POST", CHAT, "x-worker-tokens: many\r\n", "{}", 400),
        ("POST", "/v1/embeddings", "", "{}", 400),
        ("GET", CHAT, "", "", 405),
    ];
    for (method, path, headers, body, status) in cases {
        let answer = worker.ask(method, path, headers, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}");
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error", "{error}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
    }
    worker.until_stats(&[("started", 5), ("failed", 5), ("completed", 0)]).await;
}

#[tokio::test]
async fn it_takes_its_time() {
    let worker = Worker::start(&["--first-token", "60ms", "--tokens-per-second", "100"]);
    let began = Instant::now();
    worker.post(CHAT, &chat(&json!({"max_tokens": 5}))).await;
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());

    // A stream's head leaves at once, its tokens when they are there.
    let mut connection = worker.connect().await;
    let headers = "x-worker-first-token-ms: 600000\r\n";
    let body = chat(&json!({"stream": true})).to_string();
    connection.send("POST", CHAT, headers, &body).await;
    let head = connection.read_until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "nothing but a head: {head}");
}

#[tokio::test]
async fn headers_shape_one_answer() {
    let worker = Worker::start(&["--first-token", "600s"]);
    let headers = "x-worker-first-token-ms: 0\r\nx-worker-body-bytes: 100000\r\n";
    let answer = worker.ask("POST", "/any", headers, "").await;
    assert_eq!(answer.body, "x".repeat(100_000));
    let headers = "x-worker-first-token-ms: 0\r\nx-worker-tokens: 2\r\n";
    let answer = worker.ask("POST", CHAT, headers, &chat(&json!({})).to_string()).await;
    assert_eq!(answer.json()["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn head_and_body_leave_in_one_write() {
    let worker = Worker::start(&[]);
    let mut connection = worker.connect().await;
    for _ in 0..3 {
        connection.send("POST", CHAT, "", &chat(&json!({})).to_string()).await;
        let read = connection.read_once().await;
        assert!(read.starts_with("HTTP/1.1 200"), "{read}");
        assert!(read.ends_with('}'), "the body did not come with the head: {read}");
    }
    worker.until_stats(&[("completed", 3), ("running", 0)]).await;
}

#[tokio::test]
async fn metrics_have_vllms_names_and_follow_the_requests() {
    let worker = Worker::start(&["--max-concurrency", "1"]);
    let slow = "x-worker-first-token-ms: 600000\r\n";
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut connection = worker.connect().await;
        connection.send("POST", "/any", slow, "").await;
        held.push(connection);
    }
    worker.until_stats(&[("running", 1), ("waiting", 2)]).await;
    let answer = worker.get("/metrics").await;
    assert!(answer.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
    for line in [
        "# TYPE vllm:num_requests_running gauge",
        "vllm:num_requests_running{model_name=\"my-llm\"} 1",
        "vllm:num_requests_waiting{model_name=\"my-llm\"} 2",
        "# TYPE forebay_worker_requests_started_total counter",
        "forebay_worker_requests_started_total{model_name=\"my-llm\"} 3",
        "forebay_worker_requests_completed_total{model_name=\"my-llm\"} 0",
    ] {
        assert!(answer.body.lines().any(|l| l == line), "no {line} in {}", answer.body);
    }
}

#[tokio::test]
async fn a_large_body_is_read_in_constant_memory() {
    let worker = Worker::start(&[]);
    let (chunk, count) = (vec![b'a'; 1 << 20], 200);
    for path in ["/invocations", CHAT, "/any"] {
        let mut connection = worker.connect().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: w\r\ncontent-length: {}\r\n\r\n",
            chunk.len() * count
        );
        connection.write(head.as_bytes()).await;
        for _ in 0..count {
            connection.write(&chunk).await;
        }
        let answer = connection.answer().await;
        if path == CHAT {
            assert_eq!(answer.status, 413);
        } else {
            assert_eq!(answer.json()["body_bytes"], chunk.len() * count);
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id()));
    let status = status.expect("it runs");
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("kB");
    assert!(peak < 80_000, "{peak} kB for bodies of 200 MB");
}
