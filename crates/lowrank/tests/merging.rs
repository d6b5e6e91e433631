//! Merging never lies: what is not finite, does not fit or computes something else is an error, and nothing is left behind.

mod common;

use std::fs;
use std::path::Path;

use common::{Ran, lowrank, lowrank_ok, tiny_data, tiny_gguf, tiny_model};
use lowrank::engine::Format;
use lowrank::files::{Gguf, GgufWriter, TensorPlan};
use lowrank::models::{Base, FileType};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn of_gguf(file_type: FileType) -> Self {
        let place = Self::new();
        let model = tiny_gguf(place.dir.path(), file_type);
        Self { model, ..place }
    }

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        tiny_data(&dir.path().join("data.jsonl"), 8);
        Self { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn adapter(&self, more: &[&str]) -> String {
        let (data, out) = (self.path("data.jsonl"), self.path("adapter"));
        let train = ["train", "--model", &self.model, "--data", &data, "--out", &out, "--max-steps", "2"];
        lowrank_ok(&[&train[..], more].concat());
        out
    }

    fn merge(&self, adapter: &str, out: &str, more: &[&str]) -> Ran {
        let merge = ["merge", "--model", &self.model, "--adapter", adapter, "--out", out, "--force"];
        lowrank(&[&merge[..], more].concat())
    }

    /// Names of everything here.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Writes an f32 over the first four bytes of a tensor in a safetensors file: its first value, or in BF16 the second.
fn set_first(file: &Path, tensor: &str, value: f32) {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            if name == tensor {
                data[..4].copy_from_slice(&value.to_le_bytes());
            }
            (name.to_owned(), view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    assert!(changed.iter().any(|(name, ..)| name == tensor), "{tensor}");
    let views = changed
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(file, serialize(views, None).unwrap()).unwrap();
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const UP: &str = "model.layers.0.mlp.up_proj";

#[test]
fn what_is_not_finite_is_named_and_nothing_is_left() {
    let cases: [(bool, &str, f32, &[&str], &str); 5] = [
        (true, "lora_A", f32::NAN, &["--dtype", "f32"], "the adapter makes it NaN"),
        (true, "lora_B", f32::INFINITY, &["--dtype", "bf16"], "the adapter makes it"),
        (false, UP, f32::NAN, &["--dtype", "f32"], "the base holds NaN"),
        (false, UP, f32::NEG_INFINITY, &["--dtype", "bf16"], "the base holds -inf"),
        (false, UP, 70000.0, &["--dtype", "f16"], "is beyond the range of f16"),
    ];
    for (in_adapter, which, value, options, want) in cases {
        let place = Place::new();
        let adapter = place.adapter(&[]);
        let (file, tensor) = match in_adapter {
            true => (
                Path::new(&adapter).join("adapter_model.safetensors"),
                format!("base_model.model.{Q}.{which}.weight"),
            ),
            false => (Path::new(&place.model).join("model.safetensors"), format!("{which}.weight")),
        };
        set_first(&file, &tensor, value);
        let out = place.path("merged");
        fs::write(&out, "what was there").unwrap();
        let before = place.names();
        let ran = place.merge(&adapter, &out, options);
        assert_ne!(ran.code, 0, "{want}: {}", ran.out);
        assert!(ran.err.contains(want) && ran.err.contains("row 0, column "), "{want}: {}", ran.err);
        assert_eq!(place.names(), before, "{want}");
        assert_eq!(fs::read_to_string(&out).unwrap(), "what was there");
    }
}

#[test]
fn a_difference_beyond_the_tolerance_leaves_nothing() {
    let place = Place::new();
    let adapter = place.adapter(&["--learning-rate", "0.1"]);
    let before = place.names();
    let ran = place.merge(&adapter, &place.path("merged"), &["--dtype", "bf16", "--tolerance", "1e-9"]);
    assert!(ran.code == 1 && ran.err.contains("more than the tolerance"), "{} {}", ran.code, ran.err);
    assert_eq!(place.names(), before);
}

/// The head is tied to the embedding, which the adapter changes alone: the merged model has both.
#[test]
fn a_tied_table_that_is_trained_alone_is_written_apart_from_the_head() {
    for options in [
        &["--modules-to-save", "embed_tokens"][..],
        &["--target-modules", "embed_tokens,q_proj", "--learning-rate", "0.1"],
    ] {
        let place = Place::new();
        let adapter = place.adapter(options);
        let eval = |more: &[&str]| -> f64 {
            let data = place.path("data.jsonl");
            let ran = lowrank_ok(&[&["eval", "--json", "--data", &data], more].concat());
            serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["loss"].as_f64().unwrap()
        };
        let used = eval(&["--model", &place.model, "--adapter", &adapter]);
        let out = place.path("merged");
        let ran = place.merge(&adapter, &out, &["--dtype", "f32"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let merged = eval(&["--model", &out]);
        assert!((used - merged).abs() < 1e-5, "{options:?}: {used} {merged}");
        let ran = place.merge(&adapter, &place.path("merged.gguf"), &["--dtype", "f32"]);
        assert!(ran.code != 0 && ran.err.contains("merge into a folder"), "{}", ran.err);
    }
}

/// A GGUF file is merged into its own types: only the rows of adapted layers change their bytes.
#[test]
fn a_merged_gguf_file_has_the_types_of_its_base() {
    let place = Place::of_gguf(FileType::Q4_K_M);
    let adapter = place.adapter(&["--target-modules", "q_proj,down_proj", "--learning-rate", "0.3"]);
    let out = place.path("merged.gguf");
    let ran = place.merge(&adapter, &out, &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let (base, merged) = (Base::open(&place.model).unwrap(), Base::open(&out).unwrap());
    let names: Vec<&str> = base.tensors.names().collect();
    assert_eq!(merged.tensors.names().collect::<Vec<_>>(), names);
    let mut changed = 0;
    for name in names {
        assert_eq!(merged.tensors.format(name), base.tensors.format(name), "{name}");
        let adapted = name.ends_with("q_proj.weight") || name.ends_with("down_proj.weight");
        let same = merged.tensors.stored(name).unwrap() == base.tensors.stored(name).unwrap();
        assert_eq!(same, !adapted, "{name}");
        changed += usize::from(adapted);
    }
    assert_eq!(changed, 4);
    let file_type = |path: &str| Gguf::open(Path::new(path)).unwrap().integer("general.file_type").unwrap();
    assert_eq!((file_type(&place.model), file_type(&out)), (Some(15), Some(15)));
    // Rounding is said of each layer in its own type: Q5_0 for rows of 64 here.
    assert_eq!(ran.out.matches(" relative error ").count(), 4, "{}", ran.out);

    // A folder has no types of GGUF, and a folder of a GGUF file none but plain ones.
    for (model, out, want) in [("model", "of-folder.gguf", "BF16"), ("model.gguf", "folder", "F16")] {
        let (model, out) = (place.path(model), place.path(out));
        lowrank_ok(&["merge", "--model", &model, "--adapter", &adapter, "--out", &out]);
        let format = Base::open(&out).unwrap().tensors.format(&format!("{Q}.weight")).unwrap();
        assert_eq!(format.name(), want);
    }
}

/// Small changes are rounded away in 4 bits on the base's own grid: by default the file is Q8_0 then, and says so.
#[test]
fn what_rounding_would_undo_is_written_as_q8_0() {
    let place = Place::of_gguf(FileType::Q4_1);
    let adapter = place.adapter(&["--learning-rate", "1e-4"]);
    let out = place.path("merged.gguf");
    let ran = place.merge(&adapter, &out, &[]);
    assert!(ran.code == 0 && ran.err.contains("written as q8_0"), "{} {}", ran.code, ran.err);
    let format =
        |path: &str| Base::open(path).unwrap().tensors.format(&format!("{Q}.weight")).unwrap().name();
    assert_eq!(format(&out), "Q8_0");
    let ran = place.merge(&adapter, &out, &["--dtype", "q4_1"]);
    assert!(
        ran.code == 0 && ran.err.contains(" % of what the adapter adds; choose"),
        "{} {}",
        ran.code,
        ran.err
    );
    assert_eq!(format(&out), "Q4_1");
}

/// The model at `path`, a GGUF file in Q4_0, with its matrices as IQ4_NL: blocks of the same size, whose levels reach 16 times as far.
fn as_iq4_nl(path: &str) {
    let gguf = Gguf::open(Path::new(path)).unwrap();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&gguf, |key| key != "general.alignment").unwrap();
    let plans: Vec<TensorPlan> = gguf
        .tensor_infos()
        .map(|(name, dims, format)| {
            let format = if format == Format::Q4_0 { Format::IQ4_NL } else { format };
            TensorPlan { name: name.into(), dims: dims.into(), format }
        })
        .collect();
    let all = gguf.tensors().unwrap();
    let fill = |plan: &TensorPlan, out: &mut dyn std::io::Write| {
        let mut bytes = all.stored(&plan.name).unwrap().to_vec();
        if plan.format == Format::IQ4_NL {
            for block in bytes.chunks_exact_mut(plan.format.block_bytes()) {
                let scale = u16::from_le_bytes([block[0], block[1]]);
                // Four less in the exponent of the f16.
                let scale = if scale & 0x7fff < 0x1400 { 0 } else { scale - 0x1000 };
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        out.write_all(&bytes).unwrap();
        Ok::<_, lowrank::files::Error>(())
    };
    writer.write(&Path::new(path).with_extension("iq"), &plans, fill).unwrap();
    fs::rename(Path::new(path).with_extension("iq"), path).unwrap();
}

/// Types that are only read are trained on, and by default merged into Q8_0.
#[test]
fn a_base_in_types_that_are_only_read_is_merged_into_q8_0() {
    let place = Place::of_gguf(FileType::Q4_0);
    as_iq4_nl(&place.model);
    let base = Base::open(&place.model).unwrap();
    assert_eq!(base.tensors.format(&format!("{Q}.weight")), Some(Format::IQ4_NL));
    let adapter = place.adapter(&["--learning-rate", "0.01"]);
    let out = place.path("merged.gguf");
    let ran = place.merge(&adapter, &out, &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("written as q8_0: IQ4_NL is read but not written here"), "{}", ran.err);
    assert_eq!(Base::open(&out).unwrap().tensors.format(&format!("{Q}.weight")), Some(Format::Q8_0));
    let refused = place.merge(&adapter, &out, &["--dtype", "iq4_nl"]);
    assert!(refused.code == 2 && refused.err.contains("not possible in a GGUF file"), "{}", refused.err);
}

/// Every file type is written with its number and read again, and computes what base and adapter do.
#[test]
fn every_file_type_is_merged_into() {
    let place = Place::of_gguf(FileType::F32);
    let adapter = place.adapter(&["--learning-rate", "0.01"]);
    let data = place.path("data.jsonl");
    let loss = |more: &[&str]| -> f64 {
        let ran = lowrank_ok(&[&["eval", "--json", "--data", &data], more].concat());
        serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["loss"].as_f64().unwrap()
    };
    let apart = loss(&["--model", &place.model, "--adapter", &adapter]);
    let numbers = [0, 1, 32, 7, 18, 17, 16, 9, 8, 15, 14, 3, 2];
    for (file_type, number) in FileType::ALL.into_iter().zip(numbers) {
        let out = place.path(&format!("{}.gguf", file_type.name()));
        let ran = place.merge(&adapter, &out, &["--dtype", file_type.name()]);
        assert_eq!(ran.code, 0, "{}: {}", file_type.name(), ran.err);
        let written = Gguf::open(Path::new(&out)).unwrap().integer("general.file_type").unwrap();
        assert_eq!(written, Some(number), "{}", file_type.name());
        let merged = loss(&["--model", &out]);
        let most = if out.contains("q4") || out.contains("q5") { 0.1 } else { 0.02 };
        assert!((merged - apart).abs() < most, "{}: {merged} for {apart}", file_type.name());
    }
    let ran = place.merge(&adapter, &place.path("none.gguf"), &["--dtype", "q3_k_m"]);
    assert!(ran.code == 2 && ran.err.contains("q6_k, q5_k_m, q5_k_s"), "{} {}", ran.code, ran.err);
}

/// Every command that computes with an adapter or a base says where there is no number, and never shows one that looks fine.
#[test]
fn no_command_shows_numbers_of_a_model_that_gives_none() {
    for in_adapter in [true, false] {
        let place = Place::new();
        let adapter = place.adapter(&[]);
        let name = match in_adapter {
            true => format!("base_model.model.{Q}.lora_A.weight"),
            false => format!("{UP}.weight"),
        };
        let file = match in_adapter {
            true => Path::new(&adapter).join("adapter_model.safetensors"),
            false => Path::new(&place.model).join("model.safetensors"),
        };
        set_first(&file, &name, f32::NAN);
        let (model, data, out) = (place.model.as_str(), place.path("nan.jsonl"), place.path("out"));
        fs::write(&data, "{\"prompt\": \"red\", \"completion\": \"blue\"}\n").unwrap();
        let with = ["--model", model, "--adapter", &adapter];
        let fails = |args: &[&str], want: &str| {
            let ran = lowrank(args);
            assert_ne!(ran.code, 0, "{args:?}: {}", ran.out);
            assert!(ran.err.contains(want), "{args:?}: {}", ran.err);
        };
        let score = ["eval", "--data", &data, "--json"];
        fails(&[&score[..], &with].concat(), "nan.jsonl:1");
        fails(
            &[&["generate", "--prompt", "red", "--max-new-tokens", "3"][..], &with].concat(),
            "NaN for the next token",
        );
        let beams = ["generate", "--prompt", "red", "--max-new-tokens", "3", "--num-beams", "2"];
        fails(&[&beams[..], &with].concat(), "NaN for the next token");
        let metrics = ["eval", "--data", &data, "--metrics", "bleu", "--max-new-tokens", "3"];
        fails(&[&metrics[..], &with].concat(), "NaN for the next token");
        let shown = lowrank_ok(&["inspect", if in_adapter { &adapter } else { model }]).out;
        let line =
            shown.lines().find(|line| line.starts_with("NaN or infinity in")).expect("the summary says it");
        assert!(line.contains(&name.replace("base_model.model.", "")), "{line}");
        if in_adapter {
            fails(&["dtype", &adapter, "--to", "bf16", "--out", &out], Q);
            fails(&["diff", &adapter, &adapter], Q);
            fails(&["resize", &adapter, "--rank", "1", "--out", &out], Q);
            fails(&["prune", &adapter, "--density", "0.5", "--out", &out], Q);
            fails(&["compose", "--adapter", &adapter, "--adapter", &adapter, "--out", &out], Q);
            fails(&["convert", &adapter, "--to", "mlx", "--out", &out], Q);
            fails(&["inspect", &adapter, "--spectrum"], Q);
            assert!(!Path::new(&out).exists());
        }
    }
}
