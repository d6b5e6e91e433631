//! Tensors: handles to matrices of f32, wherever their values live.

use std::sync::Arc;

use crate::buffer::{Buffer, HostMemory};

/// A matrix `rows x cols` of f32, row-major. A clone shares the values; writing needs the only handle.
///
/// Operations of a [`crate::Device`] read and write the values. Elsewhere they come in with [`crate::Device::tensor`] or
/// [`Tensor::from_vec`] and go out with [`Tensor::to_vec`].
#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// A tensor over `buffer`, which has room for `rows * cols` values: for backends.
    pub fn over(buffer: Buffer, rows: usize, cols: usize) -> Self {
        Self { buffer: Arc::new(buffer), rows, cols }
    }

    /// A tensor with memory of its own, for values that outlive a step.
    ///
    /// # Panics
    /// Where `values` are not `rows * cols`.
    pub fn from_vec(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "values of a {rows} x {cols} tensor");
        Self::over(Buffer::Host(HostMemory::Own(values.into())), rows, cols)
    }

    /// A vector of `D` values as one row, with memory of its own.
    pub fn vector(values: Vec<f32>) -> Self {
        Self::from_vec(1, values.len(), values)
    }

    /// A tensor without values, for planning.
    pub fn shape_only(rows: usize, cols: usize) -> Self {
        Self::over(Buffer::Shape(None), rows, cols)
    }

    /// Rows, usually tokens `N`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, usually features `D`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many values it has.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has a shape and no values.
    pub fn is_shape_only(&self) -> bool {
        matches!(*self.buffer, Buffer::Shape(_))
    }

    /// The values (none of a tensor without values). Those in a device's memory are read back first, and kept until the next
    /// write.
    pub fn values(&self) -> &[f32] {
        self.buffer.host()
    }

    /// A copy of the values.
    pub fn to_vec(&self) -> Vec<f32> {
        self.values().to_vec()
    }

    /// Where the values live: for backends.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The same, to write: for backends.
    ///
    /// # Panics
    /// Where another clone is alive: a bug in the operation that asks.
    pub fn buffer_mut(&mut self) -> &mut Buffer {
        Arc::get_mut(&mut self.buffer).expect("a tensor that is written has one owner")
    }

    /// The values in this process's memory.
    pub(crate) fn host(&self) -> &[f32] {
        self.buffer.host()
    }

    /// The same, to write.
    pub(crate) fn host_mut(&mut self) -> &mut [f32] {
        self.buffer_mut().host_mut()
    }

    /// Whether no other clone is alive, so that it can be written.
    pub fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.buffer).is_some()
    }

    /// The same values seen as `rows x cols`.
    ///
    /// # Panics
    /// Where that is another count of values.
    pub fn reshape(&self, rows: usize, cols: usize) -> Self {
        assert_eq!(rows * cols, self.len(), "reshape keeps the size");
        Self { buffer: self.buffer.clone(), rows, cols }
    }

    /// The tensor, seen as `rows x cols` from here on.
    ///
    /// # Panics
    /// As [`Tensor::reshape`].
    pub fn into_shape(self, rows: usize, cols: usize) -> Self {
        assert_eq!(rows * cols, self.len(), "a shape keeps the size");
        Self { rows, cols, ..self }
    }

    /// A view for products.
    pub fn mat(&self) -> Mat<'_> {
        let (rows, cols) = (self.rows, self.cols);
        Mat { tensor: self, rows, cols, stride: cols, transposed: false }
    }

    /// A view for products, to write.
    pub fn mat_mut(&mut self) -> MatMut<'_> {
        let (rows, cols) = (self.rows, self.cols);
        MatMut { tensor: self, rows, cols }
    }

    /// The same, seen as `rows x cols`.
    ///
    /// # Panics
    /// Where that is another count of values.
    pub fn mat_mut_as(&mut self, rows: usize, cols: usize) -> MatMut<'_> {
        assert_eq!(rows * cols, self.len(), "a view keeps the size");
        MatMut { tensor: self, rows, cols }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} x {})", self.rows, self.cols)
    }
}

/// A value that waits for the backward pass: as it is, or as int16 with one scale for each 128 values.
#[derive(Clone)]
pub enum Saved {
    /// As it is.
    F32(Tensor),
    /// Rounded: `values` holds two int16 in each f32's bits, and the scales ([`lowrank_kernels::quantize_i16`]).
    I16 {
        /// The rounded values.
        values: Tensor,
        /// Shape of the value.
        rows: usize,
        /// Likewise.
        cols: usize,
    },
}

impl Saved {
    /// Rows and columns of the value.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::F32(x) => (x.rows(), x.cols()),
            Self::I16 { rows, cols, .. } => (*rows, *cols),
        }
    }
}

/// A matrix operand of [`crate::Device::gemm`]: a tensor, a corner of it, or the transpose of either.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Values from one row to the next.
    pub(crate) stride: usize,
    pub(crate) transposed: bool,
}

impl<'a> Mat<'a> {
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

    /// Values from one row of the view to the next, and from one column to the next.
    pub fn strides(&self) -> (usize, usize) {
        if self.transposed { (1, self.stride) } else { (self.stride, 1) }
    }

    /// The tensor.
    pub fn tensor(&self) -> &'a Tensor {
        self.tensor
    }
}

/// The result of [`crate::Device::gemm`].
pub struct MatMut<'a> {
    pub(crate) tensor: &'a mut Tensor,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl MatMut<'_> {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The tensor.
    pub fn tensor(&mut self) -> &mut Tensor {
        self.tensor
    }
}
