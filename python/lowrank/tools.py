"""Tools for adapter files, as the commands of the same names.

    from lowrank import tools

    both = tools.compose([(tools.load("poems"), 0.7), (tools.load("letters"), 0.3)])
    both.resize(energy=0.95).save("small")
    tools.convert("small", "small.gguf", to="gguf", base="model.gguf")

An :class:`Adapter` is what a file holds: pairs of matrices by module path with their alpha, whatever the format (PEFT,
loralib, GGUF, MLX, kohya, diffusers). None of them is changed in place. Errors are those of :mod:`lowrank`.
"""

import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import _lowrank
from ._lowrank import Array

__all__ = ["Adapter", "Layer", "compose", "convert", "diff", "extract", "inspect", "load"]

Path = Union[str, "os.PathLike[str]"]
RULES = ("rank", "energy", "frobenius", "cumulative", "ratio")


class Layer(NamedTuple):
    """An adapted layer: its weight gains ``alpha / r * B A``."""

    r: int
    alpha: float
    out_features: int
    in_features: int


def _rule(rules: Dict[str, Optional[float]]) -> Tuple[str, float]:
    said = [(name, float(value)) for name, value in rules.items() if value is not None]
    if len(said) != 1:
        raise ValueError(f"give one of {', '.join(RULES)}")
    return said[0]


class Adapter:
    """An adapter as a file holds it. :func:`load` reads one."""

    def __init__(self, file: "_lowrank.AdapterFile", format: str = "peft"):
        self._file = file
        #: The format it was read from.
        self.format = format

    @property
    def layers(self) -> Dict[str, Layer]:
        """The layers by module path."""
        return {path: Layer(*rest) for path, *rest in self._file.layers()}

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return self._file.parameters()

    @property
    def config(self) -> Dict[str, Any]:
        """``adapter_config.json`` where it came with one."""
        return json.loads(self._file.config())

    def __getitem__(self, path: str) -> Tuple[Array, Array]:
        """``A`` and ``B`` of a layer, ``[r, K]`` and ``[O, r]``, without a copy."""
        return self._file.weights(path)

    def __len__(self) -> int:
        return len(self._file.layers())

    def __eq__(self, other: object) -> bool:
        """The same numbers in the same layers."""
        return self._file.same(other._file) if isinstance(other, Adapter) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<lowrank.tools.Adapter: {len(self)} layers, {self.parameters} parameters>"

    def delta(self, path: str) -> Array:
        """``alpha / r * B A`` of a layer, ``[O, K]``."""
        return self._file.delta(path)

    def save(
        self,
        path: Path,
        format: str = "peft",
        *,
        enable_lora: Sequence[bool] = (),
        base: Optional[str] = None,
        component: Optional[str] = None,
        force: bool = False,
    ) -> None:
        """Writes it in a format: peft, loralib, gguf, mlx, kohya or diffusers."""
        self._file.save(os.fspath(path), format, list(enable_lora), base, component, force)

    def spectra(self, threads: int = 0) -> List[Dict[str, Any]]:
        """Norm, effective rank and singular values of every layer's ``alpha / r * B A``."""
        return json.loads(self._file.spectra(threads))

    def diff(self, other: "Adapter", threads: int = 0) -> List[Dict[str, Any]]:
        """Distance, cosine and overlap with another adapter, layer by layer."""
        return json.loads(self._file.diff(other._file, threads))

    def resize(
        self,
        rank: Optional[int] = None,
        *,
        energy: Optional[float] = None,
        frobenius: Optional[float] = None,
        cumulative: Optional[float] = None,
        ratio: Optional[float] = None,
        max_rank: Optional[int] = None,
        threads: int = 0,
    ) -> "Adapter":
        """The best adapter of another rank, fixed or by what is kept of the singular values; one rule is said."""
        said = _rule(dict(zip(RULES, (rank, energy, frobenius, cumulative, ratio))))
        file, _ = self._file.resize(*said, max_rank, threads)
        return Adapter(file)

    def prune(
        self, *, density: Optional[float] = None, min_norm: Optional[float] = None, drop: Optional[str] = None
    ) -> "Adapter":
        """Without the smallest entries (``density`` is the share that stays), without layers whose change is below
        ``min_norm`` of the largest, without those whose path matches ``drop``."""
        file, _ = self._file.prune(density, min_norm, drop)
        return Adapter(file)

    def to(self, dtype: str) -> "Adapter":
        """In another number type: f32, f16 or bf16."""
        return Adapter(self._file.to(dtype), self.format)


def load(
    path: Path,
    *,
    format: Optional[str] = None,
    alpha: Optional[float] = None,
    enable_lora: Sequence[bool] = (),
    base: Optional[str] = None,
    component: Optional[str] = None,
) -> Adapter:
    """Reads an adapter, in the format it seems to have unless one is said. ``alpha`` and ``enable_lora`` are for loralib,
    ``base`` (the model) for GGUF, ``component`` (unet, text_encoder, text_encoder_2) for diffusion pipelines."""
    return Adapter(*_lowrank.AdapterFile.load(os.fspath(path), format, alpha, list(enable_lora), base, component))


def convert(
    path: Path, out: Path, to: str, *, dtype: Optional[str] = None, force: bool = False, **hints: Any
) -> Adapter:
    """Reads, perhaps in another number type, and writes in another format. ``hints`` are those of :func:`load`."""
    adapter = load(path, **hints)
    if dtype is not None:
        adapter = adapter.to(dtype)
    known = {name: hints[name] for name in ("enable_lora", "base", "component") if name in hints}
    adapter.save(out, to, force=force, **known)
    return adapter


def compose(
    adapters: Sequence[Union[Adapter, Tuple[Adapter, float]]],
    how: str = "svd",
    *,
    rank: Optional[int] = None,
    density: Optional[float] = None,
    majority_sign_method: str = "total",
    seed: int = 0,
    threads: int = 0,
) -> Adapter:
    """Several adapters with weights as one, as PEFT's ``add_weighted_adapter``: linear, cat, svd, ties, dare_linear,
    dare_ties, magnitude_prune, and the last four with ``_svd``."""
    pairs = [entry if isinstance(entry, tuple) else (entry, 1.0) for entry in adapters]
    files = [(adapter._file, float(weight)) for adapter, weight in pairs]
    return Adapter(_lowrank.compose(files, how, rank, density, majority_sign_method, seed, threads))


def extract(
    model: Path,
    tuned: Path,
    rank: Optional[int] = None,
    *,
    energy: Optional[float] = None,
    frobenius: Optional[float] = None,
    cumulative: Optional[float] = None,
    ratio: Optional[float] = None,
    max_rank: int = 256,
    target_modules: Union[str, Sequence[str]] = "all-linear",
    exact: bool = False,
    seed: int = 0,
    threads: int = 0,
) -> Adapter:
    """The best low-rank adapter to what a full fine-tune changed, layer by layer."""
    said = _rule(dict(zip(RULES, (rank, energy, frobenius, cumulative, ratio))))
    targets = target_modules if isinstance(target_modules, str) else ",".join(target_modules)
    models = os.fspath(model), os.fspath(tuned)
    file, _ = _lowrank.extract(*models, *said, max_rank, targets, exact, seed, threads)
    return Adapter(file)


def inspect(path: Path, **hints: Any) -> List[Dict[str, Any]]:
    """:meth:`Adapter.spectra` of a file."""
    return load(path, **hints).spectra()


def diff(left: Path, right: Path, **hints: Any) -> List[Dict[str, Any]]:
    """:meth:`Adapter.diff` of two files."""
    return load(left, **hints).diff(load(right, **hints))
