"""The classes that :func:`lowrank.torch.accelerate_peft` puts in place of PEFT's, transformers' and PyTorch's.

Each is a subclass of the one it stands for, with the same attributes, so that only ``__class__`` changes. A case
that the kernels do not know goes to the class it came from."""

from __future__ import annotations

import peft.tuners.lora.layer as peft_lora
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, activations
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.pytorch_utils import Conv1D

from .. import _lowrank
from ._function import kernels_fit, lora_linear, stored


def _called_plainly(module):
    """Whether calling the module is its forward and nothing else."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        getattr(module, "parametrizations", ()),
    )
    return not any(hooks)


def _frozen_weight(layer):
    """The weight [O,K] of nn.Linear or Conv1D, or None where it is trained or the kernels cannot read it."""
    weight = layer.weight
    if weight.requires_grad or weight.dim() != 2:
        return None
    weight = weight if isinstance(layer, nn.Linear) else weight.t()
    return None if stored(weight) is None else weight


class LoraLinear(peft_lora.Linear):
    """PEFT's LoRA layer over nn.Linear or Conv1D."""

    def forward(self, x, *args, **kwargs):
        active = [name for name in self.active_adapters if name in self.lora_A]
        usual = len(active) == 1 and not (args or kwargs or self.disable_adapters or self.merged)
        if usual and active[0] not in self.lora_variant:
            base, a, b = self.base_layer, self.lora_A[active[0]], self.lora_B[active[0]]
            known = type(base) in (nn.Linear, Conv1D, FrozenLinear, FrozenConv1D) and a.bias is None and b.bias is None
            weight = _frozen_weight(base) if known and all(map(_called_plainly, (base, a, b))) else None
            if weight is not None and x.dtype == a.weight.dtype == torch.float32:
                dropout = self.lora_dropout[active[0]]
                dropout = None if isinstance(dropout, nn.Identity) else dropout
                scaling = self.scaling[active[0]]
                return lora_linear(x, weight, base.bias, a.weight, b.weight, scaling, dropout)
        return super().forward(x, *args, **kwargs)


class FrozenLinear(nn.Linear):
    """A linear layer that is not trained."""

    def forward(self, x):
        weight = _frozen_weight(self) if x.dtype == torch.float32 else None
        return super().forward(x) if weight is None else lora_linear(x, weight, self.bias)


class FrozenConv1D(Conv1D):
    """GPT-2's linear layer that is not trained."""

    def forward(self, x):
        weight = _frozen_weight(self) if x.dtype == torch.float32 else None
        return super().forward(x) if weight is None else lora_linear(x, weight, self.bias)


class _Activate(torch.autograd.Function):
    """An activation function that keeps its input and nothing more."""

    @staticmethod
    def forward(ctx, x, name):
        x = x.contiguous()
        y = torch.empty_like(x)
        _lowrank.activate(name, x.numel(), x.data_ptr(), y.data_ptr(), torch.get_num_threads())
        ctx.save_for_backward(x)
        ctx.name = name
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        at = (x.data_ptr(), dy.data_ptr(), dx.data_ptr())
        _lowrank.activate_backward(ctx.name, x.numel(), *at, torch.get_num_threads())
        return dx, None


class FusedNewGELU(activations.NewGELUActivation):
    """The tanh form of GELU, in one pass instead of eight."""

    def forward(self, input):
        if input.numel() and kernels_fit(input):
            return _Activate.apply(input, "gelu_new")
        return super().forward(input)


class FusedQuickGELU(activations.QuickGELUActivation):
    """``x sigmoid(1.702 x)`` in one pass."""

    def forward(self, input):
        if input.numel() and kernels_fit(input):
            return _Activate.apply(input, "quick_gelu")
        return super().forward(input)


class _Dropout(torch.autograd.Function):
    """Dropout that makes its mask again instead of keeping it."""

    @staticmethod
    def forward(ctx, x, p, seed):
        ctx.p, ctx.seed = p, seed
        return _masked(x.contiguous(), p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _masked(dy.contiguous(), ctx.p, ctx.seed), None, None


def _masked(x, p, seed):
    y = torch.empty_like(x)
    _lowrank.dropout(x.numel(), x.data_ptr(), y.data_ptr(), p, seed, torch.get_num_threads())
    return y


class CountedDropout(nn.Dropout):
    """Dropout from counter-based random numbers, many at a time; the seed comes from PyTorch's generator."""

    def forward(self, input):
        if self.training and self.p > 0 and not self.inplace and input.numel() and kernels_fit(input):
            return _Dropout.apply(input, self.p, int(torch.randint(1 << 62, ())))
        return super().forward(input)


class _Attention(torch.autograd.Function):
    """Attention of q [B,H,T,D] over k and v [B,K,T,D], as [B,T,H,D]: probabilities exist for a tile at a time, and are
    computed again in the backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, scale, causal, p, seed):
        (batch, heads, length, head_dim), kv_heads = q.shape, k.shape[1]
        kernel = _lowrank.Attention(batch, length, heads, kv_heads, head_dim, scale, causal, p, seed)
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        out, lse = torch.empty_like(q), q.new_empty(batch, length, heads)
        kernel.forward(*(x.data_ptr() for x in (q, k, v, out, lse)), torch.get_num_threads())
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.kernel = kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        saved = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in saved[:3]]
        tensors = (dout.contiguous(), *saved, *gradients)
        ctx.kernel.backward(*(x.data_ptr() for x in tensors), torch.get_num_threads())
        return *(x.transpose(1, 2) for x in gradients), None, None, None, None


def _attention(counted):
    def forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        # A mask, a cache, biases, caps and PyTorch's own random numbers are not for the kernel.
        fits = attention_mask is None and query.shape[2] == key.shape[2] > 1 and query.shape[-1] == value.shape[-1]
        fits = fits and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
        if fits and (counted or not dropout) and kernels_fit(query, key, value):
            causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            seed = int(torch.randint(1 << 62, ())) if dropout else 0
            return _Attention.apply(query, key, value, scale, causal, dropout, seed), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )

    return forward


# The names under which transformers knows our attention: with PyTorch's dropout, and with counter-based.
ATTENTION, COUNTED_ATTENTION = "lowrank", "lowrank_counted"
for name, counted in ((ATTENTION, False), (COUNTED_ATTENTION, True)):
    AttentionInterface.register(name, _attention(counted))
    AttentionMaskInterface.register(name, sdpa_mask)


class _CrossEntropy(torch.autograd.Function):
    """``scale * sum`` of the losses; the gradient is taken with them, so that no softmax is kept beside it."""

    @staticmethod
    def forward(ctx, logits, targets, ignored, scale):
        n, vocab = logits.shape
        losses = torch.empty(n)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        at = 0 if gradient is None else gradient.data_ptr()
        _lowrank.cross_entropy(
            n, vocab, logits.data_ptr(), targets.data_ptr(), ignored, scale, losses.data_ptr(), at,
            torch.get_num_threads(),
        )
        ctx.save_for_backward(gradient)
        return losses.sum(dtype=torch.float64).to(torch.float32) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        (gradient,) = ctx.saved_tensors
        return gradient if dloss.item() == 1.0 else gradient * dloss, None, None, None


def causal_lm_loss(
    logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100, shift_labels=None, **kwargs
):
    """transformers' ``ForCausalLMLoss``: labels are the tokens themselves and each row predicts the next."""
    fits = logits.dim() == 3 and logits.is_contiguous() and logits.numel() and kernels_fit(logits)
    if not fits or logits.shape[-1] != vocab_size:
        return ForCausalLMLoss(
            logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs
        )
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device, torch.int64).contiguous()
    count = (targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
    scale = 1.0 / float(count) if float(count) else float("nan")
    return _CrossEntropy.apply(logits.view(-1, vocab_size), targets, ignore_index, scale)


# What is replaced by what: by the exact class, so that no subclass with ideas of its own is taken for it.
LORA = {peft_lora.Linear: LoraLinear}
FROZEN = {nn.Linear: FrozenLinear, Conv1D: FrozenConv1D}
DROPOUT = {nn.Dropout: CountedDropout}
ACTIVATION = {
    activations.NewGELUActivation: FusedNewGELU,
    activations.QuickGELUActivation: FusedQuickGELU,
}
