//! Prompts and all their completions, as text: what generated texts are scored against.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::encode::pair_texts;
use super::fields::{Fields, Roles};
use super::{DataOptions, rows};
use crate::Error;

/// A prompt and what people wrote for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptGroup {
    /// The prompt as the model sees it.
    pub prompt: String,
    /// Every completion in the file, without white space around it.
    pub references: Vec<String>,
}

/// The distinct prompts of a data file in the order they first occur, and the completions of each.
///
/// # Errors
/// As [`super::read`]; also for a row without prompt.
pub fn read_groups(path: &Path, options: &DataOptions) -> Result<Vec<PromptGroup>, Error> {
    read_groups_of(&[path.to_owned()], options)
}

/// The same of several files.
///
/// # Errors
/// As [`read_groups`].
pub fn read_groups_of(paths: &[PathBuf], options: &DataOptions) -> Result<Vec<PromptGroup>, Error> {
    let mut groups: Vec<PromptGroup> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for path in paths {
        add_groups(path, options, &mut groups, &mut places)?;
    }
    match (groups.is_empty(), paths.first()) {
        (true, Some(path)) => Err(Error::DataFile { path: path.into(), reason: "it holds no prompt".into() }),
        _ => Ok(groups),
    }
}

fn add_groups(
    path: &Path,
    options: &DataOptions,
    groups: &mut Vec<PromptGroup>,
    places: &mut HashMap<String, usize>,
) -> Result<(), Error> {
    let options = options.resolved(path)?;
    options.check()?;
    for row in rows(path, &options)? {
        let row = row?;
        let pair = Fields::of(&row.raw).and_then(|fields| match fields.roles(&options)? {
            Roles::Pair { prompt, completion } => {
                let (prompt, completion) = pair_texts(&fields, &options, prompt, completion)?;
                Ok((prompt.into_owned(), completion.trim().to_owned()))
            }
            other => Err(format!(
                "it has no prompt to generate from: it is read as {}, and `prompt_column` and `completion_column` name \
                 columns of texts",
                other.describe()
            )),
        });
        match pair {
            Ok((prompt, reference)) => {
                let place = *places.entry(prompt.clone()).or_insert(groups.len());
                if place == groups.len() {
                    groups.push(PromptGroup { prompt, references: Vec::new() });
                }
                groups[place].references.push(reference);
            }
            Err(_) if options.skip_bad_lines => {}
            Err(reason) => return Err(Error::Line { path: path.into(), line: row.line, reason }),
        }
    }
    Ok(())
}
