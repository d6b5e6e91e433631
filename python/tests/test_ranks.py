"""Several processes that train together through a function of Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lowrank
from conftest import make_rows

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "gloo.py"


def adapter(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture()
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(120)))
    return path


def test_two_processes_of_torch_distributed_end_at_the_bits_of_one(model_folder, data, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [EXAMPLE, model_folder, data, tmp_path / "two"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr, done.stderr
    one = lowrank.Model.from_pretrained(model_folder)
    one.train(data, out=tmp_path / "one", max_steps=4, batch_size=64, progress=False)
    assert adapter(tmp_path / "two") == adapter(tmp_path / "one")


def test_a_function_that_fails_ends_the_run_with_its_message(model_folder, data, tmp_path):
    def all_gather(message):
        raise ConnectionError("the other machine is gone")

    model = lowrank.Model.from_pretrained(model_folder, rank=0, world_size=2, all_gather=all_gather)
    with pytest.raises(RuntimeError, match="the other machine is gone"):
        model.train(data, out=tmp_path / "out", max_steps=1, progress=False)
    model = lowrank.Model.from_pretrained(model_folder, rank=0, world_size=2, all_gather=lambda message: [message])
    with pytest.raises(RuntimeError, match="1 messages for 2 ranks"):
        model.train(data, out=tmp_path / "out", max_steps=1, progress=False)


def test_ranks_are_checked(model_folder):
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        lowrank.Model.from_pretrained(model_folder, rank=2, world_size=2, all_gather=lambda message: [message])
    with pytest.raises(ValueError, match="go together"):
        lowrank.Model.from_pretrained(model_folder, world_size=2)
