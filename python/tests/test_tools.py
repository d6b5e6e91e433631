"""The tools on adapter files from Python."""

import json
import shutil

import numpy as np
import pytest

from conftest import FIXTURES
from lowrank import Model, tools

ADAPTER = FIXTURES / "llama_gqa_tied/adapter"


@pytest.fixture()
def adapter():
    return tools.load(ADAPTER)


def delta(adapter, path):
    a, b = map(np.asarray, adapter[path])
    layer = adapter.layers[path]
    return layer.alpha / layer.r * b @ a


def test_an_adapter_shows_what_its_file_holds(adapter):
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert adapter.format == "peft" and adapter.config["r"] == config["r"]
    path, layer = next(iter(adapter.layers.items()))
    assert layer.r == config["r"] and layer.alpha == config["lora_alpha"] and len(adapter) == len(adapter.layers)
    a, b = map(np.asarray, adapter[path])
    assert a.shape == (layer.r, layer.in_features) and b.shape == (layer.out_features, layer.r)
    assert adapter.parameters == sum(l.r * (l.in_features + l.out_features) for l in adapter.layers.values())
    np.testing.assert_allclose(np.asarray(adapter.delta(path)), delta(adapter, path), rtol=1e-4, atol=1e-6)
    with pytest.raises(KeyError, match="no.such.layer"):
        adapter["no.such.layer"]


def test_spectra_and_differences_are_numpys(adapter):
    for entry in adapter.spectra():
        values = np.linalg.svd(delta(adapter, entry["layer"]), compute_uv=False)[: entry["r"]]
        np.testing.assert_allclose(entry["singular_values"], values, rtol=1e-4, atol=1e-6)
        assert entry["norm"] == pytest.approx(np.sqrt((values**2).sum()), rel=1e-4)
    smaller = adapter.resize(2)
    for entry in adapter.diff(smaller):
        apart = delta(adapter, entry["layer"]) - delta(smaller, entry["layer"])
        assert entry["distance"] == pytest.approx(np.linalg.norm(apart), rel=1e-3)
        assert entry["ranks"] == [4, 2]


def test_resizing_and_pruning(adapter):
    assert {layer.r for layer in adapter.resize(1).layers.values()} == {1}
    full = adapter.resize(energy=1.0)
    path = next(iter(adapter.layers))
    np.testing.assert_allclose(delta(full, path), delta(adapter, path), rtol=1e-3, atol=1e-5)
    assert all(layer.r <= 3 for layer in adapter.resize(frobenius=0.999, max_rank=3).layers.values())
    for rules in ({}, {"rank": 2, "energy": 0.5}):
        with pytest.raises(ValueError, match="give one of rank"):
            adapter.resize(**rules)
    with pytest.raises(ValueError, match="whole number"):
        adapter.resize(1.5)
    with pytest.raises(ValueError, match="share"):
        adapter.resize(energy=2.0)
    left = adapter.prune(drop=r"layers\.0\.")
    assert 0 < len(left) < len(adapter) and not any("layers.0." in path for path in left.layers)
    with pytest.raises(ValueError, match="regular expression"):
        adapter.prune(drop="(")
    halves = adapter.prune(density=0.5)
    assert np.mean(np.asarray(halves[path][0]) == 0) == pytest.approx(0.5, abs=0.1)


def test_composition_is_that_of_the_deltas(adapter, tmp_path):
    other = adapter.resize(2)
    path = next(iter(adapter.layers))
    want = 0.5 * delta(adapter, path) - 2.0 * delta(other, path)
    for how in ("cat", "svd"):
        rank = {"rank": 6} if how == "svd" else {}
        got = tools.compose([(adapter, 0.5), (other, -2.0)], how, **rank)
        np.testing.assert_allclose(delta(got, path), want, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="nonsense"):
        tools.compose([adapter], "nonsense")


@pytest.mark.parametrize("to, name", [("mlx", "poems-mlx"), ("loralib", "poems.bin")])
def test_formats_round_trip(adapter, tmp_path, to, name):
    out, back = tmp_path / name, tmp_path / "back"
    tools.convert(ADAPTER, out, to=to)
    alpha = {"alpha": 8.0} if to == "loralib" else {}
    tools.convert(out, back, to="peft", **alpha)
    assert tools.load(back) == adapter
    with pytest.raises(ValueError, match="exists; force=True"):
        tools.convert(ADAPTER, out, to=to)
    tools.convert(ADAPTER, out, to=to, force=True)
    half = tools.convert(ADAPTER, tmp_path / "half", to="peft", dtype="bf16")
    assert half != adapter and tools.load(tmp_path / "half") == half


def test_extraction_finds_the_adapter_again(adapter, model_folder, tmp_path):
    model = Model.from_pretrained(model_folder)
    model.load_adapter(ADAPTER)
    model.merge(tmp_path / "tuned", dtype="f32")
    found = tools.extract(model_folder, tmp_path / "tuned", 4)
    assert found.layers.keys() == adapter.layers.keys()
    for path in adapter.layers:
        want = delta(adapter, path)
        np.testing.assert_allclose(delta(found, path), want, atol=1e-5 * np.abs(want).max())
    part = tools.extract(model_folder, tmp_path / "tuned", energy=0.9, target_modules=["q_proj"])
    assert all(path.endswith("q_proj") for path in part.layers)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        tools.load(tmp_path / "missing", format="peft")
    with pytest.raises(ValueError, match="in a known format"):
        tools.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(ADAPTER, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        tools.load(broken)
