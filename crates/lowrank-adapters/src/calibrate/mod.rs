//! Initialisation from the training data: EVA ([`eva`]) and CorDA ([`corda`]) read the inputs of the layers before training.
//!
//! [`Inputs`] runs the base model over batches of the training data. Observers, attached where adapters will be, see the inputs
//! of the layers. The result is one matrix for each layer, which [`Observed`] gives to the adapter's initialisation.

pub mod corda;
pub mod eva;
mod observe;

use std::ops::Range;

use lowrank_engine::{Format, Site};

use crate::base::BaseWeights;
use crate::config::LoraConfig;
use crate::error::Error;
use crate::init::InitLoraWeights;
use crate::set::AdapterSet;
pub use observe::{Inputs, Matrices, Rows};

/// The weights of the base, with what was found about the inputs of its layers.
pub struct Observed<'a> {
    /// The weights.
    pub base: &'a dyn BaseWeights,
    /// What was found.
    pub found: Matrices,
}

impl BaseWeights for Observed<'_> {
    fn read_rows(&self, path: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.base.read_rows(path, rows, out)
    }

    fn read_bias(&self, path: &str, out: &mut [f32]) -> Result<(), Error> {
        self.base.read_bias(path, out)
    }

    fn quantised(&self, site: &Site) -> Option<Format> {
        self.base.quantised(site)
    }

    fn observed(&self, site: &Site) -> Option<&[f32]> {
        self.found.get(&site.path).map(|found| &found[..])
    }

    fn observes(&self) -> bool {
        true
    }
}

impl AdapterSet {
    /// [`AdapterSet::new_on`] for a configuration that may also start from the data.
    ///
    /// # Errors
    /// As [`AdapterSet::new_on`], and where the data say nothing of a layer or too little.
    pub fn new_on_data(
        config: LoraConfig,
        sites: &[Site],
        seed: u64,
        base: &dyn BaseWeights,
        inputs: &mut dyn Inputs,
    ) -> Result<Self, Error> {
        config.check()?;
        let (config, found) = match InitLoraWeights::parse(&config)? {
            InitLoraWeights::Eva => eva::look(config, sites, inputs)?,
            InitLoraWeights::Corda(_) => {
                let found = corda::look(&config, sites, inputs)?;
                (config, found)
            }
            _ => return Self::new_on(config, sites, seed, base),
        };
        Self::new_on(config, sites, seed, &Observed { base, found })
    }
}
