//! EVA (Paischer et al. 2024): `A` starts as the principal components of the layer's inputs, `B` as zero, and layers whose inputs
//! are explained best by few components get more ranks.
//!
//! The components are updated batch by batch until they no longer change (`tau`). A layer may get up to `rho` times its rank; the
//! sum of all ranks stays the same. Behaviour of `peft/tuners/lora/eva.py` and `peft/utils/incremental_pca.py`.
//!
//! # Shapes
//! `X: [tokens,K]` of each batch, components and `A: [R,K]`.

use std::sync::Arc;

use lowrank_engine::{ActiveAdapters, Site, SiteId, Tensor, kernels};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::calibrate::observe::{Groups, Inputs, Look, Matrices, Observer};
use crate::config::{LoraConfig, Targets};
use crate::error::Error;
use crate::linalg::{self, Randomized};
use crate::registry;

/// `eva_config`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default)]
struct Extra {
    /// The largest rank, as a multiple of the layer's.
    rho: f64,
    /// Least cosine of the components of two passes that counts as converged.
    tau: f64,
    /// Whether only tokens with labels count.
    use_label_mask: bool,
    /// What marks the others in PEFT.
    label_mask_value: i64,
    /// Components are divided by the roots of their singular values.
    whiten: bool,
    /// Alpha changes with the rank, so that the scaling stays.
    adjust_scaling_factors: bool,
}

impl Default for Extra {
    fn default() -> Self {
        Self {
            rho: 2.0,
            tau: 0.99,
            use_label_mask: true,
            label_mask_value: -100,
            whiten: false,
            adjust_scaling_factors: true,
        }
    }
}

/// Most batches: components that still change after them are given up.
const LIMIT: usize = 2000;

fn parse_extra(config: &LoraConfig) -> Result<Extra, Error> {
    let wrong = |what: String| Error::Config(format!("eva_config: {what}"));
    let extra = match config.other.get("eva_config").filter(|extra| !extra.is_null()) {
        Some(extra) => Extra::deserialize(extra).map_err(|e| wrong(e.to_string()))?,
        None => Extra::default(),
    };
    if !(extra.rho >= 1.0 && extra.rho.is_finite()) {
        return Err(wrong(format!("rho is {}; it is at least 1", extra.rho)));
    }
    if !(0.0..=1.0).contains(&extra.tau) {
        return Err(wrong(format!("tau is {}; it is from 0 to 1", extra.tau)));
    }
    Ok(extra)
}

/// Incremental principal components of a layer's inputs.
struct Components {
    /// How many.
    wanted: usize,
    tau: f64,
    /// The rows of the batch at hand that count.
    rows: Vec<bool>,
    /// Of all rows so far: how many, their mean, the sum of squares around it.
    count: usize,
    mean: Vec<f64>,
    squares: f64,
    /// Singular values and components `[wanted, K]`; empty before the first batch.
    s: Vec<f32>,
    vectors: Vec<f32>,
    converged: Vec<bool>,
    error: Option<Error>,
}

impl Look for Components {
    fn look(&mut self, x: &Tensor) {
        let k = x.cols();
        let rows = x.values().chunks_exact(k).zip(&self.rows).filter(|(_, counts)| **counts);
        let x: Vec<f32> = rows.flat_map(|(row, _)| row).copied().collect();
        if x.len() >= self.wanted * k
            && let Err(error) = self.fit(x, k)
        {
            self.error.get_or_insert(error);
        }
    }
}

impl Components {
    fn fit(&mut self, mut x: Vec<f32>, k: usize) -> Result<(), Error> {
        let n = x.len() / k;
        let mut mean = vec![0.0f64; k];
        x.chunks_exact(k).for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x)));
        mean.iter_mut().for_each(|m| *m /= n as f64);
        for row in x.chunks_exact_mut(k) {
            row.iter_mut().zip(&mean).for_each(|(x, m)| *x = (f64::from(*x) - m) as f32);
        }
        self.squares += kernels::sum_squares(&x);
        let (before, total) = (self.count as f64, (self.count + n) as f64);
        if self.count == 0 {
            self.mean = mean;
        } else {
            // What is known stands for the rows before: its components, and the way of the mean.
            let apart = (before / total * n as f64).sqrt();
            let known = self.vectors.chunks_exact(k).zip(&self.s);
            let mut stacked: Vec<f32> = known.flat_map(|(v, s)| v.iter().map(move |v| v * s)).collect();
            stacked.append(&mut x);
            stacked.extend(self.mean.iter().zip(&mean).map(|(a, b)| (apart * (a - b)) as f32));
            x = stacked;
            for (known, new) in self.mean.iter_mut().zip(&mean) {
                self.squares += apart * apart * (*known - new).powi(2);
                *known = (*known * before + new * n as f64) / total;
            }
        }
        let how = Randomized { oversampling: self.wanted, ..Randomized::rank(self.wanted) };
        let svd = linalg::svd_randomized(x.len() / k, k, &x, how)?;
        let mut vectors = svd.vt;
        for row in vectors.chunks_exact_mut(k) {
            let largest = row.iter().copied().fold(0.0f32, |m, x| if x.abs() > m.abs() { x } else { m });
            if largest < 0.0 {
                kernels::scale(row, -1.0);
            }
        }
        let cosine = |(now, before): (&[f32], &[f32])| {
            let dot: f64 = now.iter().zip(before).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            dot >= self.tau
        };
        if self.count > 0 {
            self.converged = vectors.chunks_exact(k).zip(self.vectors.chunks_exact(k)).map(cosine).collect();
        }
        self.count += n;
        (self.s, self.vectors) = (svd.s, vectors);
        Ok(())
    }

    /// The share of all squares that each component explains.
    fn explained(&self) -> Vec<f64> {
        let share = |s: &f32| if self.squares > 0.0 { f64::from(*s).powi(2) / self.squares } else { 0.0 };
        self.s.iter().map(share).collect()
    }
}

/// Computes the configuration with the ranks that the data ask for, and `A: [R,K]` of every target.
///
/// # Errors
/// If a layer has fewer inputs than components are asked for, or they do not settle.
pub fn look(
    mut config: LoraConfig,
    sites: &[Site],
    inputs: &mut dyn Inputs,
) -> Result<(LoraConfig, Matrices), Error> {
    let extra = parse_extra(&config)?;
    let (groups, mut rows) = Groups::find(&config, sites, inputs)?;
    let targets = &groups.targets;
    let site = |target: usize| &sites[targets[target].site];
    // Those that are looked at, then those that share an input with one of them: PEFT's order, which decides ties.
    let looked_at = groups.looked_at();
    let sharing = (0..targets.len()).filter(|&i| groups.first[i].is_some_and(|first| first != i));
    let order: Vec<usize> = looked_at.iter().copied().chain(sharing).collect();
    let first = |target: usize| groups.first[target].expect("in the order, so seen");
    let wanted = |looked: usize| {
        let sharing = order.iter().filter(|&&target| first(target) == looked);
        sharing
            .map(|&target| (targets[target].r as f64 * extra.rho).round_ties_even() as usize)
            .max()
            .unwrap_or(0)
    };
    let mut observers = Vec::new();
    for &target in &looked_at {
        let (wanted, site) = (wanted(target), site(target));
        if wanted > site.in_features {
            return Err(Error::Config(format!(
                "{}: {wanted} components (rank times rho) of {} inputs; lower r or rho of eva_config",
                site.path, site.in_features
            )));
        }
        observers.push(Observer::new(Components {
            wanted,
            tau: extra.tau,
            rows: Vec::new(),
            count: 0,
            mean: Vec::new(),
            squares: 0.0,
            s: Vec::new(),
            vectors: Vec::new(),
            converged: vec![false; wanted],
            error: None,
        }));
    }
    let of = |target: usize| {
        let index = looked_at.iter().position(|&looked| looked == first(target)).expect("looked at");
        &observers[index]
    };
    let budget: usize = order.iter().map(|&target| targets[target].r).sum();
    let mut ranks: Vec<usize> = order.iter().map(|&target| of(target).with(|c| c.wanted)).collect();
    for pass in 0.. {
        let rank = |target: usize| ranks[order.iter().position(|&t| t == target).expect("in the order")];
        let mut active = ActiveAdapters::default();
        let mut turning = None;
        for (&target, observer) in looked_at.iter().zip(&observers) {
            let settled = observer.with(|c| c.converged[..rank(target)].iter().all(|settled| *settled));
            if !settled {
                turning.get_or_insert(target);
                active.attach(SiteId(targets[target].site), observer.clone());
            }
        }
        let Some(turning) = turning else { break };
        if pass == LIMIT {
            return Err(Error::Config(format!(
                "{}: its principal components still turn after {LIMIT} batches; lower tau of eva_config, raise \
                 `batch_size` (a batch needs at least r * rho tokens that are learned), or say use_label_mask=false",
                site(turning).path
            )));
        }
        if pass > 0 {
            rows = match inputs.next().or_else(|| inputs.next()) {
                Some(rows) => rows,
                None => return Err(Error::Config("there are no data to look at".into())),
            };
        }
        let counted = |counted: &bool| *counted || !extra.use_label_mask;
        let counted: Vec<bool> = rows.learned.iter().map(counted).collect();
        observers.iter().for_each(|observer| observer.with(|c| c.rows.clone_from(&counted)));
        inputs.run(&active);
        for (&target, observer) in looked_at.iter().zip(&observers) {
            if let Some(error) = observer.with(|c| c.error.take()) {
                return Err(Error::Decomposition(format!("inputs of {}: {error}", site(target).path)));
            }
        }
        if observers.iter().all(|observer| observer.with(|c| c.count > 0)) {
            let explained: Vec<Vec<f64>> = order.iter().map(|&t| of(t).with(|c| c.explained())).collect();
            ranks = distribute(&explained, budget);
            // Layers of one input: the one that is looked at has the most.
            for at in looked_at.len()..order.len() {
                let leader = order.iter().position(|&t| t == first(order[at])).expect("in the order");
                if ranks[leader] < ranks[at] {
                    ranks.swap(leader, at);
                }
            }
        }
    }

    let mut found = Matrices::new();
    let (mut rank_pattern, mut alpha_pattern, mut kept) = (Map::new(), Map::new(), Vec::new());
    let all = registry::targets(&config, sites)?;
    for planned in &all {
        let site = &sites[planned.site];
        let place = order.iter().position(|&target| targets[target].site == planned.site);
        // What cannot be looked at (embeddings) starts as ever, with the rank it was to have.
        let rank = place.map_or(planned.r, |place| ranks[place]);
        if rank == 0 {
            continue;
        }
        if let Some(place) = place {
            let a = of(order[place]).with(|c| {
                let rows = c.vectors.chunks_exact(site.in_features).zip(&c.s).take(rank);
                let factor = |s: &f32| if extra.whiten { 1.0 / s.sqrt() } else { 1.0 };
                rows.flat_map(|(row, s)| row.iter().map(move |x| x * factor(s))).collect()
            });
            found.insert(site.path.clone(), Arc::new(a));
        }
        let alpha = match extra.adjust_scaling_factors {
            true => planned.alpha * rank as f64 / planned.r as f64,
            false => planned.alpha,
        };
        if rank != config.r {
            rank_pattern.insert(site.path.clone(), rank.into());
        }
        if alpha != config.lora_alpha {
            alpha_pattern.insert(site.path.clone(), alpha.into());
        }
        kept.push(site.path.clone());
    }
    if kept.len() < all.len() {
        config.target_modules = Some(Targets::Names(kept));
    }
    (config.rank_pattern, config.alpha_pattern) = (rank_pattern, alpha_pattern);
    config.other.insert("eva_config".into(), serde_json::to_value(extra).expect("plain data"));
    Ok((config, found))
}

/// How many of the `budget` components that explain most are each layer's.
fn distribute(explained: &[Vec<f64>], budget: usize) -> Vec<usize> {
    let one = |(layer, shares): (usize, &Vec<f64>)| shares.iter().map(|s| (*s, layer)).collect::<Vec<_>>();
    let mut all: Vec<(f64, usize)> = explained.iter().enumerate().flat_map(one).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut ranks = vec![0; explained.len()];
    all.iter().take(budget).for_each(|(_, layer)| ranks[*layer] += 1);
    ranks
}
