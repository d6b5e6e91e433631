//! Models that read more than text: their text model is trained, and everything else stays as it is.
//! `tools/reference/wrapped_tiny.py` made the fixtures; `fidelity.rs` compares their numbers.

mod common;

use std::path::Path;

use common::{close, fixture, logits, lowrank};
use lowrank::adapters::{AdapterSet, LoraConfig, Targets};
use lowrank::engine::Format;
use lowrank::files::Gguf;
use lowrank::models::FileType;
use lowrank::{MergeTarget, Session};
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A copy of a fixture's model with a tokenizer.
fn copied(case: &str, to: &Path) {
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(case).join(name), to.join(name)).unwrap();
    }
    common::character_tokenizer(to);
    // As many tokens as the model has rows, with GGUF's kind of pieces.
    let path = to.join("tokenizer.json");
    let mut tokenizer = json_of(&path);
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 40);
    (tokenizer["pre_tokenizer"], tokenizer["decoder"]) = (level.clone(), level);
    std::fs::write(path, tokenizer.to_string()).unwrap();
}

const TOKENS: [u32; 12] = [3, 17, 5, 11, 39, 19, 7, 13, 4, 16, 9, 21];

/// What is not the text model's is written byte for byte, with the names that the files have.
#[test]
fn merging_carries_the_other_parts() {
    for case in ["gemma3_old", "gemma3_new", "mistral3_old", "llava_old", "qwen2_5_vl_hub", "smolvlm_new"] {
        let dir = fixture(case);
        let session = Session::open(dir.to_str().unwrap()).unwrap();
        assert!(session.base.is_wrapped() && session.base.notes[0].contains("text"), "{case}");
        let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();
        let out = tempfile::tempdir().unwrap();
        lowrank::merge(&session, &adapters, out.path(), MergeTarget::Folder(Format::BF16)).unwrap();
        let [before, after] =
            [&dir, out.path()].map(|dir| std::fs::read(dir.join("model.safetensors")).unwrap());
        let [before, after] = [&before, &after].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        let sorted = |file: &SafeTensors<'_>| {
            let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(sorted(&before), sorted(&after), "{case}");
        let merged: Vec<String> = adapters
            .layers
            .iter()
            .map(|layer| layer.site.path.rsplit_once("layers.").unwrap().1.to_owned() + ".weight")
            .collect();
        let mut changed = 0;
        for name in before.names() {
            let same = before.tensor(name).unwrap().data() == after.tensor(name).unwrap().data();
            let text = !name.contains("vision") && !name.contains("visual") && !name.contains("projector");
            let adapted = text && merged.iter().any(|layer| name.ends_with(&format!("layers.{layer}")));
            assert_eq!(same, !adapted, "{case}: {name}");
            changed += usize::from(adapted);
        }
        assert_eq!(changed, adapters.layers.len(), "{case}");
        // The configuration is the whole model's.
        let (old, new) = (json_of(&dir.join("config.json")), json_of(&out.path().join("config.json")));
        assert_eq!(old["model_type"], new["model_type"], "{case}");
        assert_eq!(old["vision_config"], new["vision_config"], "{case}");
    }
}

/// An adapter of the whole model names whole paths, so that PEFT adapts nothing else with it.
#[test]
fn adapters_name_whole_paths() {
    let session = Session::open(fixture("gemma3_old").to_str().unwrap()).unwrap();
    for targets in
        [Targets::parse("q_proj,v_proj"), Targets::parse(".*(q|v)_proj"), Targets::parse("all-linear")]
    {
        let config = LoraConfig { target_modules: Some(targets.clone()), ..LoraConfig::default() };
        let set = AdapterSet::new(config, session.sites(), 1).unwrap();
        let out = tempfile::tempdir().unwrap();
        set.save(out.path()).unwrap();
        let saved = json_of(&out.path().join("adapter_config.json"));
        let paths: Vec<&str> =
            saved["target_modules"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
        assert_eq!(paths.len(), set.layers.len(), "{targets}");
        assert!(paths.iter().all(|path| path.starts_with("model.language_model.layers.")), "{paths:?}");
        let again = AdapterSet::load(out.path(), session.sites()).unwrap();
        assert_eq!(again.layers.len(), set.layers.len());
    }
}

/// An adapter for the text model alone fits the whole model, and the other way round; so do the names of before
/// transformers 4.52.
#[test]
fn adapters_fit_the_text_model_alone_and_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, alone) = (folder.path().join("whole"), folder.path().join("alone.gguf"));
    std::fs::create_dir(&whole).unwrap();
    copied("mistral3_new", &whole);
    let session = Session::open(whole.to_str().unwrap()).unwrap();
    lowrank::merge(&session, &AdapterSet::none(), &alone, MergeTarget::Gguf(Some(FileType::F32))).unwrap();
    let gguf = Gguf::open(&alone).unwrap();
    assert!(gguf.tensor_infos().all(|(name, ..)| !name.contains("vision") && !name.contains("mm")));
    let single = Session::open(alone.to_str().unwrap()).unwrap();

    let adapter = fixture("mistral3_new").join("adapter");
    let want = logits(&session, &session.adapter(Some(&adapter)).unwrap(), &TOKENS);
    let got = logits(&single, &single.adapter(Some(&adapter)).unwrap(), &TOKENS);
    close("the whole model's adapter on the text model", &got, &want, 2e-5);

    // Saved for the text model alone, and with the old names.
    let plain = folder.path().join("plain");
    single.adapter(Some(&adapter)).unwrap().save(&plain).unwrap();
    let got = logits(&session, &session.adapter(Some(&plain)).unwrap(), &TOKENS);
    close("the text model's adapter on the whole model", &got, &want, 2e-5);
    let bytes = std::fs::read(plain.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.names().iter().all(|name| name.starts_with("base_model.model.model.layers.")));
    let renamed = file.tensors().into_iter().map(|(name, view)| {
        (name.replace("base_model.model.model.", "base_model.model.language_model.model."), view)
    });
    let old = safetensors::serialize(renamed, None).unwrap();
    std::fs::write(plain.join("adapter_model.safetensors"), old).unwrap();
    for base in [&session, &single] {
        let got = logits(base, &base.adapter(Some(&plain)).unwrap(), &TOKENS);
        close("the names of before transformers 4.52", &got, &want, 2e-5);
    }
}

/// A whole run: plan, train, inspect, and images refused.
#[test]
fn the_command_trains_the_text_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    copied("gemma3_old", &model);
    let rows = (0..4).map(|i| json!({"prompt": "01", "completion": format!("2{i}")}).to_string() + "\n");
    std::fs::write(at("rows.jsonl"), rows.collect::<String>()).unwrap();
    let (model, data, out) = (at("model"), at("rows.jsonl"), at("adapter"));
    let run = ["--model", &model, "--data", &data, "--out", &out, "--max-steps", "2", "--r", "2"];
    let planned = lowrank(&[&["plan"], &run[..]].concat());
    assert_eq!(planned.code, 0, "{}", planned.err);
    let trained = lowrank(&[&["train"], &run[..]].concat());
    assert_eq!(trained.code, 0, "{}", trained.err);
    assert!(trained.err.contains("reads more than text"), "{}", trained.err);
    let saved = std::fs::read(folder.path().join("adapter/adapter_model.safetensors")).unwrap();
    let saved = SafeTensors::deserialize(&saved).unwrap();
    assert!(
        saved.names().iter().all(|name| name.starts_with("base_model.model.model.language_model.layers."))
    );
    let inspected = lowrank(&["inspect", &model]);
    assert_eq!(inspected.code, 0, "{}", inspected.err);
    // A configuration alone is planned too.
    let config = format!("{model}/config.json");
    assert!(Session::open_to_plan(&config, Default::default()).unwrap().base.is_wrapped());

    let image = json!({"messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "0"}]},
        {"role": "assistant", "content": "1"}]});
    std::fs::write(at("images.jsonl"), image.to_string()).unwrap();
    let refused =
        lowrank(&["train", "--model", &model, "--data", &at("images.jsonl"), "--out", &at("other")]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("is an image, and images are not trained"), "{}", refused.err);
}

#[test]
fn a_text_model_that_is_not_known_is_named() {
    let folder = tempfile::tempdir().unwrap();
    copied("gemma3_old", folder.path());
    let path = folder.path().join("config.json");
    for (text, says) in [
        (json!({"model_type": "mamba"}), "mamba"),
        (json!("none"), "text_config"),
        (json!([]), "text_config"),
    ] {
        let mut config = json_of(&path);
        config["text_config"] = text;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = Session::open(folder.path().to_str().unwrap()).err().unwrap().to_string();
        assert!(error.contains(says) && error.contains("config.json"), "{error}");
    }
}
