//! A narrow window for the benchmarks onto what is otherwise private to the proxy: the choice, the queue's
//! hand-off, the search for a body's model.

use std::sync::Arc;

use futures_util::FutureExt;

use super::admission::{Affinity, Reservation};
use super::model_field::{Finder, ModelField};
use super::router::Router;
use super::snapshot::Variant;
use crate::decision::admit::Caller;
use crate::types::spec::RoutingStrategy;
use crate::types::table::{BackendRoute, EndpointRoute, RoutingTable, TableVersion, VariantRoute};
use crate::types::{Address, Generation, Protocol};

/// One variant with many copies.
#[derive(Debug)]
pub struct Fleet {
    // Waiting rooms know their router only weakly.
    _router: Arc<Router>,
    variant: Arc<Variant>,
}

/// A slot that is given back when dropped.
#[derive(Debug)]
pub struct Held(#[allow(dead_code, reason = "its drop is what counts")] Reservation);

impl Fleet {
    /// `copies` instances with one copy each that takes `max_concurrency` requests at once.
    #[must_use]
    pub fn new(copies: u32, max_concurrency: u32, strategy: RoutingStrategy) -> Self {
        let name = "bench";
        let valid = "a valid name";
        let backend = |number: u32| BackendRoute {
            instance: format!("i-{number}").parse().expect(valid),
            generation: Generation(number.into()),
            instance_type: name.parse().expect(valid),
            address: Address::http(([127, 0, 0, 1], 9).into()),
            model: name.parse().expect(valid),
            copies: 1,
            max_concurrency,
            protocol: Protocol::Http1,
            tls: None,
            engine: None,
            on_client_abort: Default::default(),
            load_metrics: None,
            recoveries: 0,
        };
        let variant = VariantRoute {
            name: name.parse().expect(valid),
            model: name.parse().expect(valid),
            weight: 1.0,
            strategy,
            queue_limit: 65_536,
            queue_timeout_ms: 600_000,
            requests: Default::default(),
            backends: (0..copies).map(backend).collect(),
        };
        let router = Router::new(name.parse().expect(valid));
        router.apply(&RoutingTable {
            format: RoutingTable::FORMAT,
            version: TableVersion { epoch: 1, revision: 1 },
            endpoints: vec![Arc::new(EndpointRoute {
                name: name.parse().expect(valid),
                variants: vec![variant],
            })],
        });
        let variant = router.current().variants().next().cloned().expect("one variant");
        Self { _router: router, variant }
    }

    /// Chooses and reserves, as a request does; `None` when nothing is free.
    #[must_use]
    pub fn take(&self) -> Option<Held> {
        let admitted = self.variant.admit(Caller { priority: 0, id: 0 }, &[], Affinity::None);
        admitted.now_or_never()?.ok().map(Held)
    }

    /// Takes a slot, waiting for its turn where none is free. Needs a runtime with time.
    pub async fn wait(&self) -> Option<Held> {
        let caller = Caller { priority: 0, id: 0 };
        self.variant.admit(caller, &[], Affinity::None).await.ok().map(Held)
    }
}

/// Whether the top-level `model` of a whole JSON body was found.
#[must_use]
pub fn names_a_model(body: &[u8]) -> bool {
    matches!(Finder::new().look(body), Some(ModelField::Named(_)))
}
