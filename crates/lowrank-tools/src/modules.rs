//! Paths of modules: their order, their block and their kind.

use std::cmp::Ordering;
use std::collections::HashMap;

/// The order in which people count: `layers.2` before `layers.10`.
pub fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (Some(x), Some(y)) = (a.chars().next(), b.chars().next()) else { return a.len().cmp(&b.len()) };
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (i, j) = (digits(a), digits(b));
        let order = if i > 0 && j > 0 {
            // Without leading zeros a longer number is a larger one.
            let (m, n) = (a[..i].trim_start_matches('0'), b[..j].trim_start_matches('0'));
            m.len().cmp(&n.len()).then_with(|| m.cmp(n)).then(i.cmp(&j))
        } else {
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (&a[i.max(x.len_utf8())..], &b[j.max(y.len_utf8())..]);
    }
}

/// Which block a module is in: the first number of its path.
pub fn block(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// What a module is in its block: the path behind the first number, other numbers left out.
fn place(path: &str) -> String {
    let is_number = |part: &&str| part.parse::<usize>().is_ok();
    let parts: Vec<&str> = path.split('.').collect();
    let begin = parts.iter().position(&is_number).map_or(0, |at| at + 1);
    let rest: Vec<&str> = parts[begin..].iter().copied().filter(|part| !is_number(part)).collect();
    if rest.is_empty() { path.to_owned() } else { rest.join(".") }
}

/// The modules by kind, such as `q_proj`, in the order of their first one, each with the indices of its modules. A name
/// that stands for two kinds has what goes before it: `attention.output.dense`, `output.dense`.
pub fn by_kind(paths: &[&str]) -> Vec<(String, Vec<usize>)> {
    let mut kinds: Vec<(String, Vec<usize>)> = Vec::new();
    let mut at = HashMap::new();
    for (i, path) in paths.iter().enumerate() {
        let place = place(path);
        let kind = *at.entry(place.clone()).or_insert_with(|| {
            kinds.push((place, Vec::new()));
            kinds.len() - 1
        });
        kinds[kind].1.push(i);
    }
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let mut count: HashMap<String, usize> = HashMap::new();
    for (name, _) in &kinds {
        *count.entry(last(name)).or_default() += 1;
    }
    for (name, _) in &mut kinds {
        let short = last(name);
        if count[&short] == 1 {
            *name = short;
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_and_not_spelled() {
        let mut names = ["run10", "run2", "layers.10.q", "layers.2.v", "layers.2.q", "run", "run02", "é"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["layers.2.q", "layers.2.v", "layers.10.q", "run", "run2", "run02", "run10", "é"]);
        assert_eq!(natural_order("a1b", "a1b"), Ordering::Equal);
    }

    #[test]
    fn modules_have_a_block_and_a_kind() {
        assert_eq!(block("model.layers.15.self_attn.q_proj"), Some(15));
        assert_eq!(block("lm_head"), None);
        let kinds = by_kind(&[
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.experts.3.up_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.mlp.experts.0.up_proj",
            "lm_head",
        ]);
        let found: Vec<_> = kinds.iter().map(|(name, at)| (name.as_str(), &at[..])).collect();
        assert_eq!(found, [("q_proj", &[0, 2][..]), ("up_proj", &[1, 3]), ("lm_head", &[4])]);
    }

    #[test]
    fn one_name_of_two_kinds_is_told_apart() {
        let kinds = by_kind(&["layer.0.attention.output.dense", "layer.0.output.dense", "layer.0.query"]);
        let names: Vec<&str> = kinds.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["attention.output.dense", "output.dense", "query"]);
    }
}
