//! Greedy and beam search give the texts of transformers' `generate`. `tools/reference/beam.py` made the fixture.

mod common;

use common::{Expected, fixture};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::Device;
use lowrank::models::decode::EarlyStopping;
use lowrank::models::{Decoded, Decoder, DecoderOptions, Request, SearchOptions, Strategy};
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
