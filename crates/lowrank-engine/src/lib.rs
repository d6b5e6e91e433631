//! The engine of Lowrank: tensors, the tape, the coarse operations, frozen weights and memory.
//!
//! A model runs forward on a [`Tape`]. The tape records only what lies above the first trainable
//! site, keeps what the backward pass cannot compute again cheaply, and frees it while running
//! backward. All activations live in the arena of a [`Device`]; [`Device::plan`] runs the same code
//! with shapes only and says what it would need.

mod adapter;
mod arena;
mod cache;
mod device;
mod error;
mod kept;
mod mapped;
mod ops;
mod params;
mod scope;
mod stream;
mod tape;
mod tensor;
mod weight;

pub use adapter::{Accumulator, ActiveAdapters, Adapter, NormNumbers, Prefix, Site, SiteId, SiteKind};
pub use cache::KvCache;
pub use device::Device;
pub use error::Error;
pub use lowrank_kernels as kernels;
pub use lowrank_kernels::{Activation, AttentionShape, Format, RowOrder, Segment, WeightRef};
pub use mapped::Mapped;
pub use ops::{Attention, Disentangled, Embedding, Label, LayerNorm, Linear, LmHead, RmsNorm, Rope, Scores};
pub use params::{AdamW, Grads, Param, ParamId, Params};
pub use scope::{DropoutKey, Scope};
pub use stream::{BaseStream, Span, give_back};
pub use tape::{Record, Tape, Var, VarId};
pub use tensor::{Mat, MatMut, Tensor};
pub use weight::{FrozenWeight, Storage};
