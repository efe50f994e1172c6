//! Whatever a provider does, an event comes back, and in time.

use futures_util::future::BoxFuture;

use super::*;
use crate::types::launch::Grant;
use crate::types::{EndpointName, InstanceTypeName, ModelName, VariantKey, VariantName};

/// What the provider does when it is called.
#[derive(Clone, Copy)]
enum Mood {
    Hangs,
    Panics,
    /// Grants only the first of a batch and forgets the others; lists nothing; terminates all.
    Forgets,
}

struct Moody(Mood);

impl Moody {
    async fn act<T>(&self, answer: T) -> T {
        match self.0 {
            Mood::Hangs => std::future::pending().await,
            Mood::Panics => panic!("on purpose"),
            Mood::Forgets => answer,
        }
    }
}

impl Provider for Moody {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>> {
        self.act(Ok(vec![])).boxed()
    }
    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>> {
        let instance = batch.instances[0].clone();
        self.act(vec![LaunchOutcome { instance, result: Ok(Grant { address: None }) }]).boxed()
    }
    fn terminate(&self, _: InstanceId, _: Duration) -> BoxFuture<'_, Result<(), ProviderError>> {
        self.act(Ok(())).boxed()
    }
}

fn name(text: &str) -> ProviderName {
    ProviderName::new(text).expect("valid")
}

fn id(text: &str) -> InstanceId {
    InstanceId::new(text).expect("valid")
}

fn batch() -> LaunchBatch {
    LaunchBatch {
        instances: vec![id("i-1"), id("i-2")],
        instance_type: InstanceTypeName::new("ml.p5").expect("valid"),
        variant: VariantKey {
            endpoint: EndpointName::new("e").expect("valid"),
            variant: VariantName::new("v").expect("valid"),
        },
        model: ModelName::new("m").expect("valid"),
        copies: 1,
        max_concurrency: 1,
    }
}

fn calls(mood: Mood) -> (Calls, mpsc::Receiver<Event>, Arc<tokio::sync::Notify>) {
    let (events, received) = mpsc::channel(16);
    let nudge = Arc::new(tokio::sync::Notify::new());
    let managed = ManagedProvider::new(Arc::new(Moody(mood)), nudge.clone());
    let providers = BTreeMap::from([(name("p"), managed)]);
    let calls =
        Calls::new(providers, Limits::default(), events, Arc::default(), FleetMetrics::new());
    (calls, received, nudge)
}

async fn ask_all(calls: &Calls, provider: &str, events: &mut mpsc::Receiver<Event>) -> [String; 4] {
    calls.list(name(provider));
    let Some(Event::Listed { result: listed, .. }) = events.recv().await else { panic!("no list") };
    calls.launch(name(provider), batch());
    let Some(Event::Launched { outcomes, .. }) = events.recv().await else { panic!("no launch") };
    assert_eq!(outcomes.iter().map(|o| o.instance.as_str()).collect::<Vec<_>>(), ["i-1", "i-2"]);
    calls.terminate(name(provider), id("i-1"));
    let Some(Event::Terminated { result: ended, .. }) = events.recv().await else {
        panic!("no terminate")
    };
    let kind = |error: Option<&ProviderError>| error.map_or("ok", ProviderError::kind).to_owned();
    [
        kind(listed.as_ref().err()),
        kind(outcomes[0].result.as_ref().err()),
        kind(outcomes[1].result.as_ref().err()),
        kind(ended.as_ref().err()),
    ]
}

#[tokio::test(start_paused = true)]
async fn every_call_comes_back() {
    for (mood, expected) in [
        (Mood::Hangs, ["unavailable"; 4]),
        (Mood::Panics, ["unavailable"; 4]),
        (Mood::Forgets, ["ok", "ok", "unavailable", "ok"]),
    ] {
        let (calls, mut events, _) = calls(mood);
        let got = ask_all(&calls, "p", &mut events).await;
        assert_eq!(got, expected);
    }
    let (calls, mut events, _) = calls(Mood::Forgets);
    assert_eq!(ask_all(&calls, "nobody", &mut events).await, ["rejected"; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_ring_becomes_one_event() {
    let (calls, mut events, nudge) = calls(Mood::Forgets);
    calls.listen_for_nudges();
    nudge.notify_one();
    nudge.notify_one();
    assert!(matches!(events.recv().await, Some(Event::ProviderNudged(p)) if p == name("p")));
    calls.stop().await;
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn stopping_drops_what_hangs() {
    let (calls, mut events, _) = calls(Mood::Hangs);
    calls.launch(name("p"), batch());
    calls.stop().await;
    assert!(events.try_recv().is_err());
}
