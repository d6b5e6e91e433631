"""Check that transformers + PEFT read what Lowrank wrote and compute the same logits.

    python peft_load.py --base BASE [--adapter DIR] --check LOGITS.json [--tolerance 1e-4]

BASE is a GGUF file or a Hugging Face folder (for a merged model: that model, without --adapter). LOGITS.json is
what Lowrank computed:

    {"cases": [{"ids": [1, 2, 3], "positions": [0, 2], "vocab": [5, 9], "logits": [[0.1, 0.2], [0.3, 0.4]]}]}

`logits` holds one row per position and one column per word; `positions` and `vocab` default to all. The largest
difference, relative to the largest logit of the case, decides. Exit status: 0 equal, 1 different, 2 unreadable.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from base import load_base


def load_adapter(model, folder):
    """PEFT only warns about tensors it misses or does not know, so compare with the file."""
    model = PeftModel.from_pretrained(model, folder).eval()
    theirs, ours = get_peft_model_state_dict(model), load_file(folder / "adapter_model.safetensors")
    # With an embedding PEFT gives the base's own table too.
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith(".base_layer.weight")}
    if theirs.keys() != ours.keys():
        raise ValueError(f"tensors only in the file or only in PEFT: {sorted(theirs.keys() ^ ours.keys())}")
    for name, tensor in ours.items():
        if not torch.equal(theirs[name].float(), tensor.float()):
            raise ValueError(f"{name} is not what the file holds")
    print(f"PEFT reads {folder}: {len(ours)} tensors, {sum(t.numel() for t in ours.values())} values")
    return model


def differences(model, cases):
    """For every case the largest difference over the largest expected logit."""
    for case in cases:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([case["ids"]]), use_cache=False).logits[0].float()
        if "positions" in case:
            logits = logits[case["positions"]]
        if "vocab" in case:
            logits = logits[:, case["vocab"]]
        ours = torch.tensor(case["logits"])
        if ours.shape != logits.shape:
            raise ValueError(f"logits have shape {tuple(ours.shape)}, expected {tuple(logits.shape)}")
        if not ours.isfinite().all():
            raise ValueError("logits are not finite")
        yield ((ours - logits).abs().max() / logits.abs().max()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--check", type=Path, required=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()

    try:
        cases = json.loads(args.check.read_text())["cases"]
        model = load_base(args.base)
        if args.adapter:
            model = load_adapter(model, args.adapter)
        found = list(differences(model, cases))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for i, value in enumerate(found):
        print(f"case {i}: {len(cases[i]['ids'])} tokens, largest relative difference {value:.2e}")
    worst = max(found, default=float("inf"))
    print(f"{'equal' if worst <= args.tolerance else 'DIFFERENT'}: {worst:.2e} (tolerance {args.tolerance:.0e})")
    return 0 if worst <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
