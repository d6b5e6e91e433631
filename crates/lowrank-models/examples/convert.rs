//! Converts a base model between Hugging Face folders and GGUF files:
//! `cargo run --release -p lowrank-models --example convert -- MODEL OUT FORMAT`, where `OUT` ends in
//! `.gguf` or names a folder, and `FORMAT` is f32, f16, bf16 or (GGUF only) another file type, such as q4_k_m.

use std::path::Path;

use lowrank_engine::Format;
use lowrank_models::{Base, FileType, save_folder, save_gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, format] = arguments.as_slice() else {
        return Err("usage: convert MODEL OUT FORMAT".into());
    };
    let base = Base::open(model)?;
    let mut copy = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| {
        Ok(base.tensors.read_rows(name, rows, out)?)
    };
    let out = Path::new(out);
    match out.extension() {
        Some(ending) if ending == "gguf" => {
            let known = FileType::ALL.into_iter().find(|t| t.name() == format);
            save_gguf(&base, out, Some(known.ok_or("unknown file type")?), &mut copy)?;
        }
        _ => {
            let known = Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(format));
            save_folder(&base, out, known.ok_or("unknown format")?, &mut copy)?;
        }
    }
    Ok(())
}
