//! Every operation on a GPU against the CPU's, at odd sizes, with NaN in outputs before.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use lowrank_engine::kernels::{self, AttentionDropout};
use lowrank_engine::{
    Activation, AttentionGradients, AttentionInputs, AttentionShape, Device, Format, FrozenWeight,
    LowRankFactors, LowRankRows, Mask, NormWeights, RowOrder, Saved, Segment, Storage, Targets, Tensor,
    WeightView,
};
use lowrank_gpu::{Gpu, adapters};
use random_blocks::random_blocks;

#[path = "../../lowrank-kernels/tests/random_blocks/mod.rs"]
mod random_blocks;

/// The first device, software or not; `None`, said aloud, where there is none.
fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let found = GPU.get_or_init(|| {
        let adapter = adapters().into_iter().next()?;
        Some(Device::with_backend(Arc::new(Gpu::open(&adapter).unwrap())))
    });
    if found.is_none() {
        lowrank_testing::skipped("there is no Vulkan device (Debian: mesa-vulkan-drivers)");
    }
    found.clone()
}

fn values(len: usize, salt: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    kernels::normal(&mut x, 0.0, 1.0, 11, salt);
    x
}

fn normal(device: &Device, rows: usize, cols: usize, salt: u64) -> Tensor {
    device.tensor(rows, cols, &values(rows * cols, salt))
}

/// Values away from zero.
fn positive(device: &Device, rows: usize, cols: usize, salt: u64) -> Tensor {
    let x: Vec<f32> = values(rows * cols, salt).iter().map(|x| 0.5 + x.abs()).collect();
    device.tensor(rows, cols, &x)
}

fn nan(device: &Device, rows: usize, cols: usize) -> Tensor {
    device.tensor(rows, cols, &vec![f32::NAN; rows * cols])
}

/// Runs `f` on both devices: its results agree within `tolerance` of the largest, and a second run on the GPU gives the same
/// bits.
fn check(what: &str, tolerance: f32, f: impl Fn(&Device) -> Vec<Vec<f32>>) {
    let Some(gpu) = gpu() else { return };
    let (want, got, again) = (f(&Device::cpu()), f(&gpu), f(&gpu));
    assert_eq!(want.len(), got.len());
    for (number, ((want, got), again)) in want.iter().zip(&got).zip(&again).enumerate() {
        assert_eq!(want.len(), got.len(), "{what}: result {number}");
        let largest = want.iter().filter(|x| x.is_finite()).fold(0.0f32, |most, x| most.max(x.abs()));
        for (i, ((w, g), a)) in want.iter().zip(got).zip(again).enumerate() {
            assert_eq!(g.to_bits(), a.to_bits(), "{what}: result {number}, value {i} of two runs");
            let same = w == g || (w.is_nan() && g.is_nan()) || (w - g).abs() <= tolerance * largest;
            assert!(
                same,
                "{what}: result {number}, value {i} of {}: {g} for {w}, the largest is {largest}",
                want.len()
            );
        }
    }
}

const EXACT: f32 = 0.0;
const CLOSE: f32 = 1e-6;
const SUMS: f32 = 4e-6;

#[test]
fn elementwise() {
    for n in [1, 63, 65, 1000, 70_001] {
        check("elementwise", CLOSE, |d| {
            let x = positive(d, 1, n, 1);
            let (mut fill, mut copy, mut reciprocal) = (nan(d, 1, n), nan(d, 1, n), nan(d, 1, n));
            d.fill(&mut fill, 2.5);
            d.copy(&mut copy, &x);
            d.reciprocal(&mut reciprocal, &x);
            let mut all: Vec<Tensor> = (0..5).map(|salt| normal(d, 1, n, 2 + salt)).collect();
            d.add(&mut all[0], &x);
            d.sub(&mut all[1], &x);
            d.mul(&mut all[2], &x);
            d.div(&mut all[3], &x);
            d.scale(&mut all[4], -0.3);
            let mut scaled = normal(d, 1, n, 9);
            d.add_scaled_difference(&mut scaled, &x, &copy, 2.0);
            d.add_scaled_difference(&mut scaled, &x, &fill, 0.7);
            let mut capped = normal(d, 1, n, 10);
            d.scale(&mut capped, 40.0);
            d.softcap(&mut capped, 30.0);
            let squares = vec![d.sum_squares(&x) as f32];
            let mut out: Vec<Vec<f32>> =
                [&fill, &copy, &reciprocal, &scaled, &capped].map(|x| d.to_vec(x)).into();
            out.extend(all.iter().map(|x| d.to_vec(x)));
            out.push(squares);
            out
        });
    }
}

#[test]
fn columns() {
    for (n, w) in [(1, 1), (5, 7), (33, 130)] {
        check("columns", SUMS, |d| {
            let x = normal(d, n, w + 3, 1);
            let mut y = nan(d, n, w + 5);
            d.fill_columns(&mut y, 0, w + 5, 1.5);
            d.copy_columns(&mut y, &x, 4, 2, w);
            let mut z = normal(d, n, w, 2);
            let (bias, dy) = (normal(d, 1, w, 3), normal(d, n, w, 4));
            d.add_bias(&mut z, &bias);
            let mut dbias = normal(d, 1, w, 5);
            d.bias_backward(&mut dbias, &dy);
            let (mut written, mut added) = (nan(d, n, w), normal(d, n, w, 6));
            d.scale_columns(&mut written, &z, &bias, 0.0);
            d.scale_columns(&mut added, &z, &bias, 1.0);
            let mut dfactors = normal(d, 1, w, 7);
            d.scale_columns_backward(&mut dfactors, &dy, &z);
            let mut dm = normal(d, 1, w, 8);
            d.dora_magnitude_backward(&mut dm, &dy, &z, &positive(d, 1, w, 9));
            let mut rows = normal(d, n, w, 10);
            d.scale_rows(&mut rows, &normal(d, 1, n, 11));
            let kept: Vec<Range<usize>> = (0..n).map(|i| i % w..w - (w - i % w) / 3).collect();
            let mut keep = normal(d, n, w, 12);
            d.keep_columns(&mut keep, &kept);
            let mut swapped = nan(d, n, 3 * w);
            d.swap_axes(&mut swapped, &normal(d, 3, n * w, 13), [3, n, w]);
            let picked: Vec<u32> = (0..w as u32).rev().step_by(2).collect();
            let (mut some, mut back) = (nan(d, n, picked.len()), normal(d, n, w, 14));
            d.gather_columns(&mut some, &z, &picked);
            d.replace_columns(&mut back, &some, None, &picked);
            let mut biased = normal(d, n, w, 15);
            d.replace_columns(&mut biased, &some, Some(&bias), &picked);
            let all = [
                &y, &z, &dbias, &written, &added, &dfactors, &dm, &rows, &keep, &swapped, &some, &back,
                &biased,
            ];
            all.map(|x| d.to_vec(x)).into()
        });
    }
}

#[test]
fn rows() {
    for (n, m, w) in [(1, 1, 1), (7, 5, 3), (300, 41, 65)] {
        check("rows", SUMS, |d| {
            let picked: Vec<u32> = (0..n).map(|i| (i * 37 % m) as u32).collect();
            let (x, dy) = (normal(d, m, w, 1), normal(d, n, w, 2));
            let (mut y, mut dx) = (nan(d, n, w), normal(d, m, w, 3));
            d.gather_rows(&mut y, &x, &picked);
            d.scatter_add_rows(&mut dx, &dy, &picked);
            let distinct: Vec<u32> = (0..m as u32).rev().collect();
            let mut scattered = nan(d, m, w);
            d.scatter_rows(&mut scattered, &x, &distinct);
            let mut moved = normal(d, n, w, 4);
            d.move_rows(&mut moved, n / 3..n - n / 4, n / 5);
            let mut columns = nan(d, n, w);
            let table = normal(d, w, m, 5);
            d.gather_transposed(&mut columns, &table, &picked);
            let mut dcolumns = normal(d, w, m, 6);
            d.gather_transposed_backward(&mut dcolumns, &dy, &picked);
            let ranges: Vec<Range<usize>> = (0..n).map(|i| i % m..(i % m + 1 + i % 4).min(m)).collect();
            let mut means = nan(d, n, w);
            d.mean_rows(&mut means, &x, &ranges);
            let mut dmeans = normal(d, m, w, 7);
            d.mean_rows_backward(&mut dmeans, &dy, &ranges);
            let (mut unit, mut norms, mut dunit) = (nan(d, n, w), nan(d, 1, n), nan(d, n, w));
            d.normalize_rows(&mut unit, &mut norms, &dy);
            d.normalize_rows_backward(&mut dunit, &normal(d, n, w, 8), &unit, &norms);
            let some: Vec<Option<u32>> = picked.iter().map(|row| (row % 3 != 1).then_some(*row)).collect();
            let (mut looked, mut dtable) = (normal(d, n, w, 9), normal(d, m, w, 10));
            d.table_lookup(&mut looked, &x, &some, 0.7);
            d.table_lookup_backward(&mut dtable, &dy, &some, 0.7);
            let pairs: Vec<(usize, usize)> = (0..n).step_by(2).map(|i| (i, i % m)).collect();
            let wide = normal(d, m, 2 * w, 11);
            let (mut replaced, mut dwide, mut dreplaced) =
                (normal(d, n, w, 12), normal(d, m, 2 * w, 13), normal(d, n, w, 14));
            d.replace_rows(&mut replaced, &wide, w..2 * w, &pairs);
            d.replace_rows_backward(&mut dwide, &mut dreplaced, w..2 * w, &pairs);
            let all = [
                &y, &dx, &scattered, &moved, &columns, &dcolumns, &means, &dmeans, &unit, &norms, &dunit,
                &looked, &dtable, &replaced, &dwide, &dreplaced,
            ];
            all.map(|x| d.to_vec(x)).into()
        });
    }
}

#[test]
fn products() {
    for (m, n, k) in [(1, 1, 1), (3, 70, 5), (65, 64, 33), (130, 67, 129)] {
        check("gemm", SUMS, |d| {
            let mut out = Vec::new();
            for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                let a = if ta { normal(d, k, m, 1) } else { normal(d, m, k, 1) };
                let b = if tb { normal(d, n, k, 2) } else { normal(d, k, n, 2) };
                let (a, b) = (if ta { a.mat().t() } else { a.mat() }, if tb { b.mat().t() } else { b.mat() });
                let (mut written, mut added) = (nan(d, m, n), normal(d, m, n, 3));
                d.gemm(0.5, a, b, 0.0, written.mat_mut());
                d.gemm(1.0, a, b, 0.75, added.mat_mut());
                out.extend([d.to_vec(&written), d.to_vec(&added)]);
            }
            let (a, b) = (normal(d, m + 2, k + 3, 4), normal(d, n + 1, k + 5, 5));
            let mut corner = nan(d, m, n);
            d.gemm(1.0, a.mat().corner(m, k), b.mat().corner(n, k).t(), 0.0, corner.mat_mut());
            out.push(d.to_vec(&corner));
            out
        });
    }
}

/// A weight of random values in `format`.
fn weight(format: Format, rows: usize, cols: usize, order: RowOrder) -> FrozenWeight {
    let x: Vec<f32> = values(rows * cols, 77).iter().map(|x| 0.1 * x).collect();
    let mut bytes = vec![0; format.matrix_bytes(rows, cols).unwrap()];
    if format.can_quantize() || format == Format::NF4 {
        let fill = |row: usize, to: &mut [f32]| to.copy_from_slice(&x[row * cols..][..cols]);
        kernels::quantize_matrix(format, rows, cols, fill, &mut bytes).unwrap();
    } else {
        let mut state = 1u32;
        bytes = random_blocks(format, rows, cols, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        });
    }
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    for (word, part) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..part.len()].copy_from_slice(part);
        *word = u64::from_le_bytes(whole);
    }
    FrozenWeight::new(format, rows, cols, order, Storage::Owned(Arc::new(words), bytes.len())).unwrap()
}

#[test]
fn frozen_weights_of_every_format() {
    for format in Format::ALL {
        let cols = if format.block_len() == 1 { 133 } else { 2 * format.block_len().max(32) };
        for (n, rows, order) in
            [(1, 34, RowOrder::Plain), (67, 132, RowOrder::RopeInterleaved { head_dim: 66 })]
        {
            let w = weight(format, rows, cols, order);
            for transposed in [false, true] {
                let what = format!("{} {n} rows, transposed {transposed}", format.name());
                check(&what, SUMS, |d| {
                    let (inputs, outputs) = if transposed { (rows, cols) } else { (cols, rows) };
                    let bias = normal(d, 1, outputs, 3);
                    let view = WeightView { weight: &w, bias: Some(&bias), transposed };
                    let (x, dy) = (normal(d, n, inputs, 1), normal(d, n, outputs, 2));
                    let (mut y, mut more) = (nan(d, n, outputs), normal(d, n, outputs, 4));
                    d.linear(&mut y, &x, view, 0.0);
                    d.linear(&mut more, &x, view, 1.0);
                    let (mut biased, mut residual, mut bare) =
                        (nan(d, n, outputs), nan(d, n, outputs), nan(d, n, outputs));
                    d.linear_add(&mut biased, &x, view, None);
                    d.linear_add(&mut residual, &x, view, Some(&dy));
                    d.linear_add(&mut bare, &x, WeightView { bias: None, ..view }, Some(&dy));
                    let (mut dx, mut added) = (nan(d, n, inputs), normal(d, n, inputs, 5));
                    d.linear_backward(&mut dx, &dy, view, 0.0);
                    d.linear_backward(&mut added, &dy, view, 1.0);
                    let squares = d.weight_squares(view).into_iter().map(|x| x as f32).collect();
                    let all = [&y, &more, &biased, &residual, &bare, &dx, &added];
                    all.into_iter().map(|x| d.to_vec(x)).chain([squares]).collect()
                });
            }
            check("embedding", EXACT, |d| {
                let ids: Vec<u32> = (0..9).map(|i| i * 7 % rows as u32).collect();
                let (mut y, mut change) = (nan(d, 9, cols), nan(d, 9, cols));
                d.embedding(&mut y, &w, &ids);
                d.table_change(&mut change, &normal(d, 9, cols, 6), &w, &ids);
                vec![d.to_vec(&y), d.to_vec(&change)]
            });
        }
    }
}

#[test]
fn norms() {
    for (n, w) in [(1, 1), (5, 33), (3, 576)] {
        check("norms", SUMS, |d| {
            let (x, dy) = (normal(d, n, w, 1), normal(d, n, w, 2));
            let (weight, bias) = (normal(d, 1, w, 3), normal(d, 1, w, 4));
            let mut out = Vec::new();
            for (offset, bias) in [(0.0, None), (1.0, Some(&bias))] {
                // A row of one value has no variance: a large eps keeps it smooth.
                let norm = NormWeights { weight: &weight, bias, eps: 1e-2, offset };
                let (mut y, mut rstd, mut none) = (nan(d, n, w), nan(d, 1, n), d.alloc(0, 0));
                d.rms_norm(&mut y, &mut none, &x, norm);
                d.rms_norm(&mut y, &mut rstd, &x, norm);
                let (mut dx, mut added, mut dw) = (nan(d, n, w), normal(d, n, w, 5), normal(d, 1, w, 6));
                d.rms_norm_backward(&mut dx, None, &dy, &x, &rstd, norm, false);
                d.rms_norm_backward(&mut added, Some(&mut dw), &dy, &x, &rstd, norm, true);
                out.extend([&y, &rstd, &dx, &added, &dw].map(|x| d.to_vec(x)));
                let norm = NormWeights { offset: 0.0, ..norm };
                let (mut mean, mut z) = (nan(d, 1, n), nan(d, n, w));
                d.layer_norm(&mut z, None, &x, norm);
                d.layer_norm(&mut y, Some([&mut mean, &mut rstd]), &x, norm);
                let (mut dweight, mut dbias) = (normal(d, 1, w, 7), normal(d, 1, w, 8));
                let (mut own, mut more) = (normal(d, n, w, 9), normal(d, n, w, 10));
                d.layer_norm_backward(
                    &mut own,
                    [Some(&mut dweight), Some(&mut dbias)],
                    None,
                    &x,
                    [&mean, &rstd],
                    norm,
                );
                d.layer_norm_backward(
                    &mut more,
                    [Some(&mut dweight), None],
                    Some(&dy),
                    &x,
                    [&mean, &rstd],
                    norm,
                );
                out.extend([&z, &y, &mean, &rstd, &dweight, &dbias, &own, &more].map(|x| d.to_vec(x)));
            }
            out
        });
    }
}

#[test]
fn activations() {
    for activation in Activation::ALL {
        check(&format!("{activation:?}"), SUMS, |d| {
            let n = 1003;
            let wide: Vec<f32> = values(n, 1).iter().map(|x| 4.0 * x).collect();
            let (gate, up, dh) = (d.tensor(17, 59, &wide), normal(d, 17, 59, 2), normal(d, 17, 59, 3));
            let (mut y, mut own, mut slope) = (nan(d, 17, 59), d.tensor(17, 59, &wide), normal(d, 17, 59, 4));
            d.activate(&mut y, &gate, activation);
            d.activate_in_place(&mut own, activation);
            d.activate_backward(&mut slope, &Saved::F32(gate.clone()), activation);
            let (mut h, mut in_place) = (nan(d, 17, 59), d.tensor(17, 59, &wide));
            d.gated(&mut h, &gate, &up, activation);
            d.gated_in_place(&mut in_place, &up, activation);
            let (mut dgate, mut dup) = (normal(d, 17, 59, 3), nan(d, 17, 59));
            d.gated_backward(
                &mut dgate,
                &mut dup,
                &Saved::F32(gate.clone()),
                &Saved::F32(up.clone()),
                activation,
            );
            let (mut gate2, mut up2) = (d.tensor(17, 59, &wide), normal(d, 17, 59, 2));
            d.gated_backward_in_place(&mut gate2, &mut up2, &dh, activation);
            [&y, &own, &slope, &h, &in_place, &dgate, &dup, &gate2, &up2].map(|x| d.to_vec(x)).into()
        });
    }
}

#[test]
fn saved_activations() {
    for n in [1, 64, 129, 5000] {
        check("int16", CLOSE, |d| {
            let x = normal(d, 1, n, 1);
            let mut words = d.alloc(1, kernels::i16_len(n));
            d.quantize_i16(&mut words, &x);
            let mut back = nan(d, 1, n);
            d.dequantize_i16(&mut back, &words);
            let saved = Saved::I16 { values: words, rows: 1, cols: n };
            let (mut dy, mut dup) = (normal(d, 1, n, 2), nan(d, 1, n));
            d.gated_backward(&mut dy, &mut dup, &saved, &saved, Activation::Silu);
            let mut slope = normal(d, 1, n, 3);
            d.activate_backward(&mut slope, &saved, Activation::Gelu);
            [&back, &dy, &dup, &slope].map(|x| d.to_vec(x)).into()
        });
    }
    check("int16 of what is not finite", EXACT, |d| {
        let mut x = vec![1.0; 256];
        x[200] = f32::NAN;
        let mut words = d.alloc(1, kernels::i16_len(256));
        d.quantize_i16(&mut words, &d.tensor(1, 256, &x));
        let mut back = d.alloc(1, 256);
        d.dequantize_i16(&mut back, &words);
        vec![d.to_vec(&back)]
    });
}

#[test]
fn dropouts() {
    for p in [0.0, 0.1, 0.5, 1.0] {
        for n in [1, 31, 33, 1000] {
            check("dropout", EXACT, |d| {
                let mask = Mask { p, seed: 0x1234_5678_9abc_def0, stream: 0xfedc_ba98_7654_3210 };
                let x = normal(d, 1, n, 1);
                let (mut y, mut dx, mut factors) = (nan(d, 1, n), nan(d, 1, n), nan(d, 1, n));
                d.dropout(&mut y, &x, mask);
                d.dropout_backward(&mut dx, &x, mask, false);
                d.feature_dropout(&mut factors, p, 0.1, true, 3, [4, 5]);
                [&y, &dx, &factors].map(|x| d.to_vec(x)).into()
            });
            check("dropout, added", CLOSE, |d| {
                let mut dx = normal(d, 1, n, 2);
                d.dropout_backward(&mut dx, &normal(d, 1, n, 1), Mask { p, seed: 7, stream: 9 }, true);
                vec![d.to_vec(&dx)]
            });
        }
    }
}

#[test]
fn rotary_positions() {
    for (n, heads, head_dim, pairs) in [(1, 1, 2, 1), (5, 3, 10, 4), (33, 4, 64, 32)] {
        check("rope", CLOSE, |d| {
            let positions: Vec<u32> = (0..n as u32).map(|i| i * 977).collect();
            let frequencies: Vec<f32> = (0..2 * pairs).map(|i| 1.0 / (1.0 + i as f32)).collect();
            let sets: Vec<u32> = (0..n as u32).map(|i| i % 2).collect();
            let (mut cos, mut sin) = (nan(d, n, pairs), nan(d, n, pairs));
            d.rope_table(&mut cos, &mut sin, &positions, &sets, &frequencies, 1.5);
            let (mut x, mut dx) = (normal(d, n, heads * head_dim, 1), normal(d, n, heads * head_dim, 2));
            d.rope(&mut x, &cos, &sin, heads, head_dim);
            d.rope_backward(&mut dx, &cos, &sin, heads, head_dim);
            [&cos, &sin, &x, &dx].map(|x| d.to_vec(x)).into()
        });
    }
}

#[test]
fn attention_and_its_gradients() {
    let causal = vec![
        Segment { q: 2..9, prefix: 0..2, own: 2..9 },
        Segment { q: 9..80, prefix: 0..2, own: 9..80 },
        Segment { q: 80..81, prefix: 3..3, own: 80..81 },
    ];
    let cached =
        vec![Segment { q: 0..3, prefix: 0..0, own: 10..83 }, Segment { q: 3..4, prefix: 0..5, own: 5..9 }];
    let open = vec![
        Segment { q: 0..70, prefix: 0..0, own: 0..70 },
        Segment { q: 71..83, prefix: 0..0, own: 71..83 },
    ];
    let plain = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        scale: 0.35,
        causal: true,
        window: None,
        softcap: None,
        dropout: None,
    };
    let wide = AttentionShape { heads: 2, kv_heads: 1, head_dim: 130, scale: 0.09, ..plain };
    let dropout = Some(AttentionDropout { p: 0.2, seed: 0x9876_5432_1234_5678 });
    let cases = [
        (plain, &causal),
        (plain, &cached),
        (AttentionShape { window: Some(5), ..plain }, &causal),
        (AttentionShape { softcap: Some(2.0), ..plain }, &causal),
        (AttentionShape { dropout, ..plain }, &causal),
        (AttentionShape { causal: false, ..plain }, &open),
        (AttentionShape { causal: false, window: Some(9), dropout, ..wide }, &open),
        (wide, &causal),
    ];
    for (number, (shape, segments)) in cases.into_iter().enumerate() {
        check(&format!("attention {number}"), SUMS, |d| {
            let (queries, keys) = (83, 83);
            let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
            let (q, k, v) =
                (normal(d, queries, width, 1), normal(d, keys, kv_width, 2), normal(d, keys, kv_width, 3));
            let inputs = AttentionInputs { q: &q, k: &k, v: &v };
            // Rows of no segment are left alone.
            let (mut o, mut lse) = (nan(d, queries, width), nan(d, queries, shape.heads));
            d.attention(&mut o, &mut lse, inputs, &shape, segments);
            let dy = normal(d, queries, width, 4);
            let (mut dq, mut dk, mut dv) =
                (nan(d, queries, width), nan(d, keys, kv_width), nan(d, keys, kv_width));
            let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            d.attention_backward(gradients, &dy, inputs, &o, &lse, &shape, segments);
            [&o, &lse, &dq, &dk, &dv].map(|x| d.to_vec(x)).into()
        });
    }
}

#[test]
fn neighbours() {
    let segments: Vec<Segment> =
        [1..8, 8..9, 9..20].map(|q: Range<usize>| Segment { q: q.clone(), prefix: 0..0, own: q }).into();
    for (w, kernel) in [(1, 1), (3, 5), (65, 3)] {
        check("unfold", CLOSE, |d| {
            let (mut y, mut dx) = (nan(d, 21, w * kernel), nan(d, 21, w));
            d.unfold(&mut y, &normal(d, 21, w, 1), kernel, &segments);
            d.unfold_backward(&mut dx, &normal(d, 21, w * kernel, 2), kernel, &segments);
            vec![d.to_vec(&y), d.to_vec(&dx)]
        });
    }
}

#[test]
fn losses() {
    for (n, v) in [(1, 1), (3, 7), (17, 1001)] {
        check("losses", SUMS, |d| {
            let classes: Vec<u32> = (0..n).map(|i| (i * 13 % v) as u32).collect();
            let weights = values(n, 2);
            let mut out = Vec::new();
            for softcap in [None, Some(3.0)] {
                for weights in [None, Some(&weights[..])] {
                    let mut logits = normal(d, n, v, 1);
                    d.scale(&mut logits, 5.0);
                    let mut losses = vec![f32::NAN; n];
                    d.cross_entropy(
                        &mut logits,
                        &mut losses,
                        Targets { classes: &classes, weights, softcap },
                    );
                    out.extend([d.to_vec(&logits), losses]);
                }
            }
            let x = normal(d, n, v, 3);
            let targets: Vec<f32> = values(n * v, 4).iter().map(|x| x.abs().fract()).collect();
            let (mut dx, mut losses) = (nan(d, n, v), vec![f32::NAN; n]);
            d.squared_error(&mut dx, &mut losses, &x, &targets, &weights);
            out.extend([d.to_vec(&dx), losses.clone()]);
            d.binary_cross_entropy(&mut dx, &mut losses, &x, &targets, &weights);
            out.extend([d.to_vec(&dx), losses]);
            let mut logs = normal(d, n, v, 5);
            d.log_softmax(&mut logs);
            out.push(d.to_vec(&logs));
            let best =
                d.argmax(&d.tensor(2, 4, &[1.0, 3.0, 3.0, 2.0, f32::NEG_INFINITY, -5.0, f32::NAN, -5.0]));
            out.push(best.iter().chain(&d.argmax(&x)).map(|i| *i as f32).collect());
            out
        });
    }
}

#[test]
fn adapter_methods() {
    for (o, k, r) in [(1, 1, 1), (7, 65, 3), (66, 9, 8)] {
        check("loha, dora, adalora", SUMS, |d| {
            let (a, b, c, e) =
                (normal(d, o, r, 1), normal(d, o, r, 2), normal(d, r, k, 3), normal(d, r, k, 4));
            let (mut p, mut q) = (nan(d, o, r * r), nan(d, r * r, k));
            d.loha_left(&mut p, &a, &b);
            d.loha_right(&mut q, &c, &e);
            let (mut da, mut db) = (normal(d, o, r, 5), normal(d, o, r, 6));
            let (mut dc, mut de) = (normal(d, r, k, 7), normal(d, r, k, 8));
            let (dp, dq) = (normal(d, o, r * r, 9), normal(d, r * r, k, 10));
            d.loha_left_backward(Some(&mut da), None, &dp, &a, &b);
            d.loha_left_backward(Some(&mut da), Some(&mut db), &dp, &a, &b);
            d.loha_right_backward(Some(&mut dc), Some(&mut de), &dq, &c, &e);
            let (mut norms, squares) = (nan(d, 1, o), vec![50.0; o]);
            let mut aa = nan(d, r, r);
            d.gemm(1.0, c.mat(), c.mat().t(), 0.0, aa.mat_mut());
            d.dora_norms(&mut norms, &squares, &a, &normal(d, r, o, 11), &aa, 0.1);
            let (mut mean, mut deviation) = (positive(d, r, k, 12), positive(d, r, k, 13));
            d.adalora_sensitivity(&mut mean, &mut deviation, &c, &e, 0.85, 0.8);
            let mut scores = nan(d, 1, r);
            let ranks = [positive(d, 1, r, 14), positive(d, 1, r, 15)];
            d.adalora_importance(&mut scores, [&mean, &deviation], [&a, &b], [&ranks[0], &ranks[1]]);
            [&p, &q, &da, &db, &dc, &de, &norms, &mean, &deviation, &scores].map(|x| d.to_vec(x)).into()
        });
        check("low-rank rows", SUMS, |d| {
            let (x, mut y) = (normal(d, 9, k, 1), normal(d, 9, o, 2));
            let all = [3, 4].map(|salt| (normal(d, r, k, salt), normal(d, o, r, salt + 10)));
            let factors = |(a, b), scaling| LowRankFactors { a: Tensor::mat(a), b: Tensor::mat(b), scaling };
            let groups = [
                LowRankRows { rows: vec![0, 5], factors: vec![factors((&all[0].0, &all[0].1), 0.5)] },
                LowRankRows {
                    rows: vec![1, 8, 2],
                    factors: vec![factors((&all[0].0, &all[0].1), 2.0), factors((&all[1].0, &all[1].1), 1.0)],
                },
            ];
            d.add_low_rank_rows(&mut y, &x, &groups);
            vec![d.to_vec(&y)]
        });
    }
}

#[test]
fn optimizer() {
    check("adamw", CLOSE, |d| {
        let n = 1001;
        let (mut p, mut m, mut v) = (normal(d, 1, n, 1), d.zeros(1, n), d.zeros(1, n));
        let settings = kernels::AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        for step in 1..=3 {
            d.adamw(&mut p, &normal(d, 1, n, 10 + step), &mut m, &mut v, &settings, step);
        }
        [&p, &m, &v].map(|x| d.to_vec(x)).into()
    });
}

#[test]
fn tensors_of_the_host_move_to_the_device_when_they_are_written() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::from_vec(1, 5, vec![1.0, 2.0, 3.0, 4.0, 5.0]);
    let mut y = Tensor::from_vec(1, 5, vec![10.0; 5]);
    gpu.add(&mut y, &x);
    gpu.add(&mut y, &x);
    assert_eq!(
        (y.values(), x.values()),
        (&[12.0, 14.0, 16.0, 18.0, 20.0][..], &[1.0, 2.0, 3.0, 4.0, 5.0][..])
    );
    // What was read back is not read again after a write.
    gpu.scale(&mut y, 0.5);
    assert_eq!(y.to_vec(), [6.0, 7.0, 8.0, 9.0, 10.0]);
}

#[test]
fn memory_is_used_again_and_given_back() {
    let Some(gpu) = gpu() else { return };
    let one = gpu.alloc(1000, 1000);
    gpu.reset_peak();
    let before = gpu.peak_bytes();
    drop(one);
    for _ in 0..10 {
        drop(gpu.alloc(1000, 1000));
    }
    assert!(gpu.peak_bytes() <= before.max(4 << 20) + (4 << 20), "{} after {before}", gpu.peak_bytes());
    gpu.trim();
    assert_eq!(gpu.to_vec(&gpu.tensor(1, 3, &[1.0, 2.0, 3.0])), [1.0, 2.0, 3.0]);
}

#[test]
fn a_tensor_that_is_too_large_is_an_error_that_names_the_device() {
    let Some(gpu) = gpu() else { return };
    let alloc = std::panic::AssertUnwindSafe(|| drop(gpu.alloc(1 << 20, 1 << 20)));
    let payload = std::panic::catch_unwind(alloc).expect_err("4 TiB");
    let error = payload.downcast::<lowrank_engine::Error>().expect("an error of the engine").to_string();
    assert!(error.contains("one tensor of the step takes 4194304 MiB"), "{error}");
}
