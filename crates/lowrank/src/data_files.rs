//! The data of a run: one file or several, each with a weight.

use std::fmt;
use std::path::{Path, PathBuf};

use lowrank_adapters::OneOrMany;
use lowrank_files::Range;
use lowrank_models::hub::{DatasetId, fetch_dataset};
use serde::{Deserialize, Serialize};
use toml::Value as Toml;

use crate::fields::{FieldKind, OptionValue};
use crate::{Error, Result};

/// Most copies of a file's rows.
const WEIGHT: Range = Range::Above(0.0, 1000.0);

/// A data file and how often an epoch has its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFile {
    /// The file.
    pub path: PathBuf,
    /// 0.5 takes half of the rows, chosen by the seed, 2 each row twice.
    pub weight: f64,
}

impl DataFile {
    /// `FILE` or `FILE:WEIGHT`. A path with a colon that exists is a path.
    pub fn parse(text: &str) -> Self {
        let whole = || Self { path: text.into(), weight: 1.0 };
        if Path::new(text).exists() {
            return whole();
        }
        match text.rsplit_once(':').map(|(path, weight)| (path, weight.parse::<f64>())) {
            Some((path, Ok(weight))) if !path.is_empty() => Self { path: path.into(), weight },
            _ => whole(),
        }
    }
}

impl DataFile {
    /// The data set of the hub that it names, where it is no file.
    fn dataset(&self) -> Option<DatasetId> {
        DatasetId::parse(self.path.to_str()?).filter(|_| !self.path.exists())
    }
}

impl fmt::Display for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, weight } = self;
        match *weight == 1.0 {
            true => write!(f, "{}", path.display()),
            false => write!(f, "{}:{weight}", path.display()),
        }
    }
}

/// The data files of a run. A path or a text (`FILE` or `FILE:WEIGHT`) is one file; in TOML and JSON several are a list.
/// `hub:org/name` is a data set of the hub.
///
/// ```
/// # use lowrank::DataFiles;
/// let one: DataFiles = "train.jsonl".into();
/// let two: DataFiles = ["chats.jsonl", "facts.jsonl:0.5"].into();
/// assert_eq!((one.files.len(), two.files[1].weight), (1, 0.5));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "OneOrMany<String>", into = "OneOrMany<String>")]
pub struct DataFiles {
    /// In the order in which they are read.
    pub files: Vec<DataFile>,
}

impl DataFiles {
    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.files.iter().all(|file| file.path.as_os_str().is_empty())
    }

    /// The files as they are named, without their weights.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    /// The files and their weights. Data sets of the hub are the files of their train split, downloaded where they are missing.
    ///
    /// # Errors
    /// For a weight out of range, and a data set that cannot be had.
    pub fn resolve(&self) -> Result<Vec<(PathBuf, f64)>> {
        let mut resolved = Vec::new();
        for file in &self.files {
            WEIGHT.check(file.weight).map_err(|what| Error::Usage(format!("{file}: the weight {what}")))?;
            match file.dataset() {
                Some(id) => {
                    resolved.extend(fetch_dataset(&id)?.into_iter().map(|path| (path, file.weight)));
                }
                None => resolved.push((file.path.clone(), file.weight)),
            }
        }
        Ok(resolved)
    }

    /// The same without the weights.
    ///
    /// # Errors
    /// As [`DataFiles::resolve`].
    pub fn resolved_paths(&self) -> Result<Vec<PathBuf>> {
        Ok(self.resolve()?.into_iter().map(|(path, _)| path).collect())
    }

    /// Names of the files without their folders, for people.
    pub(crate) fn title(&self) -> String {
        let name = |file: &DataFile| {
            let name = file.path.file_name().filter(|_| file.dataset().is_none());
            let path = name.map_or_else(|| file.path.clone(), PathBuf::from);
            DataFile { path, ..file.clone() }.to_string()
        };
        self.files.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

impl From<PathBuf> for DataFiles {
    fn from(path: PathBuf) -> Self {
        Self { files: vec![DataFile { path, weight: 1.0 }] }
    }
}

impl From<&Path> for DataFiles {
    fn from(path: &Path) -> Self {
        path.to_owned().into()
    }
}

impl From<&PathBuf> for DataFiles {
    fn from(path: &PathBuf) -> Self {
        path.clone().into()
    }
}

impl From<&str> for DataFiles {
    fn from(text: &str) -> Self {
        Self { files: vec![DataFile::parse(text)] }
    }
}

impl From<String> for DataFiles {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl<const N: usize> From<[&str; N]> for DataFiles {
    fn from(texts: [&str; N]) -> Self {
        Self { files: texts.map(DataFile::parse).into() }
    }
}

impl From<&Self> for DataFiles {
    fn from(files: &Self) -> Self {
        files.clone()
    }
}

impl From<OneOrMany<String>> for DataFiles {
    fn from(texts: OneOrMany<String>) -> Self {
        Self { files: texts.as_slice().iter().map(|text| DataFile::parse(text)).collect() }
    }
}

impl From<DataFiles> for OneOrMany<String> {
    fn from(files: DataFiles) -> Self {
        let mut texts: Vec<String> = files.files.iter().map(ToString::to_string).collect();
        match texts.len() {
            0 => Self::One(String::new()),
            1 => Self::One(texts.remove(0)),
            _ => Self::Many(texts),
        }
    }
}

impl OptionValue for DataFiles {
    const KIND: FieldKind = FieldKind::Paths;

    fn parse(text: &str) -> std::result::Result<Toml, String> {
        Ok(Toml::String(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stand_behind_a_colon_unless_the_file_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("a:0.5"), "").unwrap();
        let weight = |name: &str| {
            let files = DataFiles::from(path(name));
            assert_eq!(OneOrMany::from(files.clone()).as_slice(), [path(name)]);
            files.files[0].weight
        };
        assert_eq!((weight("a:0.5"), weight("b:0.5"), weight("b"), weight("b:x")), (1.0, 0.5, 1.0, 1.0));
        let literal = DataFiles::from(PathBuf::from("b:0.5"));
        assert_eq!(literal.files[0].path, Path::new("b:0.5"));
        for wrong in ["b:0", "b:-1", "b:inf", "b:nan", "b:1e9"] {
            let error = DataFiles::from(wrong).resolve().unwrap_err().to_string();
            assert!(
                error.contains("the weight") && error.contains(wrong.split(':').next().unwrap()),
                "{error}"
            );
        }
        let both: DataFiles =
            toml::from_str::<toml::Table>("data = ['x/a.jsonl', 'b.jsonl:2']").unwrap()["data"]
                .clone()
                .try_into()
                .unwrap();
        assert_eq!(both.title(), "a.jsonl, b.jsonl:2");
        assert!(DataFiles::default().is_empty() && !both.is_empty());
        let hub: DataFiles = ["hub:a/b:0.5", "datasets/a/b@v1:data/x.parquet"].into();
        assert_eq!(hub.title(), "hub:a/b:0.5, datasets/a/b@v1:data/x.parquet");
        assert!(hub.files.iter().all(|file| file.dataset().is_some()) && hub.files[0].weight == 0.5);
        assert_eq!(DataFile::parse("a/b").dataset(), None);
    }
}
