//! The fuzzer's entry to [`body::eat`].
#![no_main]

mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::eat(data));
