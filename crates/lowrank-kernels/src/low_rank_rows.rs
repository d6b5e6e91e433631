//! Low-rank changes of some rows: many adapters in one batch, each for a few rows of its own.

use rayon::prelude::*;

use crate::parallel::SharedMut;
use crate::simd::{dispatch, for_lanes};

/// `B A` with a factor, for `A: [R,K]`, `B: [O,R]`.
#[derive(Clone, Copy, Debug)]
pub struct LowRankFactors<'a> {
    /// `A`.
    pub a: &'a [f32],
    /// `B`.
    pub b: &'a [f32],
    /// `R`.
    pub r: usize,
    /// The factor `s`.
    pub scaling: f32,
}

/// Rows and what is added to them.
#[derive(Clone, Copy, Debug)]
pub struct LowRankRows<'a> {
    /// The rows, all different, also from those of other groups.
    pub rows: &'a [u32],
    /// What is added, in this order.
    pub factors: &'a [LowRankFactors<'a>],
}

/// Work below which another thread costs more than it saves, in multiply-adds.
const MIN_WORK: usize = 32 * 1024;

/// `y[i,:] += s B (A x[i,:])` for the rows `i` of each group and each of its factors, with `x: [N,K]`, `y: [N,O]`: `2 R (K + O)`
/// flops a row. Each group is one thread's, so that no sum depends on the number of threads.
///
/// # Panics
/// If a length does not fit the shapes or an index is not below `N`.
pub fn add_low_rank_rows(y: &mut [f32], x: &[f32], k: usize, o: usize, groups: &[LowRankRows]) {
    let n = x.len() / k.max(1);
    assert_eq!((x.len(), y.len()), (n * k, n * o), "add_low_rank_rows: x is N x {k}, y is N x {o}");
    let mut work = 0;
    for group in groups {
        assert!(
            group.rows.iter().all(|row| (*row as usize) < n),
            "add_low_rank_rows: a row is not below {n}"
        );
        for LowRankFactors { a, b, r, .. } in group.factors {
            assert_eq!(
                (a.len(), b.len()),
                (r * k, o * r),
                "add_low_rank_rows: A is {r} x {k}, B is {o} x {r}"
            );
            work += group.rows.len() * r * (k + o);
        }
    }
    let y = SharedMut::new(y);
    let add = |group: &LowRankRows| {
        let mut u = Vec::new();
        for &row in group.rows {
            let row = row as usize;
            // SAFETY: no other group has the row, says the caller.
            let y = unsafe { y.part(row * o..(row + 1) * o) };
            for factors in group.factors {
                u.clear();
                u.resize(factors.r, 0.0);
                products(&mut u, factors.a, &x[row * k..][..k], factors.scaling);
                add_products(y, factors.b, &u);
            }
        }
    };
    if groups.len() > 1 && work >= MIN_WORK && rayon::current_num_threads() > 1 {
        groups.par_iter().with_max_len(1).for_each(add);
    } else {
        groups.iter().for_each(add);
    }
}

dispatch! {
    /// `u = s A x` for `A: [R,K]`, `x: [K]`.
    fn products<V>(u: &mut [f32], a: &[f32], x: &[f32], scaling: f32) {
        let k = x.len();
        for (u, a) in u.chunks_mut(2).zip(a.chunks(2 * k.max(1))) {
            // Two rows at a time share the loads of x, and two sums each hide the latency of adding.
            let mut sums = [V::zero(); 2];
            if let [first, second] = u {
                let (a, b) = a.split_at(k);
                for_lanes!(V, k, |at, lanes| {
                    let x = V::load(x, at, lanes);
                    sums[0] = x.mul_add(V::load(a, at, lanes), sums[0]);
                    sums[1] = x.mul_add(V::load(b, at, lanes), sums[1]);
                });
                (*first, *second) = (scaling * sums[0].sum(), scaling * sums[1].sum());
            } else {
                for_lanes!(V, k, |at, lanes| {
                    sums[0] = V::load(x, at, lanes).mul_add(V::load(a, at, lanes), sums[0]);
                });
                u[0] = scaling * sums[0].sum();
            }
        }
    }
}

dispatch! {
    /// `y += B u` for `B: [O,R]`, `u: [R]`.
    fn add_products<V>(y: &mut [f32], b: &[f32], u: &[f32]) {
        let r = u.len();
        for (y, b) in y.iter_mut().zip(b.chunks_exact(r.max(1))) {
            let mut sum = V::zero();
            for_lanes!(V, r, |at, lanes| {
                sum = V::load(u, at, lanes).mul_add(V::load(b, at, lanes), sum);
            });
            *y += sum.sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn rows_get_the_change_of_their_group() {
        for (k, o, ranks) in [(5, 3, [1, 2]), (64, 48, [8, 16]), (577, 130, [16, 3])] {
            let n = 7;
            let (x, start) = (values(n * k, 1), values(n * o, 2));
            let matrices: Vec<(Vec<f32>, Vec<f32>)> =
                ranks.iter().map(|r| (values(r * k, 3 + *r), values(o * r, 90 + *r))).collect();
            let factors: Vec<LowRankFactors> = matrices
                .iter()
                .zip(ranks)
                .zip([0.5, -2.0])
                .map(|(((a, b), r), scaling)| LowRankFactors { a, b, r, scaling })
                .collect();
            let groups = [
                LowRankRows { rows: &[4, 0], factors: &factors[..1] },
                LowRankRows { rows: &[5], factors: &factors },
                LowRankRows { rows: &[], factors: &factors[1..] },
            ];
            let mut want: Vec<f64> = start.iter().map(|y| f64::from(*y)).collect();
            for group in &groups {
                for &row in group.rows {
                    for f in group.factors {
                        for i in 0..o {
                            let mut sum = 0.0;
                            for j in 0..f.r {
                                let dot = |at: usize| {
                                    f64::from(f.a[j * k + at]) * f64::from(x[row as usize * k + at])
                                };
                                sum += f64::from(f.b[i * f.r + j]) * (0..k).map(dot).sum::<f64>();
                            }
                            want[row as usize * o + i] += f64::from(f.scaling) * sum;
                        }
                    }
                }
            }
            let mut y = start.clone();
            add_low_rank_rows(&mut y, &x, k, o, &groups);
            for (at, (got, want)) in y.iter().zip(&want).enumerate() {
                let close = (f64::from(*got) - want).abs() <= 2e-5 * (1.0 + want.abs()) * (k as f64).sqrt();
                assert!(close, "{k} x {o} at {at}: {got} {want}");
            }
            for row in [1, 2, 3, 6] {
                assert_eq!(
                    y[row * o..(row + 1) * o],
                    start[row * o..(row + 1) * o],
                    "row {row} has no group"
                );
            }
        }
    }
}
