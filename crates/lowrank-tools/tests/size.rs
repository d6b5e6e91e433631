//! Extract, resize, prune, number types, renaming, comparing.

use lowrank_files::Tensors;
use lowrank_kernels::Format;
use lowrank_tools::compare::{diff, spectra};
use lowrank_tools::extract::{Extract, extract};
use lowrank_tools::resize::{Prune, prune, rename, resize, to_dtype};
use lowrank_tools::tensor::{Named, write};
use lowrank_tools::{Kind, Lora, Pair, Rule, Tensor};
use regex::Regex;
use serde_json::json;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut data = vec![f32::NAN; shape.iter().product()];
    lowrank_kernels::normal(&mut data, 0.0, 1.0, seed, 7);
    Tensor::new(shape.to_vec(), data)
}

fn pair(path: &str, o: usize, k: usize, r: usize, alpha: f64, seed: u64) -> Pair {
    Pair::new(path, random(&[r, k], seed), random(&[o, r], seed + 100), alpha, Kind::Linear).unwrap()
}

fn close(what: &str, have: &[f32], want: &[f32], bound: f32) {
    assert_eq!(have.len(), want.len(), "{what}");
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        assert!((h - w).abs() <= bound, "{what}[{i}]: {h} for {w}");
    }
}

/// A base, and the base with an adapter merged into it, as files.
fn merged(lora: &Lora, base: &Named) -> (tempfile::TempDir, Tensors, Tensors) {
    let mut tuned = base.clone();
    for (path, pair) in &lora.pairs {
        let weight = tuned.get_mut(&format!("{path}.weight")).unwrap();
        weight.data.iter_mut().zip(pair.delta()).for_each(|(w, d)| *w += d);
    }
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str, tensors: &Named| {
        let path = dir.path().join(name);
        write(&path, tensors, &[]).unwrap();
        Tensors::open(&path).unwrap()
    };
    let (base, tuned) = (open("base.safetensors", base), open("tuned.safetensors", &tuned));
    (dir, base, tuned)
}

fn how(rule: Rule) -> Extract {
    Extract { rule, max_rank: 64, exact: false, seed: 0 }
}

#[test]
fn extracting_what_was_merged_gives_it_back() {
    let mut lora = Lora::default();
    // One below and one above the size from which random directions are used.
    lora.pairs.insert("layers.0.q".into(), pair("layers.0.q", 37, 29, 4, 0.4, 1));
    lora.pairs.insert("layers.1.q".into(), pair("layers.1.q", 400, 350, 4, 0.04, 2));
    let mut base = Named::new();
    for (path, pair) in &lora.pairs {
        base.insert(format!("{path}.weight"), random(&[pair.outputs(), pair.inputs()], 9));
    }
    base.insert("layers.2.q.weight".into(), random(&[5, 6], 10));
    let (_dir, base, tuned) = merged(&lora, &base);
    for (rule, exact) in [
        (Rule::Fixed(4), false),
        (Rule::Fixed(4), true),
        (Rule::Energy(0.9999), false),
        (Rule::Ratio(50.0), false),
    ] {
        let how = Extract { exact, ..how(rule) };
        let found = extract(&base, &tuned, &how, &|_| true, &|_| false).unwrap();
        assert_eq!(found.lora.pairs.len(), 2, "a layer that did not change is left out");
        assert!(found.left.is_empty());
        for (path, want) in &lora.pairs {
            let have = &found.lora.pairs[path];
            assert_eq!(have.rank(), 4, "{rule:?} {path}");
            close(&format!("{rule:?} {path}"), &have.delta(), &want.delta(), 1e-5);
        }
        assert!(found.taken.iter().all(|t| t.rank == 4 && t.energy > 0.9999), "{:?}", found.taken);
    }
    let one = extract(&base, &tuned, &how(Rule::Fixed(2)), &|p| p.contains("0"), &|_| false).unwrap();
    assert_eq!(one.left, ["layers.1.q.weight"]);
    assert_eq!(one.lora.pairs["layers.0.q"].rank(), 2);
    let none = extract(&base, &base, &how(Rule::Fixed(2)), &|_| true, &|_| false).unwrap_err().to_string();
    assert!(none.contains("no layer"), "{none}");
}

#[test]
fn a_transposed_layer_gives_an_adapter_the_right_way_round() {
    let mut lora = Lora::default();
    lora.pairs.insert("h.0.c_attn".into(), pair("h.0.c_attn", 12, 5, 2, 2.0, 3));
    let delta = Tensor::new(vec![12, 5], lora.pairs["h.0.c_attn"].delta()).transposed();
    let base = Named::from([("h.0.c_attn.weight".to_owned(), Tensor::new(vec![5, 12], vec![0.0; 60]))]);
    let tuned = Named::from([("h.0.c_attn.weight".to_owned(), delta)]);
    let (_a, base, _) = merged(&Lora::default(), &base);
    let (_b, tuned, _) = merged(&Lora::default(), &tuned);
    let found = extract(&base, &tuned, &how(Rule::Fixed(2)), &|_| true, &|_| true).unwrap();
    close("delta", &found.lora.pairs["h.0.c_attn"].delta(), &lora.pairs["h.0.c_attn"].delta(), 1e-5);
    assert_eq!(found.lora.config["fan_in_fan_out"], json!(true));
}

/// A pair with the singular values 8, 4, 2, 1 (times the scaling).
fn known(scaling: f64) -> Lora {
    let mut b = vec![0.0; 6 * 4];
    let mut a = vec![0.0; 4 * 5];
    for (i, s) in [8.0, 4.0, 2.0, 1.0].into_iter().enumerate() {
        b[(i + 1) * 4 + i] = s;
        a[i * 5 + 4 - i] = -1.0;
    }
    let (a, b) = (Tensor::new(vec![4, 5], a), Tensor::new(vec![6, 4], b));
    let pair = Pair::new("m", a, b, 4.0 * scaling, Kind::Linear).unwrap();
    Lora { pairs: [("m".to_owned(), pair)].into(), ..Lora::default() }
}

#[test]
fn resizing_follows_the_rule() {
    let lora = known(0.5);
    // Squares: 64, 16, 4, 1 of 85.
    for (rule, rank) in [
        (Rule::Fixed(1), 1),
        (Rule::Fixed(9), 4),
        (Rule::Energy(0.75), 1),
        (Rule::Energy(0.94), 2),
        (Rule::Energy(1.0), 4),
        (Rule::Frobenius(0.9), 2),
        (Rule::Frobenius(0.99), 3),
        (Rule::Cumulative(0.5), 1),
        (Rule::Cumulative(0.93), 3),
        (Rule::Ratio(3.0), 2),
        (Rule::Ratio(100.0), 4),
    ] {
        let (smaller, report) = resize(&lora, rule, 64).unwrap();
        assert_eq!((report[0].ranks, smaller.pairs["m"].rank()), ((4, rank), rank), "{rule:?}");
        let s = &spectra(&smaller).unwrap()[0].singular_values;
        close("values", s, &[4.0, 2.0, 1.0, 0.5][..rank], 1e-6);
    }
    let (same, _) = resize(&lora, Rule::Fixed(4), 64).unwrap();
    close("delta", &same.pairs["m"].delta(), &lora.pairs["m"].delta(), 1e-6);
    let (negative, _) = resize(&known(-0.5), Rule::Fixed(4), 64).unwrap();
    close("negative", &negative.pairs["m"].delta(), &known(-0.5).pairs["m"].delta(), 1e-6);
    assert_eq!(resize(&lora, Rule::Fixed(4), 3).unwrap().0.pairs["m"].rank(), 3);
    for wrong in
        [Rule::Fixed(0), Rule::Energy(0.0), Rule::Energy(1.5), Rule::Frobenius(f64::NAN), Rule::Ratio(0.5)]
    {
        assert!(resize(&lora, wrong, 64).is_err(), "{wrong:?}");
    }
}

#[test]
fn spectra_say_how_many_directions_are_used() {
    let s = &spectra(&known(1.0)).unwrap()[0];
    assert_eq!((s.rank, s.rank_99, s.shape), (4, 4, (6, 5)));
    assert!((s.norm - 85f64.sqrt()).abs() < 1e-5);
    let p = [8.0 / 15.0, 4.0 / 15.0, 2.0 / 15.0, 1.0 / 15.0f64];
    let want = (-p.iter().map(|p| p * p.ln()).sum::<f64>()).exp();
    assert!((s.effective_rank - want).abs() < 1e-5);
}

#[test]
fn differences_are_those_of_the_products() {
    let mut x = known(1.0);
    x.pairs.insert("only".into(), pair("only", 3, 3, 1, 1.0, 5));
    let mut y = known(1.0);
    y.pairs.insert("m".into(), pair("m", 6, 5, 2, 3.0, 6));
    let found = diff(&x, &y).unwrap();
    let m = &found[0];
    let (dx, dy) = (x.pairs["m"].delta(), y.pairs["m"].delta());
    let distance: f32 = dx.iter().zip(&dy).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
    let dot: f64 = dx.iter().zip(&dy).map(|(a, b)| f64::from(a * b)).sum();
    assert!((m.distance - f64::from(distance)).abs() < 1e-4, "{m:?}");
    assert!((m.cosine - dot / (m.norms.0 * m.norms.1)).abs() < 1e-5, "{m:?}");
    assert_eq!((found[1].path.as_str(), found[1].ranks), ("only", (1, 0)));
    assert!((found[1].distance - found[1].norms.0).abs() < 1e-6);
    let same = diff(&x, &x).unwrap();
    assert!(
        same.iter()
            .all(|d| d.distance == 0.0 && (d.cosine - 1.0).abs() < 1e-6 && (d.overlap - 1.0).abs() < 1e-5)
    );
}

#[test]
fn pruning_takes_small_things_away() {
    let mut lora = known(1.0);
    let mut small = known(0.001).pairs["m"].clone();
    small.a.data[4] = -0.5;
    lora.pairs.insert("small".into(), small);
    let (left, gone) = prune(&lora, &Prune { min_norm: Some(0.01), ..Prune::default() }).unwrap();
    assert_eq!((left.pairs.len(), gone), (1, vec!["small".to_owned()]));
    let drop = Some(Regex::new("^m$").unwrap());
    assert_eq!(prune(&lora, &Prune { drop, ..Prune::default() }).unwrap().1, ["m"]);
    let (thin, _) = prune(&lora, &Prune { density: Some(0.1), ..Prune::default() }).unwrap();
    let b = &thin.pairs["m"].b.data;
    assert_eq!(b.iter().filter(|x| **x != 0.0).copied().collect::<Vec<_>>(), [8.0, 4.0]);
    let drop = Some(Regex::new(".").unwrap());
    assert!(prune(&lora, &Prune { drop, ..Prune::default() }).is_err());
    assert!(prune(&lora, &Prune { density: Some(2.0), ..Prune::default() }).is_err());
}

#[test]
fn number_types_round_and_refuse() {
    let mut tensors =
        Named::from([("x".to_owned(), Tensor::new(vec![3], vec![1.0, 1.0 + 1.0 / 4096.0, -3.0]))]);
    let error = to_dtype(&mut tensors, Format::F16).unwrap();
    assert_eq!((error, tensors["x"].dtype), (1.0 / 4096.0, Format::F16));
    assert_eq!(tensors["x"].data, [1.0, 1.0, -3.0]);
    let mut large = Named::from([("big".to_owned(), Tensor::new(vec![1], vec![1e6]))]);
    assert!(to_dtype(&mut large.clone(), Format::F16).unwrap_err().to_string().contains("big"));
    to_dtype(&mut large, Format::BF16).unwrap();
}

#[test]
fn renaming_reaches_the_configuration() {
    let mut tensors = Named::new();
    for name in ["model.h.0.q.lora_A.weight", "model.h.0.q.lora_B.weight"] {
        tensors.insert(name.into(), Tensor::scalar(0.0));
    }
    let config = json!({"target_modules": ["h.0.q"], "rank_pattern": {"model\\.h\\.0\\.q": 3}});
    let mut config = config.as_object().unwrap().clone();
    let from = Regex::new(r"\bh\.(\d+)").unwrap();
    assert_eq!(rename(&mut config, &mut tensors, &from, "layers.$1").unwrap(), 2);
    assert!(tensors.contains_key("model.layers.0.q.lora_A.weight"));
    assert_eq!(config["target_modules"], json!(["layers.0.q"]));
    assert_eq!(config["rank_pattern"], json!({"model\\.layers\\.0\\.q": 3}));
    let both = Regex::new("lora_[AB]").unwrap();
    assert!(
        rename(&mut config, &mut tensors.clone(), &both, "x")
            .unwrap_err()
            .to_string()
            .contains("two tensors")
    );
    assert!(rename(&mut config, &mut tensors, &Regex::new("none").unwrap(), "x").is_err());
}
