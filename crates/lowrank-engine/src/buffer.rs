//! Where the values of a tensor live. Only backends look inside.

use std::any::Any;
use std::sync::OnceLock;

use crate::arena::Block;

/// Memory of a device that is not the host: what it is, its backend knows.
pub trait DeviceBuffer: Any + Send + Sync {
    /// For the backend to get its own type back.
    fn as_any(&self) -> &dyn Any;

    /// The same, to write.
    fn as_any_mut(&mut self) -> &mut dyn Any;

    /// The values, read back into this process's memory and kept there until they are written again.
    fn values(&self) -> &[f32];
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
    Own(HostValues),
}

/// Values with memory of their own, and the copy of them that a device made to read.
#[derive(Default)]
pub struct HostValues {
    values: Vec<f32>,
    copy: OnceLock<Box<dyn DeviceBuffer>>,
}

impl HostValues {
    /// The copy in a device's memory, made by the first operation that reads it there.
    pub fn copy(&self) -> &OnceLock<Box<dyn DeviceBuffer>> {
        &self.copy
    }
}

impl From<Vec<f32>> for HostValues {
    fn from(values: Vec<f32>) -> Self {
        Self { values, copy: OnceLock::new() }
    }
}

impl Buffer {
    /// The values; none where there are none. Those of a device are read back first.
    pub fn host(&self) -> &[f32] {
        match self {
            Self::Host(HostMemory::Arena(block)) => block.data(),
            Self::Host(HostMemory::Own(own)) => &own.values,
            Self::Device(device) => device.values(),
            Self::Shape(_) => &[],
        }
    }

    /// The values in this process's memory, to write.
    ///
    /// # Panics
    /// Where they are in a device's memory: only its backend writes there.
    pub fn host_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Host(HostMemory::Arena(block)) => block.data_mut(),
            Self::Host(HostMemory::Own(own)) => {
                own.copy.take();
                &mut own.values
            }
            Self::Device(_) => panic!("the values are in a device's memory"),
            Self::Shape(_) => &mut [],
        }
    }
}
