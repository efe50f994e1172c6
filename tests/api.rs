//! The manager as a whole, over its HTTP: the real loop, controller, API and client, with workers that
//! live in this process and a store in memory.

#![allow(
    clippy::disallowed_methods,
    clippy::similar_names,
    reason = "tests run in real time and end their own tasks"
)]

#[path = "api/hall.rs"]
mod hall;
#[path = "api/house.rs"]
mod house;

use std::time::Duration;

use forebay::api::{ReloadError, ReloadOutcome};
use forebay::cli;
use forebay::control::{ManagerError, OnExit};
use forebay::store::memory::MemoryStore;
use forebay::store::{Store, StoreError};
use forebay::types::record::{Change, StoredState};
use forebay::types::table::RoutingTable;
use forebay::types::{Timestamp, VariantKey};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use hall::Hall;
use house::{House, spec, until};

/// Counts of instances in service by type, from the status.
fn in_service(status: &Value) -> Vec<(String, u64)> {
    let pools = status["endpoints"][0]["variants"][0]["pools"].as_array().cloned();
    pools
        .unwrap_or_default()
        .iter()
        .map(|pool| {
            let name = pool["instance_type"].as_str().expect("a type").to_owned();
            (name, pool["in_service_instance_count"].as_u64().expect("a count"))
        })
        .collect()
}

fn counts(p5: u64, g6: u64) -> Vec<(String, u64)> {
    vec![("p5".into(), p5), ("g6".into(), g6)]
}

async fn wait_for_counts(house: &House, p5: u64, g6: u64) -> Value {
    until(&format!("{p5} p5 and {g6} g6 in service"), async || {
        let (_, status) = house.get("/api/v1/status").await;
        if in_service(&status) == counts(p5, g6) { Ok(status) } else { Err(status.to_string()) }
    })
    .await
}

#[tokio::test]
async fn a_fleet_comes_up_falls_back_and_is_shown() {
    let hall = Hall::new(&[("p5", 1)]);
    let house = House::open(&hall, MemoryStore::new(), spec(3)).await;
    let status = wait_for_counts(&house, 1, 2).await;
    let variant = &status["endpoints"][0]["variants"][0];
    assert_eq!(variant["desired_instance_count"], 3);
    let instance = &variant["instances"][0];
    for member in ["id", "instance_type", "state", "address", "outstanding", "copies"] {
        assert!(!instance[member].is_null(), "{member} of {instance}");
    }
    assert_eq!(house.get("/readyz").await.0, 200);
    assert_eq!(house.get("/healthz").await.0, 200);

    let (code, table) = house.get("/internal/v1/table?after=0.0").await;
    let table: RoutingTable = serde_json::from_value(table).expect("a table");
    assert_eq!((code, table.endpoints[0].variants[0].backends.len()), (200, 3));

    let (_, why) = house.get("/api/v1/endpoints/e/explain").await;
    let refused = why["events"].as_array().expect("events").iter().any(|event| {
        event["message"].as_str().is_some_and(|text| text.contains("all 1 are taken"))
    });
    assert!(refused, "no word of the refusal in {why:#}");

    let metrics = house.text("/metrics").await;
    for line in [
        r#"forebay_instance_count{InstanceType="g6",endpoint="e",variant="v",state="InService"} 2"#,
        r#"forebay_desired_instance_count{InstanceType="none",endpoint="e",variant="v"} 3"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    let errors = metrics.lines().find_map(|line| {
        line.strip_prefix(
            r#"forebay_capacity_errors_total{InstanceType="p5",endpoint="e",variant="v"} "#,
        )
    });
    assert!(errors.and_then(|n| n.parse::<u64>().ok()) >= Some(1), "{errors:?}");
    house.close(OnExit::Keep).await.expect("ends well");
}

#[tokio::test]
async fn the_client_scales_drains_and_explains() {
    let hall = Hall::new(&[("p5", 1)]);
    let house = House::open(&hall, MemoryStore::new(), spec(2)).await;
    wait_for_counts(&house, 1, 1).await;
    let admin = house.admin();
    assert_eq!(cli::scale(&admin, "e", 3).await.as_deref(), Ok("e/v is to have 3 instances"));
    wait_for_counts(&house, 1, 2).await;
    assert_eq!(cli::scale(&admin, "e/v", 1).await.as_deref(), Ok("e/v is to have 1 instances"));
    // Fallback leaves first.
    let status = wait_for_counts(&house, 1, 0).await;

    let id = status["endpoints"][0]["variants"][0]["instances"]
        .as_array()
        .expect("instances")
        .iter()
        .find(|instance| instance["state"] == "InService")
        .and_then(|instance| instance["id"].as_str())
        .expect("one in service")
        .to_owned();
    let drained = cli::drain(&admin, &id).await.expect("drains");
    assert_eq!(drained, format!("{id} drains and will be removed"));
    until("the drained one is gone and replaced", async || {
        let (_, status) = house.get("/api/v1/status").await;
        let total: u64 = in_service(&status).iter().map(|(_, n)| n).sum();
        if total == 1 && !hall.running().contains(&id) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;

    let text = cli::status(&admin, false).await.expect("a status");
    assert!(text.starts_with("ENDPOINT  VARIANT"), "{text}");
    let raw: Value =
        serde_json::from_str(&cli::status(&admin, true).await.expect("json")).expect("json");
    assert_eq!(raw["endpoints"][0]["name"], "e");
    let text = cli::explain(&admin, "e", false).await.expect("an explanation");
    assert!(text.contains("TIME") && text.contains(&id), "{text}");

    for (error, word) in [
        (cli::scale(&admin, "nobody", 1).await, "nobody"),
        (cli::scale(&admin, "e/w", 1).await, "has no variant \"w\""),
        (cli::scale(&admin, "e", 99).await, "outside the bounds 0 to 6"),
        (cli::drain(&admin, "nobody").await, "nobody"),
        (cli::explain(&admin, "nobody", false).await, "nobody"),
    ] {
        let error = error.expect_err("wrong");
        assert!(error.exit_code() == 1 && error.to_string().contains(word), "{error}");
    }
    house.close(OnExit::Stop).await.expect("ends well");
}

#[tokio::test]
async fn mistakes_are_answered_in_json() {
    let hall = Hall::new(&[]);
    let house = House::open(&hall, MemoryStore::new(), spec(0)).await;
    let scale = "/api/v1/endpoints/e/scale";
    let text = |kind| vec![("content-type", kind)];
    let json = || text("application/json");
    let foreign = vec![("content-type", "application/json"), ("origin", "http://evil.example")];
    let too_large = format!("\"{}\"", "x".repeat(2 << 20));
    for (method, path, headers, body, code, kind) in [
        ("GET", "/nowhere", json(), "", 404, "not_found"),
        ("POST", "/api/v1/status", json(), "", 405, "method_not_allowed"),
        ("GET", scale, json(), "", 405, "method_not_allowed"),
        ("POST", scale, json(), "{", 400, "bad_request"),
        ("POST", scale, json(), r#"{"desired_instance_count":-1}"#, 400, "bad_request"),
        ("POST", scale, json(), r#"{"desired_instance_count":1,"x":2}"#, 400, "bad_request"),
        ("POST", scale, text("text/plain"), "{}", 415, "unsupported_media_type"),
        ("POST", scale, json(), &too_large, 413, "body_too_large"),
        ("POST", scale, foreign, r#"{"desired_instance_count":1}"#, 403, "cross_origin"),
        ("POST", scale, json(), r#"{"desired_instance_count":7}"#, 400, "out_of_bounds"),
        (
            "POST",
            "/api/v1/endpoints/x/scale",
            json(),
            r#"{"desired_instance_count":7}"#,
            404,
            "unknown_endpoint",
        ),
        ("POST", "/api/v1/instances/x/drain", json(), "", 404, "unknown_instance"),
        ("GET", "/api/v1/endpoints/x/explain", json(), "", 404, "unknown_endpoint"),
        ("GET", "/internal/v1/table?after=x", json(), "", 400, "bad_request"),
        ("GET", "/internal/v1/table?wait_ms=x", json(), "", 400, "bad_request"),
        ("POST", "/internal/v1/report", json(), "[]", 400, "bad_request"),
        ("POST", "/api/v1/reload", json(), "", 404, "not_found"),
    ] {
        let (status, answer) = house.send(method, path, &headers, body).await;
        let error = &answer["error"];
        assert_eq!((status, &error["type"]), (code, &json!(kind)), "{method} {path}: {answer}");
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 9), "{answer}");
    }
    house.close(OnExit::Keep).await.expect("ends well");
}

#[tokio::test]
async fn a_follower_waits_for_news_and_is_let_go_at_the_end() {
    let hall = Hall::new(&[]);
    let house = House::open(&hall, MemoryStore::new(), spec(1)).await;
    wait_for_counts(&house, 0, 0).await;
    hall.allow("g6", 9);
    wait_for_counts(&house, 0, 1).await;
    let (_, table) = house.get("/internal/v1/table").await;
    let table: RoutingTable = serde_json::from_value(table).expect("a table");
    let next = format!("/internal/v1/table?after={}&wait_ms=", table.version);
    assert_eq!(house.get(&format!("{next}1")).await, (204, Value::Null));

    let wait = format!("{next}60000");
    let (news, scaled) =
        tokio::join!(house.get(&wait), async { cli::scale(&house.admin(), "e", 2).await });
    scaled.expect("scales");
    let newer: RoutingTable = serde_json::from_value(news.1).expect("a table");
    assert!(newer.version > table.version);

    let report = json!({"proxy": "p-1", "applied": newer.version, "backends": [], "variants": []});
    let (code, _) = house
        .send(
            "POST",
            "/internal/v1/report",
            &[("content-type", "application/json")],
            &report.to_string(),
        )
        .await;
    assert_eq!(code, 204);
    until("the proxy is known", async || {
        let (_, status) = house.get("/api/v1/status").await;
        if status["proxies"][0]["id"] == "p-1" { Ok(()) } else { Err(status.to_string()) }
    })
    .await;

    let stop = CancellationToken::new();
    let router = house.router.clone().layer(axum::Extension(stop.clone()));
    let far = http::Request::get("/internal/v1/table?after=9999999999999.1&wait_ms=60000")
        .body(axum::body::Body::empty())
        .expect("a request");
    let mut waiting = router.oneshot(far);
    assert!(futures_util::poll!(&mut waiting).is_pending(), "there is nothing newer");
    stop.cancel();
    let answer = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    let answer = answer.expect("answered at once, not after a minute").expect("infallible");
    assert_eq!(answer.status(), 204);
    house.close(OnExit::Keep).await.expect("ends well");
}

#[tokio::test]
async fn a_restart_adopts_what_runs() {
    let hall = Hall::new(&[("p5", 1)]);
    let store = MemoryStore::new();
    let house = House::open(&hall, store.clone(), spec(3)).await;
    wait_for_counts(&house, 1, 2).await;
    let before = hall.running();
    house.close(OnExit::Keep).await.expect("ends well");
    assert_eq!(hall.running(), before);

    let house = House::open(&hall, store, spec(3)).await;
    wait_for_counts(&house, 1, 2).await;
    assert_eq!(hall.running(), before);
    assert_eq!(hall.started(), 3, "nothing was launched twice");
    house.close(OnExit::Keep).await.expect("ends well");
}

#[tokio::test]
async fn a_second_manager_waits_and_takes_over() {
    let hall = Hall::new(&[("p5", 1)]);
    let store = MemoryStore::new();
    let first = House::open(&hall, store.clone(), spec(2)).await;
    wait_for_counts(&first, 1, 1).await;
    let second = House::open(&hall, store, spec(2)).await;
    until("the second waits", async || {
        let (code, answer) = second.get("/readyz").await;
        let reason = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
        if code == 503 && reason.contains("holds the lease") { Ok(()) } else { Err(reason) }
    })
    .await;
    let (code, answer) = second.get("/api/v1/status").await;
    assert_eq!((code, &answer["error"]["type"]), (503, &json!("standby")));
    let refused = cli::scale(&second.admin(), "e", 1).await.expect_err("only stands by");
    assert!(refused.to_string().contains("does not act"), "{refused}");

    first.close(OnExit::Keep).await.expect("ends well");
    wait_for_counts(&second, 1, 1).await;
    assert_eq!(hall.started(), 2);
    second.close(OnExit::Keep).await.expect("ends well");
}

#[tokio::test]
async fn an_overtaken_manager_ends_with_an_error() {
    let hall = Hall::new(&[("p5", 1)]);
    let mut store = MemoryStore::new();
    let house = House::open(&hall, store.clone(), spec(1)).await;
    wait_for_counts(&house, 1, 0).await;
    let late = Timestamp(u64::MAX / 2);
    store.acquire_lease("thief", late, Duration::from_secs(60)).expect("expired by then");
    let error = house.ended().await.expect_err("overtaken");
    assert!(
        matches!(&error, ManagerError::LeaseLost { reason, .. } if reason.contains("thief")),
        "{error}"
    );
    assert_eq!(hall.running().len(), 1, "it touches nothing any more");
}

#[tokio::test]
async fn on_exit_stop_leaves_nothing_behind_but_the_desired_count() {
    let hall = Hall::new(&[("p5", 1)]);
    let mut store = MemoryStore::new();
    let house = House::open(&hall, store.clone(), spec(1)).await;
    wait_for_counts(&house, 1, 0).await;
    cli::scale(&house.admin(), "e", 2).await.expect("scales");
    wait_for_counts(&house, 1, 1).await;
    house.close(OnExit::Stop).await.expect("ends well");
    assert!(hall.running().is_empty(), "{:?}", hall.running());
    let left = store.load().expect("loads");
    assert!(left.instances.is_empty(), "{:?}", left.instances);
    assert_eq!(left.variants[0].desired, 2);
    assert_eq!(left.events.last().map(|event| event.kind.as_str()), Some("manager_stopped"));

    let house = House::open(&hall, store, spec(1)).await;
    wait_for_counts(&house, 1, 1).await;
    house.close(OnExit::Stop).await.expect("ends well");
}

/// A store whose disk can be full.
struct Disk {
    store: MemoryStore,
    full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Store for Disk {
    fn acquire_lease(
        &mut self,
        owner: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<u64, StoreError> {
        self.store.acquire_lease(owner, now, ttl)
    }
    fn release_lease(&mut self, epoch: u64) -> Result<(), StoreError> {
        self.store.release_lease(epoch)
    }
    fn load(&mut self) -> Result<StoredState, StoreError> {
        self.store.load()
    }
    fn commit(&mut self, epoch: u64, changes: &[Change]) -> Result<(), StoreError> {
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StoreError::Io("the disk is full".into()));
        }
        self.store.commit(epoch, changes)
    }
}

#[tokio::test]
async fn a_full_disk_pauses_the_manager_and_nothing_else() {
    let hall = Hall::new(&[("p5", 1)]);
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let disk = Disk { store: MemoryStore::new(), full: full.clone() };
    let house = House::open(&hall, disk, spec(1)).await;
    wait_for_counts(&house, 1, 0).await;
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let scaled = house.handle.clone();
    let scaling = tokio::spawn(async move { scaled.scale("e", None, 2).await });
    until("a further command is refused with the reason", async || {
        let refused = house.handle.drain("nobody").await.expect_err("nobody").to_string();
        if refused.contains("the disk is full") { Ok(()) } else { Err(refused) }
    })
    .await;
    // What is there is still shown, and nothing was begun that is not recorded.
    assert_eq!(house.get("/api/v1/status").await.0, 200);
    assert!(!scaling.is_finished(), "not answered before it is durable");
    assert_eq!(hall.started(), 1);
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    let key: VariantKey = scaling.await.expect("ran").expect("scaled at last");
    assert_eq!(key.to_string(), "e/v");
    wait_for_counts(&house, 1, 1).await;
    house.close(OnExit::Stop).await.expect("ends well");
}

#[tokio::test]
async fn a_reload_says_what_changed_or_what_is_wrong() {
    let hall = Hall::new(&[]);
    let good = Ok(ReloadOutcome { changed: vec!["e/v: weight 2".into()], needs_restart: vec![] });
    let house = House::with_reload(&hall, good).await;
    let (code, answer) = house.send("POST", "/api/v1/reload", &[], "").await;
    assert_eq!((code, answer), (200, json!({"changed": ["e/v: weight 2"], "needs_restart": []})));
    house.close(OnExit::Keep).await.expect("ends well");

    let bad = Err(ReloadError::Mistakes(vec!["forebay.toml:3: no such key".into()]));
    let house = House::with_reload(&hall, bad).await;
    let (code, answer) = house.send("POST", "/api/v1/reload", &[], "").await;
    assert_eq!((code, &answer["error"]["details"]), (400, &json!(["forebay.toml:3: no such key"])));
    house.close(OnExit::Keep).await.expect("ends well");
}

#[tokio::test]
async fn a_new_fleet_is_followed_unless_its_provider_is_missing() {
    let hall = Hall::new(&[("p5", 1)]);
    let house = House::open(&hall, MemoryStore::new(), spec(1)).await;
    wait_for_counts(&house, 1, 0).await;
    let mut foreign = (*spec(1)).clone();
    foreign.instance_types.values_mut().for_each(|kind| {
        kind.provider = forebay::types::ProviderName::new("elsewhere").expect("valid");
    });
    let refused = house.handle.reconfigure(foreign.into()).await.expect_err("unknown");
    assert!(refused.to_string().contains("elsewhere"), "{refused}");
    house.handle.reconfigure(spec(3)).await.expect("taken");
    wait_for_counts(&house, 1, 2).await;
    house.close(OnExit::Stop).await.expect("ends well");
}
