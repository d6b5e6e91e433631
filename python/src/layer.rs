//! A linear layer with LoRA over memory that PyTorch owns: the kernels behind `lowrank.torch`.
//!
//! Tensors come as addresses (`Tensor.data_ptr()`), so that nothing is copied; 0 stands for none. Their
//! shapes are held to the layer's by `lowrank/torch/_function.py`, the only caller.

use lowrank::engine::Format;
use lowrank::engine::kernels::{self, MatMut, MatRef, RowOrder, WeightRef};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::prelude::*;

use crate::threads::on_torch_threads;

/// What does not change from call to call: `W0: [O,K]` (`[K,O]` where transposed) in a format, and where
/// LoRA's output goes.
///
/// LoRA is `G` products `u_g B_g^T` (one, but for a merged layer that adapts some of its parts): `A: [GR,K]`,
/// `u = x A^T: [N,GR]`, `B: [GP,R]`, and part `g` is added to the columns `starts[g]..starts[g] + P`.
#[pyclass(frozen, module = "lowrank")]
pub struct Layer {
    format: Format,
    inputs: usize,
    outputs: usize,
    transposed: bool,
    r: usize,
    starts: Vec<usize>,
    part: usize,
}

/// Numbers at an address.
///
/// # Safety
/// `at` is 0 with `len` 0, or the address of `len` numbers that live and are not written meanwhile.
pub unsafe fn read<'a>(at: usize, len: usize) -> &'a [f32] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(at as *const f32, len) }
}

/// Numbers to write at an address.
///
/// # Safety
/// As [`read`], and nobody else uses them meanwhile.
pub unsafe fn write<'a>(at: usize, len: usize) -> &'a mut [f32] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(at as *mut f32, len) }
}

fn format(name: &str) -> PyResult<Format> {
    Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names: Vec<String> = Format::ALL.iter().map(|f| f.name().to_lowercase()).collect();
        PyValueError::new_err(format!("no weight format {name:?}: there is {}", names.join(", ")))
    })
}

/// Bytes of a matrix of `rows` rows of `cols` numbers in the format `name`.
#[pyfunction]
pub fn packed_bytes(name: &str, rows: usize, cols: usize) -> PyResult<usize> {
    let format = format(name)?;
    format.matrix_bytes(rows, cols).ok_or_else(|| {
        let block = format.block_len();
        PyValueError::new_err(format!("{cols} columns are not a whole number of {name} blocks of {block}"))
    })
}

/// Writes `rows` rows of `cols` numbers at `from` in the format `name` to `to`.
#[pyfunction]
pub fn pack(
    py: Python<'_>,
    name: &str,
    rows: usize,
    cols: usize,
    from: usize,
    to: usize,
    threads: usize,
) -> PyResult<()> {
    let (format, size) = (format(name)?, packed_bytes(name, rows, cols)?);
    let work = || {
        // SAFETY: the caller's addresses of rows x cols numbers and of as many bytes as they take.
        let (from, to) =
            unsafe { (read(from, rows * cols), std::slice::from_raw_parts_mut(to as *mut u8, size)) };
        let fill = |i: usize, row: &mut [f32]| row.copy_from_slice(&from[i * cols..(i + 1) * cols]);
        kernels::quantize_matrix(format, rows, cols, fill, to)
    };
    let result: Result<(), kernels::QuantizeError> = py.detach(|| on_torch_threads(threads, work))?;
    result.map_err(|e| PyValueError::new_err(e.to_string()))
}

/// The other way: float32 from a packed weight.
#[pyfunction]
pub fn unpack(
    py: Python<'_>,
    name: &str,
    rows: usize,
    cols: usize,
    from: usize,
    to: usize,
    threads: usize,
) -> PyResult<()> {
    let (format, size) = (format(name)?, packed_bytes(name, rows, cols)?);
    let work = || {
        // SAFETY: the caller's addresses of the packed bytes and of rows x cols numbers.
        let (bytes, to) =
            unsafe { (std::slice::from_raw_parts(from as *const u8, size), write(to, rows * cols)) };
        let weight = WeightRef { format, rows, cols, order: RowOrder::Plain, bytes };
        to.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, row)| weight.expand(i, 0..cols, row));
    };
    py.detach(|| on_torch_threads(threads, work))
}

impl Layer {
    /// # Safety
    /// `at` is the address of the weight's bytes.
    unsafe fn weight<'a>(&self, at: usize) -> WeightRef<'a> {
        let (rows, cols) =
            if self.transposed { (self.inputs, self.outputs) } else { (self.outputs, self.inputs) };
        let size = self.format.matrix_bytes(rows, cols).expect("checked when made");
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, size) };
        WeightRef { format: self.format, rows, cols, order: RowOrder::Plain, bytes }
    }

    /// `y = x W0^T` (with `beta` 0) or its backward, `dx = dy W0`: they change places where the weight is
    /// stored transposed.
    fn product(&self, back: bool, y: &mut [f32], x: &[f32], weight: &WeightRef, n: usize) {
        let product = if back == self.transposed { kernels::linear } else { kernels::linear_backward };
        product(y, x, weight, n, 0.0);
    }

    /// Columns of `u`.
    fn width(&self) -> usize {
        self.starts.len() * self.r
    }
}

#[pymethods]
impl Layer {
    #[new]
    #[pyo3(signature = (inputs, outputs, r, weight_format="f32", transposed=false, starts=None, part=None))]
    fn new(
        inputs: usize,
        outputs: usize,
        r: usize,
        weight_format: &str,
        transposed: bool,
        starts: Option<Vec<usize>>,
        part: Option<usize>,
    ) -> PyResult<Self> {
        let format = format(weight_format)?;
        let (rows, cols) = if transposed { (inputs, outputs) } else { (outputs, inputs) };
        packed_bytes(weight_format, rows, cols)?;
        let part = part.unwrap_or(outputs);
        let starts = starts.unwrap_or_else(|| vec![0]);
        if starts.iter().any(|start| start + part > outputs) {
            return Err(PyValueError::new_err("a part of the layer ends behind its outputs"));
        }
        Ok(Self { format, inputs, outputs, transposed, r, starts, part })
    }

    /// `y = x W0^T + bias + scaling u B^T` with `u = dropped A^T`, which is kept for the backward pass.
    ///
    /// `dropped` is `x` after dropout (`x` itself where there is none). Without `a`, only the base.
    #[allow(clippy::too_many_arguments)]
    fn forward(
        &self,
        py: Python<'_>,
        n: usize,
        x: usize,
        weight: usize,
        bias: usize,
        y: usize,
        dropped: usize,
        a: usize,
        b: usize,
        u: usize,
        scaling: f32,
        threads: usize,
    ) -> PyResult<()> {
        let (k, o, r, width) = (self.inputs, self.outputs, self.r, self.width());
        // SAFETY: addresses of tensors with these shapes, says the caller; `y` and `u` are new.
        let work = || unsafe {
            let y = write(y, n * o);
            self.product(false, y, read(x, n * k), &self.weight(weight), n);
            if bias != 0 {
                kernels::add_bias(y, read(bias, o), n, o);
            }
            if a == 0 {
                return;
            }
            let (u, x) = (write(u, n * width), MatRef::row_major(read(dropped, n * k), k));
            let a = MatRef::row_major(read(a, width * k), k);
            kernels::gemm(n, width, k, 1.0, x, a.t(), 0.0, MatMut::row_major(u, width));
            let b = read(b, self.starts.len() * self.part * r);
            for (g, start) in self.starts.iter().enumerate() {
                let u = MatRef::row_major(&u[g * r..], width);
                let b = MatRef::row_major(&b[g * self.part * r..], r);
                let y = MatMut::row_major(&mut y[*start..], o);
                kernels::gemm(n, self.part, r, scaling, u, b.t(), 1.0, y);
            }
        };
        py.detach(|| on_torch_threads(threads, work))
    }

    /// Gradients, each written where its address is given: `dx = dy W0 + du A` (the second product goes to
    /// `ddropped` instead where that is given), `da = du^T dropped`, `db = scaling dy^T u`, `dbias`; with
    /// `du = scaling dy B`.
    #[allow(clippy::too_many_arguments)]
    fn backward(
        &self,
        py: Python<'_>,
        n: usize,
        dy: usize,
        weight: usize,
        dropped: usize,
        a: usize,
        b: usize,
        u: usize,
        dx: usize,
        ddropped: usize,
        da: usize,
        db: usize,
        dbias: usize,
        scaling: f32,
        threads: usize,
    ) -> PyResult<()> {
        let (k, o, r, width) = (self.inputs, self.outputs, self.r, self.width());
        // SAFETY: as in `forward`; the gradients are new.
        let work = || unsafe {
            let dy = read(dy, n * o);
            if dx != 0 {
                self.product(true, write(dx, n * k), dy, &self.weight(weight), n);
            }
            if dbias != 0 {
                let dbias = write(dbias, o);
                dbias.fill(0.0);
                kernels::bias_backward(dbias, dy, n, o);
            }
            if a == 0 {
                return;
            }
            let b = read(b, self.starts.len() * self.part * r);
            let mut du = vec![0.0; n * width];
            for (g, start) in self.starts.iter().enumerate() {
                let dy = MatRef::row_major(&dy[*start..], o);
                let rows = g * self.part * r..(g + 1) * self.part * r;
                let b = MatRef::row_major(&b[rows.clone()], r);
                let du = MatMut::row_major(&mut du[g * r..], width);
                kernels::gemm(n, r, self.part, scaling, dy, b, 0.0, du);
                if db != 0 {
                    let u = MatRef::row_major(&read(u, n * width)[g * r..], width);
                    let db = &mut write(db, self.starts.len() * self.part * r)[rows];
                    kernels::gemm(self.part, r, n, scaling, dy.t(), u, 0.0, MatMut::row_major(db, r));
                }
            }
            let du = MatRef::row_major(&du, width);
            if da != 0 {
                let x = MatRef::row_major(read(dropped, n * k), k);
                kernels::gemm(width, k, n, 1.0, du.t(), x, 0.0, MatMut::row_major(write(da, width * k), k));
            }
            let (dx, beta) = if ddropped != 0 { (ddropped, 0.0) } else { (dx, 1.0) };
            if dx != 0 {
                let a = MatRef::row_major(read(a, width * k), k);
                kernels::gemm(n, k, width, 1.0, du, a, beta, MatMut::row_major(write(dx, n * k), k));
            }
        };
        py.detach(|| on_torch_threads(threads, work))
    }
}
