//! `lowrank devices`.

use std::process::ExitCode;

use lowrank::Result;
use serde_json::{Value, json};

use super::Stdout;

/// List the devices that `--device` can name.
///
/// GPUs are found through the Vulkan, Metal and DirectX 12 drivers of the system. A card with two drivers is listed twice.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object a device
    #[arg(long)]
    json: bool,
}

/// Lists.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = json!({ "device": "cpu", "threads": threads });
    if args.json {
        for device in std::iter::once(cpu).chain(gpus()) {
            writeln!(out, "{device}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "cpu    {threads} threads")?;
    let all = gpus();
    for gpu in &all {
        let text = |key: &str| gpu[key].as_str().unwrap_or_default().to_owned();
        let mib = |key: &str| gpu[key].as_u64().map(|bytes| format!("{} MiB", bytes >> 20));
        let memory =
            mib("memory_bytes").map_or("unknown memory".to_owned(), |mib| format!("{mib} of memory"));
        writeln!(out, "{:<6} {}", text("device"), text("name"))?;
        writeln!(out, "       {}, {}, driver {}", text("kind"), text("api"), text("driver"))?;
        let binding = mib("largest_binding_bytes").unwrap_or_default();
        writeln!(out, "       {memory}, at most {binding} of a tensor")?;
    }
    match (all.is_empty(), cfg!(feature = "gpu")) {
        (true, true) => writeln!(out, "No GPU with a Vulkan, Metal or DirectX 12 driver was found.")?,
        (true, false) => writeln!(out, "This program was built without the feature `gpu`.")?,
        (false, _) => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "gpu")]
fn gpus() -> Vec<Value> {
    let describe = |adapter: lowrank::gpu::Adapter| {
        json!({
            "device": format!("gpu:{}", adapter.number),
            "name": adapter.name,
            "kind": adapter.kind.name(),
            "api": adapter.api,
            "driver": adapter.driver,
            "memory_bytes": adapter.memory,
            "largest_binding_bytes": adapter.largest_binding,
        })
    };
    lowrank::gpu::adapters().into_iter().map(describe).collect()
}

#[cfg(not(feature = "gpu"))]
fn gpus() -> Vec<Value> {
    Vec::new()
}
