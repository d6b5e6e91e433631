//! Texts that the model generates while it is trained.

use std::cell::RefCell;
use std::time::Instant;

use lowrank_comm::Communicator;
use lowrank_engine::{KvCache, Scope, Segment, Tape};
use lowrank_models::{Decoder, DecoderOptions, Request, TokenBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::data::EncodeError;
use crate::log::SampleRecord;
use crate::step::Stepper;

/// Prompts that a run continues on its way, greedily and one after the other: each text is that of `lowrank generate`.
#[derive(Clone, Debug, Default)]
pub struct SamplePrompts {
    /// The prompts.
    pub prompts: Vec<SamplePrompt>,
    /// Tokens that end a text.
    pub stop_tokens: Vec<u32>,
    /// Tokens of a text at most.
    pub max_new_tokens: usize,
    /// Generate after every so many steps; 0 at each evaluation.
    pub steps: u64,
}

/// A prompt.
#[derive(Clone, Debug)]
pub struct SamplePrompt {
    /// As it is shown.
    pub text: String,
    /// As the model reads it.
    pub tokens: Vec<u32>,
}

/// Turns generated tokens into text.
pub type ToText<'a> = dyn Fn(&[Vec<u32>]) -> Result<Vec<String>, EncodeError> + 'a;

/// The samples of a run.
pub struct Samples<'a> {
    /// What is continued.
    pub prompts: &'a SamplePrompts,
    /// How it is read.
    pub to_text: &'a ToText<'a>,
}

/// Tokens of a prompt that the decoder computes at once.
const PREFILL_CHUNK: usize = 512;

impl SamplePrompts {
    fn request(&self, prompt: &SamplePrompt) -> Request {
        Request {
            prompt: prompt.tokens.clone(),
            max_new_tokens: self.max_new_tokens,
            stop_tokens: self.stop_tokens.clone(),
            ..Request::default()
        }
    }

    /// Checks that every prompt fits the model.
    ///
    /// # Errors
    /// Names the prompt that does not.
    pub fn check(&self, stepper: &Stepper<'_>) -> Result<(), String> {
        let decoder = decoder(stepper).map_err(|e| e.to_string())?;
        for (i, prompt) in self.prompts.iter().enumerate() {
            decoder.rows_needed(&self.request(prompt)).map_err(|e| format!("prompt {}: {e}", i + 1))?;
        }
        Ok(())
    }

    /// Computes, on a device that only counts, what generating takes: the longest prompt with its text. Returns the bytes
    /// that are not the device's.
    pub fn plan(&self, stepper: &Stepper<'_>) -> usize {
        let Some(longest) = self.prompts.iter().map(|prompt| prompt.tokens.len()).max() else { return 0 };
        let (model, device, adapters) = (stepper.model(), stepper.device(), &stepper.adapters);
        let Some(head) = model.lm_head() else { return 0 };
        let virtual_tokens = adapters.active.virtual_tokens;
        let first_virtual = model.info().vocab as u32;
        let tokens: Vec<u32> = (first_virtual..).take(virtual_tokens).chain(vec![0; longest]).collect();
        let rows = tokens.len() + self.max_new_tokens.saturating_sub(1);
        let cache = RefCell::new(KvCache::new(device, rows, &model.info().kv_widths));
        let pass = |ids: &[u32], begin: usize| {
            let (n, end) = (ids.len(), begin + ids.len());
            cache.borrow_mut().targets = (begin..end).collect();
            let positions: Vec<u32> = (begin..end).map(|p| p as u32).collect();
            let (lengths, outputs) = (vec![end as u32; n], [n - 1]);
            let segments = [Segment { q: 0..n, prefix: 0..0, own: 0..end }];
            let batch = TokenBatch {
                tokens: ids,
                positions: &positions,
                lengths: &lengths,
                token_types: &[],
                segments: &segments,
                output_rows: Some(&outputs),
                adapters: None,
            };
            let scope = Scope::inference(device, &adapters.params);
            let mut tape = Tape::with_cache(scope, &adapters.active, &cache);
            let h = model.hidden(&mut tape, &batch);
            tape.logits(head, &h);
        };
        let mut begin = 0;
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            pass(chunk, begin);
            begin += chunk.len();
        }
        // The last token that is fed sees all the others; of a text of one token none is.
        if rows > tokens.len() {
            pass(&[0], rows - 1);
        }
        // Logits are read from the device.
        2 * size_of::<f32>() * model.info().vocab
    }
}

impl Samples<'_> {
    /// Generates the text of each prompt with the adapter as it is now.
    ///
    /// # Errors
    /// Where the model gives no numbers, its tokens are no text, or another rank does not answer.
    pub(crate) fn generate(
        &self,
        stepper: &Stepper<'_>,
        (step, epoch): (u64, f64),
    ) -> Result<Vec<SampleRecord>, Error> {
        let started = Instant::now();
        let comm = stepper.communicator();
        let own = self.tokens(stepper, comm.rank(), comm.size()).map_err(|e| e.to_string());
        let mut made = gathered(comm, own)?;
        // The tokenizer comes when the decoder's memory is free.
        stepper.device().trim();
        let counts: Vec<u64> = made.iter().map(|tokens| tokens.len() as u64).collect();
        for tokens in &mut made {
            if tokens.last().is_some_and(|last| self.prompts.stop_tokens.contains(last)) {
                tokens.pop();
            }
        }
        let texts = (self.to_text)(&made).map_err(|e| Error::Options(e.to_string()))?;
        let sample_s = started.elapsed().as_secs_f64();
        let record = |((prompt, text), count): ((&SamplePrompt, String), u64)| SampleRecord {
            step,
            epoch,
            sample_prompt: prompt.text.clone(),
            sample_text: text,
            sample_tokens: count,
            sample_s,
            sample_reward: None,
        };
        Ok(self.prompts.prompts.iter().zip(texts).zip(counts).map(record).collect())
    }
}

impl Samples<'_> {
    /// The tokens of every `size`-th prompt from `rank` on.
    fn tokens(
        &self,
        stepper: &Stepper<'_>,
        rank: usize,
        size: usize,
    ) -> lowrank_models::Result<Vec<Vec<u32>>> {
        let prompts = self.prompts.prompts.iter().skip(rank).step_by(size);
        let generate = |prompt| {
            let mut texts = decoder(stepper)?.generate(&self.prompts.request(prompt))?;
            Ok(texts.swap_remove(0).tokens)
        };
        prompts.map(generate).collect()
    }
}

/// What the ranks made of things that were dealt to them in turns, in the order of the things; the first error of any.
pub(crate) fn gathered<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    own: Result<Vec<T>, String>,
) -> Result<Vec<T>, Error> {
    if comm.size() == 1 {
        return own.map_err(Error::Options);
    }
    let all = comm.all_gather(&serde_json::to_vec(&own).expect("plain data"))?;
    let mut lists = Vec::new();
    for bytes in all {
        let list: Result<Vec<T>, String> =
            serde_json::from_slice(&bytes).map_err(|e| Error::Options(e.to_string()))?;
        lists.push(list.map_err(Error::Options)?.into_iter());
    }
    let mut made = Vec::new();
    while let Some(thing) = lists[made.len() % comm.size()].next() {
        made.push(thing);
    }
    Ok(made)
}

/// A decoder over the adapter as it is now.
pub(crate) fn decoder<'s>(stepper: &'s Stepper<'_>) -> lowrank_models::Result<Decoder<'s>> {
    let adapters = &stepper.adapters;
    let options = DecoderOptions { prefill_chunk: PREFILL_CHUNK, ..DecoderOptions::default() };
    Decoder::new(stepper.model(), stepper.device(), &adapters.params, &adapters.active, options)
}
