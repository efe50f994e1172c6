//! A client's request, in whatever pieces the bytes come.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay::fuzzing::request(bytes));
