//! Adapter folders with weights.

use std::path::PathBuf;

/// `DIR` or `DIR:WEIGHT`: an adapter folder and its weight, 1 where none is given.
pub fn weighted(text: &str) -> Result<(PathBuf, f32), String> {
    let whole = PathBuf::from(text);
    let Some((dir, weight)) = text.rsplit_once(':').filter(|_| !whole.exists()) else {
        return Ok((whole, 1.0));
    };
    match weight.parse::<f32>() {
        Ok(weight) if weight.is_finite() => Ok((dir.into(), weight)),
        _ => Err(format!("{weight:?} after the colon is not a weight, and {text} is not a folder")),
    }
}
