//! Which directions of the base an adapter amplifies (Hu et al. 2021, section 7.3 and table 7).

use lowrank_adapters::linalg;
use lowrank_engine::kernels;
use lowrank_tools::Pair;

use crate::error::Result;

/// The numbers of table 7 for one module.
#[derive(Clone, Copy, Debug)]
pub struct Amplification {
    /// `||U^T W V^T||_F` with `U`, `V` the singular vectors of what the adapter adds.
    pub by_delta: f64,
    /// With the top singular vectors of `W` itself.
    pub by_w: f64,
    /// With those of a random matrix.
    pub by_random: f64,
    /// `||W||_F`.
    pub w_norm: f64,
    /// `||delta W||_F`.
    pub delta_norm: f64,
}

impl Amplification {
    /// `||delta W||_F / ||U^T W V^T||_F`: how often the adapter repeats what the base has in these directions.
    pub fn factor(&self) -> f64 {
        self.delta_norm / self.by_delta
    }
}

/// Projects `w: [O, K]` onto the top `r` directions of the adapter, of `w` and of a random matrix.
///
/// # Errors
/// Where a number is not finite.
pub fn amplification(pair: &Pair, w: &[f32], seed: u64) -> Result<Amplification> {
    let (outputs, inputs, r) = (pair.outputs(), pair.inputs(), pair.rank());
    let delta = pair.svd()?;
    let of_w = linalg::svd_randomized(outputs, inputs, w, linalg::Randomized::rank(r))?;
    let mut random = vec![0.0; r * (outputs + inputs)];
    kernels::normal(&mut random, 0.0, 1.0, seed, 0);
    let (b, a) = random.split_at(outputs * r);
    let random = linalg::svd_of_product(outputs, inputs, r, b, a)?;
    Ok(Amplification {
        by_delta: projected(&delta, w),
        by_w: projected(&of_w, w),
        by_random: projected(&random, w),
        w_norm: norm(w),
        delta_norm: norm(&delta.s),
    })
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// `||U^T W V^T||_F`.
fn projected(svd: &linalg::Svd, w: &[f32]) -> f64 {
    let (m, n, k) = (svd.rows, svd.cols, svd.s.len());
    let mut right = vec![0.0; m * k];
    let (w, vt) = (kernels::MatRef::row_major(w, n), kernels::MatRef::row_major(&svd.vt, n));
    kernels::gemm(m, k, n, 1.0, w, vt.t(), 0.0, kernels::MatMut::row_major(&mut right, k));
    let mut both = vec![0.0; k * k];
    let (u, wv) = (kernels::MatRef::row_major(&svd.u, k), kernels::MatRef::row_major(&right, k));
    kernels::gemm(k, k, m, 1.0, u.t(), wv, 0.0, kernels::MatMut::row_major(&mut both, k));
    norm(&both)
}

#[cfg(test)]
mod tests {
    use lowrank_tools::{Kind, Tensor};

    use super::*;

    #[test]
    fn an_adapter_along_the_base_has_its_norm_and_one_across_has_none() {
        // W = diag(3, 2, 1, 0); the adapter adds 0.5 along one direction of it.
        let mut w = vec![0.0; 16];
        for (i, value) in [3.0, 2.0, 1.0, 0.0].into_iter().enumerate() {
            w[i * 5] = value;
        }
        let along = |i: usize| {
            let mut unit = vec![0.0; 4];
            unit[i] = 1.0;
            let part = |shape| Tensor { shape, data: unit.clone(), dtype: kernels::Format::F32 };
            Pair::new("", part(vec![1, 4]), part(vec![4, 1]), 0.5, Kind::Linear).unwrap()
        };
        let second = amplification(&along(1), &w, 1).unwrap();
        assert!((second.by_delta - 2.0).abs() < 1e-5 && (second.by_w - 3.0).abs() < 1e-5, "{second:?}");
        assert!((second.delta_norm - 0.5).abs() < 1e-6 && (second.factor() - 0.25).abs() < 1e-5);
        assert!((second.w_norm - 14f64.sqrt()).abs() < 1e-5);
        assert!(amplification(&along(3), &w, 1).unwrap().by_delta < 1e-6);
    }
}
