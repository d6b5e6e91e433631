//! Rows of a value: some of them, means over ranges of them, each at length 1. What a head reads.

use std::ops::Range;

use lowrank_kernels as kernels;

use crate::tape::{Backward, Node, Tape, Var, VarId};
use crate::tensor::Tensor;

/// Shorter rows are not made longer than `row / MIN_NORM` (`torch.nn.functional.normalize`).
const MIN_NORM: f32 = 1e-12;

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
        self.scope.device.run(0, || {
            let h = h.tensor.data();
            for (to, range) in y.data_mut().chunks_exact_mut(d).zip(ranges) {
                to.copy_from_slice(&h[range.start * d..(range.start + 1) * d]);
                for row in range.start + 1..range.end {
                    kernels::add(to, &h[row * d..(row + 1) * d]);
                }
                if range.len() > 1 {
                    kernels::scale(to, 1.0 / range.len() as f32);
                }
            }
        });
        let out = self.id(h.id.is_some());
        if let (true, Some(h), Some(out)) = (self.keeps(out), h.id, out) {
            self.push(MeanNode { h, n, ranges: ranges.to_vec(), out });
        }
        Var { tensor: y, id: out, recipe: None }
    }

    /// `y = x / |x|`, row by row.
    pub fn normalize(&mut self, x: &Var<'m>) -> Var<'m> {
        let (n, d) = (x.tensor.rows(), x.tensor.cols());
        let mut y = self.scope.alloc(n, d);
        let mut norms = self.scope.alloc(n, 1);
        self.scope.device.run(0, || {
            let rows = y.data_mut().chunks_exact_mut(d).zip(x.tensor.data().chunks_exact(d));
            for ((y, x), norm) in rows.zip(norms.data_mut()) {
                *norm = (kernels::sum_squares(x).sqrt() as f32).max(MIN_NORM);
                y.copy_from_slice(x);
                kernels::scale(y, 1.0 / *norm);
            }
        });
        let out = self.id(x.id.is_some());
        if let (true, Some(x), Some(out)) = (self.keeps(out), x.id, out) {
            self.push(NormalizeNode { x, y: y.clone(), norms, out });
        }
        Var { tensor: y, id: out, recipe: None }
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
        let mut dy = back.scope.device.own(dy);
        back.scope.device.run(0, || {
            let dh = dh.tensor.data_mut();
            if fresh {
                dh.fill(0.0);
            }
            for (dy, range) in dy.data_mut().chunks_exact_mut(d).zip(&self.ranges) {
                kernels::scale(dy, 1.0 / range.len() as f32);
                for row in range.clone() {
                    kernels::add(&mut dh[row * d..(row + 1) * d], dy);
                }
            }
        });
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
        back.scope.device.run(0, || {
            let rows = dy.data().chunks_exact(d).zip(self.y.data().chunks_exact(d));
            for (((dy, y), dx), norm) in rows.zip(dx.data_mut().chunks_exact_mut(d)).zip(self.norms.data()) {
                let along: f32 =
                    if *norm > MIN_NORM { dy.iter().zip(y).map(|(a, b)| a * b).sum() } else { 0.0 };
                for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
                    *dx = (dy - y * along) / norm;
                }
            }
        });
        back.add(self.x, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let scope = Scope { device: &device, params: &params, dropout: None };
        let mut tape = Tape::new(scope, &adapters, Record::All);
        let x = Var { tensor: device.tensor(n, x.len() / n, x), id: tape.id(true), recipe: None };
        let y = op(&mut tape, &x);
        let seed = device.tensor(y.tensor.rows(), y.tensor.cols(), w);
        let loss = y.tensor.data().iter().zip(w).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum();
        tape.seed(&y, seed);
        let [dx] = tape.backward_to(&mut Grads::default(), [x.id]);
        let dx = dx.unwrap();
        (loss, dx.data().to_vec())
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
