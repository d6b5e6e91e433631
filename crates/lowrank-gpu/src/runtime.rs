//! A device: what is encoded for it, what has been compiled, and what goes in and out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowrank_engine::Error;

use crate::adapters::Adapter;
use crate::memory::{Block, Memory, Slice};
use crate::shaders::File;

/// Bytes between the parameters of two dispatches: uniform buffers are bound at multiples of this.
const PARAMETER_BYTES: usize = 256;
/// Dispatches that are submitted together.
const MOST_PENDING: usize = 512;
/// Bytes of indices that dispatches submitted together read.
const DATA_BYTES: usize = 4 << 20;
/// Storage buffers of one dispatch.
const MOST_BUFFERS: usize = 8;
/// The most workgroups in one direction that every device takes.
const MOST_GROUPS: u32 = 65535;
/// Bytes of an upload that are handed over at once.
const UPLOAD_BYTES: usize = 16 << 20;

/// A device and its queue.
pub(crate) struct Runtime {
    pub name: String,
    pub memory: Arc<Memory>,
    device: wgpu::Device,
    queue: wgpu::Queue,
    layouts: Vec<(wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
    modules: Mutex<HashMap<File, wgpu::ShaderModule>>,
    pipelines: Mutex<HashMap<(File, &'static str), wgpu::ComputePipeline>>,
    pending: Mutex<Pending>,
    failure: Arc<Mutex<Option<String>>>,
}

struct Pending {
    dispatches: Vec<Dispatch>,
    parameters: Vec<u8>,
    parameter_buffer: wgpu::Buffer,
    data: Vec<u8>,
    data_buffer: wgpu::Buffer,
    staging: Option<wgpu::Buffer>,
}

struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    offset: u32,
    groups: [u32; 2],
}

/// A word of a shader's parameters.
pub(crate) trait Word {
    fn word(self) -> u32;
}

impl Word for u32 {
    fn word(self) -> u32 {
        self
    }
}

impl Word for usize {
    fn word(self) -> u32 {
        u32::try_from(self).expect("sizes of tensors fit 32 bits")
    }
}

impl Word for f32 {
    fn word(self) -> u32 {
        self.to_bits()
    }
}

impl Word for bool {
    fn word(self) -> u32 {
        self.into()
    }
}

/// The parameters of a shader, in the order of its `Params`.
macro_rules! params {
    ($($value:expr),* $(,)?) => { &[$($crate::runtime::Word::word($value)),*] };
}
pub(crate) use params;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    pub fn new(adapter: &Adapter) -> Result<Self, Error> {
        let limits = adapter.adapter.limits();
        let request = adapter.adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("lowrank"),
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        });
        let (device, queue) = pollster::block_on(request).map_err(|error| {
            Error::Device(format!("{}: the device cannot be opened: {error}", adapter.name))
        })?;
        let failure = Arc::<Mutex<Option<String>>>::default();
        let (lost, wrong) = (failure.clone(), failure.clone());
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lock(&lost).get_or_insert(format!(
                    "the device was lost ({}): what was saved before is whole; continue with `resume`, or use device `cpu`",
                    message.trim()
                ));
            }
        });
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&wrong).get_or_insert(match error {
                wgpu::Error::OutOfMemory { .. } => {
                    "out of memory: take smaller batches, or use device `cpu`".into()
                }
                error => format!("the device refused an operation: {error}"),
            });
        }));
        let layouts = (0..=MOST_BUFFERS).map(|count| layout(&device, count)).collect();
        let buffer = |size: usize, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: size as u64,
                usage: usage | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let pending = Pending {
            dispatches: Vec::new(),
            parameters: Vec::new(),
            parameter_buffer: buffer(MOST_PENDING * PARAMETER_BYTES, wgpu::BufferUsages::UNIFORM),
            data: Vec::new(),
            data_buffer: buffer(DATA_BYTES, wgpu::BufferUsages::STORAGE),
            staging: None,
        };
        Ok(Self {
            name: adapter.name.clone(),
            memory: Arc::new(Memory::new(device.clone(), adapter.name.clone())),
            device,
            queue,
            layouts,
            modules: Mutex::default(),
            pipelines: Mutex::default(),
            pending: Mutex::new(pending),
            failure,
        })
    }

    /// Ends the step where the device has failed.
    fn check(&self) {
        if let Some(failure) = lock(&self.failure).clone() {
            Error::Device(format!("{}: {failure}", self.name)).end_step();
        }
    }

    fn pipeline(&self, file: File, entry: &'static str, buffers: usize) -> wgpu::ComputePipeline {
        let mut pipelines = lock(&self.pipelines);
        if let Some(pipeline) = pipelines.get(&(file, entry)) {
            return pipeline.clone();
        }
        let module = lock(&self.modules)
            .entry(file)
            .or_insert_with(|| {
                let source = wgpu::ShaderSource::Wgsl(file.source().into());
                let descriptor = wgpu::ShaderModuleDescriptor { label: Some(entry), source };
                let checks = wgpu::ShaderRuntimeChecks::unchecked();
                // SAFETY: the shaders are those of this crate; every loop ends, and the operations check sizes and indices
                // before they encode a dispatch.
                unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
            })
            .clone();
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&self.layouts[buffers].1),
            module: &module,
            entry_point: Some(&format!("{entry}_main")),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        pipelines.insert((file, entry), pipeline.clone());
        pipeline
    }

    /// Encodes `entry` of `file` over `groups` workgroups. `data` is bound where `None` stands among the buffers.
    pub fn dispatch(
        &self,
        (file, entry): (File, &'static str),
        groups: [usize; 2],
        parameters: &[u32],
        buffers: &[Option<&Slice>],
        data: &[u32],
    ) {
        if groups.contains(&0) {
            return;
        }
        let pipeline = self.pipeline(file, entry, buffers.len());
        let mut pending = lock(&self.pending);
        let align = |len: usize| len.next_multiple_of(PARAMETER_BYTES);
        let full = pending.dispatches.len() == MOST_PENDING
            || align(pending.data.len()) + 4 * data.len() > pending.data_buffer.size() as usize;
        if full {
            self.submit(&mut pending);
        }
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() > pending.data_buffer.size() as usize {
            pending.data_buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: align(bytes.len()).next_power_of_two() as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
        }
        let data_at = align(pending.data.len());
        if !data.is_empty() {
            pending.data.resize(data_at, 0);
            pending.data.extend_from_slice(bytes);
        }
        let offset = align(pending.parameters.len());
        pending.parameters.resize(offset, 0);
        pending.parameters.extend_from_slice(bytemuck::cast_slice(parameters));

        let bind = |buffer, offset, size: u64| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            })
        };
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: bind(&pending.parameter_buffer, 0, PARAMETER_BYTES as u64),
        }];
        for (binding, slice) in (1..).zip(buffers) {
            let resource = match slice {
                Some(slice) => bind(&slice.buffer, slice.offset, slice.len),
                None => bind(&pending.data_buffer, data_at as u64, bytes.len().max(4) as u64),
            };
            entries.push(wgpu::BindGroupEntry { binding, resource });
        }
        let layout = &self.layouts[buffers.len()].0;
        let bindings = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        });
        let groups = groups.map(|count| u32::try_from(count).unwrap_or(u32::MAX).min(MOST_GROUPS));
        pending.dispatches.push(Dispatch { pipeline, bindings, offset: offset as u32, groups });
    }

    /// Sends what is encoded to the device.
    fn submit(&self, pending: &mut Pending) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        if !pending.dispatches.is_empty() {
            self.queue.write_buffer(&pending.parameter_buffer, 0, &pending.parameters);
            if !pending.data.is_empty() {
                self.queue.write_buffer(&pending.data_buffer, 0, &pending.data);
            }
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for dispatch in pending.dispatches.drain(..) {
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.bindings, &[dispatch.offset]);
                pass.dispatch_workgroups(dispatch.groups[0], dispatch.groups[1], 1);
            }
            drop(pass);
            pending.parameters.clear();
            pending.data.clear();
        }
        self.queue.submit([encoder.finish()]);
        self.check();
    }

    /// Writes `bytes`, a whole number of words, to a range that operations before may still read.
    pub fn upload(&self, to: &Slice, bytes: &[u8]) {
        let mut pending = lock(&self.pending);
        self.submit(&mut pending);
        self.write(&to.buffer, to.offset, bytes);
    }

    /// Writes to a buffer that no operation before reads.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        let many = bytes.len() > UPLOAD_BYTES;
        for (number, part) in bytes.chunks(UPLOAD_BYTES).enumerate() {
            self.queue.write_buffer(buffer, offset + (number * UPLOAD_BYTES) as u64, part);
            if many {
                // What is handed over lies in memory twice until it has arrived.
                self.queue.submit([]);
                self.wait();
            }
        }
        self.check();
    }

    fn wait(&self) {
        if let Err(error) = self.device.poll(wgpu::PollType::wait_indefinitely()) {
            self.check();
            Error::Device(format!("{}: {error}", self.name)).end_step();
        }
        self.check();
    }

    /// Reads `count` words from a range, after all that was encoded before.
    pub fn download(&self, from: &Slice, count: usize) -> Vec<f32> {
        if count == 0 {
            return Vec::new();
        }
        let size = 4 * count as u64;
        let mut pending = lock(&self.pending);
        self.submit(&mut pending);
        if pending.staging.as_ref().is_none_or(|staging| staging.size() < size) {
            pending.staging = Some(self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: size.next_power_of_two(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }));
        }
        let staging = pending.staging.as_ref().expect("it was just made");
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&from.buffer, from.offset, staging, 0, Some(size));
        self.queue.submit([encoder.finish()]);
        let slice = staging.slice(..size);
        slice.map_async(wgpu::MapMode::Read, |_| ());
        self.wait();
        let values = match slice.get_mapped_range() {
            Ok(view) => bytemuck::pod_collect_to_vec(&view),
            Err(error) => {
                self.check();
                Error::Device(format!("{}: its memory cannot be read: {error}", self.name)).end_step()
            }
        };
        staging.unmap();
        values
    }

    /// A range with undefined values.
    pub fn alloc(&self, values: usize) -> Block {
        self.memory.take(4 * values as u64)
    }

    /// Frees what is no longer in use.
    pub fn trim(&self) {
        self.submit(&mut lock(&self.pending));
        self.memory.trim();
        lock(&self.pending).staging = None;
    }
}

fn layout(device: &wgpu::Device, buffers: usize) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
    let entry = |binding, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
    let storage = wgpu::BufferBindingType::Storage { read_only: false };
    entries.extend((1..=buffers as u32).map(|binding| entry(binding, storage, false)));
    let bindings =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
    let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&bindings)],
        immediate_size: 0,
    });
    (bindings, pipeline)
}
