//! Quantized folders against the values of the libraries that make them (`tools/reference/quantized.py`).

use std::fs;
use std::path::{Path, PathBuf};

use lowrank_engine::{Format, Storage};
use lowrank_files::{LoadOptions, Result, Tensors, folder, read_object, read_quantized};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized").join(name)
}

fn open(folder: &Path) -> Result<Tensors> {
    let path = folder.join("config.json");
    let mut tensors = folder::read_tensors(folder)?;
    read_quantized(&path, &read_object(&path)?, &mut tensors)?;
    Ok(tensors)
}

fn values(tensors: &Tensors, name: &str) -> Vec<f32> {
    let (rows, cols) = tensors.matrix_shape(name).unwrap();
    let mut out = vec![f32::NAN; rows * cols];
    tensors.read_rows(name, 0..rows, &mut out).unwrap();
    out
}

#[test]
fn every_kind_of_quantized_folder() {
    let cases = [
        ("fp8_blocks", Format::F8_E4M3),
        ("fp8_rows", Format::F8_E4M3),
        ("fp8_powers", Format::F8_E4M3),
        ("gptq", Format::INT4),
        ("gptq_v2", Format::INT4),
        ("gptq_act_order", Format::F16),
        ("gptq_8bit", Format::INT8),
        ("gptq_2bit", Format::INT4),
        ("awq", Format::INT4),
        ("nf4_nested", Format::NF4),
        ("nf4", Format::NF4_F32),
        ("nf4_blocks_of_128", Format::NF4_F32),
        ("int8", Format::INT8),
        ("int4_words", Format::INT4),
        ("int4_words_with_zeros", Format::INT4),
        ("int8_rows", Format::INT8),
        ("int8_words", Format::INT8),
    ];
    let folders = fs::read_dir(fixture("")).unwrap().count();
    assert_eq!(folders, cases.len());
    for (name, format) in cases {
        let tensors = open(&fixture(name)).unwrap();
        let expected = Tensors::open(&fixture(name).join("expected.safetensors")).unwrap();
        let sorted = |tensors: &Tensors| {
            let mut names: Vec<String> = tensors.names().map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&tensors), sorted(&expected), "{name}: the parts are gone");
        assert_eq!(tensors.format("a.weight"), Some(format), "{name}");
        for tensor in expected.names() {
            assert_eq!(tensors.shape(tensor), expected.shape(tensor), "{name}: {tensor}");
            let (got, want) = (values(&tensors, tensor), values(&expected, tensor));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                // A scale times 1/127 is not the value over 127, to the last bit.
                let same = if name == "int8" { (got - want).abs() <= 2e-7 * want.abs() } else { got == want };
                assert!(same, "{name}: {tensor}, value {i}: {got} for {want}");
            }
        }
        let weight = tensors.weight("a.weight").unwrap();
        assert!(matches!(weight.storage(), Storage::Owned(..)) && weight.format() == format, "{name}");
        assert_eq!(tensors.stored("a.weight"), None, "{name}");
        assert!(tensors.has_packed() && tensors.conversion_bytes().0 >= weight.byte_len(), "{name}");

        // A plan makes no bytes and has the same size.
        let mut plan = open(&fixture(name)).unwrap();
        plan.set_load_options(LoadOptions { shapes_only: true, ..LoadOptions::default() });
        let planned = plan.weight("a.weight").unwrap();
        assert!(matches!(planned.storage(), Storage::Shape), "{name}");
        assert_eq!((planned.format(), planned.byte_len()), (format, weight.byte_len()), "{name}");
    }
}

/// A copy of a fixture with other settings or without a tensor, and what it says.
fn refused(name: &str, settings: &[(&str, serde_json::Value)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut config = read_object(&fixture(name).join("config.json")).unwrap();
    for (key, value) in settings {
        config["quantization_config"][*key] = value.clone();
    }
    let text = serde_json::to_string(&config).unwrap();
    fs::write(folder.path().join("config.json"), text).unwrap();
    fs::copy(fixture(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    open(folder.path()).expect_err("an error").to_string()
}

#[test]
fn what_cannot_be_read_says_what_it_is_and_what_to_do() {
    use serde_json::json;
    let cases = [
        (
            "gptq",
            "quant_method",
            json!("hqq"),
            "quantization_config.quant_method: hqq is not supported (fp8, ",
        ),
        ("gptq", "quant_method", json!(null), "quantization_config.quant_method: is missing"),
        ("gptq", "bits", json!(3), "quantization_config.bits: 3 is not supported (2, 4 and 8 are)"),
        ("gptq", "checkpoint_format", json!("marlin"), "marlin is not supported (gptq and gptq_v2 are)"),
        ("gptq", "bits", json!(8), "tensor a.qzeros: has shape [4, 3]"),
        ("awq", "version", json!("gemv"), "quantization_config.version: gemv is not supported (gemm is)"),
        ("awq", "bits", json!(8), "quantization_config.bits: 8 is not supported"),
        (
            "int4_words",
            "format",
            json!("marlin-24"),
            "quantization_config.format: marlin-24 is not supported",
        ),
        ("int4_words", "config_groups", json!({}), "weights of [] bits are not supported"),
        ("fp8_blocks", "weight_block_size", json!([128, 128]), "tensor a.weight_scale_inv: has shape [3, 3]"),
    ];
    for (name, key, value, want) in cases {
        let error = refused(name, &[(key, value)]);
        assert!(error.contains(want), "{name}: {error}");
    }
    let named = refused("awq", &[("version", json!("gemv"))]);
    assert!(named.contains("config.json") && named.contains("GGUF file"), "{named}");
}

/// Settings that fit other tensors: none panics, whatever the folder.
#[test]
fn settings_of_another_folder_are_errors_or_nothing() {
    let names: Vec<String> =
        fs::read_dir(fixture("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for settings in &names {
        for weights in &names {
            let folder = tempfile::tempdir().unwrap();
            for (from, file) in [(settings, "config.json"), (weights, "model.safetensors")] {
                fs::copy(fixture(from).join(file), folder.path().join(file)).unwrap();
            }
            if let Ok(tensors) = open(folder.path()) {
                for name in tensors.names().filter(|name| tensors.shape(name).is_some_and(|s| s.len() == 2)) {
                    let _ = tensors.weight(name);
                }
            }
        }
    }
}

/// Damaged settings and headers are errors, or other values; nothing panics.
#[test]
fn damaged_folders_are_refused() {
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["fp8_blocks", "gptq_act_order", "awq", "nf4_blocks_of_128", "nf4", "int8", "int4_words_with_zeros"]
    {
        let whole =
            ["config.json", "model.safetensors"].map(|file| fs::read(fixture(name).join(file)).unwrap());
        for round in 0..400 {
            let mut files = whole.clone();
            let file = round % 2;
            // The header, and for bitsandbytes the state, which comes last.
            let (len, header) = (files[file].len(), 900.min(files[file].len()));
            let at = if round % 8 == 7 { len - 1 - random(300.min(len)) } else { random(header) };
            files[file][at] = match round % 3 {
                0 => b"0123456789"[random(10)],
                1 => b"{}[],:\"-"[random(8)],
                _ => random(256) as u8,
            };
            fs::write(folder.path().join("config.json"), &files[0]).unwrap();
            fs::write(folder.path().join("model.safetensors"), &files[1]).unwrap();
            if let Ok(tensors) = open(folder.path()) {
                for name in tensors.names() {
                    let _ = tensors.weight(name);
                }
            }
        }
    }
}
