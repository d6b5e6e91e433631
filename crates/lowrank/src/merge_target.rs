//! What a merged model is written as: the format of each of its tensors.

use std::collections::HashMap;
use std::path::Path;

use lowrank_adapters::AdapterSet;
use lowrank_engine::Format;
use lowrank_models::{FileType, Kind, gguf_formats};

use crate::rounding::Rounding;
use crate::{Error, Result, Session};

/// What a merged model is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeTarget {
    /// A Hugging Face folder with safetensors: F32, F16 or BF16.
    Folder(Format),
    /// A GGUF file, whose tensors have the formats of a file type; without one those that they have in the base's file.
    Gguf(Option<FileType>),
}

/// Share of what an adapter adds below which rounding undoes it.
pub(crate) const KEPT: f64 = 0.5;

impl MergeTarget {
    /// What to write to `out`: a GGUF file where its name ends in `.gguf`, else a folder. The type is that of the name
    /// `dtype`. Without one a GGUF file of a GGUF base keeps the base's types, or is Q8_0 where those are not written here or
    /// rounding to them would undo most of what the adapter adds; all else is in the base's format, if it is plain, or F16.
    ///
    /// # Errors
    /// Where `dtype` is not possible there.
    pub fn choose(session: &Session, adapters: &AdapterSet, out: &Path, dtype: Option<&str>) -> Result<Self> {
        let gguf = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let plain = || session.base.tensors.plain_format().unwrap_or(Format::F16);
        let wrong = |name: &str, kind: &str, known: &[FileType]| {
            let names: Vec<&str> = known.iter().map(|t| t.name()).collect();
            Error::Usage(format!("`dtype` {name:?} is not possible in {kind}: {}", names.join(", ")))
        };
        let find = |name: &str| FileType::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name));
        Ok(match (gguf, dtype) {
            (true, None) if matches!(session.base.kind, Kind::Gguf(_)) => {
                let own = Self::Gguf(None);
                // What cannot be merged is refused when it is written.
                let kept = own.kept(session, adapters).unwrap_or(1.0) >= KEPT;
                if kept { own } else { Self::Gguf(Some(FileType::Q8_0)) }
            }
            (true, None) => Self::Gguf(FileType::plain(plain())),
            (true, Some(name)) => {
                Self::Gguf(Some(find(name).ok_or_else(|| wrong(name, "a GGUF file", &FileType::ALL))?))
            }
            (false, None) => Self::Folder(plain()),
            (false, Some(name)) => {
                let formats = [Format::F32, Format::F16, Format::BF16];
                let named = |f: &Format| f.name().eq_ignore_ascii_case(name);
                let known = [FileType::F32, FileType::F16, FileType::BF16];
                Self::Folder(
                    formats.into_iter().find(named).ok_or_else(|| wrong(name, "safetensors", &known))?,
                )
            }
        })
    }

    /// What to say where [`MergeTarget::choose`] found without a `dtype` that the base's own types would not do.
    pub fn note(self, session: &Session, dtype: Option<&str>) -> Option<String> {
        let Self::Gguf(Some(file_type)) = self else { return None };
        (dtype.is_none() && matches!(session.base.kind, Kind::Gguf(_))).then(|| {
            let name = file_type.name();
            let tensors = &session.base.tensors;
            let read_only =
                tensors.names().filter_map(|name| tensors.format(name)).find(|format| !format.can_quantize());
            match read_only {
                Some(format) => format!("written as {name}: {} is read but not written here", format.name()),
                None => format!(
                    "written as {name}: rounding to the base's own types would undo most of what the adapter adds"
                ),
            }
        })
    }

    /// How much of what all adapted layers add is left where their first rows are rounded.
    fn kept(self, session: &Session, adapters: &AdapterSet) -> Result<f64> {
        /// Rows of each layer that are tried.
        const ROWS: usize = 64;
        let formats = self.formats(session)?;
        let mut sum = Rounding::default();
        for layer in &adapters.layers {
            let name = format!("{}.weight", layer.site.path);
            let stored = session.tensor_name(&name);
            if !formats.of(&stored).can_quantize() {
                return Ok(0.0);
            }
            let Some((rows, cols)) = session.base.tensors.matrix_shape(&stored) else { continue };
            let rows = rows.min(ROWS);
            let mut values = vec![0.0; rows * cols];
            session.base.tensors.read_rows(&stored, 0..rows, &mut values)?;
            let before = values.clone();
            adapters.merge_rows(session, &name, 0..rows, &mut values)?;
            if let Some(rounding) = Rounding::of(formats.of(&stored), &before, &values, rows) {
                sum = sum.plus(&rounding);
            }
        }
        Ok(sum.kept())
    }

    /// The format that each tensor is written in.
    pub(crate) fn formats(self, session: &Session) -> Result<Formats> {
        Ok(match self {
            Self::Folder(format) => Formats { all: format, by_name: HashMap::new() },
            Self::Gguf(_) if !session.task.task.is_language() => {
                let task = session.task.task.name();
                return Err(Error::Usage(format!(
                    "GGUF has no place for the head of the task {task}; give a folder"
                )));
            }
            Self::Gguf(file_type) => {
                let by_name = gguf_formats(&session.base, file_type)?;
                // A vector is F32 whatever the rest.
                let matrix =
                    |name: &str| session.base.tensors.shape(name).is_some_and(|shape| shape.len() > 1);
                let formats = by_name.iter().filter(|(name, _)| matrix(name)).map(|(_, format)| *format);
                let all = formats.min_by(|a, b| bits(*a).total_cmp(&bits(*b))).unwrap_or(Format::F32);
                Formats { all, by_name }
            }
        })
    }
}

/// Bits of a value. BF16 counts less than F16, since its values are coarser.
fn bits(format: Format) -> f64 {
    let bits = 8.0 * format.block_bytes() as f64 / format.block_len() as f64;
    if format == Format::BF16 { bits - 0.5 } else { bits }
}

/// The formats of the tensors of a merged model.
pub(crate) struct Formats {
    /// Of those that `by_name` lacks; the coarsest of all matrices.
    pub all: Format,
    /// By the names in the base.
    by_name: HashMap<String, Format>,
}

impl Formats {
    pub fn of(&self, name: &str) -> Format {
        self.by_name.get(name).copied().unwrap_or(self.all)
    }
}

/// The largest value that `format` can hold: that of its scale, where it has one in f16.
pub(crate) fn largest_value(format: Format) -> f32 {
    const F16: f32 = 65519.0;
    match format {
        Format::F16 | Format::Q4_1 | Format::Q5_1 => F16,
        Format::Q4_0 => 8.0 * F16,
        Format::Q5_0 => 16.0 * F16,
        // Half of what the scales hold, since the fit of a sub-block may go beyond its values.
        Format::Q4_K | Format::Q5_K => 31.0 * F16,
        Format::Q6_K => 2000.0 * F16,
        Format::Q8_0 => 127.0 * F16,
        // What rounds to infinity in BF16.
        Format::BF16 => 3.395e38,
        _ => f32::MAX,
    }
}
