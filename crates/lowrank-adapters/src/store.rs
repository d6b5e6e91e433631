//! Several adapters on one loaded base.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lowrank_engine::{ActiveAdapters, Params, Site, SiteId, SiteKind};

use crate::base::BaseWeights;
use crate::contract::AdaptedSite;
use crate::contract::Variant;
use crate::error::Error;
use crate::mixture::{Mixture, Part};
use crate::routed::Routed;
use crate::set::AdapterSet;

/// Adapters by name, for one base model. The base is never touched and no number is copied: switching, mixing and
/// changing weights make a new list of sites, in microseconds.
///
/// ```
/// use lowrank_adapters::{AdapterSet, AdapterStore, LoraConfig, Targets};
/// use lowrank_engine::{Site, SiteKind};
///
/// # fn main() -> Result<(), lowrank_adapters::Error> {
/// let (path, kind) = ("layers.0.q_proj".to_owned(), SiteKind::Linear);
/// let sites = [Site { path, kind, in_features: 8, out_features: 8, bias: false }];
/// let config = LoraConfig { target_modules: Some(Targets::parse("q_proj")), ..LoraConfig::default() };
/// let mut store = AdapterStore::default();
/// store.insert("poems", AdapterSet::new(config.clone(), &sites, 1)?);
/// store.insert("code", AdapterSet::new(config, &sites, 2)?);
///
/// let poems = store.select("poems")?; // one of them: pass it to a generator
/// let both = store.mix(&[("poems", 0.7), ("code", 0.3)])?; // and to the next one, both
/// assert_eq!((poems.layers.len(), both.layers.len()), (1, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct AdapterStore {
    adapters: BTreeMap<String, Entry>,
}

#[derive(Clone)]
struct Entry {
    set: Arc<AdapterSet>,
    params: Arc<Params>,
}

impl AdapterStore {
    /// Reads the adapter folder `dir` for a base with these `sites` and keeps it as `name`, in place of what was
    /// there.
    ///
    /// # Errors
    /// As [`AdapterSet::load_on`].
    pub fn load(
        &mut self,
        name: &str,
        dir: &Path,
        sites: &[Site],
        base: &dyn BaseWeights,
    ) -> Result<(), Error> {
        self.insert(name, AdapterSet::load_on(dir, sites, base)?);
        Ok(())
    }

    /// Keeps `set` as `name`, in place of what was there.
    pub fn insert(&mut self, name: &str, mut set: AdapterSet) {
        let params = Arc::new(std::mem::take(&mut set.params));
        self.adapters.insert(name.to_owned(), Entry { set: Arc::new(set), params });
    }

    /// Removes an adapter and returns whether there was one. Sets made from it stay valid.
    pub fn remove(&mut self, name: &str) -> bool {
        self.adapters.remove(name).is_some()
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }

    /// One adapter as it is.
    ///
    /// # Errors
    /// If there is none of this name (lists those there are).
    pub fn select(&self, name: &str) -> Result<AdapterSet, Error> {
        self.mix(&[(name, 1.0)])
    }

    /// A set for batches in which each row has one of these adapters, by its place in `names`
    /// ([`lowrank_engine::RowAdapters`]); rows without one have the base alone. Sequences of an adapter with virtual tokens
    /// begin with as many of them, whose ids are those from the size of the vocabulary on. For inference only.
    ///
    /// # Errors
    /// As [`AdapterStore::select`].
    pub fn route(&self, names: &[&str]) -> Result<ActiveAdapters, Error> {
        let names: Vec<Option<&str>> = names.iter().map(|name| Some(*name)).collect();
        self.route_slots(&names)
    }

    /// The same where places may be empty: adapters that stay keep theirs when others come and go.
    ///
    /// # Errors
    /// As [`AdapterStore::select`].
    pub fn route_slots(&self, names: &[Option<&str>]) -> Result<ActiveAdapters, Error> {
        let mut active = ActiveAdapters::default();
        let mut by_site: BTreeMap<usize, Vec<Option<Part>>> = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            let Some(name) = name else {
                active.prefixes.push(None);
                continue;
            };
            let Entry { set, params } = self.entry(name)?;
            for layer in &set.layers {
                let part = Part { variant: layer.variant.clone(), params: params.clone(), weight: 1.0 };
                by_site.entry(layer.id.0).or_insert_with(|| vec![None; names.len()])[index] = Some(part);
            }
            active.virtual_tokens = active.virtual_tokens.max(set.active.virtual_tokens);
            active.prefixes.push(set.active.prefix.map(|prefix| (prefix, params.clone())));
        }
        for (id, parts) in by_site {
            active.attach(SiteId(id), Arc::new(Routed { parts }));
        }
        Ok(active)
    }

    fn entry(&self, name: &str) -> Result<&Entry, Error> {
        self.adapters.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.names().collect();
            Error::Config(format!("there is no adapter {name:?}; loaded are {}", known.join(", ")))
        })
    }

    /// Several adapters at once, each with its weight: what each changes of the base's output is multiplied by the
    /// weight and added up. No adapter at all is the base alone.
    ///
    /// # Errors
    /// As [`AdapterStore::select`], where a weight is no finite number, and where an adapter that trains norms
    /// (`bias` of `all`) is to be one of several.
    pub fn mix(&self, adapters: &[(&str, f32)]) -> Result<AdapterSet, Error> {
        let mut by_site: BTreeMap<usize, (Site, Vec<Part>)> = BTreeMap::new();
        for &(name, weight) in adapters {
            if !weight.is_finite() {
                return Err(Error::Config(format!("the weight of adapter {name:?} is {weight}")));
            }
            let Entry { set, params } = self.entry(name)?;
            if set.active.virtual_tokens > 0 {
                return Err(Error::Config(format!(
                    "adapter {name:?} is virtual tokens, which are used alone: they cannot be mixed or weighted"
                )));
            }
            for layer in &set.layers {
                let part = Part { variant: layer.variant.clone(), params: params.clone(), weight };
                by_site.entry(layer.id.0).or_insert_with(|| (layer.site.clone(), Vec::new())).1.push(part);
            }
        }
        let mut mixed = AdapterSet::none();
        for (id, (site, parts)) in by_site {
            if site.kind == SiteKind::Norm && !matches!(&parts[..], [part] if part.weight == 1.0) {
                return Err(Error::Config(format!(
                    "{} was trained whole: a norm cannot be mixed with others or weighted",
                    site.path
                )));
            }
            let (id, variant): (_, Arc<dyn Variant>) = (SiteId(id), Arc::new(Mixture { parts }));
            mixed.active.attach(id, variant.clone());
            mixed.layers.push(AdaptedSite { id, site, variant });
        }
        Ok(mixed)
    }
}
