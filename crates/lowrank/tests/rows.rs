//! Rows of data become the tokens, and have the loss, that transformers and TRL give them (`tools/reference/rows.py`).

mod common;

use std::fs;

use common::fixture;
use lowrank::{Session, TrainOptions};
use serde_json::{Value, json};

/// A folder with a tiny Llama of zeros whose embedding has `rows` rows, and the tokenizer.
fn base(dir: &std::path::Path, tokenizer: &Value, rows: usize) {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "max_position_embeddings": 512
    });
    let layer = |name: &str, shape: &[usize]| (format!("model.layers.0.{name}.weight"), shape.to_vec());
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![rows, 8]),
        ("model.norm.weight".to_owned(), vec![8]),
        layer("input_layernorm", &[8]),
        layer("post_attention_layernorm", &[8]),
        layer("self_attn.q_proj", &[8, 8]),
        layer("self_attn.k_proj", &[8, 8]),
        layer("self_attn.v_proj", &[8, 8]),
        layer("self_attn.o_proj", &[8, 8]),
        layer("mlp.gate_proj", &[8, 8]),
        layer("mlp.up_proj", &[8, 8]),
        layer("mlp.down_proj", &[8, 8]),
    ];
    let zeros = vec![0u8; rows.max(8) * 8 * 4];
    let tensors = shapes.iter().map(|(name, shape)| {
        let bytes = &zeros[..shape.iter().product::<usize>() * 4];
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let roles = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"});
    fs::write(dir.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.join("tokenizer_config.json"), roles.to_string()).unwrap();
}

#[test]
fn rows_become_the_tokens_of_transformers_and_trl() {
    let cases: Vec<Value> =
        serde_json::from_slice(&fs::read(fixture("rows.json")).unwrap()).expect("the fixture is JSON");
    for case in &cases {
        let dir = tempfile::tempdir().unwrap();
        base(dir.path(), &case["tokenizer"], 512);
        for row in case["rows"].as_array().unwrap() {
            let template = dir.path().join("chat_template.jinja");
            match row["template"].as_str() {
                Some(text) => fs::write(&template, text).unwrap(),
                None => drop(fs::remove_file(&template)),
            }
            let data = dir.path().join("row.jsonl");
            fs::write(&data, row["row"].to_string()).unwrap();
            let session = Session::open(dir.path().to_str().unwrap()).unwrap();
            let what = format!("{}: {}", case["name"], row["row"]);
            let read = session.read_data(&data, &TrainOptions::default(), false);
            let example = read.unwrap_or_else(|e| panic!("{what}: {e}")).examples.get(0);
            let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let mask: Vec<u8> = serde_json::from_value(row["mask"].clone()).unwrap();
            assert_eq!(example.tokens, ids, "{what}");
            assert_eq!(example.loss_mask.iter().map(|&m| u8::from(m)).collect::<Vec<_>>(), mask, "{what}");
            if let (Some(text), Some("")) = (row["row"]["prompt"].as_str(), row["row"]["completion"].as_str())
            {
                assert_eq!(session.prompt(text).unwrap(), ids[..ids.len() - 1], "{what}");
            }
        }
    }
}

/// Every way from text to tokens says which token has no row of the embedding.
#[test]
fn tokens_beyond_the_embedding_are_named() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(fixture("rows.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    base(dir.path(), &cases[0]["tokenizer"], 4);
    fs::write(dir.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let session = Session::open(dir.path().to_str().unwrap()).unwrap();
    let tokenizer = session.tokenizer().unwrap();
    let talk =
        lowrank::models::Conversation::from(&[lowrank::models::Message::new("user", "<|im_start|>")][..]);
    let errors = [
        session.prompt("<|im_start|>").unwrap_err().to_string(),
        session.chat_prompt(&talk).unwrap_err().to_string(),
        tokenizer.encode_texts("<|im_start|>", None, None).unwrap_err().to_string(),
        tokenizer.encode_with_spans("<|im_start|>", &[]).unwrap_err().to_string(),
    ];
    for error in errors {
        assert!(error.contains("token 4 (<|im_start|>) has no row"), "{error}");
        assert!(error.contains("4 rows"), "{error}");
    }
    let error = tokenizer.encode_words(&["<|im_start|>"], None).unwrap_err().to_string();
    assert!(error.contains("has no row"), "{error}");
}
