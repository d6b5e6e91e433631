//! CorDA (Yang et al. 2024): `A` and `B` from the weight's directions that matter for the data.
//!
//! With `C = X^T X` of a layer's inputs and `W C = U S V^T`, `B A` is `U S V^T C^-1` cut to the largest values (`ipm`, the
//! task's directions are trained) or to the smallest (`kpm`, those the data need are left alone). Behaviour of
//! `peft/tuners/lora/corda.py`.

use faer::MatRef;
use faer::linalg::solvers::DenseSolveCore;
use lowrank_engine::{ActiveAdapters, Site, SiteId, Tensor, kernels};
use serde::Deserialize;

use super::{Groups, Inputs, Look, Matrices, Observer};
use crate::linalg::{self, product};
use crate::{Error, LoraConfig};

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
struct Words {
    corda_method: CordaMethod,
}

/// Examples that are looked at, as the paper's authors do.
const EXAMPLES: usize = 256;

impl CordaMethod {
    /// What `corda_config` says.
    pub(crate) fn parse(config: &LoraConfig) -> Result<Self, Error> {
        let Some(words) = config.other.get("corda_config").filter(|words| !words.is_null()) else {
            return Ok(Self::default());
        };
        let words = Words::deserialize(words).map_err(|e| Error::Config(format!("corda_config: {e}")))?;
        Ok(words.corda_method)
    }
}

/// `sum X^T X` over examples, each divided by its largest number.
struct Covariance {
    examples: Vec<std::ops::Range<usize>>,
    sum: Vec<f32>,
    wrong: bool,
}

impl Look for Covariance {
    fn look(&mut self, x: &Tensor) {
        let k = x.cols();
        self.sum.resize(k * k, 0.0);
        for rows in self.examples.clone() {
            let mut x = x.data()[rows.start * k..rows.end * k].to_vec();
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max).abs();
            kernels::scale(&mut x, 1.0 / largest);
            self.wrong |= !x.iter().all(|x| x.is_finite());
            let x = kernels::MatRef::row_major(&x, k);
            let sum = kernels::MatMut::row_major(&mut self.sum, k);
            kernels::gemm(k, k, rows.len(), 1.0, x.t(), x, 1.0, sum);
        }
    }
}

/// `C: [K,K]` of every target's inputs, the mean over the first examples of the data.
///
/// # Errors
/// Names a layer whose inputs cannot be seen, or are no numbers.
pub fn look(config: &LoraConfig, sites: &[Site], inputs: &mut dyn Inputs) -> Result<Matrices, Error> {
    let (groups, mut rows) = Groups::find(config, sites, inputs)?;
    let path = |target: usize| &sites[groups.targets[target].site].path;
    if let Some(unseen) = groups.first.iter().position(Option::is_none) {
        let path = path(unseen);
        return Err(Error::Config(format!(
            "{path}: its inputs cannot be seen before the loss is there; leave it out (exclude_modules)"
        )));
    }
    let fresh = || Observer::new(Covariance { examples: Vec::new(), sum: Vec::new(), wrong: false });
    let observers: Vec<_> = groups.looked_at().into_iter().map(|target| (target, fresh())).collect();
    let mut active = ActiveAdapters::default();
    for (target, observer) in &observers {
        active.attach(SiteId(groups.targets[*target].site), observer.clone());
    }
    let mut count = 0;
    loop {
        rows.examples.retain(|example| !example.is_empty());
        rows.examples.truncate(EXAMPLES - count);
        count += rows.examples.len();
        observers.iter().for_each(|(_, o)| o.with(|c| c.examples.clone_from(&rows.examples)));
        inputs.run(&active);
        match inputs.next() {
            Some(next) if count < EXAMPLES => rows = next,
            _ => break,
        }
    }
    let mut found = Matrices::new();
    for (target, observer) in &observers {
        let (mut sum, wrong) = observer.with(|c| (std::mem::take(&mut c.sum), c.wrong));
        if wrong {
            return Err(Error::Numbers(format!("{}: an input of the layer is no number", path(*target))));
        }
        kernels::scale(&mut sum, 1.0 / count.max(1) as f32);
        let sum = std::sync::Arc::new(sum);
        for (other, _) in groups.first.iter().enumerate().filter(|(_, first)| **first == Some(*target)) {
            found.insert(path(other).clone(), sum.clone());
        }
    }
    Ok(found)
}

/// `A: [R,K]` and `B: [O,R]` for `W: [O,K]` and `C: [K,K]`.
///
/// # Errors
/// Where the numbers cannot be decomposed.
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
    Err(Error::Numbers("the covariance of a layer's inputs cannot be inverted: all of them are 0".into()))
}
