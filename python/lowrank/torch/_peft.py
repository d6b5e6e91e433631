"""A live PEFT model on Lowrank's kernels, and back.

Nothing is copied or renamed: the modules stay the same objects with the same parameters, and only what their
``forward`` computes with changes. So optimisers, hooks, ``state_dict``, ``save_pretrained``, merging and adding
adapters go on as before.
"""

from __future__ import annotations

SAME = ("lora", "frozen", "activation", "attention", "loss")
LAYERS = (*SAME, "dropout")


def accelerate_peft(model, layers=SAME):
    """Makes a PEFT model (or a transformers model with adapters) compute with Lowrank's kernels; returns it.

    ``layers`` says what is swapped:

    * ``lora``: PEFT's LoRA layers over Linear and Conv1D: base and adapter in one function, which keeps what the
      gradients of A and B need and never touches the frozen weight's;
    * ``frozen``: the Linear and Conv1D layers beside them, whose weights are not trained;
    * ``activation``: activation functions that are written in several PyTorch operations (GPT-2's GELU);
    * ``attention``: attention that transformers gives to PyTorch's ``scaled_dot_product_attention``, where there is no
      mask but the causal one and, without ``dropout`` in this list, no dropout;
    * ``loss``: the causal language-model loss, which keeps its gradient in place of the softmax;
    * ``dropout``: dropout layers, and dropout inside of attention, whose masks are made faster and not kept. Not by default: the same seed gives other
      random numbers than PyTorch's.

    Otherwise results are the same to rounding. :func:`restore` undoes it. Raises ValueError where the model has no LoRA
    layer of PEFT's, or ``layers`` has a word it does not know."""
    from . import _accelerated as new

    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    for word in layers:
        if word not in LAYERS:
            raise ValueError(f"layers has {word!r}: choose from {', '.join(LAYERS)}")
    if not any(isinstance(m, new.peft_lora.LoraLayer) for m in model.modules()):
        raise ValueError("the model has no LoRA layer of PEFT's: call peft.get_peft_model() first")
    swaps = {}
    if "lora" in layers:
        swaps |= new.LORA
    if "activation" in layers:
        swaps |= new.ACTIVATION
    if "dropout" in layers:
        swaps |= new.DROPOUT
    inside = {id(m) for layer in model.modules() if isinstance(layer, new.peft_lora.LoraLayer)
              for m in layer.modules() if m is not layer and m is not layer.base_layer}
    for module in list(model.modules()):
        replacement = swaps.get(type(module))
        if replacement is None and "frozen" in layers and id(module) not in inside:
            frozen = not any(p.requires_grad for p in module.parameters(recurse=False))
            replacement = new.FROZEN.get(type(module)) if frozen else None
        if replacement is not None:
            module.__class__ = replacement
        if "attention" in layers and _implementation(module) == "sdpa":
            module.config._attn_implementation = new.COUNTED_ATTENTION if "dropout" in layers else new.ATTENTION
        if "loss" in layers and getattr(module, "_lowrank_loss", None) is None and _causal(module):
            module._lowrank_loss = module.__dict__.get("_loss_function", ...)
            module.loss_function = new.causal_lm_loss
    return model


def restore(model):
    """Undoes :func:`accelerate_peft`: every module is of its own class again. Returns the model."""
    from . import _accelerated as new

    back = {to: of for table in (new.LORA, new.FROZEN, new.ACTIVATION, new.DROPOUT) for of, to in table.items()}
    for module in model.modules():
        of = back.get(type(module))
        if of is not None:
            module.__class__ = of
        if _implementation(module) in (new.ATTENTION, new.COUNTED_ATTENTION):
            module.config._attn_implementation = "sdpa"
        if "_lowrank_loss" in module.__dict__:
            before = module.__dict__.pop("_lowrank_loss")
            if before is ...:
                del module._loss_function
            else:
                module._loss_function = before
    return model


def _implementation(module):
    """The name of a transformers model's attention, or None for other modules."""
    from transformers import PreTrainedModel

    return module.config._attn_implementation if isinstance(module, PreTrainedModel) else None


def _causal(module):
    """Whether the module is a transformers model whose loss is the causal language model's."""
    from transformers import PreTrainedModel
    from transformers.loss.loss_utils import ForCausalLMLoss

    return isinstance(module, PreTrainedModel) and hasattr(type(module), "loss_function") and (
        module.loss_function is ForCausalLMLoss and module.get_output_embeddings() is not None
    )
