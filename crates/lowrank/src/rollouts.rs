//! What a run of task grpo samples, and how it is rewarded.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use lowrank_adapters::OneOrMany;
use lowrank_models::Sampling;
use lowrank_train::rewards::{self, REWARDS, Reward};
use lowrank_train::{LossType, RolloutOptions, Rollouts, SamplingOptions, ScaleRewards, Task};

use crate::options::TrainOptions;
use crate::reward_model::RewardModel;
use crate::{Error, Result, Session, reference};

/// The reward that only this crate knows.
const ADAPTER: &str = "adapter";

/// What the run that `options` describe samples, if it does.
///
/// # Errors
/// Where a reward is unknown or wrong, or the reference does not fit the model.
pub(crate) fn of_run<'s>(session: &'s Session, options: &TrainOptions) -> Result<Option<Rollouts<'s>>> {
    if options.task != Task::Grpo {
        return Ok(None);
    }
    let rewards = all_rewards(session, options)?;
    let loss_type = options.grpo_loss();
    let usual = if loss_type == LossType::Rloo { ScaleRewards::None } else { ScaleRewards::Group };
    let weights = options.reward_weights.as_ref().map(OneOrMany::as_slice).unwrap_or_default();
    let how = RolloutOptions {
        sampling: SamplingOptions {
            num_generations: options.num_generations,
            max_completion_length: options.max_completion_length,
            stop_tokens: session.ends()?,
            sampling: Sampling {
                temperature: options.temperature as f32,
                top_k: options.top_k,
                top_p: options.top_p as f32,
                min_p: options.min_p as f32,
                seed: options.seed,
                ..Sampling::default()
            },
        },
        batch_size: options.batch_size,
        num_iterations: options.num_iterations,
        scale_rewards: options.scale_rewards.unwrap_or(usual),
        reward_weights: if weights.is_empty() { vec![1.0; rewards.len()] } else { weights.to_vec() },
        mask_truncated_completions: options.mask_truncated_completions,
        loss_type,
        beta: session.task.loss.beta,
        num_completions_to_log: options.num_completions_to_log,
    };
    let stops = session.stops()?;
    let to_text = move |made: &[Vec<u32>]| {
        let tokenizer = session.tokenizer()?;
        made.iter().map(|tokens| Ok(crate::texts::until(&tokenizer.decode(tokens, true)?, &stops))).collect()
    };
    Ok(Some(Rollouts::new(how, rewards, Box::new(to_text), reference::adapter(session, options)?)))
}

fn all_rewards<'s>(session: &'s Session, options: &TrainOptions) -> Result<Vec<Box<dyn Reward + 's>>> {
    let timeout = Duration::from_secs_f64(options.reward_timeout);
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut all: Vec<Box<dyn Reward + 's>> = Vec::new();
    for given in options.reward_funcs.as_slice() {
        let wrong = |what: String| Error::Usage(format!("`reward_funcs`: {what}"));
        let kind = given.split(':').next().unwrap_or_default().to_owned();
        let count = counts.entry(kind).or_default();
        *count += 1;
        let name = |kind: &str| if *count == 1 { kind.to_owned() } else { format!("{kind}_{count}") };
        if let Some(dir) = given.strip_prefix(ADAPTER).and_then(|rest| rest.strip_prefix(':')) {
            all.push(Box::new(RewardModel::open(session, options, Path::new(dir), name(ADAPTER))?));
            continue;
        }
        let known = || {
            let list = REWARDS.iter().map(|(name, argument)| format!("{name}:{argument}"));
            let list: Vec<String> = list.chain([format!("{ADAPTER}:DIR")]).collect();
            wrong(format!("{given:?} is not a reward; there is {}", list.join(", ")))
        };
        all.push(rewards::parse(given, name, timeout).map_err(wrong)?.ok_or_else(known)?);
    }
    Ok(all)
}
