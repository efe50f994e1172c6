//! The body's `model`, in whatever pieces the body comes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay::fuzzing::model_field(bytes));
