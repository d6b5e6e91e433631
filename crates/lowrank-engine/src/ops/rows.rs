//! Rows of a value: some of them, means over ranges of them, each at length 1. What a head reads.

use std::ops::Range;

use crate::tape::{Backward, Node, Tape, Var, VarId};
use crate::tensor::Tensor;

impl<'m> Tape<'m> {
    /// `y[i] = h[rows[i]]`: `[N,D]` to `[rows, D]`. A row may come more than once.
    pub fn select_rows(&mut self, h: &Var<'m>, rows: &[usize]) -> Var<'m> {
        self.mean_rows(h, &rows.iter().map(|&row| row..row + 1).collect::<Vec<_>>())
    }

    /// `y[i]` is the mean of the rows `ranges[i]` of `h: [N,D]`; none of the ranges is empty.
    pub fn mean_rows(&mut self, h: &Var<'m>, ranges: &[Range<usize>]) -> Var<'m> {
        let (n, d) = (h.tensor.rows(), h.tensor.cols());
        assert!(ranges.iter().all(|r| !r.is_empty() && r.end <= n), "ranges of rows within {n}");
        let mut y = self.scope.alloc(ranges.len(), d);
        self.scope.device.mean_rows(&mut y, &h.tensor, ranges);
        if let Some(adapters) = self.scope.rows {
            adapters.pick(n, ranges);
        }
        let out = self.id(h.id.is_some());
        if let (true, Some(h), Some(out)) = (self.keeps(out), h.id, out) {
            self.push(MeanNode { h, n, ranges: ranges.to_vec(), out });
        }
        Var::output(y, out)
    }

    /// `y = x / |x|`, row by row.
    pub fn normalize(&mut self, x: &Var<'m>) -> Var<'m> {
        let (n, d) = (x.tensor.rows(), x.tensor.cols());
        let mut y = self.scope.alloc(n, d);
        let mut norms = self.scope.alloc(n, 1);
        self.scope.device.normalize_rows(&mut y, &mut norms, &x.tensor);
        let out = self.id(x.id.is_some());
        if let (true, Some(x), Some(out)) = (self.keeps(out), x.id, out) {
            self.push(NormalizeNode { x, y: y.clone(), norms, out });
        }
        Var::output(y, out)
    }
}

struct MeanNode {
    h: VarId,
    n: usize,
    ranges: Vec<Range<usize>>,
    out: VarId,
}

impl<'m> Node<'m> for MeanNode {
    /// `dh[row] += dy[i] / len` for every row of `ranges[i]`.
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let d = dy.cols();
        let mut dh = back.open(self.h, self.n, d);
        let fresh = dh.beta() == 0.0;
        let device = back.scope.device;
        if fresh {
            device.fill(&mut dh.tensor, 0.0);
        }
        device.mean_rows_backward(&mut dh.tensor, &dy, &self.ranges);
        back.put(self.h, dh);
    }
}

struct NormalizeNode {
    x: VarId,
    y: Tensor,
    norms: Tensor,
    out: VarId,
}

impl<'m> Node<'m> for NormalizeNode {
    /// `dx = (dy - y (y dy)) / |x|`; a row that was too short is only scaled.
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let (n, d) = (dy.rows(), dy.cols());
        let mut dx = back.scope.alloc(n, d);
        back.scope.device.normalize_rows_backward(&mut dx, &dy, &self.y, &self.norms);
        back.add(self.x, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowrank_kernels as kernels;

    use crate::{ActiveAdapters, Device, Grads, Params, Record, Scope};

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut out = vec![0.0; n];
        kernels::normal(&mut out, 0.0, 1.0, seed, 1);
        out
    }

    /// Runs `op` on `x: [n,d]`, seeds its output with `w` and gives `sum(w y)` and its gradient.
    fn gradient(
        x: &[f32],
        n: usize,
        w: &[f32],
        op: impl for<'m> Fn(&mut Tape<'m>, &Var<'m>) -> Var<'m>,
    ) -> (f64, Vec<f32>) {
        let device = Device::cpu();
        let (params, adapters) = (Params::default(), ActiveAdapters::default());
        let scope = Scope::inference(&device, &params);
        let mut tape = Tape::new(scope, &adapters, Record::All);
        let x = Var { tensor: device.tensor(n, x.len() / n, x), id: tape.id(true), recompute: None };
        let y = op(&mut tape, &x);
        let seed = device.tensor(y.tensor.rows(), y.tensor.cols(), w);
        let loss = y.tensor.values().iter().zip(w).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum();
        tape.seed(&y, seed);
        let [dx] = tape.backward_to(&mut Grads::default(), [x.id]);
        let dx = dx.unwrap();
        (loss, dx.to_vec())
    }

    fn check(n: usize, d: usize, out_rows: usize, op: impl for<'m> Fn(&mut Tape<'m>, &Var<'m>) -> Var<'m>) {
        let (x, w) = (numbers(n * d, 3), numbers(out_rows * d, 4));
        let (_, dx) = gradient(&x, n, &w, &op);
        let step = 1e-3;
        for i in 0..n * d {
            let at = |by: f32| {
                let mut x = x.clone();
                x[i] += by;
                gradient(&x, n, &w, &op).0
            };
            let want = (at(step) - at(-step)) / f64::from(2.0 * step);
            assert!((want - f64::from(dx[i])).abs() < 2e-3, "{i}: {} for {want}", dx[i]);
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        check(5, 7, 3, |tape, x| tape.select_rows(x, &[4, 1, 4]));
        check(6, 3, 3, |tape, x| tape.mean_rows(x, &[0..1, 1..5, 2..6]));
        check(3, 9, 3, |tape, x| tape.normalize(x));
    }

    #[test]
    fn a_row_of_zeros_has_no_direction() {
        let (_, dx) = gradient(&[0.0; 4], 1, &[1e-12, 0.0, 0.0, 0.0], |tape, x| tape.normalize(x));
        assert_eq!(dx, [1.0, 0.0, 0.0, 0.0]);
    }
}
