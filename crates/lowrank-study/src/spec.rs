//! What a study compares, and the runs that takes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lowrank_adapters::{AdapterSet, LoraConfig, NamedMethod, Targets};
use lowrank_engine::Site;
use lowrank_files::Range;
use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::run::{Role, Run};

/// A study, as its TOML file says it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Spec {
    /// Title of the report.
    pub name: String,
    /// Folder of the runs and the report.
    pub out: PathBuf,
    /// Every method, rank and choice of matrices is trained once with each.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// No run is begun after so many minutes; the next call goes on.
    pub time_limit_minutes: Option<f64>,
    /// The number of `lowrank eval` that methods are judged by.
    #[serde(default = "loss")]
    pub metric: String,
    /// Keys of `lowrank train` that all runs share.
    pub train: Table,
    /// Flags of `lowrank eval` besides those that it shares with training.
    #[serde(default)]
    pub eval: Table,
    /// Methods to compare: a name, and the keys of `lowrank train` in which it differs.
    #[serde(default)]
    pub method: Vec<Named>,
    /// Which matrices to adapt under one budget of parameters.
    pub matrices: Option<Matrices>,
    /// Which rank.
    pub ranks: Option<Ranks>,
    /// How much of one adapter's subspace lies in another's.
    pub subspace: Option<Subspace>,
    /// What an adapter amplifies.
    pub amplification: Option<AmplificationSpec>,
    /// How long a forward pass takes with and without the adapter.
    pub latency: Option<Latency>,
    /// Learning rates.
    pub sweep: Option<Sweep>,
}

/// A named set of keys.
#[derive(Clone, Debug, Deserialize)]
pub struct Named {
    /// Its name in the tables.
    pub name: String,
    /// Keys of `lowrank train`.
    #[serde(flatten)]
    pub options: Table,
}

/// Which matrices (the paper's table 5).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Matrices {
    /// Trainable parameters of every choice, as near as a whole rank comes.
    pub parameters: usize,
    /// The choices, each a list of module names.
    pub choices: Vec<Vec<String>>,
}

/// Which rank (table 6).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ranks {
    /// The ranks.
    pub r: Vec<usize>,
    /// For each of these choices of modules; the training's own where there is none.
    #[serde(default)]
    pub choices: Vec<Vec<String>>,
}

/// Similarity of subspaces (figures 3 and 4).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Subspace {
    /// The smaller and the larger rank of the first comparison.
    pub ranks: [usize; 2],
    /// Two seeds, compared at the larger rank.
    pub seeds: [u64; 2],
    /// Adapted modules by their path, or the end of it.
    pub modules: Vec<String>,
}

/// Amplification of directions (table 7).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AmplificationSpec {
    /// Ranks of the adapters that are looked at.
    pub ranks: Vec<usize>,
    /// Adapted modules by their path, or the end of it.
    pub modules: Vec<String>,
}

/// Latency of inference (table 1).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Latency {
    /// Sequences at a time.
    pub batch_sizes: Vec<usize>,
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// Each is timed so many times, in turns.
    #[serde(default = "repeats")]
    pub repeats: usize,
}

/// Learning rates.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sweep {
    /// The rates.
    pub learning_rates: Vec<f64>,
    /// Names of methods; all where there is none.
    #[serde(default)]
    pub methods: Vec<String>,
}

/// The nearest of the keys that a message says were expected.
fn nearest_key(message: &str) -> String {
    let mut words = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), words.next()) {
        (true, Some(key)) => lowrank_files::nearest(key, words),
        _ => String::new(),
    }
}

fn one_seed() -> Vec<u64> {
    vec![42]
}

fn loss() -> String {
    "loss".into()
}

fn repeats() -> usize {
    5
}

impl Spec {
    /// Reads a study's TOML.
    ///
    /// # Errors
    /// Names the key that is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let spec: Self = toml::from_str(text).map_err(|e| {
            let text = e.to_string();
            Error::Spec(format!("{}{}", text.trim_end(), nearest_key(e.message())))
        })?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Spec(what.to_owned()));
        for key in ["model", "data", "eval-data"] {
            let list = key != "model" && matches!(self.key(key), Some(Value::Array(_)));
            if !list && !matches!(self.key(key), Some(Value::String(_))) {
                return wrong(&format!("[train] needs {key}"));
            }
        }
        for key in ["out", "seed", "resume", "force", "log-json"] {
            if self.key(key).is_some() {
                return wrong(&format!(
                    "[train] has {key}, which the study decides (seeds are `seeds` on top)"
                ));
            }
        }
        for table in [&self.train, &self.eval].into_iter().chain(self.method.iter().map(|m| &m.options)) {
            if let Some(key) =
                table.keys().find(|key| key.contains('-') && table.contains_key(&key.replace('-', "_")))
            {
                return wrong(&format!("{key} is given twice, with dashes and with underscores"));
            }
        }
        if self.seeds.is_empty() {
            return wrong("seeds is empty");
        }
        self.check_ranges()?;
        if self.method.is_empty() && self.matrices.is_none() && self.ranks.is_none() && self.sweep.is_none() {
            return wrong("nothing to compare: give [[method]], [matrices], [ranks] or [sweep]");
        }
        if let Some(sweep) = &self.sweep {
            for name in &sweep.methods {
                if !self.method.iter().any(|m| m.name == *name) {
                    return wrong(&format!("[sweep] names the method {name:?}, which no [[method]] has"));
                }
            }
        }
        Ok(())
    }

    /// Checks every number against its range.
    fn check_ranges(&self) -> Result<()> {
        let check = |key: &str, range: Range, values: &[f64]| {
            let wrong = values.iter().find_map(|value| range.check(*value).err());
            wrong.map_or(Ok(()), |what| Err(Error::Spec(format!("{key} {what}"))))
        };
        let whole = |key: &str, range: Range, values: &[usize]| {
            check(key, range, &values.iter().map(|value| *value as f64).collect::<Vec<_>>())
        };
        check("time-limit-minutes", Range::Real(0.0, 1e9), self.time_limit_minutes.as_slice())?;
        if let Some(matrices) = &self.matrices {
            whole("[matrices] parameters", Range::Whole(1, 1 << 50), &[matrices.parameters])?;
        }
        if let Some(ranks) = &self.ranks {
            whole("[ranks] r", Range::RANK, &ranks.r)?;
        }
        if let Some(subspace) = &self.subspace {
            whole("[subspace] ranks", Range::RANK, &subspace.ranks)?;
        }
        if let Some(amplification) = &self.amplification {
            whole("[amplification] ranks", Range::RANK, &amplification.ranks)?;
        }
        if let Some(latency) = &self.latency {
            whole("[latency] batch-sizes", Range::Whole(1, 65_536), &latency.batch_sizes)?;
            whole("[latency] lengths", Range::Whole(1, 1 << 20), &latency.lengths)?;
            whole("[latency] repeats", Range::Whole(1, 10_000), &[latency.repeats])?;
        }
        if let Some(sweep) = &self.sweep {
            check("[sweep] learning-rates", Range::Real(0.0, 1e38), &sweep.learning_rates)?;
        }
        Ok(())
    }

    /// The data files of `[train]` under `key`.
    pub(crate) fn files(&self, key: &str) -> Vec<&str> {
        match self.key(key) {
            Some(Value::Array(files)) => files.iter().filter_map(Value::as_str).collect(),
            file => file.and_then(Value::as_str).into_iter().collect(),
        }
    }

    /// A shared key of training, with dashes or underscores.
    pub(crate) fn key(&self, name: &str) -> Option<&Value> {
        self.train.get(name).or_else(|| self.train.get(&name.replace('-', "_")))
    }

    /// The base model.
    pub fn model(&self) -> &str {
        self.key("model").and_then(Value::as_str).unwrap_or_default()
    }
}

/// The runs of a study, each once however many sections want it.
///
/// # Errors
/// Where a choice of matrices matches no module.
pub fn plan(spec: &Spec, sites: &[Site]) -> Result<Vec<Run>> {
    let mut runs = Plan { spec, by_id: BTreeMap::new(), order: Vec::new() };
    // A task with a head of its own has nothing to say before it is trained.
    let headed = spec.key("task").and_then(Value::as_str).is_some_and(|task| task != "lm");
    if !spec.method.is_empty() && !headed {
        let untrained = Table::from_iter([("max_steps".to_owned(), Value::Integer(0))]);
        runs.add("base model", &untrained, spec.seeds[0], Role::Base);
    }
    for (i, method) in spec.method.iter().enumerate() {
        for &seed in &spec.seeds {
            runs.add(&method.name, &method.options, seed, Role::Method(i));
        }
    }
    if let Some(matrices) = &spec.matrices {
        for (i, choice) in matrices.choices.iter().enumerate() {
            let r = rank_for(matrices.parameters, choice, sites)?;
            for &seed in &spec.seeds {
                runs.add(&choice.join(" "), &lora(r, Some(choice)), seed, Role::Matrices(i));
            }
        }
    }
    if let Some(ranks) = &spec.ranks {
        let own = [Vec::new()];
        let choices = if ranks.choices.is_empty() { &own[..] } else { &ranks.choices[..] };
        for (i, choice) in choices.iter().enumerate() {
            for &r in &ranks.r {
                for &seed in &spec.seeds {
                    let modules = (!choice.is_empty()).then_some(&choice[..]);
                    runs.add(
                        &format!("r={r} {}", choice.join(" ")),
                        &lora(r, modules),
                        seed,
                        Role::Rank(i, r),
                    );
                }
            }
        }
    }
    for (r, seed) in adapters_wanted(spec) {
        runs.add(&format!("r={r}"), &lora(r, None), seed, Role::Adapter(r, seed));
    }
    if let Some(sweep) = &spec.sweep {
        for (i, method) in spec.method.iter().enumerate() {
            if !sweep.methods.is_empty() && !sweep.methods.contains(&method.name) {
                continue;
            }
            for (j, &rate) in sweep.learning_rates.iter().enumerate() {
                let mut options = method.options.clone();
                options.insert("learning_rate".into(), Value::Float(rate));
                runs.add(&format!("{} lr={rate:e}", method.name), &options, spec.seeds[0], Role::Sweep(i, j));
            }
        }
    }
    let Plan { mut by_id, order, .. } = runs;
    Ok(order.iter().map(|id| by_id.remove(id).expect("planned once")).collect())
}

/// The adapters whose matrices the analysis looks at: rank and seed.
fn adapters_wanted(spec: &Spec) -> Vec<(usize, u64)> {
    let mut wanted = Vec::new();
    if let Some(subspace) = &spec.subspace {
        let ([small, large], [first, second]) = (subspace.ranks, subspace.seeds);
        wanted.extend([(small, first), (large, first), (large, second)]);
    }
    if let Some(amplification) = &spec.amplification {
        wanted.extend(amplification.ranks.iter().map(|&r| (r, spec.seeds[0])));
    }
    wanted
}

/// Keys of a plain LoRA of rank `r`, with alpha moving along so that the scaling stays the training's own.
fn lora(r: usize, modules: Option<&[String]>) -> Table {
    let mut options = Table::new();
    options.insert("r".into(), Value::Integer(r as i64));
    options.insert("lora_alpha".into(), Value::Float(2.0 * r as f64));
    if let Some(modules) = modules {
        let names = modules.iter().map(|m| Value::String(m.clone())).collect();
        options.insert("target_modules".into(), Value::Array(names));
    }
    options
}

/// The rank at which adapters of `modules` have about `parameters` parameters.
fn rank_for(parameters: usize, modules: &[String], sites: &[Site]) -> Result<usize> {
    let target_modules = Some(Targets::Names(modules.to_vec()));
    let config = LoraConfig { r: 1, target_modules, ..LoraConfig::default() };
    let of_rank_1 = AdapterSet::planned(config, sites)?.params.count();
    Ok((parameters as f64 / of_rank_1 as f64).round().max(1.0) as usize)
}

struct Plan<'a> {
    spec: &'a Spec,
    by_id: BTreeMap<String, Run>,
    order: Vec<String>,
}

impl Plan<'_> {
    fn add(&mut self, name: &str, options: &Table, seed: u64, role: Role) {
        let named = |table: &Table| -> Table {
            table.iter().map(|(key, value)| (key.replace('-', "_"), value.clone())).collect()
        };
        let (mut all, own) = (named(&self.spec.train), named(options));
        // What all share is for the default method; others have modules of their own.
        let text = |key: &str| own.get(key).and_then(Value::as_str);
        let named = match (text("method"), text("peft_type")) {
            (Some(name), _) => NamedMethod::parse(name).ok(),
            (None, Some(peft_type)) => NamedMethod::of_peft_type(peft_type).ok(),
            (None, None) => None,
        };
        if let Some(method) = named.map(|named| named.method)
            && method.peft_type() != LoraConfig::default().peft_type
        {
            let foreign = ["use_dora", "enable_lora"].iter().filter(|field| !method.fields().contains(field));
            for field in method.unused_fields().iter().chain(foreign).chain(&["target_modules"]) {
                all.remove(*field);
            }
        }
        all.extend(own);
        all.insert("seed".into(), Value::Integer(seed as i64));
        let run = Run::new(name, all);
        match self.by_id.get_mut(&run.id) {
            Some(known) => known.roles.push(role),
            None => {
                self.order.push(run.id.clone());
                self.by_id.insert(run.id.clone(), Run { roles: vec![role], ..run });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lowrank_engine::SiteKind;

    use super::*;

    const TEXT: &str = r#"
        name = "A study"
        out = "study"
        seeds = [1, 2]
        [train]
        model = "m.gguf"
        data = "train.jsonl"
        eval-data = "dev.jsonl"
        target-modules = ["q_proj", "v_proj"]
        [[method]]
        name = "LoRA r=4"
        r = 4
        lora-alpha = 8.0
        [matrices]
        parameters = 100
        choices = [["q_proj"], ["q_proj", "v_proj"]]
        [ranks]
        r = [4, 8]
        [subspace]
        ranks = [4, 8]
        seeds = [1, 2]
        modules = ["q_proj"]
        [sweep]
        learning-rates = [1e-4, 1e-3]
    "#;

    fn sites() -> Vec<Site> {
        let site = |name: &str| Site {
            path: format!("model.layers.0.{name}"),
            kind: SiteKind::Linear,
            in_features: 4,
            out_features: 6,
            bias: false,
        };
        vec![site("q_proj"), site("v_proj")]
    }

    #[test]
    fn equal_runs_are_done_once() {
        let runs = plan(&Spec::parse(TEXT).unwrap(), &sites()).unwrap();
        // The base; the method's two seeds; two choices at rank 10 and 5; rank 8 (rank 4 is the method); the sweep's two.
        assert_eq!(runs.len(), 1 + 2 + 4 + 2 + 2, "{:#?}", runs.iter().map(|r| &r.name).collect::<Vec<_>>());
        assert!(runs[0].is_base());
        let method = &runs[1];
        assert!(method.roles.contains(&Role::Method(0)) && method.roles.contains(&Role::Rank(0, 4)));
        assert!(method.roles.contains(&Role::Adapter(4, 1)));
    }

    #[test]
    fn methods_of_another_kind_choose_their_modules() {
        let text = TEXT.replace("[matrices]", "[[method]]\nname = \"full\"\nmethod = \"full\"\n[matrices]");
        let runs = plan(&Spec::parse(&text).unwrap(), &sites()).unwrap();
        let targets =
            |role| runs.iter().find(|r| r.roles.contains(&role)).unwrap().options.get("target_modules");
        assert!(targets(Role::Method(0)).is_some() && targets(Role::Method(1)).is_none());
        // Nor do they have what the shared keys say of ranks.
        let shared = text.replace("[train]", "[train]\nr = 8\nlora-dropout = 0.1");
        let runs = plan(&Spec::parse(&shared).unwrap(), &sites()).unwrap();
        let full = runs.iter().find(|r| r.roles.contains(&Role::Method(1))).unwrap();
        assert!(!full.options.contains_key("r") && !full.options.contains_key("lora_dropout"));
    }

    #[test]
    fn one_budget_gives_the_rank_of_each_choice() {
        let runs = plan(&Spec::parse(TEXT).unwrap(), &sites()).unwrap();
        let rank = |role| {
            let run = runs.iter().find(|r| r.roles.contains(&role)).unwrap();
            run.options["r"].as_integer().unwrap()
        };
        assert_eq!((rank(Role::Matrices(0)), rank(Role::Matrices(1))), (10, 5));
    }

    #[test]
    fn the_examples_are_studies() {
        for text in [
            include_str!("../../../examples/study/smollm2-e2e.toml"),
            include_str!("../../../examples/study/minilm-sst2.toml"),
        ] {
            let spec = Spec::parse(text).unwrap();
            assert!(spec.subspace.is_some() && spec.sweep.is_some());
        }
    }

    #[test]
    fn wrong_keys_are_named() {
        for (text, want) in [
            (TEXT.replace("[ranks]", "[rank]"), "rank"),
            (
                TEXT.replace("lora-alpha = 8.0", "lora-alpha = 8.0\n        lora_alpha = 4.0"),
                "lora-alpha is given twice",
            ),
            (TEXT.replace("data = \"train.jsonl\"", ""), "needs data"),
            (TEXT.replace("[train]", "[train]\nseed = 3"), "has seed"),
            (TEXT.replace("[sweep]", "[sweep]\nmethods = [\"x\"]"), "\"x\""),
            (TEXT.replace("[1, 2]\n        [train]", "[]\n        [train]"), "seeds is empty"),
        ] {
            let error = Spec::parse(&text).unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
    }
}
