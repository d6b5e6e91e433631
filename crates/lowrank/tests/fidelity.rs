//! The same numbers as transformers + PEFT, on tiny models of each feature of every architecture.
//! `tools/reference/*_tiny.py` made the fixtures.

mod common;

use std::path::Path;

use common::{Expected, close, example, fixture, logits};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Format};
use lowrank::files::{Gguf, GgufWriter, TensorPlan};
use lowrank::models::FileType;
use lowrank::train::{Example, StepOptions, Stepper, pack};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };

fn examples(expected: &Expected) -> Vec<Example> {
    (0..3)
        .map(|i| example(&expected.ints(&format!("ids_{i}")), &expected.ints(&format!("labels_{i}"))))
        .collect()
}

fn check(case: &str) {
    let dir = fixture(case);
    let expected = Expected::open(&dir);
    let session = Session::open(dir.to_str().unwrap()).unwrap();
    let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();

    for i in 0..3 {
        let tokens: Vec<u32> = expected.ints(&format!("ids_{i}")).iter().map(|t| *t as u32).collect();
        let base = logits(&session, &AdapterSet::none(), &tokens);
        close(
            &format!("{case}: base logits {i}"),
            &base,
            &expected.floats(&format!("base_logits_{i}")),
            1e-4,
        );
        let adapted = logits(&session, &adapters, &tokens);
        close(&format!("{case}: logits {i}"), &adapted, &expected.floats(&format!("logits_{i}")), 1e-4);
    }

    let examples = examples(&expected);
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    for checkpoint_activations in [false, true] {
        let options = StepOptions { checkpoint_activations, ..PLAIN };
        let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), options);
        let outcome = stepper.gradients(std::slice::from_ref(&batch)).unwrap();
        close(&format!("{case}: loss"), &[outcome.loss as f32], &expected.floats("loss"), 1e-5);
        close(
            &format!("{case}: grad norm"),
            &[outcome.grad_norm as f32],
            &expected.floats("grad_norm"),
            1e-4,
        );
        for (id, param) in stepper.adapters.params.iter() {
            let want = expected.floats(&format!("grad.base_model.model.{}", param.name));
            close(&format!("{case}: gradient of {}", param.name), stepper.grads().values(id), &want, 1e-4);
        }
    }

    // Accumulating over micro-batches is the same step.
    let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), PLAIN);
    let micro = [pack(&[&examples[0]], true), pack(&[&examples[1], &examples[2]], true)];
    let outcome = stepper.gradients(&micro).unwrap();
    close(&format!("{case}: accumulated loss"), &[outcome.loss as f32], &expected.floats("loss"), 1e-5);
    close(
        &format!("{case}: accumulated norm"),
        &[outcome.grad_norm as f32],
        &expected.floats("grad_norm"),
        1e-4,
    );

    let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), PLAIN);
    for (step, want) in expected.floats("losses").iter().enumerate() {
        let outcome = stepper.step(std::slice::from_ref(&batch), 3e-3).unwrap();
        let difference = (outcome.loss as f32 - want).abs();
        assert!(difference < 1e-3, "{case}: step {step}: loss {} for {want}", outcome.loss);
    }
}

macro_rules! cases {
    ($($case:ident),*) => { $(#[test] fn $case() { check(stringify!($case)); })* };
}

cases!(
    gemma_mqa,
    gemma2_caps,
    gemma2_head,
    gemma3_hub,
    gemma3_parameters,
    gpt2_c_attn,
    gpt2_all,
    gpt3_banded,
    llama_mha,
    llama_gqa_tied,
    llama_bias,
    llama_embedding,
    llama_tokens,
    qwen2_bias,
    qwen3_qk_norm,
    mistral_window,
    phi3_longrope,
    phi3_partial,
    rope_linear,
    rope_dynamic,
    rope_yarn,
    rope_yarn_options,
    rope_llama3,
    smollm3_every,
    smollm3_list,
    olmo2_norms,
    olmo2_bias,
    olmo3_windows,
    granite_scales,
    granite_bias,
    granite4_dense,
    ministral3_yarn,
    glm_partial,
    glm4_norms,
    glm4_bias,
    stablelm_before,
    stablelm_parallel,
    starcoder2_window,
    starcoder2_plain,
    cohere_parallel,
    cohere_bias,
    cohere2_windows,
    gpt_neox_parallel,
    gpt_neox_serial,
    opt_before,
    opt_sum,
    opt_plain,
    phi_parallel,
    phi_head,
    exaone4_windows,
    exaone4_whole,
    seed_oss_bias,
    seed_oss_out_bias,
    nemotron_relu2,
    nemotron_bias,
    gemma3_old,
    gemma3_new,
    mistral3_old,
    mistral3_new,
    llava_old,
    qwen2_5_vl_hub,
    qwen3_vl_new,
    smolvlm_new
);

/// Gemma from GGUF, with llama.cpp's names and numbers, is the same model as from safetensors.
#[test]
fn gemma_from_gguf() {
    for (case, built_in) in [
        ("gemma2_caps", json!({"query_pre_attn_scalar": 20})),
        ("gemma3_hub", json!({"query_pre_attn_scalar": 20, "sliding_window_pattern": 2})),
    ] {
        let dir = fixture(case);
        let expected = Expected::open(&dir);
        let mut session = Session::open(dir.join("model.gguf").to_str().unwrap()).unwrap();
        let folder = Session::open(dir.to_str().unwrap()).unwrap();
        let mut config = session.base.config.clone();
        // What llama.cpp does not store but knows by a model's size is another for these tiny ones.
        config.as_object_mut().unwrap().extend(built_in.as_object().unwrap().clone());
        for (field, value) in config.as_object().unwrap() {
            let same = folder.base.config.get(field).is_none_or(|want| want == value || value.is_null());
            assert!(same, "{case}: {field} is {value}");
        }
        session.model = lowrank::models::load(&config, &session.base.tensors).unwrap();
        let tokens: Vec<u32> = expected.ints("ids_2").iter().map(|t| *t as u32).collect();
        let got = logits(&session, &AdapterSet::none(), &tokens);
        close(&format!("{case}: logits from GGUF"), &got, &expected.floats("base_logits_2"), 1e-4);
    }
}

/// A copy of a fixture's model with a tokenizer and these changes of its configuration, and its session.
fn changed(case: &str, change: Value, folder: &Path) -> lowrank::Result<Session> {
    let dir = fixture(case);
    for entry in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && !name.ends_with(".gguf") {
            std::fs::copy(&entry, folder.join(name)).unwrap();
        }
    }
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
    let text = if config["text_config"].is_object() { &mut config["text_config"] } else { &mut config };
    text.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let rows = text["vocab_size"].as_u64().unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    common::character_tokenizer(folder);
    let path = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < rows);
    (tokenizer["pre_tokenizer"], tokenizer["decoder"]) = (level.clone(), level);
    std::fs::write(path, tokenizer.to_string()).unwrap();
    Session::open(folder.to_str().unwrap())
}

fn to_gguf(session: &Session, out: &Path) -> lowrank::Result<Vec<lowrank::Loss>> {
    lowrank::merge(session, &AdapterSet::none(), out, lowrank::MergeTarget::Gguf(Some(FileType::F32)))
}

fn head_dim(case: &str) -> Value {
    let config = std::fs::read_to_string(fixture(case).join("config.json")).unwrap();
    serde_json::from_str::<Value>(&config).unwrap()["head_dim"].clone()
}

/// Every model that a GGUF file can hold computes the same from there.
#[test]
fn models_from_gguf_compute_the_same() {
    // llama.cpp knows these by the size of a model, and those of the fixtures have none.
    let gemma2 = json!({"query_pre_attn_scalar": head_dim("gemma2_caps")});
    let gemma3 = json!({"query_pre_attn_scalar": head_dim("gemma3_hub"), "sliding_window_pattern": 6});
    // A usual setting is known again by its factors, any other stays as they are.
    let llama3 = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 2048}, "rope_theta": 500000.0});
    let same = json!({});
    for (case, change) in [
        ("llama_mha", &same),
        ("llama_gqa_tied", &same),
        ("llama_bias", &same),
        ("mistral_window", &same),
        ("qwen2_bias", &same),
        ("qwen3_qk_norm", &same),
        ("rope_linear", &same),
        ("rope_yarn", &same),
        ("rope_llama3", &same),
        ("rope_llama3", &llama3),
        ("gemma_mqa", &same),
        ("gemma2_caps", &gemma2),
        ("gemma3_hub", &gemma3),
        ("smollm3_every", &same),
        ("olmo2_norms", &same),
        ("olmo3_windows", &same),
        ("granite_scales", &same),
        ("granite_bias", &same),
        ("ministral3_yarn", &same),
        ("glm4_norms", &same),
        ("glm4_bias", &same),
        ("stablelm_before", &same),
        ("stablelm_parallel", &same),
        ("starcoder2_plain", &same),
        ("cohere_parallel", &same),
        // llama.cpp's GELU.
        ("gpt_neox_parallel", &json!({"hidden_act": "gelu_new"})),
        ("gpt_neox_serial", &json!({"hidden_act": "gelu_new"})),
        ("cohere2_windows", &same),
        ("phi_parallel", &same),
        ("phi3_partial", &same),
        ("phi3_partial", &json!({"sliding_window": 8})),
        ("exaone4_windows", &same),
        ("exaone4_whole", &same),
        ("seed_oss_bias", &same),
        ("nemotron_relu2", &same),
        ("nemotron_bias", &same),
        // The text model alone, with the names of a plain one.
        ("gemma3_old", &gemma3),
        ("mistral3_new", &same),
    ] {
        let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let session = changed(case, change.clone(), folder.path()).unwrap();
        let file = out.path().join("model.gguf");
        to_gguf(&session, &file).unwrap_or_else(|e| panic!("{case}: {e}"));
        let again = Session::open(file.to_str().unwrap()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let tokens: Vec<u32> = (0..90).map(|i| 3 + (i * i + 5 * i) % 37).collect();
        let want = logits(&session, &AdapterSet::none(), &tokens);
        let got = logits(&again, &AdapterSet::none(), &tokens);
        close(&format!("{case}: logits from GGUF"), &got, &want, 2e-5);
    }
}

/// What a GGUF file has no word for is refused by the name of the field or tensor.
#[test]
fn what_gguf_cannot_hold_is_refused() {
    for (case, change, names) in [
        ("llama_mha", json!({"hidden_act": "gelu"}), "hidden_act"),
        ("qwen3_qk_norm", json!({"hidden_act": "relu"}), "hidden_act"),
        ("gemma_mqa", json!({"hidden_act": "silu"}), "hidden_act"),
        ("gemma2_caps", json!({"hidden_activation": "gelu"}), "hidden_activation"),
        ("gemma3_hub", json!({"hidden_activation": "relu"}), "hidden_activation"),
        (
            "gemma2_caps",
            json!({"query_pre_attn_scalar": head_dim("gemma2_caps"),
                "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
            "layer_types",
        ),
        ("gemma3_hub", json!({"query_pre_attn_scalar": 7}), "query_pre_attn_scalar"),
        ("mistral_window", json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types"),
        (
            "qwen2_bias",
            json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 0}),
            "use_sliding_window",
        ),
        (
            "qwen3_qk_norm",
            json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1}),
            "use_sliding_window",
        ),
        ("rope_dynamic", json!({}), "dynamic"),
        (
            "qwen2_bias",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
            "llama3",
        ),
        (
            "llama_mha",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": false}}),
            "truncate",
        ),
        ("phi3_longrope", json!({}), "longrope"),
        ("smollm3_list", json!({}), "no_rope_layers"),
        ("smollm3_every", json!({"no_rope_layer_interval": 3}), "no_rope_layers"),
        ("starcoder2_window", json!({}), "sliding_window"),
        ("olmo3_windows", json!({"layer_types": vec!["full_attention"; 4]}), "layer_types"),
        ("cohere2_windows", json!({"sliding_window_pattern": 2}), "layer_types"),
        ("exaone4_windows", json!({"sliding_window_pattern": "LG"}), "layer_types"),
        ("olmo2_bias", json!({}), "bias"),
        ("seed_oss_out_bias", json!({}), "bias"),
        ("cohere_bias", json!({}), "bias"),
        ("glm_partial", json!({}), "glm"),
        ("opt_before", json!({}), "opt"),
        ("granite4_dense", json!({}), "granitemoehybrid"),
        ("gpt2_all", json!({}), "gpt2"),
    ] {
        let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let session = changed(case, change.clone(), folder.path()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let file = out.path().join("model.gguf");
        let Err(error) = to_gguf(&session, &file) else { panic!("{case} with {change} was written") };
        assert!(error.to_string().contains(names), "{case} with {change}: {error}");
        assert!(!file.exists(), "{case}");
    }
}

/// A bias that transformers adds and llama.cpp has no place for.
#[test]
fn biases_without_a_place_in_gguf_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("model.gguf"));
    std::fs::create_dir(&model).unwrap();
    let qwen3 = changed("qwen3_qk_norm", json!({}), &model).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for name in qwen3.base.tensors.names() {
        let shape = qwen3.base.tensors.shape(name).unwrap().to_vec();
        let mut numbers = vec![0.0; shape.iter().product()];
        qwen3.base.tensors.read_rows(name, 0..shape[0], &mut numbers).unwrap();
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        if name.contains("self_attn") && name.ends_with("_proj.weight") {
            let bias = name.replace(".weight", ".bias");
            tensors.push((bias, vec![shape[0]], bytes(&vec![0.5; shape[0]])));
        }
        tensors.push((name.to_owned(), shape, bytes(&numbers)));
    }
    drop(qwen3);
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let data = safetensors::serialize(views, None).unwrap();
    for attention_bias in [true, false] {
        // Without its biases the model is one with none, or is refused.
        let without = changed("qwen3_qk_norm", json!({"attention_bias": attention_bias}), &model);
        assert_eq!(without.is_err(), attention_bias);
        drop(without);
        std::fs::write(model.join("model.safetensors"), &data).unwrap();
        let session = Session::open(model.to_str().unwrap()).unwrap();
        let error = to_gguf(&session, &out).unwrap_err().to_string();
        assert!(error.contains("self_attn.") && error.contains(".bias"), "{error}");
        assert!(!out.exists());
    }
}

/// Merged weights give the logits that PEFT's merge_and_unload gives, after a round trip through files.
#[test]
fn merged_models_equal_pefts() {
    for case in [
        "llama_mha",
        "llama_gqa_tied",
        "llama_embedding",
        "llama_tokens",
        "qwen3_qk_norm",
        "gpt2_c_attn",
        "gpt2_all",
        "gemma2_caps",
        "phi3_partial",
        "smollm3_every",
        "olmo3_windows",
        "granite_bias",
        "granite4_dense",
        "glm4_norms",
        "cohere2_windows",
        "gpt_neox_parallel",
        "opt_sum",
        "phi_head",
        "exaone4_windows",
        "nemotron_bias",
        "gemma3_old",
        "mistral3_new",
        "qwen2_5_vl_hub",
    ] {
        let dir = fixture(case);
        let expected = Expected::open(&dir);
        let mut session = Session::open(dir.to_str().unwrap()).unwrap();
        let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let target = lowrank::MergeTarget::Folder(lowrank::engine::Format::F32);
        lowrank::merge(&session, &adapters, out.path(), target).unwrap();
        let merged = Session::open(out.path().to_str().unwrap()).unwrap();
        let tokens: Vec<u32> = expected.ints("ids_1").iter().map(|t| *t as u32).collect();
        let got = logits(&merged, &AdapterSet::none(), &tokens);
        close(&format!("{case}: merged logits"), &got, &expected.floats("merged_logits_1"), 1e-4);
        let verified = lowrank::verify_merge(&session, &adapters, &merged, &tokens).unwrap();
        assert!(verified.max_difference < 1e-3 * verified.max_logit, "{verified:?}");
        assert_eq!(verified.same_best, tokens.len());

        // In memory, and out again to the bit.
        let base = logits(&session, &AdapterSet::none(), &tokens);
        session.merge_weights(&adapters).unwrap();
        let got = logits(&session, &AdapterSet::none(), &tokens);
        close(&format!("{case}: merged in memory"), &got, &expected.floats("merged_logits_1"), 1e-4);
        session.unmerge_weights().unwrap();
        assert_eq!(logits(&session, &AdapterSet::none(), &tokens), base, "{case}");
    }
}

/// A GGUF file with tensors that its architecture has no place for is another model than it says.
#[test]
fn tensors_without_a_place_in_a_gguf_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let session = changed("qwen3_qk_norm", json!({}), folder.path()).unwrap();
    let file = folder.path().join("model.gguf");
    to_gguf(&session, &file).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    let changed = folder.path().join("changed.gguf");
    for (extra, refused) in [
        ("blk.0.attn_rot_embd.weight", false),
        ("blk.0.attn_q.bias", true),
        ("blk.0.ffn_up.bias", true),
        ("blk.0.ffn_gate_inp.weight", true),
        ("rope_freqs.weight", true),
    ] {
        let mut writer = GgufWriter::new();
        writer.copy_metadata(&gguf, |key| key != "general.alignment").unwrap();
        let plan = |name: &str, dims: &[usize]| TensorPlan {
            name: name.to_owned(),
            dims: dims.to_vec(),
            format: Format::F32,
        };
        let mut plans: Vec<TensorPlan> =
            gguf.tensor_infos().map(|(name, dims, _)| plan(name, dims)).collect();
        plans.push(plan(extra, &[32]));
        writer
            .write(&changed, &plans, |plan, out| {
                let bytes = vec![0; 4 * plan.dims.iter().product::<usize>()];
                out.write_all(&bytes).map_err(lowrank::files::Error::io(&changed))
            })
            .unwrap();
        let opened = Session::open(changed.to_str().unwrap());
        assert_eq!(opened.is_err(), refused, "{extra}");
        if let Err(error) = opened {
            assert!(error.to_string().contains(extra), "{error}");
        }
    }
}
