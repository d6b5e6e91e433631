//! What the sections read: the study's specification, its model and the results of its runs.

use lowrank_engine::Device;
use lowrank_models::{Base, Model};

use crate::report::Cell;
use crate::run::{Role, Run, RunResult};
use crate::spec::Spec;

/// Everything the sections read.
pub(crate) struct Study<'a> {
    pub spec: &'a Spec,
    pub base: &'a Base,
    pub model: &'a dyn Model,
    /// Where passes are timed.
    pub device: &'a Device,
    /// The runs that have a result.
    pub done: Vec<(&'a Run, RunResult)>,
}

impl Study<'_> {
    /// The results that a section asked for and that did not fail.
    pub fn with(&self, role: &Role) -> impl Iterator<Item = (&Run, &RunResult)> {
        let wanted = move |run: &&(&Run, RunResult)| run.0.roles.contains(role) && run.1.error.is_none();
        let found: Vec<_> = self.done.iter().filter(wanted).map(|(run, result)| (*run, result)).collect();
        found.into_iter()
    }

    /// Why a role has no result.
    pub fn state(&self, role: &Role) -> &'static str {
        let failed = self.done.iter().any(|(run, r)| run.roles.contains(role) && r.error.is_some());
        if failed { "failed" } else { "not done" }
    }

    /// The metric of a role over its seeds.
    pub fn metric(&self, role: &Role) -> Cell {
        let name = &self.spec.metric;
        let values: Vec<f64> = self.with(role).filter_map(|(_, result)| result.metric(name)).collect();
        mean_cell(&values)
    }
}

/// A mean with the half-width of its 95 % confidence interval over seeds (Student's t).
pub(crate) fn mean_cell(values: &[f64]) -> Cell {
    let n = values.len();
    if n == 0 {
        return Cell::none();
    }
    let mean = values.iter().sum::<f64>() / n as f64;
    if n == 1 {
        return Cell::number(mean, format!("{mean:.4}"));
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let half = student_t_95(n - 1) * (variance / n as f64).sqrt();
    Cell::number(mean, format!("{mean:.4} ± {half:.4}"))
}

/// The 97.5 % quantile of Student's t.
fn student_t_95(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    TABLE.get(freedom - 1).copied().unwrap_or(if freedom < 30 { 2.1 } else { 1.96 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_carry_their_confidence() {
        // Three values with standard deviation 1: 4.303 / sqrt(3) = 2.4843.
        assert_eq!(mean_cell(&[1.0, 2.0, 3.0]).text, "2.0000 ± 2.4843");
        assert_eq!(mean_cell(&[0.5]).text, "0.5000");
        assert_eq!(mean_cell(&[]), Cell::none());
    }
}
