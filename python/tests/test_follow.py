"""The trackers of python/examples/follow.py, with a stub for each module."""

import importlib.util
import json
import re
import sys
import types

import pytest
from conftest import ROOT


@pytest.fixture()
def example():
    spec = importlib.util.spec_from_file_location("follow", ROOT / "python/examples/follow.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORDS = [
    {"step": 1, "epoch": 0.5, "loss": 2.5, "peak_rss_bytes": None},
    {"step": 2, "epoch": 1.0, "loss": 1.5, "peak_rss_bytes": 7},
    {"step": 2, "epoch": 1.0, "eval_loss": 1.75},
    {"step": 2, "epoch": 1.0, "sample_prompt": "a", "sample_text": "b", "sample_tokens": 3, "sample_s": 0.5},
]
LOGGED = [
    (1, {"epoch": 0.5, "loss": 2.5}),
    (2, {"epoch": 1.0, "loss": 1.5, "peak_rss_bytes": 7}),
    (2, {"epoch": 1.0, "eval_loss": 1.75}),
    (2, {"epoch": 1.0, "sample_tokens": 3, "sample_s": 0.5}),
]


def test_every_tracker_gets_every_record(example, monkeypatch):
    for name in ("wandb", "mlflow", "trackio"):
        logged, events = [], []

        class Run:
            def log(self, values, step):
                logged.append((step, values))

            def finish(self):
                events.append("finish")

            def __enter__(self):
                return self

            def __exit__(self, *_):
                events.append("finish")

        run = Run()

        def begin(events=events, run=run, **words):
            events.append(words.get("name") or words["run_name"])
            return run

        stub = types.ModuleType(name)
        stub.init = stub.start_run = begin
        stub.log = stub.log_metrics = run.log
        stub.finish = run.finish
        monkeypatch.setitem(sys.modules, name, stub)
        example.TRACKERS[name](iter(RECORDS), "adapter")
        assert logged == LOGGED
        assert events == ["adapter", "finish"]


def test_a_log_is_followed_while_it_is_written(example, tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(record) + "\n" for record in RECORDS]
    parts = [lines[0], lines[1][:9], lines[1][9:] + lines[2] + lines[3]]

    def alive():
        if not parts:
            return False
        with open(path, "a") as log:
            log.write(parts.pop(0))
        return True

    assert list(example.follow(path, alive, wait=0.0)) == RECORDS


def test_the_page_has_the_same_function(example, tmp_path):
    page = (ROOT / "docs/log.md").read_text()
    block = re.search(r"```python\n(import json, os, time.*?)```", page, re.S).group(1)
    scope = {}
    exec(block, scope)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"step": 3')
    assert list(scope["follow"](path, lambda: False)) == RECORDS
