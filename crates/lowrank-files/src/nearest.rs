//! Names that are not known.

use crate::error::shown_at_most;

/// An error about an unknown `word`: what it should name, the known names, and the nearest of them where one is near.
///
/// ```
/// let error = lowrank_files::unknown("scheduler", "cosin", ["linear", "cosine"]);
/// assert_eq!(error, "unknown scheduler \"cosin\": choose one of linear, cosine; did you mean cosine?");
/// ```
pub fn unknown<'a>(what: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = nearest(word, known.iter().copied());
    format!("unknown {what} \"{}\": choose one of {}{nearest}", shown_at_most(word, 200), known.join(", "))
}

/// The end of such an error: the nearest of the known names, where one is near.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // Its time is the square of the length, and no name is as long.
    let word = word.char_indices().nth(64).map_or(word, |(end, _)| &word[..end]);
    let likeness = known.into_iter().map(|name| (strsim::jaro_winkler(word, name), name));
    let near = likeness.filter(|(likeness, _)| *likeness > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    near.map_or_else(String::new, |(_, name)| format!("; did you mean {name}?"))
}
