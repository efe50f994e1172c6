//! A real engine: llama.cpp's server with a tiny model, launched by the process provider. Skipped with a line
//! that says so where it has not been built; `loadtest/engines/llama_cpp.sh` builds it and runs these.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay::decision::engine;
use forebay::types::spec::Engine;

use super::support::http::{self, Answer, Client};
use super::support::{self, Forebay, eventually};

const JSON: (&str, &str) = ("content-type", "application/json");
/// What each engine is started with; more requests would wait in it.
const SLOTS: usize = 4;

/// The server and its model, if both are there.
fn built() -> Option<(PathBuf, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/llama.cpp");
    let (server, model) = (folder.join("build/bin/llama-server"), folder.join("tiny.gguf"));
    if folder.join("built").exists() && server.exists() && model.exists() {
        return Some((server, model));
    }
    eprintln!(
        "skipped: there is no llama-server yet; loadtest/engines/llama_cpp.sh builds it once"
    );
    None
}

/// So many engines behind the proxy.
fn serve(count: usize) -> Option<Forebay> {
    serve_with(count, "")
}

/// The same with further keys of the instance type.
fn serve_with(count: usize, keys: &str) -> Option<Forebay> {
    let (server, model) = built()?;
    let config = format!(
        r#"[proxy]
listen = "{{proxy}}"
[admin]
listen = "{{admin}}"
[provider.local]
kind = "process"
command = ["{}", "-m", "{}", "--host", "127.0.0.1", "--port", "{{port}}", "--alias", "{{model}}",
  "-t", "1", "-np", "{SLOTS}", "-c", "16384", "--metrics", "--slots", "--log-disable"]
[instance_type.cpu]
provider = "local"
max_concurrency = {SLOTS}
engine = "llama.cpp"
{keys}
[[endpoint]]
name = "chat"
[[endpoint.variant]]
name = "v"
model = "tiny"
initial_instance_count = {count}
max_instance_count = 4
health_interval = "200ms"
startup_health_interval = "50ms"
[[endpoint.variant.pool]]
instance_type = "cpu"
"#,
        server.display(),
        model.display()
    );
    let forebay = Forebay::serve(&config);
    forebay.wait_in_service(count);
    Some(forebay)
}

/// A chat of exactly so many tokens.
fn body(tokens: u32, stream: bool) -> String {
    let options = if stream { r#","stream_options":{"include_usage":true}"# } else { "" };
    let messages = r#"[{"role":"user","content":"hi"}]"#;
    format!(
        r#"{{"model":"tiny","max_tokens":{tokens},"ignore_eos":true,"stream":{stream}{options},"messages":{messages}}}"#
    )
}

fn chat(forebay: &Forebay, tokens: u32, stream: bool) -> Answer {
    http::post(forebay.proxy, "/v1/chat/completions", &[JSON], &body(tokens, stream))
}

/// Where the engines in service listen.
fn engines(forebay: &Forebay) -> Vec<std::net::SocketAddr> {
    let address = |instance: &serde_json::Value| {
        let address = instance["address"].as_str().expect("an address");
        address.trim_start_matches("http://").parse().expect("a socket address")
    };
    forebay.in_service().iter().map(address).collect()
}

/// A metric of an engine, by the names of its profile.
fn metric(engine: std::net::SocketAddr, gauges: &[engine::Gauge]) -> f64 {
    let text = http::get(engine, "/metrics").text();
    let value = |gauge: &engine::Gauge| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(gauge.name))?;
        line.split(' ').nth(1)?.parse().ok()
    };
    gauges.iter().find_map(value).unwrap_or_else(|| panic!("none of {gauges:?} in {text}"))
}

fn running(engine: std::net::SocketAddr) -> f64 {
    metric(engine, engine::profile(Engine::LlamaCpp).metrics.running)
}

fn waiting(engine: std::net::SocketAddr) -> f64 {
    metric(engine, engine::profile(Engine::LlamaCpp).metrics.waiting)
}

/// The data of an event stream's events.
fn events(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

fn wait_all_zero(forebay: &Forebay) {
    eventually("all counters back at zero", || {
        let left = ["forebay_outstanding_requests", "forebay_queued_requests"];
        left.iter().all(|name| forebay.gauge(name) == 0.0).then_some(())
    });
}

#[test]
fn it_answers_streams_and_lists_its_model() {
    let Some(forebay) = serve(1) else { return };
    let models = http::get(forebay.proxy, "/v1/models").json();
    let ids: Vec<_> = models["data"].as_array().expect("a list").iter().map(|m| &m["id"]).collect();
    assert!(ids.iter().any(|id| *id == "tiny"), "{models}");

    let plain = chat(&forebay, 20, false);
    assert_eq!((plain.status, plain.complete), (200, true), "{}", plain.text());
    assert_eq!(plain.json()["usage"]["completion_tokens"], 20);
    assert_eq!(plain.header("x-forebay-instance-type"), Some("cpu"));

    let stream = chat(&forebay, 20, true);
    assert_eq!((stream.status, stream.complete), (200, true), "{}", stream.text());
    let events = events(&stream);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let usage: serde_json::Value = serde_json::from_str(&events[events.len() - 2]).expect("JSON");
    assert_eq!(usage["usage"]["completion_tokens"], 20, "{usage}");
    assert!(events.len() > 10, "{} events of a stream of 20 tokens", events.len());

    // Whatever else the engine has goes through as it is; so do its own errors, which are the client's.
    let tokens = http::post(forebay.proxy, "/tokenize", &[JSON], r#"{"content":"abc"}"#);
    assert!(tokens.status == 200 && tokens.json()["tokens"].is_array(), "{}", tokens.text());
    let long = format!(r#"{{"model":"tiny","prompt":"{}"}}"#, "a ".repeat(5_000));
    let refused = http::post(forebay.proxy, "/v1/completions", &[JSON], &long);
    assert_eq!(
        (refused.status, refused.header("x-forebay-error")),
        (400, None),
        "{}",
        refused.text()
    );
    wait_all_zero(&forebay);
}

#[test]
fn a_stream_whose_client_leaves_frees_its_slot() {
    let Some(forebay) = serve(1) else { return };
    let engine = engines(&forebay)[0];
    // It would take seconds.
    let tokens = 3_500;
    let mut client = Client::connect(forebay.proxy);
    client.send("POST", "/v1/chat/completions", &[JSON], body(tokens, true).as_bytes());
    assert_eq!(client.read_head().status, 200);
    assert!(matches!(client.read_chunk(), Some(Ok(_))));
    assert_eq!(running(engine), 1.0);
    drop(client);
    let left = Instant::now();
    eventually("the slot is free", || (running(engine) == 0.0).then_some(()));
    let took = left.elapsed();
    eprintln!("llama.cpp: a cancelled stream's slot was free after {took:?}");
    let slots = http::get(engine, "/slots").json();
    assert_eq!(slots.as_array().map(Vec::len), Some(SLOTS));
    let whole = chat(&forebay, tokens, false);
    let whole = whole.json()["timings"]["predicted_ms"].as_f64().expect("a time");
    assert!(took.as_secs_f64() * 1_000.0 < whole / 2.0, "{took:?}, of {whole} ms to the end");
    wait_all_zero(&forebay);
}

#[test]
fn what_exceeds_its_slots_waits_at_the_proxy_and_never_in_the_engine() {
    let Some(forebay) = &serve(1) else { return };
    let engine = engines(forebay)[0];
    let over = AtomicBool::new(false);
    let (most_running, most_waiting, most_queued) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = (0.0_f64, 0.0_f64, 0.0_f64);
            while !over.load(Ordering::Relaxed) {
                most.0 = most.0.max(running(engine));
                most.1 = most.1.max(waiting(engine));
                most.2 = most.2.max(forebay.gauge("forebay_queued_requests"));
            }
            most
        });
        let clients: Vec<_> =
            (0..24).map(|n| scope.spawn(move || chat(forebay, 150, n % 2 == 0))).collect();
        let answers: Vec<_> = clients.into_iter().map(|c| c.join().expect("no panic")).collect();
        over.store(true, Ordering::Relaxed);
        for answer in answers {
            assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
        }
        watcher.join().expect("no panic")
    });
    eprintln!(
        "llama.cpp: 24 requests at once: at most {most_running} ran, {most_waiting} waited in the engine, \
         {most_queued} at the proxy"
    );
    assert_eq!((most_running, most_waiting), (SLOTS as f64, 0.0));
    assert!(most_queued >= 10.0, "only {most_queued} of 20 were seen in the queue");
    wait_all_zero(forebay);
}

#[test]
fn a_killed_engine_is_replaced_and_its_clients_see_no_error() {
    let Some(forebay) = serve(2) else { return };
    let addresses = engines(&forebay);
    let victim = forebay.in_service().remove(0);
    let id = victim["id"].as_str().expect("an id").to_owned();
    let address = addresses[0];
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(|| chat(&forebay, 600, false))).collect();
        eventually("both work", || addresses.iter().all(|e| running(*e) >= 2.0).then_some(()));
        let killed = Instant::now();
        support::signal(pid_of(&id), "KILL");
        for client in clients {
            let answer = client.join().expect("no panic");
            assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
            assert_eq!(answer.json()["usage"]["completion_tokens"], 600);
        }
        eprintln!("llama.cpp: all answered {:?} after kill -9", killed.elapsed());
        eventually("another one is in service", || {
            let now = forebay.in_service();
            (now.len() == 2 && now.iter().all(|i| i["id"] != id.as_str())).then_some(())
        });
    });
    let replays = forebay.gauge_where("forebay_retries_total", "reason=\"replay\"");
    assert!(replays >= 2.0, "only {replays} replayed");
    assert!(!engines(&forebay).contains(&address) || running(address) == 0.0);
    eventually("all are reached", || {
        let answer = chat(&forebay, 5, true);
        assert_eq!((answer.status, answer.complete), (200, true));
        engines(&forebay).iter().all(|engine| decoded(*engine) > 0.0).then_some(())
    });
    wait_all_zero(&forebay);
}

/// It breaks off what runs when it is stopped, so it is stopped when nothing does.
#[test]
fn a_drained_engine_finishes_its_streams() {
    let Some(forebay) = serve(2) else { return };
    let addresses = engines(&forebay);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| chat(&forebay, 600, true))).collect();
        eventually("both work", || addresses.iter().all(|e| running(*e) >= 1.0).then_some(()));
        let scaled = forebay.cli(&["scale", "chat", "1"]);
        assert!(scaled.status.success(), "{}", String::from_utf8_lossy(&scaled.stderr));
        for client in clients {
            let answer = client.join().expect("no panic");
            assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
            assert_eq!(events(&answer).last().map(String::as_str), Some("[DONE]"));
        }
    });
    let done = Instant::now();
    eventually("one is left", || (forebay.instances().len() == 1).then_some(()));
    eprintln!("llama.cpp: the drained one had ended {:?} after its last answer", done.elapsed());
    assert_eq!(chat(&forebay, 5, false).status, 200);
}

/// Tokens that an engine has made.
fn decoded(engine: std::net::SocketAddr) -> f64 {
    const MADE: engine::Gauge =
        engine::Gauge { name: "llamacpp:tokens_predicted_total", label: None };
    metric(engine, &[MADE])
}

/// The process of an instance, which carries its id in its environment.
fn pid_of(id: &str) -> u32 {
    let mark = format!("FOREBAY_INSTANCE={id}").into_bytes();
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let found = pids.into_iter().find(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark)
    });
    found.unwrap_or_else(|| panic!("no process of {id}"))
}

/// Documented in the profile: were it to change, the profile should.
#[test]
fn its_health_is_where_the_profile_says() {
    let Some(forebay) = serve(1) else { return };
    let engine = engines(&forebay)[0];
    let profile = engine::profile(Engine::LlamaCpp);
    assert_eq!(http::get(engine, profile.health_path).status, 200);
    for (path, _) in profile.misleading_paths {
        assert_eq!(http::get(engine, path).status, 404);
    }
    let mut idle = Client::connect(engine);
    idle.send("GET", "/health", &[], b"");
    assert_eq!(idle.read_answer().status, 200);
    let since = Instant::now();
    assert!(idle.is_closed());
    let (took, limit) = (since.elapsed(), profile.keep_alive.expect("known").limit);
    assert!(took + Duration::from_millis(200) > limit, "closed after {took:?}, not {limit:?}");
}

/// Asked by the proxy itself, it is never given more than it has slots; by somebody else, it queues.
#[test]
fn the_manager_reads_its_metrics() {
    let Some(forebay) = &serve_with(1, "scrape_interval = \"100ms\"") else { return };
    let engine = engines(forebay)[0];
    let told = |name: &str| forebay.in_service()[0]["signals"][name].as_f64();
    eventually("it is idle", || (told("running") == Some(0.0)).then_some(()));
    assert_eq!((told("waiting"), told("kv_cache")), (Some(0.0), None), "it tells no KV cache");
    // Past the proxy: two more than it has slots, until they are dropped.
    let streams: Vec<Client> = (0..SLOTS + 2)
        .map(|_| {
            let mut client = Client::connect(engine);
            client.send("POST", "/v1/chat/completions", &[JSON], body(3_500, true).as_bytes());
            client
        })
        .collect();
    eventually("what runs and what waits in it is told", || {
        (told("running") == Some(SLOTS as f64) && told("waiting") == Some(2.0)).then_some(())
    });
    assert_eq!(forebay.gauge("forebay_engine_waiting_requests"), 2.0);
    drop(streams);
    eventually("it is idle again", || (told("running") == Some(0.0)).then_some(()));
    let failed = forebay.gauge_where("forebay_scrapes_total", "outcome=\"failed\"");
    assert_eq!(failed, 0.0);
}
