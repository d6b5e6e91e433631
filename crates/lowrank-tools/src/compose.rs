//! Several adapters as one: PEFT's `add_weighted_adapter`, module by module.
//!
//! Weights may be negative (task arithmetic: take a skill away), and `1 - t` and `t` interpolate. The result has
//! scaling 1. With `s_i` the scaling and `w_i` the weight of adapter `i`, `W_i = s_i B_i A_i`:
//!
//! | combination | result |
//! |---|---|
//! | `cat` | `A` and `B` side by side: exactly `sum w_i W_i`, at the sum of the ranks |
//! | `svd` | the best matrix of the rank asked for to `sum w_i W_i` |
//! | `linear` | `A = sum sign(w_i s_i) sqrt(abs(w_i s_i)) A_i`, `B` likewise without the sign: cheap and rough |
//! | `ties` | the same, small entries dropped, then entries against the majority's sign |
//! | `dare_linear`, `dare_ties` | the same, entries dropped at random and the others scaled up |
//! | `magnitude_prune` | `linear` with small entries dropped |
//! | `ties_svd`, ... | the same on the matrices `W_i`, then as `svd` |

use lowrank_adapters::linalg;
use lowrank_kernels as kernels;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::lora::{Lora, Origin, Pair};
use crate::tensor::Named;

/// How adapters are combined: PEFT's `combination_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Combination {
    Linear,
    Cat,
    Svd,
    Ties,
    TiesSvd,
    DareLinear,
    DareLinearSvd,
    DareTies,
    DareTiesSvd,
    MagnitudePrune,
    MagnitudePruneSvd,
}

use Combination as C;

impl Combination {
    /// All, by PEFT's names.
    pub const ALL: [(&str, Self); 11] = [
        ("linear", C::Linear),
        ("cat", C::Cat),
        ("svd", C::Svd),
        ("ties", C::Ties),
        ("ties_svd", C::TiesSvd),
        ("dare_linear", C::DareLinear),
        ("dare_linear_svd", C::DareLinearSvd),
        ("dare_ties", C::DareTies),
        ("dare_ties_svd", C::DareTiesSvd),
        ("magnitude_prune", C::MagnitudePrune),
        ("magnitude_prune_svd", C::MagnitudePruneSvd),
    ];

    /// The combination of that name.
    ///
    /// # Errors
    /// Lists the names.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|(n, _)| *n == name).map(|(_, c)| c).ok_or_else(|| {
            Error::Usage(lowrank_files::unknown("combination", name, Self::ALL.map(|(n, _)| n)))
        })
    }

    fn prunes(self) -> bool {
        !matches!(self, C::Linear | C::Cat | C::Svd)
    }

    fn elects(self) -> bool {
        matches!(self, C::Ties | C::TiesSvd | C::DareTies | C::DareTiesSvd)
    }

    fn random(self) -> bool {
        matches!(self, C::DareLinear | C::DareLinearSvd | C::DareTies | C::DareTiesSvd)
    }

    fn on_deltas(self) -> bool {
        matches!(self, C::TiesSvd | C::DareLinearSvd | C::DareTiesSvd | C::MagnitudePruneSvd)
    }
}

/// Settings of [`compose`].
#[derive(Clone, Debug)]
pub struct Compose {
    /// How.
    pub combination: Combination,
    /// Rank of the result of a decomposition; the largest rank of the adapters where none is given.
    pub rank: Option<usize>,
    /// Share of the entries that are kept, for those that drop some.
    pub density: Option<f64>,
    /// Whether each adapter has one vote on a sign (PEFT's `frequency`), or its entry's size counts (`total`).
    pub by_frequency: bool,
    /// Seed of what is dropped at random.
    pub seed: u64,
}

/// A tensor of which entries are dropped at random.
pub struct Draw<'a> {
    /// The module.
    pub module: &'a str,
    /// 0 for A, 1 for B, 2 for their product.
    pub part: usize,
    /// Which adapter.
    pub adapter: usize,
    /// Entries.
    pub len: usize,
}

/// Combines adapters with their weights.
///
/// # Errors
/// Where ranks or layers do not fit together, a tensor trained whole is in two adapters, or settings are missing.
pub fn compose(adapters: &[(&Lora, f64)], how: &Compose) -> Result<Lora> {
    let density = how.density.unwrap_or(1.0);
    let mut counter = 0;
    let mut keep = |draw: &Draw<'_>| {
        let mut chance = vec![0.0; draw.len];
        kernels::uniform(&mut chance, 0.0, 1.0, how.seed, DARE_STREAM + counter);
        counter += 1;
        chance.iter().map(|x| f64::from(*x) < density).collect()
    };
    compose_with(adapters, how, &mut keep)
}

/// Stream of the random numbers of DARE.
const DARE_STREAM: u64 = 5 << 60;

/// [`compose`] with the entries that are kept at random given from outside.
///
/// # Errors
/// As [`compose`].
pub fn compose_with(
    adapters: &[(&Lora, f64)],
    how: &Compose,
    keep: &mut dyn FnMut(&Draw<'_>) -> Vec<bool>,
) -> Result<Lora> {
    let Some(((first, _), others)) = adapters.split_first() else {
        return Err(Error::Usage("nothing to compose: name at least one adapter".into()));
    };
    others.iter().try_for_each(|(other, _)| first.check_same_layers(other))?;
    if let Some((_, weight)) = adapters.iter().find(|(_, w)| !w.is_finite()) {
        return Err(Error::Usage(format!("a weight of {weight}")));
    }
    // As PEFT: a single adapter has nothing to be combined with.
    let combination =
        if others.is_empty() && how.combination != C::Svd { C::Linear } else { how.combination };
    let density = match (how.density, combination.prunes()) {
        (Some(d), _) if !(0.0..=1.0).contains(&d) => {
            return Err(Error::Usage(format!("density is {d}; it is a share from 0 to 1")));
        }
        (None, true) => {
            return Err(Error::Usage("this combination drops entries: give the density to keep".into()));
        }
        (d, _) => d.unwrap_or(1.0),
    };
    let rank = how.rank.or_else(|| adapters.iter().flat_map(|(l, _)| l.pairs.values()).map(Pair::rank).max());
    let rank = rank.filter(|r| *r > 0).ok_or_else(|| Error::Usage("a rank of 0".into()))?;

    let mut modules: Vec<&String> = adapters.iter().flat_map(|(lora, _)| lora.pairs.keys()).collect();
    modules.sort();
    modules.dedup();
    let (saved, config, origin) = (saved(adapters)?, config(adapters), origin(adapters));
    let mut result = Lora { saved, config, origin, ..Lora::default() };
    for module in modules {
        let present: Vec<(usize, &Pair, f64)> = adapters
            .iter()
            .enumerate()
            .filter_map(|(i, (lora, weight))| Some((i, lora.pairs.get(module)?, *weight)))
            .collect();
        let mut mix = Mix { combination, density, by_frequency: how.by_frequency, module, keep: &mut *keep };
        let pair = match combination {
            C::Cat => side_by_side(&present),
            C::Svd => present[0].1.from_svd(&side_by_side(&present).svd()?.truncate(rank)),
            _ if combination.on_deltas() => mix.deltas(&present, rank)?,
            _ => mix.factors(&present)?,
        };
        result.pairs.insert(module.clone(), pair);
    }
    Ok(result)
}

/// `A` below one another, each times weight and scaling, and `B` side by side.
fn side_by_side(present: &[(usize, &Pair, f64)]) -> Pair {
    let r: usize = present.iter().map(|(_, pair, _)| pair.rank()).sum();
    let mut a = Vec::new();
    for (_, pair, weight) in present {
        let factor = (weight * pair.scaling()) as f32;
        a.extend(pair.a.data.iter().map(|x| x * factor));
    }
    let outputs = present[0].1.outputs();
    let row = |i: usize| present.iter().flat_map(move |(_, p, _)| &p.b.data[i * p.rank()..][..p.rank()]);
    let b = (0..outputs).flat_map(row).copied().collect();
    present[0].1.replaced(r, a, b, r as f64)
}

struct Mix<'a> {
    combination: Combination,
    density: f64,
    by_frequency: bool,
    module: &'a str,
    keep: &'a mut dyn FnMut(&Draw<'_>) -> Vec<bool>,
}

impl Mix<'_> {
    /// On `A` and `B`, each with the root of weight and scaling.
    fn factors(&mut self, present: &[(usize, &Pair, f64)]) -> Result<Pair> {
        let first = present[0].1;
        if present.iter().any(|(_, pair, _)| pair.rank() != first.rank()) {
            let why = "this combination needs equal ranks (cat and svd do not); of different ranks";
            return Err(Error::names(why, vec![self.module.to_owned()]));
        }
        let weight = |(_, pair, weight): &(usize, &Pair, f64)| weight * pair.scaling();
        let roots: Vec<f32> = present.iter().map(|p| weight(p).abs().sqrt() as f32).collect();
        // The sign goes to one side only.
        let signed =
            present.iter().zip(&roots).map(|(p, r)| if weight(p) >= 0.0 { *r } else { -r }).collect();
        let a = self.mixed(0, present.iter().map(|(i, p, _)| (*i, p.a.data.clone())).collect(), signed);
        let b = self.mixed(1, present.iter().map(|(i, p, _)| (*i, p.b.data.clone())).collect(), roots);
        Ok(first.replaced(first.rank(), a, b, first.rank() as f64))
    }

    /// On the products, decomposed again.
    fn deltas(&mut self, present: &[(usize, &Pair, f64)], rank: usize) -> Result<Pair> {
        let first = present[0].1;
        let weights = present.iter().map(|(_, _, weight)| *weight as f32).collect();
        let deltas = present.iter().map(|(i, pair, _)| (*i, pair.delta())).collect();
        let mixed = self.mixed(2, deltas, weights);
        let svd = linalg::svd(first.outputs(), first.inputs(), &mixed)?;
        Ok(first.from_svd(&svd.truncate(rank)))
    }

    /// Drops entries of each tensor, then adds them up with their weights.
    fn mixed(&mut self, part: usize, mut tensors: Vec<(usize, Vec<f32>)>, weights: Vec<f32>) -> Vec<f32> {
        if self.density < 1.0 && self.combination.prunes() {
            for (adapter, tensor) in &mut tensors {
                match self.combination.random() {
                    true => {
                        let draw = Draw { module: self.module, part, adapter: *adapter, len: tensor.len() };
                        let kept = (self.keep)(&draw);
                        let density = self.density as f32;
                        tensor
                            .iter_mut()
                            .zip(kept)
                            .for_each(|(x, kept)| *x = if kept { *x / density } else { 0.0 });
                    }
                    false => keep_largest(tensor, self.density),
                }
            }
        }
        let len = tensors[0].1.len();
        let mut out = vec![0.0; len];
        for (i, out) in out.iter_mut().enumerate() {
            let entries = tensors.iter().map(|(_, tensor)| tensor[i]).zip(&weights);
            if !self.combination.elects() {
                *out = entries.map(|(x, w)| x * w).sum();
                continue;
            }
            let vote: f32 =
                tensors.iter().map(|(_, t)| if self.by_frequency { sign(t[i]) } else { t[i] }).sum();
            let majority = if vote >= 0.0 { 1.0 } else { -1.0 };
            let agree = entries.filter(|(x, _)| sign(*x) == majority);
            let (sum, count) = agree.fold((0.0, 0.0f32), |(sum, count), (x, w)| (sum + x * w, count + 1.0));
            *out = sum / count.max(1.0);
        }
        out
    }
}

fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// Sets all but the `density` largest entries to zero.
pub(crate) fn keep_largest(tensor: &mut [f32], density: f64) {
    let count = (density * tensor.len() as f64) as usize;
    if count >= tensor.len() {
        return;
    }
    let mut order: Vec<usize> = (0..tensor.len()).collect();
    let larger = |i: &usize, j: &usize| tensor[*j].abs().total_cmp(&tensor[*i].abs()).then(i.cmp(j));
    order.select_nth_unstable_by(count, larger);
    order[count..].iter().for_each(|i| tensor[*i] = 0.0);
}

fn saved(adapters: &[(&Lora, f64)]) -> Result<Named> {
    let mut all = Named::new();
    let mut twice = Vec::new();
    for (name, tensor) in adapters.iter().flat_map(|(lora, _)| &lora.saved) {
        if all.insert(name.clone(), tensor.clone()).is_some() {
            twice.push(name.clone());
        }
    }
    match twice.is_empty() {
        true => Ok(all),
        false => Err(Error::names("tensors trained whole (modules_to_save) cannot be combined", twice)),
    }
}

/// The first adapter's, with the names of the others' modules.
fn origin(adapters: &[(&Lora, f64)]) -> Option<Origin> {
    let mut all = adapters[0].0.origin.clone()?;
    let others = adapters.iter().filter_map(|(lora, _)| lora.origin.as_ref());
    for (module, names) in others.filter(|other| other.format == all.format).flat_map(|other| &other.names) {
        all.names.entry(module.clone()).or_insert_with(|| names.clone());
    }
    Some(all)
}

/// The first adapter's, for the modules of all.
fn config(adapters: &[(&Lora, f64)]) -> serde_json::Map<String, Value> {
    let mut config = adapters[0].0.config.clone();
    if config.is_empty() {
        return config;
    }
    config.insert("use_rslora".into(), json!(false));
    let targets: Vec<Option<&Value>> =
        adapters.iter().map(|(lora, _)| lora.config.get("target_modules")).collect();
    let lists: Vec<&Vec<Value>> = targets.iter().filter_map(|t| t.and_then(Value::as_array)).collect();
    let texts: Vec<&str> = targets.iter().filter_map(|t| t.and_then(Value::as_str)).collect();
    // One choice of layers for all, or it is made from the modules.
    let narrowed = ["layers_to_transform", "layers_pattern", "exclude_modules"];
    let of = |lora: &Lora| narrowed.map(|field| lora.config.get(field).filter(|v| !v.is_null()).cloned());
    let same = adapters.iter().all(|(lora, _)| of(lora) == of(adapters[0].0));
    let merged = if !same {
        Value::Null
    } else if lists.len() == targets.len() {
        let mut names: Vec<&str> = lists.iter().flat_map(|l| l.iter()).filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.dedup();
        json!(names)
    } else if texts.len() == targets.len() && texts.iter().any(|t| *t != texts[0]) {
        json!(texts.iter().map(|t| format!("({t})")).collect::<Vec<_>>().join("|"))
    } else if texts.len() == targets.len() {
        json!(texts[0])
    } else {
        // Made from the modules when it is written.
        Value::Null
    };
    config.insert("target_modules".into(), merged);
    let whole =
        |(lora, _): &(&Lora, f64)| lora.config.get("modules_to_save").and_then(Value::as_array).cloned();
    let whole: Vec<Value> = adapters.iter().filter_map(whole).flatten().collect();
    config.insert("modules_to_save".into(), if whole.is_empty() { Value::Null } else { json!(whole) });
    config
}
