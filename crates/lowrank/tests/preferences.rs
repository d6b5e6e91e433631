//! Losses of preferences and rewards are TRL's: every step's loss, what is logged of it, and the gradients of the first step.
//! `tools/reference/preferences.py` made the fixtures.

mod common;

use common::{Expected, close_norm, fixture};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::Device;
use lowrank::files::LoadOptions;
use lowrank::train::{
    Example, Examples, LossOptions, LossType, StepOptions, Stepper, Target, Task, TaskSpec, pack, reference,
};
use serde_json::Value;

const STEPS: usize = 20;
const LR: f64 = 1e-3;
const BATCH: usize = 4;

fn tokens(row: &Value, name: &str) -> Vec<u32> {
    row[name].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// Prompt, first and second completion.
fn example(prompt: &[u32], first: &[u32], second: &[u32], target: Target, on_prompt: bool) -> Example {
    let tokens = [prompt, first, second].concat();
    let loss_mask = if on_prompt { vec![true; tokens.len()] } else { Vec::new() };
    Example { tokens, loss_mask, prompt_len: prompt.len(), target, ..Example::default() }
}

fn examples(task: Task, on_prompt: bool) -> Examples {
    let data = std::fs::read(fixture("preferences").join("data.json")).unwrap();
    let data: Value = serde_json::from_slice(&data).unwrap();
    let rows = |name: &str| data[name].as_array().unwrap().clone();
    if task == Task::Lm {
        let of = |row: &Value| {
            let mut example =
                example(&tokens(row, "prompt"), &tokens(row, "completion"), &[], Target::Next, false);
            example.loss_mask = (0..example.tokens.len()).map(|at| at >= example.prompt_len).collect();
            example
        };
        return rows("unpaired").iter().map(of).collect();
    }
    if task == Task::Kto {
        let rows = rows("unpaired");
        let of = |(i, row): (usize, &Value)| {
            // TRL takes the other completions from the same batch, one row further up.
            let batch = i / BATCH * BATCH;
            let other = &rows[batch + (i - batch + BATCH - 1) % BATCH];
            let completion = tokens(row, "completion");
            let target = Target::Completions {
                first: completion.len(),
                desirable: Some(row["label"].as_bool().unwrap()),
            };
            example(&tokens(row, "prompt"), &completion, &tokens(other, "completion"), target, false)
        };
        return rows.iter().enumerate().map(of).collect();
    }
    let of = |row: &Value| {
        let (chosen, rejected) = (tokens(row, "chosen"), tokens(row, "rejected"));
        let target = match task {
            Task::Reward => {
                Target::Rewards { first: chosen.len(), margin: row["margin"].as_f64().unwrap() as f32 }
            }
            _ => Target::Completions { first: chosen.len(), desirable: None },
        };
        example(&tokens(row, "prompt"), &chosen, &rejected, target, on_prompt)
    };
    rows("pairs").iter().map(of).collect()
}

/// Trains the case's adapter on the base it was made for, with prompts computed once or for each completion.
fn check(case: &str, base: &str, loss: LossOptions, task: Task, share: bool) {
    let name = if base == "llama" { case.to_owned() } else { format!("{case}_{base}") };
    let dir = fixture("preferences").join(&name);
    let base = fixture("variants").join(base);
    let path = dir.join("adapter");
    let mut session =
        Session::for_adapter(base.to_str().unwrap(), LoadOptions::default(), Some(&path), Some(task), None)
            .unwrap();
    session.task = TaskSpec { loss: loss.clone(), ..TaskSpec::new(task, Vec::new()) };
    let adapters = AdapterSet::load_on(&path, session.sites(), &session).unwrap();
    let device = Device::cpu().with_saved_dtype(lowrank::engine::SavedDtype::F32);
    let mut examples = examples(task, loss.reads_prompts(task));
    if matches!(task, Task::Preference | Task::Kto) && loss.needs_reference(task) {
        // TRL's reference is the adapter as it starts.
        let scorer = session.scorer(&adapters, &device).unwrap();
        let logps = reference::log_probabilities(&scorer, &examples, 3, share);
        examples = reference::with_reference(&examples, &logps);
    }
    let options =
        StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 1.0, seed: 0 };
    let mut stepper =
        Stepper::new(&*session.model, adapters, device, options).for_task(session.task.clone(), None);
    let expected = Expected::open(&dir);
    let values = |name: &str| -> Vec<f64> { expected.doubles(name) };
    let losses = values("losses");
    assert_eq!(losses.len(), STEPS);
    let mut compared = 0;
    for (step, want) in losses.iter().enumerate() {
        let at = step * BATCH % examples.len();
        let batch = examples.batch(at..at + BATCH);
        let batch = pack(&batch.iter().collect::<Vec<_>>(), share);
        if step == 0 {
            stepper.gradients(std::slice::from_ref(&batch)).unwrap();
            for (id, param) in stepper.adapters.params.iter() {
                let want = expected.floats(&format!("grad.base_model.model.{}", param.name));
                close_norm(
                    &format!("{name}: {}", param.name),
                    &stepper.grads().get(id).to_vec(),
                    &want,
                    2e-5,
                );
                compared += 1;
            }
        }
        let outcome = stepper.step(std::slice::from_ref(&batch), LR).unwrap();
        let near = |what: &str, have: f64, want: f64, tolerance: f64| {
            let scale = want.abs().max(1.0);
            assert!(
                (have - want).abs() <= tolerance * scale,
                "{name}, share {share}: {what} of step {}: {have} for {want}",
                step + 1
            );
        };
        near("loss", outcome.loss, *want, 1e-4);
        for (metric, have) in &outcome.metrics {
            if !expected.names().iter().any(|name| name == metric) {
                continue;
            }
            near(metric, *have, values(metric)[step], 1e-4);
            compared += 1;
        }
    }
    assert!(compared > 2 * STEPS || task == Task::Lm, "{name}: {compared} numbers compared");
}

/// Of both ways to lay out prompts.
fn check_all(case: &str, bases: &[&str], loss: &LossOptions, task: Task) {
    for base in bases {
        for share in [true, false] {
            check(case, base, loss.clone(), task, share);
        }
    }
}

fn options(losses: &[(&str, f64)]) -> LossOptions {
    let losses = losses.iter().map(|(name, weight)| (name.parse::<LossType>().unwrap(), *weight)).collect();
    LossOptions { losses, ..LossOptions::DEFAULT }
}

const BOTH: &[&str] = &["llama", "gpt2"];
const LLAMA: &[&str] = &["llama"];

#[test]
fn dpo() {
    check_all("sigmoid", BOTH, &LossOptions { beta: 0.3, ..options(&[("dpo", 1.0)]) }, Task::Preference);
    check_all(
        "robust",
        LLAMA,
        &LossOptions { label_smoothing: 0.1, ..options(&[("robust", 1.0)]) },
        Task::Preference,
    );
    check_all(
        "sigmoid_norm",
        LLAMA,
        &LossOptions { beta: 2.0, ..options(&[("sigmoid_norm", 1.0)]) },
        Task::Preference,
    );
}

#[test]
fn its_kin() {
    check_all("ipo", BOTH, &options(&[("ipo", 1.0)]), Task::Preference);
    for case in ["hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"] {
        check_all(case, LLAMA, &options(&[(case, 1.0)]), Task::Preference);
    }
    let exo = LossOptions { label_smoothing: 0.05, ..options(&[("exo_pair", 1.0)]) };
    check_all("exo_pair", LLAMA, &exo, Task::Preference);
    let mixture = options(&[("sigmoid", 0.8), ("bco_pair", 0.2), ("sft", 0.5)]);
    check_all("mixture", LLAMA, &mixture, Task::Preference);
}

#[test]
fn without_a_reference() {
    check_all(
        "cpo",
        LLAMA,
        &LossOptions { label_smoothing: 0.1, ..options(&[("cpo", 1.0)]) },
        Task::Preference,
    );
    let simpo = LossOptions { beta: 2.0, simpo_gamma: 0.7, ..options(&[("simpo", 1.0)]) };
    check_all("simpo", LLAMA, &simpo, Task::Preference);
    check_all("orpo", BOTH, &LossOptions { beta: 0.4, ..options(&[("orpo", 1.0)]) }, Task::Preference);
}

#[test]
fn kto() {
    let kto =
        LossOptions { beta: 0.5, desirable_weight: 1.3, undesirable_weight: 0.7, ..options(&[("kto", 1.0)]) };
    check_all("kto", BOTH, &kto, Task::Kto);
    check_all("apo_zero_unpaired", LLAMA, &options(&[("apo_zero_unpaired", 1.0)]), Task::Kto);
}

#[test]
fn tokens_by_their_probability() {
    check_all("dft", LLAMA, &options(&[("dft", 1.0)]), Task::Lm);
}

#[test]
fn rewards() {
    let loss = LossOptions { center_rewards_coefficient: 0.05, ..LossOptions::DEFAULT };
    check_all("reward", BOTH, &loss, Task::Reward);
}
