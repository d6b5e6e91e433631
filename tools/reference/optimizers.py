"""Write what transformers' and PEFT's optimizers make of the parameters of tiny models.

`optimizers/<case>/` holds adapter/ as PEFT saves it (or nothing, for full fine-tuning) and expected.safetensors with each
trained parameter after STEPS steps, under PEFT's name in the file. The bases are those of variants.py.

    python optimizers.py [--out DIR]
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, lorafa
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import Trainer

from llama_tiny import FIXTURES, batch_loss, load
from variants import batch_of, randomise

STEPS, LR, DECAY = 4, 3e-3, 0.5

# PEFT rounds the projection of LoRA-FA to BF16 where it can; the method does not ask for it.
lorafa.is_bf16_available = lambda: False


def trainer(model, _):
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": DECAY},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR)


def loraplus(model, _):
    more = {"loraplus_weight_decay": DECAY, "loraplus_lr_embedding": 5e-3}
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=4.0, **more)


def lora_fa(model, config):
    return create_lorafa_optimizer(model, r=config.r, lora_alpha=config.lora_alpha, lr=LR, weight_decay=DECAY)


LLAMA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
GPT2 = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "mlp.c_proj"]}

# Base, optimizer, PEFT's configuration (none: every weight is trained).
CASES = {
    "full_llama": ("llama", trainer, None),
    "full_gpt2": ("gpt2", trainer, None),
    "trainer_llama": ("llama", trainer, LoraConfig(bias="all", modules_to_save=["norm", "input_layernorm"], **LLAMA)),
    "trainer_gpt2": ("gpt2", trainer, LoraConfig(bias="all", modules_to_save=["ln_f", "ln_1"], use_dora=True, **GPT2)),
    "loraplus_llama": (
        "llama",
        loraplus,
        LoraConfig(
            bias="all",
            modules_to_save=["norm", "up_proj"],
            **(LLAMA | {"target_modules": ["q_proj", "down_proj", "embed_tokens"]}),
        ),
    ),
    "loraplus_gpt2": ("gpt2", loraplus, LoraConfig(bias="lora_only", modules_to_save=["ln_f"], use_dora=True, **GPT2)),
    "lora_fa": (
        "llama",
        lora_fa,
        LoraConfig(bias="lora_only", modules_to_save=["norm"], rank_pattern={"v_proj": 2}, **LLAMA),
    ),
    "lora_fa_rslora": ("gpt2", lora_fa, LoraConfig(use_rslora=True, **GPT2)),
}


def write_case(root, bases, case, base, make, config):
    folder, base = root / case, bases / base
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    model = load(base)
    if config is not None:
        config.task_type = "CAUSAL_LM"
        model = get_peft_model(model, config).eval()
        randomise(model, torch.Generator().manual_seed(sum(map(ord, case))))
        model.peft_config["default"].base_model_name_or_path = base.name
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
        (folder / "adapter/README.md").unlink()
        path = folder / "adapter/adapter_config.json"
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"target_modules": sorted(said["target_modules"])}, indent=2) + "\n")
        model = PeftModel.from_pretrained(load(base), folder / "adapter", is_trainable=True).eval()
    else:
        model.requires_grad_(True)
    optimizer, batch = make(model, config), batch_of(base)
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch_loss(model, batch).backward()
        optimizer.step()
    if config is None:
        out = {f"base_model.model.{name}": p for name, p in model.named_parameters()}
    else:
        out = get_peft_model_state_dict(model, save_embedding_layers=False)
    out = {name: p.detach().clone().contiguous() for name, p in out.items()}
    save_file(out, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{case}: {len(out)} tensors, {size // 1024} KB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "optimizers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for case, (base, make, config) in CASES.items():
        write_case(args.out, FIXTURES / "variants", case, base, make, config)


if __name__ == "__main__":
    main()
