//! Figures: lines and heat maps, drawn as SVG.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::axis::{Axis, Scale, Ticked};
use super::colors::{SERIES, viridis};
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
        x: Label,
        /// Of the vertical axis.
        y: Label,
        /// The curves.
        series: Vec<Series>,
    },
    /// Numbers over two integers that count from 1.
    Heatmap {
        /// Of the horizontal axis, the columns.
        x_label: String,
        /// Of the vertical axis, the rows.
        y_label: String,
        /// Of the values, beside the colour bar.
        value_label: String,
        /// `values[row][column]`.
        values: Vec<Vec<f64>>,
        /// The smallest and the largest number of the colours, where figures share them; else those of the values.
        bounds: Option<(f64, f64)>,
    },
}

/// What an axis shows and how it counts.
#[derive(Clone, Debug)]
pub struct Label {
    /// What it shows, with its unit.
    pub text: String,
    /// How it counts.
    pub scale: Scale,
}

impl From<&str> for Label {
    /// In powers of ten where the values span decades.
    fn from(text: &str) -> Self {
        Self { text: text.into(), scale: Scale::Auto }
    }
}

impl Label {
    /// Of an axis in equal steps.
    pub fn linear(text: &str) -> Self {
        Self { text: text.into(), scale: Scale::Linear }
    }
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

/// A width to draw for: the text is of one size in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Half of a page on a screen, and the files.
    Wide,
    /// A phone.
    Narrow,
}

impl Width {
    fn pixels(self) -> u32 {
        match self {
            Self::Wide => 540,
            Self::Narrow => 350,
        }
    }

    /// Of the part with the axes.
    fn plot_height(self) -> u32 {
        match self {
            Self::Wide => 300,
            Self::Narrow => 240,
        }
    }

    /// Ticks of the horizontal axis.
    fn ticks(self) -> usize {
        match self {
            Self::Wide => 6,
            Self::Narrow => 4,
        }
    }
}

/// Pixels of the text.
const TEXT: f64 = 14.0;
/// Pixels of a letter, about.
const LETTER: f64 = 7.3;
/// Pixels from one line of text to the next.
const LINE: u32 = 22;
/// Points of a curve at most: more than there are pixels to draw them.
const POINTS: usize = 700;
const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(29, 35, 48);
const RULE: RGBColor = RGBColor(221, 225, 232);

impl Figure {
    /// The figure as SVG with its own colours.
    ///
    /// # Errors
    /// Where it cannot be drawn.
    pub fn svg(&self) -> Result<String> {
        Ok(self.draw(Width::Wide)?.0)
    }

    /// The SVG and its size.
    fn draw(&self, width: Width) -> Result<(String, (u32, u32))> {
        let pixels = width.pixels();
        let (size, legend) = match &self.plot {
            Plot::Lines { series, .. } => {
                let legend = legend(series, pixels);
                (
                    (
                        pixels,
                        width.plot_height() + LINE * legend.iter().map(|e| e.line + 1).max().unwrap_or(0),
                    ),
                    legend,
                )
            }
            Plot::Heatmap { values, .. } => ((pixels, map_height(values, width) + BAR), Vec::new()),
        };
        let mut out = String::new();
        let root = SVGBackend::with_string(&mut out, size).into_drawing_area();
        let drawn = root.fill(&PAPER).map_err(|e| e.to_string()).and_then(|()| match &self.plot {
            Plot::Lines { x, y, series } => {
                let (plot, names) = root.split_vertically(width.plot_height());
                lines(&plot, width, x, y, series)?;
                legend.iter().try_for_each(|entry| entry.draw(&names))
            }
            Plot::Heatmap { x_label, y_label, value_label, values, bounds } => {
                let (map, bar) = root.split_vertically(map_height(values, width));
                let (low, high) = bounds.unwrap_or_else(|| bounds_of([values]));
                heatmap(&map, width, (x_label, y_label), values, (low, high))?;
                color_bar(&bar, width, value_label, (low, high))
            }
        });
        drawn
            .and_then(|()| root.present().map_err(|e| e.to_string()))
            .map_err(|e| Error::Failed(format!("figure {} cannot be drawn: {e}", self.id)))?;
        drop(root);
        Ok((out, size))
    }

    /// The same with the colours of the page it is put into, and one style for its text.
    pub(super) fn themed_svg(&self, width: Width) -> Result<String> {
        let (mut svg, (w, h)) = self.draw(width)?;
        let mut theme = |color: RGBColor, name: String| {
            let hex = format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2);
            svg = svg.replace(&format!("\"{hex}\""), &format!("\"var(--{name})\""));
        };
        // No cell of a heat map has one of these colours.
        theme(INK, "plot-ink".into());
        theme(RULE, "plot-rule".into());
        theme(PAPER, "plot-paper".into());
        if matches!(self.plot, Plot::Lines { .. }) {
            for (i, color) in SERIES.into_iter().enumerate() {
                theme(color, format!("s{i}"));
            }
        }
        // Two figures in one page must not share anything by name, and the size is the page's to choose.
        let title = escaped(&self.title);
        Ok(svg.replacen(
            &format!("<svg width=\"{w}\" height=\"{h}\""),
            &format!("<svg role=\"img\" aria-label=\"{title}\""),
            1,
        ))
    }

    /// The numbers behind it.
    pub fn csv(&self) -> String {
        let mut out = String::new();
        match &self.plot {
            Plot::Lines { x, y, series } => {
                line(&mut out, ["series", &x.text, &y.text].into_iter());
                for s in series {
                    for (x, y) in &s.points {
                        line(&mut out, [s.name.as_str(), &x.to_string(), &y.to_string()].into_iter());
                    }
                }
            }
            Plot::Heatmap { x_label, y_label, values, .. } => {
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

/// The smallest and the largest number of maps.
pub fn bounds_of<'a>(maps: impl IntoIterator<Item = &'a Vec<Vec<f64>>>) -> (f64, f64) {
    let values = maps.into_iter().flatten().flatten().filter(|v| v.is_finite());
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    match low < high {
        true => (low, high),
        // One number, or none.
        false if low.is_finite() => (low - 0.5, low + 0.5),
        false => (0.0, 1.0),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// An error of drawing, in words.
fn told<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> String {
    error.to_string()
}

/// Text of the one size: SVG's sizes are of other units than the library's.
fn font() -> TextStyle<'static> {
    ("sans-serif", TEXT * 1.24).into_font().color(&INK)
}

/// Where a curve's name stands below the plot.
struct LegendEntry {
    name: String,
    color: RGBColor,
    x: i32,
    line: u32,
}

impl LegendEntry {
    fn draw(&self, area: &Area<'_>) -> std::result::Result<(), String> {
        let y = (self.line * LINE + LINE / 2) as i32;
        area.draw(&PathElement::new([(self.x, y), (self.x + 18, y)], self.color.stroke_width(4)))
            .map_err(told)?;
        area.draw(&Text::new(self.name.clone(), (self.x + 24, y - 8), font())).map_err(told)
    }
}

/// The names of several curves, in as many lines as they need; a name that is too long for one has its middle left out.
fn legend(series: &[Series], pixels: u32) -> Vec<LegendEntry> {
    if series.len() < 2 {
        return Vec::new();
    }
    let right = f64::from(pixels) - 8.0;
    let (mut x, mut line) = (12.0, 0);
    let mut entries = Vec::new();
    for (i, s) in series.iter().enumerate() {
        let name = shortened(&s.name, ((right - 36.0) / LETTER) as usize);
        let width = 24.0 + LETTER * name.chars().count() as f64 + 16.0;
        if x > 12.0 && x + width > right {
            (x, line) = (12.0, line + 1);
        }
        entries.push(LegendEntry { name, color: SERIES[i % SERIES.len()], x: x as i32, line });
        x += width;
    }
    entries
}

fn shortened(name: &str, most: usize) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= most {
        return name.to_owned();
    }
    let half = most.saturating_sub(1) / 2;
    let (begin, end) = (&letters[..half], &letters[letters.len() - half..]);
    begin.iter().chain(&['…']).chain(end).collect()
}

fn lines(
    root: &Area<'_>,
    width: Width,
    x: &Label,
    y: &Label,
    series: &[Series],
) -> std::result::Result<(), String> {
    let points = || series.iter().flat_map(|s| &s.points).filter(|p| p.0.is_finite() && p.1.is_finite());
    let across = Axis::new(points().map(|p| p.0), x.scale, width.ticks());
    let up = Axis::new(points().map(|p| p.1), y.scale, 5);
    let longest = up.ticks.iter().map(|tick| tick.1.chars().count()).max().unwrap_or(1);
    let mut chart = ChartBuilder::on(root)
        .margin_top(30)
        .margin_right(22)
        .margin_left(6)
        .x_label_area_size(50)
        .y_label_area_size((LETTER * longest as f64) as u32 + 14)
        .build_cartesian_2d(across.ticked(), up.ticked())
        .map_err(told)?;
    chart
        .configure_mesh()
        .x_desc(x.text.as_str())
        .label_style(font())
        .axis_desc_style(font())
        .axis_style(INK)
        .bold_line_style(RULE)
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|at| across.label(*at))
        .y_label_formatter(&|at| up.label(*at))
        .draw()
        .map_err(told)?;
    // Across, where it is read without turning the head.
    root.draw(&Text::new(y.text.clone(), (8, 4), font())).map_err(told)?;
    for (i, s) in series.iter().enumerate() {
        let color = SERIES[i % SERIES.len()];
        let points: Vec<(f64, f64)> =
            s.points.iter().filter_map(|p| Some((across.at(p.0)?, up.at(p.1)?))).collect();
        let every = points.len().div_ceil(POINTS).max(1);
        let last = points.len().saturating_sub(1);
        let drawn = points.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last).map(|(_, p)| *p);
        chart.draw_series(LineSeries::new(drawn.clone(), color.stroke_width(2))).map_err(told)?;
        if s.marks {
            chart.draw_series(drawn.map(|p| Circle::new(p, 3, color.filled()))).map_err(told)?;
        }
    }
    Ok(())
}

/// Pixels of a colour bar with its ticks.
const BAR: u32 = 72;
/// Pixels beside and below a map.
const LEFT: u32 = 46;
const BELOW: u32 = 50;

/// The height of a map whose cells are nearly as high as wide, within bounds.
fn map_height(values: &[Vec<f64>], width: Width) -> u32 {
    let (rows, cols) = (values.len().max(1) as f64, values.first().map_or(1, Vec::len).max(1) as f64);
    let cell = (f64::from(width.pixels() - LEFT - 22) / cols).min(36.0);
    let most = f64::from(width.pixels()) * 0.8;
    (rows * cell).clamp(70.0, most) as u32 + 30 + BELOW
}

fn heatmap(
    root: &Area<'_>,
    width: Width,
    (x_label, y_label): (&str, &str),
    values: &[Vec<f64>],
    (low, high): (f64, f64),
) -> std::result::Result<(), String> {
    let (rows, cols) = (values.len(), values.first().map_or(0, Vec::len));
    let mut chart = ChartBuilder::on(root)
        .margin_top(30)
        .margin_right(22)
        .x_label_area_size(BELOW)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(
            Ticked { range: 0.5..cols as f64 + 0.5, ticks: counted(cols, width.ticks()) },
            Ticked { range: rows as f64 + 0.5..0.5, ticks: counted(rows, 5) },
        )
        .map_err(told)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc(x_label)
        .label_style(font())
        .axis_desc_style(font())
        .axis_style(INK)
        .x_label_formatter(&|at| format!("{at:.0}"))
        .y_label_formatter(&|at| format!("{at:.0}"))
        .draw()
        .map_err(told)?;
    root.draw(&Text::new(y_label.to_owned(), (8, 4), font())).map_err(told)?;
    let cells = values.iter().enumerate().flat_map(|(i, row)| {
        row.iter().enumerate().map(move |(j, &value)| {
            let (x, y) = (j as f64 + 1.0, i as f64 + 1.0);
            let color = viridis((value - low) / (high - low));
            Rectangle::new([(x - 0.5, y - 0.5), (x + 0.5, y + 0.5)], color.filled())
        })
    });
    chart.draw_series(cells).map(drop).map_err(told)
}

/// 1 and round numbers up to `count`.
fn counted(count: usize, ticks: usize) -> Vec<f64> {
    let step = [1, 2, 5, 10, 20, 50, 100, 200, 500].into_iter().find(|s| count <= s * ticks).unwrap_or(1000);
    (1..=count).filter(|i| *i == 1 || (i % step == 0 && 4 * (i - 1) >= 3 * step)).map(|i| i as f64).collect()
}

/// The colours of a map with their numbers, below it.
fn color_bar(
    root: &Area<'_>,
    width: Width,
    label: &str,
    (low, high): (f64, f64),
) -> std::result::Result<(), String> {
    let axis = Axis::exact(low..high, width.ticks());
    root.draw(&Text::new(label.to_owned(), (LEFT as i32, 2), font())).map_err(told)?;
    let mut bar = ChartBuilder::on(root)
        .margin_top(22)
        .margin_left(LEFT)
        .margin_right(22)
        .x_label_area_size(32)
        .build_cartesian_2d(axis.ticked(), 0.0..1.0)
        .map_err(told)?;
    bar.configure_mesh()
        .disable_mesh()
        .y_labels(0)
        .label_style(font())
        .axis_style(INK)
        .x_label_formatter(&|at| axis.label(*at))
        .draw()
        .map_err(told)?;
    let steps = 64;
    let at = |i: i32| low + (high - low) * f64::from(i) / f64::from(steps);
    let color = |i: i32| viridis((f64::from(i) + 0.5) / f64::from(steps));
    let part = |i: i32| Rectangle::new([(at(i), 0.0), (at(i + 1), 1.0)], color(i).filled());
    bar.draw_series((0..steps).map(part)).map(drop).map_err(told)
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
        let plot = Plot::Lines { x: "step".into(), y: "loss".into(), series };
        Figure { id: "curves".into(), title: "Two <curves>".into(), caption: String::new(), plot }
    }

    fn map(values: Vec<Vec<f64>>, bounds: Option<(f64, f64)>) -> Figure {
        let plot = Plot::Heatmap {
            x_label: "j".into(),
            y_label: "i".into(),
            value_label: "φ(i, j)".into(),
            values,
            bounds,
        };
        Figure { id: "h".into(), title: "h".into(), caption: String::new(), plot }
    }

    /// The texts of an SVG.
    fn texts(svg: &str) -> Vec<String> {
        let parts = svg.split("<text ").skip(1);
        parts
            .map(|part| part.split_once('>').unwrap().1.split('<').next().unwrap().trim().to_owned())
            .collect()
    }

    #[test]
    fn curves_become_svg_with_the_pages_colours() {
        let figure = curves();
        let svg = figure.svg().unwrap();
        assert!(svg.contains("<polyline") && svg.contains("two &amp; more"), "{svg}");
        let themed = figure.themed_svg(Width::Wide).unwrap();
        assert!(themed.contains("var(--s0)") && themed.contains("var(--plot-ink)"));
        assert!(themed.contains("aria-label=\"Two &lt;curves>\""), "{themed}");
        assert!(!themed.contains("#2155CD"));
        assert_eq!(figure.csv().lines().count(), 1 + 19 + 2);
    }

    #[test]
    fn text_is_of_one_size_at_every_width() {
        for width in [Width::Wide, Width::Narrow] {
            let svg = curves().themed_svg(width).unwrap();
            assert!(svg.contains(&format!("viewBox=\"0 0 {} ", width.pixels())), "{svg}");
            let sizes: Vec<&str> =
                svg.split("font-size=\"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
            assert!(!sizes.is_empty() && sizes.iter().all(|s| *s == "14"), "{sizes:?}");
        }
    }

    #[test]
    fn a_legend_is_below_the_plot_and_within_the_figure() {
        let mut figure = curves();
        let Plot::Lines { series, .. } = &mut figure.plot else { unreachable!() };
        for i in 0..8 {
            series.push(Series {
                name: format!("a run with a name, {i}"),
                points: vec![(1.0, 1.0)],
                marks: false,
            });
        }
        series.push(Series { name: "x".repeat(200), points: vec![(1.0, 1.0)], marks: false });
        for width in [Width::Wide, Width::Narrow] {
            let Plot::Lines { series, .. } = &figure.plot else { unreachable!() };
            let entries = legend(series, width.pixels());
            let end = |e: &LegendEntry| f64::from(e.x) + 24.0 + LETTER * e.name.chars().count() as f64;
            assert!(entries.iter().all(|e| end(e) <= f64::from(width.pixels())), "{width:?}");
            assert!(entries.last().unwrap().line >= 4 && entries.last().unwrap().name.contains('…'));
            let height = width.plot_height() + LINE * (entries.last().unwrap().line + 1);
            assert_eq!(figure.draw(width).unwrap().1, (width.pixels(), height));
        }
    }

    #[test]
    fn maps_have_a_cell_for_every_number_and_the_scale_of_their_data() {
        let figure = map(vec![vec![0.02, 0.05, 0.08], vec![0.05, 0.1, 0.12]], None);
        let svg = figure.svg().unwrap();
        assert_eq!(svg.matches("<rect").count(), 1 + 6 + 64, "{svg}");
        let found = texts(&svg);
        for text in ["φ(i, j)", "0.02", "0.12", "i", "j", "1", "2", "3"] {
            assert!(found.iter().any(|t| t == text), "{text}: {found:?}");
        }
        assert!(!found.iter().any(|t| t == "1.0" || t == "0.5"), "{found:?}");
        // The ends of the colours are those of the data.
        for color in [viridis(0.0), viridis(1.0)] {
            let hex = format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2);
            assert!(svg.contains(&hex), "{hex}");
        }
        assert!(figure.csv().contains("2,3,0.12\n"));
        // Maps that are compared have one scale.
        let shared = map(vec![vec![0.2, 0.3]], Some((0.0, 1.0))).svg().unwrap();
        assert!(texts(&shared).iter().any(|t| t == "1.0"), "{shared}");
        // On a dark page, paper and letters change together.
        let themed = figure.themed_svg(Width::Narrow).unwrap();
        assert!(themed.contains("var(--plot-paper)") && !themed.contains("\"#FFFFFF\""), "{themed}");
    }

    #[test]
    fn empty_figures_are_drawn_too() {
        let mut figure = curves();
        let Plot::Lines { series, .. } = &mut figure.plot else { unreachable!() };
        series.clear();
        figure.svg().unwrap();
        map(vec![vec![0.5]], None).svg().unwrap();
        map(vec![vec![f64::NAN]], None).svg().unwrap();
    }

    #[test]
    fn long_curves_are_thinned() {
        let mut figure = curves();
        let Plot::Lines { series, .. } = &mut figure.plot else { unreachable!() };
        *series = vec![Series {
            name: "long".into(),
            points: (0..100_000).map(|i| (f64::from(i), f64::from(i % 7))).collect(),
            marks: false,
        }];
        assert!(figure.svg().unwrap().len() < 40_000);
        assert_eq!(figure.csv().lines().count(), 100_001);
    }

    #[test]
    fn rows_are_counted_in_round_numbers() {
        assert_eq!(counted(4, 6), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(counted(32, 6), [1.0, 10.0, 20.0, 30.0]);
        // No number stands on another.
        assert_eq!(counted(8, 5), [1.0, 4.0, 6.0, 8.0]);
        assert!(counted(0, 6).is_empty());
    }
}
