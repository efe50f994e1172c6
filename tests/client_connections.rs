//! What becomes of a client's connection over HTTP/1.1: kept wherever the next request can be told from what came
//! before it, closed otherwise, and never so that an answer is lost. Real sockets.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use support::{Forebay, Worker};

const CHAT: &str = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;

struct Connection(TcpStream);

impl Connection {
    fn to(forebay: &Forebay) -> Self {
        let stream = TcpStream::connect(forebay.proxy).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        Self(stream)
    }

    fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("sent");
    }

    /// Reads on until what came is `enough`.
    fn read_until(&mut self, enough: impl Fn(&str) -> bool) -> String {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let text = String::from_utf8_lossy(&all).into_owned();
            if enough(&text) {
                return text;
            }
            let read = self.0.read(&mut piece).expect("it comes in time");
            assert_ne!(read, 0, "it was closed behind {text:?}");
            all.extend_from_slice(&piece[..read]);
        }
    }

    /// Reads up to a clean end.
    fn read_to_end(&mut self) -> String {
        let mut all = Vec::new();
        self.0.read_to_end(&mut all).expect("a clean end");
        String::from_utf8_lossy(&all).into_owned()
    }
}

fn post(path: &str, fields: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: h\r\n{fields}content-length: {length}\r\n\r\n")
}

fn chat(version: &str, fields: &str) -> String {
    let head = post("/v1/chat/completions", fields, CHAT.len());
    head.replace("HTTP/1.1", version) + CHAT
}

#[test]
fn a_body_is_sent_once_it_is_wanted() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "");
    let mut client = Connection::to(&forebay);
    for _ in 0..2 {
        client.send(&post("/v1/chat/completions", "expect: 100-continue\r\n", CHAT.len()));
        let told = client.read_until(|text| text.ends_with("\r\n\r\n"));
        assert_eq!(told, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send(CHAT);
        let answer = client.read_until(|text| text.contains("\"usage\""));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    // What is refused by its head is not asked for its body, which might come all the same or not.
    client.send(&post("/endpoints/nobody/invocations", "expect: 100-continue\r\n", 9));
    let answer = client.read_to_end();
    assert!(answer.contains("x-forebay-error: unknown_endpoint\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n") && !answer.contains("100"), "{answer}");
    forebay.wait_all_zero();
}

#[test]
fn an_answer_that_comes_before_the_body_arrives() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "");
    // A little that nobody wants is read, and the connection kept.
    let mut client = Connection::to(&forebay);
    client.send(&(post("/endpoints/nobody/invocations", "", 9) + "unwanted!"));
    let answer = client.read_until(|text| text.contains("NO_SUCH_ENDPOINT"));
    assert!(!answer.contains("connection: close"), "{answer}");
    client.send(&chat("HTTP/1.1", ""));
    client.read_until(|text| text.contains("\"usage\""));
    // Much is not. The client sends on meanwhile, and still gets the answer and a clean end.
    let piece = vec![b'a'; 1 << 20];
    client.send(&post("/endpoints/nobody/invocations", "", 1 << 30));
    for _ in 0..4 {
        client.0.write_all(&piece).expect("it goes on being read");
    }
    let answer = client.read_to_end();
    assert!(
        answer.contains("NO_SUCH_ENDPOINT") && answer.contains("connection: close"),
        "{answer}"
    );
    forebay.wait_all_zero();
}

#[test]
fn requests_that_come_at_once_are_answered_one_after_the_other() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "");
    let mut client = Connection::to(&forebay);
    let head = "HEAD /v1/models HTTP/1.1\r\nhost: h\r\n\r\n";
    let last = "GET /v1/models HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    client.send(&format!("{}\r\n{head}{}{last}", chat("HTTP/1.1", ""), chat("HTTP/1.1", "")));
    let answers = client.read_to_end();
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 4, "{answers}");
    assert_eq!(answers.matches("\"usage\"").count(), 2, "{answers}");
    assert_eq!(answers.matches("\r\ndate: ").count(), 4, "{answers}");
    // A HEAD's answer has no body, whatever its length says.
    assert_eq!(answers.matches("\"object\":\"list\"").count(), 1, "{answers}");
    forebay.wait_all_zero();
}

#[test]
fn http_1_0_keeps_a_connection_only_where_the_length_is_known() {
    let worker = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&worker, 4)], "");
    let mut client = Connection::to(&forebay);
    client.send(&chat("HTTP/1.0", "connection: keep-alive\r\n"));
    let answer = client.read_until(|text| text.contains("\"usage\""));
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.contains("connection: keep-alive\r\n"));
    let mut other = Connection::to(&forebay);
    other.send(&chat("HTTP/1.0", "connection: keep-alive, close\r\n"));
    assert!(other.read_to_end().contains("connection: close\r\n"), "close wins (RFC 9112, 9.3)");
    // A stream has none: it lasts until the connection ends.
    let stream = chat("HTTP/1.0", "connection: keep-alive\r\n");
    let stream = stream.replace(r#""max_tokens":1,"#, r#""stream":true ,"#);
    client.send(&stream);
    let answer = client.read_to_end();
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(!answer.contains("transfer-encoding") && answer.contains("[DONE]"), "{answer}");
    forebay.wait_all_zero();
}
