//! Adapters are read by PEFT's rules: `tools/reference/peft_reading.py` made the folders and the logits.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Expected, close, fixture, logits};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

fn session() -> Session {
    Session::open(fixture("llama_gqa_tied").to_str().unwrap()).unwrap()
}

fn load(session: &Session, dir: &Path) -> Result<AdapterSet, String> {
    AdapterSet::load_on(dir, session.sites(), session).map_err(|e| e.to_string())
}

/// The last logits with the adapter in `dir`, against PEFT's of a case.
fn agrees(session: &Session, what: &str, dir: &Path, case: &str) -> Vec<String> {
    let expected = Expected::file(&fixture("peft_reading").join("expected.safetensors"));
    let tokens: Vec<u32> = expected.ints("ids").iter().map(|t| *t as u32).collect();
    let set = load(session, dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    let want = expected.floats(case);
    let got = logits(session, &set, &tokens);
    close(what, &got[got.len() - want.len()..], &want, 1e-4);
    set.notes
}

fn folder(case: &str) -> std::path::PathBuf {
    fixture("peft_reading").join(case)
}

/// The case in a folder of its own, its configuration and names of tensors changed.
fn changed(case: &str, config: impl Fn(&mut Value), name: impl Fn(&str) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read(folder(case).join("adapter_config.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&text).unwrap();
    config(&mut json);
    fs::write(dir.path().join("adapter_config.json"), json.to_string()).unwrap();
    let bytes = fs::read(folder(case).join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: BTreeMap<String, TensorView<'_>> =
        file.iter().map(|(old, view)| (name(old), view)).collect();
    fs::write(dir.path().join("adapter_model.safetensors"), serialize(tensors, None).unwrap()).unwrap();
    dir
}

#[test]
fn the_logits_are_pefts() {
    let session = session();
    let cases = [
        ("look_ahead", ""),
        ("look_behind", ""),
        ("backreference", ""),
        ("exclude", ""),
        ("patterns", ""),
        ("layers_of_any_pattern", ""),
        ("layers_of_a_pattern", ""),
        ("tables_saved", ""),
        ("head_saved", ""),
        ("tied_table_saved", ""),
        ("tied_table_adapted", ""),
        ("tied_head_adapted", ""),
        ("tied_nothing", "ensure_weight_tying"),
        ("tied_tokens", ""),
        ("nulls", ""),
        ("other_fields", "foresight_config, use_foresight"),
        ("no_targets", ""),
        ("layers_beside", "belong to no adapted layer"),
        ("base_beside", ""),
    ];
    for (case, says) in cases {
        let notes = agrees(&session, case, &folder(case), case).join("\n");
        assert_eq!(says.is_empty(), notes.is_empty(), "{case}: {notes}");
        assert!(notes.contains(says), "{case}: {notes}");
    }
}

/// What was read is written again, and read again to the same; PEFT needs the tied layers under both names.
#[test]
fn what_was_read_is_written_again() {
    let session = session();
    for case in
        ["tables_saved", "tied_table_saved", "tied_table_adapted", "tied_head_adapted", "layers_beside"]
    {
        let dir = tempfile::tempdir().unwrap();
        let set = load(&session, &folder(case)).unwrap();
        set.save(dir.path()).unwrap();
        agrees(&session, case, dir.path(), case);
        if case == "layers_beside" {
            continue;
        }
        let names = |dir: &Path| {
            let bytes = fs::read(dir.join("adapter_model.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(names(dir.path()), names(&folder(case)), "{case}");
    }
}

/// With the tied layers merged, the base alone computes the same.
#[test]
fn tied_layers_merge() {
    let expected = Expected::file(&fixture("peft_reading").join("expected.safetensors"));
    let tokens: Vec<u32> = expected.ints("ids").iter().map(|t| *t as u32).collect();
    for case in ["tables_saved", "tied_table_saved", "tied_table_adapted", "tied_head_adapted", "tied_tokens"]
    {
        let session = session();
        let set = load(&session, &folder(case)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let target = lowrank::MergeTarget::Folder(lowrank::engine::Format::F32);
        lowrank::merge(&session, &set, out.path(), target).unwrap();
        let merged = Session::open(out.path().to_str().unwrap()).unwrap();
        let got = logits(&merged, &AdapterSet::none(), &tokens);
        let want = expected.floats(case);
        close(case, &got[got.len() - want.len()..], &want, 1e-4);
    }
}

#[test]
fn every_spelling_of_a_name_is_read() {
    let session = session();
    let case = "patterns";
    type Spell = fn(&str) -> String;
    let spellings: [(&str, Spell); 9] = [
        ("no prefix", |n| n.replace("base_model.model.", "")),
        ("twice the prefix", |n| format!("base_model.model.{n}")),
        ("the adapter's name", |n| n.replace(".weight", ".default.weight")),
        ("another adapter's name", |n| n.replace(".weight", ".stories.weight")),
        ("DDP", |n| format!("module.{n}")),
        ("DDP inside", |n| n.replace("base_model.model.", "base_model.model.module.")),
        ("torch.compile", |n| format!("_orig_mod.{}", n.replace(".self_attn.", "._orig_mod.self_attn."))),
        ("FSDP", |n| format!("_fsdp_wrapped_module.{}", n.replace(".mlp.", "._fsdp_wrapped_module.mlp."))),
        ("DeepSpeed", |n| format!("module.module.{}", n.replace(".weight", ".default.weight"))),
    ];
    for (what, spell) in spellings {
        let dir = changed(case, |_| (), spell);
        assert!(agrees(&session, what, dir.path(), case).is_empty(), "{what}");
        let alone = AdapterSet::load_alone(dir.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(alone.layers.len(), 6, "{what}");
    }
    for (case, from, to) in [
        ("tied_table_adapted", "lora_embedding_A", "lora_embedding_A.default"),
        ("tied_table_adapted", "lora_embedding_B", "lora_embedding_B.stories"),
        ("tied_tokens", "trainable_tokens_delta", "trainable_tokens_delta.default"),
        ("tables_saved", "embed_tokens.weight", "embed_tokens.modules_to_save.default.weight"),
        ("tables_saved", "lm_head.weight", "lm_head.modules_to_save.weight"),
    ] {
        let dir = changed(case, |_| (), |n| n.replace(from, to));
        agrees(&session, to, dir.path(), case);
    }
}

/// Every field may be null, and has its default then.
#[test]
fn any_field_may_be_null() {
    let session = session();
    let text = fs::read(folder("nulls").join("adapter_config.json")).unwrap();
    let fields: Value = serde_json::from_slice(&text).unwrap();
    for field in fields.as_object().unwrap().keys().filter(|field| *field != "peft_type") {
        let dir = changed("nulls", |config| config[field] = Value::Null, str::to_owned);
        match field.as_str() {
            // The default rank and alpha are others than these.
            "r" => assert!(load(&session, dir.path()).err().unwrap().contains("lora_A"), "{field}"),
            "lora_alpha" => {
                let set = load(&session, dir.path()).unwrap();
                assert_eq!(set.layers[0].variant.scaling(), Some(2.0));
            }
            _ => drop(agrees(&session, field, dir.path(), "nulls")),
        }
    }
    let dir = changed("nulls", |config| config["rank_pattern"] = Value::Null, str::to_owned);
    agrees(&session, "rank_pattern", dir.path(), "nulls");
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let session = session();
    let says = |dir: tempfile::TempDir, words: &[&str]| {
        let error = load(&session, dir.path()).err().unwrap();
        words.iter().for_each(|word| assert!(error.contains(word), "{error}"));
    };
    let same = |n: &str| n.to_owned();
    let set = |field: &'static str, value: Value| move |config: &mut Value| config[field] = value.clone();
    says(
        changed("patterns", set("target_modules", json!("(q_proj")), same),
        &["(q_proj", "regular expression"],
    );
    let endless = json!(r"(?=m)(.*\w+)+\1\1!");
    says(changed("patterns", set("target_modules", endless), same), &["regular expression", "simplify"]);
    says(changed("patterns", |_| (), |n| n.replace("layers", "blocks")), &["model.blocks.0", "no module"]);
    says(
        changed("patterns", |_| (), |n| n.replace("0.self_attn.q_proj.lora_A", "0.self_attn.q_proj.x")),
        &["lora_A"],
    );
    let two = |n: &str| {
        if n.contains("layers.0") {
            n.replace(".weight", ".a.weight")
        } else {
            n.replace(".weight", ".b.weight")
        }
    };
    says(changed("patterns", |_| (), two), &["several adapters, a, b"]);
    says(
        changed(
            "tied_tokens",
            set("trainable_token_indices", json!({"embed_tokens": [7, 3], "lm_head": [3]})),
            same,
        ),
        &["lm_head"],
    );
    let field = |field| set(field, json!({"x": 1}));
    says(changed("patterns", field("kasa_config"), same), &["kasa_config", "not supported"]);
}
