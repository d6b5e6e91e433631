//! The prompts that a run continues on its way (`sample_prompts`).

use std::path::Path;

use lowrank_files::read_input;
use lowrank_models::Message;
use lowrank_train::data::read_groups_of;
use lowrank_train::{DataReport, SamplePrompt, SamplePrompts, Target};

use crate::data_files::DataFiles;
use crate::options::TrainOptions;
use crate::texts::MAX_TEXT;
use crate::{Error, Result, Session};

/// Prompts at most.
const MOST: usize = 64;
/// Ends of names that are files, whether they are there or not.
const FILES: [&str; 8] = ["txt", "jsonl", "ndjson", "json", "csv", "tsv", "parquet", "md"];
/// Those of files whose rows are read as data.
const DATA: [&str; 6] = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"];

/// The file that `given` names, if it is no text.
pub(crate) fn file(given: &str) -> Option<&Path> {
    let path = Path::new(given);
    let named = ends_in(path, &FILES) && !given.contains(char::is_whitespace);
    (path.is_file() || named).then_some(path)
}

/// The prompts of the run that `options` describe, on training data that were read as `train` says.
///
/// # Errors
/// Where the task generates no text, or the file has no prompts or too many.
pub(crate) fn read(
    session: &Session,
    options: &TrainOptions,
    train: &DataReport,
) -> Result<Option<SamplePrompts>> {
    let Some(given) = &options.sample_prompts else { return Ok(None) };
    if !session.task.task.is_language() {
        let task = session.task.task.name();
        return Err(Error::Usage(format!("`sample_prompts` is for language models, not for `task` {task}")));
    }
    let chat =
        train.forms.iter().any(|form| form.contains("conversations") || form.contains("chat template"));
    let prompts = match file(given) {
        Some(path) if ends_in(path, &DATA) => of_data(session, options, path)?,
        Some(path) => {
            let bad = |what: String| Error::Usage(format!("{}: {what}", path.display()));
            let content = String::from_utf8(read_input(path, MAX_TEXT)?);
            let content = content.map_err(|e| bad(format!("is not UTF-8: {e}")))?;
            let lines = content.lines().map(str::trim_end).filter(|line| !line.is_empty());
            lines.map(|line| of_text(session, options, line, chat)).collect::<Result<_>>()?
        }
        None => vec![of_text(session, options, given, chat)?],
    };
    let count = prompts.len();
    if !(1..=MOST).contains(&count) {
        return Err(Error::Usage(format!("`sample_prompts`: {given} has {count} prompts; give 1 to {MOST}")));
    }
    Ok(Some(SamplePrompts {
        prompts,
        stop_tokens: session.ends()?,
        max_new_tokens: options.sample_max_new_tokens,
        steps: options.sample_steps,
    }))
}

/// A text as the training data have their prompts: in the prompt template, or as what a user says.
fn of_text(session: &Session, options: &TrainOptions, text: &str, chat: bool) -> Result<SamplePrompt> {
    let tokens = if chat {
        session.chat_prompt(&[Message::new("user", text)][..].into())?
    } else {
        session.prompt(&filled(options, text)?)?
    };
    Ok(SamplePrompt { text: text.to_owned(), tokens })
}

/// The prompt template with `text` in its column.
fn filled(options: &TrainOptions, text: &str) -> Result<String> {
    let Some(template) = options.read_options()?.prompt_template else { return Ok(text.to_owned()) };
    let mut columns: Vec<&str> = template.columns().collect();
    columns.sort_unstable();
    columns.dedup();
    if columns.len() > 1 {
        return Err(Error::Usage(format!(
            "`sample_prompts`: the prompt template has the columns {}: give a data file with these",
            columns.join(", ")
        )));
    }
    template.fill(|_| Ok(text))
}

/// The prompts of a data file: those of its pairs as text, of conversations up to the first answer.
fn of_data(session: &Session, options: &TrainOptions, path: &Path) -> Result<Vec<SamplePrompt>> {
    let paths = [path.to_owned()];
    let read = options.read_options()?;
    if let Ok(groups) = read_groups_of(&paths, &read) {
        let prompt = |text: String| Ok(SamplePrompt { tokens: session.prompt(&text)?, text });
        return groups.into_iter().take(MOST + 1).map(|group| prompt(group.prompt)).collect();
    }
    let masked = TrainOptions { loss_on_prompt: false, ..options.clone() };
    let data = session.read_data(DataFiles::from(path.to_string_lossy().as_ref()), &masked, false)?;
    let tokenizer = session.tokenizer()?;
    let mut prompts = Vec::new();
    for example in data.examples.iter().take(MOST + 1) {
        if let Target::Prompt(_) = example.target {
            prompts.push(SamplePrompt {
                text: tokenizer.decode(&example.tokens, true)?,
                tokens: example.tokens,
            });
            continue;
        }
        let first = example.loss_mask.iter().position(|labelled| *labelled).unwrap_or(0);
        if example.prompt_len == 0 && first <= 1 {
            return Err(Error::Usage(format!(
                "`sample_prompts`: {}: its rows are texts without a prompt; give rows with a prompt, or a .txt file with one \
                 prompt a line",
                path.display()
            )));
        }
        let tokens = example.tokens[..first].to_vec();
        prompts.push(SamplePrompt { text: tokenizer.decode(&tokens, true)?, tokens });
    }
    Ok(prompts)
}

fn ends_in(path: &Path, ends: &[&str]) -> bool {
    path.extension().is_some_and(|end| ends.iter().any(|known| end.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_file_is_no_text() {
        assert!(file("prompts.txt").is_some() && file("no/such/dev.jsonl").is_some());
        assert!(file("Once upon a time.").is_none() && file("Read prompts.txt").is_none());
        assert!(file("").is_none());
    }
}
