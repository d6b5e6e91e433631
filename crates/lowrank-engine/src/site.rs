//! Places of a model that an adapter can attach to.

/// Names a place of a model that an adapter can attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub usize);

impl SiteId {
    /// Of a layer that no adapter attaches to.
    pub const NONE: Self = Self(usize::MAX);
}

/// What kind of layer a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// `y = x W^T`.
    Linear,
    /// `y = x W`: a linear layer whose weight is stored transposed (`Conv1D` of GPT-2).
    TransposedLinear,
    /// The output embedding (language-model head): PEFT's `all-linear` leaves it out.
    Head,
    /// The same where its weight is that of the embedding at this site.
    TiedHead(SiteId),
    /// Rows of a table.
    Embedding,
    /// A norm: its weight, and its bias where it has one. No adapter attaches to it, but it can be trained.
    Norm,
    /// A linear layer over [`crate::Tape::unfold`]: a one-dimensional convolution inside a model.
    Convolution,
}

/// A place of a model that an adapter can attach to.
#[derive(Clone, Debug)]
pub struct Site {
    /// Hugging Face's module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What kind of layer it is.
    pub kind: SiteKind,
    /// Input features (rows of the table for an embedding).
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
}
