//! The names of an adapter's tensors: PEFT's, and the spellings that training code leaves in files.
//!
//! PEFT writes `base_model.model.PATH.lora_A.weight`. A state dict that was saved without PEFT has the adapter's name in it
//! (`lora_A.default.weight`), may lack the prefix or have it twice, and has the parts that wrappers add: `module.` (DDP,
//! DeepSpeed), `_orig_mod.` (torch.compile), `_fsdp_wrapped_module.` and others.

use std::collections::{BTreeMap, BTreeSet};

use crate::beside::tokens;

/// PEFT puts this before the module path.
pub const PREFIX: &str = "base_model.model.";

/// Parts that wrappers add anywhere in a path.
const WRAPPERS: [&str; 4] =
    ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];
/// What DDP and DeepSpeed put before every name.
const WRAPPED: &str = "module.";
/// Where PEFT keeps the copies of modules trained whole.
const SAVED: &str = ".modules_to_save.";
/// The adapter that PEFT makes where no name is given.
const DEFAULT: &str = "default";

/// The tensors of a file under PEFT's names.
#[derive(Debug, Default)]
pub struct PeftNames {
    /// The file's name of each.
    pub of: BTreeMap<String, String>,
    /// What was passed over.
    pub notes: Vec<String>,
}

/// PEFT's names for the tensors `names` of a file. `suffixes` are the endings of the method's tensors.
///
/// # Errors
/// If two tensors have one name, or the file holds several adapters and none of them is called `default`.
pub fn peft_names<'a>(names: impl Iterator<Item = &'a str>, suffixes: &[&str]) -> Result<PeftNames, String> {
    let spelled: Vec<(Spelled, &str)> =
        names.filter_map(|name| Some((spelled(name, suffixes)?, name))).collect();
    let adapters: BTreeSet<&str> = spelled.iter().filter_map(|(s, _)| s.adapter.as_deref()).collect();
    let chosen = match adapters.len() {
        0 | 1 => None,
        _ if adapters.contains(DEFAULT) => Some(DEFAULT),
        _ => {
            let list: Vec<&str> = adapters.iter().copied().collect();
            return Err(format!(
                "holds several adapters, {}: save each to a file of its own",
                list.join(", ")
            ));
        }
    };
    let mut found = PeftNames::default();
    if let Some(chosen) = chosen {
        let others: Vec<&str> = adapters.iter().copied().filter(|name| *name != chosen).collect();
        found.notes.push(format!("the adapter {chosen} is read, and not {}", others.join(", ")));
    }
    for (Spelled { name, adapter }, file) in &spelled {
        if chosen.is_some_and(|chosen| adapter.as_deref().is_some_and(|adapter| adapter != chosen)) {
            continue;
        }
        match found.of.get(name) {
            // With `bias: all` PEFT gives the biases of saved modules under both names.
            Some(other) if other == name => {}
            Some(other) if file != name => return Err(format!("{other} and {file} are one tensor")),
            _ => drop(found.of.insert(name.clone(), (*file).to_owned())),
        }
    }
    Ok(found)
}

/// Modules of a larger model that its text model may be.
const TEXT_MODELS: [&str; 2] = ["language_model", "text_model"];

/// Where the text model of a model with these module paths lies: `language_model` where they are
/// `model.language_model.layers.0...`.
pub(crate) fn text_model<'a>(paths: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let of = |path: &str| {
        let rest = path.strip_prefix("model.").unwrap_or(path);
        let name = rest.split_once('.')?.0;
        TEXT_MODELS.into_iter().find(|known| *known == name)
    };
    let mut paths = paths;
    paths.find_map(of)
}

/// A module path or a tensor's name (without [`PREFIX`]) as a model has it whose text model lies at `inside`, or which is
/// that text model alone. An adapter of the one fits the other.
pub(crate) fn aligned(path: &str, inside: Option<&str>) -> String {
    let alone = TEXT_MODELS.into_iter().find_map(|text| {
        let whole = path.strip_prefix("model.").unwrap_or(path).strip_prefix(text)?.strip_prefix('.')?;
        // Before transformers 4.52: `language_model.model.layers` and `language_model.lm_head`.
        let rest = whole.strip_prefix("model.").unwrap_or(whole);
        Some(if rest.starts_with("lm_head") { rest.to_owned() } else { format!("model.{rest}") })
    });
    let alone = alone.unwrap_or_else(|| path.to_owned());
    match (inside, alone.strip_prefix("model.")) {
        (Some(text), Some(rest)) => format!("model.{text}.{rest}"),
        _ => alone,
    }
}

/// The name of a parameter in PEFT's files: those that belong to no module carry theirs whole.
pub(crate) fn file_name(name: &str) -> String {
    let whole = name.starts_with("base_model.") || !name.contains('.');
    if whole { name.to_owned() } else { format!("{PREFIX}{name}") }
}

struct Spelled {
    name: String,
    adapter: Option<String>,
}

/// `None` for a copy of the base's own module.
fn spelled(name: &str, suffixes: &[&str]) -> Option<Spelled> {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    if parts.contains(&"original_module") {
        return None;
    }
    let plain = parts.join(".");
    let mut rest = plain.as_str();
    while let Some(shorter) = rest.strip_prefix(PREFIX).or_else(|| rest.strip_prefix(WRAPPED)) {
        rest = shorter;
    }
    let own = || suffixes.iter().chain([&tokens::SUFFIX]);
    let plain =
        own().any(|end| rest.strip_suffix(end).is_some_and(|path| path.is_empty() || path.ends_with('.')));
    let spelled = || own().find_map(|suffix| without_adapter(rest, suffix)).or_else(|| saved_module(rest));
    let (path, adapter) = if plain && !rest.contains(SAVED) { None } else { spelled() }
        .unwrap_or_else(|| (rest.to_owned(), None));
    Some(Spelled { name: file_name(&path), adapter })
}

/// `PATH.lora_A.default.weight` as `PATH.lora_A.weight` and `default`, for the ending `lora_A.weight`.
fn without_adapter(name: &str, suffix: &str) -> Option<(String, Option<String>)> {
    let stem = suffix.strip_suffix(".weight").unwrap_or(suffix);
    let parts: Vec<&str> = name.split('.').collect();
    let length = stem.split('.').count();
    // What follows the stem: nothing, `weight`, the adapter, or both.
    let (at, rest) = (0..=2usize.min(parts.len().checked_sub(length)?)).find_map(|more| {
        let at = parts.len() - length - more;
        (parts[at..at + length].join(".") == stem).then(|| (at, &parts[at + length..]))
    })?;
    let adapter = match rest {
        [] | ["weight"] => None,
        ["bias"] | [_, "bias"] => return None,
        [adapter, ..] => Some((*adapter).to_owned()),
    };
    let path: Vec<&str> = parts[..at].iter().copied().chain([suffix]).collect();
    Some((path.join("."), adapter))
}

/// `PATH.modules_to_save.default.weight` as `PATH.weight` and `default`.
fn saved_module(name: &str) -> Option<(String, Option<String>)> {
    let (path, rest) = name.split_once(SAVED)?;
    Some(match rest.split_once('.') {
        Some((adapter, rest)) => (format!("{path}.{rest}"), Some(adapter.to_owned())),
        None => (format!("{path}.{rest}"), None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LORA: [&str; 4] = ["lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"];

    #[test]
    fn adapters_of_a_text_model_fit_where_it_is_a_part() {
        let whole = "model.language_model.layers.0.self_attn.q_proj";
        let alone = "model.layers.0.self_attn.q_proj";
        let old = "language_model.model.layers.0.self_attn.q_proj";
        for path in [whole, alone, old] {
            assert_eq!(aligned(path, Some("language_model")), whole);
            assert_eq!(aligned(path, None), alone);
        }
        assert_eq!(aligned("language_model.lm_head", Some("language_model")), "lm_head");
        assert_eq!(aligned("lm_head", Some("language_model")), "lm_head");
        assert_eq!(text_model([whole].into_iter()), Some("language_model"));
        assert_eq!(text_model([alone, "lm_head"].into_iter()), None);
    }

    #[test]
    fn every_spelling_is_pefts_name() {
        let want = "base_model.model.model.layers.0.q_proj.lora_A.weight";
        for name in [
            want,
            "model.layers.0.q_proj.lora_A.weight",
            "base_model.model.base_model.model.model.layers.0.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.q_proj.lora_A.default.weight",
            "model.layers.0.q_proj.lora_A.my_adapter.weight",
            "base_model.model.model.layers.0.q_proj.lora_A",
            "base_model.model.model.layers.0.q_proj.lora_A.default",
            "module.base_model.model.model.layers.0.q_proj.lora_A.weight",
            "module.module.base_model.model.module.model.layers.0.q_proj.lora_A.default.weight",
            "_orig_mod.base_model.model.model.layers.0._orig_mod.q_proj.lora_A.default.weight",
            "base_model.model._orig_mod.model.layers.0.q_proj.lora_A.weight",
            "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module.q_proj.lora_A.weight",
            "_forward_module.base_model.model.model.layers.0._checkpoint_wrapped_module.q_proj.lora_A.weight",
        ] {
            let found = peft_names([name].into_iter(), &LORA).unwrap();
            assert_eq!(found.of.keys().collect::<Vec<_>>(), [want], "{name}");
        }
        for (name, suffixes, want) in [
            ("m.embed.lora_embedding_A.default", &LORA[..], "base_model.model.m.embed.lora_embedding_A"),
            ("m.embed.lora_embedding_A", &LORA, "base_model.model.m.embed.lora_embedding_A"),
            (
                "m.p.lora_magnitude_vector.default.weight",
                &["lora_magnitude_vector"],
                "base_model.model.m.p.lora_magnitude_vector",
            ),
            (
                "m.p.lora_magnitude_vector.weight",
                &["lora_magnitude_vector"],
                "base_model.model.m.p.lora_magnitude_vector",
            ),
            ("base_model.vera_A.default", &["base_model.vera_A"], "base_model.vera_A"),
            ("module.prompt_embeddings", &["prompt_embeddings"], "prompt_embeddings"),
            ("base_model.model.score.modules_to_save.default.weight", &LORA, "base_model.model.score.weight"),
            (
                "classifier.modules_to_save.default.dense.bias",
                &LORA,
                "base_model.model.classifier.dense.bias",
            ),
            ("score.weight", &LORA, "base_model.model.score.weight"),
            (
                "p.adapter_down.bias",
                &["adapter_down.weight", "adapter_down.bias"],
                "base_model.model.p.adapter_down.bias",
            ),
            (
                "m.e.token_adapter.trainable_tokens_delta.default",
                &LORA,
                "base_model.model.m.e.token_adapter.trainable_tokens_delta",
            ),
        ] {
            let found = peft_names([name].into_iter(), suffixes).unwrap();
            assert_eq!(found.of.keys().collect::<Vec<_>>(), [want], "{name}");
        }
    }

    #[test]
    fn one_adapter_is_read() {
        let names = ["p.lora_A.default.weight", "p.lora_A.other.weight", "score.original_module.weight"];
        let found = peft_names(names.into_iter(), &LORA).unwrap();
        assert_eq!(found.of["base_model.model.p.lora_A.weight"], names[0]);
        assert_eq!((found.of.len(), found.notes.len()), (1, 1));
        let two = peft_names(["p.lora_A.a.weight", "p.lora_A.b.weight"].into_iter(), &LORA);
        assert!(two.unwrap_err().contains("several adapters, a, b"));
        let twice = peft_names(["p.lora_A.weight", "p.lora_A.default.weight"].into_iter(), &LORA);
        assert!(twice.unwrap_err().contains("one tensor"));
        let own = "base_model.model.score.bias";
        for names in [[own, "score.modules_to_save.bias"], ["score.modules_to_save.default.bias", own]] {
            let found = peft_names(names.into_iter(), &LORA).unwrap();
            assert_eq!(found.of.into_iter().collect::<Vec<_>>(), [(own.to_owned(), own.to_owned())]);
        }
    }
}
