//! Which task a session is for, and with which labels: from the data for a new adapter, from its folder for one that
//! is there, from `config.json` for a base with a head of its own.

use std::path::Path;

use lowrank_adapters::{AdapterSet, LoraConfig, read_task};
use lowrank_models::Base;
use lowrank_train::{Task, TaskSpec, data};
use serde_json::Value;

use crate::adapter_source::other_format;
use crate::options::TrainOptions;
use crate::{Error, Result};

/// The task of a run, with the labels of its data (or of the adapter it starts from).
pub(crate) fn of_run(options: &TrainOptions, base: &Base) -> Result<TaskSpec> {
    let task = options.task;
    if let Some(dir) = &options.init_adapter {
        let spec = of_adapter(Some(dir), Some(task), options.labels.clone(), base)?;
        return Ok(spec);
    }
    if !task.has_labels() {
        return Ok(TaskSpec { task, labels: Vec::new() });
    }
    let labels = match &options.labels {
        Some(labels) => labels.clone(),
        None => {
            let found = data::labels(&options.data, &options.column_options())?;
            let known = config_labels(&base.config);
            // A head that knows these classes keeps its order.
            if found.iter().all(|label| known.contains(label)) { known } else { found }
        }
    };
    check_labels(&labels)?;
    Ok(TaskSpec { task, labels })
}

/// The task of the adapter in `dir`, or that of the base's own head where there is none. `task` and `labels` are what
/// the user says.
pub(crate) fn of_adapter(
    dir: Option<&Path>,
    task: Option<Task>,
    labels: Option<Vec<String>>,
    base: &Base,
) -> Result<TaskSpec> {
    let Some(dir) = dir else {
        let task = task.unwrap_or_default();
        let labels = match task.has_labels() {
            true => labels.unwrap_or_else(|| config_labels(&base.config)),
            false => Vec::new(),
        };
        if task.has_labels() && labels.is_empty() {
            let source = base.source.display();
            return Err(Error::Usage(format!(
                "{source} has no labels (id2label in config.json), so no head for the task {}: give an `adapter` \
                 trained for it",
                task.name()
            )));
        }
        return Ok(TaskSpec { task, labels });
    };
    if other_format(dir).is_some() {
        return Ok(TaskSpec { task: task.unwrap_or_default(), labels: labels.unwrap_or_default() });
    }
    let spec = match read_task(dir)? {
        Some(value) => {
            let path = dir.join(lowrank_adapters::TASK_FILE);
            serde_json::from_value(value).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?
        }
        None => of_peft(dir, task, labels.as_ref(), base)?,
    };
    if let Some(task) = task.filter(|task| *task != spec.task) {
        return Err(Error::Usage(format!(
            "{} was trained for the task {}, not {}",
            dir.display(),
            spec.task.name(),
            task.name()
        )));
    }
    if let Some(labels) = labels.filter(|labels| *labels != spec.labels) {
        let dir = dir.display();
        return Err(Error::Usage(format!(
            "{dir} was trained for the labels {:?}, not {labels:?}",
            spec.labels
        )));
    }
    Ok(spec)
}

/// The task of an adapter that PEFT wrote: its `task_type` and the size of its head tell.
fn of_peft(dir: &Path, task: Option<Task>, labels: Option<&Vec<String>>, base: &Base) -> Result<TaskSpec> {
    let config = LoraConfig::load(dir)?;
    let kind = match config.task_type.as_deref() {
        Some("SEQ_CLS") => Some(Task::Classification),
        Some("TOKEN_CLS") => Some(Task::TokenClassification),
        Some("FEATURE_EXTRACTION") => Some(Task::Embedding),
        Some(_) => None,
        None => untyped(&config, task),
    };
    let Some(kind) = kind else {
        return Ok(TaskSpec { task: task.unwrap_or_default(), labels: Vec::new() });
    };
    if kind == Task::Embedding {
        return Ok(TaskSpec { task: kind, labels: Vec::new() });
    }
    let set = AdapterSet::load_alone(dir)?;
    // The layers before the scores are as wide as the model.
    let head = set.layers.iter().filter(|layer| config.saves(&layer.site.path));
    let outputs = head.map(|layer| layer.site.out_features).min().ok_or_else(|| {
        Error::Usage(format!("{}: holds no classification head (modules_to_save)", dir.display()))
    })?;
    if outputs == 1 && kind == Task::Classification {
        return Ok(TaskSpec { task: Task::Regression, labels: Vec::new() });
    }
    let known = Some(config_labels(&base.config)).filter(|known| known.len() == outputs);
    let labels = labels.cloned().or(known).unwrap_or_else(|| (0..outputs).map(|i| i.to_string()).collect());
    if labels.len() != outputs {
        let dir = dir.display();
        return Err(Error::Usage(format!(
            "{dir} tells {outputs} classes apart; `labels` names {}",
            labels.len()
        )));
    }
    // A pair is what two columns are, whatever the adapter.
    let task = task.filter(|task| *task == Task::PairClassification).unwrap_or(kind);
    Ok(TaskSpec { task, labels })
}

/// The task of an adapter without `task_type`: what the user says, or the class of the model that PEFT trained it on.
fn untyped(config: &LoraConfig, task: Option<Task>) -> Option<Task> {
    match task {
        // One output is a regression's, whatever it is called.
        Some(Task::Classification | Task::PairClassification | Task::Regression) => {
            return Some(Task::Classification);
        }
        Some(task) => return Some(task).filter(|task| task.has_labels() || *task == Task::Embedding),
        None => {}
    }
    let class = config.other.get("auto_mapping")?.get("base_model_class")?.as_str()?;
    match class {
        _ if class.ends_with("ForSequenceClassification") => Some(Task::Classification),
        _ if class.ends_with("ForTokenClassification") => Some(Task::TokenClassification),
        _ => None,
    }
}

fn check_labels(labels: &[String]) -> Result<()> {
    let mut sorted = labels.to_vec();
    sorted.sort_unstable();
    if labels.len() < 2 || sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::Usage(format!("`labels` {labels:?}: at least two different ones are needed")));
    }
    Ok(())
}

/// `id2label` of `config.json`, in the order of its numbers.
fn config_labels(config: &Value) -> Vec<String> {
    let Some(map) = config.get("id2label").and_then(Value::as_object) else { return Vec::new() };
    (0..map.len()).map_while(|i| Some(map.get(&i.to_string())?.as_str()?.to_owned())).collect()
}
