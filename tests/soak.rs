//! A mixed soak: everything that clients do, well and badly, at once and for long, while workers are killed,
//! come and go, the config is read again and a new binary takes over. `loadtest/soak.sh` runs it for an hour or as long as it is told, over the release
//! build; as part of `cargo test` it takes some seconds, which shows that it works and little more.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "tests run in real time and compare exact counts; the verdict is for whoever runs it"
)]

#[path = "soak/clients.rs"]
mod clients;
#[path = "soak/fleet.rs"]
mod fleet;
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fleet::{Generations, Schedule};
use support::bulk::Bulk;
use support::chaos::{CHAT, JSON, PATH, STREAM, answering, over_http1, over_http2};
use support::h2::H2;
use support::http::Client;
use support::{Forebay, eventually, free_port, local, resident_kib};
use tokio::runtime::Runtime;

/// How long without being told.
const SHORT: Duration = Duration::from_secs(4);
/// From here on memory is judged: before it, pools and buffers fill.
const JUDGED: Duration = Duration::from_secs(60);
/// The allocator's own ups and downs.
const NOISE_KIB: u64 = 8 << 10;
/// Of the endpoint `llm`, when nobody scales it.
const INSTANCES: usize = 5;
/// And of the others.
const OTHERS: usize = 3;

const CONFIG: &str = r#"
[proxy]
listen = "{proxy}"
threads = 2
takeover = "takeover.sock"
close_spread = "1s"
[proxy.tls]
listen = "{tls}"
[[proxy.tls.certificate]]
chain = "{certificate}.pem"
key = "{certificate}.key"
[admin]
listen = "{admin}"
[provider.local]
kind = "process"
command = ["{forebay}", "worker", "--listen", "{address}", "--instance-type", "{instance_type}", "--model", "{model}", "--first-token", "5ms", "--tokens-per-second", "200"]
[provider.existing]
kind = "static"
[instance_type.first]
provider = "local"
capacity = 3
max_concurrency = 8
[instance_type.second]
provider = "local"
protocol = "h2c"
max_concurrency = 8
[instance_type.echo]
provider = "existing"
addresses = ["http://{echo}"]
[instance_type.bulk]
provider = "existing"
addresses = ["http://{bulk}"]
[instance_type.grpc]
provider = "existing"
protocol = "h2c"
addresses = ["http://{grpc}"]
[[endpoint]]
name = "llm"
[[endpoint.variant]]
name = "v"
model = "m"
initial_instance_count = 5
min_instance_count = 4
max_instance_count = 6
fallback = "at_once"
health_interval = "500ms"
startup_health_interval = "50ms"
queue_limit = {queue_limit}
[[endpoint.variant.pool]]
instance_type = "first"
priority = 1
[[endpoint.variant.pool]]
instance_type = "second"
priority = 2
[[endpoint]]
name = "echo"
[[endpoint.variant]]
name = "v"
model = "echo"
[[endpoint.variant.pool]]
instance_type = "echo"
priority = 1
[[endpoint]]
name = "bulk"
[[endpoint.variant]]
name = "v"
model = "bulk"
[[endpoint.variant.pool]]
instance_type = "bulk"
priority = 1
[[endpoint]]
name = "grpc"
[[endpoint.variant]]
name = "v"
model = "grpc"
health_grpc_service = "test.Mirror"
[[endpoint.variant.pool]]
instance_type = "grpc"
priority = 1
"#;

/// What came of it, by kind and outcome.
#[derive(Default)]
struct Tally {
    over: AtomicBool,
    counts: Mutex<BTreeMap<String, u64>>,
    /// What must not be: at most a few are kept.
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    fn count(&self, kind: &str, outcome: &str) {
        let mut counts = self.counts.lock().expect("not poisoned");
        *counts.entry(format!("{kind}: {outcome}")).or_default() += 1;
    }

    fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock().expect("not poisoned");
        if wrong.len() < 20 {
            wrong.push(what);
        }
    }

    /// Does `work` until it is over, with its number.
    fn repeat(&self, mut work: impl FnMut(u64)) {
        for number in 0.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            work(number);
        }
    }
}

/// Whole answers on a connection that is kept, and streams that say themselves whether they are whole.
fn well_behaved(forebay: &Forebay, tally: &Tally, body: &str) {
    let kind = if body == STREAM { "stream over HTTP/1.1" } else { "chat over HTTP/1.1" };
    let mut client = Client::connect(forebay.proxy);
    tally.repeat(|_| {
        client.send("POST", PATH, &[JSON], body.as_bytes());
        let Some(answer) = client.try_read_answer() else {
            tally.wrong(format!("{kind}: closed without an answer"));
            client = Client::connect(forebay.proxy);
            return;
        };
        let outcome = match (answer.status, answer.complete) {
            (200, false) => "cut".to_owned(),
            (200, true) => "200".to_owned(),
            (status, _) => {
                let kind = answer.header("x-forebay-error").unwrap_or("the worker's own");
                format!("{status} {kind}")
            }
        };
        tally.count(kind, &outcome);
        // A worker was killed, or all are full for a moment; nothing else is a reason.
        let is_usual = matches!(answer.status, 200 | 429 | 502 | 503);
        let has_its_end = body != STREAM || answer.text().ends_with("data: [DONE]\n\n");
        if !is_usual || (answer.status == 200 && answer.complete && !has_its_end) {
            tally.wrong(format!("{kind}: {} {}", answer.status, answer.text()));
        }
        if !answer.complete || answer.header("connection") == Some("close") {
            client = Client::connect(forebay.proxy);
        }
    });
}

/// Streams side by side on one connection, until it has had its share or the other side leaves it.
fn over_one_http2_connection(kind: &str, connect: impl Fn() -> H2, tally: &Tally) {
    tally.repeat(|_| {
        let mut client = connect();
        for _ in 0..20 {
            let asked: Result<Vec<_>, _> = (0..3).map(|_| client.try_send(PATH, STREAM)).collect();
            let Ok(answers) = asked else {
                tally.count(kind, "the connection is left");
                return;
            };
            for answer in answers {
                let head = match client.wait(answer) {
                    Ok(head) => head,
                    // Not taken up any more: a client may send it again.
                    Err(error) if error.is_go_away() || error.is_reset() => {
                        tally.count(kind, "not taken up");
                        continue;
                    }
                    Err(error) => {
                        tally.wrong(format!("{kind}: {error}"));
                        return;
                    }
                };
                let status = head.status().as_u16();
                let (body, error) = client.rest(head);
                tally.count(kind, &error.as_ref().map_or(status.to_string(), |_| "reset".into()));
                let is_usual = matches!(status, 200 | 429 | 502 | 503);
                let whole = status != 200 || error.is_some() || body.ends_with(b"data: [DONE]\n\n");
                if !is_usual || !whole {
                    let body = String::from_utf8_lossy(&body);
                    tally.wrong(format!("{kind}: {status} {error:?} {body}"));
                }
            }
        }
    });
}

fn websockets(forebay: &Forebay, tally: &Tally) {
    tally.repeat(|number| {
        let mut client = Client::connect(forebay.proxy);
        let fields =
            [("connection", "upgrade"), ("upgrade", "echo"), ("x-forebay-endpoint", "echo")];
        client.send("GET", "/ws", &fields, b"");
        let status = client.read_head().status;
        tally.count("upgrade", &status.to_string());
        if status != 101 {
            tally.wrong(format!("upgrade: {status}"));
            return;
        }
        for message in 0..10 {
            let said = format!("message {message} of {number}");
            client.stream.write_all(said.as_bytes()).expect("sent");
            let mut heard = vec![0; said.len()];
            let read = client.stream.read_exact(&mut heard);
            if read.is_err() || heard != said.as_bytes() {
                tally.wrong(format!("upgrade: {said} came back as {heard:?}"));
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    });
}

/// What must be refused, by its first line's status or a close.
fn bad_input(forebay: &Forebay, tally: &Tally) {
    const BAD: [&[u8]; 8] = [
        b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"GET / HTTP/1.1\nhost: t\n\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x08\x06\x00\x00\x00\x00\x01xxxxxxxx",
        b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ];
    tally.repeat(|number| {
        let bad = BAD[usize::try_from(number).unwrap_or(0) % BAD.len()];
        let mut client = Client::connect(forebay.proxy);
        drop(client.stream.write_all(bad));
        let mut answer = Vec::new();
        // A reset is an end like any other.
        drop(client.stream.read_to_end(&mut answer));
        let ok = answer.starts_with(b"HTTP/1.1 2");
        tally.count("bad input", if answer.is_empty() { "closed" } else { "refused" });
        if ok {
            tally.wrong(format!("bad input was served: {}", String::from_utf8_lossy(bad)));
        }
        std::thread::sleep(Duration::from_millis(10));
    });
}

/// What the proxy is started between.
struct Site {
    config: String,
    tls: clients::Tls,
    runtime: Runtime,
    _files: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let echo = answering(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        );
        let files = tempfile::tempdir().expect("dir");
        let runtime = Runtime::new().expect("a runtime");
        let tls = clients::Tls::new(files.path(), local(free_port()));
        let config = CONFIG
            .replace("{echo}", &echo.to_string())
            .replace("{bulk}", &Bulk::start().address.to_string())
            .replace("{grpc}", &clients::mirror(&runtime).to_string())
            .replace("{tls}", &tls.address.to_string())
            .replace("{certificate}", &files.path().join(clients::NAME).display().to_string());
        Self { config, tls, runtime, _files: files }
    }

    fn config(&self, queue_limit: u64) -> String {
        self.config.replace("{queue_limit}", &queue_limit.to_string())
    }
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[test]
fn a_mixed_soak_leaves_memory_flat_and_every_counter_at_zero() {
    let told = std::env::var("FOREBAY_SOAK").ok();
    let length = told.map_or(SHORT, |text| humantime::parse_duration(&text).expect("a duration"));
    let site = Site::new();
    let mut forebay = Forebay::serve(&site.config(1_000));
    forebay.wait_in_service(INSTANCES + OTHERS);
    let files_before = open_files(forebay.process.pid());
    let generations = Generations::of(&forebay);
    let tally = Tally::default();
    let mut memory = Vec::new();
    let proxy = forebay.proxy;
    std::thread::scope(|scope| {
        scope.spawn(|| well_behaved(&forebay, &tally, CHAT));
        scope.spawn(|| well_behaved(&forebay, &tally, STREAM));
        scope.spawn(|| well_behaved(&forebay, &tally, STREAM));
        scope.spawn(|| {
            over_one_http2_connection("stream over HTTP/2", || H2::connect(proxy), &tally);
        });
        scope.spawn(|| {
            over_one_http2_connection("stream over HTTP/2 and TLS", || site.tls.http2(), &tally);
        });
        scope.spawn(|| site.tls.fresh_connections(&tally));
        scope.spawn(|| clients::large_bodies(proxy, &tally));
        scope.spawn(|| clients::grpc(proxy, &site.runtime, &tally));
        scope.spawn(|| websockets(&forebay, &tally));
        scope.spawn(|| bad_input(&forebay, &tally));
        scope.spawn(|| {
            fleet::stir(&generations, &tally, &Schedule::over(length), |round| {
                let text = site.config(1_000 + round % 2);
                let path = forebay.config_path();
                support::write_config(&path, &text, forebay.proxy, forebay.admin);
            });
        });
        for thread in 0..4 {
            let tally = &tally;
            scope.spawn(move || {
                tally.repeat(|number| {
                    over_http1(proxy, thread * 1_000_000 + number);
                    tally.count("any end over HTTP/1.1", "ended");
                });
            });
        }
        scope.spawn(|| {
            tally.repeat(|number| {
                over_http2(proxy, number);
                tally.count("any end over HTTP/2", "ended");
            });
        });
        let (began, every) = (Instant::now(), (length / 240).max(Duration::from_millis(50)));
        while began.elapsed() < length {
            std::thread::sleep(every);
            memory.push(resident_kib(generations.pid()));
        }
        tally.over.store(true, Ordering::Relaxed);
    });
    println!("after {}:", humantime::format_duration(length));
    for (what, count) in tally.counts.lock().expect("not poisoned").iter() {
        println!("  {what}: {count}");
    }
    let quarter = memory.len() / 4;
    let [second, last] = [&memory[quarter..2 * quarter], &memory[3 * quarter..]].map(median);
    println!(
        "  memory, second quarter: {second} KiB, last quarter: {last} KiB, most: {:?} KiB",
        memory.iter().max()
    );
    let mut ended = generations.into_successors();
    let serving = ended.pop().expect("it was taken over");
    ended.push(std::mem::replace(&mut forebay.process, serving));
    assert!(ended.iter_mut().all(|process| process.wait().success()));
    forebay.wait_all_zero();
    eventually("the fleet is whole, and the manager counts nothing", || {
        let all = forebay.in_service();
        (all.len() == INSTANCES + OTHERS && all.iter().all(|i| i["outstanding"] == 0)).then_some(())
    });
    eventually("files are closed", || {
        (open_files(forebay.process.pid()) < files_before + 64).then_some(())
    });
    let wrong = tally.wrong.lock().expect("not poisoned");
    assert!(wrong.is_empty(), "{wrong:#?}");
    for what in [
        "chat over HTTP/1.1: 200",
        "stream over HTTP/2: 200",
        "stream over HTTP/2 and TLS: 200",
        "stream over TLS: 200",
        "gRPC: OK",
        "large body: 200",
        "upgrade: 101",
        "a worker: killed",
        "the binary: taken over",
    ] {
        assert!(tally.counts.lock().expect("not poisoned").contains_key(what), "nothing of {what}");
    }
    assert!(
        length < JUDGED || last <= second + second / 10 + NOISE_KIB,
        "memory has grown from {second} to {last} KiB"
    );
    println!("  verdict: every counter is at 0, the fleet is whole, memory is flat");
}
