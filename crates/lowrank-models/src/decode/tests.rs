use lowrank_engine::Device;

use super::rows::Rows;
use super::search::{Decoded, EarlyStopping, Search, SearchOptions};

/// A model of three words whose next word depends on the last one only; word 2 ends.
fn logits(last: Option<u32>) -> [f32; 3] {
    let shares = match last {
        None => [0.4_f32, 0.6, 0.0],
        Some(0) => [0.05, 0.05, 0.9],
        Some(_) => [0.3, 0.3, 0.4],
    };
    shares.map(f32::ln)
}

fn search(how: &SearchOptions) -> Decoded {
    let mut search = Search::new(how, 4, &[2]);
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
    search.best()
}

#[test]
fn beams_find_what_greedy_search_misses() {
    let greedy = SearchOptions::default();
    assert_eq!(search(&greedy).tokens, [1, 2]);
    let best = search(&SearchOptions { num_beams: 2, ..greedy.clone() });
    assert_eq!(best.tokens, [0, 2]);
    assert!((best.score.unwrap() - (0.36_f32.ln() / 2.0)).abs() < 1e-6);
    // The penalty decides between long and short.
    let early_stopping = EarlyStopping::Never;
    let long = SearchOptions { num_beams: 2, length_penalty: 8.0, early_stopping, ..greedy };
    assert_eq!(search(&long).tokens.len(), 4);
}

#[test]
fn runs_do_not_repeat() {
    let how = SearchOptions { no_repeat_ngram_size: 1, ..SearchOptions::default() };
    // 1 stands in the prompt.
    assert_eq!(search(&how).tokens, [0, 2]);
    let how = SearchOptions { no_repeat_ngram_size: 2, num_beams: 3, ..how };
    let text = search(&how).tokens;
    let all = [&[1], &text[..]].concat();
    let mut runs: Vec<_> = all.windows(2).collect();
    let count = runs.len();
    runs.sort_unstable();
    runs.dedup();
    assert_eq!(runs.len(), count);
}

/// Blocks that grow, shrink, end and join at random within little room: no row is ever in two of them, and each grows
/// up to its limit.
#[test]
fn blocks_have_their_rows_alone() {
    const CAPACITY: usize = 1000;
    let device = Device::cpu();
    let mut rows = Rows::new(&device, &[1], CAPACITY);
    let mut blocks = Vec::new();
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut taken_rows = 0;
    for _ in 0..3000 {
        let limit = 1 + random(400);
        if random(4) == 0 && rows.committed() + limit <= CAPACITY {
            blocks.push((rows.open(limit), limit));
        } else if random(6) == 0 && !blocks.is_empty() {
            let (id, _) = blocks.swap_remove(random(blocks.len()));
            rows.release(id);
        } else if !blocks.is_empty() {
            let (id, limit) = &blocks[random(blocks.len())];
            let used = rows.used(id).len();
            if random(9) == 0 {
                rows.truncate(id, random(used + 1), *limit);
            } else {
                let more = random(*limit + 1 - used);
                rows.reserve(id, more);
                assert_eq!(rows.extend(id, more).len(), used + more);
                taken_rows += more;
            }
        }
        let mut taken = [false; CAPACITY];
        for row in blocks.iter().flat_map(|(id, _)| rows.used(id)) {
            assert!(!std::mem::replace(&mut taken[row], true), "row {row} is in two blocks");
        }
    }
    assert!(taken_rows > 10_000, "{taken_rows} rows were taken");
    for (id, _) in blocks {
        rows.release(id);
    }
    assert_eq!(rows.committed(), 0);
}

#[test]
fn a_shared_block_is_free_when_its_last_handle_is_released() {
    let device = Device::cpu();
    let mut rows = Rows::new(&device, &[1], 10);
    let first = rows.open(8);
    let second = rows.share(&first);
    rows.release(first);
    assert_eq!(rows.committed(), 8);
    rows.release(second);
    assert_eq!(rows.committed(), 0);
    rows.open(10);
}
