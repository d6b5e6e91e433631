//! Root-mean-square and layer normalisation over rows, forward and backward.

use crate::parallel::{SharedMut, for_rows, row_tasks, task_rows};
use crate::simd::{dispatch, for_lanes};

/// `y = x * rstd * (weight_offset + weight)`, `rstd = 1 / sqrt(mean(x^2) + eps)`, row by row.
///
/// `x`, `y`: `[N,D]`; `weight: [D]`; `rstd: [N]`, or empty where it is not wanted. Gemma stores its
/// weights less one: `weight_offset = 1` there, 0 elsewhere.
///
/// # Panics
/// If a length does not fit the shapes.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm(
    y: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
    n: usize,
    d: usize,
    weight_offset: f32,
) {
    check("rms_norm", "x", x.len(), n * d);
    check("rms_norm", "y", y.len(), n * d);
    check("rms_norm", "weight", weight.len(), d);
    let keep = !rstd.is_empty();
    if keep {
        check("rms_norm", "rstd", rstd.len(), n);
    }
    let (y, rstd) = (SharedMut::new(y), SharedMut::new(rstd));
    for_rows(n, 2 * d, |r| {
        let span = r.start * d..r.end * d;
        // SAFETY: the ranges of `for_rows` are disjoint.
        let (y, rstd) = unsafe { (y.part(span.clone()), rstd.part(if keep { r } else { 0..0 })) };
        rms_norm_rows(y, rstd, &x[span], weight, eps, weight_offset);
    });
}

dispatch! {
    fn rms_norm_rows<V>(
        y: &mut [f32], rstd: &mut [f32], x: &[f32], weight: &[f32], eps: f32, weight_offset: f32,
    ) {
        let d = weight.len();
        for (i, (y, x)) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)).enumerate() {
            let mut squares = V::zero();
            for_lanes!(V, d, |at, lanes| {
                let x = V::load(x, at, lanes);
                squares = x.mul_add(x, squares);
            });
            let r = 1.0 / (squares.sum() / d as f32 + eps).sqrt();
            if let Some(slot) = rstd.get_mut(i) {
                *slot = r;
            }
            for_lanes!(V, d, |at, lanes| {
                let w = V::load(weight, at, lanes).add(V::splat(weight_offset));
                V::load(x, at, lanes).mul(V::splat(r)).mul(w).store(y, at, lanes);
            });
        }
    }
}

/// Backward of [`rms_norm`]. With `g = dy * (weight_offset + weight)` and `u = x * rstd`:
///
/// `dx = rstd * (g - u * mean(g u))`, added to `dx` where `accumulate`; `dweight += sum_rows dy u`.
///
/// # Panics
/// If a length does not fit the shapes.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_backward(
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    rstd: &[f32],
    n: usize,
    d: usize,
    weight_offset: f32,
    accumulate: bool,
    dweight: Option<&mut [f32]>,
) {
    check("rms_norm_backward", "dx", dx.len(), n * d);
    check("rms_norm_backward", "dy", dy.len(), n * d);
    check("rms_norm_backward", "x", x.len(), n * d);
    check("rms_norm_backward", "weight", weight.len(), d);
    check("rms_norm_backward", "rstd", rstd.len(), n);
    let dx = SharedMut::new(dx);
    sum_over_rows("rms_norm_backward", n, d, [dweight, None], |r, [dweight, _]| {
        let span = r.start * d..r.end * d;
        // SAFETY: the ranges of `sum_over_rows` are disjoint.
        let dx = unsafe { dx.part(span.clone()) };
        rms_norm_backward_rows(
            dx,
            &dy[span.clone()],
            &x[span],
            weight,
            &rstd[r],
            weight_offset,
            accumulate,
            dweight,
        );
    });
}

dispatch! {
    fn rms_norm_backward_rows<V>(
        dx: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], rstd: &[f32], weight_offset: f32,
        accumulate: bool, dweight: &mut [f32],
    ) {
        let d = weight.len();
        let offset = V::splat(weight_offset);
        let rows = dx.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(x.chunks_exact(d)).zip(rstd);
        for (((dx, dy), x), &r) in rows {
            let mut dot = V::zero();
            for_lanes!(V, d, |at, lanes| {
                let (dy, x) = (V::load(dy, at, lanes), V::load(x, at, lanes));
                let g = dy.mul(V::load(weight, at, lanes).add(offset));
                dot = g.mul_add(x, dot);
                if !dweight.is_empty() {
                    let sum = dy.mul(x).mul_add(V::splat(r), V::load(dweight, at, lanes));
                    sum.store(dweight, at, lanes);
                }
            });
            let shrink = V::splat(-r * r * r * (dot.sum() / d as f32));
            for_lanes!(V, d, |at, lanes| {
                let g = V::load(dy, at, lanes).mul(V::load(weight, at, lanes).add(offset));
                let mut v = g.mul(V::splat(r));
                if accumulate {
                    v = v.add(V::load(dx, at, lanes));
                }
                V::load(x, at, lanes).mul_add(shrink, v).store(dx, at, lanes);
            });
        }
    }
}

/// `y = (x - mean) * rstd * weight + bias`, `rstd = 1 / sqrt(var(x) + eps)` (biased variance), row by row.
///
/// `x`, `y`: `[N,D]`; `weight`, `bias`: `[D]`; `mean`, `rstd`: `[N]`, or both empty where not wanted.
///
/// # Panics
/// If a length does not fit the shapes.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm(
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    n: usize,
    d: usize,
    weight_offset: f32,
) {
    check("layer_norm", "x", x.len(), n * d);
    check("layer_norm", "y", y.len(), n * d);
    check("layer_norm", "weight", weight.len(), d);
    let bias = bias.unwrap_or(&[]);
    if !bias.is_empty() {
        check("layer_norm", "bias", bias.len(), d);
    }
    let keep = !rstd.is_empty();
    if keep {
        check("layer_norm", "mean", mean.len(), n);
        check("layer_norm", "rstd", rstd.len(), n);
    }
    let (y, mean, rstd) = (SharedMut::new(y), SharedMut::new(mean), SharedMut::new(rstd));
    for_rows(n, 3 * d, |r| {
        let span = r.start * d..r.end * d;
        let kept = if keep { r } else { 0..0 };
        // SAFETY: the ranges of `for_rows` are disjoint.
        let (y, mean, rstd) = unsafe { (y.part(span.clone()), mean.part(kept.clone()), rstd.part(kept)) };
        layer_norm_rows(y, mean, rstd, &x[span], weight, bias, eps, weight_offset);
    });
}

dispatch! {
    fn layer_norm_rows<V>(
        y: &mut [f32], mean: &mut [f32], rstd: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32,
        weight_offset: f32,
    ) {
        let d = weight.len();
        for (i, (y, x)) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)).enumerate() {
            let mut sum = V::zero();
            for_lanes!(V, d, |at, lanes| { sum = sum.add(V::load(x, at, lanes)); });
            let m = sum.sum() / d as f32;
            // A second pass: the difference of two means of squares loses digits.
            let mut squares = V::zero();
            for_lanes!(V, d, |at, lanes| {
                let c = V::load(x, at, lanes).sub(V::splat(m)).fill_above(lanes, 0.0);
                squares = c.mul_add(c, squares);
            });
            let r = 1.0 / (squares.sum() / d as f32 + eps).sqrt();
            if let (Some(mean), Some(rstd)) = (mean.get_mut(i), rstd.get_mut(i)) {
                (*mean, *rstd) = (m, r);
            }
            for_lanes!(V, d, |at, lanes| {
                let u = V::load(x, at, lanes).sub(V::splat(m)).mul(V::splat(r));
                let mut v = u.mul(V::load(weight, at, lanes).add(V::splat(weight_offset)));
                if !bias.is_empty() {
                    v = v.add(V::load(bias, at, lanes));
                }
                v.store(y, at, lanes);
            });
        }
    }
}

/// Backward of [`layer_norm`]. With `g = dy * (weight_offset + weight)` and `u = (x - mean) * rstd`:
///
/// `dx += rstd * (g - mean(g) - u * mean(g u))`. Without `dy`, `dx` holds it, and the result takes its place;
/// `dweight += sum_rows dy u`, `dbias += sum_rows dy`.
///
/// # Panics
/// If a length does not fit the shapes.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    dx: &mut [f32],
    dy: Option<&[f32]>,
    x: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    n: usize,
    d: usize,
    weight_offset: f32,
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) {
    check("layer_norm_backward", "dx", dx.len(), n * d);
    check("layer_norm_backward", "dy", dy.map_or(n * d, <[f32]>::len), n * d);
    check("layer_norm_backward", "x", x.len(), n * d);
    check("layer_norm_backward", "weight", weight.len(), d);
    check("layer_norm_backward", "mean", mean.len(), n);
    check("layer_norm_backward", "rstd", rstd.len(), n);
    let dx = SharedMut::new(dx);
    sum_over_rows("layer_norm_backward", n, d, [dweight, dbias], |r, [dweight, dbias]| {
        let span = r.start * d..r.end * d;
        // SAFETY: the ranges of `sum_over_rows` are disjoint.
        let dx = unsafe { dx.part(span.clone()) };
        let (mean, rstd) = (&mean[r.clone()], &rstd[r]);
        layer_norm_backward_rows(
            dx,
            dy.map(|dy| &dy[span.clone()]),
            &x[span],
            weight,
            mean,
            rstd,
            weight_offset,
            dweight,
            dbias,
        );
    });
}

dispatch! {
    fn layer_norm_backward_rows<V>(
        dx: &mut [f32], dy: Option<&[f32]>, x: &[f32], weight: &[f32], mean: &[f32], rstd: &[f32],
        weight_offset: f32, dweight: &mut [f32], dbias: &mut [f32],
    ) {
        let d = weight.len();
        let offset = V::splat(weight_offset);
        let rows = dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(mean.iter().zip(rstd)).enumerate();
        for (row, ((dx, x), (&m, &r))) in rows {
            let dy = dy.map(|dy| &dy[row * d..][..d]);
            let (mut sum, mut dot) = (V::zero(), V::zero());
            for_lanes!(V, d, |at, lanes| {
                let dy = V::load(dy.unwrap_or(dx), at, lanes);
                let u = V::load(x, at, lanes).sub(V::splat(m)).mul(V::splat(r));
                let g = dy.mul(V::load(weight, at, lanes).add(offset));
                sum = sum.add(g);
                dot = g.mul_add(u, dot);
                if !dweight.is_empty() {
                    dy.mul_add(u, V::load(dweight, at, lanes)).store(dweight, at, lanes);
                }
                if !dbias.is_empty() {
                    dy.add(V::load(dbias, at, lanes)).store(dbias, at, lanes);
                }
            });
            let (mean_g, mean_gu) = (V::splat(sum.sum() / d as f32), V::splat(dot.sum() / d as f32));
            for_lanes!(V, d, |at, lanes| {
                let u = V::load(x, at, lanes).sub(V::splat(m)).mul(V::splat(r));
                let g = V::load(dy.unwrap_or(dx), at, lanes).mul(V::load(weight, at, lanes).add(offset));
                let mut v = g.sub(mean_g).sub(u.mul(mean_gu)).mul(V::splat(r));
                if dy.is_some() {
                    v = v.add(V::load(dx, at, lanes));
                }
                v.store(dx, at, lanes);
            });
        }
    }
}

fn check(kernel: &str, name: &str, len: usize, want: usize) {
    assert_eq!(len, want, "{kernel}: {name} has {len} values, the shapes ask for {want}");
}

/// Runs `f` on disjoint ranges of rows; what each range adds up for the (wanted) outputs `[D]` is
/// added to them in the order of the ranges. `f` gets empty slices for outputs that are not wanted.
fn sum_over_rows(
    kernel: &str,
    n: usize,
    d: usize,
    mut outputs: [Option<&mut [f32]>; 2],
    f: impl Fn(std::ops::Range<usize>, [&mut [f32]; 2]) + Sync,
) {
    for output in outputs.iter().flatten() {
        check(kernel, "a gradient of the weights", output.len(), d);
    }
    if outputs.iter().all(Option::is_none) {
        return for_rows(n, 3 * d, |r| f(r, [&mut [], &mut []]));
    }
    let tasks = row_tasks(n, 3 * d).min(rayon::current_num_threads());
    let mut sums = vec![0.0; tasks * 2 * d];
    let wanted = [outputs[0].is_some(), outputs[1].is_some()];
    let run = |t: usize, sums: &mut [f32]| {
        let (first, second) = sums.split_at_mut(d);
        f(
            task_rows(n, tasks, t),
            [if wanted[0] { first } else { &mut [] }, if wanted[1] { second } else { &mut [] }],
        );
    };
    if tasks == 1 {
        run(0, &mut sums);
    } else {
        use rayon::prelude::*;
        sums.par_chunks_mut(2 * d).enumerate().for_each(|(t, sums)| run(t, sums));
    }
    for part in sums.chunks_exact(2 * d) {
        for (output, part) in outputs.iter_mut().zip(part.chunks_exact(d)) {
            for (o, p) in output.iter_mut().flat_map(|o| o.iter_mut()).zip(part) {
                *o += p;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, salt: u64) -> Vec<f32> {
        let mut x = vec![0.0; n];
        crate::normal(&mut x, 0.3, 1.0, 21, salt);
        x
    }

    /// Normalised rows in f64, with the mean taken off (layer norm) or not (rms norm).
    fn reference(x: &[f64], w: &[f64], b: &[f64], eps: f64, centre: bool) -> Vec<f64> {
        let d = w.len();
        let row = |x: &[f64]| {
            let mean = if centre { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
            let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            let rstd = 1.0 / (var + eps).sqrt();
            (0..d).map(|j| (x[j] - mean) * rstd * w[j] + b[j]).collect::<Vec<_>>()
        };
        x.chunks(d).flat_map(row).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    /// Gradient of `sum(dy y)` with respect to `p` by central differences of the reference.
    fn slope(p: &[f64], dy: &[f32], y: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let h = 1e-5;
        let mut p = p.to_vec();
        (0..p.len())
            .map(|i| {
                let at = p[i];
                p[i] = at + h;
                let up = y(&p);
                p[i] = at - h;
                let down = y(&p);
                p[i] = at;
                up.iter().zip(&down).zip(dy).map(|((u, d), g)| (u - d) * f64::from(*g)).sum::<f64>()
                    / (2.0 * h)
            })
            .collect()
    }

    fn close(name: &str, got: &[f32], want: &[f64], limit: f64) {
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() <= limit * w.abs().max(1.0), "{name}[{i}] = {g}, not {w}");
        }
    }

    #[test]
    fn rms() {
        for (n, d, offset) in [(1, 1, 0.0f32), (3, 7, 1.0), (5, 33, 0.0), (2, 64, 1.0)] {
            let (x, w, dy) = (numbers(n * d, 1), numbers(d, 2), numbers(n * d, 3));
            let shifted: Vec<f64> = w.iter().map(|&w| f64::from(w) + f64::from(offset)).collect();
            let (mut y, mut rstd) = (vec![f32::NAN; n * d], vec![f32::NAN; n]);
            rms_norm(&mut y, &mut rstd, &x, &w, 1e-5, n, d, offset);
            let zeros = vec![0.0; d];
            let forward = |x: &[f64], w: &[f64]| reference(x, w, &zeros, f64::from(1e-5f32), false);
            close("y", &y, &forward(&wide(&x), &shifted), 1e-6);
            let mut again = vec![f32::NAN; n * d];
            rms_norm(&mut again, &mut [], &x, &w, 1e-5, n, d, offset);
            assert_eq!(y, again);

            let (mut dx, mut dw) = (vec![f32::NAN; n * d], vec![0.5; d]);
            rms_norm_backward(&mut dx, &dy, &x, &w, &rstd, n, d, offset, false, Some(&mut dw));
            let want = slope(&wide(&x), &dy, |x| forward(x, &shifted));
            close("dx", &dx, &want, 2e-5);
            let dw_want = slope(&shifted, &dy, |w| forward(&wide(&x), w));
            close("dw", &dw, &dw_want.iter().map(|g| g + 0.5).collect::<Vec<_>>(), 2e-5);
            rms_norm_backward(&mut dx, &dy, &x, &w, &rstd, n, d, offset, true, None);
            close("2 dx", &dx, &want.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 4e-5);
        }
    }

    #[test]
    fn layer() {
        for (n, d) in [(1, 1), (3, 7), (5, 33), (2, 64)] {
            let (x, w, b, dy) = (numbers(n * d, 1), numbers(d, 2), numbers(d, 4), numbers(n * d, 3));
            let (mut y, mut mean, mut rstd) = (vec![f32::NAN; n * d], vec![f32::NAN; n], vec![f32::NAN; n]);
            // A large eps keeps the row of one value, whose variance is 0, smooth.
            let eps = 1e-2;
            layer_norm(&mut y, &mut mean, &mut rstd, &x, &w, Some(&b), eps, n, d, 0.0);
            let forward = |x: &[f64], w: &[f64], b: &[f64]| reference(x, w, b, f64::from(eps), true);
            close("y", &y, &forward(&wide(&x), &wide(&w), &wide(&b)), 1e-6);
            let mut plain = vec![f32::NAN; n * d];
            layer_norm(&mut plain, &mut [], &mut [], &x, &w, None, eps, n, d, 0.0);
            close("y without bias", &plain, &forward(&wide(&x), &wide(&w), &vec![0.0; d]), 1e-6);

            let (mut dx, mut dw, mut db) = (dy.clone(), vec![0.5; d], vec![0.25; d]);
            layer_norm_backward(&mut dx, None, &x, &w, &mean, &rstd, n, d, 0.0, Some(&mut dw), Some(&mut db));
            let want = slope(&wide(&x), &dy, |x| forward(x, &wide(&w), &wide(&b)));
            close("dx", &dx, &want, 2e-5);
            let dw_want = slope(&wide(&w), &dy, |w| forward(&wide(&x), w, &wide(&b)));
            close("dw", &dw, &dw_want.iter().map(|g| g + 0.5).collect::<Vec<_>>(), 2e-5);
            let db_want = slope(&wide(&b), &dy, |b| forward(&wide(&x), &wide(&w), b));
            close("db", &db, &db_want.iter().map(|g| g + 0.25).collect::<Vec<_>>(), 2e-5);
            layer_norm_backward(&mut dx, Some(&dy), &x, &w, &mean, &rstd, n, d, 0.0, None, None);
            close("2 dx", &dx, &want.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 4e-5);
        }
    }

    #[test]
    fn many_rows_on_threads_equal_one_row_at_a_time() {
        let (n, d) = (700, 192);
        let (x, w, dy) = (numbers(n * d, 1), numbers(d, 2), numbers(n * d, 3));
        let (mut y, mut mean, mut rstd) = (vec![f32::NAN; n * d], vec![f32::NAN; n], vec![f32::NAN; n]);
        rms_norm(&mut y, &mut rstd, &x, &w, 1e-5, n, d, 0.0);
        let (mut dx, mut dw) = (vec![f32::NAN; n * d], vec![0.0; d]);
        rms_norm_backward(&mut dx, &dy, &x, &w, &rstd, n, d, 0.0, false, Some(&mut dw));
        let (mut ly, mut ldx, mut lr) = (vec![f32::NAN; n * d], dy.clone(), vec![f32::NAN; n]);
        layer_norm(&mut ly, &mut mean, &mut lr, &x, &w, None, 1e-5, n, d, 0.0);
        layer_norm_backward(&mut ldx, None, &x, &w, &mean, &lr, n, d, 0.0, None, None);
        let mut dw_rows = vec![0.0; d];
        for i in 0..n {
            let r = i * d..(i + 1) * d;
            let (mut one, mut s, mut m) = (vec![f32::NAN; d], [0.0], [0.0]);
            rms_norm(&mut one, &mut s, &x[r.clone()], &w, 1e-5, 1, d, 0.0);
            assert_eq!(one, y[r.clone()]);
            let (one_dy, one_x) = (&dy[r.clone()], &x[r.clone()]);
            rms_norm_backward(&mut one, one_dy, one_x, &w, &s, 1, d, 0.0, false, Some(&mut dw_rows));
            assert_eq!(one, dx[r.clone()]);
            layer_norm(&mut one, &mut m, &mut s, one_x, &w, None, 1e-5, 1, d, 0.0);
            assert_eq!(one, ly[r.clone()]);
            one.copy_from_slice(one_dy);
            layer_norm_backward(&mut one, None, one_x, &w, &m, &s, 1, d, 0.0, None, None);
            assert_eq!(one, ldx[r]);
        }
        close("dw", &dw, &wide(&dw_rows), 1e-5);
    }
}
