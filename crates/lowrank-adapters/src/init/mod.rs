//! Initial values of LoRA's `A` and `B`: PEFT's `init_lora_weights`.

pub mod corda;
pub mod torch_random;

use lowrank_engine::kernels;
use serde_json::Value;

use crate::config::LoraConfig;
use crate::error::Error;
use crate::init::corda::CordaMethod;
use crate::linalg::{self, Randomized};

/// Random streams of initialisation: far from those of dropout.
pub const STREAM: u64 = 1 << 62;

/// Random streams of one site.
pub const STREAMS_PER_SITE: u64 = 16;

/// Matrices of a weight's size that exist while it is decomposed: itself, its factors as faer has them and row by row, and
/// faer's working memory.
const DECOMPOSITION: usize = 8;

/// How `A` and `B` are initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: A uniform, B zero.
    Kaiming,
    /// `"gaussian"`: A normal with deviation `1/r`, B zero.
    Gaussian,
    /// `false`: both uniform, so that training does not begin at the base model.
    Random,
    /// `"orthogonal"`: both random with `B A = 0`.
    Orthogonal,
    /// `"pissa"`, or with the iterations of a randomised decomposition, `"pissa_niter_4"` (Meng et al. 2024): the
    /// largest singular values of the base's weight.
    Pissa(Option<usize>),
    /// `"loftq"` (Li et al. 2024): what quantising the base loses, so that training starts nearer to the dense model.
    /// One iteration, since the base is quantised as it is.
    Loftq,
    /// `"olora"` (Büyükakyüz 2024): the first columns of its QR decomposition.
    Olora,
    /// `"eva"` (Paischer et al. 2024): A holds the principal components of the layer's inputs, B zero.
    Eva,
    /// `"corda"` (Yang et al. 2024): the largest or smallest singular values of the weight as the data use it.
    Corda(CordaMethod),
}

/// Seed and stream of the random numbers of one site.
#[derive(Clone, Copy)]
pub struct Randomness {
    /// Of the run.
    pub seed: u64,
    /// Of the site.
    pub stream: u64,
}

impl InitLoraWeights {
    /// Parses `init_lora_weights`.
    ///
    /// # Errors
    /// Lists the extra.
    pub fn parse(config: &LoraConfig) -> Result<Self, Error> {
        let word = &config.init_lora_weights;
        let known = match word {
            Value::Bool(true) => Some(Self::Kaiming),
            Value::Bool(false) => Some(Self::Random),
            Value::String(word) => match word.to_lowercase().as_str() {
                "gaussian" => Some(Self::Gaussian),
                "orthogonal" => Some(Self::Orthogonal),
                "pissa" => Some(Self::Pissa(None)),
                "olora" => Some(Self::Olora),
                "loftq" => Some(Self::Loftq),
                "eva" => Some(Self::Eva),
                "corda" => Some(Self::Corda(CordaMethod::parse(config)?)),
                other => other
                    .strip_prefix("pissa_niter_")
                    .and_then(|n| n.parse().ok())
                    .map(|n| Self::Pissa(Some(n))),
            },
            _ => None,
        };
        known.ok_or_else(|| {
            Error::Config(format!(
                "init_lora_weights is {word}; it may be true, false, gaussian, orthogonal, pissa, \
                 pissa_niter_[number], olora, loftq, eva or corda"
            ))
        })
    }

    /// Whether the initial `s B A` is a part of the base's weight, which must be subtracted.
    pub fn moves_base(self) -> bool {
        matches!(self, Self::Pissa(_) | Self::Olora | Self::Corda(_))
    }

    /// Whether it follows from the base alone, so that it can be computed again.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Pissa(None) | Self::Olora)
    }

    /// Whether it reads the training data.
    pub fn needs_data(self) -> bool {
        matches!(self, Self::Eva | Self::Corda(_))
    }

    /// Bytes that finding the initial values of layers of `(O, K, R)` takes: the largest layer at a time, and what is observed of
    /// all of them in batches of `rows` tokens. `dora`: the norms of the base's rows are wanted too.
    pub fn working_bytes(
        self,
        layers: impl Iterator<Item = (usize, usize, usize)> + Clone,
        rows: usize,
        dora: bool,
    ) -> usize {
        let most = |of: &dyn Fn((usize, usize, usize)) -> usize| layers.clone().map(of).max().unwrap_or(0);
        let all = |of: &dyn Fn((usize, usize, usize)) -> usize| layers.clone().map(of).sum::<usize>();
        let values = match self {
            Self::Kaiming | Self::Gaussian | Self::Random => usize::from(dora) * most(&|(o, k, _)| o * k),
            Self::Orthogonal => most(&|(o, k, r)| 3 * r * (o + k)),
            Self::Pissa(None) | Self::Loftq | Self::Olora => most(&|(o, k, _)| DECOMPOSITION * o * k),
            Self::Pissa(Some(_)) => most(&|(o, k, r)| o * k + 4 * (r + 16) * (o + k)),
            Self::Eva => all(&|(_, k, r)| (2 * r + 2) * k) + most(&|(_, k, r)| 3 * (rows + 2 * r) * k),
            Self::Corda(_) => {
                all(&|(_, k, _)| k * k) + most(&|(o, k, _)| DECOMPOSITION * (o * k + k * k) + rows * k)
            }
        };
        size_of::<f32>() * values
    }

    /// `A: [R,K]` and `B: [O,R]` for a layer `W: [O,K]`, which `weight` reads where it is needed (for LoftQ, what
    /// quantising loses of it). `observed` is what was found in the data: for EVA the components `[R,K]`, for CorDA
    /// the covariance `[K,K]` of the layer's inputs.
    ///
    /// # Errors
    /// If the weight cannot be read or decomposed, or the rank does not fit.
    pub fn factors(
        self,
        shape: (usize, usize, usize),
        scaling: f32,
        random: Randomness,
        weight: impl FnOnce() -> Result<Vec<f32>, Error>,
        observed: Option<&[f32]>,
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let (o, k, r) = shape;
        let Randomness { seed, stream } = random;
        if (self.moves_base() || self == Self::Loftq) && r > o.min(k) {
            return Err(Error::Config(format!("rank {r} is more than a weight of {o} x {k} has")));
        }
        let observed = || {
            observed.ok_or_else(|| {
                Error::Config("init_lora_weights eva and corda need data: they are for training".into())
            })
        };
        Ok(match self {
            Self::Eva => (observed()?.to_vec(), vec![0.0; o * r]),
            Self::Corda(method) => corda::factors(shape, &weight()?, observed()?, method, scaling)?,
            Self::Kaiming => (kaiming(r, k, seed, stream), vec![0.0; o * r]),
            Self::Gaussian => (gaussian(r * k, 1.0 / r as f32, seed, stream), vec![0.0; o * r]),
            Self::Random => (kaiming(r, k, seed, stream), kaiming(o, r, seed, stream + 1)),
            Self::Orthogonal => orthogonal(o, k, r, seed, stream)?,
            Self::Pissa(_) | Self::Loftq => {
                let w = weight()?;
                let svd = match self {
                    Self::Pissa(Some(iterations)) => {
                        let how = Randomized { iterations, seed, ..Randomized::rank(r) };
                        linalg::svd_randomized(o, k, &w, how)?
                    }
                    _ => linalg::svd(o, k, &w)?.truncate(r),
                };
                let root = |s: &f32| (s / scaling).max(0.0).sqrt();
                let rows = svd.vt.chunks_exact(k).zip(&svd.s);
                let a = rows.flat_map(|(row, s)| row.iter().map(move |x| root(s) * x)).collect();
                let b =
                    svd.u.chunks_exact(r).flat_map(|row| row.iter().zip(&svd.s).map(|(x, s)| x * root(s)));
                (a, b.collect())
            }
            Self::Olora => {
                let qr = linalg::qr(o, k, &weight()?);
                let columns = o.min(k);
                let b = qr.q.chunks_exact(columns).flat_map(|row| &row[..r]).copied().collect();
                (qr.r[..r * k].to_vec(), b)
            }
        })
    }
}

/// `[rows,cols]` uniform in `±1/sqrt(cols)`: Kaiming's with `a = sqrt(5)`, as loralib and PEFT fill `A`.
pub fn kaiming(rows: usize, cols: usize, seed: u64, stream: u64) -> Vec<f32> {
    let mut values = vec![0.0; rows * cols];
    let bound = 1.0 / (cols as f32).sqrt();
    kernels::uniform(&mut values, -bound, bound, seed, stream);
    values
}

fn gaussian(len: usize, std: f32, seed: u64, stream: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    kernels::normal(&mut values, 0.0, std, seed, stream);
    values
}

/// The rows of a random rotation, one half each: `A = odd^T X / 10`, `B = Y even / 10`, so that `B A = 0`.
fn orthogonal(o: usize, k: usize, r: usize, seed: u64, stream: u64) -> Result<(Vec<f32>, Vec<f32>), Error> {
    if !r.is_multiple_of(2) {
        return Err(Error::Config(format!("orthogonal initialisation needs an even rank, not {r}")));
    }
    let half = r / 2;
    let q = linalg::qr(r, r, &gaussian(r * r, 1.0, seed, stream)).q;
    let row = |i: usize| &q[i * r..(i + 1) * r];
    let (x, y) = (gaussian(half * k, 0.1, seed, stream + 1), gaussian(o * half, 0.1, seed, stream + 2));
    let (mut a, mut b) = (vec![0.0; r * k], vec![0.0; o * r]);
    for i in 0..half {
        for (a, q) in a.chunks_exact_mut(k).zip(row(2 * i)) {
            a.iter_mut().zip(&x[i * k..]).for_each(|(a, x)| *a += q * x);
        }
        for (b, y) in b.chunks_exact_mut(r).zip(y.chunks_exact(half)) {
            b.iter_mut().zip(row(2 * i + 1)).for_each(|(b, q)| *b += q * y[i]);
        }
    }
    Ok((a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_factors_cancel() {
        let (o, k, r) = (7, 5, 4);
        let (a, b) = orthogonal(o, k, r, 1, 2).unwrap();
        assert!(a.iter().chain(&b).all(|x| *x != 0.0));
        for row in b.chunks_exact(r) {
            for column in 0..k {
                let sum: f32 = row.iter().enumerate().map(|(i, x)| x * a[i * k + column]).sum();
                assert!(sum.abs() < 1e-6, "{sum}");
            }
        }
        assert!(orthogonal(o, k, 3, 1, 2).is_err());
    }

    #[test]
    fn words() {
        let parse = |word: Value| {
            InitLoraWeights::parse(&LoraConfig { init_lora_weights: word, ..LoraConfig::default() })
        };
        assert_eq!(parse("pissa_niter_16".into()).unwrap(), InitLoraWeights::Pissa(Some(16)));
        assert_eq!(parse(false.into()).unwrap(), InitLoraWeights::Random);
        assert!(parse("nonsense".into()).unwrap_err().to_string().contains("olora"));
    }
}
