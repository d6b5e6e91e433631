//! Heads: what a model computes from its hidden states.
//!
//! A model is loaded with the head its task needs ([`load_for`]). The layers of a head are sites like any other,
//! under the names of transformers' `...ForSequenceClassification` and the like. Weights that the base's files lack
//! start as transformers starts them, normal with `initializer_range` and zero bias; training has to save such layers
//! whole ([`ModelInfo::new_layers`](crate::ModelInfo::new_layers)).

mod load;

use lowrank_engine::{Activation, LayerNorm, Linear, LmHead, Tape, Var};

use crate::parts::dropout::HEAD;

pub use load::{HeadKind, load_for};

/// The head of a model.
pub enum Head {
    /// None: the hidden states are all there is.
    None,
    /// Scores of the token that follows, for every row.
    Language(LmHead),
    /// Scores of the token that stood at a masked row.
    Masked(MaskedHead),
    /// Scores of classes, or one value.
    Classes(ClassHead),
    /// Sentence embeddings: the mean of a text's hidden states, of length 1.
    Embedding,
}

impl Head {
    /// Its linear layers, in the order they compute.
    pub fn layers(&self) -> Vec<&Linear> {
        match self {
            Self::None | Self::Embedding => Vec::new(),
            Self::Language(head) => vec![&head.linear],
            Self::Masked(head) => vec![&head.dense, &head.decoder.linear],
            Self::Classes(head) => head.layers.iter().map(|(layer, _)| layer).collect(),
        }
    }

    /// What it is, in a word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "no head",
            Self::Language(_) => "a language-model head",
            Self::Masked(_) => "a masked-language-model head",
            Self::Classes(_) => "a classification head",
            Self::Embedding => "sentence embeddings",
        }
    }
}

/// Which rows a classification head reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// The first of a text (`[CLS]`, `<s>`).
    #[default]
    First,
    /// The last of a text, the only one that has seen all of it in a decoder, that is not the padding token
    /// (`pad_token_id` of `config.json`), where there is one.
    Last(Option<u32>),
    /// Every labelled row: token classification.
    Each,
}

impl Reads {
    /// The row of a text that speaks for it; the first where all are padding tokens, as in transformers.
    pub fn row(self, tokens: &[u32]) -> usize {
        match self {
            Self::First | Self::Each => 0,
            Self::Last(padding) => tokens.iter().rposition(|token| Some(*token) != padding).unwrap_or(0),
        }
    }
}

/// Scores of classes from hidden states: linear layers with activations between.
pub struct ClassHead {
    /// Which rows it is for.
    pub reads: Reads,
    pub(crate) layers: Vec<(Linear, Option<Activation>)>,
    /// The probability of the base's dropout before each layer.
    pub(crate) dropout: Vec<f32>,
}

impl ClassHead {
    /// How many scores it gives: classes, or 1 for a value.
    pub fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |(layer, _)| layer.out_features())
    }

    /// Scores `[rows, C]` of rows of `h: [N,D]`.
    pub fn scores<'m>(&'m self, tape: &mut Tape<'m>, h: &Var<'m>, rows: &[usize]) -> Var<'m> {
        let mut x = tape.select_rows(h, rows);
        for (i, (layer, activation)) in self.layers.iter().enumerate() {
            x = tape.base_dropout(x, self.dropout[i], HEAD + i as u64);
            x = tape.linear(layer, &x, None);
            if let Some(activation) = activation {
                x = tape.activate(x, *activation);
            }
        }
        x
    }
}

/// `decoder(norm(act(dense(h))))`: the head that BERT and its kin are trained with.
pub struct MaskedHead {
    pub(crate) dense: Linear,
    pub(crate) activation: Activation,
    pub(crate) norm: LayerNorm,
    /// The output layer over what [`MaskedHead::states`] gives.
    pub decoder: LmHead,
}

impl MaskedHead {
    /// What the decoder reads for rows of `h: [N,D]`: `[rows, D]`.
    pub fn states<'m>(&'m self, tape: &mut Tape<'m>, h: &Var<'m>, rows: &[usize]) -> Var<'m> {
        let x = tape.select_rows(h, rows);
        let x = tape.linear(&self.dense, &x, None);
        let x = tape.activate(x, self.activation);
        tape.layer_norm(&self.norm, &x)
    }
}

/// Where transformers puts an architecture's heads, and what they compute.
#[derive(Clone, Copy, Debug)]
pub struct HeadLayout {
    /// Which row speaks for a text.
    pub reads: Reads,
    /// Of a sequence: a layer `[D,D]` with bias and its activation before the scores.
    pub dense: Option<(&'static str, Activation)>,
    /// The scores of a sequence.
    pub output: &'static str,
    /// The scores of a token.
    pub token_output: &'static str,
    /// Whether the scores have a bias.
    pub bias: bool,
    /// The masked-language-model head, where the architecture has one.
    pub masked: Option<MaskedLayout>,
}

/// Where the layers of a masked-language-model head are.
#[derive(Clone, Copy, Debug)]
pub struct MaskedLayout {
    /// `[D,D]`.
    pub dense: &'static str,
    /// After it.
    pub activation: Activation,
    /// Layer norm after that, and its `eps`.
    pub norm: (&'static str, f32),
    /// Output layer `[V,D]`, if its weight is not that of `table`.
    pub decoder: &'static str,
    /// Name of its bias.
    pub bias: &'static str,
    /// Embedding whose weight it shares.
    pub table: &'static str,
}

impl HeadLayout {
    /// Of decoders: `score`, without bias, on the last token.
    pub const DECODER: Self = Self {
        reads: Reads::Last(None),
        dense: None,
        output: "score",
        token_output: "score",
        bias: false,
        masked: None,
    };
}
