//! Which sites get an adapter, and with which rank: PEFT's matching rules
//! (`peft/tuners/tuners_utils.py`: `check_target_module_exists`, `get_pattern_key`).

use std::collections::BTreeSet;

use lowrank_engine::{Site, SiteKind};
use regex::Regex;
use serde_json::{Map, Value};

use crate::variants::method;
use crate::{Error, LoraConfig, Targets};

/// A site that gets an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Index in the model's list of sites.
    pub site: usize,
    /// Its rank.
    pub r: usize,
    /// Its alpha.
    pub alpha: f64,
}

/// The sites that `config` means.
///
/// # Errors
/// Where a pattern is no regular expression, a rank is no positive number, or nothing matches (lists
/// what exists).
pub fn targets(config: &LoraConfig, sites: &[Site]) -> Result<Vec<Target>, Error> {
    let wanted = config
        .target_modules
        .as_ref()
        .ok_or_else(|| Error::Config("target_modules is missing: name modules or say all-linear".into()))?;
    let include = Matcher::new(wanted)?;
    let exclude = config.exclude_modules.as_ref().map(Matcher::new).transpose()?;
    let layers = LayerFilter::new(config)?;
    let method = method(config)?;
    let (rank, alpha) = method.rank_and_alpha(config)?;
    let ranks = patterns(&config.rank_pattern)?;
    let alphas = patterns(&config.alpha_pattern)?;

    let (mut found, mut passed_over) = (Vec::new(), false);
    for (index, site) in sites.iter().enumerate() {
        let excluded = exclude.as_ref().is_some_and(|e| e.matches(site)) || config.saves(&site.path);
        if excluded || !include.matches(site) || !layers.admits(&site.path) {
            continue;
        }
        if !method.adapts(site) {
            passed_over = true;
            continue;
        }
        let r = match first_match(&ranks, &site.path) {
            Some(value) => value.as_u64().filter(|&r| r > 0).ok_or_else(|| {
                Error::Config(format!(
                    "rank_pattern gives {value} for {}: a rank is a whole number from 1",
                    site.path
                ))
            })? as usize,
            None => rank,
        };
        let alpha = match first_match(&alphas, &site.path) {
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
    if found.is_empty() && passed_over && config.peft_type == "BITFIT" {
        return Err(Error::Config(format!(
            "BitFit trains biases, and no layer that target_modules {wanted} means has one"
        )));
    }
    if found.is_empty() {
        return Err(Error::NoTarget { target: wanted.to_string(), available: module_names(sites) });
    }
    Ok(found)
}

/// Checks that every name of `target_modules` is that of a layer. PEFT passes over a name that matches nothing, and so does
/// reading an adapter; where one is made, a typing error deserves better.
///
/// # Errors
/// Lists the names that match nothing, and those that exist.
pub(crate) fn check_names(config: &LoraConfig, sites: &[Site]) -> Result<(), Error> {
    let Some(Targets::Names(names)) = &config.target_modules else { return Ok(()) };
    let matches = |name: &str| sites.iter().any(|site| ends_with_name(&site.path, name));
    let unmatched: Vec<&str> = names.iter().map(String::as_str).filter(|name| !matches(name)).collect();
    match unmatched.is_empty() {
        true => Ok(()),
        false => Err(Error::NoTarget { target: format!("{unmatched:?}"), available: module_names(sites) }),
    }
}

/// How many numbered layers (blocks) a model with these `sites` has.
pub fn layer_count(sites: &[Site]) -> usize {
    let number = regex(LAYER, "a layer's number").expect("it is one");
    let numbers = sites.iter().filter_map(|site| number.captures(&site.path)?[1].parse::<usize>().ok());
    numbers.max().map_or(0, |last| last + 1)
}

/// Which of `sites` the `wanted` modules are.
///
/// # Errors
/// Where a pattern is no regular expression.
pub(crate) fn matching(wanted: &Targets, sites: &[Site]) -> Result<Vec<bool>, Error> {
    let matcher = Matcher::new(wanted)?;
    Ok(sites.iter().map(|site| matcher.matches(site)).collect())
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
    Regex(Regex),
    Names(Vec<String>),
}

impl Matcher {
    fn new(targets: &Targets) -> Result<Self, Error> {
        Ok(match targets {
            Targets::Pattern(p) if p.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            Targets::Pattern(p) => Self::Regex(regex(&format!("^(?:{p})$"), p)?),
            Targets::Names(names) => Self::Names(names.clone()),
        })
    }

    fn matches(&self, site: &Site) -> bool {
        match self {
            Self::AllLinear => matches!(site.kind, SiteKind::Linear | SiteKind::TransposedLinear),
            Self::Regex(regex) => regex.is_match(&site.path),
            Self::Names(names) => names.iter().any(|name| ends_with_name(&site.path, name)),
        }
    }
}

/// The number of the layer that a path belongs to.
const LAYER: &str = r"^.*\.[^.]*\.(\d+)\.";

/// `layers_to_transform` with `layers_pattern`.
struct LayerFilter<'a> {
    layers: Option<&'a [usize]>,
    patterns: Vec<Regex>,
}

impl<'a> LayerFilter<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self, Error> {
        // No layer at all is every layer in PEFT.
        let layers = config.layers_to_transform.as_ref().map(|l| l.as_slice()).filter(|l| !l.is_empty());
        let patterns = match &config.layers_pattern {
            Some(p) if !p.as_slice().is_empty() => {
                let pattern = |p: &String| regex(&format!(r"^.*\.{p}\.(\d+)\."), p);
                p.as_slice().iter().map(pattern).collect::<Result<_, _>>()?
            }
            _ => vec![regex(LAYER, "layers_pattern")?],
        };
        Ok(Self { layers, patterns })
    }

    fn admits(&self, path: &str) -> bool {
        let Some(layers) = self.layers else { return true };
        let layer = self.patterns.iter().find_map(|p| p.captures(path)?[1].parse::<usize>().ok());
        layer.is_some_and(|layer| layers.contains(&layer))
    }
}

fn regex(full: &str, shown: &str) -> Result<Regex, Error> {
    Regex::new(full).map_err(|e| Error::Config(format!("{shown:?} is no regular expression: {e}")))
}

fn patterns(map: &Map<String, Value>) -> Result<Vec<(Regex, &Value)>, Error> {
    map.iter().map(|(key, value)| Ok((regex(&format!(r"^(.*\.)?({key})$"), key)?, value))).collect()
}

fn first_match<'a>(patterns: &[(Regex, &'a Value)], path: &str) -> Option<&'a Value> {
    patterns.iter().find(|(regex, _)| regex.is_match(path)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Vec<Site> {
        let mut sites = Vec::new();
        for layer in 0..3 {
            for name in ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"] {
                let path = format!("model.layers.{layer}.{name}");
                sites.push(Site {
                    path,
                    kind: SiteKind::Linear,
                    in_features: 4,
                    out_features: 4,
                    bias: false,
                });
            }
        }
        sites.push(Site {
            path: "lm_head".into(),
            kind: SiteKind::Head,
            in_features: 4,
            out_features: 9,
            bias: false,
        });
        sites
    }

    fn found(config: &LoraConfig) -> Vec<(String, usize, f64)> {
        let sites = sites();
        let name = |t: &Target| (sites[t.site].path.clone(), t.r, t.alpha);
        targets(config, &sites).unwrap().iter().map(name).collect()
    }

    fn config(targets: Targets) -> LoraConfig {
        LoraConfig { target_modules: Some(targets), ..LoraConfig::default() }
    }

    #[test]
    fn names_match_whole_path_ends() {
        assert_eq!(found(&config(Targets::parse("q_proj, v_proj"))).len(), 6);
        assert_eq!(found(&config(Targets::parse("layers.1.self_attn.q_proj"))).len(), 1);
        let wrong = targets(&config(Targets::parse("proj")), &sites()).unwrap_err().to_string();
        assert!(wrong.contains("q_proj, up_proj, v_proj"), "{wrong}");
        let some = config(Targets::parse("q_proj,k_proj"));
        assert_eq!(found(&some).len(), 3);
        let one_wrong = check_names(&some, &sites()).unwrap_err().to_string();
        assert!(one_wrong.contains("k_proj"), "{one_wrong}");
    }

    #[test]
    fn patterns_match_whole_paths() {
        assert_eq!(found(&config(Targets::parse(r".*\.(q|v)_proj"))).len(), 6);
        assert!(targets(&config(Targets::parse("q_proj$|")), &sites()).is_err());
        assert!(targets(&config(Targets::parse("(")), &sites()).is_err());
    }

    #[test]
    fn all_linear_leaves_the_head_out() {
        assert_eq!(found(&config(Targets::parse("all-linear"))).len(), 9);
        assert_eq!(found(&config(Targets::parse("lm_head"))).len(), 1);
    }

    #[test]
    fn layers_and_exclusions_narrow() {
        let mut c = config(Targets::parse("q_proj"));
        c.layers_to_transform = Some(OneOrMany::Many(vec![0, 2]));
        assert_eq!(found(&c).len(), 2);
        c.layers_to_transform = Some(OneOrMany::Many(Vec::new()));
        assert_eq!(found(&c).len(), 3, "an empty list is no choice");
        c.layers_to_transform = Some(OneOrMany::Many(vec![0, 2]));
        c.layers_pattern = Some(OneOrMany::One("blocks".into()));
        assert!(targets(&c, &sites()).is_err());
        let mut c = config(Targets::parse("all-linear"));
        c.exclude_modules = Some(Targets::parse("up_proj"));
        assert_eq!(found(&c).len(), 6);
    }

    #[test]
    fn rank_and_alpha_patterns_take_the_first_match() {
        let mut c = config(Targets::parse("q_proj"));
        c.rank_pattern.insert("layers.1.self_attn.q_proj".into(), 2.into());
        c.alpha_pattern.insert(r".*\.0\..*".into(), 32.into());
        let got: Vec<_> = found(&c).into_iter().map(|(_, r, alpha)| (r, alpha)).collect();
        assert_eq!(got, [(8, 32.0), (2, 8.0), (8, 8.0)]);
        c.rank_pattern.insert("q_proj".into(), 0.into());
        assert!(targets(&c, &sites()).is_err());
    }

    use crate::OneOrMany;
}
