//! PyTorch's files: the machine that reads pickles.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lowrank_fuzz::with_file("pytorch_model.bin", bytes));
