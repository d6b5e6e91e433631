//! The ranges of numeric flags: those of a run are written with its options, all others here.

use clap::Command;
use lowrank::TrainOptions;
use lowrank::files::Range;

const RANGES: &[(&str, Range)] = &[
    ("alpha", Range::ALPHA),
    ("adapter_mb", Range::Whole(1, 1 << 24)),
    ("cache_mb", Range::Whole(1, 1 << 24)),
    ("cumulative", SHARE),
    ("density", Range::Real(0.0, 1.0)),
    ("energy", SHARE),
    ("frobenius", SHARE),
    // The divisor of a score is a power of the length with this exponent.
    ("length_penalty", Range::Real(-8.0, 8.0)),
    ("max_batch", Range::Whole(1, 1024)),
    ("max_body_mb", Range::Whole(1, 1 << 12)),
    ("max_new_tokens", Range::Whole(1, 1 << 24)),
    ("max_prompts", Range::Whole(1, 1 << 32)),
    ("max_queue", Range::Whole(0, 1 << 20)),
    ("max_rank", Range::RANK),
    ("max_requests_per_key", Range::Whole(0, 1 << 20)),
    ("min_norm", Range::Real(0.0, 1.0)),
    ("dashboard", PORTS),
    ("min_p", Range::Real(0.0, 1.0)),
    ("no_repeat_ngram_size", Range::Whole(0, 1 << 24)),
    ("num_beams", Range::Whole(1, 1024)),
    ("port", PORTS),
    ("processes", Range::Whole(1, 1024)),
    ("rank", Range::RANK),
    ("ratio", Range::Real(1.0, 1e30)),
    ("read_timeout", Range::Whole(1, 86_400)),
    ("repetition_penalty", Range::Above(0.0, 100.0)),
    ("request_timeout", Range::Whole(1, 604_800)),
    ("temperature", Range::Real(0.0, 100.0)),
    ("tolerance", Range::Real(0.0, 1e30)),
    ("top_k", Range::Whole(0, 1 << 32)),
    ("top_p", SHARE),
];

const PORTS: Range = Range::Whole(0, 65_535);
const SHARE: Range = Range::Above(0.0, 1.0);

/// The range of the flag with this name as a field.
pub fn range(name: &str) -> Option<Range> {
    let own = RANGES.iter().find(|(flag, _)| *flag == name).map(|(_, range)| *range);
    own.or_else(|| TrainOptions::FIELDS.iter().find(|field| field.name == name)?.range)
}

/// Reads a whole number in the range of the flag `name`.
pub fn whole<T: TryFrom<u64>>(name: &'static str) -> impl Fn(&str) -> Result<T, String> + Clone {
    let range = range(name).expect("a flag with a range");
    move |text| T::try_from(range.parse_whole(text)?).map_err(|_| range.must_be())
}

/// Reads a number in the range of the flag `name`.
pub fn real(name: &'static str) -> impl Fn(&str) -> Result<f64, String> + Clone {
    let range = range(name).expect("a flag with a range");
    move |text| range.parse(text)
}

/// The same in f32.
pub fn real_f32(name: &'static str) -> impl Fn(&str) -> Result<f32, String> + Clone {
    let range = range(name).expect("a flag with a range");
    move |text| Ok(range.parse(text)? as f32)
}

/// `command` and its subcommands with the ranges in their long help.
pub fn stated(command: Command) -> Command {
    let subcommands: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let command = subcommands.into_iter().fold(command, |command, name| command.mut_subcommand(name, stated));
    command.mut_args(|arg| {
        let Some(range) = range(arg.get_id().as_str()).filter(|_| arg.get_action().takes_values()) else {
            return arg;
        };
        let text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        arg.allow_negative_numbers(true).long_help(format!("{text}\n\nRange: {range}"))
    })
}
