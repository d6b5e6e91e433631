//! What a model needs by its shape alone: without data, and without weights where there are none.

use lowrank_adapters::AdapterSet;
use lowrank_engine::Device;
use lowrank_train::{Example, StepOptions, Stepper};
use serde::Serialize;

use crate::{Error, Result, Session, TrainOptions};

/// Bytes for one way of training.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Need {
    /// Parameters that are trained.
    pub trainable_parameters: usize,
    /// The model's weights.
    pub weight_bytes: usize,
    /// Gradients of what is trained, in F32; for LoRA with the adapter's own numbers.
    pub gradient_bytes: usize,
    /// AdamW's two moments of what is trained, in F32.
    pub moment_bytes: usize,
    /// The three together.
    pub total_bytes: usize,
    /// What is stored of a trained model.
    pub checkpoint_bytes: usize,
}

/// Full fine-tuning and LoRA of one model, side by side.
#[derive(Clone, Debug, Serialize)]
pub struct ShapePlan {
    /// Parameters of the base model.
    pub base_parameters: usize,
    /// Bytes of its weights in memory.
    pub base_bytes: usize,
    /// Every weight trained, by the formula: weights as they are stored, and 4 bytes of gradient and 8 of moments for
    /// each parameter. A checkpoint is the weights as they are stored.
    pub full: Need,
    /// The adapter trained: the base as it lies in memory, and of each of the adapter's parameters 4 bytes for itself, 4 of
    /// gradient and 8 of moments. A checkpoint is the adapter in F32.
    pub lora: Need,
    /// Sequences and tokens in each of the planned batch.
    pub batch: (usize, usize),
    /// Most bytes of activations and their gradients at once, in a LoRA step over that batch.
    pub activation_bytes: usize,
    /// Bytes of the kernels' scratch buffers.
    pub scratch_bytes: usize,
    /// Floating-point operations of that step.
    pub flops_per_step: u64,
}

/// The longest side of a matrix in a step over `rows` tokens.
pub(crate) fn longest_side(session: &Session, rows: usize) -> usize {
    let sides = session.sites().iter().map(|site| site.in_features.max(site.out_features));
    sides.chain([rows, session.model.info().vocab]).max().unwrap_or(0)
}

/// Most tokens of a batch that is planned: each takes some bytes here.
const MAX_TOKENS: usize = 1 << 22;

/// Plans a step over `batch_size` sequences of `max_seq_len` tokens, or as many as the model's positions allow.
///
/// # Errors
/// Where the options make no adapter for the model, or it has no language-model head.
pub fn plan_shapes(session: &Session, options: &TrainOptions) -> Result<ShapePlan> {
    let model = &*session.model;
    if model.lm_head().is_none() {
        let what = "a plan by shape is for language models; give `data` for the plan of another task";
        return Err(Error::Usage(what.to_owned()));
    }
    let tokens = options.max_seq_len.min(model.info().position_limit.unwrap_or(usize::MAX));
    if options.batch_size == 0 || tokens < 2 {
        return Err(Error::Usage("`batch_size` must be at least 1 and `max_seq_len` at least 2".to_owned()));
    }
    if options.batch_size.saturating_mul(tokens) > MAX_TOKENS {
        return Err(Error::Usage(format!(
            "`batch_size` x `max_seq_len` is {} x {tokens}; a planned batch may have at most {MAX_TOKENS} tokens",
            options.batch_size
        )));
    }
    // One step is planned; how many there are matters to the schedule of ranks only.
    let mut adapters = AdapterSet::planned_new(
        options.lora(model, options.max_steps.unwrap_or(u64::MAX))?,
        session.sites(),
    )?;
    options.apply(&mut adapters)?;
    let trainable = adapters.params.count();
    let training_bytes = adapters.params.training_bytes();
    let step = StepOptions {
        checkpoint_activations: options.checkpoint_activations,
        weight_decay: options.weight_decay,
        max_grad_norm: options.max_grad_norm,
        seed: options.seed,
    };
    // The last token of a sequence is only a target.
    let example = Example {
        tokens: vec![0; tokens + 1],
        loss_mask: (0..=tokens).map(|i| i > 0).collect(),
        ..Example::default()
    };
    let mut stepper = Stepper::new(model, adapters, options.saving_on(Device::plan()), step);
    let most = options.shards_of(trainable);
    let shards = stepper.lay_out(&[vec![example; options.batch_size]], false, most, 0);
    stepper.gradients_of(&shards)?;

    let longest = longest_side(session, options.batch_size * tokens);
    let tensors = &session.base.tensors;
    let (parameters, base_bytes) = (tensors.parameters(), tensors.weight_bytes() as usize);
    // What is trained whole is not quantised.
    let stored_bytes = tensors.byte_len() as usize;
    let full = Need {
        trainable_parameters: parameters,
        weight_bytes: stored_bytes,
        gradient_bytes: 4 * parameters,
        moment_bytes: 8 * parameters,
        total_bytes: stored_bytes + 12 * parameters,
        checkpoint_bytes: stored_bytes,
    };
    let lora = Need {
        trainable_parameters: trainable,
        weight_bytes: base_bytes,
        gradient_bytes: training_bytes - 8 * trainable + stepper.spare_bytes(),
        moment_bytes: 8 * trainable,
        total_bytes: base_bytes + training_bytes + stepper.spare_bytes(),
        checkpoint_bytes: 4 * trainable,
    };
    Ok(ShapePlan {
        base_parameters: parameters,
        base_bytes,
        full,
        lora,
        batch: (options.batch_size, tokens),
        activation_bytes: stepper.device().peak_page_bytes(),
        scratch_bytes: stepper.device().scratch_bytes(longest),
        flops_per_step: stepper.device().flops(),
    })
}
