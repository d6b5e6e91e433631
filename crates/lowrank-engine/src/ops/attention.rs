//! Rotary position embedding and attention over segments.
//!
//! For each segment and head: `o = softmax(scale * rope(q) rope(k)^T + mask) v`. The rotation happens
//! in place, the probabilities are never stored and are computed again in the backward pass. So is the output where
//! each query sees few keys.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::rc::Rc;

use lowrank_kernels::{AttentionShape, Segment, attention_scratch_bytes};

use super::prefix::Part;
use crate::Device;
use crate::backend::flops::attention_multiply_adds;
use crate::backend::{AttentionGradients, AttentionInputs};
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recompute, Tape, Var, VarId};
use crate::tensor::{Saved, Tensor};

/// Cosines and sines of the batch's positions, `[N, rot_dim / 2]` each (Su et al. 2021). A scaling of
/// attention (yarn) is already in them.
#[derive(Clone)]
pub struct Rope {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
    /// Whether the two values of a pair are neighbours; else they are as far apart as there are pairs.
    pub interleaved: bool,
}

impl Rope {
    /// Rotates each head of `x`, or, with `back`, rotates it back.
    pub(super) fn rotate(
        &self,
        device: &Device,
        x: Tensor,
        heads: usize,
        head_dim: usize,
        back: bool,
    ) -> Tensor {
        let turn = |x: &mut Tensor| match back {
            true => device.rope_backward(x, &self.cos, &self.sin, heads, head_dim),
            false => device.rope(x, &self.cos, &self.sin, heads, head_dim),
        };
        if !self.interleaved {
            let mut x = device.own(x);
            turn(&mut x);
            return x;
        }
        let pairs = self.cos.cols();
        let column = |at: usize| match at % head_dim {
            i if i < pairs => at - i + 2 * i,
            i if i < 2 * pairs => at - i + 2 * (i - pairs) + 1,
            _ => at,
        };
        let columns: Vec<u32> = (0..x.cols()).map(|at| column(at) as u32).collect();
        let mut apart = device.alloc(x.rows(), x.cols());
        device.gather_columns(&mut apart, &x, &columns);
        turn(&mut apart);
        let mut x = device.own(x);
        device.replace_columns(&mut x, &apart, None, &columns);
        x
    }
}

/// What one attention layer needs to know besides q, k and v.
pub struct Attention<'m> {
    /// Heads, scale, causality, window.
    pub shape: AttentionShape,
    /// Who attends to whom.
    pub segments: Cow<'m, [Segment]>,
    /// Rotation of q and k; `None` for models with position embeddings of another kind.
    pub rope: Option<Rope>,
    /// Number of the layer, for the cache.
    pub layer: usize,
}

impl<'m> Tape<'m> {
    /// `q: [N, H*d]`, `k, v: [N, K*d]` to `[N, H*d]`.
    pub fn attention(&mut self, q: Var<'m>, k: Var<'m>, v: Var<'m>, a: Attention<'m>) -> Var<'m> {
        let device = self.scope.device;
        let AttentionShape { heads, kv_heads, .. } = a.shape;
        let ids = [q.id, k.id, v.id];
        let (q, mut k, mut v) = (rotate(device, q, &a, heads), rotate(device, k, &a, kv_heads), v.tensor);
        let (scope, layer) = (self.scope, a.layer);
        let prefix = self.adapters.prefix.filter(|_| !self.virtual_rows.is_empty()).map(|prefix| {
            let parts = [0, 1].map(|which| Part { prefix, layer, which });
            (parts, self.virtual_rows.clone())
        });
        if let Some(([keys, values], rows)) = &prefix {
            k = keys.put(&scope, scope.params, k, rows);
            v = values.put(&scope, scope.params, v, rows);
        }
        if let (Some(adapters), false) = (scope.rows, self.virtual_rows.is_empty()) {
            let of_row = adapters.of(k.rows());
            for (index, prefix) in self.adapters.prefixes.iter().enumerate() {
                let Some((prefix, params)) = prefix else { continue };
                let own = self.virtual_rows.iter().filter(|(row, _)| of_row[*row] == Some(index));
                let own: Vec<(usize, usize)> = own.copied().collect();
                let [keys, values] = [0, 1].map(|which| Part { prefix: *prefix, layer, which });
                k = keys.put(&scope, params, k, &own);
                v = values.put(&scope, params, v, &own);
            }
        }
        let (keys, values) = match self.cache {
            Some(cache) => cache.borrow_mut().extend(a.layer, &k, &v),
            None => (k.clone(), v.clone()),
        };
        let (o, lse) = attend(device, &a, &q, &keys, &values);
        drop((keys, values));
        let out = self.id(ids.iter().any(Option::is_some) || prefix.is_some());
        if self.keeps(out) {
            let out = out.expect("recorded, so it has an id");
            let inputs = [q, k, v].map(|x| device.save(&x));
            let output = Rc::new(Output::default());
            let lse = (!recompute_output(device, &a)).then(|| {
                output.save(device, &o);
                lse
            });
            self.push(AttentionNode { attention: a, inputs, output: output.clone(), lse, prefix, ids, out });
            return Var { tensor: o, id: Some(out), recompute: Some(output) };
        }
        Var::output(o, out)
    }
}

/// Computes `o: [N, H*d]` and the logarithms of its softmaxes' sums, `[N, H]`.
fn attend(device: &Device, a: &Attention<'_>, q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
    let AttentionShape { heads, head_dim, .. } = a.shape;
    device.note_scratch(attention_scratch_bytes(&a.shape, &a.segments, rayon::current_num_threads()));
    let (mut o, mut lse) = (device.alloc(q.rows(), heads * head_dim), device.alloc(q.rows(), heads));
    device.attention(&mut o, &mut lse, AttentionInputs { q, k, v }, &a.shape, &a.segments);
    (o, lse)
}

/// What is saved of the output: nothing, where it is cheap to compute again and no adapter asks for it.
#[derive(Default)]
struct Output(OnceCell<Saved>);

impl Recompute for Output {
    fn save(&self, device: &Device, o: &Tensor) {
        self.0.get_or_init(|| device.save(o));
    }

    fn get(&self, scope: &Scope<'_>) -> Tensor {
        scope.device.restore(self.0.get().expect("saved for whoever asks"))
    }
}

/// Keys that a query sees on average, up to which the output is computed again in the backward pass instead of saved: 4
/// operations for each key and value of the output, less than one in a hundred of RoBERTa base's and SmolLM2's products.
const RECOMPUTE_KEYS: usize = 40;

/// Whether the output is not worth its memory. Where saved values are int16, memory is asked for and worth twice as much.
fn recompute_output(device: &Device, a: &Attention<'_>) -> bool {
    let AttentionShape { heads, head_dim, .. } = a.shape;
    let rows: usize = a.segments.iter().map(|s| s.q.len()).sum();
    let keys = RECOMPUTE_KEYS << u32::from(device.saves_int16());
    attention_multiply_adds(&a.shape, &a.segments) <= keys * rows * heads * head_dim
}

/// Rotates q or k, in place where no one else reads it.
fn rotate<'m>(device: &Device, x: Var<'m>, a: &Attention<'m>, heads: usize) -> Tensor {
    let Some(rope) = &a.rope else { return x.tensor };
    // What computes it again would give the values before the rotation, and holds no output.
    rope.rotate(device, x.tensor, heads, a.shape.head_dim, false)
}

/// Keys and values that are parameters, and their rows.
type Prefix = ([Part; 2], Rc<[(usize, usize)]>);

struct AttentionNode<'m> {
    attention: Attention<'m>,
    /// q, k (rotated), v.
    inputs: [Saved; 3],
    output: Rc<Output>,
    /// The logarithms of the softmaxes' sums, where the output is saved for its own backward pass.
    lse: Option<Tensor>,
    /// Keys and values that are parameters, and their rows.
    prefix: Option<Prefix>,
    ids: [Option<VarId>; 3],
    out: VarId,
}

impl<'m> Node<'m> for AttentionNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let a = &self.attention;
        let device = back.scope.device;
        let [q, k, v] = self.inputs.map(|x| device.take_saved(x));
        // Where q and k were rounded, the sums computed again are those of the probabilities below.
        let (o, lse) = match (self.output.0.get(), self.lse) {
            (Some(o), Some(lse)) => (device.restore(o), lse),
            _ => attend(device, a, &q, &k, &v),
        };
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| device.alloc(x.rows(), x.cols()));
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let inputs = AttentionInputs { q: &q, k: &k, v: &v };
        device.attention_backward(gradients, &dy, inputs, &o, &lse, &a.shape, &a.segments);
        if let Some(([keys, values], rows)) = &self.prefix {
            keys.take(&back.scope, back.grads, &mut dk, rows);
            values.take(&back.scope, back.grads, &mut dv, rows);
        }
        if let Some(rope) = &a.rope {
            let AttentionShape { heads, kv_heads, head_dim, .. } = a.shape;
            dq = rope.rotate(device, dq, heads, head_dim, true);
            dk = rope.rotate(device, dk, kv_heads, head_dim, true);
        }
        for (id, gradient) in self.ids.into_iter().zip([dq, dk, dv]) {
            if let Some(id) = id {
                back.add(id, gradient);
            }
        }
    }
}
