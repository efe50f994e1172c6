//! Instances that tell, hang, flood and come back, in real time but for the pauses between questions.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{advance, timeout};

use super::*;
use crate::types::signals::Signals;
use crate::types::spec::{
    Engine, GpuSource, InstanceTypeSpec, OnClientAbort, RequestPolicy, RoutingStrategy, SignalSpec,
};
use crate::types::table::{BackendRoute, EndpointRoute, TableVersion, VariantRoute};
use crate::types::{Address, Generation, Protocol};

const LONG: Duration = Duration::from_secs(20);
const VLLM: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n";

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

fn backend(id: &str, address: Address, engine: Option<Engine>) -> BackendRoute {
    BackendRoute {
        instance: name(id),
        generation: Generation(1),
        instance_type: name("t"),
        address,
        model: name("m"),
        copies: 1,
        max_concurrency: 4,
        protocol: Protocol::Http1,
        tls: None,
        engine,
        on_client_abort: OnClientAbort::default(),
        load_metrics: None,
        recoveries: 0,
    }
}

fn table(backends: Vec<BackendRoute>) -> Arc<RoutingTable> {
    let variant = VariantRoute {
        name: name("v"),
        model: name("m"),
        weight: 1.0,
        strategy: RoutingStrategy::default(),
        queue_limit: 1,
        queue_timeout_ms: 1,
        requests: RequestPolicy::default(),
        backends,
    };
    Arc::new(RoutingTable {
        format: RoutingTable::FORMAT,
        version: TableVersion { epoch: 1, revision: 1 },
        endpoints: vec![Arc::new(EndpointRoute { name: name("e"), variants: vec![variant] })],
    })
}

fn spec(signals: SignalSpec) -> Arc<FleetSpec> {
    let kind = InstanceTypeSpec {
        provider: name("p"),
        capacity: None,
        max_concurrency: 4,
        copies: 1,
        protocol: Protocol::Http1,
        tls: None,
        on_client_abort: OnClientAbort::default(),
        addresses: vec![],
        price_per_hour: None,
        watts: None,
        engine: None,
        signals,
    };
    Arc::new(FleetSpec { instance_types: [(name("t"), kind)].into(), endpoints: vec![] })
}

fn every(millis: u64) -> SignalSpec {
    SignalSpec { interval: Duration::from_millis(millis), ..SignalSpec::default() }
}

/// What a server does with a connection.
#[derive(Clone, Copy)]
enum Habit {
    Says(&'static str),
    Floods,
    Hangs,
}

/// Serves connections and counts them.
async fn server(tasks: &Tasks, habit: Habit) -> (Address, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = Address::http(listener.local_addr().expect("bound"));
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, more) = (asked.clone(), tasks.clone());
    tasks.spawn_until_stopped("server", async move {
        loop {
            let (mut socket, _) = listener.accept().await.expect("accepts");
            count.fetch_add(1, Ordering::SeqCst);
            more.spawn_until_stopped("connection", async move {
                let mut request = [0; 2048];
                let _ = socket.read(&mut request).await;
                match habit {
                    Habit::Says(answer) => _ = socket.write_all(answer.as_bytes()).await,
                    Habit::Floods => {
                        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                        while socket.write_all(&[b'x'; 8_192]).await.is_ok() {}
                    }
                    Habit::Hangs => std::future::pending().await,
                }
            });
        }
    });
    (address, asked)
}

/// A scraper with everything that it is tied to.
struct World {
    scraper: Scraper,
    tables: watch::Sender<Arc<RoutingTable>>,
    spec: watch::Sender<Arc<FleetSpec>>,
    events: mpsc::Receiver<Event>,
}

fn world(backends: Vec<BackendRoute>, signals: SignalSpec) -> World {
    let (tables, follow_tables) = watch::channel(table(backends));
    let (specs, follow_spec) = watch::channel(spec(signals));
    let (sender, events) = mpsc::channel(8);
    let scraper = Scraper::start(
        follow_tables,
        follow_spec,
        sender,
        FleetMetrics::new(),
        Connectors::default(),
    );
    World { scraper, tables, spec: specs, events }
}

impl World {
    async fn next(&mut self) -> (String, Signals, Option<String>) {
        match timeout(LONG, self.events.recv()).await.expect("in time") {
            Some(Event::Signals { instance, signals, problem, .. }) => {
                (instance.to_string(), signals, problem)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn ok(body: &str) -> &'static str {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").leak()
}

#[tokio::test]
async fn what_an_engine_tells_comes_again_and_again_until_it_leaves_the_table() {
    let tasks = Tasks::new();
    let (address, _) = server(&tasks, Habit::Says(ok(VLLM))).await;
    let mut world = world(vec![backend("i-1", address.clone(), Some(Engine::Vllm))], every(20));
    let told = Signals { running: Some(3.0), waiting: Some(1.0), ..Signals::default() };
    for _ in 0..3 {
        assert_eq!(world.next().await, ("i-1".to_owned(), told, None));
    }
    // What was under way to one that has left is told no more once another has taken its place.
    world.tables.send_replace(table(vec![backend("i-2", address, Some(Engine::Vllm))]));
    let second = async { while world.next().await.0 != "i-2" {} };
    timeout(LONG, second).await.expect("the new one is asked");
    for _ in 0..5 {
        assert_eq!(world.next().await.0, "i-2");
    }
    // Nor is one asked any more whose type is not to be asked, from the next reload on.
    world.spec.send_replace(spec(every(0)));
    let (other, _) = server(&tasks, Habit::Says(ok(VLLM))).await;
    let mut told = vec![backend("i-2", other.clone(), Some(Engine::Vllm))];
    told.push(BackendRoute {
        instance_type: name("u"),
        ..backend("i-3", other, Some(Engine::Vllm))
    });
    let mut both = FleetSpec::clone(&world.spec.borrow());
    let kind = InstanceTypeSpec { signals: every(20), ..both.instance_types["t"].clone() };
    both.instance_types.insert(name("u"), kind);
    world.spec.send_replace(Arc::new(both));
    world.tables.send_replace(table(told));
    let third = async { while world.next().await.0 != "i-3" {} };
    timeout(LONG, third).await.expect("the third is asked");
    for _ in 0..5 {
        assert_eq!(world.next().await.0, "i-3");
    }
    world.scraper.stop().await;
    tasks.stop(LONG).await;
}

#[tokio::test]
async fn what_is_wrong_with_an_answer_is_said() {
    let tasks = Tasks::new();
    let llama = Some(Engine::LlamaCpp);
    for (habit, engine, part) in [
        (
            Habit::Says("HTTP/1.1 501 No\r\ncontent-length: 0\r\n\r\n"),
            llama,
            "/metrics: answered 501 Not Implemented (llama.cpp tells its metrics only when started with --metrics)",
        ),
        (
            Habit::Says(ok("garbage {{{ 1\n")),
            Some(Engine::Vllm),
            "/metrics has none of the metrics of vLLM",
        ),
        (Habit::Says("garbage"), Some(Engine::Vllm), "invalid HTTP"),
        (Habit::Says(""), Some(Engine::Vllm), "connection closed"),
        (Habit::Floods, Some(Engine::Vllm), "/metrics: sends more than 4 MiB"),
    ] {
        let (address, _) = server(&tasks, habit).await;
        let mut world = world(vec![backend("i-1", address, engine)], every(20));
        let (_, signals, problem) = world.next().await;
        assert!(signals.is_empty(), "{signals:?}");
        let problem = problem.expect("a problem");
        assert!(problem.contains(part), "{problem} has no {part}");
        world.scraper.stop().await;
    }
    tasks.stop(LONG).await;
}

#[tokio::test]
async fn one_that_hangs_holds_up_no_other_and_is_asked_by_one_question_at_a_time() {
    let tasks = Tasks::new();
    let (hangs, asked) = server(&tasks, Habit::Hangs).await;
    let (tells, _) = server(&tasks, Habit::Says(ok(VLLM))).await;
    let backends = vec![
        backend("i-hangs", hangs, Some(Engine::Vllm)),
        backend("i-tells", tells, Some(Engine::Vllm)),
    ];
    let mut world = world(backends, every(10));
    for _ in 0..5 {
        let (id, _, problem) = world.next().await;
        assert_eq!((id.as_str(), problem), ("i-tells", None));
    }
    assert!(asked.load(Ordering::SeqCst) <= 1, "{asked:?}");
    let gives_up = async {
        loop {
            let (id, _, problem) = world.next().await;
            if id == "i-hangs" {
                return problem.expect("a problem");
            }
        }
    };
    let problem = timeout(LONG, gives_up).await.expect("given up");
    assert!(problem.contains("no answer in 5s"), "{problem}");
    world.scraper.stop().await;
    tasks.stop(LONG).await;
}

#[tokio::test]
async fn a_driver_that_takes_nothing_in_stops_no_scraping() {
    let tasks = Tasks::new();
    let (address, asked) = server(&tasks, Habit::Says(ok(VLLM))).await;
    let mut world = world(vec![backend("i-1", address, Some(Engine::Vllm))], every(5));
    let more_than_fit = async {
        while asked.load(Ordering::SeqCst) < 40 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, more_than_fit).await.expect("it goes on");
    assert_eq!(world.next().await.2, None);
    world.scraper.stop().await;
    tasks.stop(LONG).await;
}

#[tokio::test]
async fn an_exporter_is_asked_once_for_all_instances_of_its_host_and_each_gets_its_own() {
    let tasks = Tasks::new();
    let dcgm = include_str!("../../decision/signals/testdata/dcgm.txt");
    let (exporter, asked) = server(&tasks, Habit::Says(ok(dcgm))).await;
    let port = exporter.authority().rsplit_once(':').expect("a port").1;
    let signals = SignalSpec {
        interval: Duration::from_secs(3_600),
        gpu: Some(GpuSource::Exporter(format!("http://{{host}}:{port}/metrics"))),
        gpu_labels: [("pod".to_owned(), "{instance}".to_owned())].into(),
        ..SignalSpec::default()
    };
    let backends = vec![
        backend("i-1", exporter.clone(), None),
        backend("i-2", exporter.clone(), None),
        backend("i-3", exporter, None),
    ];
    let scraper = Asker::new(Connectors::default());
    let targets = targets::of(&table(backends), &spec(signals));
    let answers = futures_util::future::join_all(targets.values().map(|t| scraper.ask(t))).await;
    let told: Vec<_> = answers.into_iter().map(Answers::told).collect();
    let gpu =
        |gpu, memory| Signals { gpu: Some(gpu), gpu_memory: Some(memory), ..Signals::default() };
    assert_eq!(told[0], (gpu(0.9, 0.75), None));
    assert_eq!(told[1], (gpu(0.3, 0.25), None));
    let problem = told[2].1.as_ref().expect("it has no GPU there");
    assert!(problem.ends_with("/metrics tells of no GPU that has the gpu_labels"), "{problem}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    tasks.stop(LONG).await;
}

#[test]
fn places_follow_from_the_type_and_its_engine() {
    let address: Address = name("http://gpu-1:9001");
    let place = |engine, signals: SignalSpec, protocol| {
        let backend = BackendRoute { protocol, ..backend("i-1", address.clone(), engine) };
        let targets = targets::of(&table(vec![backend]), &spec(signals));
        targets.into_values().next().and_then(|target| target.engine)
    };
    let url = |engine, signals, protocol| {
        place(engine, signals, protocol).map(|page| (page.url, page.is_http2))
    };
    let default = SignalSpec::default;
    let http1 = Protocol::Http1;
    let some = |url: &str, is_http2| Some((url.to_owned(), is_http2));
    assert_eq!(url(Some(Engine::Vllm), default(), http1), some("http://gpu-1:9001/metrics", false));
    assert_eq!(
        url(Some(Engine::Sglang), default(), Protocol::H2c),
        some("http://gpu-1:9001/metrics", true)
    );
    assert_eq!(
        url(Some(Engine::Triton), default(), Protocol::H2c),
        some("http://gpu-1:8002/metrics", false)
    );
    let own = SignalSpec { path: Some("/m".into()), port: Some(9), ..default() };
    assert_eq!(url(Some(Engine::Triton), own.clone(), http1), some("http://gpu-1:9/m", false));
    assert_eq!(url(None, own, http1), some("http://gpu-1:9/m", false));
    assert_eq!(url(None, default(), http1), None);
    assert_eq!(url(Some(Engine::OpenAi), default(), http1), None);
    assert_eq!(url(Some(Engine::Vllm), every(0), http1), None);
}

#[test]
fn who_tells_nothing_is_asked_ever_more_seldom() {
    let seconds = |interval, failures| pause(Duration::from_secs(interval), failures).as_secs();
    let all: Vec<_> = (0..8).map(|failures| seconds(15, failures)).collect();
    assert_eq!(all, [15, 15, 30, 60, 120, 240, 300, 300]);
    assert_eq!((seconds(15, u32::MAX), seconds(600, 9)), (300, 600));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_before_its_turn() {
    let tasks = Tasks::new();
    let (address, asked) = server(&tasks, Habit::Says(ok(VLLM))).await;
    let world = world(vec![backend("i-1", address, Some(Engine::Vllm))], every(3_600_000));
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    advance(Duration::from_secs(3_700)).await;
    // The socket needs real time; the clock stands while it is waited for.
    let until_asked = async {
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    until_asked.await;
    world.scraper.stop().await;
    tasks.stop(LONG).await;
}
