//! Neighbouring rows side by side, for convolutions.

use crate::Segment;

/// `y[t, i K + k] = x[t + k - (K - 1) / 2, i]` where that row is of the same segment (its `q`), else 0.
///
/// `x: [N,D]`, `y: [N, D K]`; rows of `y` outside every segment get zeros.
///
/// # Panics
/// If a length does not fit the shapes, a segment lies outside them, or `K` is even.
pub fn unfold(y: &mut [f32], x: &[f32], d: usize, kernel: usize, segments: &[Segment]) {
    check("unfold", y.len(), x.len(), d, kernel);
    y.fill(0.0);
    neighbours(kernel, segments, |t, from, k| {
        let row = &mut y[t * d * kernel..][..d * kernel];
        row.iter_mut().skip(k).step_by(kernel).zip(&x[from * d..][..d]).for_each(|(y, x)| *y = *x);
    });
}

/// Backward of [`unfold`]: `dx: [N,D]` is overwritten with the sum over the positions each value was copied to.
///
/// # Panics
/// As [`unfold`].
pub fn unfold_backward(dx: &mut [f32], dy: &[f32], d: usize, kernel: usize, segments: &[Segment]) {
    check("unfold_backward", dy.len(), dx.len(), d, kernel);
    dx.fill(0.0);
    neighbours(kernel, segments, |t, from, k| {
        let row = &dy[t * d * kernel..][..d * kernel];
        dx[from * d..][..d].iter_mut().zip(row.iter().skip(k).step_by(kernel)).for_each(|(dx, dy)| *dx += dy);
    });
}

/// Calls `f(t, t + k - (K - 1) / 2, k)` for the pairs of rows that exist.
fn neighbours(kernel: usize, segments: &[Segment], mut f: impl FnMut(usize, usize, usize)) {
    for rows in segments.iter().map(|s| &s.q) {
        for (t, k) in rows.clone().flat_map(|t| (0..kernel).map(move |k| (t, k))) {
            if let Some(from) = (t + k).checked_sub(kernel / 2).filter(|from| rows.contains(from)) {
                f(t, from, k);
            }
        }
    }
}

fn check(name: &str, wide: usize, narrow: usize, d: usize, kernel: usize) {
    assert!(kernel % 2 == 1 && d > 0, "{name}: a kernel of {kernel} over {d} values; it must be odd");
    assert_eq!(wide, narrow * kernel, "{name}: {wide} values for {narrow} and a kernel of {kernel}");
    assert!(narrow.is_multiple_of(d), "{name}: {narrow} values are not rows of {d}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_within_a_text() {
        let rows = |q: std::ops::Range<usize>| Segment { q: q.clone(), prefix: 0..0, own: q };
        let segments = [rows(0..3), rows(3..4), rows(4..6)];
        let x: Vec<f32> = (1..=12).map(|x| x as f32).collect();
        let mut y = vec![f32::NAN; 36];
        unfold(&mut y, &x, 2, 3, &segments);
        assert_eq!(y[..6], [0.0, 1.0, 3.0, 0.0, 2.0, 4.0]);
        assert_eq!(y[6..12], [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert_eq!(y[18..24], [0.0, 7.0, 0.0, 0.0, 8.0, 0.0]);
        assert_eq!(y[30..], [9.0, 11.0, 0.0, 10.0, 12.0, 0.0]);
    }

    #[test]
    fn the_backward_is_the_transpose() {
        let segments = [Segment { q: 1..8, prefix: 0..0, own: 1..8 }];
        for (d, kernel) in [(1, 1), (3, 5), (2, 9)] {
            let x: Vec<f32> = (0..9 * d).map(|i| (i * 7 % 11) as f32).collect();
            let dy: Vec<f32> = (0..9 * d * kernel).map(|i| (i * 5 % 13) as f32).collect();
            let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
            unfold(&mut y, &x, d, kernel, &segments);
            unfold_backward(&mut dx, &dy, d, kernel, &segments);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            assert_eq!(dot(&y, &dy), dot(&x, &dx));
        }
    }
}
