//! Greedy and beam search give the texts of transformers' `generate`. `tools/reference/beam.py` made the fixture.

mod common;

use common::{Expected, fixture, logits};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::Device;
use lowrank::models::decode::EarlyStopping;
use lowrank::models::{Decoded, Decoder, DecoderOptions, Request, Sampling, SearchOptions, Strategy};
use serde_json::Value;

const ENDS: [u32; 3] = [2, 7, 40];

fn search(options: &Value) -> SearchOptions {
    let number = |key: &str, default: f64| options.get(key).map_or(default, |v| v.as_f64().unwrap());
    SearchOptions {
        num_beams: number("num_beams", 1.0) as usize,
        length_penalty: number("length_penalty", 1.0) as f32,
        no_repeat_ngram_size: number("no_repeat_ngram_size", 0.0) as usize,
        early_stopping: match options.get("early_stopping") {
            None => EarlyStopping::Likely,
            Some(Value::Bool(true)) => EarlyStopping::Always,
            Some(_) => EarlyStopping::Never,
        },
    }
}

#[test]
fn texts_equal_transformers() {
    let text = std::fs::read_to_string(fixture("beam.json")).unwrap();
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut ended = 0;
    // Three entries of one setting come together: they are decoded together here.
    for group in entries.chunks_exact(3) {
        let name = group[0]["model"].as_str().unwrap();
        let dir = fixture(name);
        let expected = Expected::open(&dir);
        let session = Session::open(dir.to_str().unwrap()).unwrap();
        let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();
        let options = &group[0]["options"];
        let request = |i: usize| Request {
            prompt: expected.ints(&format!("ids_{i}")).iter().map(|t| *t as u32).collect(),
            max_new_tokens: 16,
            stop_tokens: ENDS.to_vec(),
            strategy: Strategy::Search(search(options)),
            ..Request::default()
        };
        let requests: Vec<Request> = (0..3).map(request).collect();
        let device = Device::cpu();
        let AdapterSet { params, active, .. } = &adapters;
        let limits = DecoderOptions::default();
        let mut decoder = Decoder::new(&*session.model, &device, params, active, limits).unwrap();
        let mut given = vec![Decoded::default(); 3];
        let keep = |i: usize, mut texts: Vec<Decoded>| {
            given[i] = texts.remove(0);
            Ok(())
        };
        decoder.complete(&requests, 3, keep).unwrap();
        for (entry, given) in group.iter().zip(&given) {
            assert_eq!(&entry["options"], options);
            let want: Vec<u32> =
                entry["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
            assert_eq!(given.tokens, want, "{name}, prompt {}, {options}", entry["prompt"]);
            if let Some(score) = entry.get("score") {
                let score = score.as_f64().unwrap() as f32;
                assert!(
                    (given.score.unwrap() - score).abs() < 1e-4 * score.abs().max(1.0),
                    "{name}: {given:?}, {score}"
                );
            }
            ended += usize::from(want.len() < 16);
        }
    }
    assert!(ended > 10, "some texts end before the limit: {ended}");
}

/// A text that grows beyond the trained positions of longrope goes on as if all of it were read anew (transformers'
/// `Phi3ForCausalLM.generate`), alone, beside others, in a group, and behind a conversation that is kept.
#[test]
fn texts_that_cross_the_trained_positions() {
    let session = Session::open(fixture("phi3_longrope").to_str().unwrap()).unwrap();
    let (none, device) = (AdapterSet::none(), Device::cpu());
    let AdapterSet { params, active, .. } = &none;
    let prompt = |n: u32| (0..n).map(|i| 3 + (i * i + 5 * i) % 37).collect::<Vec<u32>>();
    let anew = |n: u32, more: usize| {
        let mut tokens = prompt(n);
        for _ in 0..more {
            let rows = logits(&session, &none, &tokens);
            let last = &rows[rows.len() - 40..];
            let best = (0..40).max_by(|a: &usize, b: &usize| last[*a].total_cmp(&last[*b])).unwrap();
            tokens.push(best as u32);
        }
        tokens.split_off(n as usize)
    };
    let request =
        |n: u32| Request { prompt: prompt(n), max_new_tokens: 16, keep: true, ..Request::default() };
    for prefill_chunk in [3, 512] {
        let options = DecoderOptions { prefill_chunk, ..DecoderOptions::default() };
        let mut decoder = Decoder::new(&*session.model, &device, params, active, options).unwrap();
        // Each begins like the one before, which is kept.
        for n in [5, 12, 16, 17, 20, 14] {
            let given = decoder.generate(&request(n)).unwrap();
            assert_eq!(given[0].tokens, anew(n, 16), "{n} tokens, {prefill_chunk} at a time");
        }
        let together: Vec<Request> = [5, 20, 12].into_iter().map(request).collect();
        let mut given = vec![Vec::new(); 3];
        let keep = |i: usize, mut texts: Vec<Decoded>| {
            given[i] = texts.remove(0).tokens;
            Ok(())
        };
        decoder.complete(&together, 3, keep).unwrap();
        assert_eq!(given, [anew(5, 16), anew(20, 16), anew(12, 16)]);

        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let sampled = |seed: u64, choices| Request {
            strategy: Strategy::Sample(Sampling { seed, ..sampling.clone() }),
            choices,
            keep: false,
            ..request(12)
        };
        let group = decoder.generate(&sampled(7, 3)).unwrap();
        for (i, text) in group.iter().enumerate() {
            let alone = decoder.generate(&sampled(7 + i as u64, 1)).unwrap();
            assert_eq!(text.tokens, alone[0].tokens, "choice {i}");
        }
    }
}
