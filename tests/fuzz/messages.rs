//! Fuzz target: see [`consume::consume`].
#![no_main]

#[path = "consume/messages.rs"]
mod consume;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    consume::consume(data);
});
