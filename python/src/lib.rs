//! `lowrank._lowrank`: what the Python package is written over. Its types are in `_lowrank.pyi`.

mod around;
mod array;
mod attention;
mod command;
mod error;
mod interrupt;
mod layer;
mod model;
mod threads;
mod tools;

use pyo3::prelude::*;

/// The engine and its kernels.
#[pymodule]
fn _lowrank(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<array::Array>()?;
    module.add_class::<attention::Attention>()?;
    module.add_class::<layer::Layer>()?;
    module.add_class::<model::Engine>()?;
    module.add_class::<tools::AdapterFile>()?;
    module.add_function(wrap_pyfunction!(command::command, module)?)?;
    module.add_function(wrap_pyfunction!(tools::compose, module)?)?;
    module.add_function(wrap_pyfunction!(tools::extract, module)?)?;
    module.add_function(wrap_pyfunction!(array::from_dlpack, module)?)?;
    module.add_function(wrap_pyfunction!(layer::packed_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(around::activate, module)?)?;
    module.add_function(wrap_pyfunction!(around::activate_backward, module)?)?;
    module.add_function(wrap_pyfunction!(around::cross_entropy, module)?)?;
    module.add_function(wrap_pyfunction!(around::dropout, module)?)?;
    module.add_function(wrap_pyfunction!(layer::pack, module)?)?;
    module.add_function(wrap_pyfunction!(layer::unpack, module)?)?;
    module.add_function(wrap_pyfunction!(threads::set_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(threads::get_num_threads, module)?)?;
    Ok(())
}
