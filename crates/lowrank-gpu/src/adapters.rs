//! The GPUs of this machine, and the choice of one.

use lowrank_engine::Error;
use wgpu::{Backends, DeviceType};

/// A GPU as the system's drivers show it. The same card may appear once for each of its drivers.
pub struct Adapter {
    /// Its place in the list, which `gpu:N` names.
    pub number: usize,
    /// Name of the card or chip.
    pub name: String,
    /// What it is reached through: Vulkan, Metal or Dx12.
    pub api: String,
    /// The driver and its version.
    pub driver: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of memory of its own; `None` where the driver does not tell.
    pub memory: Option<u64>,
    /// The most bytes that one operation can read of one buffer.
    pub largest_binding: u64,
    pub(crate) adapter: wgpu::Adapter,
}

/// Kinds of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// A chip that shares the processor's memory.
    Integrated,
    /// A GPU that a virtual machine is lent.
    Virtual,
    /// A driver that computes on the processor.
    Software,
    /// The driver does not tell.
    Other,
}

impl Kind {
    /// For lists and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
            Self::Other => "unknown kind",
        }
    }
}

/// The GPUs that Vulkan, Metal and DirectX 12 drivers offer; none where there is no driver.
pub fn adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = Backends::VULKAN | Backends::METAL | Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(Backends::all()));
    let describe = |(number, adapter): (usize, wgpu::Adapter)| {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let kind = match info.device_type {
            DeviceType::DiscreteGpu => Kind::Discrete,
            DeviceType::IntegratedGpu => Kind::Integrated,
            DeviceType::VirtualGpu => Kind::Virtual,
            DeviceType::Cpu => Kind::Software,
            DeviceType::Other => Kind::Other,
        };
        Adapter {
            number,
            name: info.name,
            api: format!("{:?}", info.backend),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            kind,
            memory: memory(&adapter),
            largest_binding: limits.max_storage_buffer_binding_size,
            adapter,
        }
    };
    found.into_iter().enumerate().map(describe).collect()
}

/// Bytes of the largest heap in the device's own memory.
#[cfg(not(target_vendor = "apple"))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handle lives as long as `adapter`, and it is only asked for its properties.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = vulkan.shared_instance().raw_instance();
    // SAFETY: a physical device of this instance.
    let properties = unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
    let heaps = properties.memory_heaps_as_slice().iter();
    // Bit 0 of the flags: memory of the device.
    heaps.filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size).max()
}

#[cfg(target_vendor = "apple")]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// GPU number `number` of [`adapters`], or without a number the first that is no software.
///
/// # Errors
/// Where there is none.
pub fn named(number: Option<usize>) -> Result<Adapter, Error> {
    let all = adapters();
    let count = all.len();
    let best = [Kind::Discrete, Kind::Integrated, Kind::Virtual, Kind::Other];
    let rank = |adapter: &Adapter| best.iter().position(|kind| *kind == adapter.kind);
    let found = match number {
        Some(number) => all.into_iter().nth(number),
        None => all.into_iter().filter(|adapter| rank(adapter).is_some()).min_by_key(rank),
    };
    found.ok_or_else(|| {
        Error::Device(match (number, count) {
            (_, 0) => "no GPU with a Vulkan, Metal or DirectX 12 driver was found: use `device` cpu".into(),
            (Some(number), _) => {
                format!(
                    "there is no gpu:{number}: `lowrank devices` lists those found, from gpu:0 to gpu:{}",
                    count - 1
                )
            }
            (None, _) => "only software devices were found: use `device` cpu, or name one as gpu:N".into(),
        })
    })
}

/// The first discrete or Apple GPU, where `bytes` of weights fit.
///
/// # Errors
/// Says why it is none.
pub fn fitting(bytes: u64) -> Result<Adapter, String> {
    let is_gpu = |a: &Adapter| a.kind == Kind::Discrete || (a.kind == Kind::Integrated && a.api == "Metal");
    let adapter = adapters().into_iter().find(is_gpu).ok_or("no discrete or Apple GPU was found")?;
    match adapter.memory {
        // A fifth is left for what a step needs beside the weights.
        Some(memory) if bytes > memory / 5 * 4 => Err(format!(
            "{} has {} MiB, and the base alone takes {} MiB",
            adapter.name,
            memory >> 20,
            bytes >> 20
        )),
        _ => Ok(adapter),
    }
}
