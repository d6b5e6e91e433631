//! Continues a text and answers a message with an adapter: `generate MODEL ADAPTER TEXT`.

use lowrank::models::Sampling;
use lowrank::{Limits, Session, TextGenerator};

fn main() -> lowrank::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, text] = &args[..] else {
        return Err(lowrank::Error::Usage("usage: generate MODEL ADAPTER TEXT".into()));
    };
    println!("{}", generate(model, adapter, text)?);
    Ok(())
}

/// One call each, and the same piece by piece with sampling.
pub fn generate(model: &str, adapter: &str, text: &str) -> lowrank::Result<String> {
    let session = Session::open(model)?.with_adapter(adapter)?;
    println!("answer: {}", session.chat(text)?);

    let (device, set) = (session.device(), session.adapter(Some(adapter.as_ref()))?);
    let mut generator = TextGenerator::new(&session, &device, &set)?;
    let sampling = Sampling { temperature: 0.7, seed: 1, ..Sampling::default() };
    let limits = Limits { max_new_tokens: 16, ..Limits::default() };
    generator.generate(&session.prompt(text)?, &sampling, &limits, |piece| print!("{piece}"))?;
    println!();

    session.generate(text)
}
