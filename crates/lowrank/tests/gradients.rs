//! Gradients of the whole step against finite differences, and what must not change them.

mod common;

use common::{close, example, fixture, nudge};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, LoraConfig, Targets};
use lowrank::engine::{Device, SavedDtype};
use lowrank::train::{Example, PackedBatch, StepOptions, Stepper, pack};

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 3 };

/// Three completions of one prompt and two of another, a text without prompt among them.
fn examples() -> Vec<Example> {
    let mut all = Vec::new();
    for (prompt, completion) in [(11, 40), (11, 7), (23, 5), (11, 9), (23, 61)] {
        let ids: Vec<i64> =
            (0..9).map(|i| (prompt * (i + 3)) % 96).chain((0..6).map(|i| completion + i)).collect();
        let labels: Vec<i64> = ids.iter().enumerate().map(|(i, t)| if i < 9 { -100 } else { *t }).collect();
        all.push(example(&ids, &labels));
    }
    all.insert(2, example(&[5, 6, 7, 8], &[5, 6, 7, 8]));
    all
}

fn batch(share: bool) -> PackedBatch {
    pack(&examples().iter().collect::<Vec<_>>(), share)
}

/// A fresh adapter whose B is not zero, so that every gradient has something to say.
fn adapters(session: &Session, dropout: f32, targets: &str) -> AdapterSet {
    let config = LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        lora_dropout: dropout,
        target_modules: Some(Targets::parse(targets)),
        ..LoraConfig::default()
    };
    let mut set = AdapterSet::new(config, session.sites(), 1).unwrap();
    for (stream, layer) in set.layers.clone().iter().enumerate() {
        let [_, b] = layer.variant.params()[..] else { panic!("A and B") };
        let param = set.params.get_mut(b);
        param.fill_with(|b| lowrank::engine::kernels::uniform(b, -0.1, 0.1, 9, stream as u64));
    }
    set
}

fn loss(session: &Session, set: &AdapterSet, batch: &PackedBatch) -> f64 {
    let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), PLAIN);
    stepper.gradients(std::slice::from_ref(batch)).unwrap().loss
}

/// The derivative along a random direction, over all parameters at once.
fn check_direction(case: &str, dropout: f32, targets: &str) {
    let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
    check_slopes(case, &session, &adapters(&session, dropout, targets));
}

fn check_slopes(case: &str, session: &Session, set: &AdapterSet) {
    let batch = batch(true);
    let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), PLAIN);
    stepper.gradients(std::slice::from_ref(&batch)).unwrap();
    for seed in 0..3 {
        let (mut there, mut back) = (set.clone(), set.clone());
        let (mut along, eps) = (0.0, 2e-3f32);
        for (stream, (id, param)) in set.params.iter().enumerate() {
            let mut direction = vec![0.0; param.value.len()];
            lowrank::engine::kernels::normal(&mut direction, 0.0, 1.0, 100 + seed, stream as u64);
            for (i, d) in direction.iter().enumerate() {
                nudge(&mut there.params, id, i, eps * d);
                nudge(&mut back.params, id, i, -eps * d);
                along += f64::from(stepper.grads().values(id)[i]) * f64::from(*d);
            }
        }
        let slope = (loss(session, &there, &batch) - loss(session, &back, &batch)) / (2.0 * f64::from(eps));
        let scale = stepper.grads().norm(stepper.device());
        assert!(
            (slope - along).abs() < 5e-3 * scale,
            "{case}: slope {slope}, gradient {along}, norm {scale}"
        );
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    check_direction("llama_gqa_tied", 0.0, "all-linear");
    check_direction("qwen3_qk_norm", 0.0, "all-linear");
    check_direction("mistral_window", 0.0, "q_proj,k_proj,v_proj");
}

#[test]
fn dropout_has_the_gradient_of_its_mask() {
    check_direction("llama_mha", 0.3, "all-linear");
}

#[test]
fn an_adapter_on_the_head_has_its_gradient() {
    check_direction("llama_mha", 0.0, "q_proj,lm_head");
}

/// An adapter that a table and its head share has the gradients of both.
#[test]
fn tied_layers_have_their_gradients() {
    let session = Session::open(fixture("llama_gqa_tied").to_str().unwrap()).unwrap();
    let case = "tied_table_adapted";
    for dropout in [0.0, 0.3] {
        let dir = fixture("peft_reading").join(case);
        let read = AdapterSet::load(&dir, session.sites()).unwrap();
        let config = LoraConfig { lora_dropout: dropout, ..read.config.clone() };
        let mut set = AdapterSet::planned(config, session.sites()).unwrap();
        set.params = read.params;
        // Small enough that the loss is straight along the way of the difference.
        let ids: Vec<_> = set.params.iter().map(|(id, _)| id).collect();
        for id in ids {
            let smaller = set.params.values(id).iter().map(|x| x * 0.5).collect();
            set.params.set(id, smaller);
        }
        check_slopes(case, &session, &set);
    }
}

/// Biases of layers and norms, and rows of a table that is also the head, or is not.
#[test]
fn biases_and_tokens_have_their_gradients() {
    for (case, targets) in
        [("gpt2_c_attn", "c_attn"), ("llama_bias", "q_proj,down_proj"), ("llama_embedding", "v_proj")]
    {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        let config = LoraConfig {
            r: 3,
            bias: "all".into(),
            target_modules: Some(Targets::parse(targets)),
            other: serde_json::from_str(r#"{"trainable_token_indices": [44, 7, 41]}"#).unwrap(),
            ..LoraConfig::default()
        };
        let mut set = AdapterSet::new_on(config, session.sites(), 1, &session).unwrap();
        let start = loss(&session, &set, &batch(true));
        let base = loss(&session, &AdapterSet::none(), &batch(true));
        assert!((start - base).abs() < 1e-6, "{case}: training starts at the base");
        for (stream, (id, param)) in set.clone().params.iter().enumerate() {
            if param.name.contains("lora_B") {
                let param = set.params.get_mut(id);
                param.fill_with(|b| lowrank::engine::kernels::uniform(b, -0.1, 0.1, 9, stream as u64));
            }
        }
        check_slopes(case, &session, &set);
        let again =
            gradients(&session, &set, &batch(true), StepOptions { checkpoint_activations: true, ..PLAIN });
        assert_eq!(again, gradients(&session, &set, &batch(true), PLAIN), "{case}: with checkpoints");
    }
}

fn gradients(
    session: &Session,
    set: &AdapterSet,
    batch: &PackedBatch,
    options: StepOptions,
) -> (f64, Vec<Vec<f32>>) {
    let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), options);
    let outcome = stepper.gradients(std::slice::from_ref(batch)).unwrap();
    let all = set.params.iter().map(|(id, _)| stepper.grads().values(id).to_vec()).collect();
    (outcome.loss, all)
}

#[test]
fn sharing_prompts_changes_no_number() {
    for case in ["llama_gqa_tied", "mistral_window", "qwen2_bias"] {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        let set = adapters(&session, 0.0, "all-linear");
        let (shared, apart) = (batch(true), batch(false));
        assert!(shared.rows() < apart.rows(), "prompts are shared at all");
        let (loss, grads) = gradients(&session, &set, &shared, PLAIN);
        let (want_loss, want) = gradients(&session, &set, &apart, PLAIN);
        close("loss", &[loss as f32], &[want_loss as f32], 1e-5);
        for (got, want) in grads.iter().zip(&want) {
            close(case, got, want, 1e-5);
        }
    }
}

/// The last block computes output rows alone, which changes nothing but the work.
#[test]
fn rows_that_no_label_names_change_no_number() {
    for case in ["llama_gqa_tied", "gpt2_c_attn", "gemma2_caps", "phi3_partial", "gpt3_banded"] {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        let set = adapters(&session, 0.0, "all-linear");
        let vocab = session.model.info().vocab as u32;
        let mut some = batch(true);
        some.tokens.iter_mut().chain(some.labels.iter_mut().map(|l| &mut l.target)).for_each(|t| *t %= vocab);
        let output_rows = some.output_rows.as_ref().expect("prompts have no labels");
        assert!(output_rows.is_sorted() && output_rows.len() < some.rows());
        let all = PackedBatch { output_rows: None, ..some.clone() };
        let [few, full] = [&some, &all].map(|batch| {
            let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), PLAIN);
            stepper.gradients(std::slice::from_ref(batch)).unwrap();
            stepper.device().flops()
        });
        assert!(few < full, "{case}: {few} of {full} operations");
        let [(loss, grads), (want_loss, want)] =
            [&some, &all].map(|batch| gradients(&session, &set, batch, PLAIN));
        assert!((loss - want_loss).abs() < 1e-6 * want_loss, "{case}: {loss} and {want_loss}");
        for (got, want) in grads.iter().zip(&want) {
            close(case, got, want, 1e-5);
        }
        let checkpoints = StepOptions { checkpoint_activations: true, ..PLAIN };
        assert_eq!((loss, grads), gradients(&session, &set, &some, checkpoints), "{case}: with checkpoints");
    }
}

#[test]
fn checkpoints_give_the_same_bits_even_with_dropout() {
    let session = Session::open(fixture("llama_gqa_tied").to_str().unwrap()).unwrap();
    let set = adapters(&session, 0.2, "all-linear");
    let kept = gradients(&session, &set, &batch(true), PLAIN);
    let again =
        gradients(&session, &set, &batch(true), StepOptions { checkpoint_activations: true, ..PLAIN });
    assert_eq!(kept, again);
    assert_eq!(kept, gradients(&session, &set, &batch(true), PLAIN), "and so does another run");
}

/// Attention over a long text keeps its output, among many short texts it computes it again, and with an adapter on what
/// follows it is kept anyway: the gradient is the same.
#[test]
fn an_output_of_attention_computed_again_is_the_one_kept() {
    let session = Session::open(fixture("llama_gqa_tied").to_str().unwrap()).unwrap();
    let ids: Vec<i64> = (0..120).map(|i| i * 7 % 96).collect();
    let (long, short) = (example(&ids, &ids), example(&ids[..6], &[-100; 6]));
    let alone = pack(&[&long], false);
    let among = pack(&[&[&long][..], &[&short; 100]].concat(), false);
    for targets in ["v_proj", "all-linear"] {
        let set = adapters(&session, 0.0, targets);
        let [(loss, kept), (same, again)] =
            [&alone, &among].map(|batch| gradients(&session, &set, batch, PLAIN));
        assert!((loss - same).abs() < 1e-6 * loss, "{targets}: {loss} and {same}");
        for (kept, again) in kept.iter().zip(&again) {
            close(targets, again, kept, 1e-5);
        }
    }
}

/// Rounding what is kept leaves the loss as it is, moves gradients by its error, and takes less memory, all of it planned.
#[test]
fn kept_activations_can_be_rounded() {
    for case in ["llama_gqa_tied", "qwen3_qk_norm", "gpt2_c_attn", "mistral_window", "qwen2_bias"] {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        let set = adapters(&session, 0.0, "all-linear");
        let (loss, want) = gradients(&session, &set, &batch(true), PLAIN);
        let stepper = |device: Device| {
            let mut stepper =
                Stepper::new(&*session.model, set.clone(), device.with_saved_dtype(SavedDtype::Int16), PLAIN);
            let outcome = stepper.gradients(std::slice::from_ref(&batch(true))).unwrap();
            (stepper, outcome.loss)
        };
        let ((rounded, rounded_loss), (plan, _)) = (stepper(Device::cpu()), stepper(Device::plan()));
        assert_eq!(rounded_loss, loss, "{case}");
        assert_eq!(rounded.device().peak_bytes(), plan.device().peak_bytes(), "{case}");
        let mut exact = Stepper::new(&*session.model, set.clone(), Device::plan(), PLAIN);
        exact.gradients(std::slice::from_ref(&batch(true))).unwrap();
        assert!(plan.device().peak_bytes() < exact.device().peak_bytes(), "{case}");
        let (mut error, mut size) = (0.0, 0.0);
        for ((id, _), want) in set.params.iter().zip(&want) {
            for (got, want) in rounded.grads().values(id).iter().zip(want) {
                error += f64::from(got - want).powi(2);
                size += f64::from(*want).powi(2);
            }
        }
        let error = (error / size).sqrt();
        assert!(error > 0.0 && error < 1e-4, "{case}: gradients are {error} away");
    }
}

#[test]
fn planning_counts_what_running_takes() {
    let session = Session::open(fixture("qwen3_qk_norm").to_str().unwrap()).unwrap();
    let set = adapters(&session, 0.1, "all-linear");
    for checkpoint_activations in [false, true] {
        let options = StepOptions { checkpoint_activations, ..PLAIN };
        let mut real = Stepper::new(&*session.model, set.clone(), Device::cpu(), options);
        let mut plan = Stepper::new(&*session.model, set.clone(), Device::plan(), options);
        for stepper in [&mut real, &mut plan] {
            stepper.gradients(std::slice::from_ref(&batch(true))).unwrap();
        }
        assert_eq!(real.device().peak_bytes(), plan.device().peak_bytes());
        assert_eq!(real.device().flops(), plan.device().flops());
        assert!(plan.device().flops() > 0);
    }
}
