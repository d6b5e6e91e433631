//! Activation functions, plain and gated (`act(gate) * up`), forward and backward.

use crate::int16::{PIECE_LEN, SavedValues, for_pieces};
use crate::math::{erf, sigmoid, tanh};
use crate::parallel::{SharedMut, for_parts, for_rows};
use crate::simd::{Vector, dispatch, for_lanes};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x sigmoid(x)` ("silu", "swish").
    Silu,
    /// `x Phi(x)`, `Phi` the normal distribution, by the error function ("gelu").
    Gelu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` ("gelu_new", "gelu_pytorch_tanh").
    GeluTanh,
    /// `x sigmoid(1.702 x)` ("quick_gelu").
    QuickGelu,
    /// `max(x, 0)` ("relu").
    Relu,
    /// Hyperbolic tangent ("tanh").
    Tanh,
    /// [`Activation::Gelu`], no less than -10 and no more than 10 ("gelu_10").
    ClippedGelu,
    /// `max(x, 0)^2` ("relu2").
    Relu2,
    /// `max(x, 0)`, no more than 6 ("relu6").
    Relu6,
    /// `x` where it is positive, else `0.01 x` ("leaky_relu").
    LeakyRelu,
    /// `1 / (1 + exp(-x))` ("sigmoid").
    Sigmoid,
    /// `x tanh(ln(1 + exp(x)))` ("mish").
    Mish,
    /// `x relu6(x + 3) / 6` ("hardswish").
    HardSwish,
    /// The normal distribution of mean `sqrt(1/2)` and deviation `sqrt(1/(4 pi))`, rounded as MEGA has them ("laplace").
    Laplace,
    /// `x` ("linear").
    Linear,
}

impl Activation {
    /// Every one.
    pub const ALL: [Self; 15] = [
        Self::Silu,
        Self::Gelu,
        Self::GeluTanh,
        Self::QuickGelu,
        Self::Relu,
        Self::Tanh,
        Self::ClippedGelu,
        Self::Relu2,
        Self::Relu6,
        Self::LeakyRelu,
        Self::Sigmoid,
        Self::Mish,
        Self::HardSwish,
        Self::Laplace,
        Self::Linear,
    ];
}

#[inline(always)]
fn gelu<V: Vector>(x: V) -> (V, V) {
    let half = V::splat(0.5);
    let phi = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))).mul_add(half, half);
    let density = crate::math::exp(x.mul(x).mul(V::splat(-0.5))).mul(V::splat(0.398_942_3));
    (x.mul(phi), x.mul_add(density, phi))
}

/// `(act(x), act'(x))`. It must not call itself: then it would not be inlined into the loops, and no more would its
/// instructions be.
#[inline(always)]
fn value_and_slope<V: Vector>(act: Activation, x: V) -> (V, V) {
    let (one, half) = (V::splat(1.0), V::splat(0.5));
    match act {
        Activation::Silu => {
            let s = sigmoid(x);
            let y = x.mul(s);
            // s + x s (1 - s)
            (y, y.mul(one.sub(s)).add(s))
        }
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => {
            const C: f32 = 0.797_884_6;
            let xx = x.mul(x);
            let t = tanh(x.mul(xx.mul_add(V::splat(C * 0.044_715), V::splat(C))));
            let inner = xx.mul_add(V::splat(3.0 * C * 0.044_715), V::splat(C));
            let phi = t.mul_add(half, half);
            let bend = one.sub(t.mul(t)).mul(inner).mul(half);
            (x.mul(phi), x.mul_add(bend, phi))
        }
        Activation::QuickGelu => {
            let k = V::splat(1.702);
            let s = sigmoid(x.mul(k));
            let y = x.mul(s);
            (y, y.mul(one.sub(s)).mul_add(k, s))
        }
        Activation::Relu => (V::zero().max(x), V::zero().if_less(x, one, V::zero())),
        Activation::Tanh => {
            let t = tanh(x);
            (t, one.sub(t.mul(t)))
        }
        Activation::ClippedGelu => {
            let (y, slope) = gelu(x);
            // It never comes near -10.
            let top = V::splat(10.0);
            (top.if_less(y, top, y), top.if_less(y, V::zero(), slope))
        }
        Activation::Relu2 => {
            let y = V::zero().max(x);
            (y.mul(y), y.add(y))
        }
        Activation::Relu6 => {
            let (y, top) = (V::zero().max(x), V::splat(6.0));
            let inside = x.if_less(top, one, V::zero());
            (top.if_less(y, top, y), V::zero().if_less(x, inside, V::zero()))
        }
        Activation::LeakyRelu => {
            let slope = V::zero().if_less(x, one, V::splat(0.01));
            (x.mul(slope), slope)
        }
        Activation::Sigmoid => {
            let s = sigmoid(x);
            (s, s.mul(one.sub(s)))
        }
        Activation::Mish => {
            // tanh(ln(1 + e)) = n / (n + 2) with n = e (e + 2); from 20 on it is 1 in f32.
            let far = V::splat(20.0);
            let e = crate::math::exp(far.if_less(x, far, x));
            let n = e.mul(e.add(V::splat(2.0)));
            let t = n.div(n.add(V::splat(2.0)));
            (x.mul(t), x.mul(one.sub(t.mul(t))).mul_add(sigmoid(x), t))
        }
        Activation::HardSwish => {
            let (low, high, third) = (V::splat(-3.0), V::splat(3.0), V::splat(1.0 / 3.0));
            let share = x.mul_add(V::splat(1.0 / 6.0), half);
            let share = high.if_less(x, one, x.if_less(low, V::zero(), share));
            let slope = high.if_less(x, one, x.if_less(low, V::zero(), x.mul_add(third, half)));
            (x.mul(share), slope)
        }
        Activation::Laplace => {
            const MEAN: f32 = std::f32::consts::FRAC_1_SQRT_2;
            const DEVIATION: f32 = 0.282_095;
            let z = x.sub(V::splat(MEAN)).mul(V::splat(std::f32::consts::FRAC_1_SQRT_2 / DEVIATION));
            let density = crate::math::exp(z.mul(z).mul(V::splat(-1.0)));
            (erf(z).mul_add(half, half), density.mul(V::splat(0.398_942_3 / DEVIATION)))
        }
        Activation::Linear => (x, one),
    }
}

/// `y = act(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate(y: &mut [f32], x: &[f32], act: Activation) {
    same("activate", &[("y", y.len()), ("x", x.len())]);
    for_parts(y, COST, |y, r| activate_run(y, &x[r], act));
}

dispatch! {
    fn activate_run<V>(y: &mut [f32], x: &[f32], act: Activation) {
        for_lanes!(V, x.len(), |at, lanes| {
            value_and_slope(act, V::load(x, at, lanes)).0.store(y, at, lanes);
        });
    }
}

/// [`activate`] that overwrites `x` with `act(x)`.
pub fn activate_in_place(x: &mut [f32], act: Activation) {
    for_parts(x, COST, |x, _| activate_in_place_run(x, act));
}

dispatch! {
    fn activate_in_place_run<V>(x: &mut [f32], act: Activation) {
        for_lanes!(V, x.len(), |at, lanes| {
            value_and_slope(act, V::load(x, at, lanes)).0.store(x, at, lanes);
        });
    }
}

/// Backward of [`activate`]: overwrites `dy` with `dx = dy act'(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate_backward<'a>(dy: &mut [f32], x: impl Into<SavedValues<'a>>, act: Activation) {
    let (len, x) = (dy.len(), x.into());
    x.check("activate_backward", len);
    let dy = SharedMut::new(dy);
    for_pieces(len, COST, |r| {
        // SAFETY: the pieces are disjoint.
        let dy = unsafe { dy.part(r.clone()) };
        activate_backward_run(dy, x.piece(r, &mut [0.0; PIECE_LEN]), act);
    });
}

dispatch! {
    fn activate_backward_run<V>(dy: &mut [f32], x: &[f32], act: Activation) {
        for_lanes!(V, x.len(), |at, lanes| {
            let slope = value_and_slope(act, V::load(x, at, lanes)).1;
            V::load(dy, at, lanes).mul(slope).store(dy, at, lanes);
        });
    }
}

/// `h = act(gate) * up`.
///
/// # Panics
/// If the lengths differ.
pub fn gated(h: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
    same("gated", &[("h", h.len()), ("gate", gate.len()), ("up", up.len())]);
    for_parts(h, COST, |h, r| gated_run(h, &gate[r.clone()], &up[r], act));
}

dispatch! {
    fn gated_run<V>(h: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
        for_lanes!(V, gate.len(), |at, lanes| {
            let a = value_and_slope(act, V::load(gate, at, lanes)).0;
            a.mul(V::load(up, at, lanes)).store(h, at, lanes);
        });
    }
}

/// [`gated`] that overwrites `gate` with `h`.
///
/// # Panics
/// If the lengths differ.
pub fn gated_in_place(gate: &mut [f32], up: &[f32], act: Activation) {
    same("gated_in_place", &[("gate", gate.len()), ("up", up.len())]);
    for_parts(gate, COST, |gate, r| gated_in_place_run(gate, &up[r], act));
}

dispatch! {
    fn gated_in_place_run<V>(gate: &mut [f32], up: &[f32], act: Activation) {
        for_lanes!(V, up.len(), |at, lanes| {
            let a = value_and_slope(act, V::load(gate, at, lanes)).0;
            a.mul(V::load(up, at, lanes)).store(gate, at, lanes);
        });
    }
}

/// Backward of [`gated`]: writes `dup = dh act(gate)` and overwrites `dh` with `dgate = dh up act'(gate)`.
///
/// # Panics
/// If the lengths differ.
pub fn gated_backward<'a>(
    dh: &mut [f32],
    dup: &mut [f32],
    gate: impl Into<SavedValues<'a>>,
    up: impl Into<SavedValues<'a>>,
    act: Activation,
) {
    same("gated_backward", &[("dh", dh.len()), ("dup", dup.len())]);
    let (len, gate, up) = (dh.len(), gate.into(), up.into());
    [gate, up].iter().for_each(|x| x.check("gated_backward", len));
    let (dh, dup) = (SharedMut::new(dh), SharedMut::new(dup));
    for_pieces(len, COST, |r| {
        let rooms = (&mut [0.0; PIECE_LEN], &mut [0.0; PIECE_LEN]);
        let (gate, up) = (gate.piece(r.clone(), rooms.0), up.piece(r.clone(), rooms.1));
        // SAFETY: the pieces are disjoint.
        let (dh, dup) = unsafe { (dh.part(r.clone()), dup.part(r)) };
        gated_backward_run(dh, dup, gate, up, act);
    });
}

dispatch! {
    fn gated_backward_run<V>(dh: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
        for_lanes!(V, gate.len(), |at, lanes| {
            let (value, slope) = value_and_slope(act, V::load(gate, at, lanes));
            let d = V::load(dh, at, lanes);
            d.mul(value).store(dup, at, lanes);
            d.mul(V::load(up, at, lanes)).mul(slope).store(dh, at, lanes);
        });
    }
}

/// [`gated_backward`] that overwrites `gate` with `dgate` and `up` with `dup`, and only reads `dh`.
///
/// # Panics
/// If the lengths differ.
pub fn gated_backward_in_place(gate: &mut [f32], up: &mut [f32], dh: &[f32], act: Activation) {
    same("gated_backward_in_place", &[("gate", gate.len()), ("up", up.len()), ("dh", dh.len())]);
    let (gate, up) = (SharedMut::new(gate), SharedMut::new(up));
    for_rows(dh.len(), COST, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let (gate, up) = unsafe { (gate.part(r.clone()), up.part(r.clone())) };
        gated_backward_in_place_run(gate, up, &dh[r], act);
    });
}

dispatch! {
    fn gated_backward_in_place_run<V>(gate: &mut [f32], up: &mut [f32], dh: &[f32], act: Activation) {
        for_lanes!(V, dh.len(), |at, lanes| {
            let (value, slope) = value_and_slope(act, V::load(gate, at, lanes));
            let dh = V::load(dh, at, lanes);
            dh.mul(V::load(up, at, lanes)).mul(slope).store(gate, at, lanes);
            dh.mul(value).store(up, at, lanes);
        });
    }
}

/// Work of one value, for the decision to use threads.
const COST: usize = 4;

fn same(kernel: &str, lengths: &[(&str, usize)]) {
    let (first, len) = lengths[0];
    for (name, other) in &lengths[1..] {
        assert_eq!(*other, len, "{kernel}: {name} has {other} values, {first} {len}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definitions, in f64.
    fn truth(act: Activation, x: f64) -> f64 {
        match act {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => x * normal(x),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Relu => x.max(0.0),
            Activation::Tanh => x.tanh(),
            Activation::ClippedGelu => (x * normal(x)).clamp(-10.0, 10.0),
            Activation::Relu2 => x.max(0.0).powi(2),
            Activation::Relu6 => x.clamp(0.0, 6.0),
            Activation::LeakyRelu => x.max(0.01 * x),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Mish => x * x.exp().ln_1p().tanh(),
            Activation::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
            Activation::Laplace => normal((x - std::f64::consts::FRAC_1_SQRT_2) / 0.282_095),
            Activation::Linear => x,
        }
    }

    /// The normal distribution, by Simpson's rule.
    fn normal(x: f64) -> f64 {
        let (steps, h) = (2000, x / 2000.0);
        let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
        let inner: f64 = (1..steps).map(|i| density(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        0.5 + (density(0.0) + inner + density(x)) * h / 3.0
    }

    fn points() -> Vec<f32> {
        (0..1003).map(|i| (i as f32 - 501.0) * 0.017 + 0.003).collect()
    }

    fn close(got: f32, want: f64, limit: f64, what: &str) {
        assert!((f64::from(got) - want).abs() <= limit * want.abs().max(1.0), "{what}: {got}, not {want}");
    }

    #[test]
    fn int16_gives_what_its_values_give() {
        for n in [1, 31, 33, 2048, 2049, 70_001] {
            let [x, up, dy] = [1, 2, 3].map(|seed| {
                let mut numbers = vec![0.0; n];
                crate::normal(&mut numbers, 0.0, 1.0, seed, 0);
                numbers
            });
            let kept = [&x, &up].map(|x| {
                let mut words = vec![f32::NAN; crate::i16_len(n)];
                crate::quantize_i16(&mut words, x);
                words
            });
            let [x, up] = kept.each_ref().map(|words| {
                let mut numbers = vec![f32::NAN; n];
                crate::dequantize_i16(&mut numbers, words);
                numbers
            });
            let (mut want, mut got) = (dy.clone(), dy.clone());
            activate_backward(&mut want, &x, Activation::Gelu);
            activate_backward(&mut got, SavedValues::I16(&kept[0]), Activation::Gelu);
            assert_eq!(got, want);
            let (mut dgate, mut got) = (dy.clone(), dy);
            let [mut dup, mut got_up] = [(); 2].map(|()| vec![f32::NAN; n]);
            gated_backward(&mut dgate, &mut dup, &x, &up, Activation::Silu);
            let [gate, up] = kept.each_ref().map(|words| SavedValues::I16(words));
            gated_backward(&mut got, &mut got_up, gate, up, Activation::Silu);
            assert_eq!((got, got_up), (dgate, dup));
        }
    }

    #[test]
    fn values_and_slopes() {
        let x = points();
        let n = x.len();
        for act in Activation::ALL {
            let (mut y, mut dx) = (vec![f32::NAN; n], vec![2.0; n]);
            activate(&mut y, &x, act);
            let mut in_place = x.clone();
            activate_in_place(&mut in_place, act);
            assert_eq!(in_place, y);
            activate_backward(&mut dx, &x, act);
            for (i, &x) in x.iter().enumerate() {
                let x = f64::from(x);
                close(y[i], truth(act, x), 1e-6, &format!("{act:?}({x})"));
                let slope = (truth(act, x + 1e-5) - truth(act, x - 1e-5)) / 2e-5;
                close(dx[i], 2.0 * slope, 3e-6, &format!("{act:?}'({x})"));
            }
        }
    }

    #[test]
    fn gated_pairs() {
        // Odd, and enough values for several threads.
        for n in [1, 9, 60_001] {
            let gate: Vec<f32> = points().into_iter().cycle().take(n).collect();
            let up: Vec<f32> = (0..n).map(|i| (i % 19) as f32 / 9.0 - 1.0).collect();
            let dh: Vec<f32> = (0..n).map(|i| (i % 13) as f32 / 6.0 - 1.0).collect();
            for act in [Activation::Silu, Activation::GeluTanh] {
                let (mut a, mut slope) = (vec![f32::NAN; n], vec![1.0; n]);
                activate(&mut a, &gate, act);
                activate_backward(&mut slope, &gate, act);
                let (mut h, mut in_place) = (vec![f32::NAN; n], gate.clone());
                gated(&mut h, &gate, &up, act);
                gated_in_place(&mut in_place, &up, act);
                assert!(in_place == h);
                let (mut dgate, mut dup) = (dh.clone(), vec![f32::NAN; n]);
                gated_backward(&mut dgate, &mut dup, &gate, &up, act);
                let (mut gate, mut up_in_place) = (gate.clone(), up.clone());
                gated_backward_in_place(&mut gate, &mut up_in_place, &dh, act);
                assert!(gate == dgate && up_in_place == dup);
                for i in 0..n {
                    close(h[i], f64::from(a[i]) * f64::from(up[i]), 1e-6, "h");
                    close(dgate[i], f64::from(dh[i]) * f64::from(up[i]) * f64::from(slope[i]), 1e-6, "dgate");
                    close(dup[i], f64::from(dh[i]) * f64::from(a[i]), 1e-6, "dup");
                }
            }
        }
    }

    #[test]
    fn far_values_and_nan() {
        for act in Activation::ALL {
            let mut y = [0.0; 3];
            activate(&mut y, &[-1e4, 1e4, f32::NAN], act);
            let (top, ends) = match act {
                Activation::Tanh => ([-1.0, 1.0], [0.0, 0.0]),
                Activation::Sigmoid | Activation::Laplace => ([0.0, 1.0], [0.0, 0.0]),
                Activation::ClippedGelu => ([0.0, 10.0], [0.0, 0.0]),
                Activation::Relu6 => ([0.0, 6.0], [0.0, 0.0]),
                Activation::Relu2 => ([0.0, 1e8], [0.0, 2e4]),
                Activation::LeakyRelu => ([-100.0, 1e4], [0.01, 1.0]),
                Activation::Linear => ([-1e4, 1e4], [1.0, 1.0]),
                _ => ([0.0, 1e4], [0.0, 1.0]),
            };
            assert_eq!([y[0], y[1]], top, "{act:?}");
            assert!(y[2].is_nan(), "{act:?}");
            let mut dx = [1.0; 2];
            activate_backward(&mut dx, &[-1e4, 1e4], act);
            assert_eq!(dx, ends, "{act:?}");
        }
    }
}
