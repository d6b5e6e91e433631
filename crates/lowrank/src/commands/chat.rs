//! A conversation with the model, line by line, with one adapter or another.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lowrank::adapters::{AdapterSet, adapter_folder};
use lowrank::models::{Message, Sampling, templates};
use lowrank::{Error, Limits, Result, Session, TextGenerator};

use super::flags::weighted::{Adapter, named};
use super::wrap::Wrap;
use super::{Lines, Stdout};

const HELP: &str = "\
/adapter NAME   answer with another adapter, and keep the conversation; none is the base model
/adapter DIR    load the adapter in a folder, and answer with it (NAME=DIR names it)
/adapter        list the adapters
/reset          begin a new conversation
/exit, Ctrl-D   end
Other lines are messages; an empty one is passed over.";

/// The base model without an adapter.
const NONE: &str = "none";

/// What a chat is about.
pub struct Talk<'a> {
    /// The model.
    pub session: &'a Session,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When an answer ends.
    pub limits: Limits,
    /// The first message.
    pub first: Option<String>,
    /// The system message.
    pub system: Option<String>,
}

/// An adapter to answer with.
struct Choice {
    name: String,
    set: AdapterSet,
}

/// What a line of a chat says.
enum Said {
    Message(String),
    Adapter(String),
    End,
}

/// Chats until the input ends.
pub fn chat(mut talk: Talk<'_>, adapters: &[Adapter], out: &mut Stdout) -> Result<ExitCode> {
    talk.limits.stop.extend(talk.session.stops()?);
    let device = talk.session.device();
    let mut choices = choices(talk.session, adapters)?;
    // Without names, all at once; else the first.
    let mut chosen = usize::from(choices.len() > 1);
    let mut messages: Vec<Message> = talk.system.iter().map(|s| Message::new("system", s)).collect();
    let mut lines = Lines::new()?;
    // A message is answered with what is chosen then; the cache of keys and values is the adapter's, and goes with it.
    loop {
        let stop = Arc::new(AtomicBool::new(false));
        let mut generator =
            TextGenerator::new(talk.session, &device, &choices[chosen].set)?.stop_when(stop.clone());
        let wanted = loop {
            match next(&mut talk, &mut lines, &mut messages)? {
                Said::End => return Ok(ExitCode::SUCCESS),
                Said::Adapter(wanted) => break wanted,
                Said::Message(text) => messages.push(Message::new("user", text)),
            }
            let tokens = talk.session.chat_prompt(&messages[..].into())?;
            let mut wrap = lines.width().map(Wrap::new);
            let mut show = |text: &str| match &mut wrap {
                Some(wrap) => out.show(&wrap.push(text), &stop),
                None => out.show(text, &stop),
            };
            let answer = generator.generate(&tokens, &talk.sampling, &talk.limits, &mut show)?;
            let rest = wrap.map(|mut wrap| wrap.finish()).unwrap_or_default();
            writeln!(out, "{rest}")?;
            if answer.cut {
                note!("(cut at {} tokens: --max-new-tokens takes more)", talk.limits.max_new_tokens);
            }
            messages.push(Message::new("assistant", answer.text));
        };
        drop(generator);
        match choose(talk.session, &mut choices, &wanted) {
            Ok(Some(found)) => {
                chosen = found;
                note!("(now with {})", shown(&choices[chosen].name));
            }
            Ok(None) => {
                let names = choices.iter().map(|choice| &choice.name[..]).collect::<Vec<_>>().join(", ");
                note!("(with {}; /adapter takes {names})", shown(&choices[chosen].name));
            }
            Err(error) => note!("error: {error}"),
        }
    }
}

fn shown(name: &str) -> String {
    if name == NONE { "the base model".to_owned() } else { format!("the adapter {name}") }
}

/// The next message, or a command that is not done here.
fn next(talk: &mut Talk<'_>, lines: &mut Lines, messages: &mut Vec<Message>) -> Result<Said> {
    loop {
        let said = match talk.first.take() {
            Some(text) => return Ok(Said::Message(text)),
            None => match lines.next("> ")? {
                None => return Ok(Said::End),
                Some(line) => line,
            },
        };
        let (command, rest) = said.trim().split_once(char::is_whitespace).unwrap_or((said.trim(), ""));
        match (command, rest.trim()) {
            ("", _) => {}
            ("/help", "") => note!("{HELP}"),
            ("/reset", "") => messages.retain(|message| message.role() == "system"),
            ("/exit", "") => return Ok(Said::End),
            ("/adapter", wanted) => return Ok(Said::Adapter(wanted.to_owned())),
            _ => return Ok(Said::Message(said)),
        }
    }
}

/// The base model, what was given without names as one, and each adapter with a name.
fn choices(session: &Session, adapters: &[Adapter]) -> Result<Vec<Choice>> {
    let mut choices = vec![Choice { name: NONE.to_owned(), set: AdapterSet::none() }];
    let together: Vec<(PathBuf, f32)> =
        adapters.iter().filter(|a| a.name.is_none()).map(|a| (a.dir.clone(), a.weight)).collect();
    if !together.is_empty() {
        let names: Vec<String> = together.iter().map(|(dir, _)| file_name(dir)).collect();
        choices.push(Choice { name: names.join("+"), set: session.adapters(&together)? });
    }
    for adapter in adapters {
        let Some(name) = &adapter.name else { continue };
        if choices.iter().any(|choice| choice.name == *name) {
            return Err(Error::Usage(format!("`adapter`: the name {name} is given twice")));
        }
        let set = session.adapters(&[(adapter.dir.clone(), adapter.weight)])?;
        choices.push(Choice { name: name.clone(), set });
    }
    Ok(choices)
}

/// The one that is called `wanted`, loaded where that is a folder or a file; nothing where nothing is wanted.
fn choose(session: &Session, choices: &mut Vec<Choice>, wanted: &str) -> Result<Option<usize>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    if let Some(found) = choices.iter().position(|choice| choice.name == wanted) {
        return Ok(Some(found));
    }
    let Adapter { name, dir, weight } = named(wanted).map_err(Error::Usage)?;
    if !dir.exists() {
        let names = choices.iter().map(|choice| &choice.name[..]);
        let nearest = lowrank::files::nearest(wanted, names);
        return Err(Error::Usage(format!(
            "no adapter is called {wanted}, and there is no such folder{nearest}"
        )));
    }
    let own = templates::of_folder(adapter_folder(&dir))?;
    if own.is_some() && own.as_deref() != session.chat_template() {
        return Err(Error::Usage(format!(
            "{} has another chat template than this chat: start a chat with it alone, or choose with --chat-template",
            dir.display()
        )));
    }
    let set = session.adapters(&[(dir.clone(), weight)])?;
    let name = name.unwrap_or_else(|| file_name(&dir));
    let choice = Choice { name, set };
    Ok(Some(match choices.iter().position(|old| old.name == choice.name && old.name != NONE) {
        Some(old) => {
            choices[old] = choice;
            old
        }
        None => {
            choices.push(choice);
            choices.len() - 1
        }
    }))
}

fn file_name(dir: &std::path::Path) -> String {
    dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned()
}
