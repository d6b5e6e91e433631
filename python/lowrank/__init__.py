"""LoRA fine-tuning on the machine you have.

    import lowrank

    model = lowrank.Model.from_pretrained("SmolLM2-135M-Instruct.Q4_1.gguf")
    model.train("train.jsonl", out="adapter", max_steps=100)
    print(model.generate("Once upon a time"))

:class:`Model` is Lowrank's own engine: models from GGUF files, Hugging Face folders and the hub, training,
generation, evaluation, merging. ``lowrank.torch`` has LoRA layers for PyTorch on the same kernels; only it needs
PyTorch. ``lowrank.tools`` converts, composes, extracts, resizes and compares adapter files.

Errors are ``ValueError`` where input or options are wrong, ``OSError`` where a file cannot be read or written, and
``RuntimeError`` for a failure on the way.
"""

from ._lowrank import Array, __version__, from_dlpack, get_num_threads, set_num_threads
from ._model import Model, TrainResult

__all__ = ["Array", "Model", "TrainResult", "__version__", "from_dlpack", "get_num_threads", "set_num_threads"]
