//! Files for the models of a pipeline, known here or not, and adapters on some layers: nothing is lost on the way.

use std::fs;
use std::path::Path;

use lowrank_adapters::{LoraConfig, targets};
use lowrank_engine::{Site, SiteKind};
use lowrank_kernels::Format;
use lowrank_tools::compose::{Combination, Compose, compose};
use lowrank_tools::formats::{self, read, write};
use lowrank_tools::raw::Raw;
use lowrank_tools::resize::{Prune, prune, resize, to_dtype};
use lowrank_tools::tensor::{self, Named};
use lowrank_tools::{FileFormat, Kind, Lora, Options, Pair, Regex, Rule, Tensor, compare};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut data = vec![f32::NAN; shape.iter().product()];
    lowrank_kernels::normal(&mut data, 0.0, 1.0, seed, 3);
    Tensor::new(shape.to_vec(), data)
}

fn pair(path: &str, o: usize, k: usize, r: usize, alpha: f64) -> Pair {
    let seed = path.bytes().map(u64::from).sum::<u64>();
    Pair::new(path, random(&[r, k], seed), random(&[o, r], seed + 1), alpha, Kind::Linear).unwrap()
}

fn component(name: &str) -> Options {
    Options { component: Some(name.into()), ..Options::default() }
}

/// The tensors of a file by name.
fn names(path: &Path) -> Vec<String> {
    tensor::read(path).unwrap().into_keys().collect()
}

/// Files of pipelines, with the names that training tools give.
fn files(dir: &Path) -> Vec<(std::path::PathBuf, FileFormat)> {
    let down = ["lora_down.weight", "lora_up.weight"];
    type Case<'a> = (&'a str, FileFormat, &'a [&'a str], [&'a str; 2], bool);
    let cases: [Case<'_>; 7] = [
        // kohya's for Flux, of which no names are known here, with text encoders.
        (
            "flux",
            formats::kohya::FORMAT,
            &[
                "lora_unet_double_blocks_0_img_attn_qkv",
                "lora_unet_single_blocks_3_linear1",
                "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
            ],
            down,
            true,
        ),
        // SDXL in Stability's names.
        (
            "sdxl",
            formats::kohya::FORMAT,
            &["lora_unet_middle_block_1_proj_in", "lora_te2_text_model_encoder_layers_0_mlp_fc1"],
            down,
            true,
        ),
        // Without prefix, and without alpha.
        ("bare", formats::kohya::FORMAT, &["double_blocks_0_img_attn_qkv", "blocks_1_attn_q"], down, false),
        (
            "dotted",
            formats::kohya::FORMAT,
            &["diffusion_model.blocks.0.cross_attn.q", "diffusion_model.blocks.1.ffn.0"],
            down,
            true,
        ),
        // ComfyUI's with alphas as tensors.
        (
            "comfy",
            formats::diffusers::FORMAT,
            &["diffusion_model.layers.0.attention.to_q", "diffusion_model.layers.1.attention.to_q"],
            ["lora_A.weight", "lora_B.weight"],
            true,
        ),
        (
            "wan",
            formats::diffusers::FORMAT,
            &[
                "transformer.blocks.0.attn1.to_q",
                "transformer_2.blocks.0.attn1.to_q",
                "text_encoder.encoder.layers.0.q",
            ],
            ["lora_A.weight", "lora_B.weight"],
            false,
        ),
        (
            "unprefixed",
            formats::diffusers::FORMAT,
            &["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q"],
            ["lora_A.weight", "lora_B.weight"],
            false,
        ),
    ];
    let mut found = Vec::new();
    for (file, format, modules, [a, b], alpha) in cases {
        let mut tensors = Named::new();
        for (i, module) in modules.iter().enumerate() {
            tensors.insert(format!("{module}.{a}"), random(&[4, 6], i as u64));
            tensors.insert(format!("{module}.{b}"), random(&[5, 4], 9 + i as u64));
            if alpha {
                tensors.insert(format!("{module}.alpha"), Tensor::scalar(2.0));
            }
        }
        let path = dir.join(format!("{file}.safetensors"));
        tensor::write(&path, &tensors, &[("ss_output_name", file), ("sshs_model_hash", "0")]).unwrap();
        found.push((path, format));
    }
    found
}

#[test]
fn any_pipeline_is_resized_pruned_composed_and_converted_by_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let none = Options::default();
    for (path, format) in files(dir.path()) {
        let what = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(FileFormat::detect(&path).unwrap(), format, "{what}");
        let lora = read(&path, format, &none).unwrap();
        let out = dir.path().join("out.safetensors");

        write(&lora, &out, format, &none).unwrap();
        let again = read(&out, format, &none).unwrap();
        assert_eq!((&again.pairs, names(&out)), (&lora.pairs, names(&path)), "{what}");
        let metadata = again.origin.unwrap().metadata;
        assert_eq!(metadata["ss_output_name"], what);
        assert!(!metadata.contains_key("sshs_model_hash"), "{what}: a hash of another file");

        let (smaller, _) = resize(&lora, Rule::Fixed(2), 2).unwrap();
        write(&smaller, &out, format, &none).unwrap();
        let again = read(&out, format, &none).unwrap();
        assert_eq!((&again.pairs, names(&out)), (&smaller.pairs, names(&path)), "{what}");

        let first = lora.pairs.keys().next().unwrap();
        let drop = Some(Regex::new(&format!("^{}$", first.replace('.', "\\."))).unwrap());
        let (left, gone) = prune(&lora, &Prune { drop, ..Prune::default() }).unwrap();
        write(&left, &out, format, &none).unwrap();
        let again = read(&out, format, &none).unwrap();
        assert_eq!((&again.pairs, gone.len()), (&left.pairs, 1), "{what}");

        let how = Compose {
            combination: Combination::Cat,
            rank: None,
            density: None,
            by_frequency: false,
            seed: 0,
        };
        let both = compose(&[(&lora, 0.5), (&left, -2.0)], &how).unwrap();
        write(&both, &out, format, &none).unwrap();
        assert_eq!(
            (&read(&out, format, &none).unwrap().pairs, names(&out)),
            (&both.pairs, names(&path)),
            "{what}"
        );

        let differences = compare::diff(&lora, &left).unwrap();
        assert_eq!(differences.iter().filter(|d| d.distance == 0.0).count(), left.pairs.len(), "{what}");
        assert_eq!(compare::spectra(&lora).unwrap().len(), lora.pairs.len(), "{what}");

        let mut raw = Raw::read(&path).unwrap();
        to_dtype(&mut raw.tensors, Format::BF16).unwrap();
        raw.write(&out).unwrap();
        let half = tensor::read(&out).unwrap();
        assert_eq!(half.keys().cloned().collect::<Vec<_>>(), names(&path), "{what}");
        let wrong = |(name, t): &(&String, &Tensor)| (t.dtype == Format::BF16) == name.ends_with(".alpha");
        assert!(!half.iter().any(|entry| wrong(&entry)), "{what}: an alpha stays exact");
    }
}

#[test]
fn a_component_is_taken_of_a_file_with_several() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    for (file, name, modules) in [
        ("flux", "unet", 2),
        ("flux", "text_encoder", 1),
        ("flux", "text_encoder_3", 1),
        ("sdxl", "text_encoder_2", 1),
        ("dotted", "diffusion_model", 2),
        ("wan", "transformer", 1),
        ("wan", "transformer_2", 1),
        ("wan", "text_encoder", 1),
    ] {
        let path = dir.path().join(format!("{file}.safetensors"));
        let format = files.iter().find(|(p, _)| *p == path).unwrap().1;
        let one = read(&path, format, &component(name)).unwrap();
        assert_eq!(one.pairs.len(), modules, "{file} {name}");
        let out = dir.path().join("one.safetensors");
        write(&one, &out, format, &component(name)).unwrap();
        assert_eq!(read(&out, format, &Options::default()).unwrap().pairs, one.pairs, "{file} {name}");
        assert!(names(&out).iter().all(|name| names(&path).contains(name)), "{file} {name}");
    }
    let wan = dir.path().join("wan.safetensors");
    let error = read(&wan, formats::diffusers::FORMAT, &component("unet")).unwrap_err().to_string();
    for word in ["unet", "transformer", "transformer_2", "text_encoder"] {
        assert!(error.contains(word), "{error}");
    }
    let error = read(&wan, formats::diffusers::FORMAT, &component("transfomer")).unwrap_err().to_string();
    assert!(error.contains("transformer"), "{error}");
    // One of them goes to PEFT without its name, several do not.
    let folder = dir.path().join("peft");
    let all = read(&wan, formats::diffusers::FORMAT, &Options::default()).unwrap();
    assert!(write(&all, &folder, formats::peft::FORMAT, &Options::default()).is_err());
    write(&all, &folder, formats::peft::FORMAT, &component("transformer")).unwrap();
    let peft = read(&folder, formats::peft::FORMAT, &Options::default()).unwrap();
    assert_eq!(peft.pairs.keys().collect::<Vec<_>>(), ["blocks.0.attn1.to_q"]);
    // GPT-2's modules begin with the word too, and are no pipeline's.
    let mut gpt2 = Lora::default();
    gpt2.pairs.insert("transformer.h.0.attn.c_attn".into(), pair("c", 6, 4, 2, 1.0));
    write(&gpt2, &folder, formats::peft::FORMAT, &Options::default()).unwrap();
    assert_eq!(read(&folder, formats::peft::FORMAT, &Options::default()).unwrap().pairs, gpt2.pairs);
}

/// An alpha is a number, whatever its type and shape.
#[test]
fn alphas_of_any_type_and_shape() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (random(&[2, 3], 1).bytes(), random(&[4, 2], 2).bytes());
    let alphas: [(Dtype, Vec<u8>); 8] = [
        (Dtype::F16, half::f16::from_f32(1.5).to_le_bytes().into()),
        (Dtype::BF16, half::bf16::from_f32(1.5).to_le_bytes().into()),
        (Dtype::F32, 1.5f32.to_le_bytes().into()),
        (Dtype::F64, 1.5f64.to_le_bytes().into()),
        (Dtype::I64, 3i64.to_le_bytes().into()),
        (Dtype::I32, 3i32.to_le_bytes().into()),
        (Dtype::I16, 3i16.to_le_bytes().into()),
        (Dtype::U8, vec![3]),
    ];
    for (ends, format) in [
        (["lora_down.weight", "lora_up.weight"], formats::kohya::FORMAT),
        (["lora_A.weight", "lora_B.weight"], formats::diffusers::FORMAT),
    ] {
        for (dtype, bytes) in &alphas {
            for shape in [vec![], vec![1], vec![1, 1]] {
                let path = dir.path().join("x.safetensors");
                let view =
                    |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
                let tensors = [
                    (format!("unet.proj.{}", ends[0]), view(Dtype::F32, &[2, 3], &a)),
                    (format!("unet.proj.{}", ends[1]), view(Dtype::F32, &[4, 2], &b)),
                    ("unet.proj.alpha".to_owned(), view(*dtype, &shape, bytes)),
                ];
                fs::write(&path, serialize(tensors, None).unwrap()).unwrap();
                let lora = read(&path, format, &Options::default()).unwrap();
                let want = if bytes.len() == 8 && *dtype == Dtype::F64
                    || dtype.bitsize() < 64 && matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32)
                {
                    1.5
                } else {
                    3.0
                };
                assert_eq!(lora.pairs["unet.proj"].alpha, want, "{dtype:?} {shape:?}");
            }
        }
        let two = 1.5f32.to_le_bytes().repeat(2);
        let path = dir.path().join("x.safetensors");
        let tensors = [("unet.proj.alpha".to_owned(), TensorView::new(Dtype::F32, vec![2], &two).unwrap())];
        fs::write(&path, serialize(tensors, None).unwrap()).unwrap();
        assert!(
            read(&path, format, &Options::default()).unwrap_err().to_string().contains("unet.proj.alpha")
        );
    }
}

/// diffusers gives its metadata to PEFT: keys of patterns are ends of paths.
#[test]
fn alphas_of_diffusers_metadata_match_ends_of_paths() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let mut tensors = Named::new();
    let modules = ["unet.a.to_q", "unet.a.to_k", "unet.b.to_q", "text_encoder.c.q_proj", "proj_out"];
    for (i, module) in modules.iter().enumerate() {
        tensors.insert(format!("{module}.lora_A.weight"), random(&[2 + i, 3], 1));
        tensors.insert(format!("{module}.lora_B.weight"), random(&[4, 2 + i], 1));
    }
    let with = |metadata: Value| {
        tensor::write(&path, &tensors, &[("lora_adapter_metadata", &metadata.to_string())]).unwrap();
        let lora = read(&path, formats::diffusers::FORMAT, &Options::default());
        lora.map(|lora| modules.map(|module| lora.pairs[module].alpha)).map_err(|e| e.to_string())
    };
    let patterns = json!({
        "unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": 6, "a.to_k": 5, "q": 9}, "unet.rank_pattern": {"to_k": 3},
        "text_encoder.lora_alpha": 8, "text_encoder.use_rslora": true,
        "lora_alpha": 7, "alpha_pattern": null,
    });
    assert_eq!(with(patterns).unwrap(), [6.0, 5.0, 6.0, 8.0 * 5f64.sqrt(), 7.0]);
    let ahead = json!({"unet.lora_alpha": 1, "unet.alpha_pattern": {r"(?<=a\.)to_\w": 3}});
    assert_eq!(with(ahead).unwrap()[..3], [3.0, 3.0, 1.0]);
    // Without alphas diffusers takes the rank of the model's first layer, by name here.
    assert_eq!(with(json!({})).unwrap(), [3.0, 3.0, 3.0, 5.0, 6.0]);
    let error = with(json!({"unet.alpha_pattern": {"(": 1}})).unwrap_err();
    assert!(error.contains("unet.alpha_pattern"), "{error}");
}

/// An adapter on some layers, with ranks and alphas of its own for some and modules that not all layers have.
fn some_layers(alphas: bool) -> Lora {
    let mut lora = Lora::default();
    for layer in [1, 3] {
        let modules = [("self_attn.q_proj", 8, 8, 2), ("mlp.down_proj", 8, 12, 3)];
        for (name, o, k, r) in modules.iter().take(if layer == 3 { 2 } else { 1 }) {
            let path = format!("model.layers.{layer}.{name}");
            let alpha = if alphas && layer == 3 { 6.0 } else { 4.0 };
            lora.pairs.insert(path.clone(), pair(&path, *o, *k, *r, alpha));
        }
    }
    lora
}

fn base(folder: &Path) -> Options {
    let config = json!({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 11,
        "num_hidden_layers": 4, "intermediate_size": 12});
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let weight = Named::from([("model.norm.weight".to_owned(), Tensor::new(vec![8], vec![1.0; 8]))]);
    tensor::write(&folder.join("model.safetensors"), &weight, &[]).unwrap();
    Options { base: Some(folder.to_str().unwrap().to_owned()), alpha: Some(4.0), ..Options::default() }
}

/// The modules of a base of four layers that a folder's configuration names.
fn named_by(folder: &Path) -> Vec<String> {
    let config: LoraConfig =
        serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    let mut sites = Vec::new();
    for layer in 0..4 {
        for (name, o, k) in [("self_attn.q_proj", 8, 8), ("self_attn.k_proj", 8, 8), ("mlp.down_proj", 8, 12)]
        {
            let (path, kind) = (format!("model.layers.{layer}.{name}"), SiteKind::Linear);
            sites.push(Site { path, kind, in_features: k, out_features: o, bias: false });
        }
    }
    let mut found: Vec<String> =
        targets(&config, &sites).unwrap().iter().map(|target| sites[target.site].path.clone()).collect();
    found.sort();
    found
}

#[test]
fn adapters_on_some_layers_go_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = base(&dir.path().join("base"));
    for alphas in [false, true] {
        let lora = some_layers(alphas);
        let want: Vec<String> = lora.pairs.keys().cloned().collect();
        for format in
            [formats::peft::FORMAT, formats::gguf::FORMAT, formats::mlx::FORMAT, formats::loralib::FORMAT]
        {
            let path = dir.path().join(match format.name {
                "gguf" => "a.gguf",
                "loralib" => "a.bin",
                name => name,
            });
            write(&lora, &path, format, &options).unwrap();
            let mut options = options.clone();
            if format == formats::loralib::FORMAT && alphas {
                // The alpha that most have; the file does not hold it.
                options.alpha = Some(6.0);
            }
            let found = read(&path, format, &options).unwrap();
            for (path, pair) in &lora.pairs {
                let other = &found.pairs[path];
                assert_eq!(other.rank(), pair.rank(), "{}: {path}", format.name);
                let (x, y) = (other.delta(), pair.delta());
                let worst = x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(worst <= 2e-6, "{}: {path} differs by {worst}", format.name);
                // MLX has one scale: that of another rank goes into B.
                let folded = alphas || format == formats::mlx::FORMAT && pair.rank() != 2;
                assert!(folded || other == pair, "{}: {path} is the same to the bit", format.name);
            }
            assert_eq!(found.pairs.len(), lora.pairs.len(), "{}", format.name);
            let folder = dir.path().join("back");
            write(&found, &folder, formats::peft::FORMAT, &options).unwrap();
            assert_eq!(named_by(&folder), want, "{}: no other module is named", format.name);
            assert_eq!(read(&folder, formats::peft::FORMAT, &options).unwrap().pairs, found.pairs);
        }
    }
}

/// What a configuration says of modules holds for what is written: else it is made anew.
#[test]
fn configurations_name_the_modules_that_are_left() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("x");
    let mut lora = some_layers(true);
    let set = |lora: &mut Lora, fields: Value| lora.config = fields.as_object().unwrap().clone();
    let fields = json!({"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1, 3], "r": 2,
        "exclude_modules": r"model\.layers\.1\.mlp.*"});
    set(&mut lora, fields.clone());
    write(&lora, &folder, formats::peft::FORMAT, &Options::default()).unwrap();
    let config: Value =
        serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    for field in ["target_modules", "layers_to_transform", "exclude_modules"] {
        assert_eq!(config[field], fields[field], "what holds stays: {field}");
    }

    let drop = Some(Regex::new("layers.3").unwrap());
    let (left, _) = prune(&lora, &Prune { drop, ..Prune::default() }).unwrap();
    write(&left, &folder, formats::peft::FORMAT, &Options::default()).unwrap();
    assert_eq!(named_by(&folder), ["model.layers.1.self_attn.q_proj"]);

    let mut other = Lora::default();
    other.pairs.insert("model.layers.0.self_attn.k_proj".into(), pair("k", 8, 8, 2, 1.0));
    set(&mut other, json!({"target_modules": ["k_proj"], "layers_to_transform": [0]}));
    let how =
        Compose { combination: Combination::Cat, rank: None, density: None, by_frequency: false, seed: 0 };
    let both = compose(&[(&lora, 1.0), (&other, 1.0)], &how).unwrap();
    write(&both, &folder, formats::peft::FORMAT, &Options::default()).unwrap();
    assert_eq!(named_by(&folder), both.pairs.keys().cloned().collect::<Vec<_>>());
}

/// The tensors of a PEFT adapter alone do not say their alpha.
#[test]
fn a_tensors_file_is_read_with_the_configuration_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (lora, none) = (some_layers(false), Options::default());
    write(&lora, dir.path(), formats::peft::FORMAT, &none).unwrap();
    let file = dir.path().join("adapter_model.safetensors");
    let other = dir.path().join("epoch-3.safetensors");
    fs::copy(&file, &other).unwrap();
    for path in [&file, &other, &dir.path().join("adapter_config.json")] {
        assert_eq!(FileFormat::detect(path).unwrap(), formats::peft::FORMAT);
        assert_eq!(read(path, formats::peft::FORMAT, &none).unwrap().pairs, lora.pairs);
    }
    fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    for error in [FileFormat::detect(&file).err(), read(&file, formats::diffusers::FORMAT, &none).err()] {
        let error = error.unwrap().to_string();
        assert!(error.contains("adapter_config.json") && error.contains("folder"), "{error}");
    }
    // MLX's file is found beside its configuration too.
    write(&lora, dir.path(), formats::mlx::FORMAT, &none).unwrap();
    let file = dir.path().join("adapters.safetensors");
    assert_eq!(FileFormat::detect(&file).unwrap(), formats::mlx::FORMAT);
    assert_eq!(read(&file, formats::mlx::FORMAT, &none).unwrap().pairs.len(), lora.pairs.len());
}
