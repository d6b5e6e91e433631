//! What lies between the layers of a frozen model: activation functions and the loss, on memory that PyTorch
//! owns. Addresses are as in `layer.rs`.

use lowrank::engine::Activation;
use lowrank::engine::kernels;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::layer::{read, write};
use crate::threads::on_torch_threads;

fn activation(name: &str) -> PyResult<Activation> {
    Ok(match name {
        "silu" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        _ => return Err(PyValueError::new_err(format!("no activation {name:?}"))),
    })
}

/// `y = act(x)` for `n` numbers.
#[pyfunction]
pub fn activate(py: Python<'_>, name: &str, n: usize, x: usize, y: usize, threads: usize) -> PyResult<()> {
    let act = activation(name)?;
    // SAFETY: the caller's tensors of `n` numbers; `y` is new.
    let work = || unsafe { kernels::activate(write(y, n), read(x, n), act) };
    py.detach(|| on_torch_threads(threads, work))
}

/// `dx = dy act'(x)` for `n` numbers: what a backward pass needs is `x` alone.
#[pyfunction]
pub fn activate_backward(
    py: Python<'_>,
    name: &str,
    n: usize,
    x: usize,
    dy: usize,
    dx: usize,
    threads: usize,
) -> PyResult<()> {
    let act = activation(name)?;
    // SAFETY: the caller's tensors of `n` numbers; `dx` is new.
    let work = || unsafe {
        let dx = write(dx, n);
        kernels::copy(dx, read(dy, n));
        kernels::activate_backward(dx, read(x, n), act);
    };
    py.detach(|| on_torch_threads(threads, work))
}

/// `y = x mask / (1 - p)` for `n` numbers, and with `dx` for `x` and `dy` for `y` its backward: the mask depends on
/// `seed` and the place of a number alone, so nothing of it is kept.
#[pyfunction]
pub fn dropout(
    py: Python<'_>,
    n: usize,
    from: usize,
    to: usize,
    p: f32,
    seed: u64,
    threads: usize,
) -> PyResult<()> {
    if !(0.0..=1.0).contains(&p) {
        return Err(PyValueError::new_err(format!("{p} is not a probability")));
    }
    // SAFETY: the caller's tensors of `n` numbers; `to` is new.
    let work = || unsafe { kernels::dropout(write(to, n), read(from, n), p, seed, 0) };
    py.detach(|| on_torch_threads(threads, work))
}

/// Losses `[N]` of logits `[N,V]` against `targets: [N]` (int64; `ignored` ones count nothing), and where
/// `gradient` is given, that of `scale * sum(losses)` there, `[N,V]`.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn cross_entropy(
    py: Python<'_>,
    n: usize,
    vocab: usize,
    logits: usize,
    targets: usize,
    ignored: i64,
    scale: f32,
    losses: usize,
    gradient: usize,
    threads: usize,
) -> PyResult<()> {
    // SAFETY: the caller's tensors with these shapes; `losses` and `gradient` are new.
    let (targets, losses) =
        unsafe { (std::slice::from_raw_parts(targets as *const i64, n), write(losses, n)) };
    if let Some(wrong) = targets.iter().find(|t| **t != ignored && !(0..vocab as i64).contains(*t)) {
        return Err(PyValueError::new_err(format!(
            "target {wrong} is not below the {vocab} logits of a row"
        )));
    }
    let work = || {
        let mut row = 0;
        for run in targets.chunk_by(|a, b| (*a == ignored) == (*b == ignored)) {
            let rows = row..row + run.len();
            row = rows.end;
            let (at, len) = (rows.start * vocab * size_of::<f32>(), run.len() * vocab);
            let losses = &mut losses[rows];
            if run[0] == ignored {
                losses.fill(0.0);
                if gradient != 0 {
                    // SAFETY: rows of the gradient.
                    unsafe { write(gradient + at, len) }.fill(0.0);
                }
                continue;
            }
            let targets: Vec<u32> = run.iter().map(|t| *t as u32).collect();
            // SAFETY: rows of the logits and of the gradient. Without one the kernel only reads.
            unsafe {
                let from = read(logits + at, len);
                if gradient != 0 {
                    let numbers = write(gradient + at, len);
                    kernels::copy(numbers, from);
                    let scales = vec![scale; run.len()];
                    kernels::cross_entropy(numbers, &targets, vocab, Some(&scales), losses, None);
                } else {
                    let numbers = write(logits + at, len);
                    kernels::cross_entropy(numbers, &targets, vocab, None, losses, None);
                }
            }
        }
    };
    py.detach(|| on_torch_threads(threads, work))
}
