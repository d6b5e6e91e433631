//! Options that are written once. [`options!`] makes of one line an option's field, its default, its documentation, its
//! key in a TOML file and (in the command) its flag with the help text.

use std::path::PathBuf;

use lowrank_adapters::{OneOrMany, Targets};
use lowrank_files::{Precision, Quantize, Range};
use lowrank_train::{DataFormat, LossType, LrScheduler, Task};
use serde_json::Value;
use toml::Value as Toml;

/// One option of a run.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name as a field and as a key, such as `learning_rate`.
    pub name: &'static str,
    /// The heading that it stands under.
    pub group: &'static str,
    /// Its documentation, one string a line.
    pub doc: &'static [&'static str],
    /// How it is written on a command line.
    pub kind: FieldKind,
    /// The numbers that it may be, for one that is a number, a list of numbers or a table of them.
    pub range: Option<Range>,
    parse: fn(&str) -> Result<Toml, String>,
}

/// How an option is written on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// `--name`, without a value.
    Switch,
    /// `--name VALUE`.
    Value,
    /// `--name` or `--name VALUE`.
    Optional,
    /// `--name PATH`.
    Path,
    /// `--name PATH`, as often as there are files.
    Paths,
    /// `--name TEXT`, as often as there are texts.
    Texts,
    /// `--name A,B,C`.
    List,
    /// `--name KEY=VALUE`, as often as there are keys.
    Map,
}

impl Field {
    /// Of the macro below.
    pub(crate) const fn new(
        (name, group): (&'static str, &'static str),
        doc: &'static [&'static str],
        kind: FieldKind,
        range: &[Range],
        parse: fn(&str) -> Result<Toml, String>,
    ) -> Self {
        let range = if range.is_empty() { None } else { Some(range[0]) };
        Self { name, group, doc, kind, range, parse }
    }

    /// Reads one value from text.
    ///
    /// # Errors
    /// Says what the value must be.
    pub fn parse(&self, text: &str) -> Result<Toml, String> {
        let value = (self.parse)(text).map_err(|what| match self.range {
            Some(range) if self.kind != FieldKind::Map => range.must_be(),
            _ => what,
        })?;
        self.check(&value).map_err(|_| self.range.expect("checked").must_be())?;
        Ok(value)
    }

    /// Checks the numbers of a value.
    ///
    /// # Errors
    /// Says what they must be.
    pub(crate) fn check(&self, value: &Toml) -> Result<(), String> {
        let Some(range) = self.range else { return Ok(()) };
        let in_range = match value {
            Toml::Integer(n) => range.contains_whole(i128::from(*n)),
            Toml::Float(x) => range.contains(*x),
            Toml::Array(list) => return list.iter().try_for_each(|value| self.check(value)),
            Toml::Table(map) => return map.values().try_for_each(|value| self.check(value)),
            // A wrong type, which is refused by its name.
            _ => return Ok(()),
        };
        if in_range { Ok(()) } else { Err(range.refusal(value)) }
    }

    /// The documentation as one text: lines joined, paragraphs apart, without the full stop at the end.
    pub fn help(&self) -> String {
        let mut text = String::new();
        for line in self.doc.iter().map(|line| line.trim()) {
            match line {
                "" => text += "\n\n",
                line => {
                    if !text.is_empty() && !text.ends_with('\n') {
                        text.push(' ');
                    }
                    text += line;
                }
            }
        }
        text.trim_end_matches('.').to_owned()
    }
}

/// A type that an option can have.
pub(crate) trait OptionValue {
    /// How it is written.
    const KIND: FieldKind = FieldKind::Value;
    /// One value from text.
    fn parse(text: &str) -> Result<Toml, String>;

    /// What is wrong with a number of it that is not in `range`.
    fn outside(&self, _: Range) -> Option<String> {
        None
    }
}

impl OptionValue for bool {
    const KIND: FieldKind = FieldKind::Switch;

    fn parse(text: &str) -> Result<Toml, String> {
        text.trim().parse().map(Toml::Boolean).map_err(|_| "not true or false".into())
    }
}

impl OptionValue for usize {
    fn parse(text: &str) -> Result<Toml, String> {
        u64::parse(text)
    }

    fn outside(&self, range: Range) -> Option<String> {
        (*self as u64).outside(range)
    }
}

impl OptionValue for u64 {
    fn parse(text: &str) -> Result<Toml, String> {
        let value = text.trim().parse::<i64>().ok().filter(|value| *value >= 0);
        value.map(Toml::Integer).ok_or_else(|| format!("not a whole number from 0 to {}", i64::MAX))
    }

    fn outside(&self, range: Range) -> Option<String> {
        (!range.contains_whole(i128::from(*self))).then(|| range.refusal(self))
    }
}

impl OptionValue for f64 {
    fn parse(text: &str) -> Result<Toml, String> {
        text.trim().parse().map(Toml::Float).map_err(|_| "not a number".into())
    }

    fn outside(&self, range: Range) -> Option<String> {
        range.check(*self).err()
    }
}

impl OptionValue for f32 {
    fn parse(text: &str) -> Result<Toml, String> {
        f64::parse(text)
    }

    fn outside(&self, range: Range) -> Option<String> {
        f64::from(*self).outside(range)
    }
}

impl OptionValue for String {
    fn parse(text: &str) -> Result<Toml, String> {
        Ok(Toml::String(text.to_owned()))
    }
}

impl OptionValue for PathBuf {
    const KIND: FieldKind = FieldKind::Path;

    fn parse(text: &str) -> Result<Toml, String> {
        String::parse(text)
    }
}

impl OptionValue for Value {
    fn parse(text: &str) -> Result<Toml, String> {
        String::parse(text)
    }
}

impl OptionValue for Targets {
    fn parse(text: &str) -> Result<Toml, String> {
        String::parse(text)
    }
}

impl<T: OptionValue> OptionValue for Option<T> {
    const KIND: FieldKind = T::KIND;

    fn parse(text: &str) -> Result<Toml, String> {
        T::parse(text)
    }

    fn outside(&self, range: Range) -> Option<String> {
        self.as_ref().and_then(|value| value.outside(range))
    }
}

impl<T: OptionValue> OptionValue for Vec<T> {
    const KIND: FieldKind = FieldKind::List;

    fn parse(text: &str) -> Result<Toml, String> {
        T::parse(text)
    }
}

impl<T: OptionValue> OptionValue for OneOrMany<T> {
    const KIND: FieldKind = FieldKind::List;

    fn parse(text: &str) -> Result<Toml, String> {
        T::parse(text)
    }

    fn outside(&self, range: Range) -> Option<String> {
        self.as_slice().iter().find_map(|value| value.outside(range))
    }
}

impl OptionValue for serde_json::Map<String, Value> {
    const KIND: FieldKind = FieldKind::Map;

    /// `KEY=VALUE` as a table of one key; the value as JSON where it is JSON, else as text.
    fn parse(text: &str) -> Result<Toml, String> {
        let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| {
            // A number that is too large for TOML or JSON is one still.
            let number =
                value.starts_with(|c: char| c.is_ascii_digit() || c == '-').then(|| value.parse().ok());
            number.flatten().map_or_else(|| Toml::String(value.to_owned()), Toml::Float)
        });
        Ok(Toml::Table([(key.trim().to_owned(), value)].into_iter().collect()))
    }

    fn outside(&self, range: Range) -> Option<String> {
        self.values().filter_map(Value::as_f64).find_map(|value| value.outside(range))
    }
}

/// Types whose names are checked by their `FromStr`.
macro_rules! named {
    ($($type:ty),*) => {$(
        impl $crate::fields::OptionValue for $type {
            fn parse(text: &str) -> Result<toml::Value, String> {
                text.parse::<$type>().map_err(|error| error.to_string())?;
                Ok(toml::Value::String(text.to_owned()))
            }
        }
    )*};
}

pub(crate) use named;

named!(Task, Quantize, Precision, LrScheduler, DataFormat, LossType);

/// Writes a struct of options: groups of `/// documentation`, `name: type = default`, and behind a comma the range of a
/// number.
macro_rules! options {
    (
        $(#[$attribute:meta])*
        pub struct $Options:ident;
        $($group:literal { $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr $(, $range:expr)?;)* })*
    ) => {
        $(#[$attribute])*
        pub struct $Options {
            $($($(#[doc = $doc])+ pub $name: $type,)*)*
        }

        impl Default for $Options {
            fn default() -> Self {
                Self { $($($name: $default,)*)* }
            }
        }

        impl $Options {
            /// Every option: what the fields of this struct are called, mean and take.
            pub const FIELDS: &[$crate::fields::Field] = &[$($($crate::fields::Field::new(
                (stringify!($name), $group),
                &[$($doc),+],
                <$type as $crate::fields::OptionValue>::KIND,
                &[$($range)?],
                <$type as $crate::fields::OptionValue>::parse,
            ),)*)*];

            /// Checks every number against its range.
            fn check_ranges(&self) -> $crate::Result<()> {
                $($($(
                    if let Some(what) = $crate::fields::OptionValue::outside(&self.$name, $range) {
                        return Err($crate::Error::Usage(format!("`{}` {what}", stringify!($name))));
                    }
                )?)*)*
                Ok(())
            }
        }
    };
}

pub(crate) use options;
