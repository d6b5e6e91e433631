//! What ids of repositories may hold.

/// Whether a part of an id has letters, digits, `-`, `_`, `.` and `more` only, and leads nowhere else.
pub(super) fn is_plain(part: &str, more: &str) -> bool {
    part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c))
        && !part.is_empty()
        && !part.starts_with('.')
        && !part.contains("..")
        && !part.starts_with('/')
}
