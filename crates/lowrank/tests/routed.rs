//! One batch for several adapters gives each row what its adapter alone gives it.

mod common;

use std::ops::Range;

use common::fixture;
use common::kinds::{adapter, kinds};
use lowrank::Session;
use lowrank::adapters::AdapterStore;
use lowrank::engine::{ActiveAdapters, Device, Params, Record, RowAdapters, Scope, Segment, Tape};
use lowrank::models::TokenBatch;

/// The logits of some sequences, each with as many virtual tokens before it and the adapter of its rows: of all rows, or of
/// the last of each.
fn logits(
    session: &Session,
    params: &Params,
    active: &ActiveAdapters,
    texts: &[(Vec<u32>, usize, Option<usize>)],
    last: bool,
) -> Vec<Vec<f32>> {
    let vocab = session.model.info().vocab as u32;
    let (mut tokens, mut positions, mut lengths, mut segments) = (vec![], vec![], vec![], vec![]);
    let mut ranges: Vec<(Range<usize>, usize)> = Vec::new();
    for (text, virtual_tokens, adapter) in texts {
        let start = tokens.len();
        tokens.extend((vocab..).take(*virtual_tokens));
        tokens.extend(text);
        let rows = start..tokens.len();
        positions.extend(0..rows.len() as u32);
        lengths.extend(rows.clone().map(|_| rows.len() as u32));
        segments.push(Segment { q: rows.clone(), prefix: 0..0, own: rows.clone() });
        ranges.extend(adapter.map(|adapter| (rows, adapter)));
    }
    let rows = RowAdapters::new(tokens.len(), &ranges);
    let lasts: Vec<usize> = segments.iter().map(|segment| segment.q.end - 1).collect();
    let batch = TokenBatch {
        tokens: &tokens,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: last.then_some(&lasts),
        adapters: Some(&rows),
    };
    let device = Device::cpu();
    let mut tape = Tape::new(Scope::inference(&device, params), active, Record::Nothing);
    let h = session.model.hidden(&mut tape, &batch);
    let all = device.to_vec(&tape.logits(session.model.lm_head().unwrap(), &h));
    let width = all.len() / if last { lasts.len() } else { tokens.len() };
    let of = |(i, s): (usize, &Segment)| match last {
        true => all[i * width..(i + 1) * width].to_vec(),
        false => all[s.q.start * width..s.q.end * width].to_vec(),
    };
    segments.iter().enumerate().map(of).collect()
}

#[test]
fn each_row_gets_what_its_adapter_alone_gives() {
    for case in ["llama_mha", "gpt2_all", "gemma3_hub"] {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        let vocab = session.model.info().vocab as u32;
        let mut store = AdapterStore::default();
        let mut texts: Vec<(Vec<u32>, usize, Option<usize>)> = vec![(vec![7, 8, 9, 10], 0, None)];
        let (mut names, mut alone) = (Vec::new(), Vec::new());
        for (index, (name, options)) in kinds().into_iter().enumerate() {
            let set = adapter(&session, &options, 11 + index as u64);
            let text: Vec<u32> =
                (0..3 + index as u32 % 4).map(|i| (17 * (i + 1) + 5 * index as u32) % vocab).collect();
            // Two sequences of one adapter, apart from each other.
            texts.push((text.clone(), set.active.virtual_tokens, Some(index)));
            alone.push(set.clone());
            store.insert(name, set);
            names.push(name);
        }
        let again: Vec<_> = texts.iter().skip(1).step_by(2).cloned().collect();
        texts.extend(again);
        let active = store.route(&names).unwrap();
        for last in [false, true] {
            let together = logits(&session, &Params::default(), &active, &texts, last);
            for (text, got) in texts.iter().zip(together) {
                let (none, base) = (Params::default(), ActiveAdapters::default());
                let (params, active) =
                    text.2.map_or((&none, &base), |i| (&alone[i].params, &alone[i].active));
                let want = logits(&session, params, active, std::slice::from_ref(text), last).remove(0);
                let what = format!("{} on {case}, last {last}", text.2.map_or("the base", |i| names[i]));
                common::close(&what, &got, &want, 2e-5);
            }
        }
    }
}
