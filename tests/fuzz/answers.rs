//! Fuzz target: responses of chain endpoints, see [`body::consume`].
#![no_main]

mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::consume(data));
