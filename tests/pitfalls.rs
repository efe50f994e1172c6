//! What others got wrong, and the test that fails here without our rule.
//!
//! | what went wrong | where | test |
//! |---|---|---|
//! | the count was not given back on error, timeout, cancel | vllm-project/router#215, skypilot-org/skypilot#10444, BerriAI/litellm#39322 | `storm::a_storm_ends_with_every_counter_at_zero_and_as_many_releases_as_grants` |
//! | it was given back after a close that can fail | sgl-project/sglang-omni#931 | the same, and `admission_tests::all_counters_return_to_zero` |
//! | it fell below zero and wrapped | intentee/paddler#56, BerriAI/litellm#40401 | `slot::a_closed_or_ejected_slot_takes_nothing_and_still_counts_down`, `admission_tests::counts_belong_to_a_start_not_to_an_address` |
//! | choosing and counting were two steps | vllm-project/aibrix#2422 | `handoff_model::the_last_free_slot_goes_to_one`, `proxy::simultaneous_requests_go_one_to_each_idle_copy` |
//! | counted at the response, not from sending on | smg-project/smg#1714 | `http2::many_requests_share_a_connection_and_each_is_counted` |
//! | one path or protocol was not counted | vllm-project/router#179, sgl-project/sglang#15473 | `proxy::an_upgrade_is_tunnelled_and_counted`, `grpc::a_conversation_goes_on_message_by_message_and_ends_with_its_trailers` |
//! | health checks reset the count | vllm-project/router#197, skypilot#10671 | `pitfalls::health_never_touches_the_counts` |
//! | ties always went to the first | skypilot#10445 | `route::equals_are_chosen_equally_often` |
//! | a disconnect before the first token was not noticed | dynamo#13691, sglang#35255 | `proxy::a_client_that_leaves_frees_the_worker_within_a_tenth_of_a_second`, `requests::a_client_that_leaves_while_connecting_frees_the_slot` |
//! | the slot was freed while the work went on | bentoml/BentoML#5642 | `requests::a_worker_that_is_to_finish_is_read_to_its_end` |
//! | the engine's queue grew without end | vllm#18826, #49330 | `proxy::limits_hold_and_the_excess_waits_at_the_proxy` |
//! | one capacity for mixed hardware | llm-d router's concurrency detector | the same |
//! | a busy worker was judged dead, a hung one fine | gonka-ai/gonka#1421, llm-d/llm-d-benchmark#1734 | `basics::one_that_is_too_busy_for_probes_stays`, `requests::one_that_hangs_is_left_alone_and_replaced_though_its_probes_succeed` |
//! | `/v1/models` was taken for readiness | gpustack/gpustack#6203 | `settings::the_health_path_comes_from_the_engine` |
//! | clients' 400s opened the breaker, and closed it again | sglang#25811, #39464, smg#2565 | `eject::clients_mistakes_neither_open_nor_close_it`, `requests::clients_mistakes_eject_nobody` |
//! | queue-full answers kept the breaker shut, or drew the traffic | sglang#39464 | `requests::one_that_says_it_is_full_is_not_asked_again_at_once` |
//! | a break upstream looked like a clean end | tinfoilsh/confidential-model-router#469 | `proxy::a_broken_stream_never_looks_like_an_end`, `http2::a_stream_that_breaks_at_the_worker_is_reset_and_never_ended` |
//! | closing right after `[DONE]` was logged as an error | vllm-project/aibrix#2224 | `pitfalls::closing_right_after_done_is_no_failure` |
//! | one hung worker or 1,000 connections stopped the router | production-stack#749, #448 | `pitfalls::a_hung_worker_and_a_thousand_connections_stop_nobody` |
//! | small body buffers refused real requests | envoyproxy/ai-gateway#805, #828 | `pitfalls::the_model_is_found_behind_a_large_body` |
//! | load was polled: herds, seconds of lag | vllm-project/router#177, vllm#49538 | `proxy::simultaneous_requests_go_one_to_each_idle_copy` |

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    reason = "tests run in real time and compare exact counts"
)]

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::by_hand;
use support::http::{self, Client};
use support::{Forebay, Worker, eventually};

const JSON: (&str, &str) = ("content-type", "application/json");
const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;

#[test]
fn health_never_touches_the_counts() {
    let (healthy, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (state, count) = (Arc::clone(&healthy), Arc::clone(&asked));
    let address = by_hand::start(move |head, stream| {
        if !head.starts_with("get /ping") {
            // Answers nothing until its client leaves.
            drop(stream.read_to_end(&mut Vec::new()));
            return;
        }
        count.fetch_add(1, Ordering::Relaxed);
        let status = if state.load(Ordering::Relaxed) { "200 OK" } else { "503 No" };
        drop(
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()),
        );
    });
    let forebay = Forebay::in_front_of_addresses(&[(address, 4)], "unhealthy_threshold = 1000\n");
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            let mut client = Client::connect(forebay.proxy);
            client.send("POST", "/x", &[], b"{}");
            client
        })
        .collect();
    let outstanding = || forebay.gauge("forebay_outstanding_requests");
    eventually("three are counted", || (outstanding() == 3.0).then_some(()));
    for state in [false, true, false, true] {
        healthy.store(state, Ordering::Relaxed);
        let before = asked.load(Ordering::Relaxed);
        eventually("it is asked again", || {
            (asked.load(Ordering::Relaxed) > before + 2).then_some(())
        });
        assert_eq!(outstanding(), 3.0, "healthy: {state}");
    }
    clients.pop();
    eventually("one has left", || (outstanding() == 2.0).then_some(()));
    drop(clients);
    forebay.wait_all_zero();
}

#[test]
fn closing_right_after_done_is_no_failure() {
    let address = by_hand::healthy(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let done = "data: [DONE]\n\n";
        drop(stream.write_all(format!("{head}{:x}\r\n{done}\r\n", done.len()).as_bytes()));
        // The last chunk does not come before the client has what it wants.
        drop(stream.read(&mut [0; 4096]));
    });
    let forebay = Forebay::in_front_of_addresses(&[(address, 4)], "ejection_threshold = 1\n");
    for _ in 0..3 {
        let mut client = Client::connect(forebay.proxy);
        client.send("POST", "/v1/chat/completions", &[JSON], STREAM.as_bytes());
        assert_eq!(client.read_head().status, 200);
        let chunk = client.read_chunk().expect("a chunk").expect("whole");
        assert!(chunk.ends_with(b"[DONE]\n\n"));
    }
    forebay.wait_all_zero();
    let with =
        |code: u16| forebay.gauge_where("forebay_invocations_total", &format!("code=\"{code}\""));
    assert_eq!((with(200), with(499), with(502)), (3.0, 0.0, 0.0));
    assert_eq!(forebay.gauge("forebay_ejections_total"), 0.0);
}

#[test]
fn a_hung_worker_and_a_thousand_connections_stop_nobody() {
    let hung = Worker::start(&["--fail", "hang"]);
    let good = Worker::start(&[]);
    let forebay = Forebay::in_front_of(&[(&hung, 1), (&good, 8)], "unhealthy_threshold = 1000\n");
    let idle: Vec<_> = (0..1_000).map(|_| Client::connect(forebay.proxy)).collect();
    let mut stuck = Vec::new();
    eventually("the hung one has all that it gets", || {
        let mut client = Client::connect(forebay.proxy);
        client.send("POST", "/v1/chat/completions", &[JSON], CHAT.as_bytes());
        stuck.push(client);
        let at = |kind: &str| forebay.gauge_where("forebay_outstanding_requests", kind);
        (at("ml.t0") == 1.0).then_some(())
    });
    let begun = Instant::now();
    for _ in 0..50 {
        let answer = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], CHAT);
        assert_eq!(answer.status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?} for 50 requests", begun.elapsed());
    assert_eq!(http::get(forebay.proxy, "/v1/models").status, 200);
    drop((idle, stuck));
    forebay.wait_all_zero();
}

#[test]
fn the_model_is_found_behind_a_large_body() {
    let (a, b) = (Worker::start(&[]), Worker::start(&[]));
    let endpoint = |name: &str, address| {
        format!(
            "[instance_type.{name}]\nprovider = \"existing\"\naddresses = [\"http://{address}\"]\n\
             [[endpoint]]\nname = \"{name}\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"model-{name}\"\n\
             [[endpoint.variant.pool]]\ninstance_type = \"{name}\"\n"
        )
    };
    let forebay = Forebay::serve(&format!(
        "[proxy]\nlisten = \"{{proxy}}\"\n[admin]\nlisten = \"{{admin}}\"\n[provider.existing]\nkind = \"static\"\n{}{}",
        endpoint("a", a.address),
        endpoint("b", b.address)
    ));
    forebay.wait_in_service(2);
    // An image of 700 KiB before the name, in the order that some clients send it.
    let image = "A".repeat(700 << 10);
    for (model, worker) in [("model-a", &a), ("model-b", &b)] {
        let before = worker.stat("started");
        let body =
            format!(r#"{{"messages":[{{"role":"user","content":"{image}"}}],"model":"{model}"}}"#);
        let answer = http::post(forebay.proxy, "/v1/chat/completions", &[JSON], &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(worker.stat("started"), before + 1);
    }
}

/// The table names tests that there are.
#[test]
fn every_test_of_the_table_exists() {
    fn sources(folder: &std::path::Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, all);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                all.push_str(&std::fs::read_to_string(&path).expect("a source"));
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    sources(&root.join("src"), &mut all);
    sources(&root.join("tests"), &mut all);
    let table = include_str!("pitfalls.rs").lines().take_while(|line| line.starts_with("//!"));
    let quoted = table.flat_map(|line| line.split('`'));
    let names: Vec<_> =
        quoted.filter_map(|part| part.split_once("::")).map(|(_, name)| name).collect();
    assert!(names.len() > 20, "{names:?}");
    let missing: Vec<_> =
        names.iter().filter(|name| !all.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
