//! Elementary functions on vectors, by polynomials. Largest errors against f64, in units of 2^-23 of the
//! result (an ulp or half of one): `exp` 1, `sigmoid`, `tanh` and `erf` 1.5 (tested below).

use crate::simd::Vector;

#[inline(always)]
fn horner<V: Vector, const N: usize>(x: V, c: [f32; N]) -> V {
    let mut y = V::splat(c[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        y = y.mul_add(x, V::splat(c[i]));
    }
    y
}

/// `e^x`. Zero below -87.68 (results below the smallest normal number), infinity above 88.37 (the largest
/// f32 is `e^88.72`), NaN for NaN.
///
/// `x = n ln 2 + r`, `e^r = 1 + r (1 + r q(r))` with `q` of degree 4 (minimax on `|r| <= ln 2 / 2`).
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    // The constants stand first so that NaN passes through. At the ends `n` is -127 and 128.
    let x = V::splat(-88.0).max(V::splat(89.0).min(x));
    // Adding 1.5 * 2^23 leaves no bits below the units: `n`, rounded, is then in the low bits, here with
    // the bias of the exponent already added.
    const MAGIC: f32 = 12_582_912.0 + 127.0;
    let biased = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(MAGIC));
    let n = biased.sub(V::splat(MAGIC));
    // ln 2 in two parts, the first (355/512) short enough for its product with `n` to be exact.
    let r = n.mul_add(V::splat(-355.0 / 512.0), x);
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let e = horner(r, [1.0, 1.0, 0.499_999_94, 0.166_665_2, 0.041_668_396, 0.008_368_797, 0.001_381_443_3]);
    e.mul(biased.low_bits_to_exponent())
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    one.div(one.add(exp(V::zero().sub(x))))
}

/// Hyperbolic tangent: an odd polynomial for `|x| < 0.625`, else `1 - 2 / (e^2|x| + 1)`.
#[inline(always)]
pub(crate) fn tanh<V: Vector>(x: V) -> V {
    let a = x.abs();
    let s = x.mul(x);
    let p = horner(s, [-0.333_332_8, 0.133_314_42, -0.053_739_704, 0.020_639_053, -0.005_704_946_4]);
    let small = p.mul(s).mul_add(x, x);
    let one = V::splat(1.0);
    let large = one.sub(V::splat(2.0).div(exp(a.add(a)).add(one))).copy_sign(x);
    a.if_less(V::splat(0.625), small, large)
}

/// Error function: an odd polynomial for `|x| < 0.925`, else `1 - e^-p(|x|)`.
#[inline(always)]
pub(crate) fn erf<V: Vector>(x: V) -> V {
    let a = x.abs();
    let s = x.mul(x);
    let p =
        horner(s, [0.128_379_15, -0.376_124_8, 0.112_816_826, -0.026_761_714, 0.004_985_932_3, -5.953_7e-4]);
    let small = p.mul_add(x, x);
    // Above 4 the result is 1 in f32, and the polynomial is no longer a fit.
    let t = V::splat(4.0).min(a);
    let q = horner(t, [1.128_514_4, 0.635_718_3, 0.105_261_87, -0.022_889_981, 0.003_214_961, -2.139_856e-4]);
    let large = V::splat(1.0).sub(exp(V::zero().sub(q.mul(t)))).copy_sign(x);
    a.if_less(V::splat(0.925), small, large)
}

#[cfg(test)]
mod tests {
    use crate::simd::{dispatch, for_lanes};

    macro_rules! apply {
        ($name:ident) => {
            dispatch! {
                fn $name<V>(x: &[f32], y: &mut [f32]) {
                    for_lanes!(V, x.len(), |at, lanes| {
                        super::$name(V::load(x, at, lanes)).store(y, at, lanes);
                    });
                }
            }
        };
    }
    apply!(exp);
    apply!(sigmoid);
    apply!(tanh);
    apply!(erf);

    /// Largest error, in units of 2^-23 of the result, of `f` over `count` points of `[from, to]`.
    fn worst_ulp(f: fn(&[f32], &mut [f32]), truth: fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let count = 400_003;
        let x: Vec<f32> = (0..count).map(|i| from + (to - from) * i as f32 / (count - 1) as f32).collect();
        let mut y = vec![f32::NAN; count];
        f(&x, &mut y);
        let mut worst: f64 = 0.0;
        for (&x, &y) in x.iter().zip(&y) {
            let t = truth(f64::from(x));
            let ulp = f64::from((t as f32).abs().max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
            worst = worst.max((f64::from(y) - t).abs() / ulp);
        }
        worst
    }

    /// `erf` in f64 by its Maclaurin series (small) or a continued fraction of `erfc` (large).
    fn erf64(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 2.5 {
            let (mut term, mut sum, mut n) = (a, a, 0.0);
            while term.abs() > 1e-18 {
                n += 1.0;
                term *= -a * a / n;
                sum += term / (2.0 * n + 1.0);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            let mut f = 0.0;
            for k in (1..80).rev() {
                f = f64::from(k) / 2.0 / (a + f);
            }
            1.0 - (-a * a).exp() / ((a + f) * std::f64::consts::PI.sqrt())
        };
        value.copysign(x)
    }

    #[test]
    fn errors_stay_below_what_the_docs_state() {
        for (name, worst, limit) in [
            ("exp", worst_ulp(exp, f64::exp, -87.3, 88.3), 1.0),
            ("exp near zero", worst_ulp(exp, f64::exp, -1.0, 1.0), 1.0),
            ("sigmoid", worst_ulp(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0), 1.5),
            ("tanh", worst_ulp(tanh, f64::tanh, -12.0, 12.0), 1.5),
            ("tanh near zero", worst_ulp(tanh, f64::tanh, -1e-3, 1e-3), 1.5),
            ("erf", worst_ulp(erf, erf64, -6.0, 6.0), 1.5),
            ("erf near zero", worst_ulp(erf, erf64, -1e-3, 1e-3), 1.5),
        ] {
            eprintln!("{name}: {worst:.2} ulp");
            assert!(worst <= limit, "{name}: {worst} ulp, limit {limit}");
        }
    }

    #[test]
    fn special_values() {
        let x =
            [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0, -0.0, -1e30, 1e30, -88.0, 88.7, 88.0, -100.0];
        let mut y = [0.0; 11];
        exp(&x, &mut y);
        assert_eq!(
            [y[0], y[1], y[3], y[4], y[5], y[6], y[7]],
            [0.0, f32::INFINITY, 1.0, 1.0, 0.0, f32::INFINITY, 0.0]
        );
        assert!(y[2].is_nan() && y[8].is_infinite() && y[9].is_finite());
        for f in [sigmoid, tanh, erf] {
            f(&x, &mut y);
            assert_eq!(y[1], 1.0);
            assert_eq!(y[6], 1.0);
            assert!(y[2].is_nan(), "NaN must pass through");
        }
    }
}
