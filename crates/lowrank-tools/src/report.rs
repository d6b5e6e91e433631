//! The spectrum of an adapter as text with bars.

use std::fmt::Write;

use crate::compare::Spectrum;

/// Eighths of a bar.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of a spectrum's chart.
const COLUMNS: usize = 32;

/// One line a layer: norm with a bar, ranks, and the singular values as a chart.
pub fn text(spectra: &[Spectrum]) -> String {
    let width = spectra.iter().map(|s| s.path.chars().count()).max().unwrap_or(5).max(5);
    let largest = spectra.iter().map(|s| s.norm).fold(0.0, f64::max);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<width$}  {:>9}  {:<12}  {:>4}  {:>5}  {:>4}  singular values",
        "layer", "norm", "", "rank", "used", "99 %"
    );
    for s in spectra {
        let _ = writeln!(
            out,
            "{:<width$}  {:>9.4}  {:<12}  {:>4}  {:>5.1}  {:>4}  {}",
            s.path,
            s.norm,
            bar(if largest > 0.0 { s.norm / largest } else { 0.0 }, 12),
            s.rank,
            s.effective_rank,
            s.rank_99,
            chart(&s.singular_values)
        );
    }
    out
}

/// A bar of `width` columns for a share.
fn bar(share: f64, width: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    // Left-aligned eighths: full blocks, then a part.
    const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(PARTS[eighths % 8]);
    }
    bar
}

/// The values as a row of bars, the first one full; many values are averaged.
fn chart(values: &[f32]) -> String {
    let first = values.first().copied().unwrap_or(0.0);
    if first <= 0.0 {
        return String::new();
    }
    let columns = values.len().min(COLUMNS);
    let column = |i: usize| {
        let part = &values[i * values.len() / columns..(i + 1) * values.len() / columns];
        let mean = part.iter().sum::<f32>() / part.len() as f32;
        BARS[((mean / first * 8.0).ceil() as usize).clamp(1, 8)]
    };
    (0..columns).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spectrum(path: &str, values: &[f32]) -> Spectrum {
        Spectrum {
            path: path.into(),
            shape: (3, 4),
            rank: values.len(),
            scaling: 1.0,
            singular_values: values.to_vec(),
            norm: values.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt(),
            effective_rank: 1.5,
            rank_99: 1,
        }
    }

    #[test]
    fn charts_show_the_shares() {
        let found = text(&[spectrum("a.b", &[8.0, 4.0, 1.0]), spectrum("c", &[0.0])]);
        assert!(found.contains("█▄▁") && found.contains("████████████"), "{found}");
        assert_eq!(bar(0.5, 3), "█▌");
        assert_eq!(chart(&vec![1.0; 100]).chars().count(), COLUMNS);
    }
}
