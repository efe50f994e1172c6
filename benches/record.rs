//! What noting a request costs it: nothing asked for, a trace that is not recorded, one that is, and the
//! access log with every request in it. Compare with the whole request, about 16 µs.

use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay::runtime::clock;
use forebay::runtime::tasks::Tasks;
use forebay::telemetry::access::{AccessLog, Target};
use forebay::telemetry::request::Observers;
use forebay::telemetry::trace::Tracer;
use forebay::types::table::BackendRoute;
use forebay::types::{Generation, ModelName, Protocol, VariantKey};

fn route() -> BackendRoute {
    let valid = "a valid name";
    BackendRoute {
        instance: "i-1".parse().expect(valid),
        generation: Generation(1),
        instance_type: "ml.p5.48xlarge".parse().expect(valid),
        address: "http://127.0.0.1:9".parse().expect(valid),
        model: "m".parse().expect(valid),
        copies: 1,
        max_concurrency: 1,
        protocol: Protocol::Http1,
        tls: None,
        engine: None,
        on_client_abort: forebay::types::spec::OnClientAbort::default(),
        load_metrics: None,
        recoveries: 0,
    }
}

/// One request from its head to its last byte, in eight pieces.
fn request(
    observers: &Rc<Observers>,
    route: &BackendRoute,
    variant: &VariantKey,
    model: &ModelName,
) {
    let request = http::Request::post("/v1/chat/completions").header("content-length", "7");
    let mut head = request.body(()).expect("a request").into_parts().0;
    let now = clock::monotonic();
    let record = observers.begin(&mut head, now);
    record.resolved(variant, model);
    record.waiting();
    record.attempt(route, now, &mut head.headers);
    record.answered(200);
    for _ in 0..8 {
        record.passed_on(100);
    }
    record.completed();
    black_box(head);
}

fn noting(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let tasks = Tasks::new();
    let nobody = "http://127.0.0.1:9".parse().expect("an address");
    let tracer = |share| Some(Tracer::start(&nobody, share, "bench", &tasks));
    let log = AccessLog::start(Target::File("/dev/null".into()), 1.0, &tasks).expect("opens");
    let (route, model) = (route(), "m".parse().expect("valid"));
    let variant =
        VariantKey { endpoint: "e".parse().expect("valid"), variant: "v".parse().expect("valid") };
    for (name, observers) in [
        ("nothing", Observers::default()),
        ("trace_not_recorded", Observers { access: None, tracer: tracer(0.0) }),
        ("trace_recorded", Observers { access: None, tracer: tracer(1.0) }),
        ("access_log", Observers { access: Some(log), tracer: None }),
    ] {
        let observers = Rc::new(observers);
        c.bench_function(&format!("noting/{name}"), |b| {
            b.iter(|| request(&observers, &route, &variant, &model));
        });
    }
    runtime.block_on(tasks.stop(Duration::from_secs(5)));
}

criterion_group!(benches, noting);
criterion_main!(benches);
