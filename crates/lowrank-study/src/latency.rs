//! How long a forward pass takes: the base, base and adapter, and whatever else is compared.

use std::time::Instant;

use lowrank_adapters::AdapterSet;
use lowrank_engine::{Device, Record, Scope, Segment, Tape};
use lowrank_models::{Model, TokenBatch};

/// Seconds of one forward pass: the median of several, and the fastest and the slowest.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Median.
    pub median: f64,
    /// Fastest.
    pub least: f64,
    /// Slowest.
    pub most: f64,
}

/// Times a forward pass of `batch` sequences of `length` tokens up to the next token's logits
/// (of an encoder: up to its last hidden states), for each of
/// `subjects` in turns, `repeats` times after one that is not counted.
pub fn time_forward(
    device: &Device,
    subjects: &[(&dyn Model, &AdapterSet)],
    batch: usize,
    length: usize,
    repeats: usize,
) -> Vec<Timing> {
    let mut seconds = vec![Vec::new(); subjects.len()];
    for round in 0..=repeats {
        for (times, (model, adapters)) in seconds.iter_mut().zip(subjects) {
            let took = forward(device, *model, adapters, batch, length);
            if round > 0 {
                times.push(took);
            }
        }
    }
    seconds
        .into_iter()
        .map(|mut s| {
            s.sort_by(f64::total_cmp);
            Timing { median: s[s.len() / 2], least: s[0], most: s[s.len() - 1] }
        })
        .collect()
}

fn forward(device: &Device, model: &dyn Model, adapters: &AdapterSet, batch: usize, length: usize) -> f64 {
    // Virtual tokens come before those that are counted.
    let virtual_tokens = adapters.active.virtual_tokens;
    let length = length + virtual_tokens;
    let rows = batch * length;
    let token = |i: usize| match i % length {
        at if at < virtual_tokens => model.info().vocab + at,
        _ => i * 7919 % model.info().vocab,
    };
    let tokens: Vec<u32> = (0..rows).map(|i| token(i) as u32).collect();
    let positions: Vec<u32> = (0..rows).map(|i| (i % length) as u32).collect();
    let lengths = vec![length as u32; rows];
    let segments: Vec<Segment> = (0..batch)
        .map(|b| b * length..(b + 1) * length)
        .map(|own| Segment { q: own.clone(), prefix: 0..0, own })
        .collect();
    let last: Vec<usize> = segments.iter().map(|s| s.q.end - 1).collect();

    let started = Instant::now();
    let scope = Scope::inference(device, &adapters.params);
    let mut tape = Tape::new(scope, &adapters.active, Record::Nothing);
    let batch = TokenBatch {
        tokens: &tokens,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: None,
        adapters: None,
    };
    let hidden = model.hidden(&mut tape, &batch);
    let last = tape.select_rows(&hidden, &last);
    match model.lm_head() {
        Some(head) => drop(std::hint::black_box(tape.logits(head, &last))),
        None => drop(std::hint::black_box(last)),
    }
    started.elapsed().as_secs_f64()
}
