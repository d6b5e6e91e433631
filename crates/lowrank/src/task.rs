//! Which task a session is for, and with which labels: from the data for a new adapter, from its folder for one that
//! is there, from `config.json` for a base with a head of its own.

use std::path::Path;

use lowrank_adapters::{AdapterSet, LoraConfig, read_task};
use lowrank_models::Base;
use lowrank_train::{DataOptions, Task, TaskSpec, data};
use serde_json::{Map, Value};

use crate::adapter_source::other_format;
use crate::options::TrainOptions;
use crate::{Error, Result, ranks};

/// What `task` means over a base: for one whose `config.json` names another problem than a single label, classification
/// is that, as in transformers.
pub(crate) fn meant(task: Task, base: &Base) -> Task {
    match (task, base.config.get("problem_type").and_then(Value::as_str)) {
        (Task::Classification, Some("multi_label_classification")) => Task::MultiLabelClassification,
        (Task::Classification, Some("regression")) => Task::Regression,
        _ => task,
    }
}

/// Says where `task` means another one. Numbers have no names: with `labels`, classes are meant.
fn meant_aloud(task: Task, labels: Option<&Vec<String>>, base: &Base) -> Task {
    let meant = match meant(task, base) {
        Task::Regression if labels.is_some() => task,
        meant => meant,
    };
    if meant != task {
        let (source, name) = (base.source.display(), meant.name());
        let kind = meant.problem_type().unwrap_or_default();
        ranks::say(&format!("the task is {name}: problem_type of {source} is {kind}"));
    }
    meant
}

/// The task of a run, with the labels of its data (or of the adapter it starts from).
pub(crate) fn of_run(options: &TrainOptions, base: &Base) -> Result<TaskSpec> {
    Ok(TaskSpec { loss: options.loss_options(), ..with_labels(options, base)? })
}

fn with_labels(options: &TrainOptions, base: &Base) -> Result<TaskSpec> {
    if let Some(dir) = &options.init_adapter {
        return of_adapter(Some(dir), Some(options.task), options.labels.clone(), base);
    }
    if options.task.compares() || options.task == Task::Grpo {
        return Ok(TaskSpec::new(options.task, Vec::new()));
    }
    let task = meant_aloud(options.task, options.labels.as_ref(), base);
    let columns = DataOptions { task, ..options.column_options() };
    if task == Task::Regression {
        let outputs = match options.task {
            Task::Regression => data::outputs_of(&options.data.resolved_paths()?, &columns)?,
            _ => config_outputs(&base.config),
        };
        return Ok(TaskSpec { outputs, ..TaskSpec::new(task, Vec::new()) });
    }
    if !task.has_labels() {
        return Ok(TaskSpec::new(task, Vec::new()));
    }
    let labels = match &options.labels {
        Some(labels) => labels.clone(),
        None => data::labels_of(&options.data.resolved_paths()?, &columns, &config_labels(&base.config))?,
    };
    check_labels(&labels)?;
    Ok(TaskSpec::new(task, labels))
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
        let task = meant_aloud(task.unwrap_or_default(), labels.as_ref(), base);
        if task == Task::Regression {
            return Ok(TaskSpec { outputs: config_outputs(&base.config), ..TaskSpec::new(task, Vec::new()) });
        }
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
        return Ok(TaskSpec::new(task, labels));
    };
    if other_format(dir).is_some() {
        return Ok(TaskSpec::new(task.unwrap_or_default(), labels.unwrap_or_default()));
    }
    let spec = match read_task(dir)? {
        Some(value) => {
            let path = dir.join(lowrank_adapters::TASK_FILE);
            let spec: TaskSpec = serde_json::from_value(value)
                .map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
            if !(1..=data::MOST_LABELS).contains(&spec.outputs) {
                let (path, most) = (path.display(), data::MOST_LABELS);
                return Err(Error::Usage(format!(
                    "{path}: outputs is {}, and can be 1 to {most}",
                    spec.outputs
                )));
            }
            spec
        }
        None => of_peft(dir, task, labels.as_ref(), base)?,
    };
    if let Some(task) = task.filter(|task| *task != spec.task && meant(*task, base) != spec.task) {
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
        return Ok(TaskSpec::new(task.unwrap_or_default(), Vec::new()));
    };
    if kind == Task::Embedding {
        return Ok(TaskSpec::new(kind, Vec::new()));
    }
    let set = AdapterSet::load_alone(dir)?;
    // The layers before the scores are as wide as the model.
    let head = set.layers.iter().filter(|layer| config.saves(&layer.site.path));
    let outputs = head.map(|layer| layer.site.out_features).min().ok_or_else(|| {
        Error::Usage(format!("{}: holds no classification head (modules_to_save)", dir.display()))
    })?;
    let kind = match task {
        _ if kind != Task::Classification => kind,
        _ if outputs == 1 && task == Some(Task::Reward) => Task::Reward,
        _ if outputs == 1 => Task::Regression,
        // A pair is what two columns are, whatever the adapter.
        Some(Task::MultiLabelClassification | Task::PairClassification | Task::Regression) => {
            task.unwrap_or_default()
        }
        _ => meant_aloud(kind, labels, base),
    };
    if matches!(kind, Task::Regression | Task::Reward) {
        return Ok(TaskSpec { outputs, ..TaskSpec::new(kind, Vec::new()) });
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
    Ok(TaskSpec::new(kind, labels))
}

/// The task of an adapter without `task_type`: what the user says, or the class of the model that PEFT trained it on.
fn untyped(config: &LoraConfig, task: Option<Task>) -> Option<Task> {
    match task {
        // One output is a regression's, whatever it is called.
        Some(
            Task::Classification
            | Task::MultiLabelClassification
            | Task::PairClassification
            | Task::Regression,
        ) => return Some(Task::Classification),
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

/// How many outputs a regression head of the base has: transformers' `num_labels`, if the head is one.
fn config_outputs(config: &Value) -> usize {
    if config.get("problem_type").and_then(Value::as_str) != Some("regression") {
        return 1;
    }
    let named = config.get("id2label").and_then(Value::as_object).map(Map::len);
    let counted = || config.get("num_labels").and_then(Value::as_u64).map(|n| n as usize);
    // What transformers takes where neither is there.
    named.or_else(counted).unwrap_or(2).clamp(1, data::MOST_LABELS)
}
