//! Holds every provider to the rules in `forebay::provider`: one suite over all of them (here), then what
//! only real processes can show ([`processes`]). Every process that is started carries an owner tag made for its test, by
//! which it is found and ended when the test ends, however it ends.

mod machine;
mod processes;

use std::collections::BTreeSet;
use std::time::Duration;

use forebay::provider::Provider;
use forebay::provider::fake::{FakeProvider, batch};
use forebay::provider::static_servers::StaticProvider;
use forebay::runtime::clock;
use forebay::types::launch::{LaunchOutcome, ProviderInstance, ProviderStatus};
use forebay::types::record::InstanceRecord;
use forebay::types::{
    Address, Generation, InstanceId, InstanceState, InstanceTypeName, ProviderError, ProviderName,
    Timestamp,
};

use self::machine::Machine;

/// How long anything may take before a test fails.
const LIMIT: Duration = Duration::from_secs(20);

fn id(text: &str) -> InstanceId {
    InstanceId::new(text).expect("valid")
}

fn instance_type(text: &str) -> InstanceTypeName {
    InstanceTypeName::new(text).expect("valid")
}

fn provider_name() -> ProviderName {
    ProviderName::new("local").expect("valid")
}

fn is_live(instance: &ProviderInstance) -> bool {
    !matches!(instance.status, ProviderStatus::Ended { .. })
}

async fn live(provider: &dyn Provider) -> Vec<ProviderInstance> {
    let list = provider.list().await.expect("lists");
    list.into_iter().filter(is_live).collect()
}

async fn status(provider: &dyn Provider, id: &InstanceId) -> Option<ProviderStatus> {
    let list = provider.list().await.expect("lists");
    list.into_iter().find(|instance| instance.id == *id).map(|instance| instance.status)
}

fn granted(outcomes: &[LaunchOutcome]) -> Vec<Address> {
    outcomes
        .iter()
        .map(|outcome| {
            let grant = outcome.result.as_ref().expect("granted");
            grant.address.clone().expect("known at once")
        })
        .collect()
}

/// Waits until `condition` holds.
async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let give_up_at = clock::monotonic() + LIMIT;
    while !condition().await {
        assert!(clock::monotonic() < give_up_at, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_gone(provider: &dyn Provider, id: &InstanceId) {
    until("the instance is gone", || async {
        !live(provider).await.iter().any(|instance| instance.id == *id)
    })
    .await;
}

/// A provider with three of type `three` and five of type `five`, and a way to start it anew.
trait World {
    fn provider(&self) -> &dyn Provider;
    /// A new provider object over what runs; `granted` is what the manager had recorded.
    async fn restart(&mut self, granted: &[ProviderInstance]);
    /// What really runs there, counted without the provider.
    fn really_running(&self) -> usize;
}

async fn conforms(mut world: impl World) {
    launches_are_idempotent_and_partial(world.provider()).await;
    assert_eq!(world.really_running(), 3);
    a_restart_forgets_nothing(&mut world).await;
    assert_eq!(world.really_running(), 3);
    terminating_is_idempotent_and_frees_capacity(world.provider()).await;
    assert_eq!(world.really_running(), 0);
    capacity_holds_under_concurrent_launches(world.provider()).await;
    assert_eq!(world.really_running(), 0);
}

async fn launches_are_idempotent_and_partial(provider: &dyn Provider) {
    let first = granted(&provider.launch(batch("three", &["a", "b"])).await);
    assert_ne!(first[0], first[1]);
    let again = provider.launch(batch("three", &["a", "b", "a"])).await;
    assert_eq!(granted(&again), [first[0].clone(), first[1].clone(), first[0].clone()]);

    let outcomes = provider.launch(batch("three", &["a", "c", "d"])).await;
    let ids: Vec<_> = outcomes.iter().map(|outcome| outcome.instance.as_str()).collect();
    assert_eq!(ids, ["a", "c", "d"]);
    assert_eq!(granted(&outcomes[..1]), [first[0].clone()]);
    let third = granted(&outcomes[1..2]).remove(0);
    let refusal = outcomes[2].result.as_ref().expect_err("there are three");
    assert!(matches!(refusal, ProviderError::InsufficientCapacity { .. }), "{refusal}");
    assert!(refusal.to_string().contains('3'), "it names the count: {refusal}");

    let list = live(provider).await;
    let listed: Vec<_> = list.iter().map(|i| (i.id.as_str(), i.address.clone())).collect();
    let [a, b] = [first[0].clone(), first[1].clone()];
    assert_eq!(listed, [("a", Some(a)), ("b", Some(b)), ("c", Some(third))]);
    for instance in &list {
        assert_eq!(instance.status, ProviderStatus::Running);
        assert_eq!(instance.instance_type.as_str(), "three");
        let variant = instance.variant.as_ref().map(ToString::to_string);
        assert_eq!(variant.as_deref(), Some("endpoint/primary"));
    }
}

async fn a_restart_forgets_nothing(world: &mut impl World) {
    let before = live(world.provider()).await;
    world.restart(&before).await;
    assert_eq!(live(world.provider()).await, before);
    world.restart(&before).await;
    // Asked for again without a list before, as after a crash between asking and recording.
    let again = world.provider().launch(batch("three", &["a", "b", "c", "d"])).await;
    let addresses: Vec<_> = before.iter().filter_map(|instance| instance.address.clone()).collect();
    assert_eq!(granted(&again[..3]), addresses);
    assert!(again[3].result.is_err());
}

async fn terminating_is_idempotent_and_frees_capacity(provider: &dyn Provider) {
    let unknown = provider.terminate(id("never-launched"), LIMIT).await;
    assert_eq!(unknown, Err(ProviderError::NotFound));
    assert_eq!(provider.terminate(id("b"), LIMIT).await, Ok(()));
    let twice = provider.terminate(id("b"), LIMIT).await;
    assert!(matches!(twice, Ok(()) | Err(ProviderError::NotFound)), "{twice:?}");
    until_gone(provider, &id("b")).await;
    assert_eq!(provider.terminate(id("b"), LIMIT).await, Err(ProviderError::NotFound));

    granted(&provider.launch(batch("three", &["e"])).await);
    let ids: Vec<_> = live(provider).await.into_iter().map(|instance| instance.id).collect();
    assert_eq!(ids, [id("a"), id("c"), id("e")]);
    end_all(provider).await;
}

async fn capacity_holds_under_concurrent_launches(provider: &dyn Provider) {
    // Batches of several: one is in the middle of starting while others count.
    let ids: Vec<[String; 4]> =
        (0..50).map(|n| ["a", "b", "c", "d"].map(|m| format!("n-{n}-{m}"))).collect();
    let launches =
        ids.iter().map(|ids| provider.launch(batch("five", &ids.each_ref().map(String::as_str))));
    let outcomes = futures_util::future::join_all(launches).await.concat();
    let granted: BTreeSet<_> =
        outcomes.iter().filter(|o| o.result.is_ok()).map(|o| o.instance.clone()).collect();
    assert_eq!(granted.len(), 5);
    assert!(outcomes.iter().all(|outcome| matches!(
        outcome.result,
        Ok(_) | Err(ProviderError::InsufficientCapacity { .. })
    )));
    let list = live(provider).await;
    assert_eq!(list.iter().map(|instance| instance.id.clone()).collect::<BTreeSet<_>>(), granted);
    let addresses: BTreeSet<_> = list.iter().map(|instance| &instance.address).collect();
    assert_eq!(addresses.len(), 5, "each has its own address");
    end_all(provider).await;
}

async fn end_all(provider: &dyn Provider) {
    for instance in live(provider).await {
        assert_eq!(provider.terminate(instance.id, LIMIT).await, Ok(()));
    }
    until("all are gone", || async { live(provider).await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_conform() {
    let machine = Machine::new(&["sleep", "1000"]);
    conforms(machine).await;
}

#[tokio::test]
async fn the_fake_conforms() {
    struct Pretend(FakeProvider);
    impl World for Pretend {
        fn provider(&self) -> &dyn Provider {
            &self.0
        }
        async fn restart(&mut self, _granted: &[ProviderInstance]) {
            self.0 = self.0.clone();
        }
        fn really_running(&self) -> usize {
            self.0.instances().iter().filter(|instance| is_live(instance)).count()
        }
    }
    conforms(Pretend(FakeProvider::new().with_capacity("three", 3).with_capacity("five", 5))).await;
}

#[tokio::test]
async fn static_servers_conform() {
    struct Servers(StaticProvider);
    fn provider() -> StaticProvider {
        let addresses = |ports: std::ops::Range<u16>| {
            ports.map(|port| Address::http(([127, 0, 0, 1], port).into())).collect()
        };
        let all =
            [(instance_type("three"), addresses(1..4)), (instance_type("five"), addresses(4..9))];
        StaticProvider::new(provider_name(), all)
    }
    impl World for Servers {
        fn provider(&self) -> &dyn Provider {
            &self.0
        }
        async fn restart(&mut self, granted: &[ProviderInstance]) {
            self.0 = provider();
            let mut records: Vec<_> = granted.iter().map(record).collect();
            // What is not to be adopted: another provider's, and one without a recorded grant.
            records.push(InstanceRecord {
                id: id("elsewhere"),
                provider: ProviderName::new("other").expect("valid"),
                ..records[0].clone()
            });
            records.push(InstanceRecord { id: id("asked"), address: None, ..records[0].clone() });
            self.0.adopt(&records);
        }
        fn really_running(&self) -> usize {
            let list = futures_util::FutureExt::now_or_never(self.0.list());
            list.expect("at once").expect("adopted").len()
        }
    }
    let servers = Servers(provider());
    servers.0.adopt(&[]);
    conforms(servers).await;
}

fn record(instance: &ProviderInstance) -> InstanceRecord {
    InstanceRecord {
        id: instance.id.clone(),
        generation: Generation(1),
        variant: instance.variant.clone().expect("launched by us"),
        instance_type: instance.instance_type.clone(),
        provider: provider_name(),
        priority: 1,
        model: "model".parse().expect("valid"),
        copies: 1,
        max_concurrency: 8,
        state: InstanceState::InService,
        address: instance.address.clone(),
        asked_at: Timestamp(1),
        granted_at: Some(Timestamp(1)),
        in_service_at: None,
        draining_since: None,
        drain_deadline: None,
        leaving_because: None,
    }
}
