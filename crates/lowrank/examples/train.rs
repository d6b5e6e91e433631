//! Trains an adapter: `train MODEL DATA OUT`.

use std::sync::atomic::AtomicBool;

use lowrank::{Session, TrainOptions, finetune};

fn main() -> lowrank::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, out] = &args[..] else {
        return Err(lowrank::Error::Usage("usage: train MODEL DATA OUT".into()));
    };
    train(model, data, out)
}

/// Every option of `lowrank train` is a field.
pub fn train(model: &str, data: &str, out: &str) -> lowrank::Result<()> {
    let options = TrainOptions { r: 8, epochs: 1.0, ..TrainOptions::new(model, data, out) };
    let session = Session::for_run(&options)?;
    // Set to true, from a signal handler say, it ends the run after the step at hand, saved.
    let stop = AtomicBool::new(false);
    let summary = finetune(&session, &options, &stop)?;
    println!("{} steps, loss {:?}; adapter written to {out}", summary.steps, summary.last_loss);
    Ok(())
}
