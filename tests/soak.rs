//! A mixed soak: everything that clients do, well and badly, at once and for long, while workers are killed and
//! the config is read again. `loadtest/soak.sh` runs it for an hour or as long as it is told, over the release
//! build; as part of `cargo test` it takes some seconds, which shows that it works and little more.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "tests run in real time and compare exact counts; the verdict is for whoever runs it"
)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::chaos::{CHAT, JSON, PATH, STREAM, answering, over_http1, over_http2};
use support::h2::H2;
use support::http::Client;
use support::{Forebay, eventually};

/// How long without being told.
const SHORT: Duration = Duration::from_secs(4);
/// From here on memory is judged: before it, pools and buffers fill.
const JUDGED: Duration = Duration::from_secs(60);
/// The allocator's own ups and downs.
const NOISE_KIB: u64 = 8 << 10;
const INSTANCES: usize = 5;

const CONFIG: &str = r#"
[proxy]
listen = "{proxy}"
threads = 2
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
[[endpoint]]
name = "llm"
[[endpoint.variant]]
name = "v"
model = "m"
initial_instance_count = 5
min_instance_count = 5
max_instance_count = 5
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

fn over_one_http2_connection(forebay: &Forebay, tally: &Tally) {
    let kind = "stream over HTTP/2";
    tally.repeat(|_| {
        let mut client = H2::connect(forebay.proxy);
        for _ in 0..20 {
            let answers: Vec<_> = (0..3).map(|_| client.chat(5, true)).collect();
            for answer in answers {
                let head = client.head(answer);
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

/// The worker that was launched first of those that run in this folder.
fn oldest_worker(dir: &Path) -> Option<u32> {
    let mark = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let ours = processes.filter_map(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment);
        let is_ours = environment.contains("FOREBAY_INSTANCE=") && environment.contains(&mark);
        let pid: u32 = entry.file_name().to_str()?.parse().ok().filter(|_| is_ours)?;
        // When it began is the 20th field behind the name (proc(5)), which is in brackets.
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let began: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some((began, pid))
    });
    ours.min().map(|(_, pid)| pid)
}

/// Reads the config again every `pause`, and every `kill_every` kills the worker that has lived longest: one that
/// dies young holds up its pool's next launches, and then there would soon be no fleet to speak of.
fn kill_and_reload(
    forebay: &Forebay,
    tally: &Tally,
    echo: &str,
    (pause, kill_every): (Duration, Duration),
) {
    let mut kill_at = Instant::now() + kill_every;
    tally.repeat(|number| {
        let wakes = Instant::now() + pause;
        while Instant::now() < wakes && !tally.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if Instant::now() >= kill_at {
            kill_at += kill_every;
            if let Some(pid) = oldest_worker(forebay.dir.path()) {
                support::signal(pid, "KILL");
                tally.count("a worker", "killed");
            }
        }
        let text = config(echo, 1_000 + number % 2);
        support::write_config(&forebay.config_path(), &text, forebay.proxy, forebay.admin);
        forebay.process.signal("HUP");
        tally.count("the config", "reloaded");
    });
}

fn config(echo: &str, queue_limit: u64) -> String {
    CONFIG.replace("{echo}", echo).replace("{queue_limit}", &queue_limit.to_string())
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
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
    let echo = answering(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
    );
    let echo = echo.to_string();
    let forebay = Forebay::serve(&config(&echo, 1_000));
    forebay.wait_in_service(INSTANCES + 1);
    let pid = forebay.process.pid();
    let files_before = open_files(pid);
    let tally = Tally::default();
    let mut memory = Vec::new();
    // Five workers, one killed every ten seconds: none dies younger than half a minute by it.
    let pauses =
        ((length / 20).min(Duration::from_secs(2)), (length / 2).min(Duration::from_secs(10)));
    std::thread::scope(|scope| {
        scope.spawn(|| well_behaved(&forebay, &tally, CHAT));
        scope.spawn(|| well_behaved(&forebay, &tally, STREAM));
        scope.spawn(|| well_behaved(&forebay, &tally, STREAM));
        scope.spawn(|| over_one_http2_connection(&forebay, &tally));
        scope.spawn(|| websockets(&forebay, &tally));
        scope.spawn(|| bad_input(&forebay, &tally));
        scope.spawn(|| kill_and_reload(&forebay, &tally, &echo, pauses));
        for thread in 0..4 {
            let (tally, proxy) = (&tally, forebay.proxy);
            scope.spawn(move || {
                tally.repeat(|number| {
                    over_http1(proxy, thread * 1_000_000 + number);
                    tally.count("any end over HTTP/1.1", "ended");
                });
            });
        }
        scope.spawn(|| {
            tally.repeat(|number| {
                over_http2(forebay.proxy, number);
                tally.count("any end over HTTP/2", "ended");
            });
        });
        let (began, every) = (Instant::now(), (length / 240).max(Duration::from_millis(50)));
        while began.elapsed() < length {
            std::thread::sleep(every);
            memory.push(resident_kib(pid));
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
    forebay.wait_all_zero();
    eventually("the fleet is whole, and the manager counts nothing", || {
        let all = forebay.in_service();
        (all.len() == INSTANCES + 1 && all.iter().all(|i| i["outstanding"] == 0)).then_some(())
    });
    eventually("files are closed", || (open_files(pid) < files_before + 64).then_some(()));
    let wrong = tally.wrong.lock().expect("not poisoned");
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (what, least) in
        [("chat over HTTP/1.1: 200", 1), ("upgrade: 101", 1), ("a worker: killed", 1)]
    {
        let counts = tally.counts.lock().expect("not poisoned");
        assert!(counts.get(what).is_some_and(|count| *count >= least), "nothing of {what}");
    }
    assert!(
        length < JUDGED || last <= second + second / 10 + NOISE_KIB,
        "memory has grown from {second} to {last} KiB"
    );
    println!("  verdict: every counter is at 0, the fleet is whole, memory is flat");
}
