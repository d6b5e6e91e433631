//! Every operation of the tape against finite differences: the slopes of `sum(w y)` along every value of every input, for
//! random `w`, with saved values as f32; as int16 within the rounding's bounds; in a block that runs again.

use std::borrow::Cow;
use std::rc::Rc;

use lowrank_kernels::{self as kernels, Activation, AttentionShape, Format, Segment};

use super::{Attention, Disentangled, Label, LayerNorm, LmHead, RmsNorm, Rope, TokenLoss};
use crate::layer::Linear;
use crate::site::SiteId;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::weight::FrozenWeight;
use crate::{ActiveAdapters, AdamW, Device, DropoutKey, Grads, Params, Record, SavedDtype, Scope};

fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut out = vec![0.0; n];
    kernels::normal(&mut out, 0.0, 1.0, seed, 1);
    out
}

/// An operation on values of one pass.
trait Op: for<'m> Fn(&mut Tape<'m>, &[Var<'m>]) -> Var<'m> {}
impl<F: for<'m> Fn(&mut Tape<'m>, &[Var<'m>]) -> Var<'m>> Op for F {}

/// `sum(w y)` for `y = op(inputs)`, and its gradients with respect to the inputs.
fn run(
    inputs: &[(usize, Vec<f32>)],
    saved: SavedDtype,
    record: Record,
    op: &impl Op,
) -> (f64, Vec<Vec<f32>>) {
    let device = Device::cpu().with_saved_dtype(saved);
    let (params, adapters) = (Params::default(), ActiveAdapters::default());
    let mut tape = Tape::new(Scope::inference(&device, &params), &adapters, record);
    let vars: Vec<Var<'_>> = inputs
        .iter()
        .map(|(rows, x)| Var::output(device.tensor(*rows, x.len() / rows, x), tape.id(true)))
        .collect();
    let ids: Vec<_> = vars.iter().map(|var| var.id).collect();
    let y = op(&mut tape, &vars);
    drop(vars);
    let w = normal(y.tensor.len(), 99);
    let loss = y.tensor.values().iter().zip(&w).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum();
    tape.seed(&y, device.tensor(y.tensor.rows(), y.tensor.cols(), &w));
    drop(y);
    let mut wanted = [None; 5];
    wanted[..ids.len()].copy_from_slice(&ids);
    let gradients = tape.backward_to(&mut Grads::default(), wanted);
    (loss, gradients.into_iter().take(ids.len()).map(|g| g.unwrap().to_vec()).collect())
}

/// Checks `op` on inputs of the given rows and columns.
fn check(what: &str, shapes: &[(usize, usize)], op: impl Op) {
    let inputs: Vec<(usize, Vec<f32>)> =
        shapes.iter().zip(1..).map(|(&(rows, cols), seed)| (rows, normal(rows * cols, seed))).collect();
    let (loss, exact) = run(&inputs, SavedDtype::F32, Record::All, &op);
    let largest = exact.iter().flatten().fold(1.0f32, |m, x| m.max(x.abs()));
    let step = 4e-3f32;
    for (input, gradient) in exact.iter().enumerate() {
        for (i, have) in gradient.iter().enumerate() {
            let at = |by: f32| {
                let mut inputs = inputs.clone();
                inputs[input].1[i] += by;
                run(&inputs, SavedDtype::F32, Record::All, &op).0
            };
            let want = (at(step) - at(-step)) / f64::from(2.0 * step);
            let apart = (want - f64::from(*have)).abs();
            assert!(apart < 3e-3 * f64::from(largest), "{what}: input {input}, value {i}: {have} for {want}");
        }
    }
    // Saved as int16 the loss is the same to the bit, and gradients are near.
    let (rounded_loss, rounded) = run(&inputs, SavedDtype::Int16, Record::All, &op);
    assert_eq!(rounded_loss.to_bits(), loss.to_bits(), "{what}: saved as int16");
    for (a, b) in exact.iter().flatten().zip(rounded.iter().flatten()) {
        assert!((a - b).abs() < 5e-3 * largest, "{what}: saved as int16: {b} for {a}");
    }
}

fn linear(format: Format, rows: usize, cols: usize, transposed: bool, bias: bool) -> &'static Linear {
    let values = normal(rows * cols, 41);
    let mut bytes = vec![0; format.matrix_bytes(rows, cols).unwrap()];
    let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&values[row * cols..][..cols]);
    kernels::quantize_matrix(format, rows, cols, fill, &mut bytes).unwrap();
    let weight = FrozenWeight::from_bytes(format, rows, cols, &bytes).unwrap();
    let outputs = if transposed { cols } else { rows };
    let bias = bias.then(|| Tensor::vector(normal(outputs, 42)));
    Box::leak(Box::new(Linear { site: SiteId::NONE, weight, bias, transposed }))
}

#[test]
fn linear_layers() {
    for format in [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1] {
        let layer = linear(format, 5, 32, false, true);
        check(&format!("linear {}", format.name()), &[(3, 32)], move |tape, x| {
            tape.linear(layer, &x[0], None)
        });
    }
    let layer = linear(Format::F32, 7, 5, true, true);
    check("a weight that is stored transposed", &[(3, 7)], move |tape, x| tape.linear(layer, &x[0], None));
    let layer = linear(Format::F32, 5, 7, false, false);
    check("a residual", &[(3, 7), (3, 5)], move |tape, x| tape.linear(layer, &x[0], Some(x[1].clone())));
}

#[test]
fn norms() {
    let weight = || Tensor::vector(normal(6, 51));
    for offset in [0.0, 1.0] {
        let norm: &'static RmsNorm =
            Box::leak(Box::new(RmsNorm { site: SiteId::NONE, weight: weight(), eps: 1e-5, offset }));
        check("rms_norm", &[(3, 6)], move |tape, x| tape.rms_norm(norm, &x[0]));
        check("rms_norm of heads", &[(2, 12)], move |tape, x| tape.rms_norm(norm, &x[0]));
    }
    for (bias, offset) in [(None, 0.0), (Some(Tensor::vector(normal(6, 52))), 0.0), (None, 1.0)] {
        let norm = LayerNorm { site: SiteId::NONE, weight: weight(), bias, eps: 1e-5, offset };
        let norm: &'static LayerNorm = Box::leak(Box::new(norm));
        check("layer_norm", &[(3, 6)], move |tape, x| tape.layer_norm(norm, &x[0]));
        // What else reads the input has its gradient added.
        check("layer_norm and a residual", &[(3, 6)], move |tape, x| {
            let y = tape.layer_norm(norm, &x[0]);
            tape.add(y, &x[0])
        });
    }
}

#[test]
fn multiplication_and_order_of_columns() {
    check("scale", &[(3, 6)], |tape, x| tape.scale(x[0].clone(), -1.5));
    // What else reads the input has its gradient added.
    check("scale and a residual", &[(3, 6)], |tape, x| {
        let y = tape.scale(x[0].clone(), 0.25);
        tape.add(y, &x[0])
    });
    check("scale_rows", &[(3, 6)], |tape, x| {
        let factors = Tensor::vector(vec![0.5, -2.0, 1.25]);
        tape.scale_rows(x[0].clone(), factors)
    });
    check("permute_columns", &[(3, 6)], |tape, x| {
        let columns: Rc<[u32]> = vec![3, 0, 5, 1, 2, 4].into();
        let y = tape.permute_columns(x[0].clone(), &columns);
        let [a, b] = tape.split(y, [2, 4]);
        let b = tape.activate(b, Activation::Silu);
        let [b, _] = tape.split(b, [2, 2]);
        tape.add(a, &b)
    });
}

#[test]
fn activations() {
    use Activation::{ClippedGelu, HardSwish, LeakyRelu, Relu, Relu6};
    let kinked = [ClippedGelu, HardSwish, LeakyRelu, Relu, Relu6];
    for act in Activation::ALL.into_iter().filter(|act| !kinked.contains(act)) {
        check(&format!("{act:?}"), &[(3, 9)], move |tape, x| tape.activate(x[0].clone(), act));
        check(&format!("gated {act:?}"), &[(3, 9), (3, 9)], move |tape, x| {
            tape.gated(x[0].clone(), x[1].clone(), act)
        });
    }
    // Their slopes have steps: away from there.
    for act in kinked {
        check(&format!("{act:?}"), &[(3, 9)], move |tape, x| {
            let double = tape.add(x[0].clone(), &x[0]);
            tape.activate(double, act)
        });
    }
}

fn shape(heads: usize, kv_heads: usize) -> AttentionShape {
    let (causal, window, softcap, dropout) = (true, None, None, None);
    AttentionShape { heads, kv_heads, head_dim: 4, scale: 0.5, causal, window, softcap, dropout }
}

fn rope(tape: &Tape<'_>, positions: &[u32], interleaved: bool) -> Rope {
    let device = tape.scope.device;
    let n = positions.len();
    let (mut cos, mut sin) = (device.alloc(n, 2), device.alloc(n, 2));
    device.rope_table(&mut cos, &mut sin, positions, &vec![0; n], &[1.0, 0.1], 1.0);
    Rope { cos, sin, interleaved }
}

#[test]
fn attention() {
    // A prompt, two completions that share it, and a text of its own.
    let segments = vec![
        Segment { q: 0..2, prefix: 0..0, own: 0..2 },
        Segment { q: 2..4, prefix: 0..2, own: 2..4 },
        Segment { q: 4..5, prefix: 0..2, own: 4..5 },
        Segment { q: 5..8, prefix: 0..0, own: 5..8 },
    ];
    let positions = [0, 1, 2, 3, 2, 0, 1, 2];
    let cases = [
        ("grouped queries", shape(4, 2)),
        ("a window", AttentionShape { window: Some(2), ..shape(2, 1) }),
        ("a cap", AttentionShape { softcap: Some(1.5), ..shape(2, 2) }),
        ("both directions", AttentionShape { causal: false, ..shape(2, 2) }),
    ];
    for (what, shape) in cases {
        for rotates in [None, Some(false), Some(true)] {
            let segments = segments.clone();
            let widths = [shape.heads * 4, shape.kv_heads * 4, shape.kv_heads * 4];
            check(what, &widths.map(|width| (8, width)), move |tape, x| {
                let rope = rotates.map(|interleaved| rope(tape, &positions, interleaved));
                let a = Attention { shape, segments: Cow::Owned(segments.clone()), rope, layer: 0 };
                tape.attention(x[0].clone(), x[1].clone(), x[2].clone(), a)
            });
        }
    }
}

/// Neighbours turn as pairs that are apart do, and what lies beyond the pairs stays.
#[test]
fn interleaved_rope() {
    let (device, params) = (Device::cpu(), Params::default());
    let (heads, head_dim, positions) = (2, 6, [3, 1]);
    let adapters = ActiveAdapters::default();
    let tape = Tape::new(Scope::inference(&device, &params), &adapters, Record::Nothing);
    let rope = rope(&tape, &positions, true);
    let x = normal(2 * heads * head_dim, 5);
    let whole = device.tensor(2, heads * head_dim, &x);
    let y = rope.rotate(&device, whole, heads, head_dim, false);
    let back = rope.rotate(&device, y.clone(), heads, head_dim, true);
    for (i, (have, x0)) in y.values().iter().zip(&x).enumerate() {
        let (row, at) = (i / (heads * head_dim), i % head_dim);
        let turn = f64::from(positions[row]) * [1.0, 0.1, 0.0][at / 2];
        let (other, sign) = if at % 2 == 0 { (i + 1, -1.0) } else { (i - 1, 1.0) };
        let want = f64::from(*x0) * turn.cos() + sign * f64::from(x[other]) * turn.sin();
        assert!((f64::from(*have) - want).abs() < 1e-5, "value {i}: {have} for {want}");
    }
    for (i, (have, want)) in back.values().iter().zip(&x).enumerate() {
        assert!((have - want).abs() < 1e-5, "value {i} turned back: {have} for {want}");
    }
}

#[test]
fn disentangled_attention() {
    let segments: &'static [Segment] = Box::leak(Box::new([
        Segment { q: 0..3, prefix: 0..0, own: 0..3 },
        Segment { q: 3..5, prefix: 0..0, own: 3..5 },
    ]));
    let buckets: Vec<u32> = (-2i64..=2).map(|x| (x.clamp(-2, 1) + 2) as u32).collect();
    check("disentangled attention", &[(5, 8), (5, 8), (5, 8), (4, 8), (4, 8)], move |tape, x| {
        let buckets: Rc<[u32]> = buckets.clone().into();
        let attention = Disentangled { heads: 2, head_dim: 4, scale: 0.3, buckets, dropout: None, segments };
        let contents = [x[0].clone(), x[1].clone(), x[2].clone()];
        tape.disentangled_attention(contents, Some(x[3].clone()), Some(x[4].clone()), attention)
    });
}

#[test]
fn parts_sums_and_rows() {
    check("add", &[(3, 4), (3, 4)], |tape, x| tape.add(x[0].clone(), &x[1]));
    check("split", &[(3, 7)], |tape, x| {
        let [a, b, _] = tape.split(x[0].clone(), [3, 3, 1]);
        tape.gated(a, b, Activation::Silu)
    });
    check("select_rows", &[(4, 5)], |tape, x| tape.select_rows(&x[0], &[3, 1, 3]));
    check("mean_rows", &[(5, 3)], |tape, x| tape.mean_rows(&x[0], &[0..1, 1..4, 2..5]));
    check("normalize", &[(3, 5)], |tape, x| tape.normalize(&x[0]));
    let segments: &'static [Segment] = Box::leak(Box::new([
        Segment { q: 0..4, prefix: 0..0, own: 0..4 },
        Segment { q: 4..6, prefix: 0..0, own: 4..6 },
    ]));
    check("unfold", &[(6, 3)], move |tape, x| tape.unfold(&x[0], 3, segments));
}

/// A block that keeps its input alone gives the bits of one that keeps everything.
#[test]
fn blocks_that_run_again() {
    let (up, down) = (linear(Format::F32, 9, 6, false, true), linear(Format::F32, 6, 9, false, false));
    let norm: &'static RmsNorm = Box::leak(Box::new(RmsNorm {
        site: SiteId::NONE,
        weight: Tensor::vector(normal(6, 51)),
        eps: 1e-5,
        offset: 0.0,
    }));
    fn blocks<'m>(
        tape: &mut Tape<'m>,
        x: &Var<'m>,
        norm: &'static RmsNorm,
        up: &'static Linear,
        down: &'static Linear,
    ) -> Var<'m> {
        let mut x = x.clone();
        for _ in 0..2 {
            x = tape.block(x, move |tape, x| {
                let h = tape.rms_norm(norm, &x);
                let h = tape.linear(up, &h, None);
                let h = tape.activate(h, Activation::Silu);
                tape.linear(down, &h, Some(x))
            });
        }
        x
    }
    check("blocks", &[(3, 6)], move |tape, x| blocks(tape, &x[0], norm, up, down));
    let input = [(3, normal(18, 1))];
    let once = run(&input, SavedDtype::F32, Record::All, &move |tape: &mut Tape<'_>, x: &[Var<'_>]| {
        blocks(tape, &x[0], norm, up, down)
    });
    let again =
        run(&input, SavedDtype::F32, Record::Checkpoints, &move |tape: &mut Tape<'_>, x: &[Var<'_>]| {
            blocks(tape, &x[0], norm, up, down)
        });
    assert_eq!(once, again);
}

/// The gradient that a weighted cross-entropy seeds is the slope of its weighted sum.
#[test]
fn cross_entropy() {
    let how = |temperature, label_smoothing| TokenLoss { temperature, label_smoothing };
    let plain = TokenLoss::default();
    for (softcap, scale, bias, how) in [
        (None, 1.0, false, plain),
        (Some(2.0), 1.0, false, plain),
        (Some(2.0), 0.25, false, plain),
        (None, 1.0, true, plain),
        (None, 1.0, false, how(0.7, 0.0)),
        (Some(2.0), 1.0, false, how(1.6, 0.0)),
        (None, 0.25, true, how(1.0, 0.2)),
        (Some(2.0), 0.5, false, how(0.8, 0.1)),
    ] {
        let linear = Linear {
            site: SiteId::NONE,
            weight: FrozenWeight::from_f32(11, 6, &normal(66, 61)),
            bias: bias.then(|| Tensor::vector(normal(11, 62))),
            transposed: false,
        };
        let head = LmHead { linear, softcap, scale };
        let labels = [(0, 3), (2, 10), (0, 4), (3, 0)].map(|(row, target)| Label { row, target });
        let weights = [0.5, 2.0, 0.25, 1.0];
        let device = Device::cpu();
        let (params, adapters) = (Params::default(), ActiveAdapters::default());
        let pass = |x: &[f32]| {
            let mut tape = Tape::new(Scope::inference(&device, &params), &adapters, Record::All);
            let h = Var::output(device.tensor(4, 6, x), tape.id(true));
            let scores = tape.cross_entropy_of(how, &head, &h, &labels, &weights, &mut Grads::default());
            let alone = tape.token_losses_of(how, &head, &h, &labels);
            assert_eq!(scores.losses, alone);
            let loss: f64 =
                scores.losses.iter().zip(weights).map(|(l, w)| f64::from(*l) * f64::from(w)).sum();
            let [dx] = tape.backward_to(&mut Grads::default(), [h.id]);
            (loss, dx.unwrap().to_vec())
        };
        let x = normal(24, 3);
        let (loss, exact) = pass(&x);
        let want: f64 = (labels.iter().zip(weights))
            .map(|(label, weight)| f64::from(weight) * formula(&x, label, (softcap, scale, bias), how))
            .sum();
        assert!((loss - want).abs() < 1e-4, "{softcap:?}, {how:?}: {loss} for {want}");
        for (i, have) in exact.iter().enumerate() {
            let at = |by: f32| {
                let mut x = x.clone();
                x[i] += by;
                pass(&x).0
            };
            let want = (at(4e-3) - at(-4e-3)) / 8e-3;
            assert!(
                (want - f64::from(*have)).abs() < 3e-3,
                "{softcap:?}, {scale}, {how:?}: value {i}: {have} for {want}"
            );
        }
        assert!(exact[6..12].iter().all(|x| *x == 0.0), "a row without a label has no gradient");
    }
}

/// NEFTune's noise by its definition: uniform on `alpha / sqrt(L D)`, the same in the same pass.
#[test]
fn noise_on_embeddings() {
    let device = Device::cpu();
    let (params, adapters) = (Params::default(), ActiveAdapters::default());
    let (rows, cols, lengths, alpha) = (64, 48, [5, 80], 5.0f32);
    let lengths: Vec<u32> = (0..rows).map(|row| lengths[row % 2]).collect();
    let noisy = |noise: Option<f32>, pass: u64| {
        let scope = Scope {
            noise,
            dropout: Some(DropoutKey { seed: 3, pass, base: false }),
            ..Scope::inference(&device, &params)
        };
        let mut tape = Tape::new(scope, &adapters, Record::All);
        let x = Var::constant(device.tensor(rows, cols, &vec![2.0; rows * cols]));
        tape.embedding_noise(x, &lengths).tensor.to_vec()
    };
    let values = noisy(Some(alpha), 7);
    for (row, length) in values.chunks_exact(cols).zip(&lengths) {
        let size = alpha / (*length as f32 * cols as f32).sqrt();
        assert!(row.iter().all(|x| (x - 2.0).abs() <= size + 1e-6));
        // The deviation of a uniform distribution on [-s, s) is s / sqrt 3.
        let square = row.iter().map(|x| (x - 2.0).powi(2)).sum::<f32>() / cols as f32;
        assert!((0.5..1.6).contains(&(square / (size * size / 3.0))), "{square}");
    }
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
    assert!((mean - 2.0).abs() < 0.01, "{mean}");
    assert_eq!(values, noisy(Some(alpha), 7));
    assert_ne!(values, noisy(Some(alpha), 8));
    assert!(noisy(None, 7).iter().all(|x| *x == 2.0));
}

/// The loss of a label by its definition, in f64, with the weights of the test above.
fn formula(
    x: &[f32],
    label: &Label,
    (softcap, scale, bias): (Option<f32>, f32, bool),
    how: TokenLoss,
) -> f64 {
    let (w, b) = (normal(66, 61), normal(11, 62));
    let row = &x[6 * label.row as usize..][..6];
    let logit = |v: usize| {
        let dot: f64 = row.iter().zip(&w[6 * v..]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        let dot = f64::from(scale) * dot + if bias { f64::from(b[v]) } else { 0.0 };
        let capped = softcap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh());
        capped / f64::from(how.temperature)
    };
    let logits: Vec<f64> = (0..11).map(logit).collect();
    let total = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
    let of = |v: usize| total - logits[v];
    let e = f64::from(how.label_smoothing);
    (1.0 - e) * of(label.target as usize) + e * (0..11).map(of).sum::<f64>() / 11.0
}

/// Two steps of AdamW by the formula of Loshchilov and Hutter, in f64.
#[test]
fn adamw() {
    let device = Device::cpu();
    let mut params = Params::default();
    let id = params.push("p".into(), 1, 3, vec![1.0, -2.0, 0.5]);
    let (mut p, mut m, mut v) = ([1.0f64, -2.0, 0.5], [0.0f64; 3], [0.0f64; 3]);
    let (lr, decay) = (0.1, 0.01);
    let mut optimizer = AdamW::new(&params, decay);
    for (step, g) in (1..).zip([[0.3f32, -0.2, 0.0], [-0.1, 0.4, 2.0]]) {
        let mut grads = Grads::zeros(&params);
        device.add(grads.get_mut(id), &device.tensor(1, 3, &g));
        optimizer.update(&device, &mut params, &grads, lr);
        for i in 0..3 {
            let g = f64::from(g[i]);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let (mean, square) = (m[i] / (1.0 - 0.9f64.powi(step)), v[i] / (1.0 - 0.999f64.powi(step)));
            p[i] -= lr * decay * p[i] + lr * mean / (square.sqrt() + 1e-8);
            assert!((f64::from(params.values(id)[i]) - p[i]).abs() < 1e-5, "step {step}, value {i}");
        }
    }
}
