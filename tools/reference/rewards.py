"""Write what TRL's GRPOTrainer and RLOOTrainer make of given completions on tiny models: every step's loss and what is logged, the
advantages, and the gradients of the first two steps.

`rewards/<case>/` holds adapter/ as it starts, and expected.safetensors: `losses [STEPS]`, `advantages [BATCHES, COMPLETIONS]`, one tensor
for each metric, and `grad<step>.<parameter>`. `rewards/data.json` holds prompts, completions and rewards. The bases are those of
variants.py.

    python rewards.py [--out DIR] [CASE...]
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from llama_tiny import FIXTURES
from preferences import keep, start, tokenizer
from variants import names

STEPS, LR, PROMPTS, GENERATIONS, LONGEST, EOS = 8, 3e-3, 2, 4, 6, 2
METRICS = (
    "clip_ratio/low_mean clip_ratio/high_mean clip_ratio/region_mean kl reward reward_std frac_reward_zero_std "
    "completions/mean_length completions/clipped_ratio rewards/first/mean rewards/first/std rewards/second/mean"
).split()


def grpo(**more):
    return GRPOTrainer, GRPOConfig, {"num_iterations": 2, "epsilon": 0.03, "epsilon_high": 0.05} | more


def rloo(**more):
    return RLOOTrainer, RLOOConfig, {"num_iterations": 2, "epsilon": 0.03, "epsilon_high": 0.05} | more


# Trainer, its configuration, and what differs from its defaults.
CASES = {
    "plain": grpo(loss_type="grpo", num_iterations=1),
    "grpo": grpo(loss_type="grpo", beta=0.1),
    "grpo_kl": grpo(loss_type="grpo", beta=0.1, use_bias_correction_kl=False),
    "dr_grpo": grpo(loss_type="dr_grpo", scale_rewards="none"),
    "bnpo": grpo(loss_type="bnpo", scale_rewards="batch"),
    "dapo": grpo(loss_type="dapo", temperature=0.7, mask_truncated_completions=True),
    "sequence": grpo(loss_type="grpo", importance_sampling_level="sequence", beta=0.1, epsilon=0.01, epsilon_high=0.01),
    "rloo": rloo(beta=0.05),
    "rloo_normalized": rloo(beta=0.0, normalize_advantages=True, temperature=1.3),
}
BOTH = ["grpo", "sequence", "dapo"]


def data():
    """Prompts with completions of unequal lengths, some without an end, and two rewards for each, one of which may be missing."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda n: torch.randint(3, 64, (n,), generator=generator).tolist()
    out = []
    for prompt in range(PROMPTS * STEPS):
        completions = []
        for i in range(GENERATIONS):
            length = 1 + (prompt + 2 * i) % (LONGEST + 1)
            completions.append(draw(LONGEST) if length > LONGEST else draw(length - 1) + [EOS])
        first = [round(x, 3) for x in torch.rand(GENERATIONS, generator=generator).tolist()]
        second = [None if (prompt + i) % 5 == 0 else float((prompt * i) % 3) for i in range(GENERATIONS)]
        if prompt % 4 == 3:
            first, second = [0.5] * GENERATIONS, [1.0] * GENERATIONS
        # The prompts of a batch are equally long: TRL pads them on the left, and GPT-2 then has other positions.
        out.append({"prompt": draw(3 + prompt // PROMPTS % 4), "completions": completions, "first": first, "second": second})
    return out


def write_case(root, rows, case, base, kind):
    trainer_class, config_class, more = kind
    name = case if base == "llama" else f"{case}_{base}"
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = start(case, base, folder)
    text = lambda ids: " ".join(f"w{i}" for i in ids)
    prompts = [text(row["prompt"]) for row in rows]

    def first(prompts, completions, **kwargs):
        return [rows[at]["first"][i] for at, i in told]

    def second(prompts, completions, **kwargs):
        return [rows[at]["second"][i] for at, i in told]

    told = []
    with tempfile.TemporaryDirectory() as out:
        config = config_class(
            output_dir=out,
            per_device_train_batch_size=PROMPTS * GENERATIONS,
            num_generations=GENERATIONS,
            max_completion_length=LONGEST,
            reward_weights=[1.0, 0.5],
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
            shuffle_dataset=False,
            **more,
        )
        trainer = trainer_class(
            model=model,
            args=config,
            reward_funcs=[first, second],
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer(),
        )
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

        def given(prompt_ids, *args, **kwargs):
            told.clear()
            for i, ids in enumerate(prompt_ids):
                told.append((next(at for at, row in enumerate(rows) if row["prompt"] == list(ids)), i % GENERATIONS))
            completions = [rows[at]["completions"][i] for at, i in told]
            return completions if trainer_class is RLOOTrainer else (completions, None)

        trainer._generate_single_turn = given
        losses, grads = [], {}
        whole = trainer.compute_loss
        trainer.compute_loss = lambda *a, **k: keep(losses, whole(*a, **k))
        step = trainer.training_step

        def training_step(model, *a, **k):
            loss = step(model, *a, **k)
            at = len(losses) - 1
            if at < 2:
                found = {f"grad{at}.{n}": p.grad.clone() for n, p in names(model).items() if p.grad is not None}
                grads.update(found)
            return loss

        trainer.training_step = training_step
        advantages = []
        score = trainer._generate_and_score_completions

        def scored(*a, **k):
            out = score(*a, **k)
            advantages.append(out["advantages"].double().clone())
            return out

        trainer._generate_and_score_completions = scored
        trainer.train()
    out = {"losses": torch.tensor(losses, dtype=torch.float64), "advantages": torch.stack(advantages)}
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for metric in METRICS:
        values = [log[metric] for log in logs if metric in log]
        if values:
            out[metric] = torch.tensor([float(value) for value in values], dtype=torch.float64)
    out |= {key: grad.contiguous() for key, grad in grads.items()}
    save_file(out, folder / "expected.safetensors")
    shown = {key: [round(v, 4) for v in out[key].tolist()] for key in METRICS[:5] if key in out}
    print(f"{name}: {losses}\n  {shown}\n  {[key for key in out if not key.startswith('grad')]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "rewards")
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(exist_ok=True)
    rows = data()
    (args.out / "data.json").write_text(json.dumps(rows) + "\n")
    for case, kind in CASES.items():
        for base in ["llama", "gpt2"] if case in BOTH else ["llama"]:
            if not args.cases or case in args.cases:
                write_case(args.out, rows, case, base, kind)


if __name__ == "__main__":
    main()
