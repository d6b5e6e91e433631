//! What the commands on adapter files share: formats, where from and where to.

use std::path::{Path, PathBuf};

use lowrank::files::{Staged, check_output, unknown};
use lowrank::tools::{self, FileFormat, Lora, Options, formats};
use lowrank::{Error, Result};
use serde_json::Value;

use crate::commands::Stdout;

/// What a format does not say by itself.
#[derive(clap::Args)]
pub struct Hints {
    /// Alpha of a loralib checkpoint, which has none
    #[arg(long, value_parser = super::ranges::real("alpha"))]
    alpha: Option<f64>,
    /// Adapted parts of the fused layers of a loralib checkpoint [default: true,false,true, that is q and v]
    #[arg(long, value_delimiter = ',', value_name = "BOOL,...")]
    enable_lora: Vec<bool>,
    /// Base model of a GGUF adapter, which decides the order of rows
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Model of a diffusion pipeline to take of a file with several: unet, transformer, text_encoder, text_encoder_2, ...
    #[arg(long)]
    component: Option<String>,
}

impl Hints {
    /// The same for the library.
    pub fn options(&self) -> Options {
        Options {
            alpha: self.alpha,
            enable_lora: self.enable_lora.clone(),
            base: self.base.clone(),
            component: self.component.clone(),
        }
    }
}

/// Where a result goes.
#[derive(clap::Args)]
pub struct Output {
    /// Folder or file to write
    #[arg(long)]
    pub out: PathBuf,
    /// Replace --out if it exists
    #[arg(long)]
    force: bool,
}

impl Output {
    /// Refuses to write over one of the inputs, or over what is there where that was not asked for.
    pub fn check(&self, inputs: &[&Path]) -> Result<()> {
        Ok(check_output(&self.out, inputs, self.force)?)
    }

    /// What `write` makes, whole or not at all.
    pub fn write(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let staged = Staged::beside(&self.out)?;
        write(staged.path())?;
        Ok(staged.keep()?)
    }
}

/// Where a file goes.
#[derive(clap::Args)]
pub struct Replace {
    /// Replace the file that is written, if it exists
    #[arg(long)]
    force: bool,
}

impl Replace {
    /// The same check for `output`, where there is one.
    pub fn check(&self, output: Option<&Path>, inputs: &[&Path]) -> Result<()> {
        output.map_or(Ok(()), |output| Ok(check_output(output, inputs, self.force)?))
    }
}

/// Reads an adapter in the format named, or in the one it seems to have.
pub fn read(path: &Path, from: Option<&str>, hints: &Hints) -> Result<(Lora, FileFormat)> {
    let format = match from {
        Some(name) => FileFormat::parse(name)?,
        None => FileFormat::detect(path)?,
    };
    Ok((formats::read(path, format, &hints.options())?, format))
}

/// Writes what was made of an adapter in `from`: a file for the models of a pipeline in its own form, others as PEFT's folder.
pub fn write_back(lora: &Lora, from: FileFormat, output: &Output, hints: &Hints) -> Result<()> {
    let to = if from.pipeline { from } else { formats::peft::FORMAT };
    output.write(|out| {
        formats::write(lora, out, to, &hints.options())?;
        Ok(())
    })
}

/// Writes PEFT's folder.
pub fn write_peft(lora: &Lora, output: &Output, options: &Options) -> Result<()> {
    output.write(|out| {
        formats::write(lora, out, formats::peft::FORMAT, options)?;
        Ok(())
    })
}

/// A number type of a plain tensor.
pub fn dtype(name: &str) -> Result<lowrank::engine::Format> {
    use lowrank::engine::Format::{BF16, F16, F32};
    [F32, F16, BF16]
        .into_iter()
        .find(|f| f.name().eq_ignore_ascii_case(name))
        .ok_or_else(|| Error::Usage(unknown("number type", name, ["f32", "f16", "bf16"])))
}

/// A regular expression of the command line.
pub fn regex(pattern: &str) -> Result<tools::Regex> {
    tools::Regex::new(pattern)
        .map_err(|e| Error::Usage(format!("{pattern:?} is not a valid regular expression: {e}")))
}

/// Prints objects as aligned columns, one for each key that any of them has.
pub fn table(out: &mut Stdout, rows: &[Value]) -> Result<()> {
    let mut keys: Vec<&String> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let cells =
        |row: &Value| keys.iter().map(|key| row.get(key.as_str()).map_or_else(String::new, text)).collect();
    let mut lines: Vec<Vec<String>> = vec![keys.iter().map(ToString::to_string).collect()];
    lines.extend(rows.iter().map(cells));
    let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..keys.len()).map(width).collect();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The rule for ranks.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct RankRule {
    /// Use this rank for every layer
    #[arg(long, value_parser = super::ranges::whole::<usize>("rank"), value_name = "R")]
    rank: Option<usize>,
    /// Use the smallest rank that keeps this share of the squared singular values, such as 0.95
    #[arg(long, value_parser = super::ranges::real("energy"), value_name = "SHARE")]
    energy: Option<f64>,
    /// Use the smallest rank that keeps this share of the Frobenius norm, such as 0.9
    #[arg(long, value_parser = super::ranges::real("frobenius"), value_name = "SHARE")]
    frobenius: Option<f64>,
    /// Use the smallest rank that keeps this share of the sum of singular values
    #[arg(long, value_parser = super::ranges::real("cumulative"), value_name = "SHARE")]
    cumulative: Option<f64>,
    /// Keep singular values above the largest divided by X
    #[arg(long, value_parser = super::ranges::real("ratio"), value_name = "X")]
    ratio: Option<f64>,
}

impl RankRule {
    /// The same for the library.
    pub fn rule(&self) -> Result<tools::Rule> {
        let rule = (self.rank.map(tools::Rule::Fixed))
            .or(self.energy.map(tools::Rule::Energy))
            .or(self.frobenius.map(tools::Rule::Frobenius))
            .or(self.cumulative.map(tools::Rule::Cumulative))
            .or(self.ratio.map(tools::Rule::Ratio))
            .ok_or_else(|| {
                Error::Usage("give `rank`, `energy`, `frobenius`, `cumulative` or `ratio`".into())
            })?;
        rule.check()?;
        Ok(rule)
    }
}
