//! Neighbours side by side: `y[t, i K + k] = x[t + k - (K - 1) / 2, i]` within a segment, 0 beyond its ends. A linear
//! layer over that is a one-dimensional convolution with zero padding.

use lowrank_kernels::Segment;

use crate::tape::{Backward, Node, Tape, Var, VarId};

impl<'m> Tape<'m> {
    /// `x: [N,D]` to `[N, D K]` for an odd `K`.
    pub fn unfold(&mut self, x: &Var<'m>, kernel: usize, segments: &'m [Segment]) -> Var<'m> {
        let device = self.scope.device;
        let (n, d) = (x.tensor.rows(), x.tensor.cols());
        let mut y = device.alloc(n, d * kernel);
        device.unfold(&mut y, &x.tensor, kernel, segments);
        let out = self.id(x.id.is_some());
        if let (true, Some(x), Some(out)) = (self.keeps(out), x.id, out) {
            self.push(UnfoldNode { width: d, kernel, segments, x, out });
        }
        Var::output(y, out)
    }
}

struct UnfoldNode<'m> {
    width: usize,
    kernel: usize,
    segments: &'m [Segment],
    x: VarId,
    out: VarId,
}

impl<'m> Node<'m> for UnfoldNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let mut dx = back.scope.alloc(dy.rows(), self.width);
        back.scope.device.unfold_backward(&mut dx, &dy, self.kernel, self.segments);
        back.add(self.x, dx);
    }
}
