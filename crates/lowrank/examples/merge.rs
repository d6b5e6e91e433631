//! Merges an adapter into its base: `merge MODEL ADAPTER OUT`, a folder, or a GGUF file where OUT ends in `.gguf`.

use lowrank::{MergeCheck, MergeTarget, Session, merge_checked};

fn main() -> lowrank::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, out] = &args[..] else {
        return Err(lowrank::Error::Usage("usage: merge MODEL ADAPTER OUT".into()));
    };
    merge(model, adapter, out)
}

/// Writes the merged model, opens it again and compares it with the unmerged one.
pub fn merge(model: &str, adapter: &str, out: &str) -> lowrank::Result<()> {
    let adapters = [(adapter.into(), 1.0)];
    let session = Session::for_adapters(model, &adapters, None)?;
    let set = session.adapters(&adapters)?;
    let target = MergeTarget::choose(&session, &set, out.as_ref(), None)?;
    let check = MergeCheck { probe: "The quick brown fox".into(), tolerance: None };
    let merged = merge_checked(&session, &set, out.as_ref(), target, Some(&check))?;
    let compared = merged.verified.expect("a check was asked for");
    println!("outputs differ by at most {:.2e}", compared.max_difference);
    Ok(())
}
