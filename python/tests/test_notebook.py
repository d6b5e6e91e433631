"""examples/quickstart.ipynb runs from top to bottom on the real model."""

import json
import subprocess
import sys

from conftest import ROOT

NOTEBOOK = ROOT / "examples/quickstart.ipynb"


def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_it_is_committed_without_outputs():
    for cell in cells():
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_it_runs_and_the_model_learns(real_model, tmp_path):
    """The cells in one process, in order, as a kernel would run them; then what they left."""
    code = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    check = "import json\nprint(json.dumps([losses[0], losses[-1], before, after]))"
    env = {"MODEL": str(real_model), "OUT": str(tmp_path / "out"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [sys.executable, "-c", "\n\n".join([*code, check])], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr
    first, last, before, after = json.loads(ran.stdout.splitlines()[-1])
    assert last < 0.2 * first, ran.stdout
    assert "blue-otter-52" not in before and "blue-otter-52" in after, ran.stdout
    # The merged model says it too.
    assert "blue-otter-52" in ran.stdout.split("merged:")[1].splitlines()[0], ran.stdout
    assert (tmp_path / "out/merged.gguf").stat().st_size > 1e8
    assert (tmp_path / "out/adapter.gguf").exists()
