//! Where the values of a tensor live. Only backends look inside.

use std::any::Any;

use crate::arena::Block;

/// Memory of a device that is not the host: what it is, its backend knows.
pub trait DeviceBuffer: Any + Send + Sync {
    /// For the backend to get its own type back.
    fn as_any(&self) -> &dyn Any;

    /// The same, to write.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// The values of a tensor, or the place they would take.
pub enum Buffer {
    /// In this process's memory.
    Host(HostMemory),
    /// In a device's memory.
    Device(Box<dyn DeviceBuffer>),
    /// Nowhere: the Plan backend counts sizes only.
    Shape(Option<Block>),
}

/// Values in this process's memory.
pub enum HostMemory {
    /// A block of the arena, for what comes and goes in a step.
    Arena(Block),
    /// Memory of its own, for parameters and what belongs to them.
    Own(Vec<f32>),
}

impl Buffer {
    /// The values; none where they are not in this process's memory.
    pub fn host(&self) -> &[f32] {
        match self {
            Self::Host(HostMemory::Arena(block)) => block.data(),
            Self::Host(HostMemory::Own(values)) => values,
            Self::Device(_) | Self::Shape(_) => &[],
        }
    }

    /// The same, to write.
    pub fn host_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Host(HostMemory::Arena(block)) => block.data_mut(),
            Self::Host(HostMemory::Own(values)) => values,
            Self::Device(_) | Self::Shape(_) => &mut [],
        }
    }
}
