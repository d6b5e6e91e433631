//! Tensors: two axes, f32, in the arena.

use std::sync::Arc;

use crate::arena::Block;

/// Activations `rows x cols`, row-major f32. Clones share the numbers; writing needs the only one.
#[derive(Clone)]
pub struct Tensor {
    block: Arc<Block>,
    rows: usize,
    cols: usize,
}

impl Tensor {
    pub(crate) fn new(block: Block, rows: usize, cols: usize) -> Self {
        debug_assert_eq!(block.floats(), rows * cols);
        Self { block: Arc::new(block), rows, cols }
    }

    /// Rows, usually tokens `N`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, usually features `D`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The numbers (none on the Plan device).
    pub fn data(&self) -> &[f32] {
        self.block.data()
    }

    /// The numbers, to write.
    ///
    /// # Panics
    /// Where another clone is alive: a bug in the operation that asks.
    pub fn data_mut(&mut self) -> &mut [f32] {
        Arc::get_mut(&mut self.block).expect("a tensor that is written has one owner").data_mut()
    }

    /// Whether no other clone is alive, so that [`Tensor::data_mut`] works.
    pub fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.block).is_some()
    }

    /// The same numbers seen as `rows x cols`.
    pub fn reshape(&self, rows: usize, cols: usize) -> Self {
        assert_eq!(rows * cols, self.rows * self.cols, "reshape keeps the size");
        Self { block: self.block.clone(), rows, cols }
    }

    /// A view for products.
    pub fn mat(&self) -> Mat<'_> {
        Mat::new(self.data(), self.rows, self.cols)
    }

    /// A view for products, to write.
    pub fn mat_mut(&mut self) -> MatMut<'_> {
        let (rows, cols) = (self.rows, self.cols);
        MatMut { data: self.data_mut(), rows, cols }
    }
}

/// A matrix operand of [`crate::Scope::gemm`].
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Numbers from one row to the next.
    pub(crate) stride: usize,
    pub(crate) transposed: bool,
}

impl<'a> Mat<'a> {
    /// A row-major matrix over a slice (empty on the Plan device).
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, stride: cols, transposed: false }
    }

    /// The first `rows` rows and `cols` columns of a matrix that is not transposed.
    pub fn corner(self, rows: usize, cols: usize) -> Self {
        assert!(!self.transposed && rows <= self.rows && cols <= self.cols, "a corner of a matrix");
        Self { rows, cols, ..self }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Rows and columns of the view, after transposition.
    pub fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }
}

/// The result of [`crate::Scope::gemm`].
pub struct MatMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix over a slice (empty on the Plan device).
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols }
    }
}
