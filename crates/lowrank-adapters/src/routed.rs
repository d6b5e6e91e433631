//! One batch for several adapters: each row has its own, and one product with the base serves them all. For inference only.

use lowrank_engine::{Adapter, AdapterIndex, Linear, LowRankRows, Params, Scope, Tensor};

use crate::mixture::Part;

/// Rows of an adapter for which products with its matrices one row at a time are as fast as those with all of them.
const FEW_ROWS: usize = 8;

/// The adapters of one site, by their place in the set; `None` where an adapter leaves the site to the base.
pub struct Routed {
    /// In the order of the set's adapters.
    pub parts: Vec<Option<Part>>,
}

impl Routed {
    /// The rows of each adapter that is here, and the adapter.
    fn groups(&self, scope: &Scope<'_>, rows: usize) -> Vec<(&Part, Vec<u32>)> {
        let adapters = scope.rows.expect("a batch of several adapters says which row has which");
        let part = |index: AdapterIndex| self.parts.get(index)?.as_ref();
        adapters.groups(rows).into_iter().filter_map(|(index, rows)| Some((part(index)?, rows))).collect()
    }
}

impl Adapter for Routed {
    /// `y = beta y + base(x)` for all rows, and what each adapter adds to its own.
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        base.forward(scope, x, y, beta);
        let device = scope.device;
        // Low-rank changes of a few rows each are one operation for all of them.
        let mut low_rank = Vec::new();
        for (part, rows) in self.groups(scope, x.rows()) {
            let mut factors = Vec::new();
            if rows.len() <= FEW_ROWS && part.variant.low_rank(&part.params, part.weight, &mut factors) {
                low_rank.push(LowRankRows { rows, factors });
                continue;
            }
            let mut own = device.alloc(rows.len(), x.cols());
            device.gather_rows(&mut own, x, &rows);
            let mut change = device.zeros(rows.len(), y.cols());
            let scope = Scope { params: &part.params, rows: None, ..*scope };
            part.variant.add(&scope, base, &own, &mut change, part.weight);
            device.scatter_add_rows(y, &change, &rows);
        }
        if !low_rank.is_empty() {
            device.add_low_rank_rows(y, x, &low_rank);
        }
        Vec::new()
    }

    fn embed(&self, scope: &Scope<'_>, ids: &[u32], scale: f32, y: &mut Tensor) -> Vec<Tensor> {
        let device = scope.device;
        for (part, rows) in self.groups(scope, ids.len()) {
            let own_ids: Vec<u32> = rows.iter().map(|&row| ids[row as usize]).collect();
            let mut own = device.alloc(rows.len(), y.cols());
            device.gather_rows(&mut own, y, &rows);
            let scope = Scope { params: &part.params, rows: None, ..*scope };
            part.variant.embed(&scope, &own_ids, scale, &mut own);
            device.scatter_rows(y, &own, &rows);
        }
        Vec::new()
    }

    fn norm_tensors<'a>(&'a self, _: &'a Params) -> [Option<&'a Tensor>; 2] {
        [None; 2]
    }

    fn norm_tensors_of<'a>(&'a self, _: &'a Params, index: AdapterIndex) -> [Option<&'a Tensor>; 2] {
        let part = self.parts.get(index).and_then(Option::as_ref);
        part.map(|part| part.variant.norm_tensors(&part.params)).unwrap_or_default()
    }
}
