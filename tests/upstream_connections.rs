//! How long connections to workers live: what a worker's own keep-alive, changes of the routing table and
//! silence do to them, and that nothing of a stream waits in them. Real sockets.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use support::h2::H2;
use support::http::{self, Client};
use support::pki::{Authority, relay, server_config};
use support::{Forebay, Worker, by_hand, eventually};
use tokio::runtime::Runtime;
use tokio_rustls::rustls::version::TLS13;

/// The proxy before workers of one type each, the first preferred. `keys` are the first type's, `proxy`
/// the proxy's.
fn config(addresses: &[String], keys: &str, proxy: &str, variant: &str) -> String {
    let mut text = format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nthreads = 1\n{proxy}\n[admin]\nlisten = \"{{admin}}\"\n\
         [provider.existing]\nkind = \"static\"\n"
    );
    let mut pools = String::new();
    for (number, address) in addresses.iter().enumerate() {
        let keys = if number == 0 { keys } else { "" };
        text += &format!(
            "[instance_type.t{number}]\nprovider = \"existing\"\naddresses = [\"{address}\"]\n{keys}\n"
        );
        pools += &format!(
            "[[endpoint.variant.pool]]\ninstance_type = \"t{number}\"\npriority = {}\n",
            number + 1
        );
    }
    text + &format!(
        "[[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         initial_instance_count = {0}\nmin_instance_count = 1\nmax_instance_count = {0}\n\
         fallback = \"at_once\"\nstartup_health_interval = \"50ms\"\n{variant}\n{pools}",
        addresses.len()
    )
}

fn plain(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn chat(tokens: u32) -> String {
    format!(
        r#"{{"model":"m","stream":true,"max_tokens":{tokens},"messages":[{{"role":"user","content":"x"}}]}}"#
    )
}

/// uvicorn's 5 s beside our 3 s, a tenth and less of it: each connection is wanted again about when its
/// worker closes it, by requests that may not be sent twice. `loadtest/keepalive.sh` is the long form.
#[test]
fn workers_that_close_idle_connections_cause_no_error() {
    const TOGETHER: usize = 8;
    let worker = Worker::start(&["--keep-alive", "400ms", "--first-token", "20ms"]);
    let forebay = Forebay::serve(&config(
        &[plain(worker.address)],
        "max_concurrency = 64",
        "pool_idle_timeout = \"240ms\"",
        "replay = \"never_sent\"\nhealth_interval = \"1h\"",
    ));
    forebay.wait_in_service(1);
    let before = worker.stat("connections_accepted");
    let bursts = 10;
    let mut clients: Vec<_> = (0..TOGETHER).map(|_| Client::connect(forebay.proxy)).collect();
    for burst in 0..bursts {
        for client in &mut clients {
            client.send("POST", "/x", &[], b"{\"model\":\"m\"}");
        }
        for client in &mut clients {
            let answer = client.read_answer();
            assert_eq!(answer.status, 200, "{:?}", answer.header("x-forebay-error"));
        }
        // What is waited for is the moment itself: 392 to 410 ms.
        std::thread::sleep(Duration::from_millis(392 + 2 * burst));
    }
    let opened = worker.stat("connections_accepted") - before;
    assert!(opened > bursts, "{opened} connections: they did end in between");
    forebay.wait_all_zero();
}

/// As fast as the manager takes them, 60 times, or as often as `FOREBAY_TABLE_CHANGES` says: the config
/// changes in what the table says of the very instance, and another instance comes and goes.
#[test]
fn table_changes_close_no_connection_to_an_instance_that_stays() {
    let changes = from_environment("FOREBAY_TABLE_CHANGES").unwrap_or(60);
    for keys in ["", "protocol = \"h2c\""] {
        let stays = Worker::start(&["--tokens-per-second", "50"]);
        let leaves = Worker::start(&[]);
        let proxy = "pool_idle_timeout = \"10m\"";
        let text = |number: usize| {
            config(
                &[plain(stays.address), plain(leaves.address)],
                &format!("{keys}\nmax_concurrency = {}", 20 + number % 7),
                proxy,
                &format!(
                    "routing = \"RANDOM\"\nqueue_limit = {}\nhealth_interval = \"1h\"",
                    100 + number % 5
                ),
            )
        };
        let forebay = Forebay::serve(&text(0));
        forebay.wait_in_service(2);
        let ours = |answer: &http::Answer| answer.header("x-forebay-instance-type") == Some("t0");
        // Streams that last, and a connection that is kept.
        let mut streams: Vec<Client> = Vec::new();
        while streams.len() < 3 {
            let mut client = Client::connect(forebay.proxy);
            client.send("POST", "/v1/chat/completions", &[], chat(4000).as_bytes());
            let head = client.read_head();
            assert_eq!(head.status, 200);
            if ours(&head) {
                streams.push(client);
            }
        }
        eventually("one is kept", || {
            ours(&http::post(forebay.proxy, "/x", &[], "{}")).then_some(())
        });
        let revision = || forebay.status()["table_version"]["revision"].as_u64().expect("a number");
        let (before, first) = (stays.stat("connections_accepted"), revision());
        let over = AtomicBool::new(false);
        let (served, cycles) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = Client::connect(forebay.proxy);
                while !over.load(Ordering::Relaxed) {
                    client.send("POST", "/x", &[], b"{}");
                    assert_eq!(client.read_answer().status, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                for count in [1, 2].into_iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let body = format!("{{\"variant\":\"v\",\"desired_instance_count\":{count}}}");
                    let answer =
                        http::post(forebay.admin, "/api/v1/endpoints/e/scale", &JSON, &body);
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    eventually("it is done", || {
                        (forebay.in_service().len() == count).then_some(())
                    });
                    cycles.fetch_add(count - 1, Ordering::Relaxed);
                }
            });
            let _over = Ends(&over);
            for number in 1.. {
                if number > changes && cycles.load(Ordering::Relaxed) >= 2 {
                    break;
                }
                support::write_config(
                    &forebay.config_path(),
                    &text(number),
                    forebay.proxy,
                    forebay.admin,
                );
                let answer = http::post(forebay.admin, "/api/v1/reload", &[], "");
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        });
        let (revisions, took) = (revision() - first, started.elapsed());
        assert!(revisions >= changes as u64, "{revisions} tables");
        let rate = revisions as f64 / took.as_secs_f64() * 60.0;
        eprintln!("{revisions} tables, {rate:.0} a minute");
        assert!(served.load(Ordering::Relaxed) > changes);
        for client in &mut streams {
            assert!(client.read_chunk().is_some_and(|chunk| chunk.is_ok()), "it goes on");
        }
        // But for the one that asks this.
        let opened = stays.stat("connections_accepted") - before - 1;
        assert_eq!(opened, 0, "{opened} connections were opened in {revisions} tables ({keys})");
        drop(streams);
        forebay.wait_all_zero();
    }
}

/// Tells those who go on until then, also when a check has failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// How long a stream is silent: 2 s here, and as long as `FOREBAY_IDLE_SECONDS` says.
fn silence() -> Duration {
    Duration::from_secs_f64(from_environment("FOREBAY_IDLE_SECONDS").unwrap_or(2.0))
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Every limit on idle connections is far shorter than the silence; none is about a stream that runs.
#[test]
fn a_silent_stream_goes_on() {
    let silence = silence();
    let rate = (1.0 / silence.as_secs_f64()).to_string();
    let worker = Worker::start(&["--tokens-per-second", &rate]);
    let limits = "pool_idle_timeout = \"200ms\"\nidle_timeout = \"300ms\"\nbody_timeout = \"300ms\"\n\
                  write_timeout = \"300ms\"";
    std::thread::scope(|scope| {
        for protocol in ["http1", "h2c"] {
            let (worker, silence) = (&worker, silence);
            scope.spawn(move || {
                let keys = format!("protocol = \"{protocol}\"");
                let forebay = Forebay::serve(&config(&[plain(worker.address)], &keys, limits, ""));
                forebay.wait_in_service(1);
                let started = Instant::now();
                let mut over_http1 = Client::connect(forebay.proxy);
                let longer = silence * 3 + support::DEADLINE;
                over_http1.stream.set_read_timeout(Some(longer)).expect("set");
                over_http1.send("POST", "/v1/chat/completions", &[], chat(2).as_bytes());
                let mut over_http2 = H2::connect(forebay.proxy);
                let answer = over_http2.send("/v1/chat/completions", &chat(2));
                let answer =
                    over_http1.read_answer().complete.then_some(answer).expect("a whole one");
                let (text, error) = over_http2
                    .runtime
                    .block_on(async { H2::read(answer.await.expect("an answer")).await });
                assert!(error.is_none(), "{error:?}");
                assert!(text.ends_with(b"data: [DONE]\n\n"));
                assert!(started.elapsed() >= silence, "it was silent");
                forebay.wait_all_zero();
            });
        }
    });
}

/// Each event has to be here before the worker may send the next: none waits for another, for a full
/// buffer or for the end. Each comes as the one chunk that it was sent as.
#[test]
fn an_event_arrives_without_the_next_one_and_in_one_piece() {
    const EVENTS: usize = 100;
    let event = |number: usize| {
        format!("data: {number} {}\n\n", "x".repeat([0, 1, 190, 1400, 4000][number % 5]))
    };
    let (arrived, next) = mpsc::channel::<()>();
    let next = Mutex::new(next);
    let worker = by_hand::healthy(move |_, stream| {
        let next = next.lock().expect("one at a time");
        let mut send = |text: &str| stream.write_all(text.as_bytes()).is_ok();
        send(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        for number in 0..EVENTS {
            let event = event(number);
            if !send(&format!("{:x}\r\n{event}\r\n", event.len()))
                || next.recv_timeout(support::DEADLINE).is_err()
            {
                return;
            }
        }
        send("0\r\n\r\n");
    });
    let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("dir"));
    authority.certify(dir.path(), "worker", &["127.0.0.1"]);
    fs::write(dir.path().join("ca.pem"), authority.pem()).expect("written");
    let runtime = Runtime::new().expect("a runtime");
    let behind_tls =
        relay(&runtime, server_config(dir.path(), "worker", &[&TLS13], &["http/1.1"]), worker);
    let ca =
        format!("[instance_type.t0.tls]\nca_file = \"{}\"", dir.path().join("ca.pem").display());
    for (address, keys) in [(plain(worker), ""), (format!("https://{behind_tls}"), ca.as_str())] {
        let forebay = Forebay::serve(&config(&[address], keys, "", ""));
        forebay.wait_in_service(1);
        let mut client = Client::connect(forebay.proxy);
        client.send("POST", "/v1/chat/completions", &[], chat(9).as_bytes());
        assert_eq!(client.read_head().status, 200);
        for number in 0..EVENTS {
            let chunk = client.read_chunk().expect("not the end").expect("goes on");
            assert_eq!(String::from_utf8_lossy(&chunk), event(number));
            arrived.send(()).expect("the worker waits");
        }
        assert_eq!(client.read_chunk(), None, "its proper end");
        forebay.wait_all_zero();
    }
}

/// gRPC servers end a connection (`too_many_pings`) whose client pings it more than twice within five
/// minutes without data: the proxy never does. `loadtest/grpc_pings.sh` asks a real one.
#[test]
fn a_worker_is_never_pinged() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const SETTINGS_ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("address");
    let (types, frames) = mpsc::channel::<(u8, u32)>();
    // Takes HTTP/2 and answers the head of each request (`:status 200` is 0x88 in HPACK), never its body,
    // but for health checks.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let types = types.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut preface = [0; 24];
                if stream.read_exact(&mut preface).is_err() || preface != *PREFACE {
                    return;
                }
                stream.write_all(&SETTINGS).expect("sent");
                let mut head = [0; 9];
                while stream.read_exact(&mut head).is_ok() {
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let mut rest = vec![0; length];
                    stream.read_exact(&mut rest).expect("the frame's rest");
                    let answer: &[u8] = match (head[3], head[4] & 1) {
                        (4, 0) => &SETTINGS_ACK,
                        // END_STREAM came with the head: a GET, which health checks are.
                        (1, 1) => &[&[0, 0, 1, 1, 5][..], &id.to_be_bytes(), &[0x88]].concat(),
                        (1, 0) => &[&[0, 0, 1, 1, 4][..], &id.to_be_bytes(), &[0x88]].concat(),
                        _ => &[],
                    };
                    // Whoever has looked enough is gone.
                    let _ = types.send((head[3], id));
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let forebay = Forebay::serve(&config(
        &[plain(address)],
        "protocol = \"h2c\"",
        "pool_idle_timeout = \"10m\"",
        "health_interval = \"100ms\"",
    ));
    forebay.wait_in_service(1);
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/held", &[], b"{}");
    assert_eq!(client.read_head().status, 200);
    let until = Instant::now() + silence();
    let mut seen = 0;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if let Ok((kind, _)) = frames.recv_timeout(left) {
            assert_ne!(kind, 6, "a PING");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} frames were looked at");
    drop(client);
    forebay.wait_all_zero();
}
