//! Workers that flood an HTTP/2 connection, frame by frame: the connection ends, its requests get a 502 or a
//! visibly cut answer, the proxy's memory stays where it is, and whoever asks another worker is served.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, frame, literal,
};
use support::http::{self as plain, Client};
use support::{Forebay, resident_kib};

/// How long a flood goes on if nobody ends it.
const FLOOD: Duration = Duration::from_secs(5);
/// Others wait no longer for an answer meanwhile; ample, for a machine that does much else.
const SERVED: Duration = Duration::from_secs(2);
/// More than noise, less than what a flood that is kept would take.
const FLAT_KIB: u64 = 16 << 10;
/// `:status: 200`, from the static table (RFC 7541, A).
const OK: &[u8] = &[0x88];

/// What a worker sends on the stream of a request: once, and then over and over.
#[derive(Clone)]
struct Script {
    first: fn(u32) -> Vec<u8>,
    again: fn(u32) -> Vec<u8>,
    reads: bool,
}

/// Answers requests without a body, health checks among them, and floods behind all others.
struct Worker {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    /// Of each flood, whether the proxy ended it.
    ended: Receiver<bool>,
}

impl Worker {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("address");
        let none = Script { first: |_| Vec::new(), again: |_| Vec::new(), reads: true };
        let script = Arc::new(Mutex::new(none));
        let (sender, ended) = channel();
        let read = Arc::clone(&script);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, ended) = (Arc::clone(&read), sender.clone());
                std::thread::spawn(move || serve(stream, &script, &ended));
            }
        });
        Self { address, script, ended }
    }
}

fn serve(mut stream: TcpStream, script: &Mutex<Script>, ended: &Sender<bool>) -> Option<()> {
    stream.read_exact(&mut [0; 24]).ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        stream.read_exact(&mut vec![0; length as usize]).ok()?;
        match (head[3], head[4]) {
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).ok()?,
            (HEADERS, flags) if flags & END_STREAM != 0 => {
                stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, OK)).ok()?;
            }
            (HEADERS, _) => {
                let script = script.lock().expect("whole").clone();
                let _ = ended.send(flood(stream, &script, id));
                return None;
            }
            _ => {}
        }
    }
}

/// Whether the proxy ended it.
fn flood(mut stream: TcpStream, script: &Script, id: u32) -> bool {
    let mut reader = stream.try_clone().expect("a clone");
    let reads = script.reads;
    std::thread::spawn(move || {
        let mut piece = [0; 16 << 10];
        // Unless it is read, what the proxy says stays in the sockets.
        while reads && matches!(reader.read(&mut piece), Ok(1..)) {}
    });
    stream.set_write_timeout(Some(FLOOD)).expect("timeout");
    let again = (script.again)(id);
    let batch = again.repeat((64 << 10) / again.len());
    let began = Instant::now();
    let mut sent = stream.write_all(&(script.first)(id));
    while sent.is_ok() && began.elapsed() < FLOOD {
        sent = stream.write_all(&batch);
    }
    sent.is_err() && began.elapsed() < FLOOD
}

/// An interim answer: 103, with a field.
fn hints(id: u32) -> Vec<u8> {
    let block = [&[0x08, 3][..], b"103", &literal("link", "</a>")].concat();
    frame(HEADERS, END_HEADERS, id, &block)
}

/// What is flooded with, whether it is our own count that ends it, the script.
type Case = (&'static str, bool, fn(u32) -> Vec<u8>, fn(u32) -> Vec<u8>);

const CASES: [Case; 11] = [
    ("SETTINGS", true, |_| Vec::new(), |_| frame(SETTINGS, 0, 0, &[])),
    ("PING", true, |_| Vec::new(), |_| frame(PING, 0, 0, &[0; 8])),
    ("PING that answer nothing", true, |_| Vec::new(), |_| frame(PING, ACK, 0, &[0; 8])),
    ("WINDOW_UPDATE", true, |_| Vec::new(), |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    ("PRIORITY", true, |_| Vec::new(), |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
    ("unknown frames", true, |_| Vec::new(), |_| frame(0x55, 0, 0, &[])),
    ("interim answers", true, |_| Vec::new(), hints),
    ("resets", true, |_| Vec::new(), |id| frame(RST_STREAM, 0, id, &[0, 0, 0, 8])),
    ("empty DATA", false, |id| frame(HEADERS, END_HEADERS, id, OK), |id| frame(DATA, 0, id, &[])),
    (
        "CONTINUATION",
        false,
        |id| frame(HEADERS, 0, id, OK),
        |id| frame(CONTINUATION, 0, id, &literal("x-f", "y")),
    ),
    (
        "empty CONTINUATION",
        false,
        |id| frame(HEADERS, 0, id, OK),
        |id| frame(CONTINUATION, 0, id, &[]),
    ),
];

#[test]
fn a_flood_ends_its_connection_and_no_other() {
    let (flooding, good) = (Worker::start(), Worker::start());
    let endpoint = |name: &str| {
        format!(
            "[[endpoint]]\nname = \"{name}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"{name}\"\n\
             ejection_threshold = 0\nunhealthy_threshold = 1000\n\
             [[endpoint.variant.pool]]\ninstance_type = \"{name}\"\n"
        )
    };
    let forebay = Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nthreads = 1\n[admin]\nlisten = \"{{admin}}\"\n\
         [provider.existing]\nkind = \"static\"\n\
         [instance_type.a]\nprovider = \"existing\"\nprotocol = \"h2c\"\naddresses = [\"http://{}\"]\n\
         [instance_type.b]\nprovider = \"existing\"\nprotocol = \"h2c\"\naddresses = [\"http://{}\"]\n{}{}",
        flooding.address,
        good.address,
        endpoint("a"),
        endpoint("b")
    ));
    forebay.wait_in_service(2);
    let ask = |endpoint: &str| {
        let began = Instant::now();
        let headers = [("x-forebay-endpoint", endpoint)];
        let answer = plain::request(forebay.proxy, "GET", "/x", &headers, b"");
        assert_eq!(answer.status, 200, "{endpoint}");
        began.elapsed()
    };
    let floods = || forebay.gauge("forebay_upstream_http2_floods_total");
    let pid = forebay.process.pid();
    for (name, counted, first, again) in CASES {
        for reads in [true, false] {
            *flooding.script.lock().expect("whole") = Script { first, again, reads };
            ask("a");
            ask("b");
            let (before, counted_before) = (resident_kib(pid), floods());
            let mut client = Client::connect(forebay.proxy);
            client.send("POST", "/x", &[("x-forebay-endpoint", "a")], b"{}");
            let (mut slowest, mut grown) = (Duration::ZERO, 0);
            let ended = loop {
                slowest = slowest.max(ask("b"));
                grown = grown.max(resident_kib(pid).saturating_sub(before));
                if let Ok(ended) = flooding.ended.recv_timeout(Duration::from_millis(5)) {
                    break ended;
                }
            };
            let told = format!("{name}, read from: {reads}: {slowest:?}, {grown} KiB");
            assert!(ended, "{told}");
            assert!(slowest < SERVED, "{told}");
            assert!(grown < FLAT_KIB, "{told}");
            let answer = client.read_answer();
            let broken = answer.header("x-forebay-error") == Some("upstream_broken");
            let seen = (answer.status, broken, answer.complete);
            assert!([(502, true, true), (200, false, false)].contains(&seen), "{told}: {seen:?}");
            let ours = floods() - counted_before;
            assert_eq!(ours, f64::from(u8::from(counted)), "{told}");
            // It is as good as any other on its next connection.
            ask("a");
        }
    }
    forebay.wait_all_zero();
}
