//! A task with what belongs to it: the labels it tells apart, and its loss.

use lowrank_models::HeadKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::objective::LossOptions;
use crate::task::Task;

/// A task with its labels: what `task.json` of an adapter folder says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The task.
    pub task: Task,
    /// Names of the classes, in the order of their scores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Regression: how many numbers a text has.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub outputs: usize,
    /// Preferences and rewards: the loss.
    #[serde(skip)]
    pub loss: LossOptions,
}

fn one() -> usize {
    1
}

fn is_one(outputs: &usize) -> bool {
    *outputs == 1
}

impl Default for TaskSpec {
    fn default() -> Self {
        Self::new(Task::default(), Vec::new())
    }
}

impl TaskSpec {
    /// A task with the names of its classes, or with one output.
    pub const fn new(task: Task, labels: Vec<String>) -> Self {
        Self { task, labels, outputs: 1, loss: LossOptions::DEFAULT }
    }

    /// The head it needs.
    pub fn head(&self) -> HeadKind {
        match self.task {
            Task::Lm | Task::Preference | Task::Kto | Task::Grpo => HeadKind::Language,
            Task::Mlm => HeadKind::Masked,
            Task::Classification | Task::MultiLabelClassification | Task::PairClassification => {
                HeadKind::Sequence(self.labels.len())
            }
            Task::Regression | Task::Reward => HeadKind::Sequence(self.outputs),
            Task::TokenClassification => HeadKind::Token(self.labels.len()),
            Task::Embedding => HeadKind::Embedding,
        }
    }

    /// For `task.json`; nothing for language models, which are PEFT's plain case.
    pub fn to_json(&self) -> Option<Value> {
        (!self.task.is_language()).then(|| serde_json::to_value(self).expect("plain data"))
    }
}
