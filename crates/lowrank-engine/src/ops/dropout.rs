//! The base model's own dropout, in runs that train with it ([`crate::DropoutKey::base`]): `y = m x / (1 - p)` with each `m_i` 0 with
//! probability `p`, else 1 (Srivastava et al. 2014). Masks are made again in the backward pass.

use lowrank_kernels::AttentionDropout;

use crate::layer::Linear;
use crate::tape::{Backward, Node, Tape, Var, VarId};

/// Where the streams of the base's dropouts begin, behind those of the adapters' sites.
const FIRST: u64 = 1 << 23;

impl<'m> Tape<'m> {
    /// `x` with dropout; `place` is a number that no other dropout of the model has.
    pub fn base_dropout(&mut self, x: Var<'m>, p: f32, place: u64) -> Var<'m> {
        if !self.drops_base(p) {
            return x;
        }
        let stream = FIRST + place;
        let y = self.scope.dropout(&x.tensor, p, stream);
        let out = self.id(x.id.is_some());
        if let (true, Some(id), Some(out)) = (self.keeps(out), x.id, out) {
            self.push(DropoutNode { p, stream, id, out });
        }
        Var::output(y, out)
    }

    /// Dropout of the probabilities of attention, for its shape.
    pub fn base_attention_dropout(&self, p: f32, place: u64) -> Option<AttentionDropout> {
        let key = self.scope.dropout.filter(|_| self.drops_base(p))?;
        // An odd factor: no two passes and places have the same seed.
        let seed = key.seed ^ key.stream(FIRST + place).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Some(AttentionDropout { p, seed })
    }

    /// `dropout(x W^T + b) + residual`.
    pub fn linear_dropout(
        &mut self,
        layer: &'m Linear,
        x: &Var<'m>,
        residual: Var<'m>,
        p: f32,
        place: u64,
    ) -> Var<'m> {
        if !self.drops_base(p) {
            return self.linear(layer, x, Some(residual));
        }
        let y = self.linear(layer, x, None);
        let y = self.base_dropout(y, p, place);
        self.add(y, &residual)
    }

    fn drops_base(&self, p: f32) -> bool {
        p > 0.0 && self.scope.dropout.is_some_and(|key| key.base)
    }
}

struct DropoutNode {
    p: f32,
    stream: u64,
    id: VarId,
    out: VarId,
}

impl<'m> Node<'m> for DropoutNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let mut dx = back.scope.alloc(dy.rows(), dy.cols());
        back.scope.dropout_backward(&mut dx, &dy, self.p, self.stream, false);
        back.add(self.id, dx);
    }
}
