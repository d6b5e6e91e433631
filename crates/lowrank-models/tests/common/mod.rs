//! What the test files share: where the real data is, and small model files made on the spot.
#![allow(dead_code)]

pub mod counting;

use std::path::{Path, PathBuf};

use lowrank_engine::Format;
use lowrank_files::{GgufWriter, TensorPlan};
use serde_json::{Value, json};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn fixture_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// A safetensors file of F32 tensors.
pub fn safetensors(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape, numbers) in tensors {
        let start = data.len();
        data.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        header.insert(
            (*name).into(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    raw_safetensors(&Value::Object(header).to_string(), &data)
}

/// A safetensors file of this header and these bytes.
pub fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// The numbers 0, 1/8, 2/8 and so on around zero: exact in F16 and BF16.
pub fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 31) as f32 / 8.0 - 1.5).collect()
}

pub const HIDDEN: usize = 64;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = HIDDEN / HEADS;
pub const WIDE: usize = 96;

/// Names and shapes of a small model of the Llama family with one block.
pub fn llama_shapes(vocab: usize) -> Vec<(&'static str, Vec<usize>)> {
    let kv = KV_HEADS * HEAD_DIM;
    vec![
        ("model.embed_tokens.weight", vec![vocab, HIDDEN]),
        ("model.layers.0.self_attn.q_proj.weight", vec![HIDDEN, HIDDEN]),
        ("model.layers.0.self_attn.k_proj.weight", vec![kv, HIDDEN]),
        ("model.layers.0.self_attn.v_proj.weight", vec![kv, HIDDEN]),
        ("model.layers.0.self_attn.o_proj.weight", vec![HIDDEN, HIDDEN]),
        ("model.layers.0.mlp.gate_proj.weight", vec![WIDE, HIDDEN]),
        ("model.layers.0.mlp.up_proj.weight", vec![WIDE, HIDDEN]),
        ("model.layers.0.mlp.down_proj.weight", vec![HIDDEN, WIDE]),
        ("model.layers.0.input_layernorm.weight", vec![HIDDEN]),
        ("model.layers.0.post_attention_layernorm.weight", vec![HIDDEN]),
        ("model.norm.weight", vec![HIDDEN]),
    ]
}

pub fn llama_config(vocab: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": WIDE, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": vocab, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "float32",
        "bos_token_id": 1, "eos_token_id": [2, 0],
    })
}

/// Writes that model as a Hugging Face folder.
pub fn write_llama_folder(folder: &Path, vocab: usize) {
    let shapes = llama_shapes(vocab);
    let data: Vec<Vec<f32>> = shapes.iter().map(|(_, shape)| ramp(shape.iter().product())).collect();
    let tensors: Vec<(&str, &[usize], &[f32])> = shapes
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| (*name, shape.as_slice(), data.as_slice()))
        .collect();
    std::fs::write(folder.join("model.safetensors"), safetensors(&tensors)).unwrap();
    std::fs::write(folder.join("config.json"), llama_config(vocab).to_string()).unwrap();
}

/// A small valid GGUF file with one of everything the reader looks at.
pub fn small_gguf(path: &Path) {
    small_gguf_with(path, |_| ());
}

/// The same with further metadata.
pub fn small_gguf_with(path: &Path, more: impl FnOnce(&mut GgufWriter)) {
    let mut writer = GgufWriter::new();
    more(&mut writer);
    writer.string("general.architecture", "llama").unwrap();
    writer.u32("llama.block_count", 1).unwrap();
    writer.u32("llama.context_length", 16).unwrap();
    writer.u32("llama.embedding_length", 8).unwrap();
    writer.u32("llama.feed_forward_length", 8).unwrap();
    writer.u32("llama.attention.head_count", 2).unwrap();
    writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5).unwrap();
    writer.string("tokenizer.ggml.model", "gpt2").unwrap();
    writer.string("tokenizer.ggml.pre", "smollm").unwrap();
    writer.strings("tokenizer.ggml.tokens", ["a", "b", "ab", "<e>"].into_iter()).unwrap();
    writer.strings("tokenizer.ggml.merges", ["a b"].into_iter()).unwrap();
    writer.i32s("tokenizer.ggml.token_type", &[1, 1, 1, 3]).unwrap();
    writer.u32("tokenizer.ggml.eos_token_id", 3).unwrap();
    writer.boolean("tokenizer.ggml.add_bos_token", false).unwrap();
    writer.string("tokenizer.chat_template", "{{ messages[0].content }}{{ eos_token }}").unwrap();
    let plan =
        |name: &str, dims: &[usize]| TensorPlan { name: name.into(), dims: dims.into(), format: Format::F32 };
    let plans = [
        plan("token_embd.weight", &[8, 4]),
        plan("blk.0.attn_q.weight", &[8, 8]),
        plan("output_norm.weight", &[8]),
    ];
    writer
        .write(path, &plans, |plan, out| {
            let numbers = ramp(plan.dims.iter().product());
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            out.write_all(&bytes).unwrap();
            Ok::<_, lowrank_files::Error>(())
        })
        .unwrap();
}
