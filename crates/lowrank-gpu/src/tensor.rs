//! Tensors in a GPU's memory.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use lowrank_engine::{Buffer, DeviceBuffer, HostMemory, Tensor};

use crate::memory::{Block, Slice};
use crate::runtime::Runtime;

/// The values of a tensor in a GPU's memory.
pub(crate) struct GpuValues {
    runtime: Arc<Runtime>,
    block: Block,
    len: usize,
    host: OnceLock<Vec<f32>>,
}

impl GpuValues {
    pub fn new(runtime: &Arc<Runtime>, len: usize) -> Self {
        Self { runtime: runtime.clone(), block: runtime.alloc(len), len, host: OnceLock::new() }
    }

    fn uploaded(runtime: &Arc<Runtime>, values: &[f32]) -> Self {
        let own = Self::new(runtime, values.len());
        runtime.upload(&own.block.slice(), bytemuck::cast_slice(values));
        own
    }
}

impl DeviceBuffer for GpuValues {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn values(&self) -> &[f32] {
        self.host.get_or_init(|| self.runtime.download(&self.block.slice(), self.len))
    }
}

fn of<'a>(runtime: &Arc<Runtime>, buffer: &'a dyn DeviceBuffer) -> Option<&'a GpuValues> {
    buffer.as_any().downcast_ref::<GpuValues>().filter(|values| Arc::ptr_eq(&values.runtime, runtime))
}

/// Where an operation reads `x`. What is in the host's memory is copied once and kept until it is written there.
pub(crate) fn read(runtime: &Arc<Runtime>, x: &Tensor) -> Slice {
    let own = match x.buffer() {
        Buffer::Device(buffer) => of(runtime, &**buffer),
        Buffer::Host(HostMemory::Own(own)) => {
            let copy = own.copy().get_or_init(|| Box::new(GpuValues::uploaded(runtime, x.values())));
            of(runtime, &**copy)
        }
        Buffer::Host(HostMemory::Arena(_)) | Buffer::Shape(_) => None,
    };
    match own {
        Some(own) => own.block.slice(),
        // Of another device: copied for this operation.
        None => GpuValues::uploaded(runtime, x.values()).block.into_slice(),
    }
}

/// Where an operation writes `x`, which is in this GPU's memory from here on.
pub(crate) fn write(runtime: &Arc<Runtime>, x: &mut Tensor) -> Slice {
    if !matches!(x.buffer(), Buffer::Device(buffer) if of(runtime, &**buffer).is_some()) {
        let own = GpuValues::uploaded(runtime, x.values());
        *x.buffer_mut() = Buffer::Device(Box::new(own));
    }
    let Buffer::Device(buffer) = x.buffer_mut() else { unreachable!("it was just put there") };
    let own = buffer.as_any_mut().downcast_mut::<GpuValues>().expect("it was just put there");
    own.host.take();
    own.block.slice()
}
