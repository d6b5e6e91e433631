//! Shared by the integration tests.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use lowrank::train::{Example, ExampleId};
use safetensors::SafeTensors;

/// A folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The real SmolLM2 file, or `None` with a word on what is missing.
pub fn real_model() -> Option<String> {
    let path = std::env::var("LOWRANK_TEST_GGUF").ok().filter(|p| Path::new(p).exists());
    if path.is_none() {
        eprintln!("skipped: set LOWRANK_TEST_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf (make test does)");
    }
    path
}

/// A file of the real data, or `None` with a word on what is missing.
pub fn real_data(name: &str) -> Option<PathBuf> {
    let root = std::env::var("LOWRANK_TEST_DATA").map(PathBuf::from);
    let root = root.unwrap_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    let path = root.join(name);
    if !path.exists() {
        eprintln!("skipped: no {name} under {} (LOWRANK_TEST_DATA names the folder)", root.display());
        return None;
    }
    Some(path)
}

/// `expected.safetensors` of a fixture.
pub struct Expected(Vec<u8>);

impl Expected {
    pub fn open(dir: &Path) -> Self {
        Self(std::fs::read(dir.join("expected.safetensors")).unwrap())
    }

    pub fn names(&self) -> Vec<String> {
        let names = SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(str::to_owned).collect();
        names
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ints(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Largest difference, as a share of the largest expected number, at most `tolerance`.
pub fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: how many");
    let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let mut worst = 0.0f32;
    for (g, w) in got.iter().zip(want) {
        assert!(g.is_finite(), "{what}: {g}");
        worst = worst.max((g - w).abs());
    }
    assert!(worst <= tolerance * largest, "{what}: differs by {worst:e}, the largest is {largest:e}");
}

/// An example from Hugging Face's ids and labels (-100: no loss).
pub fn example(ids: &[i64], labels: &[i64]) -> Example {
    let loss_mask: Vec<bool> = labels.iter().enumerate().map(|(i, l)| i > 0 && *l >= 0).collect();
    let prompt_len = loss_mask.iter().position(|m| *m).unwrap_or(0);
    // A sequence without a prompt has nothing to share.
    let prompt_len = if prompt_len <= 1 { 0 } else { prompt_len };
    Example {
        tokens: ids.iter().map(|t| *t as u32).collect(),
        loss_mask,
        prompt_len,
        id: ExampleId { file: "fixture".into(), line: 1 },
    }
}
