//! Parts of a fused projection: `x = [x_1 | x_2 | ..]` by columns, such as query, key and value.

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
            device.copy_columns(&mut part, &x.tensor, 0, at, width);
            at += width;
            let id = self.id(x.id.is_some());
            Var::output(part, id)
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
    /// Id and width of each part.
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
            match dy {
                Some(dy) => device.copy_columns(&mut dx, dy, at, 0, *width),
                None => device.fill_columns(&mut dx, at, *width, 0.0),
            }
            at += width;
        }
        back.add(self.x, dx);
    }
}
