//! Names of activations in `config.json` (`transformers.activations.ACT2FN`).

use lowrank_engine::Activation;

use super::fields;
use crate::Result;

/// Names and what they mean. Those of transformers that are absent have parameters of their own (prelu, xielu) or are no
/// activations of layers (sqrtsoftplus).
const NAMES: [(&str, Activation); 21] = [
    ("gelu", Activation::Gelu),
    ("gelu_10", Activation::ClippedGelu),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_python", Activation::Gelu),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("hardswish", Activation::HardSwish),
    ("laplace", Activation::Laplace),
    ("leaky_relu", Activation::LeakyRelu),
    ("linear", Activation::Linear),
    ("mish", Activation::Mish),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
    ("relu6", Activation::Relu6),
    ("sigmoid", Activation::Sigmoid),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

/// The activation that `field` of a configuration names.
pub(crate) fn activation(field: &str, name: &str) -> Result<Activation> {
    let found = NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, activation)| *activation).ok_or_else(|| {
        let known = NAMES.map(|(known, _)| known).join(", ");
        fields::wrong(format!("{field} {name:?} is not known; known are {known}"))
    })
}
