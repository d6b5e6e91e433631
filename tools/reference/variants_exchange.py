"""Check that PEFT reads the variants Lowrank wrote: every folder of DIR on the base BASE.

    python variants_exchange.py --base BASE DIR

A folder is an adapter as `lowrank train` writes it. It must load without a tensor missing, left over or changed, and
its logits must be finite and differ from the base's.
"""

import argparse
import warnings
from pathlib import Path

import torch

from base import load_base
from peft_load import load_adapter


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("dir", type=Path)
    args = parser.parse_args()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        base = load_base(args.base)(input_ids=ids).logits
        for folder in sorted(f.parent for f in args.dir.glob("*/adapter_config.json")):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*(missing|[Uu]nexpected).*")
                model = load_adapter(load_base(args.base), folder)
            logits = model(input_ids=ids).logits
            if not logits.isfinite().all() or torch.equal(logits, base):
                raise SystemExit(f"{folder}: its logits are not finite or those of the base")
            print(f"{folder.name}: logits differ from the base's by up to {(logits - base).abs().max():.3g}")


if __name__ == "__main__":
    main()
