"""Lowrank's kernels as autograd functions, over the memory of PyTorch's tensors.

Every function here has a twin in plain PyTorch operations with the same results, which is used on other devices,
in other number types, under autocast, under torch.compile (so that the compiler sees operations it knows) and
inside the transforms of torch.func.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .. import _lowrank

FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_PLAIN = (torch.Tensor, torch.nn.Parameter)


@functools.lru_cache(maxsize=None)
def _layer(k, o, r, weight_format, transposed, starts, part):
    return _lowrank.Layer(k, o, r, weight_format, transposed, list(starts), part)


def kernels_fit(*tensors):
    """Whether the kernels can take these float32 tensors of the processor's as they lie (None is left out)."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if getattr(torch._C, "_are_functorch_transforms_active", bool)():
        return False
    for t in tensors:
        if t is None:
            continue
        if t.dtype is not torch.float32 or t.device.type != "cpu" or type(t) not in _PLAIN:
            return False
    return True


def stored(weight):
    """How a weight [O,K] lies in memory: (format, whether transposed), or None where the kernels cannot read it."""
    weight_format = FORMATS.get(weight.dtype)
    if weight_format is None or weight.device.type != "cpu" or type(weight) not in _PLAIN:
        return None
    if weight.is_contiguous():
        return weight_format, False
    if weight.t().is_contiguous():
        return weight_format, True
    return None


class _Lora(torch.autograd.Function):
    """y = x W0^T + bias + scaling dropped A^T B^T, the last product part by part."""

    @staticmethod
    def forward(ctx, x, dropped, weight, bias, a, b, layer, outputs, width, scaling):
        n = x.numel() // x.shape[-1]
        y = x.new_empty(*x.shape[:-1], outputs)
        read = x if dropped is None else dropped
        u = None if a is None else x.new_empty(n, width)
        layer.forward(
            n, x.data_ptr(), weight.data_ptr(), _at(bias), y.data_ptr(), read.data_ptr(), _at(a), _at(b), _at(u),
            scaling, torch.get_num_threads(),
        )
        # Only the gradient of A needs the input once more; the frozen weight has none.
        ctx.save_for_backward(read if a is not None and ctx.needs_input_grad[4] else None, weight, a, b, u)
        ctx.layer, ctx.scaling, ctx.rows, ctx.shape = layer, scaling, n, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        read, weight, a, b, u = ctx.saved_tensors
        needs_x, needs_dropped, _, needs_bias, needs_a, needs_b = ctx.needs_input_grad[:6]
        dy = dy.contiguous()
        dx = dy.new_empty(ctx.shape) if needs_x else None
        ddropped = dy.new_empty(ctx.shape) if needs_dropped else None
        dbias = dy.new_empty(dy.shape[-1]) if needs_bias else None
        da = torch.empty_like(a) if needs_a else None
        db = torch.empty_like(b) if needs_b else None
        ctx.layer.backward(
            ctx.rows, dy.data_ptr(), weight.data_ptr(), _at(read), _at(a), _at(b), _at(u), _at(dx), _at(ddropped),
            _at(da), _at(db), _at(dbias), ctx.scaling, torch.get_num_threads(),
        )
        return dx, ddropped, None, dbias, da, db, None, None, None, None


def _at(tensor):
    return 0 if tensor is None else tensor.data_ptr()


class Packed:
    """A weight [O,K] in one of Lowrank's block formats, as bytes."""

    def __init__(self, data, weight_format, shape):
        self.data, self.format, self.shape = data, weight_format, torch.Size(shape)


def lora_linear(x, weight, bias, a=None, b=None, scaling=1.0, dropout=None, starts=(0,)):
    """``x W0^T + bias + scaling dropout(x) A^T B^T`` for x [...,K], a frozen weight [O,K] (a tensor in any layout,
    or :class:`Packed`), A [GR,K] and B [GP,R], whose part g is added to the columns ``starts[g]`` to
    ``starts[g] + P``. Without A only the base."""
    dropped = None
    if a is not None and dropout is not None:
        result = dropout(x)
        dropped = None if result is x else result
    packed = isinstance(weight, Packed)
    data = weight.data if packed else weight
    frozen = not (data.requires_grad and torch.is_grad_enabled())
    if frozen and x.numel() and kernels_fit(x, dropped, bias, a, b):
        if packed:
            how = (weight.format, False) if data.device.type == "cpu" and data.is_contiguous() else None
        else:
            how = stored(data)
        if how is not None:
            (o, k), (weight_format, transposed) = weight.shape, how
            if x.shape[-1] != k:
                raise RuntimeError(f"the input has {x.shape[-1]} features, the layer takes {k}")
            r, part = (0, o) if a is None else (b.shape[1], b.shape[0] // len(starts))
            layer = _layer(k, o, r, weight_format, transposed, tuple(starts), part)
            contiguous = [t if t is None else t.contiguous() for t in (x, dropped, bias, a, b)]
            x, dropped, bias, a, b = contiguous
            return _Lora.apply(x, dropped, data, bias, a, b, layer, o, r * len(starts), scaling)
    read = x if dropped is None else dropped
    return plain_lora_linear(x, read, dequantize(weight) if packed else weight, bias, a, b, scaling, starts)


def plain_lora_linear(x, dropped, weight, bias, a, b, scaling, starts):
    """The same in PyTorch's operations."""
    if not torch.is_autocast_enabled(x.device.type) and weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
    y = F.linear(x, weight, bias)
    if a is None:
        return y
    if not torch.is_autocast_enabled(x.device.type):
        dropped = dropped.to(a.dtype)
    u, parts = F.linear(dropped, a), len(starts)
    r, part = b.shape[1], b.shape[0] // parts
    if parts == 1 and part == y.shape[-1]:
        return (y + F.linear(u, b) * scaling).to(y.dtype)
    delta = torch.zeros_like(y)
    for g, start in enumerate(starts):
        out = F.linear(u[..., g * r : (g + 1) * r], b[g * part : (g + 1) * part]) * scaling
        delta[..., start : start + part] = out.to(delta.dtype)
    return y + delta


@torch.compiler.disable
def quantize(weight, weight_format):
    """A weight [O,K] of float numbers as :class:`Packed`."""
    source = weight.detach().to("cpu", torch.float32).contiguous()
    rows, cols = source.shape
    data = torch.empty(_lowrank.packed_bytes(weight_format, rows, cols), dtype=torch.uint8)
    threads = torch.get_num_threads()
    _lowrank.pack(weight_format, rows, cols, source.data_ptr(), data.data_ptr(), threads)
    return Packed(data.to(weight.device), weight_format, (rows, cols))


@torch.compiler.disable
def dequantize(packed):
    """The float32 numbers of a :class:`Packed` weight, on its device."""
    source = packed.data.to("cpu").contiguous()
    weight = torch.empty(packed.shape)
    threads = torch.get_num_threads()
    _lowrank.unpack(packed.format, *packed.shape, source.data_ptr(), weight.data_ptr(), threads)
    return weight.to(packed.data.device)
