//! The options of a training run as flags: those of all commands that know them.

use std::marker::PhantomData;

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use lowrank::adapters::NamedMethod;
use lowrank::{ALIASES, Field, FieldKind, Result, TrainOptions};
use serde_json::Value;

/// Options that the short help (`-h`) shows; `--help` shows all.
const COMMON: [&str; 11] = [
    "model",
    "data",
    "out",
    "eval_data",
    "method",
    "r",
    "target_modules",
    "learning_rate",
    "batch_size",
    "epochs",
    "resume",
];

/// Which options a command knows.
pub trait Known {
    /// Their names; none for all.
    const NAMES: &'static [&'static str];
    /// Those that must be given on the command line.
    const REQUIRED: &'static [&'static str] = &[];

    /// The options themselves.
    fn fields() -> impl Iterator<Item = &'static Field> {
        let known = |name| Self::NAMES.is_empty() || Self::NAMES.contains(&name);
        TrainOptions::FIELDS.iter().filter(move |field| known(field.name))
    }
}

/// All options, for `train` and `plan`.
pub struct All;

impl Known for All {
    const NAMES: &'static [&'static str] = &[];
}

/// How the base model is loaded.
pub struct Base;

impl Known for Base {
    const NAMES: &'static [&'static str] =
        &["model", "quantize", "precision", "stream_base", "device", "chat_template", "threads"];
    const REQUIRED: &'static [&'static str] = &["model"];
}

/// The base model and data to score.
pub struct Scoring;

impl Known for Scoring {
    const NAMES: &'static [&'static str] = &[
        "model",
        "quantize",
        "precision",
        "stream_base",
        "device",
        "data",
        "task",
        "labels",
        "batch_size",
        "max_seq_len",
        "data_format",
        "prompt_column",
        "completion_column",
        "text_column",
        "pair_column",
        "label_column",
        "weight_column",
        "chosen_column",
        "rejected_column",
        "prompt_template",
        "chat_template",
        "loss_on_prompt",
        "loss_type",
        "loss_weights",
        "beta",
        "label_smoothing",
        "simpo_gamma",
        "cpo_alpha",
        "desirable_weight",
        "undesirable_weight",
        "center_rewards_coefficient",
        "ref_adapter",
        "skip_bad_lines",
        "max_row_bytes",
        "threads",
    ];
    const REQUIRED: &'static [&'static str] = &["model", "data"];
}

/// Flags of the options that `K` knows; those that were given, as a table of the options' keys.
pub struct OptionFlags<K> {
    /// What was given.
    pub given: toml::Table,
    known: PhantomData<K>,
}

impl<K: Known> OptionFlags<K> {
    /// The options: those given, else the defaults.
    pub fn options(&self) -> Result<TrainOptions> {
        TrainOptions::from_table(self.given.clone())
    }
}

impl<K: Known> clap::Args for OptionFlags<K> {
    fn augment_args(command: Command) -> Command {
        let defaults = serde_json::to_value(TrainOptions::default()).expect("options are plain data");
        K::fields().fold(command, |command, field| command.arg(argument::<K>(field, &defaults[field.name])))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<K: Known> clap::FromArgMatches for OptionFlags<K> {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let fields =
            K::fields().filter(|field| matches.value_source(field.name) == Some(ValueSource::CommandLine));
        let given = fields.map(|field| Ok((field.name.to_owned(), value(field, matches)?)));
        Ok(Self { given: given.collect::<std::result::Result<_, clap::Error>>()?, known: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        self.given.extend(Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}

/// The flag of an option.
fn argument<K: Known>(field: &'static Field, default: &Value) -> Arg {
    let help = help(field, default);
    let short = help.split("\n\n").next().unwrap_or_default().to_owned();
    // The methods' names are their own.
    let help = match field.name {
        "method" => format!("{help}\n\nMethods: {}.", NamedMethod::list()),
        "peft_type" => format!("{help}\n\nTypes: {}.", NamedMethod::peft_types()),
        _ => help,
    };
    let arg = Arg::new(field.name)
        .long(flag_name(field))
        .aliases(aliases(field.name))
        .help(short)
        .long_help(help)
        .help_heading(field.group)
        .required(K::REQUIRED.contains(&field.name))
        .hide_short_help(!COMMON.contains(&field.name));
    let valued = |arg: Arg| {
        arg.value_name(value_name(field)).value_parser(ValueParser::new(move |text: &str| field.parse(text)))
    };
    match field.kind {
        FieldKind::Switch => arg.action(ArgAction::SetTrue),
        FieldKind::Value if WORDS.contains(&field.name) => valued(arg).num_args(1..),
        FieldKind::Value => valued(arg).allow_negative_numbers(true),
        FieldKind::Optional => valued(arg).num_args(0..=1).default_missing_value("true"),
        FieldKind::Path => valued(arg),
        FieldKind::Paths | FieldKind::Texts => valued(arg).action(ArgAction::Append),
        FieldKind::List => valued(arg).num_args(1..).value_delimiter(',').action(ArgAction::Append),
        FieldKind::Map => valued(arg).action(ArgAction::Append),
    }
}

/// Options of one value that may be a list of names, with commas or with spaces between.
const WORDS: [&str; 2] = ["target_modules", "exclude_modules"];

/// What other trainers call an option, with dashes.
fn aliases(name: &str) -> Vec<String> {
    let found = ALIASES.iter().find(|(own, _)| *own == name);
    let dashed = |alias: &&str| alias.replace('_', "-");
    found.map(|(_, aliases)| aliases.iter().map(dashed).collect()).unwrap_or_default()
}

/// What stands for the value in the help text.
fn value_name(field: &Field) -> String {
    match field.kind {
        FieldKind::Path | FieldKind::Paths => "PATH".to_owned(),
        FieldKind::Map => "KEY=VALUE".to_owned(),
        FieldKind::Texts => "NAME:ARGUMENT".to_owned(),
        FieldKind::List => format!("{},...", field.name.trim_end_matches('s').to_uppercase()),
        FieldKind::Optional => "REPO".to_owned(),
        FieldKind::Switch | FieldKind::Value => field.name.to_uppercase(),
    }
}

/// `--peft-option` for a table of options, whose entries are given one by one; else the name with dashes.
fn flag_name(field: &Field) -> String {
    let name = match field.kind {
        FieldKind::Map => field.name.trim_end_matches('s'),
        _ => field.name,
    };
    name.replace('_', "-")
}

/// The documentation of an option, with its default.
fn help(field: &Field, default: &Value) -> String {
    let text = field.help();
    if let Some(at) = text.find("(default: ") {
        // The end of the parenthesis, in which others may be.
        let mut depth = 0;
        let end = text[at..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            (depth == 0).then_some(at + i)
        });
        let end = end.unwrap_or(text.len());
        let rest = text.get(end + 1..).unwrap_or_default();
        return format!("{}[{}]{}", &text[..at], &text[at + 1..end], rest.strip_prefix('.').unwrap_or(rest));
    }
    let default = match default {
        Value::Number(number) => number.to_string().trim_end_matches(".0").to_owned(),
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Bool(true) => "true".to_owned(),
        _ => return text,
    };
    format!("{text} [default: {default}]")
}

/// What was given for an option.
fn value(field: &Field, matches: &ArgMatches) -> std::result::Result<toml::Value, clap::Error> {
    let all = || matches.get_many::<toml::Value>(field.name).into_iter().flatten().cloned();
    Ok(match field.kind {
        FieldKind::Switch => toml::Value::Boolean(matches.get_flag(field.name)),
        FieldKind::Value if WORDS.contains(&field.name) => {
            let words: Vec<String> = all().filter_map(|value| value.as_str().map(str::to_owned)).collect();
            toml::Value::String(words.join(","))
        }
        FieldKind::Value | FieldKind::Optional | FieldKind::Path => {
            all().next_back().expect("the flag was given")
        }
        FieldKind::Paths if all().count() == 1 => all().next().expect("counted"),
        FieldKind::List | FieldKind::Paths | FieldKind::Texts => toml::Value::Array(all().collect()),
        FieldKind::Map => {
            let mut entries = toml::Table::new();
            for (key, value) in all().filter_map(|value| value.as_table().cloned()).flatten() {
                if entries.insert(key.clone(), value).is_some() {
                    let what = format!("--{} gives {key} twice\n", flag_name(field));
                    return Err(clap::Error::raw(ErrorKind::ArgumentConflict, what));
                }
            }
            toml::Value::Table(entries)
        }
    })
}
