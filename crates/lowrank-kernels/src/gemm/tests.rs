//! Every level this machine has, every format, odd sizes, against sums in f64.

use rayon::ThreadPoolBuilder;

use super::*;
use crate::RowOrder;
use crate::simd::Portable;
use crate::testing::random_blocks;

/// Values that look random, in -1..1.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.bits() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
    fn weight(&mut self, format: Format, rows: usize, cols: usize) -> Vec<u8> {
        let values = |numbers: &mut Self| numbers.vec(rows * cols);
        match format {
            Format::F32 => values(self).iter().flat_map(|x| x.to_le_bytes()).collect(),
            Format::F16 => values(self).iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Format::BF16 => {
                values(self).iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
            }
            _ => random_blocks(format, rows, cols, || self.bits()),
        }
    }
}

fn expanded(w: &WeightRef) -> Vec<f32> {
    let mut dense = vec![0.0; w.rows * w.cols];
    for (row, out) in dense.chunks_exact_mut(w.cols).enumerate() {
        w.expand(row, 0..w.cols, out);
    }
    dense
}

/// `C = beta C + alpha A B` by the definition, with the bound that rounding in f32 has to keep.
#[allow(clippy::too_many_arguments)]
fn check(
    what: &str,
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    alpha: f32,
    beta: f32,
    before: impl Fn(usize, usize) -> f32,
    after: impl Fn(usize, usize) -> f32,
) {
    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut size) = (0.0f64, 0.0f64);
            for l in 0..k {
                let term = f64::from(a(i, l)) * f64::from(b(l, j));
                sum += term;
                size += term.abs();
            }
            let mut want = f64::from(alpha) * sum;
            if beta != 0.0 {
                want += f64::from(beta) * f64::from(before(i, j));
                size += f64::from(before(i, j)).abs();
            }
            let error = (f64::from(after(i, j)) - want).abs();
            let bound = 1e-6 * (1.0 + size);
            assert!(error <= bound, "{what}: C[{i},{j}] is {} and not {want}", after(i, j));
        }
    }
}

fn linear_case(level: Level, format: Format, n: usize, o: usize, k: usize, order: RowOrder, beta: f32) {
    let mut numbers = Numbers((n * 31 + o * 7 + k) as u64);
    let bytes = numbers.weight(format, o, k);
    let w = WeightRef { format, rows: o, cols: k, order, bytes: &bytes };
    let dense = expanded(&w);
    let what = format!("{} {} N={n} O={o} K={k} beta={beta}", level.name(), format.name());
    let start = |numbers: &mut Numbers, len: usize| match beta {
        0.0 => vec![f32::NAN; len],
        _ => numbers.vec(len),
    };

    let x = numbers.vec(n * k);
    let before = start(&mut numbers, n * o);
    let mut y = before.clone();
    linear_at(level, &mut y, &x, &w, n, beta);
    let (at, of) = (|i: usize, l: usize| x[i * k + l], |l: usize, j: usize| dense[j * k + l]);
    check(&what, (n, o, k), at, of, 1.0, beta, |i, j| before[i * o + j], |i, j| y[i * o + j]);

    let dy = numbers.vec(n * o);
    let before = start(&mut numbers, n * k);
    let mut dx = before.clone();
    linear_backward_at(level, &mut dx, &dy, &w, n, beta);
    let what = format!("backward {what}");
    let (at, of) = (|i: usize, l: usize| dy[i * o + l], |l: usize, j: usize| dense[l * k + j]);
    check(&what, (n, k, o), at, of, 1.0, beta, |i, j| before[i * k + j], |i, j| dx[i * k + j]);
}

#[test]
fn a_product_can_begin_with_rows_and_a_bias() {
    let mut numbers = Numbers(5);
    for level in levels() {
        for format in [Format::F32, Format::BF16, Format::Q8_0] {
            for (n, o, k) in [(3, 33usize, 32), (40, 7, 96), (200, 65, 64), (500, 130, 2080)] {
                for transposed in [false, true] {
                    let (rows, cols) = if transposed { (k, o.next_multiple_of(32)) } else { (o, k) };
                    let o = if transposed { cols } else { o };
                    let bytes = numbers.weight(format, rows, cols);
                    let w = WeightRef { format, rows, cols, order: RowOrder::Plain, bytes: &bytes };
                    let (x, r, b) = (numbers.vec(n * k), numbers.vec(n * o), numbers.vec(o));
                    for (r, b) in [(Some(&r), Some(&b)), (Some(&r), None), (None, Some(&b)), (None, None)] {
                        let (r, b) = (r.map(|r| &r[..]), b.map(|b| &b[..]));
                        let start = |i: usize| r.map_or(0.0, |r| r[i]) + b.map_or(0.0, |b| b[i % o]);
                        // Products with rounded operands know the level of the process alone.
                        for rounded in
                            [false, true].into_iter().filter(|&r| !r || level == crate::simd::level())
                        {
                            let mut want: Vec<f32> = (0..n * o).map(start).collect();
                            match (transposed, rounded) {
                                (false, false) => linear_at(level, &mut want, &x, &w, n, 1.0),
                                (true, false) => linear_backward_at(level, &mut want, &x, &w, n, 1.0),
                                (false, true) => linear_bf16(&mut want, &x, &w, n, 1.0),
                                (true, true) => linear_backward_bf16(&mut want, &x, &w, n, 1.0),
                            }
                            let mut got = vec![f32::NAN; n * o];
                            let layer = LinearRef { weight: w, bias: b, transposed, rounded };
                            linear_add_at(level, &mut got, &x, &layer, n, r);
                            for (got, want) in got.iter().zip(&want) {
                                let size = 1e-4 * (1.0 + want.abs());
                                assert!(
                                    (got - want).abs() <= size,
                                    "{level:?} {format:?} {n} x {o} x {k}: {got} {want}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn products_over_every_format() {
    for level in levels() {
        for format in Format::ALL {
            let block = format.block_len();
            for n in [1, 2, 3, 5, 8, 13, 33, 97] {
                // Plain formats take any width, the others whole blocks: 1 to 5 of them.
                let k = if block == 1 { 3 + 37 * n % 211 } else { block * (1 + n % 5).min(512 / block) };
                let o = [1, 7, 16, 17, 31, 64, 67][n % 7];
                linear_case(level, format, n, o, k, RowOrder::Plain, [0.0, 1.0][n % 2]);
            }
        }
    }
}

#[test]
fn products_longer_than_a_block() {
    for level in levels() {
        linear_case(level, Format::F32, 103, 37, 1031, RowOrder::Plain, 0.0);
        // Rows of activations 4096 bytes apart, and more of them than are copied at a time.
        linear_case(level, Format::F32, 1029, 67, 1024, RowOrder::Plain, 1.0);
        linear_case(level, Format::Q4_1, 101, 1040, 96, RowOrder::Plain, 1.0);
        linear_case(level, Format::Q6_K, 9, 523, 1024, RowOrder::Plain, 0.5);
        linear_case(level, Format::Q8_0, 1, 1, 2048, RowOrder::Plain, 0.0);
        // Fewer tokens than outputs: rows read in place, and rows that collide in the cache.
        linear_case(level, Format::F32, 33, 70, 1031, RowOrder::Plain, 0.5);
        linear_case(level, Format::F32, 19, 131, 1024, RowOrder::Plain, 0.0);
        // More blocks than share a scale of scales.
        linear_case(level, Format::NF4, 3, 37, 1088, RowOrder::Plain, 0.0);
        linear_case(level, Format::NF4, 41, 37, 1088, RowOrder::Plain, 1.0);
    }
}

#[test]
fn products_in_the_row_order_of_llama_cpp() {
    for level in levels() {
        for format in [Format::F32, Format::F16, Format::Q4_0, Format::Q5_K, Format::NF4] {
            for n in [1, 4, 20] {
                linear_case(level, format, n, 72, 256, RowOrder::RopeInterleaved { head_dim: 24 }, 0.0);
            }
        }
    }
}

#[test]
fn nothing_times_nothing() {
    let w = WeightRef::from_f32(3, 0, &[]);
    let mut y = vec![2.0; 6];
    linear(&mut y, &[], &w, 2, 1.0);
    assert_eq!(y, [2.0; 6]);
    linear(&mut y, &[], &w, 2, 0.0);
    assert_eq!(y, [0.0; 6]);
    linear_backward(&mut [], &[1.0; 6], &w, 2, 0.0);
    linear(&mut [], &[], &WeightRef::from_f32(0, 5, &[]), 0, 0.0);
    linear_backward(&mut [], &[], &WeightRef::from_f32(0, 5, &[]), 0, 0.0);
}

/// A matrix laid out in one of five ways, and its element.
fn layout(way: usize, rows: usize, cols: usize) -> (usize, usize, usize) {
    let (rs, cs) = match way {
        0 => (cols, 1),
        1 => (1, rows),
        2 => (cols + 5, 1),
        3 => (1, rows + 80),
        _ => (2 * cols + 1, 2),
    };
    (rs, cs, (rows.max(1) - 1) * rs + (cols.max(1) - 1) * cs + 1)
}

#[test]
fn dense_products_of_every_layout() {
    let shapes = [
        (1, 1, 1),
        (8, 50, 61),
        (61, 8, 50),
        (50, 61, 8),
        (5, 100, 1),
        (37, 3, 430),
        (130, 19, 0),
        (2, 2, 900),
    ];
    for level in levels() {
        for (m, n, k) in shapes {
            for way in 0..125 {
                let (ars, acs, alen) = layout(way % 5, m, k);
                let (brs, bcs, blen) = layout(way / 5 % 5, k, n);
                let (crs, ccs, clen) = layout(way / 25, m, n);
                let mut numbers = Numbers(way as u64);
                let (a, b) = (numbers.vec(alen), numbers.vec(blen));
                let (alpha, beta) = [(1.0, 0.0), (0.5, 1.0), (-2.0, 0.25)][way % 3];
                let before = if beta == 0.0 { vec![f32::NAN; clen] } else { numbers.vec(clen) };
                let mut c = before.clone();
                let (left, right) =
                    (MatRef { data: &a, rs: ars, cs: acs }, MatRef { data: &b, rs: brs, cs: bcs });
                let out = MatMut { data: &mut c, rs: crs, cs: ccs };
                dense(level, m, n, k, alpha, left, right, beta, out, 2);
                let what = format!("{} {m} x {n} x {k}, layouts {way}", level.name());
                let (at, of) =
                    (|i: usize, l: usize| a[i * ars + l * acs], |l: usize, j: usize| b[l * brs + j * bcs]);
                let put = |i: usize, j: usize| before[i * crs + j * ccs];
                check(&what, (m, n, k), at, of, alpha, beta, put, |i, j| c[i * crs + j * ccs]);
                // What lies between the values of C is not ours to write.
                let ours: std::collections::HashSet<usize> =
                    (0..m * n).map(|e| e / n * crs + e % n * ccs).collect();
                let same = |at: &usize| c[*at].to_bits() == before[*at].to_bits();
                assert!((0..clen).filter(|at| !ours.contains(at)).all(|at| same(&at)), "{what}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (n, o, k) = (75, 210, 800);
    let mut numbers = Numbers(5);
    let bytes = numbers.weight(Format::Q4_1, o, k);
    let w = WeightRef { format: Format::Q4_1, rows: o, cols: k, order: RowOrder::Plain, bytes: &bytes };
    let (x, dy) = (numbers.vec(n * k), numbers.vec(n * o));
    for n in [1, 2, 6, 20, n] {
        let run = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut y, mut dx) = (vec![f32::NAN; n * o], vec![f32::NAN; n * k]);
                linear(&mut y, &x[..n * k], &w, n, 0.0);
                linear_backward(&mut dx, &dy[..n * o], &w, n, 0.0);
                let mut h = vec![f32::NAN; n * n];
                let (a, b) = (MatRef::row_major(&x, k), MatRef::row_major(&x, k).t());
                gemm(n, n, k, 1.0, a, b, 0.0, MatMut::row_major(&mut h, n));
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                [bits(&y), bits(&dx), bits(&h)]
            })
        };
        let one = run(1);
        for threads in [1, 2, 3, 8] {
            assert_eq!(run(threads), one, "{threads} threads, {n} rows");
        }
    }
}

/// The levels of this machine, and the tile unit, which is emulated where there is none: only its packing needs AVX-512.
fn levels() -> Vec<Level> {
    let mut levels = Level::available();
    if levels.last() == Some(&Level::Avx512) {
        levels.push(Level::Amx);
    }
    levels
}

/// Products below the size that pays for the tile unit, too.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_tile_unit_has_right_edges() {
    use amx::Parts;
    if !levels().contains(&Level::Amx) {
        lowrank_testing::not_here("no AVX-512");
        return;
    }
    let rounded = |x: &f32| half::bf16::from_f32(*x).to_f32();
    let shapes: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (2, 33, 31),
        (16, 32, 32),
        (31, 48, 33),
        (32, 17, 64),
        (33, 65, 97),
        (67, 300, 129),
        (545, 31, 70),
        (35, 37, 1031),
    ];
    for (case, (n, o, k)) in shapes.into_iter().enumerate() {
        for format in Format::ALL {
            // Whole blocks of quantised weights in either direction.
            let k = k.next_multiple_of(format.block_len());
            let mut numbers = Numbers((n + o + k) as u64);
            let bytes = numbers.weight(format, o, k);
            let order = match o.is_multiple_of(2) {
                true => RowOrder::RopeInterleaved { head_dim: o },
                false => RowOrder::Plain,
            };
            let w = WeightRef { format, rows: o, cols: k, order, bytes: &bytes };
            let dense = expanded(&w);
            let beta = [0.0, 1.0, 0.5][case % 3];
            let start = |len: usize| vec![if beta == 0.0 { f32::NAN } else { 0.25 }; len];
            let all = match format {
                Format::BF16 => vec![Parts::Exact, Parts::ExactLeft, Parts::Rounded],
                _ => vec![Parts::Exact],
            };
            for parts in all {
                let what = format!("{} {n} x {o} x {k}", format.name());
                let seen = |x: &[f32]| match parts {
                    Parts::Rounded => x.iter().map(rounded).collect(),
                    _ => x.to_vec(),
                };
                let (x, mut y) = (numbers.vec(n * k), start(n * o));
                let (dy, mut dx) = (numbers.vec(n * o), start(n * k));
                // SAFETY: the unit is there or emulated; the operands have their shapes.
                unsafe {
                    amx::run(&row_major(n, o, k, &x, &mut y, beta), &Forward(w), parts, 1 + case % 3);
                    amx::run(&row_major(n, k, o, &dy, &mut dx, beta), &Backward(w), parts, 1 + case % 2);
                }
                let x = seen(&x);
                let (at, of) = (|i: usize, l: usize| x[i * k + l], |l: usize, j: usize| dense[j * k + l]);
                check(&what, (n, o, k), at, of, 1.0, beta, |_, _| 0.25, |i, j| y[i * o + j]);
                let dy = seen(&dy);
                let (at, of) = (|i: usize, l: usize| dy[i * o + l], |l: usize, j: usize| dense[l * k + j]);
                let what = format!("backward {what}");
                check(&what, (n, k, o), at, of, 1.0, beta, |_, _| 0.25, |i, j| dx[i * k + j]);
            }
        }
        // A transposed result, scaled.
        let mut numbers = Numbers(case as u64);
        let (a, b, before) = (numbers.vec(n * k), numbers.vec(k * o), numbers.vec(n * o));
        let mut c = before.clone();
        let product =
            Product { alpha: -1.5, beta: 0.5, crs: 1, ccs: n, ..row_major(n, o, k, &a, &mut c, 0.0) };
        // SAFETY: the unit is there or emulated; the operands have their shapes.
        unsafe { amx::run(&product, &Dense { data: b.as_ptr(), ks: o, ns: 1 }, Parts::Exact, 2) };
        let (at, of) = (|i: usize, l: usize| a[i * k + l], |l: usize, j: usize| b[l * o + j]);
        let put = |i: usize, j: usize| before[j * n + i];
        check("transposed", (n, o, k), at, of, -1.5, 0.5, put, |i, j| c[j * n + i]);
    }
}

/// AVX-512's tiles of 14 x 32 in plain Rust, so that their edges are tested on any machine.
type Wide = Portable<16>;

#[test]
fn wide_tiles_have_right_edges() {
    for (n, o, k) in [(1, 33, 70), (14, 32, 5), (15, 31, 64), (29, 100, 300), (70, 65, 1100), (57, 9, 129)] {
        let mut numbers = Numbers((n + o + k) as u64);
        let (w, x, dy) = (numbers.vec(o * k), numbers.vec(n * k), numbers.vec(n * o));
        let weight = WeightRef::from_f32(o, k, &w);
        let (mut y, mut dx) = (vec![f32::NAN; n * o], vec![f32::NAN; n * k]);
        let (mut dense, mut thin) = (y.clone(), y.clone());
        let right = Dense { data: w.as_ptr(), ks: 1, ns: k };
        // SAFETY: the operands have their shapes.
        unsafe {
            let product = row_major(n, o, k, &x, &mut y, 0.0);
            blocked::run::<Wide, _>(&product, &Forward(weight), 3);
            blocked::run::<Wide, _>(&row_major(n, o, k, &x, &mut dense, 0.0), &right, 2);
            if small_m::fits::<Wide>(&weight, n) {
                let mut turned = vec![f32::NAN; n * o];
                small_m::run::<Wide>(&mut turned, &x, &weight, n, 0.0, 2);
                assert_eq!(turned, dense);
            }
            skinny::run::<Wide>(&row_major(n, o, k, &x, &mut thin, 0.0), w.as_ptr(), 1, k, 2);
            blocked::run::<Wide, _>(&row_major(n, k, o, &dy, &mut dx, 0.0), &Backward(weight), 3);
        }
        for y in [y, dense, thin] {
            let (at, of) = (|i: usize, l: usize| x[i * k + l], |l: usize, j: usize| w[j * k + l]);
            check("forward", (n, o, k), at, of, 1.0, 0.0, |_, _| 0.0, |i, j| y[i * o + j]);
        }
        let (at, of) = (|i: usize, l: usize| dy[i * o + l], |l: usize, j: usize| w[l * k + j]);
        check("backward", (n, k, o), at, of, 1.0, 0.0, |_, _| 0.0, |i, j| dx[i * k + j]);
    }
}

#[test]
fn working_memory_stays_within_what_is_announced() {
    for (n, o, k) in
        [(3000, 80, 1024), (40, 600, 2560), (90, 40, 7424), (33, 2304, 256), (60, 48, 64), (300, 300, 257)]
    {
        let mut numbers = Numbers(9);
        let (x, dy) = (numbers.vec(n * k), numbers.vec(n * o));
        let fits = |format: &Format| format.row_bytes(k).is_some();
        for format in [Format::F32, Format::Q8_0, Format::Q6_K, Format::NF4].into_iter().filter(fits) {
            let bytes = numbers.weight(format, o, k);
            let w = WeightRef { format, rows: o, cols: k, order: RowOrder::Plain, bytes: &bytes };
            let pool = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let kept = pool.install(|| {
                linear(&mut vec![0.0; n * o], &x, &w, n, 0.0);
                linear_backward(&mut vec![0.0; n * k], &dy, &w, n, 0.0);
                let (a, b) = (MatRef::row_major(&x, k), MatRef::row_major(&x[..10 * k], 10));
                gemm(n, 10, k, 1.0, a, b, 0.0, MatMut::row_major(&mut vec![0.0; n * 10], 10));
                scratch::kept()
            });
            assert!(
                kept > 0 && kept <= scratch_bytes(1, n.max(o).max(k)),
                "{kept} bytes for {n} x {o} x {k} {}",
                format.name()
            );
        }
    }
}
