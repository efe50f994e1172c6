//! Every metric, named once, and the set-up of logs ([`logs`]). [`fleet`] has what the manager counts,
//! [`traffic`] what the proxy counts. Handles are looked up once and kept; no request looks one up.

pub mod fleet;
pub mod logs;
pub mod traffic;
