//! Combines two adapters into one: `compose ADAPTER ADAPTER OUT`.

use lowrank::tools::compose::{Combination, Compose, compose as combine};
use lowrank::tools::{FileFormat, Lora, Options, formats};

fn main() -> lowrank::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [first, second, out] = &args[..] else {
        return Err(lowrank::Error::Usage("usage: compose ADAPTER ADAPTER OUT".into()));
    };
    compose(first, second, out)
}

/// Half of each, as PEFT's `add_weighted_adapter` with `svd` does it. Adapters are read in any format and written in PEFT's.
pub fn compose(first: &str, second: &str, out: &str) -> lowrank::Result<()> {
    let options = Options::default();
    let read = |path: &str| -> lowrank::Result<Lora> {
        Ok(formats::read(path.as_ref(), FileFormat::detect(path.as_ref())?, &options)?)
    };
    let (first, second) = (read(first)?, read(second)?);
    let how =
        Compose { combination: Combination::Svd, rank: None, density: None, by_frequency: false, seed: 0 };
    let combined = combine(&[(&first, 0.5), (&second, 0.5)], &how)?;
    formats::write(&combined, out.as_ref(), formats::peft::FORMAT, &options)?;
    Ok(())
}
