//! The scanner below the HTTP/1.1 parser, in whatever pieces the bytes come.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay::fuzzing::strict(bytes));
