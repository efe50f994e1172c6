//! A new binary takes the listening sockets over from the one that runs: no connection is refused, none is
//! reset, no stream is cut, and the fleet goes on under the new one. The real binary, real sockets.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod support;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::h2::H2;
use support::http::{self, Client};
use support::{Forebay, Process, Worker, eventually};

const STREAM: &str =
    r#"{"model":"m","stream":true,"max_tokens":100,"messages":[{"role":"user","content":"hi"}]}"#;
/// Connections a second while it happens.
const RATE: u32 = 200;

/// The config with room for many streams, and short turns.
fn house(worker: &Worker, more: &str) -> Forebay {
    let forebay = Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nthreads = 2\ntakeover = \"takeover.sock\"\n{more}\n\
         [admin]\nlisten = \"{{admin}}\"\n[provider.existing]\nkind = \"static\"\n\
         [instance_type.t]\nprovider = \"existing\"\nmax_concurrency = 400\naddresses = [\"http://{}\"]\n\
         [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         initial_instance_count = 1\nmin_instance_count = 1\nmax_instance_count = 1\n\
         [[endpoint.variant.pool]]\ninstance_type = \"t\"\npriority = 1\n",
        worker.address
    ));
    forebay.wait_in_service(1);
    waits_for_a_successor(&forebay);
    forebay
}

fn waits_for_a_successor(forebay: &Forebay) {
    let path = forebay.dir.path().join("takeover.sock");
    eventually("it can be taken over", || path.exists().then_some(()));
}

/// Generations that drain, as the manager tells of them.
fn draining(forebay: &Forebay) -> Vec<serde_json::Value> {
    let proxies = forebay.status()["proxies"].as_array().cloned().unwrap_or_default();
    proxies.into_iter().filter(|proxy| !proxy["draining_until"].is_null()).collect()
}

/// What became of requests.
#[derive(Default)]
struct Tally {
    over: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    fn note(&self, ok: bool) {
        let counter = if ok { &self.done } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// A connection for each request, at a steady rate whatever becomes of them.
fn connect_at_a_rate(forebay: &Forebay, tally: &Tally) {
    let proxy = forebay.proxy;
    std::thread::scope(|scope| {
        let began = Instant::now();
        for number in 0.. {
            if tally.is_over() {
                return;
            }
            let due = began + Duration::from_secs(1) * number / RATE;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            scope.spawn(move || {
                let answer = std::panic::catch_unwind(|| http::get(proxy, "/x"));
                tally.note(answer.is_ok_and(|answer| answer.status == 200 && answer.complete));
            });
        }
    });
}

/// One connection after the other, each for as long as the proxy keeps it.
fn keep_alive(forebay: &Forebay, tally: &Tally, reconnects: &AtomicU64) {
    let mut client = Client::connect(forebay.proxy);
    while !tally.is_over() {
        client.send("GET", "/x", &[], b"");
        let answer = client.try_read_answer();
        tally.note(answer.as_ref().is_some_and(|answer| answer.status == 200));
        if answer.is_none_or(|answer| answer.header("connection") == Some("close")) {
            reconnects.fetch_add(1, Ordering::Relaxed);
            client = Client::connect(forebay.proxy);
        }
    }
}

#[test]
fn a_takeover_under_load_refuses_nothing_and_cuts_nothing() {
    let worker = Worker::start(&[
        "--max-concurrency",
        "400",
        "--first-token",
        "10ms",
        "--tokens-per-second",
        "20",
    ]);
    let mut forebay = house(&worker, "close_spread = \"1s\"\nidle_timeout = \"2s\"");
    let mut streams: Vec<_> = (0..80).map(|_| Client::connect(forebay.proxy)).collect();
    for stream in &mut streams {
        stream.send("POST", "/v1/chat/completions", &[], STREAM.as_bytes());
    }
    let mut shared = H2::connect(forebay.proxy);
    let shared_streams: Vec<_> = (0..20).map(|_| shared.chat(100, true)).collect();
    eventually("100 streams run", || (worker.stat("running") == 100).then_some(()));
    let (fresh, kept, reconnects) = (Tally::default(), Tally::default(), AtomicU64::new(0));
    let old = std::thread::scope(|scope| {
        scope.spawn(|| connect_at_a_rate(&forebay, &fresh));
        scope.spawn(|| keep_alive(&forebay, &kept, &reconnects));
        eventually("the load is on", || (fresh.done.load(Ordering::Relaxed) > 50).then_some(()));
        let args = ["serve", "--config", &forebay.config_path().display().to_string()];
        let successor = Process::start(&args, forebay.dir.path(), "forebay.log");
        let generation = eventually("the generation before is shown", || draining(&forebay).pop());
        assert!(generation["outstanding"].as_u64().is_some_and(|n| n >= 50), "{generation}");
        let until = generation["draining_until"].as_u64().expect("a deadline");
        assert!(until > generation["reported_at"].as_u64().expect("a time"));
        let shown = String::from_utf8(forebay.cli(&["status"]).stdout).expect("text");
        assert!(shown.contains("DRAINING-PROXY"), "{shown}");
        eventually("its connections have left", || {
            (reconnects.load(Ordering::Relaxed) >= 1).then_some(())
        });
        let all = fresh.done.load(Ordering::Relaxed);
        eventually("the successor serves", || {
            (fresh.done.load(Ordering::Relaxed) > all + 200).then_some(())
        });
        for tally in [&fresh, &kept] {
            tally.over.store(true, Ordering::Relaxed);
        }
        successor
    });
    assert_eq!(fresh.failed.load(Ordering::Relaxed), 0, "of the fresh connections");
    assert_eq!(kept.failed.load(Ordering::Relaxed), 0, "of the kept connections");
    for stream in &mut streams {
        let answer = stream.read_answer();
        assert!(answer.status == 200 && answer.complete);
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
    }
    // All at once: they share a window.
    let read = shared_streams
        .into_iter()
        .map(async |stream| Ok::<_, h2::Error>(H2::read(stream.await?).await));
    for (body, error) in shared.wait(futures_util::future::try_join_all(read)).expect("answers") {
        assert!(error.is_none() && body.ends_with(b"data: [DONE]\n\n"), "{error:?}");
    }
    let mut before = std::mem::replace(&mut forebay.process, old);
    assert!(before.wait().success());
    eventually("it is forgotten", || draining(&forebay).is_empty().then_some(()));
    // And once more.
    waits_for_a_successor(&forebay);
    let mut before = forebay.succeed();
    assert!(before.wait().success());
    assert_eq!(http::get(forebay.proxy, "/x").status, 200);
    forebay.wait_all_zero();
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let worker = Worker::start(&[]);
    let mut forebay = house(&worker, "");
    let path = forebay.dir.path().join("takeover.sock");
    // One that asks and dies before it is ready, one that says nothing, one that talks nonsense.
    for says in [&b"1"[..], b"", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = UnixStream::connect(&path).expect("connects");
        std::io::Write::write_all(&mut stream, says).expect("sent");
        if says == b"1" {
            stream.read_exact(&mut [0]).expect("an answer");
        }
        drop(stream);
        assert_eq!(http::get(forebay.proxy, "/x").status, 200);
    }
    // One whose config cannot be used.
    let config = std::fs::read_to_string(forebay.config_path()).expect("a config");
    std::fs::write(forebay.config_path(), format!("{config}nonsense = 1\n")).expect("written");
    let running = forebay.succeed();
    let mut failed = std::mem::replace(&mut forebay.process, running);
    assert_eq!(failed.wait().code(), Some(1));
    assert_eq!(http::get(forebay.proxy, "/x").status, 200);
    // A good one still can.
    std::fs::write(forebay.config_path(), config).expect("written");
    let mut before = forebay.succeed();
    assert!(before.wait().success());
    forebay.wait_in_service(1);
    assert_eq!(http::get(forebay.proxy, "/x").status, 200);
}

#[test]
fn the_fleet_goes_on_under_the_successor() {
    let mut forebay = Forebay::serve(
        "[proxy]\nlisten = \"{proxy}\"\ntakeover = \"takeover.sock\"\n[admin]\nlisten = \"{admin}\"\n\
         [provider.local]\nkind = \"process\"\n\
         command = [\"{forebay}\", \"worker\", \"--listen\", \"{address}\", \"--instance-type\", \"{instance_type}\", \"--model\", \"{model}\"]\n\
         [instance_type.t]\nprovider = \"local\"\nmax_concurrency = 4\n\
         [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         initial_instance_count = 2\nmin_instance_count = 1\nmax_instance_count = 3\n\
         [[endpoint.variant.pool]]\ninstance_type = \"t\"\npriority = 1\n",
    );
    forebay.wait_in_service(2);
    waits_for_a_successor(&forebay);
    let names = |forebay: &Forebay| -> Vec<_> {
        forebay.instances().iter().map(|i| (i["id"].clone(), i["generation"].clone())).collect()
    };
    let workers = names(&forebay);
    let mut before = forebay.succeed();
    assert!(before.wait().success());
    forebay.wait_in_service(2);
    assert_eq!(names(&forebay), workers, "none is launched anew, none is forgotten");
    for _ in 0..4 {
        assert_eq!(http::get(forebay.proxy, "/x").status, 200);
    }
    assert!(forebay.cli(&["scale", "e", "3"]).status.success());
    forebay.wait_in_service(3);
}
