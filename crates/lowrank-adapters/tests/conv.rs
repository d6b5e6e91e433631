//! LoRA on convolutions against loralib and PyTorch (`tools/reference/conv.py` made the numbers) and against
//! differences.

use std::path::Path;

use lowrank_adapters::{ConvConfig, ConvLora};
use safetensors::SafeTensors;

struct Case {
    bytes: Vec<u8>,
    name: &'static str,
}

impl Case {
    fn open(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conv.safetensors");
        Self { bytes: std::fs::read(path).unwrap(), name }
    }

    fn find(&self, key: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(&format!("{}.{key}", self.name)).ok()?;
        let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Some((view.shape().to_vec(), data))
    }

    fn get(&self, key: &str) -> Vec<f32> {
        self.find(key).unwrap_or_else(|| panic!("{key}")).1
    }

    fn sizes(&self) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(&format!("{}.sizes", self.name)).unwrap();
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }

    fn close(&self, what: &str, have: &[f32]) {
        let want = self.get(what);
        assert_eq!(have.len(), want.len(), "{}: {what}", self.name);
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (i, (h, w)) in have.iter().zip(&want).enumerate() {
            assert!((h - w).abs() <= 1e-5 * largest, "{}: {what}[{i}]: {h} for {w}", self.name);
        }
    }

    fn layer<const AXES: usize>(&self) -> (ConvLora<AXES>, [usize; AXES]) {
        let sizes = self.sizes();
        let [axes, c, o, k, r, alpha, groups, stride, padding, dilation] = sizes[..] else { panic!() };
        assert_eq!(axes, AXES);
        let config = ConvConfig {
            in_channels: c,
            out_channels: o,
            kernel_size: k,
            stride,
            padding,
            dilation,
            groups,
            r,
            lora_alpha: alpha as f64,
            merge_weights: true,
        };
        let bias = self.find("bias").map(|(_, bias)| bias);
        let mut layer = ConvLora::new(config, self.get("weight"), bias, 1).unwrap();
        assert!(layer.b.iter().all(|b| *b == 0.0) && layer.a.iter().any(|a| *a != 0.0));
        assert_eq!((layer.a.len(), layer.b.len()), (self.get("a").len(), self.get("b").len()));
        layer.a = self.get("a");
        layer.b = self.get("b");
        let shape = self.find("x").unwrap().0;
        (layer, std::array::from_fn(|axis| shape[2 + axis]))
    }
}

fn check<const AXES: usize>(name: &'static str) {
    let case = Case::open(name);
    let (mut layer, size) = case.layer::<AXES>();
    let (x, dy) = (case.get("x"), case.get("dy"));
    let y = layer.forward(&x, size).unwrap();
    case.close("y", &y);
    assert_eq!(case.find("y").unwrap().0[2..], layer.output_size(size).unwrap());
    let grads = layer.backward(&x, size, &dy).unwrap();
    case.close("dx", &grads.x);
    case.close("da", &grads.a);
    case.close("db", &grads.b);

    // A step along each number changes `sum(dy y)` by what the gradient says.
    let loss = |layer: &ConvLora<AXES>, x: &[f32]| -> f64 {
        let y = layer.forward(x, size).unwrap();
        y.iter().zip(&dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum()
    };
    let step = 1e-2;
    let agree = |what: &str, i: usize, plus: f64, minus: f64, grad: f32| {
        let want = (plus - minus) / f64::from(2.0 * step);
        assert!(
            (want - f64::from(grad)).abs() < 2e-3 * want.abs().max(1.0),
            "{name}: {what}[{i}]: {grad} for {want}"
        );
    };
    for i in (0..layer.a.len()).step_by(7) {
        let [plus, minus] = [step, -step].map(|by| {
            let mut moved = layer.clone();
            moved.a[i] += by;
            loss(&moved, &x)
        });
        agree("a", i, plus, minus, grads.a[i]);
    }
    for i in (0..layer.b.len()).step_by(5) {
        let [plus, minus] = [step, -step].map(|by| {
            let mut moved = layer.clone();
            moved.b[i] += by;
            loss(&moved, &x)
        });
        agree("b", i, plus, minus, grads.b[i]);
    }
    for i in (0..x.len()).step_by(11) {
        let [plus, minus] = [step, -step].map(|by| {
            let mut x = x.clone();
            x[i] += by;
            loss(&layer, &x)
        });
        agree("x", i, plus, minus, grads.x[i]);
    }

    // Merged it gives the same, and comes out to the bit.
    layer.eval();
    assert!(layer.is_merged());
    case.close("y", &layer.forward(&x, size).unwrap());
    let error = layer.backward(&x, size, &dy).unwrap_err().to_string();
    assert!(error.contains("call train()"), "{error}");
    layer.train();
    assert_eq!(layer.forward(&x, size).unwrap(), y);
}

#[test]
fn two_axes_as_in_loralib() {
    check::<2>("plain2");
    check::<2>("strided2");
    check::<2>("dilated2");
}

#[test]
fn one_and_three_axes() {
    check::<1>("one");
    check::<3>("three");
}

#[test]
fn without_merge_weights_nothing_is_merged() {
    let config = ConvConfig {
        in_channels: 1,
        out_channels: 1,
        kernel_size: 2,
        r: 1,
        merge_weights: false,
        ..Default::default()
    };
    let mut layer = ConvLora::<1>::new(config, vec![1.0, 2.0], None, 3).unwrap();
    layer.eval();
    assert!(!layer.is_merged());
    layer.b.fill(1.0);
    let a = layer.a.clone();
    // A: [2, 2] and B: [1, 2] of ones: the change is the sum of A's rows.
    let want = (1.0 + a[0] + a[2]) * 5.0 + (2.0 + a[1] + a[3]) * 7.0;
    assert!((layer.forward(&[5.0, 7.0], [2]).unwrap()[0] - want).abs() < 1e-5);
}

#[test]
fn bad_sizes() {
    let good =
        ConvConfig { in_channels: 4, out_channels: 6, kernel_size: 3, groups: 2, r: 1, ..Default::default() };
    let weight = vec![0.0; 6 * 2 * 9];
    let make = |config, weight: &[f32], bias| ConvLora::<2>::new(config, weight.to_vec(), bias, 0);
    for (config, says) in [
        (ConvConfig { r: 0, ..good }, "r must be at least 1"),
        (ConvConfig { stride: 0, ..good }, "stride must be at least 1"),
        (ConvConfig { kernel_size: 0, ..good }, "kernel_size must be at least 1"),
        (ConvConfig { groups: 4, ..good }, "4 groups do not divide 4 input and 6 output channels"),
        (ConvConfig { lora_alpha: f64::NAN, ..good }, "lora_alpha is NaN"),
        (ConvConfig { kernel_size: 2, ..good }, "the weight has 108 numbers, its shape has 48"),
    ] {
        let error = make(config, &weight, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let error = make(good, &weight, Some(vec![0.0; 5])).unwrap_err().to_string();
    assert!(error.contains("the bias has 5 numbers for 6 output channels"), "{error}");
    let layer = make(good, &weight, None).unwrap();
    let error = layer.forward(&[0.0; 4 * 4], [2, 2]).unwrap_err().to_string();
    assert!(error.contains("a kernel of 3 with padding 0 and dilation 1 does not fit"), "{error}");
    let error = layer.forward(&[0.0; 37], [3, 3]).unwrap_err().to_string();
    assert!(error.contains("37 numbers are no whole number of inputs of 36"), "{error}");
    let error = layer.backward(&[0.0; 36], [3, 3], &[0.0; 5]).unwrap_err().to_string();
    assert!(error.contains("dy has 5 numbers, y has 6"), "{error}");
}
