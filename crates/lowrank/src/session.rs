//! A loaded base model with what belongs to it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lowrank_adapters::{AdapterSet, AdapterStore, BaseWeights};
use lowrank_engine::{Device, Format, Site, SiteKind};
use lowrank_models::files::Form;
use lowrank_models::{Base, Model, Tokenizer};
use lowrank_train::{Encode, Message};

use crate::{Error, Result};

/// A base model, its tokenizer and its chat template. Weights are mapped, not read.
pub struct Session {
    /// The files.
    pub base: Base,
    /// The model over them.
    pub model: Box<dyn Model>,
    tokenizer: OnceLock<Tokenizer>,
}

impl Session {
    /// Opens a Hugging Face folder, a GGUF file or a hub id (`org/name`).
    ///
    /// # Errors
    /// Where files are missing or wrong, or the architecture is unknown.
    pub fn open(model: &str) -> Result<Self> {
        Self::open_as(model, Form::default())
    }

    /// The same, with the matrices in the form asked for. Dense matrices are converted one after the other, so
    /// no more than one of them is ever in memory twice.
    ///
    /// # Errors
    /// As [`Session::open`], and where the base has no dense linear layer that could be quantised.
    pub fn open_as(model: &str, form: Form) -> Result<Self> {
        Self::over(Base::open(model)?, form)
    }

    fn over(mut base: Base, form: Form) -> Result<Self> {
        base.tensors.set_form(form);
        let model = lowrank_models::load(&base.config, &base.tensors)?;
        let session = Self { base, model, tokenizer: OnceLock::new() };
        session.check_quantised()?;
        if form.stream && session.base.tensors.converted() > 0 {
            return Err(Error::Usage(
                "--stream-base reads weights from their file as they are; --quantize and --precision bf16 keep \
                 converted ones in memory"
                    .into(),
            ));
        }
        Ok(session)
    }

    /// The processor as a device for this model.
    pub fn device(&self) -> Device {
        Device::cpu().streaming(self.base.tensors.stream())
    }

    /// The same for a plan, which needs no weights: also a `config.json`, a folder with one, or a size of GPT-3
    /// (`gpt3:175b`).
    ///
    /// # Errors
    /// As [`Session::open_as`].
    pub fn open_to_plan(model: &str, form: Form) -> Result<Self> {
        Self::over(Base::open_to_plan(model)?, Form { shapes_only: true, ..form })
    }

    fn check_quantised(&self) -> Result<()> {
        let tensors = &self.base.tensors;
        let Some(quantize) = tensors.form().quantize else { return Ok(()) };
        let (name, file) = (quantize.format().name(), self.base.source.display());
        let left = tensors.left_dense();
        if tensors.converted() > 0 {
            if let Some(first) = left.first() {
                let count = left.len();
                eprintln!(
                    "{count} matrices stay dense: their rows are no whole number of {name} blocks ({first})"
                );
            }
            return Ok(());
        }
        let why = match left.first() {
            Some(first) => format!("rows of {first} are no whole number of {name} blocks"),
            None => "its linear layers are quantised already".to_owned(),
        };
        Err(Error::Usage(format!("{file}: --quantize has nothing to quantise: {why}")))
    }

    /// The name in the files of a tensor that the model's sites call `name`: a bare model's lack the prefix.
    pub fn tensor_name(&self, name: &str) -> String {
        let kind = self.base.config["model_type"].as_str().unwrap_or_default();
        match lowrank_models::base_prefix(kind) {
            Some(prefix) if !self.base.tensors.contains(name) => format!("{prefix}.{name}"),
            _ => name.to_owned(),
        }
    }

    /// Every place an adapter can attach to.
    pub fn sites(&self) -> &[Site] {
        self.model.sites()
    }

    /// The adapter in `dir`, or none.
    ///
    /// # Errors
    /// Where the folder holds no adapter for this model.
    pub fn adapter(&self, dir: Option<&Path>) -> Result<AdapterSet> {
        Ok(match dir {
            Some(dir) => AdapterSet::load_on(dir, self.sites(), self)?,
            None => AdapterSet::none(),
        })
    }

    /// Several adapters at once, each with its weight; one with weight 1 as it is.
    ///
    /// # Errors
    /// As [`Session::adapter`].
    pub fn adapters(&self, list: &[(PathBuf, f32)]) -> Result<AdapterSet> {
        if let [] | [(_, 1.0)] = list {
            return self.adapter(list.first().map(|(dir, _)| dir.as_path()));
        }
        let mut store = AdapterStore::default();
        let mut parts = Vec::new();
        for (number, (dir, weight)) in list.iter().enumerate() {
            parts.push((number.to_string(), *weight));
            store.insert(&parts[number].0, AdapterSet::load_on(dir, self.sites(), self)?);
        }
        let parts: Vec<(&str, f32)> = parts.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        Ok(store.mix(&parts)?)
    }

    /// The tokenizer, built when first asked for.
    ///
    /// # Errors
    /// Where the model has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = self.base.tokenizer()?;
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// What the data readers need.
    ///
    /// # Errors
    /// Where there is no tokenizer, or it has no token that ends a text.
    pub fn encoder(&self) -> Result<Encoder<'_>> {
        let tokenizer = self.tokenizer()?;
        let eos = tokenizer.eos().ok_or_else(|| {
            Error::Usage(format!("{}: the tokenizer names no eos_token", self.base.source.display()))
        })?;
        Ok(Encoder { session: self, tokenizer, eos })
    }
}

impl BaseWeights for Session {
    fn read_rows(
        &self,
        path: &str,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), lowrank_adapters::Error> {
        if let Some(layer) = self.model.head_layer(path) {
            // Tied to the embedding, or new, a layer of the head need not have a tensor of its own.
            let cols = layer.weight.cols();
            for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
                layer.weight.view().expand(row, 0..cols, out);
            }
            return Ok(());
        }
        let name = self.tensor_name(&format!("{path}.weight"));
        self.base.tensors.read_rows(&name, rows, out).map_err(base_error)
    }

    fn quantised(&self, site: &Site) -> Option<Format> {
        let format = self.base.tensors.form().quantize?.format();
        let stored = self.base.tensors.format(&self.tensor_name(&format!("{}.weight", site.path)))?;
        let dense = matches!(stored, Format::F32 | Format::F16 | Format::BF16);
        let linear = matches!(site.kind, SiteKind::Linear | SiteKind::TransposedLinear);
        (dense && linear && site.in_features.is_multiple_of(format.block_len())).then_some(format)
    }

    fn read_bias(&self, path: &str, out: &mut [f32]) -> Result<(), lowrank_adapters::Error> {
        match self.model.head_layer(path).and_then(|layer| layer.bias.as_ref()) {
            Some(bias) => out.copy_from_slice(bias),
            None => {
                let name = self.tensor_name(&format!("{path}.bias"));
                self.base.tensors.read_rows(&name, 0..out.len(), out).map_err(base_error)?;
            }
        }
        Ok(())
    }
}

fn base_error(error: lowrank_models::Error) -> lowrank_adapters::Error {
    lowrank_adapters::Error::Base(error.into())
}

/// Turns text into tokens for the data readers.
pub struct Encoder<'a> {
    session: &'a Session,
    tokenizer: &'a Tokenizer,
    eos: u32,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

impl Encode for Encoder<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, Boxed> {
        Ok(self.tokenizer.encode(text)?)
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<(Vec<u32>, Vec<bool>), Boxed> {
        let template = self.session.base.chat()?;
        let messages: Vec<_> =
            messages.iter().map(|m| lowrank_models::Message::new(&m.role, &m.content)).collect();
        let rendered = template.render_with_spans(&messages)?;
        // Encoding piece by piece keeps every token on one side of a turn's border.
        let (mut tokens, mut mask, mut at) = (Vec::new(), Vec::new(), 0);
        for span in &rendered.assistant {
            for (text, trained) in
                [(&rendered.text[at..span.start], false), (&rendered.text[span.clone()], true)]
            {
                tokens.extend(self.tokenizer.encode(text)?);
                mask.resize(tokens.len(), trained);
            }
            at = span.end;
        }
        tokens.extend(self.tokenizer.encode(&rendered.text[at..])?);
        mask.resize(tokens.len(), false);
        Ok((tokens, mask))
    }

    fn eos(&self) -> u32 {
        self.eos
    }
}
