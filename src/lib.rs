//! Forebay: capacity-aware instance pools in front of any set of model servers.
//!
//! One package, two halves that also run apart: **the proxy** (data plane) sends each request to the
//! copy of a model with the fewest outstanding requests; **the manager** (control plane) keeps every
//! endpoint's fleet at its size out of a prioritised list of instance types.
//!
//! # The map, in reading order
//!
//! | module | owns |
//! |---|---|
//! | [`types`] | nouns: names, specs, records, the routing table |
//! | [`decision`] | verbs: choosing a copy, queueing, planning, autoscaling, the controller, the checker; pure |
//! | [`sim`] | a deterministic world that drives the same controller |
//! | [`provider`] | the trait behind which instances come from, and its real implementations |
//! | [`store`] | durable state behind a small trait |
//! | [`tls`] | certificates, keys and handshakes, towards clients and towards workers |
//! | [`config`] | the file: what it may say, and the validated form of it |
//! | [`proxy`] | the data plane: listeners, the life of a request, upstream connections |
//! | [`control`] | the control plane: drives the controller, executes its actions, publishes the table |
//! | [`api`] | the management HTTP: status, scaling, metrics, the table feed |
//! | [`cli`] | the client's side of the management API |
//! | [`telemetry`] | every metric, named once; logs |
//! | [`runtime`] | the clock, randomness, tasks, the shared memory of hand-offs |
//! | [`worker`] | the stand-in model server |
//! | [`app`] | the composition root |
//!
//! # Always true
//!
//! 1. A request is counted as outstanding exactly from being sent until its last byte, failure or
//!    cancellation; after any load all counters return to 0.
//! 2. A draining instance gets no new request, and is stopped only when its last request is done or its
//!    drain deadline has passed.
//! 3. Fallback leaves first.
//! 4. No worker is launched twice for the same need, none is forgotten.
//! 5. A client that goes away frees the worker.
//! 6. Nothing is unbounded.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod decision;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod provider;
pub mod proxy;
pub mod runtime;
pub mod sim;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod types;
pub mod worker;

#[cfg(test)]
mod tidy;
