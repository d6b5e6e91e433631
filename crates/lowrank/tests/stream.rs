//! `--stream-base`: a window of the base in memory, and the same bits.
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::example;
use lowrank::Session;
use lowrank::adapters::{AdapterSet, LoraConfig, Targets};
use lowrank::engine::kernels::normal;
use lowrank::files::LoadOptions;
use lowrank::train::{StepOptions, Stepper, pack};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const LAYERS: usize = 10;
const WIDTH: usize = 256;
const INNER: usize = 1024;
const VOCAB: usize = 96;

/// A Llama of ten blocks of 4 MB.
fn model(dir: &Path) {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for i in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.insert(format!("model.layers.{i}.{name}.weight"), shape.to_vec());
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[WIDTH, WIDTH]);
        }
        add("mlp.gate_proj", &[INNER, WIDTH]);
        add("mlp.up_proj", &[INNER, WIDTH]);
        add("mlp.down_proj", &[WIDTH, INNER]);
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
    }
    shapes.insert("model.norm.weight".into(), vec![WIDTH]);
    shapes.insert("model.embed_tokens.weight".into(), vec![VOCAB, WIDTH]);
    let numbers: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(stream, (name, shape))| {
            let mut numbers = vec![0.0f32; shape.iter().product()];
            normal(&mut numbers, 0.0, 0.05, 5, stream as u64);
            let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = numbers.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// Bytes of the file at `path` that are resident in this process.
fn resident(path: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut sum = 0;
    for line in maps.lines() {
        if line.contains(" r--s ")
            || line.contains('-') && line.split(' ').next().is_some_and(|w| w.contains('-'))
        {
            ours = line.ends_with(path);
        } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| ours) {
            sum += rest.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() * 1024;
        }
    }
    sum
}

/// Loss and gradients of a step, and the most bytes of the file that were resident during it.
fn step(dir: &Path, stream: bool, checkpoint_activations: bool) -> (f64, Vec<Vec<u32>>, usize) {
    let form = LoadOptions { stream, ..LoadOptions::default() };
    let session = Session::open_as(dir.to_str().unwrap(), form).unwrap();
    let config = LoraConfig {
        r: 2,
        target_modules: Some(Targets::parse("q_proj,down_proj")),
        ..LoraConfig::default()
    };
    let mut set = AdapterSet::new(config, session.sites(), 1).unwrap();
    for (stream, layer) in set.layers.clone().iter().enumerate() {
        let [_, b] = layer.variant.params()[..] else { panic!("A and B") };
        set.params.get_mut(b).fill_with(|b| normal(b, 0.0, 0.1, 9, stream as u64));
    }
    let ids: Vec<i64> = (0..60).map(|i| (i * i + 7) % VOCAB as i64).collect();
    let rows = [example(&ids, &ids), example(&ids[3..], &ids[3..])];
    let options = StepOptions { checkpoint_activations, weight_decay: 0.0, max_grad_norm: 0.0, seed: 3 };
    let mut stepper = Stepper::new(&*session.model, set.clone(), session.device(), options);
    let path = dir.join("model.safetensors");
    let (done, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    let loss = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(resident(path.to_str().unwrap()), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        let mut loss = 0.0;
        for _ in 0..3 {
            loss = stepper.gradients(&[pack(&rows.iter().collect::<Vec<_>>(), true)]).unwrap().loss;
        }
        done.store(true, Ordering::Relaxed);
        loss
    });
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let grads = set.params.iter().map(|(id, _)| bits(stepper.grads().values(id))).collect();
    (loss, grads, most.into_inner())
}

#[test]
fn a_streamed_base_keeps_a_window_and_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let block = 4 * (4 * WIDTH * WIDTH + 3 * INNER * WIDTH);
    let rest = 4 * VOCAB * WIDTH;
    for checkpoint in [false, true] {
        let (loss, grads, whole) = step(dir.path(), false, checkpoint);
        let (streamed_loss, streamed_grads, window) = step(dir.path(), true, checkpoint);
        assert!(whole > 9 * block, "all of it is read: {whole} bytes");
        // One block, the embeddings, and pages at the edges.
        assert!(
            window > block / 2 && window < block + rest + block / 2,
            "{window} of {whole} bytes resident"
        );
        assert!(loss.is_finite() && loss == streamed_loss);
        assert!(grads == streamed_grads, "the same gradients");
    }
    let form = LoadOptions { stream: true, shapes_only: true, ..LoadOptions::default() };
    let planned = Session::open_as(dir.path().to_str().unwrap(), form).unwrap().base.tensors.resident_bytes();
    let norms = 4 * 2 * WIDTH + 4 * WIDTH;
    assert_eq!(planned as usize, block + rest + norms);
}
