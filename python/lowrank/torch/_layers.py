"""LoRA layers with loralib's names, arguments and behaviour (https://github.com/microsoft/LoRA)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ._function import Packed, dequantize, lora_linear, quantize

PACKED = ("q8_0", "q4_0", "q4_1", "nf4")


class LoRALayer:
    """What all layers have in common: rank, scale, dropout, and whether the adapter is in the weight now."""

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool):
        self.r = r
        self.lora_alpha = lora_alpha
        self.lora_dropout = nn.Dropout(lora_dropout) if lora_dropout > 0.0 else nn.Identity()
        self.merged = False
        self.merge_weights = merge_weights
        if r > 0:
            self.scaling = lora_alpha / r

    def _dropout(self):
        return self.lora_dropout if isinstance(self.lora_dropout, nn.Dropout) else None

    def _add_delta(self, sign: int) -> None:
        """Adds the adapter to the weight, or takes it out."""
        raise NotImplementedError

    def _can_merge(self) -> bool:
        """Merging must be undone exactly enough: not where the weight is kept in fewer bits than the adapter."""
        return self.weight.dtype == self.lora_A.dtype

    def _set_merged(self, training: bool) -> None:
        if not self.merge_weights or self.merged != training:
            return
        if hasattr(self, "lora_A"):
            if not training and not self._can_merge():
                return
            with torch.no_grad():
                self._add_delta(-1 if training else 1)
        self.merged = not training


class _Dense(nn.Linear, LoRALayer):
    """Of Linear and MergedLinear: the frozen weight, also packed, and the parts that LoRA's output goes to."""

    def __init__(
        self, in_features, out_features, r, lora_alpha, lora_dropout, fan_in_fan_out, merge_weights, parts, **kwargs
    ):
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        self.fan_in_fan_out = fan_in_fan_out
        self.weight_format = None
        part = out_features // len(parts)
        self._starts = tuple(i * part for i, enabled in enumerate(parts) if enabled)
        if r > 0 and self._starts:
            count = len(self._starts)
            self.lora_A = nn.Parameter(self.weight.new_zeros((r * count, in_features)))
            self.lora_B = nn.Parameter(self.weight.new_zeros((part * count, r)))
            self.weight.requires_grad = False
        self.reset_parameters()
        if fan_in_fan_out:
            self.weight.data = self.weight.data.transpose(0, 1)

    def reset_parameters(self):
        nn.Linear.reset_parameters(self)
        self.reset_lora_parameters()

    def reset_lora_parameters(self):
        """A random as in nn.Linear, B zero: the adapter starts as nothing."""
        if hasattr(self, "lora_A"):
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B)

    @classmethod
    def from_layer(cls, layer: nn.Module, **kwargs):
        """Wraps an nn.Linear or transformers' Conv1D. Weight and bias are the layer's own, not copies; LoRA's are
        float32 at least."""
        transposed = not isinstance(layer, nn.Linear)
        shape = layer.weight.shape if transposed else layer.weight.shape[::-1]
        if transposed:
            kwargs["fan_in_fan_out"] = True
        new = cls(*shape, bias=layer.bias is not None, device="meta", **kwargs)
        new.weight, new.bias = layer.weight, layer.bias
        new.weight.requires_grad = False
        if hasattr(new, "lora_A"):
            half = layer.weight.dtype in (torch.float16, torch.bfloat16)
            dtype = torch.float32 if half else layer.weight.dtype
            for name in ("lora_A", "lora_B"):
                empty = torch.empty_like(getattr(new, name), device=layer.weight.device, dtype=dtype)
                setattr(new, name, nn.Parameter(empty))
            new.reset_lora_parameters()
        new.training = layer.training
        return new

    def pack(self, weight_format: str):
        """Keeps the frozen weight in ``bf16`` or packed in ``q8_0``, ``q4_0``, ``q4_1`` or ``nf4`` from now on.
        The kernels read it as it is; it is not merged with the adapter any more."""
        if self.merged:
            raise ValueError("the adapter is merged into the weight: call train() before pack()")
        if self.weight is None:
            raise ValueError(f"the weight is already packed as {self.weight_format}")
        if weight_format == "bf16":
            self.weight = nn.Parameter(self.weight.detach().to(torch.bfloat16), requires_grad=False)
            return self
        if weight_format not in PACKED:
            raise ValueError(f"no format {weight_format!r} to pack in: choose bf16, {', '.join(PACKED)}")
        weight = self.weight.detach()
        packed = quantize(weight.t() if self.fan_in_fan_out else weight, weight_format)
        self.weight = None
        self.register_buffer("weight_packed", packed.data)
        self.weight_format = weight_format
        return self

    def dequantized(self) -> torch.Tensor:
        """The frozen weight [out, in] in float32, as the kernels see it."""
        weight = self._frozen()
        return (dequantize(weight) if isinstance(weight, Packed) else weight.detach()).float()

    def _frozen(self):
        if self.weight is None:
            shape = (self.out_features, self.in_features)
            return Packed(self.weight_packed, self.weight_format, shape)
        return self.weight.t() if self.fan_in_fan_out else self.weight

    def _can_merge(self):
        return self.weight is not None and LoRALayer._can_merge(self)

    def _delta(self):
        """scaling B A, [out, in], zero where no part is adapted."""
        count = len(self._starts)
        a, b = self.lora_A.view(count, self.r, -1), self.lora_B.view(count, -1, self.r)
        parts = torch.bmm(b, a) * self.scaling
        if parts.shape[1] == self.out_features:
            return parts[0]
        delta = parts.new_zeros(self.out_features, self.in_features)
        for start, part in zip(self._starts, parts):
            delta[start : start + len(part)] = part
        return delta

    def _add_delta(self, sign):
        delta = self._delta()
        self.weight.data.add_(delta.t() if self.fan_in_fan_out else delta, alpha=sign)

    def train(self, mode: bool = True):
        nn.Linear.train(self, mode)
        self._set_merged(mode)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged or not hasattr(self, "lora_A"):
            return lora_linear(x, self._frozen(), self.bias)
        return lora_linear(
            x, self._frozen(), self.bias, self.lora_A, self.lora_B, self.scaling, self._dropout(), self._starts
        )


class Linear(_Dense):
    """A dense layer: ``x W0^T + bias + lora_alpha / r * dropout(x) A^T B^T``.

    ``fan_in_fan_out`` where the weight is stored [in, out]; ``merge_weights``: the adapter is added to the weight
    while the layer is in eval mode. ``r=0`` is an ordinary layer."""

    def __init__(
        self, in_features: int, out_features: int, r: int = 0, lora_alpha: float = 1, lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False, merge_weights: bool = True, **kwargs,
    ):
        _Dense.__init__(
            self, in_features, out_features, r, lora_alpha, lora_dropout, fan_in_fan_out, merge_weights, [True],
            **kwargs,
        )


class MergedLinear(_Dense):
    """Several dense layers in one, such as the q, k and v of GPT-2's ``c_attn``; ``enable_lora`` says which of the
    equal parts of the output have an adapter."""

    def __init__(
        self, in_features: int, out_features: int, r: int = 0, lora_alpha: float = 1, lora_dropout: float = 0.0,
        enable_lora=(False,), fan_in_fan_out: bool = False, merge_weights: bool = True, **kwargs,
    ):
        enable_lora = list(enable_lora)
        if not enable_lora or out_features % len(enable_lora):
            raise ValueError("The length of enable_lora must divide out_features")
        _Dense.__init__(
            self, in_features, out_features, r, lora_alpha, lora_dropout, fan_in_fan_out, merge_weights, enable_lora,
            **kwargs,
        )
        self.enable_lora = enable_lora


class Embedding(nn.Embedding, LoRALayer):
    """A table of vectors with an adapter: ``W0[x] + lora_alpha / r * A^T[x] B^T``."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, r: int = 0, lora_alpha: float = 1, merge_weights: bool = True,
        **kwargs,
    ):
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, 0.0, merge_weights)
        if r > 0:
            self.lora_A = nn.Parameter(self.weight.new_zeros((r, num_embeddings)))
            self.lora_B = nn.Parameter(self.weight.new_zeros((embedding_dim, r)))
            self.weight.requires_grad = False
        self.reset_parameters()

    @classmethod
    def from_layer(cls, layer: nn.Embedding, **kwargs):
        """Wraps an nn.Embedding, whose weight stays its own."""
        same = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        new = cls(*layer.weight.shape, device="meta", **{name: getattr(layer, name) for name in same}, **kwargs)
        new.weight = layer.weight
        if new.r > 0:
            new.weight.requires_grad = False
            half = layer.weight.dtype in (torch.float16, torch.bfloat16)
            dtype = torch.float32 if half else layer.weight.dtype
            for name in ("lora_A", "lora_B"):
                empty = torch.empty_like(getattr(new, name), device=layer.weight.device, dtype=dtype)
                setattr(new, name, nn.Parameter(empty))
            new.reset_lora_parameters()
        new.training = layer.training
        return new

    def reset_parameters(self):
        nn.Embedding.reset_parameters(self)
        self.reset_lora_parameters()

    def reset_lora_parameters(self):
        """A zero, B random: the adapter starts as nothing."""
        if hasattr(self, "lora_A"):
            nn.init.zeros_(self.lora_A)
            nn.init.normal_(self.lora_B)

    def _add_delta(self, sign):
        self.weight.data.add_((self.lora_B @ self.lora_A).t(), alpha=sign * self.scaling)

    def train(self, mode: bool = True):
        nn.Embedding.train(self, mode)
        self._set_merged(mode)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.Embedding.forward(self, x)
        if self.r == 0 or self.merged:
            return y
        rows = F.embedding(
            x, self.lora_A.t(), self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )
        return (y + F.linear(rows, self.lora_B) * self.scaling).to(y.dtype)


class ConvLoRA(nn.Module, LoRALayer):
    """A convolution with a square kernel whose weight has an adapter of low rank.

    The product ``B A`` is read as the weight's shape: A is [r k, in k] and B [out/groups k^(axes-1), r k], in two
    axes as in loralib (whose 1d and 3d layers have one shape too few and too many for it)."""

    def __init__(
        self, conv_module, in_channels, out_channels, kernel_size, r=0, lora_alpha=1, lora_dropout=0.0,
        merge_weights=True, **kwargs,
    ):
        nn.Module.__init__(self)
        if not isinstance(kernel_size, int):
            raise ValueError("kernel_size must be one number")
        self.conv = conv_module(in_channels, out_channels, kernel_size, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        if r > 0:
            k, axes = kernel_size, self.conv.weight.dim() - 2
            rows = out_channels // self.conv.groups * k ** (axes - 1)
            self.lora_A = nn.Parameter(self.conv.weight.new_zeros((r * k, in_channels * k)))
            self.lora_B = nn.Parameter(self.conv.weight.new_zeros((rows, r * k)))
            self.conv.weight.requires_grad = False
        self.reset_parameters()

    def _can_merge(self):
        return self.conv.weight.dtype == self.lora_A.dtype

    def reset_parameters(self):
        self.conv.reset_parameters()
        if hasattr(self, "lora_A"):
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B)

    def _delta(self):
        return (self.lora_B @ self.lora_A).view(self.conv.weight.shape) * self.scaling

    def _add_delta(self, sign):
        self.conv.weight.data.add_(self._delta(), alpha=sign)

    def train(self, mode: bool = True):
        nn.Module.train(self, mode)
        self._set_merged(mode)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.r > 0 and not self.merged:
            return self.conv._conv_forward(x, self.conv.weight + self._delta(), self.conv.bias)
        return self.conv(x)


class Conv1d(ConvLoRA):
    """:class:`ConvLoRA` over nn.Conv1d."""

    def __init__(self, *args, **kwargs):
        super().__init__(nn.Conv1d, *args, **kwargs)


class Conv2d(ConvLoRA):
    """:class:`ConvLoRA` over nn.Conv2d."""

    def __init__(self, *args, **kwargs):
        super().__init__(nn.Conv2d, *args, **kwargs)


class Conv3d(ConvLoRA):
    """:class:`ConvLoRA` over nn.Conv3d."""

    def __init__(self, *args, **kwargs):
        super().__init__(nn.Conv3d, *args, **kwargs)


def _check_bias(bias):
    if bias not in ("none", "all", "lora_only"):
        raise NotImplementedError(f"bias is {bias!r}: choose none, all or lora_only")


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Freezes every parameter but LoRA's; ``bias`` leaves ``all`` biases trainable, or those of LoRA's layers."""
    _check_bias(bias)
    for name, parameter in model.named_parameters():
        if bias == "all" and "bias" in name:
            parameter.requires_grad = True
        elif "lora_" not in name:
            parameter.requires_grad = False
    if bias == "lora_only":
        for module in model.modules():
            if isinstance(module, LoRALayer) and getattr(module, "bias", None) is not None:
                module.bias.requires_grad = True


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, torch.Tensor]:
    """LoRA's tensors of the model's ``state_dict``, with the biases that ``bias`` names."""
    _check_bias(bias)
    state = model.state_dict()
    chosen = {name: value for name, value in state.items() if "lora_" in name or (bias == "all" and "bias" in name)}
    if bias == "lora_only":
        for name in list(chosen):
            of_layer = name.split("lora_")[0] + "bias"
            if of_layer in state:
                chosen[of_layer] = state[of_layer]
    return chosen
