//! Scores of generated texts, against sacreBLEU, the E2E challenge's script, COCO's caption evaluation and METEOR.
//! `tools/reference/nlg_metrics.py` made the numbers.

use std::path::Path;

use lowrank_train::nlg::{NlgMetric, Segment};
use serde_json::Value;

fn segments(case: &Value) -> Vec<Segment> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let segment = |s: &Value| Segment {
        hypothesis: text(&s["hypothesis"]),
        references: s["references"].as_array().unwrap().iter().map(text).collect(),
    };
    case["segments"].as_array().unwrap().iter().map(segment).collect()
}

#[test]
fn scores_equal_the_reference_programs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nlg_metrics.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut compared = 0;
    for (name, case) in cases.as_object().unwrap() {
        let segments = segments(case);
        for (metric, want) in case["scores"].as_object().unwrap() {
            let want = want.as_f64().unwrap();
            let got = metric.parse::<NlgMetric>().unwrap().score(&segments);
            assert!((got - want).abs() < 1e-6 * want.max(1.0), "{name}: {metric} is {got}, not {want}");
            compared += 1;
        }
    }
    assert_eq!(compared, 28);
}

#[test]
fn nothing_scores_nothing() {
    let empty = Segment { hypothesis: String::new(), references: vec!["a word".into()] };
    for metric in NlgMetric::ALL {
        for segments in [&[][..], &[empty.clone()][..]] {
            assert_eq!(metric.score(segments), 0.0, "{metric}");
        }
    }
    let error = "bleurt".parse::<NlgMetric>().unwrap_err().to_string();
    assert!(error.contains("rouge-l"), "{error}");
}
