//! Memory of a GPU: tensors are ranges of a few large buffers.
//!
//! Everything runs in one queue, so that a range can be given to the next tensor as soon as its handle is dropped: what was
//! encoded before reads it before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowrank_engine::Error;

/// Ranges begin at multiples of this many bytes, which every device takes as an offset of a binding.
const ALIGN: u64 = 256;

/// The least bytes of a buffer.
const LEAST_BUFFER: u64 = 16 << 20;

/// The most bytes of a buffer, where no tensor is larger.
const MOST_BUFFER: u64 = 256 << 20;

/// The buffers of a device.
pub(crate) struct Memory {
    device: wgpu::Device,
    name: String,
    largest: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: Vec<Option<Chunk>>,
    in_use: u64,
    peak: u64,
}

struct Chunk {
    buffer: wgpu::Buffer,
    size: u64,
    /// Start and length of what is free; ranges never touch.
    free: BTreeMap<u64, u64>,
}

impl Chunk {
    fn take(&mut self, len: u64) -> Option<u64> {
        let (&at, &have) = self.free.iter().find(|(_, have)| **have >= len)?;
        self.free.remove(&at);
        if have > len {
            self.free.insert(at + len, have - len);
        }
        Some(at)
    }

    fn give(&mut self, mut at: u64, mut len: u64) {
        if let Some((&before, &have)) = self.free.range(..at).next_back()
            && before + have == at
        {
            self.free.remove(&before);
            (at, len) = (before, have + len);
        }
        if let Some(have) = self.free.remove(&(at + len)) {
            len += have;
        }
        self.free.insert(at, len);
    }

    fn is_free(&self) -> bool {
        self.free.get(&0) == Some(&self.size)
    }
}

/// A range of a buffer, given back when dropped.
pub(crate) struct Block {
    memory: Arc<Memory>,
    chunk: usize,
    buffer: wgpu::Buffer,
    offset: u64,
    len: u64,
}

/// Where an operation finds a tensor.
#[derive(Clone)]
pub(crate) struct Slice {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
    pub len: u64,
    /// The range itself, where nothing else holds it.
    pub _own: Option<Arc<Block>>,
}

impl Block {
    pub fn slice(&self) -> Slice {
        Slice { buffer: self.buffer.clone(), offset: self.offset, len: self.len, _own: None }
    }

    /// The same, which holds the range.
    pub fn into_slice(self) -> Slice {
        let slice = self.slice();
        Slice { _own: Some(Arc::new(self)), ..slice }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        state.in_use -= self.len;
        if let Some(chunk) = state.chunks[self.chunk].as_mut() {
            chunk.give(self.offset, self.len);
        }
    }
}

impl Memory {
    pub fn new(device: wgpu::Device, name: String) -> Self {
        let limits = device.limits();
        let largest = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / ALIGN * ALIGN;
        Self { device, name, largest, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most bytes of one range.
    pub fn largest(&self) -> u64 {
        self.largest
    }

    /// Room for `bytes`. Where there is none, the step ends with an error.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Block {
        let len = bytes.max(4).next_multiple_of(ALIGN);
        if len > self.largest {
            let (needs, most) = (len >> 20, self.largest >> 20);
            Error::Memory(format!(
                "{}: one tensor of the step takes {needs} MiB, and the device reads at most {most} MiB of one: take smaller \
                 batches",
                self.name
            ))
            .end_step();
        }
        let mut state = self.state();
        let found = state
            .chunks
            .iter_mut()
            .enumerate()
            .find_map(|(number, chunk)| Some((number, chunk.as_mut()?.take(len)?)));
        let (chunk, offset) = match found {
            Some(found) => found,
            None => {
                let held: u64 = state.chunks.iter().flatten().map(|chunk| chunk.size).sum();
                // Fewer and larger buffers the more is in use; where the device has no room for that, the least.
                let size = (held / 2).clamp(LEAST_BUFFER, MOST_BUFFER.min(self.largest)).max(len);
                let size = size.next_multiple_of(ALIGN);
                let buffer = self.create(size).or_else(|| self.create(len).filter(|_| len < size));
                let Some(buffer) = buffer else {
                    let (needs, used) = (len >> 20, state.in_use >> 20);
                    drop(state);
                    Error::Memory(format!(
                        "{}: out of memory: {used} MiB of tensors are in use and {needs} MiB more are needed: take smaller \
                         batches (`batch_size`, `max_seq_len`), `checkpoint_activations`, a smaller or quantized base, or \
                         device `cpu`",
                        self.name
                    ))
                    .end_step();
                };
                let size = buffer.size();
                let mut chunk = Chunk { buffer, size, free: BTreeMap::from([(0, size)]) };
                let offset = chunk.take(len).expect("it was made for this");
                let number = state.chunks.iter().position(Option::is_none).unwrap_or(state.chunks.len());
                if number == state.chunks.len() {
                    state.chunks.push(None);
                }
                state.chunks[number] = Some(chunk);
                (number, offset)
            }
        };
        state.in_use += len;
        state.peak = state.peak.max(state.in_use);
        let buffer = state.chunks[chunk].as_ref().expect("it is there").buffer.clone();
        Block { memory: self.clone(), chunk, buffer, offset, len }
    }

    /// A buffer, where the device has room for it.
    pub fn create(&self, size: u64) -> Option<wgpu::Buffer> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        pollster::block_on(scope.pop()).is_none().then_some(buffer)
    }

    pub fn peak(&self) -> u64 {
        self.state().peak
    }

    pub fn reset_peak(&self) {
        let mut state = self.state();
        state.peak = state.in_use;
    }

    /// Gives buffers back of which nothing is in use.
    pub fn trim(&self) {
        for chunk in &mut self.state().chunks {
            if chunk.as_ref().is_some_and(Chunk::is_free) {
                *chunk = None;
            }
        }
    }
}
