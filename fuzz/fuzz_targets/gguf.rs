#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lowrank_fuzz::with_file("model.gguf", bytes));
