//! Converts a base model between Hugging Face folders and GGUF files:
//! `cargo run --release -p lowrank-models --example convert -- MODEL OUT FORMAT`, where `OUT` ends in
//! `.gguf` or names a folder, and `FORMAT` is F32, F16, BF16 or (GGUF only) Q8_0.

use std::path::Path;

use lowrank_engine::Format;
use lowrank_models::{Base, save_folder, save_gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, format] = arguments.as_slice() else {
        return Err("usage: convert MODEL OUT FORMAT".into());
    };
    let format = Format::ALL.into_iter().find(|f| f.name() == format).ok_or("unknown format")?;
    let base = Base::open(model)?;
    let mut copy = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| {
        Ok(base.tensors.read_rows(name, rows, out)?)
    };
    let out = Path::new(out);
    match out.extension() {
        Some(ending) if ending == "gguf" => save_gguf(&base, out, format, &mut copy)?,
        _ => save_folder(&base, out, format, &mut copy)?,
    }
    Ok(())
}
