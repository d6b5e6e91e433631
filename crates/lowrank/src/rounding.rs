//! What rounding to a format does to a merged weight.

use lowrank_engine::{Format, RowOrder, WeightRef, kernels};
use rayon::prelude::*;

/// What rounding to the format of the merged model costs one adapted layer.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Module path.
    pub path: String,
    /// Norm of the difference between the merged weight and what is stored, over the norm of the merged weight.
    pub relative_error: f64,
    /// Norm of what the adapter adds.
    pub added: f64,
    /// How much of what the adapter adds is stored: about 1, or less where rounding goes back to the base's values.
    pub kept: f64,
}

/// What rounding does to rows of a merged weight: sums over their values.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rounding {
    /// Squares of what is lost.
    error: f64,
    /// Squares of the merged weight.
    weight: f64,
    /// Squares of what the adapter adds.
    added: f64,
    /// Products of what the adapter adds and the stored change of the base.
    kept: f64,
}

impl Rounding {
    /// Of rows that were `before` and are `merged` now, stored in `format`.
    pub fn of(format: Format, before: &[f32], merged: &[f32], rows: usize) -> Option<Self> {
        let cols = merged.len().checked_div(rows)?;
        let one = |(before, merged): (&[f32], &[f32])| {
            let mut bytes = Vec::new();
            kernels::quantize(format, merged, &mut bytes).ok()?;
            let view = WeightRef { format, rows: 1, cols, order: RowOrder::Plain, bytes: &bytes };
            let mut stored = vec![0.0; cols];
            view.expand(0, 0..cols, &mut stored);
            let mut sum = Self::default();
            for ((stored, before), merged) in stored.iter().zip(before).zip(merged) {
                let added = f64::from(merged - before);
                sum.error += f64::from(stored - merged).powi(2);
                sum.weight += f64::from(*merged).powi(2);
                sum.added += added * added;
                sum.kept += added * f64::from(stored - before);
            }
            Some(sum)
        };
        // Summed in the order of the rows, whatever the threads.
        let pairs = before.par_chunks_exact(cols).zip(merged.par_chunks_exact(cols));
        let sums: Option<Vec<Self>> = pairs.map(one).collect();
        Some(sums?.iter().fold(Self::default(), |sum, row| sum.plus(row)))
    }

    pub fn plus(&self, other: &Self) -> Self {
        Self {
            error: self.error + other.error,
            weight: self.weight + other.weight,
            added: self.added + other.added,
            kept: self.kept + other.kept,
        }
    }

    /// The share of what the adapter adds that is stored.
    pub fn kept(&self) -> f64 {
        if self.added > 0.0 { self.kept / self.added } else { 1.0 }
    }

    pub fn loss(&self, path: String) -> Loss {
        let relative_error = if self.weight > 0.0 { (self.error / self.weight).sqrt() } else { 0.0 };
        Loss { path, relative_error, added: self.added.sqrt(), kept: self.kept() }
    }
}
