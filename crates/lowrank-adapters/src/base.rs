//! The frozen weights of the base model, as an adapter may read them.

use std::ops::Range;

use lowrank_engine::{Site, SiteKind};
use lowrank_kernels::{Format, RowOrder, WeightRef, quantize_matrix};

use crate::error::Error;

/// Reads the frozen weights of the base model.
pub trait BaseWeights: Sync {
    /// Rows `rows` of the weight of the layer at `path`, as it is stored (`[O,K]`, or `[K,O]` where
    /// transposed), as f32.
    ///
    /// # Errors
    /// If there is no such weight.
    fn read_rows(&self, path: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error>;

    /// The bias of the layer at `path`.
    ///
    /// # Errors
    /// If there is none.
    fn read_bias(&self, path: &str, out: &mut [f32]) -> Result<(), Error> {
        let _ = out;
        Err(Error::Config(format!("{path}: the bias of the base model is needed here")))
    }

    /// The format that the weight of a layer is quantised to before it is computed with, where it is not computed
    /// with as it is stored.
    fn quantised(&self, site: &Site) -> Option<Format> {
        let _ = site;
        None
    }

    /// Statistics of a layer's inputs, from the training data ([`crate::calibrate`]).
    fn observed(&self, site: &Site) -> Option<&[f32]> {
        let _ = site;
        None
    }

    /// Whether there are any statistics.
    fn observes(&self) -> bool {
        false
    }
}

/// No base is available.
pub struct NoBase;

impl BaseWeights for NoBase {
    fn read_rows(&self, path: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), Error> {
        Err(Error::Config(format!("{path}: the weight of the base model is needed here")))
    }
}

/// `W: [O,K]` of a layer as it is computed with: transposed back where it is stored transposed, and with the error of
/// quantising where it is quantised on the way.
///
/// # Errors
/// If it cannot be read.
pub fn whole_weight(base: &dyn BaseWeights, site: &Site) -> Result<Vec<f32>, Error> {
    let w = stored_weight(base, site)?;
    let Some(format) = base.quantised(site) else { return Ok(w) };
    let (rows, cols) = (site.out_features, site.in_features);
    let wrong = |what: String| Error::Config(format!("{}: {what}", site.path));
    let bytes =
        format.matrix_bytes(rows, cols).ok_or_else(|| wrong("its rows are not whole blocks".into()))?;
    let mut quantised = vec![0; bytes];
    let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&w[row * cols..][..cols]);
    quantize_matrix(format, rows, cols, fill, &mut quantised).map_err(|e| wrong(e.to_string()))?;
    let view = WeightRef { format, rows, cols, order: RowOrder::Plain, bytes: &quantised };
    let mut again = vec![0.0; rows * cols];
    again.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| view.expand(row, 0..cols, out));
    Ok(again)
}

/// `W: [O,K]` of a layer as its file has it, transposed back where it is stored transposed.
///
/// # Errors
/// If it cannot be read.
pub fn stored_weight(base: &dyn BaseWeights, site: &Site) -> Result<Vec<f32>, Error> {
    let (k, o) = (site.in_features, site.out_features);
    let mut w = vec![0.0; o * k];
    if site.kind != SiteKind::TransposedLinear {
        base.read_rows(&site.path, 0..o, &mut w)?;
        return Ok(w);
    }
    let mut stored = vec![0.0; o * k];
    base.read_rows(&site.path, 0..k, &mut stored)?;
    for (row, stored) in stored.chunks_exact(o).enumerate() {
        for (column, value) in stored.iter().enumerate() {
            w[column * k + row] = *value;
        }
    }
    Ok(w)
}
