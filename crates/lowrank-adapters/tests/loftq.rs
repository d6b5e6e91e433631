//! LoftQ: what quantising the base loses is in the adapter's start.

use lowrank_adapters::base::whole_weight;
use lowrank_adapters::{AdapterSet, BaseWeights, Error, LoraConfig, Targets};
use lowrank_engine::{Format, Site, SiteKind, kernels};

struct Quantised(Vec<f32>);

impl BaseWeights for Quantised {
    fn read_rows(&self, _: &str, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        out.copy_from_slice(&self.0[rows.start * 64..rows.end * 64]);
        Ok(())
    }

    fn read_bias(&self, _: &str, _: &mut [f32]) -> Result<(), Error> {
        unreachable!("there is none")
    }

    fn quantised(&self, _: &Site) -> Option<Format> {
        Some(Format::NF4)
    }
}

/// With LoftQ, quantised base and adapter are nearer to the dense weight; at full rank, they are it.
#[test]
fn loftq_makes_up_for_quantising() {
    let (o, k) = (8, 64);
    let mut w = vec![0.0; o * k];
    kernels::normal(&mut w, 0.0, 1.0, 1, 2);
    let base = Quantised(w.clone());
    let site =
        Site { path: "q".into(), kind: SiteKind::Linear, in_features: k, out_features: o, bias: false };
    let used = whole_weight(&base, &site).unwrap();
    let distance = |a: &[f32]| a.iter().zip(&w).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    let mut errors = vec![distance(&used)];
    for r in [1, 4, 8] {
        let config = LoraConfig {
            r,
            init_lora_weights: "loftq".into(),
            target_modules: Some(Targets::parse("q")),
            ..LoraConfig::default()
        };
        let set = AdapterSet::new_on(config, std::slice::from_ref(&site), 0, &base).unwrap();
        let mut sum = used.clone();
        set.merge_rows(&base, "q.weight", 0..o, &mut sum).unwrap();
        errors.push(distance(&sum));
    }
    assert!(errors.windows(2).all(|pair| pair[1] < 0.95 * pair[0]), "{errors:?}");
    assert!(errors[3] < 1e-5 * errors[0], "{errors:?}");
}
