//! Decompositions against NumPy's, and by what defines them.

use std::path::Path;

use lowrank_adapters::linalg::{Qr, Randomized, Svd, qr, svd, svd_of_product, svd_randomized};
use lowrank_kernels as kernels;
use safetensors::SafeTensors;

struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

fn fixture(name: &str) -> Matrix {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/linalg.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let (rows, cols) = (view.shape()[0], view.shape().get(1).copied().unwrap_or(1));
    Matrix { rows, cols, data }
}

/// `bound` is absolute for numbers up to one, and a share of the largest for larger ones.
fn close(what: &str, have: &[f32], want: &[f32], bound: f32) {
    assert_eq!(have.len(), want.len(), "{what}");
    let bound = bound * want.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        assert!((h - w).abs() <= bound, "{what}[{i}]: {h} for {w}");
    }
}

/// Singular vectors are determined up to one sign for both sides.
fn same_svd(what: &str, have: &Svd, u: &[f32], s: &[f32], vt: &[f32]) {
    close(&format!("{what}.s"), &have.s, s, 1e-4);
    let k = s.len();
    for i in 0..k {
        let column = |m: &[f32]| m.iter().skip(i).step_by(k).copied().collect::<Vec<_>>();
        let row = |m: &[f32]| m[i * have.cols..(i + 1) * have.cols].to_vec();
        let (hu, wu, hv, wv) = (column(&have.u), column(u), row(&have.vt), row(vt));
        let dot: f32 = hu.iter().zip(&wu).map(|(a, b)| a * b).sum();
        let signed = |v: Vec<f32>| v.iter().map(|x| x * dot.signum()).collect::<Vec<_>>();
        close(&format!("{what}.u{i}"), &signed(hu), &wu, 1e-4);
        close(&format!("{what}.v{i}"), &signed(hv), &wv, 1e-4);
    }
}

#[test]
fn equals_numpy() {
    for name in ["tall", "wide", "square", "column", "row"] {
        let of = |part: &str| fixture(&format!("{name}.{part}"));
        let a = of("a");
        let (m, n) = (a.rows, a.cols);
        same_svd(name, &svd(m, n, &a.data).unwrap(), &of("u").data, &of("s").data, &of("vt").data);
        let Qr { q, r } = qr(m, n, &a.data);
        close(&format!("{name}.q"), &q, &of("q").data, 1e-4);
        close(&format!("{name}.r"), &r, &of("r").data, 1e-4);

        let rank = 4.min(m.min(n));
        let few = svd_randomized(m, n, &a.data, Randomized { oversampling: 4, ..Randomized::rank(rank) });
        let want = svd(m, n, &a.data).unwrap().truncate(rank);
        same_svd(name, &few.unwrap(), &want.u, &want.s, &want.vt);
    }
}

#[test]
fn random_directions_find_a_low_rank_exactly_and_repeat() {
    let (m, n, r) = (150, 210, 5);
    let (mut b, mut a) = (vec![0.0; m * r], vec![0.0; r * n]);
    kernels::normal(&mut b, 0.0, 1.0, 1, 0);
    kernels::normal(&mut a, 0.0, 1.0, 2, 0);
    let exact = svd_of_product(m, n, r, &b, &a).unwrap();
    let full = exact.matrix();
    let found = svd_randomized(m, n, &full, Randomized::rank(r)).unwrap();
    same_svd("low rank", &found, &exact.u, &exact.s, &exact.vt);
    close("product", &found.matrix(), &full, 1e-4);
    let again = svd_randomized(m, n, &full, Randomized::rank(r)).unwrap();
    assert_eq!((found.u, found.s, found.vt), (again.u, again.s, again.vt));
}

#[test]
fn a_product_of_small_rank_is_decomposed_without_being_formed() {
    for (m, n, r) in [(7, 5, 2), (5, 7, 9), (1, 3, 1), (3, 3, 0)] {
        let (mut b, mut a) = (vec![f32::NAN; m * r], vec![f32::NAN; r * n]);
        kernels::uniform(&mut b, -1.0, 1.0, 3, 0);
        kernels::uniform(&mut a, -1.0, 1.0, 4, 0);
        let svd = svd_of_product(m, n, r, &b, &a).unwrap();
        assert_eq!(svd.s.len(), r.min(m).min(n));
        let mut want = vec![0.0; m * n];
        for (i, out) in want.iter_mut().enumerate() {
            *out = (0..r).map(|k| b[i / n * r + k] * a[k * n + i % n]).sum();
        }
        close("product", &svd.matrix(), &want, 1e-5);
        if r > 0 {
            let smaller = svd.truncate(1);
            assert_eq!((smaller.u.len(), smaller.s.len(), smaller.vt.len()), (m, 1, n));
        }
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    let error = svd(2, 2, &[1.0, f32::NAN, 0.0, 1.0]).unwrap_err().to_string();
    assert!(error.contains("NaN"), "{error}");
    assert!(svd_of_product(1, 1, 1, &[f32::INFINITY], &[1.0]).is_err());
    assert!(svd_randomized(64, 64, &[f32::NAN; 64 * 64], Randomized::rank(2)).is_err());
}
