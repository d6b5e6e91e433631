//! A LoRA adapter as a file holds it: pairs of matrices by module path, whatever the format.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_adapters::linalg::{self, Svd};
use lowrank_kernels::{self as kernels, Format};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tensor::{Named, Tensor};

/// What kind of layer a pair belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A linear or convolution layer: `A: [r, K...]`, `B: [O, r]` (`[O, r, 1, 1]` for a convolution).
    Linear,
    /// An embedding: `A: [r, V]`, `B: [D, r]`; the table gains `(B A)^T`.
    Embedding,
}

/// One adapted layer: it gains `alpha / r * B A`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// `A`, first axis `r`.
    pub a: Tensor,
    /// `B`, second axis `r`.
    pub b: Tensor,
    /// `alpha`; with `r` from the shapes it gives the scaling `alpha / r`, whatever the file's own rule.
    pub alpha: f64,
    /// What layer it is.
    pub kind: Kind,
}

/// A LoRA adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lora {
    /// The pairs by module path, as the base model names its modules.
    pub pairs: BTreeMap<String, Pair>,
    /// Tensors trained whole (`modules_to_save`), by parameter path.
    pub saved: Named,
    /// `adapter_config.json` where the adapter came with one: fields that are no numbers of the pairs.
    pub config: Map<String, Value>,
    /// Where it came from a file that may hold LoRAs for several models of a pipeline: what the file calls things, so
    /// that it can be written in the same form.
    pub origin: Option<Origin>,
}

/// A file of LoRAs for the models of a pipeline.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The name of its format.
    pub format: &'static str,
    /// Its names of the tensors, by module path.
    pub names: BTreeMap<String, PairNames>,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Names of the tensors of a pair in a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairNames {
    /// That of A.
    pub a: String,
    /// That of B.
    pub b: String,
    /// That of alpha, where the file has it as a tensor.
    pub alpha: Option<String>,
}

impl Lora {
    /// Whether every value is a number.
    ///
    /// # Errors
    /// Names the file and the modules where one is NaN or infinite.
    pub(crate) fn check_finite(&self, path: &Path) -> Result<()> {
        let finite = |tensor: &Tensor| tensor.data.iter().all(|x| x.is_finite());
        let pairs =
            self.pairs.iter().filter(|(_, pair)| !(finite(&pair.a) && finite(&pair.b))).map(|(name, _)| name);
        let saved = self.saved.iter().filter(|(_, tensor)| !finite(tensor)).map(|(name, _)| name);
        let wrong: Vec<String> = pairs.chain(saved).cloned().collect();
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Error::names(format!("{}: NaN or infinity in", path.display()), wrong)),
        }
    }
}

impl Pair {
    /// A pair, checked: `b`'s second axis must be `a`'s first.
    ///
    /// # Errors
    /// Names the module.
    pub fn new(path: &str, a: Tensor, b: Tensor, alpha: f64, kind: Kind) -> Result<Self> {
        let fits = a.shape.len() >= 2
            && a.shape.len() == b.shape.len()
            && a.shape[0] > 0
            && b.shape[1] == a.shape[0]
            && b.shape[2..].iter().all(|axis| *axis == 1);
        if !fits || !alpha.is_finite() {
            let why = format!(
                "A {:?} and B {:?} with alpha {alpha} are not a pair (A [r, K], B [O, r])",
                a.shape, b.shape
            );
            return Err(Error::names(why, vec![path.to_owned()]));
        }
        Ok(Self { a, b, alpha, kind })
    }

    /// `r`.
    pub fn rank(&self) -> usize {
        self.a.shape[0]
    }

    /// `alpha / r`.
    pub fn scaling(&self) -> f64 {
        self.alpha / self.rank() as f64
    }

    /// `O`.
    pub fn outputs(&self) -> usize {
        self.b.shape[0]
    }

    /// `K`, for a convolution times the size of its kernel.
    pub fn inputs(&self) -> usize {
        self.a.cols()
    }

    /// `alpha / r * B A: [O, K]`.
    pub fn delta(&self) -> Vec<f32> {
        let (o, k, r) = (self.outputs(), self.inputs(), self.rank());
        let mut out = vec![0.0; o * k];
        if !out.is_empty() {
            let (b, a) =
                (kernels::MatRef::row_major(&self.b.data, r), kernels::MatRef::row_major(&self.a.data, k));
            let out = kernels::MatMut::row_major(&mut out, k);
            kernels::gemm(o, k, r, self.scaling() as f32, b, a, 0.0, out);
        }
        out
    }

    /// The singular values and vectors of `alpha / r * B A`, which is never formed.
    ///
    /// # Errors
    /// Where a number is not finite.
    pub fn svd(&self) -> Result<Svd> {
        let (o, k, r) = (self.outputs(), self.inputs(), self.rank());
        let mut svd = linalg::svd_of_product(o, k, r, &self.b.data, &self.a.data)?;
        let scaling = self.scaling() as f32;
        svd.s.iter_mut().for_each(|s| *s *= scaling.abs());
        if scaling < 0.0 {
            svd.u.iter_mut().for_each(|u| *u = -*u);
        }
        Ok(svd)
    }

    /// The same change with another alpha: what they differ by goes into B. Powers of two leave every bit of its values;
    /// others need F32.
    ///
    /// # Errors
    /// If a value of B becomes too large.
    pub fn with_alpha(&self, path: &str, alpha: f64) -> Result<Self> {
        if alpha == self.alpha {
            return Ok(self.clone());
        }
        let factor = (self.alpha / alpha) as f32;
        let mut pair = self.clone();
        pair.alpha = alpha;
        pair.b.data.iter_mut().for_each(|x| *x *= factor);
        if pair.b.data.iter().zip(&self.b.data).any(|(new, old)| !new.is_finite() && old.is_finite()) {
            let why = format!("B is too large for alpha {alpha} in place of {}", self.alpha);
            return Err(Error::names(why, vec![path.to_owned()]));
        }
        if !is_exact(&pair.b) {
            pair.b.dtype = Format::F32;
        }
        Ok(pair)
    }

    /// The same change with a larger rank: zeros behind the rows of A and the columns of B.
    pub(crate) fn padded(&self, rank: usize) -> Self {
        let (r, k) = (self.rank(), self.inputs());
        let mut a = self.a.data.clone();
        a.resize(rank * k, 0.0);
        let zeros = std::iter::repeat_n(0.0, rank - r);
        let rows = self.b.data.chunks_exact(r);
        let b = rows.flat_map(|row| row.iter().copied().chain(zeros.clone())).collect();
        self.replaced(rank, a, b, self.scaling() * rank as f64)
    }

    /// Without the zeros of [`Pair::padded`].
    pub(crate) fn trimmed(&self) -> Self {
        let (r, k) = (self.rank(), self.inputs());
        let empty = |i: usize| {
            let row = self.a.data[i * k..][..k].iter().all(|x| *x == 0.0);
            row && self.b.data.chunks_exact(r).all(|row| row[i] == 0.0)
        };
        let rank = (1..r).rev().find(|i| !empty(*i)).map_or(1, |last| last + 1);
        let b = self.b.data.chunks_exact(r).flat_map(|row| &row[..rank]).copied().collect();
        self.replaced(rank, self.a.data[..rank * k].to_vec(), b, self.scaling() * rank as f64)
    }

    /// Another pair for the same layer with `B A = U diag(s) V^T`, scaling 1 (alpha is the rank): `B = U diag(s)`
    /// and `A = V^T`, as PEFT's `svd` composition has it.
    pub fn from_svd(&self, svd: &Svd) -> Self {
        let r = svd.s.len();
        let b = svd.u.iter().zip(svd.s.iter().cycle()).map(|(u, s)| u * s).collect();
        self.replaced(r, svd.vt.clone(), b, r as f64)
    }

    /// Another pair for the same layer, of rank `r`.
    pub fn replaced(&self, r: usize, a: Vec<f32>, b: Vec<f32>, alpha: f64) -> Self {
        let with = |of: &Tensor, axis: usize, data: Vec<f32>| {
            let mut shape = of.shape.clone();
            shape[axis] = r;
            Tensor { dtype: of.dtype, ..Tensor::new(shape, data) }
        };
        Self { a: with(&self.a, 0, a), b: with(&self.b, 1, b), alpha, kind: self.kind }
    }
}

impl Lora {
    /// Numbers in the pairs and the tensors trained whole.
    pub fn parameters(&self) -> usize {
        let pairs = self.pairs.values().map(|p| p.a.data.len() + p.b.data.len()).sum::<usize>();
        pairs + self.saved.values().map(|t| t.data.len()).sum::<usize>()
    }

    /// Whether two adapters can stand on the same base: a layer in both has the same shape.
    ///
    /// # Errors
    /// Names the layers that differ.
    pub fn check_same_layers(&self, other: &Self) -> Result<()> {
        let differ = |(path, pair): (&String, &Pair)| {
            let same = other.pairs.get(path).is_none_or(|o| {
                pair.kind == o.kind && pair.a.shape[1..] == o.a.shape[1..] && pair.outputs() == o.outputs()
            });
            (!same).then(|| path.clone())
        };
        let names: Vec<String> = self.pairs.iter().filter_map(differ).collect();
        match names.is_empty() {
            true => Ok(()),
            false => Err(Error::names("adapters for different base models: layers of another shape", names)),
        }
    }
}

/// Whether a tensor's number type holds its values as they are.
fn is_exact(tensor: &Tensor) -> bool {
    let exact = |x: &f32| match tensor.dtype {
        Format::F16 => half::f16::from_f32(*x).to_f32() == *x,
        Format::BF16 => half::bf16::from_f32(*x).to_f32() == *x,
        _ => true,
    };
    tensor.data.iter().all(|x| exact(x) || x.is_nan())
}

/// A number that went through f32, as the decimal that was meant: 0.1 and not 0.10000000149.
pub(crate) fn from_f32(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(value.into())
}

/// The element that occurs most often, the first of several.
pub(crate) fn most_common<T: PartialEq + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(v, _)| *v == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(value, _)| value)
}
