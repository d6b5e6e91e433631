//! The spectrum of an adapter as text with bars and as a page of its own.

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

/// A page that needs nothing else: a table of the layers with the charts drawn.
pub fn html(title: &str, summary: &[(String, String)], spectra: &[Spectrum]) -> String {
    let largest = spectra.iter().map(|s| s.norm).fold(0.0, f64::max);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>\n\
         body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}\n\
         table {{ border-collapse: collapse }} td, th {{ padding: .15rem .7rem; text-align: right }}\n\
         td:first-child, th:first-child {{ text-align: left; font-family: monospace }}\n\
         tr:nth-child(even) {{ background: #f4f4f4 }} svg {{ display: block }} rect {{ fill: #3a6ea5 }}\n\
         @media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #1c1c1c }}\n\
         tr:nth-child(even) {{ background: #262626 }} rect {{ fill: #7fb0e0 }} }}\n\
         </style></head><body>\n<h1>{title}</h1>\n<p>",
        title = escaped(title)
    );
    for (name, value) in summary {
        let _ = write!(out, "{}: <b>{}</b> &nbsp; ", escaped(name), escaped(value));
    }
    out.push_str(
        "</p>\n<table><tr><th>layer</th><th>shape</th><th>norm</th><th></th><th>rank</th>\
         <th title=\"exponential of the entropy of the singular values\">used</th>\
         <th title=\"singular values with 99 % of the squares\">99 %</th><th>singular values</th></tr>\n",
    );
    for s in spectra {
        let share = if largest > 0.0 { s.norm / largest } else { 0.0 };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{} × {}</td><td>{:.4}</td><td><svg width=\"120\" height=\"12\">\
             <rect width=\"{:.1}\" height=\"12\"/></svg></td><td>{}</td><td>{:.1}</td><td>{}</td><td>",
            escaped(&s.path),
            s.shape.0,
            s.shape.1,
            s.norm,
            share * 120.0,
            s.rank,
            s.effective_rank,
            s.rank_99
        );
        drawn(&mut out, &s.singular_values);
        out.push_str("</td></tr>\n");
    }
    out.push_str("</table>\n</body></html>\n");
    out
}

fn drawn(out: &mut String, values: &[f32]) {
    let first = values.first().copied().unwrap_or(0.0);
    let width = (160.0 / values.len().max(1) as f64).clamp(1.0, 12.0);
    let _ = write!(out, "<svg width=\"{:.0}\" height=\"28\">", width * values.len() as f64);
    for (i, value) in values.iter().enumerate().filter(|_| first > 0.0) {
        let height = 28.0 * f64::from(value / first);
        let _ = write!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{value:.5}</title></rect>",
            i as f64 * width,
            28.0 - height,
            (width - 1.0).max(0.8)
        );
    }
    out.push_str("</svg>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
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

    #[test]
    fn the_page_is_whole_and_escapes_names() {
        let page = html("<x>", &[("r".into(), "4".into())], &[spectrum("a<b", &[2.0, 1.0])]);
        assert!(page.contains("a&lt;b") && page.contains("&lt;x&gt;") && !page.contains("<x>"));
        assert_eq!(page.matches("<rect ").count(), 3);
        assert!(page.ends_with("</html>\n"));
    }
}
