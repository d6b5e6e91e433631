//! Completions that a run samples, rewards and learns from (GRPO).
//!
//! ```text
//! prompts of a step ─ sampler ─▶ completions ─ rewards ─▶ advantages ─▶ examples ─ pack ─▶ steps of the trainer
//! ```

mod advantages;
mod plan;
mod restore;
mod sampler;
mod saved;

use std::collections::BTreeMap;
use std::time::Instant;

use lowrank_adapters::AdapterSet;
use lowrank_comm::Communicator;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use advantages::{Advantages, ScaleRewards, advantages};
pub use plan::SamplingPlan;
pub use sampler::SamplingOptions;
pub use saved::SavedRollout;

use crate::batches::Step;
use crate::evaluate::Evaluation;
use crate::log::SampleRecord;
use crate::loop_options::LoopOptions;
use crate::objective::{LossType, Metrics, known_name};
use crate::ranks::all_well;
use crate::rewards::{Completion, Reward};
use crate::samples::ToText;
use crate::scorer::Scorer;
use crate::shards::Shard;
use crate::step::Stepper;
use crate::{Error, Example, Examples, RunState, Sample, Target};
use advantages::mean_and_std;

/// How a run learns from completions.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutOptions {
    /// How they are sampled.
    pub sampling: SamplingOptions,
    /// Completions in a micro-batch.
    pub batch_size: usize,
    /// Steps that each batch of completions is used for.
    pub num_iterations: u64,
    /// What advantages are divided by.
    pub scale_rewards: ScaleRewards,
    /// The weight of each reward.
    pub reward_weights: Vec<f64>,
    /// Leave out completions that did not end.
    pub mask_truncated_completions: bool,
    /// The loss.
    pub loss_type: LossType,
    /// How strongly the reference is held to; 0 needs none.
    pub beta: f64,
    /// Completions that a record of the log shows.
    pub num_completions_to_log: usize,
}

/// What a run samples and learns from.
pub struct Rollouts<'a> {
    /// How.
    pub options: RolloutOptions,
    /// What completions are worth.
    pub rewards: Vec<Box<dyn Reward + 'a>>,
    /// How they are read.
    pub to_text: Box<ToText<'a>>,
    /// The reference model's adapter, where `beta` is not 0.
    pub reference: Option<AdapterSet>,
    pub(crate) current: Option<Rollout>,
}

/// The completions of a batch of prompts, ready to be learned from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rollout {
    /// Number of the batch, from 0.
    batch: u64,
    micro_batches: Vec<Vec<Example>>,
    pub shards: Vec<Shard>,
    pub metrics: BTreeMap<String, f64>,
    pub records: Vec<SampleRecord>,
}

/// What sampled completions came to.
struct Judged {
    /// Of each reward, of each completion.
    rewards: Vec<Vec<Option<f64>>>,
    /// Their weighted sum.
    totals: Vec<f64>,
    /// The texts, on the first rank.
    texts: Vec<String>,
}

impl<'a> Rollouts<'a> {
    /// None yet.
    pub fn new(
        options: RolloutOptions,
        rewards: Vec<Box<dyn Reward + 'a>>,
        to_text: Box<ToText<'a>>,
        reference: Option<AdapterSet>,
    ) -> Self {
        Self { options, rewards, to_text, reference, current: None }
    }

    /// Checks that every prompt fits the model and has what the rewards need.
    ///
    /// # Errors
    /// Names the row that does not.
    pub fn check(&self, stepper: &Stepper<'_>, examples: &Examples) -> Result<(), Error> {
        let decoder = crate::samples::decoder(stepper).map_err(|e| Error::Options(e.to_string()))?;
        for example in examples.iter() {
            let request = self.options.sampling.request(&example, 0);
            let at = |what: &dyn std::fmt::Display| Error::Options(format!("{}: {what}", example.id));
            decoder.rows_needed(&request).map_err(|e| at(&e))?;
            let row = row(&example);
            for reward in &self.rewards {
                reward.check(&row).map_err(|what| at(&format!("reward {}: {what}", reward.name())))?;
            }
        }
        Ok(())
    }

    /// Makes the completions of a step ready: those of the batch before where they are used again.
    pub(crate) fn prepare(
        &mut self,
        stepper: &Stepper<'_>,
        examples: &Examples,
        step: &Step,
        how: &LoopOptions,
        state: &mut RunState,
    ) -> Result<&mut Rollout, Error> {
        let batch = step.step / self.options.num_iterations;
        if self.current.as_ref().is_none_or(|current| current.batch != batch) {
            let saved = state.rollout.take().filter(|saved| saved.batch == batch);
            let rollout = match saved {
                Some(saved) => saved.restore(stepper, how, step.step)?,
                None => self.collect(stepper, examples, step, how, (batch, state.epoch))?,
            };
            if self.options.num_iterations > 1 {
                state.rollout = Some(SavedRollout::of(&rollout));
            }
            self.current = Some(rollout);
        }
        Ok(self.current.as_mut().expect("it was made ready"))
    }

    /// Samples and rewards the completions of a step's prompts.
    fn collect(
        &mut self,
        stepper: &Stepper<'_>,
        examples: &Examples,
        step: &Step,
        how: &LoopOptions,
        (batch, epoch): (u64, f64),
    ) -> Result<Rollout, Error> {
        let started = Instant::now();
        stepper.device().trim();
        let prompts = examples.batch(step.micro_batches.iter().flatten().copied());
        let groups = self.options.sampling.complete(stepper, &prompts, batch)?;
        stepper.device().trim();
        let sampled_s = started.elapsed().as_secs_f64();
        let mut judged = self.judge(stepper.communicator(), &prompts, &groups)?;
        let rewarded_s = started.elapsed().as_secs_f64() - sampled_s;
        let completions: Vec<(&Example, &Vec<u32>)> = prompts
            .iter()
            .zip(&groups)
            .flat_map(|(prompt, group)| group.iter().map(move |c| (prompt, c)))
            .collect();
        let mut metrics = self.metrics(&completions, &judged);
        metrics.insert("sampling_s".into(), sampled_s);
        metrics.insert("reward_s".into(), rewarded_s);

        let options = &self.options;
        let as_examples: Vec<Vec<Example>> = completions
            .chunks(options.batch_size)
            .map(|batch| batch.iter().map(|(p, c)| self.example(p, c)).collect())
            .collect();
        if let (LossType::Rloo, Some(reference)) = (options.loss_type, &self.reference) {
            let kl = sequence_kl(stepper, reference, &as_examples, how, step.step)?;
            judged.totals.iter_mut().zip(&kl).for_each(|(total, kl)| *total -= options.beta * kl);
            let tokens = as_examples.iter().flatten().map(Example::labels).sum::<usize>();
            metrics.insert("kl".into(), kl.iter().sum::<f64>() / tokens.max(1) as f64);
        }
        let rloo = options.loss_type == LossType::Rloo;
        let worth = advantages(&judged.totals, options.sampling.num_generations, options.scale_rewards, rloo);
        metrics.insert("frac_reward_zero_std".into(), worth.frac_reward_zero_std);

        let micro_batches = learned(options, as_examples, &worth.advantages);
        let shards = stepper.lay_out(&micro_batches, how.share_prefix, how.shards, step.step);
        let mut rollout = Rollout { batch, micro_batches, shards, metrics, records: Vec::new() };
        let temperature = stepper.task().loss.temperature as f32;
        if options.num_iterations > 1 {
            let logps = logps(&stepper.scorer(), &rollout.shards, temperature)?;
            rollout.set_logps(logps, |sample| &mut sample.old_logps);
        }
        if let (false, Some(reference)) = (rloo, &self.reference) {
            let logps = logps(&stepper.scorer_with(reference), &rollout.shards, temperature)?;
            rollout.set_logps(logps, |sample| &mut sample.ref_logps);
        }
        let sample_s = started.elapsed().as_secs_f64();
        let shown = completions.iter().zip(&judged.texts).zip(&judged.totals);
        let record =
            |(((prompt, tokens), text), reward): ((&(&Example, &Vec<u32>), &String), &f64)| SampleRecord {
                step: step.step,
                epoch,
                sample_prompt: prompt_text(prompt),
                sample_text: text.clone(),
                sample_tokens: tokens.len() as u64,
                sample_s,
                sample_reward: Some(*reward),
            };
        rollout.records = shown.take(options.num_completions_to_log).map(record).collect();
        stepper.device().trim();
        lowrank_kernels::trim_heap();
        Ok(rollout)
    }

    /// The mean reward of completions of held-out prompts. The loss is its negative: a lower one is better.
    pub(crate) fn evaluate(
        &mut self,
        stepper: &Stepper<'_>,
        examples: &Examples,
    ) -> Result<Evaluation, Error> {
        let started = Instant::now();
        stepper.device().trim();
        let prompts: Vec<Example> = examples.iter().collect();
        // The completions of every evaluation have the same seeds, and no step has them.
        let groups = self.options.sampling.complete(stepper, &prompts, u64::MAX)?;
        stepper.device().trim();
        let judged = self.judge(stepper.communicator(), &prompts, &groups)?;
        let completions: Vec<(&Example, &Vec<u32>)> = prompts
            .iter()
            .zip(&groups)
            .flat_map(|(prompt, group)| group.iter().map(move |c| (prompt, c)))
            .collect();
        let metrics: Metrics = self
            .metrics(&completions, &judged)
            .iter()
            .map(|(name, value)| (known_name(name), *value))
            .collect();
        let reward = metrics["reward"];
        lowrank_kernels::trim_heap();
        Ok(Evaluation {
            loss: -reward,
            metrics,
            labels: completions.len(),
            examples: examples.len(),
            seconds: started.elapsed().as_secs_f64(),
            not_finite: Vec::new(),
            predictions: Vec::new(),
        })
    }

    /// Has the first rank reward completions, for all.
    fn judge(
        &mut self,
        comm: &dyn Communicator,
        prompts: &[Example],
        groups: &[Vec<Vec<u32>>],
    ) -> Result<Judged, Error> {
        let mut texts = Vec::new();
        let stop_tokens = &self.options.sampling.stop_tokens;
        let (to_text, list) = (&self.to_text, &mut self.rewards);
        let rewards: Vec<Vec<Option<u64>>> = from_first(comm, || {
            let without_end = |tokens: &Vec<u32>| match tokens.split_last() {
                Some((last, rest)) if stop_tokens.contains(last) => rest.to_vec(),
                _ => tokens.clone(),
            };
            let plain: Vec<Vec<u32>> = groups.iter().flatten().map(without_end).collect();
            texts = to_text(&plain).map_err(|e| Error::Options(e.to_string()))?;
            let rows: Vec<Map<String, Value>> = prompts.iter().map(row).collect();
            let of = rows
                .iter()
                .zip(groups)
                .flat_map(|(row, group)| group.iter().map(move |tokens| (row, tokens)));
            let completions: Vec<Completion<'_>> = of
                .zip(&texts)
                .map(|((row, tokens), text)| Completion { row, text, tokens: tokens.len() })
                .collect();
            list.iter_mut().map(|reward| scored(&mut **reward, &completions)).collect()
        })?;
        // As bits between ranks, so that they stay what they were.
        let rewards: Vec<Vec<Option<f64>>> = rewards
            .into_iter()
            .map(|list| list.into_iter().map(|r| r.map(f64::from_bits)).collect())
            .collect();
        let count = groups.iter().map(Vec::len).sum();
        let total = |at: usize| {
            let of = |(list, weight): (&Vec<Option<f64>>, &f64)| Some(list[at]? * weight);
            // Without any reward it is no number.
            rewards
                .iter()
                .zip(&self.options.reward_weights)
                .filter_map(of)
                .reduce(|a, b| a + b)
                .unwrap_or(f64::NAN)
        };
        Ok(Judged { totals: (0..count).map(total).collect(), rewards, texts })
    }

    /// What is logged of completions, in TRL's words.
    fn metrics(&self, completions: &[(&Example, &Vec<u32>)], judged: &Judged) -> BTreeMap<String, f64> {
        let mut out = BTreeMap::new();
        let lengths: Vec<f64> = completions.iter().map(|(_, tokens)| tokens.len() as f64).collect();
        let ended: Vec<f64> = completions
            .iter()
            .filter(|(_, tokens)| self.ends(tokens))
            .map(|(_, tokens)| tokens.len() as f64)
            .collect();
        let mut put = |name: &str, value: f64| out.insert(name.to_owned(), value);
        let (reward, reward_std) = mean_and_std(&judged.totals);
        put("reward", reward);
        put("reward_std", reward_std);
        put("completions/mean_length", mean_and_std(&lengths).0);
        put("completions/min_length", lengths.iter().copied().fold(f64::INFINITY, f64::min));
        put("completions/max_length", lengths.iter().copied().fold(0.0, f64::max));
        if !ended.is_empty() {
            put("completions/mean_terminated_length", mean_and_std(&ended).0);
        }
        put("completions/clipped_ratio", 1.0 - ended.len() as f64 / lengths.len().max(1) as f64);
        for (reward, values) in self.rewards.iter().zip(&judged.rewards) {
            let values: Vec<f64> = values.iter().flatten().copied().collect();
            if values.is_empty() {
                continue;
            }
            let (mean, std) = mean_and_std(&values);
            put(&format!("rewards/{}/mean", reward.name()), mean);
            put(&format!("rewards/{}/std", reward.name()), std);
        }
        out
    }

    fn ends(&self, tokens: &[u32]) -> bool {
        tokens.last().is_some_and(|last| self.options.sampling.stop_tokens.contains(last))
    }

    /// A completion as an example: all of its tokens are learned from, or none.
    fn example(&self, prompt: &Example, completion: &[u32]) -> Example {
        let learns = !self.options.mask_truncated_completions || self.ends(completion);
        completed(prompt, completion, learns)
    }
}

/// `log p - log ref` of each completion, the sum over its tokens.
fn sequence_kl(
    stepper: &Stepper<'_>,
    reference: &AdapterSet,
    micro_batches: &[Vec<Example>],
    how: &LoopOptions,
    step: u64,
) -> Result<Vec<f64>, Error> {
    let temperature = stepper.task().loss.temperature as f32;
    // One shard: completions stay in their order.
    let shards = stepper.lay_out(micro_batches, how.share_prefix, 1, step);
    let own = logps(&stepper.scorer(), &shards, temperature)?;
    let theirs = logps(&stepper.scorer_with(reference), &shards, temperature)?;
    let sum = |logps: &Vec<f32>| logps.iter().map(|logp| f64::from(*logp)).sum::<f64>();
    Ok(own
        .iter()
        .flatten()
        .zip(theirs.iter().flatten())
        .map(|(own, theirs)| sum(own) - sum(theirs))
        .collect())
}

impl Rollout {
    /// Gives every sampled completion the log-probabilities of its tokens.
    fn set_logps(&mut self, logps: Vec<Vec<Vec<f32>>>, which: fn(&mut crate::PackedSample) -> &mut Vec<f32>) {
        for (batch, logps) in self.shards.iter_mut().flatten().zip(logps) {
            batch.samples.iter_mut().zip(logps).for_each(|(sample, logps)| *which(sample) = logps);
        }
    }
}

/// A prompt with a completion, of which all tokens are learned from, or none.
fn completed(prompt: &Example, completion: &[u32], learns: bool) -> Example {
    let mut loss_mask = vec![false; prompt.tokens.len()];
    loss_mask.resize(prompt.tokens.len() + completion.len(), learns);
    Example {
        tokens: [&prompt.tokens[..], completion].concat(),
        loss_mask,
        prompt_len: prompt.tokens.len(),
        weight: prompt.weight,
        sample: Some(Sample::default()),
        id: prompt.id.clone(),
        ..Example::default()
    }
}

/// The completions that are learned from, with their advantages and the factors of their losses. What has no gradient is left
/// out: completions without a token, and without an advantage where nothing holds the model to a reference.
pub fn learned(
    options: &RolloutOptions,
    micro_batches: Vec<Vec<Example>>,
    advantages: &[f64],
) -> Vec<Vec<Example>> {
    let micro_tokens: Vec<f64> = micro_batches
        .iter()
        .map(|batch| batch.iter().map(|e| e.labels() as f64).sum::<f64>().max(1.0))
        .collect();
    let all_tokens: f64 = micro_batches.iter().flatten().map(|e| e.labels() as f64).sum::<f64>().max(1.0);
    let all: f64 = micro_batches.iter().map(|batch| batch.len() as f64).sum();
    let micro_count = micro_batches.len() as f64;
    let longest = options.sampling.max_completion_length as f64;
    let holds = options.beta > 0.0 && options.loss_type != LossType::Rloo;
    let spare = micro_batches.iter().flatten().next().cloned();
    let mut advantage = advantages.iter();
    let mut kept: Vec<Vec<Example>> = Vec::new();
    for (batch, micro_tokens) in micro_batches.into_iter().zip(micro_tokens) {
        let mut own = Vec::new();
        for mut example in batch {
            let advantage = advantage.next().copied().unwrap_or_default() as f32;
            let tokens = example.labels() as f64;
            // Of the mean over completions.
            let scale = match options.loss_type {
                LossType::DrGrpo => 1.0 / longest,
                LossType::Bnpo => all / (micro_count * micro_tokens),
                LossType::Dapo => all / all_tokens,
                LossType::Rloo => 1.0,
                _ => 1.0 / tokens.max(1.0),
            };
            if tokens > 0.0 && (holds || advantage != 0.0) {
                example.sample = Some(Sample { advantage, scale: scale as f32 });
                own.push(example);
            }
        }
        kept.push(own);
    }
    // The trainer divides by what it is given.
    let share = kept.iter().map(Vec::len).sum::<usize>() as f64 / all.max(1.0);
    for sample in kept.iter_mut().flatten().filter_map(|example| example.sample.as_mut()) {
        sample.scale = (f64::from(sample.scale) * share) as f32;
    }
    kept.retain(|batch| !batch.is_empty());
    match (kept.is_empty(), spare) {
        // A step without a gradient is one still.
        (true, Some(mut spare)) => {
            spare.loss_mask[spare.prompt_len..].fill(true);
            vec![vec![Example { sample: Some(Sample::default()), ..spare }]]
        }
        _ => kept,
    }
}

/// The log-probabilities of the tokens of each completion of each batch; the ranks share the batches.
fn logps(scorer: &Scorer<'_>, shards: &[Shard], temperature: f32) -> Result<Vec<Vec<Vec<f32>>>, Error> {
    let comm = scorer.communicator();
    let own = shards.iter().flatten().skip(comm.rank()).step_by(comm.size());
    let bits = |logps: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
        logps.into_iter().map(|list| list.into_iter().map(f32::to_bits).collect()).collect()
    };
    let own = own.map(|batch| bits(scorer.sample_logps(batch, temperature))).collect();
    let all: Vec<Vec<Vec<u32>>> = crate::samples::gathered(comm, Ok(own))?;
    let floats = |list: Vec<u32>| list.into_iter().map(f32::from_bits).collect();
    Ok(all.into_iter().map(|batch| batch.into_iter().map(floats).collect()).collect())
}

/// The rewards of completions, as bits.
fn scored(reward: &mut dyn Reward, completions: &[Completion<'_>]) -> Result<Vec<Option<u64>>, Error> {
    let failed = |name: &str, what: String| Error::Reward { name: name.to_owned(), what };
    let list = reward.score(completions).map_err(|what| failed(reward.name(), what))?;
    if list.len() != completions.len() {
        let what = format!("gave {} rewards for {} completions", list.len(), completions.len());
        return Err(failed(reward.name(), what));
    }
    if let Some(bad) = list.iter().flatten().find(|value| !value.is_finite()) {
        return Err(failed(reward.name(), format!("gave {bad}, which is not a finite number")));
    }
    Ok(list.into_iter().map(|value| value.map(f64::to_bits)).collect())
}

/// What the first rank computes for all.
fn from_first<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    if comm.size() == 1 {
        return work();
    }
    let own = if comm.is_first() { work().map(Some) } else { Ok(None) };
    let bytes = match all_well(comm, own)? {
        Some(value) => serde_json::to_vec(&value).expect("plain data"),
        None => Vec::new(),
    };
    let all = comm.all_gather(&bytes)?;
    serde_json::from_slice(&all[0]).map_err(|e| Error::Options(e.to_string()))
}

/// The row of a prompt.
fn row(example: &Example) -> Map<String, Value> {
    let Target::Prompt(row) = &example.target else { panic!("completions are those of prompts") };
    serde_json::from_str(row).expect("a row is an object")
}

/// The prompt of a row as it is shown.
fn prompt_text(example: &Example) -> String {
    let row = row(example);
    match row.get("prompt").or_else(|| row.get("messages")) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => example.id.to_string(),
    }
}
