//! Subspaces (the paper's figures 3 and 4) and amplification (table 7).

use super::inputs::Study;
use crate::amplification::amplification as amplify;
use crate::error::{Error, Result};
use crate::report::{Cell, Figure, Plot, Section, Table, bounds_of};
use crate::run::Role;
use crate::spec::{AmplificationSpec, Subspace};
use crate::subspace::{pairs, phi, phi_gaussian};
use lowrank_tools::Pair;

/// The adapted modules of the run with this rank and seed, if it is done.
fn factors(
    study: &Study<'_>,
    r: usize,
    seed: u64,
    modules: &[String],
) -> Result<Option<Vec<(String, Pair)>>> {
    match study.with(&Role::Adapter(r, seed)).next() {
        Some((run, _)) => pairs(&run.dir(&study.spec.out).join("adapter"), modules).map(Some),
        None => Ok(None),
    }
}

pub(super) fn similarity(study: &Study<'_>, what: &Subspace) -> Result<Section> {
    let ([small, large], [first, second]) = (what.ranks, what.seeds);
    let title = "Subspaces".to_owned();
    let few = factors(study, small, first, &what.modules)?;
    let many = factors(study, large, first, &what.modules)?;
    let other = factors(study, large, second, &what.modules)?;
    let (Some(few), Some(many), Some(other)) = (few, many, other) else {
        let text = vec!["The adapters that this section compares are not all done.".into()];
        return Ok(Section { title, text, ..Section::default() });
    };
    let mut figures: Vec<Figure> = Vec::new();
    let mut rows = Vec::new();
    for (((module, few), (_, many)), (_, other)) in few.iter().zip(&many).zip(&other) {
        let inputs = few.inputs();
        let name = module.replace('.', "-");
        let ranks = phi(&few.a.data, &other.a.data, inputs, small, large)?;
        let seeds = phi(&many.a.data, &other.a.data, inputs, large, large)?;
        let chance = phi_gaussian(large, large, inputs, large, large, first)?;
        let top = |map: &[Vec<f64>]| Cell::number(map[0][0], format!("{:.3}", map[0][0]));
        let corner = |map: &[Vec<f64>]| {
            let value = *map.last().and_then(|row| row.last()).expect("a rank is at least 1");
            Cell::number(value, format!("{value:.3}"))
        };
        rows.push(vec![
            Cell::text(module),
            top(&ranks),
            corner(&ranks),
            top(&seeds),
            corner(&seeds),
            corner(&chance),
        ]);
        let axis = |r: usize, seed: u64| format!("directions of r = {r}, seed {seed}");
        let map = |id: &str, title: String, x_label: String, y_label: String, values| Figure {
            id: format!("{id}-{name}"),
            title,
            caption: "φ is 1 where the smaller space lies in the larger, and 0 where they are orthogonal."
                .into(),
            plot: Plot::Heatmap { x_label, y_label, value_label: "φ(i, j)".into(), values, bounds: None },
        };
        figures.push(map(
            "ranks",
            format!("{module}: rank {small} in rank {large}."),
            axis(large, second),
            axis(small, first),
            ranks,
        ));
        figures.push(map(
            "seeds",
            format!("{module}: two seeds of rank {large}."),
            axis(large, second),
            axis(large, first),
            seeds,
        ));
        figures.push(map(
            "chance",
            format!("{module}: two random matrices of rank {large}."),
            "directions of one".into(),
            "directions of the other".into(),
            chance,
        ));
    }
    // Maps that are compared have one scale.
    let shared = bounds_of(figures.iter().filter_map(|figure| match &figure.plot {
        Plot::Heatmap { values, .. } => Some(values),
        Plot::Lines { .. } => None,
    }));
    for figure in &mut figures {
        if let Plot::Heatmap { bounds, .. } = &mut figure.plot {
            *bounds = Some(shared);
        }
    }
    let columns = ["module", "top, ranks", "all, ranks", "top, seeds", "all, seeds", "all, chance"];
    let table = Table {
        id: "subspaces".into(),
        title: "φ of the top direction alone and of all: between ranks, between seeds, by chance.".into(),
        columns: columns.map(Into::into).to_vec(),
        rows,
        folded: false,
    };
    let text = vec![
        "φ(i, j) = ‖UᵢᵀVⱼ‖² / min(i, j) over the right-singular vectors of A (section 7.2 of the paper, figures 3 \
         and 4); i counts rows and j columns. There the top direction of rank 8 lies in rank 64 (φ > 0.5) and the others are mostly \
         noise; two seeds share more directions than chance."
            .into(),
        "A starts random and short runs move it little: what is shared is then little more than chance. The two ranks \
         are of different seeds, because of one seed the smaller A starts as the first rows of the larger."
            .into(),
    ];
    Ok(Section { title, text, tables: vec![table], figures, ..Section::default() })
}

pub(super) fn amplification(study: &Study<'_>, what: &AmplificationSpec) -> Result<Section> {
    let seed = study.spec.seeds[0];
    let mut rows = Vec::new();
    for &r in &what.ranks {
        let Some(modules) = factors(study, r, seed, &what.modules)? else { continue };
        for (module, pair) in &modules {
            let tensor = format!("{module}.weight");
            let shape = study.base.tensors.matrix_shape(&tensor);
            if shape != Some((pair.outputs(), pair.inputs())) {
                return Err(Error::Spec(format!(
                    "[amplification] {tensor} of the base is {shape:?}, the adapter takes {} x {} (weights that are \
                     stored transposed are not supported here)",
                    pair.outputs(),
                    pair.inputs()
                )));
            }
            let mut w = vec![0.0; pair.outputs() * pair.inputs()];
            study.base.tensors.read_rows(&tensor, 0..pair.outputs(), &mut w)?;
            let a = amplify(pair, &w, seed)?;
            let number = |x: f64| Cell::number(x, format!("{x:.3}"));
            rows.push(vec![
                Cell::text(module),
                Cell::count(r as u64),
                number(a.by_delta),
                number(a.by_w),
                number(a.by_random),
                number(a.w_norm),
                number(a.delta_norm),
                number(a.factor()),
            ]);
        }
    }
    let columns = ["module", "r", "by ΔW", "by W", "by random", "‖W‖", "‖ΔW‖", "factor"];
    let table = Table {
        id: "amplification".into(),
        title: "‖UᵀWVᵀ‖ with the top r directions of ΔW, of W and of a random matrix.".into(),
        columns: columns.map(Into::into).to_vec(),
        rows,
        folded: false,
    };
    let text = vec![
        "The factor is ‖ΔW‖ over the norm of W in the directions of ΔW, ‖UᵀWVᵀ‖ (section 7.3, table 7). In the \
         paper W is larger in them than in random directions, smaller than in its own, and amplified 21 times at \
         r = 4 and twice at r = 64."
            .into(),
    ];
    Ok(Section { title: "Amplification".into(), text, tables: vec![table], ..Section::default() })
}
