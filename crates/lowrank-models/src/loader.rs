//! Takes the weights of a model out of its files by module path, and numbers the sites on the way.

use std::borrow::Cow;

use lowrank_engine::{
    Embedding, FrozenWeight, LayerNorm, Linear, LmHead, RmsNorm, Site, SiteId, SiteKind, Tensor,
};
use lowrank_files::{Role, Tensors};

use crate::wrapper::Wrapper;
use crate::{Error, Result};

/// Builds the layers of an architecture.
pub struct Loader<'a> {
    tensors: &'a Tensors,
    sites: Vec<Site>,
    with_head: bool,
    /// The model that this one is a part of.
    within: Option<&'static Wrapper>,
}

impl<'a> Loader<'a> {
    /// A loader over the tensors of a model.
    pub fn new(tensors: &'a Tensors) -> Self {
        Self { tensors, sites: Vec::new(), with_head: true, within: None }
    }

    /// A loader of a model whose language-model head is not wanted.
    pub(crate) fn without_head(tensors: &'a Tensors) -> Self {
        Self { with_head: false, ..Self::new(tensors) }
    }

    /// The same of a model that is a part of another: paths are those of the whole.
    pub(crate) fn within(self, wrapper: &'static Wrapper) -> Self {
        Self { within: Some(wrapper), ..self }
    }

    /// The module path, or the tensor's name, in the whole model.
    fn at<'p>(&self, path: &'p str) -> Cow<'p, str> {
        match self.within {
            Some(wrapper) => wrapper.whole(path).into(),
            None => path.into(),
        }
    }

    /// A loader that goes on where another ended, at its sites.
    pub fn continued(tensors: &'a Tensors, sites: Vec<Site>) -> Self {
        Self { sites, ..Self::new(tensors) }
    }

    /// The sites of all layers that were made.
    pub fn into_sites(self) -> Vec<Site> {
        self.sites
    }

    /// Whether an output layer that may be `tied` has a weight of its own: where the file has one, and always where
    /// it is not tied.
    pub fn is_own(&self, path: &str, tied: bool) -> bool {
        !tied || !self.tensors.is_planned() && self.tensors.contains(&format!("{}.weight", self.at(path)))
    }

    /// Whether the file has `path.weight` and its shape is `[outputs, inputs]`.
    pub fn fits(&self, path: &str, inputs: usize, outputs: usize) -> bool {
        self.tensors.shape(&format!("{}.weight", self.at(path))) == Some(&[outputs, inputs][..])
    }

    /// A linear layer `W: [out,in]` with, where asked, its bias.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn linear(&mut self, path: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        let name = format!("{}.weight", self.at(path));
        self.tensors.plan(&name, outputs, inputs)?;
        let weight = self.tensors.matrix(&name, Role::Linear)?;
        self.expect(&name, &[weight.rows(), weight.cols()], &[outputs, inputs])?;
        let bias = if bias { Some(self.vector(&format!("{path}.bias"), outputs)?) } else { None };
        let site = self.site(path, SiteKind::Linear, inputs, outputs, bias.is_some());
        Ok(Linear { site, weight, bias, transposed: false })
    }

    /// A linear layer stored as `W: [in,out]`, with its bias: `Conv1D` of GPT-2. The weight stays where and as
    /// it lies, unless it is converted.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn conv1d(&mut self, path: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let name = format!("{}.weight", self.at(path));
        self.tensors.plan(&name, inputs, outputs)?;
        let (weight, transposed) = self.tensors.transposed_matrix(&name)?;
        let want = if transposed { [inputs, outputs] } else { [outputs, inputs] };
        self.expect(&name, &[weight.rows(), weight.cols()], &want)?;
        let bias = Some(self.vector(&format!("{path}.bias"), outputs)?);
        let site = self.site(path, SiteKind::TransposedLinear, inputs, outputs, true);
        Ok(Linear { site, weight, bias, transposed })
    }

    /// A one-dimensional convolution `W: [out, in / groups, kernel]` with its bias, as a linear layer over
    /// [`lowrank_engine::Tape::unfold`]. Its weight becomes F32 and only its bias can be trained.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn convolution(
        &mut self,
        path: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        groups: usize,
    ) -> Result<Linear> {
        let (name, inner) = (format!("{}.weight", self.at(path)), inputs / groups);
        self.tensors.plan(&name, outputs, inner * kernel)?;
        let weight = if self.tensors.is_planned() {
            self.tensors.weight(&name)?
        } else {
            let Some(have) = self.tensors.shape(&name) else {
                return Err(self.tensors.missing(&name).into());
            };
            self.expect(&name, have, &[outputs, inner, kernel])?;
            let mut stored = vec![0.0; outputs * inner * kernel];
            self.tensors.read_rows(&name, 0..outputs, &mut stored)?;
            // Where there are groups, most of the whole matrix is zero.
            let mut whole = vec![0.0; outputs * inputs * kernel];
            let rows = whole.chunks_exact_mut(inputs * kernel).zip(stored.chunks_exact(inner * kernel));
            for (o, (row, own)) in rows.enumerate() {
                let group = o / (outputs / groups);
                row[group * inner * kernel..][..own.len()].copy_from_slice(own);
            }
            FrozenWeight::from_f32(outputs, inputs * kernel, &whole)
        };
        let bias = Some(self.vector(&format!("{path}.bias"), outputs)?);
        let site = self.site(path, SiteKind::Convolution, inputs * kernel, outputs, true);
        Ok(Linear { site, weight, bias, transposed: false })
    }

    /// The language-model head, where it is wanted: its own weight or, where tied, the embedding's.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn language_head(
        &mut self,
        path: &str,
        tied: Option<&Embedding>,
        inputs: usize,
        outputs: usize,
    ) -> Result<Option<LmHead>> {
        if !self.with_head {
            return Ok(None);
        }
        let tied = tied.filter(|_| !self.is_own(path, true));
        let weight = match tied {
            Some(table) => self.matrix(&self.sites[table.site.0].path, outputs, inputs)?,
            None => self.own_output(path, outputs, inputs)?,
        };
        let kind = tied.map_or(SiteKind::Head, |table| SiteKind::TiedHead(table.site));
        let site = self.site(path, kind, inputs, outputs, false);
        let linear = Linear { site, weight, bias: None, transposed: false };
        Ok(Some(LmHead { linear, softcap: None, scale: 1.0 }))
    }

    /// Gives the output layer, the last that was made, its bias.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn add_bias(&mut self, layer: &mut Linear) -> Result<()> {
        let site = &self.sites[layer.site.0];
        let bias = self.vector(&format!("{}.bias", site.path), site.out_features)?;
        self.sites[layer.site.0].bias = true;
        layer.bias = Some(bias);
        Ok(())
    }

    /// The weight of an output layer that shares none.
    pub(crate) fn own_output(&self, path: &str, rows: usize, cols: usize) -> Result<FrozenWeight> {
        let name = format!("{}.weight", self.at(path));
        if !self.tensors.is_planned() && !self.tensors.contains(&name) {
            let missing = self.tensors.missing(&name);
            return Err(Error::Config(format!(
                "{missing}; a model whose output layer is the embedding has tie_word_embeddings true in config.json"
            )));
        }
        self.matrix(path, rows, cols)
    }

    /// A vector that the file need not have.
    ///
    /// # Errors
    /// Where it is there but unreadable.
    pub fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let name = &*self.at(name);
        Ok(if self.tensors.contains(name) { Some(self.tensors.vector(name)?) } else { None })
    }

    /// A table of `rows` embeddings.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn embedding(&mut self, path: &str, rows: usize, width: usize) -> Result<Embedding> {
        let name = format!("{}.weight", self.at(path));
        self.tensors.plan(&name, rows, width)?;
        let weight = self.tensors.table(&name)?;
        self.expect(&name, &[weight.rows(), weight.cols()], &[rows, width])?;
        let site = self.site(path, SiteKind::Embedding, rows, width, false);
        Ok(Embedding { site, weight, scale: 1.0 })
    }

    /// An RMS norm over `width` numbers.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn rms_norm(&mut self, path: &str, width: usize, eps: f32) -> Result<RmsNorm> {
        let weight = self.vector(&format!("{path}.weight"), width)?;
        let site = self.site(path, SiteKind::Norm, width, width, false);
        Ok(RmsNorm { site, weight, eps, offset: 0.0 })
    }

    /// A layer norm over `width` numbers, with its bias.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn layer_norm(&mut self, path: &str, width: usize, eps: f32) -> Result<LayerNorm> {
        self.layer_norm_with(path, width, eps, true)
    }

    /// The same with or without bias.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn layer_norm_with(&mut self, path: &str, width: usize, eps: f32, bias: bool) -> Result<LayerNorm> {
        let weight = self.vector(&format!("{path}.weight"), width)?;
        let bias = if bias { Some(self.vector(&format!("{path}.bias"), width)?) } else { None };
        let site = self.site(path, SiteKind::Norm, width, width, bias.is_some());
        Ok(LayerNorm { site, weight, bias, eps, offset: 0.0 })
    }

    pub(crate) fn matrix(&self, path: &str, rows: usize, cols: usize) -> Result<FrozenWeight> {
        let name = format!("{}.weight", self.at(path));
        self.tensors.plan(&name, rows, cols)?;
        let weight = self.tensors.matrix(&name, Role::Output)?;
        self.expect(&name, &[weight.rows(), weight.cols()], &[rows, cols])?;
        Ok(weight)
    }

    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        let name = &*self.at(name);
        self.tensors.plan(name, len, 1)?;
        let vector = self.tensors.vector(name)?;
        self.expect(name, &[vector.len()], &[len])?;
        Ok(Tensor::vector(vector))
    }

    fn expect(&self, name: &str, have: &[usize], want: &[usize]) -> Result<()> {
        if have == want {
            return Ok(());
        }
        let file = self.tensors.file_of(name).unwrap_or("model".as_ref());
        Err(Error::tensor(file, name, format!("its shape is {have:?}; the configuration asks for {want:?}")))
    }

    /// The site that a layer was made at.
    pub(crate) fn site_at(&self, path: &str) -> Option<SiteId> {
        let path = self.at(path);
        self.sites.iter().position(|site| site.path == path).map(SiteId)
    }

    pub(crate) fn site(
        &mut self,
        path: &str,
        kind: SiteKind,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> SiteId {
        let path = self.at(path).into_owned();
        self.sites.push(Site { path, kind, in_features, out_features, bias });
        SiteId(self.sites.len() - 1)
    }
}
