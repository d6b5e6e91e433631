//! ROUGE-L (Lin 2004): the longest common subsequence of words.

use super::segment::Segment;
use super::tokens::words_ptb;

/// Weight of recall against precision.
const BETA: f64 = 1.2;

/// Mean over segments of `F = (1 + beta^2) P R / (R + beta^2 P)`, from 0 to 1, as COCO's caption evaluation (and
/// the E2E challenge's script) computes it: `P` is the longest common subsequence over the words of the hypothesis,
/// `R` over those of the reference, and the greatest of each over all references enters the formula.
pub fn rouge_l(segments: &[Segment]) -> f64 {
    let total: f64 = segments.iter().map(of_segment).sum();
    total / segments.len().max(1) as f64
}

fn of_segment(segment: &Segment) -> f64 {
    let hypothesis = words_ptb(&segment.hypothesis);
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in &segment.references {
        let reference = words_ptb(reference);
        let common = common_subsequence(&hypothesis, &reference) as f64;
        precision = precision.max(common / hypothesis.len().max(1) as f64);
        recall = recall.max(common / reference.len().max(1) as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// Length of the longest common subsequence.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
