//! The device that a model runs on.

use std::sync::Arc;

use lowrank_engine::Backend;
use serde::{Deserialize, Serialize};

use crate::fields::named;
use crate::{Error, Result};

/// Which device operations run on (`device`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceChoice {
    /// A discrete or Apple GPU that the base fits, else the processor.
    Auto,
    /// The processor.
    #[default]
    Cpu,
    /// The first GPU, or the one of this number in the list of `lowrank devices`.
    Gpu(Option<usize>),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |text: &str| text.strip_prefix("gpu:").and_then(|number| number.parse().ok());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(None)),
            _ => number(text).map(|number| Self::Gpu(Some(number))).ok_or_else(|| {
                let known = ["auto", "cpu", "gpu", "gpu:N"];
                lowrank_files::unknown("device", text, known)
            }),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        match choice {
            DeviceChoice::Auto => "auto".into(),
            DeviceChoice::Cpu => "cpu".into(),
            DeviceChoice::Gpu(None) => "gpu".into(),
            DeviceChoice::Gpu(Some(number)) => format!("gpu:{number}"),
        }
    }
}

named!(DeviceChoice);

/// What computes for a base of `bytes`; `None`: the processor. Says on standard error what was taken and why, where that is not
/// the processor that was asked for.
pub(crate) fn open(choice: DeviceChoice, bytes: u64) -> Result<Option<Arc<dyn Backend>>> {
    match choice {
        DeviceChoice::Cpu => Ok(None),
        _ => open_gpu(choice, bytes),
    }
}

#[cfg(feature = "gpu")]
fn open_gpu(choice: DeviceChoice, bytes: u64) -> Result<Option<Arc<dyn Backend>>> {
    let (adapter, why) = match choice {
        DeviceChoice::Gpu(number) => {
            let adapter = lowrank_gpu::named(number).map_err(|error| Error::Usage(error.to_string()))?;
            (adapter, "as asked")
        }
        _ => match lowrank_gpu::fitting(bytes) {
            Ok(adapter) => (adapter, "the first discrete or Apple GPU"),
            Err(why) => {
                eprintln!("device: cpu ({why})");
                return Ok(None);
            }
        },
    };
    eprintln!("device: gpu:{} {} through {} ({why})", adapter.number, adapter.name, adapter.api);
    let gpu = lowrank_gpu::Gpu::open(&adapter).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(Some(Arc::new(gpu)))
}

#[cfg(not(feature = "gpu"))]
fn open_gpu(choice: DeviceChoice, _: u64) -> Result<Option<Arc<dyn Backend>>> {
    match choice {
        DeviceChoice::Auto => Ok(None),
        _ => Err(Error::Usage("`device`: this program was built without the feature `gpu`: use cpu".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["auto", "cpu", "gpu", "gpu:0", "gpu:12"] {
            assert_eq!(String::from(name.parse::<DeviceChoice>().unwrap()), name);
        }
        for wrong in ["", "GPU", "gpu:", "gpu:x", "gpu:-1", "cuda"] {
            assert!(wrong.parse::<DeviceChoice>().unwrap_err().contains("gpu:N"), "{wrong}");
        }
    }
}
