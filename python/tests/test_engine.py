"""The engine from Python: training, generation, evaluation, merging, arrays, errors, threads, Ctrl-C."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import lowrank
from conftest import FIXTURES, make_rows

OPTIONS = {"r": 2, "batch_size": 4, "learning_rate": 0.02, "progress": False, "threads": 1}


def expected(name):
    """The float32 and int64 tensors of a fixture's safetensors file."""
    data = (FIXTURES / name / "expected.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for key, entry in json.loads(data[8 : 8 + length]).items():
        if key != "__metadata__":
            kind = {"F32": np.float32, "I64": np.int64}[entry["dtype"]]
            start, end = (8 + length + at for at in entry["data_offsets"])
            tensors[key] = np.frombuffer(data[start:end], kind).reshape(entry["shape"])
    return tensors


def test_importing_needs_no_torch(tmp_path):
    code = "import sys, lowrank; print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.split() == ["False", "False"]


def test_logits_are_those_of_transformers(model):
    want = expected("llama_gqa_tied")
    got = model.logits(want["ids_1"])
    assert got.shape == (23, 96)
    np.testing.assert_allclose(got.numpy(), want["base_logits_1"], atol=2e-5)


def test_arrays_are_not_copied(model):
    logits = model.logits("red and")
    seen = logits.numpy()
    assert seen.ctypes.data == logits.data_ptr()
    assert np.asarray(logits).ctypes.data == logits.data_ptr()
    assert seen.shape == logits.shape == (len(model.encode("red and")), 96)
    kept = seen.copy()
    del logits  # The array keeps the memory.
    model.logits("something else that wants memory")
    np.testing.assert_array_equal(seen, kept)
    assert np.asarray(model.logits("red"), dtype=np.float64).dtype == np.float64


def test_dlpack_goes_both_ways(model):
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = lowrank.from_dlpack(numbers)
    assert array.data_ptr() == numbers.ctypes.data and array.shape == (3, 4)
    numbers[1, 1] = 77
    assert array.numpy()[1, 1] == 77
    back = np.from_dlpack(array)
    assert back.ctypes.data == numbers.ctypes.data
    assert np.array(array, copy=True).ctypes.data != numbers.ctypes.data
    assert lowrank.from_dlpack(array).data_ptr() == array.data_ptr()
    for wrong, what in [(np.zeros(3), "float32"), (np.zeros((2, 2, 2), np.float32), "axes"),
                        (np.zeros((4, 4), np.float32)[:, ::2], "contiguous")]:
        with pytest.raises(ValueError, match=what.replace("axes", "one axis nor two")):
            lowrank.from_dlpack(wrong)
    with pytest.raises(TypeError, match="__dlpack__"):
        lowrank.from_dlpack([1.0])


def test_a_capsule_nobody_takes_frees_its_memory(model):
    array = lowrank.from_dlpack(np.ones(1000, np.float32))
    for _ in range(1000):
        array.__dlpack__()
        array.__dlpack__(max_version=(1, 0))
    assert array.numpy().sum() == 1000


def test_hidden_states_go_through_the_head_where_they_lie(model):
    hidden = model.hidden_states("red and blue")
    logits = model.head(hidden.numpy())
    np.testing.assert_allclose(logits.numpy(), model.logits("red and blue").numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="features"):
        model.head(np.zeros((2, 5), np.float32))


def test_trains_on_rows_and_uses_the_adapter(model, rows, tmp_path):
    records = []
    before = model.logits("red and").numpy().copy()
    result = model.train(
        rows, out=tmp_path / "a", eval_dataset=rows[:5], eval_steps=4, max_steps=8, callback=records.append, **OPTIONS
    )
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 9)) and result.steps == 8
    assert sum("eval_loss" in r for r in records) == 2
    assert steps[-1]["loss"] < steps[0]["loss"] == result.first_loss
    assert not result.interrupted and result.adapter == tmp_path / "a"
    assert not np.allclose(before, model.logits("red and").numpy())
    assert model.adapter_config["r"] == 2

    again = lowrank.Model.from_pretrained(model._engine.source, adapter=result.adapter)
    np.testing.assert_array_equal(again.logits("red and").numpy(), model.logits("red and").numpy())
    weights = model.adapter_weights()
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert weights[name].shape == (2, 64)
    with pytest.raises(ValueError):
        weights[name].numpy()[0, 0] = 1.0

    model.save_adapter(tmp_path / "b")
    assert (tmp_path / "b/adapter_model.safetensors").read_bytes() == (
        tmp_path / "a/adapter_model.safetensors"
    ).read_bytes()
    model.unload_adapter()
    np.testing.assert_array_equal(before, model.logits("red and").numpy())


def test_files_generators_and_config_give_the_same_run(model, rows, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "run.toml"
    config.write_text("r = 2\nbatch-size = 4\nlearning-rate = 0.02\nmax-steps = 3\n")
    words = {"r": 2, "batch_size": 4, "learning_rate": 0.02, "max_steps": 3}
    runs = [(data, words), ((row for row in rows), words)] + ([(data, config)] if sys.version_info >= (3, 11) else [])
    files = []
    for i, (dataset, how) in enumerate(runs):
        model.train(dataset, how, out=tmp_path / str(i), progress=False, threads=1)
        files.append((tmp_path / str(i) / "adapter_model.safetensors").read_bytes())
    assert all(f == files[0] for f in files)


def test_a_callback_ends_the_run_and_resume_goes_on_to_the_same_bits(model, rows, tmp_path):
    whole = model.train(rows, out=tmp_path / "whole", max_steps=6, **OPTIONS)
    stopped = model.train(
        rows, out=tmp_path / "half", max_steps=6, callback=lambda record: record["step"] < 3, **OPTIONS
    )
    assert stopped.interrupted and stopped.steps == 3
    done = model.train(rows, out=tmp_path / "half", max_steps=6, resume=True, **OPTIONS)
    assert done.steps == whole.steps == 6
    name = "adapter_model.safetensors"
    assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_exception_in_the_callback_comes_out_after_saving(model, rows, tmp_path):
    class Mine(Exception):
        pass

    def fail(record):
        if record["step"] == 2:
            raise Mine("here")

    with pytest.raises(Mine, match="here"):
        model.train(rows, out=tmp_path / "a", max_steps=50, callback=fail, **OPTIONS)
    assert (tmp_path / "a/adapter_model.safetensors").exists()
    assert model.has_adapter


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_saves_and_raises(model_folder, tmp_path):
    code = f"""
import lowrank, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import make_rows
model = lowrank.Model.from_pretrained({str(model_folder)!r})
try:
    model.train(make_rows(30), out={str(tmp_path / "a")!r}, max_steps=1_000_000, progress=False, threads=1,
                callback=lambda r: print(r["step"], flush=True) if r["step"] == 3 else None)
except KeyboardInterrupt:
    print("interrupted", model.has_adapter)
"""
    # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert child.stdout.readline().strip() == "3"
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert out.split() == ["interrupted", "True"] and child.returncode == 0
    assert (tmp_path / "a/checkpoints/last").exists()


def test_the_gil_is_free_while_a_step_computes(model, tmp_path):
    long = [{"text": "red and blue " * 9}] * 64
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    steps = []
    thread.start()
    try:
        started = time.monotonic()
        model.train(
            long, out=tmp_path / "a", r=2, batch_size=64, max_steps=4, progress=False, threads=1,
            callback=lambda r: steps.append(r.get("step_s", 0.0)),
        )
        ended = time.monotonic()
    finally:
        done.set()
        thread.join()
    assert max(steps) > 0.02, "steps long enough to tell"
    within = sum(started < t < ended for t in ticks)
    assert within > (ended - started) * 1000 / 20, "the other thread went on"


def test_generates(model, rows, tmp_path):
    # Slow enough that rounding does not decide where it ends.
    model.train(rows, out=tmp_path / "a", max_steps=300, **OPTIONS | {"learning_rate": 0.01})
    text = model.generate("red and", max_new_tokens=20)
    assert text.endswith("red.")
    assert model.generate(["red and", "gold and"], max_new_tokens=20) == [
        text, model.generate("gold and", max_new_tokens=20)
    ]
    pieces = []
    assert model.generate("red and", max_new_tokens=20, stream=pieces.append) == "".join(pieces) == text
    assert len(pieces) > 3
    assert "." not in model.generate("red and", max_new_tokens=20, stop=".")
    drawn = {model.generate("red and", max_new_tokens=20, temperature=2.0, seed=seed) for seed in range(6)}
    assert len(drawn) > 1
    answer = model.generate([{"role": "user", "content": "red"}], max_new_tokens=5)
    assert isinstance(answer, str)
    with pytest.raises(RuntimeError, match="enough"):
        model.generate("red and", max_new_tokens=100, stream=lambda piece: (_ for _ in ()).throw(RuntimeError("enough")))
    assert model.decode(model.encode("red and blue")) == "red and blue"


def test_evaluates_plans_and_merges(model, rows, tmp_path):
    model.train(rows, out=tmp_path / "a", max_steps=5, **OPTIONS)
    scores = model.evaluate(rows, threads=1)
    assert scores["examples"] == 30 and np.isclose(scores["perplexity"], np.exp(scores["loss"]))
    plan = model.plan(rows, r=2, batch_size=4, max_steps=5)
    assert plan["peak_bytes"] > plan["base_bytes"] > 0
    verified = model.merge(tmp_path / "merged", dtype="f32", probe="red and blue")
    assert verified["max_difference"] < 1e-3 and verified["same_best"] == verified["positions"]
    merged = lowrank.Model.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(merged.logits("red and").numpy(), model.logits("red and").numpy(), atol=1e-3)
    with pytest.raises(ValueError, match="exists"):
        model.merge(tmp_path / "merged")


def test_errors_are_pythons_with_the_commands_texts(model, rows, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        model.train(tmp_path / "nothing.jsonl", out=tmp_path / "a", **OPTIONS)
    with pytest.raises(ValueError, match="learning_rat"):
        model.train(rows, out=tmp_path / "a", learning_rat=1.0, progress=False)
    with pytest.raises(ValueError, match="`learning_rate` is -?[0-9.]+; it must be a number from 0"):
        model.train(rows, out=tmp_path / "a", progress=False, learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"q_proj"):
        model.train(rows, out=tmp_path / "a", target_modules=["nowhere"], progress=False)
    with pytest.raises(ValueError, match=r"dataset.jsonl:2: .*found neither"):
        model.train([rows[0], {"question": "?"}], out=tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="row 2 of the dataset is a str"):
        model.train([rows[0], "red"], out=tmp_path / "a", progress=False)
    # A list of texts is one of files.
    with pytest.raises(FileNotFoundError, match="red.jsonl"):
        model.train(["red.jsonl"], out=tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="temperature"):
        model.generate("red", temperature=-1.0)
    with pytest.raises(ValueError, match="token 1000"):
        model.logits([1000])
    with pytest.raises((ValueError, OSError)):
        lowrank.Model.from_pretrained(tmp_path / "no-model")
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        model.load_adapter(tmp_path)
    model.train(rows, out=tmp_path / "a", max_steps=1, **OPTIONS)
    with pytest.raises(ValueError, match="holds another run"):
        model.train(rows, out=tmp_path / "a", max_steps=1, **OPTIONS)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        model.train(rows, out=tmp_path / "file" / "a", max_steps=1, **OPTIONS)


def test_progress_goes_to_standard_error(model, rows, tmp_path, capsys):
    options = OPTIONS | {"progress": True}
    model.train(rows, out=tmp_path / "a", max_steps=3, **options)
    shown = capsys.readouterr()
    assert shown.out == "" and "30 examples" in shown.err and "loss" in shown.err


def test_threads_can_be_set_and_give_the_same_bits(model, rows, tmp_path):
    before = lowrank.get_num_threads()
    try:
        lowrank.set_num_threads(2)
        assert lowrank.get_num_threads() == 2
        two = model.logits("red and blue").numpy()
        lowrank.set_num_threads(1)
        one = model.logits("red and blue").numpy()
    finally:
        lowrank.set_num_threads(0)
    assert lowrank.get_num_threads() == before
    np.testing.assert_array_equal(one, two)


def test_several_python_threads_at_once(model):
    want = model.logits("red and blue").numpy()
    results = []
    work = lambda: results.extend(model.logits("red and blue").numpy() for _ in range(5))
    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(results) == 20
    for got in results:
        np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_has_threads_of_its_own(model_folder):
    code = f"""
import lowrank, os, sys
model = lowrank.Model.from_pretrained({str(model_folder)!r})
want = bytes(memoryview(model.logits("red and blue").numpy()))
child = os.fork()
if child == 0:
    os._exit(0 if bytes(memoryview(model.logits("red and blue").numpy())) == want else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "0", out.stderr


def test_the_readmes_example_runs(model_folder, rows, tmp_path, monkeypatch):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 10
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model.gguf").symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()


def test_the_example_script_runs(model_folder, tmp_path):
    script = Path(__file__).resolve().parents[1] / "examples/restaurants.py"
    out = subprocess.run(
        [sys.executable, script, "--model", model_folder, "--out", tmp_path / "a", "--steps", "3"],
        capture_output=True, text=True, timeout=120, check=False,
    )
    assert out.returncode == 0, out.stderr
    assert "held-out loss" in out.stdout
