//! A quantized folder is used as a base: bitsandbytes' int8, against the same values as F32.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use common::{lowrank, lowrank_ok, tiny_data, tiny_model};
use lowrank::engine::Format;
use lowrank::models::Base;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

/// Writes the model at `from` twice: linear layers as int8 with `SCB`, and as F32 of the same values.
fn quantize(from: &Path, int8: &Path, dense: &Path) {
    let base = Base::open_path(from).unwrap();
    let (mut quantized, mut plain) = (HashMap::new(), HashMap::new());
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    for name in base.tensors.names() {
        let shape = base.tensors.shape(name).unwrap().to_vec();
        let (rows, cols) = base.tensors.matrix_shape(name).unwrap();
        let mut values = vec![0.0; rows * cols];
        base.tensors.read_rows(name, 0..rows, &mut values).unwrap();
        // Rows of other widths would become F16.
        let Some(stem) = name.strip_suffix("_proj.weight").filter(|_| cols.is_multiple_of(64)) else {
            quantized.insert(name.to_owned(), (Dtype::F32, shape.clone(), bytes(&values)));
            plain.insert(name.to_owned(), (Dtype::F32, shape, bytes(&values)));
            continue;
        };
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in values.chunks_exact_mut(cols) {
            let scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for x in row {
                let code = (127.0 * *x / scale).round() as i8;
                codes.push(code as u8);
                *x = f32::from(code) * (scale * (1.0 / 127.0));
            }
            scales.push(scale);
        }
        quantized.insert(name.to_owned(), (Dtype::I8, shape.clone(), codes));
        quantized.insert(format!("{stem}_proj.SCB"), (Dtype::F32, vec![rows], bytes(&scales)));
        quantized.insert(format!("{stem}_proj.weight_format"), (Dtype::U8, vec![], vec![0]));
        plain.insert(name.to_owned(), (Dtype::F32, shape, bytes(&values)));
    }
    for (folder, tensors) in [(int8, &quantized), (dense, &plain)] {
        fs::create_dir(folder).unwrap();
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(from.join(file), folder.join(file)).unwrap();
        }
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        fs::write(folder.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(int8.join("config.json")).unwrap()).unwrap();
    config["quantization_config"] =
        serde_json::json!({ "quant_method": "bitsandbytes", "load_in_8bit": true });
    fs::write(int8.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn it_computes_what_its_values_compute() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = tiny_model(dir.path());
    tiny_data(&dir.path().join("data.jsonl"), 8);
    let (int8, dense, data) = (path("int8"), path("dense"), path("data.jsonl"));
    quantize(Path::new(&model), Path::new(&int8), Path::new(&dense));

    let base = Base::open_path(Path::new(&int8)).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(base.tensors.format(name), Some(Format::INT8));
    let plain = Base::open_path(Path::new(&dense)).unwrap();
    assert_eq!(base.tensors.len(), plain.tensors.len());

    let loss = |model: &str, more: &[&str]| -> f64 {
        let ran = lowrank_ok(&[&["eval", "--json", "--data", &data, "--model", model], more].concat());
        serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["loss"].as_f64().unwrap()
    };
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{a} {b}");
    close(loss(&int8, &[]), loss(&dense, &[]));

    // Adapters learn the same, and the merged folder is an ordinary one.
    let train = |model: &str, out: &str| {
        let steps = ["--max-steps", "3", "--learning-rate", "0.01", "--seed", "5"];
        lowrank_ok(&[&["train", "--model", model, "--data", &data, "--out", out], &steps[..]].concat());
        loss(model, &["--adapter", out])
    };
    let (of_int8, of_dense) = (path("of-int8"), path("of-dense"));
    close(train(&int8, &of_int8), train(&dense, &of_dense));
    let merged = path("merged");
    lowrank_ok(&["merge", "--model", &int8, "--adapter", &of_int8, "--out", &merged, "--dtype", "f32"]);
    close(loss(&int8, &["--adapter", &of_int8]), loss(&merged, &[]));
    let config = fs::read_to_string(Path::new(&merged).join("config.json")).unwrap();
    assert!(!config.contains("quantization_config"), "{config}");

    let shown = lowrank_ok(&["inspect", &int8]);
    assert!(shown.out.contains("INT8"), "{}", shown.out);
    lowrank_ok(&["plan", "--model", &int8, "--data", &data]);
    let quantized = lowrank(&["eval", "--model", &int8, "--data", &data, "--quantize", "nf4"]);
    assert!(quantized.code == 2 && quantized.err.contains("nothing to quantize"), "{}", quantized.err);
    let streamed = lowrank(&["eval", "--model", &int8, "--data", &data, "--stream-base"]);
    assert!(streamed.code == 2 && streamed.err.contains("quantized"), "{}", streamed.err);
}
