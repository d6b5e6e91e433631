//! The engine of Lowrank: tensors, the tape, the coarse operations, frozen weights and memory.
//!
//! A model runs forward on a [`Tape`]. The tape records only what lies above the first trainable
//! site, saves what the backward pass cannot compute again cheaply, and frees it while running
//! backward. Operations are those of a [`Backend`], reached through a [`Device`]: [`Device::cpu`] computes them,
//! [`Device::plan`] runs the same code with shapes only and says what it would need.

mod accumulator;
mod adapter;
mod arena;
mod backend;
mod buffer;
mod cache;
#[cfg(unix)]
mod cut;
mod device;
mod error;
mod layer;
mod mapped;
mod ops;
mod params;
mod row_adapters;
mod saved;
mod scope;
mod site;
mod stream;
mod tape;
mod tensor;
mod weight;

pub use accumulator::Accumulator;
pub use adapter::{ActiveAdapters, Adapter, NormParams, Prefix};
pub use arena::Block;
pub use backend::{
    AttentionGradients, AttentionInputs, Backend, Cpu, DistanceGradients, Distances, Lifetime,
    LowRankFactors, LowRankRows, Mask, NormWeights, Plan, Targets, WeightView, flops,
};
pub use buffer::{Buffer, DeviceBuffer, HostMemory, HostValues};
pub use cache::KvCache;
#[cfg(unix)]
pub use cut::name_files_that_are_cut;
pub use device::{Device, SavedDtype};
pub use error::Error;
pub use layer::Linear;
pub use lowrank_kernels as kernels;
pub use lowrank_kernels::{Activation, AttentionShape, Format, RowOrder, Segment, WeightRef};
pub use mapped::Mapped;
pub use ops::{
    Attention, Disentangled, Embedding, Label, LayerNorm, LmHead, RmsNorm, Rope, Scores, TokenLoss,
};
pub use params::{AdamW, AdamWForm, Grads, Param, ParamId, Params};
pub use row_adapters::{AdapterIndex, RowAdapters};
pub use scope::{DropoutKey, Scope};
pub use site::{Site, SiteId, SiteKind};
pub use stream::{BaseStream, Span, give_back};
pub use tape::{Record, Tape, Var, VarId};
pub use tensor::{Mat, MatMut, Saved, Tensor};
pub use weight::{FrozenWeight, Storage};
