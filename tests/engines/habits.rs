//! What the proxy makes of an engine's habits, with engines made by hand: the first event of a stream, idle
//! connections, the health path.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::support::http::{self, Client};
use super::support::{Forebay, eventually};

const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const JSON: (&str, &str) = ("content-type", "application/json");
const FULL: &str = "data: {\"error\": {\"object\": \"error\", \"message\": \"The request queue is full.\", \
                    \"type\": \"SERVICE_UNAVAILABLE\", \"param\": null, \"code\": 503}}\n\n";
const DELTA: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// An engine made by hand: `/health` is well, everything else is what `answer` writes.
struct ByHand {
    address: SocketAddr,
    /// Paths of the requests that came, in their order.
    paths: Arc<Mutex<Vec<String>>>,
}

impl ByHand {
    fn start(answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let address = listener.local_addr().expect("address");
        let (answer, paths) = (Arc::new(answer), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&paths);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, noted) = (Arc::clone(&answer), Arc::clone(&noted));
                std::thread::spawn(move || serve(stream, &*answer, &noted));
            }
        });
        Self { address, paths }
    }

    fn asked(&self, path: &str) -> usize {
        let paths = self.paths.lock().expect("no panic");
        paths.iter().filter(|asked| *asked == path).count()
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&mut TcpStream), paths: &Mutex<Vec<String>>) {
    let mut writer = stream.try_clone().expect("a second handle");
    let mut reader = BufReader::new(stream);
    loop {
        let (mut path, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        paths.lock().expect("no panic").push(path.clone());
        if path == "/health" {
            drop(writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        } else {
            answer(&mut writer);
        }
    }
}

/// A stream of these pieces, each a chunk of its own; a client that has gone is no matter here.
fn stream(to: &mut TcpStream, pieces: &[&str]) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let mut text = head.to_owned();
    for piece in pieces {
        text += &format!("{:x}\r\n{piece}\r\n", piece.len());
    }
    drop(to.write_all((text + "0\r\n\r\n").as_bytes()));
}

/// In front of them in this order of preference, all of one engine.
fn in_front_of(engines: &[&ByHand], engine: &str, extra: &str) -> Forebay {
    let key = format!("engine = \"{engine}\"\n");
    let types: Vec<_> = engines.iter().map(|engine| (engine.address, 4, key.as_str())).collect();
    Forebay::in_front_of_types(&types, &format!("unhealthy_threshold = 1000\n{extra}"))
}

fn chat(forebay: &Forebay) -> http::Answer {
    http::post(forebay.proxy, "/v1/chat/completions", &[JSON], STREAM)
}

#[test]
fn a_full_sglang_says_so_in_its_first_event_and_the_request_goes_elsewhere() {
    let full = ByHand::start(|to| stream(to, &[FULL, DONE]));
    let free = ByHand::start(|to| stream(to, &[DELTA, DONE]));
    // What may have run is not sent again here, so what is sent again counts as not run; one bad outcome
    // would end the choosing of the full one.
    let extra = "replay = \"never_sent\"\nretry_percent = 1000\nejection_threshold = 1\n";
    let forebay = in_front_of(&[&full, &free], "sglang", extra);
    let asked = eventually("the full one is asked again and again", || {
        let answer = chat(&forebay);
        assert_eq!((answer.status, answer.text()), (200, format!("{DELTA}{DONE}")));
        Some(full.asked("/v1/chat/completions")).filter(|asked| *asked >= 4)
    });
    let not_run = forebay.gauge_where("forebay_retries_total", "reason=\"not_run\"");
    assert_eq!(not_run, f64::from(u32::try_from(asked).expect("few")));
    assert_eq!((full.asked("/ping"), free.asked("/ping")), (0, 0), "the engine's own health path");
    eventually("all counters back at zero", || {
        (forebay.gauge("forebay_outstanding_requests") == 0.0).then_some(())
    });
}

#[test]
fn with_nowhere_else_to_go_the_client_gets_the_engines_words() {
    let full = ByHand::start(|to| stream(to, &[FULL, DONE]));
    let forebay = in_front_of(&[&full], "sglang", "");
    let answer = chat(&forebay);
    assert_eq!((answer.status, answer.text()), (200, format!("{FULL}{DONE}")));
    assert!(answer.complete && answer.header("x-forebay-instance").is_some());
}

#[test]
fn other_engines_streams_are_not_looked_into() {
    let full = ByHand::start(|to| stream(to, &[FULL, DONE]));
    let free = ByHand::start(|to| stream(to, &[FULL, DONE]));
    let forebay = in_front_of(&[&full, &free], "tgi", "");
    for _ in 0..10 {
        assert_eq!(chat(&forebay).text(), format!("{FULL}{DONE}"));
    }
    let asked = full.asked("/v1/chat/completions") + free.asked("/v1/chat/completions");
    assert_eq!(asked, 10);
}

/// The head of a slow stream goes out though its first event is long in coming, where nothing else holds it.
#[test]
fn a_slow_first_event_is_waited_for_only_so_long() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let slow = ByHand::start(move |to| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        drop(to.write_all(head));
        let _ = released.lock().expect("no panic").recv();
        let event = format!("{:x}\r\n{FULL}\r\n0\r\n\r\n", FULL.len());
        drop(to.write_all(event.as_bytes()));
    });
    let forebay = in_front_of(&[&slow], "sglang", "replay = \"never_sent\"\n");
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &[JSON], STREAM.as_bytes());
    let head = client.read_head();
    assert_eq!(head.status, 200, "before any event");
    release.send(()).expect("the engine waits");
    assert_eq!(client.read_chunk(), Some(Ok(FULL.as_bytes().to_vec())));
    assert_eq!(client.read_chunk(), None);
}

/// An engine that notes how long a connection stays idle after its answer.
fn watcher(times: Sender<Duration>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let times = times.clone();
            std::thread::spawn(move || {
                let mut piece = [0; 16 << 10];
                let mut answered: Option<Instant> = None;
                while let Ok(n @ 1..) = stream.read(&mut piece) {
                    let text = String::from_utf8_lossy(&piece[..n]).into_owned();
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
                    answered = text.starts_with("GET /watched").then(Instant::now);
                }
                if let Some(answered) = answered {
                    let _ = times.send(answered.elapsed());
                }
            });
        }
    });
    address
}

#[test]
fn idle_connections_close_before_the_engine_closes_them() {
    let (times, measured) = channel();
    let address = watcher(times);
    let text = "[proxy]\nlisten = \"{proxy}\"\npool_idle_timeout = \"10m\"\n[admin]\nlisten = \"{admin}\"\n\
                [provider.existing]\nkind = \"static\"\n[instance_type.t]\nprovider = \"existing\"\n\
                addresses = [\"http://ADDRESS\"]\n[[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\n\
                name = \"v\"\nmodel = \"m\"\nengine = \"vllm\"\n[[endpoint.variant.pool]]\ninstance_type = \"t\"\n";
    let forebay = Forebay::serve(&text.replace("ADDRESS", &address.to_string()));
    forebay.wait_in_service(1);
    assert_eq!(http::get(forebay.proxy, "/watched").status, 200);
    let idle = measured.recv_timeout(Duration::from_secs(20)).expect("it is closed");
    let (least, most) = (Duration::from_millis(2_900), Duration::from_millis(4_900));
    assert!(idle > least && idle < most, "closed after {idle:?}");
}
