"""Load a base model and its tokenizer from a GGUF file or a Hugging Face folder, always in the given dtype."""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer


def source(path):
    """The arguments of `from_pretrained` that read `path`."""
    path = Path(path)
    if path.suffix == ".gguf":
        return path.parent, {"gguf_file": path.name}
    return path, {}


def load_base(path, dtype=torch.float32, **kwargs):
    folder, where = source(path)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where, **kwargs).eval()


def load_tokenizer(path):
    folder, where = source(path)
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    if where:
        # transformers ignores `tokenizer.ggml.pre`. The GGUF files used here say `smollm`: every digit on its own.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer
