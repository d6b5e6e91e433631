"""What PEFT's `add_weighted_adapter` makes of small adapters: `crates/lowrank-tools/tests/fixtures/compose.safetensors`.

Keys: `in.I.MODULE.A|B` the adapters (alphas 6, 4, 5), `CASE.MODULE.A|B` the results (scaling 1),
`CASE.mask.MODULE.PART.I` the entries that DARE kept (PART 0 for A, 1 for B, 2 for the product)."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

OUT = Path(__file__).parents[2] / "crates/lowrank-tools/tests/fixtures/compose.safetensors"
OUT.parent.mkdir(parents=True, exist_ok=True)
MODULES = {"q": (7, 9), "v": (7, 5)}
RANKS, ALPHAS = (3, 3, 2), (6, 4, 5)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, (inputs, outputs) in MODULES.items():
            self.add_module(name, torch.nn.Linear(inputs, outputs, bias=False))


torch.manual_seed(3)
model = None
for i, (r, alpha) in enumerate(zip(RANKS, ALPHAS)):
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(MODULES))
    if model is None:
        model = get_peft_model(Tiny(), config, adapter_name=f"{i}")
    else:
        model.add_adapter(f"{i}", config)
tensors = {}
layers = {name: getattr(model.base_model.model, name) for name in MODULES}
for name, layer in layers.items():
    for i in range(3):
        for part, weights in (("A", layer.lora_A), ("B", layer.lora_B)):
            weight = weights[f"{i}"].weight
            weight.data = torch.randn_like(weight)
            tensors[f"in.{i}.{name}.{part}"] = weight.data.clone()

drawn = []
bernoulli = torch.bernoulli


def recorded(*args, **kwargs):
    drawn.append(bernoulli(*args, **kwargs))
    return drawn[-1]


torch.bernoulli = recorded
TWO, THREE = ["0", "1"], ["0", "1", "2"]
CASES = {
    "linear": (TWO, [0.7, 0.4], "linear", {}),
    "negative": (TWO, [1.0, -0.5], "linear", {}),
    "single": (["0"], [0.5], "svd", {}),
    "cat": (THREE, [0.7, -0.4, 1.5], "cat", {}),
    "svd": (THREE, [0.7, -0.4, 1.5], "svd", {}),
    "svd2": (THREE, [0.7, 0.4, 1.5], "svd", {"svd_rank": 2}),
    "ties": (TWO, [0.7, 0.4], "ties", {"density": 0.6}),
    "ties_frequency": (TWO, [0.7, 0.4], "ties", {"density": 0.6, "majority_sign_method": "frequency"}),
    "ties_svd": (THREE, [0.7, 0.4, -0.3], "ties_svd", {"density": 0.5}),
    "dare_linear": (TWO, [0.7, 0.4], "dare_linear", {"density": 0.5}),
    "dare_ties": (TWO, [0.7, 0.4], "dare_ties", {"density": 0.5}),
    "dare_linear_svd": (THREE, [0.7, 0.4, 1.0], "dare_linear_svd", {"density": 0.5}),
    "dare_ties_svd": (THREE, [0.7, 0.4, 1.0], "dare_ties_svd", {"density": 0.5}),
    "magnitude_prune": (TWO, [0.7, 0.4], "magnitude_prune", {"density": 0.4}),
    "magnitude_prune_svd": (THREE, [0.7, 0.4, 1.0], "magnitude_prune_svd", {"density": 0.4}),
}
for case, (adapters, weights, combination, more) in CASES.items():
    drawn.clear()
    model.base_model.add_weighted_adapter(adapters, weights, case, combination_type=combination, **more)
    masks = iter(drawn)
    for name, layer in layers.items():
        assert layer.scaling[case] == 1
        tensors[f"{case}.{name}.A"] = layer.lora_A[case].weight.data.contiguous()
        tensors[f"{case}.{name}.B"] = layer.lora_B[case].weight.data.contiguous()
        if combination.startswith("dare"):
            for part in [2] if combination.endswith("svd") else [0, 1]:
                for i in adapters:
                    tensors[f"{case}.mask.{name}.{part}.{i}"] = next(masks).contiguous()
    assert next(masks, None) is None
save_file(tensors, OUT)
