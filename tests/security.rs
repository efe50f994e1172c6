//! Who may ask what, and that nothing tells a secret: keys of clients at the proxy, the token of the admin
//! listener. The real binary, real sockets, workers that record what they get.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use forebay::types::access::Digest;
use http::Request;
use support::h2::H2;
use support::http::{Answer, Client, get, post, request};
use support::pki::Authority;
use support::{Forebay, Worker, by_hand, eventually};

const ALICE: &str = "fbk_alice-0123456789abcdef";
const BOB: &str = "fbk_bob-0123456789abcdef";
const STRANGER: &str = "fbk_stranger-0123456789abcdef";

/// A key of the config, with further lines of its own.
fn key(name: &str, secret: &str, more: &str) -> String {
    let digest = Digest::of(secret.as_bytes());
    format!("[[proxy.api_key]]\nname = \"{name}\"\nsha256 = \"{digest}\"\n{more}\n")
}

/// A config with these keys in front of one endpoint for each worker: `e0`, `e1` and so on.
fn config(keys: &str, workers: &[SocketAddr]) -> String {
    let mut text = format!(
        "[proxy]\nlisten = \"{{proxy}}\"\n{keys}[admin]\nlisten = \"{{admin}}\"\n[telemetry]\naccess_log = \"access.jsonl\"\n\
         [provider.existing]\nkind = \"static\"\n"
    );
    for (number, worker) in workers.iter().enumerate() {
        text += &format!(
            "[instance_type.t{number}]\nprovider = \"existing\"\nmax_concurrency = 4\naddresses = [\"http://{worker}\"]\n"
        );
    }
    for number in 0..workers.len() {
        text += &format!(
            "[[endpoint]]\nname = \"e{number}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m{number}\"\n\
             [[endpoint.variant.pool]]\ninstance_type = \"t{number}\"\npriority = 1\n"
        );
    }
    text
}

fn house(keys: &str, workers: &[SocketAddr]) -> Forebay {
    let forebay = Forebay::serve(&config(keys, workers));
    forebay.wait_in_service(workers.len());
    forebay
}

/// A worker, and the heads of what it got, health checks aside.
fn recorder() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let address = by_hand::healthy(move |head, stream| {
        seen.lock().expect("not poisoned").push(head.to_owned());
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"));
    });
    (address, heads)
}

/// Asks `e0` with these fields, and is answered with a status and perhaps a type.
fn ask(forebay: &Forebay, fields: &[(&str, &str)]) -> (u16, String) {
    let mut all = vec![("x-forebay-endpoint", "e0")];
    all.extend(fields);
    told(&post(forebay.proxy, "/v1/x", &all, "{}"))
}

fn told(answer: &Answer) -> (u16, String) {
    (answer.status, answer.header("x-forebay-error").unwrap_or_default().to_owned())
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

#[test]
fn whoever_has_no_key_is_refused_in_the_words_of_each_protocol() {
    let worker = Worker::start(&[]);
    let forebay = house(&key("alice", ALICE, ""), &[worker.address]);
    let refused = post(forebay.proxy, "/v1/chat/completions", &[], "{}");
    assert_eq!(told(&refused), (401, "unauthenticated".to_owned()));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"forebay\""));
    assert_eq!(refused.json()["error"]["type"], "unauthenticated");
    let stranger = bearer(STRANGER);
    let fields = [("authorization", stranger.as_str())];
    let refused = post(forebay.proxy, "/endpoints/e0/invocations", &fields, "{}");
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("x-amzn-errortype"), Some("UnrecognizedClientException"));
    assert_eq!(refused.json()["ErrorCode"], "unauthenticated");
    assert_eq!(get(forebay.proxy, "/v1/models").status, 401);
    // An upgrade, and a head that means two things, which is told first.
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    assert_eq!(request(forebay.proxy, "GET", "/ws", &upgrade, b"").status, 401);
    assert_eq!(request(forebay.proxy, "TRACE", "/", &[], b"").status, 400);
    // gRPC over HTTP/2.
    let mut h2 = H2::connect(forebay.proxy);
    let grpc = Request::post("http://e.example/package.Service/Method")
        .header("content-type", "application/grpc")
        .body(())
        .expect("a request");
    let answer = h2.sender.send_request(grpc, true).expect("is sent").0;
    let head = h2.head(answer);
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["grpc-status"], "16");
    assert_eq!(worker.stat("started"), 0);
    eventually("they are counted", || {
        (forebay.gauge("forebay_unauthenticated_requests_total") == 5.0).then_some(())
    });
    forebay.wait_all_zero();
}

#[test]
fn a_key_lets_in_and_goes_no_further() {
    let (worker, heads) = recorder();
    let forebay = house(&(key("alice", ALICE, "") + &key("bob", BOB, "")), &[worker]);
    let (alice, theirs) = (bearer(ALICE), bearer("the-workers-own"));
    for fields in [
        &[("authorization", alice.as_str())][..],
        &[("x-api-key", BOB)],
        &[("x-api-key", BOB), ("authorization", &theirs)],
        &[("x-api-key", BOB), ("authorization", &alice)],
        // What a client nominates is taken away after it was read, not before.
        &[("connection", "authorization"), ("authorization", &alice)],
    ] {
        assert_eq!(ask(&forebay, fields), (200, String::new()), "{fields:?}");
    }
    // In a trailer no key is one, and none goes on.
    let mut client = Client::connect(forebay.proxy);
    let trailers = format!(
        "POST /x HTTP/1.1\r\nhost: t\r\nx-api-key: {BOB}\r\ntransfer-encoding: chunked\r\ntrailer: x-api-key\r\n\r\n\
         2\r\n{{}}\r\n0\r\nx-api-key: {ALICE}\r\nauthorization: {alice}\r\n\r\n"
    );
    client.stream.write_all(trailers.as_bytes()).expect("sent");
    assert_eq!(client.read_answer().status, 200);
    let heads = heads.lock().expect("not poisoned").join("\n");
    for secret in [ALICE, BOB] {
        assert!(!heads.contains(secret), "{heads}");
    }
    assert_eq!(heads.matches("authorization: bearer the-workers-own").count(), 1, "{heads}");
    assert_eq!(heads.matches("authorization").count(), 1, "{heads}");
    let requests = |key: &str| forebay.gauge_where("forebay_api_key_requests_total", key);
    assert_eq!((requests("key=\"alice\""), requests("key=\"bob\"")), (3.0, 3.0));
    eventually("the access log has their names", || {
        let log = std::fs::read_to_string(forebay.dir.path().join("access.jsonl")).ok()?;
        let named = |name: &str| log.matches(&format!("\"api_key\":\"{name}\"")).count();
        (named("alice") == 3 && named("bob") == 3).then_some(())
    });
}

#[test]
fn a_key_is_for_the_endpoints_that_it_names() {
    let (zero, _) = recorder();
    let (one, at_one) = recorder();
    let keys = key("alice", ALICE, "endpoints = [\"e0\"]") + &key("bob", BOB, "");
    let forebay = house(&keys, &[zero, one]);
    let alice = ("x-api-key", ALICE);
    let not_allowed = (403, "endpoint_not_allowed".to_owned());
    let asked =
        |fields: &[(&str, &str)], body: &str| told(&post(forebay.proxy, "/v1/x", fields, body));
    assert_eq!(asked(&[alice, ("x-forebay-endpoint", "e0")], "{}").0, 200);
    assert_eq!(asked(&[alice, ("x-forebay-endpoint", "e1")], "{}"), not_allowed);
    assert_eq!(asked(&[alice], "{\"model\":\"m0\"}").0, 200);
    assert_eq!(asked(&[alice], "{\"model\":\"m1\"}"), not_allowed);
    assert_eq!(asked(&[alice], "{\"model\":\"e1\"}"), not_allowed);
    let refused = post(forebay.proxy, "/endpoints/e1/invocations", &[alice], "{}");
    assert_eq!(
        (refused.status, refused.header("x-amzn-errortype")),
        (403, Some("AccessDeniedException"))
    );
    assert_eq!(asked(&[("x-api-key", BOB)], "{\"model\":\"m1\"}").0, 200);
    assert_eq!(at_one.lock().expect("not poisoned").len(), 1, "bob's alone");
    let models = |key: &str| {
        let answer = request(forebay.proxy, "GET", "/v1/models", &[("x-api-key", key)], b"");
        let data = answer.json()["data"].as_array().cloned().unwrap_or_default();
        data.iter().filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(models(ALICE), ["m0", "e0"]);
    assert_eq!(models(BOB), ["m0", "m1", "e0", "e1"]);
    forebay.wait_all_zero();
}

#[test]
fn a_key_that_asks_too_often_is_told_when_to_come_back() {
    let (worker, heads) = recorder();
    let limited = "requests_per_minute = 60\nburst = 3";
    let forebay = house(&(key("alice", ALICE, limited) + &key("bob", BOB, "")), &[worker]);
    let began = Instant::now();
    let (mut passed, mut refused) = (0_u32, 0_u32);
    let last = loop {
        let answer = post(forebay.proxy, "/v1/x", &[("x-api-key", ALICE)], "{}");
        match answer.status {
            200 => passed += 1,
            429 => {
                refused += 1;
                if refused == 20 {
                    break answer;
                }
            }
            other => panic!("{other}"),
        }
    };
    let most = 3.0 + began.elapsed().as_secs_f64();
    assert!(passed >= 3 && f64::from(passed) <= most, "{passed} passed, of {most}");
    assert_eq!(told(&last).1, "rate_limited");
    assert_eq!(last.header("retry-after"), Some("1"));
    assert_eq!(ask(&forebay, &[("x-api-key", BOB)]).0, 200, "others go on");
    assert_eq!(heads.lock().expect("not poisoned").len(), passed as usize + 1);
    let limited = forebay.gauge_where("forebay_api_key_requests_total", "outcome=\"rate_limited\"");
    assert_eq!(limited, f64::from(refused));
    eventually("it may ask again when it was told", || {
        (ask(&forebay, &[("x-api-key", ALICE)]).0 == 200).then_some(())
    });
}

#[test]
fn keys_change_by_a_reload_without_a_lost_request() {
    let worker = Worker::start(&["--max-concurrency", "4", "--first-token", "500ms"]);
    let forebay = house(&key("alice", ALICE, ""), &[worker.address]);
    let write = |keys: &str| {
        let text = config(keys, &[worker.address]);
        support::write_config(&forebay.config_path(), &text, forebay.proxy, forebay.admin);
        forebay.process.signal("HUP");
    };
    // One that runs while its key is taken away, and one on a connection that stays.
    let mut running = Client::connect(forebay.proxy);
    let chat = br#"{"model":"m0","messages":[{"role":"user","content":"x"}],"max_tokens":3}"#;
    running.send("POST", "/v1/chat/completions", &[("x-api-key", ALICE)], chat);
    eventually("it runs", || (worker.stat("running") == 1).then_some(()));
    write(&key("bob", BOB, ""));
    eventually("the new key is in force", || {
        (ask(&forebay, &[("x-api-key", BOB)]).0 == 200).then_some(())
    });
    assert_eq!(ask(&forebay, &[("x-api-key", ALICE)]).0, 401);
    let answer = running.read_answer();
    assert!(answer.status == 200 && answer.complete, "{answer:?}");
    running.send("POST", "/v1/chat/completions", &[("x-api-key", ALICE)], chat);
    assert_eq!(running.read_answer().status, 401);
    // A file with a mistake changes nothing; one without keys asks for none.
    write("[[proxy.api_key]]\nname = \"carol\"\nsha256 = \"sesame\"\n");
    eventually("the mistake is told", || forebay.log().contains("not reloaded").then_some(()));
    assert_eq!(ask(&forebay, &[]).0, 401);
    write("");
    eventually("none is needed", || (ask(&forebay, &[]).0 == 200).then_some(()));
    let log = forebay.log();
    for told in ["key bob is new", "key alice is gone", "key bob is gone"] {
        assert!(log.contains(told), "{told}: {log}");
    }
    assert!(!log.contains("sesame"), "{log}");
    forebay.wait_all_zero();
}

#[test]
fn each_key_is_a_caller_of_its_own_to_the_queue() {
    // A worker that answers no more requests than it is allowed to.
    let (heads, allowed) =
        (Arc::new(Mutex::new(Vec::new())), Arc::new((Mutex::new(0), Condvar::new())));
    let (seen, gate) = (Arc::clone(&heads), Arc::clone(&allowed));
    let worker = by_hand::healthy(move |head, stream| {
        seen.lock().expect("not poisoned").push(head.contains("x-who: bob"));
        let left = gate.0.lock().expect("not poisoned");
        *gate.1.wait_while(left, |left| *left == 0).expect("not poisoned") -= 1;
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"));
    });
    let allow = |count: u32| {
        *allowed.0.lock().expect("not poisoned") += count;
        allowed.1.notify_all();
    };
    let forebay = house(&(key("alice", ALICE, "") + &key("bob", BOB, "")), &[worker]);
    let send = |who: &str, key: &str| {
        let mut client = Client::connect(forebay.proxy);
        client.send("POST", "/x", &[("x-api-key", key), ("x-who", who)], b"{}");
        client
    };
    let queued = |count: f64| {
        eventually("they wait", || {
            (forebay.gauge("forebay_queued_requests") == count).then_some(())
        });
    };
    let mut clients: Vec<_> = (0..16).map(|_| send("alice", ALICE)).collect();
    queued(12.0);
    clients.push(send("bob", BOB));
    queued(13.0);
    // Of alice's four run and twelve wait. Bob's comes in the next turn, not after them.
    allow(4);
    eventually("the next turn is there", || {
        (heads.lock().expect("not poisoned").len() == 8).then_some(())
    });
    assert_eq!(heads.lock().expect("not poisoned").iter().filter(|is_bob| **is_bob).count(), 1);
    allow(13);
    for client in &mut clients {
        assert_eq!(client.read_answer().status, 200);
    }
    forebay.wait_all_zero();
}

const TOKEN: &str = "admin-token-0123456789abcdef";
const NEXT_TOKEN: &str = "next-token-0123456789abcdef";

/// A config whose admin listener wants a token; `proxy_keys` belong to `[proxy]`.
fn guarded(worker: SocketAddr, admin: &str, proxy_keys: &str) -> String {
    config(proxy_keys, &[worker])
        .replace("[admin]\n", &format!("[admin]\ntoken_file = \"admin.token\"\n{admin}"))
}

fn with_token(forebay: &Forebay, method: &str, path: &str, token: &str) -> Answer {
    request(forebay.admin, method, path, &[("authorization", &bearer(token))], b"")
}

/// The binary in a folder with a token file, waiting until its worker is in service.
fn guarded_house(worker: SocketAddr, admin: &str, proxy_keys: &str) -> Forebay {
    let text = guarded(worker, admin, proxy_keys);
    let forebay = Forebay::serve_with(&text, &[("admin.token", TOKEN)]);
    eventually("the worker is in service", || {
        let status = with_token(&forebay, "GET", "/api/v1/status", TOKEN);
        status.text().contains("InService").then_some(())
    });
    forebay
}

#[test]
fn the_admin_listener_wants_its_token_for_all_but_health() {
    let (worker, _) = recorder();
    let mut forebay = guarded_house(worker, "", "");
    for (method, path) in [
        ("GET", "/api/v1/status"),
        ("GET", "/api/v1/endpoints/e0/explain"),
        ("POST", "/api/v1/endpoints/e0/scale"),
        ("POST", "/api/v1/instances/i-1/drain"),
        ("POST", "/api/v1/reload"),
        ("GET", "/metrics"),
        ("GET", "/internal/v1/table"),
        ("POST", "/internal/v1/report"),
    ] {
        let refused = request(forebay.admin, method, path, &[], b"");
        assert_eq!(refused.status, 401, "{path}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"forebay\""), "{path}");
        assert_eq!(refused.json()["error"]["type"], "unauthenticated", "{path}");
        assert_eq!(with_token(&forebay, method, path, STRANGER).status, 401, "{path}");
        assert_ne!(with_token(&forebay, method, path, TOKEN).status, 401, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(forebay.admin, path).status, 200, "{path}");
    }
    // The commands say what to do, and take the token either way.
    let told = |output: std::process::Output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let refused = forebay.cli(&["status"]);
    assert_eq!(refused.status.code(), Some(1));
    let refused = told(refused);
    assert!(refused.contains("--token-file or FOREBAY_TOKEN"), "{refused}");
    let file = forebay.dir.path().join("admin.token").display().to_string();
    let by_file = told(forebay.cli(&["status", "--token-file", &file]));
    let by_environment = told(forebay.cli_with(&["status"], &[("FOREBAY_TOKEN", TOKEN)]));
    for table in [by_file, by_environment] {
        assert!(table.contains("InService"), "{table}");
    }
    // A token is replaced while it runs; a file that is none changes nothing.
    std::fs::write(&file, format!("{NEXT_TOKEN}\n{TOKEN}\n")).expect("written");
    let status = |token: &str| with_token(&forebay, "GET", "/api/v1/status", token).status;
    eventually("the next one lets in", || (status(NEXT_TOKEN) == 200).then_some(()));
    assert_eq!(status(TOKEN), 200);
    std::fs::write(&file, NEXT_TOKEN).expect("written");
    eventually("the one of before does not", || (status(TOKEN) == 401).then_some(()));
    std::fs::write(&file, "sesame").expect("written");
    eventually("it is told", || forebay.log().contains("of before stay in force").then_some(()));
    assert_eq!(status(NEXT_TOKEN), 200);
    assert!(!forebay.log().contains("sesame"), "{}", forebay.log());
    forebay.process.signal("TERM");
    assert!(forebay.process.wait().success());
}

#[test]
fn metrics_are_public_only_where_that_is_said() {
    let (worker, _) = recorder();
    let forebay = guarded_house(worker, "public_metrics = true\n", "");
    let metrics = get(forebay.admin, "/metrics");
    assert!(metrics.status == 200 && metrics.text().contains("forebay_"), "{}", metrics.text());
    assert_eq!(get(forebay.admin, "/api/v1/status").status, 401);
}

#[test]
fn an_open_admin_listener_without_a_token_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("forebay.toml");
    let port = support::free_port();
    let run = |command: &str, listen: &str, more: &str| {
        let text = format!("[admin]\nlisten = \"{listen}:{port}\"\n{more}");
        std::fs::write(&path, text).expect("written");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args([command, "--config", &path.display().to_string()])
            .current_dir(dir.path())
            .output()
            .expect("the binary runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for listen in ["0.0.0.0", "[::]", "192.0.2.1"] {
        for command in ["check", "serve", "manager"] {
            let (code, told) = run(command, listen, "");
            assert_eq!(code, Some(1), "{listen} {command}: {told}");
            assert!(told.contains("set `token_file`"), "{listen} {command}: {told}");
        }
    }
    let vouched =
        "[admin.tls]\nclient_ca = \"c\"\n[[admin.tls.certificate]]\nchain = \"c\"\nkey = \"k\"\n";
    // TLS alone keeps nobody out.
    let (code, told) = run("check", "0.0.0.0", &vouched.replace("client_ca = \"c\"\n", ""));
    assert!(code == Some(1) && told.contains("`client_ca` in [admin.tls]"), "{told}");
    let token = "token_file = \"t\"";
    for (listen, more) in
        [("0.0.0.0", token), ("[::1]", ""), ("127.0.0.2", ""), ("0.0.0.0", vouched)]
    {
        let (code, told) = run("check", listen, more);
        assert_eq!(code, Some(0), "{listen}: {told}");
    }
    // A file that cannot be used ends the start, and is named.
    std::fs::write(dir.path().join("t"), "sesame").expect("written");
    let (code, told) = run("serve", "127.0.0.1", "token_file = \"t\"");
    assert!(code == Some(1) && told.contains("cannot use the token file t:1"), "{told}");
    assert!(!told.contains("sesame"), "{told}");
}

#[test]
fn a_proxy_elsewhere_follows_with_the_token_and_survives_its_replacement() {
    let (worker, _) = recorder();
    let manager = guarded_house(worker, "", "");
    let text = format!(
        "[proxy]\nlisten = \"{{proxy}}\"\nmanager = \"http://{}\"\nmanager_token_file = \"manager.token\"\n\
         [admin]\nlisten = \"{{admin}}\"\n",
        manager.admin
    );
    let proxy = Forebay::start_with("proxy", &text, &[("manager.token", STRANGER)]);
    eventually("it says what it lacks", || {
        proxy.log().contains("set [proxy] manager_token_file").then_some(())
    });
    assert_eq!(get(proxy.admin, "/readyz").status, 503);
    let token = proxy.dir.path().join("manager.token");
    std::fs::write(&token, TOKEN).expect("written");
    eventually("it follows with the right one", || {
        (post(proxy.proxy, "/x", &[], "{}").status == 200).then_some(())
    });
    // Replaced at both ends, the manager's first.
    std::fs::write(manager.dir.path().join("admin.token"), NEXT_TOKEN).expect("written");
    let status = |token: &str| with_token(&manager, "GET", "/api/v1/status", token);
    eventually("the next one lets in", || (status(NEXT_TOKEN).status == 200).then_some(()));
    std::fs::write(&token, NEXT_TOKEN).expect("written");
    eventually("it reports with the next one", || {
        proxy.log().contains("the manager takes reports again").then_some(())
    });
    assert_eq!(post(proxy.proxy, "/x", &[], "{}").status, 200);
    for log in [proxy.log(), manager.log()] {
        for secret in [TOKEN, NEXT_TOKEN, STRANGER] {
            assert!(!log.contains(secret), "{log}");
        }
    }
}

#[test]
fn a_draining_generation_reports_with_the_token() {
    let worker = Worker::start(&["--max-concurrency", "4", "--tokens-per-second", "5"]);
    let mut forebay = guarded_house(worker.address, "", "takeover = \"takeover.sock\"\n");
    let mut stream = Client::connect(forebay.proxy);
    let chat = br#"{"model":"m0","stream":true,"messages":[{"role":"user","content":"x"}],"max_tokens":20}"#;
    stream.send("POST", "/v1/chat/completions", &[], chat);
    eventually("it runs", || (worker.stat("running") == 1).then_some(()));
    let path = forebay.dir.path().join("takeover.sock");
    eventually("it can be taken over", || path.exists().then_some(()));
    let mut old = forebay.succeed();
    eventually("the new manager hears of what drains", || {
        let status = with_token(&forebay, "GET", "/api/v1/status", TOKEN).json();
        let proxies = status["proxies"].as_array().cloned().unwrap_or_default();
        proxies
            .iter()
            .any(|proxy| !proxy["draining_until"].is_null() && proxy["outstanding"] == 1)
            .then_some(())
    });
    assert!(stream.read_answer().complete);
    // It would be kept for its idle timeout.
    drop(stream);
    assert!(old.wait().success());
}

/// A collector of traces that takes everything and keeps its bytes.
fn collector() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&bytes);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut piece) {
                    kept.lock().expect("not poisoned").extend_from_slice(&piece[..length]);
                    // More often than it is asked: the sender looks at the first answer alone.
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
                }
            });
        }
    });
    (address, bytes)
}

/// Everything that a run leaves behind or shows, each piece with a name.
fn everything(forebay: &Forebay, spans: &Mutex<Vec<u8>>) -> Vec<(String, String)> {
    let admin = |path: &str| with_token(forebay, "GET", path, TOKEN).text();
    let mut all: Vec<_> =
        ["/metrics", "/api/v1/status", "/api/v1/endpoints/e/explain", "/internal/v1/table"]
            .map(|path| (path.to_owned(), admin(path)))
            .into();
    let environment = [("FOREBAY_TOKEN", TOKEN)];
    let config = forebay.config_path().display().to_string();
    for command in [
        &["status"][..],
        &["explain", "e"],
        &["check", "--config", &config],
        &["plan", "--config", &config],
    ] {
        let output = forebay.cli_with(command, &environment);
        assert!(output.status.success(), "{command:?}: {output:?}");
        for stream in [output.stdout, output.stderr] {
            all.push((format!("{command:?}"), String::from_utf8_lossy(&stream).into_owned()));
        }
    }
    let spans = spans.lock().expect("not poisoned");
    all.push(("spans".into(), String::from_utf8_lossy(&spans).into_owned()));
    for entry in std::fs::read_dir(forebay.dir.path()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.display().to_string();
        let kind = path.extension().and_then(|kind| kind.to_str());
        if path.is_file() && !matches!(kind, Some("toml" | "token")) {
            let bytes = std::fs::read(&path).expect("readable");
            all.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    all
}

#[test]
fn nothing_that_is_shown_or_kept_has_a_secret() {
    const OF_THE_WORKER: &str = "hf_of-the-worker-0123456789";
    const IN_QUERY: &str = "in-a-query-0123456789";
    const IN_BODY: &str = "in-a-body-0123456789";
    let (collector, spans) = collector();
    let text = format!(
        "[proxy]\nlisten = \"{{proxy}}\"\n{}[admin]\nlisten = \"{{admin}}\"\ntoken_file = \"admin.token\"\n\
         [telemetry]\naccess_log = \"access.jsonl\"\notlp_endpoint = \"http://{collector}\"\ntrace_sample = 1\n\
         [provider.local]\nkind = \"process\"\nenv = {{ HF_TOKEN = \"{OF_THE_WORKER}\" }}\n\
         command = [\"{{forebay}}\", \"worker\", \"--listen\", \"{{address}}\", \"--instance-type\", \"t\", \"--model\", \"m\"]\n\
         [instance_type.t]\nprovider = \"local\"\n\
         [[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         [[endpoint.variant.pool]]\ninstance_type = \"t\"\npriority = 1\n",
        key("alice", ALICE, "") + &key("bob", BOB, "requests_per_minute = 1\nburst = 1"),
    );
    let files = [("admin.token", TOKEN)];
    let forebay = Forebay::start_in("serve", &text, &files, &[("FOREBAY_LOG", "trace")]);
    eventually("the worker is in service", || {
        let status = with_token(&forebay, "GET", "/api/v1/status", TOKEN);
        status.text().contains("InService").then_some(())
    });
    // Every kind of request and refusal, over both protocols, and what each client is told of it.
    let (alice, stranger) = (bearer(ALICE), bearer(STRANGER));
    let mut answers = Vec::new();
    for fields in [
        &[("authorization", alice.as_str())][..],
        &[("authorization", &stranger)],
        &[("x-api-key", BOB)],
        &[("x-api-key", BOB)],
        &[("x-api-key", STRANGER)],
        &[("x-api-key", ALICE), ("authorization", &stranger), ("x-forebay-endpoint", "nobody")],
        &[("x-api-key", ALICE), ("transfer-encoding", "gzip")],
    ] {
        let path = format!("/v1/x?api_key={IN_QUERY}");
        answers.push(post(forebay.proxy, &path, fields, &format!("{{\"secret\":\"{IN_BODY}\"}}")));
    }
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 401, 200, 429, 401, 404, 400]);
    let mut h2 = H2::connect(forebay.proxy);
    for (name, secret) in [("authorization", alice.as_str()), ("x-api-key", STRANGER)] {
        let asked = Request::post("http://e.example/x").header(name, secret).body(());
        let answer = h2.sender.send_request(asked.expect("a request"), true).expect("is sent").0;
        answers.push(Answer {
            status: h2.head(answer).status().as_u16(),
            headers: Vec::new(),
            body: Vec::new(),
            complete: true,
        });
    }
    assert_eq!(answers[8].status, 401);
    for token in [STRANGER, TOKEN] {
        answers.push(with_token(&forebay, "POST", "/api/v1/reload", token));
    }
    eventually("the access log has them", || {
        let log = std::fs::read_to_string(forebay.dir.path().join("access.jsonl")).ok()?;
        (log.lines().count() >= 8).then_some(())
    });
    eventually("spans have come", || {
        let spans = spans.lock().expect("not poisoned");
        spans.windows(9).any(|bytes| bytes == b"/v1/trace").then_some(())
    });
    // The worker tells its client what it got: the client's own words, without the key.
    for answer in answers.iter().filter(|answer| answer.status == 200) {
        let echo = answer.text();
        assert!(!echo.contains(ALICE) && !echo.contains(BOB), "{echo}");
    }
    answers.retain(|answer| answer.status != 200);
    let mut all = everything(&forebay, &spans);
    all.extend(answers.iter().map(|answer| ("an answer".to_owned(), format!("{answer:?}"))));
    for answer in &answers {
        all.push(("an answer's body".to_owned(), answer.text()));
    }
    // That the pieces are what they are called: each has something that it must have.
    for (piece, has) in [
        ("/metrics", "key=\"alice\""),
        ("/api/v1/status", "InService"),
        ("access.jsonl", "\"api_key\":\"bob\""),
        ("forebay.log", "TRACE"),
        ("forebay.db", "SQLite format"),
        ("spans", "/v1/traces"),
    ] {
        let found = all.iter().find(|(name, _)| name.ends_with(piece)).map(|(_, text)| text);
        assert!(found.is_some_and(|text| text.contains(has)), "{piece}: {found:?}");
    }
    let digests = [ALICE, BOB, TOKEN].map(|secret| Digest::of(secret.as_bytes()).to_string());
    let secrets = [ALICE, BOB, STRANGER, TOKEN, OF_THE_WORKER, IN_QUERY, IN_BODY];
    for (name, text) in &all {
        for secret in secrets.into_iter().chain(digests.iter().map(String::as_str)) {
            let at = text.find(secret);
            let around = at.map(|at| text[..at].lines().last().unwrap_or_default());
            assert!(at.is_none(), "{name} has {secret}, behind {around:?}");
        }
    }
}

/// Certificates for an admin listener on this machine, and for somebody who may use it, in `dir`.
fn operators(dir: &std::path::Path) -> Authority {
    let authority = Authority::new();
    authority.certify(dir, "admin", &["127.0.0.1"]);
    authority.certify(dir, "operator", &["operator"]);
    std::fs::write(dir.join("ca.pem"), authority.pem()).expect("written");
    authority
}

/// `[admin.tls]` with these.
fn admin_tls(dir: &std::path::Path, client_ca: bool) -> String {
    let at = |file: &str| dir.join(file).display().to_string();
    let ca = if client_ca { format!("client_ca = {:?}\n", at("ca.pem")) } else { String::new() };
    let (chain, key) = (at("admin.pem"), at("admin.key"));
    format!("[admin.tls]\n{ca}[[admin.tls.certificate]]\nchain = {chain:?}\nkey = {key:?}\n")
}

/// What `forebay status` says once the manager has begun, and its exit code.
fn status_over_tls(forebay: &Forebay, args: &[&str]) -> (Option<i32>, String) {
    let url = format!("https://{}", forebay.admin);
    eventually("an answer of a manager that has begun", || {
        let output = forebay.cli(&[&["status", "--json", "--admin", &url], args].concat());
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (!text.contains("it has not begun")).then_some((output.status.code(), text))
    })
}

#[test]
fn the_admin_listener_speaks_tls_and_takes_a_token_or_a_certificate() {
    let dir = tempfile::tempdir().expect("dir");
    let at = |file: &str| dir.path().join(file).display().to_string();
    operators(dir.path());
    let stranger = Authority::new();
    stranger.certify(dir.path(), "stranger", &["operator"]);
    std::fs::write(dir.path().join("strangers-ca.pem"), stranger.pem()).expect("written");
    std::fs::write(dir.path().join("token"), TOKEN).expect("written");
    let (worker, _) = recorder();
    let (ca, token) = (at("ca.pem"), at("token"));
    let (cert, key) = (at("operator.pem"), at("operator.key"));
    let (bad_cert, bad_key) = (at("stranger.pem"), at("stranger.key"));
    for (has_ca, has_token) in [(true, true), (true, false), (false, true), (false, false)] {
        let tls = admin_tls(dir.path(), has_ca);
        let text = config("", &[worker]).replace("[telemetry]", &format!("{tls}[telemetry]"));
        let line = if has_token { format!("token_file = {token:?}\n") } else { String::new() };
        let text = text.replace("[admin]\n", &format!("[admin]\n{line}"));
        let forebay = Forebay::serve(&text);
        let ask = |more: &[&str]| status_over_tls(&forebay, &[&["--ca-file", &ca], more].concat());
        let told = format!("client_ca: {has_ca}, token_file: {has_token}");
        let (code, text) = ask(&[]);
        assert_eq!(code == Some(0), !has_ca && !has_token, "{told}: {text}");
        assert!(code == Some(0) || text.contains("--client-cert"), "{told}: {text}");
        let (code, text) = ask(&["--token-file", &token]);
        assert_eq!(code == Some(0), has_token || !has_ca, "{told}, with a token: {text}");
        let (code, text) = ask(&["--client-cert", &cert, "--client-key", &key]);
        assert_eq!(code == Some(0), has_ca || !has_token, "{told}, with a certificate: {text}");
        let (code, text) = ask(&["--client-cert", &bad_cert, "--client-key", &bad_key]);
        assert_eq!(code == Some(0), !has_ca && !has_token, "{told}, a stranger: {text}");
        // Whom the client does not know it tells nothing.
        let (code, text) = status_over_tls(&forebay, &["--ca-file", &at("strangers-ca.pem")]);
        assert_eq!(code, Some(1), "{told}");
        assert!(text.contains("from nobody who is trusted"), "{told}: {text}");
        // Nor is anything said to whoever speaks no TLS.
        let plain = forebay.cli(&["status"]);
        assert_eq!(plain.status.code(), Some(1), "{told}");
    }
}

#[test]
fn a_proxy_elsewhere_follows_over_tls_with_its_certificate() {
    let dir = tempfile::tempdir().expect("dir");
    operators(dir.path());
    let (worker, _) = recorder();
    let tls = admin_tls(dir.path(), true);
    let text = config("", &[worker]).replace("[telemetry]", &format!("{tls}[telemetry]"));
    let manager = Forebay::serve(&text);
    let follow = |more: &str| {
        let at = |file: &str| dir.path().join(file).display().to_string();
        let text = format!(
            "[proxy]\nlisten = \"{{proxy}}\"\nmanager = \"https://{}\"\n[proxy.manager_tls]\nca_file = {:?}\n{more}\
             [admin]\nlisten = \"{{admin}}\"\n",
            manager.admin,
            at("ca.pem")
        );
        Forebay::start_with("proxy", &text, &[])
    };
    let nobody = follow("");
    eventually("it is told what it lacks", || nobody.log().contains("wants a token").then_some(()));
    assert_eq!(get(nobody.admin, "/readyz").status, 503);
    let at = |file: &str| dir.path().join(file).display().to_string();
    let shown =
        format!("client_cert = {:?}\nclient_key = {:?}\n", at("operator.pem"), at("operator.key"));
    let proxy = follow(&shown);
    eventually("it serves by the manager's table", || {
        (post(proxy.proxy, "/x", &[], "{}").status == 200).then_some(())
    });
}

#[test]
fn a_draining_generation_reports_over_tls() {
    let dir = tempfile::tempdir().expect("dir");
    operators(dir.path());
    let worker = Worker::start(&["--max-concurrency", "4", "--tokens-per-second", "5"]);
    let tls = admin_tls(dir.path(), false);
    let text = guarded(worker.address, "", "takeover = \"takeover.sock\"\n")
        .replace("[telemetry]", &format!("{tls}[telemetry]"));
    let mut forebay = Forebay::serve_with(&text, &[("admin.token", TOKEN)]);
    let token = forebay.dir.path().join("admin.token").display().to_string();
    let ca = dir.path().join("ca.pem").display().to_string();
    let status = |forebay: &Forebay| {
        let args = ["--ca-file", &ca, "--token-file", &token];
        let (_, text) = status_over_tls(forebay, &args);
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default()
    };
    eventually("it serves", || (post(forebay.proxy, "/x", &[], "{}").status == 200).then_some(()));
    let mut stream = Client::connect(forebay.proxy);
    let chat = br#"{"model":"m0","stream":true,"messages":[{"role":"user","content":"x"}],"max_tokens":20}"#;
    stream.send("POST", "/v1/chat/completions", &[], chat);
    eventually("it runs", || (worker.stat("running") == 1).then_some(()));
    let path = forebay.dir.path().join("takeover.sock");
    eventually("it can be taken over", || path.exists().then_some(()));
    let mut old = forebay.succeed();
    eventually("the new manager hears of what drains", || {
        let proxies = status(&forebay)["proxies"].as_array().cloned().unwrap_or_default();
        let drains = |proxy: &serde_json::Value| {
            !proxy["draining_until"].is_null() && proxy["outstanding"] == 1
        };
        proxies.iter().any(drains).then_some(())
    });
    assert!(stream.read_answer().complete);
    // It would be kept for its idle timeout.
    drop(stream);
    assert!(old.wait().success());
}
