//! A fine-tuning job.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for the job before it.
    Queued,
    /// It trains.
    Running,
    /// It has saved its state and waits to be resumed.
    Paused,
    /// Its adapter is served.
    Succeeded,
    /// It could not be done.
    Failed,
    /// It was ended by request.
    Cancelled,
}

impl Status {
    /// Whether nothing more happens to it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What a job trains on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Conversations, or prompts and completions.
    #[default]
    Supervised,
    /// Preferred and other answers.
    Dpo,
}

impl Method {
    /// As OpenAI calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
        }
    }

    /// The options of `lowrank train` that it comes with.
    pub fn options(self) -> Map<String, Value> {
        match self {
            Self::Supervised => Map::new(),
            Self::Dpo => Map::from_iter([("task".to_owned(), json!("preference"))]),
        }
    }
}

/// OpenAI's hyperparameters, each a value or `auto`, and any other option of a training run by its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// Passes over the data.
    #[serde(default)]
    pub n_epochs: Value,
    /// Examples a step.
    #[serde(default)]
    pub batch_size: Value,
    /// Factor of the learning rate that goes with the model.
    #[serde(default)]
    pub learning_rate_multiplier: Value,
    /// Options of `lowrank train`, such as `r`.
    #[serde(flatten)]
    pub options: Map<String, Value>,
}

/// Options that are not a client's to set: where the server writes, and what it does with its access token.
const OF_THE_SERVER: [&str; 6] =
    ["log_json", "tensorboard", "logging_dir", "push_to_hub", "hub_model_id", "hub_private_repo"];

impl Hyperparameters {
    /// Checks the three of OpenAI, and that the others are a client's to set.
    ///
    /// # Errors
    /// Names the one that is wrong.
    pub fn check(&self) -> Result<(), String> {
        let decided = |name: &&String| OF_THE_SERVER.contains(&name.replace('-', "_").as_str());
        if let Some(name) = self.options.keys().find(decided) {
            return Err(format!("{name}: is decided by the server; leave it out"));
        }
        for (name, value, whole) in [
            ("n_epochs", &self.n_epochs, false),
            ("batch_size", &self.batch_size, true),
            ("learning_rate_multiplier", &self.learning_rate_multiplier, false),
        ] {
            let number =
                value.as_f64().is_some_and(|x| x > 0.0 && x.is_finite() && (!whole || x.fract() == 0.0));
            if !(number || value.is_null() || value == "auto") {
                let kind = if whole { "whole number" } else { "number" };
                return Err(format!("{name}: {value} is not \"auto\" or a {kind} above 0"));
            }
        }
        Ok(())
    }
}

/// A job as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// `ftjob-` and digits.
    pub id: String,
    /// In seconds since 1970.
    pub created_at: u64,
    /// When it ended.
    pub finished_at: Option<u64>,
    /// The base.
    pub model: String,
    /// Ids of uploaded files.
    pub training_file: String,
    /// The same of held-out data.
    pub validation_file: Option<String>,
    /// On what to train.
    #[serde(default)]
    pub method: Method,
    /// How to train.
    pub hyperparameters: Hyperparameters,
    /// Of the random numbers.
    pub seed: u64,
    /// Part of the adapter's name.
    pub suffix: Option<String>,
    /// Free fields of the client.
    #[serde(default)]
    pub metadata: Option<Value>,
    /// Where it is.
    pub status: Status,
    /// The adapter's name, once it is there.
    pub fine_tuned_model: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What happened to it, oldest first: time and message.
    #[serde(default)]
    pub events: Vec<(u64, String)>,
}

impl Job {
    /// OpenAI's object.
    pub fn json(&self, trained_tokens: Option<u64>) -> Value {
        let auto = |value: &Value| if value.is_null() { json!("auto") } else { value.clone() };
        let mut hyperparameters = Map::new();
        let given = &self.hyperparameters;
        hyperparameters.insert("n_epochs".into(), auto(&given.n_epochs));
        hyperparameters.insert("batch_size".into(), auto(&given.batch_size));
        hyperparameters.insert("learning_rate_multiplier".into(), auto(&given.learning_rate_multiplier));
        hyperparameters.extend(given.options.clone());
        let error = match &self.error {
            Some(message) => json!({"code": "training_failed", "message": message, "param": null}),
            None => Value::Null,
        };
        json!({
            "id": self.id, "object": "fine_tuning.job", "created_at": self.created_at,
            "finished_at": self.finished_at, "model": self.model, "fine_tuned_model": self.fine_tuned_model,
            "organization_id": "lowrank", "status": self.status, "training_file": self.training_file,
            "validation_file": self.validation_file, "result_files": [], "trained_tokens": trained_tokens,
            "hyperparameters": hyperparameters, "seed": self.seed, "error": error, "integrations": [],
            "user_provided_suffix": self.suffix, "estimated_finish": null, "metadata": self.metadata,
            "method": {"type": self.method.name(), (self.method.name()): {"hyperparameters": hyperparameters}},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyperparameters_are_numbers_or_auto() {
        let check = |value: Value| serde_json::from_value::<Hyperparameters>(value).unwrap().check();
        assert_eq!(check(json!({})), Ok(()));
        assert_eq!(
            check(json!({"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": 0.5, "r": 16})),
            Ok(())
        );
        for wrong in
            [json!({"n_epochs": 0}), json!({"batch_size": 1.5}), json!({"learning_rate_multiplier": "fast"})]
        {
            let name = wrong.as_object().unwrap().keys().next().unwrap().clone();
            assert!(check(wrong).unwrap_err().starts_with(&name));
        }
        for name in ["push_to_hub", "hub-model-id", "log_json", "logging-dir"] {
            let error = check(json!({"r": 4, name: "x"})).unwrap_err();
            assert_eq!(error, format!("{name}: is decided by the server; leave it out"));
        }
    }
}
