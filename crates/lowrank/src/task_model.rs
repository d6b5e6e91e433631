//! A base with the adapter of a task other than generating text, for texts at hand.

use std::io::Write;
use std::path::Path;

use lowrank_adapters::AdapterSet;
use lowrank_files::{IoError, LoadOptions};
use lowrank_train::{Task, evaluate};
use serde_json::json;

use crate::{Error, Result, Session, TrainOptions};

/// Texts that are computed together.
const BATCH: usize = 16;

/// A classifier, or a model of values.
pub struct TaskModel {
    session: Session,
    adapters: AdapterSet,
}

impl TaskModel {
    /// The base at `model` with the adapter in `dir`.
    ///
    /// # Errors
    /// Where the adapter is for no task that gives classes or values.
    pub fn open(model: &str, options: LoadOptions, dir: &Path) -> Result<Self> {
        let session = Session::for_adapter(model, options, Some(dir), None, None)?;
        let task = session.task.task;
        if !(task.has_labels() || task.is_number()) || task == Task::TokenClassification {
            let (dir, task) = (dir.display(), task.name());
            return Err(Error::Usage(format!(
                "{dir} is for the task {task}, not for classifying or scoring texts"
            )));
        }
        let adapters = session.load_adapter(dir)?;
        Ok(Self { session, adapters })
    }

    /// The names of the classes; none for values.
    pub fn labels(&self) -> &[String] {
        &self.session.task.labels
    }

    /// Bytes of the adapter with its head.
    pub fn bytes(&self) -> usize {
        self.adapters.params.iter().map(|(_, p)| size_of::<f32>() * p.rows * p.cols).sum()
    }

    /// The outputs for each text, or pair of texts: probabilities of the classes, or values.
    ///
    /// # Errors
    /// Where a text is too long, or the outputs are not finite.
    pub fn outputs(&self, texts: &[(String, Option<String>)]) -> Result<Vec<Vec<f32>>> {
        let mut file =
            tempfile::Builder::new().suffix(".jsonl").tempfile().map_err(Error::io(&std::env::temp_dir()))?;
        let path = file.path().to_owned();
        for (text, pair) in texts {
            let line = match pair {
                Some(pair) => json!({"text": text, "pair": pair}),
                None => json!({"text": text}),
            };
            writeln!(file, "{line}").map_err(IoError::at(&path))?;
        }
        file.flush().map_err(IoError::at(&path))?;
        let pair = texts.first().is_some_and(|(_, pair)| pair.is_some());
        let options = TrainOptions {
            text_column: Some("text".into()),
            pair_column: pair.then(|| "pair".into()),
            data_format: Some(lowrank_train::DataFormat::Jsonl),
            ..TrainOptions::default()
        };
        let data = self.session.read_data(path.as_path(), &options, true)?;
        let device = self.session.device();
        let scorer = self.session.scorer(&self.adapters, &device)?;
        let result = evaluate(&scorer, &data.examples, BATCH, true)?.checked()?;
        let of = |logits: Vec<f32>| match self.session.task.task {
            Task::Regression | Task::Reward => logits,
            Task::MultiLabelClassification => logits.into_iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            _ => softmax(&logits),
        };
        Ok(result.predictions.into_iter().map(|prediction| of(prediction.outputs)).collect())
    }
}

/// The probabilities of classes with these logits.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = logits.iter().map(|x| (x - largest).exp()).sum();
    logits.iter().map(|x| (x - largest).exp() / total).collect()
}
