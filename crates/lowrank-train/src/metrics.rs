//! Metrics of classification and regression, as scikit-learn, SciPy and seqeval define them.

use std::collections::BTreeSet;

/// Share of equal places.
pub fn accuracy<T: PartialEq>(predicted: &[T], gold: &[T]) -> f64 {
    let same = predicted.iter().zip(gold).filter(|(a, b)| a == b).count();
    same as f64 / gold.len().max(1) as f64
}

/// `2 tp / (2 tp + fp + fn)` of one class; 0 where it neither is nor is predicted.
pub fn f1(predicted: &[u32], gold: &[u32], class: u32) -> f64 {
    let count = |of: &dyn Fn(bool, bool) -> bool| {
        predicted.iter().zip(gold).filter(|(p, g)| of(**p == class, **g == class)).count() as f64
    };
    let (hit, wrong) = (count(&|p, g| p && g), count(&|p, g| p != g));
    if hit == 0.0 { 0.0 } else { 2.0 * hit / (2.0 * hit + wrong) }
}

/// Mean of the F1 of every class that is or is predicted.
pub fn f1_macro(predicted: &[u32], gold: &[u32]) -> f64 {
    let classes: BTreeSet<u32> = predicted.iter().chain(gold).copied().collect();
    let sum: f64 = classes.iter().map(|&class| f1(predicted, gold, class)).sum();
    sum / classes.len().max(1) as f64
}

/// The F1 of sets of classes, micro and macro averaged: `2 tp / (2 tp + fp + fn)` over all classes at once, and the mean
/// of that of each of the `classes`; 0 where a class neither is nor is predicted.
pub fn f1_of_sets(predicted: &[Vec<u32>], gold: &[Vec<u32>], classes: usize) -> (f64, f64) {
    // True positives, and false positives and negatives together.
    let mut counts = vec![(0u64, 0u64); classes];
    for (predicted, gold) in predicted.iter().zip(gold) {
        for class in predicted {
            match gold.contains(class) {
                true => counts[*class as usize].0 += 1,
                false => counts[*class as usize].1 += 1,
            }
        }
        for class in gold.iter().filter(|class| !predicted.contains(class)) {
            counts[*class as usize].1 += 1;
        }
    }
    let f1 = |hit: u64, wrong: u64| if hit == 0 { 0.0 } else { (2 * hit) as f64 / (2 * hit + wrong) as f64 };
    let sum = |of: fn(&(u64, u64)) -> u64| counts.iter().map(of).sum::<u64>();
    let each: f64 = counts.iter().map(|(hit, wrong)| f1(*hit, *wrong)).sum();
    (f1(sum(|c| c.0), sum(|c| c.1)), each / classes.max(1) as f64)
}

/// Matthews' correlation coefficient, of any number of classes (Gorodkin 2004); 0 where either side has one class
/// only.
pub fn matthews(predicted: &[u32], gold: &[u32]) -> f64 {
    let classes: BTreeSet<u32> = predicted.iter().chain(gold).copied().collect();
    let n = gold.len() as f64;
    let hits = predicted.iter().zip(gold).filter(|(a, b)| a == b).count() as f64;
    let count = |of: &[u32], class: u32| of.iter().filter(|c| **c == class).count() as f64;
    let sum = |a: &[u32], b: &[u32]| -> f64 { classes.iter().map(|&c| count(a, c) * count(b, c)).sum() };
    let spread = (n * n - sum(predicted, predicted)) * (n * n - sum(gold, gold));
    if spread == 0.0 { 0.0 } else { (hits * n - sum(predicted, gold)) / spread.sqrt() }
}

/// Pearson's correlation; not a number where either side is constant.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 { x.iter().zip(y).map(|(a, b)| f(a - mx, b - my)).sum() };
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}

/// Spearman's correlation: Pearson's of ranks, equal values sharing their mean rank.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        for &at in group {
            ranks[at] = start as f64 + (group.len() - 1) as f64 / 2.0;
        }
        start += group.len();
    }
    ranks
}

/// A named stretch of words, from BIO, BIOES or IO tags.
pub type Entity = (String, usize, usize);

/// The entities of a sentence's tags (seqeval's `get_entities`): a stretch of one type begins at `B-` or `S-`, after
/// another type or outside one, and ends before the next.
pub fn entities(tags: &[&str]) -> Vec<Entity> {
    let split = |tag: &str| match tag.split_once('-') {
        Some((prefix, kind)) => (prefix.to_owned(), kind.to_owned()),
        None if tag == "O" => ("O".to_owned(), String::new()),
        None => (String::new(), tag.to_owned()),
    };
    let (mut found, mut open): (Vec<Entity>, Option<(String, usize)>) = (Vec::new(), None);
    let mut before = String::from("O");
    for (i, tag) in tags.iter().enumerate() {
        let (prefix, kind) = split(tag);
        let ends = prefix == "O"
            || matches!(prefix.as_str(), "B" | "S")
            || matches!(before.as_str(), "E" | "S")
            || open.as_ref().is_some_and(|(known, _)| *known != kind);
        if ends && let Some((known, start)) = open.take() {
            found.push((known, start, i));
        }
        if prefix != "O" && open.is_none() {
            open = Some((kind, i));
        }
        before = prefix;
    }
    found.extend(open.map(|(kind, start)| (kind, start, tags.len())));
    found
}

/// Precision, recall and F1 of entities over sentences.
pub fn entity_scores(predicted: &[Vec<Entity>], gold: &[Vec<Entity>]) -> (f64, f64, f64) {
    let total = |of: &[Vec<Entity>]| of.iter().map(Vec::len).sum::<usize>() as f64;
    let hits: usize =
        predicted.iter().zip(gold).map(|(p, g)| p.iter().filter(|e| g.contains(e)).count()).sum();
    let share = |of: f64| if of == 0.0 { 0.0 } else { hits as f64 / of };
    let (precision, recall) = (share(total(predicted)), share(total(gold)));
    let f1 = if hits == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
    (precision, recall, f1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} for {want}");
    }

    /// Numbers from scikit-learn 1.9 and SciPy 1.17.
    #[test]
    fn agree_with_scikit_learn() {
        let (p, g) = ([1, 0, 1, 1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 0, 1, 0]);
        near(accuracy(&p, &g), 0.625);
        near(f1(&p, &g, 1), 0.666_666_666_666_666_6);
        near(matthews(&p, &g), 0.258_198_889_747_161_1);
        let (p, g) = ([0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 1, 1, 0, 0]);
        near(matthews(&p, &g), 0.375);
        near(f1_macro(&p, &g), 0.566_666_666_666_666_8);
        near(matthews(&[1, 1, 1], &[0, 1, 1]), 0.0);
        let (x, y) = ([1.0, 2.5, 2.5, 4.0, 0.5], [2.0, 2.0, 5.0, 7.0, 1.0]);
        near(pearson(&x, &y), 0.882_997_509_120_593_5);
        near(spearman(&x, &y), 0.921_052_631_578_947_5);
    }

    /// `f1_score(gold, predicted, average=..., zero_division=0)` of the indicator matrices.
    #[test]
    fn sets_of_classes() {
        let predicted = [vec![0, 2], vec![1], vec![], vec![0]];
        let gold = [vec![0], vec![1, 2], vec![], vec![1]];
        let (micro, each) = f1_of_sets(&predicted, &gold, 4);
        near(micro, 0.5);
        near(each, (2.0 / 3.0 + 2.0 / 3.0) / 4.0);
        near(accuracy(&predicted, &gold), 0.25);
        assert_eq!(f1_of_sets(&[vec![]], &[vec![]], 3), (0.0, 0.0));
    }

    #[test]
    fn entities_are_seqevals() {
        let of = |tags: &str| entities(&tags.split(' ').collect::<Vec<_>>());
        let e = |kind: &str, from, to| (kind.to_owned(), from, to);
        assert_eq!(of("B-PER I-PER O B-LOC"), [e("PER", 0, 2), e("LOC", 3, 4)]);
        assert_eq!(of("B-PER B-PER I-LOC"), [e("PER", 0, 1), e("PER", 1, 2), e("LOC", 2, 3)]);
        assert_eq!(of("O I-ORG I-ORG O"), [e("ORG", 1, 3)]);
        assert_eq!(of("S-X B-Y E-Y I-Y"), [e("X", 0, 1), e("Y", 1, 3), e("Y", 3, 4)]);
        let gold = [of("B-A I-A O B-B")];
        let (p, r, f) = entity_scores(&[of("B-A I-A B-B O")], &gold);
        assert_eq!((p, r, f), (0.5, 0.5, 0.5));
    }
}
