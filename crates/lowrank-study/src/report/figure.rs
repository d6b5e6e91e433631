//! Figures: lines and heatmaps, drawn as SVG.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::table::line;
use crate::error::{Error, Result};

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its name in files: letters, digits and dashes.
    pub id: String,
    /// In one sentence.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// What is drawn.
    pub plot: Plot,
}

/// What is drawn.
#[derive(Clone, Debug)]
pub enum Plot {
    /// Curves.
    Lines {
        /// Of the horizontal axis.
        x_label: String,
        /// Of the vertical axis.
        y_label: String,
        /// Whether the horizontal axis is logarithmic (then every x is above 0).
        log_x: bool,
        /// The curves.
        series: Vec<Series>,
    },
    /// Numbers between 0 and 1 over two integers that count from 1.
    Heatmap {
        /// Of the horizontal axis, the columns.
        x_label: String,
        /// Of the vertical axis, the rows.
        y_label: String,
        /// `values[row][column]`.
        values: Vec<Vec<f64>>,
    },
}

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points in the order of x.
    pub points: Vec<(f64, f64)>,
    /// Whether to mark the points.
    pub marks: bool,
}

const SIZE: (u32, u32) = (760, 430);
/// Of the names beside curves.
const LEGEND: u32 = 210;
const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(29, 35, 48);
const RULE: RGBColor = RGBColor(221, 225, 232);
/// Told apart by readers who do not see red and green as different, and by lightness.
const SERIES: [RGBColor; 10] = [
    RGBColor(33, 85, 205),
    RGBColor(209, 73, 91),
    RGBColor(26, 147, 111),
    RGBColor(183, 121, 31),
    RGBColor(123, 79, 201),
    RGBColor(18, 131, 158),
    RGBColor(138, 109, 91),
    RGBColor(93, 102, 119),
    RGBColor(176, 60, 156),
    RGBColor(88, 122, 40),
];

impl Figure {
    /// The figure as SVG with its own colours.
    ///
    /// # Errors
    /// Where it cannot be drawn.
    pub fn svg(&self) -> Result<String> {
        let mut out = String::new();
        let root = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let drawn = root.fill(&PAPER).map_err(|e| e.to_string()).and_then(|()| match &self.plot {
            Plot::Lines { x_label, y_label, log_x, series } => {
                let x = span(series.iter().flat_map(|s| &s.points).map(|p| p.0), *log_x);
                let y = span(series.iter().flat_map(|s| &s.points).map(|p| p.1), false);
                let labels = (x_label.as_str(), y_label.as_str());
                if *log_x {
                    lines(&root, labels, (x.start..x.end).log_scale(), y, series)
                } else {
                    lines(&root, labels, x, y, series)
                }
            }
            Plot::Heatmap { x_label, y_label, values } => heatmap(&root, x_label, y_label, values),
        });
        drawn
            .and_then(|()| root.present().map_err(|e| e.to_string()))
            .map_err(|e| Error::Failed(format!("figure {} cannot be drawn: {e}", self.id)))?;
        drop(root);
        Ok(out)
    }

    /// The same with the colours of the page it is put into.
    pub(super) fn themed_svg(&self) -> Result<String> {
        let mut svg = self.svg()?;
        let mut theme = |color: RGBColor, name: String| {
            let hex = format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2);
            svg = svg.replace(&format!("\"{hex}\""), &format!("\"var(--{name})\""));
        };
        // No cell of a heatmap has one of these colours.
        theme(INK, "plot-ink".into());
        theme(RULE, "plot-rule".into());
        theme(PAPER, "plot-paper".into());
        if matches!(self.plot, Plot::Lines { .. }) {
            for (i, color) in SERIES.into_iter().enumerate() {
                theme(color, format!("s{i}"));
            }
        }
        // Two figures in one page must not share anything by name, and the size is the page's to choose.
        let (width, height) = SIZE;
        let title = self.title.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
        Ok(svg.replacen(
            &format!("<svg width=\"{width}\" height=\"{height}\""),
            &format!("<svg role=\"img\" aria-label=\"{title}\""),
            1,
        ))
    }

    /// The numbers behind it.
    pub fn csv(&self) -> String {
        let mut out = String::new();
        match &self.plot {
            Plot::Lines { x_label, y_label, series, .. } => {
                line(&mut out, ["series", x_label, y_label].into_iter());
                for s in series {
                    for (x, y) in &s.points {
                        line(&mut out, [s.name.as_str(), &x.to_string(), &y.to_string()].into_iter());
                    }
                }
            }
            Plot::Heatmap { x_label, y_label, values } => {
                line(&mut out, [y_label, x_label, "value"].into_iter());
                for (i, row) in values.iter().enumerate() {
                    for (j, value) in row.iter().enumerate() {
                        let cells = [(i + 1).to_string(), (j + 1).to_string(), value.to_string()];
                        line(&mut out, cells.iter().map(String::as_str));
                    }
                }
            }
        }
        out
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The range of an axis, a little wider than the numbers.
fn span(values: impl Iterator<Item = f64>, log: bool) -> Range<f64> {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return if log { 1.0..10.0 } else { 0.0..1.0 };
    }
    if log {
        return low / 1.1..high * 1.1;
    }
    let margin = if high > low { 0.04 * (high - low) } else { 0.5 * low.abs().max(1.0) };
    low - margin..high + margin
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn lines<X>(
    root: &Area<'_>,
    labels: (&str, &str),
    x: X,
    y: Range<f64>,
    series: &[Series],
) -> Result<(), String>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let error = |e: DrawingAreaErrorKind<_>| e.to_string();
    // Beside the curves, so that it hides none.
    let (plot, names) = match series.len() {
        0 | 1 => (root.clone(), None),
        _ => {
            let (plot, names) = root.split_horizontally(SIZE.0 - LEGEND);
            (plot, Some(names))
        }
    };
    let mut chart = ChartBuilder::on(&plot)
        .margin(12)
        .margin_right(20)
        .x_label_area_size(52)
        .y_label_area_size(76)
        .build_cartesian_2d(x, y)
        .map_err(error)?;
    chart
        .configure_mesh()
        .x_desc(labels.0)
        .y_desc(labels.1)
        .x_labels(6)
        .label_style(font(16))
        .axis_desc_style(font(17))
        .axis_style(INK)
        .bold_line_style(RULE)
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .draw()
        .map_err(error)?;
    for (i, s) in series.iter().enumerate() {
        let color = SERIES[i % SERIES.len()];
        let points = s.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite());
        chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2))).map_err(error)?;
        if s.marks {
            chart.draw_series(points.map(|p| Circle::new(p, 3, color.filled()))).map_err(error)?;
        }
    }
    let Some(names) = names else { return Ok(()) };
    for (i, s) in series.iter().enumerate() {
        let (color, y) = (SERIES[i % SERIES.len()], 24 + 26 * i as i32);
        names.draw(&PathElement::new([(0, y), (18, y)], color.stroke_width(3))).map_err(error)?;
        names.draw(&Text::new(s.name.clone(), (26, y - 9), font(16))).map_err(error)?;
    }
    Ok(())
}

fn heatmap(root: &Area<'_>, x_label: &str, y_label: &str, values: &[Vec<f64>]) -> Result<(), String> {
    let error = |e: DrawingAreaErrorKind<_>| e.to_string();
    let (rows, cols) = (values.len(), values.first().map_or(0, Vec::len));
    let (map, scale) = root.split_horizontally(SIZE.0 - 86);
    let mut chart = ChartBuilder::on(&map)
        .margin(12)
        .x_label_area_size(52)
        .y_label_area_size(60)
        .build_cartesian_2d(0.5..cols as f64 + 0.5, (rows as f64 + 0.5)..0.5)
        .map_err(error)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc(x_label)
        .y_desc(y_label)
        .label_style(font(16))
        .axis_desc_style(font(17))
        .axis_style(INK)
        .x_label_formatter(&whole)
        .y_label_formatter(&whole)
        .draw()
        .map_err(error)?;
    let cells = values.iter().enumerate().flat_map(|(i, row)| {
        row.iter().enumerate().map(move |(j, &value)| {
            let (x, y) = (j as f64 + 1.0, i as f64 + 1.0);
            Rectangle::new([(x - 0.5, y - 0.5), (x + 0.5, y + 0.5)], heat(value).filled())
        })
    });
    chart.draw_series(cells).map_err(error)?;

    let mut bar = ChartBuilder::on(&scale)
        .margin_top(12)
        .margin_bottom(64)
        .margin_right(8)
        .y_label_area_size(40)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)
        .map_err(error)?;
    bar.configure_mesh()
        .disable_mesh()
        .x_labels(0)
        .label_style(font(15))
        .axis_style(INK)
        .y_label_formatter(&short)
        .draw()
        .map_err(error)?;
    let steps = 32;
    bar.draw_series((0..steps).map(|i| {
        let at = |k: i32| f64::from(k) / f64::from(steps);
        Rectangle::new([(0.0, at(i)), (1.0, at(i + 1))], heat(at(i)).filled())
    }))
    .map_err(error)?;
    Ok(())
}

/// 0 dark blue, 1 light yellow: also in shades of grey the larger number is the lighter one.
fn heat(value: f64) -> RGBColor {
    const STOPS: [(f64, f64, f64); 5] = [
        (20.0, 24.0, 66.0),
        (42.0, 82.0, 138.0),
        (32.0, 144.0, 140.0),
        (122.0, 200.0, 92.0),
        (252.0, 230.0, 66.0),
    ];
    let at = value.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let i = (at as usize).min(STOPS.len() - 2);
    let (t, a, b) = (at - i as f64, STOPS[i], STOPS[i + 1]);
    let mix = |a: f64, b: f64| (a + t * (b - a)).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// A tick in few letters.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn short(value: &f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        format!("{}M", trim(value / 1e6))
    } else if size >= 1e4 {
        format!("{}k", trim(value / 1e3))
    } else if size != 0.0 && size < 1e-3 {
        format!("{value:.0e}")
    } else {
        trim(*value)
    }
}

/// The number of a row or column; nothing between them.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn whole(value: &f64) -> String {
    if value.fract().abs() < 1e-9 { format!("{value:.0}") } else { String::new() }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves() -> Figure {
        let points = (1..20).map(|i| (f64::from(i), 1.0 / f64::from(i))).collect();
        let series = vec![
            Series { name: "one".into(), points, marks: true },
            Series { name: "two & more".into(), points: vec![(1.0, 0.5), (19.0, f64::NAN)], marks: false },
        ];
        let plot = Plot::Lines { x_label: "step".into(), y_label: "loss".into(), log_x: true, series };
        Figure { id: "curves".into(), title: "Two <curves>".into(), caption: String::new(), plot }
    }

    #[test]
    fn curves_become_svg_with_the_pages_colours() {
        let figure = curves();
        let svg = figure.svg().unwrap();
        assert!(svg.contains("<polyline") && svg.contains("two &amp; more"), "{svg}");
        let themed = figure.themed_svg().unwrap();
        assert!(themed.contains("var(--s0)") && themed.contains("var(--plot-ink)"));
        assert!(themed.contains("aria-label=\"Two &lt;curves>\""), "{themed}");
        assert!(!themed.contains("#2155CD"));
        assert_eq!(figure.csv().lines().count(), 1 + 19 + 2);
    }

    #[test]
    fn heatmaps_have_a_cell_for_every_number() {
        let values = vec![vec![0.0, 0.25, 0.5], vec![0.5, 0.75, 1.0]];
        let plot = Plot::Heatmap { x_label: "j".into(), y_label: "i".into(), values };
        let figure = Figure { id: "h".into(), title: "h".into(), caption: String::new(), plot };
        let svg = figure.svg().unwrap();
        assert!(svg.matches("<rect").count() > 6, "{svg}");
        assert!(figure.csv().contains("2,3,1\n"));
        // On a dark page, paper and letters change together.
        let themed = figure.themed_svg().unwrap();
        assert!(themed.contains("var(--plot-paper)") && !themed.contains("\"#FFFFFF\""), "{themed}");
    }

    #[test]
    fn an_empty_figure_is_drawn_too() {
        let mut figure = curves();
        let Plot::Lines { series, .. } = &mut figure.plot else { unreachable!() };
        series.clear();
        figure.svg().unwrap();
    }

    #[test]
    fn ticks_are_short() {
        assert_eq!([0.5, 1.0, 12.0].map(|v| whole(&v)), ["", "1", "12"]);
        assert_eq!(
            [0.0, 1.5, 12.0, 25_000.0, 2e6, 2e-4].map(|v| short(&v)),
            ["0", "1.5", "12", "25k", "2M", "2e-4"]
        );
    }
}
