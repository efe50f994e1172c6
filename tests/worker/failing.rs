//! It fails as told, and in no other way.

use std::time::Duration;

use crate::harness::{CHAT, Worker};

const ASK: &str = r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":5}"#;
const STREAM: &str = r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":5,"stream":true}"#;
/// A nothing that lasts so long is taken for good.
const SILENCE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn until_it_is_healthy_everything_is_answered_with_503() {
    let worker = Worker::start(&["--fail", "refuse-startup"]);
    for (method, path, body) in
        [("GET", "/ping", ""), ("GET", "/health", ""), ("GET", "/stats", ""), ("POST", CHAT, ASK)]
    {
        assert_eq!(worker.ask(method, path, "", body).await.status, 503, "{path}");
    }

    let worker = Worker::start(&["--startup-delay", "2s"]);
    assert_eq!(worker.get("/ping").await.status, 503);
    let healthy = tokio::time::timeout(Duration::from_secs(20), async {
        while worker.get("/health").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    healthy.await.expect("healthy in the end");
    assert_eq!(worker.ask("POST", CHAT, "", ASK).await.status, 200);
    worker.until_stats(&[("started", 1)]).await;
}

#[tokio::test]
async fn it_dies_with_the_nth_request() {
    let mut worker = Worker::start(&["--fail", "die-after=2"]);
    assert_eq!(worker.ask("POST", CHAT, "", ASK).await.status, 200);
    assert_eq!(worker.get("/ping").await.status, 200);
    let mut connection = worker.connect().await;
    connection.send("POST", CHAT, "", ASK).await;
    assert_eq!(connection.read_to_end().await, "");
    assert_eq!(worker.exit().await, Some(1));
}

#[tokio::test]
async fn it_hangs_with_its_health_intact() {
    let worker = Worker::start(&["--fail", "hang-after=1"]);
    assert_eq!(worker.ask("POST", CHAT, "", ASK).await.status, 200);
    for body in [ASK, STREAM] {
        let mut connection = worker.connect().await;
        connection.send("POST", CHAT, "", body).await;
        worker.until_stats(&[("running", 1)]).await;
        assert!(connection.stays_silent(SILENCE).await);
        assert_eq!(worker.get("/health").await.status, 200);
        drop(connection);
        worker.until_stats(&[("running", 0)]).await;
    }
    worker.until_stats(&[("cancelled", 2)]).await;
}

#[tokio::test]
async fn it_freezes_as_a_whole() {
    let worker = Worker::start(&["--fail", "freeze-after=1"]);
    assert_eq!(worker.get("/health").await.status, 200);
    assert_eq!(worker.ask("POST", CHAT, "", ASK).await.status, 200);
    let mut connection = worker.connect().await;
    connection.send("GET", "/health", "", "").await;
    assert!(connection.stays_silent(SILENCE).await);
}

#[tokio::test]
async fn it_turns_unhealthy_and_goes_on() {
    let worker = Worker::start(&["--fail", "unhealthy-after=1"]);
    assert_eq!(worker.get("/ping").await.status, 200);
    for _ in 0..2 {
        assert_eq!(worker.ask("POST", CHAT, "", ASK).await.status, 200);
        assert_eq!(worker.get("/ping").await.status, 503);
    }
}

#[tokio::test]
async fn errors_wait_for_a_slot_and_fast_failures_do_not() {
    let worker = Worker::start(&["--max-concurrency", "1"]);
    let mut busy = worker.connect().await;
    busy.send("POST", "/any", "x-worker-first-token-ms: 600000\r\n", "").await;
    worker.until_stats(&[("running", 1)]).await;

    let fast = worker.ask("POST", CHAT, "x-worker-fail: fail-fast\r\n", STREAM).await;
    assert_eq!(fast.status, 500);
    assert_eq!(fast.json()["error"]["type"], "server_error");
    let mut failing = worker.connect().await;
    failing.send("POST", CHAT, "x-worker-fail: error=503\r\n", STREAM).await;
    worker.until_stats(&[("waiting", 1), ("failed", 1)]).await;
    drop(busy);
    assert_eq!(failing.answer().await.status, 503);
    worker.until_stats(&[("failed", 2), ("running", 0), ("waiting", 0)]).await;
}

#[tokio::test]
async fn it_drops_the_connection() {
    let worker = Worker::start(&["--fail", "drop-connection"]);
    let mut connection = worker.connect().await;
    connection.send("POST", CHAT, "", ASK).await;
    assert_eq!(connection.read_to_end().await, "");
    worker.until_stats(&[("failed", 1)]).await;
}

#[tokio::test]
async fn a_cut_stream_sends_n_events_and_no_end() {
    let worker = Worker::start(&["--fail", "cut-stream=2"]);
    let mut connection = worker.connect().await;
    connection.send("POST", CHAT, "", STREAM).await;
    let text = connection.read_to_end().await;
    assert_eq!(text.matches("data: ").count(), 2, "{text}");
    assert!(text.contains("t0 "), "{text}");
    assert!(!text.contains("\r\n0\r\n"), "it ends like a whole one: {text}");
    assert_eq!(worker.ask("POST", CHAT, "", ASK).await.status, 200);
    worker.until_stats(&[("failed", 1), ("completed", 1), ("running", 0)]).await;
}

#[tokio::test]
async fn a_cut_body_ends_halfway() {
    let worker = Worker::start(&[]);
    let mut connection = worker.connect().await;
    let headers = "x-worker-fail: cut-body\r\nx-worker-body-bytes: 200000\r\n";
    connection.send("POST", "/any", headers, "").await;
    let text = connection.read_to_end().await;
    assert!(text.contains("content-length: 200000\r\n"), "{text}");
    assert_eq!(text.split_once("\r\n\r\n").expect("a head").1.len(), 100_000);
    worker.until_stats(&[("failed", 1), ("running", 0)]).await;
}

#[tokio::test]
async fn a_full_queue_is_answered_with_503() {
    let worker = Worker::start(&["--max-concurrency", "1", "--max-queue", "1"]);
    let mut held = Vec::new();
    for waiting in 0..2 {
        let mut connection = worker.connect().await;
        connection.send("POST", "/any", "x-worker-first-token-ms: 600000\r\n", "").await;
        worker.until_stats(&[("running", 1), ("waiting", waiting)]).await;
        held.push(connection);
    }
    let answer = worker.ask("POST", CHAT, "", STREAM).await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("queue is full"), "{}", answer.body);
}
