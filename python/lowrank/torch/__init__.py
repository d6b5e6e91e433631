"""LoRA for PyTorch on Lowrank's kernels.

* loralib's layers and functions: :class:`Linear`, :class:`MergedLinear`, :class:`Embedding`, :class:`Conv1d`,
  :class:`Conv2d`, :class:`Conv3d`, :func:`mark_only_lora_as_trainable`, :func:`lora_state_dict`.
* PEFT's manner: :func:`inject` puts such layers into a model, :func:`save_adapter` and :func:`load_adapter` write
  and read PEFT's files.
* PEFT itself: :func:`accelerate_peft` makes a live PEFT model compute with the kernels, :func:`restore` undoes it.

On the processor, in float32, the dense layers are Lowrank's kernels on the memory of PyTorch's tensors, on as many
threads as ``torch.get_num_threads()`` says. On other devices, in other number types, under autocast and
``torch.compile`` they are ordinary PyTorch operations with the same results.
"""

from ._inject import LoraConfig, inject, load_adapter, save_adapter
from ._layers import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvLoRA,
    Embedding,
    Linear,
    LoRALayer,
    MergedLinear,
    lora_state_dict,
    mark_only_lora_as_trainable,
)
from ._peft import accelerate_peft, restore

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvLoRA", "Embedding", "Linear", "LoRALayer", "LoraConfig", "MergedLinear",
    "accelerate_peft", "inject", "load_adapter", "lora_state_dict", "mark_only_lora_as_trainable", "restore",
    "save_adapter",
]
