//! Which sites get an adapter, and with which rank: the matching rules of PEFT
//! (`peft/tuners/tuners_utils.py`: `check_target_module_exists`, `get_pattern_key`).

use std::collections::BTreeSet;

use lowrank_engine::{Site, SiteKind};
use serde_json::{Map, Value};

use crate::config::{LoraConfig, OneOrMany, Targets};
use crate::contract::{Method, Target};
use crate::error::Error;
use crate::pattern::Pattern;

/// The sites that `config`, of this method, targets.
///
/// # Errors
/// If a pattern is not a valid regular expression, a rank is not a positive integer, or nothing matches (lists what
/// exists).
pub(crate) fn targets(
    method: &dyn Method,
    config: &LoraConfig,
    sites: &[Site],
) -> Result<Vec<Target>, Error> {
    let wanted = config
        .target_modules
        .as_ref()
        .ok_or_else(|| Error::Config("target_modules is missing: name modules or say all-linear".into()))?;
    let include = Matcher::new(wanted)?;
    let exclude = config.exclude_modules.as_ref().map(Matcher::new).transpose()?;
    let layers = LayerFilter::new(config)?;
    let (rank, alpha) = method.rank_and_alpha(config)?;
    let ranks = patterns(&config.rank_pattern)?;
    let alphas = patterns(&config.alpha_pattern)?;

    let (mut found, mut passed_over) = (Vec::new(), false);
    for (index, site) in sites.iter().enumerate() {
        let excluded = match &exclude {
            Some(exclude) => exclude.matches(site)?,
            None => false,
        };
        if excluded || config.saves(&site.path) || !include.matches(site)? {
            continue;
        }
        if !include.names(site) && !layers.admits(&site.path)? {
            continue;
        }
        if !method.adapts(site) {
            passed_over = true;
            continue;
        }
        let r = match first_match(&ranks, &site.path)? {
            Some(value) => value.as_u64().filter(|&r| r > 0).ok_or_else(|| {
                Error::Config(format!(
                    "rank_pattern gives {value} for {}: a rank is an integer from 1",
                    site.path
                ))
            })? as usize,
            None => rank,
        };
        let alpha = match first_match(&alphas, &site.path)? {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| Error::Config(format!("alpha_pattern gives {value} for {}", site.path)))?,
            None => alpha,
        };
        found.push(Target { site: index, r, alpha });
    }
    if found.is_empty() && method.may_have_no_target() && config.modules_to_save.is_some() {
        return Ok(found);
    }
    if let (true, true, Some(what)) = (found.is_empty(), passed_over, method.nothing_to_adapt(wanted)) {
        return Err(Error::Config(what));
    }
    if found.is_empty() {
        return Err(Error::NoTarget { target: wanted.to_string(), available: module_names(sites) });
    }
    Ok(found)
}

/// Checks that every name, pattern and number of a new adapter's configuration is that of a layer. PEFT passes over what
/// matches nothing, and so does reading an adapter; where one is made, a typing error deserves better.
///
/// # Errors
/// Lists what matches nothing, and what exists.
pub(crate) fn check_names(method: &dyn Method, config: &LoraConfig, sites: &[Site]) -> Result<(), Error> {
    if let Some(Targets::Names(names)) = &config.target_modules {
        let unmatched = unmatched(names, sites);
        if !unmatched.is_empty() {
            return Err(Error::NoTarget { target: format!("{unmatched:?}"), available: module_names(sites) });
        }
    }
    let lost = |field: &str, what: &str| {
        Err(Error::Config(format!(
            "{field}: no layer matches {what}; this model has: {}",
            module_names(sites)
        )))
    };
    match &config.exclude_modules {
        Some(Targets::Names(names)) => {
            let unmatched = unmatched(names, sites);
            if !unmatched.is_empty() {
                return lost("exclude_modules", &format!("{unmatched:?}"));
            }
        }
        Some(pattern) if !matching(pattern, sites)?.contains(&true) => {
            return lost("exclude_modules", &pattern.to_string());
        }
        _ => {}
    }
    check_layers(config, sites)?;
    let targets = targets(method, config, sites)?;
    for (field, map) in [("rank_pattern", &config.rank_pattern), ("alpha_pattern", &config.alpha_pattern)] {
        for (pattern, (regex, _)) in map.keys().zip(patterns(map)?) {
            let matched = targets.iter().map(|target| regex.is_match(&sites[target.site].path));
            if !matched.collect::<Result<Vec<_>, _>>()?.contains(&true) {
                return lost(field, &format!("{pattern:?} and gets an adapter"));
            }
        }
    }
    Ok(())
}

fn unmatched<'a>(names: &'a [String], sites: &[Site]) -> Vec<&'a str> {
    let matches = |name: &str| sites.iter().any(|site| ends_with_name(&site.path, name));
    names.iter().map(String::as_str).filter(|name| !matches(name)).collect()
}

/// Checks `layers_to_transform` and `layers_pattern` of a new adapter, as PEFT does and against the layers there are.
fn check_layers(config: &LoraConfig, sites: &[Site]) -> Result<(), Error> {
    let filter = LayerFilter::new(config)?;
    let Some(layers) = filter.layers else {
        return match &config.layers_pattern {
            None => Ok(()),
            Some(_) => Err(Error::Config("layers_pattern needs layers_to_transform".into())),
        };
    };
    let found = sites.iter().filter_map(|site| filter.layer(&site.path).transpose());
    let found: BTreeSet<usize> = found.collect::<Result<_, _>>()?;
    let absent = layers.iter().find(|layer| !found.contains(layer));
    match (absent, found.first(), found.last()) {
        (None, ..) => Ok(()),
        (Some(layer), Some(first), Some(last)) => Err(Error::Config(format!(
            "layers_to_transform: there is no layer {layer}; this model has layers {first} to {last}"
        ))),
        (Some(_), ..) => {
            let what = "no layer of this model has a number under layers_pattern";
            Err(Error::Config(format!("layers_to_transform: {what}")))
        }
    }
}

/// How many numbered layers (blocks) a model with these `sites` has.
pub fn layer_count(sites: &[Site]) -> usize {
    let layer = Pattern::layer(None).expect("it is one");
    let numbers = sites.iter().filter_map(|site| layer.number(&site.path).ok().flatten());
    numbers.max().map_or(0, |last| last + 1)
}

/// Which of `sites` the `wanted` modules are.
///
/// # Errors
/// If a pattern is not a valid regular expression.
pub(crate) fn matching(wanted: &Targets, sites: &[Site]) -> Result<Vec<bool>, Error> {
    let matcher = Matcher::new(wanted)?;
    sites.iter().map(|site| matcher.matches(site)).collect()
}

/// The last parts of the paths of layers, each once.
fn module_names(sites: &[Site]) -> String {
    let name = |s: &Site| s.path.rsplit('.').next().unwrap_or(&s.path).to_owned();
    let layers = sites.iter().filter(|site| !matches!(site.kind, SiteKind::Norm | SiteKind::Convolution));
    let names: BTreeSet<String> = layers.map(name).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

enum Matcher {
    AllLinear,
    Regex(Pattern),
    Names(Vec<String>),
}

impl Matcher {
    fn new(targets: &Targets) -> Result<Self, Error> {
        Ok(match targets {
            Targets::Pattern(p) if p.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            Targets::Pattern(p) => Self::Regex(Pattern::whole(p)?),
            Targets::Names(names) => Self::Names(names.clone()),
        })
    }

    fn matches(&self, site: &Site) -> Result<bool, Error> {
        Ok(match self {
            Self::AllLinear => matches!(site.kind, SiteKind::Linear | SiteKind::TransposedLinear),
            Self::Regex(pattern) => pattern.is_match(&site.path)?,
            Self::Names(names) => names.iter().any(|name| ends_with_name(&site.path, name)),
        })
    }

    /// Whether it names the whole path of a layer, which no choice of layers leaves out.
    fn names(&self, site: &Site) -> bool {
        matches!(self, Self::Names(names) if names.contains(&site.path))
    }
}

/// `layers_to_transform` with `layers_pattern`.
struct LayerFilter<'a> {
    layers: Option<&'a [usize]>,
    patterns: Vec<Pattern>,
}

impl<'a> LayerFilter<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self, Error> {
        // No layer at all is every layer in PEFT, and so is an empty pattern.
        let layers = config.layers_to_transform.as_ref().map(|l| l.as_slice()).filter(|l| !l.is_empty());
        let named: &[String] = match &config.layers_pattern {
            Some(OneOrMany::One(one)) if one.is_empty() => &[],
            Some(patterns) => patterns.as_slice(),
            None => &[],
        };
        let patterns = match named {
            [] => vec![Pattern::layer(None)?],
            named => named.iter().map(|name| Pattern::layer(Some(name))).collect::<Result<_, _>>()?,
        };
        Ok(Self { layers, patterns })
    }

    fn admits(&self, path: &str) -> Result<bool, Error> {
        let Some(layers) = self.layers else { return Ok(true) };
        Ok(self.layer(path)?.is_some_and(|layer| layers.contains(&layer)))
    }

    /// The number of the layer that a path belongs to.
    fn layer(&self, path: &str) -> Result<Option<usize>, Error> {
        for pattern in &self.patterns {
            if let Some(layer) = pattern.number(path)? {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }
}

fn patterns(map: &Map<String, Value>) -> Result<Vec<(Pattern, &Value)>, Error> {
    map.iter().map(|(key, value)| Ok((Pattern::end(key)?, value))).collect()
}

fn first_match<'a>(patterns: &[(Pattern, &'a Value)], path: &str) -> Result<Option<&'a Value>, Error> {
    for (pattern, value) in patterns {
        if pattern.is_match(path)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}
