//! Adapters of every kind that can stand beside others in a batch.

use lowrank::adapters::{AdapterSet, Targets};
use lowrank::engine::kernels;
use lowrank::{Session, TrainOptions};
use serde_json::json;

/// Options of adapters of every kind that can stand beside others.
pub fn kinds() -> Vec<(&'static str, TrainOptions)> {
    let lora = || TrainOptions {
        r: 3,
        target_modules: Some(Targets::parse("all-linear")),
        ..TrainOptions::default()
    };
    let method = |name: &str| TrainOptions { method: Some(name.into()), ..TrainOptions::default() };
    let virtual_tokens = |name: &str, n: usize| TrainOptions {
        peft_options: json!({"num_virtual_tokens": n}).as_object().unwrap().clone(),
        ..method(name)
    };
    vec![
        ("LoRA", lora()),
        ("rsLoRA", TrainOptions { use_rslora: true, r: 5, ..lora() }),
        ("DoRA", TrainOptions { use_dora: true, ..lora() }),
        ("IA3", method("ia3")),
        ("biases", TrainOptions { bias: "all".into(), ..lora() }),
        ("a head", TrainOptions { modules_to_save: vec!["lm_head".into()], ..lora() }),
        ("prefix", virtual_tokens("prefix", 3)),
        ("prompt", virtual_tokens("prompt", 2)),
        ("VeRA", method("vera")),
        ("LoKr", method("lokr")),
    ]
}

/// An adapter whose parameters are all random.
pub fn adapter(session: &Session, options: &TrainOptions, seed: u64) -> AdapterSet {
    let config = options.lora(&*session.model, 20).unwrap();
    let mut set = AdapterSet::new_on(config, session.sites(), seed, session).unwrap();
    let ids: Vec<_> = set.params.iter().map(|(id, _)| id).collect();
    for (stream, id) in ids.into_iter().enumerate() {
        let mut values = set.params.values(id).to_vec();
        let mut noise = vec![0.0; values.len()];
        kernels::normal(&mut noise, 0.0, 0.05, seed, stream as u64);
        values.iter_mut().zip(noise).for_each(|(x, noise)| *x += noise);
        set.params.set(id, values);
    }
    set
}
