//! Who may ask what, and that nothing tells a secret: keys of clients at the proxy, the token of the admin
//! listener. The real binary, real sockets, workers that record what they get.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use forebay::types::access::Digest;
use http::Request;
use support::h2::H2;
use support::http::{Answer, Client, get, post, request};
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
    let (heads, gate) = (Arc::new(Mutex::new(Vec::new())), Arc::new(RwLock::new(())));
    let closed = gate.write().expect("not poisoned");
    let (seen, waits) = (Arc::clone(&heads), Arc::clone(&gate));
    let worker = by_hand::healthy(move |head, stream| {
        seen.lock().expect("not poisoned").push(head.contains("x-who: bob"));
        drop(waits.read());
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"));
    });
    let forebay = house(&(key("alice", ALICE, "") + &key("bob", BOB, "")), &[worker]);
    let send = |who: &str, key: &str| {
        let mut client = Client::connect(forebay.proxy);
        client.send("POST", "/x", &[("x-api-key", key), ("x-who", who)], b"{}");
        client
    };
    let mut clients: Vec<_> = (0..16).map(|_| send("alice", ALICE)).collect();
    let queued = |count: f64| {
        eventually("they wait", || {
            (forebay.gauge("forebay_queued_requests") == count).then_some(())
        });
    };
    queued(12.0);
    clients.push(send("bob", BOB));
    queued(13.0);
    drop(closed);
    for client in &mut clients {
        assert_eq!(client.read_answer().status, 200);
    }
    // Of alice's four ran and twelve waited; bob's came in the next turn, not after them.
    let heads = heads.lock().expect("not poisoned");
    let turn = heads.iter().position(|is_bob| *is_bob).expect("bob's");
    assert!((4..8).contains(&turn), "{turn} of {}", heads.len());
    drop(heads);
    forebay.wait_all_zero();
}
