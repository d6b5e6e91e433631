//! The demo's data: what the generator writes, the reader reads.

use std::collections::HashSet;

#[allow(dead_code)]
#[path = "../../lowrank/examples/restaurants.rs"]
mod restaurants;

use restaurants::{Pair, generate};

#[test]
fn the_parts_share_no_prompt() {
    let (train, eval) = generate(480, 60, 1);
    assert_eq!((train.len(), eval.len()), (480, 60));
    assert_eq!(train.iter().chain(&eval).collect::<HashSet<&Pair>>().len(), 540);
    let prompts = |pairs: &[Pair]| pairs.iter().map(|p| p.0.clone()).collect::<HashSet<_>>();
    assert!(prompts(&train).is_disjoint(&prompts(&eval)));
    // Most prompts come with several descriptions, which is what prompt sharing is for.
    assert!((120..280).contains(&prompts(&train).len()));
}

#[test]
fn a_seed_is_a_data_set() {
    assert_eq!(generate(50, 9, 3), generate(50, 9, 3));
    assert_ne!(generate(50, 9, 3), generate(50, 9, 4));
}

/// Every fact of a prompt is in its text: the words that hold it differ, so the name and the values that are
/// said as they are stand for the rest.
#[test]
fn a_text_says_what_its_prompt_holds() {
    for (prompt, text) in generate(2000, 0, 7).0 {
        let value = |key: &str| {
            let at = prompt.find(&format!("{key}["))? + key.len() + 1;
            Some(&prompt[at..at + prompt[at..].find(']').unwrap()])
        };
        for key in ["name", "eatType", "food", "customer rating", "area", "near"] {
            if let Some(value) = value(key) {
                assert_eq!(text.matches(value).count(), 1, "{key} of {prompt}: {text}");
            }
        }
        assert!(text.ends_with('.') && !text.contains("  ") && !text.contains(['"', '\\']), "{text}");
        let vowel = ["a a", "a e", "a i", "a o"].iter().any(|bad| text.contains(&format!(" {bad}")));
        assert!(!vowel, "{text}");
    }
}
