"""RoBERTa-base's true shape with random weights, forward and backward, against the lowrank command.

    python roberta_base.py --lowrank target/release/lowrank --tokenizer GPT2_FOLDER --data sst2/train.tsv

Makes the model, an adapter and a head with PEFT, then compares the loss and gradient norm of the first steps of
`lowrank train` with PyTorch's, and the probabilities of `lowrank predict` with PyTorch's. Nothing of it is kept.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.processors import RobertaProcessing
from transformers import RobertaConfig, RobertaForSequenceClassification

ROWS, BATCH, STEPS = 24, 8, 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowrank", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with GPT-2's tokenizer.json")
    parser.add_argument("--data", type=Path, required=True, help="a TSV file with sentence and label")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        run(args, Path(work))


def run(args, work):
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )
    model = RobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            # Large enough that attention is not uniform.
            if p.dim() == 2:
                p.mul_(2.0)
    model.save_pretrained(work / "base")
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(work / "base/tokenizer.json"))

    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.02)
    model.save_pretrained(work / "adapter")

    lines = args.data.read_text(encoding="utf-8").splitlines()[: ROWS + 1]
    (work / "rows.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts, labels = zip(*(line.split("\t")[:2] for line in lines[1:]))
    ids = [tokenizer.encode(text).ids for text in texts]
    labels = torch.tensor([int(label) for label in labels])

    def batch(at):
        rows = ids[at : at + BATCH]
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [1] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }

    with torch.no_grad():
        logits = torch.cat([model(**batch(at)).logits for at in range(0, ROWS, BATCH)])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    theirs, start = [], time.perf_counter()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(**batch(step * BATCH), labels=labels[step * BATCH : (step + 1) * BATCH]).loss
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        optimizer.step()
        theirs.append((loss.item(), norm.item()))
    seconds = time.perf_counter() - start

    shared = ["--model", work / "base", "--data", work / "rows.tsv"]
    train = [args.lowrank, "train", *shared, "--task", "classification", "--init-adapter", work / "adapter"]
    train += ["--out", work / "out", "--no-shuffle", "--batch-size", BATCH, "--max-steps", STEPS]
    train += ["--learning-rate", "1e-3", "--lr-scheduler", "constant", "--max-grad-norm", 0]
    train += ["--log-json", work / "log.jsonl"]
    subprocess.run(list(map(str, train)), check=True)
    ours = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    ours = [(step["loss"], step["grad_norm"], step["step_s"]) for step in ours if "loss" in step]
    predict = [args.lowrank, "predict", *shared, "--adapter", work / "adapter"]
    out = subprocess.run(list(map(str, predict)), check=True, capture_output=True, text=True).stdout
    scores = torch.tensor([[json.loads(line)["scores"][c] for c in "01"] for line in out.splitlines()])
    print(f"probabilities differ by at most {(scores - logits.softmax(-1)).abs().max():.1e}")
    for step, (a, b) in enumerate(zip(theirs, ours)):
        print(f"step {step + 1}: loss {a[0]:.6f} and {b[0]:.6f}, gradient norm {a[1]:.6f} and {b[1]:.6f}")
    worst = max(abs(x - y) / x for a, b in zip(theirs, ours) for x, y in zip(a, b))
    print(f"largest relative difference {worst:.1e}; {seconds:.1f} s and {sum(s for *_, s in ours):.1f} s")
    assert worst < 1e-4, worst


if __name__ == "__main__":
    main()
