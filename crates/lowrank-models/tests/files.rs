//! Base models from folders and GGUF files, and writing them again.

mod common;

use std::fs;
use std::path::Path;

use common::{HEAD_DIM, HIDDEN, llama_shapes, ramp, write_llama_folder};
use lowrank_engine::{Format, RowOrder};
use lowrank_files::Gguf;
use lowrank_models::{Base, Message, Result};
use lowrank_models::{FileType, save_folder, save_gguf};
use serde_json::{Value, json};

const VOCAB: usize = 40;

fn copy(base: &Base) -> impl FnMut(&str, std::ops::Range<usize>, &mut [f32]) -> Result<()> {
    |name, rows, out| Ok(base.tensors.read_rows(name, rows, out)?)
}

fn numbers(base: &Base, name: &str) -> Vec<f32> {
    let (rows, cols) = base.tensors.matrix_shape(name).unwrap_or_else(|| panic!("{name}"));
    let mut out = vec![f32::NAN; rows * cols];
    base.tensors.read_rows(name, 0..rows, &mut out).unwrap();
    out
}

/// A folder with a tokenizer: the fixture's, whose vocabulary the embedding must hold.
fn folder_with_tokenizer(folder: &Path) -> Base {
    let gguf = Gguf::open(&common::fixture("tok-smollm.gguf")).unwrap();
    let tokenizer = lowrank_models::Tokenizer::from_gguf(&gguf).unwrap();
    write_llama_folder(folder, tokenizer.vocab_size());
    fs::write(folder.join("tokenizer.json"), tokenizer.to_json().unwrap()).unwrap();
    let words =
        json!({"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}{{ eos_token }}"});
    fs::write(folder.join("tokenizer_config.json"), words.to_string()).unwrap();
    Base::open_path(folder).unwrap()
}

#[test]
fn a_folder_is_read_in_place() {
    let folder = tempfile::tempdir().unwrap();
    write_llama_folder(folder.path(), VOCAB);
    let base = Base::open(folder.path().to_str().unwrap()).unwrap();
    assert_eq!(base.config["hidden_size"], HIDDEN);
    assert_eq!(base.generation.eos, [2, 0]);
    assert_eq!(base.tensors.len(), llama_shapes(VOCAB).len());
    let q = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(base.tensors.shape(q), Some(&[HIDDEN, HIDDEN][..]));
    let weight = base.tensors.weight(q).unwrap();
    assert_eq!(
        (weight.rows(), weight.cols(), weight.format(), weight.order()),
        (HIDDEN, HIDDEN, Format::F32, RowOrder::Plain)
    );
    assert!(matches!(weight.storage(), lowrank_engine::Storage::Mapped(..)));
    assert_eq!(base.tensors.vector("model.norm.weight").unwrap(), ramp(HIDDEN));
    assert_eq!(base.tensors.plain_format(), Some(Format::F32));
    let error = base.tensors.weight("model.layers.0.self_attn.q_prj.weight").unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("nearest names are") && error.contains(q),
        "{error}"
    );
    let error = base.tensors.weight("model.norm.weight").unwrap_err().to_string();
    assert!(error.contains("expected a matrix"), "{error}");
    let error = base.chat().unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
    let error = base.tokenizer().unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: is missing"), "{error}");
}

#[test]
fn half_formats_and_odd_offsets() {
    let folder = tempfile::tempdir().unwrap();
    write_llama_folder(folder.path(), VOCAB);
    // A header of odd length puts every number at an odd address.
    let header = r#"{"model.a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"model.b":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]},"model.c":{"dtype":"I64","shape":[1],"data_offsets":[16,24]},"model.d":{"dtype":"F32","shape":[1,1],"data_offsets":[24,28]}}"#;
    assert_eq!(header.len() % 2, 1);
    let halves: [u16; 6] = [0x3c00, 0xc000, 0x3800, 0x0001, 0x7bff, 0x8000];
    let mut data: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    data.extend([0x80, 0x3f, 0x00, 0xc0]);
    data.extend(7i64.to_le_bytes());
    data.extend(2.5f32.to_le_bytes());
    fs::write(folder.path().join("model.safetensors"), common::raw_safetensors(header, &data)).unwrap();
    let base = Base::open_path(folder.path()).unwrap();
    assert_eq!(numbers(&base, "model.a"), [1.0, -2.0, 0.5, 2f32.powi(-24), 65504.0, -0.0]);
    assert_eq!(base.tensors.vector("model.b").unwrap(), [1.0, -2.0]);
    assert_eq!(numbers(&base, "model.d"), [2.5]);
    assert_eq!(base.tensors.format("model.c"), None);
    let error = base.tensors.vector("model.c").unwrap_err().to_string();
    assert!(error.contains("tensor model.c: I64 numbers are not supported"), "{error}");
}

#[test]
fn shards_and_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("config.json"), "{}").unwrap();
    fs::write(at("one.safetensors"), common::safetensors(&[("a", &[1, 2], &[1.0, 2.0])])).unwrap();
    fs::write(at("two.safetensors"), common::safetensors(&[("b", &[2], &[3.0, 4.0])])).unwrap();
    let open = |map: Value| {
        fs::write(at("model.safetensors.index.json"), json!({"metadata": {}, "weight_map": map}).to_string())
            .unwrap();
        Base::open_path(folder.path())
    };
    let base = open(json!({"a": "one.safetensors", "b": "two.safetensors"})).unwrap();
    assert_eq!(numbers(&base, "a"), [1.0, 2.0]);
    assert_eq!(base.tensors.file_of("b"), Some(at("two.safetensors").as_path()));
    for (map, message) in [
        (
            json!({"a": "one.safetensors", "b": "one.safetensors"}),
            "tensor b: weight_map: is not in one.safetensors",
        ),
        (json!({"a": "one.safetensors", "b": "three.safetensors"}), "three.safetensors is missing"),
        (json!({"a": "../one.safetensors"}), "not a plain file name"),
        (json!({"a": "/etc/passwd"}), "not a plain file name"),
        (json!({"a": 7}), "invalid type"),
    ] {
        let error = open(map).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn folders_that_are_no_models_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Base::open_path(folder.path()).unwrap_err().to_string();
    assert!(open().contains("no config.json"));
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(open().contains("neither model.safetensors nor"));
    fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(open().contains("not a file of torch.save"));
    fs::write(folder.path().join("config.json"), "[1]").unwrap();
    assert!(open().contains("expected a JSON object"));
    fs::write(folder.path().join("config.json"), "{\n\"a\": }").unwrap();
    assert!(open().contains("line 2"), "{}", open());
    let error = Base::open("no/such/model").unwrap_err().to_string();
    assert!(error.contains("no such file or folder"), "{error}");
    let error = Base::open_path(&folder.path().join("config.json")).unwrap_err().to_string();
    assert!(error.contains("neither a Hugging Face folder nor a GGUF file"), "{error}");
}

#[test]
fn a_folder_becomes_a_gguf_file_and_a_folder_again() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder_with_tokenizer(folder.path());
    let q = "model.layers.0.self_attn.q_proj.weight";
    for (file_type, format, error) in [
        (FileType::F32, Format::F32, 0.0),
        (FileType::F16, Format::F16, 0.0),
        (FileType::BF16, Format::BF16, 0.0),
        (FileType::Q8_0, Format::Q8_0, 0.02),
        // Rows of 64 are no super-blocks.
        (FileType::Q5_K_S, Format::Q5_1, 0.1),
    ] {
        let path = folder.path().join(format!("{}.gguf", file_type.name()));
        save_gguf(&base, &path, Some(file_type), &mut copy(&base)).unwrap();
        let again = Base::open_path(&path).unwrap();
        assert_eq!(again.tensors.order(q), Some(RowOrder::RopeInterleaved { head_dim: HEAD_DIM }));
        assert_eq!(again.tensors.format(q), Some(format));
        assert_eq!(again.tensors.format("model.norm.weight"), Some(Format::F32));
        assert_eq!(again.tensors.len(), base.tensors.len());
        for name in base.tensors.names() {
            let (want, got) = (numbers(&base, name), numbers(&again, name));
            assert_eq!(want.len(), got.len());
            assert!(
                want.iter().zip(&got).all(|(a, b)| (a - b).abs() <= error),
                "{name} as {}",
                format.name()
            );
        }
        for field in [
            "hidden_size",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
            "vocab_size",
            "tie_word_embeddings",
        ] {
            assert_eq!(again.config[field], base.config[field], "{field}");
        }
        assert_eq!(again.config["model_type"], "llama");
        assert_eq!(again.chat().unwrap().render(&[Message::new("user", "x")], false).unwrap(), "x<|im_end|>");

        let back = folder.path().join(format!("back-{}", format.name()));
        save_folder(&again, &back, Format::F32, &mut copy(&again)).unwrap();
        let back = Base::open_path(&back).unwrap();
        for name in base.tensors.names() {
            assert_eq!(numbers(&back, name), numbers(&again, name), "{name}");
        }
        assert_eq!(back.config["torch_dtype"], "float32");
        let text = "name[The Vaults], 123";
        assert_eq!(
            back.tokenizer().unwrap().encode(text).unwrap(),
            base.tokenizer().unwrap().encode(text).unwrap()
        );
        assert_eq!(back.chat().unwrap().render(&[Message::new("user", "x")], false).unwrap(), "x<|im_end|>");
    }
}

#[test]
fn what_is_changed_on_the_way_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder_with_tokenizer(folder.path());
    let mut changed = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| {
        base.tensors.read_rows(name, rows.clone(), out)?;
        if name.ends_with("q_proj.weight") {
            let cols = out.len() / rows.len();
            rows.zip(out.chunks_mut(cols)).for_each(|(row, out)| out[0] = row as f32);
        }
        Ok(())
    };
    let path = folder.path().join("changed.gguf");
    save_gguf(&base, &path, Some(FileType::F16), &mut changed).unwrap();
    let again = Base::open_path(&path).unwrap();
    let q = numbers(&again, "model.layers.0.self_attn.q_proj.weight");
    assert!(q.chunks(HIDDEN).enumerate().all(|(row, numbers)| numbers[0] == row as f32));
    let failing = save_gguf(&base, &path, Some(FileType::F16), &mut |name, _, _| {
        Err(lowrank_models::Error::Template(format!("no {name}")))
    });
    assert!(failing.is_err());
    assert!(Base::open_path(&path).is_ok(), "a failed write leaves the old file");
}

#[test]
fn other_architectures_and_scalings_of_rope() {
    let folder = tempfile::tempdir().unwrap();
    folder_with_tokenizer(folder.path());
    let mut config = common::llama_config(0);
    config["vocab_size"] = Base::open_path(folder.path()).unwrap().config["vocab_size"].clone();
    let through_gguf = |change: Value| -> Base {
        let mut config = config.clone();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let base = Base::open_path(folder.path()).unwrap();
        let path = folder.path().join("m.gguf");
        save_gguf(&base, &path, Some(FileType::F32), &mut copy(&base)).unwrap();
        Base::open_path(&path).unwrap()
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    let qwen = through_gguf(json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}));
    assert_eq!(qwen.config["architectures"], json!(["Qwen2ForCausalLM"]));
    assert_eq!(qwen.tensors.order(q), Some(RowOrder::Plain));
    let mistral = through_gguf(json!({"model_type": "mistral", "sliding_window": 8}));
    assert_eq!(
        (&mistral.config["model_type"], &mistral.config["sliding_window"]),
        (&json!("mistral"), &json!(8))
    );
    let gemma = json!({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "sliding_window": 8,
        "query_pre_attn_scalar": common::HEAD_DIM, "head_dim": common::HEAD_DIM, "attn_logit_softcapping": 40.0,
        "final_logit_softcapping": 20.0});
    let base = through_gguf(gemma.clone());
    for (field, value) in gemma.as_object().unwrap() {
        assert_eq!(&base.config[field], value, "{field}");
    }
    // llama.cpp keeps 1 + w.
    assert_eq!(numbers(&base, "model.norm.weight"), ramp(HIDDEN));
    let shifted = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]});
    assert_eq!(numbers(&through_gguf(shifted), "model.norm.weight"), ramp(HIDDEN));
    for scaling in [
        json!({"rope_type": "linear", "factor": 3.0}),
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}),
    ] {
        let base = through_gguf(json!({"rope_scaling": scaling, "rope_theta": 500000.0}));
        assert_eq!(base.config["rope_scaling"], scaling);
        assert_eq!(base.tensors.contains("rope_freqs"), scaling["rope_type"] == "llama3");
    }
}

/// A head of its own in files that say they tie goes with them wherever they are written.
#[test]
fn a_head_that_only_the_configuration_ties_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let vocab = folder_with_tokenizer(folder.path()).tensors.shape("model.embed_tokens.weight").unwrap()[0];
    let shapes = [llama_shapes(vocab), vec![("lm_head.weight", vec![vocab, HIDDEN])]].concat();
    let write = |head: f32| {
        let value = |name: &str, shape: &[usize]| -> Vec<f32> {
            let shift = if name == "lm_head.weight" { head } else { 0.0 };
            ramp(shape.iter().product()).into_iter().map(|x| x + shift).collect()
        };
        let data: Vec<Vec<f32>> = shapes.iter().map(|(name, shape)| value(name, shape)).collect();
        let tensors: Vec<(&str, &[usize], &[f32])> =
            shapes.iter().zip(&data).map(|((name, shape), data)| (*name, &shape[..], &data[..])).collect();
        fs::write(folder.path().join("model.safetensors"), common::safetensors(&tensors)).unwrap();
        Base::open_path(folder.path()).unwrap()
    };
    for head in [0.0, 0.125] {
        let base = write(head);
        let own = head != 0.0;
        assert_eq!(base.tensors.contains("lm_head.weight"), own);
        assert_eq!(base.notes.len(), usize::from(own), "{:?}", base.notes);
        let (out, gguf) = (folder.path().join("out"), folder.path().join("out.gguf"));
        save_folder(&base, &out, Format::F32, &mut copy(&base)).unwrap();
        save_gguf(&base, &gguf, Some(FileType::F32), &mut copy(&base)).unwrap();
        for path in [out, gguf] {
            let again = Base::open_path(&path).unwrap();
            assert_eq!(again.config["tie_word_embeddings"], !own);
            assert_eq!(again.tensors.contains("lm_head.weight"), own);
            assert!(again.notes.is_empty(), "{:?}", again.notes);
            if own {
                assert_eq!(numbers(&again, "lm_head.weight"), numbers(&base, "lm_head.weight"));
            }
            let table = "model.embed_tokens.weight";
            assert_eq!(numbers(&again, table), numbers(&base, table));
        }
    }
}

/// Without a file type every tensor keeps its format, and every row that is not changed its bytes.
#[test]
fn a_gguf_file_keeps_its_types_and_what_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let dense = folder_with_tokenizer(folder.path());
    let refused = save_gguf(&dense, &folder.path().join("kept.gguf"), None, &mut copy(&dense));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("no type of GGUF that could be kept: choose a `dtype`"), "{refused}");
    let q = "model.layers.0.self_attn.q_proj.weight";
    let changed_row = HEAD_DIM + 3;
    for file_type in [FileType::Q4_K_M, FileType::Q4_1, FileType::F16] {
        let (path, out) = (folder.path().join("base.gguf"), folder.path().join("out.gguf"));
        save_gguf(&dense, &path, Some(file_type), &mut copy(&dense)).unwrap();
        let base = Base::open_path(&path).unwrap();
        save_gguf(&base, &out, None, &mut copy(&base)).unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(&out).unwrap(), "a copy of {}", file_type.name());
        let mut change = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| {
            base.tensors.read_rows(name, rows.clone(), out)?;
            if name == q && rows.contains(&changed_row) {
                out[(changed_row - rows.start) * HIDDEN] = 7.0;
            }
            Ok(())
        };
        save_gguf(&base, &out, None, &mut change).unwrap();
        let again = Base::open_path(&out).unwrap();
        assert_eq!(again.tensors.len(), base.tensors.len());
        for name in base.tensors.names() {
            assert_eq!(again.tensors.format(name), base.tensors.format(name), "{name}");
            let (before, after) = (base.tensors.stored(name).unwrap(), again.tensors.stored(name).unwrap());
            assert_eq!(before == after, name != q, "{name} of {}", file_type.name());
        }
        let (before, after) = (numbers(&base, q), numbers(&again, q));
        for (row, (before, after)) in before.chunks(HIDDEN).zip(after.chunks(HIDDEN)).enumerate() {
            assert_eq!(before == after, row != changed_row, "row {row} of {}", file_type.name());
        }
        assert!((after[changed_row * HIDDEN] - 7.0).abs() < 0.5, "{}", after[changed_row * HIDDEN]);
    }
}

/// Expected numbers: gguf-py's `dequantize` of `blk.0.attn_q.weight[1, 5]` and `[65, 0]`, which are
/// Hugging Face's rows 32 of the first and of the second head, and of `token_embd.weight[2, 7]`.
#[test]
fn the_real_gguf() {
    let Some(path) = lowrank_testing::smollm2() else { return };
    let base = Base::open_path(&path).unwrap();
    assert_eq!(base.tensors.len(), 272);
    assert_eq!(base.config["model_type"], "llama");
    assert_eq!(base.config["head_dim"], 64);
    assert_eq!(base.config["rms_norm_eps"], 1e-5);
    assert_eq!(base.config["rope_theta"], 100000.0);
    assert_eq!(base.config["tie_word_embeddings"], true);
    assert_eq!(base.generation.eos, [2]);
    let q = base.tensors.weight("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!((q.rows(), q.cols(), q.format()), (576, 576, Format::Q4_1));
    assert_eq!(base.tensors.format("model.embed_tokens.weight"), Some(Format::Q8_0));
    let row = |name: &str, row: usize| {
        let mut out = vec![0.0; 576];
        base.tensors.read_rows(name, row..row + 1, &mut out).unwrap();
        out
    };
    assert_eq!(row("model.layers.0.self_attn.q_proj.weight", 32)[5], 0.184_692_38);
    assert_eq!(row("model.layers.0.self_attn.q_proj.weight", 96)[0], 0.333_251_95);
    assert_eq!(row("model.embed_tokens.weight", 2)[7], 0.032_714_844);
    assert_eq!(base.tensors.vector("model.norm.weight").unwrap().len(), 576);
    // A copy of the file through the writer keeps every bit of the metadata it should.
    let folder = tempfile::tempdir().unwrap();
    let copied = folder.path().join("copy.gguf");
    save_gguf(&base, &copied, Some(FileType::Q8_0), &mut copy(&base)).unwrap();
    let again = Base::open_path(&copied).unwrap();
    assert_eq!(again.config, base.config);
    assert_eq!(
        again.tokenizer().unwrap().encode("Hello world 12").unwrap(),
        base.tokenizer().unwrap().encode("Hello world 12").unwrap()
    );
    let name = "model.embed_tokens.weight";
    assert_eq!(numbers(&again, name), numbers(&base, name), "Q8_0 of Q8_0 is the same");
}

/// A sentence encoder has a buffer of whole numbers, which is no weight and must survive as it is.
#[test]
fn numbers_of_other_types_are_carried_over() {
    let folder = tempfile::tempdir().unwrap();
    let header = r#"{"p":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[1],"data_offsets":[16,20]}}"#;
    let mut data: Vec<u8> = [5i64, -6].iter().flat_map(|n| n.to_le_bytes()).collect();
    data.extend(1.5f32.to_le_bytes());
    fs::write(folder.path().join("model.safetensors"), common::raw_safetensors(header, &data)).unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let base = Base::open_path(folder.path()).unwrap();
    let out = folder.path().join("out");
    save_folder(&base, &out, Format::F16, &mut copy(&base)).unwrap();
    let file = fs::read(out.join("model.safetensors")).unwrap();
    assert!(file.ends_with(&[&data[..16], &[0x00, 0x3e]].concat()), "{file:?}");
    let again = Base::open_path(&out).unwrap();
    assert_eq!(again.tensors.shape("p"), Some(&[1, 2][..]));
    assert_eq!(again.tensors.vector("w").unwrap(), [1.5]);
}
