//! A base quantised or rounded while it is read computes what the same numbers compute as float32.

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{close, example, fixture, logits};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, LoraConfig, Targets};
use lowrank::engine::kernels::{quantize_matrix, rounds_to_bf16};
use lowrank::engine::{Device, Format, RowOrder, WeightRef};
use lowrank::files::{LoadOptions, Precision, Quantize};
use lowrank::models::save_folder;
use lowrank::train::{PackedBatch, StepOptions, Stepper, pack};

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 3 };

fn form(quantize: Option<Quantize>, precision: Precision) -> LoadOptions {
    LoadOptions { quantize, precision, ..LoadOptions::default() }
}

/// A copy of the model at `dir` as F32, whose matrices went through the format that `format(name)` tells.
fn expanded(dir: &Path, out: &Path, transposed: bool, format: impl Fn(&str) -> Option<Format>) {
    let session = Session::open(dir.to_str().unwrap()).unwrap();
    let tensors = &session.base.tensors;
    let mut matrices = HashMap::new();
    for name in tensors.names() {
        let Some(format) = format(name) else { continue };
        let (rows, cols) = tensors.matrix_shape(name).unwrap();
        let mut numbers = vec![0.0; rows * cols];
        tensors.read_rows(name, 0..rows, &mut numbers).unwrap();
        // A Conv1D is quantised along its inputs, as a linear layer is.
        let turned = transposed && name.contains(".h.");
        let (r, c) = if turned { (cols, rows) } else { (rows, cols) };
        let at = |i: usize, j: usize| if turned { j * cols + i } else { i * cols + j };
        // Rows that are no whole number of blocks stay dense.
        let Some(size) = format.matrix_bytes(r, c) else { continue };
        let mut bytes = vec![0; size];
        let fill = |i: usize, row: &mut [f32]| {
            row.iter_mut().enumerate().for_each(|(j, x)| *x = numbers[at(i, j)]);
        };
        quantize_matrix(format, r, c, fill, &mut bytes).unwrap();
        let w = WeightRef { format, rows: r, cols: c, order: RowOrder::Plain, bytes: &bytes };
        let mut back = numbers.clone();
        let mut row = vec![0.0; c];
        for i in 0..r {
            w.expand(i, 0..c, &mut row);
            row.iter().enumerate().for_each(|(j, x)| back[at(i, j)] = *x);
        }
        assert!(back != numbers, "{name} is not changed by {}", format.name());
        matrices.insert(name.to_owned(), (cols, back));
    }
    assert!(!matrices.is_empty());
    let mut fill = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| match matrices.get(name) {
        Some((cols, numbers)) => {
            out.copy_from_slice(&numbers[rows.start * cols..rows.end * cols]);
            Ok(())
        }
        None => Ok(tensors.read_rows(name, rows, out)?),
    };
    save_folder(&session.base, out, Format::F32, &mut fill).unwrap();
}

fn adapters(session: &Session) -> AdapterSet {
    let config = LoraConfig {
        r: 3,
        lora_alpha: 6.0,
        target_modules: Some(Targets::parse("all-linear")),
        ..LoraConfig::default()
    };
    let mut set = AdapterSet::new(config, session.sites(), 1).unwrap();
    for (stream, layer) in set.layers.clone().iter().enumerate() {
        let [_, b] = layer.variant.params()[..] else { panic!("A and B") };
        let param = set.params.get_mut(b);
        param.fill_with(|b| lowrank::engine::kernels::uniform(b, -0.1, 0.1, 9, stream as u64));
    }
    set
}

fn batch() -> PackedBatch {
    let rows: Vec<_> = [(11, 30), (23, 7)]
        .map(|(seed, len): (i64, i64)| {
            let ids: Vec<i64> = (0..len).map(|i| (seed * (i + 3) + i * i) % 96).collect();
            example(&ids, &ids)
        })
        .into();
    pack(&rows.iter().collect::<Vec<_>>(), true)
}

fn same(case: &str, form: LoadOptions, transposed: bool, format: impl Fn(&str) -> Option<Format>) {
    // A CPU that multiplies BF16 by itself rounds what meets a BF16 weight, too.
    // The table of a tied head is multiplied with in BF16 and looked up in F32, which no file holds.
    let rounded = form.precision == Precision::Bf16 && (rounds_to_bf16() || case == "gpt2_c_attn");
    let (tolerance, of_gradients) = if rounded { (2e-2, 4e-2) } else { (1e-5, 2e-5) };
    let dir = fixture(case);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("expanded");
    expanded(&dir, &path, transposed, format);
    let ours = Session::open_as(dir.to_str().unwrap(), form).unwrap();
    let want = Session::open(path.to_str().unwrap()).unwrap();
    let set = adapters(&ours);
    let tokens: Vec<u32> = (0..29).map(|i| (i * 13 + 5) % 96).collect();
    for n in [1, 3, 29] {
        close(case, &logits(&ours, &set, &tokens[..n]), &logits(&want, &set, &tokens[..n]), tolerance);
    }
    let run = |session: &Session| {
        let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), PLAIN);
        let loss = stepper.gradients(&[batch()]).unwrap().loss as f32;
        let grads: Vec<Vec<f32>> =
            set.params.iter().map(|(id, _)| stepper.grads().values(id).to_vec()).collect();
        (loss, grads)
    };
    let ((loss, grads), (want_loss, want)) = (run(&ours), run(&want));
    close("loss", &[loss], &[want_loss], tolerance);
    for (grad, want) in grads.iter().zip(&want) {
        close("gradient", grad, want, of_gradients);
    }
    // Planning knows the size without converting anything.
    let planned = Session::open_as(dir.to_str().unwrap(), LoadOptions { shapes_only: true, ..form }).unwrap();
    assert_eq!(planned.base.tensors.resident_bytes(), ours.base.tensors.resident_bytes(), "{case}");
    let stored = ours.base.tensors.byte_len();
    assert!(ours.base.tensors.resident_bytes() < stored, "{case} takes less than {stored} bytes");
}

#[test]
fn quantised_layers_compute_with_their_expanded_numbers() {
    for quantize in [Quantize::Nf4, Quantize::Q8_0] {
        let form = form(Some(quantize), Precision::F32);
        let linear = |name: &str| name.ends_with("_proj.weight").then_some(quantize.format());
        same("llama_gqa_tied", form, false, linear);
        // Stored transposed.
        let conv =
            |name: &str| (name.contains(".c_") && name.ends_with("weight")).then_some(quantize.format());
        same("gpt2_c_attn", form, true, conv);
    }
}

#[test]
fn bf16_rounds_every_matrix() {
    // A table in which rows are only looked up stays in its file.
    let matrix = |name: &str| name.ends_with("_proj.weight") || name.contains("head");
    let form = form(None, Precision::Bf16);
    same("llama_mha", form, false, |name| matrix(name).then_some(Format::BF16));
    let matrix = |name: &str| {
        ((name.contains(".c_") || name.contains("wte") || name.contains("wpe")) && name.ends_with("weight"))
            .then_some(Format::BF16)
    };
    same("gpt2_c_attn", form, true, matrix);
}

#[test]
fn a_base_without_dense_layers_is_refused() {
    let Some(model) = common::real_model() else { return };
    let refused = Session::open_as(&model, form(Some(Quantize::Nf4), Precision::F32)).map(|_| ());
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("nothing to quantize") && message.contains("already"), "{message}");
}
