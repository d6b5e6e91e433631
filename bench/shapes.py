"""Well-known model shapes with random weights, for timing: speed does not depend on the values."""

from transformers import GPT2Config, LlamaConfig, RobertaConfig

SHAPES = {
    "gpt2-small": GPT2Config,
    "smollm2-135m": lambda: LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "roberta-base": lambda: RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    ),
}
