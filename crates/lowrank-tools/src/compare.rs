//! Looking into adapters: the spectrum of each layer, and what differs between two.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::lora::{Lora, Pair};
use crate::modules::natural_order;

/// What the singular values of a layer's `alpha / r * B A` say.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// Module path.
    pub path: String,
    /// `O` and `K`.
    pub shape: (usize, usize),
    /// Rank of the pair.
    pub rank: usize,
    /// `alpha / r`.
    pub scaling: f64,
    /// Largest first.
    pub singular_values: Vec<f32>,
    /// Frobenius norm.
    pub norm: f64,
    /// The exponential of the entropy of the singular values' shares (Roy and Vetterli 2007): how many directions
    /// are used, from 1 to the rank.
    pub effective_rank: f64,
    /// Singular values with 99 % of the squares.
    pub rank_99: usize,
}

/// The spectrum of every layer, in the order of their numbers.
///
/// # Errors
/// Names a layer with a number that is not finite.
pub fn spectra(lora: &Lora) -> Result<Vec<Spectrum>> {
    let mut found: Vec<Spectrum> =
        lora.pairs.par_iter().map(|(path, pair)| spectrum(path, pair)).collect::<Result<_>>()?;
    found.sort_by(|a, b| natural_order(&a.path, &b.path));
    Ok(found)
}

fn spectrum(path: &str, pair: &Pair) -> Result<Spectrum> {
    let s = pair.svd().map_err(|e| Error::names(e.to_string(), vec![path.to_owned()]))?.s;
    let values = || s.iter().map(|x| f64::from(*x));
    let (sum, squares): (f64, f64) = (values().sum(), values().map(|x| x * x).sum());
    let entropy: f64 = values().map(|x| x / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    let mut kept = 0.0;
    let rank_99 = values()
        .position(|x| {
            kept += x * x;
            kept >= 0.99 * squares
        })
        .map_or(0, |at| at + 1);
    Ok(Spectrum {
        path: path.to_owned(),
        shape: (pair.outputs(), pair.inputs()),
        rank: pair.rank(),
        scaling: pair.scaling(),
        norm: squares.sqrt(),
        effective_rank: if sum > 0.0 { entropy.exp() } else { 0.0 },
        rank_99: if squares > 0.0 { rank_99 } else { 0 },
        singular_values: s,
    })
}

/// A layer in two adapters. A layer that one lacks has the norm 0 there.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Module path.
    pub path: String,
    /// Ranks, 0 for a layer that is not there.
    pub ranks: (usize, usize),
    /// Frobenius norms of `alpha / r * B A`.
    pub norms: (f64, f64),
    /// Frobenius norm of the difference.
    pub distance: f64,
    /// Their scalar product over the product of their norms: 1 the same direction, 0 nothing in common.
    pub cosine: f64,
    /// Largest principal angles' measure: the share of the left's input directions within the right's, from 0 to 1
    /// (the paper's subspace similarity of the rows of A).
    pub overlap: f64,
}

/// Compares two adapters layer by layer, without forming the products.
///
/// # Errors
/// Names layers of different shapes.
pub fn diff(left: &Lora, right: &Lora) -> Result<Vec<Difference>> {
    left.check_same_layers(right)?;
    let mut paths: Vec<&String> = left.pairs.keys().chain(right.pairs.keys()).collect();
    paths.sort_by(|a, b| natural_order(a, b));
    paths.dedup();
    paths.into_iter().map(|path| difference(path, left.pairs.get(path), right.pairs.get(path))).collect()
}

fn difference(path: &str, left: Option<&Pair>, right: Option<&Pair>) -> Result<Difference> {
    let product = |a: Option<&Pair>, b: Option<&Pair>| a.zip(b).map_or(0.0, |(a, b)| scalar_product(a, b));
    let (ll, rr, lr) = (product(left, left), product(right, right), product(left, right));
    let norms = (ll.max(0.0).sqrt(), rr.max(0.0).sqrt());
    let same = left == right;
    Ok(Difference {
        path: path.to_owned(),
        ranks: (left.map_or(0, Pair::rank), right.map_or(0, Pair::rank)),
        norms,
        distance: if same { 0.0 } else { (ll + rr - 2.0 * lr).max(0.0).sqrt() },
        cosine: if norms.0 * norms.1 > 0.0 { lr / (norms.0 * norms.1) } else { 0.0 },
        overlap: match left.zip(right) {
            Some((l, r)) => overlap(l, r).map_err(|e| Error::names(e.to_string(), vec![path.to_owned()]))?,
            None => 0.0,
        },
    })
}

/// `<s1 B1 A1, s2 B2 A2> = s1 s2 tr((B1^T B2) (A2 A1^T))`.
fn scalar_product(left: &Pair, right: &Pair) -> f64 {
    let (r1, r2, k) = (left.rank(), right.rank(), left.inputs());
    let mut sum = 0.0;
    for i in 0..r1 {
        for j in 0..r2 {
            let columns = left.b.data.chunks_exact(r1).zip(right.b.data.chunks_exact(r2));
            let b: f64 = columns.map(|(x, y)| f64::from(x[i]) * f64::from(y[j])).sum();
            let rows = left.a.data[i * k..(i + 1) * k].iter().zip(&right.a.data[j * k..(j + 1) * k]);
            let a: f64 = rows.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            sum += a * b;
        }
    }
    left.scaling() * right.scaling() * sum
}

/// `||V1^T V2||^2 / min(r1, r2)` for orthonormal input directions of both products.
fn overlap(left: &Pair, right: &Pair) -> Result<f64> {
    let directions = |pair: &Pair| -> Result<(Vec<f32>, usize)> {
        let svd = pair.svd()?;
        let least = svd.s.first().copied().unwrap_or(0.0) * 1e-5;
        let rank = svd.s.iter().filter(|s| **s > least).count();
        Ok((svd.truncate(rank).vt, rank))
    };
    let ((v1, r1), (v2, r2)) = (directions(left)?, directions(right)?);
    let k = left.inputs();
    let mut sum = 0.0;
    for x in v1.chunks_exact(k).take(r1) {
        for y in v2.chunks_exact(k).take(r2) {
            let dot: f64 = x.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            sum += dot * dot;
        }
    }
    Ok(if r1.min(r2) > 0 { sum / r1.min(r2) as f64 } else { 0.0 })
}
