//! DeBERTa's attention over segments: contents matched with contents and with distances
//! ([`lowrank_kernels::disentangled_attention`] has the formula). The probabilities are never stored.

use std::rc::Rc;

use lowrank_kernels::{
    self as kernels, DisentangledGradients, DisentangledInputs, DisentangledShape, Segment,
};

use crate::kept::Kept;
use crate::tape::{Backward, Node, Tape, Var, VarId};
use crate::tensor::Tensor;

/// What one attention layer needs to know besides its inputs.
#[derive(Clone)]
pub struct Disentangled<'m> {
    /// Heads `H`.
    pub heads: usize,
    /// Numbers in a head, `d`.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Rows of the tables by distance, as [`DisentangledShape::buckets`].
    pub buckets: Rc<[u32]>,
    /// The texts: every row sees its whole segment.
    pub segments: &'m [Segment],
}

impl Disentangled<'_> {
    fn shape(&self) -> DisentangledShape<'_> {
        let Self { heads, head_dim, scale, ref buckets, .. } = *self;
        DisentangledShape { heads, head_dim, scale, buckets }
    }

    /// Multiply-adds of the scores: of contents, and with `tables` of distances.
    fn multiply_adds(&self, tables: usize) -> usize {
        let middle = self.buckets.len() / 2;
        let one = |s: &Segment| match s.q.len() {
            0 => 0,
            t => {
                let wide = self.buckets[middle + t - 1] - self.buckets[middle + 1 - t] + 1;
                t * (t + tables * wide as usize)
            }
        };
        self.segments.iter().map(one).sum::<usize>() * self.heads * self.head_dim
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
        let saved = Saved {
            contents: [q.tensor, k.tensor, v.tensor],
            tables: [pos_key, pos_query].map(|x| x.map(|x| x.tensor)),
        };
        let n = saved.contents[0].rows();
        let mut o = device.alloc(n, attention.heads * attention.head_dim);
        let mut lse = device.alloc(n, attention.heads);
        let products = attention.multiply_adds(0) + attention.multiply_adds(saved.count());
        device.run(2 * products, || {
            let (o, lse) = (o.data_mut(), lse.data_mut());
            kernels::disentangled_attention(o, lse, &saved.inputs(), &attention.shape(), attention.segments);
        });
        let out = self.id(ids.iter().any(Option::is_some));
        if self.keeps(out) {
            let out = out.expect("kept, so it has a number");
            let kept = Rc::new(Kept::new(device, &o));
            let contents = saved.contents.map(|x| Kept::new(device, &x));
            let tables = saved.tables;
            self.push(DisentangledNode { attention, contents, tables, o: kept.clone(), lse, ids, out });
            return Var { tensor: o, id: Some(out), recipe: Some(kept) };
        }
        Var { tensor: o, id: out, recipe: None }
    }
}

struct Saved {
    /// q, k, v.
    contents: [Tensor; 3],
    /// Keys and queries of distances.
    tables: [Option<Tensor>; 2],
}

impl Saved {
    fn inputs(&self) -> DisentangledInputs<'_> {
        let [q, k, v] = self.contents.each_ref().map(Tensor::data);
        let [pos_key, pos_query] = self.tables.each_ref().map(|table| table.as_ref().map(Tensor::data));
        DisentangledInputs { q, k, v, pos_key, pos_query }
    }

    fn count(&self) -> usize {
        self.tables.iter().flatten().count()
    }
}

struct DisentangledNode<'m> {
    attention: Disentangled<'m>,
    /// q, k, v.
    contents: [Kept; 3],
    tables: [Option<Tensor>; 2],
    o: Rc<Kept>,
    lse: Tensor,
    /// q, k, v, keys and queries of distances.
    ids: [Option<VarId>; 5],
    out: VarId,
}

impl<'m> Node<'m> for DisentangledNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let (device, a) = (back.scope.device, &self.attention);
        let saved = Saved { contents: self.contents.map(|x| x.take(device)), tables: self.tables };
        let o = self.o.get(device);
        let like = |x: &Tensor| device.alloc(x.rows(), x.cols());
        let [mut dq, mut dk, mut dv] = saved.contents.each_ref().map(like);
        let [mut dpos_key, mut dpos_query] = saved.tables.each_ref().map(|table| table.as_ref().map(like));
        // Scores again, their gradients, and two products for each of them.
        let products = 2 * a.multiply_adds(0) + 3 * a.multiply_adds(saved.count());
        device.run(2 * products, || {
            let gradients = DisentangledGradients {
                dq: dq.data_mut(),
                dk: dk.data_mut(),
                dv: dv.data_mut(),
                dpos_key: dpos_key.as_mut().map(Tensor::data_mut),
                dpos_query: dpos_query.as_mut().map(Tensor::data_mut),
            };
            kernels::disentangled_attention_backward(
                gradients,
                dy.data(),
                o.data(),
                self.lse.data(),
                &saved.inputs(),
                &a.shape(),
                a.segments,
            );
        });
        for (id, gradient) in self.ids.into_iter().zip([Some(dq), Some(dk), Some(dv), dpos_key, dpos_query]) {
            if let (Some(id), Some(gradient)) = (id, gradient) {
                back.add(id, gradient);
            }
        }
    }
}
