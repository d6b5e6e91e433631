//! A set of LoRA adapters for one model: built from a configuration, loaded, saved, attached.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{ActiveAdapters, Params, Site, SiteId, SiteKind, kernels};

use crate::lora::Lora;
use crate::target::{Target, targets};
use crate::{Error, LoraConfig};

/// One adapted site.
#[derive(Clone, Debug)]
pub struct AdaptedSite {
    /// Where it is in the model's list.
    pub site: SiteId,
    /// Module path.
    pub path: String,
    /// What kind of layer it is.
    pub kind: SiteKind,
    /// `K`.
    pub in_features: usize,
    /// `O`.
    pub out_features: usize,
    /// The adapter.
    pub lora: Arc<Lora>,
}

/// Adapters with their parameters. Making one never touches the base model.
#[derive(Clone, Default)]
pub struct AdapterSet {
    /// How it was made.
    pub config: LoraConfig,
    /// Its numbers.
    pub params: Params,
    /// What it is attached to.
    pub layers: Vec<AdaptedSite>,
    /// The same for the engine.
    pub active: ActiveAdapters,
}

impl AdapterSet {
    /// No adapter at all: the base model alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// A fresh adapter: A uniform in `±1/sqrt(K)` (Kaiming with `a = sqrt(5)`, as loralib and PEFT), B zero.
    ///
    /// # Errors
    /// Where the configuration makes no sense or matches nothing.
    pub fn new(config: LoraConfig, sites: &[Site], seed: u64) -> Result<Self, Error> {
        let mut set = Self::planned(config, sites)?;
        for (index, layer) in set.layers.iter().enumerate() {
            let (r, k, o) = (layer.lora.r, layer.in_features, layer.out_features);
            let mut a = vec![0.0; r * k];
            let bound = 1.0 / (k as f32).sqrt();
            kernels::uniform(&mut a, -bound, bound, seed, INIT_STREAM + index as u64);
            set.params.get_mut(layer.lora.a).value = a;
            set.params.get_mut(layer.lora.b).value = vec![0.0; o * r];
        }
        Ok(set)
    }

    /// The same without numbers, to plan with or to fill from a file.
    ///
    /// # Errors
    /// As [`AdapterSet::new`].
    pub fn planned(config: LoraConfig, sites: &[Site]) -> Result<Self, Error> {
        config.check()?;
        let found = targets(&config, sites)?;
        let mut set = Self { config, ..Self::default() };
        for target in found {
            set.attach(target, &sites[target.site])?;
        }
        Ok(set)
    }

    fn attach(&mut self, target: Target, site: &Site) -> Result<(), Error> {
        if site.kind == SiteKind::Embedding {
            return Err(Error::Config(format!(
                "{} is an embedding; only linear layers can be adapted",
                site.path
            )));
        }
        let (r, k, o) = (target.r, site.in_features, site.out_features);
        let lora = Arc::new(Lora {
            a: self.params.push(format!("{}.lora_A", site.path), r, k, Vec::new()),
            b: self.params.push(format!("{}.lora_B", site.path), o, r, Vec::new()),
            r,
            scaling: self.config.scaling(r, target.alpha),
            dropout: self.config.lora_dropout,
            stream: target.site as u64,
        });
        let id = SiteId(target.site);
        self.active.attach(id, lora.clone());
        let path = site.path.clone();
        let kind = site.kind;
        // PEFT keeps one word for all targets, and warns where it does not fit the layer.
        self.config.fan_in_fan_out |= kind == SiteKind::TransposedLinear;
        self.layers.push(AdaptedSite { site: id, path, kind, in_features: k, out_features: o, lora });
        Ok(())
    }

    /// The adapter at a module path.
    pub fn layer(&self, path: &str) -> Option<&AdaptedSite> {
        self.layers.iter().find(|l| l.path == path)
    }

    /// The Frobenius norm of `scaling * B A`, from the products of rank size: `||BA||^2 = tr(B^T B A A^T)`.
    pub fn delta_norm(&self, layer: &AdaptedSite) -> f64 {
        let r = layer.lora.r;
        let a = &self.params.get(layer.lora.a).value;
        let b = &self.params.get(layer.lora.b).value;
        let k = layer.in_features;
        let mut square = 0.0;
        for i in 0..r {
            for j in 0..r {
                let pairs = b.chunks_exact(r).map(|row| f64::from(row[i]) * f64::from(row[j]));
                let bb: f64 = pairs.sum();
                let rows = a[i * k..(i + 1) * k].iter().zip(&a[j * k..(j + 1) * k]);
                let aa: f64 = rows.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                square += bb * aa;
            }
        }
        f64::from(layer.lora.scaling.abs()) * square.max(0.0).sqrt()
    }

    /// Adds `scaling * B A` to `w`, rows `rows` of `W` as it is stored (`[O,K]`, or `[K,O]` where transposed):
    /// merging, always in f32.
    pub fn merge_rows(&self, layer: &AdaptedSite, rows: Range<usize>, w: &mut [f32]) {
        let (r, k, o) = (layer.lora.r, layer.in_features, layer.out_features);
        let a = kernels::MatRef::row_major(&self.params.get(layer.lora.a).value, k);
        let b = kernels::MatRef::row_major(&self.params.get(layer.lora.b).value, r);
        // The stored matrix is `left right`, and the rows asked for are those of `left`.
        let (left, right, cols) = match layer.kind {
            SiteKind::TransposedLinear => (a.t(), b.t(), o),
            _ => (b, a, k),
        };
        assert_eq!(w.len(), rows.len() * cols, "rows of {}", layer.path);
        let left = kernels::MatRef { data: &left.data[rows.start * left.rs..], ..left };
        let w = kernels::MatMut::row_major(w, cols);
        kernels::gemm(rows.len(), cols, r, layer.lora.scaling, left, right, 1.0, w);
    }
}

/// Random streams of initialisation: far from those of dropout.
const INIT_STREAM: u64 = 1 << 62;
