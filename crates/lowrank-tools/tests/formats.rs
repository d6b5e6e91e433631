//! Formats: there and back to the same numbers, published names, and files made to hurt.

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_files::{PytorchTensor, write_pytorch};
use lowrank_kernels::Format;
use lowrank_tools::formats::{self, read, write};
use lowrank_tools::tensor::{self, Named};
use lowrank_tools::{FileFormat, Kind, Lora, Options, Pair, Result, Tensor};
use proptest::prelude::*;
use serde_json::{Value, json};

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut data = vec![f32::NAN; shape.iter().product()];
    lowrank_kernels::normal(&mut data, 0.0, 1.0, seed, 7);
    Tensor::new(shape.to_vec(), data)
}

fn pair(path: &str, o: usize, k: usize, r: usize, alpha: f64) -> Pair {
    let seed = path.bytes().map(u64::from).sum::<u64>();
    Pair::new(path, random(&[r, k], seed), random(&[o, r], seed + 1), alpha, Kind::Linear).unwrap()
}

/// Two layers of a Llama of width 8 with heads of 4.
fn llama(ranks: [usize; 2], alpha: f64) -> Lora {
    let mut lora = Lora::default();
    for (layer, r) in ranks.into_iter().enumerate() {
        for (name, o, k) in [("self_attn.q_proj", 8, 8), ("self_attn.k_proj", 4, 8), ("mlp.down_proj", 8, 12)]
        {
            let path = format!("model.layers.{layer}.{name}");
            lora.pairs.insert(path.clone(), pair(&path, o, k, r, alpha));
        }
    }
    lora
}

fn base(folder: &Path, kind: &str) -> Options {
    let config = json!({"model_type": kind, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 11,
        "num_hidden_layers": 2, "intermediate_size": 12});
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let weight = Named::from([("model.norm.weight".to_owned(), Tensor::new(vec![8], vec![1.0; 8]))]);
    tensor::write(&folder.join("model.safetensors"), &weight, &[]).unwrap();
    Options { base: Some(folder.to_str().unwrap().to_owned()), ..Options::default() }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn there_and_back(lora: &Lora, name: &str, format: FileFormat, options: &Options) -> Result<Lora> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    write(lora, &path, format, options)?;
    assert_eq!(FileFormat::detect(&path)?, format);
    read(&path, format, options)
}

/// The same modules, ranks and changes to the weights.
fn same_changes(found: &Lora, want: &Lora) {
    assert_eq!(found.pairs.keys().collect::<Vec<_>>(), want.pairs.keys().collect::<Vec<_>>());
    for (path, pair) in &want.pairs {
        let other = &found.pairs[path];
        assert_eq!((other.rank(), other.kind), (pair.rank(), pair.kind), "{path}");
        let largest = pair.delta().iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (x, y) in other.delta().iter().zip(pair.delta()) {
            assert!((x - y).abs() <= 1e-6 * largest, "{path}: {x} for {y}");
        }
    }
}

#[test]
fn peft_keeps_ranks_alphas_and_what_is_trained_whole() {
    let mut lora = llama([2, 3], 4.0);
    lora.pairs.get_mut("model.layers.1.mlp.down_proj").unwrap().alpha = 7.5;
    let mut table = pair("model.embed_tokens", 8, 11, 2, 4.0);
    table.kind = Kind::Embedding;
    lora.pairs.insert("model.embed_tokens".into(), table);
    lora.saved.insert("score.weight".into(), random(&[3, 8], 1));
    let dir = tempfile::tempdir().unwrap();
    write(&lora, dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    let again = read(dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    assert_eq!((&again.pairs, &again.saved), (&lora.pairs, &lora.saved));
    let config = json_of(&dir.path().join("adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(4)));
    assert_eq!(config["rank_pattern"].as_object().unwrap().len(), 3);
    assert_eq!(config["alpha_pattern"], json!({"model\\.layers\\.1\\.mlp\\.down_proj": 7.5}));
    let targets = json!(["mlp.down_proj", "model.embed_tokens", "self_attn.k_proj", "self_attn.q_proj"]);
    assert_eq!(config["target_modules"], targets);
    assert_eq!(config["modules_to_save"], json!(["score"]));

    // alpha / sqrt(r) stays the rule of a file that has it.
    let mut config = config;
    config["use_rslora"] = json!(true);
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let root = read(dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    assert!((root.pairs["model.layers.0.mlp.down_proj"].scaling() - 4.0 / 2f64.sqrt()).abs() < 1e-12);
    write(&root, dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    let again = json_of(&dir.path().join("adapter_config.json"));
    assert_eq!(
        (&again["lora_alpha"], &again["alpha_pattern"]),
        (&config["lora_alpha"], &config["alpha_pattern"])
    );
}

#[test]
fn peft_folders_may_hold_a_bin() {
    let lora = llama([2, 2], 4.0);
    let dir = tempfile::tempdir().unwrap();
    write(&lora, dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    let safe = dir.path().join("adapter_model.safetensors");
    let tensors = tensor::read(&safe).unwrap();
    let bytes: Vec<Vec<u8>> = tensors.values().map(Tensor::bytes).collect();
    let list: Vec<PytorchTensor<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, t), bytes)| PytorchTensor { name, shape: &t.shape, format: t.dtype, bytes })
        .collect();
    write_pytorch(&dir.path().join("adapter_model.bin"), &list).unwrap();
    fs::remove_file(safe).unwrap();
    assert_eq!(read(dir.path(), formats::peft::FORMAT, &Options::default()).unwrap().pairs, lora.pairs);
}

#[test]
fn gguf_has_llama_cpps_names_and_row_order() {
    let dir = tempfile::tempdir().unwrap();
    let options = base(&dir.path().join("base"), "llama");
    let mut lora = llama([2, 2], 6.0);
    let mut table = pair("model.embed_tokens", 8, 11, 2, 6.0);
    table.kind = Kind::Embedding;
    lora.pairs.insert("model.embed_tokens".into(), table);
    let path = dir.path().join("a.gguf");
    write(&lora, &path, formats::gguf::FORMAT, &options).unwrap();
    let file = lowrank_files::Gguf::open(&path).unwrap();
    assert_eq!(file.string("general.type").unwrap(), Some("adapter"));
    assert_eq!(file.string("adapter.type").unwrap(), Some("lora"));
    assert_eq!(file.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.float("adapter.lora.alpha").unwrap(), Some(6.0));
    let tensors = file.tensors().unwrap();
    assert_eq!(tensors.shape("blk.0.attn_q.weight.lora_a"), Some(&[2, 8][..]));
    assert_eq!(tensors.shape("blk.1.ffn_down.weight.lora_b"), Some(&[8, 2][..]));
    assert_eq!(tensors.shape("token_embd.weight.lora_a"), Some(&[11, 2][..]));
    // Heads of 4: the file has rows 0, 2, 1, 3 of each, first and second halves in turns.
    let mut row = [0.0; 2];
    let b = &lora.pairs["model.layers.0.self_attn.q_proj"].b;
    for (stored, row_of) in [(0, 0), (1, 2), (2, 1), (3, 3), (4, 4), (5, 6)] {
        tensors.read_rows("blk.0.attn_q.weight.lora_b", stored..stored + 1, &mut row).unwrap();
        assert_eq!(row, b.data[row_of * 2..][..2], "stored row {stored}");
    }
    assert_eq!(read(&path, formats::gguf::FORMAT, &options).unwrap().pairs, lora.pairs);
    let alone = read(&path, formats::gguf::FORMAT, &Options::default()).unwrap_err().to_string();
    assert!(alone.contains("`base`") && alone.contains("q_proj") && !alone.contains("down_proj"), "{alone}");
    let qwen = base(&dir.path().join("qwen"), "qwen2");
    assert!(read(&path, formats::gguf::FORMAT, &qwen).unwrap_err().to_string().contains("qwen2"));

    // One alpha for all: another goes into B.
    lora.pairs.get_mut("model.embed_tokens").unwrap().alpha = 5.0;
    write(&lora, &path, formats::gguf::FORMAT, &options).unwrap();
    same_changes(&read(&path, formats::gguf::FORMAT, &options).unwrap(), &lora);
    lora.pairs.insert("visual.proj".into(), pair("visual.proj", 2, 2, 1, 6.0));
    let unplaced = write(&lora, &path, formats::gguf::FORMAT, &options).unwrap_err().to_string();
    assert!(unplaced.contains("visual.proj"), "{unplaced}");
    assert!(write(&lora, &path, formats::gguf::FORMAT, &Options::default()).is_err());
}

#[test]
fn mlx_has_transposed_matrices_and_a_scale() {
    let lora = llama([2, 2], 6.0);
    let dir = tempfile::tempdir().unwrap();
    write(&lora, dir.path(), formats::mlx::FORMAT, &Options::default()).unwrap();
    let tensors = tensor::read(&dir.path().join("adapters.safetensors")).unwrap();
    let a = &tensors["model.layers.1.mlp.down_proj.lora_a"];
    assert_eq!(a.shape, [12, 2]);
    assert_eq!(a.data[1], lora.pairs["model.layers.1.mlp.down_proj"].a.data[12]);
    assert_eq!(tensors["model.layers.1.mlp.down_proj.lora_b"].shape, [2, 8]);
    let config = json_of(&dir.path().join("adapter_config.json"));
    let want = json!({"rank": 2, "scale": 3, "dropout": 0.0,
        "keys": ["mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj"]});
    assert_eq!((&config["lora_parameters"], &config["num_layers"]), (&want, &json!(-1)));
    assert_eq!(read(dir.path(), formats::mlx::FORMAT, &Options::default()).unwrap().pairs, lora.pairs);
    // One rank and one scale for all: smaller ranks get zeros, and what a scale differs by goes into B.
    let uneven = llama([2, 3], 6.0);
    write(&uneven, dir.path(), formats::mlx::FORMAT, &Options::default()).unwrap();
    let tensors = tensor::read(&dir.path().join("adapters.safetensors")).unwrap();
    assert!(tensors.iter().filter(|(name, _)| name.ends_with("lora_a")).all(|(_, a)| a.shape[1] == 3));
    same_changes(&read(dir.path(), formats::mlx::FORMAT, &Options::default()).unwrap(), &uneven);
}

/// Module paths of diffusers and the names of kohya's published files.
const NAMES: [(&str, &str); 11] = [
    (
        "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q",
    ),
    (
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0",
    ),
    (
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
    ),
    ("unet.mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in"),
    ("unet.down_blocks.1.resnets.0.conv1", "lora_unet_down_blocks_1_resnets_0_conv1"),
    ("unet.down_blocks.1.resnets.0.time_emb_proj", "lora_unet_down_blocks_1_resnets_0_time_emb_proj"),
    ("unet.down_blocks.2.downsamplers.0.conv", "lora_unet_down_blocks_2_downsamplers_0_conv"),
    ("unet.up_blocks.1.resnets.2.conv_shortcut", "lora_unet_up_blocks_1_resnets_2_conv_shortcut"),
    ("unet.time_embedding.linear_1", "lora_unet_time_embedding_linear_1"),
    (
        "text_encoder.text_model.encoder.layers.11.self_attn.out_proj",
        "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
    ),
    ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
];

fn diffusion() -> Lora {
    let mut lora = Lora::default();
    for (i, (path, _)) in NAMES.iter().enumerate() {
        let r = 2 + i % 2;
        let new = if path.contains("conv") {
            let (a, b) = (random(&[r, 3, 3, 3], 1), random(&[5, r, 1, 1], 2));
            Pair::new(path, a, b, 1.5, Kind::Linear).unwrap()
        } else {
            pair(path, 6, 4, r, 1.5)
        };
        lora.pairs.insert((*path).into(), new);
    }
    lora
}

#[test]
fn kohya_has_the_published_names_with_alpha_and_convolutions() {
    let lora = diffusion();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("style.safetensors");
    write(&lora, &path, formats::kohya::FORMAT, &Options::default()).unwrap();
    let tensors = tensor::read(&path).unwrap();
    assert_eq!(tensors.len(), 3 * NAMES.len());
    for (module, name) in NAMES {
        let pair = &lora.pairs[module];
        assert_eq!(tensors[&format!("{name}.lora_down.weight")], pair.a);
        assert_eq!(tensors[&format!("{name}.lora_up.weight")], pair.b);
        assert_eq!(tensors[&format!("{name}.alpha")], Tensor::scalar(1.5));
    }
    assert_eq!(FileFormat::detect(&path).unwrap(), formats::kohya::FORMAT);
    assert_eq!(read(&path, formats::kohya::FORMAT, &Options::default()).unwrap().pairs, lora.pairs);

    // Two text encoders are numbered.
    let mut two = lora.clone();
    let second = "text_encoder_2.text_model.encoder.layers.3.mlp.fc2";
    two.pairs.insert(second.into(), pair(second, 2, 2, 1, 1.0));
    write(&two, &path, formats::kohya::FORMAT, &Options::default()).unwrap();
    let names = tensor::read(&path).unwrap();
    assert!(names.contains_key("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"));
    assert!(names.contains_key("lora_te2_text_model_encoder_layers_3_mlp_fc2.alpha"));
    assert_eq!(read(&path, formats::kohya::FORMAT, &Options::default()).unwrap().pairs, two.pairs);
}

#[test]
fn kohya_files_of_other_kinds_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let refused = |name: &str| {
        tensor::write(&path, &Named::from([(name.to_owned(), random(&[2, 2], 1))]), &[]).unwrap();
        read(&path, formats::kohya::FORMAT, &Options::default()).unwrap_err().to_string()
    };
    for name in [
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",
        "lora_unet_mid_block_attentions_0_proj_in.dora_scale",
        "plain",
        ".lora_down.weight",
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
    ] {
        let error = refused(name);
        assert!(
            error.contains(name) || error.contains("unet.mid_block.attentions.0.proj_in"),
            "{name}: {error}"
        );
    }
    // A language model's adapter is no part of a pipeline.
    let error = write(&llama([1, 1], 1.0), &path, formats::kohya::FORMAT, &Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("`component`") && error.contains("model.layers.0"), "{error}");
}

#[test]
fn diffusers_keeps_ranks_and_alphas_in_the_metadata() {
    let mut lora = diffusion();
    lora.pairs.get_mut(NAMES[3].0).unwrap().alpha = 4.0;
    let dir = tempfile::tempdir().unwrap();
    write(&lora, dir.path(), formats::diffusers::FORMAT, &Options::default()).unwrap();
    assert_eq!(FileFormat::detect(dir.path()).unwrap(), formats::diffusers::FORMAT);
    let names = tensor::read(&dir.path().join("pytorch_lora_weights.safetensors")).unwrap();
    assert!(names.contains_key("unet.mid_block.attentions.0.proj_in.lora_A.weight"));
    assert_eq!(read(dir.path(), formats::diffusers::FORMAT, &Options::default()).unwrap().pairs, lora.pairs);

    // Names of older files.
    let old = dir.path().join("old.safetensors");
    let attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn1";
    let mut tensors = Named::new();
    for key in ["to_q_lora", "to_out_lora"] {
        tensors.insert(format!("{attention}.processor.{key}.down.weight"), random(&[2, 4], 1));
        tensors.insert(format!("{attention}.processor.{key}.up.weight"), random(&[6, 2], 1));
    }
    let te = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer";
    tensors.insert(format!("{te}.down.weight"), random(&[2, 4], 1));
    tensors.insert(format!("{te}.up.weight"), random(&[6, 2], 1));
    let older = "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora";
    tensors.insert(format!("{older}.down.weight"), random(&[2, 4], 1));
    tensors.insert(format!("{older}.up.weight"), random(&[6, 2], 1));
    tensor::write(&old, &tensors, &[]).unwrap();
    let found = read(&old, formats::diffusers::FORMAT, &Options::default()).unwrap();
    assert!(found.pairs.contains_key(&format!("{attention}.to_q")));
    assert!(found.pairs.contains_key(&format!("{attention}.to_out.0")));
    assert!(found.pairs.contains_key("text_encoder.text_model.encoder.layers.0.self_attn.out_proj"));
    assert!(found.pairs.values().all(|p| p.scaling() == 1.0) && found.pairs.len() == 4);
}

/// kohya's SDXL files have Stability's names.
#[test]
fn names_of_sdxl_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sdxl.safetensors");
    let names = [
        ("input_blocks_0_0", "conv_in"),
        ("input_blocks_2_0_in_layers_2", "down_blocks.0.resnets.1.conv1"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        (
            "input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
            "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",
        ),
        ("middle_block_2_emb_layers_1", "mid_block.resnets.1.time_emb_proj"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks_3_0_out_layers_3", "up_blocks.1.resnets.0.conv2"),
        (
            "output_blocks_2_1_transformer_blocks_0_ff_net_0_proj",
            "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.0.proj",
        ),
        ("time_embed_2", "time_embedding.linear_2"),
        ("label_emb_0_0", "add_embedding.linear_1"),
        ("out_2", "conv_out"),
    ];
    let mut tensors = Named::new();
    for (name, _) in names {
        tensors.insert(format!("lora_unet_{name}.lora_down.weight"), random(&[2, 4], 1));
        tensors.insert(format!("lora_unet_{name}.lora_up.weight"), random(&[6, 2], 1));
    }
    tensor::write(&path, &tensors, &[]).unwrap();
    let found = read(&path, formats::kohya::FORMAT, &Options::default()).unwrap();
    let mut wanted: Vec<String> = names.iter().map(|(_, name)| format!("unet.{name}")).collect();
    wanted.sort();
    assert_eq!(found.pairs.keys().cloned().collect::<Vec<_>>(), wanted);
    // They come back under the names that they had.
    let again = dir.path().join("again.safetensors");
    write(&found, &again, formats::kohya::FORMAT, &Options::default()).unwrap();
    assert!(tensor::read(&again).unwrap().contains_key("lora_unet_out_2.lora_up.weight"));
    assert_eq!(read(&again, formats::kohya::FORMAT, &Options::default()).unwrap().pairs, found.pairs);

    for wrong in ["input_blocks_1_2_conv", "middle_block_3_proj_in", "output_blocks_0_0_in_layers_1"] {
        let mut tensors = Named::new();
        tensors.insert(format!("lora_unet_{wrong}.lora_down.weight"), random(&[2, 4], 1));
        tensors.insert(format!("lora_unet_{wrong}.lora_up.weight"), random(&[6, 2], 1));
        tensor::write(&path, &tensors, &[]).unwrap();
        // A name that is none of Stable Diffusion's stays as it is, and is no path for another format.
        let found = read(&path, formats::kohya::FORMAT, &Options::default()).unwrap();
        assert_eq!(found.pairs.keys().collect::<Vec<_>>(), [&format!("lora_unet_{wrong}")]);
        for format in [formats::peft::FORMAT, formats::diffusers::FORMAT, formats::mlx::FORMAT] {
            let error = write(&found, &again, format, &Options::default()).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}

#[test]
fn one_model_of_a_pipeline_goes_to_peft_and_back() {
    let lora = diffusion();
    let dir = tempfile::tempdir().unwrap();
    let error = write(&lora, dir.path(), formats::peft::FORMAT, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("`component`") && error.contains("text_encoder"), "{error}");
    let options = Options { component: Some("unet".into()), ..Options::default() };
    write(&lora, dir.path(), formats::peft::FORMAT, &options).unwrap();
    let unet = read(dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    assert_eq!(unet.pairs.len(), 9);
    assert!(unet.pairs.contains_key("mid_block.attentions.0.proj_in"));
    let path = dir.path().join("unet.safetensors");
    write(&unet, &path, formats::kohya::FORMAT, &options).unwrap();
    let again = read(&path, formats::kohya::FORMAT, &Options::default()).unwrap();
    assert!(again.pairs.iter().all(|(path, pair)| lora.pairs[path] == *pair));
    let wrong = Options { component: Some("vae".into()), ..Options::default() };
    assert!(write(&lora, dir.path(), formats::peft::FORMAT, &wrong).unwrap_err().to_string().contains("vae"));
}

/// The published checkpoint of the paper: what loralib adds to a weight is what the converted pair adds.
#[test]
#[ignore = "reads public data sets: make data-test"]
fn the_papers_checkpoint_becomes_a_peft_folder_and_comes_back() {
    let file = lowrank_testing::public_data("loralib/roberta_base_lora_mnli.bin");
    let options = Options { alpha: Some(16.0), ..Options::default() };
    assert!(
        read(&file, formats::loralib::FORMAT, &Options::default())
            .unwrap_err()
            .to_string()
            .contains("`alpha`")
    );
    let lora = read(&file, FileFormat::detect(&file).unwrap(), &options).unwrap();
    assert_eq!((lora.pairs.len(), lora.saved.len()), (24, 4));
    let dir = tempfile::tempdir().unwrap();
    write(&lora, dir.path(), formats::peft::FORMAT, &options).unwrap();
    let config = json_of(&dir.path().join("adapter_config.json"));
    assert_eq!(config["target_modules"], json!(["attention.self.query", "attention.self.value"]));
    assert_eq!(config["modules_to_save"], json!(["classifier"]));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(8), &json!(16)));
    let tensors = tensor::read(&dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(tensors.contains_key("base_model.model.classifier.out_proj.weight"));
    let module = "roberta.encoder.layer.5.attention.self.value";
    let original = tensor::read(&file).unwrap();
    let (a, b) = (&original[&format!("{module}.lora_A")], &original[&format!("{module}.lora_B")]);
    let peft = read(dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    let delta = peft.pairs[module].delta();
    for (i, j) in [(0, 0), (17, 700), (767, 767), (400, 3)] {
        // loralib: W + (lora_B @ lora_A) * lora_alpha / r.
        let want: f64 =
            (0..8).map(|k| f64::from(b.data[i * 8 + k]) * f64::from(a.data[k * 768 + j])).sum::<f64>() * 2.0;
        assert!((f64::from(delta[i * 768 + j]) - want).abs() < 1e-6, "{i},{j}");
    }
    let back = dir.path().join("back.bin");
    write(&peft, &back, formats::loralib::FORMAT, &options).unwrap();
    assert_eq!(tensor::read(&back).unwrap(), original);
}

/// loralib's MergedLinear: grouped B, q and v of a fused layer.
#[test]
fn merged_linear_becomes_a_plain_pair_of_twice_the_rank_and_comes_back() {
    let (r, k, part) = (2, 5, 4);
    let module = "transformer.h.0.attn.c_attn";
    let (a, b) = (random(&[2 * r, k], 1), random(&[2 * part, r], 2));
    let tensors =
        Named::from([(format!("{module}.lora_A"), a.clone()), (format!("{module}.lora_B"), b.clone())]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gpt2.pt");
    let bytes: Vec<Vec<u8>> = tensors.values().map(Tensor::bytes).collect();
    let names: Vec<String> = tensors.keys().map(|name| format!("module.{name}")).collect();
    let list: Vec<PytorchTensor<'_>> = tensors
        .values()
        .zip(&bytes)
        .zip(&names)
        .map(|((t, bytes), name)| PytorchTensor { name, shape: &t.shape, format: Format::F32, bytes })
        .collect();
    write_pytorch(&path, &list).unwrap();
    let options = Options { alpha: Some(32.0), ..Options::default() };
    let lora = read(&path, formats::loralib::FORMAT, &options).unwrap();
    let pair = &lora.pairs[module];
    assert_eq!((pair.rank(), pair.alpha, pair.outputs()), (4, 64.0, 3 * part));
    let delta = pair.delta();
    for row in 0..3 * part {
        for col in 0..k {
            // Groups of the 1d convolution: q has the first r rows of A, v the second; k nothing.
            let want: f32 = match row / part {
                0 => (0..r).map(|i| b.data[row * r + i] * a.data[i * k + col]).sum(),
                2 => (0..r).map(|i| b.data[(row - part) * r + i] * a.data[(r + i) * k + col]).sum(),
                _ => 0.0,
            };
            assert!((delta[row * k + col] - 16.0 * want).abs() < 1e-4, "{row},{col}");
        }
    }
    assert_eq!(lora.config["fan_in_fan_out"], json!(true));
    let back = dir.path().join("back.bin");
    write(&lora, &back, formats::loralib::FORMAT, &options).unwrap();
    assert_eq!(tensor::read(&back).unwrap(), tensors);

    let all = Options { enable_lora: vec![true, true], ..options.clone() };
    let other = read(&path, formats::loralib::FORMAT, &all).unwrap();
    assert_eq!(other.pairs[module].outputs(), 2 * part);
    let mut dense = lora.clone();
    dense.pairs.get_mut(module).unwrap().b.data[3] = 1.0;
    let error = write(&dense, &back, formats::loralib::FORMAT, &options).unwrap_err().to_string();
    assert!(error.contains(module) && error.contains("enable_lora"), "{error}");
    let none = Options { enable_lora: vec![true, false], ..options };
    assert!(read(&path, formats::loralib::FORMAT, &none).unwrap_err().to_string().contains(module));
}

/// Cut and altered adapters of every format are read or refused with a line, and that is all.
#[test]
fn damaged_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { alpha: Some(2.0), ..base(&dir.path().join("base"), "llama") };
    for format in FileFormat::ALL {
        let lora = match format.name {
            "kohya" | "diffusers" => diffusion(),
            _ => llama([1, 1], 2.0),
        };
        let name = match format.name {
            "gguf" => "a.gguf",
            "loralib" => "a.bin",
            "kohya" => "a.safetensors",
            _ => "folder",
        };
        let path = dir.path().join(format.name).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&lora, &path, format, &options).unwrap();
        let files: Vec<PathBuf> = match path.is_dir() {
            true => fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect(),
            false => vec![path.clone()],
        };
        for file in files {
            let good = fs::read(&file).unwrap();
            let step = (good.len() / 150).max(1);
            for at in (0..good.len()).step_by(step) {
                fs::write(&file, &good[..at]).unwrap();
                match read(&path, format, &options) {
                    // The last bytes may be a line's end or padding.
                    Ok(_) => assert!(at > good.len() / 2, "{format:?} cut at {at} was read"),
                    Err(e) => {
                        assert!((1..3000).contains(&e.to_string().len()), "{format:?} cut at {at}: {e}")
                    }
                }
                let mut bad = good.clone();
                bad[at] ^= 0x55;
                fs::write(&file, &bad).unwrap();
                let _ = read(&path, format, &options);
            }
            fs::write(&file, &good).unwrap();
        }
        assert_eq!(read(&path, format, &options).unwrap().pairs.len(), lora.pairs.len());
    }
}

#[test]
fn configurations_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    write(&llama([1, 1], 2.0), dir.path(), formats::peft::FORMAT, &Options::default()).unwrap();
    let path = dir.path().join("adapter_config.json");
    let good = json_of(&path);
    for (field, value, word) in [
        ("peft_type", json!("IA3"), "IA3"),
        ("use_dora", json!(true), "use_dora"),
        ("lora_alpha", json!("two"), "lora_alpha"),
        ("alpha_pattern", json!({"(": 3}), "alpha_pattern"),
        ("alpha_pattern", json!({"x": "y"}), "not a number"),
    ] {
        let mut config = good.clone();
        config[field] = value;
        fs::write(&path, config.to_string()).unwrap();
        let error = read(dir.path(), formats::peft::FORMAT, &Options::default()).unwrap_err().to_string();
        assert!(error.contains(word), "{field}: {error}");
    }
    fs::write(&path, "[1]").unwrap();
    assert!(read(dir.path(), formats::peft::FORMAT, &Options::default()).is_err());
    assert!(FileFormat::detect(Path::new("no/such/adapter")).is_err());
    assert!(FileFormat::parse("onnx").unwrap_err().to_string().contains("kohya"));
}

/// Any adapter of a Llama: odd sizes, ranks, alphas and number types.
fn any_llama(one_rank: bool) -> impl Strategy<Value = Lora> {
    let modules = proptest::collection::vec((0..3usize, 0..4usize, 1..5usize, 0..3usize), 1..6);
    (modules, 1..5usize, 1..9u32).prop_map(move |(modules, rank, alpha)| {
        let mut lora = Lora::default();
        for (layer, name, r, dtype) in modules {
            let name = ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"][name];
            let (o, k) = [(8, 7), (4, 7), (9, 7), (7, 9)]
                [["q", "k", "u", "d"].iter().position(|c| name.contains(&format!(".{c}"))).unwrap()];
            let path = format!("model.layers.{layer}.{name}");
            let r = if one_rank { rank } else { r };
            let mut new = pair(&path, o, k, r, f64::from(alpha) / 2.0);
            let dtype = [Format::F32, Format::F16, Format::BF16][dtype];
            for t in [&mut new.a, &mut new.b] {
                // Few bits, so that every type holds them exactly.
                t.data.iter_mut().for_each(|x| *x = (*x * 16.0).round() / 16.0);
                t.dtype = dtype;
            }
            lora.pairs.insert(path, new);
        }
        lora
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn formats_of_language_models_round_trip(lora in any_llama(true)) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { alpha: lora.pairs.values().next().map(|p| p.alpha), ..base(dir.path(), "llama") };
        for (format, name) in [(formats::mlx::FORMAT, "m"), (formats::gguf::FORMAT, "g.gguf"), (formats::loralib::FORMAT, "l.bin")] {
            prop_assert_eq!(&there_and_back(&lora, name, format, &options).unwrap().pairs, &lora.pairs);
        }
    }

    #[test]
    fn peft_round_trips(lora in any_llama(false)) {
        let again = there_and_back(&lora, "p", formats::peft::FORMAT, &Options::default()).unwrap();
        prop_assert_eq!(again.pairs, lora.pairs);
    }

    #[test]
    fn formats_of_diffusion_models_round_trip(picks in proptest::collection::vec((0..NAMES.len(), 1..4usize, 1..9u32), 1..6)) {
        let mut lora = Lora::default();
        for (pick, r, alpha) in picks {
            let path = NAMES[pick].0;
            lora.pairs.insert(path.into(), pair(path, 5, 3, r, f64::from(alpha) / 4.0));
        }
        for (format, name) in [(formats::kohya::FORMAT, "k.safetensors"), (formats::diffusers::FORMAT, "d")] {
            let again = there_and_back(&lora, name, format, &Options::default()).unwrap();
            prop_assert_eq!(again.pairs, lora.pairs.clone());
        }
    }
}
