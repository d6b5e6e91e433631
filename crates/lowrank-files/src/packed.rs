//! A matrix that is made of several tensors when it is first used.

use std::sync::OnceLock;

use lowrank_engine::FrozenWeight;
use lowrank_kernels::Format;

type Make = Box<dyn Fn() -> Result<FrozenWeight, String> + Send + Sync>;

/// A matrix in the making.
pub(crate) struct Packed {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
    /// Bytes of its parts in the file.
    pub stored: usize,
    make: Make,
    made: OnceLock<Result<FrozenWeight, String>>,
}

impl Packed {
    /// A matrix of what `make` gives.
    pub fn new(
        format: Format,
        (rows, cols): (usize, usize),
        stored: usize,
        make: impl Fn() -> Result<FrozenWeight, String> + Send + Sync + 'static,
    ) -> Self {
        Self { format, rows, cols, stored, make: Box::new(make), made: OnceLock::new() }
    }

    /// The matrix, made when this is first called.
    ///
    /// # Errors
    /// Where its parts do not make one.
    pub fn weight(&self) -> Result<FrozenWeight, String> {
        self.made.get_or_init(&self.make).clone()
    }

    /// A matrix without bytes.
    ///
    /// # Errors
    /// Where there is none of this shape.
    pub fn shape_only(&self) -> Result<FrozenWeight, String> {
        FrozenWeight::shape_only(self.format, self.rows, self.cols).map_err(|e| e.to_string())
    }
}
