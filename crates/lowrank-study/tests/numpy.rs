//! Subspace similarity and amplification as NumPy computes them; `tools/reference/subspace.py` made the fixture.

use std::path::Path;

use lowrank_study::{amplification, phi};
use lowrank_tools::{Kind, Pair, Tensor};
use safetensors::SafeTensors;

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/subspace.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    /// Shape and numbers of a tensor.
    fn get(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let numbers = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (view.shape().to_vec(), numbers.collect())
    }

    fn tensor(&self, name: &str) -> Tensor {
        let (shape, data) = self.get(name);
        Tensor { shape, data, dtype: lowrank_engine::Format::F32 }
    }
}

#[test]
fn subspaces_are_as_alike_as_in_numpy() {
    let fixture = Fixture::open();
    for (a, b, want) in [("few", "many", "phi"), ("many", "many", "phi_self")] {
        let ((shape, a), (_, b)) = (fixture.get(a), fixture.get(b));
        let (size, want) = fixture.get(want);
        let got = phi(&a, &b, shape[1], size[0], size[1]).unwrap();
        for (i, (got, want)) in got.iter().flatten().zip(&want).enumerate() {
            assert!((got - f64::from(*want)).abs() < 1e-4, "{i}: {got} for {want}");
        }
        assert_eq!(got.iter().flatten().count(), want.len());
    }
}

#[test]
fn directions_are_amplified_as_in_numpy() {
    let fixture = Fixture::open();
    let pair = Pair::new("", fixture.tensor("a"), fixture.tensor("b"), 4.0 * 1.5, Kind::Linear).unwrap();
    let got = amplification(&pair, &fixture.get("w").1, 3).unwrap();
    let got = [got.by_delta, got.by_w, got.w_norm, got.delta_norm, got.factor()];
    let (_, want) = fixture.get("amplification");
    for (got, want) in got.iter().zip(&want) {
        assert!((got / f64::from(*want) - 1.0).abs() < 1e-4, "{got} for {want}");
    }
    assert_eq!(want.len(), got.len());
}
