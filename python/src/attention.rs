//! Attention of equally long sequences, on memory that PyTorch owns. Addresses are as in `layer.rs`.

use lowrank::engine::kernels::{self, AttentionDropout, AttentionShape, Segment};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::layer::{read, write};
use crate::threads::on_torch_threads;

/// `batch` sequences of `length` rows; queries and outputs `[BT, H D]`, keys and values `[BT, K D]`. Probabilities are
/// dropped with probability `p`, by random numbers that `seed` alone decides.
#[pyclass(frozen, module = "lowrank")]
pub struct Attention {
    batch: usize,
    length: usize,
    shape: AttentionShape,
}

impl Attention {
    fn segments(&self) -> Vec<Segment> {
        let rows = |b: usize| b * self.length..(b + 1) * self.length;
        (0..self.batch).map(|b| Segment { q: rows(b), prefix: 0..0, own: rows(b) }).collect()
    }

    /// Numbers of queries, of keys, and of the logarithms kept for the backward pass.
    fn sizes(&self) -> (usize, usize, usize) {
        let (rows, s) = (self.batch * self.length, &self.shape);
        (rows * s.heads * s.head_dim, rows * s.kv_heads * s.head_dim, rows * s.heads)
    }
}

#[pymethods]
impl Attention {
    #[new]
    #[pyo3(signature = (batch, length, heads, kv_heads, head_dim, scale, causal, p=0.0, seed=0))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        batch: usize,
        length: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        scale: f32,
        causal: bool,
        p: f32,
        seed: u64,
    ) -> PyResult<Self> {
        if head_dim == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(PyValueError::new_err(format!(
                "{heads} heads over {kv_heads} key heads of {head_dim} numbers"
            )));
        }
        if !(0.0..=1.0).contains(&p) {
            return Err(PyValueError::new_err(format!("{p} is not a probability")));
        }
        let dropout = (p > 0.0).then_some(AttentionDropout { p, seed });
        let shape =
            AttentionShape { heads, kv_heads, head_dim, scale, causal, window: None, softcap: None, dropout };
        Ok(Self { batch, length, shape })
    }

    /// `out` and `lse: [BT, H]`, which the backward pass needs.
    #[allow(clippy::too_many_arguments)]
    fn forward(
        &self,
        py: Python<'_>,
        q: usize,
        k: usize,
        v: usize,
        out: usize,
        lse: usize,
        threads: usize,
    ) -> PyResult<()> {
        let (n, m, rows) = self.sizes();
        let work = || {
            // SAFETY: the caller's tensors with these shapes; `out` and `lse` are new.
            let (q, k, v, out, lse) =
                unsafe { (read(q, n), read(k, m), read(v, m), write(out, n), write(lse, rows)) };
            kernels::attention(out, lse, q, k, v, &self.shape, &self.segments());
        };
        py.detach(|| on_torch_threads(threads, work))
    }

    /// `dq`, `dk` and `dv` from `dout` and what the forward pass read and gave.
    #[allow(clippy::too_many_arguments)]
    fn backward(
        &self,
        py: Python<'_>,
        dout: usize,
        q: usize,
        k: usize,
        v: usize,
        out: usize,
        lse: usize,
        dq: usize,
        dk: usize,
        dv: usize,
        threads: usize,
    ) -> PyResult<()> {
        let (n, m, rows) = self.sizes();
        let work = || {
            // SAFETY: as in `forward`; the gradients are new.
            let (dout, q, k, v, out, lse, dq, dk, dv) = unsafe {
                let read_all =
                    (read(dout, n), read(q, n), read(k, m), read(v, m), read(out, n), read(lse, rows));
                let (dout, q, k, v, out, lse) = read_all;
                (dout, q, k, v, out, lse, write(dq, n), write(dk, m), write(dv, m))
            };
            kernels::attention_backward(dq, dk, dv, dout, q, k, v, out, lse, &self.shape, &self.segments());
        };
        py.detach(|| on_torch_threads(threads, work))
    }
}
