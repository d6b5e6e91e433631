//! Parts of a fused projection: `x = [x_1 | x_2 | ..]` by columns, such as query, key and value.

use lowrank_kernels as kernels;

use crate::tape::{Backward, Node, Tape, Var, VarId};
use crate::tensor::Tensor;

impl<'m> Tape<'m> {
    /// `x: [N, sum of widths]` to one `[N, width]` for each of `widths`.
    pub fn split<const P: usize>(&mut self, x: Var<'m>, widths: [usize; P]) -> [Var<'m>; P] {
        assert_eq!(x.tensor.cols(), widths.iter().sum::<usize>(), "columns of a value that is split");
        let device = self.scope.device;
        let n = x.tensor.rows();
        let mut at = 0;
        let parts = widths.map(|width| {
            let mut part = device.alloc(n, width);
            device.run(0, || kernels::copy_columns(part.data_mut(), x.tensor.data(), n, 0, at, width));
            at += width;
            let id = self.id(x.id.is_some());
            Var { tensor: part, id, recipe: None }
        });
        if let (Some(id), true) = (x.id, self.keeps(x.id)) {
            let parts = parts.iter().map(|part| (part.id, part.tensor.cols())).collect();
            self.push(SplitNode { x: id, rows: n, parts });
        }
        parts
    }
}

struct SplitNode {
    x: VarId,
    rows: usize,
    /// Number and width of each part.
    parts: Vec<(Option<VarId>, usize)>,
}

impl<'m> Node<'m> for SplitNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let take = |(id, width): &(Option<VarId>, usize)| (id.and_then(|id| back.take(id)), *width);
        let parts: Vec<(Option<Tensor>, usize)> = self.parts.iter().map(take).collect();
        if parts.iter().all(|(dy, _)| dy.is_none()) {
            return;
        }
        let cols = parts.iter().map(|(_, width)| width).sum();
        let device = back.scope.device;
        let mut dx = device.alloc(self.rows, cols);
        let mut at = 0;
        for (dy, width) in &parts {
            device.run(0, || match dy {
                Some(dy) => kernels::copy_columns(dx.data_mut(), dy.data(), self.rows, at, 0, *width),
                None => dx.data_mut().chunks_exact_mut(cols).for_each(|row| row[at..at + width].fill(0.0)),
            });
            at += width;
        }
        back.add(self.x, dx);
    }
}
