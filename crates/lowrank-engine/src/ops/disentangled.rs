//! DeBERTa's attention over segments: contents matched with contents and with distances
//! ([`lowrank_kernels::disentangled_attention`] has the formula). The probabilities are never stored.

use std::rc::Rc;

use lowrank_kernels::{AttentionDropout, DisentangledShape, Segment, disentangled_scratch_bytes};

use crate::backend::{AttentionGradients, AttentionInputs, DistanceGradients, Distances};
use crate::tape::{Backward, Node, Tape, Var, VarId};
use crate::tensor::{Saved, Tensor};

/// What one attention layer needs to know besides its inputs.
#[derive(Clone)]
pub struct Disentangled<'m> {
    /// Heads `H`.
    pub heads: usize,
    /// Values in a head, `d`.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Rows of the tables by distance, as [`DisentangledShape::buckets`].
    pub buckets: Rc<[u32]>,
    /// Dropout of the probabilities.
    pub dropout: Option<AttentionDropout>,
    /// The texts: every row sees its whole segment.
    pub segments: &'m [Segment],
}

impl Disentangled<'_> {
    fn shape(&self) -> DisentangledShape<'_> {
        let Self { heads, head_dim, scale, ref buckets, dropout, .. } = *self;
        DisentangledShape { heads, head_dim, scale, buckets, dropout }
    }
}

impl<'m> Tape<'m> {
    /// `q, k, v: [N, H*d]` and the keys and queries of distances `[P, H*d]`, where there are any, to `[N, H*d]`.
    pub fn disentangled_attention(
        &mut self,
        [q, k, v]: [Var<'m>; 3],
        pos_key: Option<Var<'m>>,
        pos_query: Option<Var<'m>>,
        attention: Disentangled<'m>,
    ) -> Var<'m> {
        let device = self.scope.device;
        let ids =
            [q.id, k.id, v.id, pos_key.as_ref().and_then(|x| x.id), pos_query.as_ref().and_then(|x| x.id)];
        let inputs = Inputs {
            contents: [q.tensor, k.tensor, v.tensor],
            tables: [pos_key, pos_query].map(|x| x.map(|x| x.tensor)),
        };
        let n = inputs.contents[0].rows();
        let mut o = device.alloc(n, attention.heads * attention.head_dim);
        let mut lse = device.alloc(n, attention.heads);
        let (contents, distances) = (inputs.contents(), inputs.distances());
        let segments = attention.segments;
        let tables = inputs.tables.iter().flatten();
        let (count, rows) = (tables.clone().count(), tables.map(Tensor::rows).max().unwrap_or(0));
        let threads = rayon::current_num_threads();
        device.note_scratch(disentangled_scratch_bytes(&attention.shape(), segments, count, rows, threads));
        device.disentangled_attention(&mut o, &mut lse, contents, distances, &attention.shape(), segments);
        let out = self.id(ids.iter().any(Option::is_some));
        if self.keeps(out) {
            let out = out.expect("recorded, so it has an id");
            let saved = Rc::new(device.save(&o));
            let contents = inputs.contents.map(|x| device.save(&x));
            let tables = inputs.tables;
            self.push(DisentangledNode { attention, contents, tables, o: saved.clone(), lse, ids, out });
            return Var { tensor: o, id: Some(out), recompute: Some(saved) };
        }
        Var::output(o, out)
    }
}

struct Inputs {
    /// q, k, v.
    contents: [Tensor; 3],
    /// Keys and queries of distances.
    tables: [Option<Tensor>; 2],
}

impl Inputs {
    fn contents(&self) -> AttentionInputs<'_> {
        let [q, k, v] = &self.contents;
        AttentionInputs { q, k, v }
    }

    fn distances(&self) -> Distances<'_> {
        let [pos_key, pos_query] = self.tables.each_ref().map(Option::as_ref);
        Distances { pos_key, pos_query }
    }
}

struct DisentangledNode<'m> {
    attention: Disentangled<'m>,
    /// q, k, v.
    contents: [Saved; 3],
    tables: [Option<Tensor>; 2],
    o: Rc<Saved>,
    lse: Tensor,
    /// q, k, v, keys and queries of distances.
    ids: [Option<VarId>; 5],
    out: VarId,
}

impl<'m> Node<'m> for DisentangledNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let (device, a) = (back.scope.device, &self.attention);
        let inputs = Inputs { contents: self.contents.map(|x| device.take_saved(x)), tables: self.tables };
        let o = device.restore(&self.o);
        let like = |x: &Tensor| device.alloc(x.rows(), x.cols());
        let [mut dq, mut dk, mut dv] = inputs.contents.each_ref().map(like);
        let [mut dpos_key, mut dpos_query] = inputs.tables.each_ref().map(|table| table.as_ref().map(like));
        let gradients = (
            AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv },
            DistanceGradients { dpos_key: dpos_key.as_mut(), dpos_query: dpos_query.as_mut() },
        );
        let (contents, distances) = (inputs.contents(), inputs.distances());
        let outputs = [&o, &self.lse];
        device.disentangled_attention_backward(
            gradients,
            &dy,
            contents,
            distances,
            outputs,
            &a.shape(),
            a.segments,
        );
        for (id, gradient) in self.ids.into_iter().zip([Some(dq), Some(dk), Some(dv), dpos_key, dpos_query]) {
            if let (Some(id), Some(gradient)) = (id, gradient) {
                back.add(id, gradient);
            }
        }
    }
}
