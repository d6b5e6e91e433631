//! Public data sets as they are distributed: `make data-test DATA=DIR`.

use lowrank_train::data::{
    Conversation, DataFormat, DataOptions, Encode, EncodeError, Glue, Template, Texts, labels, read,
};
use lowrank_train::{Target, Task};

/// Every word a token: its length.
struct Words;

impl Encode for Words {
    fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Ok(text.split_whitespace().map(|word| word.len() as u32).collect())
    }

    fn encode_chat(&self, _: &Conversation) -> Result<(Vec<u32>, Vec<bool>), EncodeError> {
        Err("no template".into())
    }

    fn eos(&self) -> Option<u32> {
        Some(0)
    }

    fn texts(&self, first: &str, second: Option<&str>, _: Option<usize>) -> Result<Texts, EncodeError> {
        let text = [first, second.unwrap_or_default()].join(" ");
        let ids = self.encode(&text)?;
        let types = vec![0; ids.len()];
        Ok(Texts { special: vec![false; ids.len()], types, ids, ..Texts::default() })
    }

    fn words(&self, words: &[&str], max: Option<usize>) -> Result<Texts, EncodeError> {
        self.texts(&words.join(" "), None, max)
    }
}

#[test]
#[ignore = "reads public data sets: make data-test"]
fn e2e() {
    let path = lowrank_testing::public_data("e2e/devset.csv");
    let options = DataOptions {
        prompt_column: Some("mr".into()),
        completion_column: Some("ref".into()),
        prompt_template: Some(Template::parse("{prompt}\n").unwrap()),
        ..DataOptions::default()
    };
    let data = read(&path, &options, &Words).unwrap();
    assert_eq!(data.examples.len(), 4672);
    let (first, last) = (data.examples.get(0), data.examples.get(4671));
    assert_eq!((first.id.line, last.id.line), (2, 4673));
    assert_eq!(first.tokens, [16, 9, 8, 18, 5, 2, 1, 5, 2, 3, 4, 7, 10, 4, 2, 3, 16, 0]);
    assert_eq!((first.prompt_len, first.labels()), (4, 14));
    assert!(last.tokens.ends_with(&[0]));
}

#[test]
#[ignore = "reads public data sets: make data-test"]
fn sst2_with_its_loose_quotes() {
    let path = lowrank_testing::public_data("glue/sst2/train.tsv");
    let options = DataOptions { text_column: Some("sentence".into()), ..DataOptions::default() };
    let data = read(&path, &options, &Words).unwrap();
    let lines = std::fs::read_to_string(&path).unwrap().lines().count();
    assert_eq!(data.examples.len(), lines - 1);
}

/// The columns are known by the header, or by the first row where there is none.
#[test]
#[ignore = "reads public data sets: make data-test"]
fn glue_files_are_recognised() {
    let options = DataOptions { task: Task::Classification, ..DataOptions::default() };
    for (name, glue, positive) in
        [("glue/sst2/dev.tsv", Glue::Sst2, 3_741), ("glue/cola/train.tsv", Glue::Cola, 5_088)]
    {
        let path = lowrank_testing::public_data(name);
        let options = DataOptions { labels: labels(&path, &options, &[]).unwrap(), ..options.clone() };
        assert_eq!(options.labels, ["0", "1"]);
        let data = read(&path, &options, &Words).unwrap();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert_eq!(data.examples.len(), lines - usize::from(glue == Glue::Sst2));
        let is_positive = |target: &Target| matches!(target, Target::Classes(l) if l[0].target == 1);
        assert_eq!(data.examples.iter().filter(|e| is_positive(&e.target)).count(), positive);
        let format = Some(DataFormat::Glue(glue));
        assert_eq!(read(&path, &DataOptions { format, ..options }, &Words).unwrap().examples, data.examples);
    }
}
