//! The tensors of a base model, by Hugging Face name, wherever they lie.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use lowrank_engine::{FrozenWeight, Span, Storage, give_back};
use lowrank_kernels::{Format, RowOrder, WeightRef};
use rayon::prelude::*;

use crate::entry::{Entry, MappedFile};
use crate::error::{Error, Result, shown};
use crate::load_options::LoadOptions;
use crate::packed::Packed;
use crate::planned::Planned;
use crate::{pytorch, safetensors};

/// Bytes of a tensor up to which it is read at once and its pages are left alone.
const SMALL: usize = 64 << 10;

/// Numbers from which on reading is shared among threads.
const PARALLEL: usize = 1 << 16;

/// What became of the matrices so far.
#[derive(Default)]
pub(crate) struct Converted {
    pub bytes: HashMap<String, usize>,
    pub left: Vec<String>,
    /// Most bytes that one conversion takes beside its result.
    pub temporary: usize,
    /// Tables of which only single rows are read.
    pub lookups: HashSet<String>,
}

/// The tensors of a base model. Nothing is read before it is asked for.
#[derive(Default)]
pub struct Tensors {
    files: Vec<MappedFile>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    pub(crate) options: LoadOptions,
    pub(crate) converted: Mutex<Converted>,
    /// What the file has added to every number of a tensor; reading takes it off.
    added: HashMap<String, f32>,
    /// What is read in place of the files' tensors.
    replaced: HashMap<String, FrozenWeight>,
    /// Tensors that became parts of others.
    swept: HashSet<String>,
    pub(crate) planned: Option<Planned>,
}

impl Tensors {
    /// The tensors of one file, safetensors or PyTorch's (`.bin`, `.pt`, `.pth`), which its name or first bytes tell.
    ///
    /// # Errors
    /// Where the file is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let mut tensors = Self::default();
        tensors.add_all_of(path)?;
        Ok(tensors)
    }

    pub(crate) fn add_all_of(&mut self, path: &Path) -> Result<()> {
        let file = MappedFile::open(path)?;
        let named = path.extension().is_some_and(|e| e == "bin" || e == "pt" || e == "pth");
        let entries = match named || pytorch::is_pytorch(&file.map) {
            true => pytorch::read(&file)?,
            false => safetensors::read(&file)?,
        };
        let index = self.add_file(file);
        entries.into_iter().try_for_each(|entry| self.add(Entry { file: index, ..entry }))
    }

    pub(crate) fn add_file(&mut self, file: MappedFile) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    pub(crate) fn add(&mut self, entry: Entry) -> Result<()> {
        if self.by_name.insert(entry.name.clone(), self.entries.len()).is_some() {
            return Err(Error::tensor(&self.files[entry.file].path, &entry.name, "appears twice"));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Says that the file keeps `number + added` for every number of `name`.
    pub(crate) fn set_added(&mut self, name: &str, added: f32) {
        if added != 0.0 {
            self.added.insert(name.to_owned(), added);
        }
    }

    /// Puts `prefix.` before every name but the head's, where no name has it: GPT-2's files on the hub and others
    /// of models without head.
    pub fn complete_names(&mut self, prefix: &str) {
        let begins =
            |name: &str, with: &str| name.strip_prefix(with).is_some_and(|rest| rest.starts_with('.'));
        if self.names().any(|name| begins(name, prefix)) {
            return;
        }
        for entry in self.entries.iter_mut().filter(|e| !begins(&e.name, "lm_head")) {
            entry.name = format!("{prefix}.{}", entry.name);
        }
        self.by_name = self.entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
    }

    /// Gives a tensor another name.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(at) = self.by_name.remove(from) {
            self.entries[at].name = to.to_owned();
            self.by_name.insert(to.to_owned(), at);
        }
    }

    /// Leaves a tensor out.
    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| entry.name != name);
        self.by_name = self.entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
    }

    /// Whether two tensors have the same shape and values. Reads until they differ, and keeps nothing in memory.
    pub fn equal(&self, one: &str, other: &str) -> bool {
        let (Some(a), Some(b)) = (self.entry(one), self.entry(other)) else { return false };
        let (rows, cols) = a.as_matrix();
        if a.shape != b.shape || a.format.is_err() || b.format.is_err() {
            return false;
        }
        let step = (PARALLEL / cols.max(1)).max(1);
        let same = (0..rows).step_by(step).all(|start| {
            let piece = start..rows.min(start + step);
            let read = |name: &str| {
                let mut values = vec![0.0; piece.len() * cols];
                self.read_rows(name, piece.clone(), &mut values).ok().map(|()| values)
            };
            read(one).zip(read(other)).is_some_and(|(a, b)| a == b)
        });
        self.release(one);
        self.release(other);
        same
    }

    /// Has `numbers` read in place of a tensor from now on.
    ///
    /// # Errors
    /// Where there is no such tensor, or it has another number of numbers.
    pub fn replace(&mut self, name: &str, numbers: &[f32]) -> Result<()> {
        let (entry, file) = self.find(name)?;
        let (rows, cols) = entry.as_matrix();
        if numbers.len() != rows * cols {
            let what = format!("has {rows} x {cols} numbers and cannot be replaced by {}", numbers.len());
            return Err(Error::tensor(&file.path, name, what));
        }
        self.replaced.insert(name.to_owned(), FrozenWeight::from_f32(rows, cols, numbers));
        Ok(())
    }

    /// Has the files' own tensors read again.
    pub fn restore(&mut self) {
        self.replaced.clear();
    }

    /// The names in the order of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    /// Type, shape and place of a tensor as its file has it.
    pub(crate) fn raw(&self, name: &str) -> Option<(String, Vec<usize>, Span)> {
        let entry = self.entry(name).filter(|entry| entry.packed.is_none())?;
        let dtype = entry.format.as_ref().map_or_else(Clone::clone, |format| format.name().to_owned());
        Some((dtype, entry.shape.clone(), (self.files[entry.file].map.clone(), entry.bytes.clone())))
    }

    /// Puts `packed` in the place of the tensor `main`, under the name `name`. The tensors `others` are gone with the
    /// next [`Tensors::sweep`].
    pub(crate) fn pack(
        &mut self,
        main: &str,
        name: &str,
        packed: Packed,
        others: impl IntoIterator<Item = String>,
    ) {
        self.rename(main, name);
        if let Some(&at) = self.by_name.get(name) {
            let entry = &mut self.entries[at];
            (entry.format, entry.shape) = (Ok(packed.format), vec![packed.rows, packed.cols]);
            entry.packed = Some(Arc::new(packed));
        }
        self.swept.extend(others);
    }

    /// Leaves out the tensors that others were made of.
    pub(crate) fn sweep(&mut self) {
        let swept = std::mem::take(&mut self.swept);
        self.entries.retain(|entry| !swept.contains(&entry.name));
        self.by_name = self.entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
    }

    pub(crate) fn is_packed(&self, name: &str) -> bool {
        self.entry(name).is_some_and(|entry| entry.packed.is_some())
    }

    /// Whether matrices are made of several tensors.
    pub fn has_packed(&self) -> bool {
        self.entries.iter().any(|entry| entry.packed.is_some())
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the model has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Shape, outermost axis first (`[O, K]` for a projection).
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entry(name).map(|e| e.shape.as_slice())
    }

    /// Storage format; `None` for a missing tensor and for number types we do not read.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.entry(name).and_then(|e| e.format.as_ref().ok().copied())
    }

    /// Of a tensor in a number type we do not read: the type's name and the bytes as they are.
    pub fn unread(&self, name: &str) -> Option<(&str, &[u8])> {
        let entry = self.entry(name)?;
        let dtype = entry.format.as_ref().err()?;
        Some((dtype, &self.files[entry.file].map[entry.bytes.clone()]))
    }

    /// The bytes of a tensor as they lie in the file; `None` where other values are read in its place.
    pub fn stored(&self, name: &str) -> Option<&[u8]> {
        let entry =
            self.entry(name).filter(|entry| entry.packed.is_none() && !self.replaced.contains_key(name))?;
        Some(&self.files[entry.file].map[entry.bytes.clone()])
    }

    /// The order of the stored rows.
    pub fn order(&self, name: &str) -> Option<RowOrder> {
        self.entry(name).map(|e| e.order)
    }

    /// The file a tensor lies in, for messages.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.entry(name).map(|e| self.files[e.file].path.as_path())
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> usize {
        match &self.planned {
            Some(planned) => planned.parameters(),
            None => self.entries.iter().map(|e| e.shape.iter().product::<usize>()).sum(),
        }
    }

    /// Bytes of all tensors as stored.
    pub fn byte_len(&self) -> u64 {
        if let Some(planned) = &self.planned {
            return planned.sizes().iter().map(|(_, bytes)| *bytes as u64).sum();
        }
        self.stored_sizes().map(|(_, bytes)| bytes as u64).sum()
    }

    /// Name and stored bytes of each tensor.
    pub(crate) fn stored_sizes(&self) -> impl Iterator<Item = (&str, usize)> {
        let bytes = |e: &Entry| e.packed.as_ref().map_or(e.bytes.len(), |packed| packed.stored);
        self.entries.iter().map(move |e| (e.name.as_str(), bytes(e)))
    }

    /// Name and place of each tensor.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (&str, Span)> {
        self.entries.iter().map(|e| (e.name.as_str(), (self.files[e.file].map.clone(), e.bytes.clone())))
    }

    /// Gives the memory of a tensor's pages back: what is read there again comes from the file.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.entry(name) {
            give_back(&(self.files[entry.file].map.clone(), entry.bytes.clone()));
        }
    }

    /// The plain format (F32, F16 or BF16) most of the numbers are in, or `None` where most are
    /// quantised.
    pub fn plain_format(&self) -> Option<Format> {
        let mut counts = [(Format::F32, 0usize), (Format::F16, 0), (Format::BF16, 0)];
        let mut quantised = 0;
        for entry in &self.entries {
            let numbers: usize = entry.shape.iter().product();
            match entry.format {
                Ok(format) => match counts.iter_mut().find(|(f, _)| *f == format) {
                    Some((_, count)) => *count += numbers,
                    None => quantised += numbers,
                },
                Err(_) => continue,
            }
        }
        let (format, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        (count > quantised).then_some(format)
    }

    /// A matrix as a frozen weight, read where it lies.
    ///
    /// # Errors
    /// Where the tensor is missing (the message lists names like it), is no matrix, or is stored in a
    /// number type we do not read.
    pub fn weight(&self, name: &str) -> Result<FrozenWeight> {
        if let Some(planned) = &self.planned {
            return planned.weight(name);
        }
        let (entry, file) = self.find(name)?;
        let fail = |what: String| Error::tensor(&file.path, name, what);
        let format = entry.readable().map_err(fail)?;
        let &[rows, cols] = entry.shape.as_slice() else {
            return Err(fail(format!("expected a matrix, found shape {:?}", entry.shape)));
        };
        if rows == 0 || cols == 0 {
            return Err(fail(format!("is empty (shape {:?})", entry.shape)));
        }
        if let Some(replaced) = self.replaced.get(name) {
            return Ok(replaced.clone());
        }
        if let Some(packed) = &entry.packed {
            self.note_conversion(packed.stored);
            let weight = match self.options.shapes_only {
                true => packed.shape_only(),
                false => packed.weight(),
            };
            let weight = weight.map_err(fail)?;
            self.note(name, &weight);
            return Ok(weight);
        }
        let storage = Storage::Mapped(file.map.clone(), entry.bytes.clone());
        FrozenWeight::new(format, rows, cols, entry.order, storage).map_err(|e| fail(e.to_string()))
    }

    /// A vector (norm weight, bias) as f32, in Hugging Face's order.
    ///
    /// # Errors
    /// As [`Tensors::weight`], with a vector asked for.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        if let Some(planned) = &self.planned {
            return planned.vector(name);
        }
        let (entry, file) = self.find(name)?;
        let &[len] = entry.shape.as_slice() else {
            let what = format!("expected a vector, found shape {:?}", entry.shape);
            return Err(Error::tensor(&file.path, name, what));
        };
        let mut out = vec![0.0; len];
        self.read_rows(name, 0..len, &mut out)?;
        Ok(out)
    }

    /// Rows `rows` (Hugging Face's order) of any tensor as f32. A vector has rows of one number; a
    /// tensor of more than two axes is seen as `[first, product of the others]`.
    ///
    /// # Errors
    /// Where the tensor is missing or unreadable, the rows lie outside it, or `out` has another length.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (entry, file) = self.find(name)?;
        let fail = |what: String| Error::tensor(&file.path, name, what);
        let format = entry.readable().map_err(fail)?;
        let (total, cols) = entry.as_matrix();
        if rows.start > rows.end || rows.end > total || out.len() != rows.len() * cols {
            return Err(fail(format!("rows {rows:?} of {total} x {cols} do not fill {} numbers", out.len())));
        }
        if out.is_empty() {
            return Ok(());
        }
        if let Some(replaced) = self.replaced.get(name) {
            let view = replaced.view();
            rows.zip(out.chunks_exact_mut(cols)).for_each(|(row, out)| view.expand(row, 0..cols, out));
            return Ok(());
        }
        if let Some(packed) = &entry.packed {
            let weight = packed.weight().map_err(fail)?;
            let view = weight.view();
            rows.zip(out.chunks_exact_mut(cols)).for_each(|(row, out)| view.expand(row, 0..cols, out));
            return Ok(());
        }
        if format.row_bytes(cols).is_none() {
            return Err(fail(format!(
                "rows of {cols} values cannot be read from blocks of {}",
                format.name()
            )));
        }
        let copy;
        let bytes = if entry.bytes.len() <= SMALL {
            let mut bytes = vec![0; entry.bytes.len()];
            file.map.read(entry.bytes.start, &mut bytes);
            copy = bytes;
            &copy[..]
        } else {
            &file.map[entry.bytes.clone()]
        };
        let view = WeightRef { format, rows: total, cols, order: entry.order, bytes };
        let one = |(at, out): (usize, &mut [f32])| view.expand(rows.start + at, 0..cols, out);
        if out.len() < PARALLEL {
            out.chunks_exact_mut(cols).enumerate().for_each(one);
        } else {
            out.par_chunks_exact_mut(cols).enumerate().for_each(one);
        }
        if let Some(added) = self.added.get(name) {
            out.iter_mut().for_each(|x| *x -= added);
        }
        Ok(())
    }

    /// All values of a tensor, also of one whose number type is only read as a whole: F64, integers and BOOL.
    ///
    /// # Errors
    /// If there is no such tensor, or its number type is another.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        if let Some((dtype, bytes)) = self.unread(name)
            && let Some(values) = plain_values(dtype, bytes)
        {
            return Ok(values);
        }
        let (rows, cols) = self.matrix_shape(name).ok_or_else(|| self.missing(name))?;
        let mut values = vec![0.0; rows * cols];
        self.read_rows(name, 0..rows, &mut values)?;
        Ok(values)
    }

    /// Rows and columns of a tensor as [`Tensors::read_rows`] sees it.
    pub fn matrix_shape(&self, name: &str) -> Option<(usize, usize)> {
        self.entry(name).map(Entry::as_matrix)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    fn find(&self, name: &str) -> Result<(&Entry, &MappedFile)> {
        match self.entry(name) {
            Some(entry) => Ok((entry, &self.files[entry.file])),
            None => Err(self.missing(name)),
        }
    }

    /// Says that there is no tensor `name`, and what there is like it.
    pub fn missing(&self, name: &str) -> Error {
        // Names are short; one out of a hostile file need not be.
        let cut = |name: &str| name.chars().take(128).collect::<String>();
        let wanted = cut(name);
        let mut near: Vec<(usize, &str)> = self
            .names()
            .map(|have| (strsim::levenshtein(&wanted, &cut(have)), have))
            .filter(|(far, have)| *far <= 4.max(have.len() / 4))
            .collect();
        near.sort_unstable();
        let what = if near.is_empty() {
            let some: Vec<String> = self.names().take(5).map(shown).collect();
            format!("is missing; the file holds {} tensors, such as {}", self.len(), some.join(", "))
        } else {
            let names: Vec<String> = near.iter().take(3).map(|(_, n)| shown(n)).collect();
            format!("is missing; the nearest names are {}", names.join(", "))
        };
        let path = match self.files.as_slice() {
            [one] => one.path.clone(),
            many => many.first().and_then(|f| f.path.parent()).unwrap_or(Path::new("model")).to_owned(),
        };
        Error::tensor(&path, name, what)
    }
}

impl std::fmt::Debug for Tensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensors({} in {} files)", self.len(), self.files.len())
    }
}
/// Values of the number types that no weight has.
fn plain_values(dtype: &str, bytes: &[u8]) -> Option<Vec<f32>> {
    macro_rules! read {
        ($T:ty) => {
            bytes
                .chunks_exact(size_of::<$T>())
                .map(|b| <$T>::from_le_bytes(b.try_into().expect("the size of the type")) as f32)
                .collect()
        };
    }
    Some(match dtype {
        "F64" => read!(f64),
        "I64" => read!(i64),
        "U64" => read!(u64),
        "I32" => read!(i32),
        "U32" => read!(u32),
        "I16" => read!(i16),
        "U16" => read!(u16),
        "I8" => read!(i8),
        "U8" | "BOOL" => read!(u8),
        _ => return None,
    })
}
