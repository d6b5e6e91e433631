//! What `lowrank eval` and `lowrank predict` read: a model, an adapter and data.

use std::path::PathBuf;

use lowrank::adapters::AdapterSet;
use lowrank::train::{Dataset, Task};
use lowrank::{Result, Session, TrainOptions, attach_reference};

use super::options::{OptionFlags, Scoring};

/// Flags of both.
#[derive(clap::Args)]
pub struct ScoringFlags {
    #[command(flatten)]
    options: OptionFlags<Scoring>,
    /// Adapter folder, or file in any format
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

impl ScoringFlags {
    /// The files and folders that they name.
    pub fn inputs(&self) -> Result<Vec<PathBuf>> {
        let options = self.options()?;
        let named = [options.chat_template.map(PathBuf::from), self.adapter.clone()];
        let mut inputs = options.data.paths();
        inputs.push(options.model.into());
        inputs.extend(named.into_iter().flatten());
        Ok(inputs)
    }

    /// The options that the flags give.
    pub fn options(&self) -> Result<TrainOptions> {
        Ok(TrainOptions { init_adapter: self.adapter.clone(), ..self.options.options()? })
    }

    /// The base model with the head of the adapter's task.
    pub fn session(&self) -> Result<Session> {
        let options = self.options()?;
        let task: Option<Task> = self.options.given.contains_key("task").then_some(options.task);
        let (form, adapter) = (options.load_options(), self.adapter.as_deref());
        let loss = options.loss_options();
        let mut session = Session::for_adapter(&options.model, form, adapter, task, options.labels)?
            .on_device(options.device)?;
        session.task.loss = loss;
        match options.chat_template {
            Some(template) => session.with_chat_template(Some(&template), []),
            None => Ok(session),
        }
    }

    /// Model and adapter.
    pub fn open(&self) -> Result<(Session, AdapterSet)> {
        let session = self.session()?;
        let adapters = self.adapter(&session)?;
        Ok((session, adapters))
    }

    /// The data, for the session's task; reports on them.
    pub fn read(&self, session: &Session, unlabelled: bool) -> Result<Dataset> {
        let options = TrainOptions { task: session.task.task, ..self.options()? };
        let mut data = session.read_data(&options.data, &options, unlabelled)?;
        attach_reference(session, &options, &mut data)?;
        note!("{}", data.report);
        for warning in data.report.warnings() {
            note!("  {warning}");
        }
        Ok(data)
    }

    /// The adapter, for the session's model.
    pub fn adapter(&self, session: &Session) -> Result<AdapterSet> {
        session.adapter(self.adapter.as_deref())
    }
}
