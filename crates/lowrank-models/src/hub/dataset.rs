//! Data sets of the hub: their ids, and which files are the rows to train on.

use super::id::is_plain;

/// `hub:org/name` or `datasets/org/name`, either with `@revision` and with `:file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// A file of the repository, or a folder (a configuration, say).
    pub file: Option<String>,
}

impl DatasetId {
    /// Reads an id; `None` for what is none.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("hub:").or_else(|| text.strip_prefix("datasets/"))?;
        let (text, file) = match text.split_once(':') {
            Some((text, file)) => (text, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = repo.split_once('/')?;
        let good = is_plain(org, "")
            && is_plain(name, "")
            && is_plain(revision, "/")
            && file.is_none_or(|file| is_plain(file, "/ +="));
        good.then(|| Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl std::fmt::Display for DatasetId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hub:{}", self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// Endings of data files, those that are taken first in front.
const ENDINGS: [&str; 6] = ["parquet", "jsonl", "ndjson", "json", "csv", "tsv"];
/// What `datasets` calls the splits.
const TRAIN: [&str; 2] = ["train", "training"];
const OTHERS: [&str; 7] = ["test", "testing", "validation", "valid", "val", "dev", "eval"];
/// Descriptions of data, not data.
const NO_DATA: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"];

/// The files of the train split among `names`, as `datasets` finds them: those with `train` in their name or folder, or all
/// where no name has a split. One folder and one ending. `file` names one, or a folder.
pub(super) fn train_files(names: &[String], file: Option<&str>) -> Result<Vec<String>, String> {
    let shown = |names: &[&String]| {
        let mut first: Vec<&str> = names.iter().take(8).map(|name| name.as_str()).collect();
        if names.len() > first.len() {
            first.push("...");
        }
        first.join(", ")
    };
    if let Some(file) = file.filter(|file| names.iter().any(|name| name == file)) {
        return Ok(vec![file.to_owned()]);
    }
    let folder = file.map(|file| format!("{}/", file.trim_end_matches('/'))).unwrap_or_default();
    let ending = |name: &str| name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let data: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with(&folder) && !NO_DATA.iter().any(|none| name.ends_with(none)))
        .filter(|name| ending(name).is_some_and(|ending| ENDINGS.contains(&ending.as_str())))
        .collect();
    if data.is_empty() {
        let all: Vec<&String> = names.iter().collect();
        return Err(match file {
            Some(file) => format!("the data set has no {file} (it has {})", shown(&all)),
            None => format!("the data set has no {} files (it has {})", ENDINGS.join(", "), shown(&all)),
        });
    }
    let has = |name: &str, words: &[&str]| {
        let name = name.to_ascii_lowercase();
        name.split(|c: char| !c.is_ascii_alphabetic()).any(|part| words.contains(&part))
    };
    let mut chosen: Vec<&String> = data.iter().copied().filter(|name| has(name, &TRAIN)).collect();
    if chosen.is_empty() && !data.iter().any(|name| has(name, &OTHERS)) {
        chosen.clone_from(&data);
    }
    let best = ENDINGS.iter().find(|best| chosen.iter().any(|name| ending(name).as_deref() == Some(best)));
    let Some(best) = best else {
        return Err(format!("the data set has no train split: name a file of {}", shown(&data)));
    };
    chosen.retain(|name| ending(name).as_deref() == Some(best));
    let folder_of =
        |name: &str| name.rsplit_once('/').map(|(folder, _)| folder.to_owned()).unwrap_or_default();
    if let Some(default) = chosen.iter().map(|name| folder_of(name)).find(|folder| folder == "default") {
        chosen.retain(|name| folder_of(name) == default);
    }
    let mut folders: Vec<String> = chosen.iter().map(|name| folder_of(name)).collect();
    folders.sort_unstable();
    folders.dedup();
    if folders.len() > 1 {
        return Err(format!(
            "the data set has several configurations: name a file or a folder behind a colon (it has {})",
            folders.join(", ")
        ));
    }
    let mut chosen: Vec<String> = chosen.into_iter().cloned().collect();
    chosen.sort_unstable();
    Ok(chosen)
}

/// How many files the name of a shard says that there are: `train-00000-of-00004.parquet`.
pub(super) fn shard_count(name: &str) -> Option<usize> {
    let (_, rest) = name.rsplit_once("-of-")?;
    rest.split_once('.')?.0.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], file: Option<&str>) -> Result<String, String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        train_files(&names, file).map(|chosen| chosen.join(" "))
    }

    #[test]
    fn ids_have_a_prefix() {
        let id = |text: &str| DatasetId::parse(text).map(|id| id.to_string());
        assert_eq!(id("hub:a/b").as_deref(), Some("hub:a/b"));
        assert_eq!(id("datasets/a/b@v1").as_deref(), Some("hub:a/b@v1"));
        assert_eq!(id("hub:a/b@v1:data/x.csv").as_deref(), Some("hub:a/b@v1:data/x.csv"));
        for none in ["a/b", "hub:a", "hub:a/b/c", "hub:../b", "hub:a/b:../c", "datasets/x.jsonl", "hub:a/b@"]
        {
            assert_eq!(id(none), None, "{none}");
        }
    }

    #[test]
    fn the_train_split_is_chosen() {
        let shards = ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"];
        let all = [&shards[..], &["README.md", "data/test-00000-of-00001.parquet", "train.jsonl"]].concat();
        assert_eq!(chosen(&all, None).unwrap(), format!("{} {}", shards[1], shards[0]));
        assert_eq!(chosen(&all, Some("train.jsonl")).unwrap(), "train.jsonl");
        assert_eq!(
            chosen(&["train.jsonl", "test.jsonl", "dataset_infos.json"], None).unwrap(),
            "train.jsonl"
        );
        assert_eq!(chosen(&["alpaca_data.json", "README.md"], None).unwrap(), "alpaca_data.json");
        let configs = ["main/train-0.parquet", "socratic/train-0.parquet", "main/test-0.parquet"];
        assert!(chosen(&configs, None).unwrap_err().contains("main, socratic"));
        assert_eq!(chosen(&configs, Some("main")).unwrap(), "main/train-0.parquet");
        assert!(chosen(&["test.csv"], None).unwrap_err().contains("no train split"));
        assert!(chosen(&["x.bin"], None).unwrap_err().contains("x.bin"));
        assert!(chosen(&["train.csv"], Some("b.csv")).unwrap_err().contains("no b.csv"));
        assert_eq!(shard_count(shards[0]), Some(2));
        assert_eq!(shard_count("train.jsonl"), None);
    }
}
