//! A reward model as a reward: an adapter that was trained for the task reward on the same base.

use std::path::Path;

use lowrank_adapters::{AdapterSet, read_task};
use lowrank_engine::Device;
use lowrank_models::Model;
use lowrank_train::data::encode_row;
use lowrank_train::rewards::{Completion, Reward};
use lowrank_train::{DataOptions, Example, Scorer, Task, TaskSpec};
use serde_json::{Value, json};

use crate::adapter_source::PeftFolder;
use crate::options::TrainOptions;
use crate::{Error, Result, Session};

/// Texts that are scored at once.
const BATCH: usize = 8;

/// The model over the weights of the session, with the adapter's head.
pub(crate) struct RewardModel<'s> {
    name: String,
    session: &'s Session,
    model: Box<dyn Model>,
    adapters: AdapterSet,
    task: TaskSpec,
    device: Device,
    data: DataOptions,
    prompt: String,
}

impl<'s> RewardModel<'s> {
    /// That of the adapter in `dir`.
    ///
    /// # Errors
    /// Where it is no reward model, or not one of this base.
    pub fn open(session: &'s Session, options: &TrainOptions, dir: &Path, name: String) -> Result<Self> {
        let trained = read_task(dir)?.and_then(|task| Some(task["task"].as_str()?.to_owned()));
        if trained.as_deref() != Some(Task::Reward.name()) {
            let (dir, what) = (dir.display(), trained.as_deref().unwrap_or(Task::Lm.name()));
            return Err(Error::Usage(format!(
                "`reward_funcs`: {dir} was trained for the task {what}, not reward"
            )));
        }
        let task = TaskSpec::new(Task::Reward, Vec::new());
        let base = &session.base;
        let model = lowrank_models::load_for(&base.config, &base.tensors, task.head());
        let model = model.map_err(|error| base.explain(error))?;
        let folder = PeftFolder::of(dir, &base.source)?;
        let adapters = AdapterSet::load_on(&folder.path, model.sites(), session)?;
        let data = DataOptions {
            task: Task::Reward,
            unlabelled: true,
            outputs: 1,
            max_seq_len: model.info().position_limit,
            reads: model.info().head_layout.reads,
            ..DataOptions::default()
        };
        let prompt = options.prompt_column.clone().unwrap_or_else(|| "prompt".to_owned());
        Ok(Self { name, session, model, adapters, task, device: session.device(), data, prompt })
    }

    /// The row that `predict` would read.
    fn row(&self, completion: &Completion<'_>) -> std::result::Result<String, String> {
        let row = completion.row;
        let (prompt, turns) = match (row.get(&self.prompt), row.get("messages")) {
            (Some(prompt), _) => (prompt.clone(), prompt.is_array()),
            (None, Some(Value::Array(messages))) => {
                let said = |message: &&Value| message["role"] == "assistant" || message["from"] == "gpt";
                let answers = messages.iter().rev().take_while(said).count();
                (messages[..messages.len() - answers].to_vec().into(), true)
            }
            _ => return Err(format!("{:?} is missing", self.prompt)),
        };
        let text = match turns {
            true => json!([{"role": "assistant", "content": completion.text}]),
            false => completion.text.into(),
        };
        let mut row =
            serde_json::Map::from_iter([("prompt".to_owned(), prompt), ("completion".to_owned(), text)]);
        for beside in ["tools", "chat_template_kwargs", "system"] {
            row.extend(completion.row.get(beside).map(|value| (beside.to_owned(), value.clone())));
        }
        Ok(Value::Object(row).to_string())
    }
}

impl Reward for RewardModel<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&mut self, completions: &[Completion<'_>]) -> std::result::Result<Vec<Option<f64>>, String> {
        let encoder = self.session.encoder().map_err(|e| e.to_string())?;
        let mut rewards = Vec::new();
        for chunk in completions.chunks(BATCH) {
            let encode = |completion| encode_row(&self.row(completion)?, &self.data, &encoder);
            let examples: Vec<Example> = chunk.iter().map(encode).collect::<std::result::Result<_, _>>()?;
            let scorer = Scorer::new(&*self.model, &self.adapters, &self.device).for_task(&self.task, None);
            let batch = scorer.pack(&examples.iter().collect::<Vec<_>>(), false, 0);
            rewards.extend(scorer.score(&batch).outputs.into_iter().map(|output| Some(output.into())));
        }
        self.device.trim();
        Ok(rewards)
    }
}
