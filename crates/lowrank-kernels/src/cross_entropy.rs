//! Cross-entropy over rows of logits, and what is read off such rows.

use crate::math::{exp, tanh};
use crate::parallel::{SharedMut, for_rows};
use crate::simd::{Vector, dispatch, for_lanes};

/// Cross-entropy of every row: `losses[i] = log sum_v exp(z[i,v]) - z[i, targets[i]]`, where `z` are the
/// logits, or `softcap tanh(logits / softcap)` with a `softcap` (Gemma 2).
///
/// `logits: [N,V]`, `targets: [N]`, `losses: [N]`. With `scales: [N]`, the logits are overwritten with the gradient of
/// `sum_i scales[i] losses[i]`: `scales[i] (softmax(z[i,:]) - onehot(targets[i]))`, times `1 - (z / softcap)^2` with a
/// `softcap`; without, they are left alone. Counted as `5 N V` flops, `9 N V` with the gradient.
///
/// # Panics
/// If a length does not fit the shapes or a target is not below `vocab`.
pub fn cross_entropy(
    logits: &mut [f32],
    targets: &[u32],
    vocab: usize,
    scales: Option<&[f32]>,
    losses: &mut [f32],
    softcap: Option<f32>,
) {
    let n = targets.len();
    check("cross_entropy", logits.len(), n, vocab);
    assert_eq!(losses.len(), n, "cross_entropy: losses has {} values, not {n}", losses.len());
    assert!(scales.is_none_or(|scales| scales.len() == n), "cross_entropy: there are not {n} scales");
    for (i, &t) in targets.iter().enumerate() {
        assert!(
            (t as usize) < vocab,
            "cross_entropy: target {t} of row {i} is not below the vocabulary, {vocab}"
        );
    }
    let cap = softcap.unwrap_or(0.0);
    let (logits, losses) = (SharedMut::new(logits), SharedMut::new(losses));
    for_rows(n, 4 * vocab, |r| {
        for i in r {
            // SAFETY: rows are disjoint.
            let (row, loss) = unsafe { (logits.part(i * vocab..(i + 1) * vocab), losses.part(i..i + 1)) };
            loss[0] = cross_entropy_row(row, targets[i] as usize, scales.map(|scales| scales[i]), cap);
        }
    });
}

/// `x = cap tanh(x / cap)`, in place: Gemma 2's logits.
///
/// # Panics
/// If `cap` is not positive.
pub fn softcap(x: &mut [f32], cap: f32) {
    assert!(cap > 0.0, "softcap: {cap} is not positive");
    let (n, shared) = (x.len(), SharedMut::new(x));
    for_rows(n, 4, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        softcap_run(unsafe { shared.part(r) }, cap);
    });
}

dispatch! {
    fn softcap_run<V>(x: &mut [f32], cap: f32) {
        for_lanes!(V, x.len(), |at, lanes| { capped(V::load(x, at, lanes), cap).store(x, at, lanes); });
    }
}

dispatch! {
    /// One row; `cap = 0` is no softcap.
    fn cross_entropy_row<V>(row: &mut [f32], target: usize, scale: Option<f32>, cap: f32) -> f32 {
        let total = log_sum_exp::<V>(row, cap);
        let at_target = if cap > 0.0 { cap * (row[target] / cap).tanh() } else { row[target] };
        if let Some(scale) = scale {
            let (total, scale_v) = (V::splat(total), V::splat(scale));
            for_lanes!(V, row.len(), |at, lanes| {
                let z = capped(V::load(row, at, lanes), cap);
                let p = exp(z.sub(total)).mul(scale_v);
                (if cap > 0.0 { p.mul(cap_slope(z, cap)) } else { p }).store(row, at, lanes);
            });
            let u = at_target / cap;
            row[target] -= scale * if cap > 0.0 { 1.0 - u * u } else { 1.0 };
        }
        total - at_target
    }
}

#[inline(always)]
fn capped<V: Vector>(x: V, cap: f32) -> V {
    if cap > 0.0 { tanh(x.mul(V::splat(1.0 / cap))).mul(V::splat(cap)) } else { x }
}

/// The derivative of `cap tanh(x / cap)` from its value `z`.
#[inline(always)]
fn cap_slope<V: Vector>(z: V, cap: f32) -> V {
    let u = z.mul(V::splat(1.0 / cap));
    V::splat(1.0).sub(u.mul(u))
}

/// `log sum_v exp(capped(row[v]))`, in blocks that stay in the first cache: of each the largest value,
/// then the sum of exponentials, rescaled whenever the largest so far grows.
#[inline(always)]
fn log_sum_exp<V: Vector>(row: &[f32], cap: f32) -> f32 {
    const BLOCK_VALUES: usize = 2048;
    let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0f64);
    for block in row.chunks(BLOCK_VALUES) {
        let mut most = V::splat(f32::NEG_INFINITY);
        for_lanes!(V, block.len(), |at, lanes| {
            most = most.max(V::load(block, at, lanes).fill_above(lanes, f32::NEG_INFINITY));
        });
        // Capping keeps the order, so the cap of the largest is the largest.
        let most = most.max_lane();
        let most = if cap > 0.0 { cap * (most / cap).tanh() } else { most };
        if most > largest {
            sum *= f64::from(largest - most).exp();
            largest = most;
        }
        let shift = V::splat(if largest == f32::NEG_INFINITY { 0.0 } else { largest });
        let mut part = V::zero();
        for_lanes!(V, block.len(), |at, lanes| {
            let e = exp(capped(V::load(block, at, lanes), cap).sub(shift));
            part = part.add(e.fill_above(lanes, 0.0));
        });
        sum += f64::from(part.sum());
    }
    (f64::from(largest) + sum.ln()) as f32
}

/// `rows -= log sum exp` of each row of `[N,V]`, in place.
///
/// # Panics
/// If `rows` is not a whole number of rows.
pub fn log_softmax(rows: &mut [f32], vocab: usize) {
    let n = rows.len() / vocab.max(1);
    check("log_softmax", rows.len(), n, vocab);
    let rows = SharedMut::new(rows);
    for_rows(n, 4 * vocab, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let rows = unsafe { rows.part(r.start * vocab..r.end * vocab) };
        rows.chunks_exact_mut(vocab).for_each(log_softmax_row);
    });
}

dispatch! {
    fn log_softmax_row<V>(row: &mut [f32]) {
        let total = V::splat(log_sum_exp::<V>(row, 0.0));
        for_lanes!(V, row.len(), |at, lanes| { V::load(row, at, lanes).sub(total).store(row, at, lanes); });
    }
}

/// The index of the largest value of each row of `logits: [N,V]`, the first where several are equal
/// (0 for a row without a value above minus infinity).
///
/// # Panics
/// If a length does not fit the shapes.
pub fn argmax(logits: &[f32], vocab: usize, out: &mut [u32]) {
    use rayon::prelude::*;
    check("argmax", logits.len(), out.len(), vocab);
    if logits.len() < 1 << 18 {
        out.iter_mut().zip(logits.chunks_exact(vocab.max(1))).for_each(|(o, row)| *o = argmax_row(row));
    } else {
        out.par_iter_mut().zip(logits.par_chunks_exact(vocab)).for_each(|(o, row)| *o = argmax_row(row));
    }
}

fn argmax_row(row: &[f32]) -> u32 {
    let most = largest(row);
    row.iter().position(|&x| x == most).unwrap_or(0) as u32
}

dispatch! {
    fn largest<V>(row: &[f32]) -> f32 {
        let mut most = V::splat(f32::NEG_INFINITY);
        for_lanes!(V, row.len(), |at, lanes| {
            // The running maximum stands second, so that NaN never replaces it.
            most = V::load(row, at, lanes).fill_above(lanes, f32::NEG_INFINITY).max(most);
        });
        most.max_lane()
    }
}

fn check(kernel: &str, len: usize, n: usize, vocab: usize) {
    assert_eq!(len, n * vocab, "{kernel}: logits has {len} values, not {n} x {vocab}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, salt: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        crate::normal(&mut x, 0.0, 4.0, 31, salt);
        x
    }

    /// Loss and its gradient, in f64.
    fn reference(row: &[f32], target: usize, cap: Option<f64>) -> (f64, Vec<f64>) {
        let z: Vec<f64> =
            row.iter().map(|&x| f64::from(x)).map(|x| cap.map_or(x, |c| c * (x / c).tanh())).collect();
        let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = most + z.iter().map(|z| (z - most).exp()).sum::<f64>().ln();
        let slope = |z: f64| cap.map_or(1.0, |c| 1.0 - (z / c).powi(2));
        let p = |v: usize| (z[v] - total).exp() - f64::from(u8::from(v == target));
        (total - z[target], (0..z.len()).map(|v| p(v) * slope(z[v])).collect())
    }

    #[test]
    fn loss_and_gradient() {
        for (n, vocab) in [(1, 1), (3, 5), (4, 2049), (3, 49_152)] {
            let logits = numbers(n * vocab, 1);
            let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % vocab) as u32).collect();
            for softcap in [None, Some(5.0f32)] {
                let scales: Vec<f32> = (0..n).map(|i| 0.25 * (i as f32 - 1.0)).collect();
                let (mut grad, mut losses) = (logits.clone(), vec![f32::NAN; n]);
                cross_entropy(&mut grad, &targets, vocab, Some(&scales), &mut losses, softcap);
                let (mut kept, mut again) = (logits.clone(), vec![f32::NAN; n]);
                cross_entropy(&mut kept, &targets, vocab, None, &mut again, softcap);
                assert!(kept == logits && again == losses);
                for i in 0..n {
                    let r = i * vocab..(i + 1) * vocab;
                    let (loss, want) =
                        reference(&logits[r.clone()], targets[i] as usize, softcap.map(f64::from));
                    assert!(
                        (f64::from(losses[i]) - loss).abs() <= 2e-6 * loss.max(1.0),
                        "{} {loss}",
                        losses[i]
                    );
                    for (g, w) in grad[r].iter().zip(&want) {
                        let w = w * f64::from(scales[i]);
                        assert!((f64::from(*g) - w).abs() <= 1e-7 + 4e-6 * w.abs(), "{g} {w}");
                    }
                }
            }
        }
    }

    #[test]
    fn capped_logits() {
        for n in [1, 7, 40_003] {
            let x: Vec<f32> = numbers(n, 3).iter().map(|x| 20.0 * x).collect();
            let mut y = x.clone();
            softcap(&mut y, 7.5);
            for (y, x) in y.iter().zip(&x) {
                let want = 7.5 * (f64::from(*x) / 7.5).tanh();
                assert!((f64::from(*y) - want).abs() < 1e-5, "{y} {want}");
            }
        }
    }

    #[test]
    fn extreme_logits() {
        let vocab = 5000;
        let mut row = vec![-1e30f32; vocab];
        row[4000] = 1e30;
        row[17] = f32::NEG_INFINITY;
        let mut losses = [f32::NAN];
        cross_entropy(&mut row, &[4000], vocab, Some(&[1.0]), &mut losses, None);
        assert_eq!(losses[0], 0.0);
        assert!(row.iter().all(|&g| g == 0.0));
        row[3] = f32::NAN;
        cross_entropy(&mut row, &[0], vocab, None, &mut losses, None);
        assert!(losses[0].is_nan());
    }

    #[test]
    fn logarithms_and_largest() {
        let (n, vocab) = (7, 40_001);
        let logits = numbers(n * vocab, 2);
        let mut logs = logits.clone();
        log_softmax(&mut logs, vocab);
        let mut best = vec![u32::MAX; n];
        argmax(&logits, vocab, &mut best);
        for i in 0..n {
            let (row, log) = (&logits[i * vocab..][..vocab], &logs[i * vocab..][..vocab]);
            let (loss, _) = reference(row, 11, None);
            assert!((f64::from(log[11]) + loss).abs() < 1e-5 * loss.max(1.0));
            let sum: f64 = log.iter().map(|&l| f64::from(l).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            let want = (0..vocab).fold(0, |b, v| if row[v] > row[b] { v } else { b });
            assert_eq!(best[i] as usize, want);
        }
        argmax(&[1.0, 3.0, 3.0, f32::NAN, 0.0, 2.0], 3, &mut best[..2]);
        assert_eq!(best[..2], [1, 2]);
    }

    #[test]
    #[should_panic(expected = "target 4 of row 1 is not below the vocabulary, 4")]
    fn a_target_outside_the_vocabulary_is_refused() {
        cross_entropy(&mut [0.0; 8], &[3, 4], 4, Some(&[1.0; 2]), &mut [0.0; 2], None);
    }
}
