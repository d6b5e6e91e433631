//! Colours that readers with any kind of colour vision tell apart.

use plotters::style::RGBColor;

/// Of curves; also told apart by their lightness.
pub(super) const SERIES: [RGBColor; 10] = [
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

/// Matplotlib's viridis, from 0 (dark blue) to 1 (yellow): even steps of lightness. What is no number is grey.
pub(super) fn viridis(value: f64) -> RGBColor {
    const STOPS: [(f64, f64, f64); 9] = [
        (68.0, 1.0, 84.0),
        (71.0, 44.0, 122.0),
        (59.0, 81.0, 139.0),
        (44.0, 113.0, 142.0),
        (33.0, 144.0, 141.0),
        (39.0, 173.0, 129.0),
        (92.0, 200.0, 99.0),
        (170.0, 220.0, 50.0),
        (253.0, 231.0, 37.0),
    ];
    if value.is_nan() {
        return RGBColor(128, 128, 128);
    }
    let at = value.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let i = (at as usize).min(STOPS.len() - 2);
    let (t, a, b) = (at - i as f64, STOPS[i], STOPS[i + 1]);
    let mix = |a: f64, b: f64| (a + t * (b - a)).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_numbers_are_lighter_in_grey_too() {
        let grey = |c: RGBColor| 0.2126 * f64::from(c.0) + 0.7152 * f64::from(c.1) + 0.0722 * f64::from(c.2);
        let all: Vec<f64> = (0..=40).map(|i| grey(viridis(f64::from(i) / 40.0))).collect();
        assert!(all.windows(2).all(|pair| pair[1] > pair[0]), "{all:?}");
        assert_eq!(viridis(-3.0), viridis(0.0));
        assert_ne!(viridis(f64::NAN), viridis(0.0));
    }
}
