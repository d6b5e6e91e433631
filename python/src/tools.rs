//! The tools on adapter files. `lowrank/tools.py` gives them their Python face.

use std::path::PathBuf;
use std::sync::Arc;

use lowrank::adapters::Targets;
use lowrank::engine::Format;
use lowrank::tools::compose::{Combination, Compose};
use lowrank::tools::extract::Extract;
use lowrank::tools::resize::{Prune, lora_to_dtype, prune, resize};
use lowrank::tools::{FileFormat, Lora, Options, Pair, Regex, Rule, compare, formats};
use lowrank::{Error, extract_adapter};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::array::Array;
use crate::error::to_python;
use crate::interrupt::{self, Caller};
use crate::threads::pool;

/// An adapter as a file holds it.
#[pyclass(frozen, module = "lowrank.tools")]
pub struct AdapterFile {
    lora: Arc<Lora>,
}

/// Runs `work` on the threads, with the GIL free and Ctrl-C looked for.
fn free<T: Send>(
    py: Python<'_>,
    threads: usize,
    work: impl FnOnce() -> lowrank::Result<T> + Send,
) -> PyResult<T> {
    let (result, raised) = interrupt::run(py, &*pool(threads)?, |_: Caller<()>| work(), |_, ()| Ok(true));
    raised.map_or_else(|| result.map_err(to_python), Err)
}

fn rule(name: &str, value: f64) -> lowrank::Result<Rule> {
    let rule = match name {
        "rank" if value >= 1.0 && value.fract() == 0.0 => Rule::Fixed(value as usize),
        "rank" => return Err(Error::Usage(format!("a rank is a whole number from 1, not {value}"))),
        "energy" => Rule::Energy(value),
        "frobenius" => Rule::Frobenius(value),
        "cumulative" => Rule::Cumulative(value),
        "ratio" => Rule::Ratio(value),
        _ => return Err(Error::Usage(format!("no rule {name:?} for ranks"))),
    };
    rule.check()?;
    Ok(rule)
}

fn number_type(name: &str) -> lowrank::Result<Format> {
    let known = [Format::F32, Format::F16, Format::BF16];
    let found = known.into_iter().find(|format| format.name().eq_ignore_ascii_case(name));
    found.ok_or_else(|| Error::Usage(format!("the number type {name:?} is not possible: f32, f16 or bf16")))
}

impl AdapterFile {
    fn new(lora: Lora) -> Self {
        Self { lora: Arc::new(lora) }
    }

    fn pair(&self, path: &str) -> PyResult<&Pair> {
        self.lora.pairs.get(path).ok_or_else(|| PyKeyError::new_err(path.to_owned()))
    }
}

#[pymethods]
impl AdapterFile {
    /// Reads an adapter; returns it and the name of its format.
    #[staticmethod]
    fn load(
        path: PathBuf,
        format: Option<&str>,
        alpha: Option<f64>,
        enable_lora: Vec<bool>,
        base: Option<String>,
        component: Option<String>,
    ) -> PyResult<(Self, &'static str)> {
        let read = || -> lowrank::Result<_> {
            let format = format.map_or_else(|| FileFormat::detect(&path), FileFormat::parse)?;
            let options = Options { alpha, enable_lora, base, component };
            Ok((Self::new(formats::read(&path, format, &options)?), format.name))
        };
        read().map_err(to_python)
    }

    /// Writes it.
    fn save(
        &self,
        path: PathBuf,
        format: &str,
        enable_lora: Vec<bool>,
        base: Option<String>,
        component: Option<String>,
        force: bool,
    ) -> PyResult<()> {
        let write = || -> lowrank::Result<_> {
            if path.exists() && !force {
                return Err(Error::Usage(format!("{} exists; force=True replaces it", path.display())));
            }
            let options = Options { alpha: None, enable_lora, base, component };
            formats::write(&self.lora, &path, FileFormat::parse(format)?, &options)?;
            Ok(())
        };
        write().map_err(to_python)
    }

    /// `(path, rank, alpha, outputs, inputs)` of every layer.
    fn layers(&self) -> Vec<(String, usize, f64, usize, usize)> {
        let layer = |(path, pair): (&String, &Pair)| {
            (path.clone(), pair.rank(), pair.alpha, pair.outputs(), pair.inputs())
        };
        self.lora.pairs.iter().map(layer).collect()
    }

    /// Numbers in all tensors.
    fn parameters(&self) -> usize {
        self.lora.parameters()
    }

    /// `adapter_config.json` where it came with one.
    fn config(&self) -> String {
        Value::Object(self.lora.config.clone()).to_string()
    }

    /// `A: [r,K]` and `B: [O,r]` of a layer, where they lie.
    fn weights(&self, path: &str) -> PyResult<(Array, Array)> {
        let pair = self.pair(path)?;
        let (r, o, k) = (pair.rank(), pair.outputs(), pair.inputs());
        let array = |data: &[f32], shape| Array::new(self.lora.clone(), data, shape, true);
        Ok((array(&pair.a.data, vec![r, k]), array(&pair.b.data, vec![o, r])))
    }

    /// `alpha / r * B A: [O,K]` of a layer.
    fn delta(&self, path: &str) -> PyResult<Array> {
        let pair = self.pair(path)?;
        Ok(Array::owned(pair.delta(), vec![pair.outputs(), pair.inputs()]))
    }

    /// The spectrum of every layer, in JSON.
    fn spectra(&self, py: Python<'_>, threads: usize) -> PyResult<String> {
        let spectra = free(py, threads, || Ok(compare::spectra(&self.lora)?))?;
        let layer = |s: &compare::Spectrum| {
            json!({
                "layer": s.path,
                "shape": [s.shape.0, s.shape.1],
                "r": s.rank,
                "scaling": s.scaling,
                "norm": s.norm,
                "effective_rank": s.effective_rank,
                "rank_99": s.rank_99,
                "singular_values": s.singular_values,
            })
        };
        Ok(Value::Array(spectra.iter().map(layer).collect()).to_string())
    }

    /// How it differs from `other`, layer by layer, in JSON.
    fn diff(&self, py: Python<'_>, other: &Self, threads: usize) -> PyResult<String> {
        let layers = free(py, threads, || Ok(compare::diff(&self.lora, &other.lora)?))?;
        let layer = |d: &compare::Difference| {
            json!({
                "layer": d.path,
                "ranks": [d.ranks.0, d.ranks.1],
                "norms": [d.norms.0, d.norms.1],
                "distance": d.distance,
                "cosine": d.cosine,
                "overlap": d.overlap,
            })
        };
        Ok(Value::Array(layers.iter().map(layer).collect()).to_string())
    }

    /// Whether both have the same numbers.
    fn same(&self, other: &Self) -> bool {
        self.lora.pairs == other.lora.pairs && self.lora.saved == other.lora.saved
    }

    /// Another rank for every layer, by a rule; and `(path, before, after, energy)` of each.
    #[allow(clippy::type_complexity)]
    fn resize(
        &self,
        py: Python<'_>,
        name: &str,
        value: f64,
        max_rank: Option<usize>,
        threads: usize,
    ) -> PyResult<(Self, Vec<(String, usize, usize, f64)>)> {
        let (lora, report) = free(py, threads, || {
            Ok(resize(&self.lora, rule(name, value)?, max_rank.unwrap_or(usize::MAX))?)
        })?;
        let report = report.into_iter().map(|r| (r.path, r.ranks.0, r.ranks.1, r.energy)).collect();
        Ok((Self::new(lora), report))
    }

    /// Without small entries and layers; and the layers that went.
    fn prune(
        &self,
        py: Python<'_>,
        density: Option<f64>,
        min_norm: Option<f64>,
        drop: Option<&str>,
    ) -> PyResult<(Self, Vec<String>)> {
        let (lora, gone) = free(py, 0, || {
            let wrong = |e| Error::Usage(format!("drop is not a regular expression: {e}"));
            let drop = drop.map(Regex::new).transpose().map_err(wrong)?;
            Ok(prune(&self.lora, &Prune { density, min_norm, drop })?)
        })?;
        Ok((Self::new(lora), gone))
    }

    /// In another number type.
    fn to(&self, dtype: &str) -> PyResult<Self> {
        let convert = || -> lowrank::Result<_> {
            let mut lora = (*self.lora).clone();
            lora_to_dtype(&mut lora, number_type(dtype)?)?;
            Ok(Self::new(lora))
        };
        convert().map_err(to_python)
    }
}

/// Several adapters with weights as one.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn compose(
    py: Python<'_>,
    adapters: Vec<(Bound<'_, AdapterFile>, f64)>,
    how: &str,
    rank: Option<usize>,
    density: Option<f64>,
    majority_sign_method: &str,
    seed: u64,
    threads: usize,
) -> PyResult<AdapterFile> {
    let list: Vec<(Arc<Lora>, f64)> = adapters.iter().map(|(a, w)| (a.get().lora.clone(), *w)).collect();
    let lora = free(py, threads, || {
        let by_frequency = match majority_sign_method {
            "total" => false,
            "frequency" => true,
            other => {
                return Err(Error::Usage(format!("majority_sign_method {other:?}: total or frequency")));
            }
        };
        let how = Compose { combination: Combination::parse(how)?, rank, density, by_frequency, seed };
        let list: Vec<(&Lora, f64)> = list.iter().map(|(lora, weight)| (&**lora, *weight)).collect();
        Ok(lowrank::tools::compose::compose(&list, &how)?)
    })?;
    Ok(AdapterFile::new(lora))
}

/// An adapter out of a base model and its full fine-tune; what was taken and what else differs, in JSON.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn extract(
    py: Python<'_>,
    model: &str,
    tuned: &str,
    name: &str,
    value: f64,
    max_rank: usize,
    target_modules: &str,
    exact: bool,
    seed: u64,
    threads: usize,
) -> PyResult<(AdapterFile, String)> {
    let found = free(py, threads, || {
        let how = Extract { rule: rule(name, value)?, max_rank, exact, seed };
        extract_adapter(model, tuned, Targets::parse(target_modules), &how)
    })?;
    let taken = found
        .taken
        .iter()
        .map(|t| json!({ "layer": t.path, "r": t.rank, "norm": t.norm, "energy": t.energy }));
    let report = json!({ "layers": taken.collect::<Vec<_>>(), "others": found.left }).to_string();
    Ok((AdapterFile::new(found.lora), report))
}
