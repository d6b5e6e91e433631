"""How far a run is: a bar of tqdm's where there is one (in notebooks its own kind), else lines."""

from __future__ import annotations

import sys
import time
from typing import Any

EVERY_S = 10.0


class Progress:
    """Shows what training says."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.total = 0
        self.shown = 0.0

    def start(self, record: dict) -> None:
        self.total = record["total"]
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return
        self.bar = tqdm(total=self.total, initial=record["done"], unit="step")

    def step(self, record: dict) -> None:
        figures = f"loss {_number(record['loss'])}, {record['tokens_per_s']:.0f} tok/s"
        if self.bar is not None:
            self.bar.set_postfix_str(figures, refresh=False)
            self.bar.update(record["step"] - self.bar.n)
        elif time.monotonic() - self.shown >= EVERY_S or record["step"] >= self.total:
            self.shown = time.monotonic()
            self._say(f"step {record['step']}/{self.total}  {figures}")

    def eval(self, record: dict) -> None:
        self._say(f"eval at step {record['step']}: loss {_number(record['eval_loss'])}")

    def message(self, text: str) -> None:
        self._say(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def _number(value) -> str:
    return "nan" if value is None else f"{value:.4f}"
