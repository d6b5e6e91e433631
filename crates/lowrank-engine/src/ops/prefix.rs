//! Prefix tuning: keys and values of virtual tokens that are parameters.

use crate::adapter::Prefix;
use crate::params::Grads;
use crate::scope::Scope;
use crate::tensor::Tensor;

/// Which of a prefix's numbers belong where.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub prefix: Prefix,
    pub layer: usize,
    /// 0 for keys, 1 for values.
    pub which: usize,
}

impl Part {
    /// Where the numbers of virtual token `token` are, `width` of them, in rows of `cols`.
    fn at(&self, token: usize, width: usize, cols: usize) -> std::ops::Range<usize> {
        let start = token * cols + (2 * self.layer + self.which) * width;
        start..start + width
    }

    /// `x: [N, width]` with the rows of virtual tokens replaced.
    pub fn put(&self, scope: &Scope<'_>, x: Tensor, rows: &[(usize, usize)]) -> Tensor {
        let width = x.cols();
        let mut x = scope.device.own(x);
        let param = scope.params.get(self.prefix.param);
        scope.device.run(0, || {
            let data = x.data_mut();
            for &(row, token) in rows {
                let numbers = &param.value[self.at(token, width, param.cols)];
                data[row * width..(row + 1) * width].copy_from_slice(numbers);
            }
        });
        x
    }

    /// Accumulates the gradients of the replaced rows, which go no further.
    pub fn take(&self, scope: &Scope<'_>, grads: &mut Grads, dx: &mut Tensor, rows: &[(usize, usize)]) {
        let width = dx.cols();
        let cols = scope.params.get(self.prefix.param).cols;
        scope.device.run(0, || {
            let (data, gradient) = (dx.data_mut(), grads.get_mut(self.prefix.param));
            for &(row, token) in rows {
                let from = &mut data[row * width..(row + 1) * width];
                let to = &mut gradient[self.at(token, width, cols)];
                to.iter_mut().zip(&*from).for_each(|(to, from)| *to += from);
                from.fill(0.0);
            }
        });
    }
}
