//! The routing table as requests use it: names resolved to positions, backends with their counters.
//! Immutable; a request loads it once. Backends and queues live on from one snapshot to the next for as
//! long as they mean the same.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::admission::WaitingRoom;
use super::choice::Choice;
use super::pinned::Pinned;
use super::retry::Budgets;
use super::slot::Slot;
use super::vitals::Vitals;
use crate::decision::predict::ServiceTimes;
use crate::decision::route;
use crate::telemetry::traffic::{RetryTraffic, Traffic};
use crate::types::spec::RequestPolicy;
use crate::types::table::{BackendRoute, RoutingTable, TableVersion, VariantRoute};
use crate::types::{EndpointName, Generation, InstanceId, InstanceTypeName, ModelName, VariantKey};

/// What counters belong to: an instance and which start of it, never an address.
pub(super) type BackendId = (InstanceId, Generation);

/// One instance's copies of a model, with the count of what is outstanding at them.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) route: BackendRoute,
    /// Known at once unless the address has a host name.
    pub(super) socket: Option<SocketAddr>,
    pub(super) slot: Arc<Slot>,
    pub(super) vitals: Arc<Vitals>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) times: Arc<ServiceTimes>,
    pub(super) pinned: Arc<Pinned>,
    /// Its variant's.
    pub(super) room: Arc<WaitingRoom>,
    instance_header: HeaderValue,
    instance_type_header: HeaderValue,
    pub(super) host_header: HeaderValue,
}

/// Fields that say which worker an answer is from.
pub(super) type Signature<'a> = [(HeaderName, &'a HeaderValue); 2];

/// The names of a [`Signature`]'s fields.
pub(super) const SIGNATURE: [HeaderName; 2] = [
    HeaderName::from_static("x-forebay-instance"),
    HeaderName::from_static("x-forebay-instance-type"),
];

impl Backend {
    /// What its answers say of it.
    pub(super) fn signature(&self) -> Signature<'_> {
        let [instance, instance_type] = SIGNATURE;
        [(instance, &self.instance_header), (instance_type, &self.instance_type_header)]
    }

    pub(super) fn id(&self) -> BackendId {
        (self.route.instance.clone(), self.route.generation)
    }

    fn new(
        route: &BackendRoute,
        room: &Arc<WaitingRoom>,
        standing: Standing,
        (traffic, times): (Arc<Traffic>, Arc<ServiceTimes>),
    ) -> Self {
        // Names are validated to be visible ASCII, which every header value may be.
        let header = |text: &str| {
            HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
        };
        Self {
            socket: route.address.authority().parse().ok(),
            slot: standing.slot,
            vitals: standing.vitals,
            pinned: standing.pinned,
            room: Arc::clone(room),
            traffic,
            times,
            instance_header: header(route.instance.as_str()),
            instance_type_header: header(route.instance_type.as_str()),
            host_header: header(route.address.authority()),
            route: route.clone(),
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            slot: Arc::clone(&self.slot),
            vitals: Arc::clone(&self.vitals),
            pinned: Arc::clone(&self.pinned),
        }
    }

    /// Requests that all its copies take at once.
    pub(super) fn slots(&self) -> u32 {
        self.route.copies.saturating_mul(self.route.max_concurrency)
    }
}

/// What belongs to one start of an instance, whatever else of it changes.
struct Standing {
    slot: Arc<Slot>,
    vitals: Arc<Vitals>,
    pinned: Arc<Pinned>,
}

/// A variant's part of a snapshot.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) key: VariantKey,
    pub(super) model: ModelName,
    pub(super) weight: f64,
    pub(super) queue_limit: u32,
    pub(super) queue_timeout: Duration,
    pub(super) requests: RequestPolicy,
    pub(super) room: Arc<WaitingRoom>,
    /// No newer snapshot has another in its place.
    is_current: AtomicBool,
    pub(super) shared: Arc<Shared>,
    /// Counts what no instance was involved in.
    pub(super) unserved: Arc<Traffic>,
    pub(super) backends: Box<[Arc<Backend>]>,
    pub(super) choice: Choice,
}

/// What a variant's requests share, whichever snapshot they are routed by.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) budgets: Budgets,
    pub(super) retries: RetryTraffic,
    /// Held while a request's end is judged.
    pub(super) judging: Mutex<()>,
}

impl Variant {
    /// Whether requests are still routed by it, as far as this thread knows.
    pub(super) fn is_current(&self) -> bool {
        self.is_current.load(Ordering::Relaxed)
    }

    /// From now on another, or none, is routed by in its place.
    pub(super) fn retire(&self) {
        self.is_current.store(false, Ordering::Relaxed);
        self.choice.retire();
    }

    /// Chooses a copy outside the instances in `except` and takes a slot of it ([`Choice::take`]).
    pub(super) fn take_slot(
        &self,
        except: &[Generation],
        draw: impl FnMut() -> u64,
    ) -> Option<Arc<Backend>> {
        self.choice.take(except, draw).map(|position| Arc::clone(&self.backends[position]))
    }

    /// Takes a slot of the copy that `key` belongs to, or of the next one that it would like.
    pub(super) fn take_slot_by_key(&self, key: u64) -> Option<Arc<Backend>> {
        self.choice.take_by_key(key).map(|position| Arc::clone(&self.backends[position]))
    }
}

/// An endpoint's part of a snapshot.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) name: EndpointName,
    pub(super) variants: Vec<Arc<Variant>>,
}

impl Endpoint {
    /// The variant that the next request goes to: by weight among those that serve `model` (all, if
    /// `None`) and, as long as there are any, have an instance in service.
    pub(super) fn choose_variant(&self, model: Option<&str>, draw: u64) -> Option<&Arc<Variant>> {
        if let [only] = self.variants.as_slice() {
            return Some(only);
        }
        let serves = |variant: &Variant| model.is_none_or(|name| variant.serves(name));
        let weigh = |needs_instance: bool| {
            let weights = self.variants.iter().map(|v| {
                let eligible = serves(v) && !(needs_instance && v.backends.is_empty());
                if eligible { v.weight } else { 0.0 }
            });
            route::choose_weighted(weights.collect::<Vec<_>>().iter().copied(), draw)
        };
        weigh(true).or_else(|| weigh(false)).map(|at| &self.variants[at])
    }

    pub(super) fn variant(&self, name: &str) -> Option<&Arc<Variant>> {
        self.variants.iter().find(|v| v.key.variant.as_str() == name)
    }
}

impl Shared {
    fn new(key: &VariantKey, model: &ModelName) -> Self {
        Self {
            budgets: Budgets::default(),
            retries: RetryTraffic::new(key, model),
            judging: Mutex::default(),
        }
    }
}

impl Variant {
    /// Whether clients may mean this variant when they ask for the model `name`.
    fn serves(&self, name: &str) -> bool {
        self.model.as_str() == name
            || self.backends.iter().any(|backend| backend.route.model.as_str() == name)
    }
}

/// Where in a list what has a name is. Every request looks at it, and nobody but the config puts names in, so its
/// hash is a cheap one.
type Index = HashMap<Box<str>, usize, foldhash::fast::RandomState>;

/// Everything that a request is routed by.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) version: TableVersion,
    pub(super) endpoints: Vec<Endpoint>,
    by_name: Index,
    /// The first endpoint in the table's order that serves a model of that name.
    by_model: Index,
}

impl Snapshot {
    /// Builds the snapshot of `table`, taking over what `previous` has of the same meaning, and of
    /// `leaving` what comes back.
    pub(super) fn build(
        table: &RoutingTable,
        previous: &Self,
        leaving: &[Arc<Backend>],
        new_room: impl Fn(&VariantKey, &VariantRoute) -> Arc<WaitingRoom>,
    ) -> Self {
        let mut builder = Builder::new(previous, leaving);
        let endpoints: Vec<_> = table
            .endpoints
            .iter()
            .map(|endpoint| Endpoint {
                name: endpoint.name.clone(),
                variants: endpoint
                    .variants
                    .iter()
                    .map(|variant| {
                        let key = VariantKey {
                            endpoint: endpoint.name.clone(),
                            variant: variant.name.clone(),
                        };
                        Arc::new(builder.variant(key, variant, &new_room))
                    })
                    .collect(),
            })
            .collect();
        let mut snapshot = Self { version: table.version, endpoints, ..Self::default() };
        snapshot.index();
        snapshot
    }

    fn index(&mut self) {
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            self.by_name.insert(endpoint.name.as_str().into(), at);
            for variant in &endpoint.variants {
                let models = variant.backends.iter().map(|b| &b.route.model);
                for model in models.chain([&variant.model]) {
                    self.by_model.entry(model.as_str().into()).or_insert(at);
                }
            }
        }
    }

    pub(super) fn endpoint(&self, name: &str) -> Option<&Endpoint> {
        self.by_name.get(name).map(|at| &self.endpoints[*at])
    }

    pub(super) fn endpoint_of_model(&self, model: &str) -> Option<&Endpoint> {
        self.by_model.get(model).map(|at| &self.endpoints[*at])
    }

    pub(super) fn variant(&self, key: &VariantKey) -> Option<&Arc<Variant>> {
        self.endpoint(key.endpoint.as_str())?.variant(key.variant.as_str())
    }

    pub(super) fn variants(&self) -> impl Iterator<Item = &Arc<Variant>> {
        self.endpoints.iter().flat_map(|endpoint| &endpoint.variants)
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.variants().flat_map(|variant| variant.backends.iter())
    }

    /// Model names in the table's order, each once.
    pub(super) fn model_names(&self, may_ask: impl Fn(&EndpointName) -> bool) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for variant in self.variants().filter(|variant| may_ask(&variant.key.endpoint)) {
            let models = variant.backends.iter().map(|b| b.route.model.as_str());
            for name in std::iter::once(variant.model.as_str()).chain(models) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }
}

/// What is counted and learned together.
type Kind = (VariantKey, ModelName, Option<InstanceTypeName>);

/// What is taken over from the snapshot before.
struct Builder {
    backends: HashMap<BackendId, Arc<Backend>>,
    variants: HashMap<VariantKey, Arc<Variant>>,
    traffic: HashMap<Kind, Arc<Traffic>>,
    times: HashMap<Kind, Arc<ServiceTimes>>,
    /// This is not the first table: what is new in it is new altogether.
    is_later: bool,
}

impl Builder {
    fn new(previous: &Snapshot, leaving: &[Arc<Backend>]) -> Self {
        let (mut traffic, mut times) = (HashMap::new(), HashMap::new());
        for variant in previous.variants() {
            let unserved = (variant.key.clone(), variant.model.clone(), None);
            traffic.insert(unserved, Arc::clone(&variant.unserved));
            for backend in &variant.backends {
                let route = &backend.route;
                let key =
                    (variant.key.clone(), route.model.clone(), Some(route.instance_type.clone()));
                traffic.insert(key.clone(), Arc::clone(&backend.traffic));
                times.insert(key, Arc::clone(&backend.times));
            }
        }
        Self {
            backends: leaving
                .iter()
                .chain(previous.backends())
                .map(|b| (b.id(), Arc::clone(b)))
                .collect(),
            variants: previous.variants().map(|v| (v.key.clone(), Arc::clone(v))).collect(),
            traffic,
            times,
            is_later: previous.version != TableVersion::default(),
        }
    }

    fn variant(
        &mut self,
        key: VariantKey,
        route: &VariantRoute,
        new_room: &impl Fn(&VariantKey, &VariantRoute) -> Arc<WaitingRoom>,
    ) -> Variant {
        let known = self.variants.get(&key).cloned();
        let known = known.as_ref();
        let room = known.map_or_else(|| new_room(&key, route), |v| Arc::clone(&v.room));
        let backends = route.backends.iter().map(|b| self.backend(&key, &room, b));
        let backends: Box<[_]> = backends.collect();
        Variant {
            model: route.model.clone(),
            weight: route.weight,
            queue_limit: route.queue_limit,
            queue_timeout: Duration::from_millis(route.queue_timeout_ms),
            requests: route.requests.clone(),
            room,
            is_current: AtomicBool::new(true),
            shared: known.map_or_else(
                || Arc::new(Shared::new(&key, &route.model)),
                |v| Arc::clone(&v.shared),
            ),
            unserved: self.traffic(&key, &route.model, None),
            choice: Choice::new(route.strategy, &backends),
            backends,
            key,
        }
    }

    fn backend(
        &mut self,
        variant: &VariantKey,
        room: &Arc<WaitingRoom>,
        route: &BackendRoute,
    ) -> Arc<Backend> {
        let known = self.backends.get(&(route.instance.clone(), route.generation)).cloned();
        if let Some(backend) = &known
            && backend.route == *route
            && Arc::ptr_eq(&backend.room, room)
        {
            return Arc::clone(backend);
        }
        // The same start of an instance keeps its count, whatever else of it has changed.
        let standing = known.map_or_else(
            || Standing {
                slot: Arc::default(),
                vitals: Arc::new(Vitals::new(self.is_later)),
                pinned: Arc::default(),
            },
            |backend| backend.standing(),
        );
        let traffic = self.traffic(variant, &route.model, Some(&route.instance_type));
        let kind = (variant.clone(), route.model.clone(), Some(route.instance_type.clone()));
        let times = Arc::clone(self.times.entry(kind).or_default());
        Arc::new(Backend::new(route, room, standing, (traffic, times)))
    }

    fn traffic(
        &mut self,
        variant: &VariantKey,
        model: &ModelName,
        instance_type: Option<&InstanceTypeName>,
    ) -> Arc<Traffic> {
        let key = (variant.clone(), model.clone(), instance_type.cloned());
        let traffic = self
            .traffic
            .entry(key)
            .or_insert_with(|| Arc::new(Traffic::new(variant, model, instance_type)));
        Arc::clone(traffic)
    }
}
