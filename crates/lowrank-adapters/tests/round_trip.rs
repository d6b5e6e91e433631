//! Every variant of any shape comes back from its files as it was, and a damaged file is refused.

use std::fs;

use lowrank_adapters::{AdapterSet, LoraConfig, TENSORS_FILE};
use lowrank_engine::{Site, SiteKind};
use proptest::prelude::*;
use serde_json::{Value, json};

fn sites(widths: &[(usize, usize)], transposed: bool) -> Vec<Site> {
    let kind = if transposed { SiteKind::TransposedLinear } else { SiteKind::Linear };
    let site = |(i, &(k, o)): (usize, &(usize, usize))| {
        let path = format!("model.layers.{i}.proj");
        Site { path, kind, in_features: k, out_features: o, bias: false }
    };
    widths.iter().enumerate().map(site).collect()
}

fn config() -> impl Strategy<Value = Value> {
    let r = 1usize..6;
    prop_oneof![
        (r.clone(), any::<bool>()).prop_map(|(r, rs)| json!({"peft_type": "LORA", "r": r, "use_rslora": rs})),
        any::<bool>().prop_map(|ff| {
            let modules = if ff { json!(["proj"]) } else { Value::Null };
            json!({"peft_type": "IA3", "feedforward_modules": modules})
        }),
        (r.clone(), any::<bool>())
            .prop_map(|(r, save)| json!({"peft_type": "VERA", "r": r, "save_projection": save})),
        (r.clone(), 0.5..20.0).prop_map(|(r, alpha)| json!({"peft_type": "LOHA", "r": r, "alpha": alpha})),
        (r.clone(), -1i64..5, any::<bool>()).prop_map(|(r, factor, both)| {
            let factor = if factor == 0 { -1 } else { factor };
            json!({"peft_type": "LOKR", "r": r, "decompose_factor": factor, "decompose_both": both})
        }),
        r.prop_map(|r| json!({"peft_type": "ADALORA", "init_r": r, "target_r": 1, "total_step": 9})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn files_hold_everything(
        config in config(),
        widths in prop::collection::vec((1usize..20, 1usize..20), 1..4),
        transposed: bool,
        seed: u64,
        cut in 0usize..10_000,
    ) {
        let mut config = config;
        config["target_modules"] = json!(["proj"]);
        let config: LoraConfig = serde_json::from_value(config).unwrap();
        let sites = sites(&widths, transposed);
        let set = AdapterSet::new(config, &sites, seed).unwrap();
        let dir = tempfile::tempdir().unwrap();
        set.save(dir.path()).unwrap();
        let again = AdapterSet::load(dir.path(), &sites).unwrap();
        prop_assert_eq!(set.params.len(), again.params.len());
        for ((_, a), (_, b)) in set.params.iter().zip(again.params.iter()) {
            prop_assert_eq!((&a.name, &a.shape, a.values()), (&b.name, &b.shape, b.values()));
        }
        for (a, b) in set.layers.iter().zip(&again.layers) {
            prop_assert_eq!(a.variant.scaling(), b.variant.scaling());
        }
        prop_assert!(AdapterSet::load_alone(dir.path()).is_ok());

        let file = dir.path().join(TENSORS_FILE);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..cut % bytes.len()]).unwrap();
        prop_assert!(AdapterSet::load(dir.path(), &sites).is_err());
        prop_assert!(AdapterSet::load_alone(dir.path()).is_err());
    }
}
