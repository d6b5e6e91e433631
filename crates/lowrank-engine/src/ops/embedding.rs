//! Embedding: rows of a frozen table.

use lowrank_kernels as kernels;

use crate::adapter::SiteId;
use crate::tape::{Tape, Var};
use crate::weight::FrozenWeight;

/// A frozen table `E: [V,D]`.
pub struct Embedding {
    /// Where adapters attach.
    pub site: SiteId,
    /// `E`.
    pub weight: FrozenWeight,
    /// Multiplies every row (Gemma: `sqrt(D)`).
    pub scale: f32,
}

impl<'m> Tape<'m> {
    /// `x[i] = scale * E[ids[i]]`, `[N,D]`.
    pub fn embedding(&mut self, table: &'m Embedding, ids: &[u32]) -> Var<'m> {
        let device = self.scope.device;
        let mut x = device.alloc(ids.len(), table.weight.cols());
        device.run(0, || {
            kernels::embedding(x.data_mut(), ids, &table.weight.view(), ids.len());
            if table.scale != 1.0 {
                kernels::scale(x.data_mut(), table.scale);
            }
        });
        Var::constant(x)
    }
}
