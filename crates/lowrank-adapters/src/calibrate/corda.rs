//! The statistics of CorDA (Yang et al. 2024): `C = X^T X: [K,K]` of each layer's inputs `X: [tokens,K]`. `init/corda.rs` computes
//! `A` and `B` from them.

use lowrank_engine::{ActiveAdapters, Site, SiteId, Tensor, kernels};

use crate::calibrate::observe::{Groups, Inputs, Look, Matrices, Observer};
use crate::config::LoraConfig;
use crate::error::Error;

/// Number of examples that are read, as in the authors' code.
const EXAMPLES: usize = 256;

/// `sum X^T X` over examples, each divided by its largest value.
struct Covariance {
    examples: Vec<std::ops::Range<usize>>,
    sum: Vec<f32>,
    wrong: bool,
}

impl Look for Covariance {
    fn look(&mut self, x: &Tensor) {
        let k = x.cols();
        self.sum.resize(k * k, 0.0);
        for rows in self.examples.clone() {
            let mut x = x.values()[rows.start * k..rows.end * k].to_vec();
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max).abs();
            kernels::scale(&mut x, 1.0 / largest);
            self.wrong |= !x.iter().all(|x| x.is_finite());
            let x = kernels::MatRef::row_major(&x, k);
            let sum = kernels::MatMut::row_major(&mut self.sum, k);
            kernels::gemm(k, k, rows.len(), 1.0, x.t(), x, 1.0, sum);
        }
    }
}

/// `C: [K,K]` of every target's inputs, the mean over the first examples of the data.
///
/// # Errors
/// Names a layer whose inputs cannot be seen or are not finite.
pub fn look(config: &LoraConfig, sites: &[Site], inputs: &mut dyn Inputs) -> Result<Matrices, Error> {
    let (groups, mut rows) = Groups::find(config, sites, inputs)?;
    let path = |target: usize| &sites[groups.targets[target].site].path;
    if let Some(unseen) = groups.first.iter().position(Option::is_none) {
        let path = path(unseen);
        return Err(Error::Config(format!(
            "{path}: its inputs cannot be seen before the loss is there; leave it out (exclude_modules)"
        )));
    }
    let fresh = || Observer::new(Covariance { examples: Vec::new(), sum: Vec::new(), wrong: false });
    let observers: Vec<_> = groups.looked_at().into_iter().map(|target| (target, fresh())).collect();
    let mut active = ActiveAdapters::default();
    for (target, observer) in &observers {
        active.attach(SiteId(groups.targets[*target].site), observer.clone());
    }
    let mut count = 0;
    loop {
        rows.examples.retain(|example| !example.is_empty());
        rows.examples.truncate(EXAMPLES - count);
        count += rows.examples.len();
        observers.iter().for_each(|(_, o)| o.with(|c| c.examples.clone_from(&rows.examples)));
        inputs.run(&active);
        match inputs.next() {
            Some(next) if count < EXAMPLES => rows = next,
            _ => break,
        }
    }
    let mut found = Matrices::new();
    for (target, observer) in &observers {
        let (mut sum, wrong) = observer.with(|c| (std::mem::take(&mut c.sum), c.wrong));
        if wrong {
            return Err(Error::Decomposition(format!(
                "{}: an input of the layer is not a number",
                path(*target)
            )));
        }
        kernels::scale(&mut sum, 1.0 / count.max(1) as f32);
        let sum = std::sync::Arc::new(sum);
        for (other, _) in groups.first.iter().enumerate().filter(|(_, first)| **first == Some(*target)) {
            found.insert(path(other).clone(), sum.clone());
        }
    }
    Ok(found)
}
