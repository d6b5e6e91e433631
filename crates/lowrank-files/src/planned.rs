//! Tensors of a model that is only planned: whatever a configuration asks for exists, has a shape and no numbers.

use std::collections::HashMap;
use std::sync::Mutex;

use lowrank_engine::FrozenWeight;
use lowrank_kernels::Format;

use super::Form;
use super::tensors::Tensors;
use crate::{Error, Result};

/// The shapes that were asked for so far.
pub(super) struct Planned {
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
        shape.ok_or_else(|| Error::Config(format!("{name} is no tensor of this model")))
    }

    pub(super) fn weight(&self, name: &str) -> Result<FrozenWeight> {
        let [rows, cols] = self.shape(name)?;
        FrozenWeight::shape_only(self.format, rows, cols)
            .map_err(|e| Error::Config(format!("config.json: {name}: {e}")))
    }

    /// Layers hold their vectors in memory, so there is one.
    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        Ok(vec![0.0; self.shape(name)?[0]])
    }

    pub(super) fn sizes(&self) -> Vec<(String, usize)> {
        let bytes = |shape: &[usize; 2]| shape[0] * shape[1] * self.format.block_bytes();
        self.lock().shapes.iter().map(|(name, shape)| (name.clone(), bytes(shape))).collect()
    }

    pub(super) fn parameters(&self) -> usize {
        self.lock().shapes.values().map(|[rows, cols]| rows * cols).sum()
    }
}

impl Tensors {
    /// The tensors of a model that is only planned, in the plain format `format`.
    pub fn planned(format: Format) -> Self {
        let mut tensors = Self::default();
        tensors.planned = Some(Planned { format, asked: Mutex::default() });
        tensors.set_form(Form { shapes_only: true, ..Form::default() });
        tensors
    }

    /// Whether there are shapes only.
    pub fn is_planned(&self) -> bool {
        self.planned.is_some()
    }

    /// Says which shape a tensor has where the model is only planned. A vector has one column.
    ///
    /// # Errors
    /// Where that is no size of a tensor, or more than any model has.
    pub(crate) fn plan(&self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let Some(planned) = &self.planned else { return Ok(()) };
        let wrong = |what: &str| Error::Config(format!("config.json: {name}: {rows} x {cols}: {what}"));
        if rows.checked_mul(cols).is_none_or(|count| count == 0 || count >= 1 << 48) {
            return Err(wrong("no size of a tensor"));
        }
        let mut asked = planned.lock();
        asked.kept += 1024 + if cols == 1 { rows.min(MOST_KEPT) * 4 } else { 0 };
        if asked.kept > MOST_KEPT {
            return Err(wrong("with this the configuration asks for more than any model has"));
        }
        asked.shapes.insert(name.to_owned(), [rows, cols]);
        Ok(())
    }
}
