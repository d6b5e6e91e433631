//! The losses of a pair of completions, from their log-probabilities.

use super::dual::Dual;
use super::options::{LossOptions, LossType};

/// A completion `y` of a prompt `x`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Completion {
    /// `log p(y | x)`, the sum over its tokens.
    pub logp: f64,
    /// The same of the reference; 0 where the loss has none.
    pub reference: f64,
    /// `|y|`, its tokens.
    pub tokens: usize,
}

/// The loss of a pair and its slopes by the log-probabilities of the chosen and of the rejected completion.
///
/// With `p_c, p_r` for the two log-probabilities, `c = p_c - ref_c`, `r = p_r - ref_r`, `d = c - r`, `m = mean log-probability of a
/// token`, `s = sigmoid` and `e = label_smoothing`:
///
/// | loss | |
/// |---|---|
/// | `sigmoid` | `-log s(beta d)` |
/// | `hinge` | `max(0, 1 - beta d)` |
/// | `ipo` | `(c / abs(y_c) - r / abs(y_r) - 1 / (2 beta))^2` |
/// | `exo_pair` | `s(beta d) (log s(beta d) - log(1 - e)) + s(-beta d) (log s(-beta d) - log e)` |
/// | `nca_pair` | `-log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2` |
/// | `robust` | `(-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2 e)` |
/// | `bco_pair` | `-log s(beta c) - log s(-beta r)` |
/// | `sppo_hard` | `(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2` |
/// | `apo_zero` | `1 - s(beta c) + s(beta r)` |
/// | `apo_down` | `s(beta c) + 1 - s(beta d)` |
/// | `sigmoid_norm` | `-log s(beta (c / abs(y_c) - r / abs(y_r)))` |
/// | `orpo` | `-beta log s(m_c - m_r - log(1 - exp m_c) + log(1 - exp m_r))` |
/// | `simpo` | `-(1 - e) log s(z) - e log s(-z)`, `z = beta (m_c - m_r) - gamma` |
/// | `cpo` | `-(1 - e) log s(z) - e log s(-z)`, `z = beta (p_c - p_r)` |
///
/// These are TRL's. `orpo`, `cpo` and `sft` have a cross-entropy of the chosen completion beside this ([`cross_entropy`]).
pub(super) fn loss(kind: LossType, options: &LossOptions, chosen: Completion, rejected: Completion) -> Dual {
    let (beta, e) = (options.beta, options.label_smoothing);
    let (p_c, p_r) = (Dual::variable(chosen.logp, 0), Dual::variable(rejected.logp, 1));
    let (c, r) = (p_c - chosen.reference, p_r - rejected.reference);
    let d = c - r;
    let per_token = |x: Dual, y: Completion| x * (1.0 / y.tokens.max(1) as f64);
    let smoothed = |z: Dual| -z.log_sigmoid() * (1.0 - e) - (-z).log_sigmoid() * e;
    match kind {
        LossType::Sigmoid => -(d * beta).log_sigmoid(),
        LossType::Hinge => (-(d * beta) + 1.0).relu(),
        LossType::Ipo => (per_token(c, chosen) - per_token(r, rejected) - 0.5 / beta).square(),
        LossType::ExoPair => {
            let (z, wrong) = (d * beta, -(d * beta));
            z.sigmoid() * (z.log_sigmoid() - (-e).ln_1p()) + wrong.sigmoid() * (wrong.log_sigmoid() - e.ln())
        }
        LossType::NcaPair => {
            let (c, r) = (c * beta, r * beta);
            -c.log_sigmoid() - (-c).log_sigmoid() * 0.5 - (-r).log_sigmoid() * 0.5
        }
        LossType::Robust => {
            let z = d * beta;
            (-z.log_sigmoid() * (1.0 - e) + (-z).log_sigmoid() * e) * (1.0 / (1.0 - 2.0 * e))
        }
        LossType::BcoPair => -(c * beta).log_sigmoid() - (-(r * beta)).log_sigmoid(),
        LossType::SppoHard => (c - 0.5 / beta).square() + (r + 0.5 / beta).square(),
        LossType::ApoZero => -(c * beta).sigmoid() + 1.0 + (r * beta).sigmoid(),
        LossType::ApoDown => (c * beta).sigmoid() + 1.0 - (d * beta).sigmoid(),
        LossType::SigmoidNorm => -((per_token(c, chosen) - per_token(r, rejected)) * beta).log_sigmoid(),
        LossType::Orpo => {
            let (m_c, m_r) = (per_token(p_c, chosen), per_token(p_r, rejected));
            -(m_c - m_r - m_c.log1mexp() + m_r.log1mexp()).log_sigmoid() * beta
        }
        LossType::Simpo => {
            smoothed((per_token(p_c, chosen) - per_token(p_r, rejected)) * beta - options.simpo_gamma)
        }
        LossType::Cpo => smoothed((p_c - p_r) * beta),
        LossType::Sft
        | LossType::Kto
        | LossType::ApoZeroUnpaired
        | LossType::Grpo
        | LossType::DrGrpo
        | LossType::Bnpo
        | LossType::Dapo
        | LossType::Rloo
        | LossType::Nll
        | LossType::Dft => Dual::default(),
    }
}

/// The weight of the mean cross-entropy of the chosen completions' tokens that goes with a loss.
pub(super) fn cross_entropy(kind: LossType, options: &LossOptions) -> f64 {
    match kind {
        LossType::Sft | LossType::Orpo => 1.0,
        LossType::Cpo => options.cpo_alpha,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every loss against differences of its own values, at points of both signs.
    #[test]
    fn slopes_are_those_of_the_values() {
        let options = LossOptions { beta: 0.3, label_smoothing: 0.1, ..LossOptions::DEFAULT };
        let kinds = "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard apo_zero apo_down sigmoid_norm orpo \
                     simpo cpo";
        for kind in kinds.split_whitespace().map(|name| name.parse::<LossType>().unwrap()) {
            for (p_c, p_r) in [(-3.0, -4.5), (-4.0, -2.0), (-30.0, -11.0)] {
                let at = |p_c: f64, p_r: f64| {
                    let completion = |logp, reference, tokens| Completion { logp, reference, tokens };
                    loss(kind, &options, completion(p_c, -3.7, 3), completion(p_r, -3.1, 4))
                };
                let h = 1e-6;
                let slopes = [
                    (at(p_c + h, p_r).value - at(p_c - h, p_r).value) / (2.0 * h),
                    (at(p_c, p_r + h).value - at(p_c, p_r - h).value) / (2.0 * h),
                ];
                for (have, want) in at(p_c, p_r).slope.iter().zip(slopes) {
                    assert!((have - want).abs() < 1e-6, "{}: {have} for {want}", kind.name());
                }
                assert!(at(p_c, p_r).slope.iter().any(|slope| *slope != 0.0) || kind == LossType::Hinge);
            }
        }
    }

    #[test]
    fn far_values_stay_finite() {
        let options = LossOptions { label_smoothing: 0.1, ..LossOptions::DEFAULT };
        for kind in ["sigmoid", "robust", "orpo", "exo_pair"].map(|name| name.parse::<LossType>().unwrap()) {
            for logp in [-1e-9, -1e5] {
                let y = |logp| Completion { logp, reference: -5.0, tokens: 1 };
                let loss = loss(kind, &options, y(logp), y(-7.0));
                assert!(
                    loss.value.is_finite() && loss.slope.iter().all(|s| s.is_finite()),
                    "{}",
                    kind.name()
                );
            }
        }
    }
}
