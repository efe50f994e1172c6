//! A worker's answer over HTTP/1.1, in whatever pieces it comes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay::fuzzing::answer(bytes));
