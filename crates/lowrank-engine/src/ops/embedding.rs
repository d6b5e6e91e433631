//! Embedding: rows of a frozen table, with its adapter.

use std::borrow::Cow;

use crate::site::SiteId;
use crate::tape::{Backward, Node, Tape, Var, VarId};
use crate::tensor::Tensor;
use crate::weight::FrozenWeight;

/// A frozen table `E: [V,D]`.
pub struct Embedding {
    /// Where adapters attach.
    pub site: SiteId,
    /// `E`.
    pub weight: FrozenWeight,
    /// Multiplies every row (Gemma: `sqrt(D)`).
    pub scale: f32,
}

/// The random stream of the noise: no site has this number.
const NOISE: u64 = (1 << 24) - 1;

impl<'m> Tape<'m> {
    /// `x[i] = scale * (E[ids[i]] + adapter(ids[i]))`, `[N,D]`.
    pub fn embedding(&mut self, table: &'m Embedding, ids: &[u32]) -> Var<'m> {
        let device = self.scope.device;
        let known = self.known_ids(table, ids);
        let mut x = device.alloc(ids.len(), table.weight.cols());
        device.embedding(&mut x, &table.weight, &known);
        if table.scale != 1.0 {
            device.scale(&mut x, table.scale);
        }
        let Some(adapter) = self.adapters.get(table.site) else { return Var::constant(x) };
        let saved = adapter.embed(&self.scope, ids, table.scale, &mut x);
        let out = self.id(true);
        if self.keeps(out) {
            let out = out.expect("recorded, so it has an id");
            self.push(EmbeddingNode { table, ids: ids.to_vec(), saved, out });
        }
        Var::output(x, out)
    }

    /// NEFTune (Jain et al. 2023): in training with [`Scope::noise`](crate::Scope::noise) `a`, adds to row `i` of `x: [N,D]` values of
    /// the uniform distribution on `[-s, s)` with `s = a / sqrt(L D)` for `L = lengths[i]`, the tokens of its text. They depend on
    /// the run's seed and the pass alone.
    pub fn embedding_noise(&mut self, mut x: Var<'m>, lengths: &[u32]) -> Var<'m> {
        let (Some(alpha), Some(key)) = (self.scope.noise, self.scope.dropout) else { return x };
        let (device, rows, cols) = (self.scope.device, x.tensor.rows(), x.tensor.cols());
        let mut noise = vec![0.0; rows * cols];
        lowrank_kernels::uniform(&mut noise, -1.0, 1.0, key.seed, key.stream(NOISE));
        for (row, length) in noise.chunks_exact_mut(cols).zip(lengths) {
            let size = alpha / (*length as f32 * cols as f32).sqrt();
            row.iter_mut().for_each(|value| *value *= size);
        }
        device.add(&mut x.tensor, &device.tensor(rows, cols, &noise));
        x
    }

    /// The ids with a row of the table in place of virtual tokens, whose rows are remembered.
    fn known_ids<'a>(&mut self, table: &Embedding, ids: &'a [u32]) -> Cow<'a, [u32]> {
        let vocab = table.weight.rows() as u32;
        if self.adapters.virtual_tokens == 0 || ids.iter().all(|id| *id < vocab) {
            return ids.into();
        }
        let of = |(row, id): (usize, &u32)| Some((row, id.checked_sub(vocab)? as usize));
        self.virtual_rows = ids.iter().enumerate().filter_map(of).collect();
        ids.iter().map(|id| if *id < vocab { *id } else { 0 }).collect()
    }
}

struct EmbeddingNode<'m> {
    table: &'m Embedding,
    ids: Vec<u32>,
    saved: Vec<Tensor>,
    out: VarId,
}

impl<'m> Node<'m> for EmbeddingNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let adapter = back.adapters.get(self.table.site).expect("it was there in the forward pass");
        adapter.embed_backward(&back.scope, back.grads, &self.ids, self.table.scale, &dy, self.saved);
    }
}
