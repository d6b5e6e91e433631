//! A decoder with many adapters gives each request what its adapter alone gives it, whatever else is in the batch.

mod common;

use common::fixture;
use common::kinds::{adapter, kinds};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, AdapterStore};
use lowrank::engine::{ActiveAdapters, Device, Params};
use lowrank::models::decode::{Constrained, Constraint};
use lowrank::models::{Decoded, Decoder, DecoderOptions, Request, RequestAdapter, Sampling, Strategy};
use std::sync::Arc;

struct Served {
    session: Session,
    device: Device,
    store: AdapterStore,
    names: Vec<String>,
    sets: Vec<AdapterSet>,
}

impl Served {
    /// Sixteen adapters of all kinds and several ranks on one base.
    fn new(case: &str) -> Self {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        let (mut store, mut names, mut sets) = (AdapterStore::default(), Vec::new(), Vec::new());
        for (index, (kind, mut options)) in kinds().into_iter().cycle().take(16).enumerate() {
            if options.method.is_none() {
                options.r = 1 + index % 5;
            }
            let set = adapter(&session, &options, 100 + index as u64);
            let name = format!("{kind} {index}");
            store.insert(&name, set.clone());
            names.push(name);
            sets.push(set);
        }
        Self { session, device: Device::cpu(), store, names, sets }
    }

    /// The request of adapter `index`, or of the base: greedy or sampled, one text or two.
    fn request(&self, index: usize) -> Request {
        let vocab = self.session.model.info().vocab as u32;
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed: index as u64, ..Sampling::default() };
        Request {
            prompt: (0..3 + index as u32 % 5).map(|i| (31 * (i + 1) + 7 * index as u32) % vocab).collect(),
            max_new_tokens: 12 + index % 7,
            strategy: Strategy::Sample(if index.is_multiple_of(2) { Sampling::default() } else { sampling }),
            choices: 1 + index % 3 / 2,
            ..Request::default()
        }
    }

    /// What adapter `index` alone gives, or the base.
    fn alone(&self, index: usize) -> Vec<Decoded> {
        let (params, active) = match self.sets.get(index) {
            Some(set) => (&set.params, &set.active),
            None => (&Params::default(), &ActiveAdapters::default()),
        };
        let options = DecoderOptions::default();
        let mut decoder = Decoder::new(&*self.session.model, &self.device, params, active, options).unwrap();
        decoder.generate(&self.request(index)).unwrap()
    }

    /// A decoder with the adapters at these places.
    fn decoder<'a>(&'a self, none: &'a Params, slots: &[Option<usize>]) -> Decoder<'a> {
        let options = DecoderOptions::default();
        let base = ActiveAdapters::default();
        let mut decoder = Decoder::new(&*self.session.model, &self.device, none, &base, options).unwrap();
        decoder.set_adapters(self.route(slots));
        decoder
    }

    fn route(&self, slots: &[Option<usize>]) -> ActiveAdapters {
        let names: Vec<Option<&str>> =
            slots.iter().map(|slot| slot.map(|i| self.names[i].as_str())).collect();
        self.store.route_slots(&names).unwrap()
    }

    /// As a request names adapter `index`, which is at place `slot`.
    fn at(&self, slot: usize, index: usize) -> Option<RequestAdapter> {
        let virtual_tokens = self.sets[index].active.virtual_tokens;
        Some(RequestAdapter { index: slot, virtual_tokens, contents: index as u64 })
    }
}

#[test]
fn sixteen_adapters_in_one_batch() {
    for case in ["llama_mha", "gpt2_all", "gemma3_hub"] {
        let served = Served::new(case);
        let none = Params::default();
        let slots: Vec<Option<usize>> = (0..16).map(Some).collect();
        let mut decoder = served.decoder(&none, &slots);
        let mut requests: Vec<Request> = (0..16)
            .map(|index| Request { adapter: served.at(index, index), ..served.request(index) })
            .collect();
        requests.push(served.request(16));
        let mut together = vec![Vec::new(); requests.len()];
        let done = |number: usize, texts: Vec<Decoded>| {
            together[number] = texts;
            Ok(())
        };
        decoder.complete(&requests, 17, done).unwrap();
        for (index, got) in together.iter().enumerate() {
            let name = served.names.get(index).map_or("the base", String::as_str);
            assert_eq!(*got, served.alone(index), "{name} on {case}");
            assert!(got.iter().all(|text| !text.tokens.is_empty()), "{name} on {case}");
        }
    }
}

/// Keys and values of one adapter are never those of another, also where the tokens are the same.
#[test]
fn the_cache_of_an_adapter_is_its_own() {
    let served = Served::new("llama_mha");
    let none = Params::default();
    // Two LoRAs, a DoRA, and a place that changes hands.
    let mut decoder = served.decoder(&none, &[Some(0), Some(1), Some(2)]);
    let request =
        |of: Option<RequestAdapter>| Request { adapter: of, keep: true, choices: 1, ..served.request(0) };
    let alone = |index: usize| {
        let request = request(None);
        let (params, active) = match served.sets.get(index) {
            Some(set) => (&set.params, &set.active),
            None => (&Params::default(), &ActiveAdapters::default()),
        };
        let options = DecoderOptions::default();
        let mut decoder =
            Decoder::new(&*served.session.model, &served.device, params, active, options).unwrap();
        decoder.generate(&request).unwrap()
    };
    let mut texts = Vec::new();
    for index in [0, 1, 2, 16, 1, 0] {
        let own = if index == 16 { None } else { served.at(index, index) };
        let cached = decoder.cached(&request(own));
        assert_eq!(
            cached > 0,
            texts.len() >= 4,
            "adapter {index} finds {cached} rows of request {}",
            texts.len()
        );
        let got = decoder.generate(&request(own)).unwrap();
        assert_eq!(got, alone(index), "adapter {index}");
        texts.push(got);
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[3], "the adapters differ");
    // Adapter 3 takes the place of adapter 0: it finds nothing of it, and adapter 0 elsewhere finds its own.
    decoder.set_adapters(served.route(&[Some(3), Some(1), None, Some(0)]));
    assert_eq!(decoder.cached(&request(served.at(0, 3))), 0);
    assert_eq!(decoder.generate(&request(served.at(0, 3))).unwrap(), alone(3));
    assert!(decoder.cached(&request(served.at(3, 0))) > 0);
    assert_eq!(decoder.generate(&request(served.at(3, 0))).unwrap(), alone(0));
    decoder.forget(0);
    assert_eq!(decoder.cached(&request(served.at(3, 0))), 0);
    assert!(decoder.cached(&request(served.at(1, 1))) > 0);
}

/// Requests go on undisturbed while adapters come and go at other places.
#[test]
fn adapters_come_and_go_between_steps() {
    let served = Served::new("llama_mha");
    let none = Params::default();
    let mut decoder = served.decoder(&none, &[Some(0)]);
    let id = decoder.join(&Request { adapter: served.at(0, 0), ..served.request(0) }).unwrap();
    let mut tokens = Vec::new();
    let sets: [&[Option<usize>]; 4] =
        [&[Some(0), Some(4), Some(9)], &[Some(0), None, Some(9)], &[Some(0), Some(7), None], &[Some(0)]];
    for set in sets.iter().cycle() {
        for (of, event) in decoder.step() {
            if let (true, lowrank::models::decode::Event::Token { token, .. }) = (of == id, event) {
                tokens.push(token);
            }
        }
        if decoder.is_idle() {
            break;
        }
        decoder.set_adapters(served.route(set));
    }
    assert_eq!(tokens, served.alone(0)[0].tokens);
}

#[test]
fn penalties_biases_and_constraints_choose_other_tokens() {
    let served = Served::new("llama_mha");
    let none = Params::default();
    let mut decoder = served.decoder(&none, &[]);
    let mut tokens = |sampling: Sampling, constraint: Option<Constrained>| {
        let strategy = Strategy::Sample(sampling);
        let request = Request { strategy, constraint, max_new_tokens: 20, ..served.request(0) };
        decoder.generate(&request).unwrap().remove(0).tokens
    };
    let plain = tokens(Sampling::default(), None);
    let first = plain[0];
    let banned = tokens(Sampling { logit_bias: vec![(first, -100.0)], ..Sampling::default() }, None);
    assert!(!banned.contains(&first));
    let forced = tokens(Sampling { logit_bias: vec![(5, 100.0)], ..Sampling::default() }, None);
    assert_eq!(forced, [5; 20]);
    // Against a bias of 100, a frequency penalty of 2 changes nothing within 20 tokens; alone it leaves no token often.
    let often =
        |tokens: &[u32]| tokens.iter().map(|t| tokens.iter().filter(|u| *u == t).count()).max().unwrap();
    let spread =
        tokens(Sampling { frequency_penalty: 2.0, presence_penalty: 2.0, ..Sampling::default() }, None);
    assert!(often(&spread) <= often(&plain), "{plain:?} {spread:?}");
    assert_eq!(often(&spread), 1, "{spread:?}");
    let got = tokens(Sampling::default(), Some(Constrained(Arc::new(Countdown(4)))));
    assert_eq!(got, [4, 3, 2, 1]);
}

/// Allows 4, 3, 2, 1.
struct Countdown(u32);

impl Constraint for Countdown {
    fn mask(&mut self, logits: &mut [f32]) {
        let allowed = self.0 as usize;
        logits
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| *i != allowed)
            .for_each(|(_, x)| *x = f32::NEG_INFINITY);
    }

    fn accept(&mut self, token: u32) -> bool {
        assert_eq!(token, self.0);
        self.0 -= 1;
        self.0 == 0
    }

    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Self(4))
    }
}
