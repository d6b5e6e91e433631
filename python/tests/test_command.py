"""The `lowrank` command of the package: the same as the Rust program, from the script and from `python -m lowrank`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lowrank

SCRIPT = [str(Path(sys.executable).parent / "lowrank")]
MODULE = [sys.executable, "-m", "lowrank"]


def start(command, *words, **settings):
    # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | settings
    return subprocess.Popen(
        [*command, *map(str, words)], text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes
    )


def run(command, *words):
    child = start(command, *words)
    out, err = child.communicate(timeout=300)
    return child.returncode, out, err


@pytest.fixture()
def data(tmp_path, rows):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["script", "module"])
def test_it_is_the_whole_command(command):
    assert run(command, "--version") == (0, f"lowrank {lowrank.__version__}\n", "")
    code, out, _ = run(command, "--help")
    pages = Path(__file__).resolve().parents[2] / "docs/commands"
    names = [page.stem for page in pages.glob("*.md") if page.stem != "README"]
    assert code == 0 and len(names) > 15
    assert [name for name in names if f"\n  {name} " not in out] == []


def test_it_trains_and_generates_what_the_library_does(model_folder, model, data, tmp_path):
    options = {"r": 2, "batch_size": 4, "learning_rate": 0.02, "max_steps": 5, "threads": 1}
    flags = [word for key, value in options.items() for word in ("--" + key.replace("_", "-"), value)]
    code, _, err = run(SCRIPT, "train", "--model", model_folder, "--data", data, "--out", tmp_path / "a", *flags)
    assert code == 0, err
    model.train(data, options, out=tmp_path / "b", progress=False)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    words = ["generate", "--model", model_folder, "--adapter", tmp_path / "a", "--prompt", "red and"]
    code, out, err = run(SCRIPT, *words, "--max-new-tokens", 8)
    assert code == 0, err
    assert out == model.generate("red and", max_new_tokens=8) + "\n"


def test_exit_codes_and_errors_are_the_commands(model_folder, tmp_path):
    code, out, err = run(SCRIPT, "train", "--nonsense")
    assert (code, out) == (2, "") and "--nonsense" in err and "Usage: lowrank train" in err
    missing = tmp_path / "missing.jsonl"
    code, _, err = run(SCRIPT, "eval", "--model", model_folder, "--data", missing)
    assert code == 1 and err.startswith("error: ") and str(missing) in err and "Traceback" not in err


def test_a_closed_pipe_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        child = start(SCRIPT, "man", stdout=writer)
    finally:
        os.close(writer)
    assert child.communicate(timeout=60)[1] == "" and child.returncode == 0


def test_ctrl_c_saves_a_run(model_folder, data, tmp_path):
    out = tmp_path / "a"
    child = start(SCRIPT, "train", "--model", model_folder, "--data", data, "--out", out, "--max-steps", 1_000_000)
    try:
        log, deadline = out / "log.jsonl", time.monotonic() + 60
        while not (log.exists() and log.read_text().count("\n") >= 3):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert (out / "checkpoints/last").exists() and "Traceback" not in err


def test_ctrl_c_ends_a_command_that_has_nothing_to_save(model_folder):
    # It waits for a prompt on standard input.
    child = start(SCRIPT, "generate", "--model", model_folder)
    try:
        time.sleep(2)
        child.send_signal(signal.SIGINT)
        child.wait(timeout=30)
    finally:
        child.kill()
    assert child.returncode == -signal.SIGINT and child.stderr.read() == ""


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["script", "module"])
def test_a_study_starts_the_command_again(command, model_folder, data, tmp_path):
    spec = tmp_path / "study.toml"
    spec.write_text(
        f"name = 'one'\nout = '{tmp_path / 'study'}'\nseeds = [1]\nmetric = 'loss'\n"
        f"[train]\nmodel = '{model_folder}'\ndata = '{data}'\neval-data = '{data}'\nmax-steps = 2\nthreads = 1\n"
        "[[method]]\nname = 'LoRA'\nr = 2\n"
    )
    code, _, err = run(command, "study", spec)
    assert code == 0, err
    results = [json.loads(path.read_text()) for path in (tmp_path / "study").rglob("result.json")]
    assert results and all(result["error"] is None and result["eval"]["loss"] > 0 for result in results), results
