//! Lowrank's operations on GPUs.
//!
//! [`adapters`] lists what the drivers of this machine offer through Vulkan, Metal and DirectX 12, [`named`] and [`fitting`] pick one, and
//! [`Gpu`] is the [`lowrank_engine::Backend`] over it. Drivers are loaded at run time: where there is none, the list is
//! empty.

mod adapters;
mod backend;
mod gpu;
mod memory;
mod ops;
mod runtime;
mod shaders;
mod tensor;
mod weights;

pub use adapters::{Adapter, Kind, adapters, fitting, named};
pub use gpu::Gpu;
