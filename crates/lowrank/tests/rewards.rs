//! GRPO and its kin on given completions are TRL's: advantages, every step's loss, what is logged of it, and the gradients of the
//! first two steps, the second with ratios that are clipped. `tools/reference/rewards.py` made the fixtures.

mod common;

use common::{Expected, close_norm, fixture};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, SavedDtype};
use lowrank::files::LoadOptions;
use lowrank::models::Sampling;
use lowrank::train::{
    Example, ImportanceSamplingLevel, LossOptions, LossType, PackedBatch, RolloutOptions, Sample,
    SamplingOptions, ScaleRewards, StepOptions, Stepper, Task, TaskSpec, advantages, learned, pack,
};
use serde_json::Value;

const STEPS: usize = 8;
const LR: f64 = 3e-3;
const PROMPTS: usize = 2;
const GENERATIONS: usize = 4;
const LONGEST: usize = 6;
const EOS: u32 = 2;

fn tokens(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// A case of the reference script.
#[derive(Clone)]
struct Case {
    name: &'static str,
    loss: LossOptions,
    iterations: usize,
    scale: ScaleRewards,
    mask_truncated: bool,
}

impl Case {
    fn new(name: &'static str, loss_type: LossType) -> Self {
        let loss = LossOptions {
            losses: vec![(loss_type, 1.0)],
            beta: 0.0,
            epsilon: 0.03,
            epsilon_high: Some(0.05),
            ..LossOptions::DEFAULT
        };
        let rloo = loss_type == LossType::Rloo;
        let scale = if rloo { ScaleRewards::None } else { ScaleRewards::Group };
        Self { name, loss, iterations: 2, scale, mask_truncated: false }
    }

    fn loss_type(&self) -> LossType {
        self.loss.losses[0].0
    }
}

/// A batch of completions: examples, rewards, and which of the tokens end a text.
fn completions(rows: &[Value], case: &Case) -> (Vec<Example>, Vec<f64>) {
    let (mut examples, mut rewards) = (Vec::new(), Vec::new());
    for row in rows {
        let prompt = tokens(&row["prompt"]);
        for i in 0..GENERATIONS {
            let completion = tokens(&row["completions"][i]);
            let learns = !case.mask_truncated || completion.last() == Some(&EOS);
            let mut loss_mask = vec![false; prompt.len()];
            loss_mask.resize(prompt.len() + completion.len(), learns);
            examples.push(Example {
                tokens: [&prompt[..], &completion].concat(),
                loss_mask,
                prompt_len: prompt.len(),
                sample: Some(Sample::default()),
                ..Example::default()
            });
            let second = row["second"][i].as_f64().unwrap_or(0.0);
            rewards.push(row["first"][i].as_f64().unwrap() + 0.5 * second);
        }
    }
    (examples, rewards)
}

/// Tokens of the completions of a batch.
fn data_tokens(data: &[Value], number: usize) -> usize {
    let rows = &data[number * PROMPTS..(number + 1) * PROMPTS];
    rows.iter().flat_map(|row| row["completions"].as_array().unwrap()).map(|c| tokens(c).len()).sum()
}

fn rollout_options(case: &Case) -> RolloutOptions {
    RolloutOptions {
        sampling: SamplingOptions {
            num_generations: GENERATIONS,
            max_completion_length: LONGEST,
            stop_tokens: vec![EOS],
            sampling: Sampling::default(),
        },
        batch_size: PROMPTS * GENERATIONS,
        num_iterations: case.iterations as u64,
        scale_rewards: case.scale,
        reward_weights: vec![1.0, 0.5],
        mask_truncated_completions: case.mask_truncated,
        loss_type: case.loss_type(),
        beta: case.loss.beta,
        num_completions_to_log: 0,
    }
}

fn check(case: &Case, base: &str, share: bool) {
    let name = if base == "llama" { case.name.to_owned() } else { format!("{}_{base}", case.name) };
    let dir = fixture("rewards").join(&name);
    let path = dir.join("adapter");
    let base = fixture("variants").join(base);
    let mut session = Session::for_adapter(
        base.to_str().unwrap(),
        LoadOptions::default(),
        Some(&path),
        Some(Task::Grpo),
        None,
    )
    .unwrap();
    session.task = TaskSpec { loss: case.loss.clone(), ..TaskSpec::new(Task::Grpo, Vec::new()) };
    let load = || AdapterSet::load_on(&path, session.sites(), &session).unwrap();
    // TRL's reference is the adapter as it starts.
    let (adapters, reference) = (load(), load());
    let device = Device::cpu().with_saved_dtype(SavedDtype::F32);
    let options =
        StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 1.0, seed: 0 };
    let mut stepper =
        Stepper::new(&*session.model, adapters, device.clone(), options).for_task(session.task.clone(), None);
    let expected = Expected::open(&dir);
    let losses = expected.doubles("losses");
    assert_eq!(losses.len(), STEPS);
    let data: Vec<Value> =
        serde_json::from_slice(&std::fs::read(fixture("rewards").join("data.json")).unwrap()).unwrap();
    let temperature = case.loss.temperature as f32;
    let how = rollout_options(case);
    let rloo = case.loss_type() == LossType::Rloo;
    let mut batch = PackedBatch::clone(&pack(&[], share));
    let (mut compared, mut clipped, mut zero) = (0, 0.0, 0.0);
    for (step, want) in losses.iter().enumerate() {
        let number = step / case.iterations;
        if step % case.iterations == 0 {
            let (examples, mut rewards) = completions(&data[number * PROMPTS..(number + 1) * PROMPTS], case);
            let packed = |examples: &[Example]| pack(&examples.iter().collect::<Vec<_>>(), share);
            if rloo && case.loss.beta > 0.0 {
                let whole = packed(&examples);
                let own = stepper.scorer().sample_logps(&whole, temperature);
                let theirs = session.scorer(&reference, &device).unwrap().sample_logps(&whole, temperature);
                let sum = |logps: &[f32]| logps.iter().map(|logp| f64::from(*logp)).sum::<f64>();
                for ((reward, own), theirs) in rewards.iter_mut().zip(&own).zip(&theirs) {
                    *reward -= case.loss.beta * (sum(own) - sum(theirs));
                }
            }
            let worth = advantages(&rewards, GENERATIONS, case.scale, rloo);
            zero += worth.frac_reward_zero_std;
            let all = expected.doubles("advantages");
            for (have, want) in worth.advantages.iter().zip(&all[number * rewards.len()..]) {
                assert!((have - want).abs() < 1e-4, "{name}: advantage {have} for {want}");
            }
            let micro_batches = learned(&how, vec![examples], &worth.advantages);
            assert_eq!(micro_batches.len(), 1);
            batch = packed(&micro_batches[0]);
            if case.iterations > 1 {
                let old = stepper.scorer().sample_logps(&batch, temperature);
                batch.samples.iter_mut().zip(old).for_each(|(sample, old)| sample.old_logps = old);
            }
            if case.loss.beta > 0.0 && !rloo {
                let theirs = session.scorer(&reference, &device).unwrap().sample_logps(&batch, temperature);
                batch.samples.iter_mut().zip(theirs).for_each(|(sample, own)| sample.ref_logps = own);
            }
        }
        if step < 2 {
            stepper.gradients(std::slice::from_ref(&batch)).unwrap();
            for (id, param) in stepper.adapters.params.iter() {
                let want = expected.floats(&format!("grad{step}.base_model.model.{}", param.name));
                let tolerance = if step == 0 { 2e-5 } else { 1e-4 };
                let have = stepper.grads().get(id).to_vec();
                close_norm(&format!("{name}: step {step}: {}", param.name), &have, &want, tolerance);
                compared += 1;
            }
        }
        let outcome = stepper.step(std::slice::from_ref(&batch), LR).unwrap();
        let near = |what: &str, have: f64, want: f64, tolerance: f64| {
            assert!(
                (have - want).abs() <= tolerance * want.abs().max(1.0),
                "{name}, share {share}: {what} of step {}: {have} for {want}",
                step + 1
            );
        };
        near("loss", outcome.loss, *want, 1e-4);
        if let Some(kl) = outcome.metrics.get("kl") {
            near("kl", *kl, expected.doubles("kl")[step], 1e-4);
            compared += 1;
        }
        for metric in ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"] {
            // TRL counts completions without an advantage too, which have no ratio that is clipped.
            let learned = batch.samples.iter().map(|sample| sample.labels).sum::<usize>();
            let sampled = data_tokens(&data, number);
            if learned == sampled {
                near(metric, outcome.metrics[metric], expected.doubles(metric)[step], 1e-4);
                compared += 1;
            }
        }
        clipped += outcome.metrics["clip_ratio/region_mean"];
    }
    assert!(compared > 4, "{name}: {compared}");
    let may_be_zero = case.scale != ScaleRewards::Batch && !(rloo && case.loss.beta > 0.0);
    assert!(zero > 0.0 || !may_be_zero, "{name}: no group without a deviation");
    assert!(clipped > 0.0 || case.iterations == 1, "{name}: nothing was clipped");
}

fn check_all(case: &Case, bases: &[&str]) {
    for base in bases {
        for share in [true, false] {
            check(case, base, share);
        }
    }
}

const BOTH: &[&str] = &["llama", "gpt2"];
const LLAMA: &[&str] = &["llama"];

#[test]
fn grpo() {
    check_all(&Case { iterations: 1, ..Case::new("plain", LossType::Grpo) }, LLAMA);
    let mut case = Case::new("grpo", LossType::Grpo);
    case.loss.beta = 0.1;
    check_all(&case, BOTH);
    case.name = "grpo_kl";
    case.loss.use_bias_correction_kl = false;
    check_all(&case, LLAMA);
}

#[test]
fn its_kin() {
    check_all(&Case { scale: ScaleRewards::None, ..Case::new("dr_grpo", LossType::DrGrpo) }, LLAMA);
    check_all(&Case { scale: ScaleRewards::Batch, ..Case::new("bnpo", LossType::Bnpo) }, LLAMA);
    let mut dapo = Case { mask_truncated: true, ..Case::new("dapo", LossType::Dapo) };
    dapo.loss.temperature = 0.7;
    check_all(&dapo, BOTH);
}

#[test]
fn sequences() {
    let mut case = Case::new("sequence", LossType::Grpo);
    case.loss.beta = 0.1;
    (case.loss.epsilon, case.loss.epsilon_high) = (0.01, Some(0.01));
    case.loss.importance_sampling_level = ImportanceSamplingLevel::Sequence;
    check_all(&case, BOTH);
}

#[test]
fn rloo() {
    let mut case = Case::new("rloo", LossType::Rloo);
    case.loss.beta = 0.05;
    check_all(&case, LLAMA);
    let mut case = Case { scale: ScaleRewards::Batch, ..Case::new("rloo_normalized", LossType::Rloo) };
    case.loss.temperature = 1.3;
    check_all(&case, LLAMA);
}
