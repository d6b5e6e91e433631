//! What a server will need at most.

use lowrank_engine::{ActiveAdapters, Device, Params, Record, Scope, Segment, Tape};
use lowrank_models::TokenBatch;
use serde::Serialize;

use crate::forecast::process_bytes;
use crate::shape_plan::longest_side;
use crate::{Error, Result, Session};

/// Memory of a server.
#[derive(Clone, Debug, Serialize)]
pub struct ServeForecast {
    /// Bytes of the base model's weights, which are mapped: several servers and runs share them.
    pub base_bytes: usize,
    /// Bytes of keys and values at most.
    pub cache_bytes: usize,
    /// Tokens of prompts and texts that these are enough for.
    pub cache_rows: usize,
    /// Bytes of loaded adapters at most.
    pub adapter_bytes: usize,
    /// Bytes of one step: the next piece of a prompt and the newest token of every text.
    pub activation_bytes: usize,
    /// Bytes of the logits of a step and of those that are changed to choose from them.
    pub logit_bytes: usize,
    /// Bytes of the kernels' scratch buffers.
    pub scratch_bytes: usize,
    /// Bytes of the program and its threads.
    pub process_bytes: usize,
    /// The sum.
    pub peak_bytes: usize,
}

/// Plans a server that decodes `max_batch` texts together. A session opened with `shapes_only` is enough.
///
/// # Errors
/// Where the model does not generate text.
pub fn forecast_serving(
    session: &Session,
    max_batch: usize,
    cache_bytes: usize,
    adapter_bytes: usize,
) -> Result<ServeForecast> {
    let (model, info) = (&*session.model, session.model.info());
    let Some(head) = model.lm_head() else {
        return Err(Error::Usage(format!("{}: does not generate text", session.base.source.display())));
    };
    let row_bytes = 2 * size_of::<f32>() * info.kv_widths.iter().sum::<usize>();
    let prefill = lowrank_models::DecoderOptions::default().prefill_chunk;
    let prefill = prefill.min(info.position_limit.unwrap_or(prefill));
    let (device, params, adapters) = (Device::plan(), Params::default(), ActiveAdapters::default());
    let rows = prefill + max_batch;
    let tokens = vec![0; rows];
    let positions: Vec<u32> = (0..prefill as u32).chain(std::iter::repeat_n(0, max_batch)).collect();
    let ranges = std::iter::once(0..prefill).chain((prefill..rows).map(|row| row..row + 1));
    let segments: Vec<Segment> = ranges.map(|q| Segment { q: q.clone(), prefix: 0..0, own: q }).collect();
    let lengths = vec![prefill as u32; rows];
    let outputs: Vec<usize> = (prefill - 1..rows).collect();
    let mut tape = Tape::new(Scope::inference(&device, &params), &adapters, Record::Nothing);
    let batch = TokenBatch {
        tokens: &tokens,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: Some(&outputs),
        adapters: None,
    };
    let hidden = model.hidden(&mut tape, &batch);
    drop(tape.logits(head, &hidden));
    drop(tape);
    let mut forecast = ServeForecast {
        base_bytes: session.base.tensors.resident_bytes() as usize,
        cache_bytes,
        cache_rows: cache_bytes / row_bytes.max(1),
        adapter_bytes,
        activation_bytes: device.peak_page_bytes(),
        logit_bytes: 2 * size_of::<f32>() * outputs.len() * info.vocab,
        scratch_bytes: device.scratch_bytes(longest_side(session, rows)),
        process_bytes: process_bytes(),
        peak_bytes: 0,
    };
    let f = &forecast;
    forecast.peak_bytes = f.base_bytes
        + f.cache_bytes
        + f.adapter_bytes
        + f.activation_bytes
        + f.logit_bytes
        + f.scratch_bytes
        + f.process_bytes;
    Ok(forecast)
}
