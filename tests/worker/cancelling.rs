//! Whoever goes away frees what they held: a slot, or a place in the queue.

use crate::harness::{CHAT, Connection, Worker};

const NEVER: &str = "x-worker-first-token-ms: 600000\r\n";
const STREAM: &str =
    r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":100000}"#;

async fn send(worker: &Worker, path: &str, headers: &str, body: &str) -> Connection {
    let mut connection = worker.connect().await;
    connection.send("POST", path, headers, body).await;
    connection
}

#[tokio::test]
async fn a_client_that_leaves_a_slot_makes_room_for_the_next() {
    let worker = Worker::start(&["--max-concurrency", "2"]);
    let first = send(&worker, "/any", NEVER, "").await;
    let _second = send(&worker, CHAT, NEVER, STREAM).await;
    worker.until_stats(&[("running", 2)]).await;
    let mut third = send(&worker, "/any", "", "").await;
    worker.until_stats(&[("running", 2), ("waiting", 1)]).await;
    drop(first);
    assert_eq!(third.answer().await.status, 200);
    worker.until_stats(&[("running", 1), ("waiting", 0), ("cancelled", 1), ("completed", 1)]).await;
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_forgotten() {
    let worker = Worker::start(&["--max-concurrency", "1"]);
    let first = send(&worker, "/any", NEVER, "").await;
    worker.until_stats(&[("running", 1)]).await;
    let plain = send(&worker, "/any", "", "").await;
    worker.until_stats(&[("waiting", 1)]).await;
    let streamed = send(&worker, CHAT, "", STREAM).await;
    worker.until_stats(&[("waiting", 2)]).await;
    drop(plain);
    worker.until_stats(&[("waiting", 1), ("cancelled", 1)]).await;
    drop(streamed);
    worker.until_stats(&[("waiting", 0), ("cancelled", 2), ("running", 1)]).await;
    drop(first);
    worker.until_stats(&[("running", 0), ("cancelled", 3), ("started", 3)]).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_stops_it() {
    let worker = Worker::start(&["--max-concurrency", "1", "--tokens-per-second", "200"]);
    let mut stream = send(&worker, CHAT, "", STREAM).await;
    stream.read_until("t2 ").await;
    worker.until_stats(&[("running", 1)]).await;
    drop(stream);
    worker.until_stats(&[("running", 0), ("cancelled", 1), ("completed", 0)]).await;
}

#[tokio::test]
async fn a_client_that_never_reads_holds_its_slot_and_no_memory() {
    let worker = Worker::start(&["--max-concurrency", "1"]);
    let body = r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":131072}"#;
    let unread = send(&worker, CHAT, "", body).await;
    worker.until_stats(&[("running", 1)]).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id()));
    let status = status.expect("it runs");
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("kB");
    assert!(peak < 40_000, "{peak} kB");
    drop(unread);
    worker.until_stats(&[("running", 0), ("cancelled", 1)]).await;
}

#[tokio::test]
async fn a_client_that_breaks_off_its_body_is_cancelled() {
    let worker = Worker::start(&[]);
    let mut connection = worker.connect().await;
    connection.write(b"POST /invocations HTTP/1.1\r\nhost: w\r\ncontent-length: 9\r\n\r\nab").await;
    worker.until_stats(&[("started", 1), ("cancelled", 0)]).await;
    drop(connection);
    worker.until_stats(&[("cancelled", 1), ("connections_open", 1)]).await;
}

#[tokio::test]
async fn many_that_leave_all_at_once_leave_nothing_behind() {
    let worker = Worker::start(&["--max-concurrency", "8"]);
    let mut all = Vec::new();
    for index in 0..200 {
        let (path, body) = if index % 2 == 0 { ("/any", "") } else { (CHAT, STREAM) };
        all.push(send(&worker, path, NEVER, body).await);
    }
    worker.until_stats(&[("running", 8), ("waiting", 192)]).await;
    drop(all);
    let gone = [("running", 0), ("waiting", 0), ("cancelled", 200), ("connections_open", 1)];
    worker.until_stats(&gone).await;
}
