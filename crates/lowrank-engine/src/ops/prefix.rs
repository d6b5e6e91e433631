//! Prefix tuning: keys and values of virtual tokens that are parameters.

use crate::adapter::Prefix;
use crate::params::{Grads, Params};
use crate::scope::Scope;
use crate::tensor::Tensor;

/// Which part of a prefix belongs where.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub prefix: Prefix,
    pub layer: usize,
    /// 0 for keys, 1 for values.
    pub which: usize,
}

impl Part {
    /// The columns of this part, `width` of them, in the row of a virtual token.
    fn columns(&self, width: usize) -> std::ops::Range<usize> {
        let start = (2 * self.layer + self.which) * width;
        start..start + width
    }

    /// `x: [N, width]` with the rows of virtual tokens replaced by those of the prefix among `params`.
    pub fn put(&self, scope: &Scope<'_>, params: &Params, x: Tensor, rows: &[(usize, usize)]) -> Tensor {
        let mut x = scope.device.own(x);
        let columns = self.columns(x.cols());
        scope.device.replace_rows(&mut x, params.tensor(self.prefix.param), columns, rows);
        x
    }

    /// Accumulates the gradients of the replaced rows, which go no further.
    pub fn take(&self, scope: &Scope<'_>, grads: &mut Grads, dx: &mut Tensor, rows: &[(usize, usize)]) {
        let columns = self.columns(dx.cols());
        scope.device.replace_rows_backward(grads.get_mut(self.prefix.param), dx, columns, rows);
    }
}
