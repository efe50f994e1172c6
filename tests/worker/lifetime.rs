//! Its start, its connections, its end.

use rustix::process::Signal;

use crate::harness::{CHAT, Worker, command};

const STREAM: &str =
    r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":60}"#;

#[test]
fn it_says_why_it_does_not_start() {
    let taken = Worker::start(&[]);
    for (options, reason) in [
        (["--listen", &taken.address], taken.address.as_str()),
        (["--listen", "nonsense"], "nonsense"),
        (["--fail", "exit-at-start"], "exit-at-start"),
    ] {
        let output = command(&options).output().expect("the binary starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{options:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains(reason), "{errors}");
    }
    let output = command(&["--fail", "explode"]).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2), "bad usage");
}

#[tokio::test]
async fn on_sigterm_it_breaks_what_runs_as_engines_do() {
    let mut worker = Worker::start(&["--tokens-per-second", "20"]);
    let mut stream = worker.connect().await;
    stream.send("POST", CHAT, "", STREAM).await;
    stream.read_until("t0 ").await;
    worker.signal(Signal::TERM);
    assert!(!stream.read_to_end().await.contains("[DONE]"));
    assert_eq!(worker.exit().await, Some(0));
}

#[tokio::test]
async fn with_graceful_it_finishes_first() {
    let mut worker = Worker::start(&["--tokens-per-second", "50", "--graceful"]);
    let mut idle = worker.connect().await;
    idle.send("GET", "/ping", "", "").await;
    assert_eq!(idle.answer().await.status, 200);
    let mut stream = worker.connect().await;
    stream.send("POST", CHAT, "", STREAM).await;
    stream.read_until("t0 ").await;
    worker.signal(Signal::TERM);
    assert_eq!(idle.read_to_end().await, "");
    let text = stream.read_to_end().await;
    assert!(text.contains("t59 ") && text.ends_with("\r\n0\r\n\r\n"), "{text}");
    assert_eq!(worker.exit().await, Some(0));
}

#[tokio::test]
async fn connections_are_kept_and_idle_ones_closed_when_told() {
    let worker = Worker::start(&["--keep-alive", "200ms"]);
    let mut connection = worker.connect().await;
    for _ in 0..3 {
        connection.send("POST", "/any", "", "abc").await;
        assert_eq!(connection.answer().await.status, 200);
    }
    // Longer than the idle limit, but not idle.
    connection.send("POST", "/any", "x-worker-first-token-ms: 500\r\n", "").await;
    assert_eq!(connection.answer().await.status, 200);
    assert_eq!(connection.read_to_end().await, "");
    worker.until_stats(&[("completed", 4), ("connections_open", 1)]).await;
}
