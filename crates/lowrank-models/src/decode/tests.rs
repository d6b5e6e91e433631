use super::search::Search;
use super::*;

/// A model of three words whose next word depends on the last one only; word 2 ends.
fn logits(last: Option<u32>) -> [f32; 3] {
    let shares = match last {
        None => [0.4_f32, 0.6, 0.0],
        Some(0) => [0.05, 0.05, 0.9],
        Some(_) => [0.3, 0.3, 0.4],
    };
    shares.map(f32::ln)
}

fn search(how: &Decoding) -> Decoded {
    let mut search = Search::new(how, how.max_new_tokens, &[2], 1);
    search.advance(&[1], &logits(None));
    while !search.is_done() {
        let mut taken = Vec::new();
        search.settle(|from, to| taken.push((from, to)));
        let mut lanes: Vec<_> = search.beams().iter().map(|b| b.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        assert_eq!(lanes.len(), search.beams().len(), "a lane for each beam");
        let all: Vec<f32> = search.beams().iter().flat_map(|b| logits(b.tokens.last().copied())).collect();
        search.advance(&[1], &all);
    }
    search.finish()
}

#[test]
fn beams_find_what_greed_misses() {
    let greedy = Decoding { max_new_tokens: 4, ..Decoding::default() };
    assert_eq!(search(&greedy).tokens, [1, 2]);
    let best = search(&Decoding { num_beams: 2, ..greedy.clone() });
    assert_eq!(best.tokens, [0, 2]);
    assert!((best.score - (0.36_f32.ln() / 2.0)).abs() < 1e-6);
    // The penalty decides between long and short.
    let long = Decoding { num_beams: 2, length_penalty: 8.0, early_stopping: EarlyStopping::Never, ..greedy };
    assert_eq!(search(&long).tokens.len(), 4);
}

#[test]
fn runs_do_not_repeat() {
    let how = Decoding { max_new_tokens: 4, no_repeat_ngram_size: 1, ..Decoding::default() };
    // 1 stands in the prompt.
    assert_eq!(search(&how).tokens, [0, 2]);
    let how = Decoding { no_repeat_ngram_size: 2, num_beams: 3, ..how };
    let text = search(&how).tokens;
    let all = [&[1], &text[..]].concat();
    let mut runs: Vec<_> = all.windows(2).collect();
    let count = runs.len();
    runs.sort_unstable();
    runs.dedup();
    assert_eq!(runs.len(), count);
}
