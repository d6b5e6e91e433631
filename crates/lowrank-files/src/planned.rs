//! Tensors of a model that is only planned: whatever a configuration asks for exists, has a shape and no numbers.

use std::collections::HashMap;
use std::sync::Mutex;

use lowrank_engine::FrozenWeight;
use lowrank_kernels::Format;

use crate::error::{Error, Result};

/// The shapes that were asked for so far.
pub(crate) struct Planned {
    format: Format,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    /// Rows and columns; a vector has one column.
    shapes: HashMap<String, [usize; 2]>,
    /// Memory that the plan itself takes, roughly, in bytes.
    kept: usize,
}

/// A configuration that asks for more than this describes no model.
const MOST_KEPT: usize = 1 << 30;

impl Planned {
    fn lock(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().expect("nobody panics with it")
    }

    fn shape(&self, name: &str) -> Result<[usize; 2]> {
        let shape = self.lock().shapes.get(name).copied();
        shape.ok_or_else(|| Error::Planned(format!("{name} is not a tensor of this model")))
    }

    pub(crate) fn weight(&self, name: &str) -> Result<FrozenWeight> {
        let [rows, cols] = self.shape(name)?;
        FrozenWeight::shape_only(self.format, rows, cols)
            .map_err(|e| Error::Planned(format!("config.json: {name}: {e}")))
    }

    /// Layers hold their vectors in memory, so there is one.
    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        Ok(vec![0.0; self.shape(name)?[0]])
    }

    pub(crate) fn sizes(&self) -> Vec<(String, usize)> {
        let bytes = |shape: &[usize; 2]| shape[0] * shape[1] * self.format.block_bytes();
        self.lock().shapes.iter().map(|(name, shape)| (name.clone(), bytes(shape))).collect()
    }

    pub(crate) fn parameters(&self) -> usize {
        self.lock().shapes.values().map(|[rows, cols]| rows * cols).sum()
    }

    /// A plan of tensors in `format`, none asked for yet.
    pub(crate) fn new(format: Format) -> Self {
        Self { format, asked: Mutex::default() }
    }

    /// Notes the shape of a tensor.
    pub(crate) fn ask(&self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let wrong = |what: &str| Error::Planned(format!("config.json: {name}: {rows} x {cols}: {what}"));
        if rows.checked_mul(cols).is_none_or(|count| count == 0 || count >= 1 << 48) {
            return Err(wrong("no size of a tensor"));
        }
        let mut asked = self.lock();
        asked.kept += 1024 + if cols == 1 { rows.min(MOST_KEPT) * 4 } else { 0 };
        if asked.kept > MOST_KEPT {
            return Err(wrong("with this the configuration asks for more than any model has"));
        }
        asked.shapes.insert(name.to_owned(), [rows, cols]);
        Ok(())
    }
}
