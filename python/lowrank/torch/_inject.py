"""LoRA put into a model by module names, in PEFT's words, and PEFT's adapter files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Optional, Union

import torch
from torch import nn

from ._layers import Embedding, Linear, LoRALayer, mark_only_lora_as_trainable

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclasses.dataclass
class LoraConfig:
    """What PEFT's ``LoraConfig`` says about LoRA itself; one of PEFT's does as well."""

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: Optional[Union[str, list]] = None
    exclude_modules: Optional[Union[str, list]] = None
    rank_pattern: dict = dataclasses.field(default_factory=dict)
    alpha_pattern: dict = dataclasses.field(default_factory=dict)
    layers_to_transform: Optional[Union[int, list]] = None
    layers_pattern: Optional[Union[str, list]] = None
    use_rslora: bool = False
    bias: str = "none"
    task_type: Optional[str] = None
    base_model_name_or_path: Optional[str] = None
    # Lowrank's own: keep the frozen weights of the adapted layers in bf16, q8_0, q4_0, q4_1 or nf4.
    weight_format: Optional[str] = None


def inject(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Replaces the layers that ``config.target_modules`` names by LoRA layers, in place, and freezes the rest.

    Names match as in PEFT: a list by whole ends of module paths, a text as a regular expression of the whole path,
    or ``all-linear``. Linear, transformers' Conv1D and Embedding can be targets; weights stay the model's own.
    Raises ValueError where nothing matches, or where a name matches a layer of another kind."""
    _refuse(config)
    found = [name for name, module in model.named_modules() if _is_target(model, config, name, module)]
    if not found:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if _linear(m)})
        raise ValueError(
            f"no layer matches target_modules {config.target_modules!r}; this model has: {', '.join(names)}"
        )
    for name in found:
        layer = model.get_submodule(name)
        parent_name, _, child = name.rpartition(".")
        r = _pattern(config.rank_pattern, name, config.r)
        alpha = _pattern(config.alpha_pattern, name, config.lora_alpha)
        # Scaled by alpha / r; rank-stabilised by alpha / sqrt(r).
        alpha = alpha * math.sqrt(r) if config.use_rslora else alpha
        if isinstance(layer, nn.Embedding):
            new = Embedding.from_layer(layer, r=r, lora_alpha=alpha)
        elif _linear(layer):
            new = Linear.from_layer(layer, r=r, lora_alpha=alpha, lora_dropout=config.lora_dropout)
            if getattr(config, "weight_format", None):
                new.pack(config.weight_format)
        else:
            kind = type(layer).__name__
            raise ValueError(f"{name} is a {kind}: Linear, Conv1D and Embedding layers can have LoRA")
        setattr(model.get_submodule(parent_name), child, new)
    mark_only_lora_as_trainable(model, config.bias)
    return model


def save_adapter(model: nn.Module, folder, config: LoraConfig) -> None:
    """Writes the LoRA layers of a model made by :func:`inject` as PEFT's adapter folder."""
    from safetensors.torch import save_file

    tensors, transposed = {}, False
    for name, layer in _lora_layers(model):
        a, b = ("lora_embedding_A", "lora_embedding_B") if isinstance(layer, Embedding) else (
            "lora_A.weight", "lora_B.weight")
        for part, value in ((a, layer.lora_A), (b, layer.lora_B)):
            tensors[f"{_PREFIX}{name}.{part}"] = value.detach().cpu().contiguous()
        transposed |= getattr(layer, "fan_in_fan_out", False)
    if config.bias != "none":
        state = model.state_dict()
        adapted = {f"{name}.bias" for name, _ in _lora_layers(model)}
        wanted = [n for n in state if n.endswith("bias") and (config.bias == "all" or n in adapted)]
        tensors.update({_PREFIX + n: state[n].detach().cpu().contiguous() for n in wanted})
    if not tensors:
        raise ValueError("the model has no LoRA layer")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    words = {f.name: getattr(config, f.name, f.default) for f in dataclasses.fields(LoraConfig)}
    words = {key: list(value) if isinstance(value, set) else value for key, value in words.items()}
    del words["weight_format"]
    words |= {"peft_type": "LORA", "fan_in_fan_out": transposed, "inference_mode": True, "modules_to_save": None}
    (folder / CONFIG_FILE).write_text(json.dumps(words, indent=2) + "\n")


def load_adapter(model: nn.Module, folder) -> None:
    """Reads PEFT's adapter folder into the LoRA layers of a model made by :func:`inject`.

    Raises ValueError where a tensor is missing, left over or of another shape."""
    from safetensors.torch import load_file

    path = Path(folder) / TENSORS_FILE
    tensors = load_file(path)
    for name, layer in _lora_layers(model):
        a, b = ("lora_embedding_A", "lora_embedding_B") if isinstance(layer, Embedding) else (
            "lora_A.weight", "lora_B.weight")
        for part, parameter in ((a, layer.lora_A), (b, layer.lora_B)):
            key = f"{_PREFIX}{name}.{part}"
            value = tensors.pop(key, None)
            if value is None:
                raise ValueError(f"{path}: it has no tensor {key}")
            if value.shape != parameter.shape:
                raise ValueError(f"{path}: {key} is {tuple(value.shape)}, the model takes {tuple(parameter.shape)}")
            with torch.no_grad():
                parameter.copy_(value)
    parameters = dict(model.named_parameters())
    for key in [key for key in tensors if key.endswith("bias")]:
        name = key[len(_PREFIX) :]
        if name in parameters:
            with torch.no_grad():
                parameters[name].copy_(tensors.pop(key))
    if tensors:
        raise ValueError(f"{path}: tensor {next(iter(tensors))} belongs to no LoRA layer of the model")


def _lora_layers(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoRALayer) and hasattr(m, "lora_A")]


def _linear(module):
    if isinstance(module, LoRALayer):
        return False
    # transformers' Conv1D, by name: transformers need not be there.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _refuse(config):
    """PEFT's options that would change the method are not passed over in silence."""
    if config.target_modules is None:
        raise ValueError("target_modules is missing: name modules or say all-linear")
    other = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "use_qalora",
             "layer_replication", "corda_config", "eva_config", "arrow_config", "alora_invocation_tokens")
    asked = [name for name in other if getattr(config, name, None)]
    if getattr(config, "init_lora_weights", True) is not True:
        asked.append("init_lora_weights")
    if asked:
        raise ValueError(f"inject() knows plain LoRA; leave out {', '.join(asked)}, or use PEFT and accelerate_peft()")


def _is_target(model, config, name, module):
    if not name or isinstance(module, LoRALayer):
        return False
    if config.exclude_modules and _named(config.exclude_modules, name):
        return False
    targets = config.target_modules
    if isinstance(targets, str) and targets.lower() == "all-linear":
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        matches = _linear(module) and module is not head
    else:
        matches = _named(targets, name)
    return matches and _in_layers(config, name)


def _named(targets, name):
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith("." + target) for target in targets)


def _in_layers(config, name):
    layers = config.layers_to_transform
    if layers is None:
        return True
    layers = [layers] if isinstance(layers, int) else layers
    patterns = config.layers_pattern or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        match = re.match(rf".*\.{pattern}\.(\d+)\.", name)
        if match:
            return int(match[1]) in layers
    return False


def _pattern(patterns, name, default):
    for key, value in (patterns or {}).items():
        if re.match(rf"^(.*\.)?({key})$", name):
            return value
    return default
