//! What a run was given: `training_args.json` in its folder.

use std::path::Path;

use lowrank_files::{Provenance, read_object, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::options::TrainOptions;
use crate::{Error, Result};

/// Its file, by the name that transformers' Trainer gives its own.
pub(crate) const FILE: &str = "training_args.json";

/// The date, the version, the command and the options of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrainingArgs {
    /// What made the run; of one that was resumed, what resumed it.
    #[serde(flatten)]
    pub made: Provenance,
    /// Every option, with the learning rate that was chosen for the model where none was given.
    pub options: Map<String, Value>,
}

impl TrainingArgs {
    /// Those of the run that `options` describe, which begins now.
    pub(crate) fn now(options: &TrainOptions) -> Self {
        let Ok(Value::Object(options)) = serde_json::to_value(options) else {
            unreachable!("options are plain data")
        };
        Self { made: Provenance::now(), options }
    }

    /// Writes them to the folder of the run.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("options are plain data");
        text.push(b'\n');
        Ok(write_atomic(&out.join(FILE), &text)?)
    }

    /// Reads those of the run in `dir`, if it has any.
    ///
    /// # Errors
    /// Where the file is no such file.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let value = Value::Object(read_object(&path)?);
        serde_json::from_value(value).map(Some).map_err(|e| {
            Error::Usage(format!("{}: {e}; remove the file to report without it", path.display()))
        })
    }
}
