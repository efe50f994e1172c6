//! W3C Trace Context.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay::fuzzing::traceparent(bytes));
