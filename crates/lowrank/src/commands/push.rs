//! `lowrank push`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::{Result, push};

use super::Stdout;

/// Upload an adapter or a model to the Hugging Face hub.
///
/// The files of the adapter or the model are uploaded, and its model card; checkpoints, logs and other files stay. The access token
/// is the one in HF_TOKEN, else the one that `hf auth login` stored.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of an adapter or a merged model, or a .gguf file
    path: PathBuf,
    /// Repository: org/name, or a name of your own; made if it does not exist
    repo: String,
    /// Make the repository private
    #[arg(long)]
    private: bool,
    /// Message of the commit
    #[arg(long, default_value = "Upload with lowrank", value_name = "TEXT")]
    commit_message: String,
}

/// Uploads.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let pushed = push(&args.path, &args.repo, args.private, &args.commit_message)?;
    if !pushed.left_out.is_empty() {
        note!("not uploaded: {}", pushed.left_out.join(", "));
    }
    note!("uploaded: {}", pushed.files.join(", "));
    writeln!(out, "{}", pushed.page)?;
    Ok(ExitCode::SUCCESS)
}
