//! Compositions against PEFT's `add_weighted_adapter`.

use std::path::Path;

use lowrank_tools::compose::{Combination, Compose, Draw, compose, compose_with};
use lowrank_tools::tensor::{Named, read};
use lowrank_tools::{Kind, Lora, Pair, Tensor};

const ALPHAS: [f64; 3] = [6.0, 4.0, 5.0];

fn fixture() -> Named {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compose.safetensors")).unwrap()
}

fn adapter(file: &Named, i: usize) -> Lora {
    let mut lora = Lora::default();
    for module in ["q", "v"] {
        let of = |part: &str| file[&format!("in.{i}.{module}.{part}")].clone();
        let pair = Pair::new(module, of("A"), of("B"), ALPHAS[i], Kind::Linear).unwrap();
        lora.pairs.insert(module.into(), pair);
    }
    lora
}

fn settings(combination: Combination, density: Option<f64>) -> Compose {
    Compose { combination, rank: None, density, by_frequency: false, seed: 1 }
}

fn close(what: &str, have: &[f32], want: &[f32]) {
    assert_eq!(have.len(), want.len(), "{what}");
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        assert!((h - w).abs() <= 1e-5 * w.abs().max(1.0), "{what}[{i}]: {h} for {w}");
    }
}

#[test]
fn equal_pefts() {
    let file = fixture();
    let loras: Vec<Lora> = (0..3).map(|i| adapter(&file, i)).collect();
    let cases: [(&str, &str, &[f64], Option<f64>); 15] = [
        ("linear", "linear", &[0.7, 0.4], None),
        ("negative", "linear", &[1.0, -0.5], None),
        ("single", "linear", &[0.5], None),
        ("cat", "cat", &[0.7, -0.4, 1.5], None),
        ("svd", "svd", &[0.7, -0.4, 1.5], None),
        ("svd2", "svd", &[0.7, 0.4, 1.5], None),
        ("ties", "ties", &[0.7, 0.4], Some(0.6)),
        ("ties_frequency", "ties", &[0.7, 0.4], Some(0.6)),
        ("ties_svd", "ties_svd", &[0.7, 0.4, -0.3], Some(0.5)),
        ("dare_linear", "dare_linear", &[0.7, 0.4], Some(0.5)),
        ("dare_ties", "dare_ties", &[0.7, 0.4], Some(0.5)),
        ("dare_linear_svd", "dare_linear_svd", &[0.7, 0.4, 1.0], Some(0.5)),
        ("dare_ties_svd", "dare_ties_svd", &[0.7, 0.4, 1.0], Some(0.5)),
        ("magnitude_prune", "magnitude_prune", &[0.7, 0.4], Some(0.4)),
        ("magnitude_prune_svd", "magnitude_prune_svd", &[0.7, 0.4, 1.0], Some(0.4)),
    ];
    for (case, combination, weights, density) in cases {
        let adapters: Vec<(&Lora, f64)> = loras.iter().zip(weights.iter().copied()).collect();
        let how = Compose {
            rank: (case == "svd2").then_some(2),
            by_frequency: case == "ties_frequency",
            ..settings(Combination::parse(combination).unwrap(), density)
        };
        let mut keep = |draw: &Draw<'_>| {
            let name = format!("{case}.mask.{}.{}.{}", draw.module, draw.part, draw.adapter);
            let mask: Vec<bool> = file[&name].data.iter().map(|x| *x != 0.0).collect();
            assert_eq!(mask.len(), draw.len, "{name}");
            mask
        };
        let result = compose_with(&adapters, &how, &mut keep).unwrap_or_else(|e| panic!("{case}: {e}"));
        for module in ["q", "v"] {
            let of = |part: &str| file[&format!("{case}.{module}.{part}")].clone();
            let (a, b) = (of("A"), of("B"));
            let want = Pair::new(module, a.clone(), b.clone(), a.rows() as f64, Kind::Linear).unwrap();
            let have = &result.pairs[module];
            assert_eq!(have.scaling(), 1.0, "{case}");
            close(&format!("{case} {module}"), &have.delta(), &want.delta());
            // Singular vectors have no sign of their own; everything else is the same number by number.
            if combination.ends_with("svd") {
                assert_eq!(have.rank(), want.rank(), "{case} {module}");
            } else {
                close(&format!("{case} {module} A"), &have.a.data, &a.data);
                close(&format!("{case} {module} B"), &have.b.data, &b.data);
            }
        }
    }
}

#[test]
fn dare_keeps_a_share_at_random_and_the_mean() {
    let n = 40_000;
    let mut lora = Lora::default();
    let (a, b) = (Tensor::new(vec![1, n], vec![1.0; n]), Tensor::new(vec![1, 1], vec![1.0]));
    lora.pairs.insert("m".into(), Pair::new("m", a, b, 1.0, Kind::Linear).unwrap());
    let how = settings(Combination::DareLinear, Some(0.3));
    let mixed = compose(&[(&lora, 1.0), (&lora, 1.0)], &how).unwrap();
    let a = &mixed.pairs["m"].a.data;
    let mean = a.iter().sum::<f32>() / n as f32;
    assert!((mean - 2.0).abs() < 0.05, "{mean}");
    let both = a.iter().filter(|x| **x > 5.0).count() as f32 / n as f32;
    assert!((both - 0.09).abs() < 0.01, "two independent draws: {both}");
    assert_eq!(mixed, compose(&[(&lora, 1.0), (&lora, 1.0)], &how).unwrap());
    let other = Compose { seed: 2, ..how };
    assert_ne!(mixed, compose(&[(&lora, 1.0), (&lora, 1.0)], &other).unwrap());
}

#[test]
fn interpolation_and_negation() {
    let file = fixture();
    let (x, y) = (adapter(&file, 0), adapter(&file, 1));
    let cat = settings(Combination::Cat, None);
    let half = compose(&[(&x, 0.25), (&y, 0.75)], &cat).unwrap();
    let want: Vec<f32> =
        x.pairs["q"].delta().iter().zip(y.pairs["q"].delta()).map(|(a, b)| 0.25 * a + 0.75 * b).collect();
    close("interpolated", &half.pairs["q"].delta(), &want);
    let nothing = compose(&[(&x, 1.0), (&x, -1.0)], &cat).unwrap();
    close("taken away", &nothing.pairs["q"].delta(), &[0.0; 63]);
}

#[test]
fn a_module_of_one_adapter_only_is_kept() {
    let file = fixture();
    let (x, mut y) = (adapter(&file, 0), adapter(&file, 2));
    y.pairs.remove("q");
    let result = compose(&[(&x, 1.0), (&y, 1.0)], &settings(Combination::Cat, None)).unwrap();
    close("q", &result.pairs["q"].delta(), &x.pairs["q"].delta());
    assert_eq!(result.pairs["v"].rank(), 5);
}

#[test]
fn what_does_not_fit_is_named() {
    let file = fixture();
    let (x, z) = (adapter(&file, 0), adapter(&file, 2));
    let refused = |adapters: &[(&Lora, f64)], how: &Compose| compose(adapters, how).unwrap_err().to_string();
    let linear = settings(Combination::Linear, None);
    assert!(refused(&[(&x, 1.0), (&z, 1.0)], &linear).contains("equal ranks"));
    assert!(refused(&[], &linear).contains("at least one"));
    assert!(refused(&[(&x, f64::NAN)], &linear).contains("NaN"));
    assert!(refused(&[(&x, 1.0), (&x, 1.0)], &settings(Combination::Ties, None)).contains("density"));
    assert!(
        refused(&[(&x, 1.0), (&x, 1.0)], &settings(Combination::Ties, Some(1.5))).contains("density is 1.5")
    );
    let mut whole = x.clone();
    whole.saved.insert("head.weight".into(), Tensor::new(vec![1], vec![0.0]));
    assert!(refused(&[(&whole, 1.0), (&whole, 1.0)], &linear).contains("head.weight"));
    let mut other = x.clone();
    let q = other.pairs.get_mut("q").unwrap();
    q.a = Tensor::new(vec![3, 8], vec![0.0; 24]);
    assert!(refused(&[(&x, 1.0), (&other, 1.0)], &linear).contains("another shape: q"));
    let mut broken = x.clone();
    broken.pairs.get_mut("v").unwrap().a.data[0] = f32::NAN;
    assert!(refused(&[(&x, 1.0), (&broken, 1.0)], &settings(Combination::Svd, None)).contains("NaN"));
    assert!(Combination::parse("mean").unwrap_err().to_string().contains("dare_ties_svd"));
}
