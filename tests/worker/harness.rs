//! Starts a worker and talks to it byte by byte, so that nothing in between repairs what it sends.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long any test waits for what must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// A running worker; killed when dropped.
pub(crate) struct Worker {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Worker {
    pub(crate) fn start(more: &[&str]) -> Self {
        let mut child = command(more).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line on standard output");
        let address = line.trim().strip_prefix("listening on ").expect("its address").to_owned();
        Self { child, address }
    }

    pub(crate) async fn connect(&self) -> Connection {
        let stream = TcpStream::connect(&self.address).await.expect("it accepts");
        Connection { stream, buffer: Vec::new() }
    }

    /// Sends one request on a connection of its own and reads the answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut connection = self.connect().await;
        connection.send(method, path, headers, body).await;
        connection.answer().await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, "content-type: application/json\r\n", &body.to_string()).await
    }

    /// Waits until `/stats` shows these counters.
    pub(crate) async fn until_stats(&self, wanted: &[(&str, u64)]) {
        let mut seen = Value::Null;
        let reached = tokio::time::timeout(DEADLINE, async {
            loop {
                seen = self.get("/stats").await.json();
                if wanted.iter().all(|(name, count)| seen[*name] == *count) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let reached = reached.await.is_ok();
        assert!(reached, "never saw {wanted:?}, last {seen}");
    }

    /// The exit code; `None` after a signal.
    pub(crate) async fn exit(&mut self) -> Option<i32> {
        within(async {
            loop {
                if let Some(status) = self.child.try_wait().expect("its status") {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already, as told.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn command(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["worker", "--instance-type", "ml.test", "--model", "my-llm"]);
    if !more.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command.args(more);
    command
}

pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: worker\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        self.write(request.as_bytes()).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.expect("it reads");
    }

    /// Reads until the bytes so far contain `text`, and gives all of them.
    pub(crate) async fn read_until(&mut self, text: &str) -> String {
        loop {
            let so_far = String::from_utf8_lossy(&self.buffer).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            assert!(self.read_some().await, "closed before {text:?} came: {so_far:?}");
        }
    }

    /// Reads to the end, be it a close or a reset, and gives all there was.
    pub(crate) async fn read_to_end(&mut self) -> String {
        while self.read_some().await {}
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// The bytes of one read.
    pub(crate) async fn read_once(&mut self) -> String {
        self.buffer.clear();
        self.read_some().await;
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Whether nothing comes, and the connection stays open, for so long.
    pub(crate) async fn stays_silent(&mut self, span: Duration) -> bool {
        tokio::time::timeout(span, self.stream.read_u8()).await.is_err()
    }

    /// Reads one answer.
    pub(crate) async fn answer(&mut self) -> Answer {
        let text = self.read_until("\r\n\r\n").await;
        let head_length = text.find("\r\n\r\n").expect("the end of the head") + 4;
        let head = text[..head_length].to_ascii_lowercase();
        let length: Option<usize> = header(&head, "content-length").map(|n| n.parse().expect("n"));
        if let Some(length) = length {
            while self.buffer.len() < head_length + length {
                assert!(self.read_some().await, "the body ends early");
            }
        } else {
            self.read_until("\r\n0\r\n\r\n").await;
        }
        let rest = std::mem::take(&mut self.buffer).split_off(head_length);
        let body = String::from_utf8(rest).expect("text");
        let body = if length.is_some() { body } else { dechunk(&body) };
        Answer { status: head[9..12].parse().expect("a status"), head, body }
    }

    async fn read_some(&mut self) -> bool {
        self.buffer.reserve(64 * 1024);
        within(self.stream.read_buf(&mut self.buffer)).await.unwrap_or(0) > 0
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Lower-cased.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The data of each server-sent event.
    pub(crate) fn events(&self) -> Vec<String> {
        let events = self.body.split_terminator("\n\n");
        events.map(|e| e.strip_prefix("data: ").expect("an event").to_owned()).collect()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
}

fn dechunk(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return body;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
}

/// The outcome, before the deadline.
pub(crate) async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(DEADLINE, work).await.expect("done before the deadline")
}
