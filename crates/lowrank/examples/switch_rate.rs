//! How long it takes to switch adapters on a loaded base, and to change the weights of several at once.
//!
//! `switch_rate MODEL`: two adapters of rank 8 on all linear layers, with random numbers.

use std::time::Instant;

use lowrank::Session;
use lowrank::adapters::{AdapterSet, AdapterStore, LoraConfig, Targets};

const TIMES: u32 = 2000;

fn main() -> lowrank::Result<()> {
    let Some(model) = std::env::args().nth(1) else {
        return Err(lowrank::Error::Usage("usage: switch_rate MODEL".into()));
    };
    let session = Session::open(&model)?;
    let config = LoraConfig { target_modules: Some(Targets::parse("all-linear")), ..LoraConfig::default() };
    let mut store = AdapterStore::default();
    for (seed, name) in (1..).zip(["poems", "code"]) {
        store.insert(name, AdapterSet::new(config.clone(), session.sites(), seed)?);
    }
    let layers = store.select("poems")?.layers.len();
    let rate = |what: &str, run: &dyn Fn(u32) -> Result<AdapterSet, lowrank::adapters::Error>| {
        let started = Instant::now();
        for i in 0..TIMES {
            run(i)?;
        }
        let each = started.elapsed() / TIMES;
        println!("{what}: {:.1} us for {layers} layers", each.as_secs_f64() * 1e6);
        Ok::<(), lowrank::Error>(())
    };
    rate("switch to another adapter", &|i| store.select(["poems", "code"][i as usize % 2]))?;
    rate("two at once with new weights", &|i| {
        let weight = i as f32 / TIMES as f32;
        store.mix(&[("poems", weight), ("code", 1.0 - weight)])
    })
}
