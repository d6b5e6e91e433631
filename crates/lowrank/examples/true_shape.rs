//! Compares one forward and backward pass with what `tools/reference/true_shape.py` wrote to a folder.
//!
//! `cargo run --release -p lowrank --example true_shape -- DIR`

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Label, Record, Scope, Segment, Tape};
use lowrank::models::{Base, Head, HeadKind, Model, TokenBatch, load_for};
use lowrank::train::{Example, StepOptions, Stepper, Target, memory, pack};
use safetensors::SafeTensors;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("which folder?")?;
    let dir = Path::new(&dir);
    let bytes = std::fs::read(dir.join("expected.safetensors"))?;
    let expected = SafeTensors::deserialize(&bytes)?;
    let base = Base::open(dir.to_str().ok_or("the path is no text")?)?;
    let language = base.config["model_type"] == "gpt2";
    let kind = if language { HeadKind::Language } else { HeadKind::Sequence(3) };
    let model = load_for(&base.config, &base.tensors, kind)?;
    let adapters = AdapterSet::load(&dir.join("adapter"), model.sites())?;

    let mut examples = Vec::new();
    for i in 0..2 {
        let ids = expected.tensor(&format!("ids_{i}"))?.data().to_vec();
        let ids = ids.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight")) as u32);
        let tokens: Vec<u32> = ids.collect();
        let got = logits(&*model, &adapters, &tokens);
        println!("logits {i}: {}", difference(&got, &floats(&expected, &format!("logits_{i}"))?));
        let target = match language {
            true => Target::Next,
            false => Target::Classes(vec![Label { row: 0, target: i as u32 }]),
        };
        let loss_mask = if language { (0..tokens.len()).map(|t| t > 0).collect() } else { Vec::new() };
        examples.push(Example { tokens, loss_mask, target, ..Example::default() });
    }
    let batch = pack(&examples.iter().collect::<Vec<_>>(), false);
    let options =
        StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 0 };
    let mut stepper = Stepper::new(&*model, adapters, Device::cpu(), options);
    let started = Instant::now();
    let outcome = stepper.gradients(std::slice::from_ref(&batch))?;
    let seconds = started.elapsed().as_secs_f64();
    println!("loss: {}", difference(&[outcome.loss as f32], &floats(&expected, "loss")?));
    let mut worst = BTreeMap::new();
    for (id, param) in stepper.adapters.params.iter() {
        let want = floats(&expected, &format!("grad.base_model.model.{}", param.name))?;
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let apart =
            stepper.grads().values(id).iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        worst.insert(param.name.clone(), apart / largest);
    }
    let (name, share) = worst.iter().max_by(|a, b| a.1.total_cmp(b.1)).ok_or("no gradient")?;
    println!("gradients: {} of them, at most {share:.1e} of the largest number apart ({name})", worst.len());
    let peak = memory::peak_rss_bytes().unwrap_or(0) as f64 / f64::from(1 << 20);
    println!("{seconds:.1} s forward and backward, peak {peak:.0} MiB");
    Ok(())
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, safetensors::SafeTensorError> {
    let data = file.tensor(name)?.data().to_vec();
    Ok(data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect())
}

fn difference(got: &[f32], want: &[f32]) -> String {
    let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let apart = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    format!("{} numbers, at most {:.1e} of the largest ({largest:.3}) apart", want.len(), apart / largest)
}

/// Scores of the last token, or of the text.
fn logits(model: &dyn Model, adapters: &AdapterSet, tokens: &[u32]) -> Vec<f32> {
    let n = tokens.len();
    let positions: Vec<u32> = (0..n as u32).collect();
    let lengths = vec![n as u32; n];
    let segments = [Segment { q: 0..n, prefix: 0..0, own: 0..n }];
    let device = Device::cpu();
    let scope = Scope::inference(&device, &adapters.params);
    let mut tape = Tape::new(scope, &adapters.active, Record::Nothing);
    let batch = TokenBatch {
        tokens,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: None,
        adapters: None,
    };
    let h = model.hidden(&mut tape, &batch);
    match model.head() {
        Head::Language(head) => {
            let last = tape.select_rows(&h, &[n - 1]);
            tape.logits(head, &last).to_vec()
        }
        Head::Classes(head) => head.scores(&mut tape, &h, &[0]).tensor.to_vec(),
        _ => Vec::new(),
    }
}
