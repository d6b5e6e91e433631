//! Writes logits for `tools/reference/peft_load.py --check`, which computes them again with PEFT.
//!
//! `logits MODEL ADAPTER TEXT > LOGITS.json` (ADAPTER `-` for the base alone)

use std::path::Path;

use lowrank::Session;
use lowrank::engine::Device;
use lowrank::models::Sequence;

fn main() -> lowrank::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, text] = &args[..] else {
        return Err(lowrank::Error::Usage("usage: logits MODEL ADAPTER TEXT".into()));
    };
    let session = Session::open(model)?;
    let adapters = session.adapter((adapter != "-").then_some(Path::new(adapter)))?;
    let ids = session.tokenizer()?.encode(text)?;
    let device = Device::cpu();
    let mut sequence = Sequence::new(&*session.model, &device, &adapters.params, &adapters.active)?;
    let logits: Vec<Vec<f32>> = ids.iter().map(|id| sequence.feed(&[*id])).collect();
    println!("{}", serde_json::json!({ "cases": [{ "ids": ids, "logits": logits }] }));
    Ok(())
}
