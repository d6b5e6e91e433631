//! Whatever the layout, every label is asked for once, after the same context.

use std::ops::Range;

use lowrank_train::{Example, ExampleId, PackedBatch, pack};
use proptest::prelude::*;

fn example(prompt: &[u32], rest: &[(u32, bool)]) -> Example {
    let tokens: Vec<u32> = prompt.iter().copied().chain(rest.iter().map(|r| r.0)).collect();
    let loss_mask = prompt.iter().map(|_| false).chain(rest.iter().map(|r| r.1)).collect();
    let id = ExampleId { file: "x".into(), line: 1 };
    Example { tokens, loss_mask, prompt_len: prompt.len(), id, ..Example::default() }
}

/// What the labels of examples mean: everything before the target, and the target.
fn wanted(examples: &[Example]) -> Vec<(Vec<u32>, u32)> {
    let of = |e: &Example| {
        let marked: Vec<_> = (1..e.tokens.len()).filter(|&i| e.loss_mask[i]).collect();
        marked.into_iter().map(|i| (e.tokens[..i].to_vec(), e.tokens[i])).collect::<Vec<_>>()
    };
    examples.iter().flat_map(of).collect()
}

/// The same, read from a batch as attention would: a row sees its prefix and its segment up to itself.
fn asked(batch: &PackedBatch) -> Vec<(Vec<u32>, u32)> {
    batch
        .labels
        .iter()
        .map(|label| {
            let row = label.row as usize;
            let segment =
                batch.segments.iter().find(|s| s.q.contains(&row)).expect("every row has a segment");
            let own = segment.own.start..row + 1;
            let seen: Vec<usize> = segment.prefix.clone().chain(own).collect();
            let positions: Vec<u32> = seen.iter().map(|&r| batch.positions[r]).collect();
            assert_eq!(positions, (0..seen.len() as u32).collect::<Vec<_>>());
            (seen.into_iter().map(|r| batch.tokens[r]).collect(), label.target)
        })
        .collect()
}

fn check_layout(batch: &PackedBatch) {
    assert_eq!(batch.tokens.len(), batch.positions.len());
    assert_eq!(batch.tokens.len(), batch.lengths.len());
    assert!(batch.positions.iter().zip(&batch.lengths).all(|(position, length)| position < length));
    assert_eq!(batch.max_position, batch.positions.iter().copied().max().unwrap_or(0));
    let mut next = 0;
    for segment in &batch.segments {
        assert_eq!(segment.q, segment.own);
        assert_eq!(segment.q.start, next);
        assert!(segment.q.end > next);
        assert!(segment.prefix.end <= segment.q.start);
        next = segment.q.end;
    }
    assert_eq!(next, batch.rows());
}

/// A prompt and what follows, of a few words, so that equal prompts and prompts that start alike are common.
fn any_example() -> impl Strategy<Value = Example> {
    let prompt = prop::collection::vec(0..2u32, 0..4);
    let rest = prop::collection::vec((0..3u32, any::<bool>()), 0..5);
    (prompt, rest).prop_map(|(prompt, rest)| example(&prompt, &rest))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_label_once_with_its_context(examples in prop::collection::vec(any_example(), 0..9)) {
        let borrowed: Vec<&Example> = examples.iter().collect();
        let plain = pack(&borrowed, false);
        let shared = pack(&borrowed, true);
        for batch in [&plain, &shared] {
            check_layout(batch);
            // Not only the same multiset: the same order.
            prop_assert_eq!(asked(batch), wanted(&examples));
            prop_assert_eq!(batch.examples, examples.len());
            prop_assert_eq!(batch.real_tokens, examples.iter().map(|e| e.tokens.len()).sum::<usize>());
        }
        prop_assert!(shared.rows() <= plain.rows());
        prop_assert!(plain.segments.iter().all(|s| s.prefix.is_empty()));
        // Every row is needed: some label lies at it or after it in the same example.
        for segment in &shared.segments {
            let last = segment.q.end - 1;
            let read = shared.labels.iter().any(|l| l.row as usize == last);
            let prefix = shared.segments.iter().any(|s| s.prefix == segment.q);
            prop_assert!(read || prefix);
        }
        prop_assert_eq!(pack(&borrowed, true), shared);
    }
}

#[test]
fn shares_a_prompt() {
    let a = example(&[1, 2, 3], &[(10, true), (11, true), (0, true)]);
    let b = example(&[1, 2], &[(3, true), (0, true)]);
    let c = example(&[1, 2, 3], &[(20, true), (0, true)]);
    // Its only target follows the prompt at once: no row of its own.
    let d = example(&[1, 2, 3], &[(30, true)]);
    let batch = pack(&[&a, &b, &c, &d], true);
    assert_eq!(batch.tokens, [1, 2, 3, 10, 11, 20, 1, 2, 3]);
    assert_eq!(batch.positions, [0, 1, 2, 3, 4, 3, 0, 1, 2]);
    let segments: Vec<(Range<usize>, Range<usize>)> =
        batch.segments.iter().map(|s| (s.q.clone(), s.prefix.clone())).collect();
    assert_eq!(segments, [(0..3, 0..0), (3..5, 0..3), (5..6, 0..3), (6..9, 0..0)]);
    let labels: Vec<(u32, u32)> = batch.labels.iter().map(|l| (l.row, l.target)).collect();
    assert_eq!(labels, [(2, 10), (3, 11), (4, 0), (7, 3), (8, 0), (2, 20), (5, 0), (2, 30)]);
    assert_eq!(batch.lengths, [6, 6, 6, 6, 6, 5, 4, 4, 4]);
    assert_eq!((batch.real_tokens, batch.max_position), (19, 4));
}

#[test]
fn the_tail_without_labels_is_not_computed() {
    let chat = example(&[1, 2], &[(5, true), (6, true), (7, false), (8, false)]);
    let batch = pack(&[&chat], false);
    assert_eq!(batch.tokens, [1, 2, 5]);
    let silent = example(&[1, 2], &[(5, false)]);
    assert_eq!(pack(&[&silent, &silent], true).rows(), 0);
}
