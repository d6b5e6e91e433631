//! Requests that join, are decoded together and leave: each has the texts it has alone.

mod common;

use std::collections::HashMap;

use common::{Expected, fixture};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::Device;
use lowrank::models::decode::{Event, Finish, RequestId};
use lowrank::models::{
    Decoded, Decoder, DecoderOptions, Error, Request, Sampling, SearchOptions, Sequence, Strategy,
};

struct Place {
    session: Session,
    adapters: AdapterSet,
    device: Device,
    prompts: Vec<Vec<u32>>,
}

impl Place {
    fn new() -> Self {
        let dir = fixture("llama_gqa_tied");
        let session = Session::open(dir.to_str().unwrap()).unwrap();
        let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();
        let expected = Expected::open(&dir);
        let ids = |i: usize| expected.ints(&format!("ids_{i}")).iter().map(|t| *t as u32).collect();
        Self { session, adapters, device: Device::cpu(), prompts: (0..3).map(ids).collect() }
    }

    fn decoder(&self, options: DecoderOptions) -> Decoder<'_> {
        let AdapterSet { params, active, .. } = &self.adapters;
        Decoder::new(&*self.session.model, &self.device, params, active, options).unwrap()
    }

    /// Requests of every kind: greedy, sampled, groups, beams, with short and long texts.
    fn requests(&self) -> Vec<Request> {
        let sampled = |seed| Sampling {
            temperature: 1.3,
            top_p: 0.95,
            repetition_penalty: 1.2,
            seed,
            ..Sampling::default()
        };
        let of = |prompt: usize, max_new_tokens, strategy, choices| Request {
            prompt: self.prompts[prompt].clone(),
            max_new_tokens,
            stop_tokens: vec![2, 7, 40],
            strategy,
            choices,
            ..Request::default()
        };
        let beams = |num_beams| Strategy::Search(SearchOptions { num_beams, ..SearchOptions::default() });
        vec![
            of(0, 30, Strategy::Sample(Sampling::default()), 1),
            of(1, 90, Strategy::Sample(sampled(5)), 1),
            of(2, 12, beams(4), 1),
            of(0, 25, Strategy::Sample(sampled(9)), 5),
            of(1, 1, Strategy::Sample(sampled(1)), 3),
            of(2, 70, Strategy::Sample(sampled(2)), 2),
            of(1, 20, beams(1), 1),
            of(0, 0, Strategy::Sample(Sampling::default()), 2),
        ]
    }

    fn alone(&self, request: &Request) -> Vec<Decoded> {
        self.decoder(DecoderOptions::default()).generate(request).unwrap()
    }
}

/// The texts of requests, gathered from events.
#[derive(Default)]
struct Texts(HashMap<RequestId, Vec<Decoded>>);

impl Texts {
    fn hear(&mut self, events: Vec<(RequestId, Event)>) {
        for (id, event) in events {
            let texts = self.0.entry(id).or_default();
            match event {
                Event::Token { choice, token, .. } => {
                    texts.resize(texts.len().max(choice + 1), Decoded::default());
                    texts[choice].tokens.push(token);
                }
                Event::Finished { choice, .. } => {
                    texts.resize(texts.len().max(choice + 1), Decoded::default())
                }
                Event::Found(text) => *texts = vec![text],
                Event::NotFinite => panic!("a model of numbers"),
            }
        }
    }
}

fn tokens(texts: &[Decoded]) -> Vec<&[u32]> {
    texts.iter().map(|text| &text.tokens[..]).collect()
}

#[test]
fn texts_do_not_depend_on_who_else_is_there() {
    let place = Place::new();
    let requests = place.requests();
    let alone: Vec<_> = requests.iter().map(|request| place.alone(request)).collect();
    assert!(alone[1][0].tokens.len() > 3 && alone[3].len() == 5 && alone[7] == vec![Decoded::default(); 2]);
    // Requests join one or two steps after each other; one leaves in the middle; prompts come in small chunks.
    for prefill_chunk in [3, 512] {
        let mut decoder = place.decoder(DecoderOptions { prefill_chunk, ..DecoderOptions::default() });
        let mut texts = Texts::default();
        let leaving = decoder.join(&requests[5]).unwrap();
        let mut ids = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            ids.push(decoder.join(request).unwrap());
            for _ in 0..=i % 2 {
                texts.hear(decoder.step());
            }
            if i == 4 {
                decoder.leave(leaving);
                texts.0.remove(&leaving);
            }
        }
        while !decoder.is_idle() {
            texts.hear(decoder.step());
        }
        assert!(!texts.0.contains_key(&leaving), "nothing is heard of who left");
        for (id, want) in ids.iter().zip(&alone) {
            assert_eq!(tokens(&texts.0[id]), tokens(want), "chunks of {prefill_chunk}");
        }
    }
}

#[test]
fn little_room_moves_rows_and_changes_no_text() {
    let place = Place::new();
    let mut requests = place.requests();
    requests.extend(place.requests());
    requests.extend(place.requests());
    let alone: Vec<_> = requests.iter().map(|request| place.alone(request)).collect();
    let decoder = place.decoder(DecoderOptions::default());
    let most = requests.iter().map(|request| decoder.rows_needed(request).unwrap()).max().unwrap();
    for cache_rows in [most, 2 * most + 17] {
        let mut decoder = place.decoder(DecoderOptions { cache_rows, prefill_chunk: 20 });
        let mut done = 0;
        let check = |i: usize, texts: Vec<Decoded>| {
            assert_eq!(tokens(&texts), tokens(&alone[i]), "request {i} in {cache_rows} rows");
            done += 1;
            Ok(())
        };
        decoder.complete(&requests, usize::MAX, check).unwrap();
        assert_eq!((done, decoder.free_rows()), (requests.len(), cache_rows));
    }
}

#[test]
fn a_group_shares_its_prompt_and_samples_by_seed() {
    let place = Place::new();
    let group = place.requests()[3].clone();
    let texts = place.alone(&group);
    let Strategy::Sample(sampling) = &group.strategy else { unreachable!() };
    for (i, text) in texts.iter().enumerate() {
        let sampling = Sampling { seed: sampling.seed + i as u64, ..sampling.clone() };
        let one = Request { strategy: Strategy::Sample(sampling), choices: 1, ..group.clone() };
        assert_eq!(text.tokens, place.alone(&one)[0].tokens, "text {i}");
    }
    assert!(texts.iter().any(|text| text.tokens != texts[0].tokens));
    // Rows: the prompt once, then each text's own, whose last token is never fed.
    let decoder = place.decoder(DecoderOptions::default());
    let (n, most) = (group.prompt.len(), group.max_new_tokens);
    assert_eq!(decoder.rows_needed(&group).unwrap(), n + 5 * (most - 1));
    let beams = &place.requests()[2];
    assert_eq!(decoder.rows_needed(beams).unwrap(), beams.prompt.len() + 4 * (beams.max_new_tokens - 1));
    let values: usize = place.session.model.info().kv_widths.iter().sum();
    assert_eq!(decoder.row_bytes(), 2 * 4 * values);
    // Work: the prompt once.
    let work = |request: &Request| {
        let before = place.device.flops();
        place.decoder(DecoderOptions::default()).generate(request).unwrap();
        place.device.flops() - before
    };
    let first = |choices| Request { choices, max_new_tokens: 1, ..group.clone() };
    assert_eq!(work(&first(5)), work(&first(1)));
}

#[test]
fn who_leaves_frees_its_rows() {
    let place = Place::new();
    let request = Request { choices: 2, ..place.requests()[1].clone() };
    let need = place.decoder(DecoderOptions::default()).rows_needed(&request).unwrap();
    let mut decoder = place.decoder(DecoderOptions { cache_rows: need + 10, ..DecoderOptions::default() });
    assert_eq!(decoder.free_rows(), need + 10);
    for steps in [0, 1, 5] {
        let id = decoder.join(&request).unwrap();
        let refused = decoder.join(&request);
        assert!(matches!(refused, Err(Error::NoRoom { free: 10, .. })), "{refused:?}");
        for _ in 0..steps {
            decoder.step();
        }
        decoder.leave(id);
        assert!(decoder.is_idle() && decoder.free_rows() == need + 10);
    }
    // One text of two leaves: its rows are free, and the other goes on as it would.
    let want = place.alone(&request);
    let id = decoder.join(&request).unwrap();
    let mut texts = Texts::default();
    texts.hear(decoder.step());
    decoder.end_choice(id, 0);
    assert_eq!(decoder.free_rows(), 10 + request.max_new_tokens - 1);
    while !decoder.is_idle() {
        texts.hear(decoder.step());
    }
    assert_eq!(texts.0[&id][0].tokens.len(), 1);
    assert_eq!(texts.0[&id][1].tokens, want[1].tokens);
    assert_eq!(decoder.free_rows(), need + 10);
}

#[test]
fn a_long_prompt_stalls_nobody() {
    let place = Place::new();
    let mut decoder = place.decoder(DecoderOptions { prefill_chunk: 4, ..DecoderOptions::default() });
    let short = Request { prompt: place.prompts[0][..3].to_vec(), max_new_tokens: 40, ..Request::default() };
    let long = Request { prompt: place.prompts.concat(), max_new_tokens: 1, ..Request::default() };
    let first = decoder.join(&short).unwrap();
    decoder.step();
    let second = decoder.join(&long).unwrap();
    for _ in 0..long.prompt.len().div_ceil(4) - 1 {
        let events = decoder.step();
        assert!(matches!(events[..], [(id, Event::Token { .. })] if id == first), "{events:?}");
    }
    let events = decoder.step();
    let ended = (second, Event::Finished { choice: 0, reason: Finish::Length });
    assert!(events.contains(&ended), "{events:?}");
}

#[test]
fn a_kept_conversation_computes_what_is_new() {
    let place = Place::new();
    let turn = |prompt: &[u32]| Request {
        prompt: prompt.to_vec(),
        max_new_tokens: 9,
        keep: true,
        ..Request::default()
    };
    let mut decoder = place.decoder(DecoderOptions { cache_rows: 400, ..DecoderOptions::default() });
    let mut all = place.prompts[0].clone();
    let mut works = Vec::new();
    for next in [&place.prompts[1], &place.prompts[2]] {
        let answer = decoder.generate(&turn(&all)).unwrap().remove(0);
        assert_eq!(answer.tokens, place.alone(&turn(&all))[0].tokens);
        all.extend(answer.tokens);
        all.extend(next);
        works.push([true, false].map(|kept| {
            let before = place.device.flops();
            if kept {
                decoder.generate(&turn(&all)).unwrap();
            } else {
                place.alone(&turn(&all));
            }
            place.device.flops() - before
        }));
    }
    for [kept, anew] in works {
        assert!(kept < anew, "{kept} operations, {anew} anew");
    }
    // What is kept makes room for others.
    assert_eq!(decoder.free_rows(), 400);
    let other = Request { prompt: place.prompts[2].clone(), max_new_tokens: 300, ..Request::default() };
    assert_eq!(decoder.generate(&other).unwrap()[0].tokens, place.alone(&other)[0].tokens);
    decoder.drop_kept();
    assert_eq!(decoder.free_rows(), 400);
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let place = Place::new();
    let sampling = Sampling { temperature: 0.8, top_k: 5, seed: 3, ..Sampling::default() };
    let request = Request {
        strategy: Strategy::Sample(sampling),
        logprobs: Some(4),
        max_new_tokens: 6,
        ..place.requests()[0].clone()
    };
    let AdapterSet { params, active, .. } = &place.adapters;
    let mut sequence = Sequence::new(&*place.session.model, &place.device, params, active).unwrap();
    let mut logits = sequence.feed(&request.prompt);
    let mut decoder = place.decoder(DecoderOptions::default());
    decoder.join(&request).unwrap();
    let mut seen = 0;
    while !decoder.is_idle() {
        for (_, event) in decoder.step() {
            let Event::Token { token, logprobs, .. } = event else { continue };
            let logprobs = logprobs.unwrap();
            let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            let of = |token: u32| (f64::from(logits[token as usize]) - total.ln()) as f32;
            assert!((logprobs.chosen - of(token)).abs() < 1e-4);
            assert_eq!(logprobs.top.len(), 4);
            assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
            for (token, value) in &logprobs.top {
                assert!((value - of(*token)).abs() < 1e-4);
            }
            logits = sequence.feed(&[token]);
            seen += 1;
        }
    }
    assert!(seen > 1);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let place = Place::new();
    let mut decoder = place.decoder(DecoderOptions::default());
    let good = place.requests()[0].clone();
    let sampled = |sampling| Request { strategy: Strategy::Sample(sampling), ..good.clone() };
    let none = SearchOptions { num_beams: 0, ..SearchOptions::default() };
    for (request, want) in [
        (Request { prompt: Vec::new(), ..good.clone() }, "the prompt is empty"),
        (Request { prompt: vec![1 << 20], ..good.clone() }, "the vocabulary has"),
        (Request { choices: 0, ..good.clone() }, "choices"),
        (sampled(Sampling { temperature: f32::NAN, ..Sampling::default() }), "temperature"),
        (sampled(Sampling { top_p: 0.0, ..Sampling::default() }), "top_p"),
        (Request { strategy: Strategy::Search(none), ..good.clone() }, "num_beams"),
    ] {
        let error = decoder.join(&request).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    assert!(decoder.is_idle());
}
