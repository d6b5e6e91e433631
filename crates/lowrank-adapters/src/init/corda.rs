//! CorDA's initial values (Yang et al. 2024): `A` and `B` from the directions of the weight that matter for the data.
//!
//! With `C = X^T X` of a layer's inputs ([`crate::calibrate::corda`]) and the decomposition `W C = U S V^T`, `B A` is
//! `U S V^T C^-1` restricted to the largest singular values (`ipm`: train the directions that the task uses) or the smallest
//! (`kpm`: leave those that the data need). Behaviour of `peft/tuners/lora/corda.py`.
//!
//! # Shapes
//! `W: [O,K]`, `C: [K,K]`, `A: [R,K]`, `B: [O,R]`.

use faer::MatRef;
use faer::linalg::solvers::DenseSolveCore;
use lowrank_engine::kernels;
use serde::Deserialize;

use crate::config::LoraConfig;
use crate::error::Error;
use crate::linalg::{self, product};

/// Which directions of the weight are trained: `corda_method`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CordaMethod {
    /// Instruction-previewed: those that the data use most.
    #[default]
    Ipm,
    /// Knowledge-preserved: those that the data use least.
    Kpm,
}

/// `corda_config`. PEFT's other fields are about files and memory on its way.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Extra {
    corda_method: CordaMethod,
}

impl CordaMethod {
    /// What `corda_config` says.
    pub(crate) fn parse(config: &LoraConfig) -> Result<Self, Error> {
        let Some(extra) = config.other.get("corda_config").filter(|extra| !extra.is_null()) else {
            return Ok(Self::default());
        };
        let extra = Extra::deserialize(extra).map_err(|e| Error::Config(format!("corda_config: {e}")))?;
        Ok(extra.corda_method)
    }
}

/// `A: [R,K]` and `B: [O,R]` for `W: [O,K]` and `C: [K,K]`.
///
/// # Errors
/// If a matrix cannot be decomposed.
pub fn factors(
    (o, k, r): (usize, usize, usize),
    w: &[f32],
    covariance: &[f32],
    method: CordaMethod,
    scaling: f32,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let (c, inverse) = inverse(k, covariance)?;
    let svd = linalg::svd(o, k, &product(o, k, k, w, &c))?;
    let all = svd.s.len();
    let kept = match method {
        CordaMethod::Ipm => 0..r,
        CordaMethod::Kpm => all - r..all,
    };
    let root: Vec<f32> = svd.s[kept.clone()].iter().map(|s| (s / scaling).max(0.0).sqrt()).collect();
    let v = product(r, k, k, &svd.vt[kept.start * k..kept.end * k], &inverse);
    let a = v.chunks_exact(k).zip(&root).flat_map(|(row, s)| row.iter().map(move |x| x * s)).collect();
    let b = svd.u.chunks_exact(all).flat_map(|row| row[kept.clone()].iter().zip(&root).map(|(x, s)| x * s));
    Ok((a, b.collect()))
}

/// `C` with so much added to its diagonal that it can be inverted, and its inverse.
fn inverse(k: usize, covariance: &[f32]) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let mean = (0..k).map(|i| f64::from(covariance[i * k + i])).sum::<f64>() / k as f64;
    let mut damp = 0.01;
    while damp < 1e6 {
        let mut c = covariance.to_vec();
        (0..k).for_each(|i| c[i * k + i] += (mean * damp) as f32);
        let inverse =
            linalg::row_major(MatRef::from_row_major_slice(&c, k, k).partial_piv_lu().inverse().as_ref());
        let mut error = product(k, k, k, &c, &inverse);
        (0..k).for_each(|i| error[i * k + i] -= 1.0);
        if kernels::sum_squares(&error).sqrt() < 0.05 {
            return Ok((c, inverse));
        }
        damp *= 2.0;
    }
    Err(Error::Decomposition(
        "the covariance of a layer's inputs cannot be inverted: all of them are 0".into(),
    ))
}
