//! Adapter files in every format that is one file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lowrank_fuzz::as_adapter(bytes));
