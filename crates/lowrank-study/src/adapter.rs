//! What an adapter adds, by kind of module: norms and singular values.

use lowrank_files::Provenance;
use lowrank_tools::compare::Spectrum;
use lowrank_tools::modules::{block, by_kind, natural_order};

use crate::report::{Cell, Figure, Label, Plot, Report, Section, Series, Table};

/// Curves of a figure at most.
const CURVES: usize = 10;
/// Modules that are listed without being asked for.
const LISTED: usize = 12;

/// The report of one adapter, with facts about it by name.
pub fn adapter_report(title: &str, facts: &[(String, String)], spectra: &[Spectrum]) -> Report {
    let rows = facts.iter().map(|(name, value)| vec![Cell::text(name), Cell::text(value)]);
    let table = Table {
        id: "facts".into(),
        title: "The file.".into(),
        columns: ["what", "value"].map(Into::into).to_vec(),
        rows: rows.collect(),
        folded: false,
    };
    let mut section = section("Layers", spectra, 0);
    section.tables.insert(0, table);
    Report {
        title: title.to_owned(),
        subtitle: String::new(),
        made: Provenance::now(),
        sections: vec![section],
    }
}

/// The section of the adapter number `index` of a report.
pub(crate) fn section(title: &str, spectra: &[Spectrum], index: usize) -> Section {
    let mut spectra: Vec<&Spectrum> = spectra.iter().collect();
    spectra.sort_by(|a, b| natural_order(&a.path, &b.path));
    let paths: Vec<&str> = spectra.iter().map(|s| s.path.as_str()).collect();
    let kinds: Vec<(String, Vec<&Spectrum>)> = by_kind(&paths)
        .into_iter()
        .map(|(kind, modules)| (kind, modules.into_iter().map(|i| spectra[i]).collect()))
        .collect();
    let number = index + 1;
    let mut figures = vec![singular_values(&kinds, number)];
    figures.extend(norms_by_block(&kinds, number));
    let text = vec![
        "The change of a layer's weights is ΔW = (α/r)·BA. Its norm is ‖ΔW‖, the root of the sum of squares of its \
         singular values σ₁ ≥ σ₂ ≥ …; the effective rank says how many of these count (the exponential of their entropy)."
            .into(),
    ];
    Section {
        title: title.to_owned(),
        text,
        tables: vec![kinds_table(&kinds, number), modules_table(&spectra, number)],
        figures,
        ..Section::default()
    }
}

fn mean(modules: &[&Spectrum], of: impl Fn(&Spectrum) -> f64) -> f64 {
    modules.iter().map(|s| of(s)).sum::<f64>() / modules.len().max(1) as f64
}

fn four(value: f64) -> Cell {
    Cell::number(value, format!("{value:.4}"))
}

fn kinds_table(kinds: &[(String, Vec<&Spectrum>)], number: usize) -> Table {
    let rows = kinds.iter().map(|(kind, modules)| {
        let largest = modules.iter().max_by(|a, b| a.norm.total_cmp(&b.norm)).expect("a kind has a module");
        let rank = mean(modules, |s| s.effective_rank);
        let ranks = (modules.iter().map(|s| s.rank).min(), modules.iter().map(|s| s.rank).max());
        let (low, high) = (ranks.0.unwrap_or(0), ranks.1.unwrap_or(0));
        vec![
            Cell::text(kind),
            Cell::count(modules.len() as u64),
            four(mean(modules, |s| s.norm)),
            four(largest.norm),
            block(&largest.path).map_or_else(Cell::none, |b| Cell::count(b as u64)),
            Cell::number(rank, format!("{rank:.2}")),
            Cell::number(
                high as f64,
                if low == high { high.to_string() } else { format!("{low} to {high}") },
            ),
        ]
    });
    Table {
        id: format!("kinds-{number}"),
        title: "Modules by kind: means over the modules of a kind.".into(),
        columns: ["kind", "modules", "‖ΔW‖", "largest ‖ΔW‖", "in block", "effective rank", "r"]
            .map(Into::into)
            .to_vec(),
        rows: rows.collect(),
        folded: false,
    }
}

fn modules_table(spectra: &[&Spectrum], number: usize) -> Table {
    let rows = spectra.iter().map(|s| {
        vec![
            Cell::text(&s.path),
            four(s.norm),
            four(f64::from(s.singular_values.first().copied().unwrap_or_default())),
            Cell::number(s.effective_rank, format!("{:.2}", s.effective_rank)),
            Cell::count(s.rank as u64),
        ]
    });
    Table {
        id: format!("modules-{number}"),
        title: "Every module".into(),
        columns: ["module", "‖ΔW‖", "σ₁", "effective rank", "r"].map(Into::into).to_vec(),
        rows: rows.collect(),
        folded: spectra.len() > LISTED,
    }
}

/// The kinds with the largest change, in their own order.
fn strongest<'a, 's>(kinds: &'a [(String, Vec<&'s Spectrum>)]) -> Vec<&'a (String, Vec<&'s Spectrum>)> {
    let mut order: Vec<usize> = (0..kinds.len()).collect();
    let norm = |i: &usize| mean(&kinds[*i].1, |s| s.norm);
    order.sort_by(|a, b| norm(b).total_cmp(&norm(a)));
    order.truncate(CURVES);
    order.sort_unstable();
    order.into_iter().map(|i| &kinds[i]).collect()
}

fn caption(kinds: usize, what: &str) -> String {
    match kinds > CURVES {
        true => format!("{what} The {CURVES} kinds with the largest change."),
        false => what.to_owned(),
    }
}

fn singular_values(kinds: &[(String, Vec<&Spectrum>)], number: usize) -> Figure {
    let series = strongest(kinds).into_iter().map(|(kind, modules)| {
        let longest = modules.iter().map(|s| s.singular_values.len()).max().unwrap_or(0);
        let value = |i: usize| mean(modules, |s| f64::from(s.singular_values.get(i).copied().unwrap_or(0.0)));
        // What rounding left of a zero has no place among decades.
        let least = 1e-5 * value(0);
        let points = (0..longest).map(|i| (i as f64 + 1.0, value(i))).filter(|p| p.1 > least).collect();
        Series { name: kind.clone(), points, marks: true }
    });
    Figure {
        id: format!("spectrum-{number}"),
        title: "Singular values of ΔW.".into(),
        caption: caption(kinds.len(), "Means over the modules of a kind."),
        plot: Plot::Lines { x: Label::linear("i"), y: "σᵢ".into(), series: series.collect() },
    }
}

/// Where several blocks have modules.
fn norms_by_block(kinds: &[(String, Vec<&Spectrum>)], number: usize) -> Option<Figure> {
    let series: Vec<Series> = strongest(kinds)
        .into_iter()
        .filter_map(|(kind, modules)| {
            let mut blocks: Vec<usize> = modules.iter().filter_map(|s| block(&s.path)).collect();
            blocks.sort_unstable();
            blocks.dedup();
            let of = |number: usize| -> Vec<&Spectrum> {
                modules.iter().copied().filter(|s| block(&s.path) == Some(number)).collect()
            };
            let points = blocks.iter().map(|b| (*b as f64, mean(&of(*b), |s| s.norm))).collect();
            Some(Series { name: kind.clone(), points, marks: true }).filter(|_| blocks.len() > 1)
        })
        .collect();
    (!series.is_empty()).then(|| Figure {
        id: format!("norms-{number}"),
        title: "Norm of ΔW in each block.".into(),
        caption: caption(kinds.len(), ""),
        plot: Plot::Lines { x: Label::linear("block"), y: Label::linear("‖ΔW‖"), series },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn spectrum(path: &str, values: &[f32]) -> Spectrum {
        Spectrum {
            path: path.into(),
            shape: (4, 4),
            rank: values.len(),
            scaling: 2.0,
            singular_values: values.to_vec(),
            norm: values.iter().map(|s| f64::from(s * s)).sum::<f64>().sqrt(),
            effective_rank: 1.9,
            rank_99: 2,
        }
    }

    /// 30 blocks of 7 modules, as SmolLM2 has.
    fn many() -> Vec<Spectrum> {
        let kinds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let kinds = kinds.into_iter().chain(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
        let all = kinds.flat_map(|kind| (0..30).map(move |i| format!("model.layers.{i}.{kind}")));
        all.enumerate().map(|(i, path)| spectrum(&path, &[1.0 + i as f32 / 100.0, 0.5])).collect()
    }

    #[test]
    fn hundreds_of_modules_are_a_row_a_kind_and_folded() {
        let section = section("Adapter", &many(), 0);
        let kinds: Vec<&str> = section.tables[0].rows.iter().map(|row| row[0].text.as_str()).collect();
        let expected = ["down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"];
        assert_eq!(kinds, expected);
        assert!(section.tables[0].rows.iter().all(|row| row[1].value == Some(30.0)));
        // The largest of a kind is that of its last block here.
        assert!(section.tables[0].rows.iter().all(|row| row[4].text == "29"));
        assert!(section.tables[1].folded && section.tables[1].rows.len() == 210);
        for figure in &section.figures {
            let Plot::Lines { series, .. } = &figure.plot else { panic!("curves") };
            assert_eq!(series.len(), 7);
        }
        let Plot::Lines { series, .. } = &section.figures[1].plot else { panic!("curves") };
        assert!(series.iter().all(|s| s.points.len() == 30 && s.points[2].0 == 2.0));
    }

    #[test]
    fn layer_two_is_before_layer_ten() {
        let paths: Vec<String> =
            section("Adapter", &many(), 0).tables[1].rows.iter().map(|row| row[0].text.clone()).collect();
        let at = |block: usize| paths.iter().position(|p| p.contains(&format!("layers.{block}."))).unwrap();
        assert!(at(1) < at(2) && at(2) < at(10) && at(10) < at(29), "{paths:?}");
    }

    #[test]
    fn few_modules_are_listed_and_zeros_not_drawn() {
        let one = [spectrum("model.layers.0.q_proj", &[2.0, 1.0, 0.0])];
        let section = section("Adapter", &one, 0);
        assert!(!section.tables[1].folded && section.figures.len() == 1);
        let Plot::Lines { series, .. } = &section.figures[0].plot else { panic!("curves") };
        assert_eq!(series[0].points, [(1.0, 2.0), (2.0, 1.0)]);
    }

    #[test]
    fn the_page_of_an_adapter_is_whole() {
        let page = adapter_report("<x>", &[("format".into(), "peft & co".into())], &many()).page().unwrap();
        assert!(page.contains("&lt;x&gt;") && !page.contains("<x>") && page.contains("peft &amp; co"));
        assert!(page.contains("σ<sub>1</sub>") && page.contains("ΔW = (α/r)·BA"));
        assert!(page.contains("<details>") && page.matches("<figure").count() == 2);
    }
}
