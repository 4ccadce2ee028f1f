//! `cargo +nightly fuzz run stream` in `firmware/wire`.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|input: &[u8]| common::fuzz(input));
