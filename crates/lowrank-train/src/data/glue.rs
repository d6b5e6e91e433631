//! The files of the GLUE benchmark (Wang et al. 2018): which column is what.

use serde::{Deserialize, Serialize};

use crate::Error;

/// A task of GLUE, by its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Glue {
    /// Acceptable sentences. Its files have no header.
    Cola,
    /// Sentiment.
    Sst2,
    /// Paraphrases of news.
    Mrpc,
    /// Entailment.
    Rte,
    /// Whether a sentence answers a question.
    Qnli,
    /// Questions that ask the same.
    Qqp,
    /// Entailment, contradiction or neither.
    Mnli,
    /// Similarity of sentences, 0 to 5.
    Stsb,
}

/// What is where in a file.
pub(super) struct Layout {
    /// Column names of a file without header.
    pub headless: Option<&'static [&'static str]>,
    pub first: &'static str,
    pub second: Option<&'static str>,
    pub label: &'static str,
    /// The labels in the order of GLUE's scores; none for a number.
    pub labels: &'static [&'static str],
}

impl Glue {
    const ALL: [(&str, Self); 8] = [
        ("cola", Self::Cola),
        ("sst2", Self::Sst2),
        ("mrpc", Self::Mrpc),
        ("rte", Self::Rte),
        ("qnli", Self::Qnli),
        ("qqp", Self::Qqp),
        ("mnli", Self::Mnli),
        ("stsb", Self::Stsb),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, glue)| *glue == self).map_or("", |(name, _)| name)
    }

    /// From its name, `sst2` and the like.
    pub(super) fn parse(name: &str) -> Result<Self, Error> {
        let plain: String = name.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
        Self::ALL.iter().find(|(known, _)| *known == plain).map(|(_, glue)| *glue).ok_or_else(|| {
            Error::Options(lowrank_files::unknown("GLUE task", name, Self::ALL.map(|(name, _)| name)))
        })
    }

    pub(super) fn layout(self) -> Layout {
        let pair = |first, second, label, labels| Layout {
            headless: None,
            first,
            second: Some(second),
            label,
            labels,
        };
        const ENTAILMENT: &[&str] = &["entailment", "not_entailment"];
        const YES_NO: &[&str] = &["0", "1"];
        match self {
            Self::Cola => Layout {
                headless: Some(&["source", "label", "mark", "sentence"]),
                first: "sentence",
                second: None,
                label: "label",
                labels: YES_NO,
            },
            Self::Sst2 => {
                Layout { headless: None, first: "sentence", second: None, label: "label", labels: YES_NO }
            }
            Self::Mrpc => pair("#1 String", "#2 String", "Quality", YES_NO),
            Self::Rte => pair("sentence1", "sentence2", "label", ENTAILMENT),
            Self::Qnli => pair("question", "sentence", "label", ENTAILMENT),
            Self::Qqp => pair("question1", "question2", "is_duplicate", YES_NO),
            Self::Mnli => {
                pair("sentence1", "sentence2", "gold_label", &["entailment", "neutral", "contradiction"])
            }
            Self::Stsb => pair("sentence1", "sentence2", "score", &[]),
        }
    }

    /// The task whose file begins with these columns; CoLA's begins with its first row.
    pub(super) fn detect(columns: &[String]) -> Option<Self> {
        let has = |names: &[&str]| names.iter().all(|name| columns.iter().any(|c| c == name));
        if let [_, label, mark, _] = columns
            && matches!(label.as_str(), "0" | "1")
            && matches!(mark.as_str(), "" | "*" | "?" | "?*" | "??" | "#" | "%")
        {
            return Some(Self::Cola);
        }
        if columns == ["sentence", "label"] {
            return Some(Self::Sst2);
        }
        let marks: [(&[&str], Self); 6] = [
            (&["Quality", "#1 String", "#2 String"], Self::Mrpc),
            (&["index", "question", "sentence", "label"], Self::Qnli),
            (&["question1", "question2", "is_duplicate"], Self::Qqp),
            (&["sentence1", "sentence2", "gold_label"], Self::Mnli),
            (&["index", "genre", "sentence1", "sentence2", "score"], Self::Stsb),
            (&["index", "sentence1", "sentence2", "label"], Self::Rte),
        ];
        marks.into_iter().find(|(names, _)| has(names)).map(|(_, glue)| glue)
    }
}
