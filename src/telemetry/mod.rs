//! Every metric, named once, and what is told about single requests. [`fleet`] has what the manager
//! counts, [`signals`] what instances tell of themselves, [`traffic`], [`clients`] and [`keys`] what the proxy
//! counts; handles are looked up once and kept, no request looks one up.
//! [`request`] notes what happens to a request, for the [`access`] log and for [`trace`]s. [`logs`] sets up
//! the process's own logs.

pub mod access;
pub mod clients;
pub mod finished;
pub mod fleet;
pub mod keys;
pub mod logs;
pub mod request;
pub mod signals;
pub mod trace;
pub mod traffic;
