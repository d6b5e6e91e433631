"""What transformers makes of a config.json: tiny models whose weights follow from their names alone.

`verdict` writes a model folder and loads it with transformers. The weights are those of `values`, which
crates/lowrank/tests/configs.rs computes as well, so that a case is a line of JSON.
"""

import contextlib
import io
import json
import os
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    logging,
)

torch.set_num_threads(1)
logging.set_verbosity_error()

# The text of every case: long enough for windows, and for positions beyond what small models were made for.
IDS = [3, 17, 5, 11, 2, 19, 7, 13, 4, 16, 9, 21, 6, 18, 8, 20, 10, 15, 12, 14, 3, 22, 5, 1]

DECODER = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}
ENCODER = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-5, "pad_token_id": 0,
}

# A small model of each family.
FAMILIES = {
    "llama": DECODER,
    "mistral": DECODER,
    "ministral": {**DECODER, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 8},
    "gemma": {**DECODER, "head_dim": 8},
    "gemma2": {**DECODER, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**DECODER, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8,
                    "sliding_window_pattern": 2},
    "phi3": {**DECODER, "original_max_position_embeddings": 16},
    "gpt2": {"vocab_size": 24, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64, "bos_token_id": 1,
             "eos_token_id": 2},
    "bert": ENCODER,
    "roberta": {**ENCODER, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "xlm-roberta": {**ENCODER, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "distilbert": {"vocab_size": 24, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2,
                   "max_position_embeddings": 64, "pad_token_id": 0},
    "deberta-v2": {**ENCODER, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
                   "position_buckets": 8, "max_relative_positions": -1, "norm_rel_ebd": "layer_norm",
                   "share_att_key": True},
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2")


def values(name, shape):
    """The values of a tensor: a hash of its name and of each index, in [-0.5, 0.5); around 1 where it is a norm's."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = (seed ^ byte) * 0x01000193 & 0xFFFFFFFF
    count = int(np.prod(shape))
    x = (np.arange(count, dtype=np.uint64) * 0x9E3779B1 & 0xFFFFFFFF) ^ seed
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    x ^= x >> 16
    out = (x >> 8).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)
    lowered = name.lower()
    if lowered.endswith("weight") and ("norm" in lowered or ".ln_" in lowered):
        out = out + np.float32(1)
    return out.reshape(shape)


def auto(config, task="language"):
    if task == "sequence":
        return AutoModelForSequenceClassification
    return AutoModelForMaskedLM if config.get("model_type") in ENCODERS else AutoModelForCausalLM


def shapes_of(config, task="language"):
    """Name and shape of each tensor of the model that a configuration describes."""
    with torch.device("meta"):
        model = auto(config, task).from_config(AutoConfig.for_model(**config))
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def write(folder, config, tensors):
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def losses(model, ids, encoder):
    """-log p of each token: of the next one, or in an encoder of the one that stands there."""
    with torch.no_grad():
        # Training has no cache, and transformers' refuses some windows.
        logits = model(torch.tensor([ids]), **({} if encoder else {"use_cache": False})).logits[0].double()
    picked = torch.log_softmax(logits, -1)
    pairs = enumerate(ids) if encoder else ((t, ids[t + 1]) for t in range(len(ids) - 1))
    return [-picked[t, token].item() for t, token in pairs]


def scores(model, ids):
    """The scores of a text."""
    with torch.no_grad():
        return [float(f"{x:.6g}") for x in model(torch.tensor([ids])).logits[0]]


def verdict(config, tensors, ids=IDS, task="language"):
    """`{"losses": [..]}` or, of a classifier, `{"scores": [..]}`; `{"refuses": why}` where it does not load."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        write(folder, config, tensors)
        try:
            model, info = auto(config, task).from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            if info["missing_keys"]:
                return {"refuses": f"missing {sorted(info['missing_keys'])}"}
            if task == "sequence":
                return {"scores": scores(model.eval(), ids)}
            found = losses(model.eval(), ids, config["model_type"] in ENCODERS)
            return {"losses": found} if np.isfinite(found).all() else {"refuses": "the loss is not finite"}
        except Exception as error:  # whatever it raises, it does not load
            return {"refuses": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}


# The losses that a case keeps, of all.
KEPT = slice(2, None, 3)


class Cases:
    """The cases of a fixture, with the tensors that the files of each family have."""

    def __init__(self):
        self.shapes, self.cases = {}, []

    def add(self, family, name, drop=(), without=(), same=None, files=None, ids=IDS, task="language", **changes):
        """A case: the family's small configuration with `changes`, less the fields `drop`. Its file has the tensors of
        the configuration `files` (that of the family, if not given), less `without`; `same` gives tensors the values of
        others."""
        config = {"model_type": family, **FAMILIES[family], **changes}
        config = {field: value for field, value in config.items() if field not in drop}
        files = {field: x for field, x in {**FAMILIES[family], **(files or {})}.items() if x is not ...}
        shapes = shapes_of({"model_type": family, **files}, task)
        key = json.dumps(shapes)
        if key not in self.shapes:
            self.shapes[key] = (len(self.shapes), shapes)
        tensors = {tensor: values((same or {}).get(tensor, tensor), shape)
                   for tensor, shape in shapes.items() if tensor not in without}
        out = {"name": name, "config": config, "tensors": self.shapes[key][0], "without": list(without),
               "same": same or {}, **verdict(config, tensors, ids, task)}
        if ids is not IDS:
            out["ids"] = ids
        if "losses" in out:
            out["losses"] = [float(f"{x:.6g}") for x in out["losses"]][KEPT]
        self.cases.append(out)
        return out

    def write(self, name):
        """Writes crates/lowrank/tests/fixtures/configs/NAME.json, a line a case."""
        folder = os.path.join(os.path.dirname(__file__), "../../crates/lowrank/tests/fixtures/configs")
        os.makedirs(folder, exist_ok=True)
        line = lambda value: json.dumps(value, separators=(",", ":"))
        shapes = ",\n".join(line(shapes) for _, shapes in self.shapes.values())
        cases = ",\n".join(line(case) for case in self.cases)
        with open(os.path.join(folder, f"{name}.json"), "w") as file:
            file.write(f'{{"ids":{line(IDS)},\n"tensors":[\n{shapes}],\n"cases":[\n{cases}]}}\n')
        loaded = sum("refuses" not in case for case in self.cases)
        print(f"{name}: {len(self.cases)} cases, {loaded} load")
