//! Workers that answer badly: whatever they send, a client gets a clean 502 or a visibly cut answer, and
//! never a byte that belongs to another request.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};

use http::Request;
use support::h2::H2;
use support::http::Client;
use support::{Forebay, by_hand};

/// What the worker does with the next request that is no health check. `GET /fine` always gets `fine`.
#[derive(Clone, Default)]
struct Script {
    bytes: Vec<u8>,
    /// Closes behind them; else it keeps the connection and serves on.
    close: bool,
}

struct Worker {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Worker {
    fn start() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let read = Arc::clone(&script);
        let address = by_hand::healthy(move |head, stream| {
            if head.starts_with("get /fine") {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"));
                return;
            }
            let script = read.lock().expect("whole").clone();
            drop(stream.write_all(&script.bytes));
            if script.close {
                drop(stream.shutdown(Shutdown::Both));
            }
        });
        Self { address, script }
    }

    fn next(&self, bytes: impl Into<Vec<u8>>, close: bool) {
        *self.script.lock().expect("whole") = Script { bytes: bytes.into(), close };
    }
}

/// How an answer came: its status, its body, and whether that is whole.
type Came = (u16, String, bool);

struct House {
    worker: Worker,
    forebay: Forebay,
}

impl House {
    fn new() -> Self {
        let worker = Worker::start();
        // One thread, so that the next request would take the connection that is left behind.
        let forebay = Forebay::serve(&format!(
            "[proxy]\nlisten = \"{{proxy}}\"\nthreads = 1\n[admin]\nlisten = \"{{admin}}\"\n\
             [provider.existing]\nkind = \"static\"\n[instance_type.t]\nprovider = \"existing\"\n\
             addresses = [\"http://{}\"]\n\
             [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
             ejection_threshold = 0\nunhealthy_threshold = 1000\nfirst_byte_timeout = \"2s\"\n\
             [[endpoint.variant.pool]]\ninstance_type = \"t\"\n",
            worker.address
        ));
        forebay.wait_in_service(1);
        Self { worker, forebay }
    }

    fn ask(&self, method: &str) -> Came {
        let mut client = Client::connect(self.forebay.proxy);
        client.send(method, "/x", &[("connection", "close")], b"");
        let answer = client.read_answer();
        if answer.status == 502 {
            assert_eq!(answer.header("x-forebay-error"), Some("upstream_broken"));
        }
        (answer.status, answer.text(), answer.complete)
    }

    /// What a client gets that asks while the worker answers with these bytes. The next request gets its own
    /// answer.
    fn get(&self, bytes: impl Into<Vec<u8>>, close: bool) -> Came {
        self.worker.next(bytes, close);
        let came = self.ask("GET");
        self.is_fine();
        came
    }

    fn is_fine(&self) {
        for _ in 0..2 {
            let mut client = Client::connect(self.forebay.proxy);
            client.send("GET", "/fine", &[], b"");
            let answer = client.read_answer();
            assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
        }
    }
}

fn broken() -> (u16, bool) {
    (502, true)
}

#[test]
fn heads_that_are_none_are_a_502() {
    let house = House::new();
    let giant =
        format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\nok", "a".repeat(4 << 20));
    let many =
        format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", "x: y\r\n".repeat(10_000));
    for head in [
        "garbage\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ncontent-length: 3, 4\r\n\r\nabc",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nbytes",
        "",
        &giant,
        &many,
    ] {
        let (status, _, whole) = house.get(head, true);
        assert_eq!((status, whole), broken(), "{:?}", &head[..head.len().min(80)]);
    }
    house.forebay.wait_all_zero();
}

#[test]
fn bodies_that_are_cut_or_malformed_end_visibly() {
    let house = House::new();
    for (answer, seen) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", "abc"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", "abc"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc", "abc"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n", "abc"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", "abc"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nffffffffffffffffff\r\n",
            "abc",
        ),
    ] {
        let (status, body, whole) = house.get(answer, true);
        assert!(!whole || status == 502, "{answer:?} ends like a whole one");
        assert!(status == 502 || seen.starts_with(&body), "{answer:?}: {body:?}");
    }
    // A chunk size that never ends is not waited for.
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let (status, body, whole) = house.get(format!("{head}{}", "0".repeat(8 << 10)), false);
    assert_eq!((status, body.as_str(), whole), (200, "abc", false));
    house.forebay.wait_all_zero();
}

#[test]
fn what_comes_behind_an_answer_is_nobodys() {
    let house = House::new();
    let other = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
    for (answer, body) in [
        (format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcdef{other}"), "abc"),
        (format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc{other}"), "abc"),
        (format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n{other}"), ""),
        (format!("HTTP/1.1 204 No Content\r\n\r\n{other}"), ""),
        (format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 8\r\n\r\n{other}"), ""),
        (
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{other}"
            ),
            "abc",
        ),
    ] {
        // The connection stays open, and looks as if another request could be sent on it.
        for _ in 0..3 {
            let (status, came, _) = house.get(answer.as_bytes(), false);
            assert!(status < 400 && came == body, "{answer:?}: {status} {came:?}");
        }
    }
    house.worker.next(format!("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{other}"), false);
    let (status, came, _) = {
        let mut client = Client::connect(house.forebay.proxy);
        client.send("HEAD", "/x", &[("connection", "close")], b"");
        let head = client.read_head();
        let mut rest = String::new();
        drop(client.stream.read_to_string(&mut rest));
        (head.status, rest, true)
    };
    assert_eq!((status, came.as_str()), (200, ""), "HEAD has no body");
    house.is_fine();
    house.forebay.wait_all_zero();
}

#[test]
fn two_ways_of_framing_are_one_for_the_client() {
    let house = House::new();
    let both = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    house.worker.next(both, true);
    let mut client = Client::connect(house.forebay.proxy);
    client.send("GET", "/x", &[], b"");
    let answer = client.read_answer();
    let framing = (answer.header("content-length").is_some(), answer.header("transfer-encoding"));
    assert!(
        answer.status == 502 || (framing == (false, Some("chunked")) && answer.text() == "abc"),
        "{} {framing:?} {:?}",
        answer.status,
        answer.text()
    );
    house.is_fine();
    // Until the connection's end: the end is the only framing, and becomes a visible one.
    let (status, body, whole) = house.get("HTTP/1.1 200 OK\r\n\r\nto the end", true);
    assert_eq!((status, body.as_str(), whole), (200, "to the end", true));
}

#[test]
fn floods_of_interim_answers_end() {
    let house = House::new();
    let fine = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let some = format!("{}{fine}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(3));
    assert_eq!(house.get(some, true), (200, "ok".into(), true));
    let hints = format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{fine}");
    assert_eq!(house.get(hints, true), (200, "ok".into(), true));
    let flood = "HTTP/1.1 100 Continue\r\n\r\n".repeat(100_000);
    let (status, _, whole) = house.get(flood, true);
    assert_eq!((status, whole), broken());
    house.forebay.wait_all_zero();
}

#[test]
fn a_close_at_any_point_is_a_502_or_a_visible_cut() {
    let house = House::new();
    for (answer, body) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "hello"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"),
    ] {
        let head = answer.find("\r\n\r\n").expect("a head") + 4;
        for end in 0..=answer.len() {
            let (status, came, whole) = house.get(&answer[..end], true);
            if end < head {
                assert_eq!((status, whole), broken(), "cut at {end}");
            } else if end == answer.len() {
                assert_eq!((status, came.as_str(), whole), (200, body, true));
            } else {
                assert!(status == 502 || !whole, "cut at {end}: {came:?}");
                assert!(status == 502 || body.starts_with(&came), "cut at {end}: {came:?}");
            }
        }
    }
    house.forebay.wait_all_zero();
}

#[test]
fn no_content_has_no_length() {
    let house = House::new();
    house.worker.next("HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\n", false);
    let mut client = Client::connect(house.forebay.proxy);
    client.send("GET", "/x", &[], b"");
    let answer = client.read_head();
    assert_eq!((answer.status, answer.header("content-length")), (204, None));
    // RFC 9110, 8.6. What comes next is no body of it.
    client.send("GET", "/fine", &[], b"");
    assert_eq!(client.read_answer().text(), "fine");
    house.is_fine();
}

#[test]
fn of_trailers_those_pass_that_are_no_fields_of_a_head() {
    let house = House::new();
    house.worker.next(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ncontent-length: 9\r\n\
         set-cookie: a=b\r\nx-forebay-error: mine\r\nkeep-alive: x\r\nproxy-connection: x\r\n\
         te: x\r\nupgrade: x\r\ncontent_length: 9\r\ngrpc-status: 0\r\nx-checksum: c\r\n\r\n",
        false,
    );
    let mut client = Client::connect(house.forebay.proxy);
    client.send("GET", "/x", &[("te", "trailers"), ("connection", "close")], b"");
    let mut seen = String::new();
    client.stream.read_to_string(&mut seen).expect("a clean end");
    let (_, trailers) = seen.split_once("\r\n0\r\n").expect("chunks");
    let mut names: Vec<_> = trailers.lines().filter_map(|line| line.split(':').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["", "grpc-status", "x-checksum"], "{seen}");
    let mut client = H2::connect(house.forebay.proxy);
    let request = Request::get("http://e.example/x").header("te", "trailers").body(());
    let (answer, _) =
        client.sender.send_request(request.expect("a request"), true).expect("is sent");
    let mut body = client.head(answer).into_body();
    let trailers = client.wait(async {
        while body.data().await.is_some() {}
        body.trailers().await.expect("a clean end").expect("trailers")
    });
    let mut names: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["grpc-status", "x-checksum"]);
    house.is_fine();
}
