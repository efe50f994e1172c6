//! What engines and GPU exporters tell.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay::fuzzing::signals(bytes));
