"""The engine's Python face."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence, Union

from ._lowrank import Engine
from ._progress import Progress

PathLike = Union[str, "os.PathLike[str]"]
Dataset = Union[PathLike, Iterable[PathLike], Iterable[Mapping[str, Any]]]
Prompt = Union[str, Sequence[Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run came to. Losses are in nats; ``None`` where there was none."""

    steps: int
    first_loss: Optional[float]
    last_loss: Optional[float]
    eval_loss: Optional[float]
    best: Optional[tuple]
    train_s: float
    tokens: int
    examples: int
    interrupted: bool
    adapter: Path


class Model:
    """A base model, with at most one adapter on it. Its weights are mapped from their file, not read."""

    def __init__(self, engine: Engine, form: Mapping[str, Any]):
        self._engine = engine
        self._form = form

    @classmethod
    def from_pretrained(
        cls,
        model: PathLike,
        adapter: Optional[PathLike] = None,
        *,
        quantize: Optional[str] = None,
        precision: Optional[str] = None,
        stream_base: bool = False,
        rank: int = 0,
        world_size: int = 1,
        all_gather: Optional[Callable[[bytes], Sequence[bytes]]] = None,
    ) -> Model:
        """Opens a Hugging Face folder, a GGUF file or a hub id (``org/name``), with the adapter in a folder.

        A dense base can be held quantised (``quantize="nf4"`` or ``"q8_0"``) or in ``precision="bf16"``; one that is
        larger than memory can be read from its file block by block (``stream_base=True``).

        ``rank``, ``world_size`` and ``all_gather`` make it one of several processes that ``train`` together, each with
        the same arguments. ``all_gather(message)`` sends bytes to all and returns a list with those of every rank, such as
        ``torch.distributed.all_gather_object`` does. The adapter and its files are the first rank's to write."""
        form = _options(None, {"quantize": quantize, "precision": precision, "stream_base": stream_base})
        if (all_gather is None) != (world_size == 1):
            raise ValueError("world_size and all_gather go together: several ranks need a function that gathers their bytes")
        ranks = None if all_gather is None else (rank, world_size, all_gather)
        self = cls(Engine(os.fspath(model), json.dumps(form), ranks), form)
        if adapter is not None:
            self.load_adapter(adapter)
        return self

    def __repr__(self) -> str:
        kind = self.config.get("model_type", "model")
        return f"lowrank.Model({self._engine.source!r}, {kind}, {'with' if self.has_adapter else 'no'} adapter)"

    @property
    def config(self) -> dict:
        """Hugging Face's ``config.json`` of the base model."""
        return json.loads(self._engine.config())

    @property
    def sites(self) -> dict:
        """The modules that can have an adapter, by path: (input features, output features)."""
        return {path: (inputs, outputs) for path, inputs, outputs in self._engine.sites()}

    # The adapter

    @property
    def has_adapter(self) -> bool:
        return self._engine.adapter_config() is not None

    @property
    def adapter_config(self) -> Optional[dict]:
        """PEFT's ``adapter_config.json`` of the adapter on the model."""
        text = self._engine.adapter_config()
        return None if text is None else json.loads(text)

    def adapter_weights(self) -> dict:
        """The adapter's numbers by PEFT's names, as read-only arrays over the engine's memory."""
        return self._engine.adapter_weights()

    def load_adapter(self, folder: PathLike) -> None:
        """Puts PEFT's adapter folder on the model, in place of the adapter that was there."""
        self._engine.load_adapter(os.fspath(folder))

    def unload_adapter(self) -> None:
        """Takes the adapter off."""
        self._engine.load_adapter(None)

    def save_adapter(self, folder: PathLike) -> None:
        """Writes the adapter as PEFT's folder."""
        self._engine.save_adapter(os.fspath(folder))

    # Training

    def train(
        self,
        dataset: Dataset,
        config: Union[Mapping[str, Any], PathLike, None] = None,
        *,
        out: PathLike = "adapter",
        eval_dataset: Optional[Dataset] = None,
        callback: Optional[Callable[[dict], Any]] = None,
        progress: bool = True,
        threads: int = 0,
        **options: Any,
    ) -> TrainResult:
        """Trains an adapter into the folder ``out`` and leaves it on the model.

        ``dataset`` is a file (.jsonl, .csv, .tsv), a list of files (``"facts.jsonl:0.5"`` takes half of its rows) or rows:
        dictionaries with ``prompt`` and ``completion``, with ``messages``, with ``text`` or in any other form of
        ``docs/data.md``. ``config`` (a dictionary or a TOML file) and ``options`` are those of
        ``lowrank train``, with underscores: ``r=16, learning_rate=1e-4, max_steps=200``.

        ``callback(record)`` is called after each step and each evaluation with what ``--log-json`` logs; if it
        returns ``False``, the run ends there, saved. The GIL is free while a step computes. Ctrl-C ends the run
        after the step at hand, with everything saved, and raises KeyboardInterrupt; ``resume=True`` goes on."""
        shown = Progress() if progress else None

        def hear(kind: str, text: str) -> bool:
            record = text if kind == "message" else json.loads(text)
            if shown:
                getattr(shown, kind)(record)
            return callback is None or kind not in ("step", "eval") or callback(record) is not False

        with _Files() as files:
            merged = _options(config, options) | self._run(out)
            merged["data"] = files.path(dataset, "dataset")
            if eval_dataset is not None:
                merged["eval_data"] = files.path(eval_dataset, "eval_dataset")
            threads = threads or merged.get("threads") or 0
            try:
                summary = json.loads(self._engine.train(json.dumps(merged), threads, hear))
            finally:
                if shown:
                    shown.close()
        best, folder = summary.pop("best"), summary.pop("out")
        return TrainResult(adapter=Path(folder), best=None if best is None else tuple(best), **summary)

    def plan(
        self,
        dataset: Dataset,
        config: Union[Mapping[str, Any], PathLike, None] = None,
        *,
        threads: int = 0,
        **options: Any,
    ) -> dict:
        """Peak memory (bytes) and work of a run, without running it."""
        with _Files() as files:
            merged = _options(config, options) | self._run("adapter")
            merged["data"] = files.path(dataset, "dataset")
            return json.loads(self._engine.plan(json.dumps(merged), threads))

    def evaluate(self, dataset: Dataset, *, threads: int = 0, **options: Any) -> dict:
        """Loss, perplexity, token accuracy and exact match on held-out data. ``options`` are those of
        ``lowrank eval``, such as ``batch_size``."""
        with _Files() as files:
            merged = _options(None, options) | {"data": files.path(dataset, "dataset")}
            return json.loads(self._engine.evaluate(json.dumps(merged), threads))

    def merge(
        self,
        out: PathLike,
        *,
        dtype: Optional[str] = None,
        force: bool = False,
        probe: str = "The quick brown fox jumps over the lazy dog. Once upon a time",
        threads: int = 0,
    ) -> dict:
        """Writes base and adapter as one model: a folder (safetensors), or a GGUF file where ``out`` ends in
        ``.gguf``. ``dtype`` is a number type or a file type of GGUF (``"q4_k_m"``); without one a GGUF base keeps its types
        in a GGUF file. Returns how far the logits on ``probe`` are from the unmerged ones."""
        out = Path(out)
        if out.exists() and not force:
            raise ValueError(f"{out} exists; --force replaces it")
        return json.loads(self._engine.merge(os.fspath(out), dtype, probe, threads))

    # Using it

    def generate(
        self,
        prompt: Union[Prompt, Sequence[str]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Union[str, Sequence[str]] = (),
        seed: int = 0,
        threads: int = 0,
        stream: Optional[Callable[[str], Any]] = None,
    ) -> Union[str, list]:
        """Continues a text; a list of texts gives a list. A list of messages (``{"role", "content"}`` and whatever else
        the chat template reads) is a conversation that the model answers. ``stream(piece)`` gets the text as it
        grows."""
        if not isinstance(prompt, str):
            prompt = list(prompt)
            if not all(isinstance(p, Mapping) for p in prompt):
                settings = dict(locals())
                for name in ("self", "prompt"):
                    del settings[name]
                return [self.generate(p, **settings) for p in prompt]
            prompt = (json.dumps([dict(m) for m in prompt]),)
        stops = [stop] if isinstance(stop, str) else list(stop)
        text, _ = self._engine.generate(
            prompt, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stops, seed, threads, stream
        )
        return text

    def encode(self, text: str, add_special_tokens: bool = True) -> list:
        """The tokens of a text: with a begin token where the model's tokenizer adds one (never an end token), or with
        nothing added."""
        return self._engine.encode(text, add_special_tokens)

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return self._engine.decode(list(tokens), skip_special_tokens)

    def logits(self, text: Union[str, Iterable[int]], threads: int = 0):
        """The logits [T, V] after each token of a text or list of tokens, as an :class:`lowrank.Array`."""
        return self._engine.logits(self._tokens(text), threads)

    def hidden_states(self, text: Union[str, Iterable[int]], threads: int = 0):
        """The hidden states [T, D] after the last norm, as an :class:`lowrank.Array`."""
        return self._engine.hidden_states(self._tokens(text), threads)

    def head(self, hidden_states, threads: int = 0):
        """The logits [T, V] of hidden states [T, D], read where they lie: any float32 array with ``__dlpack__``."""
        return self._engine.head(hidden_states, threads)

    def _run(self, out: PathLike) -> dict:
        return {"model": self._engine.source, "out": os.fspath(out), **self._form}

    def _tokens(self, text) -> list:
        return self.encode(text) if isinstance(text, str) else [int(token) for token in text]


def _options(config, options: Mapping[str, Any]) -> dict:
    if config is None:
        table: dict = {}
    elif isinstance(config, Mapping):
        table = dict(config)
    else:
        table = _toml(Path(config))
    table.update(options)
    plain = {}
    for key, value in table.items():
        if value is None:
            continue
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, (set, frozenset, tuple)):
            value = list(value)
        plain[key.replace("-", "_")] = value
    return plain


def _toml(path: Path) -> dict:
    try:
        import tomllib
    except ImportError:
        raise ValueError(f"{path}: Python before 3.11 reads no TOML; give a dictionary") from None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None


class _Files:
    """Datasets as files for the engine: those that are files, and rows written for the time being."""

    def __init__(self):
        self.folder: Optional[str] = None

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, dataset: Dataset, name: str) -> Union[str, list[str]]:
        if isinstance(dataset, (str, os.PathLike)):
            return os.fspath(dataset)
        if isinstance(dataset, (list, tuple)) and dataset and isinstance(dataset[0], (str, os.PathLike)):
            return [os.fspath(file) for file in dataset]
        if self.folder is None:
            self.folder = tempfile.mkdtemp(prefix="lowrank-")
        path = os.path.join(self.folder, f"{name}.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for number, row in enumerate(_rows(dataset), 1):
                try:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                except TypeError as error:
                    raise ValueError(f"{name}, row {number}: {error}") from None
        return path


def _rows(dataset: Iterable[Mapping[str, Any]]) -> Iterator[dict]:
    for number, row in enumerate(dataset, 1):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number} of the dataset is a {type(row).__name__}, expected a dictionary")
        yield dict(row)
