//! Engine profiles: what `check` says of settings that do not go with an engine, what the proxy makes of an
//! engine's habits, and a real engine, llama.cpp's server, where it has been built.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::print_stderr,
    reason = "tests run in real time, compare exact counts and say what they skip"
)]

mod habits;
mod llama_cpp;
mod settings;
#[path = "../support/mod.rs"]
mod support;
