"""Exchange adapters with PEFT: every variant and task that `lowrank train` writes, on tiny models.

    cargo build --release --bins --examples
    python variants_exchange.py --target target/release [--only NAME ...]

PEFT must load each folder without a tensor missing, left over or changed and give Lowrank's logits within 1e-4; what PEFT
saves of it must give them again in Lowrank. A task's adapter brings its head: transformers + PEFT must give the scores of
`lowrank predict`, and so must transformers alone with the folder that `lowrank merge` writes.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from base import load_base
from llama_tiny import FIXTURES
from peft_load import differences, load_adapter

TOLERANCE = 1e-4
TEXT = "red and blue green."

# What to say beside the usual options.
VARIANTS = {
    "lora": [],
    "rslora": ["--use-rslora"],
    "patterns": ["--config", "patterns.toml"],
    "loraplus": ["--loraplus-lr-ratio", "4"],
    "lora_fa": ["--lora-fa"],
    "dora": ["--use-dora"],
    "pissa": ["--init-lora-weights", "pissa"],
    "pissa_niter": ["--init-lora-weights", "pissa_niter_4"],
    "olora": ["--init-lora-weights", "olora"],
    "orthogonal": ["--init-lora-weights", "orthogonal"],
    "eva": ["--init-lora-weights", "eva"],
    "eva_dora": ["--init-lora-weights", "eva", "--use-dora"],
    "corda": ["--init-lora-weights", "corda"],
    "corda_kpm": ["--init-lora-weights", "corda", "--peft-option", 'corda_config={"corda_method": "kpm"}'],
    "embedding": ["--target-modules", "embed_tokens,q_proj"],
    "ia3": ["--peft-type", "ia3", "--target-modules", "k_proj,v_proj,down_proj", "--peft-option", 'feedforward_modules=["down_proj"]'],
    "vera": ["--peft-type", "vera"],
    "loha": ["--peft-type", "loha"],
    "lokr": ["--peft-type", "lokr"],
    "adalora": ["--peft-type", "adalora", "--peft-option", "target_r=2"],
}

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "the", "a", "was", "is", "very"]


def run(*words, cwd=None):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def added(ids):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": i, "content": word, "special": True, **flags} for i, word in enumerate(ids)]


def copied(fixture, folder, tokenizer, words):
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / fixture / name, folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def language_model(work):
    """A Llama of 96 words, each a character."""
    special = ["<unk>", "<s>", "</s>"]
    vocab = {word: i for i, word in enumerate(special + ["\n"] + [chr(c) for c in range(ord(" "), ord("{") + 1)])}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added(special),
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": []},
    }
    base = copied("llama_gqa_tied", work / "llama", tokenizer, {"bos_token": "<s>", "eos_token": "</s>"})
    data = work / "train.jsonl"
    colours = ["red", "blue", "green", "gold", "grey"]
    rows = [{"prompt": f"{colours[i // 3 % 5]} and", "completion": f" {colours[i * 2 % 5]}."} for i in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return base, data


def encoder(work):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added(special),
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {w: i for i, w in enumerate(special + WORDS)}},
    }
    return copied("heads/bert", work / "bert", tokenizer, {})


def variants(target, work, only):
    base, data = language_model(work)
    (work / "patterns.toml").write_text("rank_pattern = { v_proj = 2 }\nalpha_pattern = { q_proj = 3 }\n")
    for name, words in VARIANTS.items():
        if only and name not in only:
            continue
        folder, again = work / name, work / f"{name}-again"
        usual = ["--max-steps", 6, "--learning-rate", 1e-2, "--batch-size", 6]
        # What a method does not have is refused.
        usual += ["--r", 4] if name not in ("ia3", "adalora") else []
        usual += ["--lora-alpha", 8] if name not in ("ia3", "vera") else []
        run(target / "lowrank", "train", "--model", base, "--data", data, "--out", folder, *usual, *words, cwd=work)
        ours = json.loads(run(target / "examples/logits", base, folder, TEXT))["cases"]
        alone = json.loads(run(target / "examples/logits", base, "-", TEXT))["cases"]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing|[Uu]nexpected).*")
            model = load_adapter(load_base(base), folder)
        worst = max(differences(model, ours))
        moved = max(abs(a - b) for x, y in zip(ours[0]["logits"], alone[0]["logits"]) for a, b in zip(x, y))
        model.save_pretrained(again)
        back = json.loads(run(target / "examples/logits", base, again, TEXT))["cases"]
        returned = max(abs(a - b) for x, y in zip(ours[0]["logits"], back[0]["logits"]) for a, b in zip(x, y))
        print(f"{name}: PEFT's logits differ by {worst:.1e}, after PEFT saved it by {returned:.1e}; the base's by {moved:.1e}")
        if not worst <= TOLERANCE or not returned <= TOLERANCE or not moved > 1e-3:
            raise SystemExit(f"{name}: DIFFERENT")


def tasks(target, work, only):
    base = encoder(work)
    data = {
        "classification": ("text,label\n", lambda i: "kind" if i % 2 else "unkind", AutoModelForSequenceClassification),
        "regression": ("text,score\n", lambda i: 4.5 if i % 2 else 0.5, AutoModelForSequenceClassification),
        "token-classification": (None, None, AutoModelForTokenClassification),
    }
    text = "the film was very good"
    for task, (header, label, auto) in data.items():
        if only and task not in only:
            continue
        rows, texts, folder, merged = (work / f"{task}{end}" for end in (".csv", ".jsonl", "", "-merged"))
        if header:
            said = [f"the film was {WORDS[i % 2 * 3 + i // 2 % 3]},{label(i)}\n" for i in range(24)]
            rows.write_text(header + "".join(said))
            texts.write_text(json.dumps({"text": text}) + "\n")
        else:
            rows, texts = rows.with_suffix(".conll"), work / "texts.conll"
            rows.write_text("".join(f"the X O\n{WORDS[i % 6]} X B-MOOD\nfilm X O\n\n" for i in range(24)))
            texts.write_text("".join(f"{word} X O\n" for word in text.split()) + "\n")
        usual = ["--epochs", 10, "--learning-rate", 5e-3, "--batch-size", 6, "--target-modules", "all-linear"]
        run(target / "lowrank", "train", "--task", task, "--model", base, "--data", rows, "--out", folder, *usual)
        run(target / "lowrank", "merge", "--model", base, "--adapter", folder, "--out", merged, "--dtype", "f32")
        ours = json.loads(run(target / "lowrank", "predict", "--model", base, "--adapter", folder, "--data", texts))
        labels = json.loads((folder / "task.json").read_text()).get("labels", ["value"])
        ids = torch.tensor([Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids])
        model = PeftModel.from_pretrained(auto.from_pretrained(base, num_labels=len(labels), dtype=torch.float32), folder)
        alone = auto.from_pretrained(merged, dtype=torch.float32)
        named = [alone.config.id2label[i] for i in range(len(labels))]
        if task != "regression" and named != labels:
            raise SystemExit(f"{task}: the merged model's labels are {named}, not {labels}")
        for what, model in (("PEFT", model), ("the merged model alone", alone)):
            with torch.no_grad():
                logits = model.eval()(input_ids=ids).logits[0]
            if task == "token-classification":
                found = [labels[i] for i in logits.argmax(-1)[1:-1]]
                if found != ours["tags"]:
                    raise SystemExit(f"{task}: {what} finds {found}, not {ours['tags']}")
                print(f"{task}: {what} finds the same tags {found}")
                continue
            theirs = logits if task == "regression" else logits.softmax(-1)
            mine = torch.tensor([ours["value"]] if task == "regression" else [ours["scores"][label] for label in labels])
            worst = ((theirs - mine).abs().max() / theirs.abs().max()).item()
            print(f"{task}: {what} differs by {worst:.1e} of {theirs.abs().max():.3g}")
            if not worst <= TOLERANCE:
                raise SystemExit(f"{task}: DIFFERENT")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="the folder of the built command")
    parser.add_argument("--only", nargs="+")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        variants(args.target.absolute(), Path(work), args.only)
        tasks(args.target.absolute(), Path(work), args.only)


if __name__ == "__main__":
    main()
