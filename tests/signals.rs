//! What instances tell of their own load, through the real binary: the worker's exporter, pages in the formats of
//! other engines and of GPU exporters, `nvidia-smi`, and servers that tell badly or not at all.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]
#![allow(clippy::float_cmp, reason = "what is told is shown as it was told")]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::http::{self, Client};
use support::pki::Authority;
use support::{Forebay, Process, by_hand, eventually, free_port, local, write_config};

const JSON: (&str, &str) = ("content-type", "application/json");
const LONG_STREAM: &str =
    r#"{"model":"m","stream":true,"max_tokens":1000,"messages":[{"role":"user","content":"hi"}]}"#;

const HEAD: &str = "[proxy]\nlisten = \"{proxy}\"\n[admin]\nlisten = \"{admin}\"\n";

/// One endpoint `e/v` over pools of these types, so many instances in all. `extra` are further keys of the variant.
fn endpoint(types: &[&str], count: usize, extra: &str) -> String {
    let pools = types.iter().enumerate().map(|(n, kind)| {
        format!("[[endpoint.variant.pool]]\ninstance_type = \"{kind}\"\npriority = {}\n", n + 1)
    });
    format!(
        "[[endpoint]]\nname = \"e\"\n[[endpoint.variant]]\nname = \"v\"\nmodel = \"m\"\n\
         initial_instance_count = {count}\nmax_instance_count = 8\nfallback = \"at_once\"\n\
         health_interval = \"100ms\"\nstartup_health_interval = \"50ms\"\n{extra}\n{}",
        pools.collect::<String>()
    )
}

/// Static types, each with one server and further keys of its own.
fn servers(types: &[(&str, SocketAddr, &str)]) -> String {
    let types = types.iter().map(|(kind, address, keys)| {
        format!(
            "[instance_type.\"{kind}\"]\nprovider = \"existing\"\nmax_concurrency = 4\n\
             addresses = [\"http://{address}\"]\nscrape_interval = \"100ms\"\n{keys}\n"
        )
    });
    format!("[provider.existing]\nkind = \"static\"\n{}", types.collect::<String>())
}

/// Workers of ours with four slots each, ten tokens a second.
fn workers(keys: &str) -> String {
    format!(
        "[provider.local]\nkind = \"process\"\n\
         command = [\"{{forebay}}\", \"worker\", \"--listen\", \"{{address}}\", \"--instance-type\", \
         \"{{instance_type}}\", \"--model\", \"{{model}}\", \"--max-concurrency\", \"4\", \
         \"--tokens-per-second\", \"10\"]\n\
         [instance_type.\"ml.p5\"]\nprovider = \"local\"\ncapacity = 1\nmax_concurrency = 8\n{keys}\n\
         [instance_type.\"ml.g6\"]\nprovider = \"local\"\nmax_concurrency = 8\n"
    )
}

/// A healthy server that answers a GET of each of these paths with a page, and anything else with 404.
fn pages(pages: &'static [(&'static str, &'static str)]) -> SocketAddr {
    by_hand::start(move |head, stream| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let healthy = ["/ping", "/health", "/v2/health/ready"].contains(&path);
        let page = pages.iter().find(|(other, _)| *other == path).map(|(_, page)| *page);
        drop(match page.or(healthy.then_some("")) {
            Some(page) => stream.write_all(
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len())
                    .as_bytes(),
            ),
            None => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        });
    })
}

/// The series of a gauge, by instance type.
fn series(forebay: &Forebay, name: &str) -> Vec<(String, f64)> {
    let text = http::get(forebay.admin, "/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let one = |line: &str| {
        let kind = line.split("InstanceType=\"").nth(1)?.split('"').next()?;
        Some((kind.to_owned(), line.rsplit(' ').next()?.parse().ok()?))
    };
    lines.filter_map(one).collect()
}

fn of(kind: &str, value: f64) -> Vec<(String, f64)> {
    vec![(kind.to_owned(), value)]
}

fn told(forebay: &Forebay, kind: &str) -> Value {
    let all = forebay.in_service();
    let found = all.into_iter().find(|instance| instance["instance_type"] == kind);
    found.unwrap_or_default()["signals"].take()
}

fn explained(forebay: &Forebay) -> String {
    String::from_utf8_lossy(&forebay.cli(&["explain", "e"]).stdout).into_owned()
}

/// A stream that goes on until it is dropped.
fn hold(forebay: &Forebay) -> Client {
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &[JSON], LONG_STREAM.as_bytes());
    assert_eq!(client.read_head().status, 200);
    client
}

#[test]
fn the_workers_exporter_is_shown_by_type_and_a_type_that_tells_nothing_has_no_series() {
    let engine = "engine = \"vllm\"\nscrape_interval = \"100ms\"";
    let zero = "min_instance_count = 0";
    let config = HEAD.to_owned() + &workers(engine) + &endpoint(&["ml.p5", "ml.g6"], 2, zero);
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(2);
    // Least outstanding: half of them at each.
    let streams: Vec<Client> = (0..6).map(|_| hold(&forebay)).collect();
    let running = json!({"running": 3.0, "waiting": 0.0, "kv_cache": 0.75});
    eventually("it tells what it has", || (told(&forebay, "ml.p5") == running).then_some(()));
    assert_eq!(told(&forebay, "ml.g6"), Value::Null, "no engine is named for it");
    assert_eq!(series(&forebay, "forebay_engine_running_requests"), of("ml.p5", 3.0));
    assert_eq!(series(&forebay, "forebay_engine_waiting_requests"), of("ml.p5", 0.0));
    assert_eq!(series(&forebay, "forebay_kv_cache_utilization_ratio"), of("ml.p5", 0.75));
    assert_eq!(series(&forebay, "forebay_gpu_utilization_ratio"), []);
    let ok = forebay.gauge_where("forebay_scrapes_total", "source=\"engine\",outcome=\"ok\"");
    assert!(ok >= 1.0, "{ok}");
    drop(streams);
    eventually("it is idle", || (told(&forebay, "ml.p5")["running"] == 0.0).then_some(()));
    // Fallback leaves first, so both do; nothing is left of what the preferred one told.
    assert!(forebay.cli(&["scale", "e", "0"]).status.success());
    eventually("no series is left", || {
        series(&forebay, "forebay_engine_running_requests").is_empty().then_some(())
    });
    forebay.wait_all_zero();
}

#[test]
fn a_policy_scales_by_what_engines_tell() {
    let engine = "engine = \"vllm\"\nscrape_interval = \"100ms\"";
    let policy = "[[endpoint.variant.scaling]]\nname = \"cache\"\nexpression = \"kv\"\ntarget = 40.0\n\
         metrics.kv = { metric = \"KVCacheUtilization\", instance_type = \"ml.p5\" }\nperiod = \"1s\"\n\
         scale_out_periods = 2\nscale_out_cooldown = \"60s\"\nscale_in = false\n";
    let config = HEAD.to_owned() + &workers(engine) + &endpoint(&["ml.p5", "ml.g6"], 1, policy);
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(1);
    let streams: Vec<Client> = (0..3).map(|_| hold(&forebay)).collect();
    // ceil(1 × 75 / 40).
    eventually("another one", || (forebay.in_service().len() == 2).then_some(()));
    let explained = explained(&forebay);
    assert!(explained.contains("policy cache takes e/v from 1 to 2 instances: "), "{explained}");
    drop(streams);
}

// Composed after what each documents, not recorded from one that runs.
const VLLM: &str = include_str!("../src/decision/signals/testdata/vllm.txt");
const SGLANG: &str = include_str!("../src/decision/signals/testdata/sglang.txt");
const TGI: &str = include_str!("../src/decision/signals/testdata/tgi.txt");
const TRITON: &str = include_str!("../src/decision/signals/testdata/triton.txt");
const DCGM: &str = include_str!("../src/decision/signals/testdata/dcgm.txt");

#[test]
fn other_engines_and_a_gpu_exporter_are_read_as_they_document_themselves() {
    let (vllm, sglang) = (pages(&[("/metrics", VLLM)]), pages(&[("/metrics", SGLANG)]));
    let (tgi, triton) = (pages(&[("/prometheus", TGI)]), pages(&[]));
    let triton_metrics = pages(&[("/metrics", TRITON)]);
    let dcgm = pages(&[("/metrics", DCGM)]);
    let exporter = format!("gpu_metrics = \"http://{{host}}:{}/metrics\"\n", dcgm.port());
    let port = format!("engine = \"triton\"\nmetrics_port = {}\n", triton_metrics.port());
    let config = HEAD.to_owned()
        + &servers(&[
            ("ml.vllm", vllm, &format!("engine = \"vllm\"\n{exporter}")),
            (
                "ml.sglang",
                sglang,
                &format!("engine = \"sglang\"\n{exporter}gpu_labels = {{ pod = \"i-2\" }}"),
            ),
            // No engine, so the place has to be said; the names are known all the same.
            ("ml.tgi", tgi, "metrics_path = \"/prometheus\""),
            ("ml.triton", triton, &port),
        ])
        + &endpoint(
            &["ml.vllm", "ml.sglang", "ml.tgi", "ml.triton"],
            4,
            "health_path = \"/health\"",
        );
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(4);
    for (kind, signals) in [
        (
            "ml.vllm",
            json!({"running": 21.0, "waiting": 3.0, "kv_cache": 0.375, "gpu": 0.6, "gpu_memory": 0.5}),
        ),
        (
            "ml.sglang",
            json!({"running": 20.0, "waiting": 2.0, "kv_cache": 0.5, "gpu": 0.3, "gpu_memory": 0.25}),
        ),
        ("ml.tgi", json!({"running": 8.0, "waiting": 5.0})),
        ("ml.triton", json!({"waiting": 14.0, "gpu": 0.5, "gpu_memory": 0.5})),
    ] {
        eventually(&format!("{kind} tells {signals}"), || {
            (told(&forebay, kind) == signals).then_some(())
        });
    }
    let gpus = [("ml.sglang", 0.3), ("ml.triton", 0.5), ("ml.vllm", 0.6)];
    let gpus = gpus.map(|(kind, value)| (kind.to_owned(), value));
    assert_eq!(series(&forebay, "forebay_gpu_utilization_ratio"), gpus);
    let kinds: Vec<_> =
        series(&forebay, "forebay_gpu_memory_utilization_ratio").into_iter().map(|s| s.0).collect();
    assert_eq!(kinds, ["ml.sglang", "ml.triton", "ml.vllm"], "none for a type without GPUs");
}

/// `forebay serve` that finds programs in `path` alone.
fn serve_with_path(config: &str, dir: tempfile::TempDir, path: &Path) -> Forebay {
    let (proxy, admin) = (local(free_port()), local(free_port()));
    let file = dir.path().join("forebay.toml");
    write_config(&file, config, proxy, admin);
    let args = ["serve", "--config", file.to_str().expect("text")];
    let env = [("PATH", path.to_str().expect("text"))];
    let process = Process::start_with(&args, dir.path(), "forebay.log", &env);
    Forebay::view(process, proxy, admin, dir)
}

/// A program of that name, in `dir`.
fn program(dir: &Path, name: &str, script: &str) {
    let path = dir.join(name);
    std::fs::write(&path, script).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
}

fn by_nvidia_smi() -> String {
    let keys = "scrape_interval = \"100ms\"\ngpu_metrics = \"nvidia-smi\"";
    HEAD.to_owned() + &workers(keys) + &endpoint(&["ml.p5"], 1, "")
}

#[test]
fn nvidia_smi_tells_of_the_workers_of_a_process_provider() {
    let dir = tempfile::tempdir().expect("dir");
    let printed = include_str!("../src/decision/signals/testdata/nvidia_smi.csv");
    let columns = "index,uuid,utilization.gpu,memory.used,memory.total";
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = \"--query-gpu={columns}\" ] || exit 6\n\
         [ \"$2\" = \"--format=csv,noheader,nounits\" ] || exit 7\n\
         while read -r line; do echo \"$line\"; done <<'END'\n{printed}END\n"
    );
    program(dir.path(), "nvidia-smi", &script);
    let path = dir.path().to_owned();
    let forebay = serve_with_path(&by_nvidia_smi(), dir, &path);
    forebay.wait_in_service(1);
    let gpus = json!({"gpu": 0.5, "gpu_memory": 0.5});
    eventually("its GPUs are told of", || (told(&forebay, "ml.p5") == gpus).then_some(()));
    assert_eq!(series(&forebay, "forebay_gpu_utilization_ratio"), of("ml.p5", 0.5));
}

#[test]
fn without_nvidia_smi_or_with_one_that_fails_there_is_a_reason_and_no_series() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().to_owned();
    let forebay = serve_with_path(&by_nvidia_smi(), dir, &path);
    forebay.wait_in_service(1);
    eventually("it is said", || {
        explained(&forebay).contains("nvidia-smi: cannot be run: No such file").then_some(())
    });
    assert_eq!(series(&forebay, "forebay_gpu_utilization_ratio"), []);
    let problem = &forebay.in_service()[0]["signals_problem"];
    assert!(problem.as_str().is_some_and(|text| text.contains("cannot be run")), "{problem}");
    let failed = forebay.gauge_where("forebay_scrapes_total", "source=\"gpu\",outcome=\"failed\"");
    assert!(failed >= 1.0, "{failed}");
    let script =
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate'\nexit 9\n";
    program(&path, "nvidia-smi", script);
    eventually("its words are said", || {
        let said = "ended with exit status: 9: NVIDIA-SMI has failed because";
        explained(&forebay).contains(said).then_some(())
    });
    assert_eq!(forebay.in_service().len(), 1, "nothing follows from it");
}

#[test]
fn an_exporter_that_hangs_delays_no_probe_no_round_and_no_request() {
    let (probes, hangs, gave_up) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (count, begun, ended) = (probes.clone(), hangs.clone(), gave_up.clone());
    let address = by_hand::start(move |head, stream| {
        if head.starts_with("get /metrics") {
            begun.store(true, Ordering::SeqCst);
            // Until the other side has had enough.
            let _ = stream.read(&mut [0]);
            ended.store(true, Ordering::SeqCst);
            return;
        }
        if head.starts_with("get /health") {
            count.fetch_add(1, Ordering::SeqCst);
        }
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"));
    });
    let second = pages(&[]);
    let config = HEAD.to_owned()
        + &servers(&[("ml.a", address, "engine = \"vllm\""), ("ml.b", second, "")])
        + &endpoint(&["ml.a", "ml.b"], 1, "health_path = \"/health\"");
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(1);
    eventually("a scrape hangs", || hangs.load(Ordering::SeqCst).then_some(()));
    let before = probes.load(Ordering::SeqCst);
    assert_eq!(http::get(forebay.proxy, "/anything").status, 200);
    assert!(forebay.cli(&["scale", "e", "2"]).status.success());
    forebay.wait_in_service(2);
    eventually("probes go on", || (probes.load(Ordering::SeqCst) >= before + 3).then_some(()));
    assert!(!gave_up.load(Ordering::SeqCst), "all of that while the scrape hung");
    eventually("it is given up", || gave_up.load(Ordering::SeqCst).then_some(()));
    eventually("and said", || explained(&forebay).contains("no answer in 5s").then_some(()));
    assert_eq!(forebay.in_service().len(), 2);
}

#[test]
fn garbage_and_floods_are_named_and_harm_nobody() {
    let garbage = pages(&[("/metrics", "\u{0}{{{\n# TYPE\nvllm:num_requests_running one\n")]);
    let flood = by_hand::start(|head, stream| {
        if head.starts_with("get /metrics") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 8_192]).is_ok() {}
            return;
        }
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    });
    let config = HEAD.to_owned()
        + &servers(&[
            ("ml.garbage", garbage, "engine = \"vllm\""),
            ("ml.flood", flood, "engine = \"vllm\""),
        ])
        + &endpoint(&["ml.garbage", "ml.flood"], 2, "health_path = \"/health\"");
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(2);
    for said in ["has none of the metrics of vLLM", "sends more than 4 MiB"] {
        eventually(said, || explained(&forebay).contains(said).then_some(()));
    }
    assert_eq!(forebay.in_service().len(), 2);
    assert_eq!(series(&forebay, "forebay_engine_running_requests"), []);
}

/// A worker that says this with each of its answers, and what it was asked for.
fn says(header: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let address = by_hand::healthy(move |head, stream| {
        seen.lock().expect("unpoisoned").push(head.to_owned());
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{header}\r\n\r\nok");
        drop(stream.write_all(answer.as_bytes()));
    });
    (address, heads)
}

#[test]
fn load_reports_that_come_with_answers_are_kept_for_the_manager_in_all_their_forms() {
    for (header, signals) in [
        (
            "Endpoint-Load-Metrics: TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=2.0",
            json!({"waiting": 2.0, "kv_cache": 0.25}),
        ),
        (
            "endpoint-load-metrics: JSON {\"named_metrics\": {\"kv_cache_utilization\": 0.5}}",
            json!({"kv_cache": 0.5}),
        ),
        // A message with num_requests_waiting = 3 in its named metrics.
        (
            "endpoint-load-metrics: BIN Qh8KFG51bV9yZXF1ZXN0c193YWl0aW5nEQAAAAAAAAhA",
            json!({"waiting": 3.0}),
        ),
    ] {
        let (address, heads) = says(header);
        let forebay = Forebay::in_front_of_addresses(&[(address, 4)], "");
        let client = ("endpoint-load-metrics-format", "TEXT");
        let answer = http::request(forebay.proxy, "GET", "/x", &[client], b"");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("endpoint-load-metrics"), None, "it is for this hop");
        eventually("it is told", || {
            // The report of the request itself comes with what it said.
            let served = forebay.status()["proxies"][0]["outstanding"] == 0;
            (served && told(&forebay, "ml.t0") == signals).then_some(())
        });
        let head = heads.lock().expect("unpoisoned")[0].clone();
        assert!(head.contains("endpoint-load-metrics-format: text"), "the client's own: {head}");
    }
}

#[test]
fn workers_are_asked_for_load_reports_only_where_that_is_configured() {
    let ours = || support::Worker::start(&["--max-concurrency", "4"]);
    let (first, second) = (ours(), ours());
    let (quiet, heads) = says("x: y");
    let ask = |form: &str| format!("load_metrics_format = \"{form}\"\n");
    let (json_form, text_form) = (ask("json"), ask("text"));
    let types = [
        (first.address, 4, json_form.as_str()),
        (second.address, 4, text_form.as_str()),
        (quiet, 4, ""),
    ];
    let forebay = Forebay::in_front_of_types(&types, "");
    eventually("all were asked", || {
        let answer = http::post(forebay.proxy, "/invocations", &[JSON], "{}");
        assert_eq!((answer.status, answer.header("endpoint-load-metrics")), (200, None));
        let ours = [&first, &second].iter().all(|worker| worker.stat("completed") > 0);
        (ours && !heads.lock().expect("unpoisoned").is_empty()).then_some(())
    });
    // The answer's own request is in its slot while it is answered.
    let signals = json!({"waiting": 0.0, "kv_cache": 0.25});
    for kind in ["ml.t0", "ml.t1"] {
        eventually(&format!("{kind} is told of"), || {
            (told(&forebay, kind) == signals).then_some(())
        });
    }
    let both = ["ml.t0", "ml.t1"].map(|kind| (kind.to_owned(), 0.25));
    assert_eq!(series(&forebay, "forebay_kv_cache_utilization_ratio"), both);
    let heads = heads.lock().expect("unpoisoned");
    assert!(heads.iter().all(|head| !head.contains("endpoint-load-metrics")), "{heads:?}");
}

#[test]
fn engines_behind_tls_are_read_over_tls() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("dir"));
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).expect("written");
    authority.certify(dir.path(), "worker", &["127.0.0.1"]);
    let at = |file: &str| dir.path().join(file).display().to_string();
    let (cert, key) = (at("worker.pem"), at("worker.key"));
    let ours = || {
        let flags = ["--tls-cert", &cert, "--tls-key", &key, "--max-concurrency", "4"];
        support::Worker::start(&flags)
    };
    let workers = [("ml.http1", ours()), ("ml.h2", ours())];
    let types = workers.iter().map(|(kind, worker)| {
        format!(
            "[instance_type.\"{kind}\"]\nprovider = \"existing\"\nprotocol = \"{}\"\n\
             addresses = [\"https://{}\"]\nengine = \"vllm\"\nscrape_interval = \"100ms\"\n\
             tls.ca_file = {:?}\n",
            kind.trim_start_matches("ml."),
            worker.address,
            at("ca.pem")
        )
    });
    let config = HEAD.to_owned()
        + "[provider.existing]\nkind = \"static\"\n"
        + &types.collect::<String>()
        + &endpoint(&["ml.http1", "ml.h2"], 2, "");
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(2);
    let idle = json!({"running": 0.0, "waiting": 0.0, "kv_cache": 0.0});
    for (kind, _) in &workers {
        eventually(&format!("{kind} tells"), || (told(&forebay, kind) == idle).then_some(()));
    }
}
