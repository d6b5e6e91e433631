//! Which layers `target_modules` and its companions choose.

use lowrank_adapters::{AdapterSet, LoraConfig, OneOrMany, Target, Targets, targets};
use lowrank_engine::{Site, SiteKind};

fn sites() -> Vec<Site> {
    let mut sites = Vec::new();
    for layer in 0..3 {
        for name in ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"] {
            let path = format!("model.layers.{layer}.{name}");
            sites.push(Site { path, kind: SiteKind::Linear, in_features: 4, out_features: 4, bias: false });
        }
    }
    sites.push(Site {
        path: "lm_head".into(),
        kind: SiteKind::Head,
        in_features: 4,
        out_features: 9,
        bias: false,
    });
    sites
}

fn found(config: &LoraConfig) -> Vec<(String, usize, f64)> {
    let sites = sites();
    let name = |t: &Target| (sites[t.site].path.clone(), t.r, t.alpha);
    targets(config, &sites).unwrap().iter().map(name).collect()
}

fn config(targets: Targets) -> LoraConfig {
    LoraConfig { target_modules: Some(targets), ..LoraConfig::default() }
}

#[test]
fn names_match_whole_path_ends() {
    assert_eq!(found(&config(Targets::parse("q_proj, v_proj"))).len(), 6);
    assert_eq!(found(&config(Targets::parse("layers.1.self_attn.q_proj"))).len(), 1);
    let wrong = targets(&config(Targets::parse("proj")), &sites()).unwrap_err().to_string();
    assert!(wrong.contains("q_proj, up_proj, v_proj"), "{wrong}");
    let some = config(Targets::parse("q_proj,k_proj"));
    assert_eq!(found(&some).len(), 3);
    let one_wrong = AdapterSet::planned_new(some, &sites()).err().unwrap().to_string();
    assert!(one_wrong.contains("k_proj"), "{one_wrong}");
}

#[test]
fn patterns_match_whole_paths() {
    assert_eq!(found(&config(Targets::parse(r".*\.(q|v)_proj"))).len(), 6);
    assert!(targets(&config(Targets::parse("q_proj$|")), &sites()).is_err());
    assert!(targets(&config(Targets::parse("(")), &sites()).is_err());
}

#[test]
fn all_linear_leaves_the_head_out() {
    assert_eq!(found(&config(Targets::parse("all-linear"))).len(), 9);
    assert_eq!(found(&config(Targets::parse("lm_head"))).len(), 1);
}

#[test]
fn layers_and_exclusions_narrow() {
    let mut c = config(Targets::parse("q_proj"));
    c.layers_to_transform = Some(OneOrMany::Many(vec![0, 2]));
    assert_eq!(found(&c).len(), 2);
    c.layers_to_transform = Some(OneOrMany::Many(Vec::new()));
    assert_eq!(found(&c).len(), 3, "an empty list is not a choice");
    c.layers_to_transform = Some(OneOrMany::Many(vec![0, 2]));
    c.layers_pattern = Some(OneOrMany::One("blocks".into()));
    assert!(targets(&c, &sites()).is_err());
    let mut c = config(Targets::parse("all-linear"));
    c.exclude_modules = Some(Targets::parse("up_proj"));
    assert_eq!(found(&c).len(), 6);
}

#[test]
fn rank_and_alpha_patterns_take_the_first_match() {
    let mut c = config(Targets::parse("q_proj"));
    c.rank_pattern.insert("layers.1.self_attn.q_proj".into(), 2.into());
    c.alpha_pattern.insert(r".*\.0\..*".into(), 32.into());
    let got: Vec<_> = found(&c).into_iter().map(|(_, r, alpha)| (r, alpha)).collect();
    assert_eq!(got, [(8, 32.0), (2, 8.0), (8, 8.0)]);
    c.rank_pattern.insert("q_proj".into(), 0.into());
    assert!(targets(&c, &sites()).is_err());
}
