//! Clients that end in every way there is, over HTTP/1.1 and HTTP/2, and workers that answer with given bytes.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::Request;

use super::by_hand;
use super::h2::H2;
use super::http::Client;

pub const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
pub const STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const PATH: &str = "/v1/chat/completions";

/// A worker that answers with these bytes, and then sends back whatever comes.
pub fn answering(answer: &'static str) -> SocketAddr {
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

pub fn over_http1(proxy: SocketAddr, number: u64) {
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
pub fn over_http2(proxy: SocketAddr, round: u64) {
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
