//! Adapters of llama.cpp, as its `convert_lora_to_gguf.py` writes them: `TENSOR.lora_a: [r, K]` and
//! `TENSOR.lora_b: [O, r]` for each adapted tensor of the base's GGUF file, one alpha for all.
//!
//! Rows of q and k of the architecture `llama` are in llama.cpp's order there, so the rows of B are too.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_files::{Gguf, GgufWriter, TensorPlan};
use lowrank_kernels::{Format, RowOrder, WeightRef};
use lowrank_models::{Base, gguf_names};

use crate::error::{Error, Result};
use crate::formats::format::{FileFormat, Halves, Options, pairs};
use crate::lora::{Kind, Lora, Pair, from_f32, most_common};
use crate::tensor::Tensor;

/// An adapter of llama.cpp. A model has the same ending.
pub const FORMAT: FileFormat =
    FileFormat { name: "gguf", matches: |at| at.is_gguf("adapter"), pipeline: false, read, write };

/// The table of embeddings, whose A llama.cpp wants transposed.
const EMBEDDING: &str = "token_embd.weight";

fn layout(options: &Options) -> Result<Option<(String, usize)>> {
    options.base.as_ref().map(|base| Ok(Base::open(base)?.gguf_layout()?)).transpose()
}

/// Rows of a matrix in another order: `of(i)` is the row that comes to place `i`.
fn reordered(b: &Tensor, of: impl Fn(usize) -> usize) -> Tensor {
    let cols = b.cols();
    let data = (0..b.rows()).flat_map(|i| &b.data[of(i) * cols..][..cols]).copied().collect();
    Tensor { data, ..b.clone() }
}

/// Where row `i` of Hugging Face's order lies in llama.cpp's file.
fn stored_row(rows: usize, order: RowOrder, i: usize) -> usize {
    WeightRef { format: Format::F32, rows, cols: 1, order, bytes: &[] }.stored_row(i)
}

/// Writes a GGUF adapter. The base model (its GGUF file or folder) must be named: it says the architecture.
///
/// # Errors
/// Names the modules GGUF has no name for.
pub fn write(lora: &Lora, path: &Path, options: &Options) -> Result<()> {
    let (architecture, head_dim) = layout(options)?.ok_or_else(|| {
        Error::Usage("a GGUF adapter names its base's architecture: give the base model with `base`".into())
    })?;
    let names = gguf_names(&architecture);
    let place = |module: &str| names.from_hf(&format!("{module}.weight"));
    let fits = |pair: &Pair| pair.a.shape.len() == 2;
    let mut unplaced: Vec<String> = lora.saved.keys().cloned().collect();
    unplaced
        .extend(lora.pairs.iter().filter(|(m, p)| place(m).is_none() || !fits(p)).map(|(m, _)| m.clone()));
    if !unplaced.is_empty() {
        return Err(Error::names("the format gguf has no place for", unplaced));
    }
    // One alpha for all; what another one has of it goes into B. llama.cpp takes 0 for "scaling 1".
    let alphas = lora.pairs.values().map(|pair| pair.alpha as f32).filter(|alpha| *alpha != 0.0);
    let Some(alpha) = most_common(alphas) else {
        return Err(Error::Usage(
            "an adapter of alpha 0 does nothing, but llama.cpp would scale it by 1".into(),
        ));
    };

    let mut tensors: Vec<(TensorPlan, Tensor)> = Vec::new();
    for (module, pair) in &lora.pairs {
        let name = place(module).unwrap_or_default();
        let same = pair.alpha as f32 == alpha;
        let pair = &if same { pair.clone() } else { pair.with_alpha(module, alpha.into())? };
        let a = if pair.kind == Kind::Embedding && name == EMBEDDING {
            pair.a.transposed()
        } else {
            pair.a.clone()
        };
        let order = names.order(&format!("{module}.weight"), head_dim);
        let b = match order.multiple() {
            Some(unit) => {
                let rows = pair.b.rows();
                if !rows.is_multiple_of(unit) {
                    let why = format!("its {rows} outputs are not a whole number of heads of {unit}");
                    return Err(Error::names(why, vec![module.clone()]));
                }
                let mut inverse = vec![0; rows];
                (0..rows).for_each(|i| inverse[stored_row(rows, order, i)] = i);
                reordered(&pair.b, |i| inverse[i])
            }
            None => pair.b.clone(),
        };
        for (end, tensor) in [("lora_a", a), ("lora_b", b)] {
            let dims = tensor.shape.iter().rev().copied().collect();
            let plan = TensorPlan { name: format!("{name}.{end}"), dims, format: tensor.dtype };
            tensors.push((plan, tensor));
        }
    }
    let mut gguf = GgufWriter::new();
    gguf.string("general.architecture", &architecture)?;
    gguf.string("general.type", "adapter")?;
    gguf.string("adapter.type", "lora")?;
    gguf.f32("adapter.lora.alpha", alpha)?;
    let plans: Vec<TensorPlan> = tensors.iter().map(|(plan, _)| plan.clone()).collect();
    let mut next = tensors.iter();
    gguf.write(path, &plans, |_, out| {
        let bytes = next.next().map(|(_, tensor)| tensor.bytes()).unwrap_or_default();
        out.write_all(&bytes).map_err(Error::io(path))
    })
}

/// Reads a GGUF adapter. For the architecture `llama` the base must be named where q or k are adapted: their row
/// order depends on the size of a head.
///
/// # Errors
/// Where the file is no adapter, or holds tensors that are no pairs (named).
pub fn read(path: &Path, options: &Options) -> Result<Lora> {
    let file = Gguf::open(path)?;
    let text = |key: &str| Ok::<_, Error>(file.string(key)?.unwrap_or_default().to_owned());
    if text("general.type")? != "adapter" || text("adapter.type")? != "lora" {
        return Err(Error::file(path, "is a GGUF file, but no LoRA adapter (general.type, adapter.type)"));
    }
    let architecture = text("general.architecture")?;
    let names = gguf_names(&architecture);
    let alpha = from_f32(file.float("adapter.lora.alpha")?.unwrap_or(0.0) as f32);
    let layout = layout(options)?;
    if let Some((base, _)) = &layout
        && *base != architecture
    {
        return Err(Error::file(path, format!("is an adapter for {architecture:?}, the base is {base:?}")));
    }
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let (mut unknown, mut ordered) = (Vec::new(), Vec::new());
    let tensors = file.tensors()?;
    for name in tensors.names() {
        let found = ["a", "b"].into_iter().find_map(|end| {
            let gguf = name.strip_suffix(&format!(".lora_{end}"))?;
            Some((gguf, names.to_hf(gguf).strip_suffix(".weight")?.to_owned(), end))
        });
        let Some((gguf, module, end)) = found
            .filter(|(gguf, module, _)| names.from_hf(&format!("{module}.weight")).as_deref() == Some(*gguf))
        else {
            unknown.push(name.to_owned());
            continue;
        };
        let mut tensor = crate::tensor::read_one(&tensors, name)?;
        if tensor.shape.len() != 2 {
            unknown.push(name.to_owned());
            continue;
        }
        let half = halves.entry(module.clone()).or_default();
        if end == "a" {
            half.a = Some(if gguf == EMBEDDING { tensor.transposed() } else { tensor });
            continue;
        }
        let order = |head_dim: usize| names.order(&format!("{module}.weight"), head_dim);
        if order(2) != RowOrder::Plain {
            match layout.as_ref().map(|(_, head_dim)| order(*head_dim)) {
                Some(order) if order.multiple().is_some_and(|unit| tensor.rows().is_multiple_of(unit)) => {
                    let rows = tensor.rows();
                    tensor = reordered(&tensor, |i| stored_row(rows, order, i));
                }
                _ => ordered.push(module.clone()),
            }
        }
        half.b = Some(tensor);
    }
    if !unknown.is_empty() {
        return Err(Error::names(format!("{}: no part of a LoRA known here", path.display()), unknown));
    }
    if !ordered.is_empty() {
        let why = "the order of their rows depends on the base model: give it with `base`; needed for";
        return Err(Error::names(why, ordered));
    }
    // Without an alpha llama.cpp scales by 1.
    let mut pairs = pairs(path, halves, |_, rank| if alpha == 0.0 { rank as f64 } else { alpha })?;
    if let Some(pair) = pairs.get_mut("model.embed_tokens") {
        pair.kind = Kind::Embedding;
    }
    Ok(Lora { pairs, ..Lora::default() })
}
