//! Metric math: parsed or refused with a place in it, shown as what parses to the same, evaluated.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forebay::fuzzing::expression(bytes));
