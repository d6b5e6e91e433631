//! Columns in another order: `y[i,j] = x[i, columns[j]]`, such as those of a projection that keeps query, key and value of
//! each head together.

use std::rc::Rc;

use crate::tape::{Backward, Node, Tape, Var, VarId};

impl<'m> Tape<'m> {
    /// `x: [N,D]` to the same shape; `columns` names each of the `D` columns once.
    pub fn permute_columns(&mut self, x: Var<'m>, columns: &Rc<[u32]>) -> Var<'m> {
        let (n, d) = (x.tensor.rows(), x.tensor.cols());
        assert_eq!(d, columns.len(), "columns in another order");
        let device = self.scope.device;
        let mut y = device.alloc(n, d);
        device.gather_columns(&mut y, &x.tensor, columns);
        let out = self.id(x.id.is_some());
        if let (true, Some(x), Some(out)) = (self.keeps(out), x.id, out) {
            self.push(ColumnsNode { columns: columns.clone(), x, out });
        }
        Var::output(y, out)
    }
}

struct ColumnsNode {
    columns: Rc<[u32]>,
    x: VarId,
    out: VarId,
}

impl<'m> Node<'m> for ColumnsNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let device = back.scope.device;
        let mut dx = device.alloc(dy.rows(), dy.cols());
        device.replace_columns(&mut dx, &dy, None, &self.columns);
        back.add(self.x, dx);
    }
}
