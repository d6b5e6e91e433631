//! DeBERTa-v2 and v3: the same numbers as transformers + PEFT, on a tiny sequence classifier for each kind of its
//! attention. `tools/reference/deberta_tiny.py` made the fixtures.

mod common;

use common::{Expected, close, fixture};
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Label, Record, SavedDtype, Scope, Segment, Tape};
use lowrank::models::{Base, Head, HeadKind, Model, TokenBatch, load_for};
use lowrank::train::{Example, StepOptions, Stepper, Target, pack};

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };

fn words(expected: &Expected, name: &str) -> Vec<u32> {
    expected.ints(name).iter().map(|t| *t as u32).collect()
}

/// The scores of a text, of which all rows are computed or only the first.
fn logits(
    model: &dyn Model,
    adapters: &AdapterSet,
    tokens: &[u32],
    token_types: &[u32],
    output_rows: Option<&[usize]>,
) -> Vec<f32> {
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
        token_types,
        segments: &segments,
        output_rows,
        adapters: None,
    };
    let h = model.hidden(&mut tape, &batch);
    let Head::Classes(head) = model.head() else { panic!("a classifier") };
    head.scores(&mut tape, &h, &[0]).tensor.to_vec()
}

fn check(case: &str) {
    let dir = fixture(case);
    let expected = Expected::open(&dir);
    let base = Base::open(dir.to_str().unwrap()).unwrap();
    let model = load_for(&base.config, &base.tensors, HeadKind::Sequence(3)).unwrap();
    assert!(model.info().new_layers.is_empty(), "the head is in the file");
    let adapters = AdapterSet::load(&dir.join("adapter"), model.sites()).unwrap();

    let has_types = expected.names().contains(&"types_0".to_owned());
    let mut examples = Vec::new();
    for i in 0..3 {
        let tokens = words(&expected, &format!("ids_{i}"));
        let token_types = if has_types { words(&expected, &format!("types_{i}")) } else { Vec::new() };
        for (name, set) in [("base_logits", &AdapterSet::none()), ("logits", &adapters)] {
            let name = format!("{name}_{i}");
            for output_rows in [None, Some(&[0][..])] {
                let got = logits(&*model, set, &tokens, &token_types, output_rows);
                close(&format!("{case}: {name}"), &got, &expected.floats(&name), 1e-4);
            }
        }
        let target = words(&expected, &format!("label_{i}"))[0];
        let target = Target::Classes(vec![Label { row: 0, target }]);
        examples.push(Example { tokens, token_types, target, ..Example::default() });
    }

    let batch = pack(&examples.iter().collect::<Vec<_>>(), false);
    for checkpoint_activations in [false, true] {
        let options = StepOptions { checkpoint_activations, ..PLAIN };
        let mut stepper = Stepper::new(&*model, adapters.clone(), Device::cpu(), options);
        let outcome = stepper.gradients(std::slice::from_ref(&batch)).unwrap();
        let norm = expected.floats("grad_norm");
        close(&format!("{case}: grad norm"), &[outcome.grad_norm as f32], &norm, 1e-4);
        for (id, param) in stepper.adapters.params.iter() {
            let want = expected.floats(&format!("grad.base_model.model.{}", param.name));
            close(&format!("{case}: gradient of {}", param.name), stepper.grads().values(id), &want, 1e-4);
        }
    }
    let mut stepper = Stepper::new(&*model, adapters.clone(), Device::cpu(), PLAIN);
    for (step, want) in expected.floats("losses").iter().enumerate() {
        let outcome = stepper.step(std::slice::from_ref(&batch), 3e-3).unwrap();
        let difference = (outcome.loss as f32 - want).abs();
        assert!(difference < 1e-3, "{case}: step {step}: loss {} for {want}", outcome.loss);
    }
}

#[test]
fn deberta_v3() {
    check("deberta_v3");
}

#[test]
fn deberta_conv() {
    check("deberta_conv");
}

#[test]
fn deberta_apart() {
    check("deberta_apart");
}

#[test]
fn deberta_c2p() {
    check("deberta_c2p");
}

/// The plan of a step is the memory that the step takes, to the byte.
#[test]
fn a_plan_is_exact() {
    let dir = fixture("deberta_conv");
    let base = Base::open(dir.to_str().unwrap()).unwrap();
    let model = load_for(&base.config, &base.tensors, HeadKind::Sequence(3)).unwrap();
    let adapters = AdapterSet::load(&dir.join("adapter"), model.sites()).unwrap();
    let target = || Target::Classes(vec![Label { row: 0, target: 1 }]);
    let examples: Vec<Example> =
        [5, 17, 30].map(|n| Example { tokens: vec![7; n], target: target(), ..Example::default() }).into();
    let batch = pack(&examples.iter().collect::<Vec<_>>(), false);
    let run = |device: Device| {
        let mut stepper = Stepper::new(&*model, adapters.clone(), device, PLAIN);
        let loss = stepper.gradients(std::slice::from_ref(&batch)).unwrap().loss;
        (stepper, loss)
    };
    let mut all = Vec::new();
    for rounds in [false, true] {
        let [(real, loss), (plan, _)] = [Device::cpu(), Device::plan()].map(|device| {
            run(device.with_saved_dtype(if rounds { SavedDtype::Int16 } else { SavedDtype::F32 }))
        });
        let [real_size, plan_size] =
            [&real, &plan].map(|stepper| (stepper.device().peak_bytes(), stepper.device().flops()));
        assert_eq!(real_size, plan_size);
        let ids = adapters.params.iter().map(|(id, _)| id);
        let grads: Vec<f32> = ids.flat_map(|id| real.grads().values(id).to_vec()).collect();
        all.push((loss, grads, real_size.0));
    }
    // Rounding what is kept leaves the loss alone and moves the gradients by its error.
    let [(loss, exact, most), (rounded_loss, rounded, fewer)] = all.try_into().unwrap();
    assert_eq!(loss, rounded_loss);
    assert!(fewer < most);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = exact.iter().zip(&rounded).map(|(a, b)| square(a - b)).sum();
    let size: f64 = exact.iter().copied().map(square).sum();
    assert!(error > 0.0 && error < 1e-8 * size, "gradients are {} away", (error / size).sqrt());
}

/// A last block that is the first, and has the convolution behind it.
#[test]
fn a_convolution_reads_every_row() {
    let dir = fixture("deberta_conv");
    let mut base = Base::open(dir.to_str().unwrap()).unwrap();
    base.config["num_hidden_layers"] = 1.into();
    let model = load_for(&base.config, &base.tensors, HeadKind::Sequence(3)).unwrap();
    let tokens = words(&Expected::open(&dir), "ids_0");
    let [all, first] = [None, Some(&[0][..])]
        .map(|output_rows| logits(&*model, &AdapterSet::none(), &tokens, &[], output_rows));
    close("scores", &first, &all, 1e-6);
}
