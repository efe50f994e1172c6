//! Bodies of any size stream through in constant memory, in both directions and whoever is slow. Real
//! sockets; the memory is what the kernel says that the process has.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use support::bulk::Bulk;
use support::h2::H2;
use support::http::Client;
use support::{Forebay, Worker, eventually};

const GIB: u64 = 1 << 30;
/// What a process may take more than it had, with all of its buffers on the way full. Bodies are many times
/// as large.
const ROOM: u64 = 24 << 20;

/// The most memory that the process has had since [`forget_the_most`].
fn most_memory(forebay: &Forebay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", forebay.process.pid()));
    let status = status.expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a maximum");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// From now on (`proc(5)`, `clear_refs`).
fn forget_the_most(forebay: &Forebay) -> u64 {
    std::fs::write(format!("/proc/{}/clear_refs", forebay.process.pid()), "5").expect("written");
    most_memory(forebay)
}

/// Runs `work`, which moves a body, and sees to it that it was not held.
fn in_constant_memory(forebay: &Forebay, work: impl FnOnce()) {
    let before = forget_the_most(forebay);
    work();
    let after = most_memory(forebay);
    assert!(after < before + ROOM, "{} MiB, then {} MiB", before >> 20, after >> 20);
}

#[test]
fn a_gibibyte_goes_up_and_down() {
    let forebay = Forebay::limited_at(Bulk::start().address, "");
    in_constant_memory(&forebay, || {
        let mut client = Client::connect(forebay.proxy);
        let head = format!("POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: {GIB}\r\n\r\n");
        client.stream.write_all(head.as_bytes()).expect("sent");
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..GIB >> 20 {
            client.stream.write_all(&piece).expect("sent");
        }
        let answer = client.read_answer();
        assert_eq!((answer.status, answer.text()), (200, GIB.to_string()));
    });
    in_constant_memory(&forebay, || {
        let mut client = Client::connect(forebay.proxy);
        client.send("GET", &format!("/bytes/{GIB}"), &[("connection", "close")], b"");
        assert_eq!(client.read_head().status, 200);
        let rest = std::io::copy(&mut client.stream, &mut std::io::sink()).expect("read");
        assert!(rest <= GIB && rest > GIB - (1 << 20), "some came with the head: {rest}");
    });
    forebay.wait_all_zero();
}

#[test]
fn a_slow_reader_of_500_megabytes_is_waited_for_and_nothing_is_held() {
    let forebay = Forebay::limited_at(Bulk::start().address, "");
    let mut shared = H2::connect(forebay.proxy);
    in_constant_memory(&forebay, || {
        let mut readers: Vec<_> = (0..3)
            .map(|_| {
                let mut client = Client::connect(forebay.proxy);
                client.send("GET", "/bytes/500000000", &[], b"");
                assert_eq!(client.read_head().status, 200);
                client
            })
            .collect();
        let request = ::http::Request::get("http://t/bytes/500000000").body(()).expect("a request");
        let (answer, _) = shared.sender.send_request(request, true).expect("is sent");
        let mut stream = shared.head(answer).into_body();
        // A little at a time; the worker has the rest to send all the while.
        let mut piece = vec![0; 64 << 10];
        for _ in 0..20 {
            for reader in &mut readers {
                reader.stream.read_exact(&mut piece).expect("more");
            }
            let more = shared.wait(stream.data()).expect("more").expect("more");
            stream.flow_control().release_capacity(more.len()).expect("a window");
            std::thread::sleep(Duration::from_millis(50));
        }
        let running = forebay.gauge("forebay_outstanding_requests");
        assert!((running - 4.0).abs() < 0.5, "{running}");
    });
    // The readers have gone; the stream goes with its connection.
    drop(shared);
    eventually("nothing runs any more", || {
        (forebay.gauge("forebay_outstanding_requests") < 0.5).then_some(())
    });
}

/// Three minutes: `cargo test --test bulk -- --ignored`.
#[test]
#[ignore = "it is about minutes of silence"]
fn a_stream_may_be_silent_for_minutes() {
    let worker = Worker::start(&["--first-token", "10ms", "--tokens-per-second", "0.0055"]);
    let forebay = Forebay::limited(&worker, "");
    let body =
        r#"{"model":"m","stream":true,"max_tokens":2,"messages":[{"role":"user","content":"hi"}]}"#;
    let mut client = Client::connect(forebay.proxy);
    client.stream.set_read_timeout(None).expect("set");
    client.send("POST", "/v1/chat/completions", &[], body.as_bytes());
    let mut shared = H2::connect(forebay.proxy);
    let answer = shared.send("/v1/chat/completions", body);
    let head = shared.head(answer);
    let began = Instant::now();
    let answer = client.read_answer();
    assert!(began.elapsed() > Duration::from_secs(150), "it was silent for {:?}", began.elapsed());
    assert!(answer.complete && answer.text().ends_with("data: [DONE]\n\n"));
    let (body, error) = shared.rest(head);
    assert!(error.is_none() && body.ends_with(b"data: [DONE]\n\n"), "{error:?}");
}
