"""Write what TRL's trainers make of tiny models: every step's loss and rewards, and the first gradients.

`preferences/<case>/` holds adapter/ as it starts, and expected.safetensors: `losses [STEPS]`, one tensor for each metric that TRL logs,
and `grad.<parameter>` of the first batch. `preferences/data.json` holds the rows as tokens. The bases are those of variants.py.

    python preferences.py [--out DIR]
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from llama_tiny import FIXTURES, load
from variants import names, randomise

STEPS, LR, BATCH, ROWS = 20, 1e-3, 4, 8
METRICS = (
    "rewards/chosen rewards/rejected rewards/margins rewards/accuracies logps/chosen logps/rejected kl margin accuracy"
).split()
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}


def dpo(*losses, **more):
    return DPOTrainer, DPOConfig, {"loss_type": list(losses)} | more


def cpo(**more):
    return CPOTrainer, CPOConfig, more


# Trainer, its configuration, and what differs from its defaults.
CASES = {
    "sigmoid": dpo("sigmoid", beta=0.3),
    "hinge": dpo("hinge"),
    "ipo": dpo("ipo"),
    "exo_pair": dpo("exo_pair", label_smoothing=0.05),
    "nca_pair": dpo("nca_pair"),
    "robust": dpo("robust", label_smoothing=0.1),
    "bco_pair": dpo("bco_pair"),
    "sppo_hard": dpo("sppo_hard"),
    "apo_zero": dpo("apo_zero"),
    "apo_down": dpo("apo_down"),
    "sigmoid_norm": dpo("sigmoid_norm", beta=2.0),
    "mixture": dpo("sigmoid", "bco_pair", "sft", loss_weights=[0.8, 0.2, 0.5]),
    "cpo": cpo(loss_type="sigmoid", label_smoothing=0.1),
    "simpo": cpo(loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.7, beta=2.0),
    "orpo": (ORPOTrainer, ORPOConfig, {"beta": 0.4}),
    "kto": (KTOTrainer, KTOConfig, {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.5}),
    "apo_zero_unpaired": (KTOTrainer, KTOConfig, {"loss_type": "apo_zero_unpaired"}),
    "dft": (SFTTrainer, SFTConfig, {"loss_type": "dft"}),
    "reward": (RewardTrainer, RewardConfig, {"center_rewards_coefficient": 0.05}),
}
# Both families for the losses that people use most.
BOTH = ["sigmoid", "ipo", "orpo", "kto", "reward"]


def tokenizer():
    words = ["<pad>", "<bos>", "<eos>"] + [f"w{i}" for i in range(3, 64)]
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Without a begin token, which some trainers would add and others not.
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>")


def rows():
    """Pairs of unequal lengths, as texts."""
    generator = torch.Generator().manual_seed(5)
    text = lambda n: "".join(f" w{i}" for i in torch.randint(3, 64, (n,), generator=generator).tolist())
    out = []
    for row in range(ROWS):
        prompt, chosen, rejected = 3 + row % 4, 2 + row % 5, 1 + (3 * row) % 6
        margin = 0.25 * row
        out.append({"prompt": text(prompt).strip(), "chosen": text(chosen), "rejected": text(rejected), "margin": margin})
    return out


def unpaired(pairs):
    out = []
    for row, pair in enumerate(pairs):
        completion = pair["chosen"] if row % 3 else pair["rejected"]
        out.append({"prompt": pair["prompt"], "completion": completion, "label": row % 3 > 0})
    return out


def start(case, base, folder):
    """A model with an adapter that is not nothing, saved to the folder and read again."""
    torch.manual_seed(1)
    reward = case.startswith("reward")
    kind = "SEQ_CLS" if reward else "CAUSAL_LM"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[base], task_type=kind)
    path = FIXTURES / "variants" / base
    whole = lambda: (
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, pad_token_id=0, dtype=torch.float32)
        if reward
        else load(path)
    )
    model = get_peft_model(whole(), config).eval()
    randomise(model, torch.Generator().manual_seed(sum(map(ord, case))))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter/README.md").unlink()
    said_path = folder / "adapter/adapter_config.json"
    said = json.loads(said_path.read_text())
    said["target_modules"] = sorted(said["target_modules"])
    said_path.write_text(json.dumps(said, indent=2) + "\n")
    return PeftModel.from_pretrained(whole(), folder / "adapter", is_trainable=True).eval()


def write_case(root, case, base, kind):
    trainer_class, config_class, more = kind
    name = case if base == "llama" else f"{case}_{base}"
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = start(case, base, folder)
    data = unpaired(rows()) if trainer_class in (KTOTrainer, SFTTrainer) else rows()
    unused = {SFTTrainer: ["label"], RewardTrainer: []}.get(trainer_class, ["margin"])
    data = [{key: value for key, value in row.items() if key not in unused} for row in data]
    with tempfile.TemporaryDirectory() as out:
        config = config_class(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=LR,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **more,
        )
        trainer = trainer_class(
            model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer()
        )
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
        losses, grads = [], {}
        whole = trainer.compute_loss
        trainer.compute_loss = lambda *a, **k: keep(losses, whole(*a, **k))
        step = trainer.training_step

        def first(model, *a, **k):
            loss = step(model, *a, **k)
            if not grads:
                grads.update({n: p.grad.clone() for n, p in names(model).items() if p.grad is not None})
            return loss

        trainer.training_step = first
        trainer.train()
    out = {"losses": torch.tensor(losses, dtype=torch.float64)}
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for metric in METRICS:
        values = [log[metric] for log in logs if metric in log]
        if len(values) == STEPS:
            out[metric] = torch.tensor([float(value) for value in values], dtype=torch.float64)
    out |= {f"grad.{name.replace('modules_to_save.', '')}": grad.contiguous() for name, grad in grads.items()}
    save_file(out, folder / "expected.safetensors")
    print(f"{name}: {losses[0]:.6f} to {losses[-1]:.6f}, {sorted(key for key in out if not key.startswith('grad.'))}")


def keep(losses, loss):
    losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
    return loss


def write_data(root):
    encode = lambda text: tokenizer()(text)["input_ids"]
    pairs = [
        {
            "prompt": encode(row["prompt"]),
            "chosen": encode(row["chosen"]) + [2],
            "rejected": encode(row["rejected"]) + [2],
            "margin": row["margin"],
        }
        for row in rows()
    ]
    single = [
        {"prompt": encode(row["prompt"]), "completion": encode(row["completion"]) + [2], "label": row["label"]}
        for row in unpaired(rows())
    ]
    (root / "data.json").write_text(json.dumps({"pairs": pairs, "unpaired": single}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "preferences")
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(exist_ok=True)
    write_data(args.out)
    for case, kind in CASES.items():
        for base in ["llama", "gpt2"] if case in BOTH else ["llama"]:
            if not args.cases or case in args.cases:
                write_case(args.out, case, base, kind)


if __name__ == "__main__":
    main()
