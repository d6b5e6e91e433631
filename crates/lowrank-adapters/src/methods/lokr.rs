//! LoKr (Yeh et al. 2024): the change is a Kronecker product, `y = W0 x + b + s (W1 kron W2) x`, with each factor whole or of low
//! rank.
//!
//! # Shapes
//! `O = L P`, `K = M Q`, `W1: [L,M]`, `W2: [P,Q]`, `s = alpha / R`. With `x` seen as `X: [M,Q]`, the change is
//! `W1 X W2^T: [L,P]`: two small products for each token; the big matrix is never formed.

use std::borrow::Cow;
use std::sync::Arc;

use lowrank_engine::{
    Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor, kernels,
};
use serde::Deserialize;

use crate::config::LoraConfig;
use crate::contract::{InitContext, Method, Target, Variant, WeightRows, linear_only};
use crate::error::Error;
use crate::init;
use crate::linalg;
use crate::methods::lycoris::{self, OutputDropout};

/// A factor of the Kronecker product.
#[derive(Clone, Copy, Debug)]
enum Factor {
    /// The matrix itself.
    Whole(ParamId),
    /// `a b` with so many columns of `a`.
    Product(ParamId, ParamId),
}

impl Factor {
    fn params(self) -> Vec<ParamId> {
        match self {
            Self::Whole(w) => vec![w],
            Self::Product(a, b) => vec![a, b],
        }
    }

    /// The matrix: a parameter, or the product of two.
    fn matrix(self, scope: &Scope<'_>) -> Tensor {
        match self {
            Self::Whole(w) => scope.params.tensor(w).clone(),
            Self::Product(a, b) => {
                let mut matrix = scope.alloc(scope.params.get(a).rows, scope.params.get(b).cols);
                scope.gemm(1.0, scope.param(a), scope.param(b), 0.0, matrix.mat_mut());
                matrix
            }
        }
    }

    /// The values of the matrix.
    fn values(self, params: &Params) -> Cow<'_, [f32]> {
        match self {
            Self::Whole(w) => params.values(w).into(),
            Self::Product(a, b) => {
                let (a, b) = (params.get(a), params.get(b));
                linalg::product(a.rows, b.cols, a.cols, a.values(), b.values()).into()
            }
        }
    }

    /// Accumulates the gradient of the matrix, `dw`, into that of what it is made of.
    fn backward(self, scope: &Scope<'_>, grads: &mut Grads, dw: &Tensor) {
        match self {
            Self::Whole(w) => scope.device.add(grads.get_mut(w), dw),
            Self::Product(a, b) => {
                scope.gemm(1.0, dw.mat(), scope.param(b).t(), 1.0, grads.mat_mut(a));
                scope.gemm(1.0, scope.param(a).t(), dw.mat(), 1.0, grads.mat_mut(b));
            }
        }
    }
}

/// LoKr at one linear site.
#[derive(Debug)]
pub struct Lokr {
    w1: Factor,
    w2: Factor,
    /// `L, P, M, Q`.
    sizes: [usize; 4],
    r: usize,
    scaling: f32,
    dropout: OutputDropout,
    /// PEFT's `init_weights`: `"lycoris"` zeroes the second factor, `true` the first.
    lycoris: bool,
}

impl Lokr {
    /// `X W2^T` of all tokens with the axis that `W1` sums first: `[M, N P]`.
    fn inner(&self, scope: &Scope<'_>, x: &Tensor, w2: &Tensor) -> Tensor {
        let [_, p, m, q] = self.sizes;
        let n = x.rows();
        let mut t = scope.alloc(n * m, p);
        scope.gemm(1.0, x.reshape(n * m, q).mat(), w2.mat().t(), 0.0, t.mat_mut());
        let mut swapped = scope.alloc(m, n * p);
        scope.device.swap_axes(&mut swapped, &t, [n, m, p]);
        swapped
    }

    /// `dy`, times what dropout leaves of each output, as `[L, N P]`.
    fn outer_gradient(&self, scope: &Scope<'_>, dy: &Tensor) -> Tensor {
        let ([l, p, ..], n) = (self.sizes, dy.rows());
        let mut dz = scope.alloc(l, n * p);
        match self.dropout.factors(scope, l * p) {
            None => scope.device.swap_axes(&mut dz, dy, [n, l, p]),
            Some(factors) => {
                let mut kept = scope.alloc(n, l * p);
                scope.device.scale_columns(&mut kept, dy, &factors, 0.0);
                scope.device.swap_axes(&mut dz, &kept, [n, l, p]);
            }
        }
        dz
    }
}

impl Adapter for Lokr {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        base.forward(scope, x, y, beta);
        self.add(scope, base, x, y, 1.0);
        Vec::new()
    }

    /// With `T = X W2^T` and `dY: [L,P]`: `dW1 += s dY T^T`, `dT = s W1^T dY`, `dW2 += dT^T X`, `dX += dT W2`.
    fn backward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        grads: &mut Grads,
        x: &Tensor,
        dy: &Tensor,
        _: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        let ([l, p, m, q], n) = (self.sizes, x.rows());
        let dz = self.outer_gradient(scope, dy);
        let (w1, w2) = (self.w1.matrix(scope), self.w2.matrix(scope));
        let t = self.inner(scope, x, &w2);
        let (mut dw1, mut dw2) = (scope.alloc(l, m), scope.alloc(p, q));
        scope.gemm(self.scaling, dz.mat(), t.mat().t(), 0.0, dw1.mat_mut());
        self.w1.backward(scope, grads, &dw1);
        let mut dt = scope.alloc(m, n * p);
        scope.gemm(self.scaling, w1.mat().t(), dz.mat(), 0.0, dt.mat_mut());
        let mut straight = scope.alloc(n * m, p);
        scope.device.swap_axes(&mut straight, &dt, [m, n, p]);
        scope.gemm(1.0, straight.mat().t(), x.reshape(n * m, q).mat(), 0.0, dw2.mat_mut());
        self.w2.backward(scope, grads, &dw2);
        let Some(dx) = dx else { return };
        base.backward(scope, dy, dx);
        scope.gemm(1.0, straight.mat(), w2.mat(), 1.0, dx.tensor.mat_mut_as(n * m, q));
    }

    fn add(&self, scope: &Scope<'_>, _: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        let ([l, p, ..], n) = (self.sizes, x.rows());
        let w1 = self.w1.matrix(scope);
        let t = self.inner(scope, x, &self.w2.matrix(scope));
        let (mut z, mut straight) = (scope.alloc(l, n * p), scope.alloc(n, l * p));
        scope.gemm(weight * self.scaling, w1.mat(), t.mat(), 0.0, z.mat_mut());
        scope.device.swap_axes(&mut straight, &z, [l, n, p]);
        match self.dropout.factors(scope, l * p) {
            None => scope.device.add(y, &straight),
            Some(factors) => scope.device.scale_columns(y, &straight, &factors, 1.0),
        }
    }
}

impl Variant for Lokr {
    fn rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn params(&self) -> Vec<ParamId> {
        [self.w1.params(), self.w2.params()].concat()
    }

    /// One factor starts as zero (its first matrix or, LyCORIS's way, its last), the rest as Kaiming has it.
    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        let zero = match self.lycoris {
            true => self.w2.params().pop(),
            false => self.w1.params().first().copied(),
        };
        for (i, id) in self.params().into_iter().enumerate() {
            let param = params.get_mut(id);
            param.set(match Some(id) == zero {
                true => vec![0.0; param.rows * param.cols],
                false => init::kaiming(param.rows, param.cols, start.seed, start.stream + i as u64),
            });
        }
        Ok(())
    }

    /// `||W1 kron W2|| = ||W1|| ||W2||`.
    fn delta_norm(&self, params: &Params) -> Option<f64> {
        let squares =
            kernels::sum_squares(&self.w1.values(params)) * kernels::sum_squares(&self.w2.values(params));
        Some(f64::from(self.scaling.abs()) * squares.sqrt())
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        let (w1, w2) = (self.w1.values(params), self.w2.values(params));
        let transposed = at.site.kind == SiteKind::TransposedLinear;
        let alpha = factor * self.scaling;
        kernels::add_kronecker(w, &w1, &w2, self.sizes, at.rows.clone(), transposed, alpha);
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Extra {
    decompose_both: bool,
    decompose_factor: i64,
    init_weights: serde_json::Value,
}

impl Default for Extra {
    fn default() -> Self {
        Self { decompose_both: false, decompose_factor: -1, init_weights: true.into() }
    }
}

/// `dimension = m n` with `m <= n`: `factor` itself where it divides, else the `m` up to `factor` (-1: any) for
/// which `m + n` stops falling.
fn factorization(dimension: usize, factor: i64) -> (usize, usize) {
    let limit = usize::try_from(factor).unwrap_or(dimension);
    if limit > 0 && factor > 0 && dimension.is_multiple_of(limit) {
        return (limit, dimension / limit);
    }
    let (mut m, mut n) = (1, dimension);
    while m < n {
        let Some(next) = (m + 1..=dimension).find(|next| dimension.is_multiple_of(*next)) else { break };
        if next + dimension / next > 1 + dimension || next > limit {
            break;
        }
        (m, n) = (next, dimension / next);
    }
    (m.min(n), m.max(n))
}

/// `peft_type` LOKR.
pub struct LokrMethod;

impl Method for LokrMethod {
    fn peft_type(&self) -> &'static str {
        "LOKR"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("lokr", "")]
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        lycoris::FOREIGN
    }

    fn unused_fields(&self) -> &'static [&'static str] {
        lycoris::UNUSED
    }

    fn fields(&self) -> &'static [&'static str] {
        &[
            "alpha",
            "rank_dropout",
            "module_dropout",
            "rank_dropout_scale",
            "decompose_both",
            "decompose_factor",
            "init_weights",
        ]
    }

    fn check_new(&self, config: &LoraConfig) -> Result<(), Error> {
        let start = config.parse_extra::<Extra>()?.init_weights;
        match start == true || start == "lycoris" {
            true => Ok(()),
            false => Err(Error::Config(format!("init_weights is {start}; it may be true or lycoris"))),
        }
    }

    fn rank_and_alpha(&self, config: &LoraConfig) -> Result<(usize, f64), Error> {
        lycoris::rank_and_alpha(config)
    }

    fn configure(&self, config: &mut LoraConfig, _: &[Site], _: u64) {
        lycoris::configure(config);
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        let extra: Extra = config.parse_extra()?;
        if extra.decompose_factor == 0 || extra.decompose_factor < -1 {
            let what = format!("decompose_factor is {}; it is -1 or at least 1", extra.decompose_factor);
            return Err(Error::Config(what));
        }
        lycoris::check(config)
    }

    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let extra: Extra = config.parse_extra()?;
        let plan = |target: &Target| {
            let site = &sites[target.site];
            linear_only(site)?;
            let r = target.r;
            let (m, q) = factorization(site.in_features, extra.decompose_factor);
            let (l, p) = factorization(site.out_features, extra.decompose_factor);
            let mut factor = |name: &str, whole: bool, rows: usize, cols: usize| {
                let mut push = |end: &str, rows: usize, cols: usize| {
                    params.push(format!("{}.{name}{end}", site.path), rows, cols, Vec::new())
                };
                match whole {
                    true => Factor::Whole(push("", rows, cols)),
                    false => Factor::Product(push("_a", rows, r), push("_b", r, cols)),
                }
            };
            // r < max / 2, in whole numbers.
            let small = |a: usize, b: usize| 2 * r < a.max(b);
            let w1 = factor("lokr_w1", !(extra.decompose_both && small(l, m)), l, m);
            let w2 = factor("lokr_w2", !small(p, q), p, q);
            let lokr = Lokr {
                w1,
                w2,
                sizes: [l, p, m, q],
                r,
                scaling: (target.alpha / r as f64) as f32,
                dropout: OutputDropout::new(config, false, target.site as u64)?,
                lycoris: extra.init_weights == "lycoris",
            };
            Ok(Arc::new(lokr) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        let size = |name: &str| match shape(name) {
            Some(whole) => <[usize; 2]>::try_from(whole).ok(),
            None => {
                let (a, b) = (shape(&format!("{name}_a"))?, shape(&format!("{name}_b"))?);
                Some([*a.first()?, *b.get(1)?])
            }
        };
        let ([l, m], [p, q]) = (size("lokr_w1")?, size("lokr_w2")?);
        Some((m.checked_mul(q)?, l.checked_mul(p)?))
    }
}

#[cfg(test)]
mod tests {
    use super::factorization;

    #[test]
    fn factorises_as_lycoris() {
        assert_eq!(factorization(256, -1), (16, 16));
        assert_eq!(factorization(128, -1), (8, 16));
        assert_eq!(factorization(127, -1), (1, 127));
        assert_eq!(factorization(128, 4), (4, 32));
        assert_eq!(factorization(576, 100), (24, 24));
        assert_eq!(factorization(1536, 10), (8, 192));
    }
}
