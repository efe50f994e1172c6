//! The fleet from outside: the real binary launches real processes, loses them, grows, shrinks, restarts.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "tests run in real time, compare exact counts and print their seeds"
)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::http::{self, Client};
use support::{Forebay, Process, eventually, free_port, local, write_config};

const JSON: (&str, &str) = ("content-type", "application/json");
const CHAT: &str = r#"{"model":"my-llm","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str =
    r#"{"model":"my-llm","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const QUICKSTART: &str = include_str!("../config/quickstart.toml");

/// The shipped quickstart on free ports, with its store in the test's own folder.
fn quickstart() -> String {
    let config = QUICKSTART
        .replace("\"127.0.0.1:8080\"", "\"{proxy}\"")
        .replace("\"127.0.0.1:8081\"", "\"{admin}\"");
    assert!(config.contains("{proxy}") && config.contains("{admin}"));
    config
}

fn types_in_service(forebay: &Forebay) -> Vec<String> {
    let mut types: Vec<_> = forebay
        .in_service()
        .iter()
        .map(|i| i["instance_type"].as_str().unwrap_or_default().to_owned())
        .collect();
    types.sort();
    types
}

const P5: &str = "ml.p5.48xlarge";
const G6: &str = "ml.g6.48xlarge";

fn wait_types(forebay: &Forebay, expected: &[&str]) {
    let mut expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    eventually(&format!("{expected:?} in service and nothing else"), || {
        let settled = forebay.instances().len() == expected.len();
        let same = settled && types_in_service(forebay) == expected;
        (same && forebay.proxies_are_current()).then_some(())
    });
}

fn pid_of(instance: &serde_json::Value) -> u32 {
    let id = instance["id"].as_str().expect("id");
    let mark = format!("FOREBAY_INSTANCE={id}");
    std::fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .unwrap_or_else(|| panic!("no process of {id}"))
}

fn post(forebay: &Forebay, body: &str) -> http::Answer {
    http::post(forebay.proxy, "/v1/chat/completions", &[JSON], body)
}

#[test]
fn the_quickstart_comes_up_with_one_preferred_and_two_fallback() {
    let started = Instant::now();
    let forebay = Forebay::serve(&quickstart());
    // The proxy listens from the first second.
    let early = post(&forebay, CHAT);
    assert!(early.status == 503 || early.status == 200, "{}", early.status);
    if early.status == 503 {
        assert!(early.header("retry-after").is_some());
    }
    wait_types(&forebay, &[P5, G6, G6]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for (path, body) in [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", r#"{"model":"my-llm","prompt":"x"}"#),
        ("/v1/embeddings", r#"{"model":"my-llm","input":"x"}"#),
        ("/endpoints/my-endpoint/invocations", "{}"),
    ] {
        let answer = http::post(forebay.proxy, path, &[JSON], body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let streamed = post(&forebay, STREAM);
    assert!(streamed.complete && streamed.text().trim_end().ends_with("[DONE]"));
    let status = forebay.cli(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        text.contains("my-endpoint") && text.contains(P5) && text.contains("InService"),
        "{text}"
    );
    let explain = forebay.cli(&["explain", "my-endpoint"]);
    let text = String::from_utf8_lossy(&explain.stdout).into_owned();
    assert!(explain.status.success() && text.contains("insufficient capacity"), "{text}");
}

#[test]
fn scaling_grows_preferred_first_and_shrinks_fallback_first() {
    let forebay = Forebay::serve(&quickstart());
    wait_types(&forebay, &[P5, G6, G6]);
    assert!(forebay.cli(&["scale", "my-endpoint", "1"]).status.success());
    wait_types(&forebay, &[P5]);
    assert!(forebay.cli(&["scale", "my-endpoint/primary", "4"]).status.success());
    wait_types(&forebay, &[P5, G6, G6, G6]);
    let refused = forebay.cli(&["scale", "my-endpoint", "7"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1 to 6"));
    let refused = forebay.cli(&["scale", "nothing", "1"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn a_scale_in_under_load_loses_no_request() {
    let forebay = Forebay::serve(&quickstart());
    wait_types(&forebay, &[P5, G6, G6]);
    let stop = AtomicBool::new(false);
    let (served, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..12 {
            let (forebay, stop, served, failed) = (&forebay, &stop, &served, &failed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let body = if thread % 2 == 0 { CHAT } else { STREAM };
                    let answer = post(forebay, body);
                    let ended = body == CHAT || answer.text().trim_end().ends_with("[DONE]");
                    if answer.status == 200 && answer.complete && ended {
                        served.fetch_add(1, Ordering::Relaxed);
                    } else {
                        eprintln!("{} {:?}", answer.status, answer.text());
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for count in ["1", "3", "2", "4", "1"] {
            assert!(forebay.cli(&["scale", "my-endpoint", count]).status.success());
            let wanted: usize = count.parse().expect("number");
            let before = served.load(Ordering::Relaxed);
            eventually("the fleet has its size", || {
                (forebay.instances().len() == wanted && forebay.in_service().len() == wanted)
                    .then_some(())
            });
            eventually("requests go on", || {
                (served.load(Ordering::Relaxed) > before + 10).then_some(())
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(served.load(Ordering::Relaxed) > 100);
    eventually("all counters back at zero", || {
        (forebay.gauge("forebay_outstanding_requests") == 0.0).then_some(())
    });
}

#[test]
fn a_killed_worker_is_replaced() {
    let forebay = Forebay::serve(&quickstart());
    wait_types(&forebay, &[P5, G6, G6]);
    let victim = forebay
        .in_service()
        .into_iter()
        .find(|i| i["instance_type"] == P5)
        .expect("the preferred one");
    // A stream that is broken by it ends as an error, never as a clean end.
    let mut client = Client::connect(forebay.proxy);
    let mut on_victim = None;
    for _ in 0..50 {
        let mut candidate = Client::connect(forebay.proxy);
        let headers = [JSON, ("x-worker-tokens", "100000")];
        candidate.send("POST", "/v1/chat/completions", &headers, STREAM.as_bytes());
        let head = candidate.read_head();
        if head.header("x-forebay-instance") == victim["id"].as_str() {
            on_victim = Some(candidate);
            break;
        }
    }
    let mut streaming = on_victim.expect("a stream on the preferred instance");
    streaming.read_chunk().expect("a chunk").expect("no break yet");
    support::signal(pid_of(&victim), "KILL");
    let broke = loop {
        match streaming.read_chunk() {
            Some(Ok(_)) => {}
            Some(Err(())) => break true,
            None => break false,
        }
    };
    assert!(broke, "a cut stream must not look like an end");
    eventually("it is replaced", || {
        let now = forebay.in_service();
        let gone = now.iter().all(|i| i["id"] != victim["id"]);
        (gone && now.len() == 3).then_some(())
    });
    assert_eq!(types_in_service(&forebay), [G6, G6, P5]);
    client.send("POST", "/v1/chat/completions", &[JSON], CHAT.as_bytes());
    assert_eq!(client.read_answer().status, 200);
}

#[test]
fn a_drained_instance_finishes_its_stream_and_is_replaced() {
    let forebay = Forebay::serve(&quickstart());
    wait_types(&forebay, &[P5, G6, G6]);
    let mut client = Client::connect(forebay.proxy);
    let headers = [JSON, ("x-worker-tokens", "120")];
    client.send("POST", "/v1/chat/completions", &headers, STREAM.as_bytes());
    let head = client.read_head();
    let busy = head.header("x-forebay-instance").expect("from a worker").to_owned();
    assert!(forebay.cli(&["drain", &busy]).status.success());
    eventually("it drains", || {
        let all = forebay.instances();
        all.iter().any(|i| i["id"] == busy && i["state"] == "Draining").then_some(())
    });
    for _ in 0..10 {
        let answer = post(&forebay, CHAT);
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("x-forebay-instance"), Some(busy.as_str()));
    }
    let mut text = String::new();
    while let Some(chunk) = client.read_chunk() {
        text += &String::from_utf8_lossy(&chunk.expect("the stream finishes"));
    }
    assert!(text.trim_end().ends_with("[DONE]"));
    eventually("it is gone and replaced", || {
        let now = forebay.in_service();
        (now.len() == 3 && now.iter().all(|i| i["id"] != busy)).then_some(())
    });
}

/// The two halves as two processes.
struct Split {
    manager: Process,
    proxy: Process,
    manager_config: String,
    proxy_config: String,
    /// Status comes from the manager, requests go to the proxy.
    view: Forebay,
}

impl Split {
    fn start() -> Self {
        Self::start_by_way_of(|admin| admin)
    }

    /// The proxy reaches the manager at the address that `way` makes of the manager's own.
    fn start_by_way_of(way: impl FnOnce(SocketAddr) -> SocketAddr) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let (proxy, admin) = (local(free_port()), local(free_port()));
        let proxy_admin = local(free_port());
        let manager_path = dir.path().join("manager.toml");
        let upgradable = "[proxy]\ntakeover = \"manager.sock\"\n";
        let manager_config = quickstart().replacen("[proxy]\n", upgradable, 1);
        write_config(&manager_path, &manager_config, proxy, admin);
        let proxy_path = dir.path().join("proxy.toml");
        let manager = way(admin);
        let config = format!(
            "[proxy]\nlisten = \"{{proxy}}\"\ntakeover = \"takeover.sock\"\nidle_timeout = \"1s\"\nmanager = \"http://{manager}\"\n[admin]\nlisten = \"{{admin}}\"\n"
        );
        write_config(&proxy_path, &config, proxy, proxy_admin);
        let (manager_config, proxy_config) =
            (manager_path.display().to_string(), proxy_path.display().to_string());
        let start = |args: &[&str]| Process::start(args, dir.path(), "forebay.log");
        Self {
            manager: start(&["manager", "--config", &manager_config]),
            proxy: start(&["proxy", "--config", &proxy_config]),
            // Only a view: its own process is one that has ended already.
            view: Forebay::view(start(&["--version"]), proxy, admin, dir),
            manager_config,
            proxy_config,
        }
    }

    fn restart_manager(&mut self) {
        let args = ["manager", "--config", &self.manager_config];
        self.manager = Process::start(&args, self.view.dir.path(), "forebay.log");
    }

    fn restart_proxy(&mut self) {
        let args = ["proxy", "--config", &self.proxy_config];
        self.proxy = Process::start(&args, self.view.dir.path(), "forebay.log");
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        // The manager keeps its workers when it ends: the view ends them.
        self.manager.kill();
        self.proxy.kill();
    }
}

fn ids(forebay: &Forebay) -> Vec<String> {
    let mut ids: Vec<_> = forebay
        .instances()
        .iter()
        .map(|i| i["id"].as_str().unwrap_or_default().to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn either_half_can_be_killed_and_nothing_is_launched_twice() {
    let mut split = Split::start();
    wait_types(&split.view, &[P5, G6, G6]);
    eventually("the proxy serves", || {
        let ready = std::net::TcpStream::connect(split.view.proxy).is_ok();
        (ready && post(&split.view, CHAT).status == 200).then_some(())
    });
    let before = ids(&split.view);
    // Without the manager the proxy serves on.
    split.manager.kill();
    for _ in 0..10 {
        assert_eq!(post(&split.view, CHAT).status, 200);
    }
    // Also after a restart of its own: the table is on disk.
    split.proxy.kill();
    split.restart_proxy();
    eventually("the proxy serves from disk", || {
        std::net::TcpStream::connect(split.view.proxy).ok()?;
        (post(&split.view, CHAT).status == 200).then_some(())
    });
    // The next manager adopts what runs.
    split.restart_manager();
    wait_types(&split.view, &[P5, G6, G6]);
    assert_eq!(ids(&split.view), before);
    assert_eq!(post(&split.view, CHAT).status, 200);
    // And it acts: the proxy follows it.
    assert!(split.view.cli(&["scale", "my-endpoint", "2"]).status.success());
    wait_types(&split.view, &[P5, G6]);
    for _ in 0..10 {
        assert_eq!(post(&split.view, CHAT).status, 200);
    }
    // A proxy that is killed costs the manager nothing.
    split.proxy.kill();
    split.restart_proxy();
    wait_types(&split.view, &[P5, G6]);
    eventually("the proxy serves", || {
        std::net::TcpStream::connect(split.view.proxy).ok()?;
        (post(&split.view, CHAT).status == 200).then_some(())
    });
}

/// A line between two processes that can be cut: connections end, new ones are refused.
#[derive(Default)]
struct Line {
    cut: AtomicBool,
}

impl Line {
    fn to(self: &Arc<Self>, target: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let line = Arc::clone(self);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if line.cut.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(target) else { continue };
                let ways = [(&near, &far), (&far, &near)];
                for (from, to) in ways.map(|(from, to)| (from.try_clone(), to.try_clone())) {
                    let (from, to) = (from.expect("cloned"), to.expect("cloned"));
                    let line = Arc::clone(&line);
                    std::thread::spawn(move || line.carry(from, to));
                }
            }
        });
        address
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let look_again = Duration::from_millis(100);
        from.set_read_timeout(Some(look_again)).expect("set");
        let mut buffer = [0; 16_384];
        while !self.cut.load(Ordering::Relaxed) {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) if to.write_all(&buffer[..n]).is_err() => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_proxy_alone_is_upgraded_and_what_its_old_generation_serves_holds_the_drain() {
    let mut split = Split::start();
    wait_types(&split.view, &[P5, G6, G6]);
    let place = split.view.dir.path().join("takeover.sock");
    eventually("it can be taken over", || place.exists().then_some(()));
    eventually("the proxy serves", || (post(&split.view, CHAT).status == 200).then_some(()));
    let mut client = Client::connect(split.view.proxy);
    let headers = [JSON, ("x-worker-tokens", "200")];
    client.send("POST", "/v1/chat/completions", &headers, STREAM.as_bytes());
    let busy = client.read_head().header("x-forebay-instance").expect("from a worker").to_owned();
    let args = ["proxy", "--config", &split.proxy_config];
    let successor = Process::start(&args, split.view.dir.path(), "forebay.log");
    let mut before = std::mem::replace(&mut split.proxy, successor);
    let generations = |view: &Forebay| {
        let proxies = view.status()["proxies"].as_array().cloned().unwrap_or_default();
        proxies.into_iter().filter(|p| !p["draining_until"].is_null()).collect::<Vec<_>>()
    };
    let shown = eventually("the old generation is shown", || {
        generations(&split.view).pop().filter(|proxy| proxy["outstanding"] == 1)
    });
    assert_eq!(shown["silent"], false);
    // The successor serves, also while the instance that the old one is at is drained.
    assert!(split.view.cli(&["drain", &busy]).status.success());
    eventually("it is out of the tables", || split.view.proxies_are_current().then_some(()));
    for _ in 0..5 {
        let answer = post(&split.view, CHAT);
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("x-forebay-instance"), Some(busy.as_str()));
    }
    let mut text = String::new();
    while let Some(chunk) = client.read_chunk() {
        text += &String::from_utf8_lossy(&chunk.expect("the stream finishes"));
    }
    assert!(text.trim_end().ends_with("[DONE]"));
    drop(client);
    assert!(before.wait().success());
    eventually("nothing is left of it", || {
        let gone = split.view.instances().iter().all(|i| i["id"] != busy);
        (gone && generations(&split.view).is_empty()).then_some(())
    });
}

#[test]
fn a_manager_alone_is_upgraded_without_a_refused_connection_or_a_lost_instance() {
    let mut split = Split::start();
    wait_types(&split.view, &[P5, G6, G6]);
    let place = split.view.dir.path().join("manager.sock");
    eventually("it can be taken over", || place.exists().then_some(()));
    eventually("the proxy serves", || {
        TcpStream::connect(split.view.proxy).ok()?;
        (post(&split.view, CHAT).status == 200).then_some(())
    });
    let mut client = Client::connect(split.view.proxy);
    let headers = [JSON, ("x-worker-tokens", "200")];
    client.send("POST", "/v1/chat/completions", &headers, STREAM.as_bytes());
    assert_eq!(client.read_head().status, 200);
    let ids = |view: &Forebay| {
        let mut ids: Vec<_> = view.instances().iter().map(|i| i["id"].to_string()).collect();
        ids.sort();
        ids
    };
    // An answer, or nothing where the one that answered is about to end; a refused connection panics.
    let epoch = |view: &Forebay| {
        let mut admin = Client::connect(view.admin);
        admin.send("GET", "/api/v1/status", &[], b"");
        admin.try_read_answer()?.json()["table_version"]["epoch"].as_u64()
    };
    let known = ids(&split.view);
    let first = eventually("it acts", || epoch(&split.view));
    let args = ["manager", "--config", &split.manager_config];
    let successor = Process::start(&args, split.view.dir.path(), "forebay.log");
    let mut before = std::mem::replace(&mut split.manager, successor);
    eventually("the successor acts", || epoch(&split.view).filter(|epoch| *epoch > first));
    assert!(before.wait().success());
    assert!(!split.manager.has_ended());
    eventually("the proxy follows it", || split.view.proxies_are_current().then_some(()));
    assert_eq!(ids(&split.view), known, "nothing was launched or forgotten");
    assert!(split.view.cli(&["scale", "my-endpoint", "2"]).status.success());
    wait_types(&split.view, &[P5, G6]);
    let mut text = String::new();
    while let Some(chunk) = client.read_chunk() {
        text += &String::from_utf8_lossy(&chunk.expect("the stream finishes"));
    }
    assert!(text.trim_end().ends_with("[DONE]"));
}

#[test]
fn a_proxy_that_is_cut_off_from_the_manager_keeps_what_it_serves() {
    let line = Arc::new(Line::default());
    let mut split = Split::start_by_way_of(|admin| line.to(admin));
    wait_types(&split.view, &[P5, G6, G6]);
    eventually("the proxy serves", || {
        TcpStream::connect(split.view.proxy).ok()?;
        (post(&split.view, CHAT).status == 200).then_some(())
    });
    // A stream on each worker; on the fallback ones of 16 s.
    let mut streams: Vec<_> = (0..3)
        .map(|_| {
            let mut client = Client::connect(split.view.proxy);
            let headers = [JSON, ("x-worker-tokens", "640")];
            client.send("POST", "/v1/chat/completions", &headers, STREAM.as_bytes());
            let head = client.read_head();
            assert_eq!(head.status, 200);
            (client, head.header("x-forebay-instance").expect("a worker").to_owned())
        })
        .collect();
    line.cut.store(true, Ordering::Relaxed);
    assert!(split.view.cli(&["scale", "my-endpoint", "1"]).status.success());
    eventually("the manager knows that the proxy is silent", || {
        let status = split.view.status();
        status["proxies"].as_array()?.iter().all(|proxy| proxy["silent"] == true).then_some(())
    });
    let mut proxies = split.view.status()["proxies"].clone();
    let name = proxies[0]["id"].take();
    for (client, worker) in &mut streams {
        let mut text = String::new();
        while let Some(chunk) = client.read_chunk() {
            let chunk = chunk.unwrap_or_else(|()| panic!("{worker} was stopped under its stream"));
            text += &String::from_utf8_lossy(&chunk);
        }
        assert!(text.trim_end().ends_with("[DONE]"), "{text}");
    }
    assert_eq!(split.view.instances().len(), 3, "both drain: the proxy may still send");
    // Killed and started again, within reach, it is known as the same one, and holds nothing up.
    line.cut.store(false, Ordering::Relaxed);
    split.proxy.kill();
    split.restart_proxy();
    wait_types(&split.view, &[P5]);
    let proxies = split.view.status()["proxies"].clone();
    assert_eq!(proxies.as_array().map(Vec::len), Some(1), "{proxies}");
    assert_eq!(proxies[0]["id"], name);
}

#[test]
fn serve_that_is_killed_adopts_its_workers() {
    let mut forebay = Forebay::serve(&quickstart());
    wait_types(&forebay, &[P5, G6, G6]);
    let before = ids(&forebay);
    forebay.process.kill();
    forebay.restart();
    wait_types(&forebay, &[P5, G6, G6]);
    assert_eq!(ids(&forebay), before);
    assert_eq!(post(&forebay, CHAT).status, 200);
}

#[test]
fn being_told_to_end_finishes_what_runs_and_stops_the_workers() {
    let mut forebay = Forebay::serve(&quickstart());
    wait_types(&forebay, &[P5, G6, G6]);
    let pids: Vec<_> = forebay.in_service().iter().map(pid_of).collect();
    let mut client = Client::connect(forebay.proxy);
    client.send(
        "POST",
        "/v1/chat/completions",
        &[JSON, ("x-worker-tokens", "60")],
        STREAM.as_bytes(),
    );
    client.read_head();
    forebay.process.signal("TERM");
    let mut text = String::new();
    while let Some(chunk) = client.read_chunk() {
        text += &String::from_utf8_lossy(&chunk.expect("the stream finishes"));
    }
    assert!(text.trim_end().ends_with("[DONE]"));
    assert!(forebay.process.wait().success());
    for pid in pids {
        eventually("the workers have ended", || {
            (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
    }
}

#[test]
fn a_reload_applies_differences_and_refuses_mistakes() {
    let forebay = Forebay::serve(&quickstart());
    wait_types(&forebay, &[P5, G6, G6]);
    let path = forebay.config_path();
    let config = std::fs::read_to_string(&path).expect("config");
    let broken = config.replace("max_concurrency = 8", "max_concurrency = \"eight\"");
    std::fs::write(&path, broken).expect("written");
    let answer = http::post(forebay.admin, "/api/v1/reload", &[], "");
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("max_concurrency"), "{}", answer.text());
    // More of the preferred type: the next scale-out takes it.
    let more = config.replace("capacity = 1 ", "capacity = 2 ");
    std::fs::write(&path, more).expect("written");
    forebay.process.signal("HUP");
    eventually("the log tells of it", || {
        forebay.log().contains("reloaded: instance type ml.p5.48xlarge").then_some(())
    });
    assert!(forebay.cli(&["scale", "my-endpoint", "4"]).status.success());
    wait_types(&forebay, &[P5, P5, G6, G6]);
}
