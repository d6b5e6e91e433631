"""Write the loss and gradients of transformers + PEFT in training mode, with the masks of Lowrank's random numbers.

The models, adapters and texts are those of fixtures/heads (heads_tiny.py); each dropout gets a probability of its own. For
each case fixtures/base_dropout has the configuration with them, and expected.safetensors.

    python base_dropout.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from heads_tiny import FIXTURES, SEQUENCE, loss_of
from llama_tiny import trainable
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

SEED = 5
FIRST, HEAD = 1 << 23, 1 << 20
BERT = {"hidden_dropout_prob": 0.15, "attention_probs_dropout_prob": 0.25}
# case: base, labels, probabilities
CASES = {
    "bert/pair": ("bert", 3, BERT),
    "roberta/regression": ("roberta", 1, BERT | {"classifier_dropout": 0.3}),
    "distilbert/classes": ("distilbert", 2, {"dropout": 0.15, "attention_dropout": 0.25, "seq_classif_dropout": 0.3}),
    "deberta/bias_all": ("../deberta_conv", 3, BERT | {"pooler_dropout": 0.1, "cls_dropout": 0.3}),
    "gpt2/classes": ("../gpt2_c_attn", 3, {"embd_pdrop": 0.1, "attn_pdrop": 0.25, "resid_pdrop": 0.15}),
}


def philox(counter, key):
    """Ten rounds of Philox4x32 (Salmon et al. 2011) on `[4, n]` words."""
    c = [word.astype(np.uint64) for word in counter]
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), a & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def factors(count, p, seed, stream, first=0):
    """The factors of values `first ..` of a stream: value `i` is word `i % 32 / 8` of counter `i / 32 * 8 + i % 8`."""
    i = np.arange(first, first + count)
    counter = (i // 32 * 8 + i % 8).astype(np.uint64)
    low = np.uint64(0xFFFFFFFF)
    fill = lambda value: np.full(count, value, np.uint64)
    words = [counter & low, counter >> np.uint64(32), fill(stream & 0xFFFFFFFF), fill(stream >> 32)]
    words = np.stack(philox(words, (seed & 0xFFFFFFFF, seed >> 32)))
    words = words[i % 32 // 8, np.arange(count)]
    keep = words >= round(p * 2**32)
    return torch.tensor(np.where(keep, 1 / (1 - p), 0.0), dtype=torch.float32)


class Text:
    """The text that is computed: its number, its first row in the batch, its length, and which row its head reads."""

    number = first = length = read = longest = 0


def rows(selected):
    """Rows of the text that are computed, with their numbers in the batch."""
    if selected:
        return [(Text.read, Text.number)]
    return [(t, Text.first + t) for t in range(Text.length)]


def drop_hidden(x, p, place, selected):
    """`x: [1,T,D]`, or `[1,D]` behind a head."""
    if x.dim() == 2:
        own = [(0, Text.number)]
    else:
        own = rows(selected)
    flat, mask = x.reshape(-1, x.shape[-1]), torch.ones(x.numel() // x.shape[-1], x.shape[-1])
    for t, row in own:
        mask[t] = factors(flat.shape[1], p, SEED, FIRST + place, row * flat.shape[1])
    return (flat * mask).reshape(x.shape)


def drop_attention(weights, p, place, selected):
    """`[1,H,T,T]`: the seed goes with the place, the stream with row and head."""
    seed = SEED ^ ((FIRST + place) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    heads, keys = weights.shape[1], weights.shape[3]
    mask = torch.ones_like(weights)
    for t, row in rows(selected):
        for h in range(heads):
            mask[0, h, t] = factors(keys, p, seed, row * heads + h)
    return weights * mask


def drop_distances(table, p, place, config):
    """`[2 S, D]`: Lowrank has only the rows that the distances of the longest text touch."""
    most = config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings
    span = config.position_buckets if config.position_buckets > 0 else most
    far = Text.longest - 1
    distances = torch.arange(-far, far + 1)
    if config.position_buckets > 0:
        distances = make_log_bucket_position(distances, config.position_buckets, most).long()
    rows = (distances + span).clamp(0, 2 * span - 1)
    first, last, width = int(rows.min()), int(rows.max()), table.shape[1]
    mask = torch.ones_like(table)
    for row in range(first, last + 1):
        mask[row] = factors(width, p, SEED, FIRST + place, (row - first) * width)
    return table * mask


class Dropout(torch.nn.Dropout):
    """A dropout of the model with Lowrank's masks."""

    def __init__(self, p, places, last, kind):
        super().__init__(p)
        self.places, self.last, self.kind, self.calls = places, last, kind, 0

    def forward(self, x):
        place = self.places[self.calls % len(self.places)]
        self.calls += 1
        if self.kind == "distances":
            return drop_distances(x, self.p, place, self.config)
        if x.dim() == 4:
            return drop_attention(x, self.p, place, self.last and self.kind == "encoder")
        return drop_hidden(x, self.p, place, self.last)


def replace(model, base, layers):
    """Gives every dropout of the model its places. A last block computes only the row that its head reads: an encoder of BERT's kind
    from the queries on, others behind the attention."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Dropout) or isinstance(module, Dropout) or "lora" in name:
            continue
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        layer = numbers[0] if numbers else None
        last = layer == layers - 1
        place = lambda i: 4 * (layer + 1) + i
        kind = "encoder" if base in ("bert", "roberta", "distilbert") else "decoder"
        if "embeddings.dropout" in name or name.endswith("transformer.drop"):
            places, last = [0], False
        elif name.endswith("conv.dropout"):
            places, last = [1], False
        elif name.endswith("pooler.dropout"):
            places = [HEAD]
        elif name.endswith("pos_dropout"):
            places, kind = [place(3)], "distances"
        elif layer is None:
            # RoBERTa's head drops twice.
            places = [HEAD, HEAD + 1] if base == "roberta" else [HEAD + 1]
        elif name.endswith(("attention.self.dropout", "attention.dropout", "attn.attn_dropout")):
            places = [place(0)]
        elif name.endswith(("attention.output.dropout", "attn.resid_dropout")):
            places = [place(1)]
        elif name.endswith(("output.dropout", "ffn.dropout", "mlp.dropout")):
            places = [place(2)]
        else:
            raise SystemExit(f"where is {name}?")
        parent, _, child = name.rpartition(".")
        mine = Dropout(module.p, places, last, kind)
        mine.config = model.config
        setattr(model.get_submodule(parent), child, mine)


def write_case(case):
    base, labels, probabilities = CASES[case]
    source, given = FIXTURES / "heads" / base, load_file(FIXTURES / "heads" / case / "expected.safetensors")
    folder = FIXTURES / "base_dropout" / case.replace("/", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text()) | probabilities
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    problem = "regression" if case.endswith("regression") else None
    more = {"num_labels": labels} | ({"pad_token_id": 0} if "gpt2" in base else {}) | ({"problem_type": problem} if problem else {})
    with tempfile.TemporaryDirectory() as model:
        shutil.copy(folder / "config.json", model)
        shutil.copy(source / "model.safetensors", model)
        model = SEQUENCE.from_pretrained(model, dtype=torch.float32, attn_implementation="eager", **more)
    layers = model.config.num_hidden_layers
    model = PeftModel.from_pretrained(model, FIXTURES / "heads" / case / "adapter", is_trainable=True)
    replace(model.base_model.model, base, layers)
    model.train()
    # Attention that calls the function and not a module, in the order of the layers.
    function, calls = F.dropout, []

    def dropout(x, p=0.5, training=True, inplace=False):
        if x.dim() != 4:
            return function(x, p, training, inplace)
        layer = len(calls) % layers
        calls.append(layer)
        return drop_attention(x, p, 4 * (layer + 1), layer == layers - 1 and "gpt2" not in base)

    F.dropout = torch.nn.functional.dropout = dropout
    loss, first = 0.0, 0
    batch = []
    for i in range(3):
        item = {"ids": given[f"ids_{i}"], "labels": given[f"labels_{i}"]}
        if f"types_{i}" in given:
            item["types"] = given[f"types_{i}"]
        batch.append(item)
    Text.longest = max(len(item["ids"]) for item in batch)
    total = 0.0
    for i, item in enumerate(batch):
        n = len(item["ids"])
        Text.number, Text.first, Text.length, Text.read = i, first, n, n - 1 if "gpt2" in base else 0
        total = total + loss_of(model, SEQUENCE, [item]) * item["labels"].numel()
        first += n
    loss = total / sum(item["labels"].numel() for item in batch)
    loss.backward()
    F.dropout = torch.nn.functional.dropout = function
    gradients = {n: p.grad for n, p in trainable(model).items() if p.grad is not None}
    out = {f"grad.{n.replace('.modules_to_save', '')}": g.contiguous() for n, g in gradients.items()}
    out["loss"] = loss.detach().reshape(1)
    save_file(out, folder / "expected.safetensors")
    without = given["losses"][0].item()
    print(f"{case:20} loss {loss.item():.4f}, without dropout {without:.4f}; {len(calls)} calls of the function")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        write_case(case)
