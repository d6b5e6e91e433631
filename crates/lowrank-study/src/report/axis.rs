//! Axes: their bounds, their ticks and how these are written.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// How an axis counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Powers of ten; every value is above 0.
    Log,
    /// [`Scale::Log`] where all values are above 0 and the largest is a hundred times the smallest.
    #[default]
    Auto,
}

/// An axis over some values.
pub(super) struct Axis {
    /// From where to where, in the numbers that are drawn.
    pub range: Range<f64>,
    /// Where the ticks are, in these numbers, and what is written there.
    pub ticks: Vec<(f64, String)>,
    log: bool,
}

impl Axis {
    /// The axis of `values`, a little wider than they are, with about `count` ticks.
    pub fn new(values: impl Iterator<Item = f64>, scale: Scale, count: usize) -> Self {
        let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
        let (low, high) = values
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
        let whole = values.iter().all(|v| v.fract() == 0.0);
        let log = match scale {
            Scale::Linear => false,
            Scale::Log => low > 0.0,
            Scale::Auto => low > 0.0 && high >= 100.0 * low,
        };
        match log && low <= high {
            true => Self::log(low, high, count),
            false => Self::linear(low, high, count, whole),
        }
    }

    /// The axis that ends with its values, such as that of a colour bar.
    pub fn exact(range: Range<f64>, count: usize) -> Self {
        let step = step(range.end - range.start, count, false);
        Self { ticks: linear_ticks(&range, step), range, log: false }
    }

    fn linear(low: f64, high: f64, count: usize, whole: bool) -> Self {
        let (low, high) = match low.partial_cmp(&high) {
            Some(std::cmp::Ordering::Less) => {
                let margin = 0.04 * (high - low);
                // What is never negative has no axis below 0.
                (if low >= 0.0 { (low - margin).max(0.0) } else { low - margin }, high + margin)
            }
            // One value, or none.
            Some(std::cmp::Ordering::Equal) if low != 0.0 => (low - 0.1 * low.abs(), low + 0.1 * low.abs()),
            Some(std::cmp::Ordering::Equal) => (-1.0, 1.0),
            _ => (0.0, 1.0),
        };
        let range = low..high;
        Self { ticks: linear_ticks(&range, step(high - low, count, whole)), range, log: false }
    }

    fn log(low: f64, high: f64, count: usize) -> Self {
        let margin = (0.04 * (high / low).log10()).max(0.04);
        let range = low.log10() - margin..high.log10() + margin;
        let powers = range.start.floor() as i32..=range.end.ceil() as i32;
        let of = |factors: &[f64]| -> Vec<f64> {
            let all = powers.clone().flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p)));
            all.filter(|v| range.contains(&v.log10())).collect()
        };
        let mut values = of(&[1.0, 2.0, 5.0]);
        if values.len() > count {
            values = of(&[1.0]);
            let every = values.len().div_ceil(count.max(1));
            values = values.into_iter().step_by(every).collect();
        }
        // One way of writing for all.
        let powers = values.first().is_some_and(|least| *least < 0.999e-3);
        let ticks = values.into_iter().map(|v| (v.log10(), alone(v, powers))).collect();
        Self { range, ticks, log: true }
    }

    /// The same for the drawing.
    pub fn ticked(&self) -> Ticked {
        Ticked { range: self.range.clone(), ticks: self.ticks.iter().map(|tick| tick.0).collect() }
    }

    /// Where a value is drawn; none where it cannot be.
    pub fn at(&self, value: f64) -> Option<f64> {
        let at = if self.log { value.log10() } else { value };
        at.is_finite().then_some(at)
    }

    /// The text of the tick at `at`.
    pub fn label(&self, at: f64) -> String {
        let near = |tick: &&(f64, String)| (tick.0 - at).abs() <= 1e-9 * (1.0 + at.abs());
        self.ticks.iter().find(near).map_or_else(String::new, |tick| tick.1.clone())
    }
}

/// A range with its ticks at given places.
pub(super) struct Ticked {
    pub range: Range<f64>,
    pub ticks: Vec<f64>,
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (begin, end): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        begin + (f64::from(end - begin) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// 1, 2 or 5 times a power of ten, such that `width` has about `count` of them.
fn step(width: f64, count: usize, whole: bool) -> f64 {
    let raw = width / count.max(1) as f64;
    if !(raw > 0.0 && raw.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(raw.log10().floor());
    // Rather a few more than one or two.
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= 0.7 * raw).unwrap_or(10.0);
    let step = factor * power;
    if whole { step.max(1.0) } else { step }
}

fn linear_ticks(range: &Range<f64>, step: f64) -> Vec<(f64, String)> {
    let slack = 1e-6 * step;
    let first = ((range.start - slack) / step).ceil() as i64;
    let last = ((range.end + slack) / step).floor() as i64;
    // Each from its number: sums would drift.
    let values: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
    let texts = together(&values, step);
    values.into_iter().zip(texts).collect()
}

/// Ticks of one axis with one unit, and with as many decimals as their step has.
fn together(values: &[f64], step: f64) -> Vec<String> {
    let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let decimals = |step: f64| (-(step * 1.0001).log10().floor()).clamp(0.0, 9.0) as usize;
    let (unit, suffix) = unit(largest);
    let text = |v: &f64| match *v {
        v if v.abs() < 1e-9 * step => "0".to_owned(),
        v if largest < 1e-3 => {
            let power = 10f64.powf(largest.log10().floor());
            format!(
                "{:.*}{}",
                decimals(step / power),
                v / power,
                times_ten_to(largest.log10().floor() as i32)
            )
        }
        v => format!("{:.*}{suffix}", decimals(step / unit), v / unit),
    };
    values.iter().map(|v| text(v).replace('-', "−")).collect()
}

/// One value in few digits, with `powers` as a power of ten where it is below 1.
fn alone(value: f64, powers: bool) -> String {
    // A power of ten may be a hair below itself.
    if powers && value < 0.999 {
        let power = (value.log10() + 1e-9).floor();
        let factor = (value / 10f64.powf(power)).round();
        return if factor == 1.0 {
            times_ten_to(power as i32)[2..].to_owned()
        } else {
            format!("{factor}{}", times_ten_to(power as i32))
        };
    }
    let (unit, suffix) = unit(10.0 * value);
    let text = format!("{:.4}", value / unit);
    format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A learning rate or the like, such as `2×10⁻⁴`.
pub fn power_of_ten(value: f64) -> String {
    let text = format!("{value:e}");
    match text.split_once('e').map(|(factor, power)| (factor.to_owned(), power.parse::<i32>())) {
        Some((factor, Ok(power))) if !(0..=2).contains(&power) => format!("{factor}{}", times_ten_to(power)),
        _ => value.to_string(),
    }
}

/// The unit that values up to `largest` are written in.
fn unit(largest: f64) -> (f64, &'static str) {
    match largest {
        l if l >= 1e10 => (1e9, "G"),
        l if l >= 1e7 => (1e6, "M"),
        l if l >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    }
}

/// `×10⁻⁴`.
fn times_ten_to(power: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let digit = |c: char| c.to_digit(10).map_or('⁻', |d| DIGITS[d as usize]);
    format!("×10{}", power.to_string().chars().map(digit).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[f64], scale: Scale, count: usize) -> Vec<String> {
        Axis::new(values.iter().copied(), scale, count).ticks.into_iter().map(|tick| tick.1).collect()
    }

    #[test]
    fn an_axis_begins_and_ends_near_its_values() {
        let axis = Axis::new([2.31, 2.78].into_iter(), Scale::Auto, 5);
        assert!(axis.range.start > 2.25 && axis.range.end < 2.85, "{:?}", axis.range);
        assert_eq!(texts(&[2.31, 2.78], Scale::Auto, 5), ["2.3", "2.4", "2.5", "2.6", "2.7"]);
        // What is never negative has no axis below 0, and what is has.
        assert_eq!(Axis::new([0.0, 5.0].into_iter(), Scale::Auto, 5).range.start, 0.0);
        assert!(Axis::new([-1.0, 5.0].into_iter(), Scale::Auto, 5).range.start < -1.0);
    }

    #[test]
    fn ticks_have_no_digits_that_say_nothing() {
        assert_eq!(texts(&[0.1, 0.3], Scale::Linear, 4), ["0.10", "0.15", "0.20", "0.25", "0.30"]);
        assert_eq!(texts(&[0.0, 0.0006], Scale::Linear, 3), ["0", "2×10⁻⁴", "4×10⁻⁴", "6×10⁻⁴"]);
        assert_eq!(texts(&[0.0, 60_000.0], Scale::Linear, 3), ["0", "20k", "40k", "60k"]);
        assert_eq!(texts(&[-0.2, 0.2], Scale::Linear, 3), ["−0.2", "0", "0.2"]);
        // Steps of training are whole.
        assert_eq!(texts(&[1.0, 2.0, 3.0], Scale::Linear, 6), ["1", "2", "3"]);
    }

    #[test]
    fn decades_have_an_axis_of_powers() {
        assert_eq!(texts(&[1e-4, 2e-1], Scale::Auto, 6), ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
        assert_eq!(texts(&[1.0, 99.0], Scale::Auto, 3)[0], "0");
        assert_eq!(texts(&[2e5, 3e8], Scale::Auto, 5), ["1M", "10M", "100M"]);
        // Zeros have no place on such an axis, so it is not taken for them.
        assert_eq!(texts(&[0.0, 1e4], Scale::Auto, 2), ["0", "5k", "10k"]);
        let one = Axis::new([3e-5, 3e-1].into_iter(), Scale::Log, 5);
        assert_eq!(one.at(0.0), None);
        assert_eq!(one.label(one.at(0.01).unwrap()), "10⁻²");
        assert_eq!(texts(&[0.02, 3.0], Scale::Auto, 3), ["0.1", "1"]);
    }

    #[test]
    fn rates_are_powers_of_ten() {
        assert_eq!([2e-4, 0.0015, 12.0, 0.0].map(power_of_ten), ["2×10⁻⁴", "1.5×10⁻³", "12", "0"]);
    }

    #[test]
    fn one_value_and_none_have_an_axis_too() {
        assert_eq!(texts(&[5.0], Scale::Auto, 4), ["5"]);
        assert!(!texts(&[], Scale::Log, 4).is_empty() && !texts(&[f64::NAN], Scale::Auto, 4).is_empty());
        let exact = Axis::exact(0.02..0.19, 4);
        assert_eq!((exact.range.start, exact.range.end), (0.02, 0.19));
    }
}
