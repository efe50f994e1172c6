//! Nouns: plain data that every layer shares. Constructors validate; ids are typed; nothing here
//! reads a clock, draws a random number, blocks or does I/O.
//!
//! Start with [`spec`] (what the operator asked for), [`instance`] (what runs), [`table`] (what the
//! proxy routes by) and [`report`] (what the proxy tells the manager).

pub mod access;
pub mod durations;
pub mod error;
pub mod ids;
pub mod instance;
pub mod launch;
mod network;
pub mod record;
pub mod report;
pub mod scaling;
pub mod signals;
pub mod spec;
pub mod status;
pub mod table;
pub mod time;
pub mod tls;

pub use error::ProviderError;
pub use ids::{
    EndpointName, Generation, InstanceId, InstanceTypeName, KeyName, ModelName, ProviderName,
    ProxyId, VariantKey, VariantName,
};
pub use instance::{Address, InstanceState, Protocol};
pub use network::Network;
pub use time::Timestamp;
